//! Streams between `kubectl` and a container: the server's side of exec, attach and port-forward.
//!
//! ```text
//!  HTTP request with Upgrade                       what a runtime gave
//!  ────────────────────────                        ───────────────────
//!  WebSocket v5/v4.channel.k8s.io ──┐
//!  SPDY/3.1 v4.channel.k8s.io ──────┴─▶ remote ──▶ StreamSession (stdin, stdout, stderr, resize, exit)
//!
//!  SPDY/3.1 portforward.k8s.io ─────┐
//!  SPDY/3.1+portforward.k8s.io      ├─▶ port_forward ──▶ one Duplex per connection
//!    (SPDY in WebSocket messages) ──┤
//!  WebSocket v4.channel.k8s.io ─────┘
//! ```
//!
//! Nothing here knows pods: callers look up the container, and hand in a closure that opens the
//! session once the client is connected. Everything between the two ends is bounded: a slow client
//! slows the container's output and a container that does not read slows the client.

mod activity;
mod port_forward;
mod remote;
mod request;
mod spdy;
mod status;
mod tunnel;

#[cfg(test)]
mod tests;

use std::{future::Future, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug};
use wherry_runtime_api::{Duplex, RuntimeError, StreamSession};

use crate::{
    activity::Activity,
    remote::Verb,
    request::{Transport, Upgrade},
};

/// Size of the pieces that output is read and sent in. kubectl's own is the same.
pub(crate) const CHUNK_BYTES: usize = 32 * 1024;

/// Pieces in flight in each direction of each stream before the sender waits.
pub(crate) const QUEUE_CHUNKS: usize = 8;

/// How long to wait, after the last word, for the client to close the connection. Closing first can
/// make a Go client drop frames that it has received and not yet handed on.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// How long the last bytes, TLS's goodbye among them, may take to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that has been upgraded.
type Io = TokioIo<hyper::upgrade::Upgraded>;

/// How long a client may take, and a stream may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Without a byte on any stream for this long the connection is closed. Kubelet's
    /// `--streaming-connection-idle-timeout`: 4 h.
    pub idle: Duration,
    /// For the client to open the streams it announced. Kubelet's: 30 s.
    pub stream_creation: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(4 * 60 * 60),
            stream_creation: Duration::from_secs(30),
        }
    }
}

/// Which streams a client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Into the command.
    pub stdin: bool,
    /// Out of the command.
    pub stdout: bool,
    /// Out of the command; never together with `tty`.
    pub stderr: bool,
    /// The command has a terminal, and the client sends its size.
    pub tty: bool,
}

/// Upgrades requests and carries their streams until they end or [`StreamServer::shutdown`].
#[derive(Clone, Debug)]
pub struct StreamServer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    timeouts: Timeouts,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl StreamServer {
    /// A server without connections.
    pub fn new(timeouts: Timeouts) -> Self {
        Self {
            inner: Arc::new(Inner {
                timeouts,
                tasks: TaskTracker::new(),
                shutdown: CancellationToken::new(),
            }),
        }
    }

    /// Answers an exec request. `open` is called once the client has opened its streams; its error and
    /// the command's exit code go to the client on the error stream. If the client goes away the
    /// session is dropped, which kills the command.
    pub fn exec<B, F, Fut>(
        &self,
        request: &mut Request<B>,
        options: StreamOptions,
        open: F,
    ) -> Response<String>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<StreamSession, RuntimeError>> + Send + 'static,
    {
        self.remote(request, options, Verb::Exec, open)
    }

    /// Answers an attach request, likewise. How the app ends is not told: the client reads it from the pod.
    pub fn attach<B, F, Fut>(
        &self,
        request: &mut Request<B>,
        options: StreamOptions,
        open: F,
    ) -> Response<String>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<StreamSession, RuntimeError>> + Send + 'static,
    {
        self.remote(request, options, Verb::Attach, open)
    }

    fn remote<B, F, Fut>(
        &self,
        request: &mut Request<B>,
        options: StreamOptions,
        verb: Verb,
        open: F,
    ) -> Response<String>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<StreamSession, RuntimeError>> + Send + 'static,
    {
        if !(options.stdin || options.stdout || options.stderr) {
            return request::refuse("you must specify at least 1 of stdin, stdout, stderr");
        }
        let upgrade = match Upgrade::negotiate(
            request,
            &[
                Transport::ChannelsV5,
                Transport::ChannelsV4,
                Transport::ChannelsV4Base64,
                Transport::SpdyChannelsV4,
            ],
        ) {
            Ok(upgrade) => upgrade,
            Err(refusal) => return refusal.into_response(),
        };
        let transport = upgrade.transport;
        let creation = self.inner.timeouts.stream_creation;
        self.serve(request, &upgrade, move |io, activity| {
            Box::pin(async move {
                match transport {
                    Transport::SpdyChannelsV4 => {
                        remote::spdy::serve(io, options, verb, open, creation, activity).await
                    }
                    _ => {
                        remote::websocket::serve(io, transport, options, verb, open, activity).await
                    }
                }
            })
        })
    }

    /// Answers a port-forward request: calls `connect` with the port for each connection that the client
    /// opens. `ports` are those of the query, which the plain WebSocket form names there. What `connect`
    /// says is wrong is sent to the client.
    pub fn port_forward<B, C, Fut>(
        &self,
        request: &mut Request<B>,
        ports: Vec<u16>,
        connect: C,
    ) -> Response<String>
    where
        C: Fn(u16) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Box<dyn Duplex>, String>> + Send + 'static,
    {
        let upgrade = match Upgrade::negotiate(
            request,
            &[
                Transport::TunnelPortForward,
                Transport::SpdyPortForward,
                Transport::ChannelsV4,
            ],
        ) {
            Ok(upgrade) => upgrade,
            Err(refusal) => return refusal.into_response(),
        };
        let transport = upgrade.transport;
        if transport == Transport::ChannelsV4 && ports.is_empty() {
            return request::refuse("query parameter \"port\" is required");
        }
        let creation = self.inner.timeouts.stream_creation;
        self.serve(request, &upgrade, move |io, activity| {
            Box::pin(async move {
                match transport {
                    Transport::SpdyPortForward => {
                        port_forward::spdy::serve(io, connect, creation, activity).await
                    }
                    Transport::TunnelPortForward => {
                        let io = tunnel::Tunnel::accept(io).await;
                        port_forward::spdy::serve(io, connect, creation, activity).await;
                    }
                    _ => port_forward::websocket::serve(io, ports, connect, activity).await,
                }
            })
        })
    }

    fn serve<B, F>(&self, request: &mut Request<B>, upgrade: &Upgrade, carry: F) -> Response<String>
    where
        F: for<'io> FnOnce(&'io mut Io, Activity) -> BoxFuture<'io, ()> + Send + 'static,
    {
        let upgraded = hyper::upgrade::on(&mut *request);
        let shutdown = self.inner.shutdown.clone();
        let idle = self.inner.timeouts.idle;
        let span = tracing::debug_span!("stream", path = %request.uri().path());
        self.inner.tasks.spawn(
            async move {
                let upgraded = tokio::select! {
                    upgraded = upgraded => upgraded,
                    () = shutdown.cancelled() => return,
                };
                let mut io = match upgraded {
                    Ok(upgraded) => TokioIo::new(upgraded),
                    Err(error) => return debug!(%error, "Client did not upgrade"),
                };
                let activity = Activity::default();
                tokio::select! {
                    () = carry(&mut io, activity.clone()) => {}
                    () = shutdown.cancelled() => debug!("Stream closed by shutdown"),
                    () = activity.idle_for(idle) => debug!("Stream closed for being idle"),
                }
                // Says goodbye in TLS's terms; a client that is gone is not waited for.
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, io.shutdown()).await;
            }
            .instrument(span),
        );
        upgrade.response()
    }

    /// Ends all streams and waits until they have ended.
    pub async fn shutdown(&self) {
        self.inner.shutdown.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

//! A session on one side, a client on the other: exec and attach, whatever the transport.

pub(crate) mod spdy;
pub(crate) mod websocket;

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::future::join;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use wherry_runtime_api::{StreamSession, TerminalSize};

use crate::{CHUNK_BYTES, spdy::Gone, status::Outcome};

/// How long, after the command's exit, its output may be silent before it is taken for finished. A
/// process left behind can hold the pipe open for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// What is done with the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// A command beside the app; its exit code is told.
    Exec,
    /// The app itself; its exit code is the pod's business.
    Attach,
}

impl Verb {
    fn outcome(self, exit: Result<i32, String>) -> Outcome {
        match (self, exit) {
            (Self::Exec, Ok(0)) | (Self::Attach, Ok(_)) => Outcome::Success,
            (Self::Exec, Ok(code)) => Outcome::ExitCode(code),
            (Self::Exec, Err(error)) => {
                Outcome::Failed(format!("error executing command in container: {error}"))
            }
            (Self::Attach, Err(error)) => {
                Outcome::Failed(format!("error attaching to container: {error}"))
            }
        }
    }
}

/// A stream to the client.
#[async_trait]
pub(crate) trait Output: Send {
    /// Sends a piece, waiting while the client is slow.
    async fn send(&mut self, bytes: Bytes) -> Result<(), Gone>;

    /// Says that the stream has ended, where the transport can.
    async fn finish(&mut self);
}

/// The client, once it has opened its streams.
pub(crate) struct Peer {
    /// Ends with the client's end of file.
    pub(crate) stdin: Option<mpsc::Receiver<Bytes>>,
    pub(crate) resize: Option<mpsc::Receiver<TerminalSize>>,
    pub(crate) stdout: Option<Box<dyn Output>>,
    pub(crate) stderr: Option<Box<dyn Output>>,
    pub(crate) error: Box<dyn Output>,
    /// Cancelled when the client has gone.
    pub(crate) gone: CancellationToken,
}

/// Opens the session, carries its streams and tells the client how it ended.
pub(crate) async fn run<F, Fut, E>(mut peer: Peer, verb: Verb, open: F)
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<StreamSession, E>>,
    E: std::fmt::Display,
{
    let gone = peer.gone.clone();
    let opened = tokio::select! {
        biased;
        () = gone.cancelled() => return,
        opened = open() => opened,
    };
    let exit = match opened {
        Ok(session) => match relay(session, &mut peer).await {
            Ok(exit) => exit,
            Err(Gone) => return,
        },
        Err(error) => Err(error.to_string()),
    };
    for output in [&mut peer.stdout, &mut peer.stderr].into_iter().flatten() {
        output.finish().await;
    }
    if peer.error.send(verb.outcome(exit).to_json()).await.is_ok() {
        peer.error.finish().await;
    }
}

/// Carries the streams until the command has exited and its output has been sent.
async fn relay(mut session: StreamSession, peer: &mut Peer) -> Result<Result<i32, String>, Gone> {
    let gone = peer.gone.clone();
    let reads = Reads::default();
    let outputs = join(
        pump_output(session.stdout.take(), &mut peer.stdout, &reads),
        pump_output(session.stderr.take(), &mut peer.stderr, &reads),
    );
    let inputs = join(
        pump_stdin(peer.stdin.take(), session.stdin.take()),
        pump_resize(peer.resize.take(), session.resize.take()),
    );
    tokio::pin!(outputs, inputs);
    let (mut outputs_done, mut inputs_done) = (false, false);
    let exit = loop {
        tokio::select! {
            biased;
            () = gone.cancelled() => return Err(Gone),
            exit = &mut session.exit => break exit.map_err(|error| error.to_string()),
            _ = &mut outputs, if !outputs_done => outputs_done = true,
            _ = &mut inputs, if !inputs_done => inputs_done = true,
        }
    };
    if !outputs_done {
        tokio::select! {
            biased;
            () = gone.cancelled() => return Err(Gone),
            _ = &mut outputs => {}
            () = reads.silent_for(DRAIN) => {}
        }
    }
    Ok(exit)
}

/// Whether output still comes.
#[derive(Debug, Default)]
struct Reads {
    /// Steps of all pumps: one when a piece was read, one when it was sent.
    steps: AtomicU64,
    /// Pieces read and not yet sent.
    sending: AtomicU64,
}

impl Reads {
    async fn silent_for(&self, period: Duration) {
        loop {
            let before = self.steps.load(Ordering::Relaxed);
            tokio::time::sleep(period).await;
            if self.sending.load(Ordering::Relaxed) == 0
                && self.steps.load(Ordering::Relaxed) == before
            {
                return;
            }
        }
    }
}

async fn pump_output(
    from: Option<Box<dyn AsyncRead + Send + Unpin>>,
    to: &mut Option<Box<dyn Output>>,
    reads: &Reads,
) {
    let Some(mut from) = from else { return };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK_BYTES);
        // An error of the pipe is its end; how the command ended is told by its exit code.
        let Ok(1..) = from.read_buf(&mut buffer).await else {
            return;
        };
        reads.steps.fetch_add(1, Ordering::Relaxed);
        let Some(to) = to.as_mut() else {
            buffer.clear();
            continue;
        };
        reads.sending.fetch_add(1, Ordering::Relaxed);
        let sent = to.send(buffer.split().freeze()).await;
        reads.sending.fetch_sub(1, Ordering::Relaxed);
        reads.steps.fetch_add(1, Ordering::Relaxed);
        if sent.is_err() {
            return;
        }
    }
}

async fn pump_stdin(
    from: Option<mpsc::Receiver<Bytes>>,
    to: Option<Box<dyn AsyncWrite + Send + Unpin>>,
) {
    let Some(mut from) = from else { return };
    if let Some(mut to) = to {
        loop {
            let Some(piece) = from.recv().await else {
                // A command that has closed its stdin wants no end of file.
                let _ = to.shutdown().await;
                return;
            };
            if to.write_all(&piece).await.is_err() || to.flush().await.is_err() {
                break;
            }
        }
    }
    // The command no longer reads, and the client must not be held up by that.
    while from.recv().await.is_some() {}
}

async fn pump_resize(
    from: Option<mpsc::Receiver<TerminalSize>>,
    to: Option<mpsc::Sender<TerminalSize>>,
) {
    let Some(mut from) = from else { return };
    while let Some(size) = from.recv().await {
        if let Some(to) = &to {
            // Without a receiver the terminal is gone.
            let _ = to.send(size).await;
        }
    }
}

#[derive(Deserialize)]
struct WireSize {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// Bytes kept of a terminal size that has not arrived completely.
const RESIZE_BYTES_MAX: usize = 1024;

/// Takes the complete terminal sizes (`{"Width":80,"Height":24}`, any white space between) from the front of
/// `buffer`. Kubernetes' clients send zero before they know; that is left out. Rubbish is dropped.
fn take_sizes(buffer: &mut Vec<u8>) -> Vec<TerminalSize> {
    let mut sizes = serde_json::Deserializer::from_slice(buffer).into_iter::<WireSize>();
    let mut taken = Vec::new();
    // Asked before each step, because a failed one moves it to the end.
    let mut consumed = 0;
    let is_rubbish = loop {
        match sizes.next() {
            Some(Ok(WireSize { width, height })) if width > 0 && height > 0 => {
                taken.push(TerminalSize { width, height });
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => break !error.is_eof(),
            None => break false,
        }
        consumed = sizes.byte_offset();
    };
    if is_rubbish || buffer.len() - consumed > RESIZE_BYTES_MAX {
        buffer.clear();
    } else {
        buffer.drain(..consumed);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_taken_however_they_are_cut() {
        let size = |width, height| TerminalSize { width, height };
        let mut buffer = b"{\"Width\":80,\"Height\":24}\n{\"Width\":0,\"Height\":0}{\"Wid".to_vec();
        assert_eq!(take_sizes(&mut buffer), [size(80, 24)]);
        buffer.extend_from_slice(b"th\":132,\"Height\":43}");
        assert_eq!(take_sizes(&mut buffer), [size(132, 43)]);
        assert_eq!(take_sizes(&mut buffer), []);
        let mut rubbish = b"hello".to_vec();
        assert_eq!(take_sizes(&mut rubbish), []);
        assert!(rubbish.is_empty());
    }

    #[test]
    fn an_attach_does_not_tell_the_exit_code() {
        assert_eq!(Verb::Attach.outcome(Ok(3)), Outcome::Success);
        assert_eq!(Verb::Exec.outcome(Ok(3)), Outcome::ExitCode(3));
        assert_eq!(Verb::Exec.outcome(Ok(0)), Outcome::Success);
    }
}

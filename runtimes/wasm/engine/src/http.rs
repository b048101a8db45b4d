//! Serving a component that exports `wasi:http/incoming-handler` (0.2) or `wasi:http/handler` (0.3),
//! with an instance for each request.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, oneshot},
    task::JoinSet,
};
use wasmtime_wasi_http::{
    Error, WasiHttpView,
    p2::{
        bindings::http::types::{ErrorCode, Scheme as WasiScheme},
        body::HyperOutgoingBody,
    },
};

use crate::{
    container::{Container, End},
    engine::Loaded,
    limits::Limiter,
    network::Network,
    serve::Worker,
    state::component_store,
};

/// Connections of one container at once; more wait in the backlog.
const CONNECTIONS_MAX: usize = 512;
const BACKLOG: u32 = 1024;
/// After a failed accept (no descriptors left): how long until the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the container's ports on each of the pod's addresses.
pub(crate) fn listen(network: &Network, ports: &[u16]) -> Result<Vec<TcpListener>, String> {
    let mut listeners = Vec::new();
    for port in ports {
        match network {
            Network::Open => listeners.push(listen_anywhere(*port)?),
            Network::Confined { v4: None, v6: None } => {
                return Err("listen: the pod has no address".into());
            }
            Network::Confined { v4, v6 } => {
                let (v4, v6) = (v4.map(IpAddr::V4), v6.map(IpAddr::V6));
                for ip in v4.into_iter().chain(v6) {
                    listeners.push(listen_on(SocketAddr::new(ip, *port), false)?);
                }
            }
        }
    }
    Ok(listeners)
}

/// Both families by one socket, or IPv4 where that is all there is.
fn listen_anywhere(port: u16) -> Result<TcpListener, String> {
    let any = SocketAddr::from(([0u16; 8], port));
    match listen_on(any, true) {
        Err(_) if TcpSocket::new_v6().is_err() => listen_on(
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
            false,
        ),
        other => other,
    }
}

fn listen_on(address: SocketAddr, both_families: bool) -> Result<TcpListener, String> {
    let open = || -> std::io::Result<TcpListener> {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            let socket = TcpSocket::new_v6()?;
            rustix::net::sockopt::set_ipv6_v6only(&socket, !both_families)?;
            socket
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().map_err(|error| format!("listen {address}: {error}"))
}

/// A connection to whichever listener has one first.
async fn accept(listeners: &[TcpListener]) -> std::io::Result<TcpStream> {
    let accepts = listeners.iter().map(|listener| Box::pin(listener.accept()));
    let (accepted, _, _) = futures::future::select_all(accepts).await;
    accepted.map(|(stream, _)| stream)
}

/// Serves requests until the container is stopped or ended.
pub(crate) async fn serve(
    container: Arc<Container>,
    worker: Arc<Worker>,
    listeners: Vec<TcpListener>,
) -> End {
    let mut connections = JoinSet::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        while connections.try_join_next().is_some() {}
        let accept = async {
            // The semaphore is never closed.
            let permit = permits.clone().acquire_owned().await.ok();
            (accept(&listeners).await, permit)
        };
        tokio::select! {
            biased;
            () = container.end.cancelled() => return End::Killed,
            () = container.drain.cancelled() => break,
            (accepted, permit) = accept => match accepted {
                Ok(stream) => {
                    let connection = serve_connection(container.clone(), worker.clone(), stream);
                    connections.spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    drop(listeners);
    tokio::select! {
        () = container.end.cancelled() => End::Killed,
        () = async { while connections.join_next().await.is_some() {} } => End::Exit(0),
    }
}

async fn serve_connection(container: Arc<Container>, worker: Arc<Worker>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let (drain, end) = (container.drain.clone(), container.end.clone());
    let service = hyper::service::service_fn(move |request| {
        let (container, worker) = (container.clone(), worker.clone());
        async move { Ok::<_, Infallible>(answer(container, worker, request).await) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut is_draining = false;
    loop {
        tokio::select! {
            biased;
            () = end.cancelled() => return,
            () = drain.cancelled(), if !is_draining => {
                is_draining = true;
                connection.as_mut().graceful_shutdown();
            }
            // A broken connection is the client's affair.
            _ = connection.as_mut() => return,
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<HyperOutgoingBody> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    response
}

/// Has a fresh instance answer one request.
async fn answer(
    container: Arc<Container>,
    worker: Arc<Worker>,
    request: Request<Incoming>,
) -> Response<HyperOutgoingBody> {
    let Ok(permit) = worker.http_instances.clone().acquire_owned().await else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the worker is ending\n");
    };
    let (sender, receiver) = oneshot::channel();
    let guest = container.clone();
    let ran = worker.pool.spawn(container.cpu.clone(), {
        let worker = worker.clone();
        async move {
            let _permit = permit;
            let Some(output) = guest.output() else { return };
            let end = guest.end.clone();
            let handle = handle(&guest, request, sender);
            let result = tokio::select! {
                biased;
                () = end.cancelled() => return,
                result = handle => result,
            };
            if guest.end_of(result.map(|()| 0), &output).await == End::Oom {
                guest.end(&worker, End::Oom).await;
            }
        }
    });
    match receiver.await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the component answered with an error\n",
        ),
        Err(_) => {
            let _ = ran.await;
            plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the component ended without an answer\n",
            )
        }
    }
}

type Answer = oneshot::Sender<Result<Response<HyperOutgoingBody>, ErrorCode>>;

async fn handle(
    container: &Container,
    request: Request<Incoming>,
    answer: Answer,
) -> wasmtime::Result<()> {
    let Some(output) = container.output() else {
        wasmtime::bail!("the container is ending")
    };
    let wasi = container.wasi(&container.spec.args, output, false)?.build();
    let limiter = Limiter::new(container.memory.clone());
    let store = |engine| component_store(engine, wasi, container.pod.clone(), limiter);
    match &*container.loaded {
        Loaded::Http { serve: pre, .. } => {
            let mut store = store(pre.engine());
            let request = store
                .data_mut()
                .http()
                .new_incoming_request(WasiScheme::Http, request)?;
            let response = store.data_mut().http().new_response_outparam(answer)?;
            let proxy = pre.instantiate_async(&mut store).await?;
            proxy
                .wasi_http_incoming_handler()
                .call_handle(&mut store, request, response)
                .await
        }
        Loaded::HttpP3 { serve: pre, .. } => {
            let mut store = store(pre.engine());
            let (request, _sent) =
                wasmtime_wasi_http::p3::Request::from_http(store.data_mut().http().hooks, request);
            let service = pre.instantiate_async(&mut store).await?;
            store
                .run_concurrent(async |accessor| {
                    let response = match service.handle(accessor, request).await? {
                        Ok(response) => response,
                        Err(code) => wasmtime::bail!("the component answered with {code:?}"),
                    };
                    let response =
                        accessor.with(|store| response.into_http(store, async { Ok(()) }))?;
                    // The guest writes the body while it is sent, so the instance lives until it is.
                    let (end, ended) = oneshot::channel();
                    let response = response.map(|body| Held { body, _end: end }.boxed_unsync());
                    if answer.send(Ok(response)).is_ok() {
                        let _ = ended.await;
                    }
                    Ok(())
                })
                .await?
        }
        _ => wasmtime::bail!("not an HTTP component"),
    }
}

/// A body that says when it is gone.
struct Held {
    body: HyperOutgoingBody,
    _end: oneshot::Sender<()>,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

//! Tells balancers whether this node has endpoints of a Service that keeps to those of the node
//! (`healthCheckNodePort`).
//!
//! Plain HTTP, for whoever asks, as in Kubernetes: it says the Service's name and a number. 200 as long as there
//! is an endpoint that takes new connections and the table of Services is in order, 503 otherwise.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{Response, StatusCode, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use crate::index::{Index, View};
use crate::object::ServiceKey;

/// Askers of one Service at a time; more are closed as they come.
const CONNECTIONS_MAX: usize = 64;
/// For an asker to ask and hear.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Before a port that is taken is tried again, and the longest that this grows to.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// What changes meanwhile is looked at together.
const PAUSE: Duration = Duration::from_millis(20);
/// Says how much of its traffic a balancer may send here; kube-proxy's.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// What is asked about, and who knows.
#[derive(Clone)]
struct Check {
    key: ServiceKey,
    index: Arc<Index>,
    is_in_order: Arc<AtomicBool>,
}

/// Keeps a listener for every Service that wants one, until it is dropped. `is_in_order` says whether packets go where
/// they should.
pub(crate) async fn run(index: Arc<Index>, is_in_order: Arc<AtomicBool>) {
    let mut versions = index.subscribe();
    // Who has heard of a Service and not of its endpoints would say that there are none.
    index.known().await;
    let mut open: BTreeMap<u16, (ServiceKey, AbortOnDropHandle<()>)> = BTreeMap::new();
    loop {
        versions.mark_unchanged();
        let wanted = index.health_checks();
        open.retain(|port, (key, _)| wanted.get(port) == Some(key));
        for (port, key) in wanted {
            open.entry(port).or_insert_with(|| {
                let check = Check {
                    key: key.clone(),
                    index: Arc::clone(&index),
                    is_in_order: Arc::clone(&is_in_order),
                };
                (
                    key,
                    AbortOnDropHandle::new(tokio::spawn(listen(port, check))),
                )
            });
        }
        if versions.changed().await.is_err() {
            return;
        }
        sleep(PAUSE).await;
    }
}

async fn listen(port: u16, check: Check) {
    let ServiceKey { namespace, name } = &check.key;
    let mut pause = RETRY;
    let listener = loop {
        match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
            Ok(listener) => break listener,
            Err(error) => {
                warn!(%namespace, service = %name, port, %error, ?pause, "Balancers cannot ask for the health of a Service");
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    };
    debug!(%namespace, service = %name, port, "Balancers may ask for the health of a Service");
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                    connections.spawn(timeout(ANSWER_TIMEOUT, serve(stream, check.clone())));
                }
                Ok(_) => {}
                Err(error) => {
                    warn!(port, %error, "Connection not accepted");
                    sleep(RETRY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, check: Check) {
    let service = service_fn(|_| {
        let answer = answer(&check);
        async { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ANSWER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        debug!(%error, "An asker went away");
    }
}

/// Addresses on this node that take new connections, each once.
fn local_endpoints(view: &View) -> usize {
    let local: BTreeSet<_> = view
        .endpoints()
        .filter(|(endpoint, _)| endpoint.is_local && endpoint.is_ready)
        .map(|(endpoint, _)| endpoint.address)
        .collect();
    local.len()
}

fn answer(check: &Check) -> Response<String> {
    let ServiceKey { namespace, name } = &check.key;
    let view = check.index.get(namespace, name);
    let local_endpoints = view.as_ref().map_or(0, local_endpoints);
    let is_in_order = check.is_in_order.load(Ordering::Relaxed);
    let body = json!({
        "service": { "namespace": &**namespace, "name": &**name },
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": is_in_order,
    });
    let mut response = Response::new(body.to_string());
    *response.status_mut() = if local_endpoints > 0 && is_in_order {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    headers.insert(
        header::HeaderName::from_static(WEIGHT),
        local_endpoints.into(),
    );
    response
}

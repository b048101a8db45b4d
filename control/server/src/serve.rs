//! Connections: TLS, who is at the other end, and an orderly end.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::{
    authn::{CertificateUser, certificate_user},
    pki::{Pki, PkiError},
};

/// For a client to shake hands.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For a client to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// A silent HTTP/2 client is asked whether it is still there; kube-apiserver's interval.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Requests of one client at a time; kube-apiserver's `--http2-max-streams-per-connection`.
const STREAMS_MAX: u32 = 1_000;
/// For requests that are under way when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at a time; more are closed as they come.
const CONNECTIONS_MAX: usize = 4_096;
/// Before accepting again after it failed for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(pki: &Pki) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    roots.add(pki.ca_der().clone()).map_err(tls_error)?;
    Ok(roots)
}

fn tls_error(error: impl std::fmt::Display) -> PkiError {
    PkiError::Make {
        name: "tls".into(),
        reason: error.to_string(),
    }
}

/// What the server shows, and which clients' certificates it believes. A client may show none.
pub(crate) fn server_tls(pki: &Pki) -> Result<Arc<ServerConfig>, PkiError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pki)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(tls_error)?;
    let (mut certs, key) = pki.server().to_rustls()?;
    // Shown as well, so that a host that joins with no more than the authority's hash can check it.
    certs.push(pki.ca_der().clone());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(tls_error)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certs, key)
        .map_err(tls_error)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What the server shows to kubelets, and which of them it believes.
pub(crate) fn kubelet_tls(pki: &Pki) -> Result<Arc<rustls::ClientConfig>, PkiError> {
    let (certs, key) = pki.kubelet_client().to_rustls()?;
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(tls_error)?
        .with_root_certificates(roots(pki)?)
        .with_client_auth_cert(certs, key)
        .map_err(tls_error)?;
    Ok(Arc::new(config))
}

/// Serves until told to stop, and then until requests under way are answered or [`DRAIN_TIMEOUT`] is over.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((_, peer)) if connections.len() >= CONNECTIONS_MAX => {
                tracing::warn!(%peer, connections = CONNECTIONS_MAX, "Connection closed, there are too many");
            }
            Ok((tcp, peer)) => {
                connections.spawn(connection(
                    tcp,
                    peer,
                    acceptor.clone(),
                    router.clone(),
                    shutdown.clone(),
                ));
            }
            Err(error) => {
                tracing::warn!(%error, "Connection not accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait())
        .await
        .is_err()
    {
        tracing::debug!(connections = connections.len(), "Connections cut off");
    }
}

async fn connection(
    tcp: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
) {
    // Without it small answers wait for acknowledgements; failure costs only time.
    let _ = tcp.set_nodelay(true);
    let tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let user = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|certs| certificate_user(certs.first()?));
    let service =
        hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(PeerAddress(peer));
            if let Some(user) = &user {
                request
                    .extensions_mut()
                    .insert(CertificateUser(user.clone()));
            }
            let router = router.clone();
            async move {
                Ok::<_, Infallible>(
                    router
                        .oneshot(request)
                        .await
                        .unwrap_or_else(|never| match never {}),
                )
            }
        });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .max_concurrent_streams(STREAMS_MAX);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN_TIMEOUT, connection).await {
                Ok(result) => result,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::trace!(%peer, error, "Connection ended");
    }
}

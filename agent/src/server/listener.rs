//! TLS connections, each with the client certificate it came with.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::{
    Config, Kubelet, Reviewer, ServerError, State,
    auth::{Caller, User},
    router,
};

/// How long a client may take over the TLS handshake, and over the head of each request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long requests under way may go on after shutdown was asked for. Streams are cut.
const DRAIN: Duration = Duration::from_secs(2);

/// Silence after which the kernel asks whether the client is still there, as Go's servers do.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The kubelet's HTTP server, bound and not yet serving.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    state: State,
}

impl Server {
    /// Binds the address. Connections are accepted once [`Server::run`] is polled.
    pub async fn bind(
        config: Config,
        kubelet: Arc<dyn Kubelet>,
        reviewer: Option<Arc<dyn Reviewer>>,
    ) -> Result<Self, ServerError> {
        let tls = tls_config(&config)?;
        let bind = |source| ServerError::Bind {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
        Ok(Self {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            state: State::new(config, kubelet, reviewer),
        })
    }

    /// Where it listens, with the port that was free.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until shutdown, then ends streams and waits for requests under way.
    pub async fn run(self, shutdown: CancellationToken) {
        let router = router(self.state.clone());
        let connections = TaskTracker::new();
        if let Ok(address) = self.local_addr() {
            info!(%address, "Kubelet server listens");
        }
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let serving = serve(
                        stream,
                        self.acceptor.clone(),
                        router.clone(),
                        shutdown.clone(),
                    );
                    connections.spawn(async move {
                        if let Err(error) = serving.await {
                            debug!(%peer, %error, "Connection ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, as a rule: wait for some to be closed.
                    warn!(%error, "Cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
        connections.close();
        self.state.streams.shutdown().await;
        if tokio::time::timeout(DRAIN, connections.wait())
            .await
            .is_err()
        {
            debug!(count = connections.len(), "Requests cut by shutdown");
        }
    }
}

fn tls_config(config: &Config) -> Result<ServerConfig, ServerError> {
    let error = |what| move |why: String| ServerError::Tls { what, why };
    let certificates = |pem: &[u8], what| {
        CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|why| error(what)(why.to_string()))
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&config.client_ca_pem, "client CA")? {
        roots
            .add(certificate)
            .map_err(|why| error("client CA")(why.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|why| error("client CA")(why.to_string()))?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|why| error("protocol versions")(why.to_string()))?
        .with_client_cert_verifier(verifier);
    let mut tls = if let Some(resolver) = &config.resolver {
        builder.with_cert_resolver(resolver.clone())
    } else {
        let chain = certificates(&config.certificate_pem, "certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&config.key_pem)
            .map_err(|why| error("key")(why.to_string()))?;
        builder
            .with_single_cert(chain, key)
            .map_err(|why| error("certificate")(why.to_string()))?
    };
    // Upgrades are HTTP/1.1's.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::KeepAlive, &true)?;
    let idle = u32::try_from(KEEPALIVE.as_secs()).unwrap_or(u32::MAX);
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::TcpKeepIdle, &idle)?;
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::TcpKeepInterval, &idle)?;

    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let caller = Caller(certificate.and_then(User::from_certificate));
    let service = TowerToHyperService::new(router.layer(Extension(caller)));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => result?,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, connection).await??;
        }
    }
    Ok(())
}

//! The API server: authentication, authorization, admission, the generic verbs, watch.
//!
//! ```text
//!  TLS ─┐                                                        ┌ verbs ─ stored ─┐
//!       ├─ router ─ authn ─ authz ─┬ resource ─ admission ───────┤                 ├─ Store
//!  ClientService (in memory) ──────┘│                            └ watch ── feed ──┘
//!                                   ├ reviews, metrics of nodes and pods, discovery, OpenAPI, health
//!                                   └ log, exec, attach, port-forward, proxy ─ TLS ─ kubelet
//! ```
//!
//! Nothing here names a kind's fields but admission and the subresources that are about pods and Services; what a
//! resource knows of its objects is in the table of `wherry-api`. Objects stay bytes, shared with the store, unless
//! something in them matters to a request.
//!
//! Shutdown: readiness fails and watches end, connections are drained for five seconds, background tasks are awaited.

#![expect(
    clippy::result_large_err,
    reason = "a Status is the answer itself and travels once per failed request"
)]

mod admission;
mod answer;
mod audit;
mod authn;
mod authz;
mod bootstrap;
mod bootstrap_token;
mod call;
mod cidr;
mod client;
mod compress;
mod computed;
mod discovery;
mod documents;
mod expire;
mod feed;
mod filter;
mod metrics;
mod moment;
mod node_metrics;
pub mod pki;
mod protobuf;
mod rbac;
mod request;
mod reviews;
mod router;
mod serve;
mod service_ips;
mod stored;
mod subresources;
mod token;
mod user;
mod verbs;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use rustls::ServerConfig;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wherry_store::Store;

pub use admission::{PodSecurityConfig, PodSecurityError};
pub use audit::{AuditConfig, AuditError, PolicyError};
pub use authn::AnonymousAuth;
pub use authz::Attributes;
pub use bootstrap::BootstrapError;
pub use cidr::Cidr;
pub use client::ClientService;
pub use pki::{Pki, PkiConfig, PkiError};
pub use token::ISSUER;
pub use user::UserInfo;

/// Kubernetes' default `--service-cluster-ip-range`.
pub const SERVICE_CIDR_DEFAULT: &str = "10.96.0.0/12";

/// What a server needs to know.
pub struct Config {
    /// Directory of certificates and keys, made when it is not there.
    pub pki_dir: PathBuf,
    /// Where it listens; port 0: any.
    pub listen: SocketAddr,
    /// Addresses of this machine that clients and pods use, the first one being the `kubernetes` Service's endpoint.
    pub advertise_addresses: Vec<IpAddr>,
    /// Further names in the server's certificate.
    pub names: Vec<String>,
    /// Range of Service addresses.
    pub service_cidr: Cidr,
    /// Where objects are kept.
    pub store: Arc<dyn Store>,
    /// Who is let in without credentials.
    pub anonymous_auth: AnonymousAuth,
    /// What pods may do where their namespace does not say, and who is exempt.
    pub pod_security: PodSecurityConfig,
    /// What is logged of requests; `None`: nothing.
    pub audit: Option<AuditConfig>,
}

/// A server could not be made or could not go on.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The address is taken, or not this machine's.
    #[error("listen {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Certificates or keys.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The first objects.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The audit log.
    #[error("audit log: {0}")]
    Audit(#[from] AuditError),
    /// The key that signs tokens.
    #[error("service account key: {0}")]
    TokenKey(String),
}

/// What all requests share.
pub(crate) struct App {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) feeds: feed::Feeds,
    pub(crate) tokens: token::Tokens,
    pub(crate) anonymous_auth: AnonymousAuth,
    pub(crate) checked_tokens: authn::CheckedTokens,
    pub(crate) graph: Arc<authz::graph::NodeGraph>,
    pub(crate) service_ips: service_ips::ServiceIps,
    pub(crate) kubelet_tls: Arc<rustls::ClientConfig>,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) node_metrics: node_metrics::NodeMetrics,
    pub(crate) audit: audit::Audit,
    pub(crate) rbac: rbac::Rbac,
    pub(crate) pod_security: PodSecurityConfig,
    pub(crate) quota_turns: admission::quota::Turns,
    pub(crate) document_hashes: documents::DocumentHashes,
    /// `address:port`, for `/api`.
    pub(crate) public_address: String,
    pub(crate) is_bootstrapped: AtomicBool,
    /// How long pods stay on a node that is not ready, in seconds, unless they say otherwise.
    pub(crate) toleration_seconds: AtomicI64,
    pub(crate) shutdown: CancellationToken,
}

/// A server that listens and does not answer yet.
pub struct Server {
    app: Arc<App>,
    pki: Arc<Pki>,
    router: axum::Router,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    endpoint: bootstrap::Endpoint,
    address: SocketAddr,
    audit_writer: Option<audit::Writer>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Opens keys and the listening socket. Clients in memory are answered from here on, others by [`run`](Self::run).
    ///
    /// # Errors
    /// Keys cannot be read or written, or the address cannot be listened on.
    pub async fn build(config: Config) -> Result<Self, ServerError> {
        let service_ip = config.service_cidr.first_host();
        let mut advertise = config.advertise_addresses.clone();
        if !config.listen.ip().is_unspecified() {
            advertise.push(config.listen.ip());
        }
        let pki = Pki::open(
            &PkiConfig {
                dir: config.pki_dir,
                advertise: advertise.clone(),
                names: config.names,
                service_ip: service_ip.into(),
            },
            Timestamp::now(),
        )?;
        let listen_error = |source| ServerError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let public = advertise
            .first()
            .copied()
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let (audit, audit_writer) = match config.audit {
            Some(config) => {
                let (audit, writer) = audit::Audit::open(config)?;
                (audit, Some(writer))
            }
            None => Default::default(),
        };
        let shutdown = CancellationToken::new();
        let app = Arc::new(App {
            feeds: feed::Feeds::new(config.store.clone(), shutdown.clone()),
            store: config.store,
            tokens: token::Tokens::new(pki.service_account_key())
                .map_err(|error| ServerError::TokenKey(error.to_string()))?,
            anonymous_auth: config.anonymous_auth,
            checked_tokens: authn::CheckedTokens::default(),
            graph: Arc::default(),
            service_ips: service_ips::ServiceIps::new(config.service_cidr),
            kubelet_tls: serve::kubelet_tls(&pki)?,
            metrics: metrics::Metrics::default(),
            node_metrics: node_metrics::NodeMetrics::default(),
            audit,
            rbac: rbac::Rbac::default(),
            pod_security: config.pod_security,
            quota_turns: admission::quota::Turns::default(),
            document_hashes: documents::DocumentHashes::default(),
            public_address: SocketAddr::new(public, address.port()).to_string(),
            is_bootstrapped: AtomicBool::new(false),
            toleration_seconds: AtomicI64::new(admission::TOLERATION_SECONDS),
            shutdown,
        });
        Ok(Self {
            router: router::router(app.clone()),
            app,
            tls: serve::server_tls(&pki)?,
            pki: Arc::new(pki),
            listener,
            endpoint: bootstrap::Endpoint {
                service_ip: service_ip.into(),
                address: public,
                port: address.port(),
            },
            address,
            audit_writer,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long pods made from now on stay on a node that is not ready or not heard of, unless they say otherwise
    /// (`--pod-eviction-timeout`; five minutes at first).
    pub fn set_pod_eviction_timeout(&self, timeout: Duration) {
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        self.app
            .toleration_seconds
            .store(seconds, Ordering::Relaxed);
    }

    /// Its certificates and keys.
    pub fn pki(&self) -> &Arc<Pki> {
        &self.pki
    }

    /// What answers requests; TLS and tests use the same.
    pub fn router(&self) -> axum::Router {
        self.router.clone()
    }

    /// The server in memory, asked by `user`: `kube::Client::new(server.client_service(user), "default")`.
    pub fn client_service(&self, user: UserInfo) -> ClientService {
        ClientService::new(self.router.clone(), user)
    }

    /// Makes services as [`Self::client_service`] does, for as long as it is kept.
    pub fn clients(&self) -> impl Fn(UserInfo) -> ClientService + Send + Sync + use<> {
        let router = self.router.clone();
        move |user| ClientService::new(router.clone(), user)
    }

    /// The administrator's kubeconfig for a server reached at `url`.
    pub fn admin_kubeconfig(&self, url: &str) -> String {
        pki::kubeconfig(url, self.pki.ca_pem(), "kubernetes-admin", self.pki.admin())
    }

    /// Makes the first objects: namespaces and the `kubernetes` Service. Repeatable; [`run`](Self::run) begins with it.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn bootstrap(&self) -> Result<(), ServerError> {
        if !self.app.is_bootstrapped.load(Ordering::Acquire) {
            let client = self.client_service(UserInfo::admin());
            bootstrap::bootstrap(&client, self.endpoint).await?;
            rbac::bootstrap(&client).await?;
            if let Err(error) = self.app.rbac.reload(&self.app.store).await {
                tracing::warn!(%error, "Roles could not be read");
            }
            self.app.is_bootstrapped.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// The first objects cannot be made.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), ServerError> {
        let tasks = TaskTracker::new();
        let own = self.app.shutdown.clone();
        let _stop_with_us = own.clone().drop_guard();
        // Ends after everybody else, so that the last requests are in it.
        let last = CancellationToken::new();
        let written = TaskTracker::new();
        if let Some(writer) = self.audit_writer.take() {
            written.spawn(writer.run(last.clone()));
        }
        let _last = last.clone().drop_guard();
        self.bootstrap().await?;
        tasks.spawn(expire::run(self.app.store.clone(), own.clone()));
        tasks.spawn(rbac::keep(self.app.clone(), own.clone()));
        tasks.spawn(bootstrap::keep(
            self.client_service(UserInfo::admin()),
            self.app.store.clone(),
            self.endpoint,
            own.clone(),
        ));
        let outer = shutdown.clone();
        let inner = own.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = outer.cancelled() => inner.cancel(),
                () = inner.cancelled() => {}
            }
        });
        tracing::info!(address = %self.address, "API server ready");
        serve::serve(self.listener, self.tls, self.router, own.clone()).await;
        own.cancel();
        tasks.close();
        tasks.wait().await;
        last.cancel();
        written.close();
        written.wait().await;
        Ok(())
    }
}

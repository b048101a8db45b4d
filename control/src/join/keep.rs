//! Fresh certificates for a running agent: neither the agent nor a pod notices.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use kube::{Client, client::Body, config::Kubeconfig};
use rustls::{
    crypto::ring::sign::any_supported_type,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wherry_server::pki::Identity;

use super::{
    Names,
    kept::{self, Credentials, Validity},
    request::{self, Wanted},
};
use crate::{cli::RootArgs, connect};

/// The longest sleep at once: a machine may have been suspended.
const NAP_MAX: Duration = Duration::from_secs(60 * 60);
/// First and longest pause after a failure.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(5 * 60);

/// What the agent's HTTPS server shows at present; nothing until the first certificate is there.
#[derive(Debug, Default)]
pub(crate) struct ServingCertificate(RwLock<Option<Arc<CertifiedKey>>>);

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl ServingCertificate {
    fn show(&self, identity: &Identity) -> Result<()> {
        let (chain, key) = identity.to_rustls()?;
        let key = any_supported_type(&key).context("serving key")?;
        let certified = CertifiedKey::new(chain, key);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
        Ok(())
    }
}

/// Requests go through the client of the certificate that is current; those under way end on the old one.
#[derive(Clone)]
struct Current(Arc<RwLock<Client>>);

impl Current {
    fn client(&self) -> Client {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn change(&self, client: Client) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = client;
    }
}

async fn client_of(credentials: &Credentials) -> Result<Client> {
    let kubeconfig = Kubeconfig::from_yaml(&credentials.kubeconfig())?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    Ok(connect::client(config)?)
}

/// Keeps a joined node's two certificates fresh.
pub(crate) struct Keeper {
    dir: PathBuf,
    names: Names,
    credentials: Credentials,
    current: Current,
    serving: Option<Validity>,
    shown: Arc<ServingCertificate>,
}

impl Keeper {
    /// Opens what is on disk.
    pub(crate) async fn open(
        root: &RootArgs,
        credentials: Credentials,
        names: Names,
    ) -> Result<Self> {
        let dir = root.root.join("agent");
        let shown = Arc::new(ServingCertificate::default());
        let mut serving = None;
        if let Some(identity) = kept::read_serving(&dir, &names.node, names.ip)? {
            shown.show(&identity)?;
            serving = Some(Validity::of(&identity.cert_pem)?);
        }
        let client = client_of(&credentials)
            .await
            .context("the node's credentials")?;
        Ok(Self {
            dir,
            names,
            credentials,
            current: Current(Arc::new(RwLock::new(client))),
            serving,
            shown,
        })
    }

    /// A client that goes on with each new certificate.
    pub(crate) fn client(&self) -> Client {
        let current = self.current.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let client = current.client();
            async move { client.send(request).await }
        });
        Client::new(service, "default")
    }

    /// What the agent's HTTPS server is to show.
    pub(crate) fn shown(&self) -> Arc<ServingCertificate> {
        self.shown.clone()
    }

    /// Whose clients the agent's HTTPS server believes.
    pub(crate) fn ca_pem(&self) -> &str {
        &self.credentials.ca_pem
    }

    /// Renews until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let Self {
            dir,
            names,
            mut credentials,
            current,
            mut serving,
            shown,
        } = self;
        let client = async {
            let wanted = Wanted::client(&names.node);
            let mut due = credentials
                .validity()
                .map_or(Timestamp::UNIX_EPOCH, Validity::renew_at);
            loop {
                until(due).await;
                credentials.identity = ask(&current, &wanted).await;
                let changed = async {
                    kept::write(&dir, &credentials)?;
                    current.change(client_of(&credentials).await?);
                    credentials.validity()
                };
                due = match changed.await {
                    Ok(validity) => {
                        info!(until = %validity.until, "Client certificate renewed");
                        validity.renew_at()
                    }
                    Err(error) => failed("Client certificate not renewed", &error),
                };
            }
        };
        let serving = async {
            let wanted = Wanted::serving(&names.node, names.ip);
            let mut due = serving
                .take()
                .map_or(Timestamp::UNIX_EPOCH, Validity::renew_at);
            loop {
                until(due).await;
                let identity = ask(&current, &wanted).await;
                let changed = || {
                    kept::write_serving(&dir, &identity)?;
                    shown.show(&identity)?;
                    Validity::of(&identity.cert_pem)
                };
                due = match changed() {
                    Ok(validity) => {
                        info!(until = %validity.until, "Serving certificate renewed");
                        validity.renew_at()
                    }
                    Err(error) => failed("Serving certificate not renewed", &error),
                };
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = client => {}
            () = serving => {}
        }
    }
}

/// When to try again.
fn failed(what: &str, error: &anyhow::Error) -> Timestamp {
    warn!(error = format!("{error:#}"), "{what}");
    Timestamp::now() + jiff::SignedDuration::from_secs(60)
}

/// Asks until it is given.
async fn ask(current: &Current, wanted: &Wanted) -> Identity {
    let mut pause = RETRY_MIN;
    loop {
        match request::ask(&current.client(), wanted).await {
            Ok(identity) => return identity,
            Err(error) => warn!(%error, "No new certificate yet"),
        }
        sleep(pause.mul_f64(0.8 + 0.4 * rand::random::<f64>())).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

async fn until(due: Timestamp) {
    loop {
        let left = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
        if left.is_zero() {
            return;
        }
        sleep(left.min(NAP_MAX)).await;
    }
}

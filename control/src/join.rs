//! `wherry agent --join`: from a token to a node with certificates of its own, and how these are kept fresh.
//!
//! ```text
//!  host                                             API server
//!   ├─ TLS: an authority with the hash in the chain? ──▶│   pin: nothing is sent to anybody else
//!   ├─ token: please sign system:node:<name> ──────────▶│   request: approved and signed by a controller
//!   │◀────────────────────────────────── certificate ──┤
//!   │   <root>/agent/kubeconfig, 0600                   │   kept: from here on, the token is not needed
//!   ├─ as system:node:<name>: the Node, its podCIDR ───▶│
//!   ├─ please sign what my HTTPS server shows ─────────▶│   keep: again at four fifths of its life
//! ```
//!
//! kubeadm publishes its authority to everybody, signed by the token (`cluster-info`). Here it comes in the handshake
//! itself: the chain proves that whoever answers holds the pinned authority's signature, before the token is sent, and
//! nothing of the API is open to strangers.

mod keep;
mod kept;
mod pin;
mod request;

use std::{net::IpAddr, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use kube::{Client, config::AuthInfo};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use self::kept::Credentials;
use crate::cli::{JoinArgs, RootArgs};

pub(crate) use keep::{Keeper, ServingCertificate};
pub(crate) use pin::Pin;

/// First and longest pause between tries to reach the server.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The node's credentials: those it has, or those it is given for a token. `None` where it never joined and is not
/// asked to.
pub(crate) async fn credentials(
    root: &RootArgs,
    args: &JoinArgs,
    node: &str,
) -> Result<Option<Credentials>> {
    let dir = root.root.join("agent");
    let found = kept::read(&dir)?;
    let now = Timestamp::now();
    let Some(found) = found else {
        return match &args.join {
            None => Ok(None),
            Some(server) => first(&dir, server, args, node).await.map(Some),
        };
    };
    let trouble = match &args.join {
        Some(server) if *server != found.server => {
            Some(format!("this node belongs to {}", found.server))
        }
        _ if found.user() != format!("system:node:{node}") => {
            Some(format!("its certificate is for {}", found.user()))
        }
        _ if found.validity()?.until <= now => Some(format!(
            "its certificate has expired at {}",
            found.validity()?.until
        )),
        _ => None,
    };
    match (trouble, &args.join) {
        (None, _) => Ok(Some(found)),
        (Some(why), Some(server)) if args.token.is_some() => {
            info!(why, "Joining anew");
            first(&dir, server, args, node).await.map(Some)
        }
        (Some(why), _) => bail!(
            "{}: {why}; to join anew, give --join, --token and --ca-cert-hash as `wherry token create` prints them on the \
             control plane",
            kept::path(&dir).display()
        ),
    }
}

async fn first(dir: &Path, server: &str, args: &JoinArgs, node: &str) -> Result<Credentials> {
    let (Some(token), false) = (&args.token, args.ca_cert_hash.is_empty()) else {
        bail!(
            "--join needs --token and --ca-cert-hash the first time; `wherry token create` on the control plane prints \
             them"
        );
    };
    let pins = args
        .ca_cert_hash
        .iter()
        .map(|text| text.parse())
        .collect::<Result<Vec<Pin>, _>>()
        .context("--ca-cert-hash")?;
    let started = Instant::now();
    let mut pause = RETRY_MIN;
    loop {
        let error = match once(dir, server, token, &pins, node).await {
            Ok(credentials) => return Ok(credentials),
            Err(Failed::ForGood(error)) => return Err(error),
            Err(Failed::ForNow(error)) => error,
        };
        if started.elapsed() + pause > args.join_timeout {
            return Err(error);
        }
        warn!(error = format!("{error:#}"), "Not joined yet");
        sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// Why a try to join failed.
enum Failed {
    /// The server may come back.
    ForNow(anyhow::Error),
    /// Trying again changes nothing.
    ForGood(anyhow::Error),
}

async fn once(
    dir: &Path,
    server: &str,
    token: &str,
    pins: &[Pin],
    node: &str,
) -> Result<Credentials, Failed> {
    let said = |error: pin::PinError| {
        let is_lasting = error.is_lasting();
        let error = anyhow::Error::new(error);
        if is_lasting {
            Failed::ForGood(error)
        } else {
            Failed::ForNow(error)
        }
    };
    let authority = pin::authority(server, pins).await.map_err(said)?;
    let lasting = |error: anyhow::Error| Failed::ForGood(error.context(server.to_owned()));
    let url = server.parse().context("--join").map_err(Failed::ForGood)?;
    let mut config = kube::Config::new(url);
    config.root_cert = Some(vec![authority.clone()]);
    config.auth_info = AuthInfo {
        token: Some(token.to_owned().into()),
        ..AuthInfo::default()
    };
    let client = Client::try_from(config).map_err(|error| lasting(error.into()))?;
    let identity = request::ask(&client, &request::Wanted::client(node))
        .await
        .map_err(|error| match error {
            request::AskError::Unauthorized => lasting(anyhow::anyhow!(
                "the server does not take this token: it has expired, was deleted or never existed; `wherry token \
                 create` on the control plane makes another"
            )),
            error if error.is_lasting() => lasting(error.into()),
            error => Failed::ForNow(anyhow::Error::new(error).context(server.to_owned())),
        })?;
    let credentials = Credentials {
        server: server.to_owned(),
        ca_pem: pin::to_pem(&authority),
        identity,
    };
    kept::write(dir, &credentials).map_err(Failed::ForGood)?;
    info!(server, node, "Joined");
    Ok(credentials)
}

/// What the agent's HTTPS server is called.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) node: String,
    pub(crate) ip: IpAddr,
}

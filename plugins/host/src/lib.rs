//! The agent's side of plugins: where probes are made, and volumes that need a driver.
//!
//! A [`Prober`] makes one check and answers what it saw; counting, timing and what follows from a
//! result are the agent's. Every check is a plugin's: those of Kubernetes' own kinds are built in
//! (plugins/builtin). What a plugin wants of the container goes back through the [`Exec`] it is
//! given, so that this crate knows no runtime.
//!
//! ```text
//!  PluginProber ──┐   which plugin makes a check
//!  volume.rs ─────┤   populate.rs, and what mounts
//!                 └── PluginHost    built-in and installed plugins, failure policies, what is set apart, counters
//!                        │ agency.rs       what calls ask for, and whether that is granted
//!                        │ supervisor.rs   one worker process, started again with back-off
//!                        │ thread.rs       where its connection and checks are awaited
//!                        ▼ protocol
//!                     wherry plugin-worker (plugins/worker)
//! ```
//! No guest code runs here, and nothing here links an engine: plugins are compiled and called by
//! processes without privileges.

mod agency;
mod apart;
mod builtin;
mod cgroup;
mod files;
pub mod filesystem;
mod grants;
mod host;
pub mod mounter;
mod named;
pub mod populate;
mod prober;
pub mod protocol;
pub mod provision;
mod stats;
mod supervisor;
mod thread;
#[doc(hidden)]
pub mod untrusted;
pub mod volume;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use async_trait::async_trait;
use tokio::runtime::Handle;

pub use apart::Apart;
pub use cgroup::end_processes;
pub use grants::Grants;
pub use host::{FailurePolicy, HostConfig, PluginError, PluginHost, PluginSpec};
pub use prober::PluginProber;
pub use protocol::{
    ContainerUsage, ImageAsk, Limits, MountAsk, Populated, ProbeTarget, SecretError, VolumeError,
    World,
};
pub use stats::PluginStats;

/// One check to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeRequest {
    /// What to do.
    pub action: ProbeAction,
    /// When it counts as failed.
    pub timeout: Duration,
}

/// What a check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeAction {
    /// GET; 200 to 399 is success.
    HttpGet {
        /// HTTPS, without looking at the certificate.
        is_https: bool,
        /// An address or a name.
        host: String,
        /// The port.
        port: u16,
        /// Path and query.
        path: String,
        /// Added to the kubelet's own; `Host` replaces.
        headers: Vec<(String, String)>,
    },
    /// Connecting is success.
    TcpSocket {
        /// An address or a name.
        host: String,
        /// The port.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check` answering SERVING is success.
    Grpc {
        /// The pod's address.
        host: IpAddr,
        /// The port.
        port: u16,
        /// The service asked about; empty for the server as a whole.
        service: String,
    },
    /// Exit code 0 is success.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
    },
    /// What an installed plugin says: `exec.command` is `["wasm:<plugin>", arguments…]`.
    Plugin {
        /// The Plugin's name.
        plugin: String,
        /// For the guest.
        arguments: Vec<String>,
        /// What the guest may know of the container.
        target: Box<ProbeTarget>,
    },
}

/// What a check saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// All is well.
    Success,
    /// It is not.
    Failure,
    /// The check itself could not be made; does not count.
    Unknown,
}

/// A check's result with what to tell people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeOutcome {
    /// What it saw.
    pub result: ProbeResult,
    /// For the event, in the kubelet's words.
    pub message: String,
}

impl ProbeOutcome {
    /// A result with its message.
    pub fn new(result: ProbeResult, message: impl Into<String>) -> Self {
        Self {
            result,
            message: message.into(),
        }
    }
}

/// What is done in and for the container that is probed.
#[async_trait]
pub trait Exec: Send + Sync {
    /// Runs a command in it: the exit code and what was printed, or why it could not be run.
    /// `Err(None)` is a time-out.
    async fn exec(
        &self,
        command: &[String],
        timeout: Duration,
    ) -> Result<(i32, Vec<u8>), Option<String>>;

    /// A key of a Secret of its namespace.
    async fn secret(&self, _name: &str, _key: &str) -> Result<Vec<u8>, SecretError> {
        Err(SecretError::Unavailable("no Secrets are known here".into()))
    }

    /// What it uses now, where that is known.
    async fn usage(&self) -> Option<ContainerUsage> {
        None
    }

    /// The last lines of its log, oldest first, or why it cannot be read now.
    async fn log_tail(&self, _lines: u32) -> Result<Vec<String>, String> {
        Err("no log is known here".into())
    }

    /// Mounts something for a volume.
    async fn mount(&self, _ask: MountAsk) -> Result<String, VolumeError> {
        Err(VolumeError::Denied("only a mounter mounts".into()))
    }

    /// Makes or removes a volume's image.
    async fn image(&self, _ask: ImageAsk) -> Result<String, VolumeError> {
        Err(VolumeError::Denied(
            "only a provisioner makes images, and removes them".into(),
        ))
    }

    /// Where a volume of its pod is on the node.
    fn volume(&self, _name: &str) -> Option<PathBuf> {
        None
    }
}

/// Makes checks.
#[async_trait]
pub trait Prober: Send + Sync + 'static {
    /// Makes one check. Answers within the request's time-out.
    async fn check(&self, request: &ProbeRequest, exec: &dyn Exec) -> ProbeOutcome;

    /// Where its checks are best awaited, if that makes a difference.
    fn runtime(&self) -> Option<Handle> {
        None
    }

    /// What it has counted, in Prometheus' text format.
    fn metrics(&self) -> String {
        String::new()
    }
}

//! Where probes are made: the native probes, and the agent's side of plugins.
//!
//! A [`Prober`] makes one check and answers what it saw; counting, timing and what follows from a
//! result are the agent's. The native prober speaks HTTP, TCP and gRPC; exec goes back through the
//! [`Exec`] it is given, so that this crate knows no runtime.
//!
//! ```text
//!  PluginProber ──┬── NativeProber
//!  volume.rs ─────┤   populate.rs, and what mounts
//!                 └── PluginHost    installed plugins, their failure policies, what is set apart, counters
//!                        │ supervisor.rs   one worker process, started again with back-off
//!                        ▼ protocol
//!                     wherry plugin-worker (plugins/worker)
//! ```
//! No guest code runs here, and nothing here links an engine: plugins are compiled and called by
//! processes without privileges.

mod apart;
mod grants;
mod grpc;
mod host;
mod http;
mod named;
mod native;
pub mod populate;
mod prober;
pub mod protocol;
mod stats;
mod supervisor;
mod tls;
pub mod volume;

use std::{net::IpAddr, time::Duration};

use async_trait::async_trait;

pub use grants::Grants;
pub use host::{FailurePolicy, HostConfig, PluginError, PluginHost, PluginSpec};
pub use native::NativeProber;
pub use prober::PluginProber;
pub use protocol::{Limits, Populated, ProbeTarget, VolumeError, World};
pub use stats::PluginStats;
pub use tls::AcceptAny;

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

/// Runs a command in the container that is probed.
#[async_trait]
pub trait Exec: Send + Sync {
    /// The exit code and what was printed, or why it could not be run. `Err(None)` is a time-out.
    async fn exec(
        &self,
        command: &[String],
        timeout: Duration,
    ) -> Result<(i32, Vec<u8>), Option<String>>;
}

/// Makes checks.
#[async_trait]
pub trait Prober: Send + Sync + 'static {
    /// Makes one check. Answers within the request's time-out.
    async fn check(&self, request: &ProbeRequest, exec: &dyn Exec) -> ProbeOutcome;
}

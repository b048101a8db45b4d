//! The Docker runtime: pods as containers of an engine, over its socket.
//!
//! ```text
//!  agent ── Runtime ──▶ DockerRuntime ── HTTP on a Unix socket ──▶ dockerd ── containerd-shim ── the app
//!        ── ImageService ▶ DockerImages ─┘        ▲
//!                                                 └ events: what starts, dies and is removed
//! ```
//!
//! | CRI | here |
//! |---|---|
//! | RunPodSandbox | make the pod's cgroup with its limits; create and start a pause container that holds the namespaces |
//! | CreateContainer | create a container that joins the pause container's namespaces, below the pod's cgroup |
//! | StartContainer | start it, and copy its log into a CRI file from then on |
//! | StopContainer | stop signal, then SIGKILL after the grace period |
//! | StopPodSandbox | kill the containers, then the pause container |
//! | ListContainers | from memory, which follows the engine's events; one listing repairs what was missed |
//!
//! **Whose container is it?** Every container made here has the label `io.wherry.node` with the node's root. What has not
//! is never looked at, let alone touched, so several nodes and other users can share an engine.
//!
//! **After a restart** of the agent everything is found again by these labels, which hold the config as well; there is no
//! file of this runtime on the node's disk. **After a restart of dockerd** the event stream is opened again and one
//! listing tells what happened meanwhile: with `--live-restore` nothing, without it everything has exited.
//!
//! **Logs** stay with the engine (driver `json-file`) and are copied line by line. Where copying stopped is read from the
//! copy itself, so neither a killed agent nor a restarted engine loses a line or doubles one.
//!
//! Left to others: addresses and interfaces (the agent puts them into the pause container's network namespace), volumes
//! (they come as mounts), what a Pod is.

mod archive;
mod cgroup;
mod container;
mod engine;
mod images;
mod log;
mod names;
mod pause;
mod process;
mod runtime;
mod sandbox;
mod spec;
mod stats;
mod stream;
mod watch;

use std::path::PathBuf;

pub use images::{DockerImages, ImportError};
pub use runtime::DockerRuntime;

/// Where the engine is, and which of its containers are ours.
#[derive(Clone, Debug)]
pub struct Config {
    /// The engine's Unix socket.
    pub socket: PathBuf,
    /// Tells this node's containers from all others of the engine: the node's root directory.
    pub node: String,
}

impl Config {
    /// Reads an endpoint as docker's own `--host` writes it: `unix:///run/docker.sock`, or a path.
    ///
    /// # Errors
    /// For anything that is not a Unix socket.
    pub fn new(endpoint: &str, node: impl Into<String>) -> Result<Self, String> {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(format!(
                "docker endpoint {endpoint}: only unix:///path is supported"
            ));
        }
        Ok(Self {
            socket: path.into(),
            node: node.into(),
        })
    }
}

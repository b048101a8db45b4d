//! The daemonless OCI runtime: stage 0 in the agent, stage 1 one supervisor per pod, stage 2 the app.
//!
//! ```text
//!  agent ── Runtime ──▶ OciRuntime (stage 0)         disk: sandboxes/<id>, containers/<id>
//!                          │ spawns                   run:  pods/<id>/{lock,sock}
//!                          ▼
//!                       stage 1, one per pod: namespaces, logs, exec, attach, exits
//!                          │ forks
//!                          ▼
//!                       stage 2: mounts, root, user, capabilities, seccomp ── execve ──▶ the app
//! ```
//!
//! | CRI | here |
//! |---|---|
//! | RunPodSandbox | write `sandbox.json`, make the pod's cgroup, lock, spawn stage 1, wait for `ready` |
//! | CreateContainer | lease the image, write the OCI spec and the filter, make the cgroup, stage 1 forks stage 2, which sets everything up and waits |
//! | StartContainer | stage 2 goes on to execute the app |
//! | StopContainer | stop signal, then SIGKILL to all after the grace period |
//! | StopPodSandbox | stage 1 kills everything, records it and ends; its namespaces go with it |
//! | ListContainers | from memory, which follows every supervisor's events |
//!
//! **After a restart** of the agent [`OciRuntime::open`] finds sandboxes and containers on disk, connects to
//! the supervisors that hold their lock, and cleans up after those that do not. A root file system is
//! mounted in its container's own mount namespace only, so there are no mounts to lose.
//!
//! Left to others: images and layers (`wherry-images`), addresses and interfaces (the agent puts them into
//! the sandbox's namespace), what a Pod is.

#![allow(
    unsafe_code,
    reason = "namespaces, fork and capabilities have no safe interface; see sys.rs"
)]

mod bundle;
mod client;
mod container;
mod features;
mod protocol;
mod recover;
mod runtime;
mod sandbox;
mod seccomp;
mod shm;
mod spec;
pub mod stage1;
mod stage2;
mod stream;
mod sys;

use std::{path::PathBuf, time::Duration};

pub use runtime::OciRuntime;

/// Where this runtime works and with what.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's root directory; `oci` is made below it.
    pub root: PathBuf,
    /// The node's run directory; `oci` is made below it.
    pub run: PathBuf,
    /// The executable that dispatches `stage1` to [`stage1::main`], normally `/proc/self/exe`.
    pub exe: PathBuf,
    /// Where images and their layers are.
    pub images: wherry_images::Store,
    /// How long a supervisor may take to come up, and to go down.
    pub supervisor_timeout: Duration,
}

impl Config {
    /// Defaults for everything that is not a place.
    pub fn new(root: PathBuf, run: PathBuf, exe: PathBuf, images: wherry_images::Store) -> Self {
        Self {
            root,
            run,
            exe,
            images,
            supervisor_timeout: Duration::from_secs(20),
        }
    }
}

//! The Wasm runtime as the agent sees it: workers, their protocol and their records.
//!
//! ```text
//!  agent ── WasmRuntime ──┬── wasm-compile   one short-lived child per module to compile
//!                         ├── wasm-worker    a tenant's pods on the node's network
//!                         └── wasm-worker    one pod: isolated, or beside OCI containers in their
//!                                            network namespace
//! ```
//!
//! How CRI's words map:
//!
//! | CRI | here |
//! |---|---|
//! | sandbox | a record; a pod of Wasm containers alone has no namespace, its sockets are confined |
//! | container | an instance in a worker; of an HTTP component, a port and an instance per request |
//! | command, args | WASI arguments; the first is the program's name |
//! | exec | the module run again with other arguments ([`exec_args`]) |
//! | mounts | a tree of detached mounts, the guest's `/` (`mounts.rs`) |
//! | stop signal | WASI has none: a component is ended with 143, see the engine's `container.rs` |
//!
//! What the pod contract says of processes, and what becomes of it. *Met* needs nothing to be done;
//! *said* is a warning of the container, for what means nothing and does no harm; *refused* is
//! [`RuntimeError::Unsupported`](wherry_runtime_api::RuntimeError::Unsupported) before anything is made.
//!
//! | field | here |
//! |---|---|
//! | runAsUser, runAsGroup, fsGroup, supplementalGroups | whose files are its own, and who owns those it makes (`identity.rs`) |
//! | runAsNonRoot | met: without a user of its own it is the worker's, which owns nothing |
//! | readOnlyRootFilesystem | met: what is not a mount is read-only and empty |
//! | allowPrivilegeEscalation, capabilities.drop, seccomp and AppArmor but for `Localhost` | met: no system calls; its worker is an unprivileged user under a filter |
//! | seccomp and AppArmor `Localhost` | refused: there is no process for the profile |
//! | privileged, capabilities.add, procMount | said: there is nothing to be given |
//! | hostUsers false | met: no ID of the node's is in its reach |
//! | hostPID, hostIPC, shareProcessNamespace, targetContainerName | said: it is no process and sees none |
//! | hostNetwork, dnsPolicy, dnsConfig, hostAliases | as for processes; names are looked up by the pod's own files (the engine's `names.rs`) |
//! | sysctls | refused for a pod of Wasm containers alone: there is no namespace to set them in |
//! | subPath, single files, image volumes, recursive read-only | as for processes; read-only always reaches below |
//! | mountPropagation | refused: mounts are what they were when it was created |
//! | devices, hugepages | refused |
//! | limits.memory | bytes of linear memories and tables of all its instances; crossing it is OOMKilled |
//! | limits.cpu, requests.cpu | share of CPU time among the worker's guests, host time not charged |
//! | limits of the pod | its cgroup's, where the worker is the pod's own: beside OCI containers, or isolated |
//! | pids, ephemeral-storage of the writable layer | met: it starts nothing and writes nowhere but to volumes |
//! | stopSignal | said: WASI has none; an open stdin ends, an HTTP component drains |
//! | tty | echo, line ends, Ctrl-C, Ctrl-D; its size by escape sequences (the engine's `terminal.rs`) |
//! | exec, hooks and probes by exec | the component run again; of an HTTP component the `wasi:cli/run` it exports besides |
//!
//! Nothing here runs or compiles Wasm, and nothing here links an engine: that is in the crate
//! `wherry-wasm-engine`, reached only through [`protocol`].
//!
//! The agent may die at any point. Records are written before the worker is asked, so what a worker
//! holds and nobody has a record of was being removed, and what has a record and no worker knows of
//! was being made: [`WasmRuntime::open`] finishes either.

mod cgroup;
mod client;
mod identity;
mod mounts;
pub mod protocol;
mod record;
mod runtime;
mod spec;
mod stream;
mod userns;
mod worker;

use std::path::PathBuf;

pub use runtime::WasmRuntime;
pub use spec::exec_args;
use wherry_wasm_aot::{child, wire};

/// Makes `wasm-worker` hold a user namespace instead of containers.
pub const USER_NAMESPACE_ARGUMENT: &str = "user-namespace";

/// Annotation of a container: the port on which its HTTP component is served, or several with commas.
pub const HTTP_PORT_ANNOTATION: &str = "wherry.dev/http-port";

/// What the runtime needs to know.
#[derive(Clone)]
pub struct Config {
    /// What survives a reboot: `<root>/wasm` is ours.
    pub root: PathBuf,
    /// What does not: `<run>/wasm` is ours.
    pub run: PathBuf,
    /// The program to start for workers and compilers, which has the modes `wasm-worker` and
    /// `wasm-compile`; normally `/proc/self/exe`.
    pub exe: PathBuf,
    /// Where images are.
    pub images: wherry_images::Store,
    /// Cgroup below which workers get theirs, relative to each hierarchy (`wherry`).
    pub cgroup_root: String,
    /// User that workers become. Should own nothing.
    pub worker_uid: u32,
    /// Group that workers become.
    pub worker_gid: u32,
    /// Instances in one worker before another is started. An instance takes four mappings, and a
    /// process with 65,530 (`vm.max_map_count`) gets no more memory at all.
    pub instances_per_worker_max: u32,
    /// How long a tenant's worker without containers waits for the next one.
    pub worker_idle_max: std::time::Duration,
}

impl Config {
    /// Defaults for everything but the paths and the store.
    pub fn new(root: PathBuf, run: PathBuf, exe: PathBuf, images: wherry_images::Store) -> Self {
        Self {
            root,
            run,
            exe,
            images,
            cgroup_root: "wherry".into(),
            // "nonroot" of distroless images: no account of Debian's has it.
            worker_uid: 65_532,
            worker_gid: 65_532,
            instances_per_worker_max: 4_000,
            worker_idle_max: std::time::Duration::from_secs(60),
        }
    }
}

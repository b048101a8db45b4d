//! The sandbox: what a pod's containers share.

use std::{net::IpAddr, path::PathBuf, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{ContainerId, LinuxResources, PodSandboxId, PodUid, SeccompProfile};

/// What a sandbox is to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodSandboxConfig {
    /// The pod's uid.
    pub uid: PodUid,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace: the tenant.
    pub namespace: String,
    /// Counts the sandboxes of one pod, from 0.
    pub attempt: u32,
    /// Host name inside; `None` where the pod shares the node's.
    pub hostname: Option<String>,
    /// Where container logs go, absolute: `/var/log/pods/<namespace>_<name>_<uid>`.
    pub log_directory: PathBuf,
    /// Which namespaces are the pod's own.
    pub namespaces: NamespaceOptions,
    /// The pod's own user namespace (`hostUsers: false`); `None` shares the node's.
    #[serde(default)]
    pub user_namespace: Option<UserNamespace>,
    /// The pod's cgroup, relative to each hierarchy's root (`<prefix>/kubepods/burstable/pod<uid>`).
    /// The runtime makes it, with `resources`, and removes it with the sandbox.
    pub cgroup_parent: String,
    /// Limits of the pod as a whole.
    pub resources: LinuxResources,
    /// Namespaced kernel parameters, already checked against the safe set.
    pub sysctls: Vec<(String, String)>,
    /// Profile for what the runtime itself runs in the sandbox.
    pub seccomp: SeccompProfile,
    /// Ask for an isolated runtime process per pod where the runtime would share one
    /// (RuntimeClass `wasm-isolated`).
    pub isolated: bool,
    /// Kept with the sandbox and given back by list.
    pub labels: Vec<(String, String)>,
    /// Kept with the sandbox and given back by list.
    pub annotations: Vec<(String, String)>,
}

impl PodSandboxConfig {
    /// The first sandbox of a pod that asks for nothing special and has no host name.
    #[must_use]
    pub fn new(
        uid: impl Into<PodUid>,
        name: impl Into<String>,
        namespace: impl Into<String>,
        log_directory: impl Into<PathBuf>,
        cgroup_parent: impl Into<String>,
    ) -> Self {
        Self {
            uid: uid.into(),
            name: name.into(),
            namespace: namespace.into(),
            attempt: 0,
            hostname: None,
            log_directory: log_directory.into(),
            namespaces: NamespaceOptions::default(),
            user_namespace: None,
            cgroup_parent: cgroup_parent.into(),
            resources: LinuxResources::default(),
            sysctls: Vec::new(),
            seccomp: SeccompProfile::default(),
            isolated: false,
            labels: Vec::new(),
            annotations: Vec::new(),
        }
    }
}

/// Which namespaces are the pod's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceOptions {
    /// `hostNetwork` is [`NamespaceMode::Node`].
    pub network: NamespaceMode,
    /// `hostPID` is `Node`, `shareProcessNamespace` is `Pod`, else `Container`.
    pub pid: NamespaceMode,
    /// `hostIPC` is `Node`.
    pub ipc: NamespaceMode,
}

impl Default for NamespaceOptions {
    fn default() -> Self {
        Self {
            network: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
            ipc: NamespaceMode::Pod,
        }
    }
}

/// Whose namespace a container lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Shared by the pod's containers.
    Pod,
    /// Each container its own.
    Container,
    /// The node's.
    Node,
}

/// A user namespace: IDs 0 to `length` − 1 inside are `host_id` to `host_id + length` − 1 on the node, users and
/// groups alike. Volumes are shown with their IDs as they are on disk, by idmapped mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// The node's ID that is 0 inside; ranges of two pods never overlap.
    pub host_id: u32,
    /// How many; Kubernetes' 65,536.
    pub length: u32,
}

/// A sandbox as it is. Also what a container is created in, whichever runtime made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodSandbox {
    /// Its identifier.
    pub id: PodSandboxId,
    /// The runtime that made it ([`crate::Runtime::handler`]).
    pub handler: String,
    /// What it was asked to be.
    pub config: PodSandboxConfig,
    /// Whether containers can run in it.
    pub state: PodSandboxState,
    /// When it was made.
    pub created_at: SystemTime,
    /// How its containers reach the network.
    pub network: SandboxNetwork,
    /// The pod's addresses. Empty as a runtime answers it; the agent's network fills it in before
    /// containers are created.
    pub ips: Vec<IpAddr>,
    /// The process that holds the namespaces, where there is one.
    pub pid: Option<i32>,
}

/// Whether containers can run in a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodSandboxState {
    /// They can.
    Ready,
    /// They cannot any more.
    NotReady,
}

/// How a sandbox's containers reach the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxNetwork {
    /// A network namespace of its own. The path can be opened by root as long as the sandbox is
    /// Ready; the caller puts interfaces and addresses in.
    Namespace {
        /// For instance `/proc/<pid>/ns/net`.
        path: PathBuf,
    },
    /// The node's own network.
    Host,
    /// No namespace: sockets are confined by the runtime to [`PodSandbox::ips`], which are
    /// addresses on the node's bridge.
    Confined,
}

/// Something happened to a sandbox or a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// The app was executed.
    ContainerStarted {
        /// The pod.
        pod: PodUid,
        /// The container.
        id: ContainerId,
    },
    /// The app exited; [`crate::Runtime::container_status`] has how.
    ContainerExited {
        /// The pod.
        pod: PodUid,
        /// The container.
        id: ContainerId,
    },
    /// The sandbox's holder is gone.
    SandboxExited {
        /// The pod.
        pod: PodUid,
        /// The sandbox.
        id: PodSandboxId,
    },
}

/// Version and readiness of a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeStatus {
    /// As shown in `nodeInfo.containerRuntimeVersion` after `handler://`.
    pub version: String,
    /// Why it cannot run pods, if it cannot.
    pub not_ready: Option<String>,
    /// What it offers, as Node objects tell it (`status.runtimeHandlers[].features`).
    pub features: RuntimeFeatures,
}

/// What a runtime offers on this machine, found by trying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuntimeFeatures {
    /// [`PodSandboxConfig::user_namespace`] is honoured.
    pub user_namespaces: bool,
    /// [`crate::Mount::recursive_readonly`] is honoured.
    pub recursive_readonly_mounts: bool,
}

//! A container: what it is to be, and what it is.

use std::{path::PathBuf, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{ContainerId, PodSandboxId, PodUid};

/// What a container is to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Its name in the pod.
    pub name: String,
    /// Counts the restarts of one container, from 0.
    pub attempt: u32,
    /// The image ID that the image service answered (`sha256:…`).
    pub image_id: String,
    /// The image as the user wrote it, for status.
    pub image: String,
    /// Replaces the image's entry point if not empty (and then the image's command is dropped too).
    pub command: Vec<String>,
    /// Replaces the image's command if not empty.
    pub args: Vec<String>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// Added to the image's environment, winning over it; order is kept.
    pub env: Vec<(String, String)>,
    /// Mounts, in the order they are to be made.
    pub mounts: Vec<Mount>,
    /// Host devices.
    pub devices: Vec<Device>,
    /// Kept with the container and given back by list.
    pub labels: Vec<(String, String)>,
    /// Kept with the container and given back by list.
    pub annotations: Vec<(String, String)>,
    /// The log file, absolute; its directory exists. Lines are in CRI format.
    pub log_path: PathBuf,
    /// Rotation of the log.
    pub log_rotation: LogRotation,
    /// Keep stdin open for attach.
    pub stdin: bool,
    /// Close stdin when the first attached client goes.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Signal that asks it to exit, if not the image's or SIGTERM; by number.
    pub stop_signal: Option<i32>,
    /// Limits.
    pub resources: LinuxResources,
    /// Identity and privileges.
    pub security: ContainerSecurity,
    /// Join this container's process namespace instead of one of its own
    /// (`targetContainerName` of an ephemeral container).
    #[serde(default)]
    pub pid_target: Option<ContainerId>,
}

impl ContainerConfig {
    /// The first attempt at a container that runs its image as it is, without mounts, limits or privileges.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        image_id: impl Into<String>,
        image: impl Into<String>,
        log_path: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name: name.into(),
            attempt: 0,
            image_id: image_id.into(),
            image: image.into(),
            command: Vec::new(),
            args: Vec::new(),
            working_dir: None,
            env: Vec::new(),
            mounts: Vec::new(),
            devices: Vec::new(),
            labels: Vec::new(),
            annotations: Vec::new(),
            log_path: log_path.into(),
            log_rotation: LogRotation::default(),
            stdin: false,
            stdin_once: false,
            tty: false,
            stop_signal: None,
            resources: LinuxResources::default(),
            security: ContainerSecurity::default(),
            pid_target: None,
        }
    }
}

/// When a log is rotated, and how much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRotation {
    /// Rotate when the file is larger. Kubelet's default: 10 MiB.
    pub size_bytes_max: u64,
    /// Files kept, the one being written included. Kubelet's default: 5.
    pub files_max: u32,
}

impl Default for LogRotation {
    fn default() -> Self {
        Self {
            size_bytes_max: 10 * 1024 * 1024,
            files_max: 5,
        }
    }
}

/// A directory or file of the host, shown in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where the container sees it, absolute.
    pub container_path: PathBuf,
    /// What it is on the host, absolute; it exists.
    pub host_path: PathBuf,
    /// Cannot be written through.
    pub readonly: bool,
    /// Read-only holds for mounts below it too.
    pub recursive_readonly: bool,
    /// Which way later mounts travel.
    pub propagation: MountPropagation,
}

/// Which way later mounts travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    /// Neither way (rprivate).
    #[default]
    None,
    /// From the host in (rslave).
    HostToContainer,
    /// Both ways (rshared); privileged containers only.
    Bidirectional,
}

/// A device node of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// On the host.
    pub host_path: PathBuf,
    /// In the container.
    pub container_path: PathBuf,
    /// Out of `rwm`.
    pub permissions: String,
}

/// Limits, in the kernel's units.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinuxResources {
    /// Relative weight, 2 to 262144 (cgroup v1 `cpu.shares`; v2 weight is computed from it).
    pub cpu_shares: Option<u64>,
    /// CPU time in each period, µs; `None` or a negative value is no limit.
    pub cpu_quota_us: Option<i64>,
    /// Length of the period, µs. Kubernetes' default: 100,000.
    pub cpu_period_us: Option<u64>,
    /// Memory, bytes. Crossing it is `OOMKilled`.
    pub memory_bytes_max: Option<u64>,
    /// Processes and threads.
    pub pids_max: Option<u64>,
    /// −1000 to 1000. Where the kernel refuses a lower value the runtime says so in a warning.
    pub oom_score_adj: Option<i32>,
    /// Page size (`2MB`) and bytes.
    pub hugepage_bytes_max: Vec<(String, u64)>,
}

/// Identity and privileges of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerSecurity {
    /// Replaces the image's user.
    pub run_as_user: Option<u32>,
    /// Replaces the group that goes with the user.
    pub run_as_group: Option<u32>,
    /// Refuse to run as root, whichever way root is named.
    pub run_as_non_root: bool,
    /// `fsGroup` and `supplementalGroups`.
    pub supplemental_groups: Vec<u32>,
    /// Everything the node has.
    pub privileged: bool,
    /// Added to the default set; `ALL` is everything, names without `CAP_`.
    pub capabilities_add: Vec<String>,
    /// Taken from the default set; `ALL` is everything.
    pub capabilities_drop: Vec<String>,
    /// The root file system cannot be written.
    pub readonly_rootfs: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privs: bool,
    /// System call filter.
    pub seccomp: SeccompProfile,
    /// AppArmor profile; `None` is the runtime's default where the kernel has AppArmor.
    pub apparmor: Option<AppArmorProfile>,
    /// `procMount: Unmasked`: show all of `/proc` and `/sys`.
    pub unmasked_proc: bool,
}

/// System call filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompProfile {
    /// The runtime's own.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile on the node, in Docker's JSON form.
    Localhost(PathBuf),
}

/// AppArmor profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmorProfile {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One loaded on the node.
    Localhost(String),
}

/// A container as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its identifier.
    pub id: ContainerId,
    /// The runtime that holds it.
    pub handler: String,
    /// The sandbox it lives in.
    pub sandbox: PodSandboxId,
    /// The pod it belongs to.
    pub pod: PodUid,
    /// Its name in the pod.
    pub name: String,
    /// Restart count.
    pub attempt: u32,
    /// The image as the user wrote it.
    pub image: String,
    /// The image's ID.
    pub image_id: String,
    /// What it is doing.
    pub state: ContainerState,
    /// When it was created.
    pub created_at: SystemTime,
    /// The log file.
    pub log_path: PathBuf,
    /// The app's process on the node, if it has one of its own.
    pub pid: Option<i32>,
    /// Labels from its config.
    pub labels: Vec<(String, String)>,
    /// Annotations from its config.
    pub annotations: Vec<(String, String)>,
    /// What could not be set as asked, for an event (each said once).
    pub warnings: Vec<String>,
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Prepared, not started.
    Created,
    /// The app runs.
    Running {
        /// Since when.
        started_at: SystemTime,
    },
    /// The app exited.
    Exited(ContainerExit),
    /// The runtime lost track of it (its supervisor was killed).
    Unknown,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerExit {
    /// When the app was executed; `None` if it never was.
    pub started_at: Option<SystemTime>,
    /// When it exited.
    pub finished_at: SystemTime,
    /// 0 to 255; 128 + signal if it was killed by one.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It crossed its memory limit. `OOMKilled` for the user.
    pub oom_killed: bool,
    /// Why it could not be started, or the trap that ended it.
    pub message: Option<String>,
}

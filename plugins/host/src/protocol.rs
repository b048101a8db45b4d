//! What the agent and the plugin worker say to each other, in the frames of [`wherry_wasm_aot::wire`].
//!
//! ```text
//!  agent                                        worker
//!  Bootstrap                              ──▶   becomes unprivileged
//!                                         ◀──   Ready
//!  Load, with the compiled file's directory ─▶  links it
//!                                         ◀──   Loaded
//!  Call                                   ──▶   a fresh instance
//!                                         ◀──   Ask       what only the agent may do; one at a time for a call
//!  Answer                                 ──▶
//!                                         ◀──   Ended     once for each call
//! ```
//! Both sides are of one program, and the worker ends with the connection: there are no versions.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub use crate::provision::{ClaimAccess, Created, Provision, Wanted};

/// What a worker becomes, first of all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bootstrap {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Empty directory that becomes its root.
    pub jail: PathBuf,
}

/// From the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// Links the plugin whose compiled file is in the directory that comes along.
    Load {
        /// What calls name it by.
        plugin: u64,
        /// What one call may use.
        limits: Limits,
        /// Its instances may be called again.
        keeps_instances: bool,
    },
    /// Forgets a plugin; calls under way go on.
    Unload {
        /// Which.
        plugin: u64,
    },
    /// Makes a check.
    Call(Box<Call>),
    /// Answers what a call asked.
    Answer {
        /// Which call.
        call: u64,
        /// To what it asked.
        answer: Answer,
    },
    /// Drops a call: nobody waits for it.
    Cancel {
        /// Which.
        call: u64,
    },
}

/// One call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// Names it; never used twice on one connection.
    pub call: u64,
    /// A plugin that has been loaded.
    pub plugin: u64,
    /// For the guest.
    pub arguments: Vec<String>,
    /// What the guest may ask about.
    pub target: ProbeTarget,
    /// Until it is dropped.
    pub timeout: Duration,
    /// The volume that it is about; without one it is a probe.
    #[serde(default)]
    pub volume: Option<Box<VolumeCall>>,
}

/// A call about a volume. A populator's staging directory comes along as a descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeCall {
    /// The volume's name.
    pub name: String,
    /// `namespace/name` of the pod.
    pub pod: String,
    /// What it is asked to be.
    pub attributes: BTreeMap<String, String>,
    /// Of the Secret that it names.
    pub credentials: BTreeMap<String, Vec<u8>>,
    /// Nobody writes.
    pub is_read_only: bool,
    /// The Plugin object's configuration.
    pub config: BTreeMap<String, String>,
    /// For a populator: the version that is there.
    pub current: Option<String>,
    /// For a populator: what may be written.
    pub staging: StagingLimits,
    /// For a mounter: bytes that the volume, which is mounted, is to hold; without it the volume is to be mounted.
    #[serde(default)]
    pub expand: Option<u64>,
    /// For a provisioner: the volume is to be made, or taken away.
    #[serde(default)]
    pub provision: Option<Provision>,
}

/// What a populator may write at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagingLimits {
    /// Bytes of all files.
    pub bytes_max: u64,
    /// Files, directories and links.
    pub entries_max: u64,
}

/// What a plugin is, by the world that it exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum World {
    /// `probe`
    Probe,
    /// `populator`
    Populator,
    /// `mounter`
    Mounter,
    /// `filesystem-volume`
    Filesystem,
}

impl World {
    /// What people call a plugin of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Probe => "a probe",
            Self::Populator => "a populator",
            Self::Mounter => "a mounter",
            Self::Filesystem => "a file system",
        }
    }
}

/// A plugin that has been linked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linked {
    /// The interfaces it imports, as `wherry:plugin/exec@0.1.0`.
    pub imports: Vec<String>,
    /// What it is.
    pub world: World,
}

/// The container that is probed, as far as a plugin may know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeTarget {
    /// The pod's first address.
    pub ip: Option<IpAddr>,
    /// The container's ports that have names.
    pub ports: BTreeMap<String, u16>,
    /// The pod's name.
    pub pod: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The container's name.
    pub container: String,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
    /// When the container was started, since the Unix epoch.
    pub started_at: Duration,
    /// How often it has been restarted.
    pub restart_count: u32,
}

/// What one call may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of its memories and tables.
    pub memory_bytes_max: u64,
    /// CPU time of the guest's own code.
    pub cpu_time_max: Duration,
    /// Time altogether, should the probe's own time-out be longer.
    pub wall_time_max: Duration,
    /// Calls at once on one node; more wait for their turn.
    pub instances_max: u32,
}

impl Limits {
    /// What a call about a volume may use where nobody says otherwise: it moves more than a probe does.
    pub fn of_volumes() -> Self {
        Self {
            memory_bytes_max: 128 << 20,
            cpu_time_max: Duration::from_secs(60),
            wall_time_max: Duration::from_secs(600),
            instances_max: 8,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 16 << 20,
            cpu_time_max: Duration::from_millis(500),
            wall_time_max: Duration::from_secs(30),
            instances_max: 8,
        }
    }
}

/// From the worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToAgent {
    /// It works, or why it does not.
    Ready(Result<(), String>),
    /// A plugin was linked, or why it cannot be.
    Loaded {
        /// Which.
        plugin: u64,
        /// What it is.
        result: Result<Linked, String>,
    },
    /// How far a populator is.
    Progress {
        /// Which call.
        call: u64,
        /// Bytes.
        done: u64,
        /// Of so many; 0 where it is not known.
        total: u64,
    },
    /// A call asks the agent.
    Ask {
        /// Which call.
        call: u64,
        /// For what.
        ask: Ask,
    },
    /// A call is over.
    Ended {
        /// Which.
        call: u64,
        /// How.
        ended: Box<Ended>,
    },
}

/// What a worker may not do itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Run a command in the probed container.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
    },
    /// Connect to something that is not the pod.
    Resolve {
        /// An address or a name.
        host: String,
        /// The port that would be connected to.
        port: u16,
    },
    /// Run another probe for this one.
    Check {
        /// As `exec.command` names it.
        command: Vec<String>,
    },
    /// A key of a Secret of the pod's namespace.
    Secret {
        /// The Secret.
        name: String,
        /// The key.
        key: String,
    },
    /// What is at a path of one of the pod's volumes.
    Stat {
        /// The volume.
        volume: String,
        /// Relative to it.
        path: String,
    },
    /// Bytes of a file on one of the pod's volumes.
    Read {
        /// The volume.
        volume: String,
        /// Relative to it.
        path: String,
        /// From where.
        offset: u64,
        /// How many at most.
        length: u32,
    },
    /// What the probed container uses.
    Usage,
    /// The last lines of the probed container's log.
    LogTail {
        /// How many at most.
        lines: u32,
    },
    /// Mount something, or what it takes.
    Mounts(MountAsk),
    /// Make or remove the volume's image.
    Images(ImageAsk),
}

/// What a provisioner asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageAsk {
    /// Make the volume's image; answered by its path.
    Make {
        /// Where.
        directory: String,
        /// That it is to have at least.
        bytes: u64,
    },
    /// Remove it.
    Remove {
        /// Where it is.
        directory: String,
    },
}

/// What a mounter asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountAsk {
    /// Mount on the volume's directory.
    Mount {
        /// As `nfs4`.
        kind: String,
        /// As `10.0.0.1:/export`.
        source: String,
        /// Name and value, which may be empty.
        options: Vec<(String, String)>,
    },
    /// Attach a device; answered by its path.
    Attach {
        /// As `iscsi`.
        kind: String,
        /// Name and value.
        parameters: Vec<(String, String)>,
    },
    /// Make a file system on a device that holds nothing.
    Format {
        /// Its path.
        device: String,
        /// As `ext4`.
        kind: String,
    },
    /// Make the disk that is mounted larger; answered by the bytes that it holds.
    Grow {
        /// At least.
        bytes: u64,
    },
}

/// Answer to an [`Ask`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Ask::Exec`]: exit code and output.
    Exec(Result<(i32, Vec<u8>), ExecError>),
    /// To [`Ask::Resolve`]: addresses that may be connected to, best first.
    Resolve(Result<Vec<IpAddr>, ResolveError>),
    /// To [`Ask::Check`].
    Check(Result<Outcome, CheckError>),
    /// To [`Ask::Secret`].
    Secret(Result<Vec<u8>, SecretError>),
    /// To [`Ask::Stat`].
    Stat(Result<FileMetadata, FileError>),
    /// To [`Ask::Read`].
    Read(Result<Vec<u8>, FileError>),
    /// To [`Ask::Usage`]; `None` where it is not known.
    Usage(Option<ContainerUsage>),
    /// To [`Ask::LogTail`]: oldest first.
    LogTail(Result<Vec<String>, LogError>),
    /// To [`Ask::Mounts`]: a device's path, a number of bytes, or nothing.
    Mounts(Result<String, VolumeError>),
    /// To [`Ask::Images`]: a path, or nothing.
    Images(Result<String, VolumeError>),
}

/// A command did not run to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecError {
    /// The time was up.
    Timeout,
    /// Not granted.
    Denied(String),
    /// It could not be run.
    Failed(String),
}

/// Another probe cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckError {
    /// It cannot be asked for.
    InvalidArguments(String),
    /// Anything else.
    Other(String),
}

/// There is no value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretError {
    /// No such Secret or key.
    NotFound,
    /// Not granted.
    Denied(String),
    /// It cannot be asked for now.
    Unavailable(String),
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMetadata {
    /// Bytes.
    pub size: u64,
    /// When its content was last changed, since the Unix epoch.
    pub modified: Duration,
    /// A directory; else a file.
    pub is_directory: bool,
}

/// There is nothing to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileError {
    /// No such volume or path.
    NotFound,
    /// Not granted, or it leads out of the volume.
    Denied(String),
    /// Anything else.
    Other(String),
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUsage {
    /// CPU time since it was started, over all cores, ns.
    pub cpu_nanoseconds: u64,
    /// Memory that cannot be dropped at once, bytes.
    pub memory_working_set_bytes: u64,
}

/// There are no lines of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogError {
    /// Not granted.
    Denied(String),
    /// It cannot be read now.
    Unavailable(String),
}

/// There is nothing to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResolveError {
    /// Not granted.
    Denied(String),
    /// No such name.
    NotFound(String),
}

/// How a call ended, and what it took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// What the guest said, or why it could not.
    pub result: Result<Said, Fault>,
    /// CPU time of the guest's own code.
    pub cpu_time: Duration,
    /// Most bytes of memories and tables at any time.
    pub memory_bytes_peak: u64,
    /// Lines for the log: the level as tracing names it, and the text.
    pub log: Vec<(LogLevel, String)>,
    /// Lines that were too many.
    pub log_dropped: u32,
    /// What was asked for and is not granted.
    pub denied: Option<String>,
}

/// How much a line of a plugin's matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// For the author.
    Debug,
    /// For the operator.
    Info,
    /// Something is wrong.
    Warn,
    /// The call fails because of this.
    Error,
}

/// What the guest said, by its world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// A probe.
    Outcome(Outcome),
    /// A populator.
    Populated(Populated),
    /// A mounter, or a file system that was opened.
    Done,
    /// A mounter: its volume holds so many bytes now.
    Expanded(u64),
    /// A provisioner: a volume.
    Created(Created),
}

/// What a populator wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Populated {
    /// What it was made of.
    pub version: String,
    /// Ask again after so many seconds; 0: never.
    pub refresh_seconds: u32,
}

/// What a probe saw, and what to tell people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What it saw.
    pub verdict: Verdict,
    /// In a few words.
    pub message: String,
}

/// What a probe saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// All is well.
    Success,
    /// It is not.
    Failure,
    /// It cannot be told.
    Unknown,
}

/// Why there is no outcome. What the guest declared is kept apart from what was done to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Fault {
    /// The guest: its arguments make no sense.
    #[error("invalid arguments: {0}")]
    InvalidArguments(String),
    /// The guest: it lacks a grant.
    #[error("not granted: {0}")]
    Denied(String),
    /// The guest: anything else.
    #[error("{0}")]
    Other(String),
    /// The guest: a volume cannot be had.
    #[error("{0}")]
    Volume(VolumeError),
    /// Nobody: the plugin has no code for it.
    #[error("its volumes cannot be made larger")]
    CannotExpand,
    /// Nobody: the plugin has no code for making volumes, or taking them away.
    #[error("it makes no volumes for claims")]
    CannotProvision,
    /// The instance trapped, or what it returned is no value of the type.
    #[error("trap: {0}")]
    Trap(String),
    /// The instance wanted more memory than it may have.
    #[error("more than {} KiB of memory", bytes_max >> 10)]
    MemoryExceeded {
        /// The limit.
        bytes_max: u64,
    },
    /// The instance computed for longer than it may.
    #[error("more than {} ms of CPU time", max.as_millis())]
    CpuTimeExceeded {
        /// The limit.
        max: Duration,
    },
    /// The call's time was up.
    #[error("no result after {} ms", after.as_millis())]
    TimedOut {
        /// How long it had.
        after: Duration,
    },
    /// The worker is gone, and with it the call; or it cannot be had.
    #[error("plugin worker: {0}")]
    WorkerLost(String),
}

impl Fault {
    /// Whether it cost the plugin its instance, as opposed to what a guest says in good order.
    pub fn is_violent(&self) -> bool {
        match self {
            Self::InvalidArguments(_)
            | Self::Denied(_)
            | Self::Other(_)
            | Self::Volume(_)
            | Self::CannotExpand
            | Self::CannotProvision => false,
            Self::Trap(_)
            | Self::MemoryExceeded { .. }
            | Self::CpuTimeExceeded { .. }
            | Self::TimedOut { .. }
            | Self::WorkerLost(_) => true,
        }
    }
}

/// Why a plugin cannot give a volume, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum VolumeError {
    /// Does not get better by trying again.
    #[error("invalid attributes: {0}")]
    InvalidAttributes(String),
    /// The credentials are refused.
    #[error("unauthorized: {0}")]
    Unauthorized(String),
    /// There is no such thing at the other end.
    #[error("not found: {0}")]
    NotFound(String),
    /// It lacks a grant.
    #[error("not granted: {0}")]
    Denied(String),
    /// The other end cannot be reached now.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// No space, or more than the volume's limit.
    #[error("no space: {0}")]
    NoSpace(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Longest text taken from a guest, bytes.
pub const TEXT_BYTES_MAX: usize = 4096;

/// Cuts a text to [`TEXT_BYTES_MAX`], between characters.
pub fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        text.truncate(end);
        text.shrink_to_fit();
    }
    text
}

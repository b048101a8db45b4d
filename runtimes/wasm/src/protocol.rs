//! What the agent and a worker say to each other.
//!
//! ```text
//!  agent ── Bootstrap (fds: listener, lock, exits, …) ───────▶ worker's stdin, once, answered by Ready
//!  agent ── connect(sock), Request{seq} ─────────────────────▶ worker
//!        ◀─ ToAgent::Reply{seq} / ToAgent::Event ──────────────
//! ```
//!
//! Messages are JSON in the frames of [`wherry_wasm_aot::wire`]. A worker outlives the agent that started it,
//! so a newer agent meets older workers: fields are only ever added, with a default, and
//! [`PROTOCOL_VERSION`] is raised when that is not enough.

use std::{net::IpAddr, path::PathBuf, time::SystemTime};

use serde::{Deserialize, Serialize};
use wherry_runtime_api::{ContainerExit, RuntimeError};
use wherry_wasm_aot::ModuleKind;

/// Version of this protocol; both ends say theirs in the hello. 2 knows [`RequestBody::Resize`].
pub const PROTOCOL_VERSION: u32 = 2;

/// The first thing a worker reads, on its stdin, as root: what to become.
///
/// Comes with these descriptors: the listening socket, the lock, the exit file, the network namespace
/// if `has_network_namespace`, and the certificate authorities if `has_authorities`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bootstrap {
    /// [`PROTOCOL_VERSION`] of the agent.
    pub protocol: u32,
    /// The worker's name, for its process title and messages.
    pub worker: String,
    /// User it becomes.
    pub uid: u32,
    /// Group it becomes.
    pub gid: u32,
    /// Empty directory that becomes its root.
    pub jail: PathBuf,
    /// `cgroup.procs` files to enter, one per hierarchy.
    pub cgroup_procs: Vec<PathBuf>,
    /// Whether a network namespace to enter comes along.
    pub has_network_namespace: bool,
    /// Whether the node's bundle of certificate authorities comes along, after it.
    #[serde(default)]
    pub has_authorities: bool,
    /// Instances it will hold at most.
    pub instances_max: u32,
}

/// Answer to [`Bootstrap`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Why it cannot work, if it cannot.
    pub error: Option<String>,
    /// Which compiled files it can load ([`wherry_wasm_aot::protocol::CompileReply::engine`]).
    pub engine: String,
}

/// Which addresses a container's sockets may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkPolicy {
    /// Whatever the worker's network namespace has.
    Open,
    /// The pod's own addresses, and no other local one.
    Confined(Vec<IpAddr>),
}

/// Limits of one container inside a shared worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Linear memories and tables together, bytes.
    pub memory_bytes_max: Option<u64>,
    /// CPU time in each period, µs.
    pub cpu_quota_us: Option<u64>,
    /// Length of the period, µs.
    pub cpu_period_us: u64,
    /// Relative weight, cgroup v1's: 1024 is one core's worth.
    pub cpu_shares: u64,
}

/// What a worker has to know to run a container.
///
/// Comes with the directory of the compiled file, the log file, then one descriptor per preopen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The container.
    pub id: String,
    /// Names the compiled file, so that containers of one image share it in memory.
    pub module: String,
    /// How it is run.
    pub kind: ModuleKind,
    /// WASI arguments, the first being the program's name.
    pub args: Vec<String>,
    /// WASI environment.
    pub env: Vec<(String, String)>,
    /// Working directory told to the guest.
    pub working_dir: Option<String>,
    /// Directories the guest starts with, by the name it knows them under.
    pub preopens: Vec<Preopen>,
    /// Which addresses its sockets may use.
    pub network: NetworkPolicy,
    /// The pod's `/etc/hosts`.
    #[serde(default)]
    pub hosts: String,
    /// The pod's `/etc/resolv.conf`.
    #[serde(default)]
    pub resolv_conf: String,
    /// The first of `http_ports`, for workers that know only one.
    pub http_port: u16,
    /// Ports on which an HTTP component is served; empty from an older agent.
    #[serde(default)]
    pub http_ports: Vec<u16>,
    /// Limits.
    pub limits: Limits,
    /// Whether stdin stays open for attach.
    pub stdin: bool,
    /// Whether stdin ends with the first attached client.
    pub stdin_once: bool,
    /// Whether its streams are told to be a terminal.
    pub tty: bool,
    /// Bytes of log after which [`Event::LogFull`] is said.
    pub log_size_bytes_max: u64,
}

/// A directory the guest starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preopen {
    /// Where the guest sees it.
    pub guest_path: String,
    /// Whether it cannot be written.
    pub readonly: bool,
}

/// A message to the worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Copied into the reply.
    pub seq: u64,
    /// What is asked.
    pub body: RequestBody,
}

/// What is asked of a worker. All but `Exec` and `Attach` can be repeated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RequestBody {
    /// First on each connection; answered by [`ReplyBody::Hello`], after which events flow.
    Hello {
        /// The agent's version of the protocol.
        protocol: u32,
    },
    /// Loads a container without running it.
    Create(Box<ContainerSpec>),
    /// Runs it; answered when it runs.
    Start {
        /// The container.
        id: String,
    },
    /// Asks it to end and ends it after the grace period; answered at once.
    Stop {
        /// The container.
        id: String,
        /// How long it may take, ms.
        grace_ms: u64,
    },
    /// Forgets it, ending it first. Its exit is thereby known to be recorded elsewhere.
    Remove {
        /// The container.
        id: String,
    },
    /// Runs the module again beside the app. Comes with one socket per stream asked for.
    Exec {
        /// The container.
        id: String,
        /// Chosen by the agent, unique on the connection.
        exec: u64,
        /// WASI arguments.
        args: Vec<String>,
        /// Whether the streams are a terminal.
        tty: bool,
        /// Whether the first descriptor is stdin.
        stdin: bool,
        /// Whether the next is stdout.
        stdout: bool,
        /// Whether the next is stderr.
        stderr: bool,
    },
    /// Ends an exec.
    KillExec {
        /// As given in `Exec`.
        exec: u64,
    },
    /// The size of a terminal. Of a worker that speaks version 2 only.
    Resize {
        /// The container.
        id: String,
        /// The exec whose terminal it is, or else the app's.
        exec: Option<u64>,
        /// Height in characters.
        rows: u16,
        /// Width in characters.
        columns: u16,
    },
    /// Copies the app's streams to the sockets that come along, from now on.
    Attach {
        /// The container.
        id: String,
        /// Whether the first descriptor is stdin.
        stdin: bool,
        /// Whether the next is stdout.
        stdout: bool,
        /// Whether the next is stderr.
        stderr: bool,
    },
    /// Changes limits.
    Update {
        /// The container.
        id: String,
        /// The new ones.
        limits: Limits,
    },
    /// Usage of one container.
    Stats {
        /// The container.
        id: String,
    },
    /// Connects to a TCP port where the container's sockets are; answered with the socket.
    Connect {
        /// Its address.
        ip: IpAddr,
        /// Its port.
        port: u16,
    },
    /// Writes the log to the file that comes along from now on.
    ReopenLog {
        /// The container.
        id: String,
    },
    /// Exits if it holds no container.
    Shutdown,
}

/// A message to the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToAgent {
    /// Answers a request.
    Reply {
        /// The request's.
        seq: u64,
        /// What came of it.
        result: Result<ReplyBody, WorkerError>,
    },
    /// Something happened.
    Event(Event),
}

/// Answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ReplyBody {
    /// To `Hello`.
    Hello {
        /// The worker's version of the protocol.
        protocol: u32,
        /// Which compiled files it can load.
        engine: String,
        /// Every container it holds.
        containers: Vec<ContainerReport>,
    },
    /// To `Start`.
    Started {
        /// When it was started.
        at: SystemTime,
    },
    /// To `Stats`.
    Stats(Usage),
    /// To everything else.
    Done,
}

/// Something happened in a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// A container exited.
    Exited(ExitRecord),
    /// An exec exited.
    ExecExited {
        /// As given in `Exec`.
        exec: u64,
        /// 0 to 255.
        exit_code: i32,
        /// The trap, if it was one.
        message: Option<String>,
    },
    /// A log has outgrown its size; writing goes on. Said again only after `ReopenLog`.
    LogFull {
        /// The container.
        id: String,
    },
}

/// A line of the exit file: a worker writes it before it tells anybody.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The container.
    pub id: String,
    /// How it ended.
    pub exit: ContainerExit,
}

/// A container as its worker sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerReport {
    /// The container.
    pub id: String,
    /// When it was started.
    pub started_at: Option<SystemTime>,
    /// How it ended.
    pub exit: Option<ContainerExit>,
    /// Its log has outgrown its size, whoever was told.
    #[serde(default)]
    pub log_is_full: bool,
}

/// Usage of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time its guests used, ns.
    pub cpu_ns: u64,
    /// Linear memories and tables, bytes.
    pub memory_bytes: u64,
    /// Instances alive.
    pub instances: u64,
}

/// A worker could not do it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerError {
    /// What the caller can do about it.
    pub kind: WorkerErrorKind,
    /// The thing, then the trouble.
    pub message: String,
}

/// What the caller can do about it: the variants of [`RuntimeError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerErrorKind {
    /// Not there (any more).
    NotFound,
    /// Cannot work until the config changes.
    InvalidArgument,
    /// Not in this state.
    FailedPrecondition,
    /// Full.
    ResourceExhausted,
    /// Cannot be honoured.
    Unsupported,
    /// Anything else.
    Internal,
}

impl WorkerError {
    /// An error of a kind.
    pub fn new(kind: WorkerErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

impl From<WorkerError> for RuntimeError {
    fn from(error: WorkerError) -> Self {
        let message = error.message;
        match error.kind {
            WorkerErrorKind::NotFound => Self::NotFound(message),
            WorkerErrorKind::InvalidArgument => Self::InvalidArgument(message),
            WorkerErrorKind::FailedPrecondition => Self::FailedPrecondition(message),
            WorkerErrorKind::ResourceExhausted => Self::ResourceExhausted(message),
            WorkerErrorKind::Unsupported => Self::Unsupported(message),
            WorkerErrorKind::Internal => Self::Internal(message),
        }
    }
}

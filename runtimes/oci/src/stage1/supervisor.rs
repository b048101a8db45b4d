//! The supervisor's loop: what happens on the pod's socket, to its children and in their output.
//!
//! ```text
//!  Create ─▶ Creating ── Ready ──▶ Created ─ Start ─▶ Starting ── executed ──▶ Running ─ exit ─▶ Exited ─ Remove ─▶
//!               └─ Failed: gone                          └─ Failed ──────────────────────────────▲
//! ```
//!
//! Nothing here waits for one thing alone: a child that sets up, a client that is slow and an app that
//! writes are all descriptors in one `poll`. A container's output waits for an attached client that is
//! slow (as in containerd), the others' does not.

mod connections;
mod containers;
mod execs;
mod exits;
mod streams;

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    rc::Rc,
    time::SystemTime,
};

use nix::{
    sys::wait::{WaitPidFlag, WaitStatus},
    unistd::Pid,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use wherry_log::{LineCutter, LogStream};
use wherry_runtime_api::{ContainerExit, ContainerState};

use super::{Parts, log::Log, namespaces::fork_into};
use crate::{
    bundle::{self, StartFile},
    protocol::{
        self, ContainerRecord, CreateContainer, ExecProcess, FailureKind, Identity, Op, Reply,
        Request, Response, Stage2Message, VERSION,
    },
    stage2, sys,
};

/// Read from an app at once.
const READ_BYTES: usize = 16 * 1024;
/// Kubernetes' exit code for a container that could not be started.
const EXIT_CODE_START_ERROR: i32 = 128;

/// Serves until the sandbox is shut down.
pub(super) fn run(parts: Parts) {
    let mut supervisor = Supervisor {
        parts,
        connections: Vec::new(),
        containers: Vec::new(),
        execs: Vec::new(),
        next_key: 0,
        shutdown: None,
        buffer: vec![0; READ_BYTES],
    };
    while !supervisor.is_done() {
        if let Err(error) = supervisor.turn() {
            eprintln!("{error}");
        }
    }
}

struct Supervisor {
    parts: Parts,
    connections: Vec<Connection>,
    containers: Vec<Container>,
    execs: Vec<Exec>,
    /// Numbers connections and containers.
    next_key: u64,
    /// Who asked for the end.
    shutdown: Option<u64>,
    buffer: Vec<u8>,
}

struct Connection {
    id: u64,
    socket: OwnedFd,
    role: Role,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Role {
    /// Has asked nothing that goes on.
    Idle,
    Watch,
    /// Ends with the command of this process.
    Exec(i32),
    /// Attached to this container.
    Attach {
        container: String,
        has_stdin: bool,
    },
}

struct Container {
    /// Unlike its process ID it never comes again.
    key: u64,
    config: CreateContainer,
    /// Its process namespace is its own, or that of the container it was made beside.
    has_pid_namespace: bool,
    record: ContainerRecord,
    identity: Identity,
    /// To stage 2, until the app is executed.
    stage2: Option<OwnedFd>,
    phase: Phase,
    /// Who waits for stage 2.
    waiting: Vec<u64>,
    stdin: Option<Rc<OwnedFd>>,
    terminal: Option<Rc<OwnedFd>>,
    streams: Vec<Stream>,
    log: Log,
    start_failure: Option<String>,
    /// How many of its processes the kernel had killed for want of memory when it was killed on request.
    oom_kills_before: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Creating,
    Created,
    Starting,
    Running,
    Exited,
}

/// Output of an app.
struct Stream {
    source: LogStream,
    fd: Rc<OwnedFd>,
    cutter: LineCutter,
    sinks: Vec<Sink>,
}

/// An attached client's end of a stream.
struct Sink {
    connection: u64,
    fd: OwnedFd,
    pending: Vec<u8>,
}

struct Exec {
    pid: i32,
    connection: u64,
    /// To stage 2, until the command is executed.
    stage2: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

/// What a descriptor in the poll set is.
#[derive(Clone, Copy)]
enum Origin {
    Listener,
    Children,
    Connection(u64),
    ContainerStage2(u64),
    ExecStage2(i32),
    Stream { container: u64, fd: RawFd },
    Sink { container: u64, fd: RawFd },
}

impl Supervisor {
    fn is_done(&self) -> bool {
        self.shutdown.is_some()
            && self
                .containers
                .iter()
                .all(|container| container.phase == Phase::Exited)
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut fds: Vec<libc::pollfd> = Vec::with_capacity(8);
        let mut sources: Vec<Origin> = Vec::with_capacity(8);
        let mut watch = |fd: RawFd, events: libc::c_short, source| {
            fds.push(libc::pollfd {
                fd,
                events,
                revents: 0,
            });
            sources.push(source);
        };
        watch(
            self.parts.listener.as_raw_fd(),
            libc::POLLIN,
            Origin::Listener,
        );
        watch(
            self.parts.children.as_raw_fd(),
            libc::POLLIN,
            Origin::Children,
        );
        for connection in &self.connections {
            watch(
                connection.socket.as_raw_fd(),
                libc::POLLIN,
                Origin::Connection(connection.id),
            );
        }
        for container in &self.containers {
            let key = container.key;
            if let Some(stage2) = &container.stage2 {
                watch(
                    stage2.as_raw_fd(),
                    libc::POLLIN,
                    Origin::ContainerStage2(key),
                );
            }
            for stream in &container.streams {
                let fd = stream.fd.as_raw_fd();
                let mut is_held_up = false;
                for sink in stream.sinks.iter().filter(|sink| !sink.pending.is_empty()) {
                    is_held_up = true;
                    watch(
                        sink.fd.as_raw_fd(),
                        libc::POLLOUT,
                        Origin::Sink { container: key, fd },
                    );
                }
                if !is_held_up {
                    watch(fd, libc::POLLIN, Origin::Stream { container: key, fd });
                }
            }
        }
        for exec in &self.execs {
            if let Some(stage2) = &exec.stage2 {
                watch(
                    stage2.as_raw_fd(),
                    libc::POLLIN,
                    Origin::ExecStage2(exec.pid),
                );
            }
        }
        sys::poll(&mut fds)?;
        let ready: Vec<Origin> = fds
            .iter()
            .zip(sources)
            .filter(|(fd, _)| fd.revents != 0)
            .map(|(_, source)| source)
            .collect();
        drop(fds);
        let mut have_children_ended = false;
        for source in ready {
            match source {
                Origin::Listener => self.accept(),
                // Last, so that what a child said before it ended is heard first.
                Origin::Children => have_children_ended = true,
                Origin::Connection(id) => self.serve(id),
                Origin::ContainerStage2(key) => self.hear_container(key),
                Origin::ExecStage2(pid) => self.hear_exec(pid),
                Origin::Stream { container, fd } => {
                    self.copy(container, fd);
                }
                Origin::Sink { container, fd } => self.drain_sinks(container, fd),
            }
        }
        if have_children_ended {
            self.reap();
        }
        Ok(())
    }

    fn new_key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    // Clients.

    // Containers.

    // Exec and attach.

    // Output.

    // Ends.
}

fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

fn kind_of(error: &io::Error) -> FailureKind {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::ENOMEM | libc::EAGAIN | libc::EMFILE | libc::ENFILE) => {
            FailureKind::ResourceExhausted
        }
        _ => FailureKind::Internal,
    }
}

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
use wherry_runtime_api::{ContainerExit, ContainerState};

use super::{
    Parts,
    log::{Log, PartialLine, Source},
    namespaces::fork_into,
};
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
    source: Source,
    fd: Rc<OwnedFd>,
    partial: PartialLine,
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

    fn accept(&mut self) {
        match rustix::net::accept_with(
            &self.parts.listener,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        ) {
            Ok(socket) => {
                let id = self.new_key();
                self.connections.push(Connection {
                    id,
                    socket,
                    role: Role::Idle,
                });
            }
            Err(error) if error == rustix::io::Errno::AGAIN => {}
            Err(error) => eprintln!("accept: {error}"),
        }
    }

    fn serve(&mut self, id: u64) {
        let Some(connection) = self
            .connections
            .iter()
            .find(|connection| connection.id == id)
        else {
            return;
        };
        match protocol::receive_bytes(&connection.socket) {
            Ok(Some((bytes, fds))) => match serde_json::from_slice::<Request>(&bytes) {
                Ok(request) => self.answer(id, request.op, fds),
                Err(error) => self.fail(
                    id,
                    FailureKind::Unsupported,
                    format!("this pod's supervisor speaks version {VERSION} and does not understand: {error}"),
                ),
            },
            Ok(None) => self.close(id),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.close(id),
        }
    }

    fn close(&mut self, id: u64) {
        let Some(index) = self
            .connections
            .iter()
            .position(|connection| connection.id == id)
        else {
            return;
        };
        let connection = self.connections.swap_remove(index);
        for container in &mut self.containers {
            for stream in &mut container.streams {
                stream.sinks.retain(|sink| sink.connection != id);
            }
        }
        match connection.role {
            Role::Exec(pid) => {
                use nix::sys::signal::{Signal::SIGKILL, kill, killpg};
                let pid = Pid::from_raw(pid);
                // On its way into the container it leads no session yet, and has started nothing.
                let _ = kill(pid, SIGKILL);
                // Later this reaches what it started, unless that left the group.
                let _ = killpg(pid, SIGKILL);
            }
            Role::Attach {
                container,
                has_stdin,
            } if has_stdin => self.close_stdin(&container),
            _ => {}
        }
    }

    fn close_stdin(&mut self, id: &str) {
        if let Some(container) = self.container(id)
            && container.config.stdin_once
            && !container.config.tty
        {
            container.stdin = None;
        }
    }

    fn reply(&mut self, id: u64, reply: Reply, fds: &[&OwnedFd]) {
        let Some(connection) = self
            .connections
            .iter()
            .find(|connection| connection.id == id)
        else {
            return;
        };
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        if let Err(error) = protocol::send(
            &connection.socket,
            &Response {
                version: VERSION,
                reply,
            },
            &borrowed,
        ) {
            // Also a watcher that does not keep up: it comes back and gets the present state.
            if error.kind() != io::ErrorKind::BrokenPipe {
                eprintln!("reply: {error}");
            }
            self.close(id);
        }
    }

    fn fail(&mut self, id: u64, kind: FailureKind, message: impl Into<String>) {
        self.reply(
            id,
            Reply::Failed {
                kind,
                message: message.into(),
            },
            &[],
        );
    }

    fn broadcast(&mut self, record: &ContainerRecord) {
        let watchers: Vec<u64> = self
            .connections
            .iter()
            .filter(|connection| connection.role == Role::Watch)
            .map(|connection| connection.id)
            .collect();
        for id in watchers {
            self.reply(id, Reply::Container(record.clone()), &[]);
        }
    }

    fn set_role(&mut self, id: u64, role: Role) {
        if let Some(connection) = self
            .connections
            .iter_mut()
            .find(|connection| connection.id == id)
        {
            connection.role = role;
        }
    }

    fn answer(&mut self, id: u64, op: Op, fds: Vec<OwnedFd>) {
        match op {
            Op::Watch => {
                self.reply(
                    id,
                    Reply::Sandbox {
                        pid: std::process::id() as i32,
                    },
                    &[],
                );
                let records: Vec<ContainerRecord> = self
                    .containers
                    .iter()
                    .filter(|container| container.phase != Phase::Creating)
                    .map(|container| container.record.clone())
                    .collect();
                for record in records {
                    self.reply(id, Reply::Container(record), &[]);
                }
                self.reply(id, Reply::Present, &[]);
                self.set_role(id, Role::Watch);
            }
            Op::Create(config) => self.create(id, config, None),
            Op::CreateBeside { container, target } => self.create(id, container, Some(target)),
            Op::Start { id: container } => self.start(id, &container),
            Op::Signal {
                id: container,
                signal,
                all,
            } => self.signal(id, &container, signal, all),
            Op::Remove { id: container } => self.remove(id, &container),
            Op::Exec(exec) => self.exec(id, &exec, fds),
            Op::Attach {
                id: container,
                stdin,
                stdout,
                stderr,
            } => {
                self.attach(id, container, [stdin, stdout, stderr], fds);
            }
            Op::Resize { width, height } => {
                if let Some(Connection {
                    role: Role::Attach { container, .. },
                    ..
                }) = self
                    .connections
                    .iter()
                    .find(|connection| connection.id == id)
                    && let Some(Container {
                        terminal: Some(terminal),
                        ..
                    }) = self
                        .containers
                        .iter()
                        .find(|known| known.config.id == *container)
                {
                    let _ = sys::set_terminal_size(terminal.as_fd(), width, height);
                }
            }
            Op::CloseStdin => {
                if let Some(connection) = self
                    .connections
                    .iter_mut()
                    .find(|connection| connection.id == id)
                    && let Role::Attach {
                        container,
                        has_stdin,
                    } = &mut connection.role
                    && std::mem::take(has_stdin)
                {
                    let container = container.clone();
                    self.close_stdin(&container);
                }
            }
            Op::Socket { ipv6 } => self.socket(id, ipv6),
            Op::ReopenLog { id: container } => {
                match self.container(&container).map(|found| found.log.reopen()) {
                    Some(Ok(())) => self.reply(id, Reply::Done, &[]),
                    Some(Err(error)) => {
                        self.fail(id, FailureKind::Internal, format!("reopen log: {error}"))
                    }
                    None => self.fail(id, FailureKind::NotFound, format!("container {container}")),
                }
            }
            Op::Shutdown => {
                self.shutdown = Some(id);
                for index in 0..self.containers.len() {
                    self.kill_all(index);
                }
            }
        }
    }

    fn socket(&mut self, id: u64, ipv6: bool) {
        let family = if ipv6 {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        match rustix::net::socket_with(
            family,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        ) {
            Ok(socket) => self.reply(id, Reply::Done, &[&socket]),
            Err(error) => self.fail(id, FailureKind::Internal, format!("socket: {error}")),
        }
    }

    // Containers.

    fn container(&mut self, id: &str) -> Option<&mut Container> {
        self.containers
            .iter_mut()
            .find(|container| container.config.id == id)
    }

    fn create(&mut self, id: u64, config: CreateContainer, beside: Option<String>) {
        if self.shutdown.is_some() {
            return self.fail(
                id,
                FailureKind::FailedPrecondition,
                "the sandbox is being stopped",
            );
        }
        if let Some(container) = self.container(&config.id) {
            if container.phase == Phase::Creating {
                // Two agents in a row asked, or one twice.
                container.waiting.push(id);
                return;
            }
            let record = container.record.clone();
            return self.reply(id, Reply::Container(record), &[]);
        }
        let target = match beside
            .map(|target| self.pid_namespace_of(&target))
            .transpose()
        {
            Ok(target) => target.flatten(),
            Err(message) => return self.fail(id, FailureKind::FailedPrecondition, message),
        };
        match self.fork_container(config, target) {
            Ok(mut container) => {
                container.waiting.push(id);
                self.containers.push(container);
            }
            Err(error) => self.fail(id, kind_of(&error), error.to_string()),
        }
    }

    /// The process namespace of a running container, if it is not the one that all share.
    fn pid_namespace_of(&self, id: &str) -> Result<Option<fs::File>, String> {
        let found = self
            .containers
            .iter()
            .find(|container| container.config.id == id && container.phase == Phase::Running);
        let Some((container, pid)) =
            found.and_then(|container| Some((container, container.record.pid?)))
        else {
            return Err(format!("target container {id} is not running"));
        };
        if !container.has_pid_namespace {
            return Ok(None);
        }
        fs::File::open(format!("/proc/{pid}/ns/pid"))
            .map(Some)
            .map_err(|error| format!("target container {id}: {error}"))
    }

    fn fork_container(
        &mut self,
        config: CreateContainer,
        pid_namespace: Option<fs::File>,
    ) -> io::Result<Container> {
        let log = Log::open(&config.log_path, config.log_rotation).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{}: {error}", config.log_path.display()),
            )
        })?;
        let (stage2, theirs) = socket_pair()?;
        let mut streams = Vec::new();
        let (mut stdin, mut their_stdin) = (None, None);
        let mut their_output = Vec::new();
        if !config.tty {
            if config.stdin {
                let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                rustix::io::ioctl_fionbio(&write, true)?;
                stdin = Some(Rc::new(write));
                their_stdin = Some(read);
            }
            for source in [Source::Stdout, Source::Stderr] {
                let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                rustix::io::ioctl_fionbio(&read, true)?;
                their_output.push(write);
                streams.push(Stream::new(source, Rc::new(read)));
            }
        }
        let has_pid_namespace = config.own_pid_namespace || pid_namespace.is_some();
        let mut namespaces = libc::CLONE_NEWNS;
        if config.own_pid_namespace && pid_namespace.is_none() {
            namespaces |= libc::CLONE_NEWPID;
        }
        let home = &self.parts.namespaces.pid_for_children;
        let pid = fork_into(pid_namespace, home, namespaces)?;
        if pid == 0 {
            stage2::init(stage2::InitArguments {
                directory: config.directory,
                tty: config.tty,
                cgroups: self.parts.cgroups.clone(),
                stage1: theirs,
                stdin: their_stdin,
                output: their_output,
                shm: self.parts.shm.as_ref().map(|shm| {
                    let (fd, kind) = shm.parts();
                    (fd.as_raw_fd(), kind)
                }),
                user_namespace: self.parts.namespaces.user.as_ref().map(AsRawFd::as_raw_fd),
            });
        }
        let record = ContainerRecord {
            id: config.id.clone(),
            pid: Some(pid),
            state: ContainerState::Created,
            warnings: Vec::new(),
        };
        Ok(Container {
            key: self.new_key(),
            config,
            has_pid_namespace,
            record,
            identity: Identity::default(),
            stage2: Some(stage2),
            phase: Phase::Creating,
            waiting: Vec::new(),
            stdin,
            terminal: None,
            streams,
            log,
            start_failure: None,
            oom_kills_before: 0,
        })
    }

    fn start(&mut self, id: u64, container_id: &str) {
        let Some(container) = self.container(container_id) else {
            return self.fail(
                id,
                FailureKind::NotFound,
                format!("container {container_id}"),
            );
        };
        match container.phase {
            Phase::Creating => {
                self.fail(
                    id,
                    FailureKind::FailedPrecondition,
                    "the container is still being created",
                );
            }
            Phase::Created => {
                container.phase = Phase::Starting;
                container.waiting.push(id);
                if let Some(stage2) = &container.stage2 {
                    // If it is gone, its end is on the way.
                    let _ = rustix::net::send(stage2, b"go", rustix::net::SendFlags::NOSIGNAL);
                }
            }
            Phase::Starting => container.waiting.push(id),
            Phase::Running | Phase::Exited => {
                let record = container.record.clone();
                self.reply(id, Reply::Container(record), &[]);
            }
        }
    }

    /// Something from stage 2 of a container, or its end of file: the app has been executed.
    fn hear_container(&mut self, key: u64) {
        let Some(container) = self
            .containers
            .iter_mut()
            .find(|container| container.key == key)
        else {
            return;
        };
        let Some(stage2) = &container.stage2 else {
            return;
        };
        let message = match protocol::receive::<Stage2Message>(stage2) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => Err(error),
            Ok(message) => Ok(message),
        };
        match (container.phase, message) {
            (Phase::Creating, Ok(Some((Stage2Message::Ready { identity, warnings }, fds)))) => {
                container.phase = Phase::Created;
                container.identity = identity;
                container.record.warnings = warnings;
                if let Some(terminal) = fds.into_iter().next() {
                    let _ = rustix::io::ioctl_fionbio(&terminal, true);
                    let terminal = Rc::new(terminal);
                    container
                        .streams
                        .push(Stream::new(Source::Stdout, terminal.clone()));
                    container.terminal = Some(terminal);
                }
                let record = container.record.clone();
                for waiting in std::mem::take(&mut container.waiting) {
                    self.reply(waiting, Reply::Container(record.clone()), &[]);
                }
                self.broadcast(&record);
            }
            (Phase::Creating, failure) => {
                let (kind, text) = match failure {
                    Ok(Some((Stage2Message::Failed { kind, message }, _))) => (kind, message),
                    Ok(_) => (
                        FailureKind::Internal,
                        "the container's first process ended while it was set up".into(),
                    ),
                    Err(error) => (FailureKind::Internal, error.to_string()),
                };
                // Never created, so there is nothing to remember; the process is reaped as a stranger.
                let waiting = std::mem::take(&mut container.waiting);
                if let Some(pid) = container.record.pid {
                    let _ = nix::sys::signal::kill(
                        Pid::from_raw(pid),
                        nix::sys::signal::Signal::SIGKILL,
                    );
                }
                self.containers.retain(|container| container.key != key);
                for waiting in waiting {
                    self.fail(waiting, kind, text.as_str());
                }
            }
            (Phase::Starting, Ok(None)) => {
                container.stage2 = None;
                container.phase = Phase::Running;
                let started_at = SystemTime::now();
                container.record.state = ContainerState::Running { started_at };
                let file = container.config.directory.join("start.json");
                if let Err(error) = bundle::write(&file, &StartFile { started_at }) {
                    eprintln!("{}: {error}", file.display());
                }
                let record = container.record.clone();
                let waiting = std::mem::take(&mut container.waiting);
                self.broadcast(&record);
                for waiting in waiting {
                    self.reply(waiting, Reply::Container(record.clone()), &[]);
                }
            }
            (Phase::Starting, Ok(Some((Stage2Message::Failed { kind, message }, _)))) => {
                container.stage2 = None;
                container.start_failure = Some(message.clone());
                for waiting in std::mem::take(&mut container.waiting) {
                    self.fail(waiting, kind, message.as_str());
                }
            }
            // Its end, before it was told to go on or while it was being executed: reap() says how.
            _ => container.stage2 = None,
        }
    }

    fn signal(&mut self, id: u64, container_id: &str, signal: i32, all: bool) {
        let Some(index) = self
            .containers
            .iter()
            .position(|container| container.config.id == container_id)
        else {
            return self.fail(
                id,
                FailureKind::NotFound,
                format!("container {container_id}"),
            );
        };
        let container = &self.containers[index];
        if container.phase != Phase::Exited {
            if all && signal == libc::SIGKILL {
                self.kill_all(index);
            } else if let (Some(pid), Ok(signal)) = (
                container.record.pid,
                nix::sys::signal::Signal::try_from(signal),
            ) {
                // Not reaped yet, so the number is still this process'.
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
            } else if let Some(pid) = container.record.pid {
                // SAFETY: sends a real-time signal, which the enumeration above does not have.
                unsafe { libc::kill(pid, signal) };
            }
        }
        self.reply(id, Reply::Done, &[]);
    }

    fn kill_all(&mut self, index: usize) {
        let container = &self.containers[index];
        if container.phase == Phase::Exited {
            return;
        }
        let group = self.parts.cgroups.group(&container.config.cgroup);
        let oom_kills = group.oom_kills();
        if let Some(pid) = container.record.pid {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        if !container.config.own_pid_namespace {
            group.kill();
        }
        self.containers[index].oom_kills_before = oom_kills;
    }

    fn remove(&mut self, id: u64, container_id: &str) {
        match self
            .containers
            .iter()
            .position(|container| container.config.id == container_id)
        {
            Some(index) if self.containers[index].phase == Phase::Exited => {
                self.containers.swap_remove(index);
                self.reply(id, Reply::Done, &[]);
            }
            Some(_) => self.fail(
                id,
                FailureKind::FailedPrecondition,
                format!("container {container_id} is running"),
            ),
            None => self.reply(id, Reply::Done, &[]),
        }
    }

    // Exec and attach.

    fn exec(&mut self, id: u64, exec: &ExecProcess, fds: Vec<OwnedFd>) {
        let Some(container) = self
            .containers
            .iter()
            .find(|container| container.config.id == exec.id)
        else {
            return self.fail(id, FailureKind::NotFound, format!("container {}", exec.id));
        };
        if container.phase != Phase::Running {
            let message = format!("container {} is not running", exec.id);
            return self.fail(id, FailureKind::FailedPrecondition, message);
        }
        match self.fork_exec(container, exec, fds) {
            Ok((pid, stage2)) => {
                self.execs.push(Exec {
                    pid,
                    connection: id,
                    stage2: Some(stage2),
                    terminal: None,
                });
                self.set_role(id, Role::Exec(pid));
            }
            Err(error) => self.fail(id, kind_of(&error), format!("exec: {error}")),
        }
    }

    fn fork_exec(
        &self,
        container: &Container,
        exec: &ExecProcess,
        fds: Vec<OwnedFd>,
    ) -> io::Result<(i32, OwnedFd)> {
        let target = container.record.pid.ok_or(io::ErrorKind::NotFound)?;
        let (stage2, theirs) = socket_pair()?;
        let namespace = container
            .has_pid_namespace
            .then(|| fs::File::open(format!("/proc/{target}/ns/pid")))
            .transpose()?;
        let home = &self.parts.namespaces.pid_for_children;
        let pid = fork_into(namespace, home, 0)?;
        if pid == 0 {
            let mut fds = fds.into_iter();
            let mut next = |is_wanted: bool| {
                if is_wanted && !exec.tty {
                    fds.next()
                } else {
                    None
                }
            };
            stage2::exec(stage2::ExecArguments {
                directory: container.config.directory.clone(),
                args: exec.args.clone(),
                tty: exec.tty,
                cgroups: self.parts.cgroups.clone(),
                identity: container.identity.clone(),
                target,
                stage1: theirs,
                stdin: next(exec.stdin),
                stdout: next(exec.stdout),
                stderr: next(exec.stderr),
            });
        }
        Ok((pid, stage2))
    }

    fn hear_exec(&mut self, pid: i32) {
        let Some(exec) = self.execs.iter_mut().find(|exec| exec.pid == pid) else {
            return;
        };
        let (Some(stage2), connection) = (&exec.stage2, exec.connection) else {
            return;
        };
        match protocol::receive::<Stage2Message>(stage2) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(Some((Stage2Message::Ready { .. }, fds))) => {
                exec.terminal = fds.into_iter().next();
                let _ = rustix::net::send(stage2, b"go", rustix::net::SendFlags::NOSIGNAL);
            }
            Ok(Some((Stage2Message::Failed { kind, message }, _))) => {
                exec.stage2 = None;
                self.fail(connection, kind, message);
            }
            Ok(None) => {
                exec.stage2 = None;
                let terminal = exec.terminal.take();
                let fds: Vec<&OwnedFd> = terminal.iter().collect();
                self.reply(connection, Reply::Started { pid }, &fds);
            }
            Err(error) => {
                exec.stage2 = None;
                self.fail(connection, FailureKind::Internal, error.to_string());
            }
        }
    }

    fn attach(
        &mut self,
        id: u64,
        container_id: String,
        [stdin, stdout, stderr]: [bool; 3],
        fds: Vec<OwnedFd>,
    ) {
        let Some(container) = self
            .containers
            .iter_mut()
            .find(|container| container.config.id == container_id)
        else {
            return self.fail(
                id,
                FailureKind::NotFound,
                format!("container {container_id}"),
            );
        };
        if !matches!(
            container.phase,
            Phase::Created | Phase::Starting | Phase::Running
        ) {
            let message = format!("container {container_id} is not running");
            return self.fail(id, FailureKind::FailedPrecondition, message);
        }
        let mut fds = fds.into_iter();
        for (is_wanted, source) in [(stdout, Source::Stdout), (stderr, Source::Stderr)] {
            if !is_wanted {
                continue;
            }
            let Some(fd) = fds.next() else { continue };
            let _ = rustix::io::ioctl_fionbio(&fd, true);
            if let Some(stream) = container
                .streams
                .iter_mut()
                .find(|stream| stream.source == source)
            {
                stream.sinks.push(Sink {
                    connection: id,
                    fd,
                    pending: Vec::new(),
                });
            }
        }
        let input = if stdin {
            container
                .terminal
                .clone()
                .or_else(|| container.stdin.clone())
        } else {
            None
        };
        let pid = container.record.pid.unwrap_or(0);
        self.set_role(
            id,
            Role::Attach {
                container: container_id,
                has_stdin: input.is_some(),
            },
        );
        let fds: Vec<&OwnedFd> = input.iter().map(|fd| &**fd).collect();
        self.reply(id, Reply::Started { pid }, &fds);
    }

    // Output.

    /// Copies what an app has written to its log and to who is attached. Answers whether there may be more.
    fn copy(&mut self, key: u64, fd: RawFd) -> bool {
        let Some(container) = self
            .containers
            .iter_mut()
            .find(|container| container.key == key)
        else {
            return false;
        };
        let Container { streams, log, .. } = container;
        let Some(stream) = streams
            .iter_mut()
            .find(|stream| stream.fd.as_raw_fd() == fd)
        else {
            return false;
        };
        match rustix::io::read(&*stream.fd, &mut self.buffer[..]) {
            Ok(count) if count > 0 => {
                let bytes = &self.buffer[..count];
                log.append(stream.source, &mut stream.partial, bytes, SystemTime::now());
                for sink in &mut stream.sinks {
                    sink.pending.extend_from_slice(bytes);
                }
                stream.drain_sinks();
                true
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            // Nobody has the other end any more; a terminal says EIO.
            Ok(_) | Err(_) => {
                log.finish(stream.source, &mut stream.partial, SystemTime::now());
                // A slow client still gets the rest; then this is found out again.
                streams.retain(|stream| stream.fd.as_raw_fd() != fd || stream.is_held_up());
                false
            }
        }
    }

    fn drain_sinks(&mut self, key: u64, fd: RawFd) {
        for container in self
            .containers
            .iter_mut()
            .filter(|container| container.key == key)
        {
            for stream in container
                .streams
                .iter_mut()
                .filter(|stream| stream.fd.as_raw_fd() == fd)
            {
                stream.drain_sinks();
            }
        }
    }

    // Ends.

    fn reap(&mut self) {
        // What exactly is queued does not matter: several ends may share one signal.
        let mut discarded = [0; 512];
        while rustix::io::read(&self.parts.children, &mut discarded).is_ok_and(|count| count > 0) {}
        loop {
            match nix::sys::wait::waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.ended(pid.as_raw(), code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    let signal = signal as i32;
                    self.ended(pid.as_raw(), 128 + signal, Some(signal));
                }
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                // A real-time signal has no name in nix's enumeration, and the process is reaped all the same.
                Ok(_) | Err(nix::errno::Errno::EINVAL) => {}
                Err(_) => return,
            }
        }
    }

    fn ended(&mut self, pid: i32, exit_code: i32, signal: Option<i32>) {
        // It may have said something, or have been executed, since it was last listened to: twice at most.
        if self.execs.iter().any(|exec| exec.pid == pid) {
            self.hear_exec(pid);
            self.hear_exec(pid);
            self.execs.retain(|exec| exec.pid != pid);
            let connection = self
                .connections
                .iter()
                .find(|known| known.role == Role::Exec(pid))
                .map(|known| known.id);
            if let Some(connection) = connection {
                self.set_role(connection, Role::Idle);
                self.reply(connection, Reply::Exited { exit_code }, &[]);
            }
            return;
        }
        let Some(key) = self
            .containers
            .iter()
            .find(|container| container.record.pid == Some(pid))
            .map(|container| container.key)
        else {
            return;
        };
        self.hear_container(key);
        self.hear_container(key);
        let Some(index) = self
            .containers
            .iter()
            .position(|container| container.key == key)
        else {
            return;
        };
        let group = self
            .parts
            .cgroups
            .group(&self.containers[index].config.cgroup);
        if !self.containers[index].config.own_pid_namespace {
            group.kill();
        }
        // Not if it was killed on request and only some child of it for memory, some time before; nor if it coped.
        let oom_killed =
            exit_code != 0 && group.oom_kills() > self.containers[index].oom_kills_before;
        // All it wrote is in the pipes: with a process namespace of its own, nobody is left to write.
        let streams: Vec<RawFd> = self.containers[index]
            .streams
            .iter()
            .map(|stream| stream.fd.as_raw_fd())
            .collect();
        for fd in streams {
            while self.copy(key, fd) {}
        }
        let container = &mut self.containers[index];
        let started_at = match container.record.state {
            ContainerState::Running { started_at } => Some(started_at),
            _ => None,
        };
        let message = container.start_failure.take();
        let exit = ContainerExit {
            started_at,
            finished_at: SystemTime::now(),
            exit_code: if message.is_some() {
                EXIT_CODE_START_ERROR
            } else {
                exit_code
            },
            signal: if message.is_some() { None } else { signal },
            oom_killed,
            message,
        };
        let file = container.config.directory.join("exit.json");
        if let Err(error) = bundle::write(&file, &exit) {
            eprintln!("{}: {error}", file.display());
        }
        container.phase = Phase::Exited;
        container.stage2 = None;
        container.stdin = None;
        container.terminal = None;
        // Not this process' any more: the number may come again.
        container.record.pid = None;
        container.record.state = ContainerState::Exited(exit.clone());
        for stream in &mut container.streams {
            container
                .log
                .finish(stream.source, &mut stream.partial, SystemTime::now());
        }
        container.streams.retain(Stream::is_held_up);
        let record = container.record.clone();
        let waiting = std::mem::take(&mut container.waiting);
        self.broadcast(&record);
        for waiting in waiting {
            self.reply(waiting, Reply::Container(record.clone()), &[]);
        }
        let attached: Vec<u64> = self
            .connections
            .iter()
            .filter(|known| matches!(&known.role, Role::Attach { container, .. } if *container == record.id))
            .map(|known| known.id)
            .collect();
        for connection in attached {
            self.set_role(connection, Role::Idle);
            self.reply(
                connection,
                Reply::Exited {
                    exit_code: exit.exit_code,
                },
                &[],
            );
        }
    }
}

impl Stream {
    fn new(source: Source, fd: Rc<OwnedFd>) -> Self {
        Self {
            source,
            fd,
            partial: PartialLine::default(),
            sinks: Vec::new(),
        }
    }

    /// Whether an attached client has not taken all yet.
    fn is_held_up(&self) -> bool {
        self.sinks.iter().any(|sink| !sink.pending.is_empty())
    }

    /// Writes what sinks take. One that is closed is forgotten.
    fn drain_sinks(&mut self) {
        self.sinks.retain_mut(|sink| {
            while !sink.pending.is_empty() {
                match rustix::io::write(&sink.fd, &sink.pending) {
                    Ok(count) => drop(sink.pending.drain(..count)),
                    Err(rustix::io::Errno::AGAIN) => return true,
                    Err(_) => return false,
                }
            }
            sink.pending = Vec::new();
            true
        });
    }
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

//! Containers from their creation to their removal.

use super::*;

impl Supervisor {
    pub(super) fn container(&mut self, id: &str) -> Option<&mut Container> {
        self.containers
            .iter_mut()
            .find(|container| container.config.id == id)
    }

    pub(super) fn create(&mut self, id: u64, config: CreateContainer, beside: Option<String>) {
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
    pub(super) fn pid_namespace_of(&self, id: &str) -> Result<Option<fs::File>, String> {
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

    pub(super) fn fork_container(
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
            for source in [LogStream::Stdout, LogStream::Stderr] {
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

    pub(super) fn start(&mut self, id: u64, container_id: &str) {
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
    pub(super) fn hear_container(&mut self, key: u64) {
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
                        .push(Stream::new(LogStream::Stdout, terminal.clone()));
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

    pub(super) fn signal(&mut self, id: u64, container_id: &str, signal: i32, all: bool) {
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

    pub(super) fn kill_all(&mut self, index: usize) {
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

    pub(super) fn remove(&mut self, id: u64, container_id: &str) {
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
}

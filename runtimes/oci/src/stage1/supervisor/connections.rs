//! Clients on the pod's socket: what they ask, and what they are told.

use super::*;

impl Supervisor {
    pub(super) fn accept(&mut self) {
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

    pub(super) fn serve(&mut self, id: u64) {
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

    pub(super) fn close(&mut self, id: u64) {
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

    pub(super) fn close_stdin(&mut self, id: &str) {
        if let Some(container) = self.container(id)
            && container.config.stdin_once
            && !container.config.tty
        {
            container.stdin = None;
        }
    }

    pub(super) fn reply(&mut self, id: u64, reply: Reply, fds: &[&OwnedFd]) {
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

    pub(super) fn fail(&mut self, id: u64, kind: FailureKind, message: impl Into<String>) {
        self.reply(
            id,
            Reply::Failed {
                kind,
                message: message.into(),
            },
            &[],
        );
    }

    pub(super) fn broadcast(&mut self, record: &ContainerRecord) {
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

    pub(super) fn set_role(&mut self, id: u64, role: Role) {
        if let Some(connection) = self
            .connections
            .iter_mut()
            .find(|connection| connection.id == id)
        {
            connection.role = role;
        }
    }

    pub(super) fn answer(&mut self, id: u64, op: Op, fds: Vec<OwnedFd>) {
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

    pub(super) fn socket(&mut self, id: u64, ipv6: bool) {
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
}

//! Commands that run beside apps.

use super::*;

impl Supervisor {
    pub(super) fn exec(&mut self, id: u64, exec: &ExecProcess, fds: Vec<OwnedFd>) {
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

    pub(super) fn fork_exec(
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

    pub(super) fn hear_exec(&mut self, pid: i32) {
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
}

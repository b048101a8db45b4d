//! Children that have ended.

use super::*;

impl Supervisor {
    pub(super) fn reap(&mut self) {
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

    pub(super) fn ended(&mut self, pid: i32, exit_code: i32, signal: Option<i32>) {
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
                .finish(stream.source, &mut stream.cutter, SystemTime::now());
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

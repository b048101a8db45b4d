//! Output of apps: to their logs and to attached clients.

use super::*;

impl Supervisor {
    pub(super) fn attach(
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
        for (is_wanted, source) in [(stdout, LogStream::Stdout), (stderr, LogStream::Stderr)] {
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

    /// Copies what an app has written to its log and to who is attached. Answers whether there may be more.
    pub(super) fn copy(&mut self, key: u64, fd: RawFd) -> bool {
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
                log.append(stream.source, &mut stream.cutter, bytes, SystemTime::now());
                for sink in &mut stream.sinks {
                    sink.pending.extend_from_slice(bytes);
                }
                stream.drain_sinks();
                true
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            // Nobody has the other end any more; a terminal says EIO.
            Ok(_) | Err(_) => {
                log.finish(stream.source, &mut stream.cutter, SystemTime::now());
                // A slow client still gets the rest; then this is found out again.
                streams.retain(|stream| stream.fd.as_raw_fd() != fd || stream.is_held_up());
                false
            }
        }
    }

    pub(super) fn drain_sinks(&mut self, key: u64, fd: RawFd) {
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
}

impl Stream {
    pub(super) fn new(source: LogStream, fd: Rc<OwnedFd>) -> Self {
        Self {
            source,
            fd,
            cutter: LineCutter::default(),
            sinks: Vec::new(),
        }
    }

    /// Whether an attached client has not taken all yet.
    pub(super) fn is_held_up(&self) -> bool {
        self.sinks.iter().any(|sink| !sink.pending.is_empty())
    }

    /// Writes what sinks take. One that is closed is forgotten.
    pub(super) fn drain_sinks(&mut self) {
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

//! Exec and attach: sockets between the agent and a worker, and who ends what.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    sync::Arc,
};

use tokio::{net::UnixStream, sync::mpsc};
use wherry_runtime_api::{ContainerId, RuntimeError, StreamSession, TerminalSize};

use crate::{client::Client, protocol::RequestBody};

/// Terminal sizes on their way to a worker.
const SIZES_MAX: usize = 4;
/// Workers that speak less cannot be told a terminal's size.
const RESIZE_PROTOCOL: u32 = 2;

/// Whose terminal is resized.
pub(crate) struct Resized {
    pub(crate) client: Arc<Client>,
    pub(crate) container: ContainerId,
    pub(crate) exec: Option<u64>,
}

impl Resized {
    async fn follow(self, mut sizes: mpsc::Receiver<TerminalSize>) {
        while let Some(size) = sizes.recv().await {
            if self.client.protocol < RESIZE_PROTOCOL {
                continue;
            }
            let body = RequestBody::Resize {
                id: self.container.to_string(),
                exec: self.exec,
                rows: size.height,
                columns: size.width,
            };
            if let Err(error) = self.client.ask(body, &[]).await {
                tracing::debug!(container = %self.container, %error, "Terminal size not told");
            }
        }
    }
}

/// The two ends of the streams that were asked for.
pub(crate) struct Streams {
    stdin: Option<UnixStream>,
    stdout: Option<UnixStream>,
    stderr: Option<UnixStream>,
    theirs: Vec<OwnedFd>,
}

impl Streams {
    pub(crate) fn open(stdin: bool, stdout: bool, stderr: bool) -> Result<Self, RuntimeError> {
        let mut theirs = Vec::new();
        let mut open = |is_asked: bool| -> io::Result<Option<UnixStream>> {
            if !is_asked {
                return Ok(None);
            }
            let (ours, other) = StdUnixStream::pair()?;
            ours.set_nonblocking(true)?;
            theirs.push(other.into());
            UnixStream::from_std(ours).map(Some)
        };
        let failed = || RuntimeError::io("streams");
        let stdin = open(stdin).map_err(failed())?;
        let stdout = open(stdout).map_err(failed())?;
        let stderr = open(stderr).map_err(failed())?;
        Ok(Self {
            stdin,
            stdout,
            stderr,
            theirs,
        })
    }

    pub(crate) fn theirs(&self) -> Vec<BorrowedFd<'_>> {
        self.theirs.iter().map(AsFd::as_fd).collect()
    }

    /// The session, once the worker has its ends.
    pub(crate) fn into_session(
        self,
        resized: Option<Resized>,
        exit: impl Future<Output = Result<i32, RuntimeError>> + Send + 'static,
    ) -> StreamSession {
        let resize = resized.map(|resized| {
            let (sender, sizes) = mpsc::channel(SIZES_MAX);
            tokio::spawn(resized.follow(sizes));
            sender
        });
        StreamSession {
            stdin: self.stdin.map(|stream| Box::new(stream) as _),
            stdout: self.stdout.map(|stream| Box::new(stream) as _),
            stderr: self.stderr.map(|stream| Box::new(stream) as _),
            resize,
            exit: Box::pin(exit),
        }
    }
}

/// Kills an exec when dropped before its exit was seen.
pub(crate) struct KillOnDrop {
    client: Arc<Client>,
    exec: Option<u64>,
}

impl KillOnDrop {
    pub(crate) fn new(client: Arc<Client>, exec: u64) -> Self {
        Self {
            client,
            exec: Some(exec),
        }
    }

    pub(crate) fn disarm(&mut self) {
        self.exec = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let (Some(exec), Ok(runtime)) = (self.exec, tokio::runtime::Handle::try_current()) {
            let client = self.client.clone();
            runtime.spawn(async move {
                let _ = client.ask(RequestBody::KillExec { exec }, &[]).await;
            });
        }
    }
}

//! Stage 0's side of the pod's socket.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;
use wherry_runtime_api::RuntimeError;

use crate::protocol::{
    self, FailureKind, MESSAGE_BYTES_MAX, Op, Reply, Request, Response, VERSION,
};

/// How long a supervisor may take to answer. Setting up a container's file systems is the longest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to a supervisor.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Connects to the supervisor whose run directory this is.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        // A command line for exec may be longer than the default takes.
        let _ =
            rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, MESSAGE_BYTES_MAX * 2);
        let directory = File::open(directory)?;
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/sock", directory.as_raw_fd()))?;
        rustix::net::connect(&socket, &address)?;
        // SAFETY: an owned descriptor is its own and stays open as long as it is registered.
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Self { socket })
    }

    /// The socket itself.
    pub(crate) fn socket(&self) -> &OwnedFd {
        self.socket.get_ref()
    }

    /// Sends a request.
    pub(crate) async fn send(&self, op: Op, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let request = Request {
            version: VERSION,
            op,
        };
        loop {
            let mut ready = self.socket.writable().await?;
            match ready.try_io(|socket| protocol::send(socket.get_ref(), &request, fds)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Receives a reply; `None` when the supervisor has closed or is gone.
    ///
    /// # Cancel safety
    /// A reply is taken whole or not at all.
    pub(crate) async fn receive(&self) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| protocol::receive::<Response>(socket.get_ref())) {
                Ok(result) => return Ok(result?.map(|(response, fds)| (response.reply, fds))),
                Err(_would_block) => {}
            }
        }
    }

    /// Receives a reply to `what`, which is never the end of the conversation.
    pub(crate) async fn expect(&self, what: &str) -> Result<(Reply, Vec<OwnedFd>), RuntimeError> {
        match self.receive().await {
            Ok(Some((Reply::Failed { kind, message }, _))) => Err(to_error(kind, message)),
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(RuntimeError::Unavailable(format!(
                "{what}: the pod's supervisor is gone"
            ))),
            Err(error) => Err(unreachable_supervisor(what, &error)),
        }
    }
}

/// Asks one thing and waits for the reply.
pub(crate) async fn call(
    directory: &Path,
    what: &str,
    op: Op,
    fds: &[BorrowedFd<'_>],
) -> Result<(Reply, Vec<OwnedFd>, Connection), RuntimeError> {
    let ask = async {
        let connection =
            Connection::open(directory).map_err(|error| unreachable_supervisor(what, &error))?;
        connection
            .send(op, fds)
            .await
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EMSGSIZE) => {
                    RuntimeError::InvalidArgument(format!("{what}: the command line is too long"))
                }
                _ => unreachable_supervisor(what, &error),
            })?;
        let (reply, fds) = connection.expect(what).await?;
        Ok((reply, fds, connection))
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, ask).await {
        Ok(answer) => answer,
        Err(_) => Err(RuntimeError::DeadlineExceeded {
            what: what.to_owned(),
            after: ANSWER_TIMEOUT,
        }),
    }
}

fn unreachable_supervisor(what: &str, error: &io::Error) -> RuntimeError {
    RuntimeError::Unavailable(format!(
        "{what}: the pod's supervisor cannot be reached: {error}"
    ))
}

/// A supervisor's failure as the caller's.
pub(crate) fn to_error(kind: FailureKind, message: String) -> RuntimeError {
    match kind {
        FailureKind::NotFound => RuntimeError::NotFound(message),
        FailureKind::InvalidArgument
        | FailureKind::CommandNotFound
        | FailureKind::CommandNotExecutable => RuntimeError::InvalidArgument(message),
        FailureKind::FailedPrecondition => RuntimeError::FailedPrecondition(message),
        FailureKind::ResourceExhausted => RuntimeError::ResourceExhausted(message),
        FailureKind::Unsupported => RuntimeError::Unsupported(message),
        FailureKind::Internal => RuntimeError::Internal(message),
    }
}

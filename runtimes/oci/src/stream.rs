//! Streams: exec, attach and port-forward. Descriptors pass through stage 1, bytes do not.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd},
    net::unix::pipe,
    sync::mpsc,
};
use wherry_runtime_api::{
    AttachRequest, ContainerId, Duplex, ExecRequest, ExecSyncResponse, PodSandboxId, RuntimeError,
    StreamSession, TerminalSize,
};

use crate::{
    client::{self, Connection},
    protocol::{self, ExecProcess, FailureKind, Op, Reply, Request, VERSION},
    runtime::Inner,
    sys,
};

/// Sizes that may wait; only the newest counts.
const RESIZES_MAX: usize = 4;
/// A pipe's two ends, the reading one first.
fn make_pipe() -> Result<(OwnedFd, OwnedFd), RuntimeError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| RuntimeError::io("make a pipe")(error.into()))
}

fn reader(fd: OwnedFd) -> Result<Box<dyn AsyncRead + Send + Unpin>, RuntimeError> {
    Ok(Box::new(
        pipe::Receiver::from_owned_fd(fd).map_err(RuntimeError::io("stream"))?,
    ))
}

fn writer(fd: OwnedFd) -> Result<Box<dyn AsyncWrite + Send + Unpin>, RuntimeError> {
    Ok(Box::new(
        pipe::Sender::from_owned_fd(fd).map_err(RuntimeError::io("stream"))?,
    ))
}

/// What became of asking for a command.
enum Execution {
    Started {
        connection: Connection,
        streams: Streams,
    },
    /// 126 or 127, and why.
    NotExecutable { exit_code: i32, message: String },
}

/// Our ends.
#[derive(Default)]
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

impl Inner {
    async fn execute(
        &self,
        id: &ContainerId,
        request: &ExecRequest,
    ) -> Result<Execution, RuntimeError> {
        let container = self.container(id)?;
        if !container.is_running() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "container {id} is not running"
            )));
        }
        if request.command.is_empty() {
            return Err(RuntimeError::InvalidArgument(
                "no command specified".to_owned(),
            ));
        }
        let (mut streams, mut theirs) = (Streams::default(), Vec::new());
        if !request.tty {
            if request.stdin {
                let (read, write) = make_pipe()?;
                streams.stdin = Some(write);
                theirs.push(read);
            }
            for (is_wanted, ours) in [
                (request.stdout, &mut streams.stdout),
                (request.stderr, &mut streams.stderr),
            ] {
                if is_wanted {
                    let (read, write) = make_pipe()?;
                    *ours = Some(read);
                    theirs.push(write);
                }
            }
        }
        let op = Op::Exec(ExecProcess {
            id: id.to_string(),
            args: request.command.clone(),
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        });
        let directory = self.paths.pod(&container.file.sandbox);
        let connection = Connection::open(&directory).map_err(RuntimeError::io("exec"))?;
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        connection
            .send(op, &fds)
            .await
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EMSGSIZE) => {
                    RuntimeError::InvalidArgument("exec: the command line is too long".to_owned())
                }
                _ => RuntimeError::Unavailable(format!("exec: {error}")),
            })?;
        drop(theirs);
        match connection.receive().await {
            Ok(Some((Reply::Started { .. }, fds))) => {
                streams.terminal = fds.into_iter().next();
                Ok(Execution::Started {
                    connection,
                    streams,
                })
            }
            Ok(Some((
                Reply::Failed {
                    kind: FailureKind::CommandNotFound,
                    message,
                },
                _,
            ))) => Ok(Execution::NotExecutable {
                exit_code: 127,
                message,
            }),
            Ok(Some((
                Reply::Failed {
                    kind: FailureKind::CommandNotExecutable,
                    message,
                },
                _,
            ))) => Ok(Execution::NotExecutable {
                exit_code: 126,
                message,
            }),
            Ok(Some((Reply::Failed { kind, message }, _))) => Err(client::to_error(kind, message)),
            Ok(Some(_)) => Err(RuntimeError::Internal("exec: unexpected answer".to_owned())),
            Ok(None) => Err(RuntimeError::Unavailable(
                "exec: the pod's supervisor is gone".to_owned(),
            )),
            Err(error) => Err(RuntimeError::Unavailable(format!("exec: {error}"))),
        }
    }

    pub(crate) async fn exec(
        &self,
        id: &ContainerId,
        request: &ExecRequest,
    ) -> Result<StreamSession, RuntimeError> {
        let (connection, streams) = match self.execute(id, request).await? {
            Execution::Started {
                connection,
                streams,
            } => (connection, streams),
            Execution::NotExecutable { message, .. } => {
                return Err(RuntimeError::InvalidArgument(message));
            }
        };
        let mut session = StreamSession {
            stdin: streams.stdin.map(writer).transpose()?,
            stdout: streams.stdout.map(reader).transpose()?,
            stderr: streams.stderr.map(reader).transpose()?,
            resize: None,
            // It owns the connection, so dropping it kills the command.
            exit: Box::pin(async move { wait_for_exit(&connection, "exec").await }),
        };
        if let Some(terminal) = streams.terminal {
            let terminal = Terminal::new(terminal).map_err(RuntimeError::io("terminal"))?;
            session.stdin = request.stdin.then(|| Box::new(terminal.clone()) as _);
            session.stdout = request.stdout.then(|| Box::new(terminal.clone()) as _);
            session.resize = Some(resize(move |size| terminal.resize(size)));
        }
        Ok(session)
    }

    pub(crate) async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecSyncResponse, RuntimeError> {
        let request = ExecRequest::sync(command);
        // The connection is dropped with the future, and that kills the command.
        let run = async {
            match self.execute(id, &request).await? {
                Execution::Started {
                    connection,
                    streams,
                } => {
                    ExecSyncResponse::collect(
                        streams.stdout.map(reader).transpose()?,
                        streams.stderr.map(reader).transpose()?,
                        wait_for_exit(&connection, "exec"),
                    )
                    .await
                }
                Execution::NotExecutable { exit_code, message } => Ok(ExecSyncResponse {
                    stdout: Vec::new(),
                    stderr: message.into_bytes(),
                    exit_code,
                }),
            }
        };
        ExecSyncResponse::within(timeout, command, run).await
    }

    pub(crate) async fn attach(
        &self,
        id: &ContainerId,
        request: &AttachRequest,
    ) -> Result<StreamSession, RuntimeError> {
        let container = self.container(id)?;
        let tty = container.file.tty;
        let stderr = request.stderr && !tty;
        let (mut ours, mut theirs) = (Streams::default(), Vec::new());
        for (is_wanted, end) in [
            (request.stdout, &mut ours.stdout),
            (stderr, &mut ours.stderr),
        ] {
            if is_wanted {
                let (read, write) = make_pipe()?;
                *end = Some(read);
                theirs.push(write);
            }
        }
        let stdin = request.stdin && container.file.stdin;
        let op = Op::Attach {
            id: id.to_string(),
            stdin,
            stdout: request.stdout,
            stderr,
        };
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        let directory = self.paths.pod(&container.file.sandbox);
        let (_, fds, connection) = client::call(&directory, "attach", op, &fds).await?;
        drop(theirs);
        let connection = Arc::new(connection);
        let input: Option<Box<dyn AsyncWrite + Send + Unpin>> = match fds.into_iter().next() {
            Some(fd) if tty => Some(Box::new(
                Terminal::new(fd).map_err(RuntimeError::io("terminal"))?,
            )),
            Some(fd) => Some(Box::new(AttachedStdin {
                stdin: pipe::Sender::from_owned_fd(fd).map_err(RuntimeError::io("stream"))?,
                connection: Arc::downgrade(&connection),
            })),
            None => None,
        };
        let sizes = Arc::downgrade(&connection);
        Ok(StreamSession {
            stdin: input,
            stdout: ours.stdout.map(reader).transpose()?,
            stderr: ours.stderr.map(reader).transpose()?,
            resize: tty.then(|| {
                resize(move |size| {
                    if let Some(connection) = sizes.upgrade() {
                        connection.send_now(Op::Resize {
                            width: size.width,
                            height: size.height,
                        });
                    }
                })
            }),
            exit: Box::pin(async move { wait_for_exit(&connection, "attach").await }),
        })
    }

    pub(crate) async fn port_forward(
        &self,
        id: &PodSandboxId,
        port: u16,
    ) -> Result<Box<dyn Duplex>, RuntimeError> {
        let sandbox = self.sandbox(id)?;
        if !sandbox.is_ready() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "sandbox {id} is not ready"
            )));
        }
        let directory = self.paths.pod(id);
        let addresses: [SocketAddr; 2] = [
            (Ipv4Addr::LOCALHOST, port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ];
        let mut refusal = None;
        for address in addresses {
            let what = format!("port-forward to {address}");
            // A socket stays in the network namespace it was made in, whoever connects it.
            let op = Op::Socket {
                ipv6: address.is_ipv6(),
            };
            let (_, fds, _) = client::call(&directory, &what, op, &[]).await?;
            let Some(fd) = fds.into_iter().next() else {
                continue;
            };
            match tokio::net::TcpSocket::from_std_stream(fd.into())
                .connect(address)
                .await
            {
                Ok(stream) => return Ok(Box::new(stream)),
                Err(error) => refusal = refusal.or(Some((what, error))),
            }
        }
        Err(match refusal {
            Some((what, error)) => RuntimeError::FailedPrecondition(format!("{what}: {error}")),
            None => RuntimeError::Internal(format!("port-forward to {port}: no socket")),
        })
    }
}

impl Connection {
    /// Sends without waiting; what does not fit is lost.
    fn send_now(&self, op: Op) {
        let _ = protocol::send(
            self.socket(),
            &Request {
                version: VERSION,
                op,
            },
            &[],
        );
    }
}

async fn wait_for_exit(connection: &Connection, what: &str) -> Result<i32, RuntimeError> {
    loop {
        if let (Reply::Exited { exit_code }, _) = connection.expect(what).await? {
            return Ok(exit_code);
        }
    }
}

/// A sender of terminal sizes that lives as long as the session does.
fn resize(mut apply: impl FnMut(TerminalSize) + Send + 'static) -> mpsc::Sender<TerminalSize> {
    let (sender, mut sizes) = mpsc::channel(RESIZES_MAX);
    tokio::spawn(async move {
        while let Some(size) = sizes.recv().await {
            apply(size);
        }
    });
    sender
}

/// The near end of a terminal.
#[derive(Clone)]
struct Terminal {
    fd: Arc<AsyncFd<OwnedFd>>,
}

impl Terminal {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // SAFETY: an owned descriptor is its own and stays open as long as it is registered.
        let fd = unsafe { AsyncFd::register(fd)? };
        Ok(Self { fd: Arc::new(fd) })
    }

    fn resize(&self, size: TerminalSize) {
        let _ = sys::set_terminal_size(self.fd.get_ref().as_fd(), size.width, size.height);
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(context))?;
            match guard.try_io(|fd| {
                Ok(rustix::io::read(
                    fd.get_ref(),
                    buffer.initialize_unfilled(),
                )?)
            }) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // The far end is closed by everybody: the end of file, in a terminal's words.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(context))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The app's stdin as an attached client holds it. When it goes, stage 1 is told: it may be the last word
/// (`stdinOnce`), while output is still wanted.
struct AttachedStdin {
    stdin: pipe::Sender,
    connection: std::sync::Weak<Connection>,
}

impl Drop for AttachedStdin {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.upgrade() {
            connection.send_now(Op::CloseStdin);
        }
    }
}

impl AsyncWrite for AttachedStdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(context)
    }
}

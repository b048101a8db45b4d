//! Exec and attach: streams into and out of containers.
//!
//! Without a terminal the engine sends frames (stream, length, bytes) one way and takes plain bytes the other way. With
//! one it is plain both ways.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bollard::{
    Docker,
    exec::CreateExecOptions,
    models::ExecInspectResponse,
    query_parameters::{ResizeContainerTTYOptionsBuilder, ResizeExecOptionsBuilder},
};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::{broadcast, mpsc},
    time::Instant,
};
use wherry_runtime_api::{
    AttachRequest, ContainerId, ContainerState, ExecRequest, ExecSyncResponse, RuntimeError,
    StreamSession, TerminalSize,
};

use crate::{
    engine::{Hijacked, to_error},
    process,
    runtime::Inner,
};

/// Output that waits for its reader; then the command does.
const PIPE_BYTES: usize = 64 * 1024;
/// Larger frames are not sent by any engine; this is no frame.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Terminal sizes that have not been applied yet.
const RESIZES_MAX: usize = 8;
/// How long output may go on after the command has exited: what it left behind may hold the stream for ever.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a command may take to be executed, or to fail at that.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at an exec session.
const POLL: Duration = Duration::from_millis(10);
/// The engine tells of an exec session's end; this is for when that was missed.
const SLOW_POLL: Duration = Duration::from_secs(1);
/// Keys that make the engine detach, which are the client's to send: a sequence that nobody types.
const DETACH_KEYS: &str = "ctrl-@,ctrl-],ctrl-^,ctrl-_,ctrl-@,ctrl-],ctrl-^,ctrl-_";

/// A command under way. Dropping it kills the command.
struct Execution {
    docker: Docker,
    id: String,
    ended: broadcast::Receiver<(String, i32)>,
    is_over: bool,
}

impl Execution {
    async fn inspect(&self) -> Result<ExecInspectResponse, RuntimeError> {
        self.docker
            .inspect_exec(&self.id)
            .await
            .map_err(|error| to_error("exec", error))
    }

    /// Waits until the command has been executed; `Some` is the exit code of one that could not be.
    async fn wait_for_start(&self) -> Result<Option<i32>, RuntimeError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let found = self.inspect().await?;
            if found.pid.is_some_and(|pid| pid > 0) {
                return Ok(None);
            }
            if found.running == Some(false)
                && let Some(code) = found.exit_code
            {
                return Ok(Some(i32::try_from(code).unwrap_or(255)));
            }
            if Instant::now() > deadline {
                return Err(RuntimeError::DeadlineExceeded {
                    what: "exec: the command's start".to_owned(),
                    after: START_TIMEOUT,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The exit code, once it has exited.
    async fn wait(&mut self) -> Result<i32, RuntimeError> {
        loop {
            tokio::select! {
                ended = self.ended.recv() => match ended {
                    Ok((id, code)) if id == self.id => {
                        self.is_over = true;
                        return Ok(code);
                    }
                    Ok(_) => continue,
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => tokio::time::sleep(SLOW_POLL).await,
                },
                () = tokio::time::sleep(SLOW_POLL) => {}
            }
            match self.inspect().await {
                Ok(found) if found.running == Some(false) => {
                    self.is_over = true;
                    let code = found.exit_code.unwrap_or(255);
                    return Ok(i32::try_from(code).unwrap_or(255));
                }
                // The engine may come back and know.
                Ok(_) | Err(RuntimeError::Unavailable(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let (docker, id) = (self.docker.clone(), self.id.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            let deadline = Instant::now() + START_TIMEOUT;
            while let Ok(found) = docker.inspect_exec(&id).await
                && found.running == Some(true)
                && Instant::now() < deadline
            {
                if let Some(pid) = found.pid.and_then(|pid| i32::try_from(pid).ok())
                    && pid > 0
                {
                    process::kill_session(pid);
                }
                tokio::time::sleep(POLL).await;
            }
        });
    }
}

/// What was asked for of a hijacked connection's output.
struct Output {
    stdout: Option<DuplexStream>,
    stderr: Option<DuplexStream>,
}

/// Takes output apart into streams, as far as they were asked for; the rest is read and dropped.
fn split(
    read: impl AsyncRead + Send + Unpin + 'static,
    tty: bool,
    stdout: bool,
    stderr: bool,
) -> Output {
    let pipe = |is_wanted: bool| -> (Option<DuplexStream>, Option<DuplexStream>) {
        if !is_wanted {
            return (None, None);
        }
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        (Some(ours), Some(theirs))
    };
    let (out_writer, out_reader) = pipe(stdout);
    let (err_writer, err_reader) = pipe(stderr && !tty);
    tokio::spawn(async move {
        let result = if tty {
            copy_plain(read, out_writer).await
        } else {
            copy_frames(read, out_writer, err_writer).await
        };
        if let Err(error) = result {
            tracing::debug!(%error, "Output of a session ends");
        }
    });
    Output {
        stdout: out_reader,
        stderr: err_reader,
    }
}

async fn copy_plain(
    mut read: impl AsyncRead + Unpin,
    mut writer: Option<DuplexStream>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = read.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        give(&mut writer, &buffer[..count]).await;
    }
}

async fn copy_frames(
    mut read: impl AsyncRead + Unpin,
    mut stdout: Option<DuplexStream>,
    mut stderr: Option<DuplexStream>,
) -> io::Result<()> {
    let mut header = [0; 8];
    let mut frame = Vec::new();
    loop {
        match read.read_exact(&mut header).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => drop(read?),
        }
        let [stream, _, _, _, length @ ..] = header;
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a frame of the engine's",
            ));
        }
        frame.resize(length, 0);
        read.read_exact(&mut frame).await?;
        match stream {
            2 => give(&mut stderr, &frame).await,
            _ => give(&mut stdout, &frame).await,
        }
        frame.shrink_to(PIPE_BYTES);
    }
}

/// A reader that went away is no reason to hold the command up.
async fn give(writer: &mut Option<DuplexStream>, bytes: &[u8]) {
    if let Some(stream) = writer
        && stream.write_all(bytes).await.is_err()
    {
        *writer = None;
    }
}

/// A hijacked connection's two halves; dropping the second ends what is written and nothing else.
fn halves(hijacked: Hijacked) -> (impl AsyncRead + Send + Unpin + 'static, OwnedWriteHalf) {
    let (read, write): (OwnedReadHalf, _) = hijacked.stream.into_split();
    (io::Cursor::new(hijacked.begun).chain(read), write)
}

fn boxed(stream: Option<DuplexStream>) -> Option<Box<dyn AsyncRead + Send + Unpin>> {
    stream.map(|stream| Box::new(stream) as _)
}

impl Inner {
    async fn execute(
        &self,
        id: &ContainerId,
        request: &ExecRequest,
    ) -> Result<(Execution, Hijacked), RuntimeError> {
        let container = self.container(id)?;
        if !container.is_running() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "container {id} is not running"
            )));
        }
        if request.command.is_empty() {
            return Err(RuntimeError::InvalidArgument("exec: no command".to_owned()));
        }
        let docker = self.engine.docker()?;
        let options = CreateExecOptions {
            attach_stdin: Some(request.stdin),
            attach_stdout: Some(request.stdout),
            attach_stderr: Some(request.stderr || (request.tty && request.stdout)),
            tty: Some(request.tty),
            detach_keys: Some(DETACH_KEYS.to_owned()),
            cmd: Some(request.command.clone()),
            ..CreateExecOptions::default()
        };
        let ended = self.exec_exits.subscribe();
        let made = docker
            .create_exec(id.as_str(), options)
            .await
            .map_err(|error| to_error(&format!("exec in container {id}"), error))?;
        let path = format!("/exec/{}/start", made.id);
        let body = json!({"Detach": false, "Tty": request.tty}).to_string();
        let execution = Execution {
            docker,
            id: made.id,
            ended,
            is_over: false,
        };
        let hijacked = self.engine.hijack("exec", &path, body).await?;
        Ok((execution, hijacked))
    }

    pub(crate) async fn exec(
        &self,
        id: &ContainerId,
        request: &ExecRequest,
    ) -> Result<StreamSession, RuntimeError> {
        let (mut execution, hijacked) = self.execute(id, request).await?;
        let (read, write) = halves(hijacked);
        let mut output = split(
            read,
            request.tty,
            request.stdout || !request.tty,
            request.stderr,
        );
        if let Some(code @ (126 | 127)) = execution.wait_for_start().await? {
            execution.is_over = true;
            // The engine puts the reason where the output would be.
            let mut message = String::new();
            if let Some(stdout) = &mut output.stdout {
                let read = stdout.take(4096);
                tokio::pin!(read);
                let _ =
                    tokio::time::timeout(DRAIN_TIMEOUT, read.read_to_string(&mut message)).await;
            }
            let message = message.trim();
            return Err(RuntimeError::InvalidArgument(if message.is_empty() {
                format!("exec: exit code {code}: the command cannot be executed")
            } else {
                format!("exec: {message}")
            }));
        }
        let (docker, exec) = (execution.docker.clone(), execution.id.clone());
        let resize = request.tty.then(|| {
            resizer(move |size| {
                let (docker, exec) = (docker.clone(), exec.clone());
                async move {
                    let options = ResizeExecOptionsBuilder::default()
                        .h(size.height.into())
                        .w(size.width.into())
                        .build();
                    let _ = docker.resize_exec(&exec, options).await;
                }
            })
        });
        let (stdin, kept): (Option<Box<dyn AsyncWrite + Send + Unpin>>, _) = if request.stdin {
            (Some(Box::new(write)), None)
        } else {
            (None, Some(write))
        };
        Ok(StreamSession {
            stdin,
            stdout: request.stdout.then(|| boxed(output.stdout)).flatten(),
            stderr: boxed(output.stderr),
            resize,
            // It owns the execution, so dropping it kills the command.
            exit: Box::pin(async move {
                let _kept = kept;
                execution.wait().await
            }),
        })
    }

    pub(crate) async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecSyncResponse, RuntimeError> {
        let request = ExecRequest::sync(command);
        // The execution is dropped with the future, and that kills the command.
        let run = async {
            let (mut execution, hijacked) = self.execute(id, &request).await?;
            let (read, _write) = halves(hijacked);
            let output = split(read, false, true, true);
            ExecSyncResponse::collect(output.stdout, output.stderr, execution.wait()).await
        };
        ExecSyncResponse::within(timeout, command, run).await
    }

    pub(crate) async fn attach(
        &self,
        id: &ContainerId,
        request: &AttachRequest,
    ) -> Result<StreamSession, RuntimeError> {
        let container = self.container(id)?;
        if !container.is_running() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "container {id} is not running"
            )));
        }
        let tty = container.record.tty;
        let stdin = request.stdin && container.record.stdin;
        let stderr = request.stderr && !tty;
        let flag = u8::from;
        let path = format!(
            "/containers/{id}/attach?stream=1&logs=0&stdin={}&stdout={}&stderr={}&detachKeys={}",
            flag(stdin),
            flag(request.stdout),
            flag(stderr),
            DETACH_KEYS
                .replace('@', "%40")
                .replace('^', "%5E")
                .replace(']', "%5D"),
        );
        let hijacked = self.engine.hijack("attach", &path, String::new()).await?;
        let (read, write) = halves(hijacked);
        let output = split(read, tty, request.stdout, stderr);
        // When its end comes the engine ends the output as well, unless that is the end of the container's stdin: so it
        // hears of the end only then.
        let unclosed = |write| Unclosed(Arc::new(Mutex::new(write)));
        let (input, kept): (Option<Box<dyn AsyncWrite + Send + Unpin>>, _) = if !stdin {
            (None, Some(unclosed(write)))
        } else if container.record.stdin_once {
            (Some(Box::new(write)), None)
        } else {
            let kept = unclosed(write);
            (Some(Box::new(kept.clone())), Some(kept))
        };
        let docker = self.engine.docker()?;
        let resize = tty.then(|| {
            let id = id.clone();
            resizer(move |size| {
                let (docker, id) = (docker.clone(), id.clone());
                async move {
                    let options = ResizeContainerTTYOptionsBuilder::default()
                        .h(size.height.into())
                        .w(size.width.into())
                        .build();
                    let _ = docker.resize_container_tty(id.as_str(), options).await;
                }
            })
        });
        Ok(StreamSession {
            stdin: input,
            stdout: boxed(output.stdout),
            stderr: boxed(output.stderr),
            resize,
            exit: Box::pin(wait_for_exit(container, kept)),
        })
    }
}

/// The way in of an attach, which is closed when the last of its clones is gone and not before.
#[derive(Clone)]
struct Unclosed(Arc<Mutex<OwnedWriteHalf>>);

impl Unclosed {
    fn with<T>(&self, act: impl FnOnce(Pin<&mut OwnedWriteHalf>) -> T) -> T {
        // Nothing panics while it is held.
        let mut half = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(Pin::new(&mut half))
    }
}

impl AsyncWrite for Unclosed {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|half| half.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|half| half.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Lasts until the app exits; keeps the connection open meanwhile.
async fn wait_for_exit(
    container: Arc<crate::container::Container>,
    _kept: Option<Unclosed>,
) -> Result<i32, RuntimeError> {
    let mut live = container.live.subscribe();
    let ended = live
        .wait_for(|live| matches!(live.state, ContainerState::Exited(_)))
        .await
        .map_err(|error| RuntimeError::Internal(format!("attach: {error}")))?;
    match &ended.state {
        ContainerState::Exited(exit) => Ok(exit.exit_code),
        _ => Err(RuntimeError::Internal("attach: no exit".to_owned())),
    }
}

/// A sender of terminal sizes that lives as long as the session does.
fn resizer<F: Future<Output = ()> + Send + 'static>(
    apply: impl Fn(TerminalSize) -> F + Send + 'static,
) -> mpsc::Sender<TerminalSize> {
    let (sender, mut sizes) = mpsc::channel(RESIZES_MAX);
    tokio::spawn(async move {
        while let Some(size) = sizes.recv().await {
            apply(size).await;
        }
    });
    sender
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn frame(stream: u8, bytes: &[u8]) -> Vec<u8> {
        let mut frame = vec![stream, 0, 0, 0];
        frame.extend((bytes.len() as u32).to_be_bytes());
        frame.extend(bytes);
        frame
    }

    async fn text(stream: Option<DuplexStream>) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        stream?.read_to_end(&mut bytes).await.unwrap();
        Some(bytes)
    }

    #[tokio::test]
    async fn frames_are_taken_apart() {
        let bytes = [
            frame(1, b"out"),
            frame(2, b"err"),
            frame(1, b"\x01\x02"),
            frame(1, b""),
        ]
        .concat();
        let output = split(io::Cursor::new(bytes), false, true, true);
        assert_eq!(text(output.stdout).await.unwrap(), b"out\x01\x02");
        assert_eq!(text(output.stderr).await.unwrap(), b"err");
    }

    #[tokio::test]
    async fn a_terminals_bytes_arrive_as_they_are() {
        let bytes = b"\x01\x00\x00\x00\xff\xff\xff\xffplain".to_vec();
        let output = split(io::Cursor::new(bytes.clone()), true, true, true);
        assert!(output.stderr.is_none());
        assert_eq!(text(output.stdout).await.unwrap(), bytes);
    }

    #[tokio::test]
    async fn what_is_no_frame_ends_the_stream() {
        let bytes = [
            frame(1, b"out"),
            vec![1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1],
        ]
        .concat();
        let output = split(io::Cursor::new(bytes), false, true, false);
        assert_eq!(text(output.stdout).await.unwrap(), b"out");
    }
}

//! Streams into and out of a container.

use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    sync::mpsc,
};

use crate::RuntimeError;

/// Output kept of each stream of an [`crate::Runtime::exec_sync`]; the rest is read and dropped.
/// CRI's limit for probes and hooks is 16 KiB of message; 16 MiB bounds memory as CRI-O does.
pub const EXEC_SYNC_OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a command printed and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSyncResponse {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// 0 to 255.
    pub exit_code: i32,
}

/// After a command has exited, how long its output is still read when something it left behind holds it open.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

impl ExecSyncResponse {
    /// Reads what a command prints until it has exited.
    ///
    /// # Errors
    /// What `exit` ends with.
    pub async fn collect(
        stdout: Option<impl AsyncRead + Unpin>,
        stderr: Option<impl AsyncRead + Unpin>,
        exit: impl Future<Output = Result<i32, RuntimeError>>,
    ) -> Result<Self, RuntimeError> {
        let mut response = Self::default();
        let read = async {
            tokio::join!(
                read_bounded(stdout, &mut response.stdout),
                read_bounded(stderr, &mut response.stderr)
            )
        };
        let exit_code = {
            tokio::pin!(read, exit);
            let mut is_read = false;
            let exit_code = loop {
                tokio::select! {
                    exit = &mut exit => break exit?,
                    _ = &mut read, if !is_read => is_read = true,
                }
            };
            if !is_read {
                let _ = tokio::time::timeout(DRAIN_TIMEOUT, read).await;
            }
            exit_code
        };
        response.exit_code = exit_code;
        Ok(response)
    }

    /// Bounds a run of `command`; a `timeout` of zero is none. What runs is dropped at its end, which has to kill it.
    ///
    /// # Errors
    /// [`RuntimeError::DeadlineExceeded`], and those of `run`.
    pub async fn within(
        timeout: Duration,
        command: &[String],
        run: impl Future<Output = Result<Self, RuntimeError>>,
    ) -> Result<Self, RuntimeError> {
        if timeout.is_zero() {
            return run.await;
        }
        match tokio::time::timeout(timeout, run).await {
            Ok(result) => result,
            Err(_) => Err(RuntimeError::DeadlineExceeded {
                what: format!("command \"{}\"", command.join(" ")),
                after: timeout,
            }),
        }
    }
}

/// Reads to the end, keeping the beginning.
async fn read_bounded(stream: Option<impl AsyncRead + Unpin>, output: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = EXEC_SYNC_OUTPUT_BYTES_MAX - output.len();
        output.extend_from_slice(&buffer[..count.min(room)]);
    }
}

/// A command to run beside the app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Give it a terminal; its stderr then arrives on stdout.
    pub tty: bool,
    /// Connect stdin.
    pub stdin: bool,
    /// Connect stdout.
    pub stdout: bool,
    /// Connect stderr; ignored with `tty`.
    pub stderr: bool,
}

impl ExecRequest {
    /// What [`crate::Runtime::exec_sync`] runs: both outputs are read, nothing is written.
    #[must_use]
    pub fn sync(command: &[String]) -> Self {
        Self {
            command: command.to_vec(),
            tty: false,
            stdin: false,
            stdout: true,
            stderr: true,
        }
    }
}

/// Which of the app's streams to attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Connect stdin.
    pub stdin: bool,
    /// Connect stdout.
    pub stdout: bool,
    /// Connect stderr; ignored if the app has a terminal.
    pub stderr: bool,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// An exec or attach under way. Streams that were not asked for are `None`.
pub struct StreamSession {
    /// Into the command; dropping it is end of file.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Out of the command; ends when the command and whoever inherited it have closed it.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Out of the command.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Terminal sizes, newest wins; `None` without a terminal.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// The exit code once it has exited. For attach: when the app exits.
    pub exit: BoxFuture<'static, Result<i32, RuntimeError>>,
}

impl std::fmt::Debug for StreamSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSession").finish_non_exhaustive()
    }
}

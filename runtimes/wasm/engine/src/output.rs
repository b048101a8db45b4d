//! A guest's stdio: output to the log and to attached clients, input from them.
//!
//! ```text
//!  guest ── Chunk ──▶ channel ── pump ──▶ log thread ──▶ file
//!                                    └──▶ attached clients
//! ```
//! A guest that prints faster than the log or a client takes waits; a client that takes nothing for
//! [`CLIENT_PATIENCE`] is dropped. Output of an exec goes to its caller only, and is never dropped.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::UnixStream,
    sync::mpsc,
};
use tokio_util::sync::{CancellationToken, PollSender};
use wasmtime_wasi::{
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamError, StreamResult},
};
use wherry_log::LogStream;

use crate::{
    log::{Entries, LogFile, LogWriter},
    terminal::Terminal,
};

/// Chunks of one container on their way; past it the guest waits.
const CHUNKS_MAX: usize = 16;
/// Longest chunk taken from a guest at once.
const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// How long an attached client may take nothing before it is dropped.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// Input waiting for a guest to read it.
const INPUT_BYTES_MAX: usize = 4096;

/// A piece of output.
pub(crate) struct Chunk {
    stream: LogStream,
    bytes: Bytes,
}

impl Chunk {
    /// Has a terminal take out what is meant for it.
    fn pass(&mut self, terminal: Option<&Terminal>) {
        if let Some(left) = terminal.and_then(|terminal| terminal.pass(&self.bytes)) {
            self.bytes = left.into();
        }
    }
}

/// Makes the channel a guest writes into.
pub(crate) fn channel() -> (mpsc::Sender<Chunk>, mpsc::Receiver<Chunk>) {
    mpsc::channel(CHUNKS_MAX)
}

/// Writes text of the host's into a container's output.
pub(crate) async fn print(sender: &mpsc::Sender<Chunk>, stream: LogStream, text: String) {
    let _ = sender
        .send(Chunk {
            stream,
            bytes: text.into(),
        })
        .await;
}

/// One of a guest's output streams.
#[derive(Clone)]
pub(crate) struct GuestOutput {
    pub(crate) sender: mpsc::Sender<Chunk>,
    pub(crate) stream: LogStream,
    pub(crate) is_terminal: bool,
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        self.is_terminal
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(AsyncOutput {
            sender: PollSender::new(self.sender.clone()),
            stream: self.stream,
        })
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(P2Output {
            sender: self.sender.clone(),
            stream: self.stream,
            permit: None,
        })
    }
}

struct P2Output {
    sender: mpsc::Sender<Chunk>,
    stream: LogStream,
    permit: Option<mpsc::OwnedPermit<Chunk>>,
}

#[async_trait::async_trait]
impl Pollable for P2Output {
    async fn ready(&mut self) {
        if self.permit.is_none() {
            self.permit = self.sender.clone().reserve_owned().await.ok();
        }
    }
}

impl OutputStream for P2Output {
    fn check_write(&mut self) -> StreamResult<usize> {
        if self.permit.is_none() {
            match self.sender.clone().try_reserve_owned() {
                Ok(permit) => self.permit = Some(permit),
                Err(mpsc::error::TrySendError::Full(_)) => return Ok(0),
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(StreamError::Closed),
            }
        }
        Ok(CHUNK_BYTES_MAX)
    }

    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.check_write()? == 0 {
            return Err(StreamError::trap("write without permission"));
        }
        if let Some(permit) = self.permit.take() {
            permit.send(Chunk {
                stream: self.stream,
                bytes,
            });
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }
}

struct AsyncOutput {
    sender: PollSender<Chunk>,
    stream: LogStream,
}

impl AsyncWrite for AsyncOutput {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let broken = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        ready!(self.sender.poll_reserve(context)).map_err(broken)?;
        let bytes = &bytes[..bytes.len().min(CHUNK_BYTES_MAX)];
        let chunk = Chunk {
            stream: self.stream,
            bytes: Bytes::copy_from_slice(bytes),
        };
        self.sender.send_item(chunk).map_err(broken)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Where the output of an exec or an attach goes.
pub(crate) struct Client {
    pub(crate) stdout: Option<UnixStream>,
    pub(crate) stderr: Option<UnixStream>,
    pub(crate) is_terminal: bool,
}

impl Client {
    async fn write(&self, chunk: &Chunk) -> std::io::Result<()> {
        let socket = match chunk.stream {
            LogStream::Stdout => self.stdout.as_ref(),
            // A terminal has one stream.
            LogStream::Stderr if self.is_terminal => self.stdout.as_ref(),
            LogStream::Stderr => self.stderr.as_ref(),
        };
        let Some(socket) = socket else { return Ok(()) };
        if self.is_terminal {
            write_all(socket, &with_carriage_returns(&chunk.bytes)).await
        } else {
            write_all(socket, &chunk.bytes).await
        }
    }

    /// Ends its streams, also for whoever waits for the other end to go.
    fn close(&self) {
        for socket in self.stdout.iter().chain(&self.stderr) {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }

    /// Waits until the other end is gone.
    async fn closed(&self) {
        let Some(socket) = self.stdout.as_ref().or(self.stderr.as_ref()) else {
            return std::future::pending().await;
        };
        while socket.readable().await.is_ok() {
            match socket.try_read(&mut [0; 64]) {
                Ok(0) => return,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    }
}

async fn write_all(socket: &UnixStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match socket.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                socket.writable().await?
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// There is no pseudo-terminal behind a guest's terminal: its line ends are made here.
fn with_carriage_returns(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 8);
    for byte in bytes {
        if *byte == b'\n' {
            out.push(b'\r');
        }
        out.push(*byte);
    }
    out
}

/// Clients attached to a container.
#[derive(Default)]
pub(crate) struct Clients(Mutex<Vec<Arc<Client>>>);

impl Clients {
    fn all(&self) -> Vec<Arc<Client>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn remove(&self, client: &Arc<Client>) {
        client.close();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|other| !Arc::ptr_eq(other, client));
    }

    /// Adds a client until it goes.
    pub(crate) fn add(self: &Arc<Self>, client: Client) {
        let client = Arc::new(client);
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(client.clone());
        let clients = Arc::downgrade(self);
        tokio::spawn(async move {
            client.closed().await;
            if let Some(clients) = clients.upgrade() {
                clients.remove(&client);
            }
        });
    }

    fn clear(&self) {
        for client in self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            client.close();
        }
    }
}

/// Copies a container's output to its log and its clients, until all its instances are gone.
pub(crate) async fn pump(
    mut output: mpsc::Receiver<Chunk>,
    log: Arc<LogFile>,
    writer: LogWriter,
    clients: Arc<Clients>,
    terminal: Option<Arc<Terminal>>,
) {
    let mut entries = Entries::default();
    while let Some(mut chunk) = output.recv().await {
        chunk.pass(terminal.as_deref());
        writer
            .write(
                &log,
                entries.of(chunk.stream, &chunk.bytes, SystemTime::now()),
            )
            .await;
        for client in clients.all() {
            if !matches!(
                tokio::time::timeout(CLIENT_PATIENCE, client.write(&chunk)).await,
                Ok(Ok(()))
            ) {
                clients.remove(&client);
            }
        }
    }
    writer.write(&log, entries.finish(SystemTime::now())).await;
    writer.flush().await;
    clients.clear();
}

/// Copies an exec's output to its caller, until the exec is gone. What a caller no longer takes is
/// read and dropped.
pub(crate) async fn pump_exec(
    mut output: mpsc::Receiver<Chunk>,
    client: Client,
    terminal: Option<Arc<Terminal>>,
) {
    let mut is_open = true;
    while let Some(mut chunk) = output.recv().await {
        chunk.pass(terminal.as_deref());
        is_open = is_open && client.write(&chunk).await.is_ok();
    }
}

/// The writing end of a container's stdin.
#[derive(Clone, Default)]
pub(crate) struct Input(Arc<tokio::sync::Mutex<Option<DuplexStream>>>);

impl Input {
    /// A stdin and what a guest reads of it.
    pub(crate) fn open() -> (Self, DuplexStream) {
        let (write, read) = tokio::io::duplex(INPUT_BYTES_MAX);
        (Self(Arc::new(tokio::sync::Mutex::new(Some(write)))), read)
    }

    /// Writes to it, if it is open.
    pub(crate) async fn write(&self, bytes: &[u8]) {
        if let Some(input) = self.0.lock().await.as_mut() {
            // Nobody reads it any more.
            let _ = input.write_all(bytes).await;
        }
    }

    /// Ends it: the guest reads what is there, then end of file.
    pub(crate) async fn close(&self) {
        *self.0.lock().await = None;
    }

    /// Copies a client's input until it ends, Ctrl-C is pressed in its terminal, or `stop`.
    pub(crate) async fn copy_from(
        &self,
        mut socket: impl AsyncRead + Unpin,
        terminal: Option<mpsc::Sender<Chunk>>,
        stop: CancellationToken,
    ) -> InputEnd {
        let mut buffer = [0; 1024];
        loop {
            let read = tokio::select! {
                read = socket.read(&mut buffer) => read,
                () = stop.cancelled() => return InputEnd::Ended,
            };
            let Ok(n @ 1..) = read else {
                return InputEnd::Ended;
            };
            let mut bytes = buffer[..n].to_vec();
            let mut key = None;
            if let Some(echo) = &terminal {
                key = from_terminal(&mut bytes);
                let _ = echo
                    .send(Chunk {
                        stream: LogStream::Stdout,
                        bytes: bytes.clone().into(),
                    })
                    .await;
            }
            if key == Some(InputEnd::Interrupted) {
                return InputEnd::Interrupted;
            }
            let write = async {
                match self.0.lock().await.as_mut() {
                    Some(input) => input.write_all(&bytes).await,
                    None => Err(std::io::ErrorKind::BrokenPipe.into()),
                }
            };
            let written = tokio::select! {
                written = write => written,
                () = stop.cancelled() => return InputEnd::Ended,
            };
            if written.is_err() || key.is_some() {
                return InputEnd::Ended;
            }
        }
    }
}

/// Why there is no more input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputEnd {
    /// The client ended it, or nobody reads it.
    Ended,
    /// Ctrl-C.
    Interrupted,
}

/// What a terminal's line discipline would make of keys: Enter becomes a new line; Ctrl-D and Ctrl-C
/// end the input and drop what came after them.
fn from_terminal(bytes: &mut Vec<u8>) -> Option<InputEnd> {
    let end = bytes.iter().position(|byte| matches!(byte, 3 | 4));
    let key = end.map(|end| {
        if bytes[end] == 3 {
            InputEnd::Interrupted
        } else {
            InputEnd::Ended
        }
    });
    bytes.truncate(end.unwrap_or(bytes.len()));
    for byte in bytes {
        if *byte == b'\r' {
            *byte = b'\n';
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_without_a_pty_still_has_line_ends() {
        assert_eq!(with_carriage_returns(b"a\nb"), b"a\r\nb");
        let mut keys = b"ls\rx\x04later".to_vec();
        assert_eq!(from_terminal(&mut keys), Some(InputEnd::Ended));
        assert_eq!(keys, b"ls\nx");
        assert_eq!(
            from_terminal(&mut b"\x03".to_vec()),
            Some(InputEnd::Interrupted)
        );
        assert_eq!(from_terminal(&mut b"ls".to_vec()), None);
    }
}

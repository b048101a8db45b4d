//! Exec and attach over SPDY: the client opens a stream for each of the command's, named by a header.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tracing::debug;
use wherry_runtime_api::{StreamSession, TerminalSize};

use super::{Output, Peer, Verb, run, take_sizes};
use crate::{
    QUEUE_CHUNKS, StreamOptions,
    activity::Activity,
    spdy::{self, Connection, Stream},
};

/// The streams of one exec or attach.
#[derive(Default)]
struct Streams {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Streams {
    fn place(&mut self, stream: Stream) -> Result<(), String> {
        let place = match stream.header("streamtype") {
            Some("error") => &mut self.error,
            Some("stdin") => &mut self.stdin,
            Some("stdout") => &mut self.stdout,
            Some("stderr") => &mut self.stderr,
            Some("resize") => &mut self.resize,
            other => {
                return Err(format!(
                    "invalid stream type {:?}",
                    other.unwrap_or_default()
                ));
            }
        };
        *place = Some(stream);
        Ok(())
    }

    fn are_complete(&self, options: StreamOptions) -> bool {
        self.error.is_some()
            && (self.stdin.is_some() || !options.stdin)
            && (self.stdout.is_some() || !options.stdout)
            && (self.stderr.is_some() || !options.stderr || options.tty)
            && (self.resize.is_some() || !options.tty)
    }
}

/// Carries an exec or attach to its end.
pub(crate) async fn serve<T, F, Fut, E>(
    io: T,
    options: StreamOptions,
    verb: Verb,
    open: F,
    creation: Duration,
    activity: Activity,
) where
    T: AsyncRead + AsyncWrite + Send,
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<StreamSession, E>>,
    E: std::fmt::Display,
{
    let (connection, driver) = spdy::serve(io, activity);
    let session = session(connection, options, verb, open, creation);
    let (result, ()) = tokio::join!(driver, session);
    if let Err(error) = result {
        debug!(%error, "SPDY connection ended");
    }
}

async fn session<F, Fut, E>(
    mut connection: Connection,
    options: StreamOptions,
    verb: Verb,
    open: F,
    creation: Duration,
) where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<StreamSession, E>>,
    E: std::fmt::Display,
{
    let mut streams =
        match tokio::time::timeout(creation, wait_for_streams(&mut connection, options)).await {
            Ok(Ok(streams)) => streams,
            Ok(Err(error)) => return debug!(%error, "Streams not opened"),
            Err(_) => return debug!("Timed out waiting for client to create streams"),
        };
    let Some(error) = streams.error.take() else {
        return;
    };
    let mut resize_feed = None;
    let output =
        |stream: Option<Stream>| stream.map(|stream| Box::new(stream.writer) as Box<dyn Output>);
    let resize = streams.resize.take().map(|stream| {
        let (sender, receiver) = mpsc::channel(QUEUE_CHUNKS);
        resize_feed = Some((stream.reader, sender));
        receiver
    });
    let peer = Peer {
        stdin: streams.stdin.map(|stream| stream.reader),
        resize,
        stdout: output(streams.stdout),
        stderr: output(streams.stderr),
        error: Box::new(error.writer),
        gone: connection.gone(),
    };
    let sizes = async {
        if let Some((reader, sender)) = resize_feed {
            feed_sizes(reader, sender).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        () = run(peer, verb, open) => {}
        () = sizes => {}
    }
    connection.close().await;
}

async fn wait_for_streams(
    connection: &mut Connection,
    options: StreamOptions,
) -> Result<Streams, String> {
    let mut streams = Streams::default();
    while !streams.are_complete(options) {
        let stream = connection
            .accept()
            .await
            .ok_or("client closed the connection")?;
        streams.place(stream)?;
    }
    Ok(streams)
}

async fn feed_sizes(mut reader: mpsc::Receiver<Bytes>, sender: mpsc::Sender<TerminalSize>) {
    let mut buffer = Vec::new();
    while let Some(bytes) = reader.recv().await {
        buffer.extend_from_slice(&bytes);
        for size in take_sizes(&mut buffer) {
            if sender.send(size).await.is_err() {
                return;
            }
        }
    }
}

//! Exec and attach over WebSocket: the first byte of a message names the stream.

use std::{future::Future, time::Duration};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt, stream::SplitSink, stream::SplitStream};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use wherry_runtime_api::{StreamSession, TerminalSize};

use super::{Output, Peer, Verb, run, take_sizes};
use crate::{
    LINGER, QUEUE_CHUNKS, StreamOptions, activity::Activity, request::Transport, spdy::Gone,
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the channel named by the next byte is closed.
const CLOSE: u8 = 255;

/// Largest message that is read. kubectl's are 32 KiB.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Messages waiting to be written, of all channels together.
const WRITE_QUEUE_MESSAGES: usize = 16;

/// How long a client has to get ready to read. kubectl before 1.34 starts reading before it has made its streams, and
/// drops what comes for a stream it has not made yet (kubernetes/kubernetes#131189); nothing it sends says that it is
/// ready. Stock nodes take longer than this to start a command.
const CLIENT_SETTLES: Duration = Duration::from_millis(50);

/// Limits on what a client may send.
pub(crate) fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(32 * 1024)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
}

/// Carries an exec or attach to its end.
pub(crate) async fn serve<T, F, Fut, E>(
    io: T,
    transport: Transport,
    options: StreamOptions,
    verb: Verb,
    open: F,
    activity: Activity,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send,
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<StreamSession, E>>,
    E: std::fmt::Display,
{
    let websocket =
        WebSocketStream::from_raw_socket(io, Role::Server, Some(websocket_config())).await;
    let (sink, stream) = websocket.split();
    let (writes, write_queue) = mpsc::channel(WRITE_QUEUE_MESSAGES);
    let gone = CancellationToken::new();
    let (stdin_sender, stdin) = mpsc::channel(QUEUE_CHUNKS);
    let (resize_sender, resize) = mpsc::channel(QUEUE_CHUNKS);
    let output = |channel| -> Box<dyn Output> {
        let writes = writes.clone();
        Box::new(Channel {
            channel,
            transport,
            writes,
        })
    };
    let peer = Peer {
        stdin: options.stdin.then_some(stdin),
        resize: options.tty.then_some(resize),
        stdout: options.stdout.then(|| output(STDOUT)),
        stderr: (options.stderr && !options.tty).then(|| output(STDERR)),
        error: output(ERROR),
        gone: gone.clone(),
    };
    // Tells a client that waits for the first message that the connection stands.
    let mut hello = output(if options.stdout { STDOUT } else { ERROR });
    let _ = hello.send(Bytes::new()).await;
    drop(hello);
    drop(writes);

    let read = Demultiplexer {
        transport,
        stdin: options.stdin.then_some(stdin_sender),
        resize: options.tty.then_some(resize_sender),
        resize_bytes: Vec::new(),
        activity: activity.clone(),
    }
    .run(stream, &gone);
    let session = run(peer, verb, open);
    // The session's end drops the senders, upon which the writer says goodbye.
    // The command starts meanwhile.
    let write = async {
        tokio::time::sleep(CLIENT_SETTLES).await;
        write_all(sink, write_queue, activity, LINGER).await;
    };
    tokio::join!(session, async {
        tokio::select! {
            () = read => {}
            () = write => {}
        }
        gone.cancel();
    });
}

struct Demultiplexer {
    transport: Transport,
    stdin: Option<mpsc::Sender<Bytes>>,
    resize: Option<mpsc::Sender<TerminalSize>>,
    resize_bytes: Vec<u8>,
    activity: Activity,
}

impl Demultiplexer {
    /// Reads until the client closes the connection.
    async fn run<T>(mut self, mut stream: SplitStream<WebSocketStream<T>>, gone: &CancellationToken)
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let message = match stream.next().await {
                Some(Ok(Message::Binary(bytes))) => Some(bytes),
                Some(Ok(Message::Text(text))) => self.text_message(text.into()),
                Some(Ok(_)) => None,
                Some(Err(error)) => {
                    debug!(%error, "WebSocket ended");
                    break;
                }
                None => break,
            };
            if let Some(message) = message {
                self.activity.touch();
                self.message(message).await;
            }
        }
        // Before the queues are dropped: an end of file that is none must be told from a real one.
        gone.cancel();
    }

    fn text_message(&self, text: Bytes) -> Option<Bytes> {
        if self.transport != Transport::ChannelsV4Base64 {
            return Some(text);
        }
        let (channel, data) = text.split_first()?;
        let mut message = vec![channel.checked_sub(b'0')?];
        STANDARD.decode_vec(data, &mut message).ok()?;
        Some(message.into())
    }

    async fn message(&mut self, message: Bytes) {
        let Some((&channel, data)) = message.split_first() else {
            return;
        };
        match channel {
            STDIN if !data.is_empty() => {
                if let Some(stdin) = &self.stdin
                    && stdin.send(message.slice(1..)).await.is_err()
                {
                    self.stdin = None;
                }
            }
            RESIZE => {
                self.resize_bytes.extend_from_slice(data);
                for size in take_sizes(&mut self.resize_bytes) {
                    if let Some(resize) = &self.resize {
                        // Without a receiver the session has ended.
                        let _ = resize.send(size).await;
                    }
                }
            }
            CLOSE if self.transport == Transport::ChannelsV5 && data.first() == Some(&STDIN) => {
                self.stdin = None
            }
            _ => {}
        }
    }
}

struct Channel {
    channel: u8,
    transport: Transport,
    writes: mpsc::Sender<Message>,
}

#[async_trait]
impl Output for Channel {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        let message = if self.transport == Transport::ChannelsV4Base64 {
            Message::text(format!("{}{}", self.channel, STANDARD.encode(&bytes)))
        } else {
            let mut message = BytesMut::with_capacity(1 + bytes.len());
            message.put_u8(self.channel);
            message.put_slice(&bytes);
            Message::Binary(message.freeze())
        };
        self.writes.send(message).await.map_err(|_| Gone)
    }

    async fn finish(&mut self) {}
}

/// Writes what is queued; when no more can come, says goodbye and gives the client time to answer.
pub(crate) async fn write_all<T>(
    mut sink: SplitSink<WebSocketStream<T>, Message>,
    mut queue: mpsc::Receiver<Message>,
    activity: Activity,
    linger: Duration,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let written: Result<(), tungstenite::Error> = async {
        while let Some(message) = queue.recv().await {
            activity.touch();
            sink.feed(message).await?;
            if queue.is_empty() {
                sink.flush().await?;
            }
        }
        let goodbye = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        sink.send(Message::Close(Some(goodbye))).await
    }
    .await;
    match written {
        Ok(()) => tokio::time::sleep(linger).await,
        Err(error) => debug!(%error, "WebSocket ended"),
    }
}

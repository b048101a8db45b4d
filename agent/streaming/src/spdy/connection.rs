//! One connection: a reader that hands frames to streams, and a writer that all streams share.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter},
    sync::mpsc,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::{
    SpdyError,
    frame::{Control, HEAD_BYTES, Head, STATUS_PROTOCOL_ERROR, STATUS_REFUSED_STREAM, data_head},
    headers::{Deflater, Headers, Inflater},
};
use crate::{CHUNK_BYTES, LINGER, QUEUE_CHUNKS, activity::Activity, remote::Output};

/// Streams that may be open at once. A browser behind `kubectl port-forward` opens tens.
const STREAMS_MAX: usize = 2048;

/// Frames waiting to be written, of all streams together.
const WRITE_QUEUE_FRAMES: usize = 16;

/// Control frames waiting to be written; they overtake data.
const CONTROL_QUEUE_FRAMES: usize = 64;

/// The client has closed the stream or the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// The connection as its user sees it. Dropping it, and all streams, closes it.
#[derive(Debug)]
pub(crate) struct Connection {
    incoming: mpsc::Receiver<Stream>,
    writes: mpsc::Sender<Write>,
    gone: CancellationToken,
}

impl Connection {
    /// The next stream that the client opened; `None` when it will open no more.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Cancelled when the client has gone.
    pub(crate) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Says that this is all, after what was sent before.
    pub(crate) async fn close(self) {
        // The connection may be gone; then there is nobody to tell.
        let _ = self.writes.send(Write::GoAway).await;
    }
}

/// A stream that the client opened.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) headers: Headers,
    /// What the client sends; ends with the stream, and when the stream or connection is gone.
    pub(crate) reader: mpsc::Receiver<Bytes>,
    pub(crate) writer: StreamWriter,
}

impl Stream {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }
}

/// What is sent to the client on a stream.
#[derive(Debug)]
pub(crate) struct StreamWriter {
    stream_id: u32,
    writes: mpsc::Sender<Write>,
    reset: Arc<CancellationToken>,
}

impl StreamWriter {
    /// Cancelled when the client has reset the stream.
    pub(crate) fn reset(&self) -> CancellationToken {
        CancellationToken::clone(&self.reset)
    }
}

#[async_trait]
impl Output for StreamWriter {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        if self.reset.is_cancelled() {
            return Err(Gone);
        }
        let write = Write::Data {
            stream_id: self.stream_id,
            fin: false,
            bytes,
        };
        self.writes.send(write).await.map_err(|_| Gone)
    }

    async fn finish(&mut self) {
        if !self.reset.is_cancelled() {
            let write = Write::Data {
                stream_id: self.stream_id,
                fin: true,
                bytes: Bytes::new(),
            };
            // A client that is gone needs no end of stream.
            let _ = self.writes.send(write).await;
        }
    }
}

#[derive(Debug)]
enum Write {
    Data {
        stream_id: u32,
        fin: bool,
        bytes: Bytes,
    },
    GoAway,
}

/// A connection over `io`, and the future that carries it: poll both. The future ends when the client
/// has closed the connection, or [`LINGER`] after [`Connection::close`].
pub(crate) fn serve<T>(
    io: T,
    activity: Activity,
) -> (Connection, impl Future<Output = Result<(), SpdyError>>)
where
    T: AsyncRead + AsyncWrite + Send,
{
    let (streams, incoming) = mpsc::channel(QUEUE_CHUNKS);
    let (writes, write_queue) = mpsc::channel(WRITE_QUEUE_FRAMES);
    let (controls, control_queue) = mpsc::channel(CONTROL_QUEUE_FRAMES);
    let gone = CancellationToken::new();
    let connection = Connection {
        incoming,
        writes: writes.clone(),
        gone: gone.clone(),
    };
    let driver = async move {
        let (read_half, write_half) = tokio::io::split(io);
        let reader = Reader {
            io: BufReader::new(read_half),
            inflater: Inflater::new(),
            open: HashMap::new(),
            last_stream_id: 0,
            streams: Some(streams),
            writes: writes.downgrade(),
            controls,
            activity: activity.clone(),
            _gone: gone.drop_guard(),
        };
        drop(writes);
        let writer = write_all(
            BufWriter::with_capacity(CHUNK_BYTES + HEAD_BYTES, write_half),
            write_queue,
            control_queue,
            activity,
        );
        let read = reader.run();
        tokio::pin!(read, writer);
        tokio::select! {
            result = &mut read => result,
            result = &mut writer => {
                result?;
                tokio::time::timeout(LINGER, read).await.unwrap_or(Ok(()))
            }
        }
    };
    (connection, driver)
}

struct Reader<R> {
    io: BufReader<R>,
    inflater: Inflater,
    /// Before `open`, as fields drop in order: who waits for data must find it cancelled when its queue ends.
    _gone: DropGuard,
    open: HashMap<u32, Inbound>,
    last_stream_id: u32,
    streams: Option<mpsc::Sender<Stream>>,
    writes: mpsc::WeakSender<Write>,
    controls: mpsc::Sender<Control>,
    activity: Activity,
}

struct Inbound {
    /// `None` after the client's end of stream.
    queue: Option<mpsc::Sender<Bytes>>,
    /// Dead when nobody writes to the stream any more.
    reset: Weak<CancellationToken>,
}

impl Inbound {
    fn is_used(&self) -> bool {
        self.reset.strong_count() > 0 || self.queue.as_ref().is_some_and(|queue| !queue.is_closed())
    }
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self) -> Result<(), SpdyError> {
        loop {
            let mut head = [0; HEAD_BYTES];
            match self.io.read_exact(&mut head).await {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            match Head::parse(head)? {
                Head::Data {
                    stream_id,
                    fin,
                    length,
                } => {
                    self.data(stream_id, length as usize).await?;
                    if fin {
                        self.finish(stream_id);
                    }
                }
                Head::Control {
                    kind,
                    flags,
                    length,
                } => {
                    let mut body = vec![0; length as usize];
                    self.io.read_exact(&mut body).await?;
                    let control = Control::parse(kind, flags, &body, &mut self.inflater)?;
                    self.control(control).await;
                }
            }
        }
    }

    async fn data(&mut self, stream_id: u32, mut length: usize) -> Result<(), SpdyError> {
        while length > 0 {
            let mut piece = BytesMut::zeroed(length.min(CHUNK_BYTES));
            self.io.read_exact(&mut piece).await?;
            length -= piece.len();
            self.activity.touch();
            if let Some(queue) = self
                .open
                .get(&stream_id)
                .and_then(|inbound| inbound.queue.as_ref())
            {
                // Data for a stream that is no longer read is dropped.
                let _ = queue.send(piece.freeze()).await;
            }
        }
        Ok(())
    }

    fn finish(&mut self, stream_id: u32) {
        if let Some(inbound) = self.open.get_mut(&stream_id) {
            inbound.queue = None;
        }
    }

    async fn control(&mut self, control: Control) {
        match control {
            Control::SynStream {
                stream_id,
                fin,
                headers,
            } => self.open_stream(stream_id, fin, headers).await,
            Control::RstStream { stream_id, .. } => {
                if let Some(reset) = self
                    .open
                    .remove(&stream_id)
                    .and_then(|inbound| inbound.reset.upgrade())
                {
                    reset.cancel();
                }
            }
            // Even IDs are the server's, which sends no pings.
            Control::Ping { id } if id % 2 == 1 => self.reply(Control::Ping { id }).await,
            Control::GoAway { .. } => self.streams = None,
            Control::Headers {
                stream_id,
                fin: true,
            }
            | Control::SynReply {
                stream_id,
                fin: true,
                ..
            } => {
                self.finish(stream_id);
            }
            Control::Headers { .. }
            | Control::SynReply { .. }
            | Control::Ping { .. }
            | Control::Ignored => {}
        }
    }

    async fn open_stream(&mut self, stream_id: u32, fin: bool, headers: Headers) {
        if stream_id.is_multiple_of(2) || stream_id <= self.last_stream_id {
            return self
                .reply(Control::RstStream {
                    stream_id,
                    status: STATUS_PROTOCOL_ERROR,
                })
                .await;
        }
        self.last_stream_id = stream_id;
        self.open.retain(|_, inbound| inbound.is_used());
        let (Some(streams), Some(writes)) = (&self.streams, self.writes.upgrade()) else {
            return self
                .reply(Control::RstStream {
                    stream_id,
                    status: STATUS_REFUSED_STREAM,
                })
                .await;
        };
        if self.open.len() >= STREAMS_MAX {
            return self
                .reply(Control::RstStream {
                    stream_id,
                    status: STATUS_REFUSED_STREAM,
                })
                .await;
        }
        let (sender, queue) = mpsc::channel(QUEUE_CHUNKS);
        let reset = Arc::new(CancellationToken::new());
        let inbound = Inbound {
            queue: (!fin).then_some(sender),
            reset: Arc::downgrade(&reset),
        };
        let stream = Stream {
            headers,
            reader: queue,
            writer: StreamWriter {
                stream_id,
                writes,
                reset,
            },
        };
        let streams = streams.clone();
        self.open.insert(stream_id, inbound);
        // The reply goes out before any data can, because the user has not seen the stream yet.
        self.reply(Control::SynReply {
            stream_id,
            fin: false,
            headers: Headers::new(),
        })
        .await;
        if streams.send(stream).await.is_err() {
            debug!(stream_id, "Stream opened after the end");
        }
    }

    async fn reply(&mut self, control: Control) {
        // Without a writer the connection is about to end.
        let _ = self.controls.send(control).await;
    }
}

async fn write_all<W: AsyncWrite + Unpin>(
    mut io: BufWriter<W>,
    mut writes: mpsc::Receiver<Write>,
    mut controls: mpsc::Receiver<Control>,
    activity: Activity,
) -> Result<(), SpdyError> {
    let mut deflater = Deflater::new();
    loop {
        let closing = tokio::select! {
            biased;
            Some(control) = controls.recv() => {
                io.write_all(&control.encode(&mut deflater)).await?;
                false
            }
            write = writes.recv() => match write {
                Some(Write::Data { stream_id, fin, bytes }) => {
                    activity.touch();
                    io.write_all(&data_head(stream_id, fin, bytes.len())).await?;
                    io.write_all(&bytes).await?;
                    false
                }
                Some(Write::GoAway) | None => true,
            },
        };
        if closing {
            io.write_all(
                &Control::GoAway {
                    last_stream_id: 0,
                    status: 0,
                }
                .encode(&mut deflater),
            )
            .await?;
            io.flush().await?;
            return Ok(());
        }
        if writes.is_empty() && controls.is_empty() {
            io.flush().await?;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::{super::frame::STATUS_CANCEL, *};

    /// A client that does what a Go client does, one frame at a time.
    pub(crate) struct Client<T> {
        pub(crate) io: T,
        inflater: Inflater,
        deflater: Deflater,
    }

    #[derive(Debug, PartialEq, Eq)]
    pub(crate) enum Received {
        Data {
            stream_id: u32,
            fin: bool,
            bytes: Bytes,
        },
        Control(Control),
    }

    impl<T: AsyncRead + AsyncWrite + Unpin> Client<T> {
        pub(crate) fn new(io: T) -> Self {
            Self {
                io,
                inflater: Inflater::new(),
                deflater: Deflater::new(),
            }
        }

        pub(crate) async fn control(&mut self, control: Control) {
            let bytes = control.encode(&mut self.deflater);
            self.io.write_all(&bytes).await.expect("server reads");
            self.io.flush().await.expect("server reads");
        }

        pub(crate) async fn open(&mut self, stream_id: u32, headers: &[(&str, &str)]) {
            let headers = headers
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect();
            self.control(Control::SynStream {
                stream_id,
                fin: false,
                headers,
            })
            .await;
        }

        pub(crate) async fn data(&mut self, stream_id: u32, fin: bool, bytes: &[u8]) {
            self.io
                .write_all(&data_head(stream_id, fin, bytes.len()))
                .await
                .expect("server reads");
            self.io.write_all(bytes).await.expect("server reads");
            self.io.flush().await.expect("server reads");
        }

        pub(crate) async fn receive(&mut self) -> Option<Received> {
            let mut head = [0; HEAD_BYTES];
            self.io.read_exact(&mut head).await.ok()?;
            match Head::parse(head).expect("server writes valid heads") {
                Head::Data {
                    stream_id,
                    fin,
                    length,
                } => {
                    let mut bytes = vec![0; length as usize];
                    self.io.read_exact(&mut bytes).await.expect("whole frame");
                    Some(Received::Data {
                        stream_id,
                        fin,
                        bytes: bytes.into(),
                    })
                }
                Head::Control {
                    kind,
                    flags,
                    length,
                } => {
                    let mut body = vec![0; length as usize];
                    self.io.read_exact(&mut body).await.expect("whole frame");
                    Some(Received::Control(
                        Control::parse(kind, flags, &body, &mut self.inflater)
                            .expect("server writes valid frames"),
                    ))
                }
            }
        }

        /// Reads until a stream's end, and gives what came on it.
        pub(crate) async fn read_stream(&mut self, wanted: u32) -> Vec<u8> {
            let mut out = Vec::new();
            while let Some(frame) = self.receive().await {
                if let Received::Data {
                    stream_id,
                    fin,
                    bytes,
                } = frame
                    && stream_id == wanted
                {
                    out.extend_from_slice(&bytes);
                    if fin {
                        return out;
                    }
                }
            }
            panic!("connection ended before stream {wanted}");
        }
    }

    /// Ends a stream at once.
    pub(crate) fn reset(stream_id: u32) -> Control {
        Control::RstStream {
            stream_id,
            status: STATUS_CANCEL,
        }
    }

    fn reply(stream_id: u32) -> Received {
        Received::Control(Control::SynReply {
            stream_id,
            fin: false,
            headers: Headers::new(),
        })
    }

    async fn with_server<F: Future>(
        session: impl FnOnce(Client<DuplexStream>, Connection) -> F,
    ) -> F::Output {
        let (near, far) = duplex(1024);
        let (connection, driver) = serve(far, Activity::default());
        let (output, _) = tokio::join!(session(Client::new(near), connection), driver);
        output
    }

    #[tokio::test]
    async fn a_stream_carries_data_both_ways_and_ends_each_way_by_itself() {
        with_server(async |mut client: Client<_>, mut connection: Connection| {
            client.open(1, &[("streamtype", "data")]).await;
            assert_eq!(client.receive().await, Some(reply(1)));
            let mut stream = connection.accept().await.expect("opened");
            assert_eq!(stream.header("streamtype"), Some("data"));
            client.data(1, false, b"ping").await;
            assert_eq!(stream.reader.recv().await.as_deref(), Some(&b"ping"[..]));
            client.data(1, true, b"").await;
            assert_eq!(stream.reader.recv().await, None);
            stream
                .writer
                .send(Bytes::from_static(b"pong"))
                .await
                .expect("client is there");
            stream.writer.finish().await;
            assert_eq!(client.read_stream(1).await, b"pong");
        })
        .await;
    }

    #[tokio::test]
    async fn pings_are_answered_while_a_stream_waits() {
        with_server(async |mut client: Client<_>, connection: Connection| {
            client.control(Control::Ping { id: 7 }).await;
            assert_eq!(
                client.receive().await,
                Some(Received::Control(Control::Ping { id: 7 }))
            );
            drop(connection);
        })
        .await;
    }

    #[tokio::test]
    async fn streams_of_the_wrong_side_are_reset() {
        with_server(async |mut client: Client<_>, connection: Connection| {
            client.open(2, &[]).await;
            let expected = Control::RstStream {
                stream_id: 2,
                status: STATUS_PROTOCOL_ERROR,
            };
            assert_eq!(client.receive().await, Some(Received::Control(expected)));
            drop(connection);
        })
        .await;
    }

    #[tokio::test]
    async fn a_reset_ends_a_stream_both_ways() {
        with_server(async |mut client: Client<_>, mut connection: Connection| {
            client.open(1, &[]).await;
            let mut stream = connection.accept().await.expect("opened");
            client
                .control(Control::RstStream {
                    stream_id: 1,
                    status: STATUS_CANCEL,
                })
                .await;
            assert_eq!(stream.reader.recv().await, None);
            stream.writer.reset().cancelled().await;
            assert_eq!(
                stream.writer.send(Bytes::from_static(b"x")).await,
                Err(Gone)
            );
        })
        .await;
    }

    #[tokio::test]
    async fn a_client_that_goes_is_noticed_before_its_streams_end() {
        with_server(async |mut client: Client<_>, mut connection: Connection| {
            client.open(1, &[]).await;
            let mut stream = connection.accept().await.expect("opened");
            drop(client);
            assert_eq!(stream.reader.recv().await, None);
            assert!(connection.gone().is_cancelled());
        })
        .await;
    }

    #[tokio::test]
    async fn the_last_data_comes_before_goaway_and_the_client_closes() {
        with_server(async |mut client: Client<_>, mut connection: Connection| {
            client.open(1, &[]).await;
            assert_eq!(client.receive().await, Some(reply(1)));
            let mut stream = connection.accept().await.expect("opened");
            stream
                .writer
                .send(Bytes::from_static(b"last"))
                .await
                .expect("client is there");
            stream.writer.finish().await;
            connection.close().await;
            assert_eq!(client.read_stream(1).await, b"last");
            let end = Control::GoAway {
                last_stream_id: 0,
                status: 0,
            };
            assert_eq!(client.receive().await, Some(Received::Control(end)));
        })
        .await;
    }
}

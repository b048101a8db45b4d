//! Port-forward over plain WebSocket channels, as clients other than kubectl use it: the query names the
//! ports; the first has channels 0 (data) and 1 (errors), the next 2 and 3. Each channel begins with its
//! port in two bytes, the lower first. One connection for each port, and no way to close half of it.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, future::join_all};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};
use tokio_util::sync::CancellationToken;
use wherry_runtime_api::Duplex;

use super::{pump_to_client, pump_to_pod};
use crate::{
    LINGER, QUEUE_CHUNKS,
    activity::Activity,
    remote::{
        Output,
        websocket::{websocket_config, write_all},
    },
    spdy::Gone,
};

/// Ports in one request; channels are numbered by one byte.
const PORTS_MAX: usize = 127;

/// Carries connections until the client goes or all of them have ended.
pub(crate) async fn serve<T, C, Fut>(io: T, mut ports: Vec<u16>, connect: C, activity: Activity)
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
    C: Fn(u16) -> Fut,
    Fut: Future<Output = Result<Box<dyn Duplex>, String>>,
{
    ports.truncate(PORTS_MAX);
    let connect = Arc::new(connect);
    let websocket =
        WebSocketStream::from_raw_socket(io, Role::Server, Some(websocket_config())).await;
    let (sink, mut stream) = websocket.split();
    let (writes, write_queue) = mpsc::channel(ports.len() * 2 + QUEUE_CHUNKS);
    let gone = CancellationToken::new();
    let mut inputs = Vec::new();
    let mut forwards = Vec::new();
    for (index, port) in (0u8..).zip(ports) {
        let (input, queue) = mpsc::channel(QUEUE_CHUNKS);
        inputs.push(input);
        let data = Channel {
            channel: index * 2,
            writes: writes.clone(),
        };
        let error = Channel {
            channel: index * 2 + 1,
            writes: writes.clone(),
        };
        forwards.push(forward(
            port,
            queue,
            data,
            error,
            connect.clone(),
            gone.clone(),
        ));
    }
    drop(writes);
    let read = async {
        while let Some(Ok(message)) = stream.next().await {
            let Message::Binary(message) = message else {
                continue;
            };
            activity.touch();
            if let Some((channel, data)) = message.split_first()
                && channel % 2 == 0
                && !data.is_empty()
                && let Some(input) = inputs.get(usize::from(channel / 2))
            {
                // Data for a connection that has ended is dropped.
                let _ = input.send(message.slice(1..)).await;
            }
        }
        gone.cancel();
    };
    let forwards = join_all(forwards);
    let write = write_all(sink, write_queue, activity.clone(), LINGER);
    tokio::join!(forwards, async {
        tokio::select! {
            () = read => {}
            () = write => {}
        }
        gone.cancel();
    });
}

async fn forward<C, Fut>(
    port: u16,
    queue: mpsc::Receiver<Bytes>,
    mut data: Channel,
    mut error: Channel,
    connect: Arc<C>,
    gone: CancellationToken,
) where
    C: Fn(u16) -> Fut,
    Fut: Future<Output = Result<Box<dyn Duplex>, String>>,
{
    for channel in [&mut data, &mut error] {
        if channel
            .send(Bytes::copy_from_slice(&port.to_le_bytes()))
            .await
            .is_err()
        {
            return;
        }
    }
    let result = match connect(port).await {
        Ok(pod) => {
            let (from_pod, to_pod) = tokio::io::split(pod);
            let from_client = async {
                pump_to_pod(queue, to_pod, &gone).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                result = pump_to_client(from_pod, &mut data) => result,
                () = from_client => Ok(()),
                () = gone.cancelled() => Ok(()),
            }
        }
        Err(message) => Err(message),
    };
    if let Err(message) = result {
        // A client that is gone is not told.
        let _ = error.send(Bytes::from(message)).await;
    }
}

struct Channel {
    channel: u8,
    writes: mpsc::Sender<Message>,
}

#[async_trait]
impl Output for Channel {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        let mut message = BytesMut::with_capacity(1 + bytes.len());
        message.put_u8(self.channel);
        message.put_slice(&bytes);
        self.writes
            .send(Message::Binary(message.freeze()))
            .await
            .map_err(|_| Gone)
    }

    async fn finish(&mut self) {}
}

//! Connections from the client to ports of a pod.

pub(crate) mod spdy;
pub(crate) mod websocket;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wherry_runtime_api::Duplex;

use crate::{CHUNK_BYTES, remote::Output};

/// Bytes from the pod to the client, until the pod's end or the client has gone.
async fn pump_to_client(
    mut from: ReadHalf<Box<dyn Duplex>>,
    to: &mut dyn Output,
) -> Result<(), String> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK_BYTES);
        match from.read_buf(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(_) if to.send(buffer.split().freeze()).await.is_err() => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Bytes from the client to the pod. The pod may close its side first; the rest is dropped then.
async fn pump_to_pod(
    mut from: mpsc::Receiver<Bytes>,
    mut to: WriteHalf<Box<dyn Duplex>>,
    gone: &CancellationToken,
) {
    while let Some(bytes) = from.recv().await {
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return while from.recv().await.is_some() {};
        }
    }
    if !gone.is_cancelled() {
        // An end of file that the pod no longer wants is no loss.
        let _ = to.shutdown().await;
    }
}

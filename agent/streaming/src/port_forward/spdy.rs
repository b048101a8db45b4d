//! Port-forward over SPDY: for each connection the client opens a data and an error stream with the same
//! `requestid`, in either order.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tracing::debug;
use wherry_runtime_api::Duplex;

use super::{pump_to_client, pump_to_pod};
use crate::{
    activity::Activity,
    remote::Output,
    spdy::{self, Stream},
};

/// Connections that wait for their second stream.
const HALF_OPEN_MAX: usize = 256;

/// Carries connections until the client goes.
pub(crate) async fn serve<T, C, Fut>(io: T, connect: C, creation: Duration, activity: Activity)
where
    T: AsyncRead + AsyncWrite + Send,
    C: Fn(u16) -> Fut,
    Fut: Future<Output = Result<Box<dyn Duplex>, String>>,
{
    let connect = Arc::new(connect);
    let (mut connection, driver) = spdy::serve(io, activity);
    let forwards = async move {
        let mut half_open: HashMap<String, (Stream, Instant)> = HashMap::new();
        let mut forwards = FuturesUnordered::new();
        loop {
            tokio::select! {
                stream = connection.accept() => match stream {
                    Some(stream) => {
                        half_open.retain(|_, (_, since)| since.elapsed() < creation);
                        match pair(&mut half_open, stream) {
                            Ok(Some(pair)) => forwards.push(forward(pair, connect.clone())),
                            Ok(None) => {}
                            Err(error) => debug!(%error, "Stream refused"),
                        }
                    }
                    None => break,
                },
                Some(()) = forwards.next() => {}
            }
        }
        // The client opens no more; those that are open go on.
        while forwards.next().await.is_some() {}
        connection.close().await;
    };
    let (result, ()) = tokio::join!(driver, forwards);
    if let Err(error) = result {
        debug!(%error, "SPDY connection ended");
    }
}

/// Both streams of a connection.
#[derive(Debug)]
struct Pair {
    port: u16,
    data: Stream,
    error: Stream,
}

/// Finds the other stream of the same connection, or keeps this one until it comes.
fn pair(
    half_open: &mut HashMap<String, (Stream, Instant)>,
    stream: Stream,
) -> Result<Option<Pair>, String> {
    let kind = stream.header("streamtype").unwrap_or_default().to_owned();
    if kind != "data" && kind != "error" {
        return Err(format!("invalid stream type {kind:?}"));
    }
    let port = stream.header("port").unwrap_or_default();
    let port: u16 = port
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("unable to parse {port:?} as a port"))?;
    // Clients older than Kubernetes 1.2 send no ID and open one connection at a time.
    let id = stream.header("requestid").unwrap_or_default().to_owned();
    let Some((other, _)) = half_open.remove(&id) else {
        if half_open.len() >= HALF_OPEN_MAX {
            return Err("too many connections lack a stream".into());
        }
        half_open.insert(id, (stream, Instant::now()));
        return Ok(None);
    };
    if other.header("streamtype") == Some(kind.as_str()) {
        return Err(format!("connection {id:?} already has a {kind} stream"));
    }
    let (data, error) = if kind == "data" {
        (stream, other)
    } else {
        (other, stream)
    };
    Ok(Some(Pair { port, data, error }))
}

async fn forward<C, Fut>(pair: Pair, connect: Arc<C>)
where
    C: Fn(u16) -> Fut,
    Fut: Future<Output = Result<Box<dyn Duplex>, String>>,
{
    let Pair {
        port,
        data,
        mut error,
    } = pair;
    let (reader, mut writer) = (data.reader, data.writer);
    let reset = writer.reset();
    let result = match connect(port).await {
        Ok(pod) => {
            let (from_pod, to_pod) = tokio::io::split(pod);
            let to_client = pump_to_client(from_pod, &mut writer);
            let from_client = async {
                pump_to_pod(reader, to_pod, &reset).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                result = to_client => result,
                () = from_client => Ok(()),
                () = reset.cancelled() => Ok(()),
            }
        }
        Err(message) => Err(message),
    };
    if let Err(message) = result {
        // A client that is gone is not told.
        let _ = error.writer.send(Bytes::from(message)).await;
    }
    error.writer.finish().await;
    writer.finish().await;
}

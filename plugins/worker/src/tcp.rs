//! `wherry:plugin/tcp`.

use std::{future::Future, io, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};
use wasmtime::component::Resource;

use crate::{
    bindings::wherry::plugin::tcp::{Host, HostConnection, TcpError},
    confine::{ConnectError, address},
    deadlines::Deadlines,
    state::State,
};

/// Connections of one call.
pub(crate) const CONNECTIONS_MAX: usize = 16;
/// Bytes of one read.
const READ_BYTES_MAX: usize = 64 << 10;

/// A connection of a guest's.
#[expect(unreachable_pub, reason = "the generated bindings use it as public")]
pub struct Connection {
    stream: TcpStream,
    name: String,
}

impl From<ConnectError> for TcpError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Timeout(text) => Self::Timeout(text),
            ConnectError::Refused(text) => Self::ConnectionRefused(text),
            ConnectError::NameNotFound(text) => Self::NameNotFound(text),
            ConnectError::Denied(text) => Self::Denied(text),
            ConnectError::Other(text) => Self::Other(text),
        }
    }
}

async fn bounded<T>(
    (deadlines, deadline): (Arc<Deadlines>, Instant),
    what: String,
    io: impl Future<Output = io::Result<T>>,
) -> Result<T, TcpError> {
    use io::ErrorKind as K;
    match deadlines.within(deadline, io).await {
        Some(Ok(done)) => Ok(done),
        Some(Err(error)) => Err(match error.kind() {
            K::BrokenPipe | K::ConnectionReset | K::ConnectionAborted => {
                TcpError::ConnectionClosed(format!("{what}: {error}"))
            }
            _ => TcpError::Other(format!("{what}: {error}")),
        }),
        None => Err(TcpError::Timeout(format!("{what}: time is up"))),
    }
}

impl Host for State {}

impl HostConnection for State {
    async fn open(
        &mut self,
        host: String,
        port: u16,
    ) -> wasmtime::Result<Result<Resource<Connection>, TcpError>> {
        let name = address(&host, port);
        if self.connections >= CONNECTIONS_MAX {
            let why = format!("connect {name}: {CONNECTIONS_MAX} connections are open");
            return Ok(Err(TcpError::Other(why)));
        }
        Ok(match self.connect(&host, port).await? {
            Ok(stream) => {
                self.connections += 1;
                Ok(self.table.push(Connection { stream, name })?)
            }
            Err(error) => Err(error.into()),
        })
    }

    async fn write(
        &mut self,
        connection: Resource<Connection>,
        bytes: Vec<u8>,
    ) -> wasmtime::Result<Result<(), TcpError>> {
        let deadline = self.deadline();
        let connection = self.table.get_mut(&connection)?;
        let what = format!("write {}", connection.name);
        Ok(bounded(deadline, what, connection.stream.write_all(&bytes)).await)
    }

    async fn read(
        &mut self,
        connection: Resource<Connection>,
        max: u32,
    ) -> wasmtime::Result<Result<Vec<u8>, TcpError>> {
        let deadline = self.deadline();
        let connection = self.table.get_mut(&connection)?;
        let what = format!("read {}", connection.name);
        let mut bytes = vec![0; (max as usize).clamp(1, READ_BYTES_MAX)];
        let read = bounded(deadline, what, connection.stream.read(&mut bytes)).await;
        Ok(read.map(|n| {
            bytes.truncate(n);
            bytes
        }))
    }

    async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        self.table.delete(connection)?;
        self.connections = self.connections.saturating_sub(1);
        Ok(())
    }
}

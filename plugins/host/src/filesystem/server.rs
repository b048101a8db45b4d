//! The agent's connections to the volume server, which is started when there is none.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout},
};
use tracing::info;
use wherry_wasm_aot::{child, wire};

use super::protocol::{Component, FromServer, Hello, News, Status, ToServer};
use crate::{PluginStats, cgroup};

/// A server binds its socket at once; a busy machine takes its time.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Between looks for the socket of a server that is starting.
const START_PERIOD: Duration = Duration::from_millis(10);
/// A server that does not answer what it need not think about hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The guest's own time-outs come first.
const SERVE_TIMEOUT: Duration = Duration::from_secs(90);
/// Servers that end as they are asked: a server without volumes does.
const ATTEMPTS_MAX: u32 = 3;

/// Where the server is, and what it is told first.
pub(crate) struct Server {
    socket: PathBuf,
    hello: Hello,
    cgroup: Option<String>,
    starting: tokio::sync::Mutex<()>,
}

struct Connection {
    sender: wire::Sender,
    receiver: wire::Receiver,
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it ended")
}

impl Server {
    /// One that is started goes to a group, which is there by then.
    pub(crate) fn new(socket: PathBuf, hello: Hello, cgroup: Option<String>) -> Self {
        Self {
            socket,
            hello,
            cgroup,
            starting: tokio::sync::Mutex::default(),
        }
    }

    /// A connection to the server that runs.
    async fn connect(&self) -> io::Result<Connection> {
        let (sender, mut receiver) = wire::split(UnixStream::connect(&self.socket).await?);
        let hello = ToServer::Hello(self.hello.clone());
        let greet = async {
            sender.send(&hello, &[]).await?;
            receiver.receive::<FromServer>().await
        };
        match timeout(ANSWER_TIMEOUT, greet).await {
            Ok(Ok(Some((FromServer::Welcome { .. }, _)))) => Ok(Connection { sender, receiver }),
            Ok(Ok(_)) => Err(ended()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// A connection, to a server that is started if there is none.
    async fn connect_or_start(&self) -> io::Result<Connection> {
        let _starting = self.starting.lock().await;
        if let Ok(connection) = self.connect().await {
            return Ok(connection);
        }
        let socket = self.socket.to_string_lossy();
        if let Some(parent) = self.socket.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let (mut process, _stdin) =
            child::spawn(&self.hello.exe, &["volume-server", &socket], None)?;
        if let (Some(group), Some(pid)) = (&self.cgroup, process.id()) {
            // Before it starts workers, which are where it is.
            cgroup::adopt(group, pid);
        }
        info!(pid = process.id(), "Volume server started");
        let until = Instant::now() + START_TIMEOUT;
        loop {
            match self.connect().await {
                Ok(connection) => return Ok(connection),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = process.try_wait()? {
                return Err(io::Error::other(format!("it ended: {status}")));
            }
            sleep(START_PERIOD).await;
        }
    }

    /// Asks the server, which is started if need be.
    pub(crate) async fn ask(
        &self,
        message: &ToServer,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<FromServer> {
        let mut attempt = 1;
        loop {
            let mut connection = self.connect_or_start().await?;
            match timeout(SERVE_TIMEOUT, connection.ask(message, descriptors)).await {
                Ok(Err(error))
                    if attempt < ATTEMPTS_MAX && error.kind() != io::ErrorKind::InvalidData =>
                {
                    attempt += 1;
                }
                Ok(result) => return result.map(|(answer, _)| answer),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Tells a server that runs that a volume is gone.
    pub(crate) async fn close(&self, id: &str) -> io::Result<()> {
        let message = ToServer::Close { id: id.to_owned() };
        self.tell(&message, &[]).await.map(drop)
    }

    /// Tells a server that runs by what to serve a plugin's volumes; answers how many those are.
    pub(crate) async fn replace(
        &self,
        component: &Component,
        directory: BorrowedFd<'_>,
    ) -> io::Result<u32> {
        let message = ToServer::Replace {
            plugin: component.clone(),
        };
        match self.tell(&message, &[directory]).await? {
            FromServer::Replaced { volumes } => Ok(volumes),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    async fn tell(
        &self,
        message: &ToServer,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<FromServer> {
        let mut connection = self.connect().await?;
        match timeout(ANSWER_TIMEOUT, connection.ask(message, descriptors)).await {
            Ok(answer) => answer.map(|(answer, _)| answer),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// What a server that runs serves.
    pub(crate) async fn list(&self) -> io::Result<Vec<(Status, Vec<OwnedFd>)>> {
        let mut connection = self.connect().await?;
        let list = async {
            let mut found = Vec::new();
            let mut next = connection.ask(&ToServer::List, &[]).await?;
            loop {
                match next {
                    (FromServer::Volume(status), descriptors) => found.push((*status, descriptors)),
                    _ => return Ok(found),
                }
                next = connection.next().await?;
            }
        };
        match timeout(ANSWER_TIMEOUT, list).await {
            Ok(found) => found,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// What a server that runs has counted of each plugin, and its process.
    pub(crate) async fn count(&self) -> io::Result<(u32, BTreeMap<String, PluginStats>)> {
        match self.tell(&ToServer::Count, &[]).await? {
            FromServer::Counted { pid, plugins } => Ok((pid, plugins)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Hears the server's news until it ends.
    ///
    /// # Errors
    /// There is no server, or no more.
    pub(crate) async fn follow(&self, hear: impl Fn(News)) -> io::Result<()> {
        let mut connection = self.connect().await?;
        connection.sender.send(&ToServer::Follow, &[]).await?;
        loop {
            if let (FromServer::News(news), _) = connection.next().await? {
                hear(news);
            }
        }
    }
}

impl Connection {
    async fn next(&mut self) -> io::Result<(FromServer, Vec<OwnedFd>)> {
        self.receiver.receive().await?.ok_or_else(ended)
    }

    async fn ask(
        &mut self,
        message: &ToServer,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<(FromServer, Vec<OwnedFd>)> {
        self.sender.send(message, descriptors).await?;
        self.next().await
    }
}

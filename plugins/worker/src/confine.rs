//! Where a call may connect to: the pod's own address, and what the agent answers for.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream as StdTcpStream},
    os::fd::AsRawFd,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, getpeername, send,
        socket,
    },
};
use tokio::{net::TcpStream, time::Instant};
use wherry_plugin_host::protocol::{Answer, Ask, ResolveError};

use crate::{asks::another_question, deadlines::Deadlines, state::State};

/// No connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    Timeout(String),
    Refused(String),
    NameNotFound(String),
    Denied(String),
    Other(String),
}

/// `host:port` as people write it.
pub(crate) fn address(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl State {
    /// Connects, should that be granted.
    pub(crate) async fn connect(
        &mut self,
        host: &str,
        port: u16,
    ) -> wasmtime::Result<Result<TcpStream, ConnectError>> {
        let connected = self.connect_with(host, port, &[]).await?;
        Ok(connected.map(|(stream, _)| stream))
    }

    /// The same, and what is said first goes out with the connection; answers how much of it has.
    pub(crate) async fn connect_with(
        &mut self,
        host: &str,
        port: u16,
        first: &[u8],
    ) -> wasmtime::Result<Result<(TcpStream, usize), ConnectError>> {
        let name = address(host, port);
        if port == 0 {
            return Ok(Err(ConnectError::Other(format!("{name}: no port"))));
        }
        let addresses = match host.parse::<IpAddr>() {
            Ok(ip) if Some(ip) == self.target.ip => vec![ip],
            _ => {
                let ask = Ask::Resolve {
                    host: host.to_owned(),
                    port,
                };
                match self.ask(ask).await? {
                    Answer::Resolve(Ok(addresses)) => addresses,
                    Answer::Resolve(Err(ResolveError::Denied(why))) => {
                        return Ok(Err(ConnectError::Denied(self.deny(why))));
                    }
                    Answer::Resolve(Err(ResolveError::NotFound(why))) => {
                        return Ok(Err(ConnectError::NameNotFound(why)));
                    }
                    _ => return another_question(),
                }
            }
        };
        let deadline = self.io_deadline();
        Ok(connect_to(host, &addresses, port, first, (&self.deadlines, deadline)).await)
    }
}

/// Begins a connection. One within the machine is there at once, and takes what is said first; any other is waited for.
async fn open(address: SocketAddr, first: &[u8]) -> io::Result<(TcpStream, usize)> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    let sent = match first {
        [] => getpeername::<SockaddrStorage>(socket.as_raw_fd()).map(|_| 0),
        first => send(socket.as_raw_fd(), first, MsgFlags::MSG_NOSIGNAL),
    };
    let stream = TcpStream::from_std(StdTcpStream::from(socket))?;
    match sent {
        Ok(sent) => Ok((stream, sent)),
        Err(Errno::EAGAIN | Errno::ENOTCONN) => {
            stream.writable().await?;
            match stream.take_error()? {
                None => Ok((stream, 0)),
                Some(error) => Err(error),
            }
        }
        Err(errno) => Err(errno.into()),
    }
}

async fn connect_to(
    host: &str,
    addresses: &[IpAddr],
    port: u16,
    first: &[u8],
    (deadlines, deadline): (&Deadlines, Instant),
) -> Result<(TcpStream, usize), ConnectError> {
    let mut trouble = ConnectError::NameNotFound(format!("dial tcp: lookup {host}: no such host"));
    for ip in addresses {
        let name = || address(&ip.to_string(), port);
        let opened = open(SocketAddr::new(*ip, port), first);
        trouble = match deadlines.within(deadline, opened).await {
            Some(Ok(opened)) => return Ok(opened),
            Some(Err(error)) => dial(&name(), &error),
            None => {
                return Err(ConnectError::Timeout(format!(
                    "dial tcp {}: i/o timeout",
                    name()
                )));
            }
        };
    }
    Err(trouble)
}

/// A failed connect in the words of Go, which people know from the kubelet's events.
fn dial(name: &str, error: &io::Error) -> ConnectError {
    use io::ErrorKind as K;
    let why = match error.kind() {
        K::ConnectionRefused => {
            let text = format!("dial tcp {name}: connect: connection refused");
            return ConnectError::Refused(text);
        }
        K::TimedOut => return ConnectError::Timeout(format!("dial tcp {name}: i/o timeout")),
        K::HostUnreachable => "no route to host".to_owned(),
        K::NetworkUnreachable => "network is unreachable".to_owned(),
        _ => error.to_string(),
    };
    ConnectError::Other(format!("dial tcp {name}: connect: {why}"))
}

/// Past a call's time, what a guest has to say that something took too long.
pub(crate) fn reserve(timeout: Duration) -> Duration {
    (timeout / 10).min(Duration::from_millis(100))
}

//! Where a call may connect to: the pod's own address, and what the agent answers for.

use std::{io, net::IpAddr, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use wherry_plugin_host::protocol::{Answer, Ask, ResolveError};

use crate::state::State;

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
                        self.denied = Some(why.clone());
                        return Ok(Err(ConnectError::Denied(why)));
                    }
                    Answer::Resolve(Err(ResolveError::NotFound(why))) => {
                        return Ok(Err(ConnectError::NameNotFound(why)));
                    }
                    Answer::Exec(_) => wasmtime::bail!("answer to another question"),
                }
            }
        };
        Ok(connect_to(&name, &addresses, port, self.io_deadline()).await)
    }
}

async fn connect_to(
    name: &str,
    addresses: &[IpAddr],
    port: u16,
    deadline: Instant,
) -> Result<TcpStream, ConnectError> {
    let mut trouble = ConnectError::NameNotFound(format!("{name}: no addresses"));
    for ip in addresses {
        match timeout_at(deadline, TcpStream::connect((*ip, port))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                trouble = ConnectError::Refused(format!("connect {name}: connection refused"));
            }
            Ok(Err(error)) => trouble = ConnectError::Other(format!("connect {name}: {error}")),
            Err(_) => return Err(ConnectError::Timeout(format!("connect {name}: time is up"))),
        }
    }
    Err(trouble)
}

/// Of a call's time, what a guest is left with to say that something took too long.
pub(crate) fn reserve(timeout: Duration) -> Duration {
    (timeout / 10).min(Duration::from_millis(100))
}

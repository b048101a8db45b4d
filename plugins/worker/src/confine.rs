//! Where a call may connect to: the pod's own address, and what the agent answers for.

use std::{io, net::IpAddr, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use wherry_plugin_host::protocol::{Answer, Ask, ResolveError};

use crate::{asks::another_question, state::State};

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
                        return Ok(Err(ConnectError::Denied(self.deny(why))));
                    }
                    Answer::Resolve(Err(ResolveError::NotFound(why))) => {
                        return Ok(Err(ConnectError::NameNotFound(why)));
                    }
                    _ => return another_question(),
                }
            }
        };
        Ok(connect_to(host, &addresses, port, self.io_deadline()).await)
    }
}

async fn connect_to(
    host: &str,
    addresses: &[IpAddr],
    port: u16,
    deadline: Instant,
) -> Result<TcpStream, ConnectError> {
    let mut trouble = ConnectError::NameNotFound(format!("dial tcp: lookup {host}: no such host"));
    for ip in addresses {
        let name = address(&ip.to_string(), port);
        trouble = match timeout_at(deadline, TcpStream::connect((*ip, port))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => dial(&name, &error),
            Err(_) => {
                return Err(ConnectError::Timeout(format!(
                    "dial tcp {name}: i/o timeout"
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

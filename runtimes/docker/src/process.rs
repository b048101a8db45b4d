//! Processes and namespaces of the node, beside the engine.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::net::{TcpSocket, TcpStream};
use wherry_runtime_api::{RuntimeError, SandboxNetwork};

/// Kills a command and what it started in its session.
pub(crate) fn kill_session(pid: i32) {
    let pid = Pid::from_raw(pid);
    // An exec's process begins a session, so its group has its number. What left the group is on its own.
    let _ = killpg(pid, Signal::SIGKILL);
    let _ = kill(pid, Signal::SIGKILL);
}

/// Changes how likely a process is to be killed for want of memory.
pub(crate) fn set_oom_score_adj(pid: i32, value: i32) -> std::io::Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), value.to_string())
}

/// Connects to a port on the loopback address of a sandbox: IPv4 first, then IPv6.
pub(crate) async fn connect(
    network: &SandboxNetwork,
    port: u16,
) -> Result<TcpStream, RuntimeError> {
    let addresses: [SocketAddr; 2] = [
        (Ipv4Addr::LOCALHOST, port).into(),
        (Ipv6Addr::LOCALHOST, port).into(),
    ];
    let mut refusal = None;
    for address in addresses {
        let what = format!("port-forward to {address}");
        let namespace = match network {
            SandboxNetwork::Namespace { path } => Some(path.clone()),
            SandboxNetwork::Host => None,
            SandboxNetwork::Confined => {
                return Err(RuntimeError::Unsupported(format!(
                    "{what}: the sandbox has no network of its own"
                )));
            }
        };
        let made = tokio::task::spawn_blocking(move || socket(namespace, address.is_ipv6())).await;
        let connected = match made {
            Ok(Ok(socket)) => socket.connect(address).await,
            Ok(Err(error)) => Err(error),
            Err(error) => return Err(RuntimeError::Internal(error.to_string())),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => refusal = refusal.or(Some((what, error))),
        }
    }
    Err(match refusal {
        Some((what, error)) => RuntimeError::FailedPrecondition(format!("{what}: {error}")),
        None => RuntimeError::Internal(format!("port-forward to {port}: no address")),
    })
}

/// A socket stays in the network namespace it was made in, whoever connects it.
fn socket(namespace: Option<PathBuf>, is_ipv6: bool) -> std::io::Result<TcpSocket> {
    let open = move || -> std::io::Result<std::net::TcpStream> {
        if let Some(path) = namespace {
            setns(fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
        }
        let family = if is_ipv6 {
            rustix::net::AddressFamily::INET6
        } else {
            rustix::net::AddressFamily::INET
        };
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(family, rustix::net::SocketType::STREAM, flags, None)?;
        Ok(socket.into())
    };
    // A thread that has changed its namespace is not given back.
    let stream = std::thread::Builder::new()
        .name("port-forward".to_owned())
        .spawn(open)?
        .join()
        .map_err(|_| std::io::Error::other("the thread panicked"))??;
    Ok(TcpSocket::from_std_stream(stream))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_port_is_reached_in_a_namespace_and_on_the_node() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let echo = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            }
        });
        let own = SandboxNetwork::Namespace {
            path: "/proc/self/ns/net".into(),
        };
        for network in [own, SandboxNetwork::Host] {
            let mut stream = connect(&network, port).await.unwrap();
            stream.write_all(b"there").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "there");
        }
        echo.await.unwrap();
    }
}

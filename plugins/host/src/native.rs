//! The probes that need no plugin.

use std::{io, sync::Arc};

use async_trait::async_trait;
use tokio::{net::TcpStream, time::timeout};

use crate::{Exec, ProbeAction, ProbeOutcome, ProbeRequest, ProbeResult, Prober, grpc, http, tls};

/// Output of an exec probe kept for the event (`maxReadLength` of the kubelet).
const OUTPUT_BYTES_MAX: usize = 10 * 1024;

/// Speaks HTTP, TCP and gRPC from the node, and runs commands through the agent.
#[derive(Clone)]
pub struct NativeProber {
    tls: Arc<rustls::ClientConfig>,
}

impl Default for NativeProber {
    fn default() -> Self {
        Self {
            tls: tls::client_config(),
        }
    }
}

#[async_trait]
impl Prober for NativeProber {
    async fn check(&self, request: &ProbeRequest, exec: &dyn Exec) -> ProbeOutcome {
        match &request.action {
            ProbeAction::HttpGet {
                is_https,
                host,
                port,
                path,
                headers,
            } => {
                let target = http::Target {
                    host,
                    port: *port,
                    path,
                    headers,
                };
                let tls = is_https.then(|| Arc::clone(&self.tls));
                let url = target.url(*is_https);
                match timeout(request.timeout, http::get(target, tls)).await {
                    Ok(outcome) => outcome,
                    Err(_) => ProbeOutcome::new(
                        ProbeResult::Failure,
                        format!(
                            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                        ),
                    ),
                }
            }
            ProbeAction::TcpSocket { host, port } => {
                match timeout(request.timeout, TcpStream::connect((host.as_str(), *port))).await {
                    Ok(Ok(_)) => ProbeOutcome::new(ProbeResult::Success, ""),
                    Ok(Err(error)) => {
                        ProbeOutcome::new(ProbeResult::Failure, dial(host, *port, &error))
                    }
                    Err(_) => ProbeOutcome::new(
                        ProbeResult::Failure,
                        format!("dial tcp {}: i/o timeout", address(host, *port)),
                    ),
                }
            }
            ProbeAction::Grpc {
                host,
                port,
                service,
            } => match timeout(request.timeout, grpc::check((*host, *port), service)).await {
                Ok(outcome) => outcome,
                Err(_) => ProbeOutcome::new(
                    ProbeResult::Failure,
                    format!(
                        "timeout: failed to connect service \"{}\" within {:?}: context deadline exceeded",
                        address(&host.to_string(), *port),
                        request.timeout
                    ),
                ),
            },
            ProbeAction::Plugin { plugin, .. } => {
                let message = format!("plugin {plugin}: this node runs no plugins");
                ProbeOutcome::new(ProbeResult::Unknown, message)
            }
            ProbeAction::Exec { command } => match exec.exec(command, request.timeout).await {
                Ok((exit_code, mut output)) => {
                    output.truncate(OUTPUT_BYTES_MAX);
                    let result = if exit_code == 0 {
                        ProbeResult::Success
                    } else {
                        ProbeResult::Failure
                    };
                    ProbeOutcome::new(result, String::from_utf8_lossy(&output))
                }
                Err(None) => ProbeOutcome::new(
                    ProbeResult::Failure,
                    format!(
                        "command timed out: \"{}\" timed out after {:?}",
                        command.join(" "),
                        request.timeout
                    ),
                ),
                Err(Some(trouble)) => ProbeOutcome::new(ProbeResult::Unknown, trouble),
            },
        }
    }
}

/// `host:port`, with brackets where they belong.
pub(crate) fn address(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// A failed connect in Go's words.
pub(crate) fn dial(host: &str, port: u16, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {}: {why}", address(host, port))
}

//! Hooks of a container's life: `postStart`, `preStop`; and the exec that probes and hooks share.

use std::{net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::{
    api::core::v1::{Container, HTTPHeader, LifecycleHandler},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::time::sleep;
use wherry_plugin_host::{Exec, ProbeAction, ProbeRequest, ProbeResult, Prober};
use wherry_runtime_api::{ContainerId, Runtime, RuntimeError};

/// Longest wait for a `postStart` hook that has no limit of its own.
pub(crate) const POST_START_MAX: Duration = Duration::from_secs(600);

/// Runs commands in one container.
pub(crate) struct ContainerExec {
    /// Its runtime.
    pub(crate) runtime: Arc<dyn Runtime>,
    /// The container.
    pub(crate) id: ContainerId,
}

#[async_trait]
impl Exec for ContainerExec {
    async fn exec(
        &self,
        command: &[String],
        timeout: Duration,
    ) -> Result<(i32, Vec<u8>), Option<String>> {
        match self.runtime.exec_sync(&self.id, command, timeout).await {
            Ok(answer) => {
                let mut output = answer.stdout;
                output.extend_from_slice(&answer.stderr);
                Ok((answer.exit_code, output))
            }
            Err(RuntimeError::DeadlineExceeded { .. }) => Err(None),
            Err(error) => Err(Some(error.to_string())),
        }
    }
}

/// A port by number, or by its name in the container.
pub(crate) fn port(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_ref() == Some(text));
            named
                .map(|port| port.container_port)
                .or_else(|| text.parse().ok())?
        }
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}

/// Headers as pairs.
pub(crate) fn headers(list: Option<&Vec<HTTPHeader>>) -> Vec<(String, String)> {
    list.into_iter()
        .flatten()
        .map(|header| (header.name.clone(), header.value.clone()))
        .collect()
}

/// What a hook is made with.
pub(crate) struct Hook<'a> {
    /// Makes HTTP requests.
    pub(crate) prober: &'a dyn Prober,
    /// Runs commands.
    pub(crate) exec: &'a ContainerExec,
    /// The container.
    pub(crate) container: &'a Container,
    /// The pod's address.
    pub(crate) ip: Option<IpAddr>,
    /// When it counts as failed.
    pub(crate) timeout: Duration,
}

impl Hook<'_> {
    /// Runs a handler.
    ///
    /// # Errors
    /// What the event says.
    pub(crate) async fn run(&self, handler: &LifecycleHandler) -> Result<(), String> {
        let action = if let Some(sleeps) = &handler.sleep {
            let wanted = Duration::from_secs(sleeps.seconds.max(0).unsigned_abs());
            sleep(wanted.min(self.timeout)).await;
            return if wanted > self.timeout {
                Err("container terminated before sleep hook finished".into())
            } else {
                Ok(())
            };
        } else if let Some(exec) = &handler.exec {
            ProbeAction::Exec {
                command: exec.command.clone().unwrap_or_default(),
            }
        } else if let Some(get) = &handler.http_get {
            let host = get
                .host
                .clone()
                .or_else(|| self.ip.map(|ip| ip.to_string()));
            ProbeAction::HttpGet {
                is_https: get.scheme.as_deref() == Some("HTTPS"),
                host: host.ok_or("the pod has no address")?,
                port: port(self.container, &get.port)
                    .ok_or_else(|| format!("invalid port number: {:?}", get.port))?,
                path: get.path.clone().unwrap_or_default(),
                headers: headers(get.http_headers.as_ref()),
            }
        } else if let Some(tcp) = &handler.tcp_socket {
            let host = tcp
                .host
                .clone()
                .or_else(|| self.ip.map(|ip| ip.to_string()));
            ProbeAction::TcpSocket {
                host: host.ok_or("the pod has no address")?,
                port: port(self.container, &tcp.port)
                    .ok_or_else(|| format!("invalid port number: {:?}", tcp.port))?,
            }
        } else {
            return Err("the hook says nothing to do".into());
        };
        let request = ProbeRequest {
            action,
            timeout: self.timeout,
        };
        let outcome = self.prober.check(&request, self.exec).await;
        match (outcome.result, &request.action) {
            (ProbeResult::Success, _) => Ok(()),
            (_, ProbeAction::Exec { command }) => Err(format!(
                "Exec lifecycle hook ({command:?}) failed: {}",
                outcome.message
            )),
            (_, _) => Err(outcome.message),
        }
    }
}

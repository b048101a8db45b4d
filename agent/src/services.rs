//! Services and names on this node: their tasks, and the ports that pods have of the node.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use wherry_network::{Member, PortMapping};
use wherry_services::{HostPort, Protocol, watch};

use crate::{
    context::Context,
    pod::{self, admit::is_active},
};

/// Serves them until shutdown, as far as the config says. What the kernel does goes on after that.
pub(crate) async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let config = &context.config;
    let index = &context.services;
    let follow = async {
        if let Some(client) = config.kube.clone()
            && (config.services.is_some() || config.dns.is_some())
        {
            let node = config.node_name.clone();
            watch::run(client, node, Arc::clone(index), shutdown.clone()).await;
        }
    };
    let serve = async {
        if let Some(config) = config.services.clone() {
            let host_ports = context.directory.host_ports();
            wherry_services::run(config, Arc::clone(index), host_ports, shutdown.clone()).await;
        }
    };
    let name = async {
        if let Some(config) = config.dns.clone() {
            wherry_dns::run(config, Arc::clone(index), shutdown.clone()).await;
        }
    };
    tokio::join!(follow, serve, name);
}

/// The longest a pod that is to end waits for Services to send their connections elsewhere.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// How long other nodes have to hear what this one has heard.
const SPREAD: Duration = Duration::from_millis(500);

/// Waits until no Service sends new connections to a pod that is to end, so that none meets a server that has stopped
/// listening. A pod behind no Service waits for nothing, any other for a part of its grace period at the most.
pub(crate) async fn leave(context: &Context, pod: &Pod, deadline: Instant) {
    let spec = pod.spec.as_ref();
    if spec.is_none_or(|spec| spec.host_network == Some(true)) {
        return;
    }
    let sandboxes = context.actual.get(&pod::uid(pod)).sandboxes;
    let Some(ip) = sandboxes
        .last()
        .and_then(|sandbox| sandbox.ips.first().copied())
    else {
        return;
    };
    let namespace = pod::namespace(pod);
    let mut changes = context.services.subscribe();
    let gone = async {
        let mut was_known = false;
        while let Some(is_led_to) = context.services.leads_to(namespace, ip) {
            was_known = true;
            if !is_led_to || changes.changed().await.is_err() {
                break;
            }
        }
        if was_known {
            sleep(SPREAD).await;
        }
    };
    let left = deadline.saturating_duration_since(Instant::now());
    // A server that needs its whole grace period to end well is better late for a few connections.
    let _ = timeout(LEAVE_MAX.min(left / 2), gone).await;
}

/// The ports of the node that lead to a pod; none before it has an address, and after it has ended.
pub(crate) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let ip = pod
        .status
        .as_ref()
        .and_then(|status| status.pod_ip.as_ref());
    let Some(pod_ip) = ip.and_then(|ip| ip.parse().ok()).filter(|_| is_active(pod)) else {
        return Vec::new();
    };
    wanted_ports(pod)
        .map(|port| HostPort {
            host_ip: port.host_ip,
            protocol: port.protocol,
            host_port: port.host_port,
            pod_ip,
            container_port: port.container_port,
        })
        .collect()
}

/// A pod as plugins of the network are told of it.
pub(crate) fn member(pod: &Pod) -> Member {
    let ports = wanted_ports(pod).map(|port| PortMapping {
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: port.protocol.as_str().into(),
        host_ip: port.host_ip.map(IpAddr::from),
    });
    Member {
        uid: pod::uid(pod).to_string(),
        namespace: pod::namespace(pod).into(),
        name: pod::name(pod).into(),
        ports: ports.collect(),
    }
}

/// A port of the node as a pod's spec has it.
struct WantedPort {
    /// Every address of the node if there is none.
    host_ip: Option<Ipv4Addr>,
    protocol: Protocol,
    host_port: u16,
    container_port: u16,
}

/// The ports of the node that a pod with a network of its own wants.
fn wanted_ports(pod: &Pod) -> impl Iterator<Item = WantedPort> {
    let spec = pod.spec.as_ref();
    let spec = spec.filter(|spec| spec.host_network != Some(true));
    let sidecars = spec
        .into_iter()
        .flat_map(|spec| spec.init_containers.iter());
    let sidecars = sidecars
        .flatten()
        .filter(|container| container.restart_policy.is_some());
    let containers = sidecars.chain(spec.into_iter().flat_map(|spec| &spec.containers));
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(WantedPort {
                host_ip: port
                    .host_ip
                    .as_ref()
                    .and_then(|ip| ip.parse().ok())
                    .filter(|ip: &Ipv4Addr| !ip.is_unspecified()),
                protocol: Protocol::parse(port.protocol.as_deref()),
                host_port: port.host_port.and_then(|port| u16::try_from(port).ok())?,
                container_port: u16::try_from(port.container_port).ok()?,
            })
        })
        .filter(|port| port.host_port != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_of_the_node_lead_to_pods_that_run_in_a_network_of_their_own() {
        let pod = |spec: serde_json::Value, phase: &str| -> Pod {
            let mut pod = json!({ "metadata": {}, "spec": {}, "status": { "phase": phase, "podIP": "10.88.0.2" } });
            pod["spec"] = spec;
            serde_json::from_value(pod).unwrap()
        };
        let spec = json!({ "containers": [{ "name": "a", "ports": [
            { "containerPort": 80, "hostPort": 8080 },
            { "containerPort": 53, "hostPort": 5353, "protocol": "UDP", "hostIP": "10.51.0.1" },
            { "containerPort": 81 },
        ] }] });
        let want = |host_ip, protocol, host_port, container_port| HostPort {
            host_ip,
            protocol,
            host_port,
            pod_ip: [10, 88, 0, 2].into(),
            container_port,
        };
        assert_eq!(
            host_ports(&pod(spec.clone(), "Running")),
            [
                want(None, Protocol::Tcp, 8080, 80),
                want(Some([10, 51, 0, 1].into()), Protocol::Udp, 5353, 53),
            ]
        );
        assert_eq!(host_ports(&pod(spec.clone(), "Succeeded")), []);
        let mut host = spec;
        host["hostNetwork"] = true.into();
        assert_eq!(host_ports(&pod(host, "Running")), []);
    }
}

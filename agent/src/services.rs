//! Services and names on this node: their tasks, and the ports that pods have of the node.

use std::{net::Ipv4Addr, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;
use wherry_services::{HostPort, Index, Protocol, watch};

use crate::{context::Context, pod::admit::is_active};

/// Serves them until shutdown, as far as the config says. What the kernel does goes on after that.
pub(crate) async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let config = &context.config;
    let index = match &config.kube {
        Some(_) => Arc::new(Index::default()),
        None => Arc::new(Index::of_nothing()),
    };
    let follow = async {
        if let Some(client) = config.kube.clone()
            && (config.services.is_some() || config.dns.is_some())
        {
            let node = config.node_name.clone();
            watch::run(client, node, Arc::clone(&index), shutdown.clone()).await;
        }
    };
    let serve = async {
        if let Some(config) = config.services.clone() {
            let host_ports = context.directory.host_ports();
            wherry_services::run(config, Arc::clone(&index), host_ports, shutdown.clone()).await;
        }
    };
    let name = async {
        if let Some(config) = config.dns.clone() {
            wherry_dns::run(config, Arc::clone(&index), shutdown.clone()).await;
        }
    };
    tokio::join!(follow, serve, name);
}

/// The ports of the node that lead to a pod; none before it has an address, and after it has ended.
pub(crate) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else {
        return Vec::new();
    };
    let ip = status.pod_ip.as_ref().and_then(|ip| ip.parse().ok());
    let Some(pod_ip) = ip.filter(|_| spec.host_network != Some(true) && is_active(pod)) else {
        return Vec::new();
    };
    let containers = spec.init_containers.iter().flatten();
    let containers = containers.filter(|container| container.restart_policy.is_some());
    let ports = containers
        .chain(&spec.containers)
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(HostPort {
                host_ip: port
                    .host_ip
                    .as_ref()
                    .and_then(|ip| ip.parse().ok())
                    .filter(|ip: &Ipv4Addr| !ip.is_unspecified()),
                protocol: Protocol::parse(port.protocol.as_deref()),
                host_port: port.host_port.and_then(|port| u16::try_from(port).ok())?,
                pod_ip,
                container_port: u16::try_from(port.container_port).ok()?,
            })
        })
        .filter(|port| port.host_port != 0)
        .collect()
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

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
use wherry_services::{
    HostPort, Kept, Kind, Protocol, Service, ServiceKey,
    watch::{self, Following},
};

use crate::{
    context::Context,
    pod::{self, admit::is_active, env::ServiceEnv},
};

/// Where the next agent finds what this one knew, below the root.
const KEPT: &str = "agent/services.jsonl";

/// Serves them until shutdown, as far as the config says. What the kernel does goes on after that.
pub(crate) async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let config = &context.config;
    let index = &context.services;
    let follow = async {
        let Some(client) = config.kube.clone() else {
            return;
        };
        let kept = Kept::new(config.root.join(KEPT), &config.node_name);
        kept.load(index);
        let following = Following {
            node: config.node_name.clone(),
            has_slices: config.services.is_some() || config.dns.is_some(),
        };
        tokio::join!(
            watch::run(client, following, Arc::clone(index), shutdown.clone()),
            kept.run(index, &shutdown),
        );
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

/// The Services that the environment of a namespace's pods may show, once they are known: its own, and the API server's.
/// A node whose API server is away goes on with those that it knew before.
pub(crate) async fn shown(context: &Context, namespace: &str) -> Vec<ServiceEnv> {
    let index = &context.services;
    index.settled().await;
    let api_server = index
        .get("default", "kubernetes")
        .filter(|_| namespace != "default")
        .map(|view| (ServiceKey::new("default", "kubernetes"), view.service));
    let all = api_server.into_iter().chain(index.of_namespace(namespace));
    all.filter_map(|(key, service)| to_env(&key, &service))
        .collect()
}

fn to_env(key: &ServiceKey, service: &Service) -> Option<ServiceEnv> {
    let Kind::Cluster(ips) = &service.kind else {
        return None;
    };
    let ports = service.ports.iter().map(|port| {
        let name = Some(&port.name).filter(|name| !name.is_empty());
        (
            name.cloned(),
            port.port,
            port.protocol.as_str().to_uppercase(),
        )
    });
    Some(ServiceEnv {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        ip: ips.first()?.to_string(),
        ports: ports.collect(),
    })
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
    use std::pin::pin;

    use futures::{FutureExt, poll};
    use serde_json::json;
    use wherry_services::{Endpoint, ServiceKey, Slice};

    use super::*;
    use crate::testing::{Node, Running, pod};

    /// A Service of the pods' namespace leads to the first pod of a node, or not any more.
    fn lead(agent: &Running, is_ready: bool) {
        let endpoint = Endpoint {
            address: Ipv4Addr::new(10, 88, 0, 2).into(),
            hostname: None,
            is_ready,
            is_serving: true,
            is_terminating: !is_ready,
            is_local: true,
        };
        let slice = Slice {
            ports: Vec::new(),
            endpoints: vec![endpoint],
        };
        let index = &agent.context.services;
        index.put_slice(ServiceKey::new("ns", "web"), "web-1".into(), slice);
    }

    fn one(is_host_network: bool) -> serde_json::Value {
        json!({ "hostNetwork": is_host_network, "containers": [{ "name": "a", "image": "nginx:1" }] })
    }

    #[tokio::test]
    async fn a_pod_leaves_its_services_before_its_containers_are_asked_to_stop() {
        let node = Node::new();
        let agent = node.start().await;
        let web = pod("web", one(false));
        agent.set(&web).await;
        agent.until_ready(&web).await;
        lead(&agent, true);
        let has_asked = || node.oci.journal().contains(&"stop a/0".to_owned());
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut stopped = pin!(pod::stop::stop_all(&agent.context, &web, deadline));
        assert!(poll!(&mut stopped).is_pending());
        assert!(!has_asked(), "connections still come");
        lead(&agent, false);
        let told = Instant::now();
        stopped.await;
        assert!(has_asked());
        // Nodes that hear of it later have had their time.
        assert!(told.elapsed() >= SPREAD);
    }

    #[tokio::test]
    async fn a_pod_waits_for_no_service_that_is_not_there_and_for_none_without_end() {
        let node = Node::new();
        let agent = node.start().await;
        let web = pod("web", one(false));
        agent.set(&web).await;
        agent.until_ready(&web).await;
        let context = &agent.context;
        let deadline = Instant::now() + Duration::from_secs(60);
        let alone = leave(context, &web, deadline).now_or_never();
        assert!(alone.is_some(), "behind no Service");
        lead(&agent, true);
        for other in [pod("web", one(true)), pod("unknown", one(false))] {
            let left = leave(context, &other, deadline).now_or_never();
            assert!(left.is_some(), "no address of its own: {other:?}");
        }
        // The Service leads to it on and on.
        for near in [Instant::now(), deadline] {
            let left = tokio::time::timeout_at(deadline, leave(context, &web, near)).await;
            assert!(left.is_ok(), "some of the grace period is the pod's own");
        }
    }

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

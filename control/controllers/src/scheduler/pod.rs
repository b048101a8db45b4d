//! What the scheduler keeps of a pod. Pure.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, NodeSelector, Pod, PodSpec, PreferredSchedulingTerm, Toleration,
};

use super::{
    resources::Resources,
    term::{self, Between, Constraint},
};
use crate::pods;

/// What a container without a request is taken to use when nodes are compared
/// (`pkg/scheduler/util/pod_resources.go`: `DefaultMilliCPURequest`, `DefaultMemoryRequest`).
const CPU_MILLIS_ASSUMED: i64 = 100;
const MEMORY_BYTES_ASSUMED: i64 = 200 * 1024 * 1024;

/// What a pod needs, and who it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PodInfo {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) needs: Arc<Needs>,
    /// The message its condition `PodScheduled` has for not being scheduled.
    pub(crate) reported: Option<String>,
    /// The node on which others have been stopped for it (`status.nominatedNodeName`).
    pub(crate) nominated: Option<String>,
}

/// What a pod needs of a node, and what other pods see of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Needs {
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// The uid of what controls it: pods of one owner keep apart when nothing speaks against it.
    pub(crate) owner: Option<String>,
    pub(crate) priority: i32,
    pub(crate) may_preempt: bool,
    pub(crate) footprint: Footprint,
    pub(crate) node_selector: BTreeMap<String, String>,
    pub(crate) affinity: Option<NodeSelector>,
    pub(crate) preferred: Vec<PreferredSchedulingTerm>,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) runtime_class: Option<String>,
    pub(crate) images: Vec<String>,
    /// Affinity to other pods; most pods have none.
    pub(crate) between: Option<Box<Between>>,
    pub(crate) spread: Vec<Constraint>,
    pub(crate) claims: Vec<ClaimName>,
}

/// A PersistentVolumeClaim that a pod mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimName {
    pub(crate) name: String,
    /// It is made for the pod (`volumes[].ephemeral`).
    pub(crate) is_ephemeral: bool,
}

/// What a pod takes from a node that has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footprint {
    pub(crate) requests: Resources,
    /// Requests with an assumption where there is none, for comparing nodes.
    pub(crate) cpu_millis_assumed: i64,
    pub(crate) memory_bytes_assumed: i64,
    pub(crate) host_ports: Vec<HostPort>,
}

/// A port of the node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) ip: Option<String>,
    pub(crate) protocol: String,
    pub(crate) port: i32,
}

impl HostPort {
    /// Whether two pods cannot both have theirs: every address includes each one.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let same_ip = self.ip.is_none() || other.ip.is_none() || self.ip == other.ip;
        self.port == other.port && self.protocol == other.protocol && same_ip
    }
}

/// A pod that has a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Assigned {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) needs: Arc<Needs>,
    pub(crate) is_terminating: bool,
    pub(crate) started: Option<Timestamp>,
}

/// What a pod is to the scheduler.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Role {
    /// It waits for a node.
    Pending(Box<PodInfo>),
    /// It takes something from a node.
    Assigned(Box<Assigned>),
    /// It neither waits nor takes anything: over, gated, or another scheduler's.
    Neither,
}

/// Reads a pod as it is in the API.
pub(crate) fn role(pod: &Pod, scheduler_name: &str) -> Role {
    let Some(spec) = &pod.spec else {
        return Role::Neither;
    };
    let status = pod.status.as_ref();
    if matches!(
        status.and_then(|status| status.phase.as_deref()),
        Some("Succeeded" | "Failed")
    ) {
        return Role::Neither;
    }
    let metadata = &pod.metadata;
    let name = metadata.name.clone().unwrap_or_default();
    let is_terminating = metadata.deletion_timestamp.is_some();
    if let Some(node) = spec.node_name.clone().filter(|node| !node.is_empty()) {
        return Role::Assigned(Box::new(Assigned {
            name,
            node,
            needs: Arc::new(needs(pod, spec)),
            is_terminating,
            started: status.and_then(|status| Some(status.start_time.as_ref()?.0)),
        }));
    }
    let is_ours = spec.scheduler_name.as_deref().unwrap_or(scheduler_name) == scheduler_name;
    let is_gated = spec
        .scheduling_gates
        .as_ref()
        .is_some_and(|gates| !gates.is_empty());
    if !is_ours || is_gated || is_terminating {
        return Role::Neither;
    }
    let conditions = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten();
    let reported = conditions
        .filter(|condition| {
            condition.type_ == "PodScheduled"
                && condition.reason.as_deref() == Some("Unschedulable")
        })
        .find_map(|condition| condition.message.clone());
    Role::Pending(Box::new(PodInfo {
        name,
        uid: metadata.uid.clone().unwrap_or_default(),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
        needs: Arc::new(needs(pod, spec)),
        reported,
        nominated: status
            .and_then(|status| status.nominated_node_name.clone())
            .filter(|node| !node.is_empty()),
    }))
}

fn needs(pod: &Pod, spec: &PodSpec) -> Needs {
    let metadata = &pod.metadata;
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let labels = metadata.labels.clone().unwrap_or_default();
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref());
    let init = spec.init_containers.iter().flatten();
    Needs {
        between: term::between(spec, &namespace, &labels).map(Box::new),
        spread: term::constraints(spec, &namespace, &labels),
        owner: pods::controller(metadata.owner_references.as_ref()).map(|owner| owner.uid.clone()),
        priority: spec.priority.unwrap_or(0),
        may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
        footprint: footprint(spec),
        node_selector: spec.node_selector.clone().unwrap_or_default(),
        affinity: affinity.and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .clone()
        }),
        preferred: affinity
            .and_then(|affinity| {
                affinity
                    .preferred_during_scheduling_ignored_during_execution
                    .clone()
            })
            .unwrap_or_default(),
        tolerations: spec.tolerations.clone().unwrap_or_default(),
        runtime_class: spec
            .runtime_class_name
            .clone()
            .filter(|name| !name.is_empty()),
        images: (spec.containers.iter().chain(init))
            .filter_map(|container| container.image.clone())
            .collect(),
        claims: claims_of(spec, metadata.name.as_deref().unwrap_or_default()),
        namespace,
        labels,
    }
}

/// The claims that a pod mounts.
pub(crate) fn claims_of(spec: &PodSpec, pod: &str) -> Vec<ClaimName> {
    let claims = spec.volumes.iter().flatten().filter_map(|volume| {
        if let Some(source) = &volume.persistent_volume_claim {
            return Some(ClaimName {
                name: source.claim_name.clone(),
                is_ephemeral: false,
            });
        }
        volume.ephemeral.as_ref().map(|_| ClaimName {
            name: format!("{pod}-{}", volume.name),
            is_ephemeral: true,
        })
    });
    claims.collect()
}

/// What a pod takes: the sum of its containers, or what starting it takes if that is more.
pub(crate) fn footprint(spec: &PodSpec) -> Footprint {
    let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let init = || spec.init_containers.iter().flatten();
    let mut assumed = [0, 0];
    let mut running = Resources::default();
    for container in spec.containers.iter().chain(init().filter(is_sidecar)) {
        let requests = requests(container);
        let or = |amount, otherwise| if amount == 0 { otherwise } else { amount };
        assumed[0] += or(requests.cpu_millis, CPU_MILLIS_ASSUMED);
        assumed[1] += or(requests.memory_bytes, MEMORY_BYTES_ASSUMED);
        running.add(&requests);
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in init() {
        let mut now = requests(container);
        now.add(&sidecars);
        if is_sidecar(&container) {
            sidecars = now.clone();
        }
        peak.raise_to(&now);
    }
    running.raise_to(&peak);
    let of_pod = Resources::read(
        spec.resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref()),
    );
    if of_pod.cpu_millis > 0 {
        running.cpu_millis = of_pod.cpu_millis;
    }
    if of_pod.memory_bytes > 0 {
        running.memory_bytes = of_pod.memory_bytes;
    }
    running.add(&Resources::read(spec.overhead.as_ref()));
    running.pods = 1;
    let host_ports = spec
        .containers
        .iter()
        .chain(init().filter(is_sidecar))
        .flat_map(host_ports)
        .collect();
    Footprint {
        cpu_millis_assumed: running.cpu_millis.max(assumed[0]),
        memory_bytes_assumed: running.memory_bytes.max(assumed[1]),
        requests: running,
        host_ports,
    }
}

fn requests(container: &Container) -> Resources {
    Resources::read(
        container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref()),
    )
}

fn host_ports(container: &Container) -> Vec<HostPort> {
    let ports = container.ports.iter().flatten().filter_map(|port| {
        Some(HostPort {
            ip: port
                .host_ip
                .clone()
                .filter(|ip| !matches!(ip.as_str(), "" | "0.0.0.0" | "::")),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port: port.host_port.filter(|port| *port > 0)?,
        })
    });
    ports.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(spec: Value) -> Footprint {
        footprint(&serde_json::from_value(spec).unwrap())
    }

    fn container(cpu: &str) -> Value {
        json!({ "name": "c", "resources": { "requests": { "cpu": cpu } } })
    }

    #[test]
    fn a_pod_takes_what_it_needs_to_run_or_to_start() {
        let sidecar = |cpu: &str| {
            let mut container = container(cpu);
            container["restartPolicy"] = "Always".into();
            container
        };
        for (spec, want) in [
            (
                json!({ "containers": [container("100m"), container("200m")] }),
                300,
            ),
            (
                json!({ "containers": [container("100m")], "initContainers": [container("1")] }),
                1000,
            ),
            (
                json!({ "containers": [container("2")], "initContainers": [container("1")] }),
                2000,
            ),
            (
                json!({ "containers": [container("1")], "initContainers": [sidecar("1")] }),
                2000,
            ),
            (
                json!({ "containers": [container("1")], "initContainers": [sidecar("1"), container("3")] }),
                4000,
            ),
            (
                json!({ "containers": [container("1")], "initContainers": [container("3"), sidecar("1")] }),
                3000,
            ),
            (
                json!({ "containers": [container("1")], "overhead": { "cpu": "10m" } }),
                1010,
            ),
            (
                json!({ "containers": [container("1")], "resources": { "requests": { "cpu": "5" } } }),
                5000,
            ),
        ] {
            assert_eq!(of(spec.clone()).requests.cpu_millis, want, "{spec}");
        }
        let bare = of(json!({ "containers": [{ "name": "c" }] }));
        assert_eq!((bare.requests.cpu_millis, bare.requests.pods), (0, 1));
        assert_eq!(
            (bare.cpu_millis_assumed, bare.memory_bytes_assumed),
            (100, 200 << 20)
        );
    }

    #[test]
    fn host_ports_conflict_when_they_share_an_address() {
        let port = |ip: Option<&str>, protocol: &str, port| HostPort {
            ip: ip.map(str::to_owned),
            protocol: protocol.into(),
            port,
        };
        for (a, b, want) in [
            (port(None, "TCP", 80), port(None, "TCP", 80), true),
            (
                port(None, "TCP", 80),
                port(Some("10.0.0.1"), "TCP", 80),
                true,
            ),
            (
                port(Some("10.0.0.2"), "TCP", 80),
                port(Some("10.0.0.1"), "TCP", 80),
                false,
            ),
            (port(None, "TCP", 80), port(None, "UDP", 80), false),
            (port(None, "TCP", 80), port(None, "TCP", 81), false),
        ] {
            assert_eq!((a.conflicts(&b), b.conflicts(&a)), (want, want));
        }
    }

    #[test]
    fn only_pods_that_want_this_scheduler_wait_for_it() {
        let read =
            |pod: Value| match role(&serde_json::from_value(pod).unwrap(), "default-scheduler") {
                Role::Pending(_) => "pending",
                Role::Assigned(_) => "assigned",
                Role::Neither => "neither",
            };
        for (pod, want) in [
            (json!({ "spec": { "containers": [] } }), "pending"),
            (
                json!({ "spec": { "containers": [], "nodeName": "n" } }),
                "assigned",
            ),
            (
                json!({ "spec": { "containers": [], "nodeName": "n" }, "status": { "phase": "Failed" } }),
                "neither",
            ),
            (
                json!({ "spec": { "containers": [], "schedulerName": "other" } }),
                "neither",
            ),
            (
                json!({ "spec": { "containers": [], "schedulingGates": [{ "name": "g" }] } }),
                "neither",
            ),
            (
                json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" }, "spec": { "containers": [] } }),
                "neither",
            ),
        ] {
            assert_eq!(read(pod.clone()), want, "{pod}");
        }
    }
}

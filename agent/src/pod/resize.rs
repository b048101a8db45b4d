//! Resources that change while a pod runs: what is granted, and what follows for its containers. Pure.
//!
//! ```text
//!  spec (asked for) ── judge ──▶ Allocation (granted, on disk) ── changes ──▶ actuated (the runtime has it)
//!        Deferred, Infeasible ◀──┘                       PodResizeInProgress ◀──┘
//! ```
//!
//! Everything but this file sees the pod with what was granted in place of what is asked for.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use serde::{Deserialize, Serialize};
use wherry_runtime_api::{ContainerId, ContainerState, ContainerStatus, LinuxResources};

use super::{qos, quantity, spec};

/// Resources of a pod's containers, and of the pod as a whole where it names its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Allocation {
    /// By container name.
    pub(crate) containers: BTreeMap<String, ResourceRequirements>,
    /// The pod's own.
    pub(crate) pod: Option<ResourceRequirements>,
}

fn resizable(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = spec(pod);
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
}

impl Allocation {
    /// What a pod asks for.
    pub(crate) fn of(pod: &Pod) -> Self {
        Self {
            containers: resizable(pod)
                .map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default()))
                .collect(),
            pod: spec(pod).resources.clone(),
        }
    }

    /// The pod with these in place of what it asks for.
    pub(crate) fn overlay(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if *self == Self::of(pod) {
            return Arc::clone(pod);
        }
        let mut pod = Pod::clone(pod);
        if let Some(spec) = &mut pod.spec {
            let inits = spec.init_containers.iter_mut().flatten();
            for container in inits.chain(&mut spec.containers) {
                if let Some(granted) = self.containers.get(&container.name) {
                    container.resources = Some(granted.clone());
                }
            }
            spec.resources.clone_from(&self.pod);
        }
        Arc::new(pod)
    }
}

/// What the node has, and what its other pods hold; by resource, thousandths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// For all pods together.
    pub(crate) allocatable: BTreeMap<&'static str, i128>,
    /// By the others.
    pub(crate) used: BTreeMap<&'static str, i128>,
}

/// Whether other resources can be granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// Not now: others hold what is asked for.
    Deferred(String),
    /// Never on this node.
    Infeasible(String),
}

/// Decides whether the node can give a pod what it asks for now, in the kubelet's words.
pub(crate) fn judge(asked: &Pod, room: &Room) -> Result<(), Refusal> {
    for (resource, shown) in [("cpu", 1), ("memory", 1000)] {
        let requested = qos::pod_request_millis(asked, resource);
        let capacity = room.allocatable.get(resource).copied().unwrap_or(0);
        let used = room.used.get(resource).copied().unwrap_or(0);
        let (r, u, c) = (requested / shown, used / shown, capacity / shown);
        if requested > capacity {
            return Err(Refusal::Infeasible(format!(
                "Node didn't have enough capacity: {resource}, requested: {r}, capacity: {c}"
            )));
        }
        if requested > 0 && used + requested > capacity {
            return Err(Refusal::Deferred(format!(
                "Node didn't have enough resource: {resource}, requested: {r}, used: {u}, capacity: {c}"
            )));
        }
    }
    Ok(())
}

/// A running container that has other resources than were granted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// Which.
    pub(crate) id: ContainerId,
    /// Its name.
    pub(crate) name: String,
    /// What it is to have.
    pub(crate) to: ResourceRequirements,
    /// A `resizePolicy` says that it starts anew for that.
    pub(crate) restarts: bool,
    /// Some limit gets smaller.
    pub(crate) shrinks: bool,
}

/// What the containers that run have to be given; those that get less come first, so that the pod
/// has at no moment more than it is granted.
pub(crate) fn changes(
    pod: &Pod,
    containers: &[ContainerStatus],
    actuated: &BTreeMap<String, ResourceRequirements>,
) -> Vec<Change> {
    let mut changes: Vec<_> = resizable(pod)
        .filter_map(|container| {
            let running = containers.iter().find(|status| {
                status.name == container.name
                    && matches!(status.state, ContainerState::Running { .. })
            })?;
            let has = actuated.get(&container.name)?;
            let to = container.resources.clone().unwrap_or_default();
            let changed: Vec<_> = ["cpu", "memory"]
                .into_iter()
                .filter(|resource| differs(has, &to, resource))
                .collect();
            if changed.is_empty() {
                return None;
            }
            let policies = container.resize_policy.as_deref().unwrap_or_default();
            let restarts = policies.iter().any(|policy| {
                policy.restart_policy == "RestartContainer"
                    && changed.contains(&policy.resource_name.as_str())
            });
            let shrinks = ["cpu", "memory"].into_iter().any(|resource| {
                matches!((limit(has, resource), limit(&to, resource)), (Some(a), Some(b)) if b < a)
                    || (limit(has, resource).is_none() && limit(&to, resource).is_some())
            });
            Some(Change {
                id: running.id.clone(),
                name: container.name.clone(),
                to,
                restarts,
                shrinks,
            })
        })
        .collect();
    changes.sort_by_key(|change| !change.shrinks);
    changes
}

fn amount(map: Option<&BTreeMap<String, Quantity>>, resource: &str) -> Option<i128> {
    map.and_then(|map| map.get(resource))
        .and_then(quantity::millis)
}

fn limit(of: &ResourceRequirements, resource: &str) -> Option<i128> {
    amount(of.limits.as_ref(), resource)
}

fn differs(a: &ResourceRequirements, b: &ResourceRequirements, resource: &str) -> bool {
    limit(a, resource) != limit(b, resource)
        || amount(a.requests.as_ref(), resource) != amount(b.requests.as_ref(), resource)
}

/// Limits of a pod wide enough for both: what it has while its containers change.
pub(crate) fn widest(a: &LinuxResources, b: &LinuxResources) -> LinuxResources {
    fn larger<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
        // None is no limit.
        a.zip(b).map(|(a, b)| a.max(b))
    }
    LinuxResources {
        cpu_shares: a.cpu_shares.max(b.cpu_shares),
        cpu_quota_us: larger(a.cpu_quota_us, b.cpu_quota_us),
        cpu_period_us: larger(a.cpu_period_us, b.cpu_period_us),
        memory_bytes_max: larger(a.memory_bytes_max, b.memory_bytes_max),
        ..b.clone()
    }
}

/// Where a resize is, for the pod's conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Progress {
    /// Not granted.
    Pending(Refusal),
    /// Granted, and not everything is set yet; with the trouble, if there is any.
    InProgress(Option<String>),
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::SystemTime};

    use serde_json::{Value, json};

    use super::*;

    fn pod(resources: &[(&str, Value)], policy: Value) -> Pod {
        let containers: Vec<_> = resources
            .iter()
            .map(|(name, resources)| {
                json!({ "name": name, "resources": resources, "resizePolicy": policy })
            })
            .collect();
        serde_json::from_value(json!({ "spec": { "containers": containers } })).expect("a pod")
    }

    fn running(name: &str) -> ContainerStatus {
        ContainerStatus {
            id: name.into(),
            handler: "oci".into(),
            sandbox: "s".into(),
            pod: "u".into(),
            name: name.into(),
            attempt: 0,
            image: String::new(),
            image_id: String::new(),
            state: ContainerState::Running {
                started_at: SystemTime::UNIX_EPOCH,
            },
            created_at: SystemTime::UNIX_EPOCH,
            log_path: PathBuf::new(),
            pid: None,
            labels: Vec::new(),
            annotations: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn limits(cpu: &str, memory: &str) -> Value {
        json!({ "limits": { "cpu": cpu, "memory": memory }, "requests": { "cpu": cpu, "memory": memory } })
    }

    #[test]
    fn more_than_the_node_has_is_infeasible_and_more_than_is_free_is_deferred() {
        let room = Room {
            allocatable: [("cpu", 2000), ("memory", 1 << 40)].into(),
            used: [("cpu", 1500), ("memory", 0)].into(),
        };
        let ask = |cpu: &str| judge(&pod(&[("a", limits(cpu, "1Ki"))], json!([])), &room);
        assert_eq!(ask("500m"), Ok(()));
        assert_eq!(
            ask("1"),
            Err(Refusal::Deferred(
                "Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000".into()
            ))
        );
        assert_eq!(
            ask("3"),
            Err(Refusal::Infeasible(
                "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000".into()
            ))
        );
    }

    #[test]
    fn what_gets_less_comes_first_and_the_policy_says_who_restarts() {
        let was = pod(
            &[("a", limits("1", "1Gi")), ("b", limits("1", "1Gi"))],
            json!([]),
        );
        let policy = json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" },
                            { "resourceName": "cpu", "restartPolicy": "NotRequired" }]);
        let now = pod(
            &[("a", limits("2", "1Gi")), ("b", limits("1", "512Mi"))],
            policy,
        );
        let actuated = Allocation::of(&was).containers;
        let all = changes(&now, &[running("a"), running("b")], &actuated);
        let shown: Vec<_> = all
            .iter()
            .map(|c| (c.name.as_str(), c.shrinks, c.restarts))
            .collect();
        assert_eq!(shown, [("b", true, true), ("a", false, false)]);
        assert!(changes(&was, &[running("a"), running("b")], &actuated).is_empty());
        // 1000m is 1.
        let same = pod(
            &[("a", limits("1000m", "1Gi")), ("b", limits("1", "1024Mi"))],
            json!([]),
        );
        assert!(changes(&same, &[running("a"), running("b")], &actuated).is_empty());
    }

    #[test]
    fn what_was_granted_stands_in_for_what_is_asked_for() {
        let granted = pod(&[("a", limits("1", "1Gi"))], json!([]));
        let asked = Arc::new(pod(&[("a", limits("4", "1Gi"))], json!([])));
        let allocation = Allocation::of(&granted);
        assert_eq!(Allocation::of(&allocation.overlay(&asked)), allocation);
        let same = Allocation::of(&asked).overlay(&asked);
        assert!(Arc::ptr_eq(&same, &asked));
    }

    #[test]
    fn a_pod_is_never_narrower_than_its_containers_while_they_change() {
        let limits = |cpu: Option<i64>, memory: Option<u64>| LinuxResources {
            cpu_quota_us: cpu,
            memory_bytes_max: memory,
            ..LinuxResources::default()
        };
        let both = widest(&limits(Some(1), Some(9)), &limits(Some(2), None));
        assert_eq!((both.cpu_quota_us, both.memory_bytes_max), (Some(2), None));
    }
}

//! Pods that nobody will miss: too many that have ended, those of nodes that are gone, those that were deleted
//! before they had a node, and those that were deleted on a node that somebody has said is out of service.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{nodes::NodeView, pod_control, pods::PodView, retry, watched::Watched};

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(20);
/// Pods that have ended, of which there may be so many (`--terminated-pod-gc-threshold`).
const TERMINATED_MAX: usize = 12_500;
/// A node is believed to be gone after so long: it may only not have been seen yet.
const QUARANTINE_SECONDS: i64 = 40;

/// A person says by this taint that a node is off for good and that its pods are not running any more.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Nodes that pods name and that are not there, and since when.
type Missing = BTreeMap<String, Timestamp>;

/// What to delete.
#[derive(Debug, Default)]
struct Plan {
    terminated: Vec<Arc<PodView>>,
    /// With the node that has gone.
    orphaned: Vec<Arc<PodView>>,
    unscheduled: Vec<Arc<PodView>>,
    /// Being deleted on a node that is out of service.
    abandoned: Vec<Arc<PodView>>,
}

/// What is known of nodes.
#[derive(Debug, Default)]
struct Nodes {
    known: HashSet<String>,
    out_of_service: HashSet<String>,
}

impl Nodes {
    fn see(nodes: &[Arc<NodeView>]) -> Self {
        let is_off = |node: &&Arc<NodeView>| {
            node.ready != "True" && node.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
        };
        let name = |node: &Arc<NodeView>| node.key.name.clone();
        Self {
            known: nodes.iter().map(name).collect(),
            out_of_service: nodes.iter().filter(is_off).map(name).collect(),
        }
    }
}

fn plan(
    pods: &[Arc<PodView>],
    nodes: &Nodes,
    missing: &mut Missing,
    terminated_max: usize,
    now: Timestamp,
) -> Plan {
    let named = pods.iter().filter(|pod| !pod.node.is_empty());
    let absent: HashSet<&String> = named
        .map(|pod| &pod.node)
        .filter(|node| !nodes.known.contains(*node))
        .collect();
    missing.retain(|node, _| absent.contains(node));
    for node in absent {
        missing.entry(node.clone()).or_insert(now);
    }
    let is_gone = |pod: &PodView| {
        missing
            .get(&pod.node)
            .is_some_and(|since| now.as_second() - since.as_second() >= QUARANTINE_SECONDS)
    };
    let mut plan = Plan::default();
    for pod in pods {
        if is_gone(pod) {
            plan.orphaned.push(pod.clone());
        } else if pod.deleted.is_some() && pod.node.is_empty() {
            plan.unscheduled.push(pod.clone());
        } else if pod.deleted.is_some() && nodes.out_of_service.contains(&pod.node) {
            plan.abandoned.push(pod.clone());
        } else if pod.is_finished() && pod.deleted.is_none() {
            plan.terminated.push(pod.clone());
        }
    }
    plan.terminated.sort_by_key(|pod| pod.created);
    let surplus = plan.terminated.len().saturating_sub(terminated_max);
    plan.terminated.truncate(surplus);
    plan
}

/// Looks now and then until shutdown.
pub(crate) async fn run(
    client: Client,
    pods: Arc<Watched<PodView>>,
    nodes: Arc<Watched<NodeView>>,
    shutdown: CancellationToken,
) {
    let complete = async { tokio::join!(pods.complete(), nodes.complete()) };
    if shutdown.run_until_cancelled(complete).await.is_none() {
        return;
    }
    let mut missing = Missing::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let known = Nodes::see(&nodes.all());
        let now = Timestamp::now();
        let plan = plan(&pods.all(), &known, &mut missing, TERMINATED_MAX, now);
        for pod in plan.terminated.iter().chain(&plan.unscheduled) {
            report(pod, delete(&client, pod).await);
        }
        for pod in &plan.orphaned {
            report(pod, delete_orphan(&client, pod).await);
        }
        for pod in &plan.abandoned {
            let message = "PodGC: node is out-of-service";
            report(pod, fail_and_delete(&client, pod, message).await);
        }
    }
}

fn report(pod: &PodView, result: kube::Result<()>) {
    match result {
        Ok(()) => {}
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
        Err(error) => warn!(pod = %pod.key, error = %retry::text(&error), "Pod not collected"),
    }
}

/// At once: no kubelet has to be waited for.
async fn delete(client: &Client, pod: &PodView) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.key.namespace);
    let parameters = pod_control::of_uid(&pod.uid).grace_period(0);
    api.delete(&pod.key.name, &parameters).await.map(drop)
}

async fn delete_orphan(client: &Client, pod: &PodView) -> kube::Result<()> {
    // What this process has seen may be old.
    let nodes: Api<Node> = Api::all(client.clone());
    if nodes.get_opt(&pod.node).await?.is_some() {
        return Ok(());
    }
    fail_and_delete(client, pod, "PodGC: node no longer exists").await
}

async fn fail_and_delete(client: &Client, pod: &PodView, message: &str) -> kube::Result<()> {
    if !pod.is_finished() {
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": message,
            "lastTransitionTime": Timestamp::now().to_string(),
        });
        let patch = json!({
            "metadata": {"uid": pod.uid},
            "status": {"phase": "Failed", "conditions": [condition]},
        });
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.key.namespace);
        api.patch_status(
            &pod.key.name,
            &PatchParams::default(),
            &Patch::Strategic(patch),
        )
        .await?;
    }
    delete(client, pod).await
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn pod(name: &str, more: Value) -> Arc<PodView> {
        let mut pod = json!({"metadata": {"name": name, "uid": name}, "spec": {"containers": []}});
        json_patch::merge(&mut pod, &more);
        Arc::new(serde_json::from_value::<Pod>(pod).unwrap().into())
    }

    #[test]
    fn only_what_nobody_misses_goes() {
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).unwrap();
        let ended = |age: i64| {
            json!({
                "metadata": {"creationTimestamp": at(-age).to_string()},
                "spec": {"nodeName": "a"}, "status": {"phase": "Succeeded"},
            })
        };
        let pods = [
            pod("old", ended(9)),
            pod("young", ended(1)),
            pod("works", json!({"spec": {"nodeName": "a"}})),
            pod("orphan", json!({"spec": {"nodeName": "b"}})),
            pod("waits", json!({})),
            pod(
                "left",
                json!({"metadata": {"deletionTimestamp": at(0).to_string()}}),
            ),
            pod("stays", json!({"spec": {"nodeName": "off"}})),
            pod(
                "stuck",
                json!({"metadata": {"deletionTimestamp": at(0).to_string()}, "spec": {"nodeName": "off"}}),
            ),
        ];
        let view = |node: Value| {
            Arc::new(NodeView::from(
                serde_json::from_value::<Node>(node).unwrap(),
            ))
        };
        let off = json!({
            "metadata": {"name": "off"},
            "spec": {"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]},
            "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]},
        });
        let nodes = Nodes::see(&[view(json!({"metadata": {"name": "a"}})), view(off)]);
        let mut missing = Missing::new();
        let mut names = |seconds: i64, max: usize| {
            let plan = plan(&pods, &nodes, &mut missing, max, at(seconds));
            [
                plan.terminated,
                plan.orphaned,
                plan.unscheduled,
                plan.abandoned,
            ]
            .map(|pods| {
                let names = pods.iter().map(|pod| pod.key.name.clone());
                names.collect::<Vec<_>>().join(",")
            })
        };
        assert_eq!(names(0, 1), ["old", "", "left", "stuck"]);
        assert_eq!(names(39, 2), ["", "", "left", "stuck"]);
        assert_eq!(names(40, 2), ["", "orphan", "left", "stuck"]);
    }
}

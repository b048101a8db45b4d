//! What becomes of the pods of a node that is not well: they are not ready, and after the time that they tolerate it
//! they are evicted, to be replaced elsewhere.
//!
//! A pod's time begins when the taint is first seen here, so that a control plane that comes back after long gives
//! nodes and pods their time again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ObjectReference, Pod, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    events::{Note, Recorder},
    nodes::NodeView,
    pod_control,
    pods::PodView,
    scheduler::is_tolerated,
    watched::Watched,
    workqueue::{Key, WorkQueue},
};

/// Nodes that are looked at at once.
const WORKERS: usize = 2;

const COMPONENT: &str = "taint-eviction-controller";

/// Pods of a node with taints, and since when their time runs.
type Since = HashMap<String, HashMap<String, Instant>>;

/// What is to be done with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    /// It goes after this long.
    GoesIn(Duration),
}

/// How long a pod stays with taints (only those that evict matter).
fn fate(taints: &[Taint], tolerations: &[Toleration]) -> Fate {
    let mut soonest = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        // As upstream: of the tolerations that fit a taint, the first counts.
        let fitting = tolerations
            .iter()
            .find(|toleration| is_tolerated(taint, std::slice::from_ref(*toleration)));
        match fitting.map(|toleration| toleration.toleration_seconds) {
            None => return Fate::GoesIn(Duration::ZERO),
            Some(None) => {}
            Some(Some(seconds)) => {
                let tolerated = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
                soonest =
                    Some(soonest.map_or(tolerated, |soonest: Duration| soonest.min(tolerated)));
            }
        }
    }
    soonest.map_or(Fate::Stays, Fate::GoesIn)
}

/// Pods of nodes, ready to be run.
pub(crate) struct Prepared {
    client: Client,
    recorder: Recorder,
    queue: Arc<WorkQueue>,
}

impl Prepared {
    /// Hears of nodes that change and of pods that come to nodes.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        nodes: &mut Watched<NodeView>,
        pods: &mut Watched<PodView>,
    ) -> Self {
        let queue = Arc::<WorkQueue>::default();
        let of_nodes = queue.clone();
        nodes.listen(move |old, new| {
            let is_well = |node: Option<&Arc<NodeView>>| node.is_none_or(|node| !concerns(node));
            if crate::nodes::is_changed(old, new)
                && !(is_well(old) && is_well(new))
                && let Some(node) = new.or(old)
            {
                of_nodes.add(Key::new("", &node.key.name));
            }
        });
        let of_pods = queue.clone();
        pods.listen(move |old, new| {
            if let Some(new) = new
                && !new.node.is_empty()
                && old.is_none_or(|old| old.node.is_empty())
            {
                of_pods.add(Key::new("", &new.node));
            }
        });
        Self {
            client,
            recorder,
            queue,
        }
    }

    /// Looks after pods until shutdown.
    pub(crate) async fn run(self, nodes: Arc<Watched<NodeView>>, shutdown: CancellationToken) {
        if shutdown
            .run_until_cancelled(nodes.complete())
            .await
            .is_none()
        {
            return;
        }
        let Self {
            client,
            recorder,
            queue,
        } = self;
        let worker = Arc::new(Worker {
            client,
            recorder,
            nodes,
            since: Mutex::default(),
        });
        let reconcile = move |key: Key| {
            let worker = worker.clone();
            async move { worker.look_at(&key.name).await }
        };
        queue
            .run(
                "Pods of a node not looked after",
                WORKERS,
                shutdown,
                reconcile,
            )
            .await;
    }
}

/// Whether there may be something to do for a node's pods.
fn concerns(node: &NodeView) -> bool {
    node.ready == "Unknown" || node.taints.iter().any(|taint| taint.effect == "NoExecute")
}

struct Worker {
    client: Client,
    recorder: Recorder,
    nodes: Arc<Watched<NodeView>>,
    since: Mutex<Since>,
}

impl Worker {
    async fn look_at(&self, name: &str) -> kube::Result<Option<Duration>> {
        let node = self.nodes.get(&Key::new("", name));
        let Some(node) = node.filter(|node| concerns(node)) else {
            self.relieve(name);
            return Ok(None);
        };
        let pods: Api<Pod> = Api::all(self.client.clone());
        let on_node = ListParams::default().fields(&format!("spec.nodeName={name}"));
        let pods = pods.list(&on_node).await?.items;
        if node.ready == "Unknown" {
            for pod in pods.iter().filter(|pod| is_ready(pod)) {
                self.mark_not_ready(pod).await?;
            }
        }
        let mut again: Option<Duration> = None;
        let now = Instant::now();
        for pod in &pods {
            if pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let spec = pod.spec.as_ref();
            let tolerations = spec.and_then(|spec| spec.tolerations.as_deref());
            let Fate::GoesIn(tolerated) = fate(&node.taints, tolerations.unwrap_or_default())
            else {
                continue;
            };
            let left = tolerated.saturating_sub(now - self.since(name, pod, now));
            if left.is_zero() {
                self.evict(pod, name).await?;
            } else {
                again = Some(again.map_or(left, |again| again.min(left)));
            }
        }
        self.forget_others(name, &pods);
        Ok(again)
    }

    /// Since when a pod's time runs.
    fn since(&self, node: &str, pod: &Pod, now: Instant) -> Instant {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let of_node = since.entry(node.to_owned()).or_default();
        *of_node.entry(pod.uid().unwrap_or_default()).or_insert(now)
    }

    fn forget_others(&self, node: &str, pods: &[Pod]) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_node) = since.get_mut(node) {
            of_node.retain(|uid, _| {
                pods.iter()
                    .any(|pod| pod.metadata.uid.as_ref() == Some(uid))
            });
        }
    }

    /// A node is well: nobody's time runs any more.
    fn relieve(&self, node: &str) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.remove(node).is_some_and(|pods| !pods.is_empty()) {
            info!(node, "Pods stay on the node");
        }
    }

    async fn mark_not_ready(&self, pod: &Pod) -> kube::Result<()> {
        // The reason tells the node, once it is back, that this is not what it said itself.
        let condition = json!({
            "type": "Ready", "status": "False",
            "reason": "NodeNotReady", "message": "Node is not ready",
            "lastTransitionTime": Time(Timestamp::now()),
        });
        let written = self
            .patch_status(pod, json!({ "conditions": [condition] }))
            .await?;
        if written {
            self.record(
                pod,
                "Warning",
                "NodeNotReady",
                "Node is not ready".into(),
                "node-controller",
            );
        }
        Ok(())
    }

    async fn evict(&self, pod: &Pod, node: &str) -> kube::Result<()> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        info!(pod = name, namespace, node, "Pod is evicted from its node");
        let condition = json!({
            "type": "DisruptionTarget", "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": Time(Timestamp::now()),
        });
        let message = format!("Marking for deletion Pod {namespace}/{name}");
        self.record(pod, "Normal", "TaintManagerEviction", message, COMPONENT);
        if !self
            .patch_status(pod, json!({ "conditions": [condition] }))
            .await?
        {
            return Ok(());
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let params = pod_control::of_uid(&pod.uid().unwrap_or_default());
        gone_is_well(pods.delete(&name, &params).await.map(drop)).map(drop)
    }

    /// Answers whether the pod is still there.
    async fn patch_status(&self, pod: &Pod, status: Value) -> kube::Result<bool> {
        let patch = json!({ "metadata": { "uid": pod.uid() }, "status": status });
        let pods: Api<Pod> =
            Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = Patch::Strategic(patch);
        let written = pods
            .patch_status(&pod.name_any(), &PatchParams::default(), &patch)
            .await;
        gone_is_well(written.map(drop))
    }

    fn record(
        &self,
        pod: &Pod,
        type_: &'static str,
        reason: &'static str,
        message: String,
        component: &str,
    ) {
        let object = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: pod.namespace(),
            name: Some(pod.name_any()),
            uid: pod.uid(),
            ..ObjectReference::default()
        };
        self.recorder.record(Note {
            object,
            type_,
            reason,
            message,
            component: component.into(),
        });
    }
}

/// Whether something was written, or its object has gone or is another by now.
fn gone_is_well(written: kube::Result<()>) -> kube::Result<bool> {
    match written {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        written => written.map(|()| true),
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests;

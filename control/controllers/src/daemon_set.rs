//! DaemonSets: a pod on each node that is meant.
//!
//! ```text
//!  template ─▶ ControllerRevision (its hash is on each pod)
//!  nodes, pods ─▶ which nodes want a pod ─▶ creations, deletions
//!              ─▶ rolling: old pods away within maxUnavailable, or new ones beside them within maxSurge
//!              ─▶ status
//! ```
//!
//! A pod names its node by affinity, and the scheduler puts it there.

mod plan;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet},
    core::v1::Pod,
};
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;
use wherry_api::selector::LabelSelector;

use crate::{
    events::Recorder,
    nodes::{self, NodeView},
    pod_control::{Owner, PodControl},
    pod_sets::{self, PodSets},
    pods::{self, Phase, PodView},
    revisions::{self, HASH_LABEL, Revisions},
    status,
    watched::{Watched, key_of},
    workqueue::{Key, Reconcile},
};

/// DaemonSets looked at at once (`--concurrent-daemonset-syncs`).
const WORKERS: usize = 2;
const KIND: (&str, &str) = ("apps/v1", "DaemonSet");

/// What the controller hears with.
pub(crate) struct Prepared(PodSets<DaemonSet>);

/// What the controller looks at besides its own kind.
pub(crate) struct World {
    pub(crate) pods: Arc<Watched<PodView>>,
    pub(crate) nodes: Arc<Watched<NodeView>>,
    pub(crate) revisions: Arc<Watched<ControllerRevision>>,
}

struct Controller {
    control: PodControl,
    sets: Arc<Watched<DaemonSet>>,
    world: World,
}

impl Prepared {
    /// Hears of changes from now on.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        sets: Watched<DaemonSet>,
        pods: &mut Watched<PodView>,
        nodes: &mut Watched<NodeView>,
    ) -> Self {
        let selector = |set: &DaemonSet| {
            let spec = set.spec.as_ref();
            spec.map_or_else(LabelSelector::nothing, |spec| {
                pods::selector(&spec.selector)
            })
        };
        let heard = PodSets::new(
            KIND,
            "daemonset-controller",
            client,
            recorder,
            sets,
            pods,
            selector,
        );
        let (named, all) = (heard.queue.clone(), heard.sets.clone());
        nodes.listen(move |old, new| {
            if nodes::is_changed(old, new) {
                for set in all.all() {
                    named.add(key_of(&*set));
                }
            }
        });
        Self(heard)
    }

    /// Watches its kind and runs until shutdown.
    pub(crate) async fn run(self, world: World, shutdown: CancellationToken) {
        let PodSets {
            control,
            queue,
            sets,
        } = self.0;
        let api = Api::all(control.client.clone());
        let controller = Arc::new(Controller {
            control,
            sets: sets.clone(),
            world,
        });
        pod_sets::watch_and_reconcile(api, sets, queue, controller, shutdown).await;
    }
}

impl Reconcile for Controller {
    const WORKERS: usize = WORKERS;

    fn complaint(&self) -> &'static str {
        "DaemonSet not reconciled"
    }

    async fn complete(&self) {
        tokio::join!(
            self.sets.complete(),
            self.world.pods.complete(),
            self.world.nodes.complete(),
            self.world.revisions.complete()
        );
    }

    async fn reconcile(&self, key: &Key) -> kube::Result<Option<Duration>> {
        let Some(set) = self.sets.get(key) else {
            self.control.expectations.forget(key);
            return Ok(None);
        };
        if set.metadata.deletion_timestamp.is_some() || !self.control.expectations.are_met(key) {
            return Ok(None);
        }
        let owner = Owner::new(KIND, key, set.uid());
        let spec = set.spec.clone().unwrap_or_default();
        let api: Api<DaemonSet> = Api::namespaced(self.control.client.clone(), &key.namespace);
        let selector = pods::selector(&spec.selector);
        let claim = owner.claim(&selector, pods::of_owner(&self.world.pods, key, &owner.uid));
        let pods = self
            .control
            .settle(&owner, claim, owner.is_there(&api))
            .await?;

        let known = revisions::of(&owner, &self.world.revisions);
        let writer = Revisions {
            client: &self.control.client,
            owner: &owner,
        };
        let template_labels = spec.template.metadata.as_ref();
        let template_labels = template_labels.and_then(|metadata| metadata.labels.clone());
        let labels = |hash: &str| {
            let mut labels = template_labels.clone().unwrap_or_default();
            labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
            labels
        };
        let data = revisions::data(&spec.template);
        let annotations = set.metadata.annotations.clone();
        let current = writer.ensure(data, &known, labels, annotations).await?;
        let hash = current
            .labels()
            .get(HASH_LABEL)
            .cloned()
            .unwrap_or_default();

        let nodes = self.world.nodes.all();
        let plan = plan::plan(&set, &nodes, &pods, &hash, Timestamp::now());
        for pod in &plan.ended {
            self.tell_ended(&owner, pod);
        }
        let new_pods: Vec<Pod> = plan
            .create
            .iter()
            .map(|node| plan::new_pod(&owner, &set, node, &hash))
            .collect();
        let name = (key.name.as_str(), owner.uid.as_str());
        status::write(&api, name, set.status.as_ref(), &plan.status).await?;
        self.control.delete(&owner, &plan.delete).await?;
        self.control.create(&owner, &new_pods).await?;

        let is_used = |revision: &ControllerRevision| {
            let hash = revision.labels().get(HASH_LABEL);
            revision.uid() == current.uid()
                || pods.iter().any(|pod| pod.labels.get(HASH_LABEL) == hash)
        };
        let limit = spec.revision_history_limit.unwrap_or(10);
        writer
            .delete(&revisions::superfluous(&known, limit, is_used))
            .await?;
        let again = plan.again_seconds.and_then(|left| u64::try_from(left).ok());
        let ready_later = (spec.min_ready_seconds.unwrap_or(0) > 0
            && plan.status.number_ready > plan.status.number_available.unwrap_or(0))
        .then(|| u64::from(spec.min_ready_seconds.unwrap_or(0).unsigned_abs()));
        let again = [again, ready_later].into_iter().flatten().min();
        Ok(again.map(Duration::from_secs))
    }
}

impl Controller {
    fn tell_ended(&self, owner: &Owner, pod: &PodView) {
        let (key, node) = (&pod.key, &pod.node);
        if pod.phase == Phase::Failed {
            let message =
                format!("Found failed daemon pod {key} on node {node}, will try to kill it");
            self.control
                .say(owner, "Warning", "FailedDaemonPod", message);
        } else {
            let message =
                format!("Found succeeded daemon pod {key} on node {node}, will try to delete it");
            self.control
                .say(owner, "Normal", "SucceededDaemonPod", message);
        }
    }
}

#[cfg(test)]
mod tests;

//! Deployments: one ReplicaSet for each version of the template, and the way from one to the next.
//!
//! ```text
//!  Deployment, its sets ─▶ which set is the new one (by template) ─▶ make it, or number it anew
//!                       ─▶ rolling: new up, old down, within maxSurge and maxUnavailable
//!                       ─▶ recreate: old down, wait until gone, new up
//!                       ─▶ status, conditions, history
//! ```
//!
//! Each look makes the next steps that are allowed now; what they change brings the next look.

mod plan;
mod sets;
mod status;

pub(crate) use plan::number;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use self::sets::Sets;
use crate::{
    events::Recorder,
    pod_control::PodControl,
    pods::{self, PodView},
    replica_set::SetView,
    status::write,
    watched::{Watched, key_of},
    workqueue::{Key, Reconcile, WorkQueue},
};

/// Deployments looked at at once (`--concurrent-deployment-syncs`).
const WORKERS: usize = 5;
const KIND: (&str, &str) = ("apps/v1", "Deployment");
/// The label that tells the pods of one set from those of another.
pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// The number of a version of the template, on sets and on the Deployment.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Numbers that a set had before it became the new one again.
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// What a set was last scaled for.
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations that are not handed down from the Deployment to its sets.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// What the controller hears with.
pub(crate) struct Prepared {
    control: PodControl,
    queue: Arc<WorkQueue>,
}

/// The controller.
struct Controller {
    control: PodControl,
    deployments: Arc<Watched<Deployment>>,
    sets: Arc<Watched<SetView>>,
    pods: Arc<Watched<PodView>>,
}

impl Prepared {
    /// Hears of changes from now on.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        deployments: &mut Watched<Deployment>,
        sets: &mut Watched<SetView>,
        pods: &mut Watched<PodView>,
    ) -> Self {
        let queue = Arc::new(WorkQueue::default());
        deployments.name_in(&queue);
        let named = queue.clone();
        sets.listen(move |old, new| {
            for set in old.into_iter().chain(new) {
                if let Some(owner) = owner(&set.key, set.controller.as_ref()) {
                    named.add(owner);
                }
            }
        });
        // Recreate waits for the last pod of the old sets.
        let named = queue.clone();
        pods.listen(move |old, new| {
            let (Some(pod), None) = (old, new) else {
                return;
            };
            let set = pod.controller.as_ref();
            let hash = pod.labels.get(HASH_LABEL);
            if let (Some(set), Some(hash)) = (set.filter(|set| set.kind == "ReplicaSet"), hash)
                && let Some(name) = set.name.strip_suffix(&format!("-{hash}"))
            {
                named.add(Key::new(pod.key.namespace.clone(), name));
            }
        });
        let control = PodControl {
            client,
            recorder,
            component: "deployment-controller",
            expectations: Arc::default(),
        };
        Self { control, queue }
    }

    /// Runs until shutdown.
    pub(crate) async fn run(
        self,
        deployments: Arc<Watched<Deployment>>,
        sets: Arc<Watched<SetView>>,
        pods: Arc<Watched<PodView>>,
        shutdown: CancellationToken,
    ) {
        let controller = Arc::new(Controller {
            control: self.control,
            deployments,
            sets,
            pods,
        });
        self.queue.reconcile(controller, shutdown).await;
    }
}

fn owner(key: &Key, controller: Option<&OwnerReference>) -> Option<Key> {
    let owner = controller?;
    (owner.kind == "Deployment" && owner.api_version == "apps/v1")
        .then(|| Key::new(key.namespace.clone(), owner.name.clone()))
}

impl Reconcile for Controller {
    const WORKERS: usize = WORKERS;

    fn complaint(&self) -> &'static str {
        "Deployment not reconciled"
    }

    async fn complete(&self) {
        tokio::join!(
            self.deployments.complete(),
            self.sets.complete(),
            self.pods.complete()
        );
    }

    async fn reconcile(&self, key: &Key) -> kube::Result<Option<Duration>> {
        let Some(deployment) = self.deployments.get(key) else {
            return Ok(None);
        };
        let now = Timestamp::now();
        let mut sets = self.sets_of(&deployment).await?;
        let facts = plan::Facts::new(&deployment);
        if deployment.metadata.deletion_timestamp.is_some() {
            return self.write_status(&deployment, &sets, None, now).await;
        }
        let mut news = None;
        if facts.is_paused {
            self.follow_scale(&deployment, &facts, &sets).await?;
        } else if plan::is_scaled(&facts, &sets.all().cloned().collect::<Vec<_>>()) {
            sets.new = self.number(&deployment, sets.new, &sets.old).await?;
            self.follow_scale(&deployment, &facts, &sets).await?;
        } else if facts.is_recreate {
            news = self.recreate(&deployment, &facts, &mut sets).await?;
        } else {
            news = self.roll(&deployment, &facts, &mut sets).await?;
        }
        if !facts.is_paused && status::is_complete(&deployment, &facts, &sets) {
            self.clean_up(&facts, &sets).await?;
        }
        self.write_status(&deployment, &sets, news, now).await
    }
}

impl Controller {
    async fn recreate(
        &self,
        deployment: &Deployment,
        facts: &plan::Facts,
        sets: &mut Sets,
    ) -> kube::Result<Option<status::News>> {
        let mut is_scaled = false;
        for set in &sets.old {
            is_scaled |= set.replicas > 0;
            self.scale(deployment, facts, set, 0).await?;
        }
        if is_scaled || self.has_old_pods(sets) {
            return Ok(None);
        }
        let news = self.ensure_new(deployment, facts, sets).await?;
        if let Some(new) = sets.new.clone() {
            self.scale(deployment, facts, &new, facts.replicas).await?;
        }
        Ok(news)
    }

    fn has_old_pods(&self, sets: &Sets) -> bool {
        sets.old.iter().any(|set| {
            let pods = self.pods.of_group(&pods::owned_by(&set.uid));
            pods.iter().any(|pod| !pod.is_finished())
        })
    }

    async fn roll(
        &self,
        deployment: &Deployment,
        facts: &plan::Facts,
        sets: &mut Sets,
    ) -> kube::Result<Option<status::News>> {
        let news = self.ensure_new(deployment, facts, sets).await?;
        let Some(new) = sets.new.clone() else {
            return Ok(news);
        };
        let wanted = plan::new_replicas(facts, &new, &sets.old);
        if wanted != new.replicas {
            self.scale(deployment, facts, &new, wanted).await?;
            return Ok(news);
        }
        for (set, replicas) in plan::old_replicas(facts, &new, &sets.old) {
            self.scale(deployment, facts, &set, replicas).await?;
        }
        self.scale(deployment, facts, &new, wanted).await?;
        Ok(news)
    }

    /// Carries a change of the number of replicas over to the sets, in proportion where several are there.
    async fn follow_scale(
        &self,
        deployment: &Deployment,
        facts: &plan::Facts,
        sets: &Sets,
    ) -> kube::Result<()> {
        let all: Vec<_> = sets.all().cloned().collect();
        for (set, replicas) in plan::proportional(facts, sets.new.as_ref(), &all) {
            self.scale(deployment, facts, &set, replicas).await?;
        }
        Ok(())
    }

    async fn write_status(
        &self,
        deployment: &Deployment,
        sets: &Sets,
        news: Option<status::News>,
        now: Timestamp,
    ) -> kube::Result<Option<Duration>> {
        let facts = plan::Facts::new(deployment);
        let new = status::status(deployment, &facts, sets, news, now);
        let (name, uid) = (deployment.name_any(), deployment.uid().unwrap_or_default());
        let api = self.deployment_api(deployment);
        write(&api, (&name, &uid), deployment.status.as_ref(), &new).await?;
        Ok(status::look_again(&facts, &new, now))
    }

    fn deployment_api(&self, deployment: &Deployment) -> Api<Deployment> {
        Api::namespaced(self.control.client.clone(), &key_of(deployment).namespace)
    }
}

/// Annotations by name.
type Annotations = BTreeMap<String, String>;

#[cfg(test)]
mod tests;

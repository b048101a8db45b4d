//! ReplicaSets and ReplicationControllers: as many pods of a template as are wanted.
//!
//! ```text
//!  pods, sets ─▶ claim (which pods are its own) ─▶ plan (how many more, which ones less) ─▶ creations, deletions
//!                                                └▶ counts ─▶ status
//! ```
//!
//! A pod whose labels no longer match is released and replaced; one that matches and has no controller is adopted.

pub(crate) mod plan;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::{PodTemplateSpec, ReplicationController},
    },
    apimachinery::pkg::apis::meta::v1::{
        LabelSelector as Selector, ObjectMeta, OwnerReference, Time,
    },
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use wherry_api::selector::LabelSelector;

use crate::{
    events::Recorder,
    expectations::Expectations,
    pod_control::{self, Owner, PodControl},
    pods::{self, PodView},
    retry,
    watched::Watched,
    workqueue::{Key, Reconcile, WorkQueue},
};

/// Sets looked at at once (`--concurrent-replicaset-syncs`).
const WORKERS: usize = 5;

/// Which of the two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ReplicaSet,
    ReplicationController,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ReplicaSet => "ReplicaSet",
            Self::ReplicationController => "ReplicationController",
        }
    }

    pub(crate) fn api_version(self) -> &'static str {
        match self {
            Self::ReplicaSet => "apps/v1",
            Self::ReplicationController => "v1",
        }
    }

    fn resource(self) -> ApiResource {
        match self {
            Self::ReplicaSet => ApiResource::erase::<ReplicaSet>(&()),
            Self::ReplicationController => ApiResource::erase::<ReplicationController>(&()),
        }
    }

    fn component(self) -> &'static str {
        match self {
            Self::ReplicaSet => "replicaset-controller",
            Self::ReplicationController => "replication-controller",
        }
    }
}

/// A set, of either kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SetView {
    pub(crate) kind: Kind,
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) controller: Option<OwnerReference>,
    pub(crate) created: Timestamp,
    pub(crate) is_deleting: bool,
    pub(crate) generation: i64,
    pub(crate) replicas: i32,
    pub(crate) min_ready_seconds: i32,
    pub(crate) selector: LabelSelector,
    pub(crate) template: PodTemplateSpec,
    pub(crate) status: ReplicaSetStatus,
}

impl SetView {
    fn new(kind: Kind, metadata: ObjectMeta, selector: LabelSelector) -> Self {
        Self {
            kind,
            key: Key::new(
                metadata.namespace.unwrap_or_default(),
                metadata.name.unwrap_or_default(),
            ),
            uid: metadata.uid.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
            controller: pods::controller(metadata.owner_references.as_ref()).cloned(),
            created: metadata
                .creation_timestamp
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            is_deleting: metadata.deletion_timestamp.is_some(),
            generation: metadata.generation.unwrap_or_default(),
            replicas: 0,
            min_ready_seconds: 0,
            selector,
            template: PodTemplateSpec::default(),
            status: ReplicaSetStatus::default(),
        }
    }

    /// How its pods know it.
    pub(crate) fn owner(&self) -> Owner {
        Owner {
            api_version: self.kind.api_version(),
            kind: self.kind.name(),
            key: self.key.clone(),
            uid: self.uid.clone(),
        }
    }

    /// Labels of its template.
    pub(crate) fn template_labels(&self) -> BTreeMap<String, String> {
        let metadata = self.template.metadata.as_ref();
        metadata
            .and_then(|metadata| metadata.labels.clone())
            .unwrap_or_default()
    }
}

impl From<ReplicaSet> for SetView {
    fn from(set: ReplicaSet) -> Self {
        let spec = set.spec.unwrap_or_default();
        Self {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            template: spec.template.unwrap_or_default(),
            status: set.status.unwrap_or_default(),
            ..Self::new(
                Kind::ReplicaSet,
                set.metadata,
                pods::selector(&spec.selector),
            )
        }
    }
}

impl From<ReplicationController> for SetView {
    fn from(set: ReplicationController) -> Self {
        let spec = set.spec.unwrap_or_default();
        let status = set.status.unwrap_or_default();
        let chosen = Selector {
            match_labels: spec.selector,
            ..Selector::default()
        };
        let conditions = status.conditions.map(|conditions| {
            conditions
                .into_iter()
                .map(|condition| ReplicaSetCondition {
                    last_transition_time: condition.last_transition_time,
                    message: condition.message,
                    reason: condition.reason,
                    status: condition.status,
                    type_: condition.type_,
                })
                .collect()
        });
        Self {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            template: spec.template.unwrap_or_default(),
            status: ReplicaSetStatus {
                available_replicas: status.available_replicas,
                conditions,
                fully_labeled_replicas: status.fully_labeled_replicas,
                observed_generation: status.observed_generation,
                ready_replicas: status.ready_replicas,
                replicas: status.replicas,
                ..ReplicaSetStatus::default()
            },
            ..Self::new(
                Kind::ReplicationController,
                set.metadata,
                pods::selector(&chosen),
            )
        }
    }
}

/// One kind's controller.
pub(crate) struct Controller {
    kind: Kind,
    control: PodControl,
    sets: Arc<Watched<SetView>>,
    pods: Arc<Watched<PodView>>,
}

impl Reconcile for Controller {
    const WORKERS: usize = WORKERS;

    fn complaint(&self) -> &'static str {
        match self.kind {
            Kind::ReplicaSet => "ReplicaSet not reconciled",
            Kind::ReplicationController => "ReplicationController not reconciled",
        }
    }

    async fn complete(&self) {
        tokio::join!(self.sets.complete(), self.pods.complete());
    }

    async fn reconcile(&self, key: &Key) -> kube::Result<Option<Duration>> {
        let Some(set) = self.sets.get(key) else {
            self.control.expectations.forget(key);
            return Ok(None);
        };
        let owner = set.owner();
        let may_act = self.control.expectations.are_met(key) && !set.is_deleting;
        let claim = plan::claim(&set, &pods::of_owner(&self.pods, key, &set.uid));
        let owned = if set.is_deleting {
            claim.owned
        } else {
            let api = self.api(&set);
            self.control
                .settle(&owner, claim, owner.is_there(&api))
                .await?
        };
        let now = Timestamp::now();
        let acted = if may_act {
            self.act(&set, &owned, now).await
        } else {
            Ok(())
        };
        let status = plan::status(&set, &owned, failure(&acted), now);
        if status != set.status {
            self.write_status(&set, &status).await?;
        }
        match acted {
            Err(Failure::Create(error) | Failure::Delete(error)) => Err(error),
            // Ready is not yet available: time alone makes it so.
            Ok(())
                if set.min_ready_seconds > 0
                    && status.ready_replicas.unwrap_or(0)
                        != status.available_replicas.unwrap_or(0) =>
            {
                Ok(Some(Duration::from_secs(
                    set.min_ready_seconds.unsigned_abs().into(),
                )))
            }
            Ok(()) => Ok(None),
        }
    }
}

impl Controller {
    async fn act(
        &self,
        set: &SetView,
        owned: &[Arc<PodView>],
        now: Timestamp,
    ) -> Result<(), Failure> {
        let owner = set.owner();
        match plan::plan(set, owned, now) {
            plan::Plan::Nothing => Ok(()),
            plan::Plan::Create(count) => {
                let pods = vec![owner.pod(&set.template, None); count];
                let created = self.control.create(&owner, &pods).await;
                created.map_err(Failure::Create)
            }
            plan::Plan::Delete(pods) => {
                let deleted = self.control.delete(&owner, &pods).await;
                deleted.map_err(Failure::Delete)
            }
        }
    }

    fn api(&self, set: &SetView) -> Api<DynamicObject> {
        Api::namespaced_with(
            self.control.client.clone(),
            &set.key.namespace,
            &set.kind.resource(),
        )
    }

    async fn write_status(&self, set: &SetView, status: &ReplicaSetStatus) -> kube::Result<()> {
        let mut status = serde_json::to_value(status).unwrap_or_default();
        // What is not said must go, and a merge only takes away what is null.
        for field in [
            "availableReplicas",
            "readyReplicas",
            "fullyLabeledReplicas",
            "conditions",
        ] {
            if status.get(field).is_none() {
                status[field] = serde_json::Value::Null;
            }
        }
        let patch = json!({"metadata": {"uid": set.uid}, "status": status});
        let parameters = PatchParams::default();
        let written = self
            .api(set)
            .patch_status(&set.key.name, &parameters, &Patch::Merge(patch))
            .await;
        match written {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            written => written.map(drop),
        }
    }
}

/// A controller that has its ears and not its eyes yet: [`Prepared::run`] gives it what it looks at.
pub(crate) struct Prepared {
    kind: Kind,
    control: PodControl,
    queue: Arc<WorkQueue>,
    /// Given by [`Prepared::run`]: sets that a pod without a controller may belong to.
    sets: Arc<OnceLock<Arc<Watched<SetView>>>>,
}

impl Prepared {
    /// Hears of changes of `sets` and `pods` from now on.
    pub(crate) fn new(
        kind: Kind,
        client: Client,
        recorder: Recorder,
        sets: &mut Watched<SetView>,
        pods: &mut Watched<PodView>,
    ) -> Self {
        let queue = Arc::new(WorkQueue::default());
        let expectations = Arc::new(Expectations::default());
        let named = queue.clone();
        sets.listen(move |old, new| {
            if let Some(set) = new.or(old) {
                named.add(set.key.clone());
            }
        });
        let known = Arc::new(OnceLock::<Arc<Watched<SetView>>>::new());
        let all = known.clone();
        let candidates = move |namespace: &str, labels: &BTreeMap<String, String>| {
            let sets = all.get().map(|sets| sets.in_namespace(namespace));
            let sets = sets.into_iter().flatten();
            sets.filter(|set| set.selector.matches_labels(labels))
                .map(|set| set.key.clone())
                .collect()
        };
        let of_kind = (kind.api_version(), kind.name());
        pod_control::listen(
            pods,
            of_kind,
            queue.clone(),
            expectations.clone(),
            candidates,
        );
        let control = PodControl {
            client,
            recorder,
            component: kind.component(),
            expectations,
        };
        Self {
            kind,
            control,
            queue,
            sets: known,
        }
    }

    /// Runs until shutdown.
    pub(crate) async fn run(
        self,
        sets: Arc<Watched<SetView>>,
        pods: Arc<Watched<PodView>>,
        shutdown: CancellationToken,
    ) {
        // Whatever came before finds its set when that is looked at for the first time.
        self.sets.get_or_init(|| sets.clone());
        let controller = Arc::new(Controller {
            kind: self.kind,
            control: self.control,
            sets,
            pods,
        });
        self.queue.reconcile(controller, shutdown).await;
    }
}

enum Failure {
    Create(kube::Error),
    Delete(kube::Error),
}

fn failure(acted: &Result<(), Failure>) -> Option<(&'static str, String)> {
    match acted {
        Ok(()) => None,
        Err(Failure::Create(error)) => Some(("FailedCreate", retry::text(error))),
        Err(Failure::Delete(error)) => Some(("FailedDelete", retry::text(error))),
    }
}

/// The moment of a change of a condition.
pub(crate) fn time(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

#[cfg(test)]
mod tests;

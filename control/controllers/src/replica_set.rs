//! ReplicaSets and ReplicationControllers: as many pods of a template as are wanted.
//!
//! ```text
//!  pods, sets ─▶ claim (which pods are its own) ─▶ plan (how many more, which ones less) ─▶ creations, deletions
//!                                                └▶ counts ─▶ status
//! ```
//!
//! A pod whose labels no longer match is released and replaced; one that matches and has no controller is adopted.

pub(crate) mod plan;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::{ObjectReference, Pod, PodTemplateSpec, ReplicationController},
    },
    apimachinery::pkg::apis::meta::v1::{
        LabelSelector as Selector, ObjectMeta, OwnerReference, Time,
    },
};
use kube::{
    Api, Client,
    api::{
        ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions,
    },
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use wherry_api::selector::LabelSelector;

use crate::{
    events::{Note, Recorder},
    expectations::Expectations,
    pods::{self, PodView},
    retry,
    watched::Watched,
    workqueue::{Key, WorkQueue},
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

    /// Labels of its template.
    pub(crate) fn template_labels(&self) -> BTreeMap<String, String> {
        let metadata = self.template.metadata.as_ref();
        metadata
            .and_then(|metadata| metadata.labels.clone())
            .unwrap_or_default()
    }
}

/// Reads a selector; one that makes no sense chooses nothing.
pub(crate) fn selector(selector: &Selector) -> LabelSelector {
    serde_json::to_value(selector)
        .ok()
        .and_then(|value| LabelSelector::from_value(&value).ok())
        .unwrap_or_else(LabelSelector::nothing)
}

impl From<ReplicaSet> for SetView {
    fn from(set: ReplicaSet) -> Self {
        let spec = set.spec.unwrap_or_default();
        Self {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            template: spec.template.unwrap_or_default(),
            status: set.status.unwrap_or_default(),
            ..Self::new(Kind::ReplicaSet, set.metadata, selector(&spec.selector))
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
            ..Self::new(Kind::ReplicationController, set.metadata, selector(&chosen))
        }
    }
}

/// One kind's controller.
pub(crate) struct Controller {
    kind: Kind,
    client: Client,
    recorder: Recorder,
    sets: Arc<Watched<SetView>>,
    pods: Arc<Watched<PodView>>,
    queue: Arc<WorkQueue>,
    expectations: Arc<Expectations>,
}

impl Controller {
    /// A controller that hears of changes of `sets` and `pods` from now on.
    pub(crate) fn prepare(
        kind: Kind,
        client: Client,
        recorder: Recorder,
        sets: &mut Watched<SetView>,
        pods: &mut Watched<PodView>,
    ) -> Prepared {
        let queue = Arc::new(WorkQueue::default());
        let expectations = Arc::new(Expectations::default());
        let named = queue.clone();
        sets.listen(move |old, new| {
            if let Some(set) = new.or(old) {
                named.add(set.key.clone());
            }
        });
        let orphans = Arc::new(WorkQueue::default());
        let listener = Listener {
            kind,
            queue: queue.clone(),
            expectations: expectations.clone(),
            orphans: orphans.clone(),
        };
        pods.listen(move |old, new| listener.hear(old, new));
        Prepared {
            kind,
            client,
            recorder,
            queue,
            expectations,
            orphans,
        }
    }

    async fn run(self: Arc<Self>, orphans: Arc<WorkQueue>, shutdown: CancellationToken) {
        tokio::join!(self.sets.complete(), self.pods.complete());
        let what = match self.kind {
            Kind::ReplicaSet => "ReplicaSet not reconciled",
            Kind::ReplicationController => "ReplicationController not reconciled",
        };
        let finder = self.clone();
        let find = orphans.run("Orphan without a set", 1, shutdown.clone(), move |pod| {
            finder.name_sets_for(&pod);
            async { Ok(None) }
        });
        let queue = self.queue.clone();
        let work = queue.run(what, WORKERS, shutdown, move |key| {
            let controller = self.clone();
            async move { controller.reconcile(&key).await }
        });
        tokio::join!(find, work);
    }

    /// A pod without a controller may belong to a set.
    fn name_sets_for(&self, pod: &Key) {
        let Some(pod) = self.pods.get(pod).filter(|pod| pod.controller.is_none()) else {
            return;
        };
        for set in self.sets.in_namespace(&pod.key.namespace) {
            if pod.is_selected_by(&set.selector) {
                self.queue.add(set.key.clone());
            }
        }
    }

    async fn reconcile(&self, key: &Key) -> kube::Result<Option<Duration>> {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        let may_act = self.expectations.are_met(key) && !set.is_deleting;
        let claim = plan::claim(&set, &self.pods.in_namespace(&key.namespace));
        if !set.is_deleting {
            self.release(&set, &claim.release).await?;
        }
        let adopted = if set.is_deleting {
            Vec::new()
        } else {
            self.adopt(&set, claim.adopt).await?
        };
        let mut owned = claim.owned;
        owned.extend(adopted);
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

    async fn act(
        &self,
        set: &SetView,
        owned: &[Arc<PodView>],
        now: Timestamp,
    ) -> Result<(), Failure> {
        match plan::plan(set, owned, now) {
            plan::Plan::Nothing => Ok(()),
            plan::Plan::Create(count) => self.create(set, count).await.map_err(Failure::Create),
            plan::Plan::Delete(pods) => self.delete(set, &pods).await.map_err(Failure::Delete),
        }
    }

    /// Creates pods in batches that double, so that what is refused is refused once and not hundreds of times.
    async fn create(&self, set: &SetView, count: usize) -> kube::Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &set.key.namespace);
        let pod = plan::new_pod(set);
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let size = batch.min(left);
            self.expectations.expect_creations(&set.key, size);
            let parameters = PostParams::default();
            let creations = (0..size).map(|_| api.create(&parameters, &pod));
            let mut failed = None;
            for created in futures::future::join_all(creations).await {
                match created {
                    Ok(pod) => {
                        let name = pod.metadata.name.unwrap_or_default();
                        self.say(
                            set,
                            "Normal",
                            "SuccessfulCreate",
                            format!("Created pod: {name}"),
                        );
                    }
                    Err(error) => {
                        self.expectations.created(&set.key);
                        failed = Some(error);
                    }
                }
            }
            if let Some(error) = failed {
                // Whatever is in a namespace that goes away goes too.
                if is_namespace_terminating(&error) {
                    return Ok(());
                }
                let message = format!("Error creating: {}", retry::text(&error));
                self.say(set, "Warning", "FailedCreate", message);
                return Err(error);
            }
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, set: &SetView, pods: &[Arc<PodView>]) -> kube::Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &set.key.namespace);
        let uids = pods.iter().map(|pod| pod.uid.clone());
        self.expectations.expect_deletions(&set.key, uids);
        let deletions = pods.iter().map(|pod| {
            let parameters = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: Some(pod.uid.clone()),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            let api = api.clone();
            async move { (pod, api.delete(&pod.key.name, &parameters).await) }
        });
        let mut failed = None;
        for (pod, deleted) in futures::future::join_all(deletions).await {
            match deleted {
                Ok(_) => {
                    let message = format!("Deleted pod: {}", pod.key.name);
                    self.say(set, "Normal", "SuccessfulDelete", message);
                }
                Err(error) => {
                    self.expectations.deleted(&set.key, &pod.uid);
                    if !matches!(&error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
                    {
                        let message = format!("Error deleting: {}", retry::text(&error));
                        self.say(set, "Warning", "FailedDelete", message);
                        failed = Some(error);
                    }
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn adopt(
        &self,
        set: &SetView,
        orphans: Vec<Arc<PodView>>,
    ) -> kube::Result<Vec<Arc<PodView>>> {
        if orphans.is_empty() || !self.is_still_there(set).await? {
            return Ok(Vec::new());
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &set.key.namespace);
        let mut adopted = Vec::new();
        for pod in orphans {
            let patch = json!({
                "metadata": {"uid": pod.uid, "ownerReferences": [plan::owner_reference(set)]},
            });
            let parameters = PatchParams::default();
            match api
                .patch(&pod.key.name, &parameters, &Patch::Strategic(patch))
                .await
            {
                Ok(_) => adopted.push(pod),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(adopted)
    }

    /// What this process believes may be old: a set that was deleted and made again must not adopt by its old uid.
    async fn is_still_there(&self, set: &SetView) -> kube::Result<bool> {
        let api = self.api(set);
        let found = api.get_opt(&set.key.name).await?;
        Ok(found.is_some_and(|found| {
            found.metadata.uid.as_deref() == Some(&set.uid)
                && found.metadata.deletion_timestamp.is_none()
        }))
    }

    async fn release(&self, set: &SetView, pods: &[Arc<PodView>]) -> kube::Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &set.key.namespace);
        for pod in pods {
            let patch = json!({
                "metadata": {
                    "uid": pod.uid,
                    "ownerReferences": [{"$patch": "delete", "uid": set.uid}],
                },
            });
            let parameters = PatchParams::default();
            match api
                .patch(&pod.key.name, &parameters, &Patch::Strategic(patch))
                .await
            {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn api(&self, set: &SetView) -> Api<DynamicObject> {
        Api::namespaced_with(
            self.client.clone(),
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

    fn say(&self, set: &SetView, type_: &'static str, reason: &'static str, message: String) {
        self.recorder.record(Note {
            object: ObjectReference {
                api_version: Some(set.kind.api_version().to_owned()),
                kind: Some(set.kind.name().to_owned()),
                namespace: Some(set.key.namespace.clone()),
                name: Some(set.key.name.clone()),
                uid: Some(set.uid.clone()),
                ..ObjectReference::default()
            },
            type_,
            reason,
            message,
            component: set.kind.component().to_owned(),
        });
    }
}

/// A controller that has its ears and not its eyes yet: [`Prepared::run`] gives it what it looks at.
pub(crate) struct Prepared {
    kind: Kind,
    client: Client,
    recorder: Recorder,
    queue: Arc<WorkQueue>,
    expectations: Arc<Expectations>,
    orphans: Arc<WorkQueue>,
}

impl Prepared {
    /// Runs until shutdown.
    pub(crate) async fn run(
        self,
        sets: Arc<Watched<SetView>>,
        pods: Arc<Watched<PodView>>,
        shutdown: CancellationToken,
    ) {
        let controller = Controller {
            kind: self.kind,
            client: self.client,
            recorder: self.recorder,
            sets,
            pods,
            queue: self.queue,
            expectations: self.expectations,
        };
        Arc::new(controller).run(self.orphans, shutdown).await;
    }
}

/// Hears of pods.
struct Listener {
    kind: Kind,
    queue: Arc<WorkQueue>,
    expectations: Arc<Expectations>,
    orphans: Arc<WorkQueue>,
}

impl Listener {
    fn owner(&self, pod: &PodView) -> Option<Key> {
        let owner = pod.controller.as_ref()?;
        (owner.kind == self.kind.name() && owner.api_version == self.kind.api_version())
            .then(|| Key::new(pod.key.namespace.clone(), owner.name.clone()))
    }

    fn hear(&self, old: Option<&Arc<PodView>>, new: Option<&Arc<PodView>>) {
        let is_same = |old: &&Arc<PodView>| new.is_some_and(|new| new.uid == old.uid);
        let before = old.filter(is_same);
        if let Some(gone) = old.filter(|old| !is_same(old))
            && let Some(owner) = self.owner(gone)
        {
            self.expectations.deleted(&owner, &gone.uid);
            self.queue.add(owner);
        }
        let Some(pod) = new else { return };
        let owner = self.owner(pod);
        if let Some(before) = before
            && self.owner(before) != owner
            && let Some(owner) = self.owner(before)
        {
            self.queue.add(owner);
        }
        match owner {
            Some(owner) => {
                if before.is_none() {
                    self.expectations.created(&owner);
                }
                if pod.deleted.is_some() {
                    self.expectations.deleted(&owner, &pod.uid);
                }
                self.queue.add(owner);
            }
            None if pod.controller.is_none()
                && before.is_none_or(|before| {
                    before.labels != pod.labels || before.controller.is_some()
                }) =>
            {
                self.orphans.add(pod.key.clone());
            }
            None => {}
        }
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

fn is_namespace_terminating(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status)
        if status.code == 403 && status.message.contains("because it is being terminated"))
}

/// The moment of a change of a condition.
pub(crate) fn time(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

#[cfg(test)]
mod tests;

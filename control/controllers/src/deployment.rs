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
mod status;

pub(crate) use plan::number;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    events::{Note, Recorder},
    pods::{self, PodView},
    replica_set::SetView,
    retry,
    watched::{Watched, key_of},
    workqueue::{Key, WorkQueue},
};

/// Deployments looked at at once (`--concurrent-deployment-syncs`).
const WORKERS: usize = 5;
/// The label that tells the pods of one set from those of another.
pub(crate) const HASH_LABEL: &str = "pod-template-hash";
/// How often another name is tried for a set when a hash is taken by other content.
const COLLISIONS_MAX: i32 = 10;

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

/// A Deployment's sets: the one of the present template, and the others from the oldest to the youngest.
struct Sets {
    new: Option<Arc<SetView>>,
    old: Vec<Arc<SetView>>,
}

impl Sets {
    fn all(&self) -> impl Iterator<Item = &Arc<SetView>> {
        self.old.iter().chain(&self.new)
    }
}

/// What the controller hears with.
pub(crate) struct Prepared {
    client: Client,
    recorder: Recorder,
    queue: Arc<WorkQueue>,
}

/// The controller.
struct Controller {
    client: Client,
    recorder: Recorder,
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
        let named = queue.clone();
        deployments.listen(move |old, new| {
            if let Some(deployment) = new.or(old) {
                named.add(key_of(&**deployment));
            }
        });
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
        Self {
            client,
            recorder,
            queue,
        }
    }

    /// Runs until shutdown.
    pub(crate) async fn run(
        self,
        deployments: Arc<Watched<Deployment>>,
        sets: Arc<Watched<SetView>>,
        pods: Arc<Watched<PodView>>,
        shutdown: CancellationToken,
    ) {
        tokio::join!(deployments.complete(), sets.complete(), pods.complete());
        let controller = Arc::new(Controller {
            client: self.client,
            recorder: self.recorder,
            deployments,
            sets,
            pods,
        });
        let reconcile = move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        };
        let what = "Deployment not reconciled";
        self.queue.run(what, WORKERS, shutdown, reconcile).await;
    }
}

fn owner(key: &Key, controller: Option<&OwnerReference>) -> Option<Key> {
    let owner = controller?;
    (owner.kind == "Deployment" && owner.api_version == "apps/v1")
        .then(|| Key::new(key.namespace.clone(), owner.name.clone()))
}

impl Controller {
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

    /// The sets that are its own: matching ones without a controller are adopted, others released.
    async fn sets_of(&self, deployment: &Deployment) -> kube::Result<Sets> {
        let key = key_of(deployment);
        let uid = deployment.uid().unwrap_or_default();
        let spec = deployment.spec.clone().unwrap_or_default();
        let selector = pods::selector(&spec.selector);
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let mut own = Vec::new();
        for set in self.sets.in_namespace(&key.namespace) {
            let is_selected = selector.matches_labels(&set.labels);
            let is_own = set
                .controller
                .as_ref()
                .is_some_and(|owner| owner.uid == uid);
            let is_changing = set.is_deleting || deployment.metadata.deletion_timestamp.is_some();
            if is_own && is_selected {
                own.push(set);
            } else if is_own && !is_changing {
                let patch = json!({"metadata": {
                    "uid": set.uid,
                    "ownerReferences": [{"$patch": "delete", "uid": uid}],
                }});
                api.patch(
                    &set.key.name,
                    &PatchParams::default(),
                    &Patch::Strategic(patch),
                )
                .await?;
            } else if set.controller.is_none() && is_selected && !is_changing {
                let patch = json!({"metadata": {
                    "uid": set.uid,
                    "ownerReferences": [owner_reference(deployment)],
                }});
                api.patch(
                    &set.key.name,
                    &PatchParams::default(),
                    &Patch::Strategic(patch),
                )
                .await?;
                own.push(set);
            }
        }
        own.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
        let new = own
            .iter()
            .position(|set| plan::is_same_template(&set.template, &spec.template));
        let new = new.map(|index| own.remove(index));
        Ok(Sets { new, old: own })
    }

    /// Sees to it that the new set has the highest number, and what it inherits.
    async fn number(
        &self,
        deployment: &Deployment,
        new: Option<Arc<SetView>>,
        old: &[Arc<SetView>],
    ) -> kube::Result<Option<Arc<SetView>>> {
        let Some(set) = new else { return Ok(None) };
        let revision = plan::next_revision(old);
        let mut annotations = plan::inherited(deployment.annotations());
        if plan::revision(&set) < revision {
            annotations.extend(plan::renumbered(&set, revision));
        }
        let min_ready = deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds);
        let is_same = annotations
            .iter()
            .all(|(key, value)| set.annotations.get(key) == Some(value))
            && min_ready.unwrap_or(0) == set.min_ready_seconds;
        if !is_same {
            let patch = json!({
                "metadata": {"annotations": annotations},
                "spec": {"minReadySeconds": min_ready.unwrap_or(0)},
            });
            let set = self.patch_set(&set, patch).await?;
            self.show_revision(deployment, plan::revision(&set)).await?;
            return Ok(Some(Arc::new(set)));
        }
        self.show_revision(deployment, plan::revision(&set)).await?;
        Ok(Some(set))
    }

    /// The Deployment carries the number of its new set.
    async fn show_revision(&self, deployment: &Deployment, revision: i64) -> kube::Result<()> {
        let shown = revision.to_string();
        if deployment.annotations().get(REVISION) == Some(&shown) {
            return Ok(());
        }
        let api: Api<Deployment> = self.deployment_api(deployment);
        let patch = json!({"metadata": {
            "uid": deployment.uid(),
            "annotations": {REVISION: shown},
        }});
        api.patch(
            &deployment.name_any(),
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await
        .map(drop)
    }

    /// The new set, made if it is not there.
    async fn ensure_new(
        &self,
        deployment: &Deployment,
        facts: &plan::Facts,
        sets: &mut Sets,
    ) -> kube::Result<Option<status::News>> {
        if sets.new.is_some() {
            sets.new = self.number(deployment, sets.new.take(), &sets.old).await?;
            return Ok(None);
        }
        let revision = plan::next_revision(&sets.old);
        let replicas = plan::first_replicas(facts, &sets.old);
        let collisions = deployment
            .status
            .as_ref()
            .and_then(|status| status.collision_count)
            .unwrap_or(0);
        let api: Api<ReplicaSet> =
            Api::namespaced(self.client.clone(), &key_of(deployment).namespace);
        for collision in collisions..collisions + COLLISIONS_MAX {
            let set = self.new_set(deployment, facts, revision, replicas, collision);
            let name = set.name_any();
            match api.create(&PostParams::default(), &set).await {
                Ok(set) => {
                    if replicas > 0 {
                        self.say(
                            deployment,
                            "ScalingReplicaSet",
                            format!("Scaled up replica set {name} from 0 to {replicas}"),
                        );
                    }
                    self.show_revision(deployment, revision).await?;
                    sets.new = Some(Arc::new(set.into()));
                    return Ok(Some(status::News::Created {
                        set: name,
                        collisions: (collision != collisions).then_some(collision),
                    }));
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    let found = api.get_opt(&name).await?;
                    let is_ours = |set: &ReplicaSet| {
                        let spec = set.spec.clone().unwrap_or_default();
                        pods::controller(set.metadata.owner_references.as_ref())
                            .is_some_and(|owner| Some(&owner.uid) == deployment.uid().as_ref())
                            && plan::is_same_template(
                                &spec.template.unwrap_or_default(),
                                &deployment.spec.clone().unwrap_or_default().template,
                            )
                    };
                    // Made before, and not seen yet.
                    if let Some(set) = found.filter(is_ours) {
                        sets.new = Some(Arc::new(set.into()));
                        return Ok(None);
                    }
                }
                Err(error) => {
                    let message = format!(
                        "Failed to create new replica set \"{name}\": {}",
                        retry::text(&error)
                    );
                    self.warn(deployment, "ReplicaSetCreateError", message);
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    fn new_set(
        &self,
        deployment: &Deployment,
        facts: &plan::Facts,
        revision: i64,
        replicas: i32,
        collision: i32,
    ) -> ReplicaSet {
        let spec = deployment.spec.clone().unwrap_or_default();
        let hash = plan::template_hash(&spec.template, collision);
        let mut template = spec.template;
        let metadata = template.metadata.get_or_insert_default();
        let labels = metadata.labels.get_or_insert_default();
        labels.insert(HASH_LABEL.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector = spec.selector;
        selector
            .match_labels
            .get_or_insert_default()
            .insert(HASH_LABEL.to_owned(), hash.clone());
        let mut annotations = plan::inherited(deployment.annotations());
        annotations.insert(REVISION.to_owned(), revision.to_string());
        annotations.extend(facts.scale_annotations());
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", deployment.name_any())),
                namespace: deployment.namespace(),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![owner_reference(deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                min_ready_seconds: spec.min_ready_seconds,
                replicas: Some(replicas),
                selector,
                template: Some(template),
            }),
            status: None,
        }
    }

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

    /// Gives a set its number of replicas, and notes what for.
    async fn scale(
        &self,
        deployment: &Deployment,
        facts: &plan::Facts,
        set: &SetView,
        replicas: i32,
    ) -> kube::Result<()> {
        let annotations = facts.scale_annotations();
        let is_noted = annotations
            .iter()
            .all(|(key, value)| set.annotations.get(key) == Some(value));
        if set.replicas == replicas && (is_noted || replicas == 0) {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"annotations": annotations},
            "spec": {"replicas": replicas},
        });
        self.patch_set(set, patch).await?;
        if set.replicas != replicas {
            let way = if set.replicas < replicas {
                "up"
            } else {
                "down"
            };
            self.say(
                deployment,
                "ScalingReplicaSet",
                format!(
                    "Scaled {way} replica set {} from {} to {replicas}",
                    set.key.name, set.replicas
                ),
            );
        }
        Ok(())
    }

    async fn patch_set(&self, set: &SetView, mut patch: Value) -> kube::Result<SetView> {
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &set.key.namespace);
        patch["metadata"]["uid"] = set.uid.clone().into();
        api.patch(&set.key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map(SetView::from)
    }

    /// Lets go of old sets beyond the history's length.
    async fn clean_up(&self, facts: &plan::Facts, sets: &Sets) -> kube::Result<()> {
        for set in plan::beyond_history(facts, &sets.old) {
            let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &set.key.namespace);
            match api.delete(&set.key.name, &DeleteParams::background()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
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
        let old = deployment.status.clone().unwrap_or_default();
        if new != old {
            let mut value = serde_json::to_value(&new).unwrap_or_default();
            // A merge takes away what is null and keeps what is not named.
            for field in [
                "availableReplicas",
                "readyReplicas",
                "replicas",
                "unavailableReplicas",
                "updatedReplicas",
                "collisionCount",
            ] {
                if value.get(field).is_none() {
                    value[field] = Value::Null;
                }
            }
            let patch = json!({"metadata": {"uid": deployment.uid()}, "status": value});
            let api = self.deployment_api(deployment);
            let parameters = PatchParams::default();
            let written = api
                .patch_status(&deployment.name_any(), &parameters, &Patch::Merge(patch))
                .await;
            match written {
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
                written => drop(written?),
            }
        }
        Ok(status::look_again(&facts, &new, now))
    }

    fn deployment_api(&self, deployment: &Deployment) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), &key_of(deployment).namespace)
    }

    fn say(&self, deployment: &Deployment, reason: &'static str, message: String) {
        self.record(deployment, "Normal", reason, message);
    }

    fn warn(&self, deployment: &Deployment, reason: &'static str, message: String) {
        self.record(deployment, "Warning", reason, message);
    }

    fn record(
        &self,
        deployment: &Deployment,
        type_: &'static str,
        reason: &'static str,
        message: String,
    ) {
        self.recorder.record(Note {
            object: ObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: Some("Deployment".to_owned()),
                namespace: deployment.namespace(),
                name: Some(deployment.name_any()),
                uid: deployment.uid(),
                ..ObjectReference::default()
            },
            type_,
            reason,
            message,
            component: "deployment-controller".to_owned(),
        });
    }
}

fn owner_reference(deployment: &Deployment) -> OwnerReference {
    OwnerReference {
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        name: deployment.name_any(),
        uid: deployment.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Annotations by name.
type Annotations = BTreeMap<String, String>;

#[cfg(test)]
mod tests;

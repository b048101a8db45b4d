//! The ReplicaSets of a Deployment: which are its own, making them, numbering and scaling them, and letting go of them.

use std::sync::Arc;

use k8s_openapi::{
    api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{Controller, HASH_LABEL, KIND, REVISION, plan, status};
use crate::{pod_control::Owner, pods, replica_set::SetView, retry, watched::key_of};

/// How often another name is tried for a set when a hash is taken by other content.
const COLLISIONS_MAX: i32 = 10;

/// A Deployment's sets: the one of the present template, and the others from the oldest to the youngest.
pub(super) struct Sets {
    pub(super) new: Option<Arc<SetView>>,
    pub(super) old: Vec<Arc<SetView>>,
}

impl Sets {
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<SetView>> {
        self.old.iter().chain(&self.new)
    }
}

/// The Deployment, as its sets name it.
fn owner_of(deployment: &Deployment) -> Owner {
    Owner::new(KIND, &key_of(deployment), deployment.uid())
}

impl Controller {
    /// The sets that are its own: matching ones without a controller are adopted, others released.
    pub(super) async fn sets_of(&self, deployment: &Deployment) -> kube::Result<Sets> {
        let key = key_of(deployment);
        let uid = deployment.uid().unwrap_or_default();
        let spec = deployment.spec.clone().unwrap_or_default();
        let selector = pods::selector(&spec.selector);
        let api: Api<ReplicaSet> = Api::namespaced(self.control.client.clone(), &key.namespace);
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
                    "ownerReferences": [owner_of(deployment).reference()],
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
    pub(super) async fn number(
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
    pub(super) async fn ensure_new(
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
            Api::namespaced(self.control.client.clone(), &key_of(deployment).namespace);
        for collision in collisions..collisions + COLLISIONS_MAX {
            let set = self.new_set(deployment, facts, revision, replicas, collision);
            let name = set.name_any();
            match api.create(&PostParams::default(), &set).await {
                Ok(set) => {
                    if replicas > 0 {
                        self.control.say(
                            &owner_of(deployment),
                            "Normal",
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
                    self.control.say(
                        &owner_of(deployment),
                        "Warning",
                        "ReplicaSetCreateError",
                        message,
                    );
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
                owner_references: Some(vec![owner_of(deployment).reference()]),
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

    /// Gives a set its number of replicas, and notes what for.
    pub(super) async fn scale(
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
            self.control.say(
                &owner_of(deployment),
                "Normal",
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
        let api: Api<ReplicaSet> = Api::namespaced(self.control.client.clone(), &set.key.namespace);
        patch["metadata"]["uid"] = set.uid.clone().into();
        api.patch(&set.key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map(SetView::from)
    }

    /// Lets go of old sets beyond the history's length.
    pub(super) async fn clean_up(&self, facts: &plan::Facts, sets: &Sets) -> kube::Result<()> {
        for set in plan::beyond_history(facts, &sets.old) {
            let api: Api<ReplicaSet> =
                Api::namespaced(self.control.client.clone(), &set.key.namespace);
            match api.delete(&set.key.name, &DeleteParams::background()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

//! StatefulSets: pods with names that stay, made and replaced in order.
//!
//! ```text
//!  template ─▶ ControllerRevision (its name is on each pod)
//!  pods by ordinal ─▶ missing ones made, from the first on ─▶ surplus ones deleted, from the last on
//!                  ─▶ old ones replaced, from the last down to the partition ─▶ status
//! ```
//!
//! Unless they may be handled in parallel, each pod waits for the one before it. A pod's claims are made before it is;
//! where they cannot be made, the set says so in an event and a condition. Who owns them ([`claims`]) decides whether
//! they outlive the set and its pods.

mod claims;
mod plan;

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet, StatefulSetCondition, StatefulSetStatus},
    core::v1::{PersistentVolumeClaim, Pod},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use wherry_api::selector::LabelSelector;

use crate::{
    events::Recorder,
    pod_control::{Owner, PodControl},
    pod_sets::{self, PodSets},
    pods::{self, PodView},
    replica_set::time,
    retry,
    revisions::{self, HASH_LABEL, Revisions},
    status,
    watched::Watched,
    workqueue::{Key, Reconcile},
};

use self::claims::Retention;

/// StatefulSets looked at at once (`--concurrent-statefulset-syncs`).
const WORKERS: usize = 5;
const KIND: (&str, &str) = ("apps/v1", "StatefulSet");

/// A pod whose claim is about to go with one before it waits so long for the next look.
const CLAIM_PERIOD: Duration = Duration::from_secs(1);

/// What the controller hears with.
pub(crate) struct Prepared(PodSets<StatefulSet>);

/// What the controller looks at besides its own kind.
pub(crate) struct World {
    pub(crate) pods: Arc<Watched<PodView>>,
    pub(crate) revisions: Arc<Watched<ControllerRevision>>,
}

struct Controller {
    control: PodControl,
    sets: Arc<Watched<StatefulSet>>,
    world: World,
}

impl Prepared {
    /// Hears of changes from now on.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        sets: Watched<StatefulSet>,
        pods: &mut Watched<PodView>,
    ) -> Self {
        let selector = |set: &StatefulSet| {
            let spec = set.spec.as_ref();
            spec.map_or_else(LabelSelector::nothing, |spec| {
                pods::selector(&spec.selector)
            })
        };
        let heard = PodSets::new(
            KIND,
            "statefulset-controller",
            client,
            recorder,
            sets,
            pods,
            selector,
        );
        Self(heard)
    }

    /// All that there are.
    pub(crate) fn sets(&self) -> Arc<Watched<StatefulSet>> {
        self.0.sets.clone()
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
        "StatefulSet not reconciled"
    }

    async fn complete(&self) {
        tokio::join!(
            self.sets.complete(),
            self.world.pods.complete(),
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
        let api: Api<StatefulSet> = Api::namespaced(self.control.client.clone(), &key.namespace);
        let selector = pods::selector(&spec.selector);
        let mut claim = owner.claim(&selector, pods::of_owner(&self.world.pods, key, &owner.uid));
        claim
            .adopt
            .retain(|pod| plan::ordinal(&key.name, &pod.key.name).is_some());
        let pods = self
            .control
            .settle(&owner, claim, owner.is_there(&api))
            .await?;

        let known = revisions::of(&owner, &self.world.revisions);
        let writer = Revisions {
            client: &self.control.client,
            owner: &owner,
        };
        let labels = |_: &str| spec.selector.match_labels.clone().unwrap_or_default();
        let data = revisions::data(&spec.template);
        let annotations = set.metadata.annotations.clone();
        let update = writer.ensure(data, &known, labels, annotations).await?;
        let update_name = update.name_any();
        let status = set.status.clone().unwrap_or_default();
        let current_name = status.current_revision.filter(|name| !name.is_empty());
        let current = known
            .iter()
            .find(|revision| Some(revision.name_any()) == current_name)
            .unwrap_or(&update);

        let now = Timestamp::now();
        let mut plan = plan::plan(&set, &pods, &current.name_any(), &update_name, now);
        let mut new_pods: Vec<Pod> = Vec::new();
        for (ordinal, is_old) in &plan.create {
            let revision = if *is_old { current } else { &update };
            let template = revisions::template(revision).unwrap_or_else(|| spec.template.clone());
            let name = revision.name_any();
            new_pods.push(plan::new_pod(&owner, &set, &template, *ordinal, &name));
        }
        self.keep_claims(&owner, &set, &pods).await?;
        let claimed = self.make_claims(&owner, &set, &mut new_pods).await;
        set_failure(&mut plan.status, claimed.as_ref().err(), now);
        let name = (key.name.as_str(), owner.uid.as_str());
        status::write(&api, name, set.status.as_ref(), &plan.status).await?;
        self.control.delete(&owner, &plan.delete).await?;
        let waits = claimed?;
        self.control.create(&owner, &new_pods).await?;

        let is_used = |revision: &ControllerRevision| {
            let name = revision.name_any();
            name == update_name
                || name == current.name_any()
                || pods
                    .iter()
                    .any(|pod| pod.labels.get(HASH_LABEL) == Some(&name))
        };
        let limit = spec.revision_history_limit.unwrap_or(10);
        writer
            .delete(&revisions::superfluous(&known, limit, is_used))
            .await?;
        let again = plan.again_seconds.and_then(|left| u64::try_from(left).ok());
        let again = again.map(Duration::from_secs);
        Ok(again.into_iter().chain(waits.then_some(CLAIM_PERIOD)).min())
    }
}

impl Controller {
    /// Gives the claims of pods that are there the owners that they are to have, before any of the pods goes.
    async fn keep_claims(
        &self,
        owner: &Owner,
        set: &StatefulSet,
        pods: &[Arc<PodView>],
    ) -> kube::Result<()> {
        let spec = set.spec.as_ref();
        let templates = spec.and_then(|spec| spec.volume_claim_templates.as_deref());
        let templates = templates.unwrap_or_default();
        let retention = spec.map(Retention::of).filter(|retention| {
            // What is kept for ever has no owner, once that has been seen to.
            let status = set.status.as_ref();
            let observed = status.and_then(|status| status.observed_generation);
            !retention.keeps_all() || observed != set.metadata.generation
        });
        let (Some(retention), false) = (retention, templates.is_empty()) else {
            return Ok(());
        };
        let api = self.claims(owner);
        let labels = spec.and_then(|spec| spec.selector.match_labels.clone());
        let labels: Vec<String> = labels
            .iter()
            .flatten()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let made = ListParams::default().labels(&labels.join(","));
        let mut found: HashMap<String, PersistentVolumeClaim> = api
            .list(&made)
            .await?
            .into_iter()
            .map(|claim| (claim.name_any(), claim))
            .collect();
        let ordinals = plan::ordinals(set);
        for pod in pods {
            let Some(ordinal) = plan::ordinal(&owner.key.name, &pod.key.name) else {
                continue;
            };
            let reference = OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: pod.key.name.clone(),
                uid: pod.uid.clone(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            };
            let is_condemned = !ordinals.contains(&ordinal);
            for template in templates {
                let name = plan::claim_name(&template.name_any(), &pod.key.name);
                // One that was there before the set may have other labels.
                let claim = match found.remove(&name) {
                    Some(claim) => Some(claim),
                    None => api.get_opt(&name).await?,
                };
                let Some(claim) = claim else { continue };
                let owners = retention.owners(
                    claim.owner_references(),
                    &owner.reference(),
                    Some(&reference),
                    is_condemned,
                );
                if let Some(owners) = owners {
                    let patch = Patch::Merge(json!({"metadata": {
                        "uid": claim.metadata.uid,
                        "resourceVersion": claim.metadata.resource_version,
                        "ownerReferences": owners,
                    }}));
                    api.patch(&name, &PatchParams::default(), &patch).await?;
                }
            }
        }
        Ok(())
    }

    fn claims(&self, owner: &Owner) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.control.client.clone(), &owner.key.namespace)
    }

    /// Claims of pods that are about to be made. Answers whether a pod has to wait, which is not among them any more: a
    /// claim of its name is about to go with a pod that was there before.
    async fn make_claims(
        &self,
        owner: &Owner,
        set: &StatefulSet,
        pods: &mut Vec<Pod>,
    ) -> kube::Result<bool> {
        let spec = set.spec.clone().unwrap_or_default();
        let retention = Retention::of(&spec);
        let namespace = &owner.key.namespace;
        let api = self.claims(owner);
        let mut waiting: Vec<String> = Vec::new();
        for pod in &*pods {
            for template in spec.volume_claim_templates.iter().flatten() {
                let mut claim = template.clone();
                let name = plan::claim_name(&template.name_any(), &pod.name_any());
                claim.metadata.name = Some(name.clone());
                claim.metadata.namespace = Some(namespace.clone());
                claim
                    .metadata
                    .labels
                    .get_or_insert_default()
                    .extend(spec.selector.match_labels.clone().unwrap_or_default());
                claim.metadata.owner_references =
                    retention.owners(&[], &owner.reference(), None, false);
                claim.status = None;
                match api.create(&PostParams::default(), &claim).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => {
                        let found = api.get_opt(&name).await?;
                        if found.is_none_or(|found| {
                            found.metadata.deletion_timestamp.is_some()
                                || claims::is_of_earlier_pod(
                                    found.owner_references(),
                                    &pod.name_any(),
                                )
                        }) {
                            waiting.push(pod.name_any());
                        }
                    }
                    Err(error) => {
                        let message = format!(
                            "create Claim {name} Pod {} in StatefulSet {} failed error: {}",
                            pod.name_any(),
                            owner.key.name,
                            retry::text(&error)
                        );
                        self.control.say(owner, "Warning", "FailedCreate", message);
                        return Err(error);
                    }
                    Ok(_) => {
                        let message = format!(
                            "create Claim {name} Pod {} in StatefulSet {} success",
                            pod.name_any(),
                            owner.key.name
                        );
                        self.control
                            .say(owner, "Normal", "SuccessfulCreate", message);
                    }
                }
            }
        }
        pods.retain(|pod| !waiting.contains(&pod.name_any()));
        Ok(!waiting.is_empty())
    }
}

/// What keeps pods from being made is said in the status too.
fn set_failure(status: &mut StatefulSetStatus, error: Option<&kube::Error>, now: Timestamp) {
    const FAILURE: &str = "ReplicaFailure";
    let mut conditions = status.conditions.take().unwrap_or_default();
    let known = conditions
        .iter()
        .position(|condition| condition.type_ == FAILURE);
    let known = known.map(|index| conditions.remove(index));
    if let Some(error) = error {
        let message = format!("volume claims cannot be made: {}", retry::text(error));
        let same = known.filter(|known| known.message.as_ref() == Some(&message));
        conditions.push(same.unwrap_or_else(|| StatefulSetCondition {
            type_: FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some("FailedCreate".to_owned()),
            message: Some(message),
            last_transition_time: Some(time(now)),
        }));
    }
    status.conditions = (!conditions.is_empty()).then_some(conditions);
}

#[cfg(test)]
mod tests;

//! Pods of one controller: which are its own, making them, taking them away, and saying so.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use k8s_openapi::{
    api::core::v1::{ObjectReference, Pod, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use wherry_api::selector::LabelSelector;

use crate::{
    events::{Note, Recorder},
    expectations::Expectations,
    pods::PodView,
    retry,
    watched::Watched,
    workqueue::{Key, WorkQueue},
};

/// An object that has pods.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Owner {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) key: Key,
    pub(crate) uid: String,
}

impl Owner {
    /// `kind` is API version and kind.
    pub(crate) fn new(
        (api_version, kind): (&'static str, &'static str),
        key: &Key,
        uid: Option<String>,
    ) -> Self {
        Self {
            api_version,
            kind,
            key: key.clone(),
            uid: uid.unwrap_or_default(),
        }
    }

    /// How its pods name it.
    pub(crate) fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version.to_owned(),
            kind: self.kind.to_owned(),
            name: self.key.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    /// Whether it is there still and is to stay: what this process believes of it may be old, and nothing that is deleted
    /// or was made anew may adopt.
    pub(crate) async fn is_there<K>(&self, api: &Api<K>) -> kube::Result<bool>
    where
        K: Resource + Clone + Debug + DeserializeOwned,
    {
        let found = api.get_opt(&self.key.name).await?;
        Ok(found.is_some_and(|found| {
            let metadata = found.meta();
            metadata.uid.as_ref() == Some(&self.uid) && metadata.deletion_timestamp.is_none()
        }))
    }

    /// A pod made of a template; without a name, the API server gives it one after its owner's.
    pub(crate) fn pod(&self, template: &PodTemplateSpec, name: Option<String>) -> Pod {
        let metadata = template.metadata.clone().unwrap_or_default();
        Pod {
            metadata: ObjectMeta {
                generate_name: name.is_none().then(|| format!("{}-", self.key.name)),
                name,
                namespace: Some(self.key.namespace.clone()),
                labels: metadata.labels,
                annotations: metadata.annotations,
                finalizers: metadata.finalizers,
                owner_references: Some(vec![self.reference()]),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    }

    /// Which of these pods, ended or not, are its own.
    pub(crate) fn claim(&self, selector: &LabelSelector, pods: Vec<Arc<PodView>>) -> Claim {
        let mut claim = Claim::default();
        for pod in pods {
            let is_selected = pod.is_selected_by(selector);
            if pod.is_controlled_by(&self.uid) {
                if is_selected || pod.deleted.is_some() {
                    claim.owned.push(pod);
                } else {
                    claim.release.push(pod);
                }
            } else if pod.controller.is_none() && is_selected && pod.deleted.is_none() {
                claim.adopt.push(pod);
            }
        }
        claim
    }
}

/// Which pods are an object's own.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Claim {
    pub(crate) owned: Vec<Arc<PodView>>,
    /// They match, and nobody controls them.
    pub(crate) adopt: Vec<Arc<PodView>>,
    /// Its own, and do not match any more.
    pub(crate) release: Vec<Arc<PodView>>,
}

/// Changes pods in the name of one controller.
pub(crate) struct PodControl {
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) component: &'static str,
    pub(crate) expectations: Arc<Expectations>,
}

impl PodControl {
    fn api(&self, owner: &Owner) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &owner.key.namespace)
    }

    /// Creates pods in batches that double, so that what is refused is refused once and not hundreds of times.
    pub(crate) async fn create(&self, owner: &Owner, pods: &[Pod]) -> kube::Result<()> {
        let api = self.api(owner);
        let parameters = PostParams::default();
        let (mut left, mut batch) = (pods, 1);
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            self.expectations.expect_creations(&owner.key, now.len());
            let creations = now.iter().map(|pod| api.create(&parameters, pod));
            let mut failed = None;
            for created in futures::future::join_all(creations).await {
                match created {
                    Ok(pod) => {
                        let name = pod.metadata.name.unwrap_or_default();
                        let message = format!("Created pod: {name}");
                        self.say(owner, "Normal", "SuccessfulCreate", message);
                    }
                    Err(error) => {
                        self.expectations.created(&owner.key);
                        failed = Some(error);
                    }
                }
            }
            match failed {
                None => {}
                // Whatever is in a namespace that goes away goes too.
                Some(kube::Error::Api(status))
                    if status.code == 403
                        && status.message.contains("because it is being terminated") =>
                {
                    return Ok(());
                }
                Some(error) => {
                    let message = format!("Error creating: {}", retry::text(&error));
                    self.say(owner, "Warning", "FailedCreate", message);
                    return Err(error);
                }
            }
            (left, batch) = (later, batch * 2);
        }
        Ok(())
    }

    /// Deletes pods; those that are on their way already are left to it.
    pub(crate) async fn delete(&self, owner: &Owner, pods: &[Arc<PodView>]) -> kube::Result<()> {
        let api = self.api(owner);
        let pods: Vec<_> = pods.iter().filter(|pod| pod.deleted.is_none()).collect();
        let uids = pods.iter().map(|pod| pod.uid.clone());
        self.expectations.expect_deletions(&owner.key, uids);
        let deletions = pods.into_iter().map(|pod| {
            let api = api.clone();
            async move {
                let parameters = of_uid(&pod.uid);
                (pod, api.delete(&pod.key.name, &parameters).await)
            }
        });
        let mut failed = None;
        for (pod, deleted) in futures::future::join_all(deletions).await {
            match deleted {
                Ok(_) => {
                    let message = format!("Deleted pod: {}", pod.key.name);
                    self.say(owner, "Normal", "SuccessfulDelete", message);
                }
                Err(error) => {
                    self.expectations.deleted(&owner.key, &pod.uid);
                    if !has_moved_on(&error) {
                        let message = format!("Error deleting: {}", retry::text(&error));
                        self.say(owner, "Warning", "FailedDelete", message);
                        failed = Some(error);
                    }
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Makes the owner's what is to be adopted, and lets go what is to be released. Answers all that is its own then.
    ///
    /// `is_there` tells whether an owner of this uid is there still: what is believed of it may be old.
    pub(crate) async fn settle(
        &self,
        owner: &Owner,
        claim: Claim,
        is_there: impl Future<Output = kube::Result<bool>>,
    ) -> kube::Result<Vec<Arc<PodView>>> {
        let api = self.api(owner);
        let parameters = PatchParams::default();
        let mut owned = claim.owned;
        for pod in claim.release {
            let patch = json!({"metadata": {
                "uid": pod.uid,
                "ownerReferences": [{"$patch": "delete", "uid": owner.uid}],
            }});
            let released = api
                .patch(&pod.key.name, &parameters, &Patch::Strategic(patch))
                .await;
            released.map(drop).or_else(forgive)?;
        }
        if claim.adopt.is_empty() || !is_there.await? {
            return Ok(owned);
        }
        for pod in claim.adopt {
            let patch = json!({"metadata": {
                "uid": pod.uid,
                "ownerReferences": [owner.reference()],
            }});
            match api
                .patch(&pod.key.name, &parameters, &Patch::Strategic(patch))
                .await
            {
                Ok(_) => owned.push(pod),
                Err(error) => forgive(error)?,
            }
        }
        Ok(owned)
    }

    /// Makes an event of the owner.
    pub(crate) fn say(
        &self,
        owner: &Owner,
        type_: &'static str,
        reason: &'static str,
        message: String,
    ) {
        self.recorder.record(Note {
            object: ObjectReference {
                api_version: Some(owner.api_version.to_owned()),
                kind: Some(owner.kind.to_owned()),
                namespace: Some(owner.key.namespace.clone()),
                name: Some(owner.key.name.clone()),
                uid: Some(owner.uid.clone()),
                ..ObjectReference::default()
            },
            type_,
            reason,
            message,
            component: self.component.to_owned(),
        });
    }
}

/// Deletes only the object of this uid.
pub(crate) fn of_uid(uid: &str) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    }
}

/// The object has gone or is another by now; news of that is on the way.
fn has_moved_on(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409 | 422))
}

fn forgive(error: kube::Error) -> kube::Result<()> {
    if has_moved_on(&error) {
        Ok(())
    } else {
        Err(error)
    }
}

/// Names the owners of pods that change, keeps account of what was expected, and names every candidate of a pod that
/// has no controller. `selectors` answers the owners in a namespace that would choose given labels.
pub(crate) fn listen(
    pods: &mut Watched<PodView>,
    (api_version, kind): (&'static str, &'static str),
    queue: Arc<WorkQueue>,
    expectations: Arc<Expectations>,
    candidates: impl Fn(&str, &BTreeMap<String, String>) -> Vec<Key> + Send + Sync + 'static,
) {
    let owner = move |pod: &PodView| {
        let owner = pod.controller.as_ref()?;
        (owner.kind == kind && owner.api_version == api_version)
            .then(|| Key::new(pod.key.namespace.clone(), owner.name.clone()))
    };
    pods.listen(move |old, new| {
        let is_same = |old: &&Arc<PodView>| new.is_some_and(|new| new.uid == old.uid);
        let before = old.filter(is_same);
        if let Some(gone) = old.filter(|old| !is_same(old))
            && let Some(owner) = owner(gone)
        {
            expectations.deleted(&owner, &gone.uid);
            queue.add(owner);
        }
        let Some(pod) = new else { return };
        let now = owner(pod);
        if let Some(then) = before.and_then(|before| owner(before))
            && Some(&then) != now.as_ref()
        {
            queue.add(then);
        }
        if let Some(owner) = now {
            if before.is_none() {
                expectations.created(&owner);
            }
            if pod.deleted.is_some() {
                expectations.deleted(&owner, &pod.uid);
            }
            queue.add(owner);
        } else if pod.controller.is_none()
            && before
                .is_none_or(|before| before.labels != pod.labels || before.controller.is_some())
        {
            for candidate in candidates(&pod.key.namespace, &pod.labels) {
                queue.add(candidate);
            }
        }
    });
}

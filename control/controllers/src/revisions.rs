//! ControllerRevisions: versions of a DaemonSet's or StatefulSet's template, for `kubectl rollout history` and `undo`.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    hash,
    pod_control::{Owner, of_uid},
    pods,
    watched::Watched,
};

/// On pods: the version that they were made of.
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";
/// How often another name is tried when a hash is taken by other content.
const COLLISIONS_MAX: u32 = 10;

type Revision = Arc<ControllerRevision>;

/// What a version holds: a patch that brings the template back.
pub(crate) fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template that a version holds.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let data = &revision.data.as_ref()?.0;
    let mut template = data.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// All versions of an owner, the oldest first.
pub(crate) fn of(owner: &Owner, all: &Watched<ControllerRevision>) -> Vec<Revision> {
    let prefix = format!("{}-", owner.key.name);
    let mut own = all.with_prefix(&owner.key.namespace, &prefix);
    own.retain(|revision| {
        pods::controller(revision.metadata.owner_references.as_ref())
            .is_some_and(|controller| controller.uid == owner.uid)
    });
    own.sort_by_key(|revision| (revision.revision, revision.name_any()));
    own
}

/// Those that are older than the newest `limit` and that nobody uses.
pub(crate) fn superfluous(
    known: &[Revision],
    limit: i32,
    is_used: impl Fn(&ControllerRevision) -> bool,
) -> Vec<&Revision> {
    let unused: Vec<_> = known.iter().filter(|revision| !is_used(revision)).collect();
    let surplus = unused
        .len()
        .saturating_sub(usize::try_from(limit).unwrap_or(0));
    unused.into_iter().take(surplus).collect()
}

/// Writes versions of one owner.
pub(crate) struct Revisions<'a> {
    pub(crate) client: &'a Client,
    pub(crate) owner: &'a Owner,
}

impl Revisions<'_> {
    fn api(&self) -> Api<ControllerRevision> {
        Api::namespaced(self.client.clone(), &self.owner.key.namespace)
    }

    /// The version of this content, with the highest number: made, or numbered anew. `labels` are given the hash under
    /// which it is known.
    pub(crate) async fn ensure(
        &self,
        data: Value,
        known: &[Revision],
        labels: impl Fn(&str) -> BTreeMap<String, String>,
        annotations: Option<BTreeMap<String, String>>,
    ) -> kube::Result<Revision> {
        let last = known.last().map_or(0, |revision| revision.revision);
        let is_same = |revision: &ControllerRevision| {
            revision.data.as_ref().is_some_and(|found| found.0 == data)
        };
        if let Some(same) = known.iter().rev().find(|revision| is_same(revision)) {
            if same.revision == last {
                return Ok(same.clone());
            }
            let patch = json!({"metadata": {"uid": same.uid()}, "revision": last + 1});
            let parameters = PatchParams::default();
            let patched = self
                .api()
                .patch(&same.name_any(), &parameters, &Patch::Merge(patch))
                .await?;
            return Ok(Arc::new(patched));
        }
        let text = data.to_string();
        for collision in 0..=COLLISIONS_MAX {
            let mut content = text.clone().into_bytes();
            content.extend(collision.to_le_bytes());
            let hash = hash::short(&content);
            let revision = ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(format!("{}-{hash}", self.owner.key.name)),
                    namespace: Some(self.owner.key.namespace.clone()),
                    labels: Some(labels(&hash)),
                    annotations: annotations.clone(),
                    owner_references: Some(vec![self.owner.reference()]),
                    ..ObjectMeta::default()
                },
                data: Some(RawExtension(data.clone())),
                revision: last + 1,
            };
            match self.api().create(&PostParams::default(), &revision).await {
                Err(kube::Error::Api(status))
                    if status.code == 409 && collision < COLLISIONS_MAX =>
                {
                    let found = self.api().get_opt(&revision.name_any()).await?;
                    // Made a moment ago, and not seen yet.
                    if let Some(found) = found.filter(|found| is_same(found))
                        && pods::controller(found.metadata.owner_references.as_ref())
                            .is_some_and(|controller| controller.uid == self.owner.uid)
                    {
                        return Ok(Arc::new(found));
                    }
                }
                created => return created.map(Arc::new),
            }
        }
        unreachable!("the last try returns")
    }

    /// Takes versions away.
    pub(crate) async fn delete(&self, revisions: &[&Revision]) -> kube::Result<()> {
        for revision in revisions {
            let parameters = of_uid(&revision.uid().unwrap_or_default());
            match self.api().delete(&revision.name_any(), &parameters).await {
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                result => result.map(drop)?,
            }
        }
        Ok(())
    }
}

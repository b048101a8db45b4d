//! Who owns the claims of a StatefulSet's pods, which decides what becomes of them: a claim goes with its last owner.
//! Pure.
//!
//! ```text
//!  persistentVolumeClaimRetentionPolicy   the pod is to stay   its ordinal is not wanted any more
//!  whenDeleted: Retain, whenScaled: Retain   nobody               nobody
//!  whenDeleted: Delete, whenScaled: Retain   the set              the set
//!  whenDeleted: Retain, whenScaled: Delete   nobody               the pod
//!  whenDeleted: Delete, whenScaled: Delete   the set              the pod
//! ```

use k8s_openapi::{
    api::apps::v1::StatefulSetSpec, apimachinery::pkg::apis::meta::v1::OwnerReference,
};

/// What becomes of claims (`spec.persistentVolumeClaimRetentionPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retention {
    /// They go with the set.
    go_with_set: bool,
    /// Those of ordinals that are not wanted any more go with their pods.
    go_with_pod: bool,
}

impl Retention {
    pub(super) fn of(spec: &StatefulSetSpec) -> Self {
        let policy = spec.persistent_volume_claim_retention_policy.as_ref();
        let deletes = |when: Option<&String>| when.is_some_and(|policy| policy == "Delete");
        Self {
            go_with_set: deletes(policy.and_then(|policy| policy.when_deleted.as_ref())),
            go_with_pod: deletes(policy.and_then(|policy| policy.when_scaled.as_ref())),
        }
    }

    /// Claims are never deleted by it.
    pub(super) fn keeps_all(self) -> bool {
        !self.go_with_set && !self.go_with_pod
    }

    /// The owners that a claim is to have, unless it has them. What others own stays as it is, and so does everything
    /// of a claim that somebody else controls.
    pub(super) fn owners(
        self,
        owners: &[OwnerReference],
        set: &OwnerReference,
        pod: Option<&OwnerReference>,
        is_condemned: bool,
    ) -> Option<Vec<OwnerReference>> {
        let is_of_set = |owner: &OwnerReference| owner.uid == set.uid;
        let is_of_pod = |owner: &OwnerReference| pod.is_some_and(|pod| owner.uid == pod.uid);
        if owners
            .iter()
            .any(|owner| owner.controller == Some(true) && !is_of_set(owner) && !is_of_pod(owner))
        {
            return None;
        }
        let by_pod = self.go_with_pod && is_condemned;
        let wanted = if by_pod {
            pod
        } else {
            Some(set).filter(|_| self.go_with_set)
        };
        let mut wanted_owners: Vec<OwnerReference> = owners
            .iter()
            .filter(|owner| !is_of_set(owner) && !is_of_pod(owner))
            .cloned()
            .collect();
        wanted_owners.extend(wanted.cloned());
        (wanted_owners != owners).then_some(wanted_owners)
    }
}

/// Whether a claim goes with a pod of this name that was there before: a new one has to wait for a new claim.
pub(super) fn is_of_earlier_pod(owners: &[OwnerReference], pod: &str) -> bool {
    owners
        .iter()
        .any(|owner| owner.kind == "Pod" && owner.api_version == "v1" && owner.name == pod)
}

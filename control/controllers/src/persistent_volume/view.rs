//! Volumes, claims and classes as the binder and the scheduler see them. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{
            NodeSelector, ObjectReference, PersistentVolume, PersistentVolumeClaim,
            PersistentVolumeClaimCondition, TopologySelectorTerm,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use wherry_api::{quantity, selector::LabelSelector};

use crate::{watched::key_of, workqueue::Key};

/// A claim is bound for good (`pv.kubernetes.io/bind-completed`).
pub(crate) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The controller chose, not a person (`pv.kubernetes.io/bound-by-controller`).
pub(crate) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Who made a volume.
pub(crate) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Who is to make a claim's volume, as it is now and as it was called at first.
pub(crate) const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
pub(crate) const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// The node that the scheduler chose for the first pod of a claim.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Marks the class that claims without one get.
pub(crate) const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_CLASS_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";
/// `storageClassName`, as it was written before there was the field.
const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";
/// A class whose volumes are made by hand.
pub(crate) const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

type Labels = BTreeMap<String, String>;

/// A PersistentVolume.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct VolumeView {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) labels: Labels,
    pub(crate) annotations: Labels,
    pub(crate) finalizers: Vec<String>,
    pub(crate) is_deleted: bool,
    pub(crate) capacity_bytes: i128,
    /// As it is written.
    pub(crate) capacity: Option<Quantity>,
    pub(crate) access_modes: Vec<String>,
    pub(crate) class: String,
    pub(crate) is_block: bool,
    pub(crate) reclaim_policy: String,
    pub(crate) claim: Option<ObjectReference>,
    pub(crate) affinity: Option<NodeSelector>,
    pub(crate) phase: String,
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClaimView {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) annotations: Labels,
    pub(crate) finalizers: Vec<String>,
    pub(crate) is_deleted: bool,
    pub(crate) request_bytes: i128,
    pub(crate) access_modes: Vec<String>,
    /// `None` is a claim that takes the default class once there is one; `""` one that wants no class.
    pub(crate) class: Option<String>,
    pub(crate) is_block: bool,
    pub(crate) selector: Option<LabelSelector>,
    pub(crate) volume: String,
    pub(crate) phase: String,
    pub(crate) capacity: Option<Quantity>,
    /// Modes in its status.
    pub(crate) bound_modes: Vec<String>,
    pub(crate) conditions: Vec<PersistentVolumeClaimCondition>,
    /// The pod it was made for, if it was (`volumes[].ephemeral`).
    pub(crate) owner_pod: Option<String>,
}

/// A StorageClass.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClassView {
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    pub(crate) provisioner: String,
    /// `volumeBindingMode: WaitForFirstConsumer`.
    pub(crate) waits_for_consumer: bool,
    pub(crate) topologies: Vec<TopologySelectorTerm>,
    pub(crate) is_default: bool,
}

fn bytes(quantity: Option<&Quantity>) -> i128 {
    quantity
        .and_then(|quantity| quantity::Quantity::parse(&quantity.0).ok())
        .map_or(0, |quantity| quantity.value())
}

impl From<PersistentVolume> for VolumeView {
    fn from(volume: PersistentVolume) -> Self {
        let (meta, spec) = (volume.metadata, volume.spec.unwrap_or_default());
        let annotations = meta.annotations.unwrap_or_default();
        let capacity = spec
            .capacity
            .and_then(|mut capacity| capacity.remove("storage"));
        Self {
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            resource_version: meta.resource_version.unwrap_or_default(),
            labels: meta.labels.unwrap_or_default(),
            finalizers: meta.finalizers.unwrap_or_default(),
            is_deleted: meta.deletion_timestamp.is_some(),
            capacity_bytes: bytes(capacity.as_ref()),
            capacity,
            access_modes: spec.access_modes.unwrap_or_default(),
            class: class_of(spec.storage_class_name, &annotations).unwrap_or_default(),
            annotations,
            is_block: spec.volume_mode.as_deref() == Some("Block"),
            reclaim_policy: spec
                .persistent_volume_reclaim_policy
                .unwrap_or_else(|| "Retain".into()),
            claim: spec.claim_ref,
            affinity: spec.node_affinity.and_then(|affinity| affinity.required),
            phase: volume
                .status
                .and_then(|status| status.phase)
                .unwrap_or_default(),
        }
    }
}

impl VolumeView {
    /// Whether it is promised to this claim and no other.
    pub(crate) fn is_for(&self, claim: &ClaimView) -> bool {
        self.claim.as_ref().is_some_and(|reference| {
            reference.name.as_deref() == Some(&claim.key.name)
                && reference.namespace.as_deref() == Some(&claim.key.namespace)
                && reference
                    .uid
                    .as_ref()
                    .is_none_or(|uid| uid.is_empty() || *uid == claim.uid)
        })
    }

    /// Namespace and name of the claim it is promised to.
    pub(crate) fn claim_key(&self) -> Option<Key> {
        let claim = self.claim.as_ref()?;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Some(Key::new(text(&claim.namespace), text(&claim.name)))
    }
}

impl From<PersistentVolumeClaim> for ClaimView {
    fn from(claim: PersistentVolumeClaim) -> Self {
        let key = key_of(&claim);
        let (meta, spec) = (claim.metadata, claim.spec.unwrap_or_default());
        let status = claim.status.unwrap_or_default();
        let annotations = meta.annotations.unwrap_or_default();
        let owners = meta.owner_references.unwrap_or_default();
        let selector = spec.selector.map(|selector| {
            let value = serde_json::to_value(selector).unwrap_or_default();
            LabelSelector::from_value(&value).unwrap_or_else(|_| LabelSelector::nothing())
        });
        Self {
            key,
            uid: meta.uid.unwrap_or_default(),
            resource_version: meta.resource_version.unwrap_or_default(),
            finalizers: meta.finalizers.unwrap_or_default(),
            is_deleted: meta.deletion_timestamp.is_some(),
            request_bytes: bytes(
                spec.resources
                    .as_ref()
                    .and_then(|resources| resources.requests.as_ref()?.get("storage")),
            ),
            access_modes: spec.access_modes.unwrap_or_default(),
            class: class_of(spec.storage_class_name, &annotations),
            annotations,
            is_block: spec.volume_mode.as_deref() == Some("Block"),
            selector,
            volume: spec.volume_name.unwrap_or_default(),
            phase: status.phase.unwrap_or_default(),
            capacity: status
                .capacity
                .and_then(|mut capacity| capacity.remove("storage")),
            bound_modes: status.access_modes.unwrap_or_default(),
            conditions: status.conditions.unwrap_or_default(),
            owner_pod: owners
                .into_iter()
                .find(|owner| owner.kind == "Pod" && owner.controller == Some(true))
                .map(|owner| owner.uid),
        }
    }
}

impl ClaimView {
    /// Whether it is bound and everybody has said so.
    pub(crate) fn is_bound(&self) -> bool {
        !self.volume.is_empty() && self.annotations.contains_key(BIND_COMPLETED)
    }

    pub(crate) fn annotation(&self, key: &str) -> &str {
        self.annotations.get(key).map_or("", String::as_str)
    }
}

fn class_of(field: Option<String>, annotations: &Labels) -> Option<String> {
    annotations.get(CLASS_BETA).cloned().or(field)
}

impl From<StorageClass> for ClassView {
    fn from(class: StorageClass) -> Self {
        let meta = class.metadata;
        let annotations = meta.annotations.unwrap_or_default();
        let is_default = [DEFAULT_CLASS, DEFAULT_CLASS_BETA]
            .iter()
            .any(|key| annotations.get(*key).is_some_and(|value| value == "true"));
        Self {
            name: meta.name.unwrap_or_default(),
            created: meta
                .creation_timestamp
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            provisioner: class.provisioner,
            waits_for_consumer: class.volume_binding_mode.as_deref()
                == Some("WaitForFirstConsumer"),
            topologies: class.allowed_topologies.unwrap_or_default(),
            is_default,
        }
    }
}

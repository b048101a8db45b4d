//! What is to be done for a claim or a volume. Pure.

use std::collections::HashSet;

use super::{
    expand, matching,
    view::{
        BIND_COMPLETED, BOUND_BY_CONTROLLER, ClaimView, ClassView, NO_PROVISIONER, PROVISIONED_BY,
        SELECTED_NODE, VolumeView,
    },
};
use std::sync::Arc;

/// The provisioner that is built in: directories of the node that the first pod is scheduled to.
pub(super) const LOCAL_PATH: &str = "local-path.wherry.dev";

/// Whether a provisioner is a plugin for volumes by its name alone. Others are if a Plugin is called so.
pub(super) fn is_plugin(provisioner: &str) -> bool {
    let name = provisioner.strip_suffix(".wherry.dev");
    provisioner != LOCAL_PATH
        && name.is_some_and(|name| !name.is_empty() && !name.contains(['.', '/']))
}

/// The plugin that a provisioner is.
pub(super) fn plugin_name(provisioner: &str) -> &str {
    provisioner
        .strip_suffix(".wherry.dev")
        .unwrap_or(provisioner)
}

/// Whether a volume is a plugin's, whose nodes make it larger.
fn is_of_plugin(volume: &VolumeView) -> bool {
    let made_by = volume.annotations.get(PROVISIONED_BY);
    volume.annotations.contains_key(PLUGIN) || made_by.is_some_and(|made_by| is_plugin(made_by))
}

/// Something to say of a claim or a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Say {
    pub(super) is_warning: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

fn say(reason: &'static str, message: impl Into<String>) -> Say {
    Say {
        is_warning: false,
        reason,
        message: message.into(),
    }
}

fn warn(reason: &'static str, message: impl Into<String>) -> Say {
    Say {
        is_warning: true,
        ..say(reason, message)
    }
}

/// What a claim needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClaimStep {
    /// It is as it should be.
    Done,
    /// It waits, and this is why.
    Wait(Option<Say>),
    /// It and this volume are each other's, and what is missing of that is to be written.
    Bind(String),
    /// What it was bound to is not its own.
    Lost(Say),
    /// It takes the default class.
    TakeClass(String),
    /// Somebody else makes its volume, unless that is the name of an installed plugin.
    Ask {
        class: String,
        provisioner: String,
        node: String,
    },
    /// Its volume is made on this node.
    Make { node: String, class: String },
    /// Its volume is a plugin's, of this node where the scheduler has chosen one.
    Give {
        class: String,
        plugin: String,
        node: String,
    },
    /// The node that was chosen for it is not there any more.
    ForgetNode,
    /// Its volume has to say that it holds more.
    Grow(String),
    /// Its volume is a plugin's, which has to be asked for more.
    Expand(String),
    /// It asks for no more than it has, and still says that it is waiting for more.
    Settle,
}

/// What a claim is decided by.
pub(super) struct World {
    pub(super) volumes: Vec<Arc<VolumeView>>,
    pub(super) classes: Vec<Arc<ClassView>>,
    pub(super) nodes: HashSet<String>,
    /// A pod that uses the claim and has no node yet.
    pub(super) waiting_pod: Option<String>,
}

impl World {
    fn volume(&self, name: &str) -> Option<&VolumeView> {
        let mut volumes = self.volumes.iter();
        volumes
            .find(|volume| volume.name == name)
            .map(|found| &**found)
    }

    fn class(&self, name: &str) -> Option<&ClassView> {
        let mut classes = self.classes.iter();
        classes
            .find(|class| class.name == name)
            .map(|found| &**found)
    }

    /// The youngest of the default classes.
    fn default_class(&self) -> Option<&ClassView> {
        let default = self.classes.iter().filter(|class| class.is_default);
        default
            .max_by(|a, b| a.created.cmp(&b.created).then_with(|| b.name.cmp(&a.name)))
            .map(|found| &**found)
    }
}

/// Decides on a claim that is not being deleted.
pub(super) fn claim_step(claim: &ClaimView, world: &World) -> ClaimStep {
    if claim.annotations.contains_key(BIND_COMPLETED) {
        return bound_step(claim, world);
    }
    if !claim.volume.is_empty() {
        return named_step(claim, world);
    }
    let class = claim.class.as_deref().filter(|name| !name.is_empty());
    let found_class = class.and_then(|name| world.class(name));
    let selected = claim.annotation(SELECTED_NODE);
    // Which of the volumes is for the scheduler to say, unless one is promised already.
    let is_for_scheduler = found_class.is_some_and(|class| class.waits_for_consumer);
    let volumes = world.volumes.iter().map(|volume| &**volume);
    let candidates = volumes.filter(|volume| !is_for_scheduler || volume.is_for(claim));
    if let Some(volume) = matching::best(claim, candidates, None, |_| false) {
        return ClaimStep::Bind(volume.name.clone());
    }
    let Some(class) = class else {
        if claim.class.is_none()
            && let Some(default) = world.default_class()
        {
            return ClaimStep::TakeClass(default.name.clone());
        }
        return ClaimStep::Wait(Some(say(
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        )));
    };
    let Some(found) = found_class else {
        return ClaimStep::Wait(Some(warn(
            "ProvisioningFailed",
            format!("storageclass.storage.k8s.io {class:?} not found"),
        )));
    };
    if is_for_scheduler && selected.is_empty() {
        return ClaimStep::Wait(Some(match &world.waiting_pod {
            Some(pod) => say(
                "WaitForPodScheduled",
                format!("waiting for pod {pod} to be scheduled"),
            ),
            None => say(
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding",
            ),
        }));
    }
    if is_for_scheduler && !world.nodes.contains(selected) {
        return ClaimStep::ForgetNode;
    }
    match found.provisioner.as_str() {
        NO_PROVISIONER => ClaimStep::Wait(Some(warn(
            "ProvisioningFailed",
            "no volume plugin matched name: kubernetes.io/no-provisioner",
        ))),
        LOCAL_PATH => match unfit(claim, found) {
            Some(why) => ClaimStep::Wait(Some(warn(
                "ProvisioningFailed",
                format!("failed to provision volume with StorageClass {class:?}: {why}"),
            ))),
            None => ClaimStep::Make {
                node: selected.to_owned(),
                class: class.to_owned(),
            },
        },
        plugin if is_plugin(plugin) => match unfit_for_plugin(claim) {
            Some(why) => ClaimStep::Wait(Some(warn(
                "ProvisioningFailed",
                format!("failed to provision volume with StorageClass {class:?}: {why}"),
            ))),
            None => ClaimStep::Give {
                class: class.to_owned(),
                plugin: plugin.to_owned(),
                node: match is_for_scheduler {
                    true => selected.to_owned(),
                    false => String::new(),
                },
            },
        },
        provisioner => ClaimStep::Ask {
            class: class.to_owned(),
            provisioner: provisioner.to_owned(),
            node: match is_for_scheduler {
                true => selected.to_owned(),
                false => String::new(),
            },
        },
    }
}

/// Why no plugin's volume can be what a claim asks for.
pub(super) fn unfit_for_plugin(claim: &ClaimView) -> Option<&'static str> {
    if claim.is_block {
        return Some("a plugin gives directories, no block devices");
    }
    let message = "claim.Spec.Selector is not supported for dynamic provisioning";
    claim.selector.is_some().then_some(message)
}

/// Why a directory of a node cannot be what a claim asks for.
fn unfit(claim: &ClaimView, class: &ClassView) -> Option<&'static str> {
    if !class.waits_for_consumer {
        return Some(
            "only volumeBindingMode WaitForFirstConsumer says which node's directory it is",
        );
    }
    if claim.is_block {
        return Some("a directory is no block device");
    }
    if claim.selector.is_some() {
        return Some("claim.Spec.Selector is not supported for dynamic provisioning");
    }
    let is_shared = |mode: &String| mode != "ReadWriteOnce" && mode != "ReadWriteOncePod";
    claim.access_modes.iter().any(is_shared).then_some(
        "only one node can reach it: access modes ReadWriteOnce and ReadWriteOncePod are supported",
    )
}

fn bound_step(claim: &ClaimView, world: &World) -> ClaimStep {
    let lost = |reason, message: &str| ClaimStep::Lost(warn(reason, message));
    if claim.volume.is_empty() {
        return lost(
            "ClaimLost",
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
        );
    }
    let Some(volume) = world.volume(&claim.volume) else {
        return lost(
            "ClaimLost",
            "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
        );
    };
    if volume.claim.is_some() && !volume.is_for(claim) {
        return lost(
            "ClaimMisbound",
            "Two claims are bound to the same volume, this one is bound incorrectly",
        );
    }
    if !is_bound(claim, volume) {
        return ClaimStep::Bind(volume.name.clone());
    }
    if claim.request_bytes > volume.capacity_bytes {
        let made_by = volume.annotations.get(PROVISIONED_BY);
        return match made_by.map(String::as_str) {
            Some(LOCAL_PATH) => ClaimStep::Grow(volume.name.clone()),
            Some(_) if is_of_plugin(volume) => ClaimStep::Expand(volume.name.clone()),
            _ => ClaimStep::Wait(Some(say(
                "ExternalExpanding",
                "waiting for an external controller to expand this PVC",
            ))),
        };
    }
    match expand::is_settled(&claim.conditions) {
        true => ClaimStep::Done,
        false => ClaimStep::Settle,
    }
}

/// Whether everything is written that makes a claim and a volume each other's.
fn is_bound(claim: &ClaimView, volume: &VolumeView) -> bool {
    let has_uid = |volume: &VolumeView| {
        let claim = volume.claim.as_ref();
        claim.is_some_and(|claim| claim.uid.as_ref().is_some_and(|uid| !uid.is_empty()))
    };
    claim.is_bound()
        && claim.phase == "Bound"
        && claim.capacity == volume.capacity
        && claim.bound_modes == volume.access_modes
        && has_uid(volume)
        && volume.phase == "Bound"
}

/// A claim that names the volume it wants.
fn named_step(claim: &ClaimView, world: &World) -> ClaimStep {
    let Some(volume) = world.volume(&claim.volume) else {
        return ClaimStep::Wait(None);
    };
    if volume.is_for(claim) {
        return ClaimStep::Bind(volume.name.clone());
    }
    if volume.claim.is_some() {
        return ClaimStep::Wait(Some(warn(
            "FailedBinding",
            format!(
                "volume {:?} already bound to a different claim.",
                volume.name
            ),
        )));
    }
    match matching::mismatch(claim, volume) {
        Some(why) => ClaimStep::Wait(Some(warn(
            "VolumeMismatch",
            format!("Cannot bind to requested volume {:?}: {why}", volume.name),
        ))),
        None => ClaimStep::Bind(volume.name.clone()),
    }
}

/// What a volume needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VolumeStep {
    /// This is its phase.
    Phase(&'static str),
    /// Its claim has to be looked at.
    Claim,
    /// It was promised to a claim that has another.
    Unbind,
    /// Its claim has gone; it stays until somebody takes it away.
    Keep,
    /// Its claim has gone, and this node's directory and the volume go as well.
    Remove { node: String },
    /// Its claim has gone, and its plugin takes it away.
    Delete,
    /// Its claim has gone, and there is nothing of it but the object.
    Forget,
    /// Its claim has gone, and who made it takes it away.
    Leave,
    /// Its claim has gone, and what is asked for then cannot be done.
    Fail(Say),
}

/// Where a volume was made: its directory, or what a plugin has made. A volume without is made nowhere.
pub(super) const NODE: &str = "wherry.dev/node";
/// The plugin whose volume it is.
pub(super) const PLUGIN: &str = "wherry.dev/plugin";

/// Decides on a volume that is not being deleted. `claim` is the claim of the name that it is promised to.
pub(super) fn volume_step(volume: &VolumeView, claim: Option<&ClaimView>) -> VolumeStep {
    let Some(reference) = &volume.claim else {
        return VolumeStep::Phase("Available");
    };
    let Some(uid) = reference.uid.as_ref().filter(|uid| !uid.is_empty()) else {
        return if claim.is_some() {
            VolumeStep::Claim
        } else {
            VolumeStep::Phase("Available")
        };
    };
    match claim.filter(|claim| claim.uid == *uid) {
        None => released_step(volume),
        Some(claim) if claim.volume == volume.name => VolumeStep::Phase("Bound"),
        Some(claim) if claim.volume.is_empty() => VolumeStep::Claim,
        Some(_) if volume.annotations.contains_key(BOUND_BY_CONTROLLER) => VolumeStep::Unbind,
        Some(_) => VolumeStep::Phase("Available"),
    }
}

fn released_step(volume: &VolumeView) -> VolumeStep {
    let made_by = volume.annotations.get(PROVISIONED_BY);
    match (volume.reclaim_policy.as_str(), made_by.map(String::as_str)) {
        ("Delete", Some(LOCAL_PATH)) => VolumeStep::Remove {
            node: volume.annotations.get(NODE).cloned().unwrap_or_default(),
        },
        ("Delete", Some(_)) if is_of_plugin(volume) => {
            match volume.annotations.contains_key(NODE) {
                true => VolumeStep::Delete,
                false => VolumeStep::Forget,
            }
        }
        ("Delete", Some(_)) => VolumeStep::Leave,
        ("Delete", None) => VolumeStep::Fail(warn(
            "VolumeFailedDelete",
            format!(
                "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                volume.name
            ),
        )),
        ("Recycle", _) => VolumeStep::Fail(warn(
            "VolumeFailedRecycle",
            "persistentVolumeReclaimPolicy Recycle is not supported: use Delete, or Retain and clean up by hand",
        )),
        _ => VolumeStep::Keep,
    }
}

#[cfg(test)]
mod tests;

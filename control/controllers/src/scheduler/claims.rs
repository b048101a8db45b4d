//! Which nodes can have a pod's PersistentVolumeClaims, and what has to be written before it is bound there. Pure.

use std::collections::{BTreeMap, HashMap};

use super::{node::NodeInfo, pod::PodInfo};
use crate::{
    persistent_volume::{
        matching,
        view::{ClaimView, ClassView, NO_PROVISIONER, SELECTED_NODE, VolumeView},
    },
    workqueue::Key,
};

/// Why a node cannot have a claim, in kube-scheduler's words.
pub(crate) const REASON_AFFINITY: &str = "node(s) didn't match PersistentVolume's node affinity";
pub(crate) const REASON_NO_VOLUME: &str =
    "node(s) didn't find available persistent volumes to bind";
/// Why a claim that only one pod may have keeps another waiting.
pub(crate) const REASON_ONE_POD: &str =
    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";

/// What is to be written for a claim before its pod is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The volume is promised to the claim.
    Bind { claim: Key, volume: String },
    /// The node is named to the claim's provisioner.
    Provision { claim: Key },
}

impl Step {
    pub(crate) fn claim(&self) -> &Key {
        match self {
            Self::Bind { claim, .. } | Self::Provision { claim } => claim,
        }
    }
}

/// Volumes, claims and classes.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    pub(crate) claims: HashMap<Key, ClaimView>,
    pub(crate) volumes: BTreeMap<String, VolumeView>,
    pub(crate) classes: HashMap<String, ClassView>,
    /// Pods that are counted in and have a claim.
    users: HashMap<Key, usize>,
    /// Volumes that are about to be promised, and to which pod's claim.
    assumed: HashMap<String, String>,
}

/// A pod's claims, looked up.
#[derive(Debug, Default)]
pub(crate) struct Wanted<'a> {
    bound: Vec<&'a VolumeView>,
    unbound: Vec<(&'a ClaimView, &'a ClassView)>,
    /// A claim that only one pod may have is another's.
    pub(crate) is_in_use: bool,
}

impl Claims {
    /// Looks a pod's claims up.
    ///
    /// # Errors
    /// No node can help; the text is for the pod's condition.
    pub(crate) fn wanted(&self, pod: &PodInfo) -> Result<Wanted<'_>, String> {
        let mut wanted = Wanted::default();
        for claim in &pod.needs.claims {
            let key = Key::new(&pod.needs.namespace, &claim.name);
            let Some(view) = self.claims.get(&key) else {
                return Err(if claim.is_ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim {:?}",
                        claim.name
                    )
                } else {
                    format!("persistentvolumeclaim {:?} not found", claim.name)
                });
            };
            if claim.is_ephemeral && view.owner_pod.as_deref() != Some(&pod.uid) {
                return Err(format!(
                    "PVC {key} was not created for pod {}/{} (pod is not owner)",
                    pod.needs.namespace, pod.name
                ));
            }
            if view.is_deleted {
                return Err(format!(
                    "persistentvolumeclaim {:?} is being deleted",
                    claim.name
                ));
            }
            let is_alone = view
                .access_modes
                .iter()
                .any(|mode| mode == "ReadWriteOncePod");
            wanted.is_in_use |= is_alone && self.users.get(&key).is_some_and(|users| *users > 0);
            if view.is_bound() {
                match self.volumes.get(&view.volume) {
                    Some(volume) if view.phase != "Lost" => wanted.bound.push(volume),
                    _ => {
                        return Err(format!(
                            "persistentvolumeclaim {:?} bound to non-existent persistentvolume {:?}",
                            claim.name, view.volume
                        ));
                    }
                }
                continue;
            }
            let class = view
                .class
                .as_ref()
                .and_then(|class| self.classes.get(class));
            match class {
                Some(class) if class.waits_for_consumer && view.volume.is_empty() => {
                    wanted.unbound.push((view, class));
                }
                _ => return Err("pod has unbound immediate PersistentVolumeClaims".into()),
            }
        }
        Ok(wanted)
    }

    /// What has to be written before a pod is bound to a node.
    ///
    /// # Errors
    /// The node cannot have the claims.
    pub(crate) fn steps(
        &self,
        wanted: &Wanted<'_>,
        node: &NodeInfo,
    ) -> Result<Vec<Step>, &'static str> {
        let Some(offer) = &node.offer else {
            return Err(REASON_AFFINITY);
        };
        let mut reachable = wanted.bound.iter().map(|volume| {
            matching::is_reachable(volume.affinity.as_ref(), &node.name, &offer.labels)
        });
        if reachable.any(|reachable| !reachable) {
            return Err(REASON_AFFINITY);
        }
        let mut steps = Vec::new();
        for (claim, class) in &wanted.unbound {
            // Its volume is being made for that node; who makes it takes the choice back if that fails.
            let selected = claim.annotation(SELECTED_NODE);
            if !selected.is_empty() && selected != node.name {
                return Err(REASON_NO_VOLUME);
            }
            let is_taken = |name: &str| {
                self.assumed.contains_key(name)
                    || steps
                        .iter()
                        .any(|step| matches!(step, Step::Bind { volume, .. } if volume == name))
            };
            let place = Some((node.name.as_str(), &offer.labels));
            let found = matching::best(claim, self.volumes.values(), place, is_taken);
            let claim = claim.key.clone();
            steps.push(match found {
                Some(volume) => Step::Bind {
                    claim,
                    volume: volume.name.clone(),
                },
                None if class.provisioner != NO_PROVISIONER
                    && matching::is_allowed(&class.topologies, &offer.labels) =>
                {
                    Step::Provision { claim }
                }
                None => return Err(REASON_NO_VOLUME),
            });
        }
        Ok(steps)
    }

    /// Counts a pod's claims in (1) or out (-1).
    pub(crate) fn count(
        &mut self,
        namespace: &str,
        names: impl Iterator<Item = String>,
        sign: isize,
    ) {
        for name in names {
            let key = Key::new(namespace, name);
            let users = self.users.entry(key.clone()).or_default();
            *users = users.saturating_add_signed(sign);
            if *users == 0 {
                self.users.remove(&key);
            }
        }
    }

    /// Keeps volumes for a pod while they are being promised.
    pub(crate) fn assume(&mut self, uid: &str, steps: &[Step]) {
        for step in steps {
            if let Step::Bind { volume, .. } = step {
                self.assumed.insert(volume.clone(), uid.to_owned());
            }
        }
    }

    /// Nothing is kept for a pod any more.
    pub(crate) fn release(&mut self, uid: &str) {
        self.assumed.retain(|_, pod| pod != uid);
    }
}

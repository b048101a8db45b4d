//! Which volume a claim gets. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, TopologySelectorTerm};

use super::view::{ClaimView, VolumeView};
use crate::scheduler::matches_term;

/// Whether a volume with this affinity can be used on a node.
pub(crate) fn is_reachable(
    affinity: Option<&NodeSelector>,
    node: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    affinity.is_none_or(|affinity| {
        let mut terms = affinity.node_selector_terms.iter();
        terms.any(|term| matches_term(term, node, labels))
    })
}

/// Whether a class may make volumes for a node (`allowedTopologies`; none allow all).
pub(crate) fn is_allowed(
    topologies: &[TopologySelectorTerm],
    labels: &BTreeMap<String, String>,
) -> bool {
    let is_met = |term: &TopologySelectorTerm| {
        let mut expressions = term.match_label_expressions.iter().flatten();
        expressions.all(|wanted| {
            labels
                .get(&wanted.key)
                .is_some_and(|value| wanted.values.contains(value))
        })
    };
    topologies.is_empty() || topologies.iter().any(is_met)
}

/// Why a volume that a claim names cannot be its own, apart from being another's.
pub(crate) fn mismatch(claim: &ClaimView, volume: &VolumeView) -> Option<&'static str> {
    if volume.capacity_bytes < claim.request_bytes {
        return Some("requested PV is too small");
    }
    if volume.class != claim.class.clone().unwrap_or_default() {
        return Some("storageClassName does not match");
    }
    if volume.is_block != claim.is_block {
        return Some("incompatible volumeMode");
    }
    let has_modes = claim
        .access_modes
        .iter()
        .all(|mode| volume.access_modes.contains(mode));
    (!has_modes).then_some("incompatible accessMode")
}

/// The best volume for a claim that names none: one that is promised to it, or else the smallest that suffices.
/// `node`, if given, has to reach it; `is_taken` are volumes that somebody has in mind already.
pub(crate) fn best<'a>(
    claim: &ClaimView,
    volumes: impl Iterator<Item = &'a VolumeView>,
    node: Option<(&str, &BTreeMap<String, String>)>,
    is_taken: impl Fn(&str) -> bool,
) -> Option<&'a VolumeView> {
    let fits = |volume: &&VolumeView| {
        let is_promised = volume.is_for(claim);
        let is_free = volume.claim.is_none() && volume.phase == "Available";
        !volume.is_deleted
            && (is_promised || is_free && !is_taken(&volume.name))
            && mismatch(claim, volume).is_none()
            && (is_promised
                || claim
                    .selector
                    .as_ref()
                    .is_none_or(|selector| selector.matches_labels(&volume.labels)))
            && node
                .is_none_or(|(name, labels)| is_reachable(volume.affinity.as_ref(), name, labels))
    };
    volumes.filter(fits).min_by(|a, b| {
        let order = |volume: &VolumeView| (!volume.is_for(claim), volume.capacity_bytes);
        order(a).cmp(&order(b)).then_with(|| a.name.cmp(&b.name))
    })
}

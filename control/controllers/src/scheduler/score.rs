//! Which of the nodes that can take a pod is the best. Pure.

use super::{
    ask::Ask,
    filter::{is_tolerated, matches_term},
    node::NodeInfo,
    pod::PodInfo,
    state::State,
};

/// Weights of kube-scheduler's default profile.
const WEIGHT_LEAST_ALLOCATED: i64 = 1;
const WEIGHT_BALANCED: i64 = 1;
const WEIGHT_IMAGES: i64 = 1;
const WEIGHT_NODE_AFFINITY: i64 = 2;
const WEIGHT_PODS: i64 = 2;
const WEIGHT_SPREAD: i64 = 2;
const WEIGHT_TAINTS: i64 = 3;
const SCORE_MAX: i64 = 100;

/// Images of less than this in all count as nothing, and of more as no more than that for each container
/// (`pkg/scheduler/framework/plugins/imagelocality`: `minThreshold`, `maxContainerThreshold`).
const IMAGES_BYTES_MIN: i64 = 23 << 20;
const IMAGE_BYTES_MAX: i64 = 1000 << 20;

/// The node with the highest score, the first of those that are equal.
pub(crate) fn best(ask: &Ask<'_>, state: &State, feasible: &[usize]) -> Option<usize> {
    if let [only] = feasible {
        return Some(*only);
    }
    let pod = ask.pod;
    let nodes = || feasible.iter().map(|index| &state.nodes[*index]);
    let mut scores: Vec<i64> = nodes()
        .map(|node| allocation(pod, node) + WEIGHT_IMAGES * images(pod, node, state))
        .collect();
    let mut add = |weight: i64, part: Vec<i64>| {
        for (score, part) in scores.iter_mut().zip(part) {
            *score += weight * part;
        }
    };
    if !pod.needs.preferred.is_empty() {
        let met = nodes().map(|node| preferred(pod, node)).collect();
        add(WEIGHT_NODE_AFFINITY, of_highest(met));
    }
    let soft = nodes().map(|node| avoided(pod, node)).collect();
    add(
        WEIGHT_TAINTS,
        of_highest(soft)
            .iter()
            .map(|part| SCORE_MAX - part)
            .collect(),
    );
    if ask.is_drawn() {
        add(
            WEIGHT_PODS,
            between(nodes().map(|node| ask.drawn(node)).collect()),
        );
    }
    if ask.is_spread() {
        let crowds = nodes().map(|node| ask.crowd(node)).collect();
        add(WEIGHT_SPREAD, least_crowded(crowds));
    } else if let Some(owner) = pod
        .needs
        .owner
        .as_ref()
        .filter(|_| pod.needs.spread.is_empty())
    {
        let crowds =
            nodes().map(|node| Some(f64::from(node.owners.get(owner).copied().unwrap_or(0))));
        add(WEIGHT_SPREAD, least_crowded(crowds.collect()));
    }
    // `max_by_key` would take the last of equals.
    let best = (0..feasible.len()).rev().max_by_key(|at| scores[*at])?;
    Some(feasible[best])
}

/// Of [`SCORE_MAX`], the highest being all of it.
fn of_highest(parts: Vec<i64>) -> Vec<i64> {
    let highest = parts.iter().copied().max().unwrap_or(0).max(1);
    parts
        .into_iter()
        .map(|part| part * SCORE_MAX / highest)
        .collect()
}

/// Of [`SCORE_MAX`], from the lowest to the highest.
fn between(parts: Vec<i64>) -> Vec<i64> {
    let lowest = parts.iter().copied().min().unwrap_or(0);
    let highest = parts.iter().copied().max().unwrap_or(0);
    let span = (highest - lowest).max(1);
    parts
        .into_iter()
        .map(|part| (part - lowest) * SCORE_MAX / span)
        .collect()
}

/// Of [`SCORE_MAX`], the more the fewer are there; nothing for a node that is in no domain.
fn least_crowded(crowds: Vec<Option<f64>>) -> Vec<i64> {
    let known = || crowds.iter().flatten().copied();
    let (fewest, most) = (
        known().fold(f64::INFINITY, f64::min),
        known().fold(0.0, f64::max),
    );
    let score = |crowd: &Option<f64>| match crowd {
        None => 0,
        Some(_) if most == 0.0 => SCORE_MAX,
        Some(crowd) => (SCORE_MAX as f64 * (most + fewest - crowd) / most) as i64,
    };
    crowds.iter().map(score).collect()
}

/// The part of CPU and memory that stays free, and how evenly both are used.
fn allocation(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let Some(offer) = &node.offer else { return 0 };
    let asked = &pod.needs.footprint;
    let used = |has: i64, taken: i64| {
        if has <= 0 {
            1.0
        } else {
            (taken as f64 / has as f64).min(1.0)
        }
    };
    let cpu = used(
        offer.allocatable.cpu_millis,
        node.cpu_millis_assumed + asked.cpu_millis_assumed,
    );
    let memory = used(
        offer.allocatable.memory_bytes,
        node.memory_bytes_assumed + asked.memory_bytes_assumed,
    );
    let score = |part: f64| (part * SCORE_MAX as f64) as i64;
    WEIGHT_LEAST_ALLOCATED * score(((1.0 - cpu) + (1.0 - memory)) / 2.0)
        + WEIGHT_BALANCED * score(1.0 - (cpu - memory).abs() / 2.0)
}

/// How much of a pod's images is on a node; an image that few nodes have counts less, so that not all go there.
fn images(pod: &PodInfo, node: &NodeInfo, state: &State) -> i64 {
    let Some(offer) = &node.offer else { return 0 };
    if state.images.is_empty() || pod.needs.images.is_empty() {
        return 0;
    }
    let total = state.nodes.len().max(1) as i64;
    let mut bytes = 0;
    for image in &pod.needs.images {
        if let Some(size) = offer.images.get(image) {
            let nodes = state.images.get(image).copied().unwrap_or(0) as i64;
            bytes += size * nodes / total;
        }
    }
    let most = IMAGE_BYTES_MAX * pod.needs.images.len() as i64;
    let bytes = bytes.clamp(IMAGES_BYTES_MIN, most);
    SCORE_MAX * (bytes - IMAGES_BYTES_MIN) / (most - IMAGES_BYTES_MIN)
}

/// The sum of the weights of the preferences that a node meets.
fn preferred(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let Some(offer) = &node.offer else { return 0 };
    let met = pod
        .needs
        .preferred
        .iter()
        .filter(|term| matches_term(&term.preference, &node.name, &offer.labels));
    met.map(|term| i64::from(term.weight)).sum()
}

/// How many taints say that a pod had better go elsewhere.
fn avoided(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let taints = node.offer.iter().flat_map(|offer| &offer.taints);
    let soft = taints.filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !is_tolerated(taint, &pod.needs.tolerations))
        .count() as i64
}

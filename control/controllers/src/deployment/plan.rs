//! What the sets of a Deployment need. Pure.

use std::sync::Arc;

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::PodTemplateSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Annotations, DESIRED, HASH_LABEL, MAX, OWN_ANNOTATIONS, REVISION, REVISION_HISTORY};
use crate::replica_set::SetView;

/// Bytes of numbers kept of a set that became the new one again and again (`maxRevHistoryLengthInChars`).
const REVISION_HISTORY_MAX: usize = 2_000;

/// What of the spec decides, in numbers of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) replicas: i32,
    pub(super) max_surge: i32,
    pub(super) max_unavailable: i32,
    pub(super) is_recreate: bool,
    pub(super) is_paused: bool,
    pub(super) history_limit: i32,
    /// `None`: it may take for ever.
    pub(super) progress_deadline_seconds: Option<i32>,
}

impl Facts {
    pub(super) fn new(deployment: &Deployment) -> Self {
        let spec = deployment.spec.clone().unwrap_or_default();
        let strategy = spec.strategy.unwrap_or_default();
        let is_recreate = strategy.type_.as_deref() == Some("Recreate");
        let rolling = strategy.rolling_update.unwrap_or_default();
        let replicas = spec.replicas.unwrap_or(1);
        let amount = |value: Option<IntOrString>, round_up| match (is_recreate, value) {
            (true, _) | (false, None) => 0,
            (false, Some(value)) => number(&value, replicas, round_up),
        };
        let max_surge = amount(rolling.max_surge, true);
        let mut max_unavailable = amount(rolling.max_unavailable, false);
        if !is_recreate && max_surge == 0 && max_unavailable == 0 {
            // Both shares rounded to nothing: it would never move.
            max_unavailable = 1;
        }
        Self {
            replicas,
            max_surge,
            max_unavailable: max_unavailable.min(replicas),
            is_recreate,
            is_paused: spec.paused.unwrap_or(false),
            history_limit: spec.revision_history_limit.unwrap_or(10),
            progress_deadline_seconds: spec
                .progress_deadline_seconds
                .filter(|seconds| *seconds != i32::MAX),
        }
    }

    /// Pods there may be, old and new together.
    pub(super) fn replicas_max(&self) -> i32 {
        self.replicas + self.max_surge
    }

    /// Pods that have to be available.
    pub(super) fn available_min(&self) -> i32 {
        self.replicas - self.max_unavailable
    }

    /// What a set carries that was scaled for this.
    pub(super) fn scale_annotations(&self) -> Annotations {
        [
            (DESIRED.to_owned(), self.replicas.to_string()),
            (MAX.to_owned(), self.replicas_max().to_string()),
        ]
        .into()
    }
}

/// A number of pods: given, or a share of all.
pub(crate) fn number(value: &IntOrString, of: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(share) => {
            let percent: i64 = share.trim_end_matches('%').parse().unwrap_or(0);
            let hundredths = percent * i64::from(of);
            let number = if round_up {
                (hundredths + 99) / 100
            } else {
                hundredths / 100
            };
            i32::try_from(number).unwrap_or(i32::MAX)
        }
    }
}

/// Whether two templates make the same pods: the label with the hash does not count.
pub(super) fn is_same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let without_hash = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        let metadata = template.metadata.get_or_insert_default();
        let labels = metadata.labels.get_or_insert_default();
        labels.remove(HASH_LABEL);
        metadata.creation_timestamp = None;
        template
    };
    without_hash(a) == without_hash(b)
}

/// A short name for a template's content.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut content = serde_json::to_vec(template).unwrap_or_default();
    content.extend(collisions.to_le_bytes());
    crate::hash::short(&content)
}

/// A set's number; 0 before it has one.
pub(super) fn revision(set: &SetView) -> i64 {
    let revision = set.annotations.get(REVISION);
    revision
        .and_then(|revision| revision.parse().ok())
        .unwrap_or(0)
}

/// The number of the set after these.
pub(super) fn next_revision(old: &[Arc<SetView>]) -> i64 {
    old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1
}

/// What a set carries that becomes the new one under another number.
pub(super) fn renumbered(set: &SetView, revision: i64) -> Annotations {
    let mut annotations: Annotations = [(REVISION.to_owned(), revision.to_string())].into();
    if let Some(before) = set.annotations.get(REVISION) {
        let known = set.annotations.get(REVISION_HISTORY);
        let mut numbers: Vec<&str> = known.iter().flat_map(|list| list.split(',')).collect();
        numbers.push(before);
        while numbers.join(",").len() > REVISION_HISTORY_MAX {
            numbers.remove(0);
        }
        annotations.insert(REVISION_HISTORY.to_owned(), numbers.join(","));
    }
    annotations
}

/// Annotations that a set gets from its Deployment.
pub(super) fn inherited(annotations: &Annotations) -> Annotations {
    annotations
        .iter()
        .filter(|(key, _)| !OWN_ANNOTATIONS.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn total(sets: &[Arc<SetView>]) -> i32 {
    sets.iter().map(|set| set.replicas).sum()
}

fn available(set: &SetView) -> i32 {
    set.status.available_replicas.unwrap_or(0)
}

/// Replicas that a new set begins with.
pub(super) fn first_replicas(facts: &Facts, old: &[Arc<SetView>]) -> i32 {
    if facts.is_recreate {
        return facts.replicas;
    }
    (facts.replicas_max() - total(old)).clamp(0, facts.replicas)
}

/// Replicas that the new set should have now.
pub(super) fn new_replicas(facts: &Facts, new: &SetView, old: &[Arc<SetView>]) -> i32 {
    if new.replicas >= facts.replicas {
        return facts.replicas;
    }
    let room = facts.replicas_max() - total(old) - new.replicas;
    new.replicas + room.clamp(0, facts.replicas - new.replicas)
}

/// Old sets that should have less now, and how many. Pods that serve nobody go first.
pub(super) fn old_replicas(
    facts: &Facts,
    new: &SetView,
    old: &[Arc<SetView>],
) -> Vec<(Arc<SetView>, i32)> {
    let mut replicas: Vec<i32> = old.iter().map(|set| set.replicas).collect();
    let new_unavailable = new.replicas - available(new);
    let mut unhealthy_left = total(old) + new.replicas - facts.available_min() - new_unavailable;
    if unhealthy_left <= 0 {
        return Vec::new();
    }
    for (set, replicas) in old.iter().zip(&mut replicas) {
        let unhealthy = (*replicas - available(set)).clamp(0, unhealthy_left.max(0));
        *replicas -= unhealthy;
        unhealthy_left -= unhealthy;
    }
    let available_now: i32 = old.iter().map(|set| available(set)).sum::<i32>() + available(new);
    let mut healthy_left = available_now - facts.available_min();
    for replicas in &mut replicas {
        let less = (*replicas).clamp(0, healthy_left.max(0));
        *replicas -= less;
        healthy_left -= less;
    }
    old.iter()
        .cloned()
        .zip(replicas)
        .filter(|(set, replicas)| set.replicas != *replicas)
        .collect()
}

/// Whether the number of replicas was changed since the sets were last scaled.
pub(super) fn is_scaled(facts: &Facts, sets: &[Arc<SetView>]) -> bool {
    sets.iter().filter(|set| set.replicas > 0).any(|set| {
        set.annotations
            .get(DESIRED)
            .and_then(|desired| desired.parse::<i32>().ok())
            .is_some_and(|desired| desired != facts.replicas)
    })
}

/// Who gets how much of a change of the number of replicas.
pub(super) fn proportional(
    facts: &Facts,
    new: Option<&Arc<SetView>>,
    sets: &[Arc<SetView>],
) -> Vec<(Arc<SetView>, i32)> {
    let active: Vec<_> = sets
        .iter()
        .filter(|set| set.replicas > 0)
        .cloned()
        .collect();
    // One set, or none that runs: it is plain who gets it.
    let only = match &active[..] {
        [] => new.cloned().or_else(|| sets.last().cloned()),
        [one] => Some(one.clone()),
        _ => None,
    };
    if let Some(set) = only {
        return vec![(set, facts.replicas)];
    }
    // The new one has all that is wanted: what is left of the old ones goes.
    if let Some(new) = new
        && new.replicas == facts.replicas
        && available(new) == facts.replicas
    {
        return active
            .into_iter()
            .filter(|set| set.uid != new.uid)
            .map(|set| (set, 0))
            .collect();
    }
    if facts.is_recreate {
        return Vec::new();
    }
    let allowed = if facts.replicas > 0 {
        facts.replicas_max()
    } else {
        0
    };
    let mut left = allowed - total(&active);
    let mut by_size = active;
    // The largest first; among equals the youngest when growing, the oldest when shrinking.
    by_size.sort_by(|a, b| {
        let age = a.created.cmp(&b.created);
        let age = if left > 0 { age.reverse() } else { age };
        b.replicas.cmp(&a.replicas).then(age)
    });
    let mut shares: Vec<i32> = Vec::new();
    for set in &by_size {
        let share = share(facts, set, allowed - total(&by_size), left);
        shares.push(share);
        left -= share;
    }
    if let Some(first) = shares.first_mut() {
        *first += left;
    }
    by_size
        .into_iter()
        .zip(shares)
        .map(|(set, share)| {
            let replicas = (set.replicas + share).max(0);
            (set, replicas)
        })
        .collect()
}

/// A set's share of a change, by its size among all when it was last scaled.
fn share(facts: &Facts, set: &SetView, whole: i32, left: i32) -> i32 {
    let max_before = set
        .annotations
        .get(MAX)
        .and_then(|max| max.parse::<i32>().ok())
        .filter(|max| *max > 0)
        .unwrap_or_else(|| facts.replicas_max().max(1));
    let size = f64::from(set.replicas) * f64::from(facts.replicas_max()) / f64::from(max_before);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "numbers of pods are far below what a double holds"
    )]
    let share = size.round() as i32 - set.replicas;
    if whole > 0 {
        share.clamp(0, left.max(0))
    } else {
        share.clamp(left.min(0), 0)
    }
}

/// Old sets that are not kept any more: the lowest numbers among those without pods.
pub(super) fn beyond_history(facts: &Facts, old: &[Arc<SetView>]) -> Vec<Arc<SetView>> {
    let mut idle: Vec<_> = old
        .iter()
        .filter(|set| {
            set.replicas == 0
                && set.status.replicas == 0
                && set.status.observed_generation.unwrap_or(0) >= set.generation
                && !set.is_deleting
        })
        .cloned()
        .collect();
    idle.sort_by_key(|set| revision(set));
    let kept = usize::try_from(facts.history_limit).unwrap_or(0);
    let surplus = idle.len().saturating_sub(kept);
    idle.truncate(surplus);
    idle
}

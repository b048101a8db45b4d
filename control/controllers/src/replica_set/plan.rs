//! What a set needs: which pods are its own, how many more or which ones less, and what to say. Pure.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};

use super::{SetView, time};
use crate::{
    pod_control::Claim,
    pods::{Phase, PodView},
};

/// Pods created or deleted at once (`BurstReplicas`).
const BURST: usize = 500;

/// Which pods are a set's own; what has ended or is on its way out does not count.
pub(crate) fn claim(set: &SetView, pods: &[Arc<PodView>]) -> Claim {
    let active = pods.iter().filter(|pod| pod.is_active());
    set.owner().claim(&set.selector, active.cloned().collect())
}

/// What to do about the number of pods.
#[derive(Debug, PartialEq)]
pub(crate) enum Plan {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<PodView>>),
}

pub(crate) fn plan(set: &SetView, owned: &[Arc<PodView>], now: Timestamp) -> Plan {
    let wanted = usize::try_from(set.replicas).unwrap_or(0);
    if owned.len() < wanted {
        return Plan::Create((wanted - owned.len()).min(BURST));
    }
    let surplus = (owned.len() - wanted).min(BURST);
    if surplus == 0 {
        return Plan::Nothing;
    }
    Plan::Delete(least_needed(owned, now).into_iter().take(surplus).collect())
}

/// Pods in the order in which they can be done without, as Kubernetes' `ActivePodsWithRanks`: those that serve least,
/// cost least to lose, and share their node with most of their kind go first.
fn least_needed(pods: &[Arc<PodView>], now: Timestamp) -> Vec<Arc<PodView>> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in pods.iter().filter(|pod| !pod.node.is_empty()) {
        *on_node.entry(&pod.node).or_default() += 1;
    }
    let age = |at: Timestamp| now.as_second() - at.as_second();
    // Times are compared by their order of magnitude: pods of about one age are chosen among by the rest.
    let magnitude = |seconds: i64| seconds.max(1).ilog2();
    let mut ranked: Vec<_> = pods.to_vec();
    ranked.sort_by_cached_key(|pod| {
        (
            !pod.node.is_empty(),
            match pod.phase {
                Phase::Pending => 0,
                Phase::Unknown => 1,
                _ => 2,
            },
            pod.is_ready(),
            pod.deletion_cost,
            Reverse(on_node.get(pod.node.as_str()).copied().unwrap_or(0)),
            pod.ready_since.map(|since| magnitude(age(since))),
            Reverse(pod.restarts),
            magnitude(age(pod.created)),
            pod.uid.clone(),
        )
    });
    ranked
}

/// What the set says of itself.
pub(crate) fn status(
    set: &SetView,
    owned: &[Arc<PodView>],
    failure: Option<(&'static str, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let labels = set.template_labels();
    let count = |holds: &dyn Fn(&PodView) -> bool| {
        let count = owned.iter().filter(|pod| holds(pod)).count();
        i32::try_from(count).unwrap_or(i32::MAX)
    };
    let shown = |count: i32| (count > 0).then_some(count);
    let has_labels = |pod: &PodView| {
        labels
            .iter()
            .all(|(key, value)| pod.labels.get(key) == Some(value))
    };
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: shown(count(&has_labels)),
        ready_replicas: shown(count(&PodView::is_ready)),
        available_replicas: shown(count(&|pod| pod.is_available(set.min_ready_seconds, now))),
        observed_generation: Some(set.generation),
        conditions: conditions(set, failure, now),
        ..ReplicaSetStatus::default()
    }
}

fn conditions(
    set: &SetView,
    failure: Option<(&'static str, String)>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    const FAILURE: &str = "ReplicaFailure";
    let mut conditions: Vec<_> = set
        .status
        .conditions
        .iter()
        .flatten()
        .filter(|condition| condition.type_ != FAILURE)
        .cloned()
        .collect();
    if let Some((reason, message)) = failure {
        let known = set.status.conditions.iter().flatten().find(|condition| {
            condition.type_ == FAILURE && condition.reason.as_deref() == Some(reason)
        });
        conditions.push(known.cloned().unwrap_or_else(|| ReplicaSetCondition {
            type_: FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(time(now)),
        }));
    }
    (!conditions.is_empty()).then_some(conditions)
}

//! What a set needs: which pods are its own, how many more or which ones less, and what to say. Pure.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSetCondition, ReplicaSetStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use super::{SetView, time};
use crate::pods::{Phase, PodView};

/// Pods created or deleted at once (`BurstReplicas`).
const BURST: usize = 500;

/// Which pods are a set's own.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Claim {
    /// Its own, and active.
    pub(crate) owned: Vec<Arc<PodView>>,
    /// They match, and nobody controls them.
    pub(crate) adopt: Vec<Arc<PodView>>,
    /// Its own, and do not match any more.
    pub(crate) release: Vec<Arc<PodView>>,
}

pub(crate) fn claim(set: &SetView, pods: &[Arc<PodView>]) -> Claim {
    let mut claim = Claim::default();
    for pod in pods.iter().filter(|pod| pod.is_active()) {
        let is_selected = pod.is_selected_by(&set.selector);
        if pod.is_controlled_by(&set.uid) {
            if is_selected {
                claim.owned.push(pod.clone());
            } else {
                claim.release.push(pod.clone());
            }
        } else if pod.controller.is_none() && is_selected {
            claim.adopt.push(pod.clone());
        }
    }
    claim
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

/// Who controls the pods of a set.
pub(crate) fn owner_reference(set: &SetView) -> OwnerReference {
    OwnerReference {
        api_version: set.kind.api_version().to_owned(),
        kind: set.kind.name().to_owned(),
        name: set.key.name.clone(),
        uid: set.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A pod made of the template. The API server names it.
pub(crate) fn new_pod(set: &SetView) -> Pod {
    let template = set.template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.key.name)),
            namespace: Some(set.key.namespace.clone()),
            labels: template.labels,
            annotations: template.annotations,
            finalizers: template.finalizers,
            owner_references: Some(vec![owner_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: set.template.spec.clone(),
        status: None,
    }
}

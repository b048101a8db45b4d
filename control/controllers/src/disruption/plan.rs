//! How many pods of a budget may be disrupted. Pure.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};

use crate::{deployment, pods::PodView, replica_set::time};

/// How long an eviction counts whose pod has not been seen to go (`DeletionTimeout`).
const EVICTION_SECONDS: i64 = 120;
const ALLOWED: &str = "DisruptionAllowed";

/// The status, and in how many seconds it changes by itself.
pub(super) fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<PodView>],
    expected: i32,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<i64>) {
    let spec = budget.spec.clone().unwrap_or_default();
    let old = budget.status.clone().unwrap_or_default();
    let live = |name: &String| {
        pods.iter()
            .any(|pod| pod.key.name == *name && pod.deleted.is_none())
    };
    let left = |at: &Time| at.0.as_second() + EVICTION_SECONDS - now.as_second();
    let mut disrupted: BTreeMap<_, _> = old.disrupted_pods.unwrap_or_default();
    disrupted.retain(|name, at| live(name) && left(at) > 0);
    let again = disrupted.values().map(left).min();
    let healthy = pods.iter().filter(|pod| {
        pod.deleted.is_none() && pod.is_ready() && !disrupted.contains_key(&pod.key.name)
    });
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let healthy = count(healthy.count());
    let (expected, desired) = match (spec.min_available, spec.max_unavailable) {
        (Some(IntOrString::Int(number)), _) => (count(pods.len()), number),
        (Some(share), _) => (expected, deployment::number(&share, expected, true)),
        (None, Some(max)) => {
            let max = deployment::number(&max, expected, true);
            (expected, (expected - max).max(0))
        }
        (None, None) => (expected, 0),
    };
    let allowed = if expected <= 0 {
        0
    } else {
        (healthy - desired).max(0)
    };
    let status = PodDisruptionBudgetStatus {
        conditions: conditions(old.conditions, allowed > 0, budget.metadata.generation, now),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: budget.metadata.generation,
    };
    (status, again)
}

fn conditions(
    old: Option<Vec<Condition>>,
    is_allowed: bool,
    generation: Option<i64>,
    now: Timestamp,
) -> Option<Vec<Condition>> {
    let mut conditions = old.unwrap_or_default();
    let (status, reason) = if is_allowed {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    let known = conditions
        .iter_mut()
        .find(|condition| condition.type_ == ALLOWED);
    match known {
        Some(known) if known.status == status => known.observed_generation = generation,
        known => {
            let new = Condition {
                type_: ALLOWED.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: String::new(),
                last_transition_time: time(now),
                observed_generation: generation,
            };
            match known {
                Some(known) => *known = new,
                None => conditions.push(new),
            }
        }
    }
    Some(conditions)
}

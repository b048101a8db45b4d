//! What a Deployment says of itself: counts, and the conditions Available, Progressing and ReplicaFailure. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use kube::ResourceExt;

use super::{Sets, plan::Facts};
use crate::replica_set::time;

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

/// Something was done that the status tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A set was made.
    Created {
        /// Its name.
        set: String,
        /// How often its first names were taken by others.
        collisions: Option<i32>,
    },
}

/// The new set has all replicas, all of them available, and no others are left.
pub(super) fn is_complete(deployment: &Deployment, facts: &Facts, sets: &Sets) -> bool {
    let counted = counts(sets);
    is_all_there(facts, &counted)
        && deployment
            .status
            .as_ref()
            .and_then(|status| status.observed_generation)
            .unwrap_or(0)
            >= deployment.metadata.generation.unwrap_or(0)
}

fn is_all_there(facts: &Facts, status: &DeploymentStatus) -> bool {
    [
        status.updated_replicas,
        status.replicas,
        status.available_replicas,
    ]
    .iter()
    .all(|count| count.unwrap_or(0) == facts.replicas)
}

fn counts(sets: &Sets) -> DeploymentStatus {
    let sum =
        |of: &dyn Fn(&crate::replica_set::SetView) -> i32| sets.all().map(|set| of(set)).sum();
    let shown = |count: i32| (count > 0).then_some(count);
    let available: i32 = sum(&|set| set.status.available_replicas.unwrap_or(0));
    let wanted: i32 = sum(&|set| set.replicas);
    let updated = sets.new.as_ref().map_or(0, |set| set.status.replicas);
    DeploymentStatus {
        replicas: shown(sum(&|set| set.status.replicas)),
        updated_replicas: shown(updated),
        ready_replicas: shown(sum(&|set| set.status.ready_replicas.unwrap_or(0))),
        available_replicas: shown(available),
        unavailable_replicas: shown((wanted - available).max(0)),
        ..DeploymentStatus::default()
    }
}

/// The status as it is now.
pub(super) fn status(
    deployment: &Deployment,
    facts: &Facts,
    sets: &Sets,
    news: Option<News>,
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = counts(sets);
    status.observed_generation = deployment.metadata.generation;
    status.collision_count = match &news {
        Some(News::Created {
            collisions: Some(collisions),
            ..
        }) => Some(*collisions),
        _ => old.collision_count,
    };
    status.conditions = old.conditions.clone();
    if deployment.metadata.deletion_timestamp.is_some() {
        return status;
    }
    let available = status.available_replicas.unwrap_or(0);
    let (holds, reason, message) = if available >= facts.available_min() {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    set(
        &mut status,
        AVAILABLE,
        holds,
        reason,
        message.to_owned(),
        now,
    );
    progress(deployment, facts, sets, &old, &mut status, news, now);
    let failed = sets
        .new
        .iter()
        .chain(&sets.old)
        .flat_map(|set| set.status.conditions.iter().flatten())
        .find(|condition| condition.type_ == FAILURE && condition.status == "True");
    match failed {
        Some(condition) => {
            let reason = condition.reason.clone().unwrap_or_default();
            let message = condition.message.clone().unwrap_or_default();
            set(&mut status, FAILURE, "True", &reason, message, now);
        }
        None => {
            if let Some(conditions) = &mut status.conditions {
                conditions.retain(|condition| condition.type_ != FAILURE);
            }
        }
    }
    status
}

fn progress(
    deployment: &Deployment,
    facts: &Facts,
    sets: &Sets,
    old: &DeploymentStatus,
    status: &mut DeploymentStatus,
    news: Option<News>,
    now: Timestamp,
) {
    let known = condition(old, PROGRESSING).cloned();
    let known_reason = known
        .as_ref()
        .and_then(|condition| condition.reason.clone())
        .unwrap_or_default();
    if facts.progress_deadline_seconds.is_none() {
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|condition| condition.type_ != PROGRESSING);
        }
        return;
    }
    if facts.is_paused {
        if known_reason != PAUSED && known_reason != TIMED_OUT {
            let message = "Deployment is paused".to_owned();
            set(status, PROGRESSING, "Unknown", PAUSED, message, now);
        }
        return;
    }
    if known_reason == PAUSED {
        let message = "Deployment is resumed".to_owned();
        set(status, PROGRESSING, "Unknown", RESUMED, message, now);
        return;
    }
    if let Some(News::Created { set: name, .. }) = news {
        let message = format!("Created new replica set \"{name}\"");
        set(
            status,
            PROGRESSING,
            "True",
            "NewReplicaSetCreated",
            message,
            now,
        );
        return;
    }
    let name = match &sets.new {
        Some(set) => format!("ReplicaSet \"{}\"", set.key.name),
        None => format!("Deployment \"{}\"", deployment.name_any()),
    };
    let count = |status: &DeploymentStatus, of: fn(&DeploymentStatus) -> Option<i32>| {
        of(status).unwrap_or(0)
    };
    // Once complete it stays so, whatever becomes of single pods, until there is another template.
    let is_settled = known_reason == COMPLETE
        && count(status, |status| status.replicas)
            == count(status, |status| status.updated_replicas);
    if is_settled {
        return;
    }
    if is_all_there(facts, status) {
        let message = format!("{name} has successfully progressed.");
        set(status, PROGRESSING, "True", COMPLETE, message, now);
        return;
    }
    let old_ones = |status: &DeploymentStatus| {
        count(status, |s| s.replicas) - count(status, |s| s.updated_replicas)
    };
    let has_moved = count(status, |s| s.updated_replicas) > count(old, |s| s.updated_replicas)
        || old_ones(status) < old_ones(old)
        || count(status, |s| s.ready_replicas) > count(old, |s| s.ready_replicas)
        || count(status, |s| s.available_replicas) > count(old, |s| s.available_replicas);
    if has_moved || known.is_none() {
        let message = format!("{name} is progressing.");
        set(
            status,
            PROGRESSING,
            "True",
            "ReplicaSetUpdated",
            message,
            now,
        );
        // Every step begins the deadline anew.
        if let Some(condition) = condition_mut(status, PROGRESSING) {
            condition.last_update_time = Some(time(now));
        }
        return;
    }
    if left_seconds(facts, status, now).is_some_and(|left| left <= 0) {
        let message = format!("{name} has timed out progressing.");
        set(status, PROGRESSING, "False", TIMED_OUT, message, now);
    }
}

/// Seconds until the rollout counts as stuck; `None` where that cannot be.
fn left_seconds(facts: &Facts, status: &DeploymentStatus, now: Timestamp) -> Option<i64> {
    let deadline = facts.progress_deadline_seconds?;
    let condition = condition(status, PROGRESSING)?;
    if matches!(
        condition.reason.as_deref(),
        Some(COMPLETE | TIMED_OUT | PAUSED)
    ) {
        return None;
    }
    let since = condition.last_update_time.as_ref()?.0;
    Some(since.as_second() + i64::from(deadline) - now.as_second())
}

/// When time alone will change something.
pub(super) fn look_again(
    facts: &Facts,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    if facts.is_paused {
        return None;
    }
    let left = left_seconds(facts, status, now)?;
    Some(Duration::from_secs(left.max(0).unsigned_abs() + 1))
}

fn condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

fn condition_mut<'a>(
    status: &'a mut DeploymentStatus,
    type_: &str,
) -> Option<&'a mut DeploymentCondition> {
    status
        .conditions
        .iter_mut()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

/// Sets a condition; what says the same keeps its times.
fn set(
    status: &mut DeploymentStatus,
    type_: &str,
    holds: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let moment = Some(time(now));
    let conditions = status.conditions.get_or_insert_default();
    let Some(known) = conditions
        .iter_mut()
        .find(|condition| condition.type_ == type_)
    else {
        conditions.push(DeploymentCondition {
            type_: type_.to_owned(),
            status: holds.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: moment.clone(),
            last_update_time: moment,
        });
        return;
    };
    if known.status == holds && known.reason.as_deref() == Some(reason) {
        return;
    }
    if known.status != holds {
        known.last_transition_time = moment.clone();
    }
    known.last_update_time = moment;
    holds.clone_into(&mut known.status);
    known.reason = Some(reason.to_owned());
    known.message = Some(message);
}

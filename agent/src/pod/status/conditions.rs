//! A pod's conditions, with the times and reasons that kubectl shows. Pure.

use std::time::SystemTime;

use k8s_openapi::{
    api::core::v1::{ContainerStatus as ApiContainerStatus, PodCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use wherry_runtime_api::{PodSandboxState, SandboxNetwork};

use super::{
    super::{
        is_sidecar,
        resize::{Progress, Refusal},
        spec, time,
    },
    Observed, has_run, incomplete, is_running,
};

pub(super) fn conditions(
    seen: Observed<'_>,
    phase: &str,
    inits: &[ApiContainerStatus],
    mains: &[ApiContainerStatus],
    now: SystemTime,
) -> Vec<PodCondition> {
    let has_network = seen.sandbox.is_some_and(|s| {
        s.state == PodSandboxState::Ready
            && (s.network == SandboxNetwork::Host || !s.ips.is_empty())
    }) && !seen.is_terminal;
    let incomplete = incomplete(seen, inits);
    let sidecars = spec(seen.pod)
        .init_containers
        .iter()
        .flatten()
        .zip(inits)
        .filter(|(c, _)| is_sidecar(c));
    let unready: Vec<_> = sidecars
        .map(|(_, s)| s)
        .chain(mains)
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();

    let initialized = match phase {
        "Succeeded" => condition("Initialized", true, Some("PodCompleted"), None),
        _ if incomplete.is_empty() || mains.iter().any(|s| is_running(s) || has_run(s)) => {
            condition("Initialized", true, None, None)
        }
        _ => condition(
            "Initialized",
            false,
            Some("ContainersNotInitialized"),
            Some(format!(
                "containers with incomplete status: [{}]",
                incomplete.join(" ")
            )),
        ),
    };
    let containers_ready = |kind: &str| match phase {
        "Succeeded" => condition(kind, false, Some("PodCompleted"), None),
        "Failed" => condition(kind, false, Some("PodFailed"), None),
        _ if unready.is_empty() => condition(kind, true, None, None),
        _ => condition(
            kind,
            false,
            Some("ContainersNotReady"),
            Some(format!(
                "containers with unready status: [{}]",
                unready.join(" ")
            )),
        ),
    };
    let published = seen
        .pod
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    let mut ready = containers_ready("Ready");
    if ready.status == "True" {
        let gates = spec(seen.pod).readiness_gates.iter().flatten();
        let closed: Vec<_> = gates
            .filter_map(|gate| {
                let kind = &gate.condition_type;
                match published.iter().find(|c| c.type_ == *kind) {
                    Some(c) if c.status == "True" => None,
                    Some(_) => Some(format!(
                        "the status of pod readiness gate \"{kind}\" is not \"True\", but False"
                    )),
                    None => Some(format!(
                        "corresponding condition of pod readiness gate \"{kind}\" does not exist."
                    )),
                }
            })
            .collect();
        if !closed.is_empty() {
            ready = condition(
                "Ready",
                false,
                Some("ReadinessGatesNotReady"),
                Some(closed.join(", ")),
            );
        }
    }
    let mut list = vec![
        condition("PodReadyToStartContainers", has_network, None, None),
        initialized,
        ready,
        containers_ready("ContainersReady"),
        condition("PodScheduled", true, None, None),
    ];
    list.extend(seen.resize.filter(|_| !seen.is_terminal).map(resizing));
    if let Some(verdict) = seen.verdict.filter(|verdict| verdict.is_disruption) {
        list.push(condition(
            DISRUPTION_TARGET,
            true,
            Some("TerminationByKubelet"),
            Some(verdict.message.clone()),
        ));
    }
    let previous = seen
        .previous
        .and_then(|p| p.conditions.as_deref())
        .unwrap_or(published);
    for condition in &mut list {
        let before = previous
            .iter()
            .chain(published)
            .find(|c| c.type_ == condition.type_);
        condition.observed_generation = seen.pod.metadata.generation;
        condition.last_transition_time = match before {
            Some(before) if before.status == condition.status => {
                before.last_transition_time.clone()
            }
            _ => Some(time(now)),
        };
        condition
            .last_transition_time
            .get_or_insert_with(|| -> Time { time(now) });
    }
    let is_disrupted = list.iter().any(|c| c.type_ == DISRUPTION_TARGET);
    // Conditions that belong to others are shown as they are.
    list.extend(
        published
            .iter()
            .filter(|c| !OURS.contains(&c.type_.as_str()))
            .filter(|c| c.type_ != DISRUPTION_TARGET || !is_disrupted)
            .cloned(),
    );
    list
}

fn resizing(progress: &Progress) -> PodCondition {
    match progress {
        Progress::Pending(refusal) => {
            let (reason, why) = match refusal {
                Refusal::Deferred(why) => ("Deferred", why),
                Refusal::Infeasible(why) => ("Infeasible", why),
            };
            condition(RESIZING[0], true, Some(reason), Some(why.clone()))
        }
        Progress::InProgress(None) => condition(RESIZING[1], true, None, None),
        Progress::InProgress(Some(why)) => {
            condition(RESIZING[1], true, Some("Error"), Some(why.clone()))
        }
    }
}

/// Condition types that are there only as long as they hold.
pub(crate) const RESIZING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// Others write it too: what asks for an eviction through the API, the node's life-cycle controller.
pub(crate) const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Condition types that the agent writes.
pub(crate) const OURS: [&str; 7] = [
    RESIZING[0],
    RESIZING[1],
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

fn condition(
    kind: &str,
    holds: bool,
    reason: Option<&str>,
    message: Option<String>,
) -> PodCondition {
    PodCondition {
        type_: kind.into(),
        status: if holds { "True" } else { "False" }.into(),
        reason: reason.map(Into::into),
        message,
        ..PodCondition::default()
    }
}

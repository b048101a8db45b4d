//! Which containers a pod should start, kill or wait for. Pure.
//!
//! The restart policy decides whether a container comes back, [`Backoff`] when.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod};
use serde::{Deserialize, Serialize};
use wherry_runtime_api::{ContainerId, ContainerState, ContainerStatus, PodSandboxId};

use super::{as_container, is_sidecar, spec};

/// How pauses between tries grow. The default is the kubelet's: 10 s, doubling to 5 min.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffPolicy {
    /// The first pause.
    pub initial: Duration,
    /// The longest (`crashLoopBackOff.maxContainerRestartPeriod` of the kubelet's configuration).
    pub max: Duration,
}

impl Default for BackoffPolicy {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(10),
            max: Duration::from_secs(300),
        }
    }
}

/// A pod's `restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// When the exit code is not 0.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    /// As the pod says; `Always` where it says nothing.
    pub(crate) fn of(pod: &Pod) -> Self {
        match spec(pod).restart_policy.as_deref() {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::Always,
        }
    }

    /// As a container says for itself, else as its pod does.
    pub(crate) fn of_container(pod: &Pod, container: &Container) -> Self {
        match container.restart_policy.as_deref() {
            Some("Always") => Self::Always,
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::of(pod),
        }
    }

    /// Whether a container that exited with that code comes back.
    pub(crate) fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// Whether a container that exited comes back: by its rules, the first that speaks of the exit code,
/// else by the policy.
pub(crate) fn comes_back(container: &Container, policy: RestartPolicy, exit_code: i32) -> bool {
    let speaks = |rule: &&ContainerRestartRule| {
        rule.action == "Restart"
            && rule.exit_codes.as_ref().is_some_and(|codes| {
                let is_listed = codes.values.iter().flatten().any(|code| *code == exit_code);
                match codes.operator.as_str() {
                    "In" => is_listed,
                    "NotIn" => !is_listed,
                    _ => false,
                }
            })
    };
    let rules = container.restart_policy_rules.iter().flatten();
    rules.clone().any(|rule| speaks(&rule)) || policy.restarts(exit_code)
}

/// Growing pause between starts of one container. The first restart is immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backoff {
    /// The pause after the next exit.
    pub(crate) delay: Duration,
    /// When it was last started again.
    pub(crate) updated_at: SystemTime,
}

impl Backoff {
    /// After a start that followed an exit at `exited_at`. A container that ran for more than twice
    /// the longest pause begins anew.
    pub(crate) fn next(
        policy: BackoffPolicy,
        before: Option<Self>,
        exited_at: SystemTime,
        now: SystemTime,
    ) -> Self {
        let delay = match before.filter(|backoff| !backoff.is_over(policy, exited_at)) {
            Some(backoff) => (backoff.delay * 2).min(policy.max),
            None => policy.initial,
        };
        Self {
            delay,
            updated_at: now,
        }
    }

    /// When a container that exited at `exited_at` may be started again.
    pub(crate) fn until(self, policy: BackoffPolicy, exited_at: SystemTime) -> Option<SystemTime> {
        (!self.is_over(policy, exited_at)).then(|| exited_at + self.delay)
    }

    fn is_over(self, policy: BackoffPolicy, exited_at: SystemTime) -> bool {
        exited_at
            .duration_since(self.updated_at)
            .is_ok_and(|ran| ran > policy.max * 2)
    }
}

/// Why a running container has to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doom {
    /// For the event.
    pub(crate) why: String,
    /// How long it has, where that is not the pod's to say.
    pub(crate) grace_period: Option<Duration>,
    /// It comes back at once, whatever the policy says: only its resources change.
    pub(crate) comes_back: bool,
}

/// What is known about a pod's containers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// The pod.
    pub(crate) pod: &'a Pod,
    /// The sandbox that containers run in.
    pub(crate) sandbox: &'a PodSandboxId,
    /// Every container the runtimes know of this pod, in any order.
    pub(crate) containers: &'a [ContainerStatus],
    /// How pauses grow.
    pub(crate) policy: BackoffPolicy,
    /// By container name.
    pub(crate) backoffs: &'a BTreeMap<String, Backoff>,
    /// By container name: not to be tried before then (image or config trouble).
    pub(crate) held_until: &'a BTreeMap<String, SystemTime>,
    /// Started, as their startup probes say.
    pub(crate) started: &'a BTreeSet<ContainerId>,
    /// To be killed, with the reason for the event (a probe or a hook failed).
    pub(crate) doomed: &'a BTreeMap<ContainerId, Doom>,
    /// Highest attempt ever seen by container name, for when a runtime has forgotten.
    pub(crate) attempts: &'a BTreeMap<String, u32>,
}

/// What to do about a pod's containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// To be started, in order.
    pub(crate) start: Vec<Start>,
    /// To be killed, with the reason for the event.
    pub(crate) kill: Vec<(ContainerId, Doom)>,
    /// Crashed ones that wait, with the whole pause.
    pub(crate) backing_off: BTreeMap<String, Duration>,
    /// When to look again.
    pub(crate) wake_at: Option<SystemTime>,
    /// Nothing runs, and nothing will.
    pub(crate) is_over: bool,
}

/// A container to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// Its name in the pod.
    pub(crate) name: String,
    /// Which attempt this is, from 0.
    pub(crate) attempt: u32,
    /// When the last attempt exited, if there was one.
    pub(crate) exited_at: Option<SystemTime>,
}

impl Plan {
    /// Whether there is something to do now.
    pub(crate) fn has_work(&self) -> bool {
        !self.start.is_empty() || !self.kill.is_empty()
    }

    fn wake(&mut self, at: SystemTime) {
        self.wake_at = Some(self.wake_at.map_or(at, |set| set.min(at)));
    }
}

/// The newest container of that name, in one sandbox or in any.
pub(crate) fn newest<'a>(
    containers: &'a [ContainerStatus],
    name: &str,
    sandbox: Option<&PodSandboxId>,
) -> Option<&'a ContainerStatus> {
    containers
        .iter()
        .filter(|c| c.name == name && sandbox.is_none_or(|sandbox| c.sandbox == *sandbox))
        .max_by_key(|c| c.attempt)
}

/// Whether a pod that has lost its sandbox is not to have another.
pub(crate) fn is_over_without_sandbox(pod: &Pod, containers: &[ContainerStatus]) -> bool {
    let stays_down = |container: &Container| {
        let newest = newest(containers, &container.name, None).map(|c| &c.state);
        let exit_code = match newest {
            Some(ContainerState::Exited(exit)) => exit.exit_code,
            // It died with its sandbox.
            Some(ContainerState::Running { .. } | ContainerState::Unknown) => 137,
            Some(ContainerState::Created) | None => return false,
        };
        !comes_back(
            container,
            RestartPolicy::of_container(pod, container),
            exit_code,
        )
    };
    let is_never = RestartPolicy::of(pod) == RestartPolicy::Never
        && spec(pod)
            .containers
            .iter()
            .all(|c| c.restart_policy.is_none() && c.restart_policy_rules.is_none());
    (is_never && !containers.is_empty()) || spec(pod).containers.iter().all(stays_down)
}

/// Works out what to do.
pub(crate) fn plan(view: View<'_>, now: SystemTime) -> Plan {
    let spec = spec(view.pod);
    let mut plan = Plan::default();
    for (id, why) in view.doomed {
        let runs =
            |c: &&ContainerStatus| c.id == *id && matches!(c.state, ContainerState::Running { .. });
        if view.containers.iter().any(|c| runs(&c)) {
            plan.kill.push((id.clone(), why.clone()));
        }
    }

    for container in spec.ephemeral_containers.iter().flatten() {
        // Each runs once, whatever becomes of it, and waits for nobody.
        let last = newest(view.containers, &container.name, None);
        let is_new = match last {
            None => !view.attempts.contains_key(&container.name),
            Some(last) => last.sandbox == *view.sandbox && last.state == ContainerState::Created,
        };
        if is_new {
            let container = as_container(container);
            consider(&mut plan, view, &container, last, RestartPolicy::Never, now);
        }
    }

    let main_was_created = spec
        .containers
        .iter()
        .any(|c| newest(view.containers, &c.name, Some(view.sandbox)).is_some());
    let mut are_initialized = true;
    for container in spec.init_containers.iter().flatten() {
        let here = newest(view.containers, &container.name, Some(view.sandbox));
        if is_sidecar(container) {
            match here.map(|c| (c, &c.state)) {
                Some((c, ContainerState::Running { .. })) => {
                    if !main_was_created && !view.started.contains(&c.id) {
                        are_initialized = false;
                    }
                }
                _ => {
                    consider(&mut plan, view, container, here, RestartPolicy::Always, now);
                    are_initialized = are_initialized && main_was_created;
                }
            }
        } else if !main_was_created {
            match here.map(|c| &c.state) {
                Some(ContainerState::Exited(exit)) if exit.exit_code == 0 => {}
                Some(ContainerState::Running { .. }) => are_initialized = false,
                _ => {
                    // An init container that fails is tried again unless the policy is Never.
                    let policy = match RestartPolicy::of_container(view.pod, container) {
                        RestartPolicy::Always => RestartPolicy::OnFailure,
                        other => other,
                    };
                    if !consider(&mut plan, view, container, here, policy, now) {
                        plan.start.clear();
                        plan.is_over = true;
                        return plan;
                    }
                    are_initialized = false;
                }
            }
        }
        if !are_initialized {
            return plan;
        }
    }

    let mut is_over = true;
    for container in &spec.containers {
        let here = newest(view.containers, &container.name, Some(view.sandbox));
        if let Some(c) = here.filter(|c| matches!(c.state, ContainerState::Running { .. })) {
            is_over = false;
            if has_changed(container, c) {
                let why = format!(
                    "Container {} definition changed, will be restarted",
                    container.name
                );
                let doom = Doom {
                    why,
                    ..Doom::default()
                };
                plan.kill.push((c.id.clone(), doom));
            }
            continue;
        }
        // In a sandbox that replaced another, containers that were done there stay done.
        let last = here.or_else(|| newest(view.containers, &container.name, None));
        let policy = RestartPolicy::of_container(view.pod, container);
        is_over &= !consider(&mut plan, view, container, last, policy, now);
    }
    plan.is_over = is_over;
    if is_over {
        plan.start.clear();
    }
    plan
}

/// Whether the container is to run another image than it does.
pub(crate) fn has_changed(container: &Container, status: &ContainerStatus) -> bool {
    container
        .image
        .as_ref()
        .is_some_and(|image| *image != status.image)
}

/// Adds a container that does not run to the plan; `false` if the policy wants it to stay down.
fn consider(
    plan: &mut Plan,
    view: View<'_>,
    container: &Container,
    last: Option<&ContainerStatus>,
    policy: RestartPolicy,
    now: SystemTime,
) -> bool {
    let name = &container.name;
    let known = view.attempts.get(name).copied();
    let seen = newest(view.containers, name, None)
        .map(|c| c.attempt)
        .max(known);
    let mut start = Start {
        name: name.clone(),
        attempt: seen.map_or(0, |n| n + 1),
        exited_at: None,
    };
    match last.map(|c| (c, &c.state)) {
        None => {}
        // Created and never started: go on with that one.
        Some((c, ContainerState::Created)) if c.sandbox == *view.sandbox => {
            start.attempt = c.attempt
        }
        Some((_, ContainerState::Created)) => {}
        Some((c, state)) => {
            let (exit_code, exited_at) = match state {
                ContainerState::Exited(exit) => (exit.exit_code, exit.finished_at),
                _ => (137, c.created_at),
            };
            let is_wanted = has_changed(container, c)
                || view.doomed.get(&c.id).is_some_and(|doom| doom.comes_back);
            if !is_wanted && !comes_back(container, policy, exit_code) {
                return false;
            }
            start.exited_at = Some(exited_at);
            // Init containers that succeeded run again in a new sandbox without having crashed.
            let backoff = view.backoffs.get(name).filter(|_| !is_wanted);
            if let Some(until) = backoff.and_then(|backoff| backoff.until(view.policy, exited_at))
                && until > now
            {
                plan.backing_off
                    .insert(name.clone(), view.backoffs[name].delay);
                plan.wake(until);
                return true;
            }
        }
    }
    match view.held_until.get(name) {
        Some(until) if *until > now => plan.wake(*until),
        _ => plan.start.push(start),
    }
    true
}

#[cfg(test)]
mod tests;

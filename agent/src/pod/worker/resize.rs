//! Changing the resources of a pod that runs: grant, set in order, say how far it is.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ResourceRequirements;
use tokio::time::Instant;
use wherry_runtime_api::{ContainerStatus, LinuxResources, PodSandbox, RuntimeError};

use super::{
    super::{
        admit::{self, is_active},
        prepare::bounded,
        qos,
        resize::{self, Allocation, Change, Progress, Refusal, Room},
        restart::Doom,
        start::{Report, Starter},
    },
    Worker,
};
use crate::{events::Kind, pod};

/// Between looks whether others have left room for what was deferred, and between tries to set what
/// could not be set.
const RETRY: Duration = Duration::from_secs(10);

/// What became of a step.
#[derive(Clone, Debug)]
pub(crate) enum ResizeReport {
    /// A container has them.
    Container {
        /// Which.
        name: String,
        /// What it has now.
        resources: Box<ResourceRequirements>,
    },
    /// The pod as a whole has them.
    Pod(Box<LinuxResources>),
    /// Not now; it is tried again.
    Failed(String),
    /// The runtime cannot do it.
    Unsupported(String),
}

/// What is to be set.
pub(super) struct Resize {
    from: LinuxResources,
    to: LinuxResources,
    updates: Vec<(ContainerStatus, Change)>,
}

impl Worker {
    /// Shows what was granted in place of what is asked for.
    pub(super) fn overlay(&mut self) {
        if let Some(allocation) = &self.record.allocation {
            self.pod = allocation.overlay(&self.asked);
        }
    }

    /// Grants what is asked for, if it is something else than before and the node has it.
    pub(super) fn grant(&mut self) {
        let asked = Allocation::of(&self.asked);
        let granted = self.record.allocation.get_or_insert_with(|| asked.clone());
        if *granted == asked {
            if matches!(self.record.resize, Some(Progress::Pending(_))) {
                self.record.resize = None;
            }
            return;
        }
        let refused = self.record.unsupported.as_ref();
        let judged = match refused.filter(|(what, _)| *what == asked) {
            Some((_, why)) => Err(Refusal::Infeasible(why.clone())),
            None => resize::judge(&self.asked, &self.room()),
        };
        match judged {
            Ok(()) => {
                self.record.allocation = Some(asked);
                self.record.unsupported = None;
                self.record.resize = Some(Progress::InProgress(None));
                self.resize_retry_at = None;
                self.overlay();
                self.tell_resize(Kind::Normal, "ResizeStarted", "Pod resize started".into());
            }
            Err(refusal) => {
                if matches!(refusal, Refusal::Deferred(_)) {
                    self.wake_at_instant(Instant::now() + RETRY);
                }
                self.pend(refusal);
            }
        }
    }

    fn pend(&mut self, refusal: Refusal) {
        let progress = Progress::Pending(refusal.clone());
        if self.record.resize.as_ref() == Some(&progress) {
            return;
        }
        self.record.resize = Some(progress);
        match refusal {
            Refusal::Deferred(why) => self.tell_resize(Kind::Warning, "ResizeDeferred", why),
            Refusal::Infeasible(why) => self.tell_resize(Kind::Warning, "ResizeInfeasible", why),
        }
    }

    fn tell_resize(&self, kind: Kind, reason: &'static str, message: String) {
        self.context.event(&self.pod, kind, reason, message);
    }

    fn room(&self) -> Room {
        let others = self.context.directory.pods();
        let others: Vec<_> = others
            .into_iter()
            .filter(|pod| is_active(pod) && pod::uid(pod) != self.uid)
            .collect();
        let used = |resource| {
            let sum = others
                .iter()
                .map(|pod| qos::pod_request_millis(pod, resource));
            (resource, sum.sum::<i128>())
        };
        let allocatable = self.context.allocatable();
        let allocatable = admit::allocatable_millis(&allocatable);
        let of = |resource| (resource, allocatable.get(resource).copied().unwrap_or(0));
        Room {
            allocatable: [of("cpu"), of("memory")].into(),
            used: [used("cpu"), used("memory")].into(),
        }
    }

    /// What of the granted resources is still to be set, if it is time.
    pub(super) fn resize_due(&mut self, sandbox: &Arc<PodSandbox>) -> Option<Resize> {
        // What an agent before this one started has what was granted then.
        let names: Vec<_> = self.containers.iter().map(|c| c.name.clone()).collect();
        if let Some(allocation) = &self.record.allocation {
            for name in names {
                if let Some(resources) = allocation.containers.get(&name) {
                    let actuated = self.record.actuated.entry(name);
                    actuated.or_insert_with(|| resources.clone());
                }
            }
        }
        let changes = resize::changes(&self.pod, &self.containers, &self.record.actuated);
        let to = qos::pod_resources(&self.pod, self.context.config.pod_pids_max);
        let known = self.record.pod_limits.as_ref();
        let from = known.unwrap_or(&sandbox.config.resources).clone();
        let is_waiting = matches!(self.record.resize, Some(Progress::InProgress(_)));
        if !is_waiting {
            return None;
        }
        if changes.is_empty() && from == to {
            self.record.resize = None;
            self.tell_resize(
                Kind::Normal,
                "ResizeCompleted",
                "Pod resize completed".into(),
            );
            return None;
        }
        if let Some(at) = self.resize_retry_at.filter(|at| *at > Instant::now()) {
            self.wake_at_instant(at);
            return None;
        }
        let mut updates = Vec::new();
        for change in changes {
            if change.restarts {
                let why = format!("Container {} resize requires restart", change.name);
                self.doomed.entry(change.id).or_insert(Doom {
                    why,
                    grace_period: None,
                    comes_back: true,
                });
                // Killed by the next plan, and started with what it is granted.
                self.mailbox.notify.notify_one();
            } else if let Some(status) = self.containers.iter().find(|c| c.id == change.id) {
                updates.push((status.clone(), change));
            }
        }
        (!updates.is_empty() || from != to).then_some(Resize { from, to, updates })
    }

    pub(super) fn resized(&mut self, report: ResizeReport) {
        match report {
            ResizeReport::Container { name, resources } => {
                self.record.actuated.insert(name, *resources);
            }
            ResizeReport::Pod(limits) => self.record.pod_limits = Some(*limits),
            ResizeReport::Failed(why) => {
                self.resize_retry_at = Some(Instant::now() + RETRY);
                let progress = Some(Progress::InProgress(Some(why.clone())));
                if self.record.resize != progress {
                    self.record.resize = progress;
                    self.tell_resize(Kind::Warning, "ResizeError", why);
                }
            }
            ResizeReport::Unsupported(why) => {
                let asked = Allocation::of(&self.asked);
                if let Some(granted) = &mut self.record.allocation {
                    // What the containers have stands.
                    for (name, resources) in &self.record.actuated {
                        granted.containers.insert(name.clone(), resources.clone());
                    }
                }
                self.record.unsupported = Some((asked, why.clone()));
                self.overlay();
                self.pend(Refusal::Infeasible(why));
            }
        }
    }
}

impl Resize {
    /// Sets everything, in an order in which the containers never have more than their pod.
    pub(super) async fn run(self, starter: &Starter) {
        if let Err(error) = self.set(starter).await {
            let report = match error {
                RuntimeError::Unsupported(why) => ResizeReport::Unsupported(why),
                error => ResizeReport::Failed(error.to_string()),
            };
            starter.report(Report::Resize(report)).await;
        }
    }

    async fn set(&self, starter: &Starter) -> Result<(), RuntimeError> {
        let context = &starter.context;
        let widest = resize::widest(&self.from, &self.to);
        if widest != self.from {
            self.set_pod(starter, widest.clone()).await?;
        }
        for (status, change) in &self.updates {
            let Some(runtime) = context.runtime(&status.handler) else {
                continue;
            };
            let Some(container) = pod::container(&starter.pod, &change.name) else {
                continue;
            };
            let limits =
                qos::container_resources(&starter.pod, &container, context.machine.memory_bytes);
            let stats = bounded(
                context,
                "container stats",
                runtime.container_stats(&status.id),
            );
            if change.shrinks
                && let Some(limit) = limits.memory_bytes_max
                && let Ok(stats) = stats.await
                && stats.memory_working_set_bytes > limit
            {
                return Err(RuntimeError::FailedPrecondition(format!(
                    "attempting to set container \"{}\" memory limit ({limit}) below current usage ({})",
                    change.name, stats.memory_working_set_bytes
                )));
            }
            bounded(
                context,
                "update container resources",
                runtime.update_container_resources(&status.id, &limits),
            )
            .await?;
            let report = ResizeReport::Container {
                name: change.name.clone(),
                resources: Box::new(change.to.clone()),
            };
            starter.report(Report::Resize(report)).await;
        }
        if widest != self.to {
            self.set_pod(starter, self.to.clone()).await?;
        }
        Ok(())
    }

    async fn set_pod(&self, starter: &Starter, limits: LinuxResources) -> Result<(), RuntimeError> {
        let sandbox = &starter.sandbox;
        if let Some(runtime) = starter.context.runtime(&sandbox.handler) {
            bounded(
                &starter.context,
                "update pod sandbox resources",
                runtime.update_pod_sandbox_resources(&sandbox.id, &limits),
            )
            .await?;
        }
        let report = ResizeReport::Pod(Box::new(limits));
        starter.report(Report::Resize(report)).await;
        Ok(())
    }
}

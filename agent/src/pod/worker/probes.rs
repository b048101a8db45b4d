//! What probes say of a pod's containers, and which probes run.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;
use wherry_runtime_api::{ContainerId, ContainerState, ContainerStatus};

use super::{
    super::{lifecycle::ContainerExec, restart::Doom, state::PodState},
    Worker,
};
use crate::{
    events::Kind,
    pod,
    probe::{Counter, ProbeKind, ProbeNews, ProbeTask, Reach, period, schedule, target},
};

impl Worker {
    pub(super) fn take_in_probe(&mut self, news: ProbeNews) {
        let Some(name) = self
            .containers
            .iter()
            .find(|c| c.id == news.id)
            .map(|c| c.name.clone())
        else {
            return;
        };
        if let Some(failure) = news.failure {
            self.context.recorder.record(
                &self.pod,
                Some(&name),
                Kind::Warning,
                "Unhealthy",
                failure,
            );
        }
        match (news.kind, news.verdict) {
            (_, None) | (ProbeKind::Liveness, Some(true)) => {}
            (ProbeKind::Readiness, Some(true)) => {
                self.record.ready.insert(news.id);
            }
            (ProbeKind::Readiness, Some(false)) => {
                self.record.ready.remove(&news.id);
            }
            (ProbeKind::Startup, Some(true)) => {
                self.record.started.insert(news.id);
            }
            (kind @ (ProbeKind::Startup | ProbeKind::Liveness), Some(false)) => {
                let container = pod::container(&self.pod, &name);
                let probe = container.as_ref().and_then(|c| kind.of(c));
                let grace_period = probe.and_then(|p| p.termination_grace_period_seconds);
                let kind = kind.as_str().to_lowercase();
                self.doomed.insert(
                    news.id,
                    Doom {
                        why: format!("Container {name} failed {kind} probe, will be restarted"),
                        grace_period: grace_period
                            .map(|seconds| Duration::from_secs(seconds.max(0).unsigned_abs())),
                        comes_back: false,
                    },
                );
            }
        }
    }

    /// Containers that have started, as far as their startup probes are concerned.
    pub(super) fn started(&self) -> BTreeSet<ContainerId> {
        let is_started = |status: &&ContainerStatus| {
            let has_probe =
                pod::container(&self.pod, &status.name).is_some_and(|c| c.startup_probe.is_some());
            matches!(status.state, ContainerState::Running { .. })
                && (!has_probe || self.record.started.contains(&status.id))
        };
        self.containers
            .iter()
            .filter(is_started)
            .map(|status| status.id.clone())
            .collect()
    }

    pub(super) fn ready(&self, started: &BTreeSet<ContainerId>) -> BTreeSet<ContainerId> {
        let is_ready = |status: &&ContainerStatus| {
            let has_probe = pod::container(&self.pod, &status.name)
                .is_some_and(|c| c.readiness_probe.is_some());
            !has_probe || self.record.ready.contains(&status.id)
        };
        let containers = self
            .containers
            .iter()
            .filter(|status| started.contains(&status.id));
        // A pod that is going takes no more requests, whatever its probes say; it stays ready until
        // its containers are gone, as endpoints look at the deletion itself.
        containers
            .filter(is_ready)
            .map(|status| status.id.clone())
            .collect()
    }

    pub(super) fn reconcile_probes(&mut self) {
        let started = self.started();
        let is_running = matches!(self.state, PodState::Running { .. });
        let PodState::Running { sandbox } = &self.state else {
            // Liveness ends with the pod; readiness has nothing more to say.
            self.probes.clear();
            return;
        };
        let mut wanted = BTreeSet::new();
        let uid = pod::uid(&self.pod);
        let period = period(&self.pod);
        let mut begun = 0;
        for status in self.containers.iter().filter(|_| is_running) {
            let ContainerState::Running { started_at } = status.state else {
                continue;
            };
            let Some(container) = pod::container(&self.pod, &status.name) else {
                continue;
            };
            let has_started = started.contains(&status.id);
            for kind in [
                ProbeKind::Startup,
                ProbeKind::Liveness,
                ProbeKind::Readiness,
            ] {
                let Some(probe) = kind.of(&container) else {
                    continue;
                };
                if (kind == ProbeKind::Startup) == has_started
                    || self.doomed.contains_key(&status.id)
                {
                    continue;
                }
                let key = (status.id.clone(), kind);
                wanted.insert(key.clone());
                if self.probes.contains_key(&key) {
                    continue;
                }
                let ip = sandbox.ips.first().copied();
                let target = target(&self.pod, &container, ip, started_at, status.attempt);
                let period = period.as_ref().ok().copied().flatten();
                let Some(schedule) = schedule(&container, probe, &target, period) else {
                    continue;
                };
                let Some(runtime) = self.context.runtime(&status.handler) else {
                    continue;
                };
                let known = match kind {
                    ProbeKind::Startup => None,
                    ProbeKind::Liveness => Some(true),
                    ProbeKind::Readiness => Some(self.record.ready.contains(&status.id)),
                };
                let ran = self
                    .context
                    .now()
                    .duration_since(started_at)
                    .unwrap_or_default();
                let page = self.context.probe_ledger.page(&uid, &status.id, kind);
                let history = page.history();
                // Neither sooner than an agent that had stayed would have, nor later.
                let wait = history.map_or(Duration::ZERO, |history| {
                    history.wait(schedule.period, self.context.now())
                });
                let task = ProbeTask {
                    id: status.id.clone(),
                    kind,
                    delay: schedule.initial_delay.saturating_sub(ran).max(wait),
                    schedule,
                    counter: Counter::new(probe, known, history),
                    page,
                    clock: Arc::clone(&self.context.config.clock),
                    prober: self.context.prober(&self.pod, &status.name, kind),
                    reach: Reach {
                        exec: ContainerExec {
                            runtime: Arc::clone(runtime),
                            id: status.id.clone(),
                        },
                        objects: Arc::clone(&self.context.objects),
                        pod: Arc::clone(&self.pod),
                        pod_dir: self.context.pod_dir(&uid),
                    },
                };
                let mailbox = Arc::clone(&self.mailbox);
                let runtime = task.prober.runtime().unwrap_or_else(Handle::current);
                let run = task.run(move |news| mailbox.probe(news));
                let task = runtime.spawn(run.in_current_span());
                self.probes.insert(key, AbortOnDropHandle::new(task));
                begun += 1;
            }
        }
        if let (Err(why), 1..) = (period, begun) {
            self.context
                .event(&self.pod, Kind::Warning, "InvalidAnnotation", why);
        }
        self.probes.retain(|key, _| {
            let is_wanted = wanted.contains(key);
            if !is_wanted {
                self.context.probe_ledger.forget(&uid, &key.0, key.1);
            }
            is_wanted
        });
        let ids: BTreeSet<_> = self.containers.iter().map(|c| c.id.clone()).collect();
        self.record.ready.retain(|id| ids.contains(id));
        self.record.started.retain(|id| ids.contains(id));
        self.doomed.retain(|id, _| ids.contains(id));
    }
}

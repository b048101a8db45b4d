//! One task per pod: take in news, step, run the effect, say how it looks.
//!
//! The worker has one effect under way and keeps reading news meanwhile. An effect that is no longer
//! wanted is told so and brought to its end, because a call to a runtime that is cut off may still
//! make something; only a stop gives way at once, to a stop with a nearer deadline. Nobody else
//! changes the pod's state: they put news into the [`Mailbox`].

mod effects;
mod mailbox;
mod probes;
mod resize;
mod shown;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::Pod;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::info;
use wherry_runtime_api::{
    ContainerExit, ContainerId, ContainerState, ContainerStatus, PodSandbox, PodSandboxState,
    PodUid,
};

use super::{
    GRACE_PERIOD_MIN, grace_period,
    record::{self, Record},
    resize::Allocation,
    restart::{self, Backoff, Doom, RestartPolicy, View},
    spec,
    start::{Report, retry_pause},
    state::{Effect, PodEvent, PodState, step},
    status::{Verdict, Waiting, reason},
};
use crate::{
    context::Context, events::Kind, eviction::Eviction, probe::ProbeKind, volume::follow::Following,
};

use effects::{Doing, InFlight, ended};
pub(crate) use mailbox::Mailbox;
pub(crate) use resize::ResizeReport;
use shown::finished;

/// Reports of effects that wait to be read.
const REPORTS_MAX: usize = 32;
/// A sandbox missing from a list may be news that is late; one that is gone for so long is lost.
const SANDBOX_ABSENT_MAX: Duration = Duration::from_secs(15);

/// What a worker begins with.
pub(crate) struct Begin {
    /// The pod.
    pub(crate) pod: Arc<Pod>,
    /// What is known of it from before.
    pub(crate) record: Record,
    /// Whether it was on this node before the agent started.
    pub(crate) recovered: bool,
    /// Why the node refuses it.
    pub(crate) verdict: Option<Verdict>,
}

/// One pod's owner.
pub(crate) struct Worker {
    context: Arc<Context>,
    mailbox: Arc<Mailbox>,
    uid: PodUid,
    /// As its source has it.
    asked: Arc<Pod>,
    /// With the resources that were granted; what everything else goes by.
    pod: Arc<Pod>,
    state: PodState,
    record: Record,
    saved: Record,
    saving: Option<AbortOnDropHandle<()>>,
    pod_saving: Option<JoinHandle<()>>,
    in_flight: Option<InFlight>,
    queued: Option<Effect>,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
    containers: Vec<ContainerStatus>,
    volumes: Option<BTreeMap<String, PathBuf>>,
    following: Option<Following>,
    failed_starts: BTreeMap<ContainerId, ContainerExit>,
    waiting: BTreeMap<String, Waiting>,
    held_until: BTreeMap<String, SystemTime>,
    create_failures: BTreeMap<String, u32>,
    backing_off: BTreeMap<String, Duration>,
    /// Containers whose `postStart` has not ended.
    in_hook: BTreeSet<String>,
    doomed: BTreeMap<ContainerId, Doom>,
    messages: BTreeMap<ContainerId, String>,
    crash_events: BTreeMap<ContainerId, ()>,
    probes: BTreeMap<(ContainerId, ProbeKind), AbortOnDropHandle<()>>,
    prepare_failures: u32,
    retry_at: Option<Instant>,
    /// Not to be tried before then: a change of resources that failed.
    resize_retry_at: Option<Instant>,
    wake_at: Option<Instant>,
    sandbox_absent_since: Option<Instant>,
    /// Taking over what is there: what was published stands until it is seen.
    is_recovering: bool,
    delete_seen: bool,
    recovered: bool,
    is_urgent: bool,
}

impl Worker {
    /// A worker that has not begun.
    pub(crate) fn new(context: Arc<Context>, mailbox: Arc<Mailbox>, begin: Begin) -> Self {
        let Begin {
            pod,
            mut record,
            recovered,
            verdict,
        } = begin;
        let uid = super::uid(&pod);
        if verdict.is_some() {
            record.verdict = verdict;
            record.is_terminal = true;
        }
        // What the API server says has ended does not run again.
        let published = pod.status.clone();
        let phase = published
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            record.is_terminal = true;
        }
        if record.status.is_none() {
            record.status = published.filter(|status| status.start_time.is_some());
        }
        let asked = pod;
        let allocation = record
            .allocation
            .get_or_insert_with(|| Allocation::of(&asked));
        let pod = allocation.overlay(&asked);
        let (reporter, reports) = mpsc::channel(REPORTS_MAX);
        let is_recovering = recovered && context.actual.get(&uid).ready_sandbox().is_some();
        Self {
            context,
            mailbox,
            uid,
            asked,
            pod,
            state: PodState::Admitted,
            saved: Record::default(),
            record,
            saving: None,
            pod_saving: None,
            in_flight: None,
            queued: None,
            reports,
            reporter,
            containers: Vec::new(),
            volumes: None,
            following: None,
            failed_starts: BTreeMap::new(),
            waiting: BTreeMap::new(),
            held_until: BTreeMap::new(),
            create_failures: BTreeMap::new(),
            backing_off: BTreeMap::new(),
            in_hook: BTreeSet::new(),
            doomed: BTreeMap::new(),
            messages: BTreeMap::new(),
            crash_events: BTreeMap::new(),
            probes: BTreeMap::new(),
            prepare_failures: 0,
            retry_at: None,
            resize_retry_at: None,
            wake_at: None,
            sandbox_absent_since: None,
            is_recovering,
            delete_seen: false,
            recovered,
            is_urgent: false,
        }
    }

    /// Owns the pod until it is gone (`true`) or the agent shuts down, which leaves it running.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> bool {
        self.context
            .actual
            .watch(&self.uid, Arc::clone(&self.mailbox.notify));
        self.save_pod();
        if let Some(status) = &self.record.status {
            self.context
                .directory
                .set(&self.uid, &self.pod, status.clone());
        }
        loop {
            self.take_in_mail();
            self.look();
            self.publish();
            self.save();
            if self.state == PodState::Finished && self.in_flight.is_none() {
                break;
            }
            let notify = Arc::clone(&self.mailbox.notify);
            let wake_at = self.wake_at.into_iter().chain(self.retry_at).min();
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = notify.notified() => {}
                outcome = ended(&mut self.in_flight) => self.ended(outcome),
                Some(report) = self.reports.recv() => self.report(report),
                () = finished(&mut self.saving) => {}
                () = until(wake_at) => {}
            }
        }
        self.context.actual.unwatch(&self.uid);
        self.context.directory.remove(&self.uid);
        true
    }

    fn event(&mut self, event: PodEvent) {
        let before = std::mem::discriminant(&self.state);
        let (state, effect) = step(self.state.clone(), event);
        if std::mem::discriminant(&state) != before {
            info!(
                pod = super::name(&self.pod),
                namespace = super::namespace(&self.pod),
                state = name_of(&state),
                "Pod state"
            );
        }
        self.state = state;
        if let Some(effect) = effect {
            self.start(effect);
        }
    }

    fn take_in_mail(&mut self) {
        let (pod, removed, eviction, probes) = {
            let mut inbox = self.mailbox.lock();
            (
                inbox.pod.take(),
                std::mem::take(&mut inbox.removed),
                inbox.eviction.take(),
                std::mem::take(&mut inbox.probes),
            )
        };
        if let Some(pod) = pod {
            let differs = record::differs(&self.asked, &pod);
            self.asked = pod;
            self.overlay();
            if differs {
                self.save_pod();
            }
        }
        if let Some(eviction) = eviction {
            self.evict(eviction);
        }
        for news in probes.into_values() {
            self.take_in_probe(news);
        }
        let is_deleted = self.pod.metadata.deletion_timestamp.is_some();
        if (is_deleted || removed) && self.state != PodState::Finished {
            let deadline = Instant::now() + self.grace_left().max(GRACE_PERIOD_MIN);
            let is_new = !self.delete_seen || removed;
            let shortens = matches!(&self.state, PodState::Terminating { deadline: set, .. } if deadline < *set);
            if is_new || shortens {
                self.delete_seen = true;
                self.event(PodEvent::Delete { deadline });
            }
        }
    }

    /// Ends the pod for the node's sake, unless it is at its end already.
    fn evict(&mut self, eviction: Eviction) {
        let is_ending = self.record.is_terminal
            || self.record.verdict.is_some()
            || matches!(
                self.state,
                PodState::Terminating { .. } | PodState::Terminated { .. } | PodState::Finished
            );
        if is_ending {
            return;
        }
        let Eviction { verdict, grace } = eviction;
        self.context
            .event(&self.pod, Kind::Warning, "Evicted", verdict.message.clone());
        self.record.verdict = Some(verdict);
        self.event(PodEvent::End {
            deadline: Instant::now() + grace,
        });
    }

    /// The grace period, less what passed while there was no agent.
    fn grace_left(&self) -> Duration {
        let grace = grace_period(&self.pod);
        match &self.pod.metadata.deletion_timestamp {
            Some(at) if self.recovered => {
                let now = super::time(self.context.now()).0.as_second();
                let left = at.0.as_second().saturating_sub(now).max(0).unsigned_abs();
                grace.min(Duration::from_secs(left))
            }
            _ => grace,
        }
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Held {
                name,
                waiting,
                until,
            } => {
                let until = until.unwrap_or_else(|| {
                    let failures = self.create_failures.entry(name.clone()).or_default();
                    let pause = retry_pause(*failures);
                    *failures += 1;
                    self.context.now() + pause
                });
                self.held_until.insert(name.clone(), until);
                self.waiting.insert(name, waiting);
            }
            Report::ImageReady { name, image } => {
                self.held_until.remove(&name);
                // Trouble with the config stands until it is over; trouble with the image is over now.
                let is_image = |w: &Waiting| {
                    !matches!(
                        w.reason,
                        reason::CREATE_CONTAINER_CONFIG_ERROR | reason::CREATE_CONTAINER_ERROR
                    )
                };
                if self.waiting.get(&name).is_some_and(is_image) {
                    self.waiting.remove(&name);
                }
                let shown = image.repo_digests.first().unwrap_or(&image.id).clone();
                self.record.image_refs.insert(image.id, shown);
            }
            Report::Attempt { start, resources } => {
                self.record.actuated.insert(start.name.clone(), *resources);
                let now = self.context.now();
                if let Some(exited_at) = start.exited_at {
                    let before = self.record.backoffs.get(&start.name).copied();
                    let policy = self.context.config.tuning.backoff;
                    let backoff = Backoff::next(policy, before, exited_at, now);
                    self.record.backoffs.insert(start.name.clone(), backoff);
                }
                let attempts = self.record.attempts.entry(start.name.clone()).or_default();
                *attempts = start.attempt.max(*attempts);
                if has_post_start(&self.pod, &start.name) {
                    self.in_hook.insert(start.name.clone());
                }
                self.waiting.remove(&start.name);
                self.create_failures.remove(&start.name);
                self.backing_off.remove(&start.name);
            }
            Report::Started { name } => {
                self.in_hook.remove(&name);
                self.waiting.remove(&name);
                self.held_until.remove(&name);
            }
            Report::StartFailed {
                id,
                exit,
                waiting,
                name,
            } => {
                // Where it stays down, its end says it all.
                let policy = match super::container(&self.pod, &name) {
                    _ if super::ephemeral_container(&self.pod, &name).is_some() => {
                        RestartPolicy::Never
                    }
                    Some(container) => RestartPolicy::of_container(&self.pod, &container),
                    None => RestartPolicy::of(&self.pod),
                };
                if policy.restarts(exit.exit_code) {
                    self.waiting.insert(name, waiting);
                }
                self.failed_starts.insert(id, exit);
            }
            Report::HookFailed { id, why } => {
                let doom = Doom {
                    why,
                    ..Doom::default()
                };
                self.doomed.insert(id, doom);
            }
            Report::Resize(report) => self.resized(report),
            Report::Volumes(volumes) => {
                self.volumes = Some(volumes);
            }
        }
    }

    /// Looks at what there is, and does what follows.
    fn look(&mut self) {
        self.wake_at = None;
        let actual = self.context.actual.get(&self.uid);
        self.containers = actual.containers;
        for status in &mut self.containers {
            // What the runtime makes of it later says less than the error did.
            let never_ran = match &status.state {
                ContainerState::Created => true,
                ContainerState::Exited(exit) => exit.started_at.is_none() && exit.message.is_none(),
                ContainerState::Running { .. } | ContainerState::Unknown => false,
            };
            if let Some(exit) = self.failed_starts.get(&status.id).filter(|_| never_ran) {
                status.state = ContainerState::Exited(exit.clone());
            }
        }
        let ids: BTreeSet<_> = self.containers.iter().map(|c| c.id.clone()).collect();
        self.failed_starts.retain(|id, _| ids.contains(id));
        self.messages.retain(|id, _| ids.contains(id));
        self.crash_events.retain(|id, ()| ids.contains(id));
        self.read_last_words();
        if self
            .in_flight
            .as_ref()
            .is_none_or(|effect| effect.doing == Doing::Act)
            && self.queued.is_none()
        {
            self.advance(&actual.sandboxes);
        }
        self.reconcile_probes();
        self.follow_volumes();
    }

    fn advance(&mut self, sandboxes: &[Arc<PodSandbox>]) {
        match self.state.clone() {
            PodState::Admitted => {
                if self.record.is_terminal {
                    self.event(PodEvent::Reject);
                } else if sandboxes
                    .iter()
                    .all(|s| s.state == PodSandboxState::NotReady)
                    && restart::is_over_without_sandbox(&self.pod, &self.containers)
                {
                    self.event(PodEvent::AllExited {
                        deadline: Instant::now(),
                    });
                } else {
                    self.event(PodEvent::Sync);
                }
            }
            PodState::Preparing => {
                if self.in_flight.is_none() && self.is_due() {
                    self.event(PodEvent::Sync);
                }
            }
            PodState::Running { sandbox } => self.advance_running(&sandbox, sandboxes),
            PodState::Terminating { deadline, .. } => {
                if self.in_flight.is_none() && self.is_due() {
                    self.start(Effect::Stop { deadline });
                }
            }
            PodState::Terminated { .. } => {
                if self.in_flight.is_none() {
                    self.event(PodEvent::Sync);
                }
            }
            PodState::Finished => {}
        }
    }

    fn is_due(&mut self) -> bool {
        let is_due = self.retry_at.is_none_or(|at| at <= Instant::now());
        if is_due {
            self.retry_at = None;
        }
        is_due
    }

    fn advance_running(&mut self, sandbox: &Arc<PodSandbox>, sandboxes: &[Arc<PodSandbox>]) {
        let there = sandboxes.iter().find(|there| there.id == sandbox.id);
        let is_lost = match there {
            Some(there) => there.state == PodSandboxState::NotReady,
            None => {
                let since = *self.sandbox_absent_since.get_or_insert_with(Instant::now);
                self.wake_at_instant(since + SANDBOX_ABSENT_MAX);
                since.elapsed() >= SANDBOX_ABSENT_MAX
            }
        };
        if there.is_some() {
            self.sandbox_absent_since = None;
        }
        if is_lost {
            if self.in_flight.is_some() {
                return;
            }
            self.sandbox_absent_since = None;
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.context
                .event(&self.pod, Kind::Normal, "SandboxChanged", message);
            if restart::is_over_without_sandbox(&self.pod, &self.containers) {
                self.event(PodEvent::AllExited {
                    deadline: Instant::now(),
                });
            } else {
                self.event(PodEvent::SandboxLost);
            }
            return;
        }
        if self.deadline_exceeded() {
            return;
        }
        self.grant();
        let now = self.context.now();
        let started = self.started();
        let plan = restart::plan(
            View {
                pod: &self.pod,
                sandbox: &sandbox.id,
                containers: &self.containers,
                policy: self.context.config.tuning.backoff,
                backoffs: &self.record.backoffs,
                held_until: &self.held_until,
                started: &started,
                doomed: &self.doomed,
                attempts: &self.record.attempts,
            },
            now,
        );
        self.backing_off = plan.backing_off.clone();
        self.tell_back_off();
        if let Some(at) = plan.wake_at {
            self.wake_at_instant(Instant::now() + at.duration_since(now).unwrap_or_default());
        }
        if self.in_flight.is_some() {
            return;
        }
        if plan.is_over {
            self.event(PodEvent::AllExited {
                deadline: Instant::now() + grace_period(&self.pod),
            });
        } else {
            let resize = self.resize_due(sandbox);
            if plan.has_work() || resize.is_some() {
                self.act(Arc::clone(sandbox), plan, resize);
            }
        }
    }

    fn deadline_exceeded(&mut self) -> bool {
        let Some(seconds) = spec(&self.pod).active_deadline_seconds else {
            return false;
        };
        let start = self
            .record
            .status
            .as_ref()
            .and_then(|status| status.start_time.as_ref());
        let Some(start) = start.map(|start| SystemTime::from(start.0)) else {
            return false;
        };
        let end = start + Duration::from_secs(seconds.max(0).unsigned_abs());
        let now = self.context.now();
        if let Ok(left) = end.duration_since(now)
            && !left.is_zero()
        {
            self.wake_at_instant(Instant::now() + left);
            return false;
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.context
            .event(&self.pod, Kind::Normal, "DeadlineExceeded", message);
        self.record.verdict = Some(Verdict {
            reason: "DeadlineExceeded".into(),
            message: message.into(),
            is_disruption: false,
        });
        self.event(PodEvent::End {
            deadline: Instant::now() + grace_period(&self.pod),
        });
        true
    }

    fn wake_at_instant(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |set| set.min(at)));
    }

    /// Each crash that has to wait is told once.
    fn tell_back_off(&mut self) {
        for name in self.backing_off.keys() {
            let Some(newest) = restart::newest(&self.containers, name, None) else {
                continue;
            };
            if self.crash_events.insert(newest.id.clone(), ()).is_none() {
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}",
                    super::full_name(&self.pod)
                );
                self.context.recorder.record(
                    &self.pod,
                    Some(name),
                    Kind::Warning,
                    "BackOff",
                    message,
                );
            }
        }
    }

    /// Keeps volumes up to date while the pod runs.
    fn follow_volumes(&mut self) {
        if !matches!(self.state, PodState::Running { .. }) {
            self.following = None;
        } else if let Some(following) = &self.following {
            following.set(&self.pod);
        } else if spec(&self.pod).volumes.is_some() {
            self.following = Following::start(&self.context, &self.pod);
        }
    }
}

fn name_of(state: &PodState) -> &'static str {
    match state {
        PodState::Admitted => "Admitted",
        PodState::Preparing => "Preparing",
        PodState::Running { .. } => "Running",
        PodState::Terminating { .. } => "Terminating",
        PodState::Terminated { .. } => "Terminated",
        PodState::Finished => "Finished",
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn has_post_start(pod: &Pod, name: &str) -> bool {
    super::container(pod, name).is_some_and(|container| {
        let lifecycle = container.lifecycle.as_ref();
        lifecycle.is_some_and(|lifecycle| lifecycle.post_start.is_some())
    })
}

#[cfg(test)]
mod tests;

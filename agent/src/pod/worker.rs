//! One task per pod: take in news, step, run the effect, say how it looks.
//!
//! The worker has one effect under way and keeps reading news meanwhile. An effect that is no longer
//! wanted is told so and brought to its end, because a call to a runtime that is cut off may still
//! make something; only a stop gives way at once, to a stop with a nearer deadline. Nobody else
//! changes the pod's state: they put news into the [`Mailbox`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::{
    sync::{Notify, mpsc},
    task::{JoinError, JoinHandle},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument, error, info, warn};
use wherry_runtime_api::{
    ContainerExit, ContainerId, ContainerState, ContainerStatus, PodSandbox, PodSandboxState,
    PodUid,
};

use super::{
    GRACE_PERIOD_MIN, files, grace_period,
    lifecycle::ContainerExec,
    prepare::{self, PrepareError, Prepared},
    record::{self, Record},
    resize::Allocation,
    restart::{self, Backoff, Doom, Plan, RestartPolicy, View},
    spec,
    start::{Report, Starter, retry_pause},
    state::{Effect, PodEvent, PodState, step},
    status::{self, Observed, Verdict, Waiting, reason},
    stop,
};
use crate::{
    context::Context,
    events::Kind,
    eviction::Eviction,
    probe::{Counter, PERIOD_MS_ANNOTATION, ProbeKind, ProbeNews, ProbeTask, schedule},
    volume::follow::Following,
};

/// Reports of effects that wait to be read.
const REPORTS_MAX: usize = 32;
/// First and longest pause between tries to make a sandbox.
const PREPARE_RETRY_MIN: Duration = Duration::from_millis(500);
const PREPARE_RETRY_MAX: Duration = Duration::from_secs(20);
/// A sandbox missing from a list may be news that is late; one that is gone for so long is lost.
const SANDBOX_ABSENT_MAX: Duration = Duration::from_secs(15);

/// News for a worker. Only the newest of each kind is kept, so it cannot grow.
#[derive(Default)]
pub(crate) struct Mailbox {
    inbox: Mutex<Inbox>,
    notify: Arc<Notify>,
}

#[derive(Default)]
struct Inbox {
    pod: Option<Arc<Pod>>,
    removed: bool,
    eviction: Option<Eviction>,
    probes: BTreeMap<(ContainerId, ProbeKind), ProbeNews>,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // Every change is one assignment or insert.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A newer version of the pod.
    pub(crate) fn set(&self, pod: Arc<Pod>) {
        self.lock().pod = Some(pod);
        self.notify.notify_one();
    }

    /// The pod is not wanted any more.
    pub(crate) fn remove(&self) {
        self.lock().removed = true;
        self.notify.notify_one();
    }

    /// The node cannot keep the pod. The first reason given is the one that is shown.
    pub(crate) fn evict(&self, eviction: Eviction) {
        self.lock().eviction.get_or_insert(eviction);
        self.notify.notify_one();
    }

    fn probe(&self, news: ProbeNews) {
        let mut inbox = self.lock();
        let slot = inbox
            .probes
            .entry((news.id.clone(), news.kind))
            .or_insert_with(|| news.clone());
        slot.verdict = news.verdict.or(slot.verdict);
        slot.failure = news.failure.or(slot.failure.take());
        drop(inbox);
        self.notify.notify_one();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Prepare,
    Act,
    Stop,
    Release,
    CleanUp,
}

enum Outcome {
    Prepared(Box<Result<Prepared, PrepareError>>),
    Done,
}

struct InFlight {
    doing: Doing,
    cancel: CancellationToken,
    task: AbortOnDropHandle<Outcome>,
}

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

    fn take_in_probe(&mut self, news: ProbeNews) {
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
                let container = super::container(&self.pod, &name);
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
                self.waiting.remove(&start.name);
                self.create_failures.remove(&start.name);
                self.backing_off.remove(&start.name);
            }
            Report::Started { name } => {
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

    /// Containers that have started, as far as their startup probes are concerned.
    fn started(&self) -> BTreeSet<ContainerId> {
        let is_started = |status: &&ContainerStatus| {
            let has_probe = super::container(&self.pod, &status.name)
                .is_some_and(|c| c.startup_probe.is_some());
            matches!(status.state, ContainerState::Running { .. })
                && (!has_probe || self.record.started.contains(&status.id))
        };
        self.containers
            .iter()
            .filter(is_started)
            .map(|status| status.id.clone())
            .collect()
    }

    fn ready(&self, started: &BTreeSet<ContainerId>) -> BTreeSet<ContainerId> {
        let is_ready = |status: &&ContainerStatus| {
            let has_probe = super::container(&self.pod, &status.name)
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

    fn read_last_words(&mut self) {
        let pod_dir = self.context.pod_dir(&self.uid);
        for status in &self.containers {
            let ContainerState::Exited(exit) = &status.state else {
                continue;
            };
            if self.messages.contains_key(&status.id) {
                continue;
            }
            let container = super::container(&self.pod, &status.name);
            let policy = container
                .as_ref()
                .and_then(|c| c.termination_message_policy.as_deref());
            self.messages.insert(
                status.id.clone(),
                files::last_words(&pod_dir, status, exit, policy),
            );
        }
    }

    fn reconcile_probes(&mut self) {
        let started = self.started();
        let is_running = matches!(self.state, PodState::Running { .. });
        let PodState::Running { sandbox } = &self.state else {
            // Liveness ends with the pod; readiness has nothing more to say.
            self.probes.clear();
            return;
        };
        let mut wanted = BTreeSet::new();
        let period = super::annotation(&self.pod, PERIOD_MS_ANNOTATION)
            .and_then(|text| text.parse().ok())
            .map(|millis: u64| Duration::from_millis(millis.max(10)));
        for status in self.containers.iter().filter(|_| is_running) {
            let ContainerState::Running { started_at } = status.state else {
                continue;
            };
            let Some(container) = super::container(&self.pod, &status.name) else {
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
                let Some(schedule) = schedule(&container, probe, ip, period) else {
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
                let task = ProbeTask {
                    id: status.id.clone(),
                    kind,
                    delay: schedule.initial_delay.saturating_sub(ran),
                    schedule,
                    counter: Counter::new(probe, known),
                    prober: self.context.prober(&self.pod, &status.name, kind),
                    exec: ContainerExec {
                        runtime: Arc::clone(runtime),
                        id: status.id.clone(),
                    },
                };
                let mailbox = Arc::clone(&self.mailbox);
                let task = spawn(task.run(move |news| mailbox.probe(news)));
                self.probes.insert(key, AbortOnDropHandle::new(task));
            }
        }
        self.probes.retain(|key, _| wanted.contains(key));
        let ids: BTreeSet<_> = self.containers.iter().map(|c| c.id.clone()).collect();
        self.record.ready.retain(|id| ids.contains(id));
        self.record.started.retain(|id| ids.contains(id));
        self.doomed.retain(|id, _| ids.contains(id));
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

    fn act(&mut self, sandbox: Arc<PodSandbox>, plan: Plan, resize: Option<Resize>) {
        let cancel = CancellationToken::new();
        let starter = Starter {
            context: Arc::clone(&self.context),
            pod: Arc::clone(&self.pod),
            sandbox,
            fixed_handler: self.record.fixed_handler.clone(),
            volumes: self.volumes.clone(),
            cancel: cancel.clone(),
            reports: self.reporter.clone(),
        };
        let kills: Vec<_> = plan
            .kill
            .iter()
            .filter_map(|(id, doom)| {
                Some((
                    self.containers.iter().find(|c| c.id == *id)?.clone(),
                    doom.clone(),
                ))
            })
            .collect();
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        let task = spawn(async move {
            if let Some(resize) = resize {
                resize.run(&starter).await;
            }
            let stops = kills.iter().map(|(status, doom)| {
                let grace = doom.grace_period.unwrap_or_else(|| grace_period(&pod));
                let deadline = Instant::now() + grace;
                stop::stop_container(&context, &pod, status, deadline, Some(&doom.why))
            });
            for error in futures::future::join_all(stops)
                .await
                .into_iter()
                .filter_map(Result::err)
            {
                warn!(pod = super::name(&pod), %error, "Container not killed");
            }
            starter.run(plan.start).await;
            Outcome::Done
        });
        self.in_flight = Some(InFlight {
            doing: Doing::Act,
            cancel,
            task: AbortOnDropHandle::new(task),
        });
    }

    fn start(&mut self, effect: Effect) {
        if let Some(in_flight) = &self.in_flight {
            match (in_flight.doing, &effect) {
                // A stop gives way to a stop with a nearer deadline.
                (Doing::Stop, Effect::Stop { .. }) => self.in_flight = None,
                (Doing::Prepare, Effect::Prepare)
                | (Doing::Release, Effect::Release)
                | (Doing::CleanUp, Effect::CleanUp) => {
                    return;
                }
                _ => {
                    in_flight.cancel.cancel();
                    self.queued = Some(effect);
                    return;
                }
            }
        }
        let cancel = CancellationToken::new();
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        let attempt = self.next_sandbox_attempt();
        let (doing, task): (_, JoinHandle<Outcome>) = match effect {
            Effect::Prepare => (
                Doing::Prepare,
                spawn(async move {
                    Outcome::Prepared(Box::new(prepare::prepare(&context, &pod, attempt).await))
                }),
            ),
            Effect::Stop { deadline } => (
                Doing::Stop,
                spawn(async move {
                    stop::stop_all(&context, &pod, deadline).await;
                    Outcome::Done
                }),
            ),
            Effect::Release => (
                Doing::Release,
                spawn(async move {
                    stop::release(&context, &pod).await;
                    Outcome::Done
                }),
            ),
            Effect::CleanUp => (Doing::CleanUp, {
                let (state, whole) = (self.saving.take(), self.pod_saving.take());
                spawn(async move {
                    // What is being written must not come back after the directory is gone.
                    if let Some(state) = state {
                        let _ = state.await;
                    }
                    if let Some(whole) = whole {
                        let _ = whole.await;
                    }
                    stop::remove(&context, &pod).await;
                    Outcome::Done
                })
            }),
        };
        self.in_flight = Some(InFlight {
            doing,
            cancel,
            task: AbortOnDropHandle::new(task),
        });
    }

    fn next_sandbox_attempt(&self) -> u32 {
        let sandboxes = self.context.actual.get(&self.uid).sandboxes;
        let last = sandboxes
            .iter()
            .map(|sandbox| sandbox.config.attempt + 1)
            .max();
        last.unwrap_or(0).max(self.record.sandbox_attempts)
    }

    fn ended(&mut self, (doing, outcome): (Doing, Result<Outcome, JoinError>)) {
        self.in_flight = None;
        while let Ok(report) = self.reports.try_recv() {
            self.report(report);
        }
        match (doing, outcome) {
            (_, Err(error)) => {
                // A bug; the pod is not the one to pay for it.
                error!(pod = super::name(&self.pod), ?doing, %error, "Effect ended early");
                self.retry_at = Some(Instant::now() + PREPARE_RETRY_MAX);
            }
            (_, Ok(Outcome::Prepared(result))) => match *result {
                Ok(prepared) => self.prepared(prepared),
                Err(error) => self.prepare_failed(&error),
            },
            (Doing::Stop, Ok(Outcome::Done)) => self.event(PodEvent::Stopped),
            (Doing::CleanUp, Ok(Outcome::Done)) => self.cleaned_up(),
            (Doing::Prepare | Doing::Act | Doing::Release, Ok(Outcome::Done)) => {}
        }
        if let Some(effect) = self.queued.take() {
            self.start(effect);
        }
    }

    fn prepared(&mut self, prepared: Prepared) {
        self.prepare_failures = 0;
        self.retry_at = None;
        self.is_recovering = false;
        self.record.sandbox_attempts = prepared.sandbox.config.attempt + 1;
        self.record.fixed_handler = prepared.fixed_handler;
        if prepared.volumes.is_some() {
            // Made with the limits of now.
            self.record.pod_limits = None;
        }
        if prepared.volumes.is_some() {
            self.volumes = prepared.volumes;
        }
        self.event(PodEvent::SandboxReady(prepared.sandbox));
    }

    fn prepare_failed(&mut self, error: &PrepareError) {
        if matches!(self.state, PodState::Preparing) {
            if error.is_final {
                self.refuse(error.reason, &error.message);
                return;
            }
            prepare::tell(&self.context, &self.pod, error);
        }
        let pause = PREPARE_RETRY_MIN
            .saturating_mul(1 << self.prepare_failures.min(8))
            .min(PREPARE_RETRY_MAX);
        self.prepare_failures += 1;
        self.retry_at = Some(Instant::now() + pause);
    }

    /// The node does not take the pod after all.
    fn refuse(&mut self, reason: &'static str, why: &str) {
        let verdict = Verdict {
            reason: reason.into(),
            message: format!("Pod was rejected: {why}"),
            is_disruption: false,
        };
        self.context
            .event(&self.pod, Kind::Warning, reason, why.to_owned());
        self.record.verdict = Some(verdict);
        self.record.is_terminal = true;
        self.event(PodEvent::Reject);
    }

    fn cleaned_up(&mut self) {
        // The last status goes out before the object does.
        self.publish();
        self.context.publisher.delete(&self.uid);
        self.event(PodEvent::CleanedUp);
    }

    fn publish(&mut self) {
        if self.is_recovering && matches!(self.state, PodState::Admitted | PodState::Preparing) {
            return;
        }
        if self.state == PodState::Finished {
            return;
        }
        let is_terminal = matches!(self.state, PodState::Terminated { .. });
        if is_terminal && !self.delete_seen {
            self.record.is_terminal = true;
        }
        let actual = self.context.actual.get(&self.uid);
        let sandbox = match &self.state {
            PodState::Running { sandbox }
            | PodState::Terminating {
                sandbox: Some(sandbox),
                ..
            } => Some(sandbox),
            _ => actual.sandboxes.last(),
        };
        let started = self.started();
        let ready = self.ready(&started);
        let coming_back = self.coming_back();
        let status = status::compute(
            Observed {
                pod: &self.pod,
                sandbox: sandbox.map(|sandbox| &**sandbox),
                containers: &self.containers,
                waiting: &self.waiting,
                backing_off: &self.backing_off,
                ready: &ready,
                started: &started,
                messages: &self.messages,
                image_refs: &self.record.image_refs,
                attempts: &self.record.attempts,
                coming_back: &coming_back,
                actuated: &self.record.actuated,
                resize: self.record.resize.as_ref(),
                has_recursive_readonly: &|handler| {
                    self.context
                        .known_features(handler)
                        .recursive_readonly_mounts
                },
                host_ips: self.context.host_ips(),
                verdict: self.record.verdict.as_ref(),
                is_terminal,
                previous: self.record.status.as_ref(),
            },
            self.context.now(),
        );
        self.is_urgent = is_urgent(&status) || self.waiting.values().next().is_some();
        if self.record.status.as_ref() != Some(&status) {
            self.record.status = Some(status.clone());
            self.context
                .directory
                .set(&self.uid, &self.pod, status.clone());
        } else if self
            .context
            .directory
            .get(&self.uid)
            .is_none_or(|there| there.metadata != self.pod.metadata)
        {
            self.context
                .directory
                .set(&self.uid, &self.pod, status.clone());
        }
        self.context
            .publisher
            .put(&self.uid, status, self.is_urgent);
    }

    /// Exited containers that start again whatever the policy says.
    fn coming_back(&self) -> BTreeSet<ContainerId> {
        let is_wanted = |status: &&ContainerStatus| {
            self.doomed
                .get(&status.id)
                .is_some_and(|doom| doom.comes_back)
                || spec(&self.pod)
                    .containers
                    .iter()
                    .any(|c| c.name == status.name && restart::has_changed(c, status))
        };
        let exited = self
            .containers
            .iter()
            .filter(|status| matches!(status.state, ContainerState::Exited(_)));
        exited
            .filter(is_wanted)
            .map(|status| status.id.clone())
            .collect()
    }

    fn save_pod(&mut self) {
        let (dir, pod) = (self.context.pod_dir(&self.uid), Arc::clone(&self.asked));
        if matches!(
            self.state,
            PodState::Terminated { deleted: true } | PodState::Finished
        ) {
            return;
        }
        // In the background: should the agent die first, the API server still has the pod.
        let before = self.pod_saving.take();
        let save = async move {
            if let Some(before) = before {
                let _ = before.await;
            }
            let saved = tokio::task::spawn_blocking(move || {
                if let Err(error) = record::save_pod(&dir, &pod) {
                    warn!(path = %dir.display(), %error, "Pod not saved");
                }
            });
            let _ = saved.await;
        };
        self.pod_saving = Some(tokio::spawn(save.in_current_span()));
    }

    fn save(&mut self) {
        if self.saving.is_some() || self.record == self.saved {
            return;
        }
        if matches!(
            self.state,
            PodState::Terminated { deleted: true } | PodState::Finished
        ) {
            return;
        }
        self.saved = self.record.clone();
        let (dir, record) = (self.context.pod_dir(&self.uid), self.record.clone());
        let task = tokio::task::spawn_blocking(move || {
            if let Err(error) = record::save_state(&dir, &record) {
                warn!(path = %dir.display(), %error, "Pod state not saved");
            }
        });
        self.saving = Some(AbortOnDropHandle::new(task));
    }
}

/// Spawns within the pod's span.
fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(future.in_current_span())
}

/// Whether somebody waits for this status: everything but the first steps of a start.
fn is_urgent(status: &PodStatus) -> bool {
    status.phase.as_deref() != Some("Pending")
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

async fn ended(in_flight: &mut Option<InFlight>) -> (Doing, Result<Outcome, JoinError>) {
    match in_flight {
        Some(effect) => (effect.doing, (&mut effect.task).await),
        None => std::future::pending().await,
    }
}

async fn finished(saving: &mut Option<AbortOnDropHandle<()>>) {
    match saving {
        Some(task) => {
            let _ = task.await;
            *saving = None;
        }
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

mod resize;

use resize::Resize;
pub(crate) use resize::ResizeReport;

#[cfg(test)]
mod tests;

//! Which pods should be here: starts workers, passes news on, reaps what is done, sweeps what is left over.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};
use wherry_runtime_api::PodUid;

use super::{
    admit, files,
    held::{Held, WAITING_FOR_TERMINATION},
    record::{self, Record},
    status::Verdict,
    stop,
    worker::{Begin, Mailbox, Worker},
};
use crate::{
    context::Context,
    events::Kind,
    eviction,
    publish::Target,
    source::{PodUpdate, Source, mirror::Mirrors},
};

/// Between sweeps for what belongs to no pod.
const SWEEP_PERIOD: Duration = Duration::from_secs(30);
/// Between looks for workers that are done, besides their own news.
const IDLE_PERIOD: Duration = Duration::from_secs(1);

/// Between looks whether the node takes pods that wait for others, besides the news that one is gone.
const HELD_PERIOD: Duration = Duration::from_secs(1);

struct Handle {
    mailbox: Arc<Mailbox>,
    source: Source,
    removed: bool,
    /// On its way out, though its source still has it.
    is_ending: bool,
}

/// Whether the node takes a new pod.
enum Admission {
    Now,
    /// When pods that are being ended are gone: until then they hold what it needs.
    Later(Held),
    Never(Verdict),
}

/// Whether the kernel enforces AppArmor profiles.
fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|enabled| enabled.starts_with('Y'))
}

/// Knows which pods should be here.
pub(crate) struct Manager {
    context: Arc<Context>,
    mirrors: Arc<Mirrors>,
    handles: BTreeMap<PodUid, Handle>,
    workers: JoinSet<(PodUid, bool)>,
    /// Sources that have told all they have. Nothing is swept before each of them has.
    told: HashSet<Source>,
    sources: HashSet<Source>,
    /// Pods to be started when the worker of that uid is done.
    again: HashMap<PodUid, Arc<Pod>>,
    /// New pods that wait for others to be gone.
    held: HashMap<PodUid, (Arc<Pod>, Held)>,
    /// API pods that are gone from here and may still be heard of; `true` once their deletion is under way.
    gone: HashMap<PodUid, bool>,
    has_apparmor: bool,
    shutdown: CancellationToken,
}

impl Manager {
    /// A manager that waits for `sources` before it sweeps.
    pub(crate) fn new(
        context: Arc<Context>,
        mirrors: Arc<Mirrors>,
        sources: HashSet<Source>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            context,
            mirrors,
            handles: BTreeMap::new(),
            workers: JoinSet::new(),
            told: HashSet::new(),
            sources,
            again: HashMap::new(),
            held: HashMap::new(),
            gone: HashMap::new(),
            has_apparmor: has_apparmor(),
            shutdown,
        }
    }

    /// Goes on with the pods of the agent before this one, as the disk has them.
    pub(crate) fn recover(&mut self) -> io::Result<()> {
        for (uid, dir) in record::directories(&self.context.config.pods_dir())? {
            match record::load(&dir) {
                Ok((Some(pod), record)) if super::uid(&pod) == uid => {
                    info!(pod = super::name(&pod), namespace = super::namespace(&pod), %uid, "Pod found on disk");
                    self.begin(Arc::new(pod), record, true, None);
                }
                // No pod was accepted yet: the source tells, or the sweep removes it.
                Ok(_) => {}
                Err(error) => warn!(path = %dir.display(), %error, "Pod directory not readable"),
            }
        }
        Ok(())
    }

    /// Runs until shutdown; pods run on.
    pub(crate) async fn run(mut self, mut updates: mpsc::Receiver<PodUpdate>) {
        let mut sweeps = interval(SWEEP_PERIOD);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval(HELD_PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep_now = false;
        loop {
            if sweep_now {
                sweep_now = false;
                self.sweep().await;
            }
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                update = updates.recv() => match update {
                    Some(update) => sweep_now = self.update(update),
                    None => tokio::time::sleep(IDLE_PERIOD).await,
                },
                Some(done) = self.workers.join_next() => match done {
                    Ok((uid, is_gone)) => self.done(&uid, is_gone),
                    Err(error) => error!(%error, "Pod worker ended early"),
                },
                _ = sweeps.tick() => sweep_now = true,
                // A pod may have ended and be kept by its source.
                _ = looks.tick(), if !self.held.is_empty() => self.take_held(),
            }
        }
        while self.workers.join_next().await.is_some() {}
    }

    /// Takes news in; `true` if there may be something to sweep now.
    fn update(&mut self, update: PodUpdate) -> bool {
        match update {
            PodUpdate::Set(pod) => self.set(pod),
            PodUpdate::Remove(uid) => self.remove(&uid),
            PodUpdate::All(source, all) => {
                let handled = self
                    .handles
                    .iter()
                    .filter(|(_, handle)| handle.source == source && !handle.removed);
                let held = self
                    .held
                    .iter()
                    .filter(|(_, (pod, _))| Source::of(pod) == source);
                let gone: Vec<_> = handled
                    .map(|(uid, _)| uid)
                    .chain(held.map(|(uid, _)| uid))
                    .filter(|uid| !all.contains(*uid))
                    .cloned()
                    .collect();
                gone.iter().for_each(|uid| self.remove(uid));
                if source == Source::Api {
                    self.gone.retain(|uid, _| all.contains(uid));
                }
                if source == Source::Api {
                    self.mirrors.listed(&all);
                }
                return self.told.insert(source);
            }
            PodUpdate::Mirror(uid, mirror) => self.mirrors.see(uid, mirror),
            PodUpdate::Evict(uid, eviction) => {
                if let Some(handle) = self.handles.get_mut(&uid) {
                    handle.is_ending = true;
                    handle.mailbox.evict(eviction);
                }
            }
        }
        false
    }

    fn set(&mut self, pod: Arc<Pod>) {
        let uid = super::uid(&pod);
        if let Some(is_deleting) = self.gone.get_mut(&uid) {
            // Late news, or the API server was away when the pod ended.
            if !*is_deleting {
                *is_deleting = true;
                self.context
                    .publisher
                    .target(&uid, Some(Target::of(&pod)), pod.status.as_ref());
                self.context.publisher.delete(&uid);
            }
            return;
        }
        if Source::of(&pod) == Source::Api {
            self.context
                .publisher
                .target(&uid, Some(Target::of(&pod)), pod.status.as_ref());
        } else {
            self.mirrors.want(Arc::clone(&pod));
        }
        match self.handles.get_mut(&uid) {
            Some(handle) if handle.removed => {
                // A manifest that came back while its pod was ending.
                self.again.insert(uid, pod);
            }
            Some(handle) => {
                handle.is_ending |= pod.metadata.deletion_timestamp.is_some();
                handle.mailbox.set(pod);
            }
            None => self.take(uid, pod),
        }
    }

    /// Begins with a pod, if the node takes it now.
    fn take(&mut self, uid: PodUid, pod: Arc<Pod>) {
        let known = record::load(&self.context.pod_dir(&uid))
            .map(|(_, record)| record)
            .unwrap_or_default();
        let is_known = known != Record::default() || !self.context.actual.get(&uid).is_empty();
        let is_ending = pod.metadata.deletion_timestamp.is_some();
        let needs_no_room = is_known || is_ending || known.is_terminal || !admit::is_active(&pod);
        let verdict = if needs_no_room {
            None
        } else {
            match self.admit(&pod) {
                Admission::Now => None,
                Admission::Never(verdict) => Some(verdict),
                Admission::Later(held) => {
                    self.hold(uid, pod, held);
                    return;
                }
            }
        };
        self.held.remove(&uid);
        self.begin(pod, known, is_known, verdict);
    }

    /// Lets a pod wait, which is told once and shown in its status.
    fn hold(&mut self, uid: PodUid, pod: Arc<Pod>, held: Held) {
        let context = &self.context;
        let before = self.held.get(&uid).map(|(_, held)| held);
        if before.is_none() {
            info!(
                pod = super::name(&pod),
                namespace = super::namespace(&pod),
                why = held.message,
                "Pod waits for others that are being ended"
            );
            let message = held.message.clone();
            context.event(&pod, Kind::Normal, WAITING_FOR_TERMINATION, message);
        }
        if before != Some(&held) {
            let status = held.status(&pod, context.host_ips(), context.now());
            context.publisher.put(&uid, status, before.is_none());
        }
        self.held.insert(uid, (pod, held));
    }

    /// Something may have become free.
    fn take_held(&mut self) {
        let held = self.held.iter();
        let held: Vec<_> = held
            .map(|(uid, (pod, _))| (uid.clone(), Arc::clone(pod)))
            .collect();
        for (uid, pod) in held {
            self.take(uid, pod);
        }
    }

    fn admit(&self, pod: &Pod) -> Admission {
        let config = &self.context.config;
        let allocatable = self.context.allocatable();
        let limits = admit::Limits {
            max_pods: config.max_pods,
            allow_privileged: config.allow_privileged,
            allowed_unsafe_sysctls: &config.allowed_unsafe_sysctls,
            allocatable: &allocatable,
            has_apparmor: self.has_apparmor,
        };
        let directory = &self.context.directory;
        let others = if admit::looks_at_others(pod) {
            directory.pods()
        } else {
            Vec::new()
        };
        let checked = admit::check(pod, directory.active(), &others, limits);
        let checked = match checked {
            Err(refused) => match self.holder(pod, &refused, limits) {
                Some(held) => return Admission::Later(held),
                None => Err(refused),
            },
            taken => taken,
        };
        let pressure = self.context.pressure.conditions();
        let refused = match (checked, eviction::refusal(pod, &pressure)) {
            (Err(refused), _) => refused,
            (Ok(()), None) => return Admission::Now,
            (Ok(()), Some(message)) => admit::Refused {
                reason: eviction::EVICTED,
                message,
            },
        };
        let admit::Refused { reason, message } = refused;
        self.context
            .event(pod, Kind::Warning, reason, message.clone());
        Admission::Never(Verdict {
            reason: reason.into(),
            message: format!("Pod was rejected: {message}"),
            is_disruption: false,
        })
    }

    /// What a pod waits for that the node would take if those that are being ended were gone. Their objects may be gone
    /// already (`--force`), so that whoever placed the pod here knows nothing of what they still hold.
    fn holder(
        &self,
        pod: &Pod,
        refused: &admit::Refused,
        limits: admit::Limits<'_>,
    ) -> Option<Held> {
        let is_leaving = |other: &Arc<Pod>| {
            let handle = self.handles.get(&super::uid(other));
            handle.is_some_and(|handle| handle.removed || handle.is_ending)
        };
        let all = self.context.directory.pods();
        let (leaving, staying): (Vec<_>, Vec<_>) = all.into_iter().partition(is_leaving);
        let active = staying.iter().filter(|pod| admit::is_active(pod)).count();
        let is_taken = !leaving.is_empty() && admit::check(pod, active, &staying, limits).is_ok();
        is_taken.then(|| Held::new(refused.clone(), leaving.iter().map(|pod| &**pod)))
    }

    fn begin(&mut self, pod: Arc<Pod>, record: Record, recovered: bool, verdict: Option<Verdict>) {
        let uid = super::uid(&pod);
        let mailbox = Arc::new(Mailbox::default());
        if Source::of(&pod) == Source::File {
            self.mirrors.want(Arc::clone(&pod));
        }
        let handle = Handle {
            mailbox: Arc::clone(&mailbox),
            source: Source::of(&pod),
            removed: false,
            is_ending: pod.metadata.deletion_timestamp.is_some(),
        };
        self.context.directory.begin(&uid, Arc::clone(&pod));
        self.handles.insert(uid.clone(), handle);
        let span =
            info_span!("pod", namespace = super::namespace(&pod), name = super::name(&pod), %uid);
        let worker = Worker::new(
            Arc::clone(&self.context),
            mailbox,
            Begin {
                pod,
                record,
                recovered,
                verdict,
            },
        );
        let shutdown = self.shutdown.clone();
        let run = async move { (uid, worker.run(shutdown).await) };
        self.workers.spawn(run.instrument(span));
    }

    fn remove(&mut self, uid: &PodUid) {
        self.again.remove(uid);
        self.gone.remove(uid);
        if let Some((pod, _)) = self.held.remove(uid) {
            if Source::of(&pod) == Source::File {
                self.mirrors.unwant(uid);
            }
            self.context.publisher.forget(uid);
        }
        if let Some(handle) = self.handles.get_mut(uid) {
            handle.removed = true;
            handle.mailbox.remove();
        }
    }

    fn done(&mut self, uid: &PodUid, is_gone: bool) {
        if !is_gone {
            return;
        }
        if let Some(handle) = self.handles.remove(uid) {
            match handle.source {
                Source::File => self.mirrors.unwant(uid),
                Source::Api if !handle.removed => {
                    self.gone
                        .insert(uid.clone(), self.context.publisher.is_deleting(uid));
                }
                Source::Api => {}
            }
            // An API object that still has to be deleted is remembered until it is.
            self.context.publisher.forget(uid);
        }
        if let Some(pod) = self.again.remove(uid) {
            self.set(pod);
        }
        self.take_held();
    }

    /// Removes what belongs to no pod: sandboxes, containers, addresses, directories.
    async fn sweep(&mut self) {
        if !self.sources.is_subset(&self.told) {
            return;
        }
        let orphans: HashSet<PodUid> = self
            .context
            .actual
            .uids()
            .into_iter()
            .filter(|uid| !self.handles.contains_key(uid))
            .collect();
        let dirs = match record::directories(&self.context.config.pods_dir()) {
            Ok(dirs) => dirs,
            Err(error) => {
                warn!(%error, "Pod directories not readable");
                Vec::new()
            }
        };
        let uids = self.handles.keys().map(PodUid::as_str).collect();
        self.context.probe_ledger.retain(&uids);
        let left = dirs
            .into_iter()
            .map(|(uid, _)| uid)
            .filter(|uid| !self.handles.contains_key(uid));
        let all: HashSet<PodUid> = orphans.into_iter().chain(left).collect();
        for uid in all {
            info!(%uid, "Removing what is left of a pod");
            let mut pod = Pod::default();
            let actual = self.context.actual.get(&uid);
            pod.metadata.uid = Some(uid.to_string());
            if let Some(sandbox) = actual.sandboxes.last() {
                pod.metadata.name = Some(sandbox.config.name.clone());
                pod.metadata.namespace = Some(sandbox.config.namespace.clone());
            }
            stop::kill(&self.context, &actual.containers, Duration::ZERO).await;
            tokio::select! {
                // What cannot be removed now is tried again with the next sweep.
                removed = tokio::time::timeout(SWEEP_PERIOD, stop::remove(&self.context, &pod)) => {
                    if removed.is_err() {
                        warn!(%uid, "Not removed yet");
                    }
                }
                () = self.shutdown.cancelled() => return,
            }
        }
        let live: HashSet<String> = self.handles.keys().map(PodUid::to_string).collect();
        if let Err(error) = self.context.config.network.retain(&live).await {
            warn!(%error, "Addresses not swept");
        }
        self.sweep_logs().await;
    }

    async fn sweep_logs(&self) {
        let live: HashSet<String> = self.handles.keys().map(PodUid::to_string).collect();
        let root = self.context.config.log_root();
        let swept = tokio::task::spawn_blocking(move || files::sweep_logs(&root, &live)).await;
        match swept {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "Logs not swept"),
            Err(error) => warn!(%error, "Logs not swept"),
        }
    }
}

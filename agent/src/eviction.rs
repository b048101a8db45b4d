//! Keeps the node usable: ends pods that are over their limits of local storage, and whoever has to
//! go when memory, disk or process IDs run short.
//!
//! ```text
//!  every 10 s ─┬─ pods with limits ─▶ storage (measure, judge) ──────────────┐
//!              └─ signal (read) ─▶ threshold (judge) ─┬─▶ Pressure ──────────┼─▶ node conditions, admission
//!                                                     ├─ disk: unused images ┼─▶ image collection
//!                                                     └─ rank (who first) ───┴─▶ PodUpdate::Evict ─▶ the pod's worker
//! ```
//!
//! [`threshold`], `rank` and the judging half of `storage` are pure. One pod goes at a time: the next
//! one only when that did not help. Static pods and the system's priority classes always stay. Soft
//! thresholds and cgroup notifications are absent: ten seconds is what a look costs nothing at, and
//! what comes faster is the kernel's OOM killer's.

mod admission;
mod du;
mod rank;
pub(crate) mod signal;
pub(crate) mod storage;
pub mod threshold;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use wherry_runtime_api::PodUid;

use self::{
    rank::{Candidate, Usage},
    storage::{Layers, PodDisk},
    threshold::{Condition, Readings, Signal, Threshold},
};
use crate::{
    context::Context,
    events::Kind,
    image, metrics,
    pod::{self, admit::is_active, status::Verdict},
    server::stats::{UsageHistory, pod_samples},
    source::PodUpdate,
};

pub(crate) use admission::refusal;

/// What a pod over its own limits, or in the node's way, has to exit in
/// (`immediateEvictionGracePeriodSeconds` in pkg/kubelet/eviction).
const GRACE: Duration = Duration::from_secs(1);
/// How long one eviction is given to free something before the next
/// (`podCleanupTimeout` in pkg/kubelet/eviction).
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(30);
/// How old a measure of a pod's disk may be where only an order is made of it.
const DISK_AGE_MAX: Duration = Duration::from_secs(60);
/// The reason of a pod's status.
pub(crate) const EVICTED: &str = "Evicted";

/// When the node defends itself.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Below these, at once. See [`threshold::parse`] for the form that operators type.
    pub hard: Vec<Threshold>,
    /// Between looks. Kubelet's: 10 s.
    pub period: Duration,
    /// How long a condition stands after it was last seen, so that the node does not swing between
    /// filling up and emptying. Kubelet's: 5 min.
    pub pressure_transition_period: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            hard: threshold::defaults(),
            period: Duration::from_secs(10),
            pressure_transition_period: Duration::from_secs(300),
        }
    }
}

/// Why a pod has to go, for its worker.
#[derive(Clone, Debug)]
pub(crate) struct Eviction {
    /// What its status says.
    pub(crate) verdict: Verdict,
    /// How long it has to exit.
    pub(crate) grace: Duration,
}

/// What the node is short of, and was until lately.
pub(crate) struct Pressure {
    seen: Mutex<BTreeMap<Condition, Instant>>,
    transition_period: Duration,
}

impl Pressure {
    /// None.
    pub(crate) fn new(policy: &Policy) -> Self {
        Self {
            seen: Mutex::default(),
            transition_period: policy.pressure_transition_period,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Condition, Instant>> {
        // Every change is one insert.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self, conditions: impl Iterator<Item = Condition>) {
        let now = Instant::now();
        let mut seen = self.lock();
        for condition in conditions {
            seen.insert(condition, now);
        }
    }

    /// The conditions that stand now.
    pub(crate) fn conditions(&self) -> Vec<Condition> {
        let stands = |at: &Instant| at.elapsed() < self.transition_period;
        let seen = self.lock();
        seen.iter()
            .filter(|(_, at)| stands(at))
            .map(|(condition, _)| *condition)
            .collect()
    }
}

/// Looks now and then until shutdown.
pub(crate) async fn run(
    context: Arc<Context>,
    updates: mpsc::Sender<PodUpdate>,
    shutdown: CancellationToken,
) {
    let mut ticks = interval(context.config.eviction.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut evictor = Evictor::new(context, updates);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = evictor.pass() => {}
        }
    }
}

/// Decides who goes, and tells their workers.
pub(crate) struct Evictor {
    context: Arc<Context>,
    updates: mpsc::Sender<PodUpdate>,
    /// Who was told to go last, and when.
    evicting: Option<(PodUid, Instant)>,
    /// Unused images were asked to go since the disk was last well.
    reclaimed: bool,
    history: UsageHistory,
}

impl Evictor {
    /// One that has told nobody yet.
    pub(crate) fn new(context: Arc<Context>, updates: mpsc::Sender<PodUpdate>) -> Self {
        Self {
            context,
            updates,
            evicting: None,
            reclaimed: false,
            history: UsageHistory::default(),
        }
    }

    async fn pass(&mut self) {
        self.enforce_limits().await;
        let root = self.context.config.root.clone();
        let images = root.join("images");
        match tokio::task::spawn_blocking(move || signal::read(&root, &images)).await {
            Ok(readings) => self.defend(&readings).await,
            Err(error) => warn!(%error, "What the node has left is not known"),
        }
    }

    /// Ends pods that are over limits of their own.
    pub(crate) async fn enforce_limits(&mut self) {
        let pods = self.context.directory.pods();
        let live: std::collections::HashSet<_> = pods.iter().map(|pod| pod::uid(pod)).collect();
        self.context.meter.retain(|uid| live.contains(uid));
        self.context.forget_probes(&pods);
        for pod in pods.iter().filter(|pod| is_here(pod)) {
            if !storage::has_limits(pod) || rank::is_critical(pod) {
                continue;
            }
            let Some(disk) = pod_disk(&self.context, pod, Duration::ZERO).await else {
                continue;
            };
            let layers = self.layers(pod).await;
            if let Some(message) = storage::excess(pod, &disk, &layers) {
                self.count("ephemeral-storage.limit");
                self.evict(pod, message, false).await;
            }
        }
    }

    /// Bytes in the writable layers of a pod's running containers.
    async fn layers(&self, pod: &Pod) -> Layers {
        let mut layers = Layers::new();
        let patience = self.context.config.tuning.runtime_timeout;
        for status in self.context.actual.get(&pod::uid(pod)).containers {
            let Some(runtime) = self.context.runtime(&status.handler) else {
                continue;
            };
            if let Ok(Ok(stats)) = timeout(patience, runtime.container_stats(&status.id)).await {
                *layers.entry(status.name).or_default() += stats.writable_layer_bytes;
            }
        }
        layers
    }

    /// Defends the node, given what it has left.
    pub(crate) async fn defend(&mut self, readings: &Readings) {
        let crossed = threshold::crossed(&self.context.config.eviction.hard, readings);
        let conditions = crossed.iter().map(|crossed| crossed.signal.condition());
        self.context.pressure.observe(conditions);
        let Some(worst) = crossed.first() else {
            self.reclaimed = false;
            return;
        };
        let resource = worst.signal.resource();
        warn!(
            signal = worst.signal.as_str(),
            available = worst.reading.available,
            threshold = worst.quantity,
            "Node is short of a resource"
        );
        self.tell_node(format!("Attempting to reclaim {resource}"));
        if self.is_waiting() {
            return;
        }
        let is_disk = worst.signal.condition() == Condition::Disk;
        if is_disk && !self.reclaimed {
            // What nobody uses goes first; the next look tells whether it was enough.
            self.reclaimed = true;
            match image::gc::delete_unused(&self.context).await {
                Ok(bytes) => info!(bytes, "Unused images removed"),
                Err(error) => warn!(%error, "Unused images not removed"),
            }
            return;
        }
        let mut candidates = self.candidates(worst.signal).await;
        rank::order(worst.signal, &mut candidates);
        let Some(first) = candidates.first() else {
            debug!(resource, "Nobody can be evicted");
            return;
        };
        let message = rank::message(worst, first);
        let pod = Arc::clone(&first.pod);
        self.evicting = Some((pod::uid(&pod), Instant::now()));
        self.count(worst.signal.as_str());
        self.evict(&pod, message, true).await;
    }

    /// Whether the last one evicted is still going.
    fn is_waiting(&self) -> bool {
        let Some((uid, at)) = &self.evicting else {
            return false;
        };
        let is_going = self
            .context
            .directory
            .get(uid)
            .is_some_and(|pod| !is_at_rest(&self.context, &pod));
        is_going && at.elapsed() < CLEANUP_TIMEOUT
    }

    async fn candidates(&self, signal: Signal) -> Vec<Candidate> {
        let mut by_uid = BTreeMap::new();
        for pod in self.context.directory.pods() {
            if !is_here(&pod) || rank::is_critical(&pod) {
                continue;
            }
            let candidate = Candidate {
                pod: Arc::clone(&pod),
                usage: Usage::default(),
                containers: BTreeMap::new(),
            };
            by_uid.insert(pod::uid(&pod), candidate);
        }
        for sample in pod_samples(&*self.context, &self.history).await.pods {
            let Some(candidate) = by_uid.get_mut(&PodUid::from(sample.uid.as_str())) else {
                continue;
            };
            for container in &sample.containers {
                let stats = &container.stats;
                let usage = Usage {
                    memory_bytes: stats.memory_working_set_bytes,
                    disk_bytes: stats.writable_layer_bytes,
                    inodes: stats.writable_layer_inodes.unwrap_or(0),
                    pids: stats.process_count,
                };
                candidate.usage += usage;
                candidate.containers.insert(container.name.clone(), usage);
            }
        }
        if signal.condition() == Condition::Disk {
            for candidate in by_uid.values_mut() {
                let disk = pod_disk(&self.context, &candidate.pod, DISK_AGE_MAX).await;
                disk.iter().for_each(|disk| add_disk(candidate, disk));
            }
        }
        by_uid.into_values().collect()
    }

    async fn evict(&self, pod: &Pod, message: String, is_disruption: bool) {
        info!(
            pod = pod::name(pod),
            namespace = pod::namespace(pod),
            message,
            "Evicting pod"
        );
        let verdict = Verdict {
            reason: EVICTED.into(),
            message,
            is_disruption,
        };
        let eviction = Eviction {
            verdict,
            grace: GRACE,
        };
        let update = PodUpdate::Evict(pod::uid(pod), eviction);
        if self.updates.send(update).await.is_err() {
            debug!("Nobody takes evictions any more");
        }
    }

    fn count(&self, signal: &str) {
        let label = format!("eviction_signal=\"{signal}\"");
        self.context.metrics.count(metrics::EVICTIONS, &label);
    }

    fn tell_node(&self, message: String) {
        let mut node = Node::default();
        node.metadata.name = Some(self.context.config.node_name.clone());
        self.context
            .recorder
            .record_node(&node, Kind::Warning, "EvictionThresholdMet", message);
    }
}

fn add_disk(candidate: &mut Candidate, disk: &PodDisk) {
    let mut usage = Usage {
        disk_bytes: storage::ephemeral_volume_bytes(&candidate.pod, disk),
        inodes: disk.volumes.values().map(|v| v.inodes_used).sum(),
        ..Usage::default()
    };
    for (name, (bytes, inodes)) in &disk.logs {
        let logs = Usage {
            disk_bytes: *bytes,
            inodes: *inodes,
            ..Usage::default()
        };
        usage += logs;
        *candidate.containers.entry(name.clone()).or_default() += logs;
    }
    candidate.usage += usage;
}

/// What a pod takes of the node's disk, not older than `age_max`.
pub(crate) async fn pod_disk(
    context: &Context,
    pod: &Pod,
    age_max: Duration,
) -> Option<Arc<PodDisk>> {
    let places = storage::places(
        &context.config.pods_dir(),
        pod::translate::log_directory(&context.config.log_root(), pod),
        pod,
    );
    context.meter.measure(&pod::uid(pod), places, age_max).await
}

/// Whether a pod holds resources and is not on its way out.
fn is_here(pod: &Pod) -> bool {
    is_active(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether nothing of a pod runs any more.
fn is_at_rest(context: &Context, pod: &Pod) -> bool {
    let is_running = |status: &wherry_runtime_api::ContainerStatus| {
        matches!(
            status.state,
            wherry_runtime_api::ContainerState::Running { .. }
        )
    };
    let containers = context.actual.get(&pod::uid(pod)).containers;
    !is_active(pod) && !containers.iter().any(is_running)
}

#[cfg(test)]
mod tests;

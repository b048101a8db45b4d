//! Noticing that containers changed: events of the runtimes, and a relist that only repairs.
//!
//! [`Actual`] is the agent's picture of what the runtimes hold. It is fed by the [`Pleg`] and by
//! workers that have just changed something, and wakes the worker of the pod that changed. The
//! picture of a container never goes backwards, so late news does no harm.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use wherry_runtime_api::{
    ContainerId, ContainerState, ContainerStatus, PodSandbox, PodSandboxId, PodSandboxState,
    PodUid, Runtime, RuntimeError, RuntimeEvent,
};

/// What the runtimes hold of one pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodActual {
    /// Newest attempt last.
    pub(crate) sandboxes: Vec<Arc<PodSandbox>>,
    /// In no order.
    pub(crate) containers: Vec<ContainerStatus>,
}

impl PodActual {
    /// The newest sandbox that containers can run in.
    pub(crate) fn ready_sandbox(&self) -> Option<&Arc<PodSandbox>> {
        self.sandboxes
            .iter()
            .rev()
            .find(|sandbox| sandbox.state == PodSandboxState::Ready)
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }
}

#[derive(Default)]
struct Entry {
    actual: PodActual,
    /// When workers or events last added something; a relist that began earlier removes nothing.
    touched_at: Option<Instant>,
    waker: Option<Arc<Notify>>,
}

/// What the runtimes hold, by pod.
#[derive(Default)]
pub(crate) struct Actual {
    pods: Mutex<HashMap<PodUid, Entry>>,
    /// When each runtime last told all it holds.
    relisted: Mutex<HashMap<&'static str, Instant>>,
}

impl Actual {
    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Entry>> {
        // Entries are changed in place by code that does not panic.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held of a pod.
    pub(crate) fn get(&self, uid: &PodUid) -> PodActual {
        self.lock()
            .get(uid)
            .map(|entry| entry.actual.clone())
            .unwrap_or_default()
    }

    /// Pods of which something is held.
    pub(crate) fn uids(&self) -> Vec<PodUid> {
        self.lock()
            .iter()
            .filter(|(_, entry)| !entry.actual.is_empty())
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    /// Wakes that worker whenever its pod changes.
    pub(crate) fn watch(&self, uid: &PodUid, waker: Arc<Notify>) {
        self.lock().entry(uid.clone()).or_default().waker = Some(waker);
    }

    /// The pod has no worker any more.
    pub(crate) fn unwatch(&self, uid: &PodUid) {
        let mut pods = self.lock();
        if let Some(entry) = pods.get_mut(uid) {
            entry.waker = None;
            if entry.actual.is_empty() {
                pods.remove(uid);
            }
        }
    }

    /// A sandbox as it is.
    pub(crate) fn put_sandbox(&self, sandbox: Arc<PodSandbox>) {
        let mut pods = self.lock();
        let entry = pods.entry(sandbox.config.uid.clone()).or_default();
        entry.touched_at = Some(Instant::now());
        merge_sandbox(&mut entry.actual.sandboxes, sandbox);
        entry.wake();
    }

    /// A container as it is.
    pub(crate) fn put_container(&self, status: ContainerStatus) {
        let mut pods = self.lock();
        let entry = pods.entry(status.pod.clone()).or_default();
        entry.touched_at = Some(Instant::now());
        if merge_container(&mut entry.actual.containers, status) {
            entry.wake();
        }
    }

    /// A container that is gone.
    pub(crate) fn drop_container(&self, uid: &PodUid, id: &ContainerId) {
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.actual.containers.retain(|status| status.id != *id);
            entry.wake();
        }
    }

    /// A sandbox that is gone.
    pub(crate) fn drop_sandbox(&self, uid: &PodUid, id: &PodSandboxId) {
        let mut pods = self.lock();
        if let Some(entry) = pods.get_mut(uid) {
            entry.actual.sandboxes.retain(|sandbox| sandbox.id != *id);
            entry
                .actual
                .containers
                .retain(|status| status.sandbox != *id);
            entry.wake();
            if entry.waker.is_none() && entry.actual.is_empty() {
                pods.remove(uid);
            }
        }
    }

    fn lose_sandbox(&self, uid: &PodUid, id: &PodSandboxId) {
        if let Some(entry) = self.lock().get_mut(uid) {
            for sandbox in entry
                .actual
                .sandboxes
                .iter_mut()
                .filter(|sandbox| sandbox.id == *id)
            {
                Arc::make_mut(sandbox).state = PodSandboxState::NotReady;
            }
            entry.wake();
        }
    }

    /// Takes in a whole list of one runtime, begun at `begun`.
    fn repair(
        &self,
        handler: &str,
        sandboxes: Vec<PodSandbox>,
        containers: Vec<ContainerStatus>,
        only: Option<&PodUid>,
        begun: Instant,
    ) {
        let sandbox_ids: HashSet<_> = sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect();
        let container_ids: HashSet<_> = containers.iter().map(|status| status.id.clone()).collect();
        let mut pods = self.lock();
        let mut changed = HashSet::new();
        for sandbox in sandboxes {
            let uid = sandbox.config.uid.clone();
            if only.is_some_and(|only| *only != uid) {
                continue;
            }
            let entry = pods.entry(uid.clone()).or_default();
            if merge_sandbox(&mut entry.actual.sandboxes, Arc::new(sandbox)) {
                changed.insert(uid);
            }
        }
        for status in containers {
            let uid = status.pod.clone();
            if only.is_some_and(|only| *only != uid) {
                continue;
            }
            let entry = pods.entry(uid.clone()).or_default();
            if merge_container(&mut entry.actual.containers, status) {
                changed.insert(uid);
            }
        }
        for (uid, entry) in pods.iter_mut() {
            if only.is_some_and(|only| only != uid)
                || entry.touched_at.is_some_and(|at| at >= begun)
            {
                continue;
            }
            let before = (entry.actual.sandboxes.len(), entry.actual.containers.len());
            entry
                .actual
                .sandboxes
                .retain(|s| s.handler != handler || sandbox_ids.contains(&s.id));
            entry
                .actual
                .containers
                .retain(|c| c.handler != handler || container_ids.contains(&c.id));
            if before != (entry.actual.sandboxes.len(), entry.actual.containers.len()) {
                changed.insert(uid.clone());
            }
        }
        for uid in &changed {
            if let Some(entry) = pods.get(uid) {
                entry.wake();
            }
        }
        pods.retain(|_, entry| entry.waker.is_some() || !entry.actual.is_empty());
    }

    /// Asks one runtime for everything; with `only`, takes in what belongs to that pod.
    pub(crate) async fn relist(
        &self,
        runtime: &dyn Runtime,
        only: Option<&PodUid>,
    ) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let sandboxes = runtime.list_pod_sandboxes().await?;
        let containers = runtime.list_containers().await?;
        self.repair(runtime.handler(), sandboxes, containers, only, begun);
        if only.is_none() {
            let mut relisted = self.relisted.lock().unwrap_or_else(PoisonError::into_inner);
            relisted.insert(runtime.handler(), begun);
        }
        Ok(())
    }

    /// How long ago a runtime last told all it holds; `None` if it never did.
    pub(crate) fn last_relist(&self, handler: &str) -> Option<Duration> {
        let relisted = self.relisted.lock().unwrap_or_else(PoisonError::into_inner);
        relisted.get(handler).map(Instant::elapsed)
    }
}

impl Entry {
    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.notify_one();
        }
    }
}

/// Adds or replaces; `true` if anything changed. Addresses that were filled in are kept.
fn merge_sandbox(list: &mut Vec<Arc<PodSandbox>>, mut sandbox: Arc<PodSandbox>) -> bool {
    match list.iter_mut().find(|there| there.id == sandbox.id) {
        Some(there) => {
            if sandbox.ips.is_empty() && !there.ips.is_empty() {
                Arc::make_mut(&mut sandbox).ips = there.ips.clone();
            }
            // A sandbox that has died does not come back.
            if there.state == PodSandboxState::NotReady {
                Arc::make_mut(&mut sandbox).state = PodSandboxState::NotReady;
            }
            if *there == sandbox {
                return false;
            }
            *there = sandbox;
        }
        None => {
            list.push(sandbox);
            list.sort_by_key(|sandbox| sandbox.config.attempt);
        }
    }
    true
}

/// Adds or replaces unless what is there is further on; `true` if anything changed.
fn merge_container(list: &mut Vec<ContainerStatus>, status: ContainerStatus) -> bool {
    let rank = |state: &ContainerState| match state {
        ContainerState::Created => 0,
        ContainerState::Running { .. } => 1,
        ContainerState::Unknown => 2,
        ContainerState::Exited(_) => 3,
    };
    match list.iter_mut().find(|there| there.id == status.id) {
        Some(there) if *there == status || rank(&there.state) > rank(&status.state) => {
            return false;
        }
        Some(there) => *there = status,
        None => list.push(status),
    }
    true
}

/// Listens to the runtimes, and relists them now and then.
pub(crate) struct Pleg {
    /// The runtimes.
    pub(crate) runtimes: Vec<Arc<dyn Runtime>>,
    /// Between repairs.
    pub(crate) relist_period: Duration,
}

impl Pleg {
    /// Runs until shutdown. `actual` is given by its owner so that both may go together.
    pub(crate) async fn run<C>(
        self,
        context: Arc<C>,
        actual: fn(&C) -> &Actual,
        shutdown: CancellationToken,
    ) where
        C: Send + Sync + 'static,
    {
        let mut tasks = JoinSet::new();
        for runtime in self.runtimes {
            let (context, shutdown) = (Arc::clone(&context), shutdown.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = follow(runtime, actual(&context), self.relist_period) => {}
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }
}

async fn follow(runtime: Arc<dyn Runtime>, actual: &Actual, relist_period: Duration) {
    let mut events = runtime.subscribe();
    let mut ticks = interval_at(Instant::now() + relist_period, relist_period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let handler = runtime.handler();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = ticks.tick() => Err(RecvError::Lagged(0)),
        };
        match event {
            Ok(event) => take_in(&*runtime, actual, event).await,
            Err(RecvError::Lagged(missed)) => {
                if missed > 0 {
                    debug!(
                        runtime = handler,
                        missed, "Runtime events missed, relisting"
                    );
                }
                if let Err(error) = actual.relist(&*runtime, None).await {
                    warn!(runtime = handler, %error, "Relist failed");
                }
            }
            Err(RecvError::Closed) => {
                events = runtime.subscribe();
                ticks.tick().await;
            }
        }
    }
}

async fn take_in(runtime: &dyn Runtime, actual: &Actual, event: RuntimeEvent) {
    match event {
        RuntimeEvent::ContainerStarted { pod, id } | RuntimeEvent::ContainerExited { pod, id } => {
            match runtime.container_status(&id).await {
                Ok(status) => actual.put_container(status),
                Err(error) if error.is_not_found() => actual.drop_container(&pod, &id),
                Err(error) => {
                    warn!(runtime = runtime.handler(), container = %id, %error, "Container status failed")
                }
            }
        }
        RuntimeEvent::SandboxExited { pod, id } => {
            actual.lose_sandbox(&pod, &id);
            // Its containers died with it.
            if let Err(error) = actual.relist(runtime, Some(&pod)).await {
                warn!(runtime = runtime.handler(), sandbox = %id, %error, "Relist failed");
            }
        }
    }
}

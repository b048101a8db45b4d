//! The node's pods with the status the agent last computed, for whoever wants to look.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::watch;
use wherry_runtime_api::PodUid;
use wherry_services::HostPort;

use crate::{
    metrics::{Metrics, POD_START_DURATION},
    pod::admit::is_active,
    services,
};

/// Written by the pods' workers, read by the HTTP endpoints and by admission.
#[derive(Default)]
pub(crate) struct Directory {
    shown: Mutex<Shown>,
    metrics: Arc<Metrics>,
    /// Of the pods that are shown; sorted.
    host_ports: watch::Sender<Vec<HostPort>>,
}

#[derive(Default)]
struct Shown {
    pods: BTreeMap<PodUid, Arc<Pod>>,
    /// When those were first seen that do not run yet.
    starting: BTreeMap<PodUid, Instant>,
    /// How many of them hold resources of the node.
    active: usize,
}

impl Shown {
    /// How long a pod took to run that shows so for the first time. One that was found running did not
    /// start here.
    fn started(&mut self, uid: &PodUid, phase: Option<&str>) -> Option<Duration> {
        let was = self.pods.get(uid).and_then(|pod| phase_of(pod));
        match (was, phase) {
            (_, Some("Pending") | None) => None,
            (Some("Pending"), Some("Running")) => Some(self.starting.remove(uid)?.elapsed()),
            _ => {
                self.starting.remove(uid);
                None
            }
        }
    }

    /// Answers what was shown before.
    fn put(&mut self, uid: PodUid, pod: Option<Arc<Pod>>) -> Option<Arc<Pod>> {
        self.active += usize::from(pod.as_ref().is_some_and(|pod| is_active(pod)));
        let before = match pod {
            Some(pod) => self.pods.insert(uid, pod),
            None => self.pods.remove(&uid),
        };
        self.active -= usize::from(before.as_ref().is_some_and(|pod| is_active(pod)));
        before
    }
}

fn phase_of(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

impl Directory {
    /// An empty one, that tells how long pods take to run.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            ..Self::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        // Whole whenever the lock is free: a change is one `put`, which does not panic.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's ports that lead to pods.
    pub(crate) fn host_ports(&self) -> watch::Receiver<Vec<HostPort>> {
        self.host_ports.subscribe()
    }

    /// A pod is shown, or not any more; `shown` is held so that the last to change is the last to tell.
    fn tell_host_ports(&self, shown: &Shown, changed: [Option<&Pod>; 2]) {
        let mut ports = changed.into_iter().flatten().map(services::host_ports);
        if ports.all(|ports| ports.is_empty()) {
            return;
        }
        let mut all: Vec<HostPort> = shown
            .pods
            .values()
            .flat_map(|pod| services::host_ports(pod))
            .collect();
        all.sort_unstable();
        self.host_ports.send_if_modified(|known| {
            let is_new = *known != all;
            *known = all;
            is_new
        });
    }

    /// Shows a pod with a status.
    pub(crate) fn set(&self, uid: &PodUid, pod: &Pod, status: PodStatus) {
        let pod = Pod {
            metadata: pod.metadata.clone(),
            spec: pod.spec.clone(),
            status: Some(status),
        };
        let mut shown = self.lock();
        let started = shown.started(uid, phase_of(&pod));
        let pod = Arc::new(pod);
        let before = shown.put(uid.clone(), Some(Arc::clone(&pod)));
        self.tell_host_ports(&shown, [before.as_deref(), Some(&pod)]);
        drop(shown);
        if let Some(took) = started {
            self.metrics.observe(POD_START_DURATION, "", took);
        }
    }

    /// Shows a pod as its source has it, until its worker has a status.
    pub(crate) fn begin(&self, uid: &PodUid, pod: Arc<Pod>) {
        let mut shown = self.lock();
        shown.starting.insert(uid.clone(), Instant::now());
        let before = shown.put(uid.clone(), Some(Arc::clone(&pod)));
        self.tell_host_ports(&shown, [before.as_deref(), Some(&pod)]);
    }

    /// Shows it no more.
    pub(crate) fn remove(&self, uid: &PodUid) {
        let mut shown = self.lock();
        shown.starting.remove(uid);
        let before = shown.put(uid.clone(), None);
        self.tell_host_ports(&shown, [before.as_deref(), None]);
    }

    /// All of them.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.lock().pods.values().cloned().collect()
    }

    /// One of them.
    pub(crate) fn get(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.lock().pods.get(uid).cloned()
    }

    /// How many hold resources of the node.
    pub(crate) fn active(&self) -> usize {
        self.lock().active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pod_that_started_here_is_timed() {
        let metrics = Arc::new(Metrics::default());
        let directory = Directory::new(Arc::clone(&metrics));
        let status = |phase: &str| PodStatus {
            phase: Some(phase.into()),
            ..PodStatus::default()
        };
        let (new, found) = (PodUid::from("new"), PodUid::from("found"));
        for uid in [&new, &found] {
            directory.begin(uid, Arc::default());
        }
        directory.set(&found, &Pod::default(), status("Running"));
        for phase in ["Pending", "Running", "Running"] {
            directory.set(&new, &Pod::default(), status(phase));
        }
        let text = metrics.render();
        assert!(
            text.contains("kubelet_pod_start_duration_seconds_count{} 1\n"),
            "{text}"
        );
        assert!(directory.lock().starting.is_empty());
    }
}

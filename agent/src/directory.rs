//! The node's pods with the status the agent last computed, for whoever wants to look.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use wherry_runtime_api::PodUid;

use crate::pod::admit::is_active;

/// Written by the pods' workers, read by the HTTP endpoints and by admission.
#[derive(Default)]
pub(crate) struct Directory {
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    pods: BTreeMap<PodUid, Arc<Pod>>,
    /// How many of them hold resources of the node.
    active: usize,
}

impl Shown {
    fn put(&mut self, uid: PodUid, pod: Option<Arc<Pod>>) {
        self.active += usize::from(pod.as_ref().is_some_and(|pod| is_active(pod)));
        let before = match pod {
            Some(pod) => self.pods.insert(uid, pod),
            None => self.pods.remove(&uid),
        };
        self.active -= usize::from(before.is_some_and(|pod| is_active(&pod)));
    }
}

impl Directory {
    fn lock(&self) -> MutexGuard<'_, Shown> {
        // Whole whenever the lock is free: a change is one `put`, which does not panic.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a pod with a status.
    pub(crate) fn set(&self, uid: &PodUid, pod: &Pod, status: PodStatus) {
        let pod = Pod {
            metadata: pod.metadata.clone(),
            spec: pod.spec.clone(),
            status: Some(status),
        };
        self.lock().put(uid.clone(), Some(Arc::new(pod)));
    }

    /// Shows a pod as its source has it, until its worker has a status.
    pub(crate) fn begin(&self, uid: &PodUid, pod: Arc<Pod>) {
        self.lock().put(uid.clone(), Some(pod));
    }

    /// Shows it no more.
    pub(crate) fn remove(&self, uid: &PodUid) {
        self.lock().put(uid.clone(), None);
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

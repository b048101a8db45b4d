//! The node's pods with the status the agent last computed, for whoever wants to look.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use wherry_runtime_api::PodUid;

/// Written by the pods' workers, read by the HTTP endpoints and by admission.
#[derive(Default)]
pub(crate) struct Directory {
    pods: Mutex<BTreeMap<PodUid, Arc<Pod>>>,
}

impl Directory {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PodUid, Arc<Pod>>> {
        // The map is whole whenever the lock is free: every change is one insert or remove.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a pod with a status.
    pub(crate) fn set(&self, uid: &PodUid, pod: &Pod, status: PodStatus) {
        let pod = Pod {
            metadata: pod.metadata.clone(),
            spec: pod.spec.clone(),
            status: Some(status),
        };
        self.lock().insert(uid.clone(), Arc::new(pod));
    }

    /// Shows it no more.
    pub(crate) fn remove(&self, uid: &PodUid) {
        self.lock().remove(uid);
    }

    /// All of them.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.lock().values().cloned().collect()
    }

    /// One of them.
    pub(crate) fn get(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.lock().get(uid).cloned()
    }
}

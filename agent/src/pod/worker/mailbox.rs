//! What a worker is told.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::Notify;
use wherry_runtime_api::ContainerId;

use crate::{
    eviction::Eviction,
    probe::{ProbeKind, ProbeNews},
};

/// News for a worker. Only the newest of each kind is kept, so it cannot grow.
#[derive(Default)]
pub(crate) struct Mailbox {
    inbox: Mutex<Inbox>,
    pub(super) notify: Arc<Notify>,
}

#[derive(Default)]
pub(super) struct Inbox {
    pub(super) pod: Option<Arc<Pod>>,
    pub(super) removed: bool,
    pub(super) eviction: Option<Eviction>,
    pub(super) probes: BTreeMap<(ContainerId, ProbeKind), ProbeNews>,
}

impl Mailbox {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inbox> {
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

    /// What a probe has to say.
    pub(super) fn probe(&self, news: ProbeNews) {
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

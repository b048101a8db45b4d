//! Where pods come from: the API server, a directory of manifests; and the API's images of the latter.

pub(crate) mod api;
pub(crate) mod manifest;
pub(crate) mod mirror;

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use wherry_runtime_api::PodUid;

use crate::eviction::Eviction;

/// Where a pod comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// The API server.
    Api,
    /// A manifest.
    File,
}

impl Source {
    /// By the pod's annotation.
    pub(crate) fn of(pod: &Pod) -> Self {
        if crate::pod::is_static(pod) {
            Self::File
        } else {
            Self::Api
        }
    }
}

/// News of pods that should be here.
#[derive(Clone, Debug)]
pub(crate) enum PodUpdate {
    /// It should be here, like this.
    Set(Arc<Pod>),
    /// It should not.
    Remove(PodUid),
    /// These are all of that source, and from the API also those that have mirrors; known ones that
    /// are not among them are gone.
    All(Source, HashSet<PodUid>),
    /// The API's image of a static pod, by that pod's uid; `None` if it is gone.
    Mirror(PodUid, Option<Arc<Pod>>),
    /// The node cannot keep it.
    Evict(PodUid, Eviction),
}

/// News that waits to be read. Sources wait when the manager is behind.
pub(crate) const UPDATES_MAX: usize = 256;

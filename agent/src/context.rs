//! What the agent's parts share. Built once, never changed.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use k8s_openapi::api::core::v1::Pod;
use wherry_runtime_api::{PodUid, Runtime};
use wherry_volumes::PodContext;

use crate::{
    config::Config, directory::Directory, events::Recorder, image::ImageManager,
    node::machine::Machine, objects::Objects, pleg::Actual, publish::Publisher, volume::Volumes,
};

/// What the agent's parts share.
pub(crate) struct Context {
    /// As given.
    pub(crate) config: Config,
    /// Volumes, the agent's own or the config's.
    pub(crate) volumes: Arc<dyn Volumes>,
    /// Objects that pods refer to.
    pub(crate) objects: Arc<Objects>,
    /// Pulls images.
    pub(crate) images: ImageManager,
    /// Writes events.
    pub(crate) recorder: Recorder,
    /// Writes pod statuses.
    pub(crate) publisher: Publisher,
    /// The node's pods with their statuses.
    pub(crate) directory: Directory,
    /// What the runtimes hold.
    pub(crate) actual: Actual,
    /// The machine.
    pub(crate) machine: Machine,
}

impl Context {
    /// The time.
    pub(crate) fn now(&self) -> SystemTime {
        (self.config.clock)()
    }

    /// The runtime of that handler.
    pub(crate) fn runtime(&self, handler: &str) -> Option<&Arc<dyn Runtime>> {
        self.config
            .runtimes
            .iter()
            .find(|runtime| runtime.handler() == handler)
    }

    /// The handler of containers that nothing else is said about.
    pub(crate) fn default_handler(&self) -> &'static str {
        self.config
            .runtimes
            .first()
            .map_or("oci", |runtime| runtime.handler())
    }

    /// The node's addresses.
    pub(crate) fn host_ips(&self) -> &[IpAddr] {
        &self.config.node_ips
    }

    /// What volumes show besides the pod.
    pub(crate) fn pod_context(&self) -> PodContext {
        PodContext {
            allocatable: self.machine.allocatable(self.config.max_pods),
        }
    }

    /// Records an event about a pod.
    pub(crate) fn event(
        &self,
        pod: &Pod,
        kind: crate::events::Kind,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.recorder
            .record(pod, None, kind, reason, message.into());
    }

    /// Where a pod's own files are.
    pub(crate) fn pod_dir(&self, uid: &PodUid) -> std::path::PathBuf {
        self.config.pods_dir().join(uid.as_str())
    }
}

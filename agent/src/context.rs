//! What the agent's parts share. Built once, never changed.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::api::resource::Quantity};
use wherry_plugin_host::Prober;
use wherry_runtime_api::{PodUid, Runtime, RuntimeFeatures};
use wherry_services::Index;
use wherry_volumes::PodContext;

use crate::{
    config::Config,
    directory::Directory,
    events::Recorder,
    eviction::{Pressure, storage::Meter},
    image::ImageManager,
    metered::MeteredProber,
    metrics::Metrics,
    node::machine::Machine,
    objects::Objects,
    pleg::Actual,
    pod::userns::UserNamespaces,
    probe::{Ledger, ProbeKind},
    publish::Publisher,
    volume::Volumes,
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
    /// The cluster's Services.
    pub(crate) services: Arc<Index>,
    /// What the runtimes hold.
    pub(crate) actual: Actual,
    /// What the node is short of.
    pub(crate) pressure: Pressure,
    /// What pods take of its disk.
    pub(crate) meter: Meter,
    /// What it counted of its own work.
    pub(crate) metrics: Arc<Metrics>,
    /// Histories of probes, for the next agent.
    pub(crate) probe_ledger: Ledger,
    /// What it counted of its pods' probes.
    pub(crate) probe_metrics: Arc<Metrics>,
    /// The machine.
    pub(crate) machine: Machine,
    /// Ranges of IDs for pods with user namespaces of their own.
    pub(crate) user_namespaces: UserNamespaces,
    /// What runtimes offer, as far as they have been asked.
    pub(crate) features: Mutex<BTreeMap<&'static str, RuntimeFeatures>>,
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

    fn features_seen(&self) -> MutexGuard<'_, BTreeMap<&'static str, RuntimeFeatures>> {
        // Every change is one insert.
        self.features.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a runtime offers; asked once, and again as long as it is not ready.
    pub(crate) async fn features(&self, runtime: &dyn Runtime) -> RuntimeFeatures {
        let seen = self.features_seen().get(runtime.handler()).copied();
        if let Some(features) = seen {
            return features;
        }
        let status = runtime.status().await;
        if status.not_ready.is_none() {
            self.features_seen()
                .insert(runtime.handler(), status.features);
        }
        status.features
    }

    /// What a runtime offers as far as it has been asked; nothing before.
    pub(crate) fn known_features(&self, handler: &str) -> RuntimeFeatures {
        self.features_seen()
            .get(handler)
            .copied()
            .unwrap_or_default()
    }

    /// What the node has for pods, as in its `status.allocatable`.
    pub(crate) fn allocatable(&self) -> BTreeMap<String, Quantity> {
        self.machine.allocatable(&self.config)
    }

    /// What volumes show besides the pod.
    pub(crate) fn pod_context(&self) -> PodContext {
        PodContext {
            allocatable: self.allocatable(),
        }
    }

    /// What makes a container's checks of one kind, and counts them.
    pub(crate) fn prober(&self, pod: &Pod, container: &str, kind: ProbeKind) -> Arc<dyn Prober> {
        Arc::new(MeteredProber::new(
            Arc::clone(&self.config.prober),
            Arc::clone(&self.probe_metrics),
            pod,
            container,
            kind.as_str(),
        ))
    }

    /// Forgets what was counted of probes of pods that are gone.
    pub(crate) fn forget_probes(&self, pods: &[Arc<Pod>]) {
        let uids: Vec<_> = pods
            .iter()
            .map(|pod| format!("pod_uid=\"{}\"", crate::pod::uid(pod)))
            .collect();
        self.probe_metrics
            .retain(|label| uids.iter().any(|uid| label.contains(uid)));
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

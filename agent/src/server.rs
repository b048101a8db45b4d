//! The kubelet's own HTTP: logs, exec, attach, port-forward, stats, metrics and health, so that any
//! API server can proxy to this node.
//!
//! ```text
//!  API server ── TLS, certificate or token ──▶ Server ── who ──▶ router ──▶ one file per endpoint
//!                                                               │
//!                          Kubelet (pods with status, runtimes) ◀┘   streams: wherry-streaming
//! ```
//!
//! What an endpoint needs from the agent is the [`Kubelet`] trait and no more: handlers read pods and
//! ask runtimes, and never change either. Everything but `/healthz` wants a client certificate of the
//! cluster's CA or a bearer token that the API server knows (401 otherwise), and a user who is an API
//! server or an administrator or has access to that subresource of this node (403 otherwise).

mod auth;
mod container;
mod context;
mod error;
mod listener;
mod logs;
mod metrics;
mod pods;
mod router;
mod run;
pub(crate) mod stats;
mod storage;
mod streams;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use rustls::server::ResolvesServerCert;
use wherry_runtime_api::{FsUsage, Runtime};
use wherry_volumes::VolumeError;

use crate::{
    eviction::storage::{FileSystem, PodDisk},
    storage::LocalVolumes,
    volume::Volumes,
};

pub use auth::{KubeReviewer, Reviewer, User, review::Access};
pub use error::ServerError;
pub use listener::Server;
pub(crate) use logs::LogLine;
pub use router::{State, router};

/// What the HTTP endpoints need from the agent.
///
/// Answers are the agent's present knowledge, cheap and without a round trip to the API server.
#[async_trait]
pub trait Kubelet: Send + Sync + 'static {
    /// The Node object's name.
    fn node_name(&self) -> &str;

    /// Every pod of this node, static ones included, with the status the agent last computed (not the
    /// one last published).
    fn pods(&self) -> Vec<Arc<Pod>>;

    /// One pod of [`Kubelet::pods`].
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods().into_iter().find(|pod| {
            pod.metadata.name.as_deref() == Some(name)
                && pod.metadata.namespace.as_deref() == Some(namespace)
        })
    }

    /// The node's runtimes; a container's ID (`oci://…`) names one by its handler.
    fn runtimes(&self) -> &[Arc<dyn Runtime>];

    /// Where a pod's container logs are, absolute: `<root>/log/pods/<namespace>_<name>_<uid>`. Used for
    /// containers that the runtime has forgotten.
    fn log_directory(&self, pod: &Pod) -> PathBuf;

    /// Usage of the image store, for `stats/summary`.
    async fn image_fs(&self) -> Option<FsUsage>;

    /// Directories that stand for PersistentVolumes; `None` makes none.
    fn local_volumes(&self) -> Option<LocalVolumes> {
        None
    }

    /// Makes the volume of a claim, which one of its pods has mounted, hold at least so many bytes; answers how many it
    /// holds then.
    ///
    /// # Errors
    /// It is not mounted, or cannot be made larger.
    async fn expand_volume(&self, pod: &Pod, claim: &str, _bytes: u64) -> Result<u64, VolumeError> {
        Err(VolumeError::not_mounted(pod, claim))
    }

    /// Volumes whose plugins make them and take them away.
    fn volumes(&self) -> Option<Arc<dyn Volumes>> {
        None
    }

    /// The file system that pods write to.
    fn node_fs(&self) -> Option<FileSystem> {
        None
    }

    /// What a pod takes of disks, measured within the last minute.
    async fn pod_disk(&self, _pod: &Pod) -> Option<Arc<PodDisk>> {
        None
    }

    /// How the agent was configured, for `/configz`: fields of Kubernetes' KubeletConfiguration.
    fn configuration(&self) -> serde_json::Value {
        serde_json::json!({})
    }

    /// Why pods are not looked after at present, if so.
    fn sync_loop(&self) -> Result<(), String> {
        Ok(())
    }

    /// How probes went, in Prometheus' text format.
    fn probe_metrics(&self) -> String {
        String::new()
    }

    /// The agent's own metrics, in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// How the server listens, and whom it lets in.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 takes any free one. Kubelet's default: `0.0.0.0:10250`.
    pub listen: SocketAddr,
    /// The serving certificate and what signed it, PEM.
    pub certificate_pem: Vec<u8>,
    /// The serving certificate's key, PEM.
    pub key_pem: Vec<u8>,
    /// Shown instead of the certificate above, if given: it may change while the server runs.
    pub resolver: Option<Arc<dyn ResolvesServerCert>>,
    /// What client certificates must be signed by, PEM.
    pub client_ca_pem: Vec<u8>,
    /// Common names that may use every endpoint.
    pub allowed_users: BTreeSet<String>,
    /// Organisations whose members may use every endpoint.
    pub allowed_groups: BTreeSet<String>,
    /// Streams without traffic for this long are closed. Kubelet's default: 4 h.
    pub streaming_connection_idle_timeout: Duration,
}

impl Config {
    /// Kubelet's defaults round the given certificates. Let in are the client names that kube-apiserver
    /// uses in clusters made by `wherry control` and kubeadm.
    pub fn new(
        listen: SocketAddr,
        certificate_pem: impl Into<Vec<u8>>,
        key_pem: impl Into<Vec<u8>>,
        client_ca_pem: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            listen,
            certificate_pem: certificate_pem.into(),
            key_pem: key_pem.into(),
            resolver: None,
            client_ca_pem: client_ca_pem.into(),
            allowed_users: ["system:kube-apiserver", "kube-apiserver-kubelet-client"]
                .map(String::from)
                .into(),
            allowed_groups: ["system:masters", "kubeadm:cluster-admins"]
                .map(String::from)
                .into(),
            streaming_connection_idle_timeout: Duration::from_secs(4 * 60 * 60),
        }
    }

    /// The same with a certificate that may change while the server runs.
    pub fn resolving(
        listen: SocketAddr,
        resolver: Arc<dyn ResolvesServerCert>,
        client_ca_pem: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            resolver: Some(resolver),
            ..Self::new(listen, Vec::new(), Vec::new(), client_ca_pem)
        }
    }
}

//! Controllers and the scheduler: plain clients of a Kubernetes API.
//!
//! Each looks at what is there and brings it nearer to what should be, however it came to be so
//! (level-triggered): a missed watch event, an error or a restart costs time and nothing else.
//! None of them knows the store, so they run against any API server.
//!
//! ```text
//!  namespace ──────── empties namespaces that are deleted
//!  service_account ── `default` in each namespace
//!  root_ca ────────── `kube-root-ca.crt` in each namespace
//!  node_lifecycle ─── conditions and taints of nodes nobody hears from; what Plugins say of nodes that are gone
//!  node_pods ──────── pods of nodes that are not well: not ready, and evicted in time
//!  node_ipam ──────── pod addresses for each node
//!  csr ────────────── certificates of nodes, approved and signed
//!  bootstrap_tokens ─ removed when they have expired
//!  aggregation ────── rules of ClusterRoles that gather those of others
//!  gc ─────────────── objects whose owners have gone
//!  workloads ──────── pods for ReplicaSets, ReplicationControllers, DaemonSets, StatefulSets and Jobs;
//!                     sets for Deployments, Jobs for CronJobs
//!  disruption ─────── how many pods of a PodDisruptionBudget may be evicted
//!  pod_gc ─────────── pods that nobody will miss
//!  quota ──────────── what is used of ResourceQuotas
//!  endpoints ──────── Endpoints and EndpointSlices of Services
//!  load_balancer ──── addresses of nodes for Services of that type
//!  scheduler ──────── a node for each pod
//!  leader ─────────── which of several control planes runs all of these
//! ```

mod aggregation;
mod bootstrap_tokens;
mod clients;
mod cron_job;
mod csr;
mod daemon_set;
mod deployment;
mod disruption;
mod endpoints;
mod events;
mod expectations;
#[cfg(test)]
mod fake;
mod gc;
mod hash;
mod job;
mod keep;
mod leader;
mod load_balancer;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod node_pods;
mod nodes;
mod persistent_volume;
mod plugin_nodes;
mod pod_control;
mod pod_gc;
mod pod_sets;
mod pods;
mod quota;
mod replica_set;
mod retry;
mod revisions;
mod root_ca;
mod scheduler;
mod service_account;
mod shared;
mod stateful_set;
mod status;
mod watched;
mod workloads;
mod workqueue;

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub use clients::Clients;
pub use leader::Candidate;
pub use node_ipam::{NodeRanges, Range, RangeError};
pub use scheduler::Decider;

/// What the controllers are told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Certificates that the API server's is signed by: what `kube-root-ca.crt` holds.
    pub root_ca_pem: String,
    /// Pods with this `spec.schedulerName` are scheduled.
    pub scheduler_name: String,
    /// A node that has not been heard of for so long is not ready
    /// (`--node-monitor-grace-period` of kube-controller-manager).
    pub node_monitor_grace_period: Duration,
    /// Nodes without pod addresses get some from here; `None` leaves that to others.
    pub node_ranges: Option<NodeRanges>,
    /// Signs certificates of nodes and clients; `None` leaves that to others.
    pub cluster_signing: Option<ClusterSigning>,
}

/// The authority that certificates are signed with.
#[derive(Clone)]
pub struct ClusterSigning {
    /// Its certificate (`--cluster-signing-cert-file`).
    pub cert_pem: String,
    /// Its key, PKCS#8 (`--cluster-signing-key-file`).
    pub key_pem: String,
    /// How long certificates are valid at the most (`--cluster-signing-duration`).
    pub duration: Duration,
}

impl std::fmt::Debug for ClusterSigning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterSigning")
            .field("duration", &self.duration)
            .finish_non_exhaustive()
    }
}

impl Default for Config {
    /// Kubernetes' defaults, and no certificate: one has to be given.
    fn default() -> Self {
        Self {
            root_ca_pem: String::new(),
            scheduler_name: "default-scheduler".into(),
            node_monitor_grace_period: Duration::from_secs(40),
            node_ranges: None,
            cluster_signing: None,
        }
    }
}

/// Runs all controllers and the scheduler until shutdown, and returns when they have ended.
/// Each is a client of its own.
pub async fn run(clients: impl Into<Clients>, config: Config, shutdown: CancellationToken) {
    let clients = clients.into();
    let (recorder, notes) = events::Recorder::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(events::run(clients.manager(), notes, shutdown.clone()));
    tasks.spawn(namespace::run(
        clients.of("namespace-controller"),
        shutdown.clone(),
    ));
    tasks.spawn(service_account::run(
        clients.of("service-account-controller"),
        shutdown.clone(),
    ));
    tasks.spawn(root_ca::run(
        clients.of("root-ca-cert-publisher"),
        config.root_ca_pem,
        shutdown.clone(),
    ));
    tasks.spawn(gc::run(
        clients.of("generic-garbage-collector"),
        shutdown.clone(),
    ));
    tasks.spawn(workloads::run(
        clients.clone(),
        recorder.clone(),
        shutdown.clone(),
    ));
    tasks.spawn(load_balancer::run(
        clients.of("service-controller"),
        recorder.clone(),
        shutdown.clone(),
    ));
    tasks.spawn(quota::run(
        clients.of("resourcequota-controller"),
        shutdown.clone(),
    ));
    tasks.spawn(aggregation::run(
        clients.of("clusterrole-aggregation-controller"),
        shutdown.clone(),
    ));
    tasks.spawn(bootstrap_tokens::run(
        clients.of("token-cleaner"),
        shutdown.clone(),
    ));
    if let Some(signing) = config.cluster_signing {
        tasks.spawn(csr::run(
            clients.of("certificate-controller"),
            signing,
            shutdown.clone(),
        ));
    }
    if let Some(ranges) = config.node_ranges {
        tasks.spawn(node_ipam::run(
            clients.of("node-controller"),
            ranges,
            recorder.clone(),
            shutdown.clone(),
        ));
    }
    let grace_period = config.node_monitor_grace_period;
    tasks.spawn(node_lifecycle::run(
        clients.of("node-controller"),
        grace_period,
        recorder.clone(),
        shutdown.clone(),
    ));
    tasks.spawn(scheduler::run(
        clients.of("kube-scheduler"),
        config.scheduler_name,
        recorder,
        shutdown,
    ));
    info!("Controllers run");
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            error!(%error, "Controller ended badly");
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::{Client, client::Body};

    use super::*;

    /// Tells all of them to stop as soon as somebody has asked for something, and waits for their end.
    async fn stop_before_anything_is_answered(
        answer: impl Fn() -> Option<u16> + Clone + Send + Sync + 'static,
    ) {
        let (asked, mut is_asked) = tokio::sync::mpsc::channel(1);
        let service = tower::service_fn(move |_: Request<Body>| {
            let _ = asked.try_send(());
            let answer = answer();
            async move {
                let Some(code) = answer else {
                    return std::future::pending().await;
                };
                let response = Response::builder().status(code).body(Body::empty())?;
                Ok::<_, http::Error>(response)
            }
        });
        let config = Config {
            node_ranges: Some(NodeRanges {
                cluster: "10.88.0.0/13".parse().unwrap(),
                prefix_len: 24,
            }),
            ..Config::default()
        };
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(
            Client::new(service, "default"),
            config,
            shutdown.clone(),
        ));
        is_asked.recv().await.unwrap();
        shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(60), running).await;
        ended.expect("all of them end").unwrap();
    }

    #[tokio::test]
    async fn controllers_that_have_seen_nothing_yet_end_when_they_are_told_to() {
        stop_before_anything_is_answered(|| None).await;
        stop_before_anything_is_answered(|| Some(503)).await;
    }
}

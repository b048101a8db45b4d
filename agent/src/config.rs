//! What an agent needs to be built. Everything that is a path, a port or a pause is here.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use wherry_plugin_host::{Prober, volume::VolumePlugins};
use wherry_runtime_api::{ImageService, LogRotation, Runtime};

use crate::{
    eviction,
    network::Network,
    pod::{names::ClusterDns, restart::BackoffPolicy},
    probe::NoProber,
    server,
    volume::Volumes,
};

/// The wall clock. Tests give one that follows tokio's paused time.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What an agent needs to be built.
#[derive(Clone)]
pub struct Config {
    /// The Node object's name.
    pub node_name: String,
    /// `<root>/pods` and `<root>/log/pods` are the agent's.
    pub root: PathBuf,
    /// What the next agent finds and a reboot does not: `<run>/probes` is the agent's.
    pub run: PathBuf,
    /// The API server; without one only static pods are run.
    pub kube: Option<kube::Client>,
    /// The runtimes; the first one is the default.
    pub runtimes: Vec<Arc<dyn Runtime>>,
    /// The node's images.
    pub images: Arc<dyn ImageService>,
    /// The node's pod network.
    pub network: Arc<dyn Network>,
    /// The node's volumes; `None` is the agent's own kinds over the API server's objects.
    pub volumes: Option<Arc<dyn Volumes>>,
    /// Who gives volumes of plugins, where [`Self::volumes`] is `None`; `None` has none.
    pub volume_plugins: Option<Arc<dyn VolumePlugins>>,
    /// Makes probes and hooks; by default none are made.
    pub prober: Arc<dyn Prober>,
    /// The kubelet's HTTP; `None` serves nothing.
    pub server: Option<server::Config>,
    /// Whether pods may be privileged.
    pub allow_privileged: bool,
    /// Kernel parameters that pods may set besides the safe ones; `net.core.*` stands for all that
    /// begin so.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Processes and threads that each pod may have; `None` leaves it to the node.
    pub pod_pids_max: Option<u64>,
    /// Directory of static manifests.
    pub pod_manifest_path: Option<PathBuf>,
    /// Prefix of the pods' cgroups.
    pub cgroup_root: String,
    /// The cluster's DNS.
    pub cluster_dns: ClusterDns,
    /// Services on this node; `None` where somebody else sees to them. Ports of pods on the node are with
    /// them.
    pub services: Option<wherry_services::Config>,
    /// The cluster's names, answered here; `None` where somebody else does.
    pub dns: Option<wherry_dns::Config>,
    /// The node's addresses, the first one being `InternalIP` and `hostIP`.
    pub node_ips: Vec<IpAddr>,
    /// The port that the API server reaches the kubelet's HTTP at.
    pub kubelet_port: u16,
    /// Whether to make the Node object.
    pub register_node: bool,
    /// The node's pod addresses, told to the API server with the Node; `None` leaves `spec.podCIDR` alone.
    pub pod_cidr: Option<String>,
    /// Labels of the Node object, besides those that every node has.
    pub node_labels: BTreeMap<String, String>,
    /// Pods that the node takes. Kubernetes' default: 110.
    pub max_pods: u32,
    /// What of the node is kept for the system's own processes, by resource (`--system-reserved`).
    pub system_reserved: BTreeMap<String, Quantity>,
    /// What of the node is kept for the agent and its helpers (`--kube-reserved`).
    pub kube_reserved: BTreeMap<String, Quantity>,
    /// When the node defends itself (`--eviction-hard`).
    pub eviction: eviction::Policy,
    /// Directory of seccomp profiles for `Localhost`.
    pub seccomp_root: PathBuf,
    /// Rotation of container logs.
    pub log_rotation: LogRotation,
    /// Credentials for registries that every pod's pulls may use, in the form of docker's
    /// `config.json`; `<root>/config.json` if not given. Need not be there.
    pub image_credential_file: Option<PathBuf>,
    /// Images pulled at a time; `None` leaves it to the services, which bound layers. Kubernetes
    /// pulls one at a time unless told otherwise, because of engines long gone; here a slow
    /// registry does not hold up pods that have nothing to do with it.
    pub max_parallel_image_pulls: Option<usize>,
    /// Pauses and bounds.
    pub tuning: Tuning,
    /// The wall clock.
    pub clock: Clock,
}

/// Pauses and bounds, with Kubernetes' defaults where it has one.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Between starts of a container that crashes, and between pulls that fail.
    pub backoff: BackoffPolicy,
    /// Between repairs of what events have missed.
    pub relist_period: Duration,
    /// Between renewals of ConfigMaps, Secrets and tokens in volumes.
    pub volume_refresh_period: Duration,
    /// Between renewals of the node's lease.
    pub lease_renew_period: Duration,
    /// How long a lease stands.
    pub lease_duration: Duration,
    /// Between looks at the node's own state.
    pub node_status_period: Duration,
    /// Between reports of it where nothing has changed.
    pub node_report_period: Duration,
    /// Longest wait for a call to a runtime, stops aside.
    pub runtime_timeout: Duration,
    /// Between looks for images nobody uses.
    pub image_gc_period: Duration,
    /// Image collection begins above this share of the file system, in percent.
    pub image_gc_high_percent: u8,
    /// It ends below this share.
    pub image_gc_low_percent: u8,
    /// Images younger than this are not collected.
    pub image_gc_age_min: Duration,
    /// Images unused for longer than this are collected however much room there is; zero is no
    /// bound, as in Kubernetes.
    pub image_gc_age_max: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            backoff: BackoffPolicy::default(),
            relist_period: Duration::from_secs(10),
            volume_refresh_period: Duration::from_secs(60),
            lease_renew_period: Duration::from_secs(10),
            lease_duration: Duration::from_secs(40),
            node_status_period: Duration::from_secs(10),
            node_report_period: Duration::from_secs(300),
            runtime_timeout: Duration::from_secs(120),
            image_gc_period: Duration::from_secs(300),
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            image_gc_age_min: Duration::from_secs(120),
            image_gc_age_max: Duration::ZERO,
        }
    }
}

impl Config {
    /// A config for a standalone node with the defaults; the rest is set field by field.
    pub fn new(
        node_name: impl Into<String>,
        root: impl Into<PathBuf>,
        runtimes: Vec<Arc<dyn Runtime>>,
        images: Arc<dyn ImageService>,
        network: Arc<dyn Network>,
    ) -> Self {
        let root = root.into();
        Self {
            node_name: node_name.into(),
            seccomp_root: root.join("seccomp"),
            run: root.join("run"),
            root,
            kube: None,
            runtimes,
            images,
            network,
            volumes: None,
            volume_plugins: None,
            prober: Arc::new(NoProber),
            server: None,
            allow_privileged: false,
            allowed_unsafe_sysctls: Vec::new(),
            pod_pids_max: None,
            pod_manifest_path: None,
            cgroup_root: "wherry".into(),
            cluster_dns: ClusterDns {
                servers: Vec::new(),
                domain: "cluster.local".into(),
            },
            services: None,
            dns: None,
            node_ips: Vec::new(),
            kubelet_port: 10250,
            register_node: true,
            pod_cidr: None,
            node_labels: BTreeMap::new(),
            max_pods: 110,
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            eviction: eviction::Policy::default(),
            log_rotation: LogRotation::default(),
            image_credential_file: None,
            max_parallel_image_pulls: None,
            tuning: Tuning::default(),
            clock: Arc::new(SystemTime::now),
        }
    }

    /// Directory with one directory for each pod.
    pub fn pods_dir(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Directory with one directory of logs for each pod.
    pub fn log_root(&self) -> PathBuf {
        self.root.join("log/pods")
    }
}

//! The agent as its endpoints see it.

use std::{collections::BTreeMap, fmt::Write, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use wherry_runtime_api::{ContainerState, FsUsage, PodSandboxState, Runtime};
use wherry_volumes::VolumeError;

use super::Kubelet;
use crate::{
    context::Context,
    eviction::{
        self,
        storage::{FileSystem, PodDisk},
        threshold::Amount,
    },
    pod::{self, admit::is_active, is_static},
    storage::LocalVolumes,
    text::go_duration,
    volume::Volumes,
};

/// How old a measure of a pod's disk may be, as with the kubelet (`--volume-stats-agg-period`).
const DISK_AGE_MAX: Duration = Duration::from_secs(60);
/// A runtime not heard of in so long leaves its pods without anybody (`relistThreshold` in
/// pkg/kubelet/pleg).
const RELIST_AGE_MAX: Duration = Duration::from_secs(180);

#[async_trait]
impl Kubelet for Context {
    fn node_name(&self) -> &str {
        &self.config.node_name
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.directory.pods()
    }

    fn runtimes(&self) -> &[Arc<dyn Runtime>] {
        &self.config.runtimes
    }

    fn log_directory(&self, pod: &Pod) -> PathBuf {
        pod::translate::log_directory(&self.config.log_root(), pod)
    }

    async fn image_fs(&self) -> Option<FsUsage> {
        self.images.fs_info().await.ok()
    }

    fn local_volumes(&self) -> Option<LocalVolumes> {
        Some(LocalVolumes::new(&self.config.root))
    }

    async fn expand_volume(&self, pod: &Pod, claim: &str, bytes: u64) -> Result<u64, VolumeError> {
        let context = self.pod_context();
        self.volumes.expand(pod, claim, bytes, &context).await
    }

    fn volumes(&self) -> Option<Arc<dyn Volumes>> {
        Some(Arc::clone(&self.volumes))
    }

    fn node_fs(&self) -> Option<FileSystem> {
        FileSystem::of(&self.config.root)
    }

    async fn pod_disk(&self, pod: &Pod) -> Option<Arc<PodDisk>> {
        eviction::pod_disk(self, pod, DISK_AGE_MAX).await
    }

    fn sync_loop(&self) -> Result<(), String> {
        let threshold = RELIST_AGE_MAX.max(self.config.tuning.relist_period * 3);
        for runtime in &self.config.runtimes {
            let handler = runtime.handler();
            match self.actual.last_relist(handler) {
                Some(age) if age <= threshold => {}
                Some(age) => {
                    return Err(format!(
                        "PLEG is not healthy: {handler} was last relisted {} ago; threshold is {}",
                        go_duration(Duration::from_secs(age.as_secs())),
                        go_duration(threshold)
                    ));
                }
                None => {
                    return Err(format!(
                        "PLEG is not healthy: {handler} has yet to be relisted successfully"
                    ));
                }
            }
        }
        Ok(())
    }

    fn configuration(&self) -> Value {
        configuration(self)
    }

    fn probe_metrics(&self) -> String {
        self.forget_probes(&self.directory.pods());
        self.probe_metrics.render()
    }

    fn metrics(&self) -> String {
        let mut text = gauges(self);
        text += &self.metrics.render();
        text += &self.config.prober.metrics();
        text
    }
}

/// What can be told by looking: nobody has to count it.
fn gauges(context: &Context) -> String {
    let pods = context.directory.pods();
    let mut running = 0;
    let mut states = BTreeMap::from([
        ("created", 0),
        ("exited", 0),
        ("running", 0),
        ("unknown", 0),
    ]);
    for uid in context.actual.uids() {
        let actual = context.actual.get(&uid);
        let is_ready = |state: PodSandboxState| state == PodSandboxState::Ready;
        running += usize::from(actual.sandboxes.iter().any(|s| is_ready(s.state)));
        for status in actual.containers {
            let state = match status.state {
                ContainerState::Created => "created",
                ContainerState::Running { .. } => "running",
                ContainerState::Exited(_) => "exited",
                ContainerState::Unknown => "unknown",
            };
            *states.entry(state).or_insert(0) += 1;
        }
    }
    let of = |is_wanted: &dyn Fn(&Pod) -> bool, wants_static: bool| {
        let pods = pods.iter();
        pods.filter(|pod| is_wanted(pod) && is_static(pod) == wants_static)
            .count()
    };
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut family = |name: &str, help: &str, values: &[(String, usize)]| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in values {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let by_source = |is_wanted: &dyn Fn(&Pod) -> bool| {
        [
            ("{static=\"\"}".to_owned(), of(is_wanted, false)),
            ("{static=\"true\"}".to_owned(), of(is_wanted, true)),
        ]
    };
    family(
        "kubelet_node_name",
        "The node's name. The count is always 1.",
        &[(format!("{{node={:?}}}", context.config.node_name), 1)],
    );
    family(
        "kubelet_running_pods",
        "Number of pods that have a running pod sandbox",
        &[(String::new(), running)],
    );
    let states: Vec<_> = states
        .into_iter()
        .map(|(state, count)| (format!("{{container_state=\"{state}\"}}"), count))
        .collect();
    family(
        "kubelet_running_containers",
        "Number of containers, by state",
        &states,
    );
    family(
        "kubelet_desired_pods",
        "The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.",
        &by_source(&|_| true),
    );
    family(
        "kubelet_active_pods",
        "The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.",
        &by_source(&is_active),
    );
    text
}

/// As much of a KubeletConfiguration as says how this agent behaves.
fn configuration(context: &Context) -> Value {
    let config = &context.config;
    let tuning = &config.tuning;
    let thresholds = config.eviction.hard.iter().map(|threshold| {
        let amount = match threshold.amount {
            Amount::Absolute(amount) => eviction::threshold::BinarySi(amount).to_string(),
            Amount::Share(share) => format!("{}%", share * 100.0),
        };
        (threshold.signal.as_str().to_owned(), Value::from(amount))
    });
    let thresholds: serde_json::Map<_, _> = thresholds.collect();
    json!({"kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "staticPodPath": config.pod_manifest_path,
        "port": config.kubelet_port,
        "clusterDomain": config.cluster_dns.domain,
        "clusterDNS": config.cluster_dns.servers,
        "maxPods": config.max_pods,
        "cgroupRoot": config.cgroup_root,
        "registerNode": config.register_node,
        "systemReserved": config.system_reserved,
        "kubeReserved": config.kube_reserved,
        "evictionHard": thresholds,
        "evictionPressureTransitionPeriod": go_duration(config.eviction.pressure_transition_period),
        "imageGCHighThresholdPercent": tuning.image_gc_high_percent,
        "imageGCLowThresholdPercent": tuning.image_gc_low_percent,
        "imageMinimumGCAge": go_duration(tuning.image_gc_age_min),
        "nodeStatusUpdateFrequency": go_duration(tuning.node_status_period),
        "nodeStatusReportFrequency": go_duration(tuning.node_report_period),
        "nodeLeaseDurationSeconds": tuning.lease_duration.as_secs(),
        "runtimeRequestTimeout": go_duration(tuning.runtime_timeout),
        "containerLogMaxSize": eviction::threshold::BinarySi(config.log_rotation.size_bytes_max).to_string(),
        "containerLogMaxFiles": config.log_rotation.files_max,
        "seccompDefault": false,
        "enableServer": config.server.is_some(),
    }})
}

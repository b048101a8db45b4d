//! `/stats/summary`: what the node and its containers use, in the shape of `stats/v1alpha1`.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use axum::{Json, extract::State as Shared};
use jiff::Timestamp;
use serde_json::{Value, json};
use wherry_runtime_api::{ContainerState, ContainerStats, FsUsage, PodSandbox};

use super::{State, container::is_running};

/// Least time over which a rate is computed.
const RATE_PERIOD_MIN: Duration = Duration::from_secs(1);

/// One container's usage at a moment.
pub(crate) struct Sample {
    pub(crate) name: String,
    /// `oci://…`.
    pub(crate) id: String,
    pub(crate) started_at: SystemTime,
    pub(crate) stats: ContainerStats,
    /// CPU time per time, in billionths of a core; `None` until it was seen twice.
    pub(crate) cpu_usage_nano_cores: Option<u64>,
    log_bytes: u64,
}

/// A pod's containers at a moment.
pub(crate) struct PodSample {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) started_at: Option<SystemTime>,
    pub(crate) containers: Vec<Sample>,
    sandbox: Option<PodSandbox>,
}

/// CPU time seen before, for rates. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct UsageHistory {
    seen: Arc<Mutex<HashMap<String, Seen>>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: SystemTime,
    usage_ns: u64,
    nano_cores: Option<u64>,
}

impl UsageHistory {
    /// The rate since the last time this was asked, and remembers now.
    fn rate(&self, key: &str, at: SystemTime, usage_ns: u64) -> Option<u64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = seen.get_mut(key) else {
            seen.insert(
                key.to_owned(),
                Seen {
                    at,
                    usage_ns,
                    nano_cores: None,
                },
            );
            return None;
        };
        let period = at.duration_since(before.at).unwrap_or_default();
        if period < RATE_PERIOD_MIN {
            return before.nano_cores;
        }
        let used_ns = u128::from(usage_ns.saturating_sub(before.usage_ns));
        let nano_cores = u64::try_from(used_ns * 1_000_000_000 / period.as_nanos()).ok();
        *before = Seen {
            at,
            usage_ns,
            nano_cores,
        };
        nano_cores
    }

    /// Forgets what is not there any more.
    fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|key, _| key == NODE || is_there(key));
    }
}

/// The node's own key in the history.
const NODE: &str = "";

/// Asks the runtimes for every running container of the node's pods.
pub(crate) async fn pod_samples(state: &State) -> Vec<PodSample> {
    let mut pods: HashMap<String, PodSample> = HashMap::new();
    for pod in state.kubelet.pods() {
        let metadata = &pod.metadata;
        let uid = metadata.uid.clone().unwrap_or_default();
        let started_at = pod
            .status
            .as_ref()
            .and_then(|status| status.start_time.as_ref());
        let sample = PodSample {
            name: metadata.name.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            uid: uid.clone(),
            started_at: started_at.map(|time| SystemTime::from(time.0)),
            containers: Vec::new(),
            sandbox: None,
        };
        pods.insert(uid, sample);
    }
    for runtime in state.kubelet.runtimes() {
        for sandbox in runtime.list_pod_sandboxes().await.unwrap_or_default() {
            if let Some(pod) = pods.get_mut(sandbox.config.uid.as_str()) {
                pod.sandbox = Some(sandbox);
            }
        }
        for status in runtime.list_containers().await.unwrap_or_default() {
            let (Some(pod), true) = (pods.get_mut(status.pod.as_str()), is_running(&status)) else {
                continue;
            };
            // It may have exited in between.
            let Ok(stats) = runtime.container_stats(&status.id).await else {
                continue;
            };
            let id = format!("{}://{}", runtime.handler(), status.id);
            let cpu_usage_nano_cores =
                state
                    .usage
                    .rate(&id, stats.at, stats.cpu_usage_core_nanoseconds);
            let started_at = match status.state {
                ContainerState::Running { started_at } => started_at,
                _ => status.created_at,
            };
            let log_bytes = log_bytes(&status.log_path);
            pod.containers.push(Sample {
                name: status.name,
                id,
                started_at,
                stats,
                cpu_usage_nano_cores,
                log_bytes,
            });
        }
    }
    let mut pods: Vec<PodSample> = pods
        .into_values()
        .filter(|pod| !pod.containers.is_empty())
        .collect();
    pods.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
    state.usage.retain(|id| {
        pods.iter()
            .any(|pod| pod.containers.iter().any(|container| container.id == id))
    });
    pods
}

fn log_bytes(path: &Path) -> u64 {
    let entries = path
        .parent()
        .and_then(|directory| fs::read_dir(directory).ok());
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

/// The node's CPU time since boot, ns, over all cores.
pub(crate) fn node_cpu_ns() -> Option<u64> {
    parse_cpu_ns(
        &fs::read_to_string("/proc/stat").ok()?,
        nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??,
    )
}

fn parse_cpu_ns(stat: &str, ticks_per_second: i64) -> Option<u64> {
    let mut fields = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_ascii_whitespace()
        .map(str::parse::<u64>);
    // user, nice, system; idle and iowait are no use; irq, softirq. Guests are in user already.
    let mut ticks = 0;
    for index in 0..7 {
        let field = fields.next()?.ok()?;
        if index != 3 && index != 4 {
            ticks += field;
        }
    }
    Some(
        ticks * 1_000_000_000
            / u64::try_from(ticks_per_second)
                .ok()
                .filter(|ticks| *ticks > 0)?,
    )
}

/// The node's memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeMemory {
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) available: u64,
    pub(crate) anonymous: u64,
}

impl NodeMemory {
    pub(crate) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
    }

    fn parse(meminfo: &str) -> Self {
        let value = |name: &str| {
            let line = meminfo
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib: Option<u64> =
                line.and_then(|line| line.trim().trim_end_matches("kB").trim_end().parse().ok());
            kib.unwrap_or_default() * 1024
        };
        Self {
            total: value("MemTotal"),
            free: value("MemFree"),
            available: value("MemAvailable"),
            anonymous: value("AnonPages"),
        }
    }

    /// What cannot be had back at once.
    pub(crate) fn working_set(&self) -> u64 {
        self.total.saturating_sub(self.available)
    }
}

fn rfc3339(at: SystemTime) -> String {
    Timestamp::try_from(at)
        .map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_default()
}

fn file_system(at: &str, usage: FsUsage) -> Value {
    json!({
        "time": at,
        "availableBytes": usage.available_bytes,
        "capacityBytes": usage.capacity_bytes,
        "usedBytes": usage.used_bytes,
        "inodesUsed": usage.inodes_used,
    })
}

/// Without what is not known yet.
fn cpu(at: &str, nano_cores: Option<u64>, core_ns: Option<u64>) -> Value {
    let mut cpu = json!({"time": at});
    for (field, value) in [
        ("usageNanoCores", nano_cores),
        ("usageCoreNanoSeconds", core_ns),
    ] {
        if let Some(value) = value {
            cpu[field] = value.into();
        }
    }
    cpu
}

fn container(sample: &Sample) -> Value {
    let stats = &sample.stats;
    let at = rfc3339(stats.at);
    json!({
        "name": sample.name,
        "startTime": rfc3339(sample.started_at),
        "cpu": cpu(&at, sample.cpu_usage_nano_cores, Some(stats.cpu_usage_core_nanoseconds)),
        "memory": {
            "time": at,
            "usageBytes": stats.memory_usage_bytes,
            "workingSetBytes": stats.memory_working_set_bytes,
            "rssBytes": stats.memory_rss_bytes,
        },
        "rootfs": {"time": at, "usedBytes": stats.writable_layer_bytes},
        "logs": {"time": at, "usedBytes": sample.log_bytes},
    })
}

fn pod(sample: &PodSample) -> Value {
    let now = rfc3339(SystemTime::now());
    let sum = |field: fn(&ContainerStats) -> u64| -> u64 {
        sample
            .containers
            .iter()
            .map(|container| field(&container.stats))
            .sum()
    };
    // Known once all of them are.
    let nano_cores: Option<u64> = sample
        .containers
        .iter()
        .map(|container| container.cpu_usage_nano_cores)
        .sum();
    let mut pod = json!({
        "podRef": {"name": sample.name, "namespace": sample.namespace, "uid": sample.uid},
        "startTime": sample.started_at.map(rfc3339),
        "containers": sample.containers.iter().map(container).collect::<Vec<_>>(),
        "cpu": cpu(&now, nano_cores, Some(sum(|stats| stats.cpu_usage_core_nanoseconds))),
        "memory": {
            "time": now,
            "usageBytes": sum(|stats| stats.memory_usage_bytes),
            "workingSetBytes": sum(|stats| stats.memory_working_set_bytes),
            "rssBytes": sum(|stats| stats.memory_rss_bytes),
        },
        "process_stats": {"process_count": sum(|stats| stats.process_count)},
    });
    let interfaces = sample
        .sandbox
        .as_ref()
        .and_then(|sandbox| sandbox.pid)
        .and_then(|pid| fs::read_to_string(format!("/proc/{pid}/net/dev")).ok());
    if let Some(interfaces) = interfaces {
        pod["network"] = network(&now, &interfaces);
    }
    pod
}

/// `/proc/<pid>/net/dev` without the loopback interface.
fn network(at: &str, dev: &str) -> Value {
    let interfaces: Vec<Value> = dev
        .lines()
        .filter_map(|line| {
            let (name, fields) = line.split_once(':')?;
            let fields: Vec<u64> = fields.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
            let [rx_bytes, _, rx_errors, _, _, _, _, _, tx_bytes, _, tx_errors, ..] = fields[..] else { return None };
            let name = name.trim();
            (name != "lo").then(|| {
                json!({"name": name, "rxBytes": rx_bytes, "rxErrors": rx_errors, "txBytes": tx_bytes, "txErrors": tx_errors})
            })
        })
        .collect();
    let mut network = interfaces
        .first()
        .cloned()
        .unwrap_or_else(|| json!({"name": ""}));
    network["time"] = at.into();
    network["interfaces"] = interfaces.into();
    network
}

pub(crate) async fn summary(Shared(state): Shared<State>) -> Json<Value> {
    let pods = pod_samples(&state).await;
    let now = SystemTime::now();
    let at = rfc3339(now);
    let cpu_ns = node_cpu_ns();
    let nano_cores = cpu_ns.and_then(|cpu_ns| state.usage.rate(NODE, now, cpu_ns));
    let memory = NodeMemory::read();
    let mut node = json!({
        "nodeName": state.kubelet.node_name(),
        "startTime": rfc3339(state.started_at),
        "cpu": cpu(&at, nano_cores, cpu_ns),
        "memory": {
            "time": at,
            "availableBytes": memory.available,
            "usageBytes": memory.total.saturating_sub(memory.free),
            "workingSetBytes": memory.working_set(),
            "rssBytes": memory.anonymous,
        },
    });
    if let Some(usage) = state.kubelet.image_fs().await {
        let image_fs = file_system(&at, usage);
        node["fs"] = json!({
            "time": at,
            "availableBytes": usage.available_bytes,
            "capacityBytes": usage.capacity_bytes,
            "usedBytes": usage.capacity_bytes.saturating_sub(usage.available_bytes),
        });
        node["runtime"] = json!({"imageFs": image_fs});
    }
    Json(json!({"node": node, "pods": pods.iter().map(pod).collect::<Vec<_>>()}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let history = UsageHistory::default();
        let start = SystemTime::UNIX_EPOCH;
        assert_eq!(history.rate("c", start, 1_000), None);
        let later = start + Duration::from_secs(2);
        assert_eq!(history.rate("c", later, 1_000_001_000), Some(500_000_000));
        // Too soon for a new one.
        assert_eq!(
            history.rate("c", later + Duration::from_millis(1), 1_000_001_500),
            Some(500_000_000)
        );
        history.retain(|_| false);
        assert_eq!(history.rate("c", later, 0), None);
    }

    #[test]
    fn the_machine_is_read_as_the_kernel_prints_it() {
        let stat = "cpu  100 10 50 1000 20 5 5 0 30 0\ncpu0 1 2 3 4\n";
        assert_eq!(parse_cpu_ns(stat, 100), Some(1_700_000_000));
        assert_eq!(parse_cpu_ns("rubbish", 100), None);
        let memory = NodeMemory::parse(
            "MemTotal:       1000 kB\nMemFree:  200 kB\nMemAvailable:  600 kB\nAnonPages: 1 kB\n",
        );
        assert_eq!(memory.working_set(), 400 * 1024);
        let dev = "Inter-| Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 7 1 2 0 0 0 0 0 9 1 3 0 0 0 0 0\n";
        let network = network("now", dev);
        assert_eq!(
            (&network["name"], &network["rxBytes"], &network["txErrors"]),
            (&json!("eth0"), &json!(7), &json!(3))
        );
        assert_eq!(network["interfaces"].as_array().map(Vec::len), Some(1));
    }
}

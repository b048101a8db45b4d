//! `/stats/summary`: what the node, its pods and their containers use, in the shape of `stats/v1alpha1`.
//!
//! `?only_cpu_and_memory=true` leaves disks and networks alone. What is not known is left out, as by
//! the kubelet: a reader must not take silence for zero.

pub(crate) mod node;
mod sample;

use std::{fs, sync::Arc, time::SystemTime};

use axum::{
    Json,
    extract::{Query, State as Shared},
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use wherry_runtime_api::{FsUsage, PodSandbox, SandboxNetwork};

use self::node::{Interface, Memory, Own};
pub(crate) use self::sample::{PodSample, Sample, Samples, UsageHistory, pod_samples};
use super::State;
use crate::eviction::{
    signal,
    storage::{FileSystem, PodDisk, ephemeral_volume_bytes},
};

/// The node's and this process's keys in the history of usage.
const NODE: &str = "node";
const OWN: &str = "kubelet";

fn rfc3339(at: SystemTime) -> String {
    Timestamp::try_from(at)
        .map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_default()
}

/// An object of what is known.
fn known<const N: usize>(at: &str, fields: [(&str, Option<u64>); N]) -> Value {
    let mut object = Map::new();
    object.insert("time".into(), at.into());
    for (field, value) in fields {
        object.extend(value.map(|value| (field.to_owned(), value.into())));
    }
    object.into()
}

fn cpu(at: &str, nano_cores: Option<u64>, core_ns: Option<u64>) -> Value {
    known(
        at,
        [
            ("usageNanoCores", nano_cores),
            ("usageCoreNanoSeconds", core_ns),
        ],
    )
}

/// A part of a file system, beside what is left of the whole.
fn part(at: &str, whole: Option<FileSystem>, used: Option<u64>, inodes: Option<u64>) -> Value {
    known(
        at,
        [
            ("availableBytes", whole.map(|w| w.available_bytes)),
            ("capacityBytes", whole.map(|w| w.capacity_bytes)),
            ("usedBytes", used),
            ("inodesFree", whole.map(|w| w.inodes_free)),
            ("inodes", whole.map(|w| w.inodes)),
            ("inodesUsed", inodes),
        ],
    )
}

/// What is known of a pod's disks, and of the node's own.
#[derive(Clone, Default)]
struct Disks {
    node: Option<FileSystem>,
    pod: Option<Arc<PodDisk>>,
}

fn container(sample: &Sample, disks: Option<&Disks>) -> Value {
    let stats = &sample.stats;
    let at = rfc3339(stats.at);
    let working_set = stats.memory_working_set_bytes;
    let available = stats
        .memory_limit_bytes
        .map(|limit| limit.saturating_sub(working_set));
    let mut value = json!({
        "name": sample.name,
        "startTime": rfc3339(sample.started_at),
        "cpu": cpu(&at, sample.cpu_usage_nano_cores, Some(stats.cpu_usage_core_nanoseconds)),
        "memory": known(&at, [
            ("availableBytes", available),
            ("usageBytes", Some(stats.memory_usage_bytes)),
            ("workingSetBytes", Some(working_set)),
            ("rssBytes", Some(stats.memory_rss_bytes)),
            ("pageFaults", stats.page_faults),
            ("majorPageFaults", stats.major_page_faults),
        ]),
    });
    let Some(disks) = disks else {
        return value;
    };
    value["rootfs"] = part(
        &at,
        disks.node,
        Some(stats.writable_layer_bytes),
        stats.writable_layer_inodes,
    );
    let logs = disks.pod.as_ref().and_then(|d| d.logs.get(&sample.name));
    let logs = logs.copied().unwrap_or_default();
    value["logs"] = part(&at, disks.node, Some(logs.0), Some(logs.1));
    if stats.swap_usage_bytes.is_some() {
        value["swap"] = known(&at, [("swapUsageBytes", stats.swap_usage_bytes)]);
    }
    value
}

fn pod(sample: &PodSample, disks: Option<&Disks>) -> Value {
    let now = rfc3339(SystemTime::now());
    // Known once all of them are.
    let nano_cores: Option<u64> = sample
        .containers
        .iter()
        .map(|container| container.cpu_usage_nano_cores)
        .sum();
    let containers: Vec<_> = sample
        .containers
        .iter()
        .map(|sample| container(sample, disks))
        .collect();
    // Bounded as a whole only where each of them is.
    let limit: Option<u64> = sample
        .containers
        .iter()
        .map(|container| container.stats.memory_limit_bytes)
        .sum();
    let working_set = sample.sum(|stats| stats.memory_working_set_bytes);
    let mut value = json!({
        "podRef": {"name": sample.name, "namespace": sample.namespace, "uid": sample.uid},
        "startTime": sample.started_at.map(rfc3339),
        "containers": containers,
        "cpu": cpu(&now, nano_cores, Some(sample.sum(|stats| stats.cpu_usage_core_nanoseconds))),
        "memory": known(&now, [
            ("availableBytes", limit.map(|limit| limit.saturating_sub(working_set))),
            ("usageBytes", Some(sample.sum(|stats| stats.memory_usage_bytes))),
            ("workingSetBytes", Some(working_set)),
            ("rssBytes", Some(sample.sum(|stats| stats.memory_rss_bytes))),
            ("pageFaults", sample.sum_known(|stats| stats.page_faults)),
            ("majorPageFaults", sample.sum_known(|stats| stats.major_page_faults)),
        ]),
    });
    let Some(disks) = disks else {
        return value;
    };
    value["process_stats"] = json!({"process_count": sample.sum(|stats| stats.process_count)});
    if let Some(swap) = sample.sum_known(|stats| stats.swap_usage_bytes) {
        value["swap"] = known(&now, [("swapUsageBytes", Some(swap))]);
    }
    if let Some(interfaces) = sample.sandbox.as_ref().and_then(pod_interfaces) {
        value["network"] = network(&now, interfaces, None);
    }
    if let Some(disk) = &disks.pod {
        value["volume"] = volumes(sample, disk);
        let layers = sample.sum(|stats| stats.writable_layer_bytes);
        let logs = disk.logs.values().map(|(bytes, _)| bytes).sum::<u64>();
        let used = layers + logs + ephemeral_volume_bytes(&sample.pod, disk);
        let log_inodes = disk.logs.values().map(|(_, inodes)| inodes).sum::<u64>();
        let layer_inodes = sample.sum_known(|stats| stats.writable_layer_inodes);
        let inodes = log_inodes + layer_inodes.unwrap_or(0);
        value["ephemeral-storage"] = part(&now, disks.node, Some(used), Some(inodes));
    }
    value
}

fn volumes(sample: &PodSample, disk: &PodDisk) -> Value {
    let at = rfc3339(disk.at);
    let claims = sample.pod.spec.iter().flat_map(|spec| {
        let volumes = spec.volumes.iter().flatten();
        volumes.filter_map(|volume| {
            let claim = volume.persistent_volume_claim.as_ref()?;
            Some((volume.name.as_str(), claim.claim_name.as_str()))
        })
    });
    let claims: std::collections::HashMap<_, _> = claims.collect();
    disk.volumes
        .iter()
        .map(|(name, usage)| {
            let whole = Some(usage.file_system);
            let mut value = part(&at, whole, Some(usage.used_bytes), Some(usage.inodes_used));
            value["name"] = name.as_str().into();
            if let Some(claim) = claims.get(name.as_str()) {
                value["pvcRef"] = json!({"name": claim, "namespace": sample.namespace});
            }
            value
        })
        .collect()
}

/// The interfaces of a pod's own network. One that shares the node's has none of its own, and one
/// without a namespace has an address and no interface to count at.
pub(crate) fn pod_interfaces(sandbox: &PodSandbox) -> Option<Vec<Interface>> {
    let SandboxNetwork::Namespace { path } = &sandbox.network else {
        return None;
    };
    // Of the same process as `/proc/<pid>/ns/net`.
    let process = path.parent()?.parent()?;
    let process = match sandbox.pid {
        Some(pid) => std::path::PathBuf::from(format!("/proc/{pid}")),
        None => process.to_owned(),
    };
    let dev = fs::read_to_string(process.join("net/dev")).ok()?;
    Some(node::interfaces(&dev))
}

/// `first` names the one whose figures stand for all; the first of the list if it is not there.
fn network(at: &str, interfaces: Vec<Interface>, first: Option<&str>) -> Value {
    let main = interfaces
        .iter()
        .find(|interface| Some(interface.name.as_str()) == first)
        .or(interfaces.first())
        .cloned();
    let one = |interface: &Interface| {
        json!({
            "name": interface.name,
            "rxBytes": interface.rx_bytes,
            "rxErrors": interface.rx_errors,
            "txBytes": interface.tx_bytes,
            "txErrors": interface.tx_errors,
        })
    };
    let mut network = main.as_ref().map_or_else(|| json!({"name": ""}), one);
    network["time"] = at.into();
    network["interfaces"] = interfaces.iter().map(one).collect();
    network
}

/// Whether a query asks for less.
fn only_cpu_and_memory(pairs: &[(String, String)]) -> bool {
    pairs.iter().any(|(key, value)| {
        key == "only_cpu_and_memory"
            && matches!(value.as_str(), "true" | "1" | "t" | "T" | "True" | "TRUE")
    })
}

pub(crate) async fn summary(
    Shared(state): Shared<State>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Json<Value> {
    let is_whole = !only_cpu_and_memory(&pairs);
    let samples = pod_samples(&*state.kubelet, &state.usage).await;
    let node_fs = state.kubelet.node_fs().filter(|_| is_whole);
    let mut pods = Vec::with_capacity(samples.pods.len());
    for sample in &samples.pods {
        let disks = if is_whole {
            Some(Disks {
                node: node_fs,
                pod: state.kubelet.pod_disk(&sample.pod).await,
            })
        } else {
            None
        };
        pods.push(pod(sample, disks.as_ref()));
    }
    let mut node = node_cpu_and_memory(&state, &samples);
    if is_whole {
        let at = rfc3339(SystemTime::now());
        let image_fs = state.kubelet.image_fs().await;
        add_disks_and_network(&mut node, &at, node_fs, image_fs);
    }
    Json(json!({"node": node, "pods": pods}))
}

fn node_cpu_and_memory(state: &State, samples: &Samples) -> Value {
    let now = SystemTime::now();
    let at = rfc3339(now);
    let booted_at = node::boot_time().unwrap_or(state.started_at);
    let cpu_ns = node::cpu_ns();
    let nano_cores = cpu_ns.and_then(|cpu_ns| state.usage.rate(NODE, booted_at, now, cpu_ns));
    let memory = Memory::read();
    let own = Own::read();
    let own_cores = state.usage.rate(OWN, state.started_at, now, own.cpu_ns);
    let of_pods = |field: fn(&wherry_runtime_api::ContainerStats) -> u64| -> u64 {
        samples.pods.iter().map(|pod| pod.sum(field)).sum()
    };
    let pods_cores: Option<u64> = samples
        .pods
        .iter()
        .flat_map(|pod| &pod.containers)
        .map(|container| container.cpu_usage_nano_cores)
        .sum();
    json!({
        "nodeName": state.kubelet.node_name(),
        "startTime": rfc3339(booted_at),
        "systemContainers": [
            {
                "name": "kubelet",
                "startTime": rfc3339(state.started_at),
                "cpu": cpu(&at, own_cores, Some(own.cpu_ns)),
                "memory": known(&at, [
                    ("usageBytes", Some(own.resident_bytes)),
                    ("workingSetBytes", Some(own.resident_bytes)),
                    ("rssBytes", Some(own.resident_bytes)),
                    ("pageFaults", Some(own.faults.0)),
                    ("majorPageFaults", Some(own.faults.1)),
                ]),
            },
            {
                "name": "pods",
                "startTime": rfc3339(state.started_at),
                "cpu": cpu(&at, pods_cores, Some(of_pods(|stats| stats.cpu_usage_core_nanoseconds))),
                "memory": known(&at, [
                    ("availableBytes", Some(memory.available)),
                    ("usageBytes", Some(of_pods(|stats| stats.memory_usage_bytes))),
                    ("workingSetBytes", Some(of_pods(|stats| stats.memory_working_set_bytes))),
                    ("rssBytes", Some(of_pods(|stats| stats.memory_rss_bytes))),
                ]),
            },
        ],
        "cpu": cpu(&at, nano_cores, cpu_ns),
        "memory": known(&at, [
            ("availableBytes", Some(memory.available)),
            ("usageBytes", Some(memory.total.saturating_sub(memory.free))),
            ("workingSetBytes", Some(memory.working_set())),
            ("rssBytes", Some(memory.anonymous)),
            ("pageFaults", Some(memory.page_faults)),
            ("majorPageFaults", Some(memory.major_page_faults)),
        ]),
        "swap": known(&at, [
            ("swapAvailableBytes", Some(memory.swap_free)),
            ("swapUsageBytes", Some(memory.swap_usage())),
        ]),
    })
}

fn add_disks_and_network(
    node: &mut Value,
    at: &str,
    node_fs: Option<FileSystem>,
    image_fs: Option<FsUsage>,
) {
    if let Some(whole) = node_fs {
        let inodes = whole.inodes.saturating_sub(whole.inodes_free);
        node["fs"] = part(at, Some(whole), Some(whole.used_bytes), Some(inodes));
    }
    if let Some(usage) = image_fs {
        let mut images = known(
            at,
            [
                ("availableBytes", Some(usage.available_bytes)),
                ("capacityBytes", Some(usage.capacity_bytes)),
                ("usedBytes", Some(usage.used_bytes)),
                ("inodesUsed", Some(usage.inodes_used)),
            ],
        );
        if let Some(whole) = node_fs {
            images["inodesFree"] = whole.inodes_free.into();
            images["inodes"] = whole.inodes.into();
        }
        node["runtime"] = json!({
            "imageFs": images,
            "containerFs": part(at, node_fs, None, None),
        });
    }
    if let Ok(dev) = fs::read_to_string("/proc/net/dev") {
        let default = node::default_interface();
        node["network"] = network(at, node::interfaces(&dev), default.as_deref());
    }
    if let Some(pids) = signal::pids() {
        node["rlimit"] = known(
            at,
            [
                ("maxpid", Some(pids.capacity)),
                ("curproc", Some(pids.capacity - pids.available)),
            ],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_left_out() {
        assert_eq!(
            known("now", [("a", Some(1)), ("b", None)]),
            json!({"time": "now", "a": 1})
        );
    }

    #[test]
    fn the_default_interface_stands_for_all() {
        let interface = |name: &str, rx_bytes| Interface {
            name: name.into(),
            rx_bytes,
            rx_packets: 0,
            rx_errors: 0,
            rx_dropped: 0,
            tx_bytes: 0,
            tx_packets: 0,
            tx_errors: 0,
            tx_dropped: 0,
        };
        let both = vec![interface("docker0", 1), interface("eth0", 2)];
        let value = network("now", both.clone(), Some("eth0"));
        assert_eq!(
            (&value["name"], &value["rxBytes"]),
            (&json!("eth0"), &json!(2))
        );
        assert_eq!(value["interfaces"].as_array().map(Vec::len), Some(2));
        assert_eq!(network("now", both, None)["name"], "docker0");
        assert_eq!(network("now", vec![], None)["name"], "");
    }
}

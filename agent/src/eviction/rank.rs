//! Who goes first when the node is short of something, by the kubelet's rules. Pure.

use std::{cmp::Reverse, collections::BTreeMap, fmt::Write, sync::Arc};

use k8s_openapi::api::core::v1::Pod;

use super::threshold::{BinarySi, Crossed, Signal};
use crate::pod::{is_static, qos, quantity, spec};

/// From here on a priority is the system's own (`SystemCriticalPriority`).
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What a container or a pod uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Working set, bytes.
    pub(crate) memory_bytes: u64,
    /// Logs, writable layers and, for a pod, volumes on the node's disk; bytes.
    pub(crate) disk_bytes: u64,
    /// Inodes of the same.
    pub(crate) inodes: u64,
    /// Processes and threads.
    pub(crate) pids: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.memory_bytes += other.memory_bytes;
        self.disk_bytes += other.disk_bytes;
        self.inodes += other.inodes;
        self.pids += other.pids;
    }
}

/// A pod that runs, with what it uses.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// The pod.
    pub(crate) pod: Arc<Pod>,
    /// All of it.
    pub(crate) usage: Usage,
    /// By container.
    pub(crate) containers: BTreeMap<String, Usage>,
}

/// Whether the node never evicts it: static pods and those of the system's priority classes.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    is_static(pod) || priority(pod) >= SYSTEM_CRITICAL_PRIORITY
}

fn priority(pod: &Pod) -> i32 {
    spec(pod).priority.unwrap_or(0)
}

/// What a pod asked for of a resource, whole units.
fn requested(pod: &Pod, resource: &str) -> u64 {
    let millis = qos::pod_millis(pod, resource, qos::request_millis);
    u64::try_from(millis / 1000).unwrap_or(0)
}

/// First to go first: those that use more than they asked for, then the lower priority, then whoever
/// is furthest over what it asked for. Where nothing can be asked for (process IDs, inodes), priority
/// and use alone decide.
pub(crate) fn order(signal: Signal, candidates: &mut [Candidate]) {
    let key = |candidate: &Candidate| {
        let (pod, usage) = (&candidate.pod, &candidate.usage);
        let (used, asked) = match signal {
            Signal::MemoryAvailable => (usage.memory_bytes, Some(requested(pod, "memory"))),
            Signal::NodeFsAvailable | Signal::ImageFsAvailable => {
                (usage.disk_bytes, Some(requested(pod, "ephemeral-storage")))
            }
            Signal::NodeFsInodesFree | Signal::ImageFsInodesFree => (usage.inodes, None),
            Signal::PidAvailable => (usage.pids, None),
        };
        let exceeds = asked.is_none_or(|asked| used > asked);
        let over = i128::from(used) - i128::from(asked.unwrap_or(0));
        (Reverse(exceeds), priority(pod), Reverse(over))
    };
    candidates.sort_by_key(key);
}

/// What a pod that goes is told, in the kubelet's words.
pub(crate) fn message(crossed: &Crossed, candidate: &Candidate) -> String {
    let resource = crossed.signal.resource();
    let mut text = format!("The node was low on resource: {resource}. ");
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "Threshold quantity: {}, available: {}. ",
        BinarySi(crossed.quantity),
        AsSeen(crossed.signal, crossed.reading.available)
    );
    for container in &spec(&candidate.pod).containers {
        let Some(usage) = candidate.containers.get(&container.name) else {
            continue;
        };
        let used = match crossed.signal {
            Signal::MemoryAvailable => usage.memory_bytes,
            Signal::NodeFsAvailable | Signal::ImageFsAvailable => usage.disk_bytes,
            _ => continue,
        };
        let request = container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref()?.get(resource));
        let asked = request.and_then(quantity::bytes).unwrap_or(0);
        if used > asked {
            let _ = write!(
                text,
                "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
                container.name,
                AsSeen(crossed.signal, used),
                request.map_or("0", |request| request.0.as_str()),
            );
        }
    }
    text
}

/// Bytes to the kibibyte, pieces as they are: what moves all the time is not told to the byte.
struct AsSeen(Signal, u64);

impl std::fmt::Display for AsSeen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Signal::MemoryAvailable | Signal::NodeFsAvailable | Signal::ImageFsAvailable => {
                write!(f, "{}Ki", self.1 / 1024)
            }
            _ => write!(f, "{}", self.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::threshold::Reading, *};

    fn candidate(name: &str, priority: i32, request: &str, used_mib: u64) -> Candidate {
        let pod = json!({
            "metadata": {"name": name, "uid": name},
            "spec": {"priority": priority, "containers": [{
                "name": "c",
                "resources": {"requests": {"memory": request, "ephemeral-storage": request}},
            }]},
        });
        let usage = Usage {
            memory_bytes: used_mib << 20,
            disk_bytes: used_mib << 20,
            inodes: used_mib,
            pids: used_mib,
        };
        Candidate {
            pod: Arc::new(serde_json::from_value(pod).expect("a pod")),
            usage,
            containers: BTreeMap::from([("c".into(), usage)]),
        }
    }

    #[test]
    fn who_goes_first() {
        // Name, priority, request, use in Mi; in the order in which they go.
        type Row = (&'static str, i32, &'static str, u64);
        let table: &[(Signal, &[Row])] = &[
            (
                Signal::MemoryAvailable,
                &[
                    ("best-effort-large", 0, "0", 50),
                    ("burstable-over-by-40", 0, "10Mi", 50),
                    ("best-effort-small", 0, "0", 5),
                    ("over-and-important", 1000, "0", 500),
                    ("within-furthest-from-request", 0, "100Mi", 100),
                    ("within", 0, "500Mi", 400),
                    ("within-and-important", 1000, "500Mi", 500),
                ],
            ),
            (
                Signal::NodeFsAvailable,
                &[("over", 5, "1Mi", 2), ("within", 0, "3Mi", 2)],
            ),
            // Requests of memory say nothing about process IDs and inodes.
            (
                Signal::PidAvailable,
                &[
                    ("many", 0, "500Mi", 100),
                    ("few", 0, "0", 10),
                    ("important", 1, "0", 1000),
                ],
            ),
            (
                Signal::NodeFsInodesFree,
                &[("many", 0, "500Mi", 100), ("few", 0, "0", 10)],
            ),
        ];
        for (signal, rows) in table {
            let expected: Vec<_> = rows.iter().map(|row| row.0).collect();
            let mut candidates: Vec<_> = rows
                .iter()
                .rev()
                .map(|(name, priority, request, used)| candidate(name, *priority, request, *used))
                .collect();
            order(*signal, &mut candidates);
            let found: Vec<_> = candidates
                .iter()
                .map(|candidate| candidate.pod.metadata.name.as_deref().unwrap_or_default())
                .collect();
            assert_eq!(found, expected, "{signal:?}");
        }
    }

    #[test]
    fn the_systems_own_and_static_pods_stay() {
        let mut pod = Pod::clone(&candidate("p", 2_000_000_000, "0", 1).pod);
        assert!(is_critical(&pod));
        pod.spec.as_mut().expect("a spec").priority = Some(1_000_000_000);
        assert!(!is_critical(&pod));
        pod.metadata.annotations =
            Some([("kubernetes.io/config.source".into(), "file".into())].into());
        assert!(is_critical(&pod));
    }

    #[test]
    fn the_message_says_what_was_short_and_who_took_more_than_asked_for() {
        let crossed = Crossed {
            signal: Signal::MemoryAvailable,
            reading: Reading {
                available: 50 << 20,
                capacity: 1 << 30,
            },
            quantity: 100 << 20,
        };
        assert_eq!(
            message(&crossed, &candidate("p", 0, "1Mi", 2)),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 51200Ki. \
             Container c was using 2048Ki, request is 1Mi, has larger consumption of memory. "
        );
        assert_eq!(
            message(&crossed, &candidate("p", 0, "3Mi", 2)),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 51200Ki. "
        );
    }
}

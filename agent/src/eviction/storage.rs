//! What a pod takes of the node's disk, and whether it may.
//!
//! [`Meter`] measures, off the async threads, one pod at a time; [`excess`] judges and is pure.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::{
    api::core::v1::{Pod, Volume},
    apimachinery::pkg::api::resource::Quantity,
};
use nix::sys::statvfs::statvfs;
use tokio::sync::Semaphore;
use wherry_runtime_api::PodUid;

use super::{
    du::{Bounds, DiskUsage, disk_usage},
    threshold::BinarySi,
};
use crate::pod::{qos, quantity, spec, uid};

const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
/// Volumes that are directories on the node's own disk.
const LOCAL_PLUGINS: [&str; 5] = [
    "kubernetes.io~empty-dir",
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~downward-api",
    "kubernetes.io~projected",
];

/// A file system as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// What pods can use of it: used already or free for them, bytes.
    pub capacity_bytes: u64,
    /// Free, bytes.
    pub available_bytes: u64,
    /// In use by anybody, bytes.
    pub used_bytes: u64,
    /// Its inodes; 0 where it makes them as needed.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

impl FileSystem {
    /// The one that `path` is on. Blocks kept for root are nobody's: a share of the capacity is one of
    /// what can be used, as in `df`'s percentage.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let numbers = statvfs(path).ok()?;
        let unit = numbers.fragment_size();
        let used_bytes = numbers.blocks().saturating_sub(numbers.blocks_free()) * unit;
        let available_bytes = numbers.blocks_available() * unit;
        Some(Self {
            capacity_bytes: used_bytes + available_bytes,
            available_bytes,
            used_bytes,
            inodes: numbers.files(),
            inodes_free: numbers.files_available(),
        })
    }
}

/// What a volume takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Bytes allocated.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
    /// What it is on.
    pub file_system: FileSystem,
}

/// What a pod takes of disks, less its containers' writable layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodDisk {
    /// When it was measured.
    pub at: SystemTime,
    /// By volume name.
    pub volumes: BTreeMap<String, VolumeUsage>,
    /// Bytes and inodes of logs, by container name.
    pub logs: BTreeMap<String, (u64, u64)>,
}

/// Where a pod's things are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The pod's own directory: `<root>/pods/<uid>`.
    pub(crate) pod_dir: PathBuf,
    /// With one directory for each container.
    pub(crate) log_dir: PathBuf,
}

/// Measures pods, one after the other, and remembers for those who need not know it to the second.
pub(crate) struct Meter {
    seen: Mutex<HashMap<PodUid, (Instant, Arc<PodDisk>)>>,
    gate: Semaphore,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            seen: Mutex::default(),
            gate: Semaphore::new(1),
        }
    }
}

impl Meter {
    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, (Instant, Arc<PodDisk>)>> {
        // Whole whenever the lock is free: a change is one insert or removal.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, uid: &PodUid, age_max: Duration) -> Option<Arc<PodDisk>> {
        let seen = self.lock();
        let (at, disk) = seen.get(uid)?;
        (at.elapsed() <= age_max).then(|| Arc::clone(disk))
    }

    /// What the pod takes, not older than `age_max`. `None` on shutdown only.
    pub(crate) async fn measure(
        &self,
        uid: &PodUid,
        places: Places,
        age_max: Duration,
    ) -> Option<Arc<PodDisk>> {
        if let Some(disk) = self.known(uid, age_max) {
            return Some(disk);
        }
        let _turn = self.gate.acquire().await.ok()?;
        if let Some(disk) = self.known(uid, age_max) {
            return Some(disk);
        }
        let measured = tokio::task::spawn_blocking(move || measure(&places)).await;
        let disk = Arc::new(measured.ok()?);
        self.lock()
            .insert(uid.clone(), (Instant::now(), Arc::clone(&disk)));
        Some(disk)
    }

    /// Forgets pods that are gone.
    pub(crate) fn retain(&self, is_there: impl Fn(&PodUid) -> bool) {
        self.lock().retain(|uid, _| is_there(uid));
    }
}

fn measure(places: &Places) -> PodDisk {
    let mut volumes = BTreeMap::new();
    for plugin in directories(&places.pod_dir.join("volumes")) {
        let is_local = LOCAL_PLUGINS.contains(&plugin.0.as_str());
        for (name, path) in directories(&plugin.1) {
            if is_local && let Some(usage) = local_volume(&path) {
                volumes.insert(name, usage);
            } else if !is_local
                && is_on_a_disk(&path)
                && let Some(file_system) = FileSystem::of(&path)
            {
                let usage = VolumeUsage {
                    used_bytes: file_system.used_bytes,
                    inodes_used: file_system.inodes.saturating_sub(file_system.inodes_free),
                    file_system,
                };
                volumes.insert(name, usage);
            }
        }
    }
    let logs = directories(&places.log_dir)
        .into_iter()
        .filter_map(|(name, path)| {
            let usage = disk_usage(&path, Bounds::default()).ok()?;
            Some((name, (usage.bytes, usage.inodes)))
        })
        .collect();
    PodDisk {
        at: SystemTime::now(),
        volumes,
        logs,
    }
}

fn local_volume(path: &Path) -> Option<VolumeUsage> {
    let DiskUsage { bytes, inodes } = disk_usage(path, Bounds::default()).ok()?;
    Some(VolumeUsage {
        used_bytes: bytes,
        inodes_used: inodes,
        file_system: FileSystem::of(path)?,
    })
}

/// Whether `path` is mounted from something that answers without a network or another process: asking
/// a dead server how full it is takes for ever.
fn is_on_a_disk(path: &Path) -> bool {
    const DISKS: [&str; 6] = ["ext4", "ext3", "ext2", "xfs", "btrfs", "tmpfs"];
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .rev()
        .filter_map(|line| line.split_once(" - "))
        .find(|(mount, _)| {
            mount
                .split(' ')
                .nth(4)
                .is_some_and(|at| Path::new(at) == path)
        })
        .and_then(|(_, source)| source.split(' ').next())
        .is_some_and(|kind| DISKS.contains(&kind))
}

fn directories(path: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut list: Vec<_> = entries
        .flatten()
        // Names with a dot before them are what is being made or removed.
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let is_directory = entry.file_type().ok()?.is_dir();
            (is_directory && !name.starts_with('.')).then(|| (name, entry.path()))
        })
        .collect();
    list.sort();
    list
}

/// Whether a volume's content counts as the pod's use of the node's disk.
fn is_ephemeral(volume: &Volume) -> bool {
    match &volume.empty_dir {
        Some(empty_dir) => !is_in_memory(empty_dir.medium.as_deref()),
        None => volume.config_map.is_some() || volume.git_repo.is_some(),
    }
}

fn is_in_memory(medium: Option<&str>) -> bool {
    medium.is_some_and(|medium| medium == "Memory" || medium.starts_with("HugePages"))
}

/// Bytes that a pod's ephemeral volumes hold.
pub(crate) fn ephemeral_volume_bytes(pod: &Pod, disk: &PodDisk) -> u64 {
    spec(pod)
        .volumes
        .iter()
        .flatten()
        .filter(|volume| is_ephemeral(volume))
        .filter_map(|volume| disk.volumes.get(&volume.name))
        .map(|usage| usage.used_bytes)
        .sum()
}

fn container_limit(pod: &Pod) -> impl Iterator<Item = (&str, &Quantity)> {
    let spec = spec(pod);
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    containers.filter_map(|container| {
        let limit = container
            .resources
            .as_ref()?
            .limits
            .as_ref()?
            .get(EPHEMERAL_STORAGE)?;
        Some((container.name.as_str(), limit))
    })
}

fn size_limits(pod: &Pod) -> impl Iterator<Item = (&str, &Quantity)> {
    spec(pod).volumes.iter().flatten().filter_map(|volume| {
        let empty_dir = volume.empty_dir.as_ref()?;
        let limit = empty_dir.size_limit.as_ref()?;
        // The size of one in memory is its file system's.
        (!is_in_memory(empty_dir.medium.as_deref())).then_some((volume.name.as_str(), limit))
    })
}

/// Whether a pod has limits that somebody has to watch.
pub(crate) fn has_limits(pod: &Pod) -> bool {
    size_limits(pod).next().is_some() || container_limit(pod).next().is_some()
}

/// Bytes in writable layers, by container name.
pub(crate) type Layers = BTreeMap<String, u64>;

/// Which limit a pod is over, in the kubelet's words, if it is.
pub(crate) fn excess(pod: &Pod, disk: &PodDisk, layers: &Layers) -> Option<String> {
    for (name, limit) in size_limits(pod) {
        let used = disk.volumes.get(name).map_or(0, |usage| usage.used_bytes);
        if quantity::bytes(limit).is_some_and(|limit| limit > 0 && used > limit) {
            return Some(format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ",
                limit.0
            ));
        }
    }
    let logs = |name: &str| disk.logs.get(name).map_or(0, |(bytes, _)| *bytes);
    let total = qos::pod_millis(pod, EPHEMERAL_STORAGE, qos::limit_millis) / 1000;
    let total = u64::try_from(total).unwrap_or(0);
    if total > 0 {
        let used = layers.values().sum::<u64>()
            + disk.logs.values().map(|(bytes, _)| bytes).sum::<u64>()
            + ephemeral_volume_bytes(pod, disk);
        if used > total {
            return Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
                BinarySi(total)
            ));
        }
    }
    for (name, limit) in container_limit(pod) {
        let used = layers.get(name).copied().unwrap_or(0) + logs(name);
        if quantity::bytes(limit).is_some_and(|limit| limit > 0 && used > limit) {
            return Some(format!(
                "Container {name} exceeded its local ephemeral storage limit {:?}. ",
                limit.0
            ));
        }
    }
    None
}

/// Where a pod's things are below the agent's directories.
pub(crate) fn places(pods_dir: &Path, log_dir: PathBuf, pod: &Pod) -> Places {
    Places {
        pod_dir: pods_dir.join(uid(pod).as_str()),
        log_dir,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn pod(limits: (Option<&str>, Option<&str>), size_limit: Option<&str>, medium: &str) -> Pod {
        let container = |name: &str, limit: Option<&str>| match limit {
            Some(limit) => {
                json!({"name": name, "resources": {"limits": {"ephemeral-storage": limit}}})
            }
            None => json!({"name": name}),
        };
        let mut empty_dir = json!({"medium": medium});
        if let Some(limit) = size_limit {
            empty_dir["sizeLimit"] = limit.into();
        }
        let pod = json!({
            "metadata": {"name": "p", "uid": "u"},
            "spec": {
                "containers": [container("a", limits.0), container("b", limits.1)],
                "volumes": [{"name": "v", "emptyDir": empty_dir}],
            },
        });
        serde_json::from_value(pod).expect("a pod")
    }

    fn disk(volume_mib: u64, logs_mib: u64) -> PodDisk {
        let volume = VolumeUsage {
            used_bytes: volume_mib * MIB,
            ..VolumeUsage::default()
        };
        PodDisk {
            at: SystemTime::UNIX_EPOCH,
            volumes: [("v".into(), volume)].into(),
            logs: [("a".into(), (logs_mib * MIB, 1))].into(),
        }
    }

    #[test]
    fn limits_are_judged_in_the_kubelets_words() {
        let volume = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ";
        let container = "Container a exceeded its local ephemeral storage limit \"4Mi\". ";
        let total = "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ";
        let total_of_two =
            "Pod ephemeral local storage usage exceeds the total limit of containers 12Mi. ";
        type Row<'a> = (Pod, (u64, u64, u64), Option<&'a str>);
        // Used: volume, logs of a, layer of a; MiB.
        let table: Vec<Row<'_>> = vec![
            (pod((None, None), Some("1Mi"), ""), (1, 0, 0), None),
            (pod((None, None), Some("1Mi"), ""), (2, 0, 0), Some(volume)),
            (pod((None, None), Some("0"), ""), (2, 0, 0), None),
            (pod((None, None), Some("1Mi"), "Memory"), (2, 0, 0), None),
            (pod((None, None), None, ""), (100, 100, 100), None),
            (pod((Some("4Mi"), Some("8Mi")), None, ""), (0, 2, 2), None),
            (
                pod((Some("4Mi"), Some("8Mi")), None, ""),
                (0, 2, 3),
                Some(container),
            ),
            (
                pod((Some("4Mi"), Some("8Mi")), None, ""),
                (10, 2, 1),
                Some(total_of_two),
            ),
            (pod((Some("4Mi"), None), None, ""), (3, 1, 1), Some(total)),
            (pod((Some("4Mi"), None), None, "Memory"), (3, 1, 1), None),
        ];
        for (pod, (volume, logs, layer), expected) in table {
            let layers = Layers::from([("a".into(), layer * MIB)]);
            assert_eq!(
                excess(&pod, &disk(volume, logs), &layers).as_deref(),
                expected,
                "{volume} {logs} {layer}"
            );
        }
        assert!(!has_limits(&pod((None, None), None, "")));
        assert!(!has_limits(&pod((None, None), Some("1Mi"), "Memory")));
        assert!(has_limits(&pod((None, None), Some("1Mi"), "")));
        assert!(has_limits(&pod((None, Some("1Mi")), None, "")));
    }

    #[tokio::test]
    async fn volumes_and_logs_are_found_by_their_names() {
        let root = tempfile::tempdir().expect("a directory");
        let volume = root.path().join("u/volumes/kubernetes.io~empty-dir/v");
        let logs = root.path().join("logs/a");
        for dir in [&volume, &logs] {
            fs::create_dir_all(dir).expect("space");
            fs::write(dir.join("file"), vec![1; 2 << 20]).expect("space");
        }
        let places = Places {
            pod_dir: root.path().join("u"),
            log_dir: root.path().join("logs"),
        };
        let meter = Meter::default();
        let uid = PodUid::from("u");
        let disk = meter
            .measure(&uid, places.clone(), Duration::ZERO)
            .await
            .expect("measured");
        assert!(disk.volumes["v"].used_bytes >= 2 << 20);
        assert!(disk.volumes["v"].file_system.capacity_bytes > 0);
        assert!(disk.logs["a"].0 >= 2 << 20);
        // What is known is told again until it is too old.
        fs::remove_file(volume.join("file")).expect("there");
        let again = meter
            .measure(&uid, places.clone(), Duration::from_secs(3600))
            .await
            .expect("known");
        assert_eq!(again, disk);
        meter.retain(|_| false);
        let fresh = meter
            .measure(&uid, places, Duration::from_secs(3600))
            .await
            .expect("measured");
        assert!(fresh.volumes["v"].used_bytes < 2 << 20);
    }
}

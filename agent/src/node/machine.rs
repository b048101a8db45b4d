//! What the machine has, read once at start; and how much of it is in use now.

use std::{collections::BTreeMap, fs, io, path::Path};

use k8s_openapi::{api::core::v1::NodeSystemInfo, apimachinery::pkg::api::resource::Quantity};
use nix::sys::{statvfs::statvfs, utsname::uname};

/// What the machine has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    /// CPU time per second, thousandths of a core.
    pub(crate) cpu_millis: u64,
    /// Memory, bytes.
    pub(crate) memory_bytes: u64,
    /// The file system under the root, bytes.
    pub(crate) disk_bytes: u64,
    /// Page size (`2Mi`) and bytes.
    pub(crate) hugepages: Vec<(String, u64)>,
    /// For `status.nodeInfo`; versions of runtimes are filled in later.
    pub(crate) info: NodeSystemInfo,
}

/// What is left of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// Memory that can be had without hurting anybody, bytes.
    pub(crate) memory_bytes: u64,
    /// Free on the file system under the root, bytes.
    pub(crate) disk_bytes: u64,
    /// Its size, bytes.
    pub(crate) disk_bytes_max: u64,
    /// Free inodes there.
    pub(crate) inodes: u64,
    /// Its inodes.
    pub(crate) inodes_max: u64,
    /// Process IDs not in use.
    pub(crate) pids: u64,
    /// Process IDs there are.
    pub(crate) pids_max: u64,
}

impl Machine {
    /// Reads `/proc` and `/sys`, and the file system under `root`.
    pub(crate) fn read(root: &Path) -> io::Result<Self> {
        let cpus = std::thread::available_parallelism()?.get() as u64;
        let memory = fs::read_to_string("/proc/meminfo")?;
        let disk = statvfs(root)?;
        Ok(Self {
            cpu_millis: cpus * 1000,
            memory_bytes: meminfo(&memory, "MemTotal").unwrap_or(0),
            disk_bytes: disk.blocks() * disk.fragment_size(),
            hugepages: hugepages().unwrap_or_default(),
            info: info()?,
        })
    }

    /// For `status.capacity`.
    pub(crate) fn capacity(&self, max_pods: u32) -> BTreeMap<String, Quantity> {
        let quantity = |text: String| Quantity(text);
        let mut list = BTreeMap::from([
            ("cpu".to_owned(), quantity(cores(self.cpu_millis))),
            (
                "memory".to_owned(),
                quantity(format!("{}Ki", self.memory_bytes / 1024)),
            ),
            (
                "ephemeral-storage".to_owned(),
                quantity(format!("{}Ki", self.disk_bytes / 1024)),
            ),
            ("pods".to_owned(), quantity(max_pods.to_string())),
        ]);
        for (size, bytes) in &self.hugepages {
            list.insert(format!("hugepages-{size}"), quantity(bytes.to_string()));
        }
        list
    }

    /// For `status.allocatable`: what eviction keeps free is not given away (the kubelet's hard
    /// defaults: 100 Mi of memory, a tenth of the disk), nor are huge pages given twice.
    pub(crate) fn allocatable(&self, max_pods: u32) -> BTreeMap<String, Quantity> {
        let hugepages: u64 = self.hugepages.iter().map(|(_, bytes)| bytes).sum();
        let memory = self
            .memory_bytes
            .saturating_sub(EVICTION_MEMORY_BYTES)
            .saturating_sub(hugepages);
        let mut list = self.capacity(max_pods);
        list.insert("memory".into(), Quantity(format!("{}Ki", memory / 1024)));
        list.insert(
            "ephemeral-storage".into(),
            Quantity((self.disk_bytes / 10 * 9).to_string()),
        );
        list
    }
}

/// Memory that the kubelet keeps free by default (`memory.available<100Mi`).
pub(crate) const EVICTION_MEMORY_BYTES: u64 = 100 << 20;

fn cores(millis: u64) -> String {
    if millis.is_multiple_of(1000) {
        (millis / 1000).to_string()
    } else {
        format!("{millis}m")
    }
}

/// A field of `/proc/meminfo` in bytes. Pure.
fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

fn hugepages() -> io::Result<Vec<(String, u64)>> {
    let mut list = Vec::new();
    for entry in fs::read_dir("/sys/kernel/mm/hugepages")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kib = name
            .strip_prefix("hugepages-")
            .and_then(|rest| rest.strip_suffix("kB"));
        let Some(kib) = kib.and_then(|kib| kib.parse::<u64>().ok()) else {
            continue;
        };
        let count = fs::read_to_string(entry.path().join("nr_hugepages"))?;
        let count: u64 = count.trim().parse().unwrap_or(0);
        let size = match kib {
            kib if kib % (1 << 20) == 0 => format!("{}Gi", kib >> 20),
            kib if kib % (1 << 10) == 0 => format!("{}Mi", kib >> 10),
            kib => format!("{kib}Ki"),
        };
        list.push((size, count * kib * 1024));
    }
    list.sort();
    Ok(list)
}

fn info() -> io::Result<NodeSystemInfo> {
    let names = uname()?;
    let line = |path: &str| {
        fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let version = format!("v1.33.0+wherry-{}", env!("CARGO_PKG_VERSION"));
    Ok(NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        kernel_version: names.release().to_string_lossy().into_owned(),
        kube_proxy_version: String::new(),
        kubelet_version: version,
        machine_id: line("/etc/machine-id"),
        operating_system: "linux".into(),
        os_image: pretty.unwrap_or("Linux").trim_matches('"').into(),
        system_uuid: line("/sys/class/dmi/id/product_uuid"),
        ..NodeSystemInfo::default()
    })
}

/// In Go's word.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads what is left now.
pub(crate) fn left(root: &Path) -> io::Result<Left> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let disk = statvfs(root)?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let threads = load
        .split_whitespace()
        .nth(3)
        .and_then(|pair| pair.split_once('/')?.1.parse::<u64>().ok());
    let pids_max: u64 = fs::read_to_string("/proc/sys/kernel/pid_max")?
        .trim()
        .parse()
        .unwrap_or(0);
    Ok(Left {
        memory_bytes: meminfo(&memory, "MemAvailable").unwrap_or(0),
        disk_bytes: disk.blocks_available() * disk.fragment_size(),
        disk_bytes_max: disk.blocks() * disk.fragment_size(),
        inodes: disk.files_available(),
        inodes_max: disk.files(),
        pids: pids_max.saturating_sub(threads.unwrap_or(0)),
        pids_max,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something_to_give_and_gives_less_than_it_has() {
        let machine = Machine::read(Path::new("/")).expect("a Linux machine");
        assert!(machine.cpu_millis >= 1000 && machine.memory_bytes > 0 && machine.disk_bytes > 0);
        assert_eq!(machine.capacity(110)["pods"], Quantity("110".into()));
        assert_ne!(
            machine.capacity(110)["memory"],
            machine.allocatable(110)["memory"]
        );
        let left = left(Path::new("/")).expect("a Linux machine");
        assert!(left.memory_bytes <= machine.memory_bytes && left.pids > 0);
    }

    #[test]
    fn meminfo_is_in_kib() {
        assert_eq!(
            meminfo("MemTotal:       24 kB\nMemFree: 1 kB\n", "MemTotal"),
            Some(24 * 1024)
        );
        assert_eq!(meminfo("MemTotal: 24 kB\n", "Mem"), None);
    }
}

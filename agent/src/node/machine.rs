//! What the machine has, read once at start; and how much of it is in use now.

use std::{collections::BTreeMap, fs, io, path::Path};

use k8s_openapi::{api::core::v1::NodeSystemInfo, apimachinery::pkg::api::resource::Quantity};
use nix::sys::{statvfs::statvfs, utsname::uname};

use crate::{config::Config, eviction::threshold::Signal, pod::quantity};

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

    /// For `status.allocatable`: what is reserved and what eviction keeps free is not given away, nor
    /// are huge pages given twice.
    pub(crate) fn allocatable(&self, config: &Config) -> BTreeMap<String, Quantity> {
        let mut list = self.capacity(config.max_pods);
        let reserved = |resource: &str| -> u64 {
            [&config.system_reserved, &config.kube_reserved]
                .iter()
                .filter_map(|reserved| quantity::millis(reserved.get(resource)?))
                .map(|millis| u64::try_from(millis).unwrap_or(0))
                .sum()
        };
        let kept = |signal: Signal, capacity: u64| {
            let hard = config.eviction.hard.iter();
            hard.filter(|threshold| threshold.signal == signal)
                .map(|threshold| threshold.quantity(capacity))
                .max()
                .unwrap_or(0)
        };
        let hugepages: u64 = self.hugepages.iter().map(|(_, bytes)| bytes).sum();
        let memory = self
            .memory_bytes
            .saturating_sub(reserved("memory") / 1000)
            .saturating_sub(kept(Signal::MemoryAvailable, self.memory_bytes))
            .saturating_sub(hugepages);
        let disk = self
            .disk_bytes
            .saturating_sub(reserved("ephemeral-storage") / 1000)
            .saturating_sub(kept(Signal::NodeFsAvailable, self.disk_bytes));
        let cpu = self.cpu_millis.saturating_sub(reserved("cpu"));
        for (resource, amount) in [
            ("cpu", cores(cpu)),
            ("memory", format!("{}Ki", memory / 1024)),
            ("ephemeral-storage", disk.to_string()),
        ] {
            list.insert(resource.into(), Quantity(amount));
        }
        list
    }
}

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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn config() -> Config {
        Config::new(
            "node",
            "/",
            Vec::new(),
            wherry_runtime_api::fake::FakeImages::new(&[]),
            Arc::new(crate::testing::FakeNetwork::default()),
        )
    }

    #[test]
    fn this_machine_has_something_to_give_and_gives_less_than_it_has() {
        let machine = Machine::read(Path::new("/")).expect("a Linux machine");
        assert!(machine.cpu_millis >= 1000 && machine.memory_bytes > 0 && machine.disk_bytes > 0);
        assert_eq!(machine.capacity(110)["pods"], Quantity("110".into()));
        assert_ne!(
            machine.capacity(110)["memory"],
            machine.allocatable(&config())["memory"]
        );
    }

    #[test]
    fn what_is_reserved_and_what_eviction_keeps_free_is_not_given_away() {
        let machine = Machine {
            cpu_millis: 2000,
            memory_bytes: 4 << 30,
            disk_bytes: 100_000,
            hugepages: vec![("2Mi".into(), 1 << 30)],
            info: NodeSystemInfo::default(),
        };
        let mut config = config();
        let list = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).into())))
                .collect()
        };
        config.system_reserved = list(&[("cpu", "300m"), ("memory", "1Gi")]);
        config.kube_reserved = list(&[("cpu", "200m"), ("ephemeral-storage", "1k")]);
        let given = machine.allocatable(&config);
        let expected = list(&[
            ("cpu", "1500m"),
            // 4 Gi less 1 Gi reserved, 1 Gi of huge pages and 100 Mi.
            ("memory", "1994752Ki"),
            ("ephemeral-storage", "89000"),
            ("hugepages-2Mi", "1073741824"),
            ("pods", "110"),
        ]);
        assert_eq!(given, expected);
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

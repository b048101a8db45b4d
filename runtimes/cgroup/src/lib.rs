//! Control groups: v2, and v1 with or without a v2 hierarchy beside it.
//!
//! Files and nothing else. (cgroups-rs does the same and speaks to systemd over D-Bus; zbus and an
//! async runtime are no company for a supervisor that is to stay under 1.5 MB.)
//!
//! Used by every runtime that has something to put into a group:
//!
//! ```no_run
//! # fn example(resources: &wherry_runtime_api::LinuxResources) -> std::io::Result<()> {
//! let cgroups = wherry_cgroup::Cgroups::detect()?;
//! let pod = cgroups.group("wherry/kubepods/burstable/pod1234");
//! pod.create()?;
//! for warning in pod.set(resources)? {
//!     println!("{warning}");
//! }
//! pod.remove()
//! # }
//! ```
//!
//! A group is named by its path relative to each hierarchy's root. On v1 only the hierarchies that
//! hold a limit or a counter are used, because moving a process takes every one of them a turn.

#![allow(
    unsafe_code,
    reason = "the bpf system call has no safe interface; see devices.rs"
)]

mod devices;

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use wherry_runtime_api::{ContainerStats, LinuxResources};

pub use devices::{DeviceKind, DeviceRule};

/// v1 controllers that are used where they are mounted.
const V1_CONTROLLERS: [&str; 7] = [
    "cpu", "cpuacct", "memory", "pids", "devices", "freezer", "hugetlb",
];
/// v2 controllers that are turned on for the groups below.
const V2_CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "io", "hugetlb"];
/// How long a group may take to empty after everything in it has been killed.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The node's hierarchies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// One hierarchy with all controllers.
    V2 {
        /// Where it is mounted.
        root: PathBuf,
    },
    /// A hierarchy per controller.
    V1 {
        /// Controller and where it is mounted.
        controllers: Vec<(&'static str, PathBuf)>,
        /// v2 beside it, without the controllers above, but able to kill and freeze.
        unified: Option<PathBuf>,
    },
}

impl Cgroups {
    /// Finds out what is mounted.
    pub fn detect() -> io::Result<Self> {
        Self::from_mountinfo(&fs::read_to_string("/proc/self/mountinfo")?).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "no cgroup hierarchy is mounted")
        })
    }

    fn from_mountinfo(text: &str) -> Option<Self> {
        let mut controllers: Vec<(&'static str, PathBuf)> = Vec::new();
        let mut unified: Option<PathBuf> = None;
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let (Some(root), Some(mountpoint)) = (left.split(' ').nth(3), left.split(' ').nth(4))
            else {
                continue;
            };
            let mut right = right.split(' ');
            let (kind, options) = (
                right.next().unwrap_or_default(),
                right.nth(1).unwrap_or_default(),
            );
            if root != "/" {
                continue;
            }
            match kind {
                "cgroup2" if unified.is_none() => unified = Some(mountpoint.into()),
                "cgroup" => {
                    for option in options.split(',') {
                        if let Some(name) = V1_CONTROLLERS.iter().find(|name| **name == option)
                            && !controllers.iter().any(|(known, _)| known == name)
                        {
                            controllers.push((name, mountpoint.into()));
                        }
                    }
                }
                _ => {}
            }
        }
        match (controllers.is_empty(), unified) {
            (true, Some(root)) => Some(Self::V2 { root }),
            (true, None) => None,
            (false, unified) => Some(Self::V1 {
                controllers,
                unified,
            }),
        }
    }

    /// The group at a path, which need not exist.
    pub fn group(&self, path: &str) -> Group<'_> {
        Group {
            cgroups: self,
            path: path.trim_matches('/').to_owned(),
        }
    }

    /// Where the hierarchies are mounted; two controllers may share one.
    fn roots(&self) -> Vec<&Path> {
        let mut roots: Vec<&Path> = match self {
            Self::V2 { root } => vec![root],
            Self::V1 {
                controllers,
                unified,
            } => controllers
                .iter()
                .map(|(_, root)| root.as_path())
                .chain(unified.as_deref())
                .collect(),
        };
        roots.dedup();
        roots
    }

    /// The mounted hierarchies by name, for a container's `/sys/fs/cgroup`; `None` on v2.
    pub fn v1_controllers(&self) -> Option<&[(&'static str, PathBuf)]> {
        match self {
            Self::V2 { .. } => None,
            Self::V1 { controllers, .. } => Some(controllers),
        }
    }
}

/// A group of processes with its limits and counters.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    cgroups: &'a Cgroups,
    path: String,
}

impl Group<'_> {
    /// Makes the group and those above it. There already: `Ok`.
    pub fn create(&self) -> io::Result<()> {
        match self.cgroups {
            Cgroups::V1 { .. } => {
                for root in self.cgroups.roots() {
                    create_dir_all(&root.join(&self.path))?;
                }
            }
            Cgroups::V2 { root } => {
                let mut directory = root.clone();
                for part in Path::new(&self.path) {
                    enable_controllers(&directory);
                    directory.push(part);
                    create_dir_all(&directory)?;
                }
            }
        }
        Ok(())
    }

    /// Sets limits, and answers what could not be set.
    pub fn set(&self, resources: &LinuxResources) -> io::Result<Vec<String>> {
        match self.cgroups {
            Cgroups::V1 { .. } => self.set_v1(resources),
            Cgroups::V2 { root } => self.set_v2(&root.join(&self.path), resources),
        }
    }

    fn set_v1(&self, resources: &LinuxResources) -> io::Result<Vec<String>> {
        let mut warnings = Vec::new();
        if let Some(cpu) = self.directory("cpu") {
            if let Some(shares) = resources.cpu_shares {
                write(&cpu.join("cpu.shares"), shares)?;
            }
            if let Some(period) = resources.cpu_period_us {
                write(&cpu.join("cpu.cfs_period_us"), period)?;
            }
            if let Some(quota) = resources.cpu_quota_us {
                write(
                    &cpu.join("cpu.cfs_quota_us"),
                    if quota > 0 { quota } else { -1 },
                )?;
            }
        }
        if let (Some(memory), Some(limit)) = (self.directory("memory"), resources.memory_bytes_max)
        {
            let (soft, with_swap) = (
                memory.join("memory.limit_in_bytes"),
                memory.join("memory.memsw.limit_in_bytes"),
            );
            // The limit with swap may never be below the one without: up goes the former first.
            let is_raised = read_u64(&soft).is_ok_and(|current| limit > current);
            if is_raised && with_swap.exists() {
                write(&with_swap, limit)?;
            }
            write(&soft, limit)?;
            if !is_raised && with_swap.exists() {
                write(&with_swap, limit)?;
            }
        }
        if let (Some(pids), Some(max)) = (self.directory("pids"), resources.pids_max) {
            write(&pids.join("pids.max"), max)?;
        }
        let unified = match self.cgroups {
            Cgroups::V1 { unified, .. } => unified.as_ref().map(|root| root.join(&self.path)),
            Cgroups::V2 { .. } => None,
        };
        match (self.directory("hugetlb"), unified) {
            (Some(v1), _) => set_hugepages(&v1, "limit_in_bytes", resources, &mut warnings),
            (None, Some(v2)) => set_hugepages(&v2, "max", resources, &mut warnings),
            (None, None) if resources.hugepage_bytes_max.is_empty() => {}
            (None, None) => {
                warnings.push("huge page limits cannot be set on this node".to_owned());
            }
        }
        Ok(warnings)
    }

    fn set_v2(&self, directory: &Path, resources: &LinuxResources) -> io::Result<Vec<String>> {
        let mut warnings = Vec::new();
        if let Some(shares) = resources.cpu_shares {
            write(&directory.join("cpu.weight"), cpu_weight(shares))?;
        }
        if resources.cpu_quota_us.is_some() || resources.cpu_period_us.is_some() {
            let period = resources.cpu_period_us.unwrap_or(100_000);
            let quota = match resources.cpu_quota_us {
                Some(quota) if quota > 0 => quota.to_string(),
                _ => "max".to_owned(),
            };
            write(&directory.join("cpu.max"), format!("{quota} {period}"))?;
        }
        if let Some(limit) = resources.memory_bytes_max {
            write(&directory.join("memory.max"), limit)?;
            let swap = directory.join("memory.swap.max");
            if swap.exists() {
                write(&swap, 0)?;
            }
        }
        if let Some(max) = resources.pids_max {
            write(&directory.join("pids.max"), max)?;
        }
        set_hugepages(directory, "max", resources, &mut warnings);
        Ok(warnings)
    }

    /// Lets the kernel kill all of the group when it has to kill one for want of memory, where it can.
    pub fn end_together(&self) -> io::Result<()> {
        let Cgroups::V2 { root } = self.cgroups else {
            return Ok(());
        };
        let file = root.join(&self.path).join("memory.oom.group");
        if file.exists() {
            write(&file, 1)
        } else {
            Ok(())
        }
    }

    /// Restricts the devices that processes of the group can open; `None` allows all.
    pub fn set_devices(&self, rules: Option<&[DeviceRule]>) -> io::Result<()> {
        let Some(rules) = rules else { return Ok(()) };
        match self.cgroups {
            Cgroups::V2 { root } => devices::attach(&root.join(&self.path), rules),
            Cgroups::V1 { .. } => {
                let Some(directory) = self.directory("devices") else {
                    return Ok(());
                };
                write(&directory.join("devices.deny"), "a")?;
                for rule in rules {
                    write(&directory.join("devices.allow"), rule)?;
                }
                Ok(())
            }
        }
    }

    /// Moves the calling process into the group.
    pub fn join(&self) -> io::Result<()> {
        self.adopt(0)
    }

    /// Moves a process into the group.
    pub fn adopt(&self, pid: u32) -> io::Result<()> {
        for root in self.cgroups.roots() {
            write(&root.join(&self.path).join("cgroup.procs"), pid)?;
        }
        Ok(())
    }

    /// Processes in the group and those below it.
    pub fn processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for root in self.cgroups.roots() {
            collect_processes(&root.join(&self.path), &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Sends SIGKILL to everything in the group and below, as it is at this moment.
    pub fn kill(&self) {
        let unified = match self.cgroups {
            Cgroups::V2 { root } => Some(root),
            Cgroups::V1 { unified, .. } => unified.as_ref(),
        };
        // One write kills forking processes too; where there is none, the caller's repeating has to.
        if let Some(root) = unified
            && write(&root.join(&self.path).join("cgroup.kill"), 1).is_ok()
        {
            return;
        }
        for pid in self.processes() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }

    /// Kills what is in the group and removes it with all groups below. Gone already: `Ok`.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = std::time::Instant::now() + REMOVAL_TIMEOUT;
        let mut pause = Duration::from_millis(1);
        for root in self.cgroups.roots() {
            let directory = root.join(&self.path);
            loop {
                match remove_tree(&directory) {
                    Ok(()) => break,
                    // Killed processes leave the group when they are reaped, of which v1 tells nobody.
                    Err(error) if is_busy(&error) && std::time::Instant::now() < deadline => {
                        self.kill();
                        std::thread::sleep(pause);
                        pause = (pause * 2).min(Duration::from_millis(50));
                    }
                    Err(error) => {
                        return Err(io::Error::new(
                            error.kind(),
                            format!("{}: {error}", directory.display()),
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// How many processes of the group the kernel killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let file = match self.cgroups {
            Cgroups::V2 { root } => root.join(&self.path).join("memory.events"),
            Cgroups::V1 { .. } => match self.directory("memory") {
                Some(directory) => directory.join("memory.oom_control"),
                None => return 0,
            },
        };
        fs::read_to_string(file)
            .ok()
            .and_then(|text| flat_keyed(&text, "oom_kill"))
            .unwrap_or(0)
    }

    /// Usage at this moment, without the writable layer.
    pub fn stats(&self) -> io::Result<ContainerStats> {
        let at = SystemTime::now();
        match self.cgroups {
            Cgroups::V2 { root } => {
                let directory = root.join(&self.path);
                let cpu = fs::read_to_string(directory.join("cpu.stat"))?;
                let memory = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
                let usage = read_u64(&directory.join("memory.current")).unwrap_or(0);
                Ok(ContainerStats {
                    at,
                    cpu_usage_core_nanoseconds: flat_keyed(&cpu, "usage_usec").unwrap_or(0) * 1000,
                    memory_usage_bytes: usage,
                    memory_working_set_bytes: usage
                        .saturating_sub(flat_keyed(&memory, "inactive_file").unwrap_or(0)),
                    memory_rss_bytes: flat_keyed(&memory, "anon").unwrap_or(0),
                    process_count: read_u64(&directory.join("pids.current")).unwrap_or(0),
                    // "max" is no number.
                    memory_limit_bytes: read_u64(&directory.join("memory.max")).ok(),
                    page_faults: flat_keyed(&memory, "pgfault"),
                    major_page_faults: flat_keyed(&memory, "pgmajfault"),
                    swap_usage_bytes: read_u64(&directory.join("memory.swap.current")).ok(),
                    ..ContainerStats::default()
                })
            }
            Cgroups::V1 { .. } => {
                let none = || io::Error::new(io::ErrorKind::NotFound, "no such controller");
                let memory_directory = self.directory("memory").ok_or_else(none)?;
                let memory = fs::read_to_string(memory_directory.join("memory.stat"))?;
                let usage = read_u64(&memory_directory.join("memory.usage_in_bytes"))?;
                let cpu = self.directory("cpuacct").ok_or_else(none)?;
                let pids = self
                    .directory("pids")
                    .and_then(|pids| read_u64(&pids.join("pids.current")).ok());
                Ok(ContainerStats {
                    at,
                    cpu_usage_core_nanoseconds: read_u64(&cpu.join("cpuacct.usage"))?,
                    memory_usage_bytes: usage,
                    memory_working_set_bytes: usage
                        .saturating_sub(flat_keyed(&memory, "total_inactive_file").unwrap_or(0)),
                    memory_rss_bytes: flat_keyed(&memory, "total_rss").unwrap_or(0),
                    process_count: pids.unwrap_or(0),
                    memory_limit_bytes: read_u64(&memory_directory.join("memory.limit_in_bytes"))
                        .ok()
                        .filter(|limit| *limit < V1_UNLIMITED_MIN),
                    page_faults: flat_keyed(&memory, "total_pgfault"),
                    major_page_faults: flat_keyed(&memory, "total_pgmajfault"),
                    swap_usage_bytes: flat_keyed(&memory, "total_swap"),
                    ..ContainerStats::default()
                })
            }
        }
    }

    fn directory(&self, controller: &str) -> Option<PathBuf> {
        let controllers = self.cgroups.v1_controllers()?;
        let (_, root) = controllers.iter().find(|(name, _)| *name == controller)?;
        Some(root.join(&self.path))
    }
}

/// v1 shows a limit that is not set as the largest number of whole pages.
const V1_UNLIMITED_MIN: u64 = i64::MAX as u64 - (1 << 20);

/// v2's weight (1 to 10,000) for v1's shares (2 to 262,144), by the formula of runc and the kubelet.
fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn set_hugepages(
    directory: &Path,
    suffix: &str,
    resources: &LinuxResources,
    warnings: &mut Vec<String>,
) {
    for (size, limit) in &resources.hugepage_bytes_max {
        if write(&directory.join(format!("hugetlb.{size}.{suffix}")), limit).is_err() {
            warnings.push(format!(
                "huge page limit of {size} pages cannot be set on this node"
            ));
        }
        // What is mapped and not used yet counts too, where the kernel can tell (5.7).
        let reserved = directory.join(format!("hugetlb.{size}.rsvd.{suffix}"));
        if reserved.exists() {
            let _ = write(&reserved, limit);
        }
    }
}

fn enable_controllers(directory: &Path) {
    let available = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    let enabled = fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap_or_default();
    for name in V2_CONTROLLERS {
        let is_in = |list: &str| list.split_whitespace().any(|controller| controller == name);
        if is_in(&available) && !is_in(&enabled) {
            // Setting a limit that needs it will say so better than this.
            let _ = write(
                &directory.join("cgroup.subtree_control"),
                format!("+{name}"),
            );
        }
    }
}

fn create_dir_all(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", directory.display())))
}

fn write(path: &Path, value: impl std::fmt::Display) -> io::Result<()> {
    let named = |error: io::Error| match error.raw_os_error() {
        // Kept as it is: callers ask for ENOSPC and the like.
        Some(libc::ENOSPC) => error,
        _ => io::Error::new(
            error.kind(),
            format!("{}: write {value}: {error}", path.display()),
        ),
    };
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(named)?;
    file.write_all(value.to_string().as_bytes()).map_err(named)
}

fn read_u64(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: no number", path.display()),
        )
    })
}

fn flat_keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) {
    if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    for child in subdirectories(directory) {
        collect_processes(&child, pids);
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in subdirectories(directory) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
}

#[cfg(test)]
mod tests;

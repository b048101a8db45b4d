//! The pod's cgroup, which is the parent that the engine makes its containers' groups in, and what the engine has no
//! word for. The engine's own groups are left to it.
//!
//! A group is named by its path relative to each hierarchy's root. Works for v2, v1 and both side by side.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use wherry_runtime_api::LinuxResources;

/// v2 controllers that are turned on for the groups below.
const V2_CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "io", "hugetlb"];
/// How long a group may take to empty after everything in it has been killed.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    /// v1 controllers; none for v2.
    controllers: Vec<String>,
    is_v2: bool,
}

fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut left = left.split(' ').skip(3);
        let (Some("/"), Some(root)) = (left.next(), left.next()) else {
            continue;
        };
        let mut right = right.split(' ');
        let is_v2 = match right.next() {
            Some("cgroup2") => true,
            Some("cgroup") => false,
            _ => continue,
        };
        if found.iter().any(|known| known.root == Path::new(root)) {
            continue;
        }
        let options = right.nth(1).unwrap_or_default();
        found.push(Hierarchy {
            root: root.into(),
            controllers: if is_v2 {
                Vec::new()
            } else {
                options.split(',').map(str::to_owned).collect()
            },
            is_v2,
        });
    }
    found
}

/// Makes the group with its limits; answers what could not be set. There already: only the limits are set.
pub(crate) fn create(path: &str, resources: &LinuxResources) -> io::Result<Vec<String>> {
    let path = path.trim_matches('/');
    for hierarchy in hierarchies()? {
        let mut directory = hierarchy.root.clone();
        for part in Path::new(path) {
            if hierarchy.is_v2 {
                enable_controllers(&directory);
            }
            directory.push(part);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(named(&directory)(error));
                }
                _ => {}
            }
        }
    }
    set(path, resources)
}

/// Sets limits of a group that is there; answers what could not be set.
pub(crate) fn set(path: &str, resources: &LinuxResources) -> io::Result<Vec<String>> {
    let path = path.trim_matches('/');
    let all = hierarchies()?;
    let has_v1 = all.iter().any(|hierarchy| {
        hierarchy
            .controllers
            .iter()
            .any(|controller| controller == "memory" || controller == "cpu")
    });
    for hierarchy in &all {
        let directory = hierarchy.root.join(path);
        match hierarchy.is_v2 {
            true if !has_v1 => set_v2(&directory, resources)?,
            true => {}
            false => set_v1(&directory, &hierarchy.controllers, resources)?,
        }
    }
    Ok(set_hugepages(&all, path, &resources.hugepage_bytes_max))
}

/// Sets what the engine's API cannot say of a container's own group.
pub(crate) fn set_container_hugepages(path: &str, limits: &[(String, u64)]) -> Vec<String> {
    if limits.is_empty() {
        return Vec::new();
    }
    match hierarchies() {
        Ok(all) => set_hugepages(&all, path.trim_matches('/'), limits),
        Err(error) => vec![format!("huge page limits are not set: {error}")],
    }
}

fn set_hugepages(all: &[Hierarchy], path: &str, limits: &[(String, u64)]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (size, limit) in limits {
        let is_set = all.iter().any(|hierarchy| {
            let directory = hierarchy.root.join(path);
            ["max", "limit_in_bytes"]
                .iter()
                .any(|name| write(&directory.join(format!("hugetlb.{size}.{name}")), limit).is_ok())
        });
        if !is_set {
            warnings.push(format!(
                "huge page limit of {size} pages cannot be set on this node"
            ));
        }
    }
    warnings
}

fn set_v1(directory: &Path, controllers: &[String], resources: &LinuxResources) -> io::Result<()> {
    let has = |name: &str| controllers.iter().any(|controller| controller == name);
    if has("cpu") {
        if let Some(shares) = resources.cpu_shares {
            write(&directory.join("cpu.shares"), shares)?;
        }
        if let Some(period) = resources.cpu_period_us {
            write(&directory.join("cpu.cfs_period_us"), period)?;
        }
        if let Some(quota) = resources.cpu_quota_us {
            let quota = if quota > 0 { quota } else { -1 };
            write(&directory.join("cpu.cfs_quota_us"), quota)?;
        }
    }
    if let (true, Some(limit)) = (has("memory"), resources.memory_bytes_max) {
        let (soft, with_swap) = (
            directory.join("memory.limit_in_bytes"),
            directory.join("memory.memsw.limit_in_bytes"),
        );
        // The limit with swap may never be below the one without: whichever way it goes, one order works.
        let has_swap = with_swap.exists();
        if has_swap && write(&with_swap, limit).is_ok() {
            write(&soft, limit)?;
        } else {
            write(&soft, limit)?;
            if has_swap {
                write(&with_swap, limit)?;
            }
        }
    }
    if let (true, Some(max)) = (has("pids"), resources.pids_max) {
        write(&directory.join("pids.max"), max)?;
    }
    Ok(())
}

fn set_v2(directory: &Path, resources: &LinuxResources) -> io::Result<()> {
    if let Some(shares) = resources.cpu_shares {
        // The formula of runc and the kubelet.
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        write(&directory.join("cpu.weight"), weight)?;
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
    Ok(())
}

/// Removes the group with those below, which hold nothing any more. Gone already: `Ok`.
pub(crate) fn remove(path: &str) -> io::Result<()> {
    let deadline = Instant::now() + REMOVAL_TIMEOUT;
    let mut pause = Duration::from_millis(1);
    for hierarchy in hierarchies()? {
        let directory = hierarchy.root.join(path.trim_matches('/'));
        loop {
            match remove_tree(&directory) {
                Ok(()) => break,
                // Killed processes leave the group when they are reaped, of which v1 tells nobody.
                Err(error) if is_busy(&error) && Instant::now() < deadline => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                Err(error) => return Err(named(&directory)(error)),
            }
        }
    }
    Ok(())
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
}

fn enable_controllers(directory: &Path) {
    let read = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
    let (available, enabled) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
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

fn write(path: &Path, value: impl std::fmt::Display) -> io::Result<()> {
    use io::Write;
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.to_string().as_bytes()))
        .map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{}: write {value}: {error}", path.display()),
            )
        })
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 20 0:22 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
27 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
28 25 0:25 / /sys/fs/cgroup/memory rw shared:3 - cgroup cgroup rw,memory
29 25 0:25 /docker/x /elsewhere/memory rw - cgroup cgroup rw,memory";

    #[test]
    fn hierarchies_are_found_by_their_roots() {
        let found = parse(HYBRID);
        let roots: Vec<_> = found
            .iter()
            .map(|hierarchy| hierarchy.root.to_str().unwrap_or_default())
            .collect();
        assert_eq!(
            roots,
            [
                "/sys/fs/cgroup/unified",
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/memory"
            ]
        );
        assert!(found[0].is_v2 && found[0].controllers.is_empty());
        assert!(found[1].controllers.contains(&"cpuacct".to_owned()));
    }
}

//! The pod's cgroup, which is the parent that the engine makes its containers' groups in, and what the engine has no
//! word for. The engine's own groups are left to it.
//!
//! A group is named by its path relative to each hierarchy's root. Works for v2, v1 and both side by side.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use wherry_cgroup::Cgroups;
use wherry_runtime_api::LinuxResources;

/// How long a group may take to empty after everything in it has been killed.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where hierarchies are mounted: all of them, for the engine makes groups also where nothing here is limited.
fn roots() -> io::Result<Vec<PathBuf>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse(mountinfo: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut left = left.split(' ').skip(3);
        let (Some("/"), Some(root)) = (left.next(), left.next()) else {
            continue;
        };
        let is_cgroup = matches!(right.split(' ').next(), Some("cgroup" | "cgroup2"));
        if is_cgroup && !found.iter().any(|known| known == Path::new(root)) {
            found.push(root.into());
        }
    }
    found
}

/// Makes the group with its limits; answers what could not be set. There already: only the limits are set.
pub(crate) fn create(path: &str, resources: &LinuxResources) -> io::Result<Vec<String>> {
    let cgroups = Cgroups::detect()?;
    let group = cgroups.group(path.trim_matches('/'));
    group.create()?;
    group.set(resources)
}

/// Sets limits of a group that is there; answers what could not be set.
pub(crate) fn set(path: &str, resources: &LinuxResources) -> io::Result<Vec<String>> {
    Cgroups::detect()?
        .group(path.trim_matches('/'))
        .set(resources)
}

/// Sets what the engine's API cannot say of a container's own group.
pub(crate) fn set_container_hugepages(path: &str, limits: &[(String, u64)]) -> Vec<String> {
    if limits.is_empty() {
        return Vec::new();
    }
    let resources = LinuxResources {
        hugepage_bytes_max: limits.to_vec(),
        ..LinuxResources::default()
    };
    set(path, &resources)
        .unwrap_or_else(|error| vec![format!("huge page limits are not set: {error}")])
}

/// Removes the group with those below, which hold nothing any more. Gone already: `Ok`.
pub(crate) fn remove(path: &str) -> io::Result<()> {
    let deadline = Instant::now() + REMOVAL_TIMEOUT;
    let mut pause = Duration::from_millis(1);
    for root in roots()? {
        let directory = root.join(path.trim_matches('/'));
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
        let roots: Vec<_> = found.iter().filter_map(|root| root.to_str()).collect();
        assert_eq!(
            roots,
            [
                "/sys/fs/cgroup/unified",
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/memory"
            ]
        );
    }
}

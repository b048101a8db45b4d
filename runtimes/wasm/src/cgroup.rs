//! A cgroup per worker, so that the node's accounting shows it by name. Limits of containers are
//! the worker's own affair; where a hierarchy is missing or read-only, there is no accounting.

use std::path::{Path, PathBuf};

const MOUNT: &str = "/sys/fs/cgroup";
const V1_CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];

fn directories(mount: &Path, cgroup_root: &str, worker: &str) -> Vec<PathBuf> {
    let below = Path::new(cgroup_root).join("wasm").join(worker);
    if mount.join("cgroup.controllers").exists() {
        return vec![mount.join(below)];
    }
    let hierarchies = V1_CONTROLLERS
        .iter()
        .map(|name| mount.join(name))
        .filter(|path| path.is_dir());
    hierarchies
        .map(|hierarchy| hierarchy.join(&below))
        .collect()
}

/// Makes a worker's cgroups; answers the files to write its process to.
pub(crate) fn make(cgroup_root: &str, worker: &str) -> Vec<PathBuf> {
    let made = directories(Path::new(MOUNT), cgroup_root, worker).into_iter().filter(|path| {
        std::fs::create_dir_all(path)
            .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "No cgroup for a wasm worker"))
            .is_ok()
    });
    made.map(|path| path.join("cgroup.procs")).collect()
}

/// Removes a dead worker's cgroups, and the one above when it was the last. Answers whether they are
/// gone: a process lets go of its lock a moment before it leaves its cgroups.
pub(crate) fn remove(cgroup_root: &str, worker: &str) -> bool {
    let mut is_gone = true;
    for path in directories(Path::new(MOUNT), cgroup_root, worker) {
        match std::fs::remove_dir(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => is_gone = false,
            _ => {
                if let Some(above) = path.parent() {
                    let _ = std::fs::remove_dir(above);
                }
            }
        }
    }
    is_gone
}

/// The workers that have a cgroup, dead or alive.
pub(crate) fn workers(cgroup_root: &str) -> Vec<String> {
    let mut names = Vec::new();
    for path in directories(Path::new(MOUNT), cgroup_root, "") {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            if let (Ok(name), true) = (entry.file_name().into_string(), entry.path().is_dir()) {
                names.push(name);
            }
        }
    }
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hierarchy_of_v1_or_the_one_of_v2() {
        let mount = tempfile::tempdir().unwrap();
        for name in ["cpu", "memory"] {
            std::fs::create_dir(mount.path().join(name)).unwrap();
        }
        let names = |mount: &Path| -> Vec<PathBuf> {
            let found = directories(mount, "wherry", "w");
            found
                .iter()
                .map(|path| path.strip_prefix(mount).unwrap().to_owned())
                .collect()
        };
        assert_eq!(
            names(mount.path()),
            [
                Path::new("cpu/wherry/wasm/w"),
                Path::new("memory/wherry/wasm/w")
            ]
        );
        std::fs::write(mount.path().join("cgroup.controllers"), "cpu memory").unwrap();
        assert_eq!(names(mount.path()), [Path::new("wherry/wasm/w")]);
    }
}

//! A cgroup per worker, so that the node's accounting shows it by name: `<parent>/wasm/<worker>`,
//! below the runtime's own group or, for a worker of one pod, below the pod's, whose limits then hold
//! for it too. Limits of containers are the worker's own affair; where a hierarchy is missing or
//! read-only, there is no accounting.

use std::path::{Path, PathBuf};

use wherry_cgroup::Cgroups;
use wherry_runtime_api::LinuxResources;

const MOUNT: &str = "/sys/fs/cgroup";
const V1_CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];
const V2_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

fn directories(mount: &Path, parent: &str, worker: &str) -> Vec<PathBuf> {
    let below = Path::new(parent).join("wasm").join(worker);
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
pub(crate) fn make(parent: &str, worker: &str) -> Vec<PathBuf> {
    make_in(Path::new(MOUNT), parent, worker)
}

fn make_in(mount: &Path, parent: &str, worker: &str) -> Vec<PathBuf> {
    let made = directories(mount, parent, worker).into_iter().filter(|path| {
        make_directory(mount, path)
            .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "No cgroup for a wasm worker"))
            .is_ok()
    });
    made.map(|path| path.join("cgroup.procs")).collect()
}

/// On v2 a group has only the controllers that each one above it hands down.
fn make_directory(mount: &Path, path: &Path) -> std::io::Result<()> {
    let above: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .take_while(|above| above.starts_with(mount))
        .collect();
    for above in above.into_iter().rev() {
        std::fs::create_dir_all(above)?;
        for name in V2_CONTROLLERS {
            let control = above.join("cgroup.subtree_control");
            if control.exists() {
                // One that the kernel lacks, or that is kept by somebody else, is not accounted for.
                let _ = std::fs::write(control, format!("+{name}"));
            }
        }
    }
    std::fs::create_dir_all(path)
}

/// Removes a dead worker's cgroups, and the one above when it was the last. Answers whether they are
/// gone: a process lets go of its lock a moment before it leaves its cgroups.
pub(crate) fn remove(parent: &str, worker: &str) -> bool {
    let mut is_gone = true;
    for path in directories(Path::new(MOUNT), parent, worker) {
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

/// The group of a worker below its parent.
fn path(parent: &str, worker: &str) -> String {
    format!("{parent}/wasm/{worker}")
}

/// Sets a worker's weight among its neighbours.
pub(crate) fn weigh(parent: &str, worker: &str, cpu_shares: u64) {
    let resources = LinuxResources {
        cpu_shares: Some(cpu_shares.clamp(2, 262_144)),
        ..LinuxResources::default()
    };
    let weighed =
        Cgroups::detect().and_then(|cgroups| cgroups.group(&path(parent, worker)).set(&resources));
    if let Err(error) = weighed {
        tracing::debug!(worker, %error, "Wasm worker cannot be weighed");
    }
}

/// How often the kernel killed a worker for want of memory.
pub(crate) fn oom_kills(parent: &str, worker: &str) -> u64 {
    Cgroups::detect().map_or(0, |cgroups| {
        cgroups.group(&path(parent, worker)).oom_kills()
    })
}

/// Makes an isolated pod's own group, or changes its limits.
pub(crate) fn make_pod(path: &str, resources: &LinuxResources) -> std::io::Result<()> {
    let cgroups = Cgroups::detect()?;
    let group = cgroups.group(path);
    group.create()?;
    for warning in group.set(resources)? {
        tracing::info!(cgroup = path, %warning, "Limit of a pod not set");
    }
    Ok(())
}

/// Removes an isolated pod's group and what is in it.
pub(crate) fn remove_pod(path: &str) -> std::io::Result<()> {
    Cgroups::detect()?.group(path).remove()
}

/// The workers that have a cgroup, dead or alive.
pub(crate) fn workers(parent: &str) -> Vec<String> {
    let mut names = Vec::new();
    for path in directories(Path::new(MOUNT), parent, "") {
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

    #[test]
    fn v2_controllers_are_handed_down() {
        let mount = tempfile::tempdir().unwrap();
        std::fs::write(mount.path().join("cgroup.controllers"), "cpu memory").unwrap();
        let controls: Vec<PathBuf> = ["", "wherry", "wherry/wasm"]
            .map(|group| mount.path().join(group).join("cgroup.subtree_control"))
            .into();
        for control in &controls {
            std::fs::create_dir_all(control.parent().unwrap()).unwrap();
            std::fs::write(control, "").unwrap();
        }
        let procs = make_in(mount.path(), "wherry", "w");
        assert_eq!(procs, [mount.path().join("wherry/wasm/w/cgroup.procs")]);
        for control in &controls {
            // The file of the fake holds what was written last.
            assert_eq!(std::fs::read_to_string(control).unwrap(), "+pids");
        }
    }
}

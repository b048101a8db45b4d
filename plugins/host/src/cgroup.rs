//! Cgroups of the processes that run plugins: what those take is seen by name, and has a limit besides each call's own.

use std::io;

use tracing::{debug, info};
use wherry_cgroup::Cgroups;
use wherry_runtime_api::LinuxResources;

/// Memory of the worker: its plugins' code, and the instances of many calls at once.
pub(crate) const WORKER_MEMORY_BYTES_MAX: u64 = 1 << 30;
/// Threads of the worker, which makes no processes.
pub(crate) const WORKER_PIDS_MAX: u64 = 64;
/// Threads of the volume server and of its workers, one for each plugin whose volumes it serves.
pub(crate) const VOLUMES_PIDS_MAX: u64 = 1024;

/// Makes a group, or sets its limits anew. A node without is as good but for the limit.
pub(crate) fn limit(path: &str, memory_bytes_max: u64, pids_max: u64) {
    let resources = LinuxResources {
        memory_bytes_max: Some(memory_bytes_max),
        pids_max: Some(pids_max),
        ..LinuxResources::default()
    };
    let limited = || {
        let cgroups = Cgroups::detect()?;
        let group = cgroups.group(path);
        group.create()?;
        group.set(&resources)
    };
    match limited() {
        Ok(warnings) => {
            for warning in warnings {
                info!(cgroup = path, %warning, "Limit of plugins' processes not set");
            }
        }
        Err(error) => debug!(cgroup = path, %error, "No limit for plugins' processes"),
    }
}

/// Kills what is in a group; without cgroups there is none to be in one.
pub fn end_processes(path: &str) {
    if let Ok(all) = Cgroups::detect() {
        all.group(path).kill();
    }
}

/// Moves a process that was just started into a group that is there.
pub(crate) fn adopt(path: &str, pid: u32) {
    let adopted: io::Result<()> = Cgroups::detect().and_then(|all| all.group(path).adopt(pid));
    if let Err(error) = adopted {
        debug!(cgroup = path, pid, %error, "No cgroup for plugins' processes");
    }
}

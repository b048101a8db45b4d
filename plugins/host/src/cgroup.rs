//! The worker's cgroup: what plugins take together is seen by name, and has a limit besides each call's own.

use std::io;

use tracing::{debug, info};
use wherry_cgroup::Cgroups;
use wherry_runtime_api::LinuxResources;

/// Memory of the worker: its plugins' code, and the instances of many calls at once.
const MEMORY_BYTES_MAX: u64 = 1 << 30;
/// Threads of the worker, which makes no processes.
const PIDS_MAX: u64 = 64;

/// Moves a worker that was just started into its group. One without is as good but for the limit.
pub(crate) fn confine(path: &str, pid: u32) {
    match try_confine(path, pid) {
        Ok(warnings) => {
            for warning in warnings {
                info!(cgroup = path, %warning, "Limit of the plugin worker not set");
            }
        }
        Err(error) => debug!(cgroup = path, %error, "No cgroup for the plugin worker"),
    }
}

fn try_confine(path: &str, pid: u32) -> io::Result<Vec<String>> {
    let cgroups = Cgroups::detect()?;
    let group = cgroups.group(path);
    group.create()?;
    let resources = LinuxResources {
        memory_bytes_max: Some(MEMORY_BYTES_MAX),
        pids_max: Some(PIDS_MAX),
        ..LinuxResources::default()
    };
    let warnings = group.set(&resources)?;
    group.adopt(pid)?;
    Ok(warnings)
}

//! What a container uses, from one reading of the engine's.

use std::time::{Duration, Instant, SystemTime};

use bollard::{
    models::{ContainerMemoryStats, ContainerStatsResponse},
    query_parameters::{InspectContainerOptionsBuilder, StatsOptionsBuilder},
};
use futures::StreamExt;
use wherry_runtime_api::{ContainerId, ContainerStats, RuntimeError};

use crate::{engine::to_error, runtime::Inner};

/// How old the size of a writable layer may be: the engine walks all of it.
const LAYER_USAGE_AGE_MAX: Duration = Duration::from_secs(30);

impl Inner {
    pub(crate) async fn container_stats(
        &self,
        id: &ContainerId,
    ) -> Result<ContainerStats, RuntimeError> {
        let container = self.container(id)?;
        let not_running = || RuntimeError::NotFound(format!("container {id}: it does not run"));
        if !container.is_running() {
            return Err(not_running());
        }
        let docker = self.engine.docker()?;
        let what = format!("container {id}");
        let options = StatsOptionsBuilder::default()
            .stream(false)
            .one_shot(true)
            .build();
        let read = docker
            .stats(id.as_str(), Some(options))
            .next()
            .await
            .ok_or_else(not_running)?
            .map_err(|error| to_error(&what, error))?;
        let mut stats = to_stats(&read).ok_or_else(not_running)?;
        let known = *container.layer_usage();
        stats.writable_layer_bytes = match known {
            Some((at, bytes)) if at.elapsed() < LAYER_USAGE_AGE_MAX => bytes,
            _ => {
                let options = InspectContainerOptionsBuilder::default().size(true).build();
                let found = docker
                    .inspect_container(id.as_str(), Some(options))
                    .await
                    .map_err(|error| to_error(&what, error))?;
                let bytes = found
                    .size_rw
                    .and_then(|bytes| u64::try_from(bytes).ok())
                    .unwrap_or(0);
                *container.layer_usage() = Some((Instant::now(), bytes));
                bytes
            }
        };
        Ok(stats)
    }
}

/// `None` for what the engine answers of a container that does not run.
fn to_stats(read: &ContainerStatsResponse) -> Option<ContainerStats> {
    let memory = read.memory_stats.as_ref()?;
    let usage = memory.usage?;
    let cpu = read.cpu_stats.as_ref()?.cpu_usage.as_ref()?.total_usage?;
    Some(ContainerStats {
        at: SystemTime::now(),
        cpu_usage_core_nanoseconds: cpu,
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage
            .saturating_sub(first(memory, &["total_inactive_file", "inactive_file"]).unwrap_or(0)),
        memory_rss_bytes: first(memory, &["total_rss", "anon"]).unwrap_or(0),
        memory_limit_bytes: memory.limit.filter(|limit| *limit < memory_total_bytes()),
        page_faults: first(memory, &["total_pgfault", "pgfault"]),
        major_page_faults: first(memory, &["total_pgmajfault", "pgmajfault"]),
        swap_usage_bytes: first(memory, &["total_swap", "swap"]),
        process_count: read
            .pids_stats
            .as_ref()
            .and_then(|pids| pids.current)
            .unwrap_or(0),
        ..ContainerStats::default()
    })
}

/// By its name on cgroup v1, then v2.
fn first(memory: &ContainerMemoryStats, names: &[&str]) -> Option<u64> {
    let stats = memory.stats.as_ref()?;
    names.iter().find_map(|name| stats.get(*name).copied())
}

/// The engine answers the machine's memory where there is no limit.
fn memory_total_bytes() -> u64 {
    nix::sys::sysinfo::sysinfo().map_or(u64::MAX, |info| info.ram_total())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: serde_json::Value) -> Option<ContainerStats> {
        serde_json::from_value(value)
            .ok()
            .and_then(|read| to_stats(&read))
    }

    #[test]
    fn both_versions_of_cgroups_are_read() {
        for names in [
            ["total_inactive_file", "total_rss"],
            ["inactive_file", "anon"],
        ] {
            let found = read(json!({
                "cpu_stats": {"cpu_usage": {"total_usage": 5}},
                "memory_stats": {"usage": 100, "stats": {names[0]: 30, names[1]: 40}},
                "pids_stats": {"current": 2},
            }));
            let words = found.map(|stats| {
                (
                    stats.cpu_usage_core_nanoseconds,
                    stats.memory_working_set_bytes,
                    stats.memory_rss_bytes,
                    stats.process_count,
                )
            });
            assert_eq!(words, Some((5, 70, 40, 2)));
        }
    }

    #[test]
    fn a_stopped_container_has_no_usage() {
        assert_eq!(read(json!({"cpu_stats": {}, "memory_stats": {}})), None);
    }
}

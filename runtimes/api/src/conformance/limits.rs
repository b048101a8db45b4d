//! Limits and usage.

use std::time::Duration;

use super::{Fixture, Program, support::*};
use crate::*;

pub(super) async fn memory_beyond_the_limit_is_oom_killed(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "memory").await;
    let neighbour = fixture.container_config(&sandbox, "neighbour", Program::Wait);
    let neighbour = start(fixture, &sandbox, &neighbour).await;
    let mut config = fixture.container_config(&sandbox, "main", Program::EatMemory);
    config.resources.memory_bytes_max = Some(64 * 1024 * 1024);
    let id = start(fixture, &sandbox, &config).await;
    let ended = exit(&runtime, &id).await;
    assert_eq!(
        (ended.exit_code, ended.oom_killed),
        (137, true),
        "{ended:?}"
    );
    assert!(matches!(
        ok(runtime.container_status(&neighbour).await).state,
        ContainerState::Running { .. }
    ));
    remove(fixture, &sandbox).await;
}

pub(super) async fn stats_are_of_running_containers(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "stats").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = ok(runtime.create_container(&sandbox, &config).await);
    ok(runtime.start_container(&id).await);
    up(&config).await;
    let stats = ok(runtime.container_stats(&id).await);
    assert!(
        stats.memory_usage_bytes > 0 && stats.cpu_usage_core_nanoseconds > 0,
        "{stats:?}"
    );
    assert!(
        stats.memory_working_set_bytes <= stats.memory_usage_bytes,
        "{stats:?}"
    );
    ok(runtime.stop_container(&id, Duration::ZERO).await);
    assert!(
        runtime
            .container_stats(&id)
            .await
            .is_err_and(|error| error.is_not_found())
    );
    remove(fixture, &sandbox).await;
}

//! Limits and usage.

use std::time::Duration;

use super::{Fixture, Program, support::*};
use crate::*;

const MIB: u64 = 1024 * 1024;

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

pub(super) async fn usage_grows_with_use(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "spin").await;
    let config = fixture.container_config(&sandbox, "main", Program::Spin);
    let id = start(fixture, &sandbox, &config).await;
    up(&config).await;
    let first = ok(runtime.container_stats(&id).await);
    let wanted = first.cpu_usage_core_nanoseconds + 50_000_000;
    eventually("50 ms of CPU time more", async || {
        let now = ok(runtime.container_stats(&id).await);
        (now.cpu_usage_core_nanoseconds >= wanted && now.at >= first.at).then_some(())
    })
    .await;
    // One that never gives way can be ended all the same.
    ok(runtime.stop_container(&id, Duration::ZERO).await);
    remove(fixture, &sandbox).await;
}

pub(super) async fn limits_are_changed_in_place(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let mut config = fixture.sandbox_config("update");
    config.resources.memory_bytes_max = Some(512 * MIB);
    let sandbox = ok(runtime.run_pod_sandbox(&config).await);
    let sandbox = fixture.attach_network(sandbox).await;
    let mut config = fixture.container_config(&sandbox, "main", Program::Wait);
    config.resources.memory_bytes_max = Some(256 * MIB);
    config.resources.cpu_quota_us = Some(50_000);
    config.resources.cpu_period_us = Some(100_000);
    let id = start(fixture, &sandbox, &config).await;
    up(&config).await;
    let before = ok(runtime.container_status(&id).await);
    // Up and down again, the pod first where there is more.
    for bytes in [400 * MIB, 200 * MIB] {
        let pod = LinuxResources {
            memory_bytes_max: Some(bytes * 2),
            ..LinuxResources::default()
        };
        ok(runtime
            .update_pod_sandbox_resources(&sandbox.id, &pod)
            .await);
        let limits = LinuxResources {
            memory_bytes_max: Some(bytes),
            cpu_quota_us: Some(80_000),
            cpu_period_us: Some(100_000),
            cpu_shares: Some(512),
            ..LinuxResources::default()
        };
        ok(runtime.update_container_resources(&id, &limits).await);
    }
    assert_eq!(ok(runtime.container_status(&id).await).state, before.state);
    ok(runtime.stop_container(&id, Duration::ZERO).await);
    let nothing = LinuxResources::default();
    assert!(
        runtime
            .update_container_resources(&id, &nothing)
            .await
            .is_err()
    );
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_raised_memory_limit_holds(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "raise").await;
    let wait = "echo up; read line; dd if=/dev/zero of=/dev/null bs=48M count=1 2>/dev/null && echo enough; sleep 1000";
    let mut config = fixture.container_config(&sandbox, "main", Program::Shell(wait));
    (config.stdin, config.stdin_once) = (true, true);
    config.resources.memory_bytes_max = Some(32 * MIB);
    let id = start(fixture, &sandbox, &config).await;
    up(&config).await;
    let limits = LinuxResources {
        memory_bytes_max: Some(128 * MIB),
        ..LinuxResources::default()
    };
    ok(runtime.update_container_resources(&id, &limits).await);
    let request = AttachRequest {
        stdin: true,
        stdout: false,
        stderr: false,
    };
    let mut session = ok(runtime.attach(&id, &request).await);
    let mut stdin = session.stdin.take().expect("stdin was asked for");
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"go\n")
        .await
        .expect("stdin takes it");
    logged(&config, "enough").await;
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_container_has_no_more_processes_than_its_limit(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "pids").await;
    let script = "i=0; while [ $i -lt 40 ]; do sleep 100 & i=$((i+1)); done; echo all";
    let mut config = fixture.container_config(&sandbox, "main", Program::Shell(script));
    config.resources.pids_max = Some(20);
    let id = start(fixture, &sandbox, &config).await;
    assert_ne!(exit(&runtime, &id).await.exit_code, 0);
    let lines = log_lines(&config.log_path);
    assert!(lines.iter().all(|(_, _, text)| text != "all"), "{lines:?}");
    remove(fixture, &sandbox).await;
}

pub(super) async fn an_app_sees_its_own_limits(fixture: &dyn Fixture) {
    let sandbox = sandbox(fixture, "seen").await;
    let script = "cd /sys/fs/cgroup; cat memory.max memory/memory.limit_in_bytes cpu.max cpu/cpu.cfs_quota_us \
                  pids.max pids/pids.max 2>/dev/null; echo end; sleep 1000";
    let mut config = fixture.container_config(&sandbox, "main", Program::Shell(script));
    config.resources = LinuxResources {
        memory_bytes_max: Some(64 * MIB),
        cpu_quota_us: Some(30_000),
        cpu_period_us: Some(100_000),
        pids_max: Some(123),
        ..LinuxResources::default()
    };
    start(fixture, &sandbox, &config).await;
    logged(&config, "end").await;
    let texts: Vec<String> = log_lines(&config.log_path)
        .into_iter()
        .map(|(_, _, text)| text)
        .collect();
    let limit = (64 * MIB).to_string();
    for wanted in [&[limit.as_str()][..], &["30000 100000", "30000"], &["123"]] {
        assert!(
            texts.iter().any(|text| wanted.contains(&text.as_str())),
            "{wanted:?} is not in {texts:?}"
        );
    }
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_pod_has_no_more_memory_than_its_limit(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let mut config = fixture.sandbox_config("pod-limit");
    config.resources.memory_bytes_max = Some(64 * MIB);
    let sandbox = ok(runtime.run_pod_sandbox(&config).await);
    let sandbox = fixture.attach_network(sandbox).await;
    // The container itself has none.
    let config = fixture.container_config(&sandbox, "main", Program::EatMemory);
    let id = start(fixture, &sandbox, &config).await;
    let ended = exit(&runtime, &id).await;
    assert_eq!(ended.exit_code, 137, "{ended:?}");
    remove(fixture, &sandbox).await;
}

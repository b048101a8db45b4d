//! How containers and sandboxes are stopped.

use std::time::Duration;

use super::{Fixture, Program, support::*};
use crate::*;

pub(super) async fn a_deaf_container_is_killed_after_its_grace_period(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "deaf").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = start(fixture, &sandbox, &config).await;
    up(&config).await;
    ok(runtime
        .stop_container(&id, Duration::from_millis(100))
        .await);
    let ContainerState::Exited(ended) = ok(runtime.container_status(&id).await).state else {
        panic!("stop answered before the container had exited");
    };
    assert!(ended.exit_code != 0 && !ended.oom_killed, "{ended:?}");
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_second_stop_shortens_the_grace_period(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "shorten").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = start(fixture, &sandbox, &config).await;
    up(&config).await;
    let patient = runtime.stop_container(&id, TIMEOUT * 10);
    let hasty = async {
        tokio::time::sleep(PAUSE).await;
        runtime.stop_container(&id, Duration::from_millis(50)).await
    };
    let both = async { tokio::join!(patient, hasty) };
    let Ok((first, second)) = tokio::time::timeout(TIMEOUT, both).await else {
        panic!("the longer period won")
    };
    ok(first);
    ok(second);
    remove(fixture, &sandbox).await;
}

pub(super) async fn stopping_a_sandbox_ends_its_containers(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "stop").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = start(fixture, &sandbox, &config).await;
    ok(runtime.stop_pod_sandbox(&sandbox.id).await);
    assert!(matches!(
        ok(runtime.container_status(&id).await).state,
        ContainerState::Exited(_)
    ));
    let listed = ok(runtime.list_pod_sandboxes().await);
    let known = listed.iter().find(|known| known.id == sandbox.id);
    assert!(known.is_some_and(|known| known.state == PodSandboxState::NotReady));
    let other = fixture.container_config(&sandbox, "other", Program::Wait);
    assert!(runtime.create_container(&sandbox, &other).await.is_err());
    remove(fixture, &sandbox).await;
    assert!(
        runtime
            .container_status(&id)
            .await
            .is_err_and(|error| error.is_not_found())
    );
}

pub(super) async fn an_app_that_is_asked_may_exit_by_itself(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "polite").await;
    // SIGTERM, and another by number.
    for (name, stop_signal) in [("term", None), ("usr1", Some(10))] {
        let mut config = fixture.container_config(&sandbox, name, Program::Polite { exit_code: 5 });
        config.stop_signal = stop_signal;
        let id = start(fixture, &sandbox, &config).await;
        up(&config).await;
        ok(runtime.stop_container(&id, TIMEOUT * 10).await);
        let ended = exit(&runtime, &id).await;
        assert_eq!((ended.exit_code, ended.signal), (5, None), "{name}");
    }
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_stopped_container_is_not_oom_killed(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "killed").await;
    let mut config = fixture.container_config(&sandbox, "main", Program::Wait);
    config.resources.memory_bytes_max = Some(256 * 1024 * 1024);
    let mut events = runtime.subscribe();
    let id = start(fixture, &sandbox, &config).await;
    up(&config).await;
    ok(runtime.stop_pod_sandbox(&sandbox.id).await);
    let ended = exit(&runtime, &id).await;
    assert!(ended.exit_code != 0 && !ended.oom_killed, "{ended:?}");
    let told = async {
        loop {
            match events.recv().await {
                Ok(RuntimeEvent::ContainerExited { id: exited, .. }) if exited == id => return,
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    assert!(
        tokio::time::timeout(TIMEOUT, told).await.is_ok(),
        "nobody was told"
    );
    remove(fixture, &sandbox).await;
}

pub(super) async fn what_an_app_left_running_ends_with_it(fixture: &dyn Fixture) {
    let sandbox = sandbox(fixture, "orphans").await;
    let volume = volume(&sandbox, "pulse");
    let script = "(trap '' TERM HUP; while :; do date +%s%N > /pulse/now; sleep 0.01; done) & sleep 0.1; exit 3";
    let (code, _) = run_script(fixture, &sandbox, "main", script, |config| {
        config.mounts.push(mount(&volume, "/pulse"));
    })
    .await;
    assert_eq!(code, 3);
    let beat = || std::fs::read_to_string(volume.join("now")).unwrap_or_default();
    eventually("the pulse stops", async || {
        let before = beat();
        tokio::time::sleep(PAUSE * 10).await;
        (beat() == before).then_some(())
    })
    .await;
    remove(fixture, &sandbox).await;
}

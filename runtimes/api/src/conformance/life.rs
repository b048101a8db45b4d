//! A container's life: create, start, exit, remove, and an agent that is started again.

use std::time::Duration;

use super::{Fixture, Program, support::*};
use crate::*;

pub(super) async fn a_container_goes_through_its_life(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let mut events = runtime.subscribe();
    let sandbox = sandbox(fixture, "life").await;
    let mut config = fixture.container_config(&sandbox, "main", Program::Print { exit_code: 7 });
    config.labels = vec![("a".into(), "b".into())];
    config.annotations = vec![("c".into(), "d".into())];
    let id = ok(runtime.create_container(&sandbox, &config).await);
    let created = ok(runtime.container_status(&id).await);
    assert_eq!(created.state, ContainerState::Created);
    assert_eq!(created.handler, runtime.handler());
    assert_eq!(
        (&created.sandbox, &created.pod),
        (&sandbox.id, &sandbox.config.uid)
    );
    assert_eq!(
        (created.name.as_str(), created.attempt, &created.image_id),
        ("main", 0, &config.image_id)
    );
    assert_eq!(
        (&created.labels, &created.annotations),
        (&config.labels, &config.annotations)
    );
    ok(runtime.start_container(&id).await);
    let ended = exit(&runtime, &id).await;
    assert_eq!((ended.exit_code, ended.oom_killed), (7, false));
    assert!(
        ended
            .started_at
            .is_some_and(|started| started <= ended.finished_at)
    );
    let listed = ok(runtime.list_containers().await);
    assert!(
        listed
            .iter()
            .any(|known| known.id == id && known.state == ContainerState::Exited(ended.clone()))
    );
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match tokio::time::timeout(TIMEOUT, events.recv()).await {
            Ok(Ok(RuntimeEvent::ContainerStarted { id: started, .. })) if started == id => {
                seen.push("started")
            }
            Ok(Ok(RuntimeEvent::ContainerExited { id: exited, .. })) if exited == id => {
                seen.push("exited")
            }
            Ok(Ok(_)) => {}
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    assert_eq!(seen, ["started", "exited"]);
    ok(runtime.remove_container(&id).await);
    assert!(
        runtime
            .container_status(&id)
            .await
            .is_err_and(|error| error.is_not_found())
    );
    remove(fixture, &sandbox).await;
}

pub(super) async fn calls_can_be_repeated(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "repeat").await;
    assert_eq!(
        ok(runtime.run_pod_sandbox(&sandbox.config).await).id,
        sandbox.id
    );
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = ok(runtime.create_container(&sandbox, &config).await);
    for _ in 0..2 {
        assert_eq!(ok(runtime.create_container(&sandbox, &config).await), id);
        ok(runtime.start_container(&id).await);
    }
    // Another attempt is another container.
    let again = ContainerConfig {
        attempt: 1,
        ..config.clone()
    };
    assert_ne!(ok(runtime.create_container(&sandbox, &again).await), id);
    ok(runtime.stop_container(&id, Duration::ZERO).await);
    // Exited: neither is an error, and it does not run again.
    ok(runtime.start_container(&id).await);
    assert_eq!(ok(runtime.create_container(&sandbox, &config).await), id);
    assert!(matches!(
        ok(runtime.container_status(&id).await).state,
        ContainerState::Exited(_)
    ));
    remove(fixture, &sandbox).await;
}

pub(super) async fn what_is_gone_is_ok_to_stop_and_remove(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let (container, pod) = (
        ContainerId::new("no-such-container"),
        PodSandboxId::new("no-such-sandbox"),
    );
    ok(runtime
        .stop_container(&container, Duration::from_secs(1))
        .await);
    ok(runtime.remove_container(&container).await);
    ok(runtime.stop_pod_sandbox(&pod).await);
    ok(runtime.remove_pod_sandbox(&pod).await);
    assert!(
        runtime
            .container_status(&container)
            .await
            .is_err_and(|error| error.is_not_found())
    );
    assert!(
        runtime
            .start_container(&container)
            .await
            .is_err_and(|error| error.is_not_found())
    );
    assert!(
        runtime
            .container_stats(&container)
            .await
            .is_err_and(|error| error.is_not_found())
    );
    let sandbox = sandbox(fixture, "gone").await;
    for _ in 0..2 {
        ok(runtime.stop_pod_sandbox(&sandbox.id).await);
    }
    for _ in 0..2 {
        ok(runtime.remove_pod_sandbox(&sandbox.id).await);
    }
    assert!(
        ok(runtime.list_pod_sandboxes().await)
            .iter()
            .all(|known| known.id != sandbox.id)
    );
}

pub(super) async fn an_image_that_is_not_there_is_said_so(fixture: &dyn Fixture) {
    let sandbox = sandbox(fixture, "image").await;
    let mut config = fixture.container_config(&sandbox, "main", Program::Wait);
    config.image_id = format!("sha256:{}", "0".repeat(64));
    let error = fixture
        .runtime()
        .create_container(&sandbox, &config)
        .await
        .map(drop);
    assert!(
        matches!(error, Err(RuntimeError::ImageNotFound(_))),
        "{error:?}"
    );
    assert!(
        ok(fixture.runtime().list_containers().await)
            .iter()
            .all(|known| known.sandbox != sandbox.id)
    );
    remove(fixture, &sandbox).await;
}

pub(super) async fn nothing_notices_an_agent_restart(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "restart").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = start(fixture, &sandbox, &config).await;
    up(&config).await;
    let done = fixture.container_config(&sandbox, "done", Program::Print { exit_code: 5 });
    let done = start(fixture, &sandbox, &done).await;
    exit(&runtime, &done).await;
    let waiting = fixture.container_config(&sandbox, "waiting", Program::Print { exit_code: 6 });
    let waiting_id = ok(runtime.create_container(&sandbox, &waiting).await);
    let before = (
        ok(runtime.container_status(&id).await),
        ok(runtime.container_status(&done).await),
    );
    drop(runtime);

    let runtime = fixture.restart().await;
    let after = (
        ok(runtime.container_status(&id).await),
        ok(runtime.container_status(&done).await),
    );
    assert_eq!(after, before);
    let listed = ok(runtime.list_pod_sandboxes().await);
    let known = listed.iter().find(|known| known.id == sandbox.id);
    assert!(known.is_some_and(
        |known| known.state == PodSandboxState::Ready && known.config == sandbox.config
    ));
    assert_eq!(
        ok(runtime.run_pod_sandbox(&sandbox.config).await).id,
        sandbox.id
    );
    let print = fixture.exec_command(Program::Print { exit_code: 3 });
    assert_eq!(
        ok(runtime.exec_sync(&id, &print, TIMEOUT).await).exit_code,
        3
    );
    assert_eq!(
        ok(runtime.create_container(&sandbox, &waiting).await),
        waiting_id
    );
    ok(runtime.start_container(&waiting_id).await);
    assert_eq!(exit(&runtime, &waiting_id).await.exit_code, 6);
    let mut events = runtime.subscribe();
    ok(runtime.stop_container(&id, Duration::ZERO).await);
    let exited = async {
        loop {
            match events.recv().await {
                Ok(RuntimeEvent::ContainerExited { id: exited, .. }) if exited == id => return,
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    assert!(
        tokio::time::timeout(TIMEOUT, exited).await.is_ok(),
        "no event after a restart"
    );
    remove(fixture, &sandbox).await;
}

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

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

pub(super) async fn what_was_given_is_given_back(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let mut config = fixture.sandbox_config("given");
    config.labels = vec![("pod".into(), "a".into())];
    config.annotations = vec![("note".into(), "b=c \"d\"".into())];
    let sandbox = ok(runtime.run_pod_sandbox(&config).await);
    let sandbox = fixture.attach_network(sandbox).await;
    let listed = ok(runtime.list_pod_sandboxes().await);
    let known = listed.iter().find(|known| known.id == sandbox.id);
    assert_eq!(known.map(|known| &known.config), Some(&config));
    let mut config = fixture.container_config(&sandbox, "main", Program::Wait);
    config.attempt = 3;
    config.labels = vec![("a".into(), "b".into()), ("empty".into(), String::new())];
    config.annotations = vec![("c".into(), "d, e\nf".into())];
    let id = ok(runtime.create_container(&sandbox, &config).await);
    let status = ok(runtime.container_status(&id).await);
    assert_eq!(status.id, id);
    assert_eq!((status.attempt, &status.image), (3, &config.image));
    assert_eq!(status.log_path, config.log_path);
    assert_eq!(
        (&status.labels, &status.annotations),
        (&config.labels, &config.annotations)
    );
    let listed = ok(runtime.list_containers().await);
    assert!(listed.contains(&status), "{listed:?}");
    remove(fixture, &sandbox).await;
}

pub(super) async fn an_exit_code_is_the_apps_own(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "codes").await;
    for exit_code in [0, 1, 42, 125] {
        let name = format!("c{exit_code}");
        let config = fixture.container_config(&sandbox, &name, Program::Print { exit_code });
        let id = start(fixture, &sandbox, &config).await;
        let ended = exit(&runtime, &id).await;
        assert_eq!(
            (ended.exit_code, ended.signal, ended.oom_killed),
            (exit_code, None, false),
            "{ended:?}"
        );
    }
    remove(fixture, &sandbox).await;
}

pub(super) async fn calls_at_the_same_time_agree(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let config = fixture.sandbox_config("together");
    let made = futures::future::join_all((0..4).map(|_| runtime.run_pod_sandbox(&config))).await;
    let made: Vec<_> = made.into_iter().map(ok).collect();
    assert!(made.iter().all(|one| one.id == made[0].id), "{made:?}");
    let sandbox = fixture.attach_network(made[0].clone()).await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let calls = (0..4).map(|_| runtime.create_container(&sandbox, &config));
    let ids: Vec<_> = futures::future::join_all(calls)
        .await
        .into_iter()
        .map(ok)
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let id = &ids[0];
    for started in futures::future::join_all((0..4).map(|_| runtime.start_container(id))).await {
        ok(started);
    }
    up(&config).await;
    let zero = Duration::ZERO;
    for stopped in futures::future::join_all((0..4).map(|_| runtime.stop_container(id, zero))).await
    {
        ok(stopped);
    }
    for removed in futures::future::join_all((0..4).map(|_| runtime.remove_container(id))).await {
        ok(removed);
    }
    let listed = ok(runtime.list_containers().await);
    assert!(listed.iter().all(|known| known.sandbox != sandbox.id));
    remove(fixture, &sandbox).await;
}

pub(super) async fn containers_of_a_pod_do_not_wait_for_each_other(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "crowd").await;
    let configs: Vec<_> = (0..5)
        .map(|number| fixture.container_config(&sandbox, &format!("c{number}"), Program::Wait))
        .collect();
    let started = configs
        .iter()
        .map(|config| start(fixture, &sandbox, config));
    let ids = futures::future::join_all(started).await;
    for config in &configs {
        up(config).await;
    }
    let running = ok(runtime.list_containers().await)
        .into_iter()
        .filter(|known| known.sandbox == sandbox.id)
        .filter(|known| matches!(known.state, ContainerState::Running { .. }))
        .count();
    assert_eq!(running, ids.len());
    remove(fixture, &sandbox).await;
    let listed = ok(runtime.list_containers().await);
    assert!(listed.iter().all(|known| known.sandbox != sandbox.id));
}

pub(super) async fn removing_a_running_container_ends_it(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "remove").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = start(fixture, &sandbox, &config).await;
    up(&config).await;
    for _ in 0..2 {
        ok(runtime.remove_container(&id).await);
    }
    let status = runtime.container_status(&id).await;
    assert!(status.is_err_and(|error| error.is_not_found()));
    // Its name is free again, and what is made under it is another container.
    let again = start(fixture, &sandbox, &config).await;
    assert_ne!(again, id);
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_sandbox_can_be_made_anew(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let first = sandbox(fixture, "anew").await;
    ok(runtime.stop_pod_sandbox(&first.id).await);
    let config = PodSandboxConfig {
        attempt: 1,
        ..first.config.clone()
    };
    let second = ok(runtime.run_pod_sandbox(&config).await);
    assert_ne!(second.id, first.id);
    let second = fixture.attach_network(second).await;
    // The old one's end is not the new one's.
    ok(runtime.remove_pod_sandbox(&first.id).await);
    let config = fixture.container_config(&second, "main", Program::Print { exit_code: 0 });
    let id = start(fixture, &second, &config).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 0);
    remove(fixture, &second).await;
}

pub(super) async fn what_is_unknown_is_not_found(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "unknown").await;
    let id = ContainerId::new("no-such-container");
    let command = fixture.exec_command(Program::Print { exit_code: 0 });
    let exec = ExecRequest {
        command: command.clone(),
        tty: false,
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let attach = AttachRequest {
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let nothing = LinuxResources::default();
    for (call, error) in [
        (
            "exec_sync",
            runtime.exec_sync(&id, &command, TIMEOUT).await.map(drop),
        ),
        ("exec", runtime.exec(&id, &exec).await.map(drop)),
        ("attach", runtime.attach(&id, &attach).await.map(drop)),
        (
            "update_container_resources",
            runtime.update_container_resources(&id, &nothing).await,
        ),
        (
            "update_pod_sandbox_resources",
            runtime
                .update_pod_sandbox_resources(&PodSandboxId::new("no-such"), &nothing)
                .await,
        ),
        (
            "reopen_container_log",
            runtime.reopen_container_log(&id).await,
        ),
    ] {
        assert!(
            matches!(error, Err(RuntimeError::NotFound(_))),
            "{call}: {error:?}"
        );
    }
    let gone = PodSandbox {
        id: PodSandboxId::new("no-such-sandbox"),
        ..sandbox.clone()
    };
    let config = fixture.container_config(&gone, "main", Program::Wait);
    let error = runtime.create_container(&gone, &config).await;
    assert!(matches!(error, Err(RuntimeError::NotFound(_))), "{error:?}");
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_container_runs_in_a_sandbox_of_another_runtime(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = fixture.foreign_sandbox("mixed").await;
    let config = fixture.container_config(&sandbox, "main", Program::Print { exit_code: 4 });
    let id = ok(runtime.create_container(&sandbox, &config).await);
    ok(runtime.start_container(&id).await);
    assert_eq!(exit(&runtime, &id).await.exit_code, 4);
    let status = ok(runtime.container_status(&id).await);
    assert_eq!(
        (&status.sandbox, &status.pod),
        (&sandbox.id, &sandbox.config.uid)
    );
    ok(runtime.remove_container(&id).await);
}

pub(super) async fn a_command_that_is_not_there_fails_to_start(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "command").await;
    let mut config = fixture.container_config(&sandbox, "main", Program::Wait);
    (config.command, config.args) = (vec!["/no/such/command".into()], Vec::new());
    let (id, error) = match runtime.create_container(&sandbox, &config).await {
        Ok(id) => {
            let started = runtime.start_container(&id).await;
            (Some(id), started.expect_err("there is no such command"))
        }
        Err(error) => (None, error),
    };
    let text = error.to_string();
    assert!(
        matches!(error, RuntimeError::InvalidArgument(_)) && text.contains("/no/such/command"),
        "{error:?}"
    );
    if let Some(id) = id {
        let state = ok(runtime.container_status(&id).await).state;
        assert!(
            matches!(&state, ContainerState::Exited(exit) if exit.exit_code >= 126),
            "{state:?}"
        );
    }
    remove(fixture, &sandbox).await;
}

//! Restarts of the engine and of the agent, each with an engine of its own.

use std::{fs, sync::Arc, time::Duration};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use wherry_docker::DockerRuntime;
use wherry_runtime_api::{
    conformance::{ShellNode, read_log},
    *,
};

use crate::{
    engine::{Engine, TIMEOUT},
    node::{Node, eventually, open, run},
};

pub(crate) fn trials() -> Vec<Trial> {
    let trial = |name: &'static str, body: fn()| {
        Trial::test(name, move || {
            body();
            Ok(())
        })
    };
    vec![
        trial("live_restore_leaves_pods_as_they_were", || {
            for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                run(live_restore_leaves_pods_as_they_were(signal));
            }
        }),
        trial("without_live_restore_everything_has_exited", || {
            run(without_live_restore_everything_has_exited());
        }),
        trial("an_engine_may_come_after_the_agent", || {
            run(an_engine_may_come_after_the_agent());
        }),
        trial("logs_survive_agents_that_are_killed", || {
            run(logs_survive_agents_that_are_killed());
        }),
    ]
}

async fn until_up(runtime: &Arc<DockerRuntime>) {
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    while let Some(why) = runtime.status().await.not_ready {
        assert!(tokio::time::Instant::now() < deadline, "{why}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_down(runtime: &Arc<DockerRuntime>) {
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    while runtime.status().await.not_ready.is_none() {
        assert!(tokio::time::Instant::now() < deadline, "still up");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const COUNT: &str = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo $i; sleep 0.005; done";

/// Every number once and in order, up to the last.
fn assert_counts(text: &str) -> usize {
    let expected: Vec<String> = (1..=text.lines().count()).map(|n| n.to_string()).collect();
    assert!(
        text.lines().eq(expected.iter().map(String::as_str)),
        "{text}"
    );
    expected.len()
}

async fn live_restore_leaves_pods_as_they_were(signal: Signal) {
    let mut engine = Engine::start(&["--live-restore"]);
    let node = Node::new("live", engine.socket()).await;
    let sandbox = node.sandbox("live").await;
    let config = node.script(&sandbox, "main", COUNT);
    let id = node.start(&sandbox, &config).await;
    let done = node.script(&sandbox, "done", "exit 4");
    let (_, _) = node.run(&sandbox, &done).await;
    let before = node.runtime.list_containers().await.unwrap();
    let mut events = node.runtime.subscribe();
    engine.down(signal);
    until_down(&node.runtime).await;
    // Nothing is known to have changed while it is away.
    let (mut meanwhile, mut before) = (node.runtime.list_containers().await.unwrap(), before);
    meanwhile.sort_by(|a, b| a.id.cmp(&b.id));
    before.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(meanwhile, before);
    assert!(matches!(
        node.runtime.exec_sync(&id, &["true".into()], TIMEOUT).await,
        Err(RuntimeError::Unavailable(_))
    ));
    engine.up();
    until_up(&node.runtime).await;
    let mut after = node.runtime.list_containers().await.unwrap();
    after.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(after, before);
    let sandboxes = node.runtime.list_pod_sandboxes().await.unwrap();
    assert_eq!(sandboxes[0].state, PodSandboxState::Ready);
    assert!(
        events.try_recv().is_err(),
        "something is said to have happened"
    );
    assert_eq!(node.exec_text(&id, "echo hello").await, "hello\n");
    // The log goes on where it was.
    let reached = assert_counts(&read_log(&config.log_path));
    eventually("the log goes on", || {
        read_log(&config.log_path).lines().count() > reached + 50
    })
    .await;
    node.runtime
        .stop_container(&id, Duration::ZERO)
        .await
        .unwrap();
    assert_counts(&read_log(&config.log_path));
    node.clean_up().await;
}

async fn without_live_restore_everything_has_exited() {
    let mut engine = Engine::start(&[]);
    let node = Node::new("dies", engine.socket()).await;
    let sandbox = node.sandbox("dies").await;
    let config = node.script(&sandbox, "main", "echo up; exec sleep 1000");
    let id = node.start(&sandbox, &config).await;
    engine.down(Signal::SIGTERM);
    engine.up();
    let exit = node.exit(&id).await;
    assert_ne!(exit.exit_code, 0, "{exit:?}");
    let runtime = node.runtime.clone();
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    while runtime.list_pod_sandboxes().await.unwrap()[0].state == PodSandboxState::Ready {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The same pod can be made again, in another attempt.
    let mut again = node.sandbox_config("dies");
    again.attempt = 1;
    let again = node.runtime.run_pod_sandbox(&again).await.unwrap();
    assert_ne!(again.id, sandbox.id);
    node.clean_up().await;
}

async fn an_engine_may_come_after_the_agent() {
    let mut engine = Engine::start(&["--live-restore"]);
    let node = Node::new("late", engine.socket()).await;
    let sandbox = node.sandbox("late").await;
    let config = node.script(&sandbox, "main", "echo up; exec sleep 1000");
    let id = node.start(&sandbox, &config).await;
    engine.down(Signal::SIGTERM);
    let agent = open(&node.socket, &node.place).await;
    let status = agent.status().await;
    assert!(
        status
            .not_ready
            .is_some_and(|why| why.contains("docker.sock"))
    );
    // Nobody may conclude that there are no pods.
    for error in [
        agent.list_containers().await.map(drop),
        agent.list_pod_sandboxes().await.map(drop),
        agent.container_status(&id).await.map(drop),
        agent.stop_container(&id, Duration::ZERO).await,
        agent
            .run_pod_sandbox(&node.sandbox_config("late"))
            .await
            .map(drop),
    ] {
        assert!(
            matches!(error, Err(RuntimeError::Unavailable(_))),
            "{error:?}"
        );
    }
    engine.up();
    until_up(&agent).await;
    let status = agent.container_status(&id).await.unwrap();
    assert!(matches!(status.state, ContainerState::Running { .. }));
    let same = agent.run_pod_sandbox(&node.sandbox_config("late")).await;
    assert_eq!(same.unwrap().id, sandbox.id);
    node.clean_up().await;
}

async fn logs_survive_agents_that_are_killed() {
    let engine = Engine::start(&[]);
    let mut node = Node::new("logs", engine.socket()).await;
    let sandbox = node.sandbox("logs").await;
    let mut config = node.script(&sandbox, "main", COUNT);
    config.log_rotation = LogRotation {
        size_bytes_max: 0,
        files_max: 1,
    };
    let id = node.start(&sandbox, &config).await;
    for round in 1..=5 {
        let reached = read_log(&config.log_path).lines().count();
        eventually("the log goes on", || {
            read_log(&config.log_path).lines().count() > reached + 20
        })
        .await;
        // As a kill leaves it: dropped at any moment, and half a line at the end.
        node.runtime = open(&engine.socket(), &node.place.join("elsewhere")).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let text = fs::read(&config.log_path).unwrap();
        fs::write(&config.log_path, &text[..text.len() - 3 * round]).unwrap();
        node.restart().await;
    }
    node.runtime
        .stop_container(&id, Duration::ZERO)
        .await
        .unwrap();
    let count = assert_counts(&read_log(&config.log_path));
    assert!(count > 100, "{count}");
    node.clean_up().await;
    drop(engine);
}

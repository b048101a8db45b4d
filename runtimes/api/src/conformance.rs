//! The suite every runtime passes: what the agent relies on, whichever runtime it is.
//!
//! A runtime's own tests implement [`Fixture`] and run each of [`CASES`] in a pod of its own. A case panics
//! with what it found; what is peculiar to one runtime is tested beside that runtime.

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::LocalBoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::*;

/// One limit for everything that is waited for.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at something that tells nobody when it changes.
const PAUSE: Duration = Duration::from_millis(10);

/// What a program in a container is to do. The fixture knows an image and a command for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Print `out` on stdout and `err` on stderr, a line each, and exit with this code.
    Print {
        /// 0 to 125.
        exit_code: i32,
    },
    /// Print `up`, then do nothing until stopped, deaf to the stop signal.
    Wait,
    /// Copy stdin to stdout to its end, then exit with 0.
    CopyStdin,
    /// Use more and more memory.
    EatMemory,
}

/// A runtime under test.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The runtime as the agent holds it now.
    fn runtime(&self) -> Arc<dyn Runtime>;
    /// The agent is killed and started again: a new object on the same directories.
    async fn restart(&self) -> Arc<dyn Runtime>;
    /// A pod's sandbox; its log directory exists, its name is used once.
    fn sandbox_config(&self, name: &str) -> PodSandboxConfig;
    /// A container running a program, without limits, with stdin open once.
    fn container_config(
        &self,
        sandbox: &PodSandbox,
        name: &str,
        program: Program,
    ) -> ContainerConfig;
    /// What `exec` is given to run a program beside [`Program::Wait`].
    fn exec_command(&self, program: Program) -> Vec<String>;
    /// Does what the agent does between making a sandbox and creating containers: gives it addresses.
    async fn attach_network(&self, sandbox: PodSandbox) -> PodSandbox {
        sandbox
    }
}

/// A claim about every runtime. To be awaited where it is made (`block_on`): it is not `Send`.
pub type Case = for<'a> fn(&'a dyn Fixture) -> LocalBoxFuture<'a, ()>;

/// All claims, by name.
pub const CASES: &[(&str, Case)] = &[
    ("a_container_goes_through_its_life", |f| {
        Box::pin(a_container_goes_through_its_life(f))
    }),
    ("calls_can_be_repeated", |f| {
        Box::pin(calls_can_be_repeated(f))
    }),
    ("what_is_gone_is_ok_to_stop_and_remove", |f| {
        Box::pin(what_is_gone_is_ok_to_stop_and_remove(f))
    }),
    ("output_is_logged_in_cri_format", |f| {
        Box::pin(output_is_logged_in_cri_format(f))
    }),
    ("a_deaf_container_is_killed_after_its_grace_period", |f| {
        Box::pin(a_deaf_container_is_killed_after_its_grace_period(f))
    }),
    ("a_second_stop_shortens_the_grace_period", |f| {
        Box::pin(a_second_stop_shortens_the_grace_period(f))
    }),
    ("stopping_a_sandbox_ends_its_containers", |f| {
        Box::pin(stopping_a_sandbox_ends_its_containers(f))
    }),
    ("memory_beyond_the_limit_is_oom_killed", |f| {
        Box::pin(memory_beyond_the_limit_is_oom_killed(f))
    }),
    ("exec_sync_answers_output_and_exit_code", |f| {
        Box::pin(exec_sync_answers_output_and_exit_code(f))
    }),
    ("exec_streams_both_ways", |f| {
        Box::pin(exec_streams_both_ways(f))
    }),
    ("attach_reaches_stdin_and_stdout", |f| {
        Box::pin(attach_reaches_stdin_and_stdout(f))
    }),
    ("nothing_notices_an_agent_restart", |f| {
        Box::pin(nothing_notices_an_agent_restart(f))
    }),
    ("an_image_that_is_not_there_is_said_so", |f| {
        Box::pin(an_image_that_is_not_there_is_said_so(f))
    }),
    ("stats_are_of_running_containers", |f| {
        Box::pin(stats_are_of_running_containers(f))
    }),
    ("a_port_nobody_listens_on_is_refused", |f| {
        Box::pin(a_port_nobody_listens_on_is_refused(f))
    }),
];

async fn sandbox(fixture: &dyn Fixture, name: &str) -> PodSandbox {
    let made = ok(fixture
        .runtime()
        .run_pod_sandbox(&fixture.sandbox_config(name))
        .await);
    assert_eq!(made.state, PodSandboxState::Ready);
    fixture.attach_network(made).await
}

async fn start(
    fixture: &dyn Fixture,
    sandbox: &PodSandbox,
    config: &ContainerConfig,
) -> ContainerId {
    let runtime = fixture.runtime();
    let id = ok(runtime.create_container(sandbox, config).await);
    ok(runtime.start_container(&id).await);
    id
}

async fn exit(runtime: &Arc<dyn Runtime>, id: &ContainerId) -> ContainerExit {
    eventually("the container has exited", async || {
        match ok(runtime.container_status(id).await).state {
            ContainerState::Exited(exit) => Some(exit),
            _ => None,
        }
    })
    .await
}

async fn remove(fixture: &dyn Fixture, sandbox: &PodSandbox) {
    ok(fixture.runtime().remove_pod_sandbox(&sandbox.id).await);
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "not within {TIMEOUT:?}: {what}"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

#[track_caller]
fn ok<T>(result: Result<T, RuntimeError>) -> T {
    result.unwrap_or_else(|error| panic!("{error:?}"))
}

/// Lines of a log: stream, tag, text.
fn log_lines(path: &Path) -> Vec<(String, String, String)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| {
            let mut parts = line.splitn(4, ' ').map(str::to_owned);
            let time = parts.next().unwrap_or_default();
            assert!(
                time.len() >= 20 && time.as_bytes()[10] == b'T',
                "no time: {line}"
            );
            let mut next = || parts.next().unwrap_or_default();
            (next(), next(), next())
        })
        .collect()
}

async fn up(config: &ContainerConfig) {
    eventually("the program says that it is up", async || {
        log_lines(&config.log_path)
            .iter()
            .any(|(_, _, text)| text == "up")
            .then_some(())
    })
    .await;
}

async fn a_container_goes_through_its_life(fixture: &dyn Fixture) {
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

async fn calls_can_be_repeated(fixture: &dyn Fixture) {
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

async fn what_is_gone_is_ok_to_stop_and_remove(fixture: &dyn Fixture) {
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

async fn output_is_logged_in_cri_format(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "log").await;
    let config = fixture.container_config(&sandbox, "main", Program::Print { exit_code: 0 });
    let id = start(fixture, &sandbox, &config).await;
    exit(&runtime, &id).await;
    let lines = log_lines(&config.log_path);
    for (stream, text) in [("stdout", "out"), ("stderr", "err")] {
        let expected = (stream.to_owned(), "F".to_owned(), text.to_owned());
        assert!(
            lines.contains(&expected),
            "{expected:?} is not in {lines:?}"
        );
    }
    remove(fixture, &sandbox).await;
}

async fn a_deaf_container_is_killed_after_its_grace_period(fixture: &dyn Fixture) {
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

async fn a_second_stop_shortens_the_grace_period(fixture: &dyn Fixture) {
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

async fn stopping_a_sandbox_ends_its_containers(fixture: &dyn Fixture) {
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

async fn memory_beyond_the_limit_is_oom_killed(fixture: &dyn Fixture) {
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

async fn exec_sync_answers_output_and_exit_code(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "exec-sync").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = start(fixture, &sandbox, &config).await;
    let print = fixture.exec_command(Program::Print { exit_code: 3 });
    let answer = ok(runtime.exec_sync(&id, &print, TIMEOUT).await);
    assert_eq!(
        (answer.stdout.as_slice(), answer.stderr.as_slice()),
        (b"out\n".as_slice(), b"err\n".as_slice())
    );
    assert_eq!(answer.exit_code, 3);
    let wait = fixture.exec_command(Program::Wait);
    let error = runtime
        .exec_sync(&id, &wait, Duration::from_millis(200))
        .await
        .map(drop);
    assert!(
        matches!(error, Err(RuntimeError::DeadlineExceeded { .. })),
        "{error:?}"
    );
    ok(runtime.stop_container(&id, Duration::ZERO).await);
    let error = runtime.exec_sync(&id, &print, TIMEOUT).await.map(drop);
    assert!(
        matches!(error, Err(RuntimeError::FailedPrecondition(_))),
        "{error:?}"
    );
    remove(fixture, &sandbox).await;
}

async fn exec_streams_both_ways(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "exec").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = start(fixture, &sandbox, &config).await;
    let request = ExecRequest {
        command: fixture.exec_command(Program::CopyStdin),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let mut session = ok(runtime.exec(&id, &request).await);
    assert!(session.stderr.is_none(), "a stream that was not asked for");
    assert_eq!(copied(&mut session).await, "over and back\n");
    let ended = tokio::time::timeout(TIMEOUT, session.exit).await;
    assert_eq!(ended.ok().map(ok), Some(0));
    assert!(matches!(
        ok(runtime.container_status(&id).await).state,
        ContainerState::Running { .. }
    ));
    remove(fixture, &sandbox).await;
}

async fn copied(session: &mut StreamSession) -> String {
    let (Some(mut stdin), Some(stdout)) = (session.stdin.take(), session.stdout.as_mut()) else {
        panic!("streams that were asked for are missing");
    };
    let (mut text, copy) = (String::new(), async {
        stdin
            .write_all(b"over and back\n")
            .await
            .expect("stdin takes it");
        stdin.flush().await.expect("stdin takes it");
        drop(stdin);
    });
    let read = async {
        stdout
            .read_to_string(&mut text)
            .await
            .expect("stdout gives it")
    };
    let both = async { tokio::join!(copy, read) };
    assert!(
        tokio::time::timeout(TIMEOUT, both).await.is_ok(),
        "stdout does not end when stdin has"
    );
    text
}

async fn attach_reaches_stdin_and_stdout(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "attach").await;
    let mut config = fixture.container_config(&sandbox, "main", Program::CopyStdin);
    (config.stdin, config.stdin_once) = (true, true);
    let id = start(fixture, &sandbox, &config).await;
    let request = AttachRequest {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut session = ok(runtime.attach(&id, &request).await);
    assert_eq!(copied(&mut session).await, "over and back\n");
    let ended = tokio::time::timeout(TIMEOUT, session.exit).await;
    assert_eq!(ended.ok().map(ok), Some(0));
    assert_eq!(exit(&runtime, &id).await.exit_code, 0);
    // What was attached was logged all the same.
    assert!(
        log_lines(&config.log_path)
            .iter()
            .any(|(_, _, text)| text == "over and back")
    );
    remove(fixture, &sandbox).await;
}

async fn nothing_notices_an_agent_restart(fixture: &dyn Fixture) {
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

async fn an_image_that_is_not_there_is_said_so(fixture: &dyn Fixture) {
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

async fn stats_are_of_running_containers(fixture: &dyn Fixture) {
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

async fn a_port_nobody_listens_on_is_refused(fixture: &dyn Fixture) {
    let sandbox = sandbox(fixture, "port").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    start(fixture, &sandbox, &config).await;
    let asked = fixture
        .runtime()
        .port_forward(&sandbox, 47_111)
        .await
        .map(drop);
    let error = asked.expect_err("nobody listens there");
    assert!(
        error.to_string().contains("47111"),
        "the port is not named: {error}"
    );
    remove(fixture, &sandbox).await;
}

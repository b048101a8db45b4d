//! Exec, attach and port forwarding.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Fixture, Program, support::*};
use crate::*;

pub(super) async fn exec_sync_answers_output_and_exit_code(fixture: &dyn Fixture) {
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

pub(super) async fn exec_streams_both_ways(fixture: &dyn Fixture) {
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

pub(super) async fn attach_reaches_stdin_and_stdout(fixture: &dyn Fixture) {
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

pub(super) async fn a_port_nobody_listens_on_is_refused(fixture: &dyn Fixture) {
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

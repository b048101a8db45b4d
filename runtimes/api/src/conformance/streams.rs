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

pub(super) async fn execs_at_the_same_time_keep_their_output_apart(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "execs").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = start(fixture, &sandbox, &config).await;
    let commands: Vec<Vec<String>> = (1..=6)
        .map(|count| fixture.exec_command(Program::Lines { count }))
        .collect();
    let answers = commands
        .iter()
        .map(|command| runtime.exec_sync(&id, command, TIMEOUT));
    for (index, answer) in futures::future::join_all(answers)
        .await
        .into_iter()
        .enumerate()
    {
        let answer = ok(answer);
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        let wanted: String = (1..=index + 1)
            .map(|number| format!("{number}\n"))
            .collect();
        assert_eq!((text, answer.exit_code), (wanted, 0));
    }
    remove(fixture, &sandbox).await;
}

pub(super) async fn exec_sync_keeps_no_more_than_its_bound(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "exec-bound").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = start(fixture, &sandbox, &config).await;
    // 18.9 MB.
    let command = fixture.exec_command(Program::Lines { count: 2_500_000 });
    let answer = ok(runtime.exec_sync(&id, &command, TIMEOUT).await);
    assert_eq!(answer.exit_code, 0, "what is not kept is read all the same");
    assert_eq!(answer.stdout.len(), EXEC_SYNC_OUTPUT_BYTES_MAX);
    assert!(answer.stdout.starts_with(b"1\n2\n3\n"));
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_terminal_has_the_size_it_is_given(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "resize").await;
    let mut config = fixture.container_config(&sandbox, "main", Program::TerminalSize);
    config.tty = true;
    let id = start(fixture, &sandbox, &config).await;
    let request = ExecRequest {
        command: fixture.exec_command(Program::TerminalSize),
        tty: true,
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let exec = ok(runtime.exec(&id, &request).await);
    assert!(exec.stderr.is_none(), "a terminal has one output");
    resized(exec, 101, 37).await;
    let request = AttachRequest {
        stdin: true,
        stdout: true,
        stderr: false,
    };
    resized(ok(runtime.attach(&id, &request).await), 99, 33).await;
    remove(fixture, &sandbox).await;
}

async fn resized(mut session: StreamSession, width: u16, height: u16) {
    let resize = session.resize.take().expect("a terminal can be resized");
    resize
        .send(TerminalSize { width, height })
        .await
        .expect("somebody takes sizes");
    let mut stdout = session.stdout.take().expect("stdout was asked for");
    let wanted = format!("{height} {width}");
    let (mut text, mut buffer) = (String::new(), [0; 256]);
    let seen = async {
        while !text.contains(&wanted) {
            let count = stdout.read(&mut buffer).await.expect("stdout gives it");
            assert!(count > 0, "the terminal ended after {text:?}");
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    assert!(
        tokio::time::timeout(TIMEOUT, seen).await.is_ok(),
        "no {wanted}"
    );
}

pub(super) async fn stdin_stays_open_between_attached_clients(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "reattach").await;
    let mut config = fixture.container_config(&sandbox, "main", Program::CopyStdin);
    (config.stdin, config.stdin_once) = (true, false);
    let id = start(fixture, &sandbox, &config).await;
    let request = AttachRequest {
        stdin: true,
        stdout: false,
        stderr: false,
    };
    for text in ["first", "second"] {
        let mut session = ok(runtime.attach(&id, &request).await);
        assert!(session.stdout.is_none());
        let mut stdin = session.stdin.take().expect("stdin was asked for");
        let line = format!("{text}\n");
        stdin
            .write_all(line.as_bytes())
            .await
            .expect("stdin takes it");
        stdin.flush().await.expect("stdin takes it");
        logged(&config, text).await;
    }
    assert!(matches!(
        ok(runtime.container_status(&id).await).state,
        ContainerState::Running { .. }
    ));
    ok(runtime.stop_container(&id, Duration::ZERO).await);
    assert!(runtime.attach(&id, &request).await.is_err());
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_port_reaches_who_listens_on_it(fixture: &dyn Fixture) {
    const PORT: u16 = 47_112;
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "echo").await;
    let config = fixture.container_config(&sandbox, "main", Program::Echo { port: PORT });
    start(fixture, &sandbox, &config).await;
    up(&config).await;
    for word in ["one", "two"] {
        let mut connection = eventually("the port answers", async || {
            runtime.port_forward(&sandbox, PORT).await.ok()
        })
        .await;
        let mut text = String::new();
        let echo = async {
            connection.write_all(word.as_bytes()).await?;
            connection.flush().await?;
            let mut back = vec![0; word.len()];
            connection.read_exact(&mut back).await?;
            text = String::from_utf8_lossy(&back).into_owned();
            connection.shutdown().await
        };
        let done = tokio::time::timeout(TIMEOUT, echo).await;
        assert!(matches!(done, Ok(Ok(()))), "{done:?}");
        assert_eq!(text, word);
    }
    remove(fixture, &sandbox).await;
}

pub(super) async fn dropping_an_exec_kills_its_command(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "drop").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = start(fixture, &sandbox, &config).await;
    let request = ExecRequest {
        command: fixture.exec_command(Program::Shell("echo here; exec sleep 4321")),
        tty: false,
        stdin: false,
        stdout: true,
        stderr: false,
    };
    let mut session = ok(runtime.exec(&id, &request).await);
    let mut word = [0; 5];
    let stdout = session.stdout.as_mut().expect("stdout was asked for");
    stdout.read_exact(&mut word).await.expect("it says so");
    drop(session);
    let count = fixture.exec_command(Program::Shell("ps | grep '[s]leep 4321'"));
    eventually("the command is gone", async || {
        let found = ok(runtime.exec_sync(&id, &count, TIMEOUT).await);
        (found.exit_code == 1).then_some(())
    })
    .await;
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_missing_exec_command_is_told(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "exec-missing").await;
    let config = fixture.container_config(&sandbox, "main", Program::Wait);
    let id = start(fixture, &sandbox, &config).await;
    let command = ["/no/such/command".to_owned()];
    match runtime.exec_sync(&id, &command, TIMEOUT).await {
        Ok(answer) => assert!((126..=127).contains(&answer.exit_code), "{answer:?}"),
        Err(error) => assert!(
            matches!(error, RuntimeError::InvalidArgument(_)),
            "{error:?}"
        ),
    }
    remove(fixture, &sandbox).await;
}

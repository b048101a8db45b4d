//! exec, attach and port-forward.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wherry_runtime_api::{
    conformance::{ShellNode, read_log},
    *,
};

use crate::harness::{Node, TIMEOUT, eventually, tests};

tests! {
    exec_sync_collects_output_and_exit_code
    exec_sync_kills_what_takes_too_long
    exec_without_a_terminal_streams_both_ways
    exec_with_a_terminal_has_a_size_and_a_name
    dropping_an_exec_kills_it
    attach_sees_output_from_now_on
    attached_stdin_once_closes_with_its_client
    attach_with_a_terminal_echoes_and_resizes
    port_forward_reaches_the_pods_loopback
}

async fn exec_sync_collects_output_and_exit_code(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let mut config = node.script(&sandbox, "main", "sleep 100");
    config.security.run_as_user = Some(1000);
    config.env.push(("FROM".into(), "config".into()));
    config.working_dir = Some("/tmp".into());
    let id = node.start(&sandbox, &config).await;
    let answer = node
        .exec(
            &id,
            "echo out; echo err >&2; id -u; echo $FROM; pwd; exit 3",
        )
        .await;
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout),
        "out\n1000\nconfig\n/tmp\n"
    );
    assert_eq!(
        (answer.stderr.as_slice(), answer.exit_code),
        (b"err\n".as_slice(), 3)
    );
    assert_eq!(node.exec(&id, "kill -9 $$").await.exit_code, 137);
    let answer = node
        .runtime
        .exec_sync(&id, &["missing".into()], TIMEOUT)
        .await
        .unwrap();
    assert_eq!(answer.exit_code, 127);
    assert_eq!(
        answer.stderr,
        b"exec: \"missing\": executable file not found in $PATH"
    );
    let answer = node
        .runtime
        .exec_sync(&id, &["/not-executable".into()], TIMEOUT)
        .await
        .unwrap();
    assert_eq!(answer.exit_code, 126);
    // Something left behind that holds the output open does not hold up the answer.
    let asked = Instant::now();
    assert_eq!(node.exec_text(&id, "sleep 50 & echo done").await, "done\n");
    assert!(asked.elapsed() < Duration::from_secs(10));
    // More than a pipe holds, and a long command line.
    assert_eq!(
        node.exec_text(&id, "seq 1 30000").await.lines().count(),
        30000
    );
    let long = format!("echo {} | wc -c", "x".repeat(100_000));
    assert_eq!(node.exec_text(&id, &long).await.trim(), "100001");
    node.runtime
        .stop_container(&id, Duration::ZERO)
        .await
        .unwrap();
    let error = node
        .runtime
        .exec_sync(&id, &["true".into()], TIMEOUT)
        .await
        .unwrap_err();
    assert!(
        matches!(error, RuntimeError::FailedPrecondition(_)),
        "{error}"
    );
}

async fn exec_sync_kills_what_takes_too_long(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let id = node
        .start(&sandbox, &node.script(&sandbox, "main", "sleep 100"))
        .await;
    let command = [
        "/bin/sh".to_owned(),
        "-c".to_owned(),
        "sleep 60; true".to_owned(),
    ];
    // The shortest end while the command is still on its way into the container.
    for timeout_ms in [1, 2, 3, 4, 5, 6, 8, 10, 15, 200] {
        let error = node
            .runtime
            .exec_sync(&id, &command, Duration::from_millis(timeout_ms))
            .await
            .unwrap_err();
        assert!(
            matches!(error, RuntimeError::DeadlineExceeded { .. }),
            "{timeout_ms} ms: {error}"
        );
    }
    let deadline = Instant::now() + TIMEOUT;
    while node.exec_text(&id, "ps -o args").await.contains("sleep 60") {
        assert!(Instant::now() < deadline, "the command lives on");
    }
}

async fn exec_without_a_terminal_streams_both_ways(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let id = node
        .start(&sandbox, &node.script(&sandbox, "main", "sleep 100"))
        .await;
    let request = ExecRequest {
        command: vec![
            "/bin/sh".into(),
            "-c".into(),
            "cat; echo end >&2; exit 4".into(),
        ],
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut session = node.runtime.exec(&id, &request).await.unwrap();
    assert!(session.resize.is_none());
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"through\n").await.unwrap();
    let mut line = [0; 8];
    session
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .await
        .unwrap();
    assert_eq!(&line, b"through\n");
    drop(stdin);
    let mut rest = String::new();
    session
        .stderr
        .as_mut()
        .unwrap()
        .read_to_string(&mut rest)
        .await
        .unwrap();
    assert_eq!(rest, "end\n");
    assert_eq!(session.exit.await.unwrap(), 4);
    let missing = ExecRequest {
        command: vec!["missing".into()],
        ..request
    };
    let error = node.runtime.exec(&id, &missing).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "exec: \"missing\": executable file not found in $PATH"
    );
}

async fn exec_with_a_terminal_has_a_size_and_a_name(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let id = node
        .start(&sandbox, &node.script(&sandbox, "main", "sleep 100"))
        .await;
    let request = ExecRequest {
        command: vec![
            "/bin/sh".into(),
            "-c".into(),
            "tty; echo $TERM; read x; stty size; exit 9".into(),
        ],
        tty: true,
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let mut session = node.runtime.exec(&id, &request).await.unwrap();
    let resize = session.resize.take().unwrap();
    resize
        .send(TerminalSize {
            width: 123,
            height: 45,
        })
        .await
        .unwrap();
    let mut stdout = session.stdout.take().unwrap();
    let mut seen = String::new();
    while !seen.contains("xterm") {
        let mut byte = [0];
        stdout.read_exact(&mut byte).await.unwrap();
        seen.push(char::from(byte[0]));
    }
    // The size goes its own way; wait until it has arrived.
    resize.closed_after_use().await;
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"\n")
        .await
        .unwrap();
    stdout.read_to_string(&mut seen).await.unwrap();
    assert!(seen.starts_with("/dev/pts/"), "{seen:?}");
    assert!(seen.contains("45 123"), "{seen:?}");
    assert_eq!(session.exit.await.unwrap(), 9);
}

trait Drained {
    async fn closed_after_use(&self);
}

impl Drained for tokio::sync::mpsc::Sender<TerminalSize> {
    /// Waits until everything sent has been taken and acted on.
    async fn closed_after_use(&self) {
        while self.capacity() < self.max_capacity() {
            tokio::task::yield_now().await;
        }
        // Taken; the ioctl follows at once on the same task.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn dropping_an_exec_kills_it(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let id = node
        .start(&sandbox, &node.script(&sandbox, "main", "sleep 100"))
        .await;
    let request = ExecRequest {
        command: vec!["/bin/sh".into(), "-c".into(), "sleep 61; true".into()],
        tty: false,
        stdin: false,
        stdout: true,
        stderr: false,
    };
    let session = node.runtime.exec(&id, &request).await.unwrap();
    assert!(node.exec_text(&id, "ps -o args").await.contains("sleep 61"));
    drop(session);
    let deadline = Instant::now() + TIMEOUT;
    while node.exec_text(&id, "ps -o args").await.contains("sleep 61") {
        assert!(Instant::now() < deadline, "the command lives on");
    }
}

async fn attach_sees_output_from_now_on(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let script = "echo before; while ! [ -e /tmp/go ]; do sleep 0.01; done; seq 1 30000; echo oops >&2; exit 8";
    let config = node.script(&sandbox, "main", script);
    let id = node.start(&sandbox, &config).await;
    eventually("the first line", || {
        read_log(&config.log_path) == "before\n"
    })
    .await;
    let request = AttachRequest {
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let mut one = node.runtime.attach(&id, &request).await.unwrap();
    let mut two = node.runtime.attach(&id, &request).await.unwrap();
    // One that never reads and goes away must not hold up the others for ever.
    let gone = node.runtime.attach(&id, &request).await.unwrap();
    node.exec(&id, "touch /tmp/go").await;
    drop(gone);
    let mut expected = String::new();
    (1..=30000).for_each(|number| expected.push_str(&format!("{number}\n")));
    // Both are read at once: the app waits for the slower one.
    let read = async |session: &mut StreamSession| {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        session
            .stdout
            .as_mut()
            .unwrap()
            .read_to_string(&mut stdout)
            .await
            .unwrap();
        session
            .stderr
            .as_mut()
            .unwrap()
            .read_to_string(&mut stderr)
            .await
            .unwrap();
        (stdout, stderr)
    };
    let (first, second) = tokio::join!(read(&mut one), read(&mut two));
    for (stdout, stderr) in [first, second] {
        assert!(
            stdout == expected,
            "{} bytes of {}",
            stdout.len(),
            expected.len()
        );
        assert_eq!(stderr, "oops\n");
    }
    assert_eq!(one.exit.await.unwrap(), 8);
    assert!(read_log(&config.log_path).lines().count() == 30002);
}

async fn attached_stdin_once_closes_with_its_client(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let mut config = node.script(&sandbox, "main", "cat; echo end");
    config.stdin = true;
    config.stdin_once = true;
    let id = node.start(&sandbox, &config).await;
    let request = AttachRequest {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut session = node.runtime.attach(&id, &request).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    drop(stdin);
    let mut seen = String::new();
    session
        .stdout
        .as_mut()
        .unwrap()
        .read_to_string(&mut seen)
        .await
        .unwrap();
    assert_eq!(seen, "hello\nend\n");
    assert_eq!(session.exit.await.unwrap(), 0);
    // Without `stdin_once` it stays open for the next client.
    config.name = "again".into();
    config.log_path.set_file_name("again.log");
    config.stdin_once = false;
    config.command[2] = "head -n 2".into();
    let id = node.start(&sandbox, &config).await;
    for word in ["one\n", "two\n"] {
        let mut session = node.runtime.attach(&id, &request).await.unwrap();
        session
            .stdin
            .as_mut()
            .unwrap()
            .write_all(word.as_bytes())
            .await
            .unwrap();
        drop(session);
    }
    assert_eq!(node.exit(&id).await.exit_code, 0);
    assert_eq!(read_log(&config.log_path), "one\ntwo\n");
}

async fn attach_with_a_terminal_echoes_and_resizes(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let mut config = node.script(
        &sandbox,
        "main",
        "while read x; do stty size; echo got $x; [ $x = q ] && exit 2; done",
    );
    config.tty = true;
    config.stdin = true;
    let id = node.start(&sandbox, &config).await;
    let mut session = node
        .runtime
        .attach(
            &id,
            &AttachRequest {
                stdin: true,
                stdout: true,
                stderr: true,
            },
        )
        .await
        .unwrap();
    assert!(session.stderr.is_none());
    let resize = session.resize.take().unwrap();
    resize
        .send(TerminalSize {
            width: 99,
            height: 33,
        })
        .await
        .unwrap();
    resize.closed_after_use().await;
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"q\n")
        .await
        .unwrap();
    let mut seen = String::new();
    session
        .stdout
        .as_mut()
        .unwrap()
        .read_to_string(&mut seen)
        .await
        .unwrap();
    assert!(seen.contains("33 99") && seen.contains("got q"), "{seen:?}");
    assert_eq!(session.exit.await.unwrap(), 2);
    assert!(read_log(&config.log_path).contains("got q"));
}

async fn port_forward_reaches_the_pods_loopback(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let script = "nc -l -p 7777 -e cat & echo up; wait";
    let config = node.script(&sandbox, "main", script);
    let id = node.start(&sandbox, &config).await;
    let deadline = Instant::now() + TIMEOUT;
    let mut stream = loop {
        match node.runtime.port_forward(&sandbox, 7777).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
    let error = node
        .runtime
        .port_forward(&sandbox, 7778)
        .await
        .map(drop)
        .unwrap_err();
    assert!(error.to_string().contains("7778"), "{error}");
    node.runtime
        .stop_container(&id, Duration::ZERO)
        .await
        .unwrap();
}

//! What is peculiar to containers of an engine.

use std::{process::Command, time::Duration};

use wherry_runtime_api::{
    conformance::{ShellNode, read_log},
    *,
};

use crate::node::{Node, eventually, open, tests};

tests! {
    containers_of_others_are_never_touched
    two_nodes_share_an_engine
    the_pause_container_reaps_for_the_pod
    a_container_removed_by_somebody_else_has_exited
    a_long_line_of_a_terminal_is_logged_in_parts
    output_of_a_hundred_thousand_lines_is_whole
    privileges_the_engine_lacks_are_said
}

fn docker(node: &Node, arguments: &[&str]) -> String {
    let output = Command::new("docker")
        .args(["--host", &format!("unix://{}", node.socket.display())])
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn containers_of_others_are_never_touched(node: Node) {
    let uid = format!("uid-{}", std::process::id());
    let stranger = docker(
        &node,
        &[
            "run",
            "--detach",
            "--net=none",
            "--label",
            "io.kubernetes.pod.uid=x",
            "--label",
            &format!("io.wherry.node=/somewhere/{uid}"),
            "wherry.test/busybox:1",
            "sleep",
            "1000",
        ],
    );
    let plain = docker(
        &node,
        &[
            "run",
            "--detach",
            "--net=none",
            "wherry.test/busybox:1",
            "sleep",
            "1000",
        ],
    );
    let sandbox = node.sandbox("ours").await;
    let runtime = open(&node.socket, &node.place).await;
    let listed: Vec<_> = runtime.list_containers().await.unwrap();
    assert!(listed.is_empty(), "{listed:?}");
    for id in [&stranger, &plain] {
        let id = ContainerId::new(id.as_str());
        assert!(runtime.container_status(&id).await.is_err());
        runtime.stop_container(&id, Duration::ZERO).await.unwrap();
        runtime.remove_container(&id).await.unwrap();
        runtime
            .remove_pod_sandbox(&id.as_str().into())
            .await
            .unwrap();
    }
    runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
    for id in [&stranger, &plain] {
        let running = docker(&node, &["inspect", "--format", "{{.State.Running}}", id]);
        assert_eq!(running, "true");
        docker(&node, &["rm", "--force", id]);
    }
}

async fn two_nodes_share_an_engine(node: Node) {
    let other_place = node.place.join("other");
    let other = open(&node.socket, &other_place).await;
    let ours = node.sandbox("same-name").await;
    let mut config = node.sandbox_config("same-name");
    config.cgroup_parent.push_str("-other");
    let theirs = other.run_pod_sandbox(&config).await.unwrap();
    assert_ne!(ours.id, theirs.id);
    assert_eq!(other.list_pod_sandboxes().await.unwrap().len(), 1);
    other.remove_pod_sandbox(&theirs.id).await.unwrap();
    let left = node.runtime.list_pod_sandboxes().await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].state, PodSandboxState::Ready);
}

async fn the_pause_container_reaps_for_the_pod(node: Node) {
    let mut config = node.sandbox_config("reap");
    config.namespaces.pid = NamespaceMode::Pod;
    let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();
    let main = node.script(&sandbox, "main", "echo up; exec sleep 1000");
    let id = node.start(&sandbox, &main).await;
    // Orphans whose parent is gone fall to the first process of the namespace.
    node.exec_text(&id, "for i in 1 2 3; do (sleep 0.01 & ) ; done")
        .await;
    let zombies = || {
        let pid = sandbox.pid.unwrap();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        children.unwrap().split_whitespace().count()
    };
    eventually("the pause program reaps", || zombies() == 0).await;
}

async fn a_container_removed_by_somebody_else_has_exited(node: Node) {
    let sandbox = node.sandbox("removed").await;
    let config = node.script(&sandbox, "main", "echo up; exec sleep 1000");
    let id = node.start(&sandbox, &config).await;
    docker(&node, &["rm", "--force", id.as_str()]);
    let exit = node.exit(&id).await;
    assert_eq!(exit.exit_code, 137);
    node.runtime.remove_container(&id).await.unwrap();
    // The same of the pause container.
    let mut events = node.runtime.subscribe();
    docker(&node, &["rm", "--force", sandbox.id.as_str()]);
    loop {
        let event = tokio::time::timeout(crate::engine::TIMEOUT, events.recv()).await;
        if let RuntimeEvent::SandboxExited { id, .. } = event.unwrap().unwrap() {
            assert_eq!(id, sandbox.id);
            break;
        }
    }
    let listed = node.runtime.list_pod_sandboxes().await.unwrap();
    assert_eq!(listed[0].state, PodSandboxState::NotReady);
    let removed = node.runtime.remove_pod_sandbox(&sandbox.id).await;
    removed.unwrap();
}

async fn a_long_line_of_a_terminal_is_logged_in_parts(node: Node) {
    let sandbox = node.sandbox("long").await;
    for tty in [false, true] {
        let name = if tty { "terminal" } else { "pipe" };
        let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo end";
        let mut config = node.script(&sandbox, name, script);
        config.tty = tty;
        let (exit, text) = node.run(&sandbox, &config).await;
        assert_eq!(exit.exit_code, 0);
        let mut lines = text.lines();
        assert_eq!(
            lines.next().map(|line| line.trim_end().len()),
            Some(40000),
            "{name}"
        );
        assert_eq!(lines.next().map(str::trim_end), Some("end"), "{name}");
    }
}

async fn output_of_a_hundred_thousand_lines_is_whole(node: Node) {
    let sandbox = node.sandbox("lines").await;
    let config = node.script(&sandbox, "main", "exec seq 1 100000");
    let (exit, text) = node.run(&sandbox, &config).await;
    assert_eq!(exit.exit_code, 0);
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(text == expected, "{} lines", text.lines().count());
}

async fn privileges_the_engine_lacks_are_said(node: Node) {
    let sandbox = node.sandbox("lacks").await;
    let mut config = node.script(&sandbox, "main", "cat /proc/self/oom_score_adj");
    config.resources.oom_score_adj = Some(-500);
    let id = node.start(&sandbox, &config).await;
    let status = node.runtime.container_status(&id).await.unwrap();
    let exit = node.exit(&id).await;
    assert_eq!(exit.exit_code, 0);
    let got = read_log(&config.log_path);
    // Either it was set, or it was said.
    match got.trim() {
        "-500" => assert_eq!(status.warnings, [""; 0]),
        "0" => assert!(status.warnings[0].contains("oom_score_adj -500")),
        other => panic!("oom_score_adj is {other}"),
    }
}

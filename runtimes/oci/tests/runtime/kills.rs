//! The agent is killed with -9, at any moment.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use wherry_runtime_api::{
    conformance::{ShellNode, read_log},
    *,
};

use crate::harness::{Node, eventually, tests};

tests! { an_agent_killed_at_any_moment_leaves_nothing_behind_and_harms_nobody }

/// How often. Each time it gets a little further, or less far, than the time before.
const KILLS: u64 = 50;

/// An agent that makes pods and takes them away, until it is killed: the test binary's other self.
pub(crate) fn agent(args: Vec<OsString>) -> ExitCode {
    let [place, cgroup, image] = args.try_into().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let node = Node::existing(
            PathBuf::from(place),
            cgroup.into_string().unwrap(),
            image.into_string().unwrap(),
        )
        .await;
        loop {
            for old in node.runtime.list_pod_sandboxes().await.unwrap() {
                if old.config.name != "survivor" {
                    node.runtime.remove_pod_sandbox(&old.id).await.unwrap();
                }
            }
            let sandbox = node.sandbox("victim").await;
            let first = node
                .start(&sandbox, &node.script(&sandbox, "first", "sleep 1000"))
                .await;
            let second = node
                .start(&sandbox, &node.script(&sandbox, "second", "echo x"))
                .await;
            assert_eq!(node.exec(&first, "exit 4").await.exit_code, 4);
            node.runtime.remove_container(&second).await.unwrap();
            node.runtime
                .stop_container(&first, Duration::from_millis(5))
                .await
                .unwrap();
        }
    })
}

async fn an_agent_killed_at_any_moment_leaves_nothing_behind_and_harms_nobody(mut node: Node) {
    let sandbox = node.sandbox("survivor").await;
    let script = "i=0; while ! [ -e /tmp/stop ]; do i=$((i+1)); echo $i; sleep 0.002; done; echo end $i; sleep 1000";
    let config = node.script(&sandbox, "main", script);
    let id = node.start(&sandbox, &config).await;
    let before = node.runtime.container_status(&id).await.unwrap();
    node.stop_agent().await;

    for kill in 0..KILLS {
        let mut agent = Command::new(std::env::current_exe().unwrap())
            .arg("agent")
            .args([
                node.place.as_os_str(),
                node.cgroup.as_ref(),
                node.image("busybox").as_ref(),
            ])
            .spawn()
            .unwrap();
        // From before the runtime is open to several rounds later.
        tokio::time::sleep(Duration::from_millis(kill * 7 % 151)).await;
        assert_eq!(
            agent.try_wait().unwrap(),
            None,
            "the agent failed by itself"
        );
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    node.restart().await;
    assert_eq!(node.runtime.container_status(&id).await.unwrap(), before);
    assert_eq!(node.exec(&id, "touch /tmp/stop").await.exit_code, 0);
    eventually("the last line", || {
        read_log(&config.log_path).contains("end ")
    })
    .await;
    let log = read_log(&config.log_path);
    let lines: Vec<&str> = log.lines().collect();
    let (end, numbers) = lines.split_last().unwrap();
    assert_eq!(*end, format!("end {}", numbers.len()));
    assert!(
        numbers
            .iter()
            .enumerate()
            .all(|(index, line)| *line == (index + 1).to_string()),
        "lines are missing"
    );
}

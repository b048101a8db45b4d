mod contract;
mod resize;

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};
use wherry_runtime_api::{
    ImageError, RuntimeError,
    fake::{Behaviour, Call},
};

use crate::testing::{Node, condition, eventually, is_ready, pod};

fn exits(exit_code: i32) -> Behaviour {
    Behaviour {
        exits: Some((Duration::from_millis(20), exit_code)),
        ..Behaviour::default()
    }
}

fn two(policy: &str) -> Value {
    json!({
        "restartPolicy": policy,
        "containers": [{ "name": "a", "image": "nginx:1" }, { "name": "b", "image": "redis:1" }],
    })
}

fn one(policy: &str) -> Value {
    json!({ "restartPolicy": policy, "containers": [{ "name": "a", "image": "nginx:1" }] })
}

fn container<'a>(status: &'a Value, name: &str) -> &'a Value {
    let list = status["containerStatuses"].as_array().expect("containers");
    list.iter()
        .find(|container| container["name"] == name)
        .expect("a container")
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

#[tokio::test]
async fn a_pod_runs_with_its_addresses_and_is_gone_without_a_trace_when_deleted() {
    let node = Node::new();
    let agent = node.start().await;
    let pod = pod("p", two("Always"));
    agent.set(&pod).await;
    let status = agent.until_ready(&pod).await;
    assert_eq!(status["podIP"], "10.88.0.2");
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["qosClass"], "BestEffort");
    assert!(
        container(&status, "a")["containerID"]
            .as_str()
            .expect("an ID")
            .starts_with("oci://container-")
    );
    assert_eq!(container(&status, "a")["imageID"], "nginx:1@sha256:nginx:1");
    for kind in [
        "PodReadyToStartContainers",
        "Initialized",
        "ContainersReady",
        "PodScheduled",
    ] {
        assert_eq!(condition(&status, kind), "True", "{kind}");
    }
    assert_eq!(
        node.oci.journal(),
        [
            "run-sandbox 0",
            "create a/0",
            "start a/0",
            "create b/0",
            "start b/0"
        ]
    );
    agent.delete(&pod, 30).await;
    agent.until_gone(&pod).await;
    assert_eq!(node.oci.held(), (0, 0));
    assert!(node.network.attached.lock().expect("idle").is_empty());
    assert!(node.volumes.mounted.lock().expect("idle").is_empty());
    assert!(
        is_empty(&node.root.path().join("pods")) && is_empty(&node.root.path().join("log/pods"))
    );
}

#[tokio::test]
async fn the_restart_table_holds() {
    // Policy, exit codes of the one or two containers, whether they are restarted, phase.
    let table: [(&str, &[i32], bool, &str); 12] = [
        ("Always", &[0], true, "Running"),
        ("OnFailure", &[0], false, "Succeeded"),
        ("Never", &[0], false, "Succeeded"),
        ("Always", &[1], true, "Running"),
        ("OnFailure", &[1], true, "Running"),
        ("Never", &[1], false, "Failed"),
        ("Always", &[1, 1], true, "Running"),
        ("OnFailure", &[1, 1], true, "Running"),
        ("Never", &[1, 1], false, "Failed"),
        ("OnFailure", &[0, 0], false, "Succeeded"),
        ("Never", &[0, 1], false, "Failed"),
        ("Never", &[0, 0], false, "Succeeded"),
    ];
    for (policy, codes, restarts, phase) in table {
        let node = Node::new();
        node.oci.behave("nginx:1", exits(codes[0]));
        node.oci
            .behave("redis:1", exits(*codes.get(1).unwrap_or(&0)));
        let agent = node.start().await;
        let spec = if codes.len() == 1 {
            one(policy)
        } else {
            two(policy)
        };
        let pod = pod("p", spec);
        agent.set(&pod).await;
        let what = format!("{policy} {codes:?}");
        let has_restarted =
            |status: &Value| status["containerStatuses"][0]["restartCount"].as_i64() >= Some(1);
        if restarts {
            let status = agent.until(&pod, &what, has_restarted).await;
            assert_eq!(status["phase"], phase, "{what}");
        } else {
            let status = agent.until_phase(&pod, phase).await;
            assert!(!has_restarted(&status), "{what}");
        }
    }
}

#[tokio::test]
async fn with_never_a_pod_runs_on_until_its_last_container_has_ended() {
    let node = Node::new();
    let agent = node.start().await;
    let pod = pod("p", two("Never"));
    agent.set(&pod).await;
    agent.until_ready(&pod).await;
    node.oci.exit("p", "a", 1, false);
    let status = agent
        .until(&pod, "a ended", |s| {
            container(s, "a")["state"]["terminated"].is_object()
        })
        .await;
    assert_eq!(
        (&status["phase"], condition(&status, "Ready")),
        (&json!("Running"), "False")
    );
    assert_eq!(
        container(&status, "a")["state"]["terminated"]["reason"],
        "Error"
    );
    node.oci.exit("p", "b", 0, false);
    agent.until_phase(&pod, "Failed").await;
    assert!(
        node.network.attached.lock().expect("idle").is_empty() || node.oci.running().is_empty()
    );
    // What ended is still there to be looked at, and goes with the pod.
    assert_eq!(node.oci.held(), (1, 2));
    agent.delete(&pod, 0).await;
    agent.until_gone(&pod).await;
    assert_eq!(node.oci.held(), (0, 0));
}

#[tokio::test]
async fn a_crash_loop_waits_longer_each_time_and_says_so() {
    let node = Node::new();
    node.oci.behave("nginx:1", exits(7));
    let agent = node.start().await;
    let pod = pod("p", one("Always"));
    agent.set(&pod).await;
    let waits = |status: &Value| {
        status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    };
    let status = agent.until(&pod, "waiting", waits).await;
    let a = container(&status, "a");
    let message = a["state"]["waiting"]["message"]
        .as_str()
        .expect("a message");
    assert_eq!(
        message,
        "back-off 100ms restarting failed container=a pod=p_ns(p)"
    );
    assert_eq!(a["lastState"]["terminated"]["exitCode"], 7);
    let longer = |status: &Value| {
        let message = status["containerStatuses"][0]["state"]["waiting"]["message"]
            .as_str()
            .unwrap_or_default();
        message.starts_with("back-off 400ms ")
    };
    let status = agent.until(&pod, "a longer pause", longer).await;
    assert!(container(&status, "a")["restartCount"].as_i64() >= Some(3));
    // One attempt before the last is kept for `logs --previous`, and no more.
    assert!(node.oci.held().1 <= 2, "{:?}", node.oci.held());
}

#[tokio::test]
async fn a_killed_agent_leaves_pods_running_and_the_next_one_takes_them_over() {
    let node = Node::new();
    let agent = node.start().await;
    let pod = pod("p", two("Always"));
    agent.set(&pod).await;
    agent.until_ready(&pod).await;
    node.oci.exit("p", "b", 3, false);
    let restarted = |s: &Value| is_ready(s) && container(s, "b")["restartCount"] == 1;
    let before = agent.until(&pod, "b restarted", restarted).await;
    let journal = node.oci.journal();
    tokio::time::sleep(Duration::from_millis(50)).await;
    agent.kill().await;
    assert_eq!(node.oci.running(), ["a", "b"]);
    let agent = node.start().await;
    // No API server so far: the pod is known from the disk, and its status did not change.
    let after = agent.until_ready(&pod).await;
    assert_eq!(before, after);
    agent.tell_all(&[&pod]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(agent.status(&pod), before);
    assert_eq!(node.oci.journal(), journal);
    agent.delete(&pod, 1).await;
    agent.until_gone(&pod).await;
    assert_eq!(node.oci.held(), (0, 0));
}

#[tokio::test]
async fn an_agent_killed_at_any_moment_of_a_start_leaves_nothing_twice_and_nothing_behind() {
    for delay_ms in 0..12 {
        let node = Node::new();
        for call in [
            Call::RunPodSandbox,
            Call::CreateContainer,
            Call::StartContainer,
        ] {
            node.oci.delay(call, Duration::from_millis(2));
        }
        let pod = pod("p", two("Always"));
        let agent = node.start().await;
        agent.set(&pod).await;
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        agent.kill().await;
        let agent = node.start().await;
        agent.set(&pod).await;
        agent.tell_all(&[&pod]).await;
        let status = agent.until_ready(&pod).await;
        assert_eq!(
            container(&status, "a")["restartCount"],
            0,
            "killed after {delay_ms} ms"
        );
        assert_eq!(
            node.oci.held(),
            (1, 2),
            "killed after {delay_ms} ms: {:?}",
            node.oci.journal()
        );
        agent.kill().await;
        // The pod was deleted while there was no agent.
        let agent = node.start().await;
        agent.tell_all(&[]).await;
        eventually("swept", || node.oci.held() == (0, 0)).await;
        eventually("forgotten", || is_empty(&node.root.path().join("pods"))).await;
        assert!(agent.status(&pod).is_null() || node.oci.running().is_empty());
    }
}

#[tokio::test]
async fn a_delete_during_a_slow_start_loses_no_sandbox() {
    let node = Node::new();
    node.oci
        .delay(Call::RunPodSandbox, Duration::from_millis(200));
    let agent = node.start().await;
    let pod = pod("p", one("Always"));
    agent.set(&pod).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    agent.delete(&pod, 30).await;
    agent.until_gone(&pod).await;
    assert_eq!(node.oci.held(), (0, 0));
    assert!(!node.oci.journal().contains(&"start a/0".to_owned()));
    assert!(node.network.attached.lock().expect("idle").is_empty());
}

#[tokio::test]
async fn containers_end_before_the_sandbox_and_a_second_delete_shortens_the_wait() {
    let node = Node::new();
    node.oci.behave(
        "nginx:1",
        Behaviour {
            stops_after: None,
            ..Behaviour::default()
        },
    );
    let agent = node.start().await;
    let pod = pod("p", two("Always"));
    agent.set(&pod).await;
    agent.until_ready(&pod).await;
    let begun = std::time::Instant::now();
    agent.delete(&pod, 600).await;
    eventually("b stopped", || node.oci.running() == ["a"]).await;
    agent.delete(&pod, 0).await;
    agent.until_gone(&pod).await;
    assert!(begun.elapsed() < Duration::from_secs(8));
    let journal = node.oci.journal();
    let at = |line: &str| {
        journal
            .iter()
            .rposition(|there| there == line)
            .expect("journalled")
    };
    assert!(at("stop a/0") < at("stop-sandbox 0") && at("stop b/0") < at("stop-sandbox 0"));
    assert!(at("stop-sandbox 0") < at("remove-sandbox 0"));
}

#[tokio::test]
async fn a_lost_sandbox_is_replaced_and_its_containers_started_again() {
    let node = Node::new();
    let agent = node.start().await;
    let pod = pod("p", two("Always"));
    agent.set(&pod).await;
    agent.until_ready(&pod).await;
    node.oci.lose_sandbox("p");
    let status = agent
        .until(&pod, "restarted", |s| {
            is_ready(s) && container(s, "a")["restartCount"] == 1
        })
        .await;
    assert_eq!(status["podIP"], "10.88.0.2");
    assert!(node.oci.journal().contains(&"run-sandbox 1".to_owned()));
}

#[tokio::test]
async fn a_lost_sandbox_ends_a_pod_that_is_never_restarted() {
    let node = Node::new();
    let agent = node.start().await;
    let pod = pod("p", two("Never"));
    agent.set(&pod).await;
    agent.until_ready(&pod).await;
    node.oci.lose_sandbox("p");
    agent.until_phase(&pod, "Failed").await;
    assert!(!node.oci.journal().contains(&"run-sandbox 1".to_owned()));
}

#[tokio::test]
async fn init_containers_run_one_after_the_other_before_the_rest() {
    let node = Node::new();
    node.oci.behave("redis:1", exits(0));
    let agent = node.start().await;
    let init = |name: &str| json!({ "name": name, "image": "redis:1" });
    let spec = json!({
        "initContainers": [init("i1"), init("i2")],
        "containers": [{ "name": "a", "image": "nginx:1" }],
    });
    let pod = pod("p", spec);
    agent.set(&pod).await;
    let status = agent
        .until(&pod, "initializing", |s| {
            s["containerStatuses"][0]["state"]["waiting"].is_object()
        })
        .await;
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    let status = agent.until_ready(&pod).await;
    assert_eq!(
        status["initContainerStatuses"][1]["state"]["terminated"]["reason"],
        "Completed"
    );
    let starts: Vec<_> = node
        .oci
        .journal()
        .into_iter()
        .filter(|line| line.starts_with("start "))
        .collect();
    assert_eq!(starts, ["start i1/0", "start i2/0", "start a/0"]);
}

#[tokio::test]
async fn a_failed_init_container_fails_a_pod_that_is_never_restarted() {
    let node = Node::new();
    node.oci.behave("redis:1", exits(1));
    let agent = node.start().await;
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{ "name": "i", "image": "redis:1" }],
        "containers": [{ "name": "a", "image": "nginx:1" }],
    });
    let pod = pod("p", spec);
    agent.set(&pod).await;
    let status = agent.until_phase(&pod, "Failed").await;
    assert_eq!(condition(&status, "Initialized"), "False");
    assert!(!node.oci.journal().contains(&"create a/0".to_owned()));
}

#[tokio::test]
async fn a_sidecar_starts_first_runs_beside_and_ends_last() {
    let node = Node::new();
    let agent = node.start().await;
    let spec = json!({
        "initContainers": [{ "name": "s", "image": "redis:1", "restartPolicy": "Always" }],
        "containers": [{ "name": "a", "image": "nginx:1" }],
    });
    let pod = pod("p", spec);
    agent.set(&pod).await;
    agent.until_ready(&pod).await;
    assert_eq!(node.oci.running(), ["a", "s"]);
    agent.delete(&pod, 5).await;
    agent.until_gone(&pod).await;
    let journal = node.oci.journal();
    let at = |line: &str| {
        journal
            .iter()
            .position(|there| there == line)
            .expect("journalled")
    };
    assert!(at("start s/0") < at("create a/0") && at("stop a/0") < at("stop s/0"));
}

#[tokio::test]
async fn a_pod_of_wasm_alone_is_confined_and_a_mixed_one_shares_the_containers_sandbox() {
    let node = Node::new();
    let agent = node.start().await;
    let alone = pod(
        "alone",
        json!({ "containers": [{ "name": "w", "image": "hello:1" }] }),
    );
    agent.set(&alone).await;
    let status = agent.until_ready(&alone).await;
    assert!(
        container(&status, "w")["containerID"]
            .as_str()
            .expect("an ID")
            .starts_with("wasm://")
    );
    assert_eq!((node.wasm.held(), node.oci.held()), ((1, 1), (0, 0)));
    let mixed = pod(
        "mixed",
        json!({ "containers": [{ "name": "a", "image": "nginx:1" }, { "name": "w", "image": "hello:1" }] }),
    );
    agent.set(&mixed).await;
    agent.until_ready(&mixed).await;
    assert_eq!((node.wasm.held(), node.oci.held()), ((1, 2), (1, 1)));
    agent.delete(&mixed, 1).await;
    agent.delete(&alone, 1).await;
    agent.until_gone(&mixed).await;
    agent.until_gone(&alone).await;
    assert_eq!((node.wasm.held(), node.oci.held()), ((0, 0), (0, 0)));
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_is_told_and_tried_again() {
    let node = Node::new();
    node.images.fail_next(ImageError::Unavailable {
        reference: "nginx:1".into(),
        why: "registry answered 503".into(),
    });
    let agent = node.start().await;
    let pod = pod("p", two("Always"));
    agent.set(&pod).await;
    let waits = |s: &Value| {
        s["containerStatuses"][0]["state"]["waiting"]["reason"] == "RegistryUnavailable"
    };
    let status = agent.until(&pod, "RegistryUnavailable", waits).await;
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"]
        .as_str()
        .expect("a message");
    assert!(message.contains("registry answered 503"), "{message}");
    agent.until_ready(&pod).await;
}

#[tokio::test]
async fn an_image_that_is_not_there_backs_off_while_the_other_container_runs() {
    let node = Node::new();
    let agent = node.start().await;
    let spec = json!({ "containers": [{ "name": "a", "image": "nope:1" }, { "name": "b", "image": "redis:1" }] });
    let pod = pod("p", spec);
    agent.set(&pod).await;
    let backs_off = |s: &Value| {
        s["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff"
            && s["containerStatuses"][1]["state"]["running"].is_object()
    };
    let status = agent.until(&pod, "ImagePullBackOff", backs_off).await;
    assert_eq!(status["phase"], "Pending");
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"]
        .as_str()
        .expect("a message");
    assert!(
        message.starts_with("Back-off pulling image \"nope:1\": ErrImagePull: "),
        "{message}"
    );
}

#[tokio::test]
async fn what_the_config_refers_to_has_to_be_there() {
    let node = Node::new();
    let agent = node.start().await;
    let key = json!({ "secretKeyRef": { "name": "s", "key": "k" } });
    let spec = json!({ "containers": [{ "name": "a", "image": "nginx:1", "env": [{ "name": "X", "valueFrom": key }] }] });
    let pod = pod("p", spec);
    agent.set(&pod).await;
    let waits = |s: &Value| {
        s["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    };
    agent.until(&pod, "CreateContainerConfigError", waits).await;
}

#[tokio::test]
async fn a_runtime_that_refuses_is_told_with_the_right_reason() {
    let node = Node::new();
    node.oci.fail_next(
        Call::CreateContainer,
        RuntimeError::InvalidArgument("no command".into()),
    );
    node.wasm.fail_next(
        Call::StartContainer,
        RuntimeError::InvalidArgument("exec: \"x\": not found".into()),
    );
    let agent = node.start().await;
    let create = pod("create", one("Always"));
    agent.set(&create).await;
    let waiting = |s: &Value| s["containerStatuses"][0]["state"]["waiting"].clone();
    let status = agent
        .until(&create, "refused", |s| {
            waiting(s)["reason"] == "CreateContainerError"
        })
        .await;
    assert_eq!(waiting(&status)["message"], "no command");
    agent.until_ready(&create).await;
    let start = pod(
        "start",
        json!({ "restartPolicy": "Never", "containers": [{ "name": "w", "image": "hello:1" }] }),
    );
    agent.set(&start).await;
    let status = agent.until_phase(&start, "Failed").await;
    let end = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&end["reason"], &end["exitCode"]),
        (&json!("StartError"), &json!(128))
    );
    assert_eq!(end["message"], "exec: \"x\": not found");
}

#[tokio::test]
async fn a_network_or_volume_that_is_not_there_yet_is_waited_for() {
    let node = Node::new();
    *node.volumes.fails.lock().expect("idle") = Some("no such volume".into());
    let agent = node.start().await;
    let pod = pod("p", one("Always"));
    agent.set(&pod).await;
    let status = agent.until_phase(&pod, "Pending").await;
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["reason"],
        "ContainerCreating"
    );
    assert_eq!(condition(&status, "PodReadyToStartContainers"), "False");
    *node.network.fails.lock().expect("idle") = Some("no address left".into());
    *node.volumes.fails.lock().expect("idle") = None;
    eventually("a sandbox", || node.oci.held().0 == 1).await;
    *node.network.fails.lock().expect("idle") = None;
    agent.until_ready(&pod).await;
    assert_eq!(node.oci.held(), (1, 1));
}

#[tokio::test]
async fn readiness_follows_its_probe_and_does_not_flip_over_a_restart_of_the_agent() {
    let node = Node::new();
    node.oci.exec_exits("ready", 1);
    let spec = json!({ "containers": [{
        "name": "a",
        "image": "nginx:1",
        "readinessProbe": { "exec": { "command": ["ready"] }, "periodSeconds": 1, "failureThreshold": 1 },
    }] });
    let mut pod = pod("p", spec);
    let fast = [("wherry.dev/probe-period-ms".to_owned(), "100".to_owned())];
    pod.metadata.annotations = Some(fast.into());
    let agent = node.start().await;
    agent.set(&pod).await;
    let status = agent
        .until(&pod, "running", |s| {
            s["containerStatuses"][0]["state"]["running"].is_object()
        })
        .await;
    assert_eq!(
        (status["phase"].as_str(), condition(&status, "Ready")),
        (Some("Running"), "False")
    );
    node.oci.exec_exits("ready", 0);
    let before = agent.until_ready(&pod).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    agent.kill().await;
    let agent = node.start().await;
    let after = agent.until(&pod, "known", |s| s["phase"].is_string()).await;
    assert_eq!(before, after);
    node.oci.exec_exits("ready", 1);
    agent
        .until(&pod, "unready", |s| condition(s, "Ready") == "False")
        .await;
}

#[tokio::test]
async fn a_container_whose_liveness_fails_is_killed_and_started_again() {
    let node = Node::new();
    node.oci.exec_exits("alive", 1);
    let spec = json!({ "containers": [{
        "name": "a",
        "image": "nginx:1",
        "livenessProbe": { "exec": { "command": ["alive"] }, "failureThreshold": 2 },
    }] });
    let mut pod = pod("p", spec);
    let fast = [("wherry.dev/probe-period-ms".to_owned(), "100".to_owned())];
    pod.metadata.annotations = Some(fast.into());
    let agent = node.start().await;
    agent.set(&pod).await;
    agent
        .until(&pod, "restarted", |s| {
            s["containerStatuses"][0]["restartCount"].as_i64() >= Some(1)
        })
        .await;
    assert!(node.oci.journal().contains(&"stop a/0".to_owned()));
}

#[tokio::test]
async fn failures_before_a_restart_of_the_agent_count_after_it() {
    let node = Node::new();
    node.oci.exec_exits("alive", 1);
    let spec = json!({ "containers": [{
        "name": "a",
        "image": "nginx:1",
        "livenessProbe": { "exec": { "command": ["alive"] }, "failureThreshold": 4 },
    }] });
    let mut pod = pod("p", spec);
    let fast = [("wherry.dev/probe-period-ms".to_owned(), "100".to_owned())];
    pod.metadata.annotations = Some(fast.into());
    let checks = || {
        let journal = node.oci.journal();
        let until = journal.iter().position(|line| line == "stop a/0");
        let before = &journal[..until.unwrap_or(journal.len())];
        before
            .iter()
            .filter(|line| *line == "exec a/0 alive")
            .count()
    };
    let agent = node.start().await;
    agent.set(&pod).await;
    eventually("three checks", || checks() >= 3).await;
    agent.kill().await;
    let agent = node.start().await;
    agent
        .until(&pod, "restarted", |s| {
            s["containerStatuses"][0]["restartCount"].as_i64() >= Some(1)
        })
        .await;
    // The one that was under way when the agent died may have been made twice.
    assert!((4..=5).contains(&checks()), "{:?}", node.oci.journal());
}

#[tokio::test]
async fn hooks_run_after_the_start_and_before_the_stop() {
    let node = Node::new();
    let agent = node.start().await;
    let hook = |program: &str| json!({ "exec": { "command": [program] } });
    let spec = json!({ "containers": [{
        "name": "a",
        "image": "nginx:1",
        "lifecycle": { "postStart": hook("hello"), "preStop": hook("bye") },
    }] });
    let pod = pod("p", spec);
    agent.set(&pod).await;
    agent.until_ready(&pod).await;
    eventually("hook", || {
        node.oci.journal().contains(&"exec a/0 hello".to_owned())
    })
    .await;
    agent.delete(&pod, 5).await;
    agent.until_gone(&pod).await;
    let journal = node.oci.journal();
    let at = |line: &str| {
        journal
            .iter()
            .position(|there| there == line)
            .expect("journalled")
    };
    assert!(at("exec a/0 bye") < at("stop a/0"));
}

#[tokio::test]
async fn a_pod_that_is_removed_without_a_mark_is_stopped_and_forgotten() {
    let node = Node::new();
    let agent = node.start().await;
    let pod = pod("p", one("Always"));
    agent.set(&pod).await;
    agent.until_ready(&pod).await;
    agent.remove(&pod).await;
    agent.until_gone(&pod).await;
    assert_eq!(node.oci.held(), (0, 0));
}

#[tokio::test]
async fn a_pod_past_its_deadline_fails() {
    let node = Node::new();
    let agent = node.start().await;
    let mut spec = one("Always");
    spec["activeDeadlineSeconds"] = json!(1);
    let pod = pod("p", spec);
    agent.set(&pod).await;
    let status = agent.until_phase(&pod, "Failed").await;
    assert_eq!(status["reason"], "DeadlineExceeded");
    eventually("stopped", || node.oci.running().is_empty()).await;
}

#[tokio::test]
async fn a_pod_the_node_refuses_fails_and_makes_nothing() {
    let node = Node::new();
    let agent = node.start().await;
    let context = json!({ "privileged": true });
    let spec =
        json!({ "containers": [{ "name": "a", "image": "nginx:1", "securityContext": context }] });
    let pod = pod("p", spec);
    agent.set(&pod).await;
    let status = agent.until_phase(&pod, "Failed").await;
    assert_eq!(status["reason"], "Forbidden");
    assert_eq!(node.oci.held(), (0, 0));
}

#[tokio::test]
async fn an_oom_kill_is_told_as_such() {
    let node = Node::new();
    let agent = node.start().await;
    let pod = pod("p", one("Never"));
    agent.set(&pod).await;
    agent.until_ready(&pod).await;
    node.oci.exit("p", "a", 137, true);
    let status = agent.until_phase(&pod, "Failed").await;
    let end = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&end["reason"], &end["exitCode"]),
        (&json!("OOMKilled"), &json!(137))
    );
}

#[tokio::test]
async fn last_words_are_in_the_status() {
    let node = Node::new();
    let agent = node.start().await;
    let pod = pod("p", one("Never"));
    agent.set(&pod).await;
    agent.until_ready(&pod).await;
    let path = node.root.path().join("pods/p/containers/a/0");
    fs::write(path, "out of coffee").expect("made before the container");
    node.oci.exit("p", "a", 1, false);
    let status = agent.until_phase(&pod, "Failed").await;
    assert_eq!(
        status["containerStatuses"][0]["state"]["terminated"]["message"],
        "out of coffee"
    );
}

//! Rows of the pod contract: ephemeral containers, user namespaces, rules, what is refused.

use std::time::Duration;

use serde_json::{Value, json};
use wherry_runtime_api::{RuntimeFeatures, UserNamespace, fake::Behaviour};

use super::{container, exits, one};
use crate::testing::{Node, condition, eventually, pod};

fn ephemeral<'a>(status: &'a Value, name: &str) -> &'a Value {
    let list = status["ephemeralContainerStatuses"].as_array();
    let mut list = list.into_iter().flatten();
    list.find(|c| c["name"] == name).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn an_ephemeral_container_joins_a_running_pod_and_is_never_restarted() {
    let node = Node::new();
    let agent = node.start().await;
    let plain = pod("p", one("Always"));
    agent.set(&plain).await;
    agent.until_ready(&plain).await;
    let debugger = |name: &str, image: &str, target: Option<&str>| json!({ "name": name, "image": image, "targetContainerName": target });
    let with = |list: Vec<Value>| {
        let mut spec = one("Always");
        spec["ephemeralContainers"] = json!(list);
        pod("p", spec)
    };
    let debugged = with(vec![debugger("d1", "redis:1", Some("a"))]);
    agent.set(&debugged).await;
    let status = agent
        .until(&debugged, "debugged", |s| {
            ephemeral(s, "d1")["state"]["running"].is_object()
        })
        .await;
    assert_eq!(container(&status, "a")["restartCount"], 0);
    assert_eq!(
        (
            ephemeral(&status, "d1")["ready"].as_bool(),
            condition(&status, "Ready")
        ),
        (Some(false), "True")
    );
    let target = node
        .oci
        .config("p", "d1")
        .expect("it runs")
        .pid_target
        .expect("a target");
    let id = container(&status, "a")["containerID"]
        .as_str()
        .expect("an ID");
    assert_eq!(id, format!("oci://{target}"));
    node.oci.exit("p", "d1", 3, false);
    // Another one, into the Wasm runtime, and one whose target is not there.
    let debugged = with(vec![
        debugger("d1", "redis:1", Some("a")),
        debugger("d2", "hello:1", None),
        debugger("d3", "redis:1", Some("nobody")),
        debugger("d4", "hello:1", Some("a")),
    ]);
    agent.set(&debugged).await;
    let status = agent
        .until(&debugged, "all were tried", |s| {
            ephemeral(s, "d2")["state"]["running"].is_object()
                && ephemeral(s, "d3")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
                && ephemeral(s, "d4")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        })
        .await;
    assert_eq!(
        ephemeral(&status, "d1")["state"]["terminated"]["exitCode"],
        3
    );
    assert_eq!(ephemeral(&status, "d1")["restartCount"], 0);
    assert_eq!(
        ephemeral(&status, "d3")["state"]["waiting"]["message"],
        "unable to find target container \"nobody\""
    );
    // A new agent restarts none of them either.
    let journal = node.oci.journal();
    tokio::time::sleep(Duration::from_millis(50)).await;
    agent.kill().await;
    let agent = node.start().await;
    agent.set(&debugged).await;
    agent
        .until(&debugged, "known", |s| {
            ephemeral(s, "d1")["state"]["terminated"].is_object()
        })
        .await;
    assert_eq!(node.oci.journal(), journal);
    agent.delete(&debugged, 1).await;
    agent.until_gone(&debugged).await;
    assert_eq!((node.oci.held(), node.wasm.held()), ((0, 0), (0, 0)));
}

#[tokio::test]
async fn a_pod_ends_though_its_ephemeral_container_runs() {
    let node = Node::new();
    let agent = node.start().await;
    let mut spec = one("Never");
    spec["ephemeralContainers"] = json!([{ "name": "d", "image": "redis:1" }]);
    let pod = pod("p", spec);
    agent.set(&pod).await;
    agent
        .until(&pod, "debugged", |s| {
            ephemeral(s, "d")["state"]["running"].is_object()
        })
        .await;
    agent.until_ready(&pod).await;
    node.oci.exit("p", "a", 0, false);
    agent.until_phase(&pod, "Succeeded").await;
    eventually("stopped", || node.oci.running().is_empty()).await;
}

#[tokio::test]
async fn a_pod_with_users_of_its_own_has_a_range_or_is_not_started() {
    let node = Node::new();
    let agent = node.start().await;
    let mut spec = one("Always");
    spec["hostUsers"] = json!(false);
    let (a, b) = (pod("a", spec.clone()), pod("b", spec));
    agent.set(&a).await;
    let status = agent.until_phase(&a, "Pending").await;
    assert_eq!(condition(&status, "PodReadyToStartContainers"), "False");
    assert_eq!(node.oci.held(), (0, 0));
    node.oci.offer(RuntimeFeatures {
        user_namespaces: true,
        ..RuntimeFeatures::default()
    });
    // What a runtime offers does not change while it runs: a new agent asks anew.
    agent.kill().await;
    let agent = node.start().await;
    agent.set(&a).await;
    agent.set(&b).await;
    agent.until_ready(&a).await;
    agent.until_ready(&b).await;
    let range = |name: &str| node.oci.sandbox_config(name).expect("runs").user_namespace;
    let (first, second) = (range("a").expect("a range"), range("b").expect("a range"));
    assert_eq!((first.length, second.length), (65_536, 65_536));
    assert_ne!(first.host_id, second.host_id);
    agent.delete(&a, 0).await;
    agent.until_gone(&a).await;
    let mut spec = one("Always");
    spec["hostUsers"] = json!(false);
    let c = pod("c", spec);
    agent.set(&c).await;
    agent.until_ready(&c).await;
    let free = UserNamespace {
        host_id: first.host_id,
        length: 65_536,
    };
    assert_eq!(range("c"), Some(free));
}

#[tokio::test]
async fn a_container_may_have_a_restart_policy_and_rules_of_its_own() {
    let node = Node::new();
    node.oci.behave("nginx:1", exits(42));
    node.oci.behave("redis:1", exits(1));
    let agent = node.start().await;
    let rule = json!({ "action": "Restart", "exitCodes": { "operator": "In", "values": [42] } });
    let spec = json!({
        "restartPolicy": "Never",
        "containers": [
            { "name": "a", "image": "nginx:1", "restartPolicy": "Never", "restartPolicyRules": [rule] },
            { "name": "b", "image": "redis:1" },
        ],
    });
    let pod = pod("p", spec);
    agent.set(&pod).await;
    let status = agent
        .until(&pod, "restarted", |s| {
            s["containerStatuses"][0]["restartCount"].as_i64() >= Some(1)
        })
        .await;
    assert_eq!(status["phase"], "Running");
    assert_eq!(container(&status, "b")["restartCount"], 0);
    node.oci.behave("nginx:1", exits(7));
    let status = agent.until_phase(&pod, "Failed").await;
    assert_eq!(
        container(&status, "a")["state"]["terminated"]["exitCode"],
        7
    );
}

#[tokio::test]
async fn requests_that_do_not_fit_are_refused_with_the_kubelets_words() {
    let node = Node::new();
    let agent = node.start().await;
    let mut spec = one("Always");
    spec["containers"][0]["resources"] = json!({ "requests": { "cpu": "1000" } });
    let pod = pod("p", spec);
    agent.set(&pod).await;
    let status = agent.until_phase(&pod, "Failed").await;
    assert_eq!(status["reason"], "OutOfcpu");
    let message = status["message"].as_str().expect("a message");
    assert!(
        message.starts_with(
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: 0, capacity: "
        ),
        "{message}"
    );
    assert_eq!(node.oci.held(), (0, 0));
}

#[tokio::test]
async fn a_pod_waits_for_a_port_of_the_node_that_a_pod_holds_which_is_being_ended() {
    let node = Node::new();
    let agent = node.start().await;
    node.oci.behave(
        "nginx:1",
        Behaviour {
            stops_after: None,
            ..Behaviour::default()
        },
    );
    let with_port = |uid: &str| {
        let mut spec = one("Always");
        spec["containers"][0]["ports"] = json!([{ "containerPort": 80, "hostPort": 8080 }]);
        pod(uid, spec)
    };
    // What was told before it has been taken in when a pod that came after it runs.
    let after = async |uid: &str| {
        let other = pod(
            uid,
            json!({ "containers": [{ "name": "a", "image": "redis:1" }] }),
        );
        agent.set(&other).await;
        agent.until_ready(&other).await;
    };
    let (old, new) = (with_port("old"), with_port("new"));
    agent.set(&old).await;
    agent.until_ready(&old).await;
    // By force: the API server has forgotten it, and the scheduler takes the port for free.
    agent.remove(&old).await;
    agent.set(&new).await;
    after("one").await;
    assert_eq!(agent.status(&new), Value::Null, "it waits");
    let shown = agent.context.publisher.newest(&crate::pod::uid(&new));
    let shown = serde_json::to_value(shown).expect("a status is JSON");
    assert_eq!(shown["phase"], "Pending");
    let waiting = &shown["containerStatuses"][0]["state"]["waiting"]["message"];
    let waiting = waiting.as_str().unwrap_or_default();
    assert!(
        waiting.contains("ns/old") && waiting.contains("free ports"),
        "{shown:#}"
    );
    node.oci.exit("old", "a", 0, false);
    agent.until_gone(&old).await;
    agent.until_ready(&new).await;

    let clash = with_port("clash");
    agent.set(&clash).await;
    let status = agent.until_phase(&clash, "Failed").await;
    assert_eq!(status["reason"], "NodePorts", "nobody is being ended");

    // One that waits may be taken back.
    let late = with_port("late");
    agent.delete(&new, 30).await;
    agent.set(&late).await;
    after("two").await;
    agent.remove(&late).await;
    after("three").await;
    node.oci.exit("new", "a", 0, false);
    agent.until_gone(&new).await;
    after("four").await;
    assert_eq!(agent.status(&late), Value::Null);
}

#[tokio::test]
async fn a_failed_probe_may_have_a_grace_period_of_its_own() {
    let node = Node::new();
    node.oci.exec_exits("alive", 1);
    let check = json!({ "exec": { "command": ["alive"] }, "failureThreshold": 1 });
    let mut liveness = check.clone();
    liveness["terminationGracePeriodSeconds"] = json!(3);
    let mut startup = check;
    startup["exec"]["command"] = json!(["fine"]);
    startup["terminationGracePeriodSeconds"] = json!(600);
    let spec = json!({ "terminationGracePeriodSeconds": 700, "containers": [{
        "name": "a",
        "image": "nginx:1",
        "startupProbe": startup,
        "livenessProbe": liveness,
    }] });
    let never = wherry_runtime_api::fake::Behaviour {
        stops_after: None,
        ..Default::default()
    };
    node.oci.behave("nginx:1", never);
    let mut pod = pod("p", spec);
    let fast = [("wherry.dev/probe-period-ms".to_owned(), "100".to_owned())];
    pod.metadata.annotations = Some(fast.into());
    let agent = node.start().await;
    agent.set(&pod).await;
    // Within the test's patience only if the probe's own three seconds count.
    agent
        .until(&pod, "restarted", |s| {
            s["containerStatuses"][0]["restartCount"].as_i64() >= Some(1)
        })
        .await;
}

#[tokio::test]
async fn a_crash_loop_waits_as_long_as_from_the_kubelet() {
    let mut node = Node::new();
    node.backoff = crate::BackoffPolicy::default();
    node.oci.behave("nginx:1", exits(1));
    let agent = node.start().await;
    let pod = pod("p", one("Always"));
    agent.set(&pod).await;
    let pause = |status: &Value| {
        let message = &status["containerStatuses"][0]["state"]["waiting"]["message"];
        let message = message.as_str().unwrap_or_default();
        let rest = message.strip_prefix("back-off ")?;
        let (pause, rest) = rest.split_once(' ')?;
        assert_eq!(rest, "restarting failed container=a pod=p_ns(p)");
        Some(pause.to_owned())
    };
    let pauses = [10, 20, 40, 80, 160, 300, 300];
    let shown = ["10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"];
    for (index, (seconds, shown)) in pauses.into_iter().zip(shown).enumerate() {
        let count = i64::try_from(index + 1).expect("few");
        agent
            .until(&pod, shown, |s| {
                pause(s).as_deref() == Some(shown)
                    && s["containerStatuses"][0]["restartCount"] == count
            })
            .await;
        // Not a second too early.
        node.clock.advance(Duration::from_secs(seconds - 5));
        agent.set(&pod).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(
            agent.status(&pod)["containerStatuses"][0]["restartCount"],
            count
        );
        if index + 1 == pauses.len() {
            // What follows runs for long.
            node.oci
                .behave("nginx:1", wherry_runtime_api::fake::Behaviour::default());
        }
        node.clock.advance(Duration::from_secs(5));
        agent.set(&pod).await;
    }
    agent.until_ready(&pod).await;
    // Ten minutes make everything good again.
    node.clock.advance(Duration::from_secs(601));
    node.oci.behave("nginx:1", exits(1));
    node.oci.exit("p", "a", 1, false);
    agent
        .until(&pod, "a short pause", |s| {
            pause(s).as_deref() == Some("10s")
        })
        .await;
}

//! Resources that change while the pod runs.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use wherry_runtime_api::{RuntimeError, fake::Call};

use super::container;
use crate::testing::{Node, condition, eventually, is_ready, pod};

fn spec(cpu: &str, memory: &str, policy: Value) -> Value {
    let list = json!({ "cpu": cpu, "memory": memory });
    json!({
        "restartPolicy": "OnFailure",
        "containers": [{
            "name": "a",
            "image": "nginx:1",
            "resources": { "limits": list, "requests": list },
            "resizePolicy": policy,
        }],
    })
}

fn sized(cpu: &str, memory: &str) -> Pod {
    pod("p", spec(cpu, memory, json!([])))
}

fn limit<'a>(status: &'a Value, resource: &str) -> &'a Value {
    &container(status, "a")["resources"]["limits"][resource]
}

fn reason(status: &Value, kind: &str) -> Value {
    let list = status["conditions"].as_array().expect("conditions");
    let found = list.iter().find(|c| c["type"] == kind);
    found.map_or(Value::Null, |c| c["reason"].clone())
}

#[tokio::test]
async fn a_running_container_gets_other_limits_without_a_restart_and_keeps_them() {
    let node = Node::new();
    let agent = node.start().await;
    agent.set(&sized("100m", "100Mi")).await;
    agent.until_ready(&sized("", "")).await;
    let before = node.oci.journal().len();
    let larger = sized("200m", "200Mi");
    agent.set(&larger).await;
    let status = agent
        .until(&larger, "resized", |s| {
            limit(s, "cpu") == "200m" && condition(s, "PodResizeInProgress").is_empty()
        })
        .await;
    assert_eq!(container(&status, "a")["restartCount"], 0);
    assert_eq!(
        container(&status, "a")["allocatedResources"]["memory"],
        "200Mi"
    );
    let config = node.oci.config("p", "a").expect("it runs");
    assert_eq!(config.resources.memory_bytes_max, Some(200 << 20));
    assert_eq!(config.resources.cpu_quota_us, Some(20_000));
    let sandbox = node.oci.sandbox_config("p").expect("it runs");
    assert_eq!(sandbox.resources.memory_bytes_max, Some(200 << 20));
    // The pod grows before its container does.
    assert_eq!(
        node.oci.journal()[before..],
        ["update-sandbox 0", "update a/0"]
    );
    // And shrinks after it.
    let before = node.oci.journal().len();
    let smaller = sized("100m", "50Mi");
    agent.set(&smaller).await;
    agent
        .until(&smaller, "resized", |s| {
            limit(s, "memory") == "50Mi" && condition(s, "PodResizeInProgress").is_empty()
        })
        .await;
    assert_eq!(
        node.oci.journal()[before..],
        ["update a/0", "update-sandbox 0"]
    );
    // A new agent finds everything as it is to be.
    let journal = node.oci.journal();
    let state = node.root.path().join("pods/p/state.json");
    eventually("written down", || {
        let state: Value = std::fs::read(&state)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        state["resize"].is_null() && state["actuated"]["a"]["limits"]["memory"] == "50Mi"
    })
    .await;
    agent.kill().await;
    let agent = node.start().await;
    agent.set(&smaller).await;
    let status = agent.until_ready(&smaller).await;
    assert_eq!(limit(&status, "memory"), "50Mi");
    assert_eq!(node.oci.journal(), journal);
}

#[tokio::test]
async fn a_policy_may_want_a_restart_which_is_no_crash() {
    let node = Node::new();
    let agent = node.start().await;
    let policy = json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    agent
        .set(&pod("p", spec("100m", "100Mi", policy.clone())))
        .await;
    let larger = pod("p", spec("100m", "200Mi", policy));
    agent.until_ready(&larger).await;
    agent.set(&larger).await;
    // The fake exits with 0, after which `OnFailure` would leave it.
    let status = agent
        .until(&larger, "restarted", |s| {
            is_ready(s) && container(s, "a")["restartCount"] == 1 && limit(s, "memory") == "200Mi"
        })
        .await;
    assert_eq!(condition(&status, "PodResizePending"), "");
    let config = node.oci.config("p", "a").expect("it runs");
    assert_eq!(
        (config.attempt, config.resources.memory_bytes_max),
        (1, Some(200 << 20))
    );
}

#[tokio::test]
async fn what_the_node_does_not_have_stays_pending_and_what_comes_free_is_taken() {
    let node = Node::new();
    let agent = node.start().await;
    let cpus = std::thread::available_parallelism().expect("known").get();
    let half = format!("{}m", cpus * 600);
    let other = pod("other", spec(&half, "1Mi", json!([])));
    agent.set(&other).await;
    agent.until_ready(&other).await;
    agent.set(&sized("100m", "1Mi")).await;
    agent.until_ready(&sized("", "")).await;
    let never = sized(&format!("{}", cpus + 1), "1Mi");
    agent.set(&never).await;
    let status = agent
        .until(&never, "infeasible", |s| {
            reason(s, "PodResizePending") == "Infeasible"
        })
        .await;
    assert_eq!(container(&status, "a")["allocatedResources"]["cpu"], "100m");
    let later = sized(&half, "1Mi");
    agent.set(&later).await;
    agent
        .until(&later, "deferred", |s| {
            reason(s, "PodResizePending") == "Deferred"
        })
        .await;
    agent.delete(&other, 0).await;
    agent.until_gone(&other).await;
    // Looked at again with the next news of the pod, or after a while.
    agent.set(&later).await;
    agent
        .until(&later, "resized", |s| {
            *limit(s, "cpu") == half && condition(s, "PodResizePending").is_empty()
        })
        .await;
}

#[tokio::test]
async fn memory_in_use_is_not_taken_away_and_what_a_runtime_cannot_do_is_infeasible() {
    let node = Node::new();
    let agent = node.start().await;
    agent.set(&sized("100m", "100Mi")).await;
    agent.until_ready(&sized("", "")).await;
    node.oci.use_memory(80 << 20);
    let smaller = sized("100m", "50Mi");
    agent.set(&smaller).await;
    let status = agent
        .until(&smaller, "refused", |s| {
            reason(s, "PodResizeInProgress") == "Error"
        })
        .await;
    let list = status["conditions"].as_array().expect("conditions");
    let shown = list.iter().find(|c| c["type"] == "PodResizeInProgress");
    let message = shown.expect("there")["message"]
        .as_str()
        .expect("a message");
    assert!(
        message.contains("below current usage (83886080)"),
        "{message}"
    );
    let config = node.oci.config("p", "a").expect("it runs");
    assert_eq!(config.resources.memory_bytes_max, Some(100 << 20));

    node.oci.fail_next(
        Call::UpdatePodSandboxResources,
        RuntimeError::Unsupported("limits are fixed here".into()),
    );
    let larger = sized("300m", "300Mi");
    agent.set(&larger).await;
    let status = agent
        .until(&larger, "infeasible", |s| {
            reason(s, "PodResizePending") == "Infeasible"
        })
        .await;
    assert_eq!(
        container(&status, "a")["allocatedResources"]["memory"],
        "100Mi"
    );
    eventually("nothing was changed", || {
        let config = node.oci.config("p", "a").expect("it runs");
        config.resources.memory_bytes_max == Some(100 << 20)
    })
    .await;
}

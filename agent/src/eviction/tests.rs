//! Evictions as the pods and the API see them, on a node of fakes.

use std::fs;

use serde_json::{Value, json};

use super::{
    Readings,
    threshold::{Reading, Signal},
};
use crate::testing::{Node, condition, eventually, pod};

fn short_of(signal: Signal) -> Readings {
    let reading = Reading {
        available: 1 << 20,
        capacity: 1 << 30,
    };
    [(signal, reading)].into()
}

fn with(name: &str, priority: i32, resources: Value) -> k8s_openapi::api::core::v1::Pod {
    let container = json!({ "name": "c", "image": "nginx:1", "resources": resources });
    pod(
        name,
        json!({ "containers": [container], "priority": priority }),
    )
}

fn is_evicted(status: &Value) -> bool {
    status["phase"] == "Failed" && status["reason"] == "Evicted"
}

#[tokio::test]
async fn a_pod_that_fills_its_empty_dir_is_evicted() {
    let node = Node::new();
    let agent = node.start().await;
    let mut spec = json!({ "containers": [{ "name": "c", "image": "nginx:1" }] });
    spec["volumes"] = json!([{ "name": "x", "emptyDir": { "sizeLimit": "1Mi" } }]);
    let (full, other) = (pod("full", spec.clone()), pod("other", spec));
    for pod in [&full, &other] {
        agent.set(pod).await;
        agent.until_ready(pod).await;
    }
    let mut evictor = agent.evictor();
    evictor.enforce_limits().await;
    let dir = agent.context.config.pods_dir();
    let dir = dir.join("full/volumes/kubernetes.io~empty-dir/x");
    fs::create_dir_all(&dir).expect("space");
    fs::write(dir.join("file"), vec![1; 2 << 20]).expect("space");
    evictor.enforce_limits().await;
    let status = agent.until(&full, "evicted", is_evicted).await;
    assert_eq!(
        status["message"],
        "Usage of EmptyDir volume \"x\" exceeds the limit \"1Mi\". "
    );
    assert_eq!(condition(&status, "DisruptionTarget"), "");
    agent
        .until(&full, "stopped", |status| {
            status["containerStatuses"][0]["state"]["terminated"].is_object()
        })
        .await;
    assert_eq!(agent.status(&other)["phase"], "Running");
    // It stays as it is, and in the store, until somebody deletes it.
    evictor.enforce_limits().await;
    assert!(is_evicted(&agent.status(&full)));
    agent.delete(&full, 0).await;
    agent.until_gone(&full).await;
    let text = agent.context.metrics.render();
    let counted = "kubelet_evictions{eviction_signal=\"ephemeral-storage.limit\"} 1\n";
    assert!(text.contains(counted), "{text}");
    agent.kill().await;
}

#[tokio::test]
async fn one_pod_at_a_time_goes_when_memory_is_short() {
    let node = Node::new();
    let agent = node.start().await;
    let critical = with("critical", 2_000_001_000, json!({}));
    let asked = with("asked", 0, json!({ "requests": { "memory": "64Mi" } }));
    let best_effort = with("best-effort", 0, json!({}));
    for pod in [&critical, &asked, &best_effort] {
        agent.set(pod).await;
        agent.until_ready(pod).await;
    }
    let mut evictor = agent.evictor();
    evictor.defend(&short_of(Signal::MemoryAvailable)).await;
    let status = agent.until(&best_effort, "evicted", is_evicted).await;
    assert_eq!(
        status["message"],
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 1024Ki. \
         Container c was using 1024Ki, request is 0, has larger consumption of memory. "
    );
    assert_eq!(condition(&status, "DisruptionTarget"), "True");
    assert_eq!(agent.status(&asked)["phase"], "Running");

    // Still short: the next one, and then nobody is left who may go.
    eventually("the first one is gone", || !evictor.is_waiting()).await;
    evictor.defend(&short_of(Signal::MemoryAvailable)).await;
    agent.until(&asked, "evicted", is_evicted).await;
    eventually("the second one is gone", || !evictor.is_waiting()).await;
    evictor.defend(&short_of(Signal::MemoryAvailable)).await;
    assert_eq!(agent.status(&critical)["phase"], "Running");
    agent.kill().await;
}

#[tokio::test]
async fn unused_images_go_before_any_pod_when_the_disk_is_full() {
    let node = Node::new();
    let agent = node.start().await;
    let pod = with("p", 0, json!({}));
    agent.set(&pod).await;
    agent.until_ready(&pod).await;
    let mut evictor = agent.evictor();
    evictor.defend(&short_of(Signal::NodeFsAvailable)).await;
    assert_eq!(agent.status(&pod)["phase"], "Running");
    evictor.defend(&short_of(Signal::NodeFsAvailable)).await;
    let status = agent.until(&pod, "evicted", is_evicted).await;
    let message = status["message"].as_str().expect("a message");
    assert!(
        message.starts_with("The node was low on resource: ephemeral-storage. "),
        "{message}"
    );
    agent.kill().await;
}

#[tokio::test]
async fn a_node_under_pressure_refuses_pods_and_says_so() {
    let node = Node::new();
    let agent = node.start().await;
    let mut evictor = agent.evictor();
    evictor.defend(&short_of(Signal::PidAvailable)).await;
    // It stands for a while after.
    evictor.defend(&Readings::new()).await;
    let pod = with("p", 0, json!({}));
    agent.set(&pod).await;
    let status = agent.until(&pod, "refused", is_evicted).await;
    assert_eq!(
        status["message"],
        "Pod was rejected: The node had condition: [PIDPressure]. "
    );
    let critical = with("critical", 2_000_001_000, json!({}));
    agent.set(&critical).await;
    agent.until_ready(&critical).await;
    agent.kill().await;
}

#[tokio::test]
async fn an_evicted_pod_stays_evicted_after_a_restart_of_the_agent() {
    let node = Node::new();
    let agent = node.start().await;
    let pod = with("p", 0, json!({}));
    agent.set(&pod).await;
    agent.until_ready(&pod).await;
    agent
        .evictor()
        .defend(&short_of(Signal::MemoryAvailable))
        .await;
    agent.until(&pod, "evicted", is_evicted).await;
    let state = agent
        .context
        .pod_dir(&crate::pod::uid(&pod))
        .join("state.json");
    eventually("written down", || {
        fs::read_to_string(&state).is_ok_and(|text| text.contains("Evicted"))
            && state.with_file_name("pod.json").exists()
    })
    .await;
    agent.kill().await;
    let agent = node.start().await;
    agent.tell_all(&[&pod]).await;
    let status = agent.until(&pod, "still evicted", is_evicted).await;
    assert_eq!(condition(&status, "DisruptionTarget"), "True");
    agent.kill().await;
}

//! `/pods`: what should run here, with statuses. `/runningpods`: what the runtimes hold.
//! `/configz`: how the agent was configured. `/healthz/syncloop`: whether it looks after its pods.

use std::collections::BTreeMap;

use axum::{Json, extract::State as Shared};
use serde_json::{Value, json};

use super::{State, container::is_running, error::HttpError};

pub(crate) async fn pods(Shared(state): Shared<State>) -> Json<Value> {
    let pods: Vec<Value> = state
        .kubelet
        .pods()
        .iter()
        .filter_map(|pod| {
            // Items of a list do not say what they are.
            let Ok(Value::Object(mut pod)) = serde_json::to_value(&**pod) else {
                return None;
            };
            pod.remove("apiVersion");
            pod.remove("kind");
            Some(Value::Object(pod))
        })
        .collect();
    Json(list(pods))
}

fn list(items: Vec<Value>) -> Value {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

pub(crate) async fn running_pods(Shared(state): Shared<State>) -> Json<Value> {
    let mut sandboxes = BTreeMap::new();
    let mut containers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for runtime in state.kubelet.runtimes() {
        for sandbox in runtime.list_pod_sandboxes().await.unwrap_or_default() {
            let config = sandbox.config;
            sandboxes.insert(
                config.uid.as_str().to_owned(),
                (config.name, config.namespace),
            );
        }
        for status in runtime.list_containers().await.unwrap_or_default() {
            if is_running(&status) {
                let container =
                    json!({"name": status.name, "image": status.image, "resources": {}});
                containers
                    .entry(status.pod.as_str().to_owned())
                    .or_default()
                    .push(container);
            }
        }
    }
    let pods = containers.into_iter().filter_map(|(uid, containers)| {
        let (name, namespace) = sandboxes.get(&uid)?;
        Some(json!({
            "metadata": {"name": name, "namespace": namespace, "uid": uid},
            "spec": {"containers": containers},
            "status": {},
        }))
    });
    Json(list(pods.collect()))
}

pub(crate) async fn configz(Shared(state): Shared<State>) -> Json<Value> {
    Json(state.kubelet.configuration())
}

pub(crate) async fn sync_loop(Shared(state): Shared<State>) -> Result<&'static str, HttpError> {
    match state.kubelet.sync_loop() {
        Ok(()) => Ok("ok"),
        Err(why) => Err(HttpError::internal(format!(
            "[-]syncloop failed: {why}\nhealthz check failed"
        ))),
    }
}

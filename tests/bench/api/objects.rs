//! Pods as people write them and as nodes report them.

use serde_json::{Value, json};

/// Where the pods are.
pub(super) const NAMESPACE: &str = "bench";

/// The collection.
pub(super) fn collection() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/pods")
}

/// A pod of about 1 kB, which no scheduler and no node here cares about.
pub(super) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {
                "app.kubernetes.io/name": "shop", "app.kubernetes.io/component": "checkout",
                "app.kubernetes.io/version": "1.14.2", "pod-template-hash": "7c9f6d5b8",
            },
            "annotations": { "prometheus.io/scrape": "true", "prometheus.io/port": "9090" },
        },
        "spec": {
            "schedulerName": "bench",
            "containers": [{
                "name": "server",
                "image": "registry.example.com/shop/checkout:1.14.2",
                "args": ["--listen=:8080", "--cache=/var/cache/checkout"],
                "ports": [{ "name": "http", "containerPort": 8080 }, { "name": "metrics", "containerPort": 9090 }],
                "env": [
                    { "name": "LOG_LEVEL", "value": "info" },
                    { "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                    { "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "checkout", "key": "token" } } },
                ],
                "resources": {
                    "requests": { "cpu": "100m", "memory": "64Mi" }, "limits": { "memory": "128Mi" },
                },
                "readinessProbe": { "httpGet": { "path": "/ready", "port": "http" }, "periodSeconds": 5 },
                "volumeMounts": [{ "name": "config", "mountPath": "/etc/checkout", "readOnly": true }],
            }],
            "volumes": [{ "name": "config", "configMap": { "name": "checkout" } }],
        },
    })
}

/// The same on a node.
pub(super) fn bound_pod(name: &str, node: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["nodeName"] = node.into();
    pod
}

/// What a node reports of a pod that runs.
pub(super) fn running(number: usize) -> Value {
    let at = "2026-01-01T00:00:00Z";
    let condition =
        |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": at });
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    let ip = format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255);
    json!({ "status": {
        "phase": "Running", "startTime": at, "qosClass": "Burstable",
        "hostIP": "192.0.2.1", "hostIPs": [{ "ip": "192.0.2.1" }], "podIP": ip, "podIPs": [{ "ip": ip }],
        "conditions": conditions,
        "containerStatuses": [{
            "name": "server", "ready": true, "started": true, "restartCount": 0,
            "image": "registry.example.com/shop/checkout:1.14.2",
            "imageID": format!("registry.example.com/shop/checkout@sha256:{number:064x}"),
            "containerID": format!("oci://{number:064x}"),
            "state": { "running": { "startedAt": at } },
        }],
    } })
}

/// A node that holds as many pods as anybody likes.
pub(super) fn node(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } })
}

use serde_json::json;

use super::*;
use crate::{events, fake::Fake};

struct Cluster {
    fake: Fake,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Cluster {
    fn start(fake: Fake) -> Self {
        let shutdown = CancellationToken::new();
        let (recorder, notes) = Recorder::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(events::run(fake.client(), notes, shutdown.clone()));
        tasks.spawn(run(
            fake.client(),
            "default-scheduler".into(),
            recorder,
            shutdown.clone(),
        ));
        Self {
            fake,
            shutdown,
            tasks,
        }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    fn node(&self, name: &str, cpu: &str) {
        self.fake.put(
            "v1/nodes",
            json!({
                "metadata": { "name": name },
                "status": { "allocatable": { "cpu": cpu, "memory": "1Gi", "pods": "110" } },
            }),
        );
    }

    fn pod(&self, name: &str, cpu: &str) {
        self.fake.put(
            "v1/pods",
            json!({
                "metadata": { "name": name, "namespace": "default" },
                "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] },
            }),
        );
    }

    async fn bound(&self, name: &str) -> String {
        let name = name.to_owned();
        let pod = self
            .fake
            .wait_for("v1/pods", |pod| {
                pod["metadata"]["name"] == *name && pod["spec"]["nodeName"].is_string()
            })
            .await;
        pod["spec"]["nodeName"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_pod_gets_a_node_and_an_event_says_so() {
    let cluster = Cluster::start(Fake::new());
    cluster.node("n", "1");
    cluster.pod("web", "500m");
    assert_eq!(cluster.bound("web").await, "n");
    let event = cluster
        .fake
        .wait_for("v1/events", |event| event["reason"] == "Scheduled")
        .await;
    assert_eq!(event["message"], "Successfully assigned default/web to n");
    assert_eq!(event["source"]["component"], "default-scheduler");
    cluster.stop().await;
}

#[tokio::test]
async fn a_pod_without_a_node_is_told_why_and_gets_one_when_there_is_room() {
    let cluster = Cluster::start(Fake::new());
    cluster.node("n", "1");
    cluster.pod("first", "800m");
    cluster.bound("first").await;
    cluster.pod("second", "800m");
    let pod = cluster
        .fake
        .wait_for("v1/pods", |pod| {
            pod["metadata"]["name"] == "second" && !pod["status"]["conditions"].is_null()
        })
        .await;
    let condition = &pod["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["status"]),
        (&json!("PodScheduled"), &json!("False"))
    );
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
                   1 No preemption victims found for incoming pod.";
    assert_eq!(condition["message"], message);
    let event = cluster
        .fake
        .wait_for("v1/events", |event| event["reason"] == "FailedScheduling")
        .await;
    assert_eq!(
        (&event["message"], &event["type"]),
        (&json!(message), &json!("Warning"))
    );

    cluster.fake.remove("v1/pods", "default", "first");
    assert_eq!(cluster.bound("second").await, "n");
    cluster.stop().await;
}

#[tokio::test]
async fn a_binding_that_fails_is_tried_again_and_counted_once() {
    let fake = Fake::new();
    fake.fail_next("POST /api/v1/namespaces/default/pods/web/binding", 500);
    let cluster = Cluster::start(fake);
    cluster.node("n", "1");
    cluster.pod("web", "1");
    assert_eq!(cluster.bound("web").await, "n");
    assert_eq!(cluster.fake.requests("pods/web/binding"), 2);
    cluster.stop().await;
}

#[tokio::test]
async fn a_new_scheduler_counts_the_pods_that_are_there() {
    let fake = Fake::new();
    let cluster = Cluster::start(fake.clone());
    cluster.node("n", "1");
    cluster.pod("first", "800m");
    cluster.bound("first").await;
    cluster.stop().await;

    let cluster = Cluster::start(fake);
    cluster.pod("second", "800m");
    cluster
        .fake
        .wait_for("v1/events", |event| event["reason"] == "FailedScheduling")
        .await;
    assert_eq!(
        cluster.fake.get("v1/pods", "default", "second").unwrap()["spec"]["nodeName"],
        json!(null)
    );
    cluster.node("other", "1");
    assert_eq!(cluster.bound("second").await, "other");
    cluster.stop().await;
}

#[tokio::test]
async fn many_pods_are_bound_and_no_node_is_overcommitted() {
    let cluster = Cluster::start(Fake::new());
    for n in 0..10 {
        cluster.node(&format!("n{n}"), "2");
    }
    for n in 0..200 {
        cluster.pod(&format!("p{n}"), "100m");
    }
    let mut counts = std::collections::HashMap::<String, usize>::new();
    for n in 0..200 {
        *counts
            .entry(cluster.bound(&format!("p{n}")).await)
            .or_default() += 1;
    }
    assert!(counts.values().all(|count| *count == 20), "{counts:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn a_pod_that_matters_more_gets_the_room_of_one_that_matters_less() {
    let cluster = Cluster::start(Fake::new());
    cluster.node("n", "1");
    cluster.pod("low", "800m");
    cluster.bound("low").await;
    cluster.fake.put(
        "v1/pods",
        json!({
            "metadata": { "name": "high", "namespace": "default" },
            "spec": { "priority": 1000, "containers": [{ "name": "c", "resources": { "requests": { "cpu": "800m" } } }] },
        }),
    );
    cluster
        .fake
        .wait_until_gone("v1/pods", "default", "low")
        .await;
    let nominated = cluster
        .fake
        .wait_for("v1/pods", |pod| {
            pod["status"]["nominatedNodeName"] == "n" && pod["metadata"]["name"] == "high"
        })
        .await;
    assert_eq!(
        nominated["status"]["conditions"][0]["message"],
        "0/1 nodes are available: 1 Insufficient cpu."
    );
    let event = cluster
        .fake
        .wait_for("v1/events", |event| event["reason"] == "Preempted")
        .await;
    let uid = nominated["metadata"]["uid"].as_str().unwrap();
    assert_eq!(
        event["message"],
        format!("Preempted by pod {uid} on node n")
    );
    assert_eq!(event["involvedObject"]["name"], "low");
    assert_eq!(cluster.bound("high").await, "n");
    cluster.stop().await;
}

fn claim(name: &str, class: &str) -> serde_json::Value {
    json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "storageClassName": class, "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": "1Gi" } },
        },
    })
}

fn with_claim(pod: &str, claim: &str) -> serde_json::Value {
    json!({
        "metadata": { "name": pod, "namespace": "default" },
        "spec": {
            "containers": [{ "name": "c" }],
            "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": claim } }],
        },
    })
}

/// Waits until a pod is told this; what comes first depends on what the scheduler hears first.
async fn is_told(cluster: &Cluster, name: &str, message: &str) {
    cluster
        .fake
        .wait_for("v1/pods", |pod| {
            pod["metadata"]["name"] == *name && pod["status"]["conditions"][0]["message"] == message
        })
        .await;
}

#[tokio::test]
async fn a_claim_that_waits_for_its_consumer_is_told_the_node_and_the_pod_waits_for_it() {
    let cluster = Cluster::start(Fake::new());
    cluster.node("n", "1");
    cluster.fake.put(
        "storage.k8s.io/v1/storageclasses",
        json!({ "metadata": { "name": "local" }, "provisioner": "x.dev/y", "volumeBindingMode": "WaitForFirstConsumer" }),
    );
    cluster
        .fake
        .put("v1/persistentvolumeclaims", claim("data", "local"));
    cluster.fake.put("v1/pods", with_claim("web", "data"));
    let mut found = cluster
        .fake
        .wait_for("v1/persistentvolumeclaims", |claim| {
            claim["metadata"]["annotations"][SELECTED_NODE] == "n"
        })
        .await;
    let pod = cluster.fake.get("v1/pods", "default", "web").unwrap();
    assert_eq!(pod["spec"]["nodeName"], json!(null), "it waits");
    cluster.fake.put(
        "v1/persistentvolumes",
        json!({ "metadata": { "name": "pv" }, "spec": { "capacity": { "storage": "1Gi" } } }),
    );
    found["spec"]["volumeName"] = "pv".into();
    found["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = "yes".into();
    cluster.fake.put("v1/persistentvolumeclaims", found);
    assert_eq!(cluster.bound("web").await, "n");
    cluster.stop().await;
}

#[tokio::test]
async fn volumes_made_by_hand_are_promised_where_they_can_be_reached() {
    let cluster = Cluster::start(Fake::new());
    for name in ["a", "b"] {
        cluster.fake.put(
            "v1/nodes",
            json!({
                "metadata": { "name": name, "labels": { "host": name } },
                "status": { "allocatable": { "cpu": "1", "memory": "1Gi", "pods": "110" } },
            }),
        );
    }
    cluster.fake.put(
        "storage.k8s.io/v1/storageclasses",
        json!({ "metadata": { "name": "hand" }, "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer" }),
    );
    let on = |host: &str| {
        json!({ "required": { "nodeSelectorTerms": [
            { "matchExpressions": [{ "key": "host", "operator": "In", "values": [host] }] },
        ] } })
    };
    let volume = |name: &str, size: &str, host: &str| {
        json!({
            "metadata": { "name": name },
            "spec": {
                "capacity": { "storage": size }, "accessModes": ["ReadWriteOnce"],
                "storageClassName": "hand", "nodeAffinity": on(host),
            },
            "status": { "phase": "Available" },
        })
    };
    cluster
        .fake
        .put("v1/persistentvolumes", volume("small", "1Mi", "a"));
    cluster
        .fake
        .put("v1/persistentvolumes", volume("right", "2Gi", "b"));
    cluster
        .fake
        .put("v1/persistentvolumeclaims", claim("data", "hand"));
    cluster.fake.put("v1/pods", with_claim("web", "data"));
    let promised = cluster
        .fake
        .wait_for("v1/persistentvolumes", |volume| {
            volume["spec"]["claimRef"]["name"] == "data"
        })
        .await;
    assert_eq!(promised["metadata"]["name"], "right");
    cluster
        .fake
        .put("v1/persistentvolumeclaims", claim("more", "hand"));
    cluster.fake.put("v1/pods", with_claim("other", "more"));
    cluster.fake.put("v1/pods", with_claim("none", "missing"));
    cluster
        .fake
        .put("v1/persistentvolumeclaims", claim("now", "other-class"));
    cluster.fake.put("v1/pods", with_claim("unbound", "now"));
    for (name, why) in [
        (
            "other",
            "2 node(s) didn't find available persistent volumes to bind",
        ),
        ("none", "persistentvolumeclaim \"missing\" not found"),
        (
            "unbound",
            "pod has unbound immediate PersistentVolumeClaims",
        ),
    ] {
        let message = format!(
            "0/2 nodes are available: {why}. preemption: 0/2 nodes are available: \
             2 Preemption is not helpful for scheduling."
        );
        is_told(&cluster, name, &message).await;
    }
    cluster.stop().await;
}

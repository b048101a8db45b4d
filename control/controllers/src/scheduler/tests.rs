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

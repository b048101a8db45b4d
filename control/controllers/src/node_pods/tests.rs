use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::task::JoinSet;

use super::*;
use crate::{events, fake::Fake};

fn taint(key: &str, effect: &str) -> Value {
    json!({ "key": key, "effect": effect })
}

#[test]
fn a_pod_stays_as_long_as_it_tolerates_what_evicts() {
    let seconds = |key: &str, seconds: Value| json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds });
    let goes = |seconds| Fate::GoesIn(Duration::from_secs(seconds));
    for (taints, tolerations, want) in [
        (json!([]), json!([]), Fate::Stays),
        (json!([taint("a", "NoSchedule")]), json!([]), Fate::Stays),
        (json!([taint("a", "NoExecute")]), json!([]), goes(0)),
        (
            json!([taint("a", "NoExecute")]),
            json!([seconds("a", json!(null))]),
            Fate::Stays,
        ),
        (
            json!([taint("a", "NoExecute")]),
            json!([seconds("a", json!(300))]),
            goes(300),
        ),
        (
            json!([taint("a", "NoExecute")]),
            json!([seconds("a", json!(-1))]),
            goes(0),
        ),
        (
            json!([taint("a", "NoExecute"), taint("b", "NoExecute")]),
            json!([seconds("a", json!(300)), seconds("b", json!(60))]),
            goes(60),
        ),
        (
            json!([taint("a", "NoExecute"), taint("b", "NoExecute")]),
            json!([seconds("a", json!(300))]),
            goes(0),
        ),
        (
            json!([taint("a", "NoExecute")]),
            json!([{ "operator": "Exists" }]),
            Fate::Stays,
        ),
    ] {
        let got = fate(
            &serde_json::from_value::<Vec<_>>(taints.clone()).unwrap(),
            &serde_json::from_value::<Vec<_>>(tolerations.clone()).unwrap(),
        );
        assert_eq!(got, want, "{taints} {tolerations}");
    }
}

struct Cluster {
    fake: Fake,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Cluster {
    fn start(fake: Fake) -> Self {
        let shutdown = CancellationToken::new();
        let (recorder, notes) = Recorder::new();
        let (mut nodes, mut pods) = (Watched::new("Nodes"), Watched::new("Pods"));
        let prepared = Prepared::new(fake.client(), recorder, &mut nodes, &mut pods);
        let (nodes, pods) = (Arc::new(nodes), Arc::new(pods));
        let mut tasks = JoinSet::new();
        tasks.spawn(events::run(fake.client(), notes, shutdown.clone()));
        let api = Api::<Node>::all(fake.client());
        tasks.spawn(nodes.clone().run(api, NodeView::from, shutdown.clone()));
        let api = Api::<Pod>::all(fake.client());
        tasks.spawn(pods.run(api, PodView::from, shutdown.clone()));
        tasks.spawn(prepared.run(nodes, shutdown.clone()));
        Self {
            fake,
            shutdown,
            tasks,
        }
    }

    fn node(&self, ready: &str, taints: Value) {
        self.fake.put(
            "v1/nodes",
            json!({
                "metadata": { "name": "n" }, "spec": { "taints": taints },
                "status": { "conditions": [{ "type": "Ready", "status": ready }] },
            }),
        );
    }

    fn pod(&self, name: &str, node: &str, tolerations: Value) {
        self.fake.put(
            "v1/pods",
            json!({
                "metadata": { "name": name, "namespace": "default" },
                "spec": { "nodeName": node, "containers": [], "tolerations": tolerations },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
            }),
        );
    }

    fn has(&self, name: &str) -> bool {
        self.fake.get("v1/pods", "default", name).is_some()
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

fn tolerates(seconds: Value) -> Value {
    json!([{ "key": "gone", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds }])
}

#[tokio::test]
async fn pods_leave_a_tainted_node_when_their_time_is_over_and_no_others_do() {
    let cluster = Cluster::start(Fake::new());
    cluster.node("True", json!([]));
    cluster.pod("at-once", "n", json!([]));
    cluster.pod("in-a-second", "n", tolerates(json!(1)));
    cluster.pod("in-an-hour", "n", tolerates(json!(3600)));
    cluster.pod("never", "n", tolerates(json!(null)));
    cluster.pod("elsewhere", "m", json!([]));
    cluster.node("True", json!([taint("gone", "NoExecute")]));
    for name in ["at-once", "in-a-second"] {
        cluster
            .fake
            .wait_until_gone("v1/pods", "default", name)
            .await;
        let message = format!("Marking for deletion Pod default/{name}");
        cluster
            .fake
            .wait_for("v1/events", |event| {
                event["reason"] == "TaintManagerEviction" && event["message"] == *message
            })
            .await;
    }
    // Who comes to a tainted node has no more time than the others.
    cluster.pod("late", "n", json!([]));
    cluster
        .fake
        .wait_until_gone("v1/pods", "default", "late")
        .await;
    for name in ["in-an-hour", "never", "elsewhere"] {
        assert!(cluster.has(name), "{name}");
    }
    cluster.stop().await;
}

#[tokio::test]
async fn time_runs_from_when_a_taint_was_seen_and_anew_after_the_node_was_well() {
    let worker = Worker {
        client: Fake::new().client(),
        recorder: Recorder::new().0,
        nodes: Arc::new(Watched::new("Nodes")),
        since: Mutex::default(),
    };
    let pod = |uid: &str| -> Pod {
        serde_json::from_value(json!({ "metadata": { "uid": uid } })).unwrap()
    };
    let start = Instant::now();
    let later = start + Duration::from_secs(60);
    assert_eq!(worker.since("n", &pod("1"), start), start);
    assert_eq!(worker.since("n", &pod("1"), later), start);
    assert_eq!(worker.since("n", &pod("2"), later), later);
    worker.forget_others("n", &[pod("2")]);
    assert_eq!(worker.since("n", &pod("1"), later), later);
    worker.relieve("n");
    let last = later + Duration::from_secs(60);
    assert_eq!(worker.since("n", &pod("2"), last), last);
}

#[tokio::test]
async fn pods_of_a_silent_node_are_not_ready() {
    let cluster = Cluster::start(Fake::new());
    cluster.node("True", json!([]));
    cluster.pod("web", "n", tolerates(json!(null)));
    cluster.node("Unknown", json!([taint("gone", "NoExecute")]));
    let pod = cluster
        .fake
        .wait_for("v1/pods", |pod| {
            pod["status"]["conditions"][0]["status"] == "False"
        })
        .await;
    assert_eq!(pod["status"]["conditions"][0]["reason"], "NodeNotReady");
    let event = cluster
        .fake
        .wait_for("v1/events", |event| event["reason"] == "NodeNotReady")
        .await;
    assert_eq!(event["type"], "Warning");
    cluster.stop().await;
}

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{plan::*, *};
use crate::{fake::Fake, pods::Phase};

fn set(replicas: i32) -> SetView {
    serde_json::from_value::<ReplicaSet>(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "set", "generation": 2},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}},
        },
    }))
    .unwrap()
    .into()
}

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn ago(seconds: i64) -> String {
    (now() - jiff::SignedDuration::from_secs(seconds)).to_string()
}

/// A running pod of the set, ready for a minute, on a node of its own, changed by `more`.
fn pod(name: &str, more: Value) -> Arc<PodView> {
    let mut pod = json!({
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": name,
            "labels": {"app": "web"},
            "creationTimestamp": ago(120),
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "set", "controller": true,
            }],
        },
        "spec": {"nodeName": format!("node-{name}"), "containers": []},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": ago(60)}],
        },
    });
    json_patch::merge(&mut pod, &more);
    Arc::new(serde_json::from_value::<Pod>(pod).unwrap().into())
}

fn names(pods: &[Arc<PodView>]) -> Vec<&str> {
    pods.iter().map(|pod| pod.key.name.as_str()).collect()
}

#[test]
fn pods_are_claimed_by_selector_and_owner() {
    let pods = [
        pod("own", json!({})),
        pod("orphan", json!({"metadata": {"ownerReferences": null}})),
        pod(
            "relabelled",
            json!({"metadata": {"labels": {"app": "debug"}}}),
        ),
        pod(
            "stranger",
            json!({"metadata": {"ownerReferences": null, "labels": null}}),
        ),
        pod(
            "leaving",
            json!({"metadata": {"deletionTimestamp": ago(1)}}),
        ),
        pod("failed", json!({"status": {"phase": "Failed"}})),
        pod(
            "other",
            json!({"metadata": {"ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "x", "controller": true,
            }]}}),
        ),
    ];
    let claim = claim(&set(1), &pods);
    assert_eq!(names(&claim.owned), ["own"]);
    assert_eq!(names(&claim.adopt), ["orphan"]);
    assert_eq!(names(&claim.release), ["relabelled"]);
}

#[test]
fn the_number_of_pods_is_brought_to_what_is_wanted() {
    let pods = [pod("a", json!({})), pod("b", json!({}))];
    assert_eq!(plan(&set(2), &pods, now()), Plan::Nothing);
    assert_eq!(plan(&set(5), &pods, now()), Plan::Create(3));
    assert_eq!(plan(&set(10_000), &pods, now()), Plan::Create(500));
    assert!(matches!(plan(&set(0), &pods, now()), Plan::Delete(all) if all.len() == 2));
}

#[test]
fn the_least_needed_pod_goes_first() {
    let not_ready = json!({"status": {"conditions": null}});
    for (first, what) in [
        (json!({"spec": {"nodeName": null}}), "it has no node"),
        (json!({"status": {"phase": "Pending"}}), "it does not run"),
        (not_ready, "it is not ready"),
        (
            json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}}}),
            "it costs less",
        ),
        (
            json!({"spec": {"nodeName": "node-b"}}),
            "it shares its node",
        ),
        (
            json!({"status": {"conditions": [{
                "type": "Ready", "status": "True", "lastTransitionTime": ago(1),
            }]}}),
            "it became ready later",
        ),
        (
            json!({"status": {"containerStatuses": [{
                "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 3,
            }]}}),
            "it was restarted",
        ),
        (
            json!({"metadata": {"creationTimestamp": ago(1)}}),
            "it is younger",
        ),
    ] {
        // "a" would go first by its name; the changed one is "x", and "b" has the node that one shares.
        let cost = json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "1"}}});
        let keeps_b = if what == "it shares its node" {
            cost
        } else {
            json!({})
        };
        let pods = [pod("a", json!({})), pod("b", keeps_b), pod("x", first)];
        let Plan::Delete(deleted) = plan(&set(2), &pods, now()) else {
            panic!("nothing is deleted");
        };
        assert_eq!(names(&deleted), ["x"], "{what}");
    }
}

#[test]
fn the_status_counts_pods_by_how_they_are() {
    let pods = [
        pod("a", json!({})),
        pod("b", json!({"status": {"conditions": null}})),
        pod(
            "c",
            json!({"metadata": {"labels": {"app": "web", "extra": "1"}}}),
        ),
    ];
    let mut set = set(3);
    set.min_ready_seconds = 90;
    let found = status(&set, &pods, None, now());
    assert_eq!(
        (
            found.replicas,
            found.ready_replicas,
            found.available_replicas,
            found.fully_labeled_replicas,
            found.observed_generation,
        ),
        (3, Some(2), None, Some(3), Some(2))
    );
    let failed = status(
        &set,
        &pods,
        Some(("FailedCreate", "no quota".into())),
        now(),
    );
    let condition = &failed.conditions.as_ref().unwrap()[0];
    assert_eq!(condition.type_, "ReplicaFailure");
    assert_eq!(condition.message.as_deref(), Some("no quota"));
    set.status = failed;
    assert_eq!(status(&set, &pods, None, now()).conditions, None);
}

#[test]
fn finished_pods_have_ended() {
    assert!(pod("a", json!({"status": {"phase": "Succeeded"}})).is_finished());
    assert_eq!(pod("a", json!({"status": null})).phase, Phase::Pending);
}

/// The controller against an API server.
struct World {
    fake: Fake,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    fn start() -> Self {
        let fake = Fake::new();
        let shutdown = CancellationToken::new();
        let task = fake.run_workloads(&shutdown);
        Self {
            fake,
            shutdown,
            task,
        }
    }

    fn put_set(&self, replicas: i32) {
        self.fake.put(
            "apps/v1/replicasets",
            json!({
                "metadata": {"name": "web", "namespace": "ns", "generation": 1},
                "spec": {
                    "replicas": replicas,
                    "selector": {"matchLabels": {"app": "web"}},
                    "template": {
                        "metadata": {"labels": {"app": "web"}},
                        "spec": {"containers": [{"name": "c", "image": "i"}]},
                    },
                },
            }),
        );
    }

    async fn wait_counted(&self, replicas: i64) {
        self.fake
            .wait_for("apps/v1/replicasets", |set| {
                set["status"]["replicas"] == replicas
            })
            .await;
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn a_set_grows_shrinks_and_replaces_what_leaves_it() {
    let world = World::start();
    world.put_set(5);
    world.wait_counted(5).await;
    world.put_set(2);
    world.wait_counted(2).await;
    assert_eq!(
        world.fake.requests("POST /api/v1/namespaces/ns/pods"),
        5,
        "none was made twice"
    );

    let pod = world.fake.wait_for("v1/pods", |_| true).await;
    let name = pod["metadata"]["name"].as_str().unwrap();
    let mut relabelled = pod.clone();
    relabelled["metadata"]["labels"] = json!({"app": "debug"});
    world.fake.put("v1/pods", relabelled);
    world
        .fake
        .wait_for("v1/pods", |pod| {
            pod["metadata"]["name"] == name
                && pod["metadata"]["ownerReferences"]
                    .as_array()
                    .is_none_or(Vec::is_empty)
        })
        .await;
    world.wait_counted(2).await;
    world.end().await;
}

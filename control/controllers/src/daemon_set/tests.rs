use serde_json::{Value, json};

use super::{plan::*, *};
use crate::fake::Fake;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn ago(seconds: i64) -> String {
    (now() - jiff::SignedDuration::from_secs(seconds)).to_string()
}

fn set(more: Value) -> DaemonSet {
    let mut set = json!({
        "metadata": {"name": "log", "namespace": "ns", "uid": "set", "generation": 1},
        "spec": {
            "selector": {"matchLabels": {"app": "log"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": {"app": "log"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    json_patch::merge(&mut set, &more);
    serde_json::from_value(set).unwrap()
}

fn node(name: &str, more: Value) -> Arc<NodeView> {
    let mut node = json!({"metadata": {"name": name, "labels": {"disk": "ssd"}}});
    json_patch::merge(&mut node, &more);
    let node: k8s_openapi::api::core::v1::Node = serde_json::from_value(node).unwrap();
    Arc::new(node.into())
}

/// A ready pod on a node, of a version.
fn pod(node: &str, hash: &str, more: Value) -> Arc<PodView> {
    let mut pod = json!({
        "metadata": {
            "name": format!("{node}-{hash}"), "namespace": "ns", "uid": format!("{node}-{hash}"),
            "labels": {"app": "log", HASH_LABEL: hash}, "creationTimestamp": ago(60),
        },
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": ago(50)},
        ]},
    });
    json_patch::merge(&mut pod, &more);
    Arc::new(serde_json::from_value::<Pod>(pod).unwrap().into())
}

fn decide(set: &DaemonSet, nodes: &[Arc<NodeView>], pods: &[Arc<PodView>]) -> Plan {
    plan(set, nodes, pods, "new", now())
}

fn names(pods: &[Arc<PodView>]) -> Vec<&str> {
    pods.iter().map(|pod| pod.key.name.as_str()).collect()
}

#[test]
fn each_node_that_is_meant_gets_a_pod() {
    let taint = |effect: &str| json!({"spec": {"taints": [{"key": "k", "effect": effect}]}});
    let tolerates =
        json!({"spec": {"template": {"spec": {"tolerations": [{"operator": "Exists"}]}}}});
    let selects =
        |value: &str| json!({"spec": {"template": {"spec": {"nodeSelector": {"disk": value}}}}});
    for (set_more, node_more, creates, keeps) in [
        (json!({}), json!({}), true, true),
        (
            json!({}),
            json!({"spec": {"unschedulable": true}}),
            true,
            true,
        ),
        (json!({}), taint("NoSchedule"), false, true),
        (json!({}), taint("NoExecute"), false, false),
        (
            json!({}),
            json!({"spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]}}),
            true,
            true,
        ),
        (tolerates, taint("NoExecute"), true, true),
        (selects("ssd"), json!({}), true, true),
        (selects("hdd"), json!({}), false, false),
    ] {
        let nodes = [node("a", node_more.clone())];
        let set = set(set_more.clone());
        let empty = decide(&set, &nodes, &[]);
        assert_eq!(
            empty.create.len(),
            usize::from(creates),
            "{set_more} {node_more}"
        );
        let there = decide(&set, &nodes, &[pod("a", "new", json!({}))]);
        assert_eq!(there.delete.is_empty(), keeps, "{set_more} {node_more}");
        assert_eq!(there.create, Vec::<String>::new());
        assert_eq!(there.status.desired_number_scheduled, i32::from(creates));
    }
}

#[test]
fn one_pod_is_enough_and_a_lost_node_has_none() {
    let nodes = [node("a", json!({}))];
    let older =
        json!({"metadata": {"uid": "older", "name": "older", "creationTimestamp": ago(90)}});
    let waiting = json!({"spec": {"nodeName": null, "affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]},
        ]},
    }}}});
    let pods = [pod("a", "new", json!({})), pod("a", "new", older)];
    assert_eq!(
        names(&decide(&set(json!({})), &nodes, &pods).delete),
        ["a-new"]
    );
    let gone = decide(&set(json!({})), &nodes, &[pod("b", "new", json!({}))]);
    assert_eq!((names(&gone.delete), gone.create.len()), (vec!["b-new"], 1));
    let pending = decide(&set(json!({})), &nodes, &[pod("a", "new", waiting)]);
    assert_eq!((pending.delete.len(), pending.create.len()), (0, 0));
}

#[test]
fn a_pod_that_ended_is_made_again_after_a_while() {
    let nodes = [node("a", json!({}))];
    let failed = |ended: i64| {
        pod(
            "a",
            "new",
            json!({"status": {"phase": "Failed", "conditions": null, "containerStatuses": [{
                "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 1, "finishedAt": ago(ended)}},
            }]}}),
        )
    };
    let soon = decide(&set(json!({})), &nodes, &[failed(3)]);
    assert_eq!((soon.delete.len(), soon.again_seconds), (0, Some(7)));
    assert_eq!(
        decide(&set(json!({})), &nodes, &[failed(11)]).delete.len(),
        1
    );
}

#[test]
fn old_pods_give_way_within_limits() {
    let nodes: Vec<_> = ["a", "b", "c"].map(|name| node(name, json!({}))).into();
    let old = |name: &str| pod(name, "old", json!({}));
    let new = |name: &str| pod(name, "new", json!({}));
    let sick = json!({"status": {"conditions": null}});
    let on_delete =
        json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}});
    let surge = json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}}});
    for (more, pods, deleted, created) in [
        (
            json!({}),
            vec![old("a"), old("b"), old("c")],
            vec!["a-old"],
            vec![],
        ),
        (
            json!({}),
            vec![new("a"), old("b"), old("c")],
            vec!["b-old"],
            vec![],
        ),
        (
            json!({}),
            vec![pod("a", "new", sick.clone()), old("b"), old("c")],
            vec![],
            vec![],
        ),
        // One that does not work costs nothing.
        (
            json!({}),
            vec![pod("a", "old", sick.clone()), old("b"), old("c")],
            vec!["a-old"],
            vec![],
        ),
        (
            on_delete,
            vec![old("a"), old("b"), old("c")],
            vec![],
            vec![],
        ),
        (
            surge.clone(),
            vec![old("a"), old("b"), old("c")],
            vec![],
            vec!["a"],
        ),
        (
            surge.clone(),
            vec![old("a"), pod("a", "new", sick), old("b"), old("c")],
            vec![],
            vec![],
        ),
        (
            surge,
            vec![old("a"), new("a"), old("b"), old("c")],
            vec!["a-old"],
            vec!["b"],
        ),
    ] {
        let found = decide(&set(more.clone()), &nodes, &pods);
        assert_eq!(names(&found.delete), deleted, "{more} {:?}", names(&pods));
        assert_eq!(found.create, created, "{more} {:?}", names(&pods));
    }
    let status = decide(&set(json!({})), &nodes, &[new("a"), old("b")]).status;
    assert_eq!(
        (
            status.desired_number_scheduled,
            status.current_number_scheduled,
            status.number_ready,
            status.updated_number_scheduled,
            status.number_unavailable
        ),
        (3, 2, 2, Some(1), Some(1))
    );
}

#[tokio::test]
async fn nodes_come_and_go_and_the_template_changes() {
    let fake = Fake::new();
    let shutdown = CancellationToken::new();
    let task = fake.run_workloads(&shutdown);
    let mut object = json!(set(json!({})));
    fake.put("apps/v1/daemonsets", object.clone());
    fake.put("v1/nodes", json!({"metadata": {"name": "a"}}));
    let pod = fake.wait_for("v1/pods", |_| true).await;
    let first = pod["metadata"]["labels"][HASH_LABEL]
        .as_str()
        .unwrap()
        .to_owned();
    object["spec"]["template"]["spec"]["containers"][0]["image"] = "other".into();
    fake.put("apps/v1/daemonsets", object.clone());
    fake.wait_for("v1/pods", |pod| {
        pod["metadata"]["labels"][HASH_LABEL] != *first
    })
    .await;
    fake.wait_for("apps/v1/controllerrevisions", |found| {
        found["revision"] == 2
    })
    .await;
    // Back again: the first version is numbered anew.
    object["spec"]["template"]["spec"]["containers"][0]["image"] = "i".into();
    fake.put("apps/v1/daemonsets", object);
    let third = fake
        .wait_for("apps/v1/controllerrevisions", |found| {
            found["revision"] == 3
        })
        .await;
    assert_eq!(third["metadata"]["labels"][HASH_LABEL], *first);
    shutdown.cancel();
    task.await.unwrap();
}

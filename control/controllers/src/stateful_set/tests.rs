use serde_json::{Value, json};

use super::{plan::*, *};
use crate::fake::Fake;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn set(more: Value) -> StatefulSet {
    let mut set = json!({
        "metadata": {"name": "db", "namespace": "ns", "uid": "set", "generation": 1},
        "spec": {
            "replicas": 3, "serviceName": "db",
            "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    json_patch::merge(&mut set, &more);
    serde_json::from_value(set).unwrap()
}

/// A ready pod of a version; `state` is `ready`, `waiting`, `leaving` or a phase.
fn pod(ordinal: i32, revision: &str, state: &str) -> Arc<PodView> {
    let name = format!("db-{ordinal}");
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "db", HASH_LABEL: revision}},
        "status": {"phase": "Running"},
    });
    match state {
        "ready" => pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]),
        "waiting" => {}
        "leaving" => pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:59:59Z".into(),
        phase => pod["status"]["phase"] = phase.into(),
    }
    Arc::new(serde_json::from_value::<Pod>(pod).unwrap().into())
}

/// Ordinals made, and names deleted.
fn decide(set: &StatefulSet, pods: &[(i32, &str, &str)]) -> (Vec<(i32, bool)>, Vec<String>) {
    let pods: Vec<_> = pods
        .iter()
        .map(|(ordinal, revision, state)| pod(*ordinal, revision, state))
        .collect();
    let plan = plan(set, &pods, "old", "new", now());
    let deleted = plan.delete.iter().map(|pod| pod.key.name.clone());
    (plan.create, deleted.collect())
}

#[test]
fn pods_come_one_after_another_and_go_in_reverse() {
    let parallel = json!({"spec": {"podManagementPolicy": "Parallel"}});
    let one = json!({"spec": {"replicas": 1}});
    let from_five = json!({"spec": {"ordinals": {"start": 5}, "replicas": 2}});
    for (more, pods, created, deleted) in [
        (json!({}), vec![], vec![0], vec![]),
        (json!({}), vec![(0, "new", "waiting")], vec![], vec![]),
        (json!({}), vec![(0, "new", "ready")], vec![1], vec![]),
        (
            json!({}),
            vec![(0, "new", "leaving"), (1, "new", "ready")],
            vec![],
            vec![],
        ),
        (
            json!({}),
            vec![(0, "new", "Failed"), (1, "new", "ready")],
            vec![],
            vec!["db-0"],
        ),
        (parallel.clone(), vec![], vec![0, 1, 2], vec![]),
        (
            one.clone(),
            vec![
                (0, "new", "ready"),
                (1, "new", "ready"),
                (2, "new", "ready"),
            ],
            vec![],
            vec!["db-2"],
        ),
        (
            one.clone(),
            vec![
                (0, "new", "ready"),
                (1, "new", "ready"),
                (2, "new", "leaving"),
            ],
            vec![],
            vec![],
        ),
        (
            one,
            vec![(0, "new", "waiting"), (1, "new", "ready")],
            vec![],
            vec![],
        ),
        (from_five, vec![(5, "new", "ready")], vec![6], vec![]),
    ] {
        let (found, gone) = decide(&set(more.clone()), &pods);
        let ordinals: Vec<_> = found.iter().map(|(ordinal, _)| *ordinal).collect();
        assert_eq!(ordinals, created, "{more} {pods:?}");
        assert_eq!(gone, deleted, "{more} {pods:?}");
    }
}

#[test]
fn old_pods_give_way_from_the_last_to_the_partition() {
    let partition = json!({"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}});
    let on_delete = json!({"spec": {"updateStrategy": {"type": "OnDelete"}}});
    let (r, w) = ("ready", "waiting");
    for (more, pods, created, deleted) in [
        (
            json!({}),
            vec![(0, "old", r), (1, "old", r), (2, "old", r)],
            vec![],
            vec!["db-2"],
        ),
        (
            json!({}),
            vec![(0, "old", r), (1, "old", r), (2, "new", w)],
            vec![],
            vec![],
        ),
        (
            json!({}),
            vec![(0, "old", r), (1, "old", r), (2, "new", r)],
            vec![],
            vec!["db-1"],
        ),
        (
            json!({}),
            vec![(0, "old", r), (1, "old", r)],
            vec![(2, false)],
            vec![],
        ),
        (
            partition.clone(),
            vec![(0, "old", r), (1, "old", r), (2, "new", r)],
            vec![],
            vec![],
        ),
        (partition, vec![(0, "old", r)], vec![(1, true)], vec![]),
        (
            on_delete,
            vec![(0, "old", r), (1, "old", r), (2, "old", r)],
            vec![],
            vec![],
        ),
    ] {
        let found = decide(&set(more.clone()), &pods);
        let deleted: Vec<_> = deleted.into_iter().map(str::to_owned).collect();
        assert_eq!(found, (created, deleted), "{more} {pods:?}");
    }
}

#[test]
fn the_status_names_both_versions_until_the_last_pod_has_changed() {
    let revisions = |pods: &[Arc<PodView>]| {
        let status = plan(&set(json!({})), pods, "old", "new", now()).status;
        (
            status.current_revision.unwrap(),
            status.updated_replicas,
            status.current_replicas,
        )
    };
    let mut pods = vec![
        pod(0, "old", "ready"),
        pod(1, "new", "ready"),
        pod(2, "new", "ready"),
    ];
    assert_eq!(revisions(&pods), ("old".into(), Some(2), Some(1)));
    pods[0] = pod(0, "new", "ready");
    assert_eq!(revisions(&pods), ("new".into(), Some(3), Some(3)));
}

#[test]
fn names_are_read_back() {
    for (name, wanted) in [
        ("db-0", Some(0)),
        ("db-12", Some(12)),
        ("db-01", None),
        ("db-x", None),
        ("dbx-1", None),
    ] {
        assert_eq!(ordinal("db", name), wanted, "{name}");
    }
}

#[tokio::test]
async fn a_set_grows_in_order_and_no_pod_is_before_its_claims() {
    let fake = Fake::new();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(crate::workloads::run(
        fake.client(),
        Recorder::new().0,
        shutdown.clone(),
    ));
    fake.put(
        "apps/v1/statefulsets",
        json!(set(json!({"spec": {"replicas": 2}}))),
    );
    for name in ["db-0", "db-1"] {
        let mut pod = fake
            .wait_for("v1/pods", |pod| pod["metadata"]["name"] == name)
            .await;
        assert_eq!(pod["spec"]["hostname"], name);
        assert_eq!(pod["spec"]["subdomain"], "db");
        pod["status"] =
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        fake.put("v1/pods", pod);
    }
    fake.wait_for("apps/v1/statefulsets", |set| {
        set["status"]["readyReplicas"] == 2
    })
    .await;
    let claims = json!({
        "metadata": {"name": "kept", "uid": null},
        "spec": {"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]},
    });
    // The pauses between tries grow: often enough for the condition to stand a while.
    for _ in 0..3 {
        fake.fail_next("POST /api/v1/namespaces/ns/persistentvolumeclaims", 403);
    }
    fake.put("apps/v1/statefulsets", json!(set(claims)));
    fake.wait_for("apps/v1/statefulsets", |set| {
        let condition = &set["status"]["conditions"][0];
        set["metadata"]["name"] == "kept" && condition["reason"] == "FailedCreate"
    })
    .await;
    assert_eq!(fake.get("v1/pods", "ns", "kept-0"), None);
    // It is tried again.
    fake.wait_for("v1/pods", |pod| pod["metadata"]["name"] == "kept-0")
        .await;
    let claim = fake.get("v1/persistentvolumeclaims", "ns", "data-kept-0");
    assert!(claim.is_some());
    shutdown.cancel();
    task.await.unwrap();
}

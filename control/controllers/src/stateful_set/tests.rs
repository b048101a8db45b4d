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
fn as_many_old_pods_give_way_at_once_as_may_be_unavailable() {
    let (r, w) = ("ready", "waiting");
    let with = |max: Value, policy: &str, partition: i32| {
        json!({"spec": {"replicas": 4, "podManagementPolicy": policy, "updateStrategy": {"type": "RollingUpdate",
            "rollingUpdate": {"partition": partition, "maxUnavailable": max}}}})
    };
    let all_old = vec![(0, "old", r), (1, "old", r), (2, "old", r), (3, "old", r)];
    let one_waits = vec![(0, "old", r), (1, "old", r), (2, "old", r), (3, "new", w)];
    let old_waits = vec![(0, "old", r), (1, "old", w), (2, "old", r), (3, "old", r)];
    for (more, pods, deleted) in [
        (
            with(json!(2), "OrderedReady", 0),
            &all_old,
            &["db-3", "db-2"][..],
        ),
        (
            with(json!("75%"), "OrderedReady", 0),
            &all_old,
            &["db-3", "db-2", "db-1"],
        ),
        (with(json!("10%"), "OrderedReady", 0), &all_old, &["db-3"]),
        (
            with(json!(3), "OrderedReady", 2),
            &all_old,
            &["db-3", "db-2"],
        ),
        // The pod that has just come has to be ready before the next goes.
        (with(json!(2), "OrderedReady", 0), &one_waits, &[]),
        (with(json!(2), "Parallel", 0), &one_waits, &["db-2"]),
        (with(json!(1), "Parallel", 0), &one_waits, &[]),
        (with(json!(2), "Parallel", 0), &old_waits, &["db-3", "db-1"]),
    ] {
        let (created, found) = decide(&set(more.clone()), pods);
        assert_eq!(
            (created, found),
            (
                vec![],
                deleted.iter().map(|name| (*name).to_owned()).collect()
            ),
            "{more} {pods:?}"
        );
    }
}

fn owner(kind: &str, uid: &str, is_controller: bool) -> OwnerReference {
    OwnerReference {
        kind: kind.into(),
        api_version: "v1".into(),
        name: uid.into(),
        uid: uid.into(),
        controller: is_controller.then_some(true),
        block_owner_deletion: is_controller.then_some(true),
    }
}

#[test]
fn a_claim_is_owned_by_what_it_goes_with() {
    let (of_set, of_pod) = (owner("StatefulSet", "set", true), owner("Pod", "pod", true));
    let other = owner("ConfigMap", "other", false);
    let (keep, delete) = ("Retain", "Delete");
    let none = || -> Vec<OwnerReference> { vec![] };
    for (deleted, scaled, stays, goes) in [
        (keep, keep, none(), none()),
        (delete, keep, vec![of_set.clone()], vec![of_set.clone()]),
        (keep, delete, none(), vec![of_pod.clone()]),
        (delete, delete, vec![of_set.clone()], vec![of_pod.clone()]),
    ] {
        let more = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled}}});
        let retention = Retention::of(&set(more).spec.unwrap());
        assert_eq!(retention.keeps_all(), (deleted, scaled) == (keep, keep));
        for (is_condemned, wanted) in [(false, stays), (true, goes)] {
            for before in [
                none(),
                vec![of_set.clone()],
                vec![of_pod.clone()],
                vec![of_set.clone(), of_pod.clone()],
            ] {
                for others in [none(), vec![other.clone()]] {
                    let with = |owners: &[OwnerReference]| [&others[..], owners].concat();
                    let change =
                        retention.owners(&with(&before), &of_set, Some(&of_pod), is_condemned);
                    let then = change.clone().unwrap_or_else(|| with(&before));
                    assert_eq!(
                        then,
                        with(&wanted),
                        "{deleted} {scaled} {is_condemned} {before:?}"
                    );
                    let again = retention.owners(&then, &of_set, Some(&of_pod), is_condemned);
                    assert_eq!(again, None, "once is enough");
                }
            }
        }
    }
    let delete =
        json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}});
    let retention = Retention::of(&set(delete).spec.unwrap());
    let controlled = [owner("Operator", "operator", true)];
    assert_eq!(
        retention.owners(&controlled, &of_set, Some(&of_pod), false),
        None,
        "somebody else decides"
    );
    assert!(claims::is_of_earlier_pod(&[of_pod], "pod"));
    assert!(!claims::is_of_earlier_pod(&[of_set], "pod"));
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
    let task = fake.run_workloads(&shutdown);
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

#[tokio::test]
async fn claims_go_with_the_pods_of_ordinals_that_are_not_wanted_and_new_pods_wait_for_new_claims()
{
    let fake = Fake::new();
    let shutdown = CancellationToken::new();
    let task = fake.run_workloads(&shutdown);
    let of_size = |replicas: i32| {
        json!(set(json!({"spec": {
            "replicas": replicas, "podManagementPolicy": "Parallel",
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
        }})))
    };
    fake.put("apps/v1/statefulsets", of_size(2));
    for name in ["db-0", "db-1"] {
        let mut pod = fake
            .wait_for("v1/pods", |pod| pod["metadata"]["name"] == name)
            .await;
        pod["status"] =
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        fake.put("v1/pods", pod);
    }
    let owner = |claim: &Value| claim["metadata"]["ownerReferences"][0]["kind"].clone();
    let claim = |name: &str| fake.get("v1/persistentvolumeclaims", "ns", name).unwrap();
    assert_eq!(owner(&claim("data-db-1")), "StatefulSet");

    let mut small = fake.get("apps/v1/statefulsets", "ns", "db").unwrap();
    small["spec"]["replicas"] = 1.into();
    fake.put("apps/v1/statefulsets", small.clone());
    fake.wait_until_gone("v1/pods", "ns", "db-1").await;
    assert_eq!(owner(&claim("data-db-1")), "Pod", "before the pod went");
    assert_eq!(owner(&claim("data-db-0")), "StatefulSet");

    // The collector is not here: the claim goes when the test says so.
    let mut large = fake.get("apps/v1/statefulsets", "ns", "db").unwrap();
    large["spec"]["replicas"] = 3.into();
    fake.put("apps/v1/statefulsets", large);
    fake.wait_for("v1/pods", |pod| pod["metadata"]["name"] == "db-2")
        .await;
    assert_eq!(fake.get("v1/pods", "ns", "db-1"), None, "it waits");
    fake.remove("v1/persistentvolumeclaims", "ns", "data-db-1");
    fake.wait_for("v1/pods", |pod| pod["metadata"]["name"] == "db-1")
        .await;
    assert_eq!(owner(&claim("data-db-1")), "StatefulSet");
    shutdown.cancel();
    task.await.unwrap();
}

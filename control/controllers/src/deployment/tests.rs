use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::PodTemplateSpec};
use serde_json::{Value, json};

use super::{plan::*, *};
use crate::fake::Fake;

fn deployment(spec: Value) -> Deployment {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1},
        "spec": {
            "replicas": 10,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"},
            },
            "progressDeadlineSeconds": 600,
        },
    });
    json_patch::merge(&mut object, &json!({"spec": spec}));
    serde_json::from_value(object).unwrap()
}

fn facts(spec: Value) -> Facts {
    Facts::new(&deployment(spec))
}

/// A set with so many replicas, of which so many are available, numbered `n`.
fn set(n: i64, replicas: i32, available: i32) -> Arc<SetView> {
    let set: ReplicaSet = serde_json::from_value(json!({
        "metadata": {
            "name": format!("web-{n}"),
            "namespace": "ns",
            "uid": format!("set-{n}"),
            "creationTimestamp": format!("2026-01-01T00:00:{n:02}Z"),
            "annotations": {REVISION: n.to_string()},
        },
        "spec": {"replicas": replicas, "selector": {}},
        "status": {
            "replicas": replicas, "readyReplicas": available, "availableReplicas": available,
        },
    }))
    .unwrap();
    Arc::new(set.into())
}

/// The same after it was last scaled for a Deployment of that size.
fn scaled_for(facts: &Facts, set: Arc<SetView>) -> Arc<SetView> {
    let mut set = Arc::unwrap_or_clone(set);
    set.annotations.extend(facts.scale_annotations());
    Arc::new(set)
}

#[test]
fn shares_are_of_the_wanted_number() {
    for (surge, unavailable, replicas, max, min) in [
        (json!("25%"), json!("25%"), 10, 13, 8),
        (json!("25%"), json!("25%"), 1, 2, 1),
        (json!(0), json!("10%"), 4, 4, 3),
        (json!(2), json!(0), 3, 5, 3),
        (json!("100%"), json!("100%"), 3, 6, 0),
    ] {
        let facts = facts(json!({
            "replicas": replicas,
            "strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
        }));
        assert_eq!(
            (facts.replicas_max(), facts.available_min()),
            (max, min),
            "{facts:?}"
        );
    }
}

#[test]
fn a_rollout_never_has_too_many_pods_nor_too_few_available() {
    // Every pod becomes available one look after it was made, or never does, or the old ones were sick before.
    for (become_available, old_available) in [(true, 10), (false, 10), (true, 3)] {
        let facts = facts(json!({}));
        let mut new = set(2, first_replicas(&facts, &[set(1, 10, old_available)]), 0);
        let mut old = set(1, 10, old_available);
        let mut looks = 0;
        loop {
            looks += 1;
            assert!(looks < 100, "it does not come to an end");
            let wanted = new_replicas(&facts, &new, std::slice::from_ref(&old));
            let changes = if wanted == new.replicas {
                old_replicas(&facts, &new, std::slice::from_ref(&old))
            } else {
                new = set(2, wanted, new.status.available_replicas.unwrap_or(0));
                Vec::new()
            };
            if let Some((_, replicas)) = changes.first() {
                old = set(
                    1,
                    *replicas,
                    old.status.available_replicas.unwrap_or(0).min(*replicas),
                );
            }
            let available = |set: &SetView| set.status.available_replicas.unwrap_or(0);
            assert!(new.replicas + old.replicas <= facts.replicas_max());
            if old_available == 10 {
                assert!(available(&new) + available(&old) >= facts.available_min());
            }
            if become_available {
                new = set(2, new.replicas, new.replicas);
            } else if changes.is_empty() && wanted == new.replicas {
                break;
            }
            if new.replicas == 10 && old.replicas == 0 {
                break;
            }
        }
        if become_available {
            assert_eq!((new.replicas, old.replicas), (10, 0));
        } else {
            assert_eq!(
                (new.replicas, old.replicas),
                (5, 8),
                "stuck with as much of the old as has to be there"
            );
        }
    }
}

#[test]
fn a_change_of_replicas_in_the_middle_of_a_rollout_is_shared() {
    let before =
        facts(json!({"strategy": {"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}}));
    let (old, new) = (
        scaled_for(&before, set(1, 8, 8)),
        scaled_for(&before, set(2, 5, 0)),
    );
    let all = [old.clone(), new.clone()];
    assert!(!is_scaled(&before, &all));
    let grown = facts(json!({
        "replicas": 15,
        "strategy": {"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}},
    }));
    assert!(is_scaled(&grown, &all));
    let shares = |facts: &Facts| -> Vec<(String, i32)> {
        proportional(facts, Some(&new), &all)
            .into_iter()
            .map(|(set, replicas)| (set.key.name.clone(), replicas))
            .collect()
    };
    // The example of the documentation of Kubernetes: five more become three and two.
    assert_eq!(
        shares(&grown),
        [("web-1".to_owned(), 11), ("web-2".to_owned(), 7)]
    );
    let none = facts(json!({"replicas": 0}));
    assert_eq!(
        shares(&none),
        [("web-1".to_owned(), 0), ("web-2".to_owned(), 0)]
    );
}

#[test]
fn history_keeps_the_latest_sets() {
    let facts = facts(json!({"revisionHistoryLimit": 2}));
    let old = [set(1, 0, 0), set(4, 0, 0), set(2, 0, 0), set(3, 1, 1)];
    let gone: Vec<_> = beyond_history(&facts, &old)
        .iter()
        .map(|set| set.key.name.clone())
        .collect();
    assert_eq!(gone, ["web-1"]);
    assert_eq!(next_revision(&old), 5);
}

#[test]
fn a_template_is_known_by_what_it_makes() {
    let template = |value: Value| serde_json::from_value::<PodTemplateSpec>(value).unwrap();
    let plain = template(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}));
    let hashed = template(json!({
        "metadata": {"labels": {"a": "b", HASH_LABEL: "xyz"}},
        "spec": {"containers": []},
    }));
    let other = template(json!({
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c"}]},
    }));
    assert!(is_same_template(&plain, &hashed));
    assert!(!is_same_template(&plain, &other));
    assert_eq!(template_hash(&plain, 0), template_hash(&plain, 0));
    assert_ne!(template_hash(&plain, 0), template_hash(&plain, 1));
    assert_ne!(template_hash(&plain, 0), template_hash(&other, 0));
    assert_eq!(template_hash(&plain, 0).len(), 10);
}

#[test]
fn conditions_tell_how_the_rollout_goes() {
    let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
    let mut d = deployment(json!({"replicas": 1}));
    let facts = Facts::new(&d);
    let sets = |available| Sets {
        new: Some(set(1, 1, available)),
        old: Vec::new(),
    };
    let seen = |status: &k8s_openapi::api::apps::v1::DeploymentStatus| -> Vec<String> {
        status
            .conditions
            .iter()
            .flatten()
            .map(|c| {
                format!(
                    "{}={} {}",
                    c.type_,
                    c.status,
                    c.reason.clone().unwrap_or_default()
                )
            })
            .collect()
    };
    let created = status::News::Created {
        set: "web-1".into(),
        collisions: None,
    };
    let first = status::status(&d, &facts, &sets(0), Some(created), at(0));
    assert_eq!(
        seen(&first),
        [
            "Available=False MinimumReplicasUnavailable",
            "Progressing=True NewReplicaSetCreated"
        ]
    );
    assert_eq!(
        status::look_again(&facts, &first, at(0)),
        Some(Duration::from_secs(601))
    );
    d.status = Some(first);
    let stuck = status::status(&d, &facts, &sets(0), None, at(601));
    assert_eq!(
        seen(&stuck)[1],
        "Progressing=False ProgressDeadlineExceeded"
    );
    let done = status::status(&d, &facts, &sets(1), None, at(30));
    assert_eq!(
        seen(&done),
        [
            "Available=True MinimumReplicasAvailable",
            "Progressing=True NewReplicaSetAvailable"
        ]
    );
    assert_eq!(status::look_again(&facts, &done, at(30)), None);
    // A pod that is lost later is no rollout.
    d.status = Some(done);
    let later = status::status(&d, &facts, &sets(0), None, at(5_000));
    assert_eq!(seen(&later)[1], "Progressing=True NewReplicaSetAvailable");
}

#[tokio::test]
async fn a_new_template_replaces_the_pods_of_the_old_one() {
    let fake = Fake::new();
    let shutdown = CancellationToken::new();
    let task = fake.run_workloads(&shutdown);
    let put = |image: &str, generation: i64| {
        let mut d = serde_json::to_value(deployment(json!({"replicas": 3}))).unwrap();
        d["metadata"]["generation"] = generation.into();
        d["metadata"].as_object_mut().unwrap().remove("uid");
        d["spec"]["template"]["spec"]["containers"] = json!([{"name": "c", "image": image}]);
        if let Some(known) = fake.get("apps/v1/deployments", "ns", "web") {
            d["metadata"]["annotations"] = known["metadata"]["annotations"].clone();
            d["status"] = known["status"].clone();
        }
        fake.put("apps/v1/deployments", d);
    };
    // Whoever makes a pod ready here is the test.
    let kubelet = {
        let (fake, shutdown) = (fake.clone(), shutdown.clone());
        tokio::spawn(async move {
            while !shutdown.is_cancelled() {
                let waiting = fake.wait_for("v1/pods", |pod| pod["status"].is_null());
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    mut pod = waiting => {
                        pod["status"] = json!({
                            "phase": "Running",
                            "conditions": [{
                                "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z",
                            }],
                        });
                        fake.put("v1/pods", pod);
                    }
                }
            }
        })
    };
    put("one", 1);
    let settled = |revision: &'static str| {
        move |d: &Value| {
            d["status"]["updatedReplicas"] == 3
                && d["status"]["replicas"] == 3
                && d["status"]["availableReplicas"] == 3
                && d["metadata"]["annotations"][REVISION] == revision
        }
    };
    fake.wait_for("apps/v1/deployments", settled("1")).await;
    put("two", 2);
    fake.wait_for("apps/v1/deployments", settled("2")).await;
    fake.wait_for("apps/v1/replicasets", |set| {
        set["spec"]["replicas"] == 0 && set["metadata"]["annotations"][REVISION] == "1"
    })
    .await;
    // Back again: the old set becomes the new one, under a new number.
    put("one", 3);
    fake.wait_for("apps/v1/deployments", settled("3")).await;
    fake.wait_for("apps/v1/replicasets", |set| {
        set["spec"]["replicas"] == 3
            && set["metadata"]["annotations"][REVISION] == "3"
            && set["metadata"]["annotations"][REVISION_HISTORY] == "1"
    })
    .await;
    shutdown.cancel();
    task.await.unwrap();
    kubelet.await.unwrap();
}

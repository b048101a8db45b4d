use serde_json::{Value, json};

use super::{plan::*, *};
use crate::fake::Fake;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn ago(seconds: i64) -> String {
    (now() - jiff::SignedDuration::from_secs(seconds)).to_string()
}

fn job(more: Value) -> Job {
    let mut job = json!({
        "metadata": {"name": "work", "namespace": "ns", "uid": "job"},
        "spec": {
            "parallelism": 1, "completions": 1, "backoffLimit": 6,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}},
        },
    });
    json_patch::merge(&mut job, &more);
    serde_json::from_value(job).unwrap()
}

/// A pod of the Job in a phase; it ended so many seconds ago with a code.
fn pod(name: &str, phase: &str, ended_ago: i64, code: i32, more: Value) -> Arc<PodView> {
    let mut pod = json!({
        "metadata": {
            "name": name, "namespace": "ns", "uid": name,
            "creationTimestamp": ago(ended_ago + 10),
            "ownerReferences": [{
                "apiVersion": "batch/v1", "kind": "Job", "name": "work", "uid": "job", "controller": true,
            }],
        },
        "spec": {"containers": []},
        "status": {"phase": phase},
    });
    if matches!(phase, "Succeeded" | "Failed") {
        pod["status"]["containerStatuses"] = json!([{
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "finishedAt": ago(ended_ago)}},
        }]);
    }
    json_patch::merge(&mut pod, &more);
    Arc::new(serde_json::from_value::<Pod>(pod).unwrap().into())
}

fn running(name: &str) -> Arc<PodView> {
    pod(name, "Running", 0, 0, json!({}))
}

fn failed(name: &str, ended_ago: i64) -> Arc<PodView> {
    pod(name, "Failed", ended_ago, 1, json!({}))
}

fn succeeded(name: &str) -> Arc<PodView> {
    pod(name, "Succeeded", 60, 0, json!({}))
}

fn of_index(index: i32) -> Value {
    json!({"metadata": {"annotations": {INDEX: index.to_string()}}})
}

fn decide(job: &Job, pods: &[Arc<PodView>]) -> Plan {
    plan(job, pods, &mut Tally::default(), now())
}

/// Types and reasons of conditions that hold.
fn conditions(status: &JobStatus) -> Vec<(String, String)> {
    let holding = status.conditions.iter().flatten();
    holding
        .filter(|condition| condition.status == "True")
        .map(|condition| (condition.type_.clone(), condition.reason.clone().unwrap()))
        .collect()
}

#[test]
fn as_many_pods_run_as_are_wanted() {
    let five = json!({"spec": {"completions": 5, "parallelism": 3}});
    let queue = json!({"spec": {"completions": null, "parallelism": 3}});
    let (run, ok) = (running, succeeded);
    for (more, pods, created, deleted) in [
        (json!({}), vec![], 1, 0),
        (json!({}), vec![run("a")], 0, 0),
        (five.clone(), vec![], 3, 0),
        (five.clone(), vec![run("a"), ok("b")], 2, 0),
        (five.clone(), vec![ok("a"), ok("b"), ok("c"), ok("d")], 1, 0),
        (five, vec![run("a"), run("b"), run("c"), run("d")], 0, 1),
        (queue.clone(), vec![], 3, 0),
        (queue, vec![run("a"), ok("b")], 0, 0),
        (json!({"spec": {"suspend": true}}), vec![run("a")], 0, 1),
    ] {
        let found = decide(&job(more.clone()), &pods);
        assert_eq!(
            (found.create.len(), found.delete.len()),
            (created, deleted),
            "{more} {} pods",
            pods.len()
        );
    }
}

#[test]
fn a_job_ends_as_its_pods_do() {
    let four: Vec<_> = (0..4).map(|i| failed(&format!("f{i}"), 600)).collect();
    let limit = json!({"spec": {"backoffLimit": 3}});
    let late = json!({"spec": {"activeDeadlineSeconds": 60}, "status": {"startTime": ago(61)}});
    let exit = json!({"spec": {"podFailurePolicy": {"rules": [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}},
    ]}}});
    let ends = |type_: &str, reason: &str| vec![(type_.to_owned(), reason.to_owned())];
    for (more, pods, wanted) in [
        (json!({}), vec![running("a")], vec![]),
        (
            json!({}),
            vec![succeeded("a")],
            ends("Complete", "CompletionsReached"),
        ),
        (limit.clone(), four[..3].to_vec(), vec![]),
        (
            limit.clone(),
            four.clone(),
            ends("Failed", "BackoffLimitExceeded"),
        ),
        (late.clone(), vec![], ends("Failed", "DeadlineExceeded")),
        // Its last pod has to end first.
        (
            late,
            vec![running("a")],
            ends("FailureTarget", "DeadlineExceeded"),
        ),
        (
            exit,
            vec![failed("a", 60)],
            ends("Failed", "PodFailurePolicy"),
        ),
        (
            json!({"spec": {"suspend": true}}),
            vec![],
            ends("Suspended", "JobSuspended"),
        ),
    ] {
        let found = decide(&job(more.clone()), &pods);
        assert_eq!(conditions(&found.status), wanted, "{more}");
        assert_eq!(
            found.create.len(),
            usize::from(wanted.is_empty() && pods[0].is_finished())
        );
    }
}

#[test]
fn restarts_in_place_count_too() {
    let more =
        json!({"spec": {"backoffLimit": 2, "template": {"spec": {"restartPolicy": "OnFailure"}}}});
    let restarted = |count: i32| {
        let statuses = json!({"status": {"containerStatuses": [
            {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": count},
        ]}});
        pod("a", "Running", 0, 0, statuses)
    };
    assert_eq!(decide(&job(more.clone()), &[restarted(1)]).delete.len(), 0);
    let over = decide(&job(more), &[restarted(2)]);
    assert_eq!(over.delete.len(), 1);
    assert_eq!(conditions(&over.status)[0].0, "FailureTarget");
}

#[test]
fn failures_are_waited_for_longer_and_longer() {
    for (ended, again) in [
        (vec![3], Some(7)),
        (vec![11], None),
        (vec![11, 60], Some(9)),
        (vec![30, 60, 90], Some(10)),
    ] {
        let pods: Vec<_> = ended
            .iter()
            .map(|ago| failed(&format!("f{ago}"), *ago))
            .collect();
        let found = decide(&job(json!({})), &pods);
        assert_eq!(found.again_seconds, again, "{ended:?}");
        assert_eq!(found.create.len(), usize::from(again.is_none()));
    }
}

#[test]
fn what_was_counted_stays_counted_when_its_pod_goes() {
    let mut job = job(json!({"spec": {"completions": 4, "parallelism": 2}}));
    let mut tally = Tally::default();
    let first = plan(&job, &[succeeded("a"), failed("b", 600)], &mut tally, now());
    let counts = |status: &JobStatus| (status.succeeded, status.failed);
    assert_eq!(counts(&first.status), (Some(1), Some(1)));
    job.status = Some(first.status);
    let second = plan(&job, &[succeeded("c")], &mut tally, now());
    assert_eq!(counts(&second.status), (Some(2), Some(1)));
    job.status = Some(second.status);
    // Another process begins with the status.
    let third = decide(&job, &[succeeded("d")]);
    assert_eq!(
        counts(&third.status),
        (Some(2), Some(1)),
        "`c` is taken for one that is there"
    );
    let third = plan(&job, &[succeeded("c"), succeeded("d")], &mut tally, now());
    assert_eq!(counts(&third.status), (Some(3), Some(1)));
}

#[test]
fn who_was_one_too_many_has_not_failed() {
    let deleted = json!({"metadata": {"deletionTimestamp": ago(1)}});
    let leaving = pod("a", "Running", 0, 0, deleted);
    let mut tally = Tally::default();
    let by_others = plan(
        &job(json!({})),
        std::slice::from_ref(&leaving),
        &mut tally,
        now(),
    );
    assert_eq!(by_others.status.failed, Some(1), "somebody else deleted it");
    let mut tally = Tally::default();
    tally.spared.insert("a".into());
    let by_us = plan(&job(json!({})), &[leaving], &mut tally, now());
    assert_eq!(by_us.status.failed, None);
}

#[test]
fn indexes_are_done_one_by_one() {
    let indexed =
        json!({"spec": {"completionMode": "Indexed", "completions": 4, "parallelism": 2}});
    let indexes =
        |plan: &Plan| -> Vec<_> { plan.create.iter().map(|new| new.index.unwrap()).collect() };
    let first = decide(&job(indexed.clone()), &[]);
    assert_eq!(indexes(&first), [0, 1]);
    let pods = [
        pod("a", "Running", 0, 0, of_index(0)),
        pod("b", "Succeeded", 60, 0, of_index(1)),
    ];
    let second = decide(&job(indexed.clone()), &pods);
    assert_eq!(indexes(&second), [2]);
    assert_eq!(second.status.completed_indexes.as_deref(), Some("1"));
    let mut known = indexed.clone();
    known["status"] = json!({"completedIndexes": "0-2", "succeeded": 3});
    assert_eq!(indexes(&decide(&job(known), &[])), [3]);

    let mut limited = indexed.clone();
    json_patch::merge(
        &mut limited,
        &json!({"spec": {"backoffLimitPerIndex": 0, "backoffLimit": 100}}),
    );
    let pods = [pod("a", "Failed", 60, 1, of_index(0))];
    let found = decide(&job(limited.clone()), &pods);
    assert_eq!(found.status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(indexes(&found), [1, 2]);
    limited["status"] = json!({"completedIndexes": "1-3", "failedIndexes": "0"});
    let found = decide(&job(limited), &pods);
    assert_eq!(
        conditions(&found.status),
        [("Failed".into(), "FailedIndexes".into())]
    );

    let mut enough = indexed;
    enough["spec"]["successPolicy"] =
        json!({"rules": [{"succeededIndexes": "0-1", "succeededCount": 1}]});
    enough["status"] = json!({"completedIndexes": "1"});
    assert_eq!(
        conditions(&decide(&job(enough), &[]).status),
        [("Complete".into(), "SuccessPolicy".into())]
    );
}

#[test]
fn a_pod_knows_its_index() {
    let job = job(json!({"spec": {"completionMode": "Indexed"}}));
    let owner = Owner {
        api_version: KIND.0,
        kind: KIND.1,
        key: Key::new("ns", "work"),
        uid: "job".into(),
    };
    let new = NewPod {
        index: Some(3),
        failures: None,
    };
    let pod = json!(new_pod(&owner, &job, &new));
    assert_eq!(pod["metadata"]["generateName"], "work-3-");
    assert_eq!(pod["metadata"]["labels"][INDEX], "3");
    assert_eq!(pod["spec"]["hostname"], "work-3");
    assert_eq!(
        pod["spec"]["containers"][0]["env"][0]["valueFrom"]["fieldRef"]["fieldPath"],
        format!("metadata.annotations['{INDEX}']")
    );
}

#[tokio::test]
async fn a_job_runs_to_its_end_and_goes_when_its_time_is_over() {
    let fake = Fake::new();
    let shutdown = CancellationToken::new();
    let task = fake.run_workloads(&shutdown);
    fake.put(
        "batch/v1/jobs",
        json!({
            "metadata": {"name": "work", "namespace": "ns"},
            "spec": {
                "completions": 2, "parallelism": 2, "ttlSecondsAfterFinished": 0,
                "selector": {"matchLabels": {"job": "work"}},
                "template": {
                    "metadata": {"labels": {"job": "work"}},
                    "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]},
                },
            },
        }),
    );
    for _ in 0..2 {
        let mut pod = fake
            .wait_for("v1/pods", |pod| pod["status"]["phase"].is_null())
            .await;
        pod["status"] = json!({"phase": "Succeeded"});
        fake.put("v1/pods", pod);
    }
    fake.wait_until_gone("batch/v1/jobs", "ns", "work").await;
    assert_eq!(fake.requests("POST /api/v1/namespaces/ns/pods"), 2);
    shutdown.cancel();
    task.await.unwrap();
}

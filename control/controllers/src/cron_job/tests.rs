use jiff::SignedDuration;
use serde_json::{Value, json};
use wherry_api::cron::Schedule;

use super::{plan::*, *};

fn now() -> Timestamp {
    "2026-01-01T01:00:30Z".parse().unwrap()
}

fn ago(seconds: i64) -> String {
    (now() - SignedDuration::from_secs(seconds)).to_string()
}

/// Due each minute, made five minutes ago.
fn cron(more: Value) -> CronJob {
    let mut cron = json!({
        "metadata": {"name": "tick", "namespace": "ns", "uid": "cron", "creationTimestamp": ago(300)},
        "spec": {
            "schedule": "* * * * *",
            "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {}}},
        },
    });
    json_patch::merge(&mut cron, &more);
    serde_json::from_value(cron).unwrap()
}

fn job(name: &str, age: i64, condition: &str) -> Arc<Job> {
    let mut job = json!({
        "metadata": {"name": name, "uid": name, "creationTimestamp": ago(age)},
    });
    if !condition.is_empty() {
        job["status"] = json!({
            "conditions": [{"type": condition, "status": "True"}],
            "completionTime": ago(age - 5),
        });
    }
    Arc::new(serde_json::from_value(job).unwrap())
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn a_job_begins_for_the_latest_moment_that_is_due() {
    let minute = at("2026-01-01T01:00:00Z");
    let active = vec![job("old", 60, "")];
    for (more, jobs, start, reasons) in [
        (json!({}), vec![], Some(minute), vec![]),
        (
            json!({"status": {"lastScheduleTime": ago(30)}}),
            vec![],
            None,
            vec![],
        ),
        (
            json!({"metadata": {"creationTimestamp": ago(10)}}),
            vec![],
            None,
            vec![],
        ),
        (json!({"spec": {"suspend": true}}), vec![], None, vec![]),
        (
            json!({"spec": {"startingDeadlineSeconds": 10}}),
            vec![],
            None,
            vec!["MissSchedule"],
        ),
        (
            json!({"spec": {"startingDeadlineSeconds": 60}}),
            vec![],
            Some(minute),
            vec![],
        ),
        (
            json!({"spec": {"concurrencyPolicy": "Allow"}}),
            active.clone(),
            Some(minute),
            vec![],
        ),
        (
            json!({"spec": {"concurrencyPolicy": "Forbid"}}),
            active.clone(),
            None,
            vec!["JobAlreadyActive"],
        ),
        (
            json!({"spec": {"concurrencyPolicy": "Replace"}}),
            active,
            Some(minute),
            vec![],
        ),
        (
            json!({"metadata": {"creationTimestamp": ago(86_400)}}),
            vec![],
            Some(minute),
            vec!["TooManyMissedTimes"],
        ),
        (
            json!({"spec": {"timeZone": "Nowhere"}}),
            vec![],
            None,
            vec!["UnknownTimeZone"],
        ),
        (
            json!({"spec": {"schedule": "x"}}),
            vec![],
            None,
            vec!["UnparseableSchedule"],
        ),
    ] {
        let found = plan(&cron(more.clone()), &jobs, now());
        assert_eq!(found.start, start, "{more}");
        let said: Vec<_> = found.remarks.iter().map(|(_, reason, _)| *reason).collect();
        assert_eq!(said, reasons, "{more}");
        let replaces = more["spec"]["concurrencyPolicy"] == "Replace";
        assert_eq!(found.replace.len(), usize::from(replaces));
    }
    assert_eq!(
        plan(&cron(json!({})), &[], now()).again,
        Some(at("2026-01-01T01:01:00Z"))
    );
}

#[test]
fn the_time_zone_decides() {
    let daily = json!({
        "metadata": {"creationTimestamp": ago(7200)},
        "spec": {"schedule": "0 2 * * *", "timeZone": "Europe/Berlin"},
    });
    let found = plan(&cron(daily.clone()), &[], now());
    assert_eq!(found.start, Some(at("2026-01-01T01:00:00Z")));
    let owner = Owner {
        api_version: KIND.0,
        kind: KIND.1,
        key: Key::new("ns", "tick"),
        uid: "cron".into(),
    };
    let job = json!(new_job(&owner, &cron(daily), found.start.unwrap()));
    assert_eq!(
        job["metadata"]["annotations"][SCHEDULED],
        "2026-01-01T02:00:00+01:00"
    );
    assert_eq!(job["metadata"]["name"], "tick-29453820");
    assert_eq!(job["metadata"]["labels"], json!({"a": "b"}));
}

#[test]
fn history_is_kept_to_its_limits() {
    let jobs: Vec<_> = (0..5)
        .map(|i| job(&format!("ok{i}"), 100 + i, "Complete"))
        .chain((0..3).map(|i| job(&format!("bad{i}"), 100 + i, "Failed")))
        .collect();
    let suspended = json!({"spec": {"suspend": true}, "status": {"active": [{"uid": "ok0"}]}});
    let found = plan(&cron(suspended), &jobs, now());
    let names: Vec<_> = found.forget.iter().map(|job| job.name_any()).collect();
    assert_eq!(names, ["ok3", "ok4", "bad1", "bad2"]);
    assert_eq!(found.status.active, None);
    assert_eq!(
        found.remarks[0].2,
        "Saw completed job: ok0, condition: Complete"
    );
    assert!(found.status.last_successful_time.is_some());
}

#[test]
fn a_long_past_is_not_walked_through() {
    let schedule = Schedule::parse("* * * * *").unwrap();
    let since = at("1990-01-01T00:00:00Z");
    assert_eq!(
        latest(&schedule, since, now()),
        Some((at("2026-01-01T01:00:00Z"), true))
    );
    let yearly = Schedule::parse("@yearly").unwrap();
    assert_eq!(
        latest(&yearly, since, now()),
        Some((at("2026-01-01T00:00:00Z"), false))
    );
}

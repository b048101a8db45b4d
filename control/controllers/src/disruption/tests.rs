use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::fake::Fake;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn pod(name: &str, is_ready: bool) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
        "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": if is_ready { "True" } else { "False" }},
        ]},
    })
}

fn budget(spec: Value, disrupted: Value) -> PodDisruptionBudget {
    let mut budget = json!({
        "metadata": {"name": "web", "namespace": "ns", "generation": 2},
        "spec": {"selector": {"matchLabels": {"app": "web"}}},
        "status": {
            "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
            "disruptedPods": disrupted,
        },
    });
    json_patch::merge(&mut budget["spec"], &spec);
    serde_json::from_value(budget).unwrap()
}

#[test]
fn as_many_may_go_as_are_healthy_beyond_what_is_asked() {
    let recent = json!({"a": "2026-01-01T00:59:00Z"});
    let stale = json!({"a": "2026-01-01T00:00:00Z", "gone": "2026-01-01T00:59:00Z"});
    for (spec, ready, expected, disrupted, wanted, again) in [
        (json!({"minAvailable": 2}), 3, 3, json!({}), (3, 2, 1), None),
        (json!({"minAvailable": 4}), 3, 3, json!({}), (3, 4, 0), None),
        (
            json!({"minAvailable": "50%"}),
            3,
            5,
            json!({}),
            (5, 3, 0),
            None,
        ),
        (
            json!({"maxUnavailable": 1}),
            3,
            3,
            json!({}),
            (3, 2, 1),
            None,
        ),
        (
            json!({"maxUnavailable": 1}),
            2,
            3,
            json!({}),
            (3, 2, 0),
            None,
        ),
        (
            json!({"maxUnavailable": "34%"}),
            3,
            3,
            json!({}),
            (3, 1, 2),
            None,
        ),
        (
            json!({"maxUnavailable": 0}),
            3,
            3,
            json!({}),
            (3, 3, 0),
            None,
        ),
        // One was let go a minute ago, and is still there.
        (
            json!({"maxUnavailable": 1}),
            3,
            3,
            recent,
            (3, 2, 0),
            Some(60),
        ),
        (json!({"maxUnavailable": 1}), 3, 3, stale, (3, 2, 1), None),
    ] {
        let pods: Vec<_> = ["a", "b", "c"]
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let pod: Pod = serde_json::from_value(pod(name, i < ready)).unwrap();
                Arc::new(PodView::from(pod))
            })
            .collect();
        let (status, found) =
            plan::status(&budget(spec.clone(), disrupted), &pods, expected, now());
        assert_eq!(
            (
                status.expected_pods,
                status.desired_healthy,
                status.disruptions_allowed
            ),
            (Some(wanted.0), Some(wanted.1), Some(wanted.2)),
            "{spec}"
        );
        assert_eq!(found, again, "{spec}");
        let condition = &status.conditions.unwrap()[0];
        assert_eq!(condition.status == "True", wanted.2 > 0);
        assert_eq!(status.observed_generation, Some(2));
    }
}

#[tokio::test]
async fn a_budget_follows_its_pods() {
    const BUDGETS: &str = "policy/v1/poddisruptionbudgets";
    let fake = Fake::new();
    let shutdown = CancellationToken::new();
    let task = fake.run_workloads(&shutdown);
    fake.put(
        BUDGETS,
        json!(budget(json!({"minAvailable": 1}), json!({}))),
    );
    fake.put("v1/pods", pod("a", true));
    fake.put("v1/pods", pod("b", true));
    fake.wait_for(BUDGETS, |budget| {
        budget["status"]["disruptionsAllowed"] == 1
    })
    .await;
    fake.put("v1/pods", pod("b", false));
    fake.wait_for(BUDGETS, |budget| {
        budget["status"]["disruptionsAllowed"] == 0
    })
    .await;
    shutdown.cancel();
    task.await.unwrap();
}

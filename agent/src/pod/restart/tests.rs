use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};
use wherry_runtime_api::ContainerExit;

use super::*;

fn at(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}

const POLICY: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_secs(10),
    max: Duration::from_secs(300),
};

#[test]
fn pauses_double_up_to_the_longest_and_begin_anew_after_a_long_run() {
    let mut backoff = None;
    let mut seen = Vec::new();
    let mut now = at(0);
    for _ in 0..8 {
        let next = Backoff::next(POLICY, backoff, now, now);
        seen.push(next.delay.as_secs());
        backoff = Some(next);
        now = next.until(POLICY, now).expect("it just crashed");
    }
    assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300, 300]);
    let after_a_long_run = now + Duration::from_secs(601);
    let backoff = backoff.expect("set above");
    assert_eq!(backoff.until(POLICY, after_a_long_run), None);
    assert_eq!(
        Backoff::next(POLICY, Some(backoff), after_a_long_run, after_a_long_run).delay,
        POLICY.initial
    );
}

#[test]
fn a_policy_restarts_what_it_says() {
    let table = [
        (RestartPolicy::Always, true, true),
        (RestartPolicy::OnFailure, false, true),
        (RestartPolicy::Never, false, false),
    ];
    for (policy, after_success, after_failure) in table {
        assert_eq!(
            (policy.restarts(0), policy.restarts(1)),
            (after_success, after_failure),
            "{policy:?}"
        );
    }
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).expect("a pod")
}

fn status(name: &str, attempt: u32, state: ContainerState) -> ContainerStatus {
    ContainerStatus {
        id: format!("{name}-{attempt}").into(),
        handler: "oci".into(),
        sandbox: "s".into(),
        pod: "p".into(),
        name: name.into(),
        attempt,
        image: "i".into(),
        image_id: "i".into(),
        state,
        created_at: at(0),
        log_path: PathBuf::new(),
        pid: None,
        labels: Vec::new(),
        annotations: Vec::new(),
        warnings: Vec::new(),
    }
}

fn exited(name: &str, attempt: u32, exit_code: i32, finished_at: SystemTime) -> ContainerStatus {
    let exit = ContainerExit {
        started_at: Some(at(0)),
        finished_at,
        exit_code,
        signal: None,
        oom_killed: false,
        message: None,
    };
    status(name, attempt, ContainerState::Exited(exit))
}

fn running(name: &str, attempt: u32) -> ContainerStatus {
    status(name, attempt, ContainerState::Running { started_at: at(0) })
}

fn plan_of(
    pod: &Pod,
    containers: &[ContainerStatus],
    backoffs: &BTreeMap<String, Backoff>,
    now: SystemTime,
) -> Plan {
    let started = containers.iter().map(|c| c.id.clone()).collect();
    let view = View {
        pod,
        sandbox: &"s".into(),
        containers,
        policy: POLICY,
        backoffs,
        held_until: &BTreeMap::new(),
        started: &started,
        doomed: &BTreeMap::new(),
        attempts: &BTreeMap::new(),
    };
    plan(view, now)
}

fn names(plan: &Plan) -> Vec<(&str, u32)> {
    plan.start
        .iter()
        .map(|start| (start.name.as_str(), start.attempt))
        .collect()
}

#[test]
fn the_first_restart_is_immediate_and_the_second_waits() {
    let pod = pod(json!({ "containers": [{ "name": "a", "image": "i" }] }));
    let none = BTreeMap::new();
    let first = plan_of(&pod, &[exited("a", 0, 1, at(1000))], &none, at(1000));
    assert_eq!(names(&first), [("a", 1)]);
    let backoff = Backoff::next(POLICY, None, at(1000), at(1000));
    let backoffs = BTreeMap::from([("a".to_owned(), backoff)]);
    let second = plan_of(&pod, &[exited("a", 1, 1, at(2000))], &backoffs, at(3000));
    assert!(second.start.is_empty() && !second.is_over);
    assert_eq!(second.backing_off.get("a"), Some(&POLICY.initial));
    assert_eq!(second.wake_at, Some(at(12_000)));
    let third = plan_of(&pod, &[exited("a", 1, 1, at(2000))], &backoffs, at(12_000));
    assert_eq!(names(&third), [("a", 2)]);
}

#[test]
fn a_container_that_was_created_and_not_started_is_gone_on_with() {
    let pod = pod(json!({ "containers": [{ "name": "a", "image": "i" }] }));
    let plan = plan_of(
        &pod,
        &[status("a", 3, ContainerState::Created)],
        &BTreeMap::new(),
        at(0),
    );
    assert_eq!(names(&plan), [("a", 3)]);
}

#[test]
fn a_changed_image_replaces_the_container_whatever_the_policy() {
    let pod =
        pod(json!({ "restartPolicy": "Never", "containers": [{ "name": "a", "image": "new" }] }));
    let plan = plan_of(&pod, &[running("a", 0)], &BTreeMap::new(), at(0));
    assert_eq!(
        plan.kill,
        [(
            "a-0".into(),
            Doom {
                why: "Container a definition changed, will be restarted".to_owned(),
                ..Doom::default()
            }
        )]
    );
    let plan = plan_of(&pod, &[exited("a", 0, 0, at(0))], &BTreeMap::new(), at(0));
    assert_eq!((names(&plan), plan.is_over), (vec![("a", 1)], false));
}

#[test]
fn init_containers_do_not_run_again_beside_their_pod() {
    let pod = pod(json!({
        "initContainers": [{ "name": "i", "image": "i" }],
        "containers": [{ "name": "a", "image": "i" }],
    }));
    // The record of the init container is gone; the main container was created.
    let plan = plan_of(&pod, &[running("a", 0)], &BTreeMap::new(), at(0));
    assert!(!plan.has_work());
    let plan = plan_of(&pod, &[], &BTreeMap::new(), at(0));
    assert_eq!(names(&plan), [("i", 0)]);
    let plan = plan_of(&pod, &[exited("i", 0, 0, at(0))], &BTreeMap::new(), at(0));
    assert_eq!(names(&plan), [("a", 0)]);
    let plan = plan_of(&pod, &[exited("i", 0, 2, at(0))], &BTreeMap::new(), at(0));
    assert_eq!(names(&plan), [("i", 1)]);
}

proptest! {
    #[test]
    fn a_plan_starts_nothing_that_runs_and_a_pod_that_is_over_starts_nothing(
        states in prop::collection::vec(0..4u8, 3),
        policy in prop::sample::select(vec!["Always", "OnFailure", "Never"]),
        now in 0u64..100_000,
    ) {
        let pod = pod(json!({
            "restartPolicy": policy,
            "containers": [{ "name": "a", "image": "i" }, { "name": "b", "image": "i" }, { "name": "c", "image": "i" }],
        }));
        let containers: Vec<_> = ["a", "b", "c"]
            .into_iter()
            .zip(&states)
            .filter_map(|(name, state)| match state {
                0 => None,
                1 => Some(running(name, 0)),
                2 => Some(exited(name, 0, 0, at(0))),
                _ => Some(exited(name, 0, 1, at(0))),
            })
            .collect();
        let plan = plan_of(&pod, &containers, &BTreeMap::new(), at(now));
        for start in &plan.start {
            let runs = containers.iter().any(|c| c.name == start.name && matches!(c.state, ContainerState::Running { .. }));
            prop_assert!(!runs);
        }
        let all_exited = states.iter().all(|state| *state >= 2);
        prop_assert_eq!(plan.is_over, all_exited && match policy {
            "Always" => false,
            "OnFailure" => states.iter().all(|state| *state == 2),
            _ => true,
        });
        prop_assert!(!plan.is_over || plan.start.is_empty());
    }
}

#[test]
fn the_restart_table_of_the_source_documents_holds() {
    // What ended, with which code, in pods of one and of two containers; what follows by policy.
    enum Row {
        Restarts,
        StaysRunning,
        Ends,
    }
    use Row::{Ends, Restarts, StaysRunning};
    let table: [(&[Option<i32>], [Row; 3]); 6] = [
        (&[Some(0)], [Restarts, Ends, Ends]),
        (&[Some(1)], [Restarts, Restarts, Ends]),
        (&[Some(1), None], [Restarts, Restarts, StaysRunning]),
        (&[Some(0), None], [Restarts, StaysRunning, StaysRunning]),
        (&[Some(1), Some(1)], [Restarts, Restarts, Ends]),
        (&[Some(0), Some(0)], [Restarts, Ends, Ends]),
    ];
    for (codes, rows) in table {
        for (policy, row) in ["Always", "OnFailure", "Never"].into_iter().zip(rows) {
            let names = ["a", "b"];
            let list: Vec<_> = names[..codes.len()]
                .iter()
                .map(|name| json!({ "name": name, "image": "i" }))
                .collect();
            let pod = pod(json!({ "restartPolicy": policy, "containers": list }));
            let containers: Vec<_> = names
                .iter()
                .zip(codes)
                .map(|(name, code)| match code {
                    Some(code) => exited(name, 0, *code, at(1)),
                    None => running(name, 0),
                })
                .collect();
            let plan = plan_of(&pod, &containers, &BTreeMap::new(), at(2));
            let what = format!("{policy} {codes:?}");
            let restarted = match row {
                Restarts => codes.iter().flatten().count(),
                StaysRunning | Ends => 0,
            };
            assert_eq!(plan.start.len(), restarted, "{what}");
            assert_eq!(plan.is_over, matches!(row, Ends), "{what}");
        }
    }
}

#[test]
fn rules_of_a_container_go_before_its_policy_and_that_before_the_pods() {
    let rule = |operator: &str, code: i32| json!([{ "action": "Restart", "exitCodes": { "operator": operator, "values": [code] } }]);
    let table = [
        ("Always", json!("Never"), json!([]), 1, false),
        ("Never", json!("OnFailure"), json!([]), 1, true),
        ("Never", json!("OnFailure"), json!([]), 0, false),
        ("Never", json!("Never"), rule("In", 42), 42, true),
        ("Never", json!("Never"), rule("In", 42), 1, false),
        ("Never", json!("Never"), rule("NotIn", 42), 1, true),
        ("Never", json!(null), rule("NotIn", 42), 42, false),
    ];
    for (policy, own, rules, code, restarts) in table {
        let container =
            json!({ "name": "a", "image": "i", "restartPolicy": own, "restartPolicyRules": rules });
        let pod = pod(json!({ "restartPolicy": policy, "containers": [container] }));
        let plan = plan_of(
            &pod,
            &[exited("a", 0, code, at(0))],
            &BTreeMap::new(),
            at(0),
        );
        assert_eq!(
            plan.start.len() == 1,
            restarts,
            "{policy} {own} {rules} {code}"
        );
        assert_eq!(plan.is_over, !restarts, "{policy} {own} {rules} {code}");
    }
}

#[test]
fn ephemeral_containers_wait_for_nobody_and_run_once() {
    let pod = pod(json!({
        "initContainers": [{ "name": "i", "image": "i" }],
        "containers": [{ "name": "a", "image": "i" }],
        "ephemeralContainers": [{ "name": "d", "image": "i" }],
    }));
    let none = BTreeMap::new();
    let plan = plan_of(&pod, &[running("i", 0)], &none, at(0));
    assert_eq!(names(&plan), [("d", 0)]);
    for state in [running("d", 0), exited("d", 0, 1, at(0))] {
        let plan = plan_of(&pod, &[running("i", 0), state], &none, at(0));
        assert!(plan.start.is_empty());
    }
    let done = [
        exited("i", 0, 0, at(0)),
        running("a", 0),
        exited("d", 0, 1, at(0)),
    ];
    assert!(!plan_of(&pod, &done, &none, at(0)).has_work());
}

use std::path::PathBuf;

use k8s_openapi::api::core::v1::PodCondition;
use serde_json::{Value, json};
use wherry_runtime_api::{ContainerExit, ContainerState as RuntimeState};

use super::*;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn pod(spec: Value) -> Pod {
    let metadata = json!({ "name": "p", "namespace": "ns", "uid": "u", "generation": 3 });
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).expect("a pod")
}

fn two(policy: &str) -> Pod {
    pod(
        json!({ "restartPolicy": policy, "containers": [{ "name": "a", "image": "x" }, { "name": "b", "image": "x" }] }),
    )
}

fn container_of(name: &str, attempt: u32, state: RuntimeState) -> ContainerStatus {
    ContainerStatus {
        id: format!("{name}-{attempt}").into(),
        handler: "oci".into(),
        sandbox: "s".into(),
        pod: "u".into(),
        name: name.into(),
        attempt,
        image: "x".into(),
        image_id: "sha256:1".into(),
        state,
        created_at: at(0),
        log_path: PathBuf::new(),
        pid: None,
        labels: Vec::new(),
        annotations: Vec::new(),
        warnings: Vec::new(),
    }
}

fn running() -> RuntimeState {
    RuntimeState::Running { started_at: at(1) }
}

fn exited(exit_code: i32) -> RuntimeState {
    RuntimeState::Exited(ContainerExit {
        started_at: Some(at(1)),
        finished_at: at(2),
        exit_code,
        signal: None,
        oom_killed: false,
        message: None,
    })
}

#[derive(Default)]
struct Case {
    containers: Vec<ContainerStatus>,
    waiting: BTreeMap<String, Waiting>,
    backing_off: BTreeMap<String, Duration>,
    in_hook: BTreeSet<String>,
    previous: Option<PodStatus>,
    is_terminal: bool,
    verdict: Option<Verdict>,
}

impl Case {
    fn with(containers: impl IntoIterator<Item = ContainerStatus>) -> Self {
        Self {
            containers: containers.into_iter().collect(),
            ..Self::default()
        }
    }

    fn status(&self, pod: &Pod, now: SystemTime) -> PodStatus {
        self.status_while(pod, now, None)
    }

    fn status_while(
        &self,
        pod: &Pod,
        now: SystemTime,
        resize: Option<&crate::pod::resize::Progress>,
    ) -> PodStatus {
        let all: BTreeSet<_> = self.containers.iter().map(|c| c.id.clone()).collect();
        let (none, empty) = (BTreeMap::new(), BTreeMap::new());
        let seen = Observed {
            pod,
            sandbox: None,
            containers: &self.containers,
            waiting: &self.waiting,
            backing_off: &self.backing_off,
            ready: &all,
            started: &all,
            messages: &none,
            image_refs: &empty,
            attempts: &BTreeMap::new(),
            coming_back: &BTreeSet::new(),
            in_hook: &self.in_hook,
            actuated: &BTreeMap::new(),
            resize,
            has_recursive_readonly: &|_| false,
            host_ips: &[],
            verdict: self.verdict.as_ref(),
            is_terminal: self.is_terminal,
            previous: self.previous.as_ref(),
        };
        compute(seen, now)
    }
}

fn phase_of(pod: &Pod, a: Option<RuntimeState>, b: Option<RuntimeState>) -> String {
    let containers = [("a", a), ("b", b)];
    let case = Case::with(
        containers
            .into_iter()
            .filter_map(|(name, state)| Some(container_of(name, 0, state?))),
    );
    case.status(pod, at(9)).phase.expect("always set")
}

#[test]
fn the_phase_is_the_kubelets() {
    let table = [
        ("Always", None, None, "Pending"),
        ("Always", Some(running()), None, "Pending"),
        ("Always", Some(running()), Some(running()), "Running"),
        ("Always", Some(exited(1)), None, "Running"),
        ("Always", Some(exited(0)), Some(exited(0)), "Running"),
        ("OnFailure", Some(exited(0)), Some(exited(0)), "Succeeded"),
        ("OnFailure", Some(exited(0)), Some(exited(1)), "Running"),
        ("OnFailure", Some(exited(0)), Some(running()), "Running"),
        ("Never", Some(exited(1)), Some(running()), "Running"),
        ("Never", Some(exited(1)), Some(exited(0)), "Failed"),
        ("Never", Some(exited(0)), Some(exited(0)), "Succeeded"),
    ];
    for (policy, a, b, expected) in table {
        let what = format!("{policy} {a:?} {b:?}");
        assert_eq!(phase_of(&two(policy), a, b), expected, "{what}");
    }
}

#[test]
fn a_pod_that_is_done_stays_done() {
    let pod = two("Never");
    let mut case = Case::with([container_of("a", 0, running())]);
    case.previous = Some(PodStatus {
        phase: Some("Succeeded".into()),
        ..PodStatus::default()
    });
    assert_eq!(case.status(&pod, at(9)).phase.as_deref(), Some("Succeeded"));
}

#[test]
fn a_verdict_fails_the_pod_with_its_reason() {
    let mut case = Case::with([]);
    case.verdict = Some(Verdict {
        is_disruption: false,
        reason: "OutOfpods".into(),
        message: "no room".into(),
    });
    let status = case.status(&two("Always"), at(9));
    let told = (
        status.phase.as_deref(),
        status.reason.as_deref(),
        status.message.as_deref(),
    );
    assert_eq!(told, (Some("Failed"), Some("OutOfpods"), Some("no room")));
}

fn condition_of(status: &PodStatus, kind: &str) -> PodCondition {
    let list = status.conditions.clone().expect("always set");
    list.into_iter()
        .find(|c| c.type_ == kind)
        .expect("always there")
}

#[test]
fn conditions_say_who_is_not_ready_and_keep_the_time_they_changed() {
    let pod = two("Always");
    let first = Case::with([container_of("a", 0, running())]).status(&pod, at(10));
    let ready = condition_of(&first, "Ready");
    assert_eq!(ready.reason.as_deref(), Some("ContainersNotReady"));
    assert_eq!(
        ready.message.as_deref(),
        Some("containers with unready status: [b]")
    );
    assert_eq!(ready.observed_generation, Some(3));
    let mut case = Case::with([
        container_of("a", 0, running()),
        container_of("b", 0, running()),
    ]);
    case.previous = Some(first.clone());
    let second = case.status(&pod, at(20));
    assert_eq!(
        condition_of(&second, "Ready").last_transition_time,
        Some(time(at(20)))
    );
    let scheduled = |status| condition_of(status, "PodScheduled").last_transition_time;
    assert_eq!(scheduled(&second), Some(time(at(10))));
    assert_eq!(second.start_time, first.start_time);
    case.previous = Some(second.clone());
    assert_eq!(case.status(&pod, at(30)), second);
}

#[test]
fn a_restarted_container_shows_how_it_ended_before() {
    let pod = two("Always");
    let case = Case::with([
        container_of("a", 0, exited(3)),
        container_of("a", 1, running()),
    ]);
    let status = case
        .status(&pod, at(9))
        .container_statuses
        .expect("set")
        .remove(0);
    assert_eq!(status.restart_count, 1);
    let last = status
        .last_state
        .and_then(|s| s.terminated)
        .expect("ended before");
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    assert_eq!(status.container_id.as_deref(), Some("oci://a-1"));
}

#[test]
fn what_the_runtime_has_forgotten_stays_as_it_was_published() {
    let pod = two("Never");
    let before = Case::with([
        container_of("a", 0, exited(3)),
        container_of("b", 0, exited(0)),
    ])
    .status(&pod, at(9));
    let mut case = Case::with([]);
    case.previous = Some(before.clone());
    case.is_terminal = true;
    let after = case.status(&pod, at(10));
    assert_eq!(after.container_statuses, before.container_statuses);
    assert_eq!(after.phase.as_deref(), Some("Failed"));
}

#[test]
fn init_containers_hold_the_rest_back() {
    let pod = pod(json!({
        "initContainers": [{ "name": "i", "image": "x" }],
        "containers": [{ "name": "a", "image": "x" }],
    }));
    let status = Case::with([container_of("i", 0, running())]).status(&pod, at(9));
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let initialized = condition_of(&status, "Initialized");
    assert_eq!(
        initialized.message.as_deref(),
        Some("containers with incomplete status: [i]")
    );
    let a = status.container_statuses.expect("set").remove(0);
    let reason = a.state.and_then(|s| s.waiting).and_then(|w| w.reason);
    assert_eq!(reason.as_deref(), Some("PodInitializing"));
}

#[test]
fn a_change_of_resources_is_a_condition_as_long_as_it_lasts() {
    use crate::pod::resize::{Progress, Refusal};
    let pod = two("Always");
    let case = Case::with([
        container_of("a", 0, running()),
        container_of("b", 0, running()),
    ]);
    let table = [
        (None, None),
        (
            Some(Progress::Pending(Refusal::Deferred("later".into()))),
            Some(("PodResizePending", Some("Deferred"))),
        ),
        (
            Some(Progress::Pending(Refusal::Infeasible("never".into()))),
            Some(("PodResizePending", Some("Infeasible"))),
        ),
        (
            Some(Progress::InProgress(None)),
            Some(("PodResizeInProgress", None)),
        ),
        (
            Some(Progress::InProgress(Some("in use".into()))),
            Some(("PodResizeInProgress", Some("Error"))),
        ),
    ];
    for (progress, expected) in table {
        let status = case.status_while(&pod, at(9), progress.as_ref());
        let shown = status.conditions.into_iter().flatten();
        let shown: Vec<_> = shown
            .filter(|c| RESIZING.contains(&c.type_.as_str()))
            .collect();
        let shown = shown
            .iter()
            .map(|c| (c.type_.as_str(), c.reason.as_deref()))
            .next();
        assert_eq!(shown, expected);
    }
}

#[test]
fn many_containers_share_the_room_for_last_words() {
    let names: Vec<_> = (0..24).map(|n| format!("c{n}")).collect();
    let list: Vec<_> = names
        .iter()
        .map(|name| json!({ "name": name, "image": "x" }))
        .collect();
    let pod = pod(json!({ "restartPolicy": "Never", "containers": list }));
    let state = || match exited(1) {
        RuntimeState::Exited(exit) => RuntimeState::Exited(ContainerExit {
            message: Some("é".repeat(2000)),
            ..exit
        }),
        other => other,
    };
    let case = Case::with(names.iter().map(|name| container_of(name, 0, state())));
    let status = case.status(&pod, at(9));
    let words = status
        .container_statuses
        .into_iter()
        .flatten()
        .map(|status| {
            let end = status.state.and_then(|state| state.terminated);
            end.and_then(|end| end.message)
                .map_or(0, |message| message.len())
        });
    assert_eq!(words.collect::<Vec<_>>(), [512; 24]);
}

#[test]
fn what_the_spec_says_about_user_signal_and_mounts_is_shown_of_what_was_made() {
    let pod = pod(json!({
        "securityContext": { "runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 3000, "supplementalGroups": [4000] },
        "containers": [{
            "name": "a",
            "image": "x",
            "lifecycle": { "stopSignal": "SIGUSR1" },
            "volumeMounts": [
                { "name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "IfPossible" },
                { "name": "w", "mountPath": "/w" },
            ],
        }],
    }));
    let status = Case::with([container_of("a", 0, running())]).status(&pod, at(9));
    let shown = serde_json::to_value(&status.container_statuses.expect("one")[0]).expect("JSON");
    assert_eq!(shown["stopSignal"], "SIGUSR1");
    assert_eq!(
        shown["user"]["linux"],
        json!({ "uid": 1000, "gid": 2000, "supplementalGroups": [2000, 3000, 4000] })
    );
    assert_eq!(
        shown["volumeMounts"],
        json!([
            { "name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "Disabled" },
            { "name": "w", "mountPath": "/w" },
        ])
    );
}

#[test]
fn a_container_is_being_created_until_its_hook_has_ended() {
    let pod = pod(json!({ "containers": [{ "name": "a" }] }));
    let mut case = Case::with([container_of("a", 0, running())]);
    case.in_hook.insert("a".to_owned());
    let shown = |case: &Case| {
        let status = case.status(&pod, at(10));
        let container = status.container_statuses.expect("statuses").remove(0);
        let state = container.state.expect("a state");
        (
            container.ready,
            state.waiting.and_then(|waiting| waiting.reason),
            status.phase.expect("a phase"),
        )
    };
    assert_eq!(
        shown(&case),
        (false, Some("ContainerCreating".into()), "Pending".into())
    );
    case.in_hook.clear();
    assert_eq!(shown(&case), (true, None, "Running".into()));
}

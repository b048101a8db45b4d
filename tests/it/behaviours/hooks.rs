//! postStart and preStop.

use serde_json::{Value, json};
use wherry_tests::eventually;

use super::{
    Behaviour, Group,
    case::{Case, Outcome},
    manifest::Pod,
    program::{append, exists, exit, print, stay, wait_for},
};

pub(super) const GROUP: Group = Group {
    name: "hooks",
    title: "Hooks",
    rows: &[
        Behaviour::new(
            "postStart runs a command once the container has started",
            post_start,
        ),
        Behaviour::new(
            "a failing postStart kills the container and says why",
            post_start_fails,
        ),
        Behaviour::new("postStart asks a page", |case| asks_web(case, "postStart")),
        Behaviour::new("postStart sleeps", |case| {
            case.ready(&hooked(
                case,
                &json!({"postStart": {"sleep": {"seconds": 1}}}),
            ))
        }),
        Behaviour::new(
            "preStop runs a command before the container is asked to end",
            pre_stop,
        ),
        Behaviour::new("preStop asks a page", |case| asks_web(case, "preStop")),
        Behaviour::new("preStop sleeps within the grace period", pre_stop_sleeps),
        Behaviour::new(
            "a preStop that takes too long is cut off with the grace period",
            pre_stop_long,
        ),
        Behaviour::new(
            "a failing preStop is told and the container ends all the same",
            pre_stop_fails,
        ),
        Behaviour::new(
            "a tcpSocket hook is answered as the kubelet answers it",
            tcp_hook,
        ),
    ],
};

fn hooked(case: &Case<'_>, lifecycle: &Value) -> Pod {
    case.pod_with("hooked", &[stay()], json!({"lifecycle": lifecycle}))
        .spec(json!({"terminationGracePeriodSeconds": 20}))
}

/// The pod with a directory of the node at `/shared`.
fn shared(case: &Case<'_>, pod: Pod) -> (Pod, std::path::PathBuf) {
    let host = case.cluster.root().join(format!("hooks-{}", case.ns));
    let source = json!({"hostPath": {"path": host, "type": "DirectoryOrCreate"}});
    (pod.volume("shared", source), host)
}

fn post_start(case: &Case<'_>) -> Outcome {
    let command = case.command(&[wait_for("/shared/go"), append("/shared/order", "hook")]);
    let (pod, host) = shared(
        case,
        hooked(case, &json!({"postStart": {"exec": {"command": command}}})),
    );
    case.create(&pod)?;
    case.event("hooked", "Started");
    std::fs::write(host.join("go"), "").expect("a file can be written");
    eventually("the hook has run", || {
        let found = std::fs::read_to_string(host.join("order"));
        found.map(drop).map_err(|error| error.to_string())
    });
    case.wait_ready("hooked");
    assert_eq!(case.first("hooked", ".restartCount"), "0");
    Ok(())
}

fn post_start_fails(case: &Case<'_>) -> Outcome {
    let command = case.command(&[print("no wind"), exit(9)]);
    case.create(&hooked(
        case,
        &json!({"postStart": {"exec": {"command": command}}}),
    ))?;
    let event = case.event("hooked", "FailedPostStartHook");
    assert!(event.contains("PostStartHook failed"), "{event}");
    case.some(
        "hooked",
        ".status.containerStatuses[?(@.restartCount>0)].name",
    );
    Ok(())
}

fn asks_web(case: &Case<'_>, hook: &str) -> Outcome {
    let mut web = case.web("web");
    super::manifest::merge(
        &mut web,
        json!({"readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1}}),
    );
    case.ready(&case.empty("web").container(web))?;
    let ip = case.field("web", ".status.podIP");
    let get = |port: u16| json!({hook: {"httpGet": {"host": ip, "path": "/ready", "port": port}}});
    case.ready(&hooked(case, &get(8080)))?;
    let failed = if hook == "preStop" {
        "FailedPreStopHook"
    } else {
        "FailedPostStartHook"
    };
    assert!(!case.told("hooked").contains(failed));
    // Nobody listens there.
    let mut pod = hooked(case, &get(9));
    pod = pod.metadata(json!({"name": "failing"}));
    case.create(&pod)?;
    if hook == "preStop" {
        case.wait_ready("failing");
        case.delete("failing")?;
    }
    case.event("failing", failed);
    Ok(())
}

fn pre_stop(case: &Case<'_>) -> Outcome {
    let command = case.command(&[append("/shared/order", "hook")]);
    let (pod, host) = shared(
        case,
        hooked(case, &json!({"preStop": {"exec": {"command": command}}})),
    );
    case.ready(&pod)?;
    assert!(!host.join("order").exists());
    case.delete("hooked")?;
    let order = std::fs::read_to_string(host.join("order")).expect("the hook wrote it");
    assert_eq!(order, "hook\n");
    Ok(())
}

fn pre_stop_sleeps(case: &Case<'_>) -> Outcome {
    case.ready(&hooked(
        case,
        &json!({"preStop": {"sleep": {"seconds": 6}}}),
    ))?;
    case.kubectl(&["delete", "pod", "hooked", "--wait=false"])?;
    // While the hook sleeps the container runs.
    case.some("hooked", ".metadata.deletionTimestamp");
    assert_eq!(case.exec("hooked", &[print("still here")])?, "still here\n");
    case.kubectl(&["wait", "pod/hooked", "--for=delete", "--timeout=60s"])?;
    Ok(())
}

fn pre_stop_long(case: &Case<'_>) -> Outcome {
    let command = case.command(&[super::program::sleep("1000")]);
    let pod = hooked(case, &json!({"preStop": {"exec": {"command": command}}}));
    case.ready(&pod.spec(json!({"terminationGracePeriodSeconds": 2})))?;
    case.delete("hooked")
}

fn pre_stop_fails(case: &Case<'_>) -> Outcome {
    let command = case.command(&[exists("/no/such/file")]);
    case.ready(&hooked(
        case,
        &json!({"preStop": {"exec": {"command": command}}}),
    ))?;
    case.delete("hooked")?;
    let event = case.event("hooked", "FailedPreStopHook");
    assert!(event.contains("PreStopHook failed"), "{event}");
    Ok(())
}

fn tcp_hook(case: &Case<'_>) -> Outcome {
    // The API keeps the field for old objects; a kubelet has never connected anywhere for it.
    let hook = json!({"postStart": {"tcpSocket": {"port": 7000}}});
    case.create(&hooked(case, &hook))?;
    let event = case.event("hooked", "FailedPostStartHook");
    assert!(event.contains("PostStartHook failed"), "{event}");
    Ok(())
}

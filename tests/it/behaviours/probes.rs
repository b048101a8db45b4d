//! Startup, readiness and liveness.

use serde_json::{Value, json};

use super::{
    Behaviour, Group,
    case::{Case, Outcome},
    manifest::{Pod, with},
    program::{exists, exit, missing, print, remove, serve, sleep, stay, write},
};

pub(super) const GROUP: Group = Group {
    name: "probes",
    title: "Probes",
    rows: &[
        Behaviour::new(
            "a readiness probe decides whether a pod is Ready",
            readiness,
        ),
        Behaviour::new(
            "a liveness probe that fails restarts the container",
            liveness,
        ),
        Behaviour::new("a startup probe holds the others back", startup),
        Behaviour::new(
            "a startup probe that fails for too long restarts the container",
            startup_fails,
        ),
        Behaviour::new("an HTTP probe goes by the status of the answer", http),
        Behaviour::new("a TCP probe goes by whether somebody listens", tcp),
        Behaviour::new("a gRPC probe that nobody answers fails", grpc_fails),
        Behaviour::new("a command that takes too long counts as failed", timeout),
        Behaviour::new("a probe has its own grace period", grace),
        Behaviour::new(
            "successThreshold has to be reached again",
            success_threshold,
        ),
    ],
};

fn probed(case: &Case<'_>, probes: Value) -> Pod {
    case.pod_with("probed", &[stay()], probes)
        .volume("data", json!({"emptyDir": {}}))
}

/// A probe by a command, looked at every second.
fn by(case: &Case<'_>, steps: &[super::program::Step], more: Value) -> Value {
    with(
        json!({"exec": {"command": case.command(steps)}, "periodSeconds": 1, "timeoutSeconds": 10}),
        more,
    )
}

fn readiness(case: &Case<'_>) -> Outcome {
    let probe = by(
        case,
        &[print("not yet"), exists("/data/ready")],
        json!({"failureThreshold": 1}),
    );
    case.create(&probed(case, json!({"readinessProbe": probe})))?;
    case.until_first("probed", ".started", "true");
    let event = case.event("probed", "Unhealthy");
    assert!(event.contains("Readiness probe failed: not yet"), "{event}");
    assert_eq!(case.first("probed", ".ready"), "false");
    case.exec("probed", &[write("/data/ready", "")])?;
    case.wait_ready("probed");
    case.exec("probed", &[remove("/data/ready")])?;
    case.until_first("probed", ".ready", "false");
    assert_eq!(case.first("probed", ".restartCount"), "0");
    Ok(())
}

fn liveness(case: &Case<'_>) -> Outcome {
    let probe = by(
        case,
        &[missing("/data/dead")],
        json!({"failureThreshold": 2}),
    );
    case.ready(&probed(case, json!({"livenessProbe": probe})))?;
    case.exec("probed", &[write("/data/dead", "")])?;
    case.until_told("probed", "Liveness probe failed");
    case.until_told(
        "probed",
        "Container main failed liveness probe, will be restarted",
    );
    case.some(
        "probed",
        ".status.containerStatuses[?(@.restartCount>0)].name",
    );
    Ok(())
}

fn startup(case: &Case<'_>) -> Outcome {
    let started = by(
        case,
        &[exists("/data/started")],
        json!({"failureThreshold": 600}),
    );
    // Would restart the container at once if it were looked at.
    let live = by(
        case,
        &[exists("/data/started")],
        json!({"failureThreshold": 1}),
    );
    case.create(&probed(
        case,
        json!({"startupProbe": started, "livenessProbe": live}),
    ))?;
    case.until_told("probed", "Startup probe failed");
    assert_eq!(case.first("probed", ".started"), "false");
    assert_eq!(case.first("probed", ".ready"), "false");
    case.exec("probed", &[write("/data/started", "")])?;
    case.wait_ready("probed");
    assert_eq!(case.first("probed", ".restartCount"), "0");
    Ok(())
}

fn startup_fails(case: &Case<'_>) -> Outcome {
    let probe = by(case, &[exit(1)], json!({"failureThreshold": 2}));
    case.create(&probed(case, json!({"startupProbe": probe})))?;
    case.until_told(
        "probed",
        "Container main failed startup probe, will be restarted",
    );
    case.some(
        "probed",
        ".status.containerStatuses[?(@.restartCount>0)].name",
    );
    Ok(())
}

fn http(case: &Case<'_>) -> Outcome {
    let get = |path: &str, port: Value| json!({"readinessProbe": {"httpGet": {"path": path, "port": port, "httpHeaders": [{"name": "X-Boat", "value": "wherry"}]}, "periodSeconds": 1}});
    let mut web = with(case.web("web"), get("/ready", json!("http")));
    web["ports"][0]["name"] = json!("http");
    case.ready(&case.empty("web").container(web))?;
    // Somebody who does not speak HTTP.
    let deaf = with(
        case.container("deaf", &[serve(8080, "boat")]),
        get("/", json!(8080)),
    );
    case.create(&case.empty("deaf").container(deaf))?;
    case.until_told("deaf", "Readiness probe failed");
    assert_eq!(case.first("deaf", ".ready"), "false");
    Ok(())
}

fn tcp(case: &Case<'_>) -> Outcome {
    let connect =
        |port: u16| json!({"readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1}});
    case.ready(&case.pod_with("listens", &[serve(7000, "boat")], connect(7000)))?;
    case.create(&case.pod_with("silent", &[stay()], connect(7001)))?;
    case.until_told("silent", "Readiness probe failed");
    case.until_told("silent", "connection refused");
    Ok(())
}

fn grpc_fails(case: &Case<'_>) -> Outcome {
    let probe =
        json!({"readinessProbe": {"grpc": {"port": 7001, "service": "boat"}, "periodSeconds": 1}});
    case.create(&case.pod_with("silent", &[stay()], probe))?;
    case.until_told("silent", "Readiness probe failed");
    assert_eq!(case.first("silent", ".ready"), "false");
    Ok(())
}

fn timeout(case: &Case<'_>) -> Outcome {
    let probe = with(
        by(case, &[sleep("1000")], json!({})),
        json!({"timeoutSeconds": 1}),
    );
    case.create(&probed(case, json!({"readinessProbe": probe})))?;
    case.until_told("probed", "timed out");
    Ok(())
}

fn grace(case: &Case<'_>) -> Outcome {
    let probe = by(
        case,
        &[exit(1)],
        json!({"failureThreshold": 1, "terminationGracePeriodSeconds": 1}),
    );
    let deaf = if case.is_wasm() {
        stay()
    } else {
        super::program::sh("trap '' TERM; while :; do sleep 1; done")
    };
    let pod = case.pod_with("probed", &[deaf], json!({"livenessProbe": probe}));
    case.create(&pod.spec(json!({"terminationGracePeriodSeconds": 3600})))?;
    case.some(
        "probed",
        ".status.containerStatuses[?(@.restartCount>0)].name",
    );
    case.kubectl(&["delete", "pod", "probed", "--force", "--grace-period=0"])
        .map(drop)
}

fn success_threshold(case: &Case<'_>) -> Outcome {
    let probe = by(
        case,
        &[exists("/data/ready")],
        json!({"successThreshold": 3}),
    );
    case.create(&probed(case, json!({"readinessProbe": probe})))?;
    case.until_first("probed", ".started", "true");
    case.exec("probed", &[write("/data/ready", "")])?;
    case.wait_ready("probed");
    Ok(())
}

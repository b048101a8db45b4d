//! What `kubectl get pods` shows.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    meta, table,
    value::{flag, get, integer, list, text},
};

/// When a container last ended before it was started again; empty when it never was.
fn last_end(status: &Value) -> &str {
    text(get(get(status, "lastState"), "terminated"), "finishedAt")
}

fn condition_is_true(status: &Value, type_: &str) -> bool {
    list(status, "conditions")
        .iter()
        .any(|condition| text(condition, "type") == type_ && text(condition, "status") == "True")
}

struct Summary {
    reason: String,
    restarts: i64,
    /// RFC 3339 in UTC with whole seconds, so that the later text is the later time.
    last_restart: String,
    ready: usize,
    total: usize,
}

/// After `printPod` of `k8s.io/kubernetes/pkg/printers/internalversion`.
fn summary(pod: &Value) -> Summary {
    let (spec, status) = (get(pod, "spec"), get(pod, "status"));
    let phase = text(status, "phase");
    let mut reason = match text(status, "reason") {
        "" => phase.to_owned(),
        reason => reason.to_owned(),
    };
    let is_gated = list(status, "conditions").iter().any(|condition| {
        text(condition, "type") == "PodScheduled" && text(condition, "reason") == "SchedulingGated"
    });
    if is_gated {
        "SchedulingGated".clone_into(&mut reason);
    }

    let init_containers = list(spec, "initContainers");
    let is_restartable = |name: &str| {
        init_containers.iter().any(|container| {
            text(container, "name") == name && text(container, "restartPolicy") == "Always"
        })
    };
    let mut total = list(spec, "containers").len();
    total += init_containers
        .iter()
        .filter(|container| text(container, "restartPolicy") == "Always")
        .count();

    let mut ready = 0;
    let (mut restarts, mut sidecar_restarts) = (0, 0);
    let (mut last_restart, mut sidecar_last_restart) = ("", "");
    let mut is_initializing = false;
    for (i, container) in list(status, "initContainerStatuses").iter().enumerate() {
        let restart_count = integer(container, "restartCount").unwrap_or_default();
        restarts += restart_count;
        last_restart = last_restart.max(last_end(container));
        let is_sidecar = is_restartable(text(container, "name"));
        if is_sidecar {
            sidecar_restarts += restart_count;
            sidecar_last_restart = sidecar_last_restart.max(last_end(container));
        }
        let state = get(container, "state");
        let (terminated, waiting) = (get(state, "terminated"), get(state, "waiting"));
        if terminated.is_object() && integer(terminated, "exitCode").unwrap_or_default() == 0 {
            continue;
        }
        if is_sidecar && flag(container, "started") {
            ready += usize::from(flag(container, "ready"));
            continue;
        }
        reason = if terminated.is_object() {
            format!("Init:{}", end_reason(terminated))
        } else if !matches!(text(waiting, "reason"), "" | "PodInitializing") {
            format!("Init:{}", text(waiting, "reason"))
        } else {
            format!("Init:{i}/{}", init_containers.len())
        };
        is_initializing = true;
        break;
    }

    if !is_initializing || condition_is_true(status, "Initialized") {
        restarts = sidecar_restarts;
        last_restart = sidecar_last_restart;
        let mut has_running = false;
        for container in list(status, "containerStatuses").iter().rev() {
            restarts += integer(container, "restartCount").unwrap_or_default();
            last_restart = last_restart.max(last_end(container));
            let state = get(container, "state");
            let (terminated, waiting) = (get(state, "terminated"), get(state, "waiting"));
            if !text(waiting, "reason").is_empty() {
                text(waiting, "reason").clone_into(&mut reason);
            } else if terminated.is_object() {
                reason = end_reason(terminated);
            } else if flag(container, "ready") && get(state, "running").is_object() {
                has_running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && has_running {
            let is_ready = condition_is_true(status, "Ready");
            if is_ready { "Running" } else { "NotReady" }.clone_into(&mut reason);
        }
    }

    if meta::is_deleting(pod) {
        if text(status, "reason") == "NodeLost" {
            "Unknown".clone_into(&mut reason);
        } else if !matches!(phase, "Failed" | "Succeeded") {
            "Terminating".clone_into(&mut reason);
        }
    }
    Summary {
        reason,
        restarts,
        last_restart: last_restart.to_owned(),
        ready,
        total,
    }
}

fn end_reason(terminated: &Value) -> String {
    match (
        text(terminated, "reason"),
        integer(terminated, "signal").unwrap_or_default(),
    ) {
        ("", 0) => format!(
            "ExitCode:{}",
            integer(terminated, "exitCode").unwrap_or_default()
        ),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

pub(super) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (get(pod, "spec"), get(pod, "status"));
    let Summary {
        reason,
        restarts,
        last_restart,
        ready,
        total,
    } = summary(pod);
    let restarts = if restarts != 0 && !last_restart.is_empty() {
        format!("{restarts} ({} ago)", table::since(&last_restart, now))
    } else {
        restarts.to_string()
    };
    let ip = list(status, "podIPs")
        .first()
        .map_or_else(|| text(status, "podIP"), |ip| text(ip, "ip"));
    let gates = list(spec, "readinessGates");
    let gates = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let met = gates
            .iter()
            .filter(|gate| condition_is_true(status, text(gate, "conditionType")))
            .count();
        format!("{met}/{}", gates.len())
    };
    vec![
        meta::name(pod).into(),
        format!("{ready}/{total}").into(),
        reason.into(),
        restarts.into(),
        table::age(pod, now).into(),
        table::or_none(ip).into(),
        table::or_none(text(spec, "nodeName")).into(),
        table::or_none(text(status, "nominatedNodeName")).into(),
        gates.into(),
    ]
}

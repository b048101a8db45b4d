//! What a node says of a plugin on its object, and what all nodes' words come to. Pure.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};
use wherry_plugin_host::PluginStats;

use super::State;

/// Nodes that a condition's message names.
const NODES_NAMED_MAX: usize = 5;

/// This node's part of the status. `backoff` is how long the node's worker is not started again.
pub(super) fn of_node(
    state: &State,
    stats: PluginStats,
    worker_restarts: u64,
    backoff: Option<Duration>,
) -> Value {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let average = |total: Duration| match stats.calls {
        0 => 0,
        calls => micros(total) / calls,
    };
    let mut status = json!({
        "ready": matches!(state, State::Installed { .. }) && backoff.is_none(),
        "calls": stats.calls,
        "errors": stats.errors,
        "traps": stats.traps,
        "limitsExceeded": stats.limits_exceeded,
        "lost": stats.lost,
        "denied": stats.denied,
        "notMade": stats.not_made,
        "setApart": stats.set_apart,
        "durationMicrosecondsAverage": average(stats.duration_total),
        "durationMicrosecondsMax": micros(stats.duration_max),
        "cpuMicrosecondsAverage": average(stats.cpu_time_total),
        "memoryBytesPeak": stats.memory_bytes_peak,
        "workerRestarts": worker_restarts,
    });
    match state {
        State::New => {}
        State::Installed { digest, imports } => {
            status["digest"] = digest.as_str().into();
            status["imports"] = imports.as_slice().into();
            if backoff.is_some() {
                status["reason"] = "CrashLoopBackOff".into();
                status["message"] =
                    "the plugin worker keeps ending and is started again after a wait".into();
            } else if stats.set_apart > 0 {
                status["reason"] = "InputsSetApart".into();
                status["message"] =
                    "inputs that kept killing the plugin are not tried for a while".into();
            }
        }
        State::Failed { reason, why, .. } => {
            status["reason"] = (*reason).into();
            status["message"] = why.as_str().into();
        }
    }
    if let Some((at, error)) = stats.last_error {
        status["lastError"] = error.into();
        if let Ok(at) = Timestamp::try_from(at) {
            status["lastErrorTime"] = format!("{at:.0}").into();
        }
    }
    status
}

/// The condition `Ready` that all nodes' parts come to, this one's being `own`; `None` if `seen` has it already. Every
/// node computes it of the same parts, so it does not matter which of them writes it.
pub(super) fn conditions(
    seen: &Value,
    own: (&str, &Value),
    generation: i64,
    now: Timestamp,
) -> Option<Value> {
    let there = seen["nodes"].as_object();
    let mut nodes: BTreeMap<&str, &Value> = there
        .into_iter()
        .flatten()
        .map(|(name, node)| (name.as_str(), node))
        .collect();
    nodes.insert(own.0, own.1);
    let is_ready = |node: &Value| node["ready"] == true;
    let failed: Vec<_> = nodes.iter().filter(|(_, node)| !is_ready(node)).collect();
    let trouble = failed
        .first()
        .copied()
        .or_else(|| nodes.iter().find(|(_, node)| node["reason"].is_string()));
    let reason = trouble.map_or("Installed", |(_, node)| {
        node["reason"].as_str().unwrap_or("Failed")
    });
    let message = if failed.is_empty() {
        format!("{0} of {0} nodes can call it", nodes.len())
    } else {
        let named = failed.iter().take(NODES_NAMED_MAX);
        let named = named.map(|(name, node)| {
            format!("{name}: {}", node["message"].as_str().unwrap_or_default())
        });
        let mut named: Vec<_> = named.collect();
        if failed.len() > NODES_NAMED_MAX {
            named.push(format!("and {} more", failed.len() - NODES_NAMED_MAX));
        }
        named.join("; ")
    };
    let status = if failed.is_empty() { "True" } else { "False" };
    let before = seen["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready");
    let changed_at = before
        .filter(|before| before["status"] == status)
        .and_then(|before| before["lastTransitionTime"].as_str())
        .map_or_else(|| format!("{now:.0}"), str::to_owned);
    let condition = json!({
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": changed_at,
        "observedGeneration": generation,
    });
    (before != Some(&condition)).then(|| json!([condition]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> State {
        State::Failed {
            reason: "ErrImagePull",
            why: "no such image".into(),
            is_final: false,
        }
    }

    fn installed() -> State {
        State::Installed {
            digest: "sha256:1".into(),
            imports: vec!["a".into()],
        }
    }

    #[test]
    fn status_says_what_failed_and_counts() {
        let said = of_node(&failed(), PluginStats::default(), 2, None);
        assert_eq!(said["ready"], false);
        assert_eq!(said["message"], "no such image");
        assert_eq!(said["reason"], "ErrImagePull");
        assert_eq!(said["workerRestarts"], 2);
        let stats = PluginStats {
            calls: 2,
            duration_total: Duration::from_millis(3),
            last_error: Some((std::time::UNIX_EPOCH, "trap".into())),
            ..PluginStats::default()
        };
        let said = of_node(&installed(), stats, 0, None);
        assert_eq!(said["ready"], true);
        assert_eq!(said["durationMicrosecondsAverage"], 1500);
        assert_eq!(said["lastErrorTime"], "1970-01-01T00:00:00Z");
        assert!(said.get("message").is_none());
    }

    #[test]
    fn a_worker_in_back_off_and_inputs_set_apart_are_told_of() {
        let wait = Some(Duration::from_secs(3));
        let said = of_node(&installed(), PluginStats::default(), 5, wait);
        assert_eq!(
            (&said["ready"], &said["reason"]),
            (&json!(false), &json!("CrashLoopBackOff"))
        );
        let stats = PluginStats {
            set_apart: 2,
            ..PluginStats::default()
        };
        let said = of_node(&installed(), stats, 0, None);
        assert_eq!(
            (&said["ready"], &said["reason"]),
            (&json!(true), &json!("InputsSetApart"))
        );
    }

    #[test]
    fn a_plugin_is_ready_when_all_nodes_can_call_it_and_that_is_written_once() {
        let at = |second| Timestamp::from_second(second).expect("a moment");
        let good = of_node(&installed(), PluginStats::default(), 0, None);
        let bad = of_node(&failed(), PluginStats::default(), 0, None);
        let seen = json!({"nodes": {"b": good}});
        let first = conditions(&seen, ("a", &good), 1, at(1)).expect("news");
        assert_eq!(first[0]["status"], "True");
        assert_eq!(first[0]["reason"], "Installed");
        assert_eq!(first[0]["message"], "2 of 2 nodes can call it");
        let seen = json!({"nodes": {"a": good, "b": good}, "conditions": first});
        assert_eq!(conditions(&seen, ("a", &good), 1, at(2)), None);
        let second = conditions(&seen, ("a", &bad), 1, at(3)).expect("news");
        assert_eq!(second[0]["status"], "False");
        assert_eq!(second[0]["reason"], "ErrImagePull");
        assert_eq!(second[0]["message"], "a: no such image");
        assert_eq!(second[0]["lastTransitionTime"], "1970-01-01T00:00:03Z");
        let seen = json!({"nodes": {"a": bad, "b": good}, "conditions": second});
        let again = conditions(&seen, ("b", &good), 2, at(4)).expect("of a new generation");
        assert_eq!(again[0]["lastTransitionTime"], "1970-01-01T00:00:03Z");
    }
}

//! What a node knows of the container that is probed, asked through `kubectl`.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Live;

/// Lines of a log in one answer, as on a node.
const LINES_MAX: u64 = 100;
/// Bytes of them together, as on a node.
const LOG_BYTES_MAX: usize = 64 << 10;

impl Live {
    /// What the container uses by the node's summary; nothing where it does not say.
    pub(super) fn usage(&self) -> Result<Value> {
        let target = &self.target;
        let path = format!("/api/v1/nodes/{}/proxy/stats/summary", target.node);
        let got = target.kubectl.run(&["get", "--raw", &path])?;
        if target.node.is_empty() || !got.status.success() {
            return Ok(Value::Null);
        }
        let summary: Value = serde_json::from_slice(&got.stdout).context("the node's summary")?;
        let find = |list: &Value, is_it: &dyn Fn(&Value) -> bool| {
            let mut list = list.as_array().into_iter().flatten();
            list.find(|one| is_it(one)).cloned().unwrap_or_default()
        };
        let pod = find(&summary["pods"], &|pod| {
            let found = &pod["podRef"];
            found["name"] == target.pod.as_str() && found["namespace"] == target.namespace.as_str()
        });
        let container = find(&pod["containers"], &|container| {
            container["name"] == target.container.as_str()
        });
        let numbers = (
            container["cpu"]["usageCoreNanoSeconds"].as_u64(),
            container["memory"]["workingSetBytes"].as_u64(),
        );
        Ok(match numbers {
            (Some(cpu), Some(memory)) => {
                json!({"cpu-nanoseconds": cpu, "memory-working-set-bytes": memory})
            }
            _ => Value::Null,
        })
    }

    /// The last lines of the container's log.
    pub(super) fn log_tail(&self, arguments: &[Value]) -> Result<Value> {
        let lines = arguments.first().and_then(Value::as_u64);
        let lines = lines.unwrap_or_default().min(LINES_MAX).to_string();
        let target = &self.target;
        let args = ["logs", &target.pod, "--namespace", &target.namespace];
        let more = ["--container", &target.container, "--tail", &lines];
        let got = target.kubectl.run(&[args, more].concat())?;
        if !got.status.success() {
            let why = String::from_utf8_lossy(&got.stderr).trim().to_owned();
            return Ok(json!({"err": {"unavailable": why}}));
        }
        let printed = String::from_utf8_lossy(&got.stdout);
        let mut bytes = 0;
        let last = printed.lines().rev().take_while(|line| {
            bytes += line.len();
            bytes <= LOG_BYTES_MAX
        });
        let mut last: Vec<_> = last.collect();
        last.reverse();
        Ok(json!({"ok": last}))
    }
}

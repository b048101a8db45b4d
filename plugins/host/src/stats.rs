//! What is counted of a plugin.

use std::{
    collections::BTreeMap,
    fmt::Write,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::protocol::{Ended, Fault};

/// Upper bounds of the histogram of calls, seconds: from a bare call to the longest that limits allow by default.
const BUCKETS: [f64; 14] = [
    5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5, 1.0, 5.0, 30.0,
];

/// Counters of one plugin on this node, since the agent started; of a file system, since its volume server did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PluginStats {
    /// Calls that were made.
    pub calls: u64,
    /// Of those, ends by trap.
    pub traps: u64,
    /// Of those, ends by a limit of memory, CPU time or time.
    pub limits_exceeded: u64,
    /// Of those, errors that the plugin declared.
    pub errors: u64,
    /// Calls that were lost with the worker, or could not be made for want of one.
    pub lost: u64,
    /// Requests of the plugin for what is not granted.
    pub denied: u64,
    /// Calls that were not made, their input being set apart.
    pub not_made: u64,
    /// Inputs that are set apart now.
    pub set_apart: usize,
    /// Time of all calls.
    pub duration_total: Duration,
    /// Time of the longest call.
    pub duration_max: Duration,
    /// How many calls took no longer than each of a row of times, and longer than the one before.
    pub durations: [u64; BUCKETS.len()],
    /// CPU time of the plugin's own code.
    pub cpu_time_total: Duration,
    /// Most bytes of memory that a call used.
    pub memory_bytes_peak: u64,
    /// The last trouble, and when.
    pub last_error: Option<(SystemTime, String)>,
}

impl PluginStats {
    /// Adds what was counted elsewhere, or of another volume, of the same plugin.
    pub fn merge(&mut self, other: &Self) {
        self.calls += other.calls;
        self.traps += other.traps;
        self.limits_exceeded += other.limits_exceeded;
        self.errors += other.errors;
        self.lost += other.lost;
        self.denied += other.denied;
        self.not_made += other.not_made;
        self.set_apart += other.set_apart;
        self.duration_total += other.duration_total;
        self.duration_max = self.duration_max.max(other.duration_max);
        for (here, there) in self.durations.iter_mut().zip(other.durations) {
            *here += there;
        }
        self.cpu_time_total += other.cpu_time_total;
        self.memory_bytes_peak = self.memory_bytes_peak.max(other.memory_bytes_peak);
        let moment = |stats: &Self| stats.last_error.as_ref().map(|(at, _)| *at);
        if moment(other) > moment(self) {
            self.last_error.clone_from(&other.last_error);
        }
    }

    /// Counts a call that has ended.
    pub fn record(&mut self, ended: &Ended, took: Duration, now: SystemTime) {
        self.calls += 1;
        self.duration_total = self.duration_total.saturating_add(took);
        self.duration_max = self.duration_max.max(took);
        let bucket = BUCKETS.iter().position(|le| took.as_secs_f64() <= *le);
        if let Some(bucket) = bucket {
            self.durations[bucket] += 1;
        }
        // As the worker says, which may be anything.
        self.cpu_time_total = self.cpu_time_total.saturating_add(ended.cpu_time);
        self.memory_bytes_peak = self.memory_bytes_peak.max(ended.memory_bytes_peak);
        if let Some(denied) = &ended.denied {
            self.denied += 1;
            self.last_error = Some((now, format!("not granted: {denied}")));
        }
        let Err(fault) = &ended.result else {
            return;
        };
        match fault {
            Fault::Trap(_) => self.traps += 1,
            Fault::MemoryExceeded { .. }
            | Fault::CpuTimeExceeded { .. }
            | Fault::TimedOut { .. } => self.limits_exceeded += 1,
            Fault::InvalidArguments(_)
            | Fault::Denied(_)
            | Fault::Other(_)
            | Fault::Volume(_)
            | Fault::CannotExpand
            | Fault::CannotProvision => self.errors += 1,
            Fault::WorkerLost(_) => self.lost += 1,
        }
        self.last_error = Some((now, fault.to_string()));
    }
}

/// One kind of number.
type Metric = (&'static str, &'static str, fn(&PluginStats) -> f64);

/// What is exported of each plugin: name without its beginning, type, value.
const METRICS: [Metric; 12] = [
    ("calls_total", "counter", |stats| stats.calls as f64),
    ("call_duration_seconds_max", "gauge", |stats| {
        stats.duration_max.as_secs_f64()
    }),
    ("cpu_seconds_total", "counter", |stats| {
        stats.cpu_time_total.as_secs_f64()
    }),
    ("memory_peak_bytes", "gauge", |stats| {
        stats.memory_bytes_peak as f64
    }),
    ("errors_total", "counter", |stats| stats.errors as f64),
    ("traps_total", "counter", |stats| stats.traps as f64),
    ("limits_exceeded_total", "counter", |stats| {
        stats.limits_exceeded as f64
    }),
    ("lost_total", "counter", |stats| stats.lost as f64),
    ("denied_total", "counter", |stats| stats.denied as f64),
    ("not_made_total", "counter", |stats| stats.not_made as f64),
    ("set_apart", "gauge", |stats| stats.set_apart as f64),
    ("last_error_timestamp_seconds", "gauge", |stats| {
        let at = stats.last_error.as_ref().map(|(at, _)| at);
        let since = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        since.unwrap_or_default().as_secs_f64()
    }),
];

/// All plugins' counters and the worker's restarts, in Prometheus' text format.
pub(crate) fn render(all: &BTreeMap<String, PluginStats>, worker_restarts: u64) -> String {
    let mut text = format!(
        "# TYPE wherry_plugin_worker_restarts_total counter\nwherry_plugin_worker_restarts_total {worker_restarts}\n"
    );
    for (name, kind, value) in METRICS {
        let _ = writeln!(text, "# TYPE wherry_plugin_{name} {kind}");
        for (plugin, stats) in all {
            let _ = writeln!(
                text,
                "wherry_plugin_{name}{{plugin=\"{plugin}\"}} {}",
                value(stats)
            );
        }
    }
    render_durations(&mut text, all);
    text
}

fn render_durations(text: &mut String, all: &BTreeMap<String, PluginStats>) {
    const NAME: &str = "wherry_plugin_call_duration_seconds";
    let _ = writeln!(text, "# TYPE {NAME} histogram");
    for (plugin, stats) in all {
        let label = format!("plugin=\"{plugin}\"");
        let mut below = 0;
        for (le, calls) in BUCKETS.iter().zip(stats.durations) {
            below += calls;
            let _ = writeln!(text, "{NAME}_bucket{{{label},le=\"{le}\"}} {below}");
        }
        let (calls, sum) = (stats.calls, stats.duration_total.as_secs_f64());
        let _ = writeln!(
            text,
            "{NAME}_bucket{{{label},le=\"+Inf\"}} {calls}\n{NAME}_sum{{{label}}} {sum}\n{NAME}_count{{{label}}} {calls}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_in_two_places_is_one_plugins() {
        let moment = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let stats = |calls, longest, error: Option<u64>| PluginStats {
            calls,
            duration_total: Duration::from_secs(calls),
            duration_max: Duration::from_secs(longest),
            memory_bytes_peak: longest,
            last_error: error.map(|at| (moment(at), at.to_string())),
            ..PluginStats::default()
        };
        for (one, other, expected) in [
            (
                stats(1, 5, None),
                stats(2, 3, Some(4)),
                stats(3, 5, Some(4)),
            ),
            (
                stats(1, 2, Some(9)),
                stats(2, 3, Some(4)),
                stats(3, 3, Some(9)),
            ),
        ] {
            let mut merged = one.clone();
            merged.merge(&other);
            assert_eq!(merged, expected);
        }
    }

    #[test]
    fn every_plugin_has_every_number() {
        let mut stats = PluginStats::default();
        let ended = crate::host::fault(Fault::Other("down".into()));
        for millis in [1, 499, 1000] {
            stats.record(
                &ended,
                Duration::from_millis(millis),
                SystemTime::UNIX_EPOCH,
            );
        }
        let text = render(&[("http-get".to_owned(), stats)].into(), 2);
        for line in [
            "wherry_plugin_worker_restarts_total 2",
            "wherry_plugin_calls_total{plugin=\"http-get\"} 3",
            "wherry_plugin_call_duration_seconds_sum{plugin=\"http-get\"} 1.5",
            "wherry_plugin_call_duration_seconds_bucket{plugin=\"http-get\",le=\"0.001\"} 1",
            "wherry_plugin_call_duration_seconds_bucket{plugin=\"http-get\",le=\"0.5\"} 2",
            "wherry_plugin_call_duration_seconds_bucket{plugin=\"http-get\",le=\"+Inf\"} 3",
            "wherry_plugin_traps_total{plugin=\"http-get\"} 0",
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
        let types = text.lines().filter(|line| line.starts_with("# TYPE"));
        assert_eq!(types.count(), METRICS.len() + 2);
    }
}

//! What the agent counts of its own work, for `/metrics`, under the kubelet's names.
//!
//! A family is a constant here and an entry in [`Metrics`] once something was counted. Labels come
//! from fixed sets (operations, signals), so that what is kept is bounded; those of probes name pods
//! and are forgotten with them.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A name, and what to say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Family {
    /// As Prometheus sees it.
    pub(crate) name: &'static str,
    /// One line.
    pub(crate) help: &'static str,
}

/// Pods ended for the node's sake, by signal.
pub(crate) const EVICTIONS: Family = Family {
    name: "kubelet_evictions",
    help: "Cumulative number of pod evictions by eviction signal",
};
/// Calls to runtimes, by operation.
pub(crate) const RUNTIME_OPERATIONS: Family = Family {
    name: "kubelet_runtime_operations_total",
    help: "Cumulative number of runtime operations by operation type.",
};
/// Those that failed.
pub(crate) const RUNTIME_ERRORS: Family = Family {
    name: "kubelet_runtime_operations_errors_total",
    help: "Cumulative number of runtime operation errors by operation type.",
};
/// How long they took.
pub(crate) const RUNTIME_DURATION: Family = Family {
    name: "kubelet_runtime_operations_duration_seconds",
    help: "Duration in seconds of runtime operations. Broken down by operation type.",
};

/// From the agent's first sight of a pod to the pod running.
pub(crate) const POD_START_DURATION: Family = Family {
    name: "kubelet_pod_start_duration_seconds",
    help: "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
};
/// Checks made, by container, kind and result; for `/metrics/probes`.
pub(crate) const PROBES: Family = Family {
    name: "prober_probe_total",
    help: "Cumulative number of a liveness, readiness or startup probe for a container by result.",
};
/// How long those took that succeeded.
pub(crate) const PROBE_DURATION: Family = Family {
    name: "prober_probe_duration_seconds",
    help: "Duration in seconds for a probe response.",
};

/// Upper bounds of a histogram's buckets, seconds: the kubelet's for runtime operations, 5 ms times
/// 2.5 each.
const BUCKETS: [f64; 14] = [
    0.005,
    0.0125,
    0.03125,
    0.078_125,
    0.195_312_5,
    0.488_281_25,
    1.220_703_125,
    3.051_757_812_5,
    7.629_394_531_25,
    19.073_486_328_125,
    47.683_715_820_312_5,
    119.209_289_550_781_25,
    298.023_223_876_953_1,
    745.058_059_692_382_8,
];

#[derive(Clone, Debug)]
enum Value {
    Counter(u64),
    Histogram {
        counts: [u64; BUCKETS.len()],
        count: u64,
        sum: Duration,
    },
}

/// Everything that was counted so far.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    values: Mutex<BTreeMap<Family, BTreeMap<String, Value>>>,
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Family, BTreeMap<String, Value>>> {
        // A count that was lost is a count that is wrong by one.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more of them. `label` is as Prometheus writes it: `operation_type="exec"`.
    pub(crate) fn count(&self, family: Family, label: &str) {
        let mut values = self.lock();
        let family = values.entry(family).or_default();
        match family.get_mut(label) {
            Some(Value::Counter(count)) => *count += 1,
            Some(Value::Histogram { .. }) => {}
            None => {
                family.insert(label.to_owned(), Value::Counter(1));
            }
        }
    }

    /// One more that took so long.
    pub(crate) fn observe(&self, family: Family, label: &str, took: Duration) {
        let mut values = self.lock();
        let family = values.entry(family).or_default();
        if !family.contains_key(label) {
            let empty = Value::Histogram {
                counts: [0; BUCKETS.len()],
                count: 0,
                sum: Duration::ZERO,
            };
            family.insert(label.to_owned(), empty);
        }
        if let Some(Value::Histogram { counts, count, sum }) = family.get_mut(label) {
            *count += 1;
            *sum += took;
            let bucket = BUCKETS.iter().position(|le| took.as_secs_f64() <= *le);
            if let Some(bucket) = bucket {
                counts[bucket] += 1;
            }
        }
    }

    /// Forgets what was counted under labels that nobody will count under again.
    pub(crate) fn retain(&self, is_wanted: impl Fn(&str) -> bool) {
        for values in self.lock().values_mut() {
            values.retain(|label, _| is_wanted(label));
        }
    }

    /// In Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for (Family { name, help }, values) in &*self.lock() {
            let is_histogram = matches!(values.values().next(), Some(Value::Histogram { .. }));
            let kind = if is_histogram { "histogram" } else { "counter" };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (label, value) in values {
                let comma = if label.is_empty() { "" } else { "," };
                let _ = match value {
                    Value::Counter(count) => writeln!(text, "{name}{{{label}}} {count}"),
                    Value::Histogram { counts, count, sum } => {
                        let mut below = 0;
                        for (bound, here) in BUCKETS.iter().zip(counts) {
                            below += here;
                            let _ = writeln!(
                                text,
                                "{name}_bucket{{{label}{comma}le=\"{bound}\"}} {below}"
                            );
                        }
                        let sum = sum.as_secs_f64();
                        writeln!(
                            text,
                            "{name}_bucket{{{label}{comma}le=\"+Inf\"}} {count}\n\
                             {name}_sum{{{label}}} {sum}\n{name}_count{{{label}}} {count}"
                        )
                    }
                };
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_times_are_rendered_as_prometheus_reads_them() {
        let metrics = Metrics::default();
        metrics.count(EVICTIONS, "eviction_signal=\"memory.available\"");
        metrics.count(EVICTIONS, "eviction_signal=\"memory.available\"");
        let label = "operation_type=\"exec\"";
        for millis in [1, 10, 1_000_000] {
            metrics.observe(RUNTIME_DURATION, label, Duration::from_millis(millis));
        }
        metrics.observe(POD_START_DURATION, "", Duration::from_secs(2));
        let text = metrics.render();
        for line in [
            "kubelet_pod_start_duration_seconds_bucket{le=\"3.0517578125\"} 1",
            "kubelet_pod_start_duration_seconds_count{} 1",
            "# TYPE kubelet_evictions counter",
            "kubelet_evictions{eviction_signal=\"memory.available\"} 2",
            "# TYPE kubelet_runtime_operations_duration_seconds histogram",
            "kubelet_runtime_operations_duration_seconds_bucket{operation_type=\"exec\",le=\"0.005\"} 1",
            "kubelet_runtime_operations_duration_seconds_bucket{operation_type=\"exec\",le=\"0.0125\"} 2",
            "kubelet_runtime_operations_duration_seconds_bucket{operation_type=\"exec\",le=\"+Inf\"} 3",
            "kubelet_runtime_operations_duration_seconds_sum{operation_type=\"exec\"} 1000.011",
            "kubelet_runtime_operations_duration_seconds_count{operation_type=\"exec\"} 3",
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
    }
}

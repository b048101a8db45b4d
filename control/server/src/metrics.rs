//! What the server counts, under kube-apiserver's names.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

/// A number that goes down again when its guard is dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Level(Arc<AtomicI64>);

impl Level {
    pub(crate) fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn raise(&self) -> Gauge {
        self.0.fetch_add(1, Ordering::Relaxed);
        Gauge(self.0.clone())
    }
}

/// Holds a [`Level`] up.
#[derive(Debug)]
pub(crate) struct Gauge(Arc<AtomicI64>);

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RequestLabels {
    verb: &'static str,
    group: String,
    resource: String,
    subresource: String,
    code: u16,
}

#[derive(Clone, Copy, Debug, Default)]
struct RequestCount {
    count: u64,
    seconds: f64,
}

/// The counters.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<RequestLabels, RequestCount>>,
    pub(crate) inflight: Level,
    pub(crate) watchers: Level,
}

impl Metrics {
    /// Counts an answered request to a resource that exists, so that clients cannot make labels up.
    pub(crate) fn count(
        &self,
        verb: &'static str,
        group: &str,
        resource: &str,
        subresource: &str,
        code: u16,
        took: Duration,
    ) {
        let labels = RequestLabels {
            verb,
            group: group.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            code,
        };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = requests.entry(labels).or_default();
        entry.count += 1;
        entry.seconds += took.as_secs_f64();
    }

    /// In the Prometheus text format; `audit_dropped` counts events that are not in the audit log.
    pub(crate) fn render(&self, audit_dropped: u64) -> String {
        let mut out = String::new();
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let mut family =
            |name: &str, help: &str, kind: &str, lines: &mut dyn FnMut(&mut String)| {
                let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
                lines(&mut out);
            };
        let label = |l: &RequestLabels| {
            format!(
                "verb=\"{}\",group=\"{}\",resource=\"{}\",subresource=\"{}\",code=\"{}\"",
                l.verb.to_uppercase(),
                l.group,
                l.resource,
                l.subresource,
                l.code
            )
        };
        family(
            "apiserver_request_total",
            "Requests answered.",
            "counter",
            &mut |out| {
                for (labels, entry) in requests.iter() {
                    let _ = writeln!(
                        out,
                        "apiserver_request_total{{{}}} {}",
                        label(labels),
                        entry.count
                    );
                }
            },
        );
        family(
            "apiserver_request_duration_seconds_sum",
            "Time taken by them.",
            "counter",
            &mut |out| {
                for (labels, entry) in requests.iter() {
                    let _ = writeln!(
                        out,
                        "apiserver_request_duration_seconds_sum{{{}}} {}",
                        label(labels),
                        entry.seconds
                    );
                }
            },
        );
        let name = "apiserver_audit_error_total";
        family(
            name,
            "Audit events that were not written.",
            "counter",
            &mut |out| {
                let _ = writeln!(out, "{name}{{plugin=\"log\"}} {audit_dropped}");
            },
        );
        let levels = [
            (
                "apiserver_current_inflight_requests",
                "Requests being answered.",
                &self.inflight,
            ),
            ("apiserver_longrunning_requests", "Watches.", &self.watchers),
        ];
        for (name, help, level) in levels {
            family(name, help, "gauge", &mut |out| {
                let _ = writeln!(out, "{name} {}", level.get());
            });
        }
        out
    }
}

//! `/metrics`: the agent's own. `/metrics/resource`: what containers, pods and the node use.

use std::{fmt::Write, time::SystemTime};

use axum::{
    extract::State as Shared,
    http::header,
    response::{IntoResponse, Response},
};

use super::{
    State,
    stats::{NodeMemory, PodSample, node_cpu_ns, pod_samples},
};

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(crate) async fn metrics(Shared(state): Shared<State>) -> Response {
    (
        [(header::CONTENT_TYPE, TEXT_FORMAT)],
        state.kubelet.metrics(),
    )
        .into_response()
}

pub(crate) async fn resource(Shared(state): Shared<State>) -> Response {
    let pods = pod_samples(&state).await;
    let text = render(
        &pods,
        node_cpu_ns(),
        NodeMemory::read().working_set(),
        SystemTime::now(),
    );
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response()
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

fn millis(at: SystemTime) -> u128 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis()
}
fn cpu_seconds(cpu_ns: u64) -> f64 {
    cpu_ns as f64 / 1e9
}

/// Prometheus' text format, with the kubelet's names.
fn render(
    pods: &[PodSample],
    node_cpu_ns: Option<u64>,
    node_memory_bytes: u64,
    now: SystemTime,
) -> String {
    let mut text = String::new();
    let mut family =
        |name: &str,
         kind: &str,
         help: &str,
         samples: &mut dyn Iterator<Item = (String, f64, SystemTime)>| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
            for (labels, value, at) in samples {
                let _ = writeln!(text, "{name}{labels} {value} {}", millis(at));
            }
        };
    let of_container = |pod: &PodSample, container: &str| {
        format!(
            "{{container=\"{container}\",namespace=\"{}\",pod=\"{}\"}}",
            pod.namespace, pod.name
        )
    };
    let of_pod =
        |pod: &PodSample| format!("{{namespace=\"{}\",pod=\"{}\"}}", pod.namespace, pod.name);
    let containers = || {
        pods.iter()
            .flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
    };

    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        &mut containers().map(|(pod, container)| {
            let stats = &container.stats;
            (
                of_container(pod, &container.name),
                cpu_seconds(stats.cpu_usage_core_nanoseconds),
                stats.at,
            )
        }),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        &mut containers().map(|(pod, container)| {
            let bytes = container.stats.memory_working_set_bytes as f64;
            (
                of_container(pod, &container.name),
                bytes,
                container.stats.at,
            )
        }),
    );
    family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        &mut containers().map(|(pod, container)| {
            (
                of_container(pod, &container.name),
                seconds(container.started_at),
                container.stats.at,
            )
        }),
    );
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        &mut node_cpu_ns
            .into_iter()
            .map(|cpu_ns| (String::new(), cpu_seconds(cpu_ns), now)),
    );
    let node_memory = node_memory_bytes as f64;
    family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        &mut std::iter::once((String::new(), node_memory, now)),
    );
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        &mut pods.iter().map(|pod| {
            let cpu_ns = pod
                .containers
                .iter()
                .map(|container| container.stats.cpu_usage_core_nanoseconds)
                .sum();
            (of_pod(pod), cpu_seconds(cpu_ns), now)
        }),
    );
    family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
        &mut pods.iter().map(|pod| {
            let bytes: u64 = pod
                .containers
                .iter()
                .map(|container| container.stats.memory_working_set_bytes)
                .sum();
            let bytes = bytes as f64;
            (of_pod(pod), bytes, now)
        }),
    );
    family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
        &mut std::iter::once((String::new(), 0.0, now)),
    );
    text
}

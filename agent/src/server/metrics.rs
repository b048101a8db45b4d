//! `/metrics`: the agent's own. `/metrics/resource`: what containers, pods and the node use.
//! `/metrics/cadvisor`: the same and networks, under cAdvisor's names, as dashboards ask for it.

use std::{
    fmt::{self, Write},
    time::SystemTime,
};

use axum::{
    extract::State as Shared,
    http::header,
    response::{IntoResponse, Response},
};

use super::{
    State,
    stats::{PodSample, Sample, Samples, node, pod_interfaces, pod_samples},
};

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

fn answer(text: String) -> Response {
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response()
}

pub(crate) async fn metrics(Shared(state): Shared<State>) -> Response {
    let mut text = Text::default();
    process(&mut text, node::Own::read(), state.started_at);
    answer(state.kubelet.metrics() + &text.0)
}

pub(crate) async fn probes(Shared(state): Shared<State>) -> Response {
    answer(state.kubelet.probe_metrics())
}

pub(crate) async fn resource(Shared(state): Shared<State>) -> Response {
    let samples = pod_samples(&*state.kubelet, &state.usage).await;
    let (cpu_ns, memory) = (node::cpu_ns(), node::Memory::read());
    answer(render_resource(&samples, cpu_ns, memory, SystemTime::now()))
}

pub(crate) async fn cadvisor(Shared(state): Shared<State>) -> Response {
    let samples = pod_samples(&*state.kubelet, &state.usage).await;
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    answer(render_cadvisor(&samples, cores, node::Memory::read()))
}

/// Metrics in Prometheus' text format, as they are written.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &Labels<'_>, value: impl fmt::Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn timed(&mut self, name: &str, labels: &Labels<'_>, value: impl fmt::Display, at: SystemTime) {
        let millis = since_epoch(at).as_millis();
        let _ = writeln!(self.0, "{name}{labels} {value} {millis}");
    }
}

/// Labels as Prometheus reads them.
struct Labels<'a>(&'a [(&'a str, &'a str)]);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "{" } else { "," })?;
            write!(f, "{name}=\"")?;
            for character in value.chars() {
                match character {
                    '\\' => f.write_str("\\\\")?,
                    '"' => f.write_str("\\\"")?,
                    '\n' => f.write_str("\\n")?,
                    other => f.write_char(other)?,
                }
            }
            f.write_str("\"")?;
        }
        f.write_str(if self.0.is_empty() { "" } else { "}" })
    }
}

const NONE: Labels<'static> = Labels(&[]);

fn since_epoch(at: SystemTime) -> std::time::Duration {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

fn cpu_seconds(cpu_ns: u64) -> f64 {
    cpu_ns as f64 / 1e9
}

/// The families that every Prometheus client has.
fn process(text: &mut Text, own: node::Own, started_at: SystemTime) {
    let started_at = since_epoch(started_at).as_secs_f64();
    let rows: [(&str, &str, &str, f64); 6] = [
        (
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            cpu_seconds(own.cpu_ns),
        ),
        (
            "process_open_fds",
            "gauge",
            "Number of open file descriptors.",
            own.descriptors as f64,
        ),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory size in bytes.",
            own.resident_bytes as f64,
        ),
        (
            "process_start_time_seconds",
            "gauge",
            "Start time of the process since unix epoch in seconds.",
            started_at,
        ),
        (
            "process_threads",
            "gauge",
            "Number of OS threads.",
            own.threads as f64,
        ),
        (
            "process_virtual_memory_bytes",
            "gauge",
            "Virtual memory size in bytes.",
            own.virtual_bytes as f64,
        ),
    ];
    for (name, kind, help, value) in rows {
        text.family(name, kind, help);
        text.sample(name, &NONE, value);
    }
    if let Some(most) = own.descriptors_max {
        let name = "process_max_fds";
        text.family(name, "gauge", "Maximum number of open file descriptors.");
        text.sample(name, &NONE, most);
    }
}

/// A figure of a container, where it is known.
type OfContainer = fn(&Sample) -> Option<f64>;
/// A figure of an interface.
type OfInterface = fn(&node::Interface) -> u64;
/// A figure of a pod, where it is known.
type OfPod = fn(&PodSample) -> Option<f64>;

fn render_resource(
    samples: &Samples,
    node_cpu_ns: Option<u64>,
    node_memory: node::Memory,
    now: SystemTime,
) -> String {
    let mut text = Text::default();
    let of_containers: [(&str, &str, &str, OfContainer); 4] = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
            |sample| Some(cpu_seconds(sample.stats.cpu_usage_core_nanoseconds)),
        ),
        (
            "container_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the container in bytes",
            |sample| Some(sample.stats.memory_working_set_bytes as f64),
        ),
        (
            "container_start_time_seconds",
            "gauge",
            "[STABLE] Start time of the container since unix epoch in seconds",
            |sample| Some(since_epoch(sample.started_at).as_secs_f64()),
        ),
        (
            "container_swap_usage_bytes",
            "gauge",
            "[ALPHA] Current amount of the container swap usage in bytes.",
            |sample| sample.stats.swap_usage_bytes.map(|bytes| bytes as f64),
        ),
    ];
    for (name, kind, help, value) in of_containers {
        text.family(name, kind, help);
        for (pod, sample) in containers(samples) {
            let labels = [
                ("container", sample.name.as_str()),
                ("namespace", &pod.namespace),
                ("pod", &pod.name),
            ];
            if let Some(value) = value(sample) {
                text.timed(name, &Labels(&labels), value, sample.stats.at);
            }
        }
    }
    let of_node = [
        (
            "node_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
            node_cpu_ns.map(cpu_seconds),
        ),
        (
            "node_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the node in bytes",
            Some(node_memory.working_set() as f64),
        ),
        (
            "node_swap_usage_bytes",
            "gauge",
            "[ALPHA] Current swap usage of the node in bytes.",
            Some(node_memory.swap_usage() as f64),
        ),
    ];
    for (name, kind, help, value) in of_node {
        text.family(name, kind, help);
        if let Some(value) = value {
            text.timed(name, &NONE, value, now);
        }
    }
    let of_pods: [(&str, &str, &str, OfPod); 3] = [
        (
            "pod_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
            |pod| {
                Some(cpu_seconds(
                    pod.sum(|stats| stats.cpu_usage_core_nanoseconds),
                ))
            },
        ),
        (
            "pod_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the pod in bytes",
            |pod| Some(pod.sum(|stats| stats.memory_working_set_bytes) as f64),
        ),
        (
            "pod_swap_usage_bytes",
            "gauge",
            "[ALPHA] Current amount of the pod swap usage in bytes.",
            |pod| Some(pod.sum_known(|stats| stats.swap_usage_bytes)? as f64),
        ),
    ];
    for (name, kind, help, value) in of_pods {
        text.family(name, kind, help);
        for pod in &samples.pods {
            let labels = [("namespace", pod.namespace.as_str()), ("pod", &pod.name)];
            if let Some(value) = value(pod) {
                text.timed(name, &Labels(&labels), value, now);
            }
        }
    }
    let name = "resource_scrape_error";
    text.family(
        name,
        "gauge",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
    );
    text.timed(name, &NONE, u8::from(samples.has_errors), now);
    text.0
}

fn containers(samples: &Samples) -> impl Iterator<Item = (&PodSample, &Sample)> {
    samples
        .pods
        .iter()
        .flat_map(|pod| pod.containers.iter().map(move |sample| (pod, sample)))
}

fn render_cadvisor(samples: &Samples, cores: usize, memory: node::Memory) -> String {
    let mut text = Text::default();
    let of_containers: [(&str, &str, &str, OfContainer); 10] = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed in seconds.",
            |sample| Some(cpu_seconds(sample.stats.cpu_usage_core_nanoseconds)),
        ),
        (
            "container_fs_usage_bytes",
            "gauge",
            "Number of bytes that are consumed by the container on this filesystem.",
            |sample| Some(sample.stats.writable_layer_bytes as f64),
        ),
        (
            "container_last_seen",
            "gauge",
            "Last time a container was seen by the exporter",
            |sample| Some(since_epoch(sample.stats.at).as_secs() as f64),
        ),
        (
            "container_memory_rss",
            "gauge",
            "Size of RSS in bytes.",
            |sample| Some(sample.stats.memory_rss_bytes as f64),
        ),
        (
            "container_memory_swap",
            "gauge",
            "Container swap usage in bytes.",
            |sample| sample.stats.swap_usage_bytes.map(|bytes| bytes as f64),
        ),
        (
            "container_memory_usage_bytes",
            "gauge",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            |sample| Some(sample.stats.memory_usage_bytes as f64),
        ),
        (
            "container_memory_working_set_bytes",
            "gauge",
            "Current working set in bytes.",
            |sample| Some(sample.stats.memory_working_set_bytes as f64),
        ),
        (
            "container_processes",
            "gauge",
            "Number of processes running inside the container.",
            |sample| Some(sample.stats.process_count as f64),
        ),
        (
            "container_spec_memory_limit_bytes",
            "gauge",
            "Memory limit for the container.",
            |sample| Some(sample.stats.memory_limit_bytes.unwrap_or(0) as f64),
        ),
        (
            "container_start_time_seconds",
            "gauge",
            "Start time of the container since unix epoch in seconds.",
            |sample| Some(since_epoch(sample.started_at).as_secs_f64()),
        ),
    ];
    for (name, kind, help, value) in of_containers {
        text.family(name, kind, help);
        for (pod, sample) in containers(samples) {
            let mut labels = vec![
                ("container", sample.name.as_str()),
                ("id", &sample.id),
                ("image", &sample.image),
                ("name", sample.id.split_once("://").map_or("", |(_, id)| id)),
                ("namespace", &pod.namespace),
                ("pod", &pod.name),
            ];
            if name == "container_cpu_usage_seconds_total" {
                labels.insert(1, ("cpu", "total"));
            }
            if let Some(value) = value(sample) {
                text.timed(name, &Labels(&labels), value, sample.stats.at);
            }
        }
    }
    networks(&mut text, samples);
    text.family("machine_cpu_cores", "gauge", "Number of logical CPU cores.");
    text.sample("machine_cpu_cores", &NONE, cores);
    let name = "machine_memory_bytes";
    text.family(name, "gauge", "Amount of memory installed on the machine.");
    text.sample(name, &NONE, memory.total);
    text.0
}

fn networks(text: &mut Text, samples: &Samples) {
    let interfaces: Vec<_> = samples
        .pods
        .iter()
        .filter_map(|pod| Some((pod, pod_interfaces(pod.sandbox.as_ref()?)?)))
        .collect();
    let rows: [(&str, &str, OfInterface); 8] = [
        (
            "container_network_receive_bytes_total",
            "Cumulative count of bytes received",
            |i| i.rx_bytes,
        ),
        (
            "container_network_receive_errors_total",
            "Cumulative count of errors encountered while receiving",
            |i| i.rx_errors,
        ),
        (
            "container_network_receive_packets_dropped_total",
            "Cumulative count of packets dropped while receiving",
            |i| i.rx_dropped,
        ),
        (
            "container_network_receive_packets_total",
            "Cumulative count of packets received",
            |i| i.rx_packets,
        ),
        (
            "container_network_transmit_bytes_total",
            "Cumulative count of bytes transmitted",
            |i| i.tx_bytes,
        ),
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
            |i| i.tx_errors,
        ),
        (
            "container_network_transmit_packets_dropped_total",
            "Cumulative count of packets dropped while transmitting",
            |i| i.tx_dropped,
        ),
        (
            "container_network_transmit_packets_total",
            "Cumulative count of packets transmitted",
            |i| i.tx_packets,
        ),
    ];
    for (name, help, value) in rows {
        text.family(name, "counter", help);
        for (pod, interfaces) in &interfaces {
            for interface in interfaces {
                let labels = [
                    ("interface", interface.name.as_str()),
                    ("namespace", &pod.namespace),
                    ("pod", &pod.name),
                ];
                text.sample(name, &Labels(&labels), value(interface));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let labels = Labels(&[("a", "one"), ("b", "\"two\"\\\n")]);
        assert_eq!(labels.to_string(), r#"{a="one",b="\"two\"\\\n"}"#);
        assert_eq!(NONE.to_string(), "");
    }

    #[test]
    fn a_runtime_that_did_not_answer_is_told() {
        let samples = Samples {
            pods: Vec::new(),
            has_errors: true,
        };
        let memory = node::Memory::default();
        let at = SystemTime::UNIX_EPOCH;
        let text = render_resource(&samples, Some(2_000_000_000), memory, at);
        assert!(text.contains("\nresource_scrape_error 1 0\n"), "{text}");
        assert!(
            text.contains("\nnode_cpu_usage_seconds_total 2 0\n"),
            "{text}"
        );
    }
}

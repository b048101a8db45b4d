//! `metrics.k8s.io`: what nodes and pods use, as their kubelets say in `/stats/summary`.
//!
//! A kubelet is asked at most once in fifteen seconds, whoever asks here and however many at a time. One that does not
//! answer in time is left out, as are pods and nodes of which there are no figures yet: metrics-server does so too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use serde_json::{Value, json};
use wherry_api::{Resource, Status, meta, quantity::Quantity};

use crate::{App, computed::Chosen, stored, subresources, verbs::store_status};

/// How long figures are good.
const FRESH: Duration = Duration::from_secs(15);
/// For one kubelet to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Kubelets that are asked at a time.
const CONCURRENT_MAX: usize = 16;
/// Of one kubelet's answer: a thousand pods with ten containers each.
const SUMMARY_BYTES_MAX: usize = 16 << 20;
/// Over which a kubelet takes the mean, where two of its answers do not tell.
const WINDOW_SECONDS: f64 = 10.0;

/// The last answers of all kubelets.
#[derive(Default)]
pub(crate) struct NodeMetrics(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Answers>>>>);

#[derive(Default)]
struct Answers {
    asked: Option<Instant>,
    /// `None`: it did not answer.
    last: Option<Arc<Value>>,
    before: Option<Arc<Value>>,
}

/// What a kubelet says, and what it said the time before.
#[derive(Clone)]
struct Summary {
    now: Arc<Value>,
    before: Option<Arc<Value>>,
}

impl NodeMetrics {
    fn of(&self, node: &str) -> Arc<tokio::sync::Mutex<Answers>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(node.to_owned()).or_default().clone()
    }

    fn retain(&self, nodes: &[Value]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|name, _| nodes.iter().any(|node| meta::name(node) == name));
    }
}

fn row(plural: &str) -> &'static Resource {
    wherry_api::find("", "v1", plural).expect("a row")
}

async fn load_all(app: &App, plural: &str, namespace: &str) -> Result<Vec<Value>, Status> {
    let resource = row(plural);
    let prefix = stored::collection(resource, namespace);
    let listed = app.store.list(&prefix, None, 0, 0).await;
    let listed = listed.map_err(|error| store_status(resource, "", error))?;
    Ok(listed.items.iter().map(stored::decode).collect())
}

async fn ask(app: &App, node: &Value) -> Option<Summary> {
    let name = meta::name(node);
    let answers = app.node_metrics.of(name);
    // Others who ask meanwhile wait for the one answer.
    let mut answers = answers.lock().await;
    if answers.asked.is_none_or(|asked| asked.elapsed() >= FRESH) {
        let path = "/stats/summary?only_cpu_and_memory=true";
        let asked = subresources::ask_kubelet(app, name, node, path, SUMMARY_BYTES_MAX);
        let answer = match tokio::time::timeout(TIMEOUT, asked).await {
            Ok(Ok(bytes)) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
            Ok(Err(status)) => Err(status.message),
            Err(_) => Err("no answer in time".to_owned()),
        };
        answers.asked = Some(Instant::now());
        match answer {
            Ok(summary) => {
                answers.before = answers.last.take();
                answers.last = Some(Arc::new(summary));
            }
            Err(error) => {
                tracing::debug!(node = name, %error, "Kubelet gave no figures");
                answers.last = None;
            }
        }
    }
    Some(Summary {
        now: answers.last.clone()?,
        before: answers.before.clone(),
    })
}

/// What the kubelets of these nodes say, by the names of the nodes.
async fn ask_all(app: &App, nodes: &[&Value]) -> HashMap<String, Summary> {
    let asked: Vec<_> = nodes
        .iter()
        .map(|node| {
            async move { Some((meta::name(node).to_owned(), ask(app, node).await?)) }.boxed()
        })
        .collect();
    let answers = stream::iter(asked).buffer_unordered(CONCURRENT_MAX);
    answers
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .flatten()
        .collect()
}

/// Metrics of the nodes chosen.
pub(crate) async fn nodes(app: &App, chosen: &Chosen) -> Result<Vec<Value>, Status> {
    let nodes = load_all(app, "nodes", "").await?;
    app.node_metrics.retain(&nodes);
    let nodes: Vec<&Value> = nodes
        .iter()
        .filter(|node| chosen.has("nodes", node))
        .collect();
    let summaries = ask_all(app, &nodes).await;
    let found = nodes
        .into_iter()
        .filter_map(|node| of_node(node, summaries.get(meta::name(node))?));
    Ok(found.collect())
}

/// Metrics of the pods chosen.
pub(crate) async fn pods(app: &App, chosen: &Chosen) -> Result<Vec<Value>, Status> {
    let mut pods = load_all(app, "pods", &chosen.namespace).await?;
    pods.retain(|pod| chosen.has("pods", pod));
    if pods.is_empty() && !chosen.name.is_empty() {
        return Err(Status::not_found(row("pods"), &chosen.name));
    }
    let nodes = load_all(app, "nodes", "").await?;
    app.node_metrics.retain(&nodes);
    let on = |node: &Value| {
        pods.iter().any(|pod| {
            pod.pointer("/spec/nodeName").and_then(Value::as_str) == Some(meta::name(node))
        })
    };
    let nodes: Vec<&Value> = nodes.iter().filter(|node| on(node)).collect();
    let summaries = ask_all(app, &nodes).await;
    let found = pods.iter().filter_map(|pod| {
        let node = pod.pointer("/spec/nodeName")?.as_str()?;
        of_pod(pod, summaries.get(node)?)
    });
    Ok(found.collect())
}

/// Cells of a table.
pub(crate) fn cells(object: &Value) -> Vec<Value> {
    let containers = object["containers"].as_array().map(Vec::as_slice);
    let usages: Vec<&Value> = match containers {
        Some(containers) => containers
            .iter()
            .map(|container| &container["usage"])
            .collect(),
        None => vec![&object["usage"]],
    };
    let total = |name: &str| {
        usages
            .iter()
            .filter_map(|usage| Quantity::parse(usage[name].as_str()?).ok())
            .reduce(|sum, amount| sum + amount)
            .unwrap_or(Quantity::ZERO)
            .to_string()
    };
    vec![
        meta::name(object).into(),
        total("cpu").into(),
        total("memory").into(),
        object["window"].clone(),
    ]
}

/// CPU and memory of one thing at one time.
struct Usage {
    time: String,
    window_seconds: f64,
    usage: Value,
}

fn seconds_between(before: &Value, now: &Value) -> Option<f64> {
    let time = |stats: &Value| meta::parse_time(stats.pointer("/cpu/time")?.as_str()?);
    let passed = time(now)?.duration_since(time(before)?).as_secs_f64();
    (passed > 0.0).then_some(passed)
}

/// `before` are the same thing's figures of the time before.
fn usage(now: &Value, before: Option<&Value>) -> Option<Usage> {
    let total = |stats: &Value| stats.pointer("/cpu/usageCoreNanoSeconds")?.as_u64();
    let told = now.pointer("/cpu/usageNanoCores").and_then(Value::as_u64);
    let (nano_cores, window_seconds) = match told {
        Some(nano_cores) => (nano_cores, WINDOW_SECONDS),
        None => {
            let before = before?;
            let passed = seconds_between(before, now)?;
            // A total that fell is that of another container of the same name.
            let used = total(now)?.checked_sub(total(before)?)?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a rate below 2^53 nanocores, that is nine million cores"
            )]
            let rate = (used as f64 / passed) as u64;
            (rate, passed)
        }
    };
    let memory = now.pointer("/memory/workingSetBytes")?.as_u64()?;
    let time = now.pointer("/cpu/time")?.as_str()?.to_owned();
    let quantity = |text: String| Quantity::parse(&text).map_or(text, |amount| amount.to_string());
    let memory = if memory % 1024 == 0 {
        format!("{}Ki", memory / 1024)
    } else {
        memory.to_string()
    };
    Some(Usage {
        time,
        window_seconds,
        usage: json!({"cpu": quantity(format!("{nano_cores}n")), "memory": memory}),
    })
}

fn described(object: &Value, time: &str, window_seconds: f64) -> Value {
    let mut metadata = json!({
        "name": meta::name(object),
        "creationTimestamp": meta::format_time(Timestamp::now()),
    });
    if !meta::namespace(object).is_empty() {
        metadata["namespace"] = meta::namespace(object).into();
    }
    if let Some(labels) = object.pointer("/metadata/labels") {
        metadata["labels"] = labels.clone();
    }
    let time = meta::parse_time(time).map_or_else(|| time.to_owned(), meta::format_time);
    let window = format!("{}s", (window_seconds * 1000.0).round() / 1000.0);
    json!({"metadata": metadata, "timestamp": time, "window": window})
}

fn of_node(node: &Value, summary: &Summary) -> Option<Value> {
    let before = summary
        .before
        .as_ref()
        .and_then(|before| before.get("node"));
    let usage = usage(summary.now.get("node")?, before)?;
    let mut metrics = described(node, &usage.time, usage.window_seconds);
    metrics["usage"] = usage.usage;
    Some(metrics)
}

/// A pod in a summary. Static pods go by another uid at their kubelet.
fn find_pod<'a>(summary: &'a Value, pod: &Value) -> Option<&'a Value> {
    summary.get("pods")?.as_array()?.iter().find(|found| {
        let reference = &found["podRef"];
        reference["name"] == meta::name(pod) && reference["namespace"] == meta::namespace(pod)
    })
}

fn of_pod(pod: &Value, summary: &Summary) -> Option<Value> {
    let find_container = |stats: &Value, name: &Value| {
        let containers = stats.get("containers")?.as_array()?;
        containers
            .iter()
            .find(|found| found["name"] == *name)
            .cloned()
    };
    let stats = find_pod(&summary.now, pod)?;
    let before = summary
        .before
        .as_ref()
        .and_then(|before| find_pod(before, pod));
    let mut containers = Vec::new();
    let mut oldest: Option<(String, f64)> = None;
    for container in stats.get("containers")?.as_array()? {
        let name = &container["name"];
        let before = before.and_then(|before| find_container(before, name));
        let Some(usage) = usage(container, before.as_ref()) else {
            continue;
        };
        containers.push(json!({"name": name, "usage": usage.usage}));
        if oldest.as_ref().is_none_or(|(time, _)| usage.time < *time) {
            oldest = Some((usage.time, usage.window_seconds));
        }
    }
    let (time, window) = oldest?;
    let mut metrics = described(pod, &time, window);
    metrics["containers"] = containers.into();
    Some(metrics)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(name: &str, time: &str, total: u64, nano_cores: Option<u64>) -> Value {
        let mut stats = json!({
            "name": name,
            "cpu": {"time": time, "usageCoreNanoSeconds": total},
            "memory": {"workingSetBytes": 2048},
        });
        if let Some(nano_cores) = nano_cores {
            stats["cpu"]["usageNanoCores"] = nano_cores.into();
        }
        stats
    }

    fn summary(containers: Value) -> Arc<Value> {
        Arc::new(
            json!({"pods": [{"podRef": {"name": "a", "namespace": "ns"}, "containers": containers}]}),
        )
    }

    #[test]
    fn a_pod_shows_the_containers_of_which_there_are_figures() {
        let pod = json!({"metadata": {"name": "a", "namespace": "ns", "labels": {"x": "y"}}});
        let (early, late) = ("2024-01-01T00:00:00Z", "2024-01-01T00:00:20Z");
        let before = summary(json!([
            stats("rated", early, 1_000, None),
            stats("reborn", early, 9_000, None)
        ]));
        let now = summary(json!([
            stats("told", late, 0, Some(250_000_000)),
            stats("rated", late, 20_000_001_000, None),
            stats("reborn", late, 10, None),
            stats("new", late, 10, None),
        ]));
        let found = of_pod(
            &pod,
            &Summary {
                now: now.clone(),
                before: Some(before),
            },
        )
        .unwrap();
        assert_eq!(
            found["containers"],
            json!([
                {"name": "told", "usage": {"cpu": "250m", "memory": "2Ki"}},
                {"name": "rated", "usage": {"cpu": "1", "memory": "2Ki"}},
            ])
        );
        assert_eq!(
            (&found["timestamp"], &found["window"]),
            (&json!(late), &json!("10s"))
        );
        assert_eq!(found["metadata"]["labels"], json!({"x": "y"}));
        assert_eq!(
            cells(&found),
            [json!("a"), json!("1250m"), json!("4Ki"), json!("10s")]
        );
        let other = json!({"metadata": {"name": "b", "namespace": "ns"}});
        assert!(of_pod(&other, &Summary { now, before: None }).is_none());
    }
}

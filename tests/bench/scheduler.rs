//! The scheduler: 5,000 pods over hollow nodes, first by its decisions alone, then through the API.
//!
//! A hollow node is a Node object whose Lease this program renews, and whose pods it reports Running. The decisions are
//! the scheduler's own, made in this process without an API server, from reading a pod to counting it in on its node.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet};
use wherry_controllers::Decider;

use crate::{control::Control, host, pods};

/// Pods that are scheduled in each run.
const PODS: usize = 5_000;
/// Requests that this program has under way.
const CLIENTS: usize = 32;
/// How often a kubelet renews its lease.
const LEASE_PERIOD: Duration = Duration::from_secs(10);
/// How long all pods may take together.
const PATIENCE: Duration = Duration::from_secs(300);

/// What it is called, how many nodes there are, and what the pod of a number is.
type Run = (&'static str, usize, fn(usize) -> Value);

const RUNS: [Run; 3] = [
    ("plain pods, 100 nodes", 100, plain),
    ("plain pods, 1,000 nodes", 1_000, plain),
    ("pods kept apart, 1,000 nodes", 1_000, apart),
];

/// The same of decisions alone. Kept apart: spread over zones, and no two of an app on a host.
const DECISIONS: [Run; 6] = [
    ("plain pods, 100 nodes", 100, plain),
    ("plain pods, 1,000 nodes", 1_000, plain),
    ("plain pods, 5,000 nodes", 5_000, plain),
    ("pods kept apart, 100 nodes", 100, apart),
    ("pods kept apart, 1,000 nodes", 1_000, apart),
    ("pods kept apart, 5,000 nodes", 5_000, apart),
];

/// What one run found.
struct Found {
    /// Create to bound, each pod.
    each: Vec<Duration>,
    /// First create to last bound.
    total: Duration,
    /// CPU time of the whole control plane.
    cpu: Duration,
}

/// Measures the scheduler.
pub(crate) fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    decisions()?;
    println!(
        "\n| {PODS} pods, create → bound on a watch | Median | Spread (p10–p90) | p99 | n |\n|---|---|---|---|---|"
    );
    let mut totals = Vec::new();
    for (name, nodes, spec) in RUNS {
        eprintln!("scheduler: {name}");
        let found = runtime.block_on(measure(nodes, spec))?;
        host::row(name, &found.each);
        totals.push((name, found));
    }
    println!(
        "\n| Run | pods/s, first create to last bound | CPU of the control plane per pod |\n|---|---|---|"
    );
    for (name, found) in totals {
        println!(
            "| {name} | {:.0} | {:.0} µs |",
            PODS as f64 / found.total.as_secs_f64(),
            found.cpu.as_secs_f64() * 1e6 / PODS as f64
        );
    }
    Ok(())
}

/// Measures decisions.
fn decisions() -> Result<()> {
    println!(
        "| {PODS} decisions in this process | Median | Spread (p10–p90) | p99 | n |\n|---|---|---|---|---|"
    );
    let mut rates = Vec::new();
    for (name, nodes, spec) in DECISIONS {
        let mut decider = Decider::default();
        for number in 0..nodes {
            decider.set_node(&serde_json::from_value(node(number))?);
        }
        let pods = (0..PODS).map(|number| serde_json::from_value(pod(number, spec)));
        let pods: Vec<Pod> = pods.collect::<Result<_, _>>()?;
        let begun = Instant::now();
        for pod in &pods {
            decider.set_pod(pod);
        }
        let mut each = Vec::with_capacity(PODS);
        loop {
            let asked = Instant::now();
            let Some((pod, decided)) = decider.decide() else {
                break;
            };
            each.push(asked.elapsed());
            decided
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("{name}: pod {pod}"))?;
        }
        let total = begun.elapsed();
        ensure!(each.len() == PODS, "{name}: {} decisions", each.len());
        host::fine_row(name, &each);
        rates.push((name, PODS as f64 / total.as_secs_f64()));
    }
    println!("\n| Decisions | pods/s, pods read and decided |\n|---|---|");
    for (name, rate) in rates {
        println!("| {name} | {rate:.0} |");
    }
    Ok(())
}

fn plain(_: usize) -> Value {
    json!({ "containers": [{
        "name": "c", "image": "hollow", "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } },
    }] })
}

/// Pods of fifty apps, of which no two of one are on one host.
fn apart(number: usize) -> Value {
    let selector = json!({ "matchLabels": { "app": app(number) } });
    let mut spec = plain(number);
    spec["affinity"] = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
        { "topologyKey": "kubernetes.io/hostname", "labelSelector": selector },
    ] } });
    spec["topologySpreadConstraints"] = json!([{
        "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": selector,
    }]);
    spec
}

fn app(number: usize) -> String {
    format!("app-{}", number % 50)
}

fn pod(number: usize, spec: fn(usize) -> Value) -> Value {
    let name = format!("p{number}");
    json!({
        "metadata": { "name": name, "namespace": "default", "uid": name, "labels": { "app": app(number) } },
        "spec": spec(number),
    })
}

fn node_name(number: usize) -> String {
    format!("hollow-{number}")
}

fn node(number: usize) -> Value {
    let name = node_name(number);
    json!({
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("z{}", number % 3),
        } },
        "status": {
            "capacity": { "cpu": "32", "memory": "256Gi", "pods": "500" },
            "allocatable": { "cpu": "32", "memory": "256Gi", "pods": "500" },
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }],
        },
    })
}

async fn measure(nodes: usize, spec: fn(usize) -> Value) -> Result<Found> {
    let control = Control::start(&[])?;
    let client = pods::client(&control.kubeconfig()).await?;
    let names: Arc<Vec<String>> = Arc::new((0..nodes).map(node_name).collect());
    make_nodes(&client, nodes).await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    renew_all(&leases, &names).await;
    // What making nodes has set in motion is no part of what is measured.
    control.calm().await?;
    let mut hollow = JoinSet::new();
    hollow.spawn(renew(leases, names));
    let (bound, running) = mpsc::channel(PODS);
    hollow.spawn(report_running(client.clone(), running));

    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let revision = api.list(&ListParams::default().limit(1)).await?;
    let revision = revision.metadata.resource_version.context("a revision")?;
    let params = WatchParams::default().timeout(290);
    let mut events = api.watch(&params, &revision).await?.boxed();
    let before = control.cpu()?;
    let start = Instant::now();
    let mut seen: HashMap<String, Instant> = HashMap::new();
    let watched = async {
        while seen.len() < PODS {
            let event = events.try_next().await?.context("the watch goes on")?;
            let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else {
                continue;
            };
            let name = pod.metadata.name.unwrap_or_default();
            if pod.spec.is_some_and(|spec| spec.node_name.is_some()) && !seen.contains_key(&name) {
                seen.insert(name.clone(), Instant::now());
                bound.send(name).await?;
            }
        }
        anyhow::Ok(())
    };
    let both = async { tokio::try_join!(create(api.clone(), spec), watched) };
    let (created, ()) = tokio::time::timeout(PATIENCE, both)
        .await
        .context("all pods get a node")??;
    let total = start.elapsed();
    let cpu = control.cpu()? - before;
    let each = seen
        .iter()
        .filter_map(|(name, bound)| Some(bound.duration_since(*created.get(name)?)))
        .collect();
    hollow.shutdown().await;
    Ok(Found { each, total, cpu })
}

/// Creates the pods, and gives the time at which each create was asked for.
async fn create(api: Api<Pod>, spec: fn(usize) -> Value) -> Result<HashMap<String, Instant>> {
    stream::iter(0..PODS)
        .map(|number| {
            let api = api.clone();
            async move {
                let pod: Pod = serde_json::from_value(pod(number, spec))?;
                let name = pod.metadata.name.clone().unwrap_or_default();
                let asked = Instant::now();
                api.create(&PostParams::default(), &pod).await?;
                anyhow::Ok((name, asked))
            }
        })
        .buffer_unordered(CLIENTS)
        .try_collect()
        .await
}

async fn make_nodes(client: &Client, count: usize) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let make = |number: usize| {
        let nodes = nodes.clone();
        async move {
            let wanted: Node = serde_json::from_value(node(number))?;
            nodes.create(&PostParams::default(), &wanted).await?;
            let status = Patch::Strategic(json!({ "status": wanted.status }));
            nodes
                .patch_status(&node_name(number), &PatchParams::default(), &status)
                .await?;
            anyhow::Ok(())
        }
    };
    stream::iter(0..count)
        .map(make)
        .buffer_unordered(CLIENTS)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

/// Renews the nodes' leases until it is stopped; one that fails is renewed the next time.
async fn renew(leases: Api<Lease>, names: Arc<Vec<String>>) {
    loop {
        tokio::time::sleep(LEASE_PERIOD).await;
        renew_all(&leases, &names).await;
    }
}

async fn renew_all(leases: &Api<Lease>, names: &[String]) {
    let renew = |name: &String| {
        let (leases, name) = (leases.clone(), name.clone());
        async move {
            let now = k8s_openapi::jiff::Timestamp::now();
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "spec": {
                    "holderIdentity": name, "leaseDurationSeconds": 40,
                    "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
                },
            });
            let params = PatchParams::apply("hollow").force();
            if let Err(error) = leases.patch(&name, &params, &Patch::Apply(lease)).await {
                eprintln!("lease of {name}: {error}");
            }
        }
    };
    stream::iter(names.iter())
        .map(renew)
        .buffer_unordered(CLIENTS)
        .collect::<()>()
        .await;
}

/// Says of pods that they run, as their nodes would.
async fn report_running(client: Client, mut bound: mpsc::Receiver<String>) {
    let pods: Api<Pod> = Api::default_namespaced(client);
    let names = stream::poll_fn(move |context| bound.poll_recv(context));
    names
        .map(|name| {
            let pods = pods.clone();
            async move {
                let status = json!({ "status": {
                    "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
                } });
                let patch = Patch::Strategic(status);
                if let Err(error) = pods
                    .patch_status(&name, &PatchParams::default(), &patch)
                    .await
                {
                    eprintln!("status of {name}: {error}");
                }
            }
        })
        .buffer_unordered(CLIENTS)
        .collect::<()>()
        .await;
}

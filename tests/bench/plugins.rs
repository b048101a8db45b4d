//! Plugins: what a call of a fresh or a kept instance takes, and what probes cost a node, beside exec probes of containers and a
//! request without a plugin.
//!
//! Calls are made by the plugin host in this process to a worker of the program that is measured; what the worker
//! itself takes of a call is its own count of CPU time. The node's cost is that of its own processes, and of what they
//! had run.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use nix::{
    sched::{CloneFlags, setns},
    time::{ClockId, clock_gettime},
};
use wherry_plugin_host::{
    Exec, FailurePolicy, Grants, HostConfig, Limits, PluginHost, PluginSpec, ProbeResult,
    ProbeTarget,
};
use wherry_tests::{Cluster, eventually, guest, made_by_run_sh};

use crate::host::fine_row as row;

/// Calls of each kind.
const CALLS: usize = 1000;
/// Pods that are probed, each ten times a second.
const PODS: usize = 10;
/// How long a node's probes are watched.
const WATCHED: Duration = Duration::from_secs(25);
/// Plugins that are loaded, and calls that are under way, for what one of them takes.
const AT_ONCE: usize = 50;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// A container that has run every command already.
struct Done;

#[async_trait]
impl Exec for Done {
    async fn exec(&self, _: &[String], _: Duration) -> Result<(i32, Vec<u8>), Option<String>> {
        Ok((0, Vec::new()))
    }
}

pub(crate) fn run() -> Result<()> {
    println!("| What | Median | Spread (p10–p90) | p99 | n |\n|---|---|---|---|---|");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(calls())?;
    drop(runtime);
    node()
}

/// Answers every request on loopback; gives the port.
fn serve(listener: TcpListener) -> Result<u16> {
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(ANSWER);
        }
    });
    Ok(port)
}

/// The same request without anything around it.
fn get(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "an answer");
    Ok(())
}

fn thread_cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

async fn calls() -> Result<()> {
    let directory = tempfile::tempdir()?;
    // The worker's user has to get to its jail.
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), readable)?;
    let config = HostConfig::new(
        directory.path(),
        &directory.path().join("run"),
        wherry_tests::wherry(),
    );
    let plugins = PluginHost::open(config.clone())?;
    let spec = PluginSpec {
        name: "bare".into(),
        digest: "sha256:bench".into(),
        grants: Grants {
            exec: true,
            ..Grants::default()
        },
        limits: Limits::default(),
        failure_policy: FailurePolicy::Fail,
        config: Default::default(),
    };
    // The first brings up a worker, and asks the compiler which engine it is.
    let first = Instant::now();
    plugins
        .install(spec.clone(), &guest("probe_plugin"))
        .await?;
    let first = first.elapsed();
    let mut compiled = Vec::new();
    let mut loaded = Vec::new();
    for n in 0..10 {
        let fresh = PluginSpec {
            digest: format!("sha256:{n}"),
            ..spec.clone()
        };
        let begun = Instant::now();
        plugins.install(fresh, &guest("probe_plugin")).await?;
        compiled.push(begun.elapsed());
        let begun = Instant::now();
        plugins
            .install(spec.clone(), &guest("probe_plugin"))
            .await?;
        loaded.push(begun.elapsed());
    }
    row(
        "install a plugin of 120 KB that was never compiled",
        &compiled,
    );
    row("install one that was", &loaded);
    let port = serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)?;
    let at = [format!("--port={port}")];
    let get_at = [format!("--port={port}"), "--path=/".into()];
    for (name, arguments) in [
        ("bare", &["succeed".to_owned()][..]),
        ("exec", &["true".to_owned()][..]),
        ("tcp-socket", &at[..]),
        ("http-get", &get_at[..]),
    ] {
        let (took, cpu) = measure(&plugins, name, arguments).await?;
        // Built-in probes are called again, others are made anew for each call.
        let instance = match name {
            "bare" => "fresh",
            _ => "kept",
        };
        row(
            &format!("{name}: {instance} instance, CPU time of the worker's call"),
            &cpu,
        );
        row(&format!("{name}: the call as its caller sees it"), &took);
    }
    let mut native = Vec::new();
    let begun = thread_cpu()?;
    for _ in 0..CALLS {
        let begun = Instant::now();
        get(port)?;
        native.push(begun.elapsed());
    }
    let cpu = (thread_cpu()? - begun) / CALLS as u32;
    row(
        "the request of http-get without a plugin, for comparison",
        &native,
    );
    let bare_kib = plugins.stats("bare").unwrap_or_default().memory_bytes_peak >> 10;
    let (plugin, instance) = memory(&plugins, &spec).await?;
    println!(
        "\nFirst plugin of a node, worker's start included: {first:.1?}. CPU time of the bare request: {cpu:.1?}, of which \
         100 a second are {:.2} % of a core. Linear memory and tables of a bare call's instance: {bare_kib} KiB.",
        cpu.as_secs_f64() * 1e4,
    );
    println!(
        "\n| Private memory of the plugin worker ({AT_ONCE} measured) | |\n|---|---|\n\
         | each further plugin, loaded | {plugin:.0} KiB |\n\
         | each further call of http-get that waits for its answer, connection included | {instance:.0} KiB |"
    );
    Ok(())
}

/// What a further plugin, and a further instance that waits, take of the worker, KiB.
async fn memory(plugins: &Arc<PluginHost>, spec: &PluginSpec) -> Result<(f64, f64)> {
    let pid = plugins.worker_pid().await.context("a worker")?;
    let each = |before: f64, after: f64| (after - before) / AT_ONCE as f64;
    let before = private_kib(pid)?;
    for n in 0..AT_ONCE {
        let another = PluginSpec {
            name: format!("another-{n}"),
            digest: format!("sha256:another-{n}"),
            ..spec.clone()
        };
        plugins.install(another, &guest("probe_plugin")).await?;
    }
    let plugin = each(before, private_kib(pid)?);
    // It takes connections, and nobody is there.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = silent.local_addr()?.port();
    let before = private_kib(pid)?;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let plugins = Arc::clone(plugins);
        calls.spawn(async move {
            let arguments = [format!("--port={port}")];
            let time = Duration::from_secs(20);
            plugins
                .check("http-get", &arguments, &loopback(), time, &Done)
                .await
        });
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    anyhow::ensure!(calls.try_join_next().is_none(), "all calls wait");
    Ok((plugin, each(before, private_kib(pid)?)))
}

fn loopback() -> ProbeTarget {
    ProbeTarget {
        ip: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        ..ProbeTarget::default()
    }
}

/// Calls one after the other: how long each took, and the worker's CPU time of it.
async fn measure(
    plugins: &Arc<PluginHost>,
    name: &str,
    arguments: &[String],
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let target = loopback();
    let (mut took, mut cpu) = (Vec::new(), Vec::new());
    let spent = || plugins.stats(name).unwrap_or_default().cpu_time_total;
    for _ in 0..CALLS {
        let before = spent();
        let begun = Instant::now();
        let said = plugins
            .check(name, arguments, &target, Duration::from_secs(10), &Done)
            .await;
        took.push(begun.elapsed());
        anyhow::ensure!(said.result == ProbeResult::Success, "{name}: {said:?}");
        cpu.push(spent().saturating_sub(before));
    }
    // The first brings the plugin in.
    took.remove(0);
    cpu.remove(0);
    Ok((took, cpu))
}

fn private_kib(pid: u32) -> Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    let kib = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Ok(kib.sum())
}

/// CPU time that a node's processes have used so far, by what they are; for what they had run, too.
#[derive(Default)]
struct Spent(BTreeMap<&'static str, Duration>);

impl Spent {
    fn take(cluster: &Cluster) -> Result<Self> {
        let root = cluster.root().to_string_lossy().into_owned();
        let node = cluster.pid();
        let mut spent = Self::default();
        for entry in fs::read_dir("/proc")?.flatten() {
            let read = |file| fs::read(entry.path().join(file)).ok();
            let (Some(stat), Some(command)) = (read("stat"), read("cmdline")) else {
                continue;
            };
            let command = String::from_utf8_lossy(&command).into_owned();
            let stat = String::from_utf8_lossy(&stat).into_owned();
            // From after the command's closing bracket: state, parent; the times are fields 11 to 14.
            let fields: Vec<&str> = stat
                .rsplit(')')
                .next()
                .unwrap_or_default()
                .split_whitespace()
                .collect();
            let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
            let is_node = entry.file_name().to_str() == Some(&node.to_string());
            let what = if is_node {
                "control plane and agent"
            } else if number(1) == Some(node.into()) && command.contains("plugin-worker") {
                "plugin worker"
            } else if command.contains(&root) || number(1) == Some(node.into()) {
                "pods' supervisors and workers, and what they ran"
            } else {
                continue;
            };
            // Linux counts in hundredths of a second on every machine this runs on.
            let ticks: u64 = (11..=14).filter_map(number).sum();
            *spent.0.entry(what).or_default() += Duration::from_millis(ticks * 10);
        }
        Ok(spent)
    }

    fn since(&self, before: &Self) -> BTreeMap<&'static str, Duration> {
        let each = self.0.iter().map(|(what, used)| {
            let before = before.0.get(what).copied().unwrap_or_default();
            (*what, used.saturating_sub(before))
        });
        each.collect()
    }
}

/// Checks that the node's agent has counted.
fn checks(cluster: &Cluster) -> u64 {
    let node = cluster.field("", "nodes", ".items[0].metadata.name");
    let path = format!("/api/v1/nodes/{node}/proxy/metrics/probes");
    let metrics = cluster.kubectl(&["get", "--raw", &path]);
    let counts = metrics
        .lines()
        .filter(|line| line.starts_with("prober_probe_total{"));
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

/// Pods whose readiness is asked ten times a second.
fn pods(kind: &Kind) -> String {
    let pod = |n| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: probed-{n}, annotations: {{wherry.dev/probe-period-ms: '100'}}}}\n\
             spec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - name: c\n    image: {}\n    \
             args: {}\n    imagePullPolicy: Never\n    readinessProbe: {{{}}}\n",
            kind.image, kind.args, kind.probe
        )
    };
    (0..PODS).map(pod).collect::<Vec<_>>().join("---\n")
}

/// What is probed, and how.
struct Kind {
    name: &'static str,
    image: &'static str,
    args: &'static str,
    probe: String,
}

fn node() -> Result<()> {
    let cluster = Cluster::start_with(&["--log", "warn"]);
    cluster.import(&guest("sleeper"), "bench/sleeper:1");
    cluster.import(&made_by_run_sh("WHERRY_IMAGE_BUSYBOX"), "bench/busybox:1");
    let namespace = fs::File::open(format!("/run/netns/{}", cluster.network.name()))?;
    let (sender, receiver) = std::sync::mpsc::channel();
    // Only this thread, and those it starts, are in the node's network.
    thread::spawn(move || {
        let listen = || -> Result<u16> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            serve(TcpListener::bind(SocketAddr::from((
                Ipv4Addr::LOCALHOST,
                0,
            )))?)
        };
        let _ = sender.send(listen());
    });
    let port = receiver.recv()??;
    println!(
        "\n| {PODS} pods probed every 100 ms, for {} s | Checks a second | CPU, share of a core | CPU of a check |\n|---|---|---|---|",
        WATCHED.as_secs()
    );
    for kind in [
        Kind {
            name: "httpGet, by its plugin",
            image: "bench/sleeper:1",
            args: "[]",
            probe: format!("httpGet: {{host: 127.0.0.1, port: {port}}}"),
        },
        Kind {
            name: "exec of `true` in busybox (OCI)",
            image: "bench/busybox:1",
            args: "[sleep, '100000']",
            probe: "exec: {command: ['true']}".into(),
        },
    ] {
        watch(&cluster, &kind)?;
    }
    Ok(())
}

fn watch(cluster: &Cluster, kind: &Kind) -> Result<()> {
    cluster.apply(&pods(kind));
    for n in 0..PODS {
        cluster.wait_ready("default", &format!("probed-{n}"));
    }
    thread::sleep(Duration::from_secs(2));
    let checks_before = checks(cluster);
    let (begun, before) = (Instant::now(), Spent::take(cluster)?);
    thread::sleep(WATCHED);
    let (took, spent) = (begun.elapsed(), Spent::take(cluster)?.since(&before));
    let made = checks(cluster) - checks_before;
    let share = |cpu: &Duration| 100.0 * cpu.as_secs_f64() / took.as_secs_f64();
    let all: Duration = spent.values().sum();
    let parts = spent
        .iter()
        .map(|(what, cpu)| format!("{what} {:.2} %", share(cpu)));
    println!(
        "| {} | {:.0} | {:.2} % ({}) | {:.0} µs |",
        kind.name,
        made as f64 / took.as_secs_f64(),
        share(&all),
        parts.collect::<Vec<_>>().join(", "),
        all.as_secs_f64() * 1e6 / made as f64,
    );
    cluster.kubectl(&["delete", "pods", "--all", "--grace-period=0", "--force"]);
    eventually("the pods are gone", || {
        let left = cluster.kubectl(&["get", "pods", "-o", "name"]);
        left.trim().is_empty().then_some(()).ok_or(left)
    });
    Ok(())
}

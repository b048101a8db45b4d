//! Plugins: what a call of a fresh instance takes, and what probes cost a node.
//!
//! Calls are made by the plugin host in this process, which is built as the tests are, to a worker of the release; what
//! the worker itself takes of a call is its own count of CPU time. The node's cost is that of its own processes.

use std::{
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
use wherry_tests::{Cluster, guest};

use crate::host::fine_row as row;

/// Calls of each kind.
const CALLS: usize = 1000;
/// Pods that are probed, each ten times a second.
const PODS: usize = 10;
/// How long a node's probes are watched.
const WATCHED: Duration = Duration::from_secs(30);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// A container of which nothing is wanted.
struct Nothing;

#[async_trait]
impl Exec for Nothing {
    async fn exec(&self, _: &[String], _: Duration) -> Result<(i32, Vec<u8>), Option<String>> {
        Err(None)
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
        ("tcp-socket", &at[..]),
        ("http-get", &get_at[..]),
    ] {
        let (took, cpu) = measure(&plugins, name, arguments).await?;
        row(
            &format!("{name}: fresh instance, CPU time of the worker's call"),
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
    let pid = plugins.worker_pid().await.context("a worker")?;
    println!(
        "\nFirst plugin of a node, worker's start included: {first:.1?}. CPU time of the bare request: {cpu:.1?}. Memory of \
         a bare call's instance: {} KiB; of the worker: {}.",
        plugins.stats("bare").unwrap_or_default().memory_bytes_peak >> 10,
        memory(pid)?,
    );
    Ok(())
}

/// Calls one after the other: how long each took, and the worker's CPU time of it.
async fn measure(
    plugins: &Arc<PluginHost>,
    name: &str,
    arguments: &[String],
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let target = ProbeTarget {
        ip: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        ..ProbeTarget::default()
    };
    let (mut took, mut cpu) = (Vec::new(), Vec::new());
    let spent = || plugins.stats(name).unwrap_or_default().cpu_time_total;
    for _ in 0..CALLS {
        let before = spent();
        let begun = Instant::now();
        let said = plugins
            .check(name, arguments, &target, Duration::from_secs(10), &Nothing)
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

fn memory(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    Ok(line
        .context("VmRSS")?
        .trim_start_matches("VmRSS:")
        .trim()
        .into())
}

/// CPU time of a process so far.
fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// The plugin worker of a node.
fn worker(node: u32) -> Option<u32> {
    let children = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent: u32 = stat
            .rsplit(')')
            .next()?
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()?;
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let is_it = parent == node && String::from_utf8_lossy(&command).contains("plugin-worker");
        is_it.then_some(pid)
    });
    children.last()
}

/// Pods whose readiness is asked ten times a second, all of one server outside of the node.
fn pods(port: u16) -> String {
    let pod = |n| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: probed-{n}, annotations: {{wherry.dev/probe-period-ms: '100'}}}}\n\
             spec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - name: c\n    image: bench/sleeper:1\n    \
             imagePullPolicy: Never\n    readinessProbe: {{httpGet: {{host: 127.0.0.1, port: {port}}}}}\n"
        )
    };
    (0..PODS).map(pod).collect::<Vec<_>>().join("---\n")
}

fn node() -> Result<()> {
    let cluster = Cluster::start_with(&["--log", "warn"]);
    cluster.import(&guest("sleeper"), "bench/sleeper:1");
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
    cluster.apply(&pods(port));
    for n in 0..PODS {
        cluster.wait_ready("default", &format!("probed-{n}"));
    }
    let node = cluster.pid();
    let worker = worker(node).context("a plugin worker")?;
    thread::sleep(Duration::from_secs(2));
    let begun = Instant::now();
    let before = (cpu(node)?, cpu(worker)?);
    thread::sleep(WATCHED);
    let after = (cpu(node)?, cpu(worker)?);
    let share = |cpu: Duration| 100.0 * cpu.as_secs_f64() / begun.elapsed().as_secs_f64();
    let (agent, plugins) = (share(after.0 - before.0), share(after.1 - before.1));
    println!(
        "\n{} httpGet probes a second over {WATCHED:?}: {:.2} % of a core ({agent:.2} % control plane and agent, \
         {plugins:.2} % plugin worker, {} resident)",
        PODS * 10,
        agent + plugins,
        memory(worker)?,
    );
    Ok(())
}

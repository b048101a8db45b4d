//! A node: starting pods of each kind, what they cost, and what idleness costs.

use std::time::Duration;

use anyhow::{Context, Result};
use wherry_tests::{Cluster, guest, made_by_run_sh};

use crate::{host, others, pods};

/// Pods started one after the other for the latency figures.
const SAMPLES: usize = 30;

/// Pods created at once.
const BURST: usize = 50;

/// How long idleness is watched.
const IDLE: Duration = Duration::from_secs(60);

/// The node's processes, and its engine's.
fn usage(cluster: &Cluster) -> Result<host::Usage> {
    let engine = cluster.engine.as_ref().map(wherry_tests::Engine::dir);
    host::Usage::take(cluster.root(), engine)
}

/// Measures a fresh node.
pub(crate) fn run() -> Result<()> {
    let mut cluster = Cluster::prepare(&["--max-pods", "500", "--log", "warn"]);
    cluster.add_engine();
    cluster.up();
    // This process, too, enters the node's network: the API server and the pods are there.
    let namespace = std::fs::File::open(format!("/run/netns/{}", cluster.network.name()))?;
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)
        .context("enter the node's network")?;
    cluster.import(&made_by_run_sh("WHERRY_IMAGE_BUSYBOX"), "bench/busybox:1");
    cluster.import(&guest("sleeper"), "bench/sleeper:1");

    println!("| What | Median | Spread (p10–p90) | p99 | n |\n|---|---|---|---|---|");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    host::row(
        "bare `unshare` of five namespaces, for comparison",
        &host::time_unshare(SAMPLES)?,
    );

    eprintln!("idle node, {} s", IDLE.as_secs());
    let idle = host::Usage::take(cluster.root(), None)?;
    std::thread::sleep(IDLE);
    let idle_after = host::Usage::take(cluster.root(), None)?;
    let with_engine = usage(&cluster)?;

    let client = runtime.block_on(pods::client(cluster.kubeconfig()))?;
    let engine = cluster.engine.as_ref().context("the node has an engine")?;
    let crun = others::crun_run(engine, SAMPLES)?;
    host::row("`crun run -d` of the same image", &crun);
    let docker = others::docker_run(engine, SAMPLES)?;
    host::row("`docker run -d` of the same image", &docker);
    let mut further = Vec::new();
    let mut ratios = Vec::new();
    for (name, image) in [
        ("OCI", pods::OCI),
        ("Docker", pods::DOCKER),
        ("Wasm", pods::WASM),
    ] {
        eprintln!("{name}: one pod at a time");
        let one = runtime.block_on(pods::one_at_a_time(&client, image, SAMPLES))?;
        host::row(
            &format!("{name} pod, warm image, create → Running on a watch"),
            &one,
        );
        ratios.push((name, host::median(&one)));
        eprintln!("{name}: {BURST} at once");
        let before = usage(&cluster)?;
        let burst = runtime.block_on(pods::at_once(&client, image, BURST))?;
        host::row(
            &format!("{name}: {BURST} at once, create → Running, each"),
            &burst,
        );
        let total = burst.iter().max().copied().unwrap_or_default();
        println!(
            "| {name}: {BURST} at once, all Running | {:.0} ms | – | – | 1 |",
            total.as_secs_f64() * 1e3
        );
        let after = usage(&cluster)?;
        further.push((name, after.per_pod(&before, BURST)));
        runtime.block_on(pods::delete_all(&client))?;
    }

    println!("\n| One pod, compared by medians | `crun run -d` | `docker run -d` |\n|---|---|---|");
    for (name, median) in &ratios {
        let times = |other: &[Duration]| median.as_secs_f64() / host::median(other).as_secs_f64();
        println!(
            "| {name} | {:.2} times | {:.2} times |",
            times(&crun),
            times(&docker)
        );
    }

    println!("\n| Process, idle, no pods | RSS | private |\n|---|---|---|");
    with_engine.print_processes();
    println!(
        "\n| Each further pod ({BURST} measured), all processes together | private memory |\n|---|---|"
    );
    for (name, bytes) in &further {
        println!("| {name} | {:.0} KiB |", bytes / 1024.0);
    }
    println!(
        "\n| Idle over {} s, all processes but the engine's | |\n|---|---|",
        IDLE.as_secs()
    );
    let (cpu, written) = idle_after.since(&idle);
    println!(
        "| CPU | {:.2} % of a core |",
        cpu.as_secs_f64() / IDLE.as_secs_f64() * 100.0
    );
    println!(
        "| bytes written to disk | {:.1} KiB ({:.0} MB a day) |",
        written / 1024.0,
        written / IDLE.as_secs_f64() * 86_400.0 / 1e6
    );
    cluster.down();
    Ok(())
}

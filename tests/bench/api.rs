//! The API server: durable creates on both stores, lists, a thousand watchers, and memory by the number of pods.
//!
//! The control plane is whole, controllers included. Its pods are about a kilobyte as they are sent, and name a scheduler
//! that is not here, so that nothing but the creates is written.

mod client;
mod etcd;
mod objects;

use std::{
    fs::File,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use hyper::Method;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::{control::Control, host};
use client::{Connection, Target};
use etcd::Etcd;
use objects::{NAMESPACE, collection};

/// Clients, and pods that they create together; in all as many as are listed afterwards.
const CREATES: [(usize, usize); 3] = [(1, 1_000), (20, 5_000), (200, 4_000)];
/// Writes of the yardstick.
const SYNCS: usize = 500;
/// Lists of each kind.
const LISTS: usize = 15;
const WATCHERS: usize = 1_000;
/// Single creates that all watchers see, and then a burst of them.
const WATCHED: usize = 20;
const BURST: usize = 200;
/// Pods stored when memory is read.
const STORED: [usize; 2] = [10_000, 50_000];
/// Clients that fill the store.
const FILLERS: usize = 20;
const NODES: usize = 100;
/// How long anything awaited may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What creates by a number of clients at a time have taken.
struct Creates {
    what: String,
    each: Vec<Duration>,
    total: Duration,
    /// CPU time of `wherry control`.
    server: Duration,
    /// CPU time of this program.
    own: Duration,
}

/// Measures the API server.
pub(crate) fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        creates_and_lists().await?;
        watches().await?;
        memory().await
    })
}

async fn creates_and_lists() -> Result<()> {
    let sent = objects::pod("pod-00000").to_string().len();
    let embedded = Control::start(&[])?;
    let target = Target::read(&embedded.kubeconfig()).await?;
    let (mut all, stored) = creates("embedded", &embedded, &target).await?;
    println!(
        "| Durable creates: pods of {sent} B as sent, {stored} B as stored | Median | Spread (p10–p90) | p99 | n |\n\
         |---|---|---|---|---|"
    );
    let synced = time_syncs(stored)?;
    host::row(
        "yardstick: the same bytes appended to a file and synced, one after the other",
        &synced,
    );
    let lists_embedded = lists(&embedded, &target).await?;
    drop(embedded);

    let member = Etcd::start()?;
    let control = Control::start(&["--store", &member.address()])?;
    let target = Target::read(&control.kubeconfig()).await?;
    all.extend(creates("etcd", &control, &target).await?.0);
    let lists_etcd = lists(&control, &target).await?;
    for (clients, count) in CREATES {
        all.push(member.puts(clients, count, stored).await?);
    }
    for creates in &all {
        host::row(&creates.what, &creates.each);
    }
    println!(
        "\n| Store, clients at a time | creates/s | CPU of the server per create | of this program |\n|---|---|---|---|"
    );
    for creates in &all {
        let count = creates.each.len() as f64;
        let each = |time: Duration| format!("{:.0} µs", time.as_secs_f64() * 1e6 / count);
        println!(
            "| {} | {:.0} | {} | {} |",
            creates.what,
            count / creates.total.as_secs_f64(),
            each(creates.server),
            each(creates.own)
        );
    }
    println!(
        "\n| List of {} pods, to the last byte | Median | Spread (p10–p90) | p99 | n |\n|---|---|---|---|---|",
        CREATES.iter().map(|(_, count)| count).sum::<usize>()
    );
    for (store, lists) in [("embedded", lists_embedded), ("etcd", lists_etcd)] {
        for (what, samples) in lists {
            host::row(&format!("{store}: {what}"), &samples);
        }
    }
    Ok(())
}

/// The disk's own price of a durable write.
fn time_syncs(bytes: usize) -> Result<Vec<Duration>> {
    let directory = tempfile::tempdir()?;
    let mut file = File::create(directory.path().join("yardstick"))?;
    let bytes = vec![b'x'; bytes];
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let begun = Instant::now();
        file.write_all(&bytes)?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// CPU time of this program so far.
fn own_cpu() -> Result<Duration> {
    use nix::sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    };
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.try_into()?))
}

/// Lets a number of connections create pods, one after the other each, and gives the time of every one.
async fn create_all(
    connections: &mut [Connection],
    path: &str,
    objects: &[Vec<u8>],
) -> Result<Vec<Duration>> {
    let next = AtomicUsize::new(0);
    let each = connections.iter_mut().map(async |connection| {
        let mut times = Vec::new();
        while let Some(object) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
            let asked = Instant::now();
            connection.create(path, object.clone()).await?;
            times.push(asked.elapsed());
        }
        anyhow::Ok(times)
    });
    Ok(try_join_all(each).await?.concat())
}

async fn connect(target: &Target, count: usize) -> Result<Vec<Connection>> {
    try_join_all((0..count).map(|_| target.connect())).await
}

/// The namespace, once pods can be made in it.
async fn make_namespace(connection: &mut Connection) -> Result<()> {
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    let object = namespace.to_string().into_bytes();
    connection.create("/api/v1/namespaces", object).await?;
    let account = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default");
    let made = async {
        // A controller makes it.
        while connection.get(&account, |_| {}).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, made)
        .await
        .context("the namespace's ServiceAccount")
}

/// Creates pods with as many clients as are measured; gives also the bytes of a pod as stored.
async fn creates(store: &str, control: &Control, target: &Target) -> Result<(Vec<Creates>, usize)> {
    let mut first = target.connect().await?;
    make_namespace(&mut first).await?;
    control.calm().await?;
    let path = collection();
    let stored = first
        .create(&path, objects::pod("first").to_string().into())
        .await?;
    first
        .send(
            Method::DELETE,
            &format!("{path}/first?gracePeriodSeconds=0"),
            "application/json",
            Bytes::new(),
        )
        .await?;
    let (mut found, mut made) = (Vec::new(), 0);
    for (clients, count) in CREATES {
        eprintln!("api: {store}, {clients} at a time");
        let mut connections = connect(target, clients).await?;
        let numbers = made..made + count;
        let objects: Vec<Vec<u8>> = numbers
            .map(|number| objects::pod(&format!("pod-{number:05}")).to_string().into())
            .collect();
        made += count;
        let (server, own, begun) = (control.cpu()?, own_cpu()?, Instant::now());
        let each = timeout(PATIENCE, create_all(&mut connections, &path, &objects)).await??;
        found.push(Creates {
            what: format!("{store}, {clients} at a time"),
            each,
            total: begun.elapsed(),
            server: control.cpu()? - server,
            own: own_cpu()? - own,
        });
        control.calm().await?;
    }
    Ok((found, stored))
}

type Samples = Vec<(String, Vec<Duration>)>;

/// Lists all pods in each way that there is.
async fn lists(control: &Control, target: &Target) -> Result<Samples> {
    let mut connection = target.connect().await?;
    let path = collection();
    let mut found = Vec::new();
    for (what, query) in [
        ("whole", ""),
        ("whole, resourceVersion=0", "?resourceVersion=0"),
        ("in pages of 500", "?limit=500"),
    ] {
        let mut times = Vec::with_capacity(LISTS);
        let mut length = 0;
        let (server, own) = (control.cpu()?, own_cpu()?);
        for _ in 0..LISTS {
            let begun = Instant::now();
            length = list(&mut connection, &format!("{path}{query}")).await?;
            times.push(begun.elapsed());
        }
        let each = |time: Duration| time.as_secs_f64() * 1e3 / LISTS as f64;
        let what = format!(
            "{what} ({:.1} MB; CPU: server {:.0} ms, this program {:.0} ms)",
            length as f64 / 1e6,
            each(control.cpu()? - server),
            each(own_cpu()? - own)
        );
        found.push((what, times));
    }
    Ok(found)
}

/// Reads all pages of a list; gives their length together.
async fn list(connection: &mut Connection, path: &str) -> Result<usize> {
    let mut length = 0;
    let mut page = path.to_owned();
    loop {
        let (read, head) = get_with_head(connection, &page).await?;
        length += read;
        match metadata_of(&head)?["continue"].as_str() {
            Some(token) => page = format!("{path}&continue={token}"),
            None => return Ok(length),
        }
    }
}

/// The length of an answer, and its first bytes.
async fn get_with_head(connection: &mut Connection, path: &str) -> Result<(usize, Vec<u8>)> {
    const HEAD_BYTES: usize = 1_024;
    let mut head = Vec::new();
    let length = connection
        .get(path, |part| {
            let missing = HEAD_BYTES.saturating_sub(head.len());
            head.extend_from_slice(&part[..part.len().min(missing)]);
        })
        .await?;
    Ok((length, head))
}

/// The metadata of a list, which comes before the items.
fn metadata_of(head: &[u8]) -> Result<Value> {
    let text = String::from_utf8_lossy(head);
    let (_, rest) = text
        .split_once("\"metadata\":")
        .context("a list's metadata")?;
    let (metadata, _) = rest.split_once(",\"items\":").context("a list's items")?;
    Ok(serde_json::from_str(metadata)?)
}

async fn watches() -> Result<()> {
    eprintln!("api: {WATCHERS} watchers");
    let control = Control::start(&[])?;
    let target = Target::read(&control.kubeconfig()).await?;
    let mut writers = connect(&target, FILLERS).await?;
    make_namespace(&mut writers[0]).await?;
    control.calm().await?;
    let rss_before = control.rss()?;
    let (_, head) = get_with_head(&mut writers[0], &format!("{}?limit=1", collection())).await?;
    let revision = metadata_of(&head)?["resourceVersion"]
        .as_str()
        .context("a revision")?
        .to_owned();
    let watching = format!("{}?watch=true&resourceVersion={revision}", collection());
    // Events that have come, of all watchers together.
    let seen = Arc::new(AtomicUsize::new(0));
    let (wanted, news) = (Arc::new(AtomicUsize::new(WATCHERS)), watch::Sender::new(()));
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        let mut connection = target.connect().await?;
        let (seen, wanted, news) = (seen.clone(), wanted.clone(), news.clone());
        let watching = watching.clone();
        watchers.spawn(async move {
            let counted = connection.get(&watching, |part| {
                let events = part.iter().filter(|byte| **byte == b'\n').count();
                let before = seen.fetch_add(events, Ordering::Relaxed);
                if before + events >= wanted.load(Ordering::Relaxed) {
                    news.send_replace(());
                }
            });
            // Comes back only if the watch ends.
            counted.await
        });
    }
    control.calm().await?;
    let rss_watched = control.rss()?;
    let mut heard = news.subscribe();
    let mut all_have = async || {
        let all = async {
            while seen.load(Ordering::Relaxed) < wanted.load(Ordering::Relaxed) {
                heard.changed().await?;
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, all)
            .await
            .context("all watchers hear of all creates")?
    };
    let path = collection();
    let mut times = Vec::with_capacity(WATCHED);
    let (server, own) = (control.cpu()?, own_cpu()?);
    for number in 0..WATCHED {
        let object = objects::pod(&format!("single-{number}")).to_string().into();
        let begun = Instant::now();
        writers[0].create(&path, object).await?;
        all_have().await?;
        times.push(begun.elapsed());
        wanted.fetch_add(WATCHERS, Ordering::Relaxed);
    }
    let (server, own) = (control.cpu()? - server, own_cpu()? - own);
    let objects: Vec<Vec<u8>> = (0..BURST)
        .map(|number| objects::pod(&format!("burst-{number}")).to_string().into())
        .collect();
    wanted.fetch_add((BURST - 1) * WATCHERS, Ordering::Relaxed);
    let (server_before, own_before, begun) = (control.cpu()?, own_cpu()?, Instant::now());
    create_all(&mut writers, &path, &objects).await?;
    all_have().await?;
    let burst = begun.elapsed();
    let (burst_server, burst_own) = (control.cpu()? - server_before, own_cpu()? - own_before);
    let rss_after = control.rss()?;
    let ended = std::iter::from_fn(|| watchers.try_join_next()).count();
    ensure!(ended == 0, "{ended} watches ended");
    println!(
        "\n| {WATCHERS} watchers | Median | Spread (p10–p90) | p99 | n |\n|---|---|---|---|---|"
    );
    host::row("create asked → the last of them has the event", &times);
    let each =
        |time: Duration, events: usize| time.as_secs_f64() * 1e6 / (events * WATCHERS) as f64;
    println!(
        "\n| {WATCHERS} watchers | |\n|---|---|\n\
         | watches dropped | 0 |\n\
         | CPU of the server per event and watcher | {:.1} µs (this program: {:.1} µs) |\n\
         | {BURST} creates by {FILLERS} clients, until all have all | {:.2} s: {:.0} events/s |\n\
         | CPU of the server per event and watcher meanwhile | {:.1} µs (this program: {:.1} µs) |\n\
         | RSS of the server before, with watchers, after the burst | {:.1}, {:.1}, {:.1} MB |",
        each(server, WATCHED),
        each(own, WATCHED),
        burst.as_secs_f64(),
        (BURST * WATCHERS) as f64 / burst.as_secs_f64(),
        each(burst_server, BURST),
        each(burst_own, BURST),
        rss_before / 1e6,
        rss_watched / 1e6,
        rss_after / 1e6
    );
    Ok(())
}

/// Memory, with pods that are bound and run as far as the control plane knows.
async fn memory() -> Result<()> {
    // Nobody reports for the nodes meanwhile.
    let mut control = Control::start(&["--node-monitor-grace-period", "2h"])?;
    let target = Target::read(&control.kubeconfig()).await?;
    let mut connections = connect(&target, FILLERS).await?;
    make_namespace(&mut connections[0]).await?;
    for number in 0..NODES {
        let node = objects::node(&format!("hollow-{number}")).to_string();
        connections[0].create("/api/v1/nodes", node.into()).await?;
    }
    control.calm().await?;
    println!(
        "\n| `wherry control`, {NODES} nodes | RSS | JSON of the pods as listed |\n|---|---|---|"
    );
    println!("| 0 pods | {:.1} MB | |", control.rss()? / 1e6);
    let mut stored = 0;
    for count in STORED {
        eprintln!("api: {count} pods stored");
        fill(&mut connections, stored..count).await?;
        stored = count;
        control.calm().await?;
        let rss = control.rss()?;
        let length = list(&mut connections[0], &format!("{}?limit=500", collection())).await?;
        println!(
            "| {count} pods | {:.1} MB | {:.1} MB |",
            rss / 1e6,
            length as f64 / 1e6
        );
    }
    let ready = control.restart()?;
    control.calm().await?;
    println!(
        "| the same, killed and started again: ready after {:.2} s | {:.1} MB | |",
        ready.as_secs_f64(),
        control.rss()? / 1e6
    );
    Ok(())
}

/// Creates pods on nodes, and reports them as their nodes would.
async fn fill(connections: &mut [Connection], numbers: std::ops::Range<usize>) -> Result<()> {
    let path = collection();
    let next = AtomicUsize::new(numbers.start);
    let each = connections.iter_mut().map(async |connection| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return anyhow::Ok(());
            }
            let name = format!("pod-{number:05}");
            let pod = objects::bound_pod(&name, &format!("hollow-{}", number % NODES));
            connection.create(&path, pod.to_string().into()).await?;
            let status = objects::running(number).to_string();
            let path = format!("{path}/{name}/status");
            let kind = "application/merge-patch+json";
            connection
                .send(Method::PATCH, &path, kind, status.into())
                .await?;
        }
    });
    try_join_all(each).await?;
    Ok(())
}

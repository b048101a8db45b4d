//! Keeps the table in the kernel as the [`Index`] wants it.

use std::{
    collections::{BTreeSet, VecDeque},
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use wherry_network::{Cidr, NetworkError, local, netfilter::Monitor, nft, services_table};

use crate::{
    affinity, conntrack, health,
    index::Index,
    object::Protocol,
    plan::{self, Frontend},
    script::{self, Form},
    table::{self, Changes, Owner, Table},
};

/// Between two transactions: what changes meanwhile goes together.
const PAUSE: Duration = Duration::from_millis(20);
/// Before something that failed is tried again, and the longest that this grows to.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Processes of ours whose deletions may still be heard of.
const OWN_MAX: usize = 64;

/// What the proxy needs to know of its node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The bridge that pods are attached to; the table is named after it.
    pub bridge: String,
    /// The node's addresses for pods.
    pub pod_cidr: Cidr,
    /// Addresses of Services, if they are known: one that no Service has is refused.
    pub service_cidr: Option<Cidr>,
}

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// `hostIP`; every address of the node if there is none.
    pub host_ip: Option<Ipv4Addr>,
    /// Of the transport.
    pub protocol: Protocol,
    /// `hostPort`.
    pub host_port: u16,
    /// The pod.
    pub pod_ip: Ipv4Addr,
    /// `containerPort`.
    pub container_port: u16,
}

/// The table of one node.
struct Proxy {
    form: Form,
    index: Arc<Index>,
    host_ports: watch::Receiver<Vec<HostPort>>,
    table: Table,
    /// Chains that have been made for elements.
    chains: BTreeSet<String>,
    /// The processes that made the last transactions.
    own: VecDeque<u32>,
    /// Whether the kernel may hold something else than `table`.
    is_unsure: bool,
    /// Whether balancers may count on the table. One transaction that fails is no reason to turn them away.
    is_in_order: Arc<AtomicBool>,
}

/// Keeps the table until shutdown, and leaves it there: connections go on without the agent.
pub async fn run(
    config: Config,
    index: Arc<Index>,
    host_ports: watch::Receiver<Vec<HostPort>>,
    shutdown: CancellationToken,
) {
    let mut proxy = Proxy {
        form: Form {
            table: services_table(&config.bridge),
            masquerades_bridged: !hears_bridged(),
            bridge: config.bridge,
            pod_cidr: config.pod_cidr,
            service_cidr: config.service_cidr,
        },
        index,
        host_ports,
        table: Table::default(),
        chains: BTreeSet::new(),
        own: VecDeque::new(),
        is_unsure: true,
        is_in_order: Arc::default(),
    };
    let health = health::run(Arc::clone(&proxy.index), Arc::clone(&proxy.is_in_order));
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = async { tokio::join!(proxy.keep(), health) } => {}
    }
}

/// Whether packets from pod to pod over the bridge are shown to nftables, so that what a Service's
/// endpoint answers a neighbour is translated back. Turned on where the kernel can.
fn hears_bridged() -> bool {
    let switch = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    let is_on = || std::fs::read_to_string(switch).is_ok_and(|text| text.trim() == "1");
    is_on() || (std::fs::write(switch, "1").is_ok() && is_on())
}

impl Proxy {
    async fn keep(&mut self) {
        let mut monitor = match Monitor::open() {
            Ok(monitor) => Some(monitor),
            Err(error) => {
                warn!(%error, "Changes of nftables cannot be heard; a table that somebody deletes stays deleted until the agent starts again");
                None
            }
        };
        let mut versions = self.index.subscribe();
        let mut host_ports = self.host_ports.clone();
        // What an agent before this one has made is better than what is known half way.
        if self.is_there().await {
            self.index.known().await;
        }
        let mut retry: Option<(Instant, Duration)> = Some((Instant::now(), RETRY));
        loop {
            tokio::select! {
                changed = versions.changed() => if changed.is_err() { return },
                changed = host_ports.changed() => if changed.is_err() {
                    // Nobody will tell any more; what was told last stands.
                    std::future::pending::<()>().await;
                },
                () = foreign_deletion(&mut monitor, &self.form.table, &self.own) => {
                    info!(table = self.form.table, "Somebody changed the table of Services; it is put in place again");
                    self.is_unsure = true;
                }
                () = async { match retry {
                    Some((at, _)) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                } } => {}
            }
            match self.apply().await {
                Ok(()) => {
                    retry = None;
                    self.is_in_order.store(true, Ordering::Relaxed);
                }
                Err(error) => {
                    self.is_unsure = true;
                    if retry.is_some() {
                        self.is_in_order.store(false, Ordering::Relaxed);
                    }
                    let pause = retry.map_or(RETRY, |(_, pause)| (pause * 2).min(RETRY_MAX));
                    warn!(%error, ?pause, "Services are not as they should be");
                    retry = Some((Instant::now() + pause, pause));
                }
            }
            if let Some(monitor) = &mut monitor {
                monitor.forget_losses();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn is_there(&self) -> bool {
        let listed = nft::list(&["tables", "inet"]).await;
        listed.is_ok_and(|listed| {
            let tables = listed["nftables"].as_array();
            let mut names = tables
                .into_iter()
                .flatten()
                .map(|item| &item["table"]["name"]);
            names.any(|name| *name == *self.form.table)
        })
    }

    /// Brings the kernel up to date.
    async fn apply(&mut self) -> Result<(), NetworkError> {
        let mut changes = Changes::default();
        let ports = self.host_ports.borrow_and_update().clone();
        let elements: Vec<_> = ports
            .iter()
            .flat_map(|port| {
                let frontend = Frontend {
                    at: table::at(port.host_ip),
                    protocol: port.protocol,
                    port: port.host_port,
                };
                let target = (port.pod_ip, port.container_port);
                plan::host_port(frontend, target, self.form.pod_cidr)
            })
            .collect();
        self.table.set(&Owner::HostPorts, &elements, &mut changes);
        for (key, view) in self.index.take_changed() {
            let elements = view.map(|view| plan::plan(&view, self.form.pod_cidr));
            self.table.set(
                &Owner::Service(key),
                &elements.unwrap_or_default(),
                &mut changes,
            );
        }
        if self.is_unsure {
            self.replace().await?;
        } else if !changes.is_empty() {
            let script = script::update(&self.form, &changes, &mut self.chains);
            self.run(&script).await?;
            debug!(
                removed = changes.removed.len(),
                added = changes.added.len(),
                "Services changed"
            );
        }
        self.forget_stale(&changes).await;
        Ok(())
    }

    async fn replace(&mut self) -> Result<(), NetworkError> {
        if let Some(cidr) = &self.form.service_cidr {
            // Without it, a node without a default route knows no way to a Service. Before the table: a program that
            // finds a route and no Service yet tries again; one that finds no route gives up.
            if let Err(error) = local::add_route(&self.form.bridge, cidr).await {
                warn!(%error, "Programs of the node itself may not reach Services");
            }
        }
        for from_nothing in [false, true] {
            self.chains.clear();
            let elements = self.table.elements();
            let script = script::replace(&self.form, elements, &mut self.chains, from_nothing);
            match self.run(&script).await {
                Ok(()) => break,
                Err(error) if from_nothing => return Err(error),
                Err(error) => {
                    debug!(%error, "The table is of another form and is made from nothing");
                }
            }
        }
        self.is_unsure = false;
        Ok(())
    }

    async fn run(&mut self, script: &str) -> Result<(), NetworkError> {
        let done = nft::run(script).await?;
        if self.own.len() == OWN_MAX {
            self.own.pop_front();
        }
        self.own.push_back(done.pid);
        Ok(())
    }

    /// Ends what still leads to endpoints that have gone.
    async fn forget_stale(&mut self, changes: &Changes) {
        let mut wanted = conntrack::Wanted::default();
        let mut remembering = Vec::new();
        for frontend in changes.frontends() {
            let targets = self.table.targets(frontend);
            if self.table.remembers(frontend) {
                remembering.push((frontend, targets.clone()));
            }
            wanted.insert(frontend, targets);
        }
        if !wanted.is_empty() {
            match conntrack::forget_stale(wanted).await {
                Ok(0) => {}
                Ok(count) => debug!(count, "Flows to endpoints that have gone were ended"),
                Err(error) => {
                    warn!(%error, "Flows to endpoints that have gone are not ended");
                }
            }
        }
        if !remembering.is_empty() {
            match affinity::stale(&self.form, &remembering).await {
                Ok(stale) => {
                    for (frontend, client) in &stale {
                        // One by one: an entry that runs out meanwhile must not keep the others.
                        let script = script::forget(&self.form, frontend, *client);
                        if let Err(error) = self.run(&script).await {
                            debug!(%error, "A client's endpoint was forgotten already");
                        }
                    }
                }
                Err(error) => warn!(%error, "Clients may be sent to endpoints that have gone"),
            }
        }
    }
}

async fn foreign_deletion(monitor: &mut Option<Monitor>, table: &str, own: &VecDeque<u32>) {
    match monitor {
        Some(monitor) => {
            monitor
                .foreign_deletion(&[table], |pid| own.contains(&pid))
                .await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;

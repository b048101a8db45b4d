//! Other nodes' pods: routes to them, and the tunnel where there is no common network.
//!
//! ```text
//!  Node objects ─▶ Peer ─┐
//!  own addresses ────────┴▶ plan (pure) ─▶ diff with the kernel ─▶ routes, tunnel, neighbours, rules, firewall
//!                                              ▲
//!                 netlink and nftables: somebody took something away
//! ```
//!
//! `host-gw` is a route to a node on a common network. `vxlan` packs packets in UDP; the far end's hardware address
//! follows from its pod CIDR, so that a Node object with `spec.podCIDR` and an `InternalIP` is all that is needed.
//! What pods say to the *nodes* behind the tunnel goes through it too, by a rule for packets from pods: on the way
//! between, nobody has to know pods' addresses.
//!
//! Left to others: who is a node (the agent), what Services are.

mod kernel;
mod monitor;
mod plan;
mod repair;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use rtnetlink::Handle;
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use self::{monitor::Monitor, plan::Plan, repair::Bridge};
use crate::{Cidr, NetworkConfig, NetworkError, PodNetwork, bridge, firewall, netlink};

pub(crate) use self::kernel::remove;

/// Between a change and its repair: what else changes meanwhile is seen at once.
const PAUSE: Duration = Duration::from_millis(20);
/// Between looks at what nobody told of.
const RELIST: Duration = Duration::from_secs(60);
/// Before something that failed is tried again, and the longest that this grows to.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// How packets for other nodes' pods get there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// By a route where the node is on a network of this one's, by a tunnel otherwise.
    #[default]
    Auto,
    /// By routes alone.
    HostGw,
    /// By a tunnel alone.
    Vxlan,
}

/// The tunnel's numbers, the same on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier, below 2^24. flannel's is 1, and one machine can have a number and port once.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
}

impl Default for Vxlan {
    fn default() -> Self {
        Self {
            vni: 88,
            port: 8472,
        }
    }
}

/// Another node, as far as packets go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The Node's name.
    pub name: String,
    /// Its `InternalIP`s.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<Cidr>,
}

/// A node whose pods cannot be reached, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unreachable {
    /// The Node's name.
    pub node: String,
    /// What is wrong with it, for people.
    pub why: String,
}

/// Keeps the ways to other nodes until it is dropped; what is there then stays. Before `peers` has been told for
/// the first time nothing is touched.
pub(crate) async fn keep(
    network: &PodNetwork,
    handle: &Handle,
    mut peers: watch::Receiver<Option<Arc<[Peer]>>>,
    unreachable: watch::Sender<Vec<Unreachable>>,
) {
    let mut keeper = Keeper {
        network,
        handle,
        bridge: Bridge::default(),
        inside: None,
        firewall_runs: Vec::new(),
        trouble: None,
    };
    let mut monitor = Monitor::open(network.config());
    let mut retry = RETRY;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            changed = peers.changed() => if changed.is_err() {
                // Nobody will tell any more; what was told last stands.
                std::future::pending::<()>().await;
            },
            is_firewall = monitor.changed(&keeper.firewall_runs) => if is_firewall {
                keeper.inside = None;
            },
            () = tokio::time::sleep_until(next) => {}
        }
        tokio::time::sleep(PAUSE).await;
        monitor.drain();
        let Some(told) = peers.borrow_and_update().clone() else {
            next = Instant::now() + RELIST;
            continue;
        };
        match keeper.reconcile(&told).await {
            Ok(found) => {
                unreachable.send_if_modified(|known| {
                    let is_new = *known != found;
                    *known = found;
                    is_new
                });
                if keeper.trouble.take().is_some() {
                    info!("The ways to other nodes are as they should be again");
                }
                retry = RETRY;
                next = Instant::now() + RELIST;
            }
            Err(error) => {
                let error = error.to_string();
                if keeper.trouble.as_ref() != Some(&error) {
                    warn!(error, "The ways to other nodes are not as they should be");
                    keeper.trouble = Some(error);
                }
                next = Instant::now() + retry;
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}

struct Keeper<'a> {
    network: &'a PodNetwork,
    handle: &'a Handle,
    bridge: Bridge,
    /// What the firewall was last told not to masquerade; `None` if it may hold something else.
    inside: Option<BTreeSet<Cidr>>,
    /// The processes that told it.
    firewall_runs: Vec<u32>,
    /// What was last warned of.
    trouble: Option<String>,
}

impl Keeper<'_> {
    async fn reconcile(&mut self, peers: &[Peer]) -> Result<Vec<Unreachable>, NetworkError> {
        let (config, handle) = (self.network.config(), self.handle);
        let bridge = bridge::ensure(handle, config).await?;
        self.bridge
            .look_after(handle, self.network, &bridge)
            .await?;
        let local = kernel::local(handle, config).await?;
        let plan: Plan = plan::plan(&local, config.backend, peers);
        self.tell_firewall(&plan.inside).await?;
        kernel::apply(handle, config, &local, &plan).await?;
        Ok(plan.unreachable)
    }

    async fn tell_firewall(&mut self, inside: &BTreeSet<Cidr>) -> Result<(), NetworkError> {
        let config = self.network.config();
        if !config.masquerade || self.inside.as_ref() == Some(inside) {
            return Ok(());
        }
        self.inside = None;
        self.firewall_runs = firewall::ensure(config, Some(inside)).await?;
        self.inside = Some(inside.clone());
        Ok(())
    }
}

/// The largest packet through the tunnel of a node.
pub(crate) async fn tunnel_mtu(
    handle: &Handle,
    config: &NetworkConfig,
) -> Result<Option<u32>, NetworkError> {
    let local = kernel::local(handle, config).await?;
    let Some(end) = local.node_ip else {
        return Ok(None);
    };
    let link = local.addresses.iter().find(|address| address.ip == end);
    let links = netlink::links(handle).await?;
    let mtu = link.and_then(|address| links.iter().find(|link| link.index == address.link));
    Ok(mtu.map(|link| link.mtu.saturating_sub(kernel::overhead(end))))
}

#[cfg(test)]
mod tests;

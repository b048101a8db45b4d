//! Which routes, neighbours and rules the nodes of a cluster ask for. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Backend, Peer, Unreachable};
use crate::{
    Cidr,
    netlink::{hardware_address, single},
};

/// An Ethernet address.
pub(crate) type Mac = Vec<u8>;

/// An address of the node's own, outside of its pod network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    pub(crate) prefix_len: u8,
    /// The interface's index.
    pub(crate) link: u32,
}

/// The node itself.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) addresses: Vec<Address>,
    /// The `InternalIP`, if the node has it: the tunnel's end.
    pub(crate) node_ip: Option<IpAddr>,
    pub(crate) pod_cidrs: Vec<Cidr>,
}

/// The interface a route leaves by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Via {
    Link(u32),
    Tunnel,
}

/// Whom a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// Everybody.
    Main,
    /// Packets from this node's pods.
    Pods,
}

/// A way to other nodes' pods, or to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) table: Table,
    pub(crate) destination: Cidr,
    pub(crate) gateway: IpAddr,
    pub(crate) via: Via,
    /// Source of the node's own packets; `None` leaves it to the kernel.
    pub(crate) source: Option<IpAddr>,
}

/// Everything that is to be there.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The tunnel's own end and hardware address, if there is to be one.
    pub(crate) tunnel: Option<(IpAddr, Mac)>,
    pub(crate) routes: BTreeSet<Route>,
    /// Hardware addresses of the gateways behind the tunnel.
    pub(crate) neighbours: BTreeMap<IpAddr, Mac>,
    /// The nodes that these are at.
    pub(crate) forwards: BTreeMap<Mac, IpAddr>,
    /// Sources whose packets look into [`Table::Pods`] first.
    pub(crate) rules: BTreeSet<Cidr>,
    /// What pods meet under their own addresses.
    pub(crate) inside: BTreeSet<Cidr>,
    pub(crate) unreachable: Vec<Unreachable>,
}

/// Decides what is to be there for `peers`, whatever their order.
pub(crate) fn plan(local: &Local, backend: Backend, peers: &[Peer]) -> Plan {
    let mut plan = Plan::default();
    let mut taken: Vec<(Cidr, &str)> = Vec::new();
    let mut peers: Vec<&Peer> = peers.iter().collect();
    peers.sort();
    // One without any address has not said yet where it is.
    for peer in peers.iter().filter(|peer| !peer.addresses.is_empty()) {
        let shares_machine = peer
            .addresses
            .iter()
            .any(|ip| local.addresses.iter().any(|own| own.ip == *ip));
        if shares_machine {
            // The kernel has both bridges.
            plan.inside.extend(&peer.pod_cidrs);
            continue;
        }
        for cidr in &peer.pod_cidrs {
            let done = refusal(local, &taken, cidr)
                .map_or(Ok(()), Err)
                .and_then(|()| lead(&mut plan, local, backend, peer, *cidr));
            match done {
                Ok(()) => taken.push((*cidr, &peer.name)),
                Err(why) => plan.unreachable.push(Unreachable {
                    node: peer.name.clone(),
                    why,
                }),
            }
        }
    }
    if plan.tunnel.is_some() {
        plan.rules.extend(&local.pod_cidrs);
    }
    plan
}

/// Why no route may lead to a range: what a Node says of itself must not take the node's own networks away.
fn refusal(local: &Local, taken: &[(Cidr, &str)], cidr: &Cidr) -> Option<String> {
    if let Some(own) = local.pod_cidrs.iter().find(|own| own.overlaps(cidr)) {
        return Some(format!("podCIDR {cidr} overlaps with this node's, {own}"));
    }
    if let Some((other, name)) = taken.iter().find(|(other, _)| other.overlaps(cidr)) {
        return Some(format!(
            "podCIDR {cidr} overlaps with that of node {name}, {other}"
        ));
    }
    let networks = local.addresses.iter();
    let mut networks = networks.filter_map(|own| Cidr::new(own.ip, own.prefix_len).ok());
    if let Some(network) = networks.find(|network| network.overlaps(cidr)) {
        return Some(format!(
            "podCIDR {cidr} overlaps with a network of this node, {network}"
        ));
    }
    None
}

fn lead(
    plan: &mut Plan,
    local: &Local,
    backend: Backend,
    peer: &Peer,
    cidr: Cidr,
) -> Result<(), String> {
    let is_like = |ip: &&IpAddr, other: IpAddr| -> bool { ip.is_ipv4() == other.is_ipv4() };
    let address = peer
        .addresses
        .iter()
        .find(|ip| is_like(ip, cidr.network()))
        .copied();
    let direct = address.and_then(|ip| Some((ip, connected(local, ip)?)));
    match (backend, direct) {
        (Backend::HostGw | Backend::Auto, Some((gateway, link))) => {
            plan.routes.insert(Route {
                table: Table::Main,
                destination: cidr,
                gateway,
                via: Via::Link(link),
                source: None,
            });
            plan.inside.insert(cidr);
            plan.inside.extend(host(gateway));
            Ok(())
        }
        (Backend::HostGw, None) => Err(format!(
            "{} on no network of this node, and host-gw routes go nowhere else; --network-backend auto makes a tunnel",
            match address {
                Some(ip) => format!("InternalIP {ip} is"),
                None => "an InternalIP of the family of its podCIDR is".into(),
            }
        )),
        (Backend::Auto | Backend::Vxlan, _) => tunnel(plan, local, peer, cidr),
    }
}

fn tunnel(plan: &mut Plan, local: &Local, peer: &Peer, cidr: Cidr) -> Result<(), String> {
    let Some(end) = local.node_ip else {
        return Err(
            "this node has no interface with its InternalIP, where a tunnel would begin".into(),
        );
    };
    let far = peer
        .addresses
        .iter()
        .find(|ip| ip.is_ipv4() == end.is_ipv4());
    let Some(far) = far.copied() else {
        return Err(format!(
            "it has no InternalIP of the family of this node's, {end}, where a tunnel would end"
        ));
    };
    let (Some(own_mac), Some(far_mac)) = (mac(&local.pod_cidrs), mac(&peer.pod_cidrs)) else {
        return Err("it has no podCIDR".into());
    };
    plan.tunnel = Some((end, own_mac));
    let gateway = cidr.gateway();
    plan.neighbours.insert(gateway, far_mac.clone());
    plan.forwards.insert(far_mac, far);
    plan.routes.insert(Route {
        table: Table::Main,
        destination: cidr,
        gateway,
        via: Via::Tunnel,
        source: Some(end).filter(|end| end.is_ipv4() == gateway.is_ipv4()),
    });
    plan.inside.insert(cidr);
    let of_family = peer
        .addresses
        .iter()
        .filter(|ip| ip.is_ipv4() == gateway.is_ipv4());
    for ip in of_family {
        let Some(destination) = host(*ip) else {
            continue;
        };
        plan.inside.insert(destination);
        plan.routes.insert(Route {
            table: Table::Pods,
            destination,
            gateway,
            via: Via::Tunnel,
            source: None,
        });
    }
    Ok(())
}

/// The interface behind which an address is a neighbour.
fn connected(local: &Local, ip: IpAddr) -> Option<u32> {
    let mut networks = local
        .addresses
        .iter()
        .filter(|own| own.prefix_len < single(own.ip));
    let found = networks
        .find(|own| Cidr::new(own.ip, own.prefix_len).is_ok_and(|network| network.contains(ip)));
    found.map(|own| own.link)
}

fn host(ip: IpAddr) -> Option<Cidr> {
    Cidr::new(ip, single(ip)).ok()
}

/// The hardware address of a node's end of the tunnel: one that both sides work out. The network's own address is
/// no pod's and no gateway's, whose interfaces have theirs in the same way.
fn mac(pod_cidrs: &[Cidr]) -> Option<Mac> {
    let first = pod_cidrs
        .iter()
        .find(|cidr| cidr.network().is_ipv4())
        .or(pod_cidrs.first())?;
    Some(match first.network() {
        ip @ IpAddr::V4(_) => hardware_address(ip),
        IpAddr::V6(ip) => {
            // The last bits of a network's address are all 0.
            let folded = ip.segments().chunks(2).fold(0u32, |sum, pair| {
                sum.rotate_left(5) ^ (u32::from(pair[0]) << 16 | u32::from(pair[1]))
            });
            [&[0x0a, 0x59], &folded.to_be_bytes()[..]].concat()
        }
    })
}

#[cfg(test)]
mod tests;

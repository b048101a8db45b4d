//! Which elements a Service is in the maps of the table. Pure.
//!
//! ```text
//!  frontend: address, protocol, port ─▶ chain for that many endpoints ─▶ frontend and a random number ─▶ endpoint
//! ```
//!
//! A chain is the same for all Services with as many endpoints, so that a change is a few elements and
//! a packet's way is two look-ups, however many Services there are.

use std::net::{IpAddr, Ipv4Addr};

use wherry_network::Cidr;

use crate::{
    index::View,
    object::{Allowed, Endpoint, Kind, Protocol, ServicePort},
};

/// Endpoints of one frontend that are used: a random number below this picks one.
const ENDPOINTS_MAX: usize = u16::MAX as usize;

/// Where a frontend is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum At {
    /// At an address of its own.
    Ip(Ipv4Addr),
    /// At every address of the node.
    Node,
}

/// What packets are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Frontend {
    pub(crate) at: At,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

/// An address and port that packets are passed on to.
pub(crate) type Target = (Ipv4Addr, u16);

/// What stands before the colon of an element, and which map it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// The chain of a frontend with endpoints.
    Serve(Frontend),
    /// The endpoint of that number.
    Endpoint(Frontend, u16),
    /// What happens to packets for a frontend without.
    Refuse(Frontend),
    /// That, and how long, its clients keep their endpoints.
    Remember(Frontend),
    /// A pod of this node that may meet itself behind a frontend.
    Hairpin(Ipv4Addr),
    /// A frontend that not everybody may connect to.
    Guard(Frontend),
    /// Somebody who may.
    Allow(Frontend, Cidr),
}

/// What stands after the colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Data {
    /// Of [`Key::Serve`].
    Chain(Chain),
    /// Of [`Key::Endpoint`].
    Target(Target),
    /// Of [`Key::Refuse`]: the sender is told.
    Reject,
    /// Of [`Key::Refuse`]: there are endpoints, but the policy keeps this node from using them.
    Drop,
    /// Of [`Key::Remember`], in seconds.
    Seconds(u64),
    /// Of those without.
    Present,
}

/// What frontends with as many endpoints, and otherwise alike, share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Chain {
    pub(crate) is_node: bool,
    pub(crate) endpoints: u16,
    pub(crate) has_affinity: bool,
    /// Whether senders that are no pods of this node appear as the node, so that answers come back here.
    pub(crate) masquerades: bool,
}

/// An element.
pub(crate) type Element = (Key, Data);

/// The elements of a Service.
pub(crate) fn plan(view: &View, pod_cidr: Cidr) -> Vec<Element> {
    let mut elements = Vec::new();
    let service = &*view.service;
    let Kind::Cluster(ips) = &service.kind else {
        return elements;
    };
    if service.is_foreign {
        return elements;
    }
    let mut guards = Vec::new();
    for port in &service.ports {
        let (anywhere, here) = (targets(view, port, false), targets(view, port, true));
        let mut add = |at, number, is_local: bool, masquerades| {
            let frontend = Frontend {
                at,
                protocol: port.protocol,
                port: number,
            };
            let chosen = if is_local { &here } else { &anywhere };
            let otherwise = if anywhere.is_empty() {
                Data::Reject
            } else {
                Data::Drop
            };
            let affinity = service.affinity.map(|time| time.as_secs());
            front(
                &mut elements,
                frontend,
                chosen,
                affinity,
                masquerades,
                otherwise,
                pod_cidr,
            );
        };
        for ip in ips {
            if let IpAddr::V4(ip) = ip {
                add(At::Ip(*ip), port.port, service.is_internal_local, true);
            }
        }
        let is_local = service.is_external_local;
        for ip in &service.external_ips {
            add(At::Ip(*ip), port.port, is_local, !is_local);
        }
        if let Some(allowed) = &service.allowed {
            guards.extend(guard(allowed, port));
        }
        if port.node_port != 0 {
            add(At::Node, port.node_port, is_local, !is_local);
        }
    }
    elements.extend(guards);
    elements
}

/// Who may connect to a load balancer's port. Its node port is everybody's, as in kube-proxy.
fn guard<'a>(allowed: &'a Allowed, port: &'a ServicePort) -> impl Iterator<Item = Element> + 'a {
    allowed.addresses.iter().flat_map(|ip| {
        let frontend = Frontend {
            at: At::Ip(*ip),
            protocol: port.protocol,
            port: port.port,
        };
        let sources = allowed.sources.iter();
        let sources = sources.map(move |source| (Key::Allow(frontend, *source), Data::Present));
        std::iter::once((Key::Guard(frontend), Data::Present)).chain(sources)
    })
}

/// The elements of a port of the node that leads to one pod. Whoever sends is seen by the pod as
/// themselves.
pub(crate) fn host_port(frontend: Frontend, target: Target, pod_cidr: Cidr) -> Vec<Element> {
    let mut elements = Vec::new();
    front(
        &mut elements,
        frontend,
        &[target],
        None,
        false,
        Data::Reject,
        pod_cidr,
    );
    elements
}

fn front(
    elements: &mut Vec<Element>,
    frontend: Frontend,
    targets: &[Target],
    affinity: Option<u64>,
    masquerades: bool,
    otherwise: Data,
    pod_cidr: Cidr,
) {
    if targets.is_empty() {
        elements.push((Key::Refuse(frontend), otherwise));
        return;
    }
    let mut count = 0;
    for target in targets {
        elements.push((Key::Endpoint(frontend, count), Data::Target(*target)));
        if pod_cidr.contains(target.0.into()) {
            elements.push((Key::Hairpin(target.0), Data::Present));
        }
        count += 1;
    }
    // One endpoint needs no memory.
    let affinity = affinity.filter(|_| count > 1);
    if let Some(seconds) = affinity {
        elements.push((Key::Remember(frontend), Data::Seconds(seconds)));
    }
    let chain = Chain {
        is_node: frontend.at == At::Node,
        endpoints: count,
        has_affinity: affinity.is_some(),
        masquerades,
    };
    elements.push((Key::Serve(frontend), Data::Chain(chain)));
}

/// Where packets for a port may go: endpoints that are ready, or, if there is none, those that are ending
/// and still answer. Sorted, each once.
fn targets(view: &View, port: &ServicePort, only_local: bool) -> Vec<Target> {
    let pick = |is_usable: fn(&Endpoint) -> bool| {
        let mut targets: Vec<Target> = view
            .endpoints()
            .filter(|(endpoint, _)| is_usable(endpoint) && (endpoint.is_local || !only_local))
            .filter_map(|(endpoint, slice)| {
                let IpAddr::V4(address) = endpoint.address else {
                    return None;
                };
                let found = slice
                    .ports
                    .iter()
                    .find(|item| item.name == port.name && item.protocol == port.protocol)?;
                Some((address, found.port.unwrap_or(port.port)))
            })
            .collect();
        targets.sort_unstable();
        targets.dedup();
        targets.truncate(ENDPOINTS_MAX);
        targets
    };
    let ready = pick(|endpoint| endpoint.is_ready);
    if ready.is_empty() {
        pick(|endpoint| endpoint.is_serving && endpoint.is_terminating)
    } else {
        ready
    }
}

#[cfg(test)]
mod tests;

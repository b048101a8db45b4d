//! A pod with a namespace of its own: a veth pair between the bridge and `eth0`.

use std::{net::IpAddr, os::fd::AsRawFd};

use rtnetlink::{
    Handle, LinkBridgePort, LinkUnspec, LinkVeth,
    packet_route::link::{InfoData, InfoKind, InfoVeth},
};

use crate::{
    NetworkConfig, NetworkError,
    netlink::{self, Link, Namespace},
};

/// The pod's interface.
const INSIDE: &str = "eth0";

/// What names of the node's ends begin with.
const PREFIX: &str = "veth";

/// The name of the node's end: it follows from bridge and pod, so that it is found again without
/// being remembered, and two nodes on one machine have different ones.
pub(crate) fn name(bridge: &str, uid: &str) -> String {
    let hash = netlink::stable_hash(&[bridge, uid]);
    // 11 digits of base 36 hold 56 bits, and 15 letters are all that an interface may have.
    let mut rest = (hash >> 56) ^ (hash & ((1 << 56) - 1));
    let mut digits = String::new();
    for _ in 0..11 {
        digits.extend(char::from_digit((rest % 36) as u32, 36));
        rest /= 36;
    }
    format!("{PREFIX}{digits}")
}

/// Whether an interface is the node's end of some pod's pair on `bridge`.
pub(crate) fn is_port(link: &Link, bridge: &Link) -> bool {
    link.controller == Some(bridge.index)
        && link.kind == Some(InfoKind::Veth)
        && is_name(&link.name)
}

/// Whether an interface's name is one that [`name`] gives.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() == 15 && name.starts_with(PREFIX)
}

/// Connects a namespace to the bridge. Repeatable: what is there and right is left alone, the rest
/// is made again.
pub(crate) async fn attach(
    handle: &Handle,
    config: &NetworkConfig,
    bridge: &Link,
    uid: &str,
    namespace: &Namespace,
    addresses: &[IpAddr],
) -> Result<(), NetworkError> {
    let inside = netlink::connect_inside(namespace).await?;
    let name = name(&config.bridge, uid);
    let index = match find(handle, &inside, bridge, &name).await? {
        Some(index) => index,
        None => {
            create(handle, bridge, &name, namespace, addresses).await?;
            let made = netlink::link_by_name(&inside, INSIDE).await?;
            made.ok_or_else(|| NetworkError::Conflict(format!("{INSIDE} of pod {uid} has gone")))?
                .index
        }
    };
    // What is last in `create` may be missing of a pair that a killed agent has made.
    hairpin(handle, &name).await?;
    configure(&inside, config, index, addresses).await
}

/// The index of `eth0` if it is connected to the bridge; what is in its way is removed.
async fn find(
    handle: &Handle,
    inside: &Handle,
    bridge: &Link,
    name: &str,
) -> Result<Option<u32>, NetworkError> {
    let (port, eth0) = tokio::try_join!(
        netlink::link_by_name(handle, name),
        netlink::link_by_name(inside, INSIDE)
    )?;
    if let (Some(port), Some(eth0)) = (&port, &eth0)
        && eth0.peer == Some(port.index)
        && port.peer == Some(eth0.index)
        && port.controller == Some(bridge.index)
        && port.is_up
    {
        return Ok(Some(eth0.index));
    }
    if let Some(port) = &port {
        netlink::delete_link(handle, port).await?;
    }
    if let Some(eth0) = netlink::link_by_name(inside, INSIDE).await? {
        netlink::delete_link(inside, &eth0).await?;
    }
    Ok(None)
}

/// Makes the pair in one message: the node's end up and on the bridge, the pod's in its namespace. The
/// kernel does not take a peer that is to be up at once.
async fn create(
    handle: &Handle,
    bridge: &Link,
    name: &str,
    namespace: &Namespace,
    addresses: &[IpAddr],
) -> Result<(), NetworkError> {
    let mut peer = LinkUnspec::new_with_name(INSIDE)
        .mtu(bridge.mtu)
        .setns_by_fd(namespace.file.as_raw_fd());
    if let Some(address) = addresses.first() {
        peer = peer.address(netlink::hardware_address(*address));
    }
    let message = LinkVeth::new(name, INSIDE)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
        .mtu(bridge.mtu)
        .controller(bridge.index)
        .up()
        .build();
    handle
        .link()
        .add(message)
        .execute()
        .await
        .map_err(NetworkError::netlink(format!("interface {name}")))
}

/// Lets a pod reach itself by an address that leads back through the bridge.
pub(crate) async fn hairpin(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let failed = || NetworkError::netlink(format!("hairpin mode of {name}"));
    let Some(port) = netlink::link_by_name(handle, name).await? else {
        return Err(NetworkError::Conflict(format!("interface {name} has gone")));
    };
    let message = LinkBridgePort::new(port.index).hairpin(true).build();
    handle
        .link()
        .set_port(message)
        .execute()
        .await
        .map_err(failed())
}

/// Loopback, addresses and the way out, inside.
async fn configure(
    inside: &Handle,
    config: &NetworkConfig,
    index: u32,
    addresses: &[IpAddr],
) -> Result<(), NetworkError> {
    netlink::set_up(inside, "lo").await?;
    netlink::set_up(inside, INSIDE).await?;
    for (address, prefix_len) in netlink::addresses(inside, index).await? {
        let is_link_local =
            matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        if !is_link_local && !addresses.contains(&address) {
            netlink::delete_address(inside, index, address, prefix_len).await?;
        }
    }
    for address in addresses {
        let Some(cidr) = config.cidrs().find(|cidr| cidr.contains(*address)) else {
            return Err(NetworkError::outside(*address, &config.pod_cidr));
        };
        netlink::add_address(inside, index, *address, cidr.prefix_len()).await?;
        netlink::set_default_route(inside, index, cidr.gateway()).await?;
    }
    Ok(())
}

/// Removes a pod's pair. Gone already: `Ok`.
pub(crate) async fn detach(
    handle: &Handle,
    bridge_name: &str,
    uid: &str,
) -> Result<(), NetworkError> {
    match netlink::link_by_name(handle, &name(bridge_name, uid)).await? {
        Some(port) => netlink::delete_link(handle, &port).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_differ_and_never_change() {
        assert_eq!(name("wherry0", "a"), name("wherry0", "a"));
        assert_ne!(name("wherry0", "a"), name("wherry1", "a"));
        let names: std::collections::HashSet<_> = (0..1000)
            .map(|uid| name("wherry0", &uid.to_string()))
            .collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 15));
    }
}

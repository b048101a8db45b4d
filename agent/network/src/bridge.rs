//! The bridge: the node's end of the pod network, and the home of confined pods' addresses.

use std::fs;

use nix::errno::Errno;
use rtnetlink::{Handle, LinkBridge, packet_route::link::InfoKind};
use tracing::info;

use crate::{
    Backend, Cidr, NetworkConfig, NetworkError,
    netlink::{self, Link},
    peers,
};

/// Largest packet where the way outside does not say: Ethernet's.
const MTU_DEFAULT: u32 = 1500;

/// Makes the bridge with the gateways' addresses, or finds it there.
///
/// # Errors
/// An interface of another kind has the name, or a route of the node's leads into the pod CIDR.
pub(crate) async fn ensure(handle: &Handle, config: &NetworkConfig) -> Result<Link, NetworkError> {
    let name = &config.bridge;
    if netlink::link_by_name(handle, name).await?.is_none() {
        create(handle, config).await?;
    }
    let link = netlink::link_by_name(handle, name).await?;
    let link = link.ok_or_else(|| NetworkError::Conflict(format!("interface {name} has gone")))?;
    if link.kind != Some(InfoKind::Bridge) {
        return Err(NetworkError::Conflict(format!(
            "interface {name} is there and is not a bridge"
        )));
    }
    for cidr in config.cidrs() {
        netlink::add_address(handle, link.index, cidr.gateway(), cidr.prefix_len()).await?;
    }
    if !link.is_up {
        netlink::set_up(handle, name).await?;
    }
    for cidr in config.cidrs() {
        forward(&cidr)?;
    }
    Ok(link)
}

async fn create(handle: &Handle, config: &NetworkConfig) -> Result<(), NetworkError> {
    let mut mtu = config.mtu;
    for cidr in config.cidrs() {
        let found = outside(handle, &cidr).await?;
        mtu = mtu.or(found);
    }
    if config.mtu.is_none() && config.backend == Backend::Vxlan {
        // With "auto" pods learn it of the path, for most of what they say stays out of the tunnel.
        mtu = peers::tunnel_mtu(handle, config).await?.or(mtu);
    }
    let name = &config.bridge;
    // A fixed hardware address: by default a bridge takes the lowest of its ports', which changes
    // with every pod, and neighbours would be lost each time.
    let message = LinkBridge::new(name)
        .address(netlink::hardware_address(config.pod_cidr.gateway()))
        .mtu(mtu.unwrap_or(MTU_DEFAULT))
        .up()
        .build();
    match handle.link().add(message).execute().await {
        Ok(()) => info!(bridge = %name, "Bridge made"),
        Err(error) if netlink::errno(&error) == Some(Errno::EEXIST) => {}
        Err(error) => return Err(NetworkError::netlink(format!("bridge {name}"))(error)),
    }
    Ok(())
}

/// Checks that no route leads into `cidr`; answers the largest packet of the way outside.
async fn outside(handle: &Handle, cidr: &Cidr) -> Result<Option<u32>, NetworkError> {
    let routes = netlink::routes(handle, cidr.network().is_ipv6()).await?;
    let links = netlink::links(handle).await?;
    let link_of = |index: u32| links.iter().find(|link| link.index == index);
    let mut mtu = None;
    for route in routes {
        match route.destination {
            Some(destination) if destination.overlaps(cidr) => {
                let name = link_of(route.output_index).map_or("nowhere", |link| link.name.as_str());
                return Err(NetworkError::Conflict(format!(
                    "pod CIDR {cidr} overlaps with the route {destination} to {name}; choose another pod CIDR"
                )));
            }
            None => mtu = mtu.or(link_of(route.output_index).map(|link| link.mtu)),
            Some(_) => {}
        }
    }
    Ok(mtu)
}

/// Lets the node pass on packets that are not its own.
fn forward(cidr: &Cidr) -> Result<(), NetworkError> {
    let path = if cidr.network().is_ipv6() {
        "/proc/sys/net/ipv6/conf/all/forwarding"
    } else {
        "/proc/sys/net/ipv4/ip_forward"
    };
    let is_on = fs::read_to_string(path)
        .map_err(NetworkError::io(path))?
        .trim()
        == "1";
    if is_on {
        Ok(())
    } else {
        fs::write(path, "1").map_err(NetworkError::io(path))
    }
}

//! Addresses of the node's own that pods meet behind the bridge.

use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::{Handle, LinkBridge, RouteMessageBuilder, packet_route::route::RouteScope};

use crate::{
    Cidr, NetworkError,
    error::to_io,
    netlink::{self, Link},
};

/// Gives the bridge an address that only the node has, as for a name server. There already: `Ok`. It goes
/// with the bridge.
///
/// # Errors
/// The bridge is not there; the kernel refuses.
pub async fn add_address(bridge: &str, address: IpAddr) -> Result<(), NetworkError> {
    let (handle, link) = open(bridge).await?;
    netlink::add_address(&handle, link.index, address, netlink::single(address)).await
}

/// Leads a range to the bridge, so that the node's own programs find a way to addresses that are
/// translated before they leave. There already: `Ok`. It goes with the bridge.
///
/// # Errors
/// The bridge is not there; the kernel refuses.
pub async fn add_route(bridge: &str, cidr: &Cidr) -> Result<(), NetworkError> {
    let (handle, link) = open(bridge).await?;
    let message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(cidr.network(), cidr.prefix_len())
        .map_err(|error| NetworkError::InvalidConfig(format!("route to {cidr}: {error}")))?
        .output_interface(link.index)
        .scope(RouteScope::Link)
        .build();
    let done = handle.route().add(message).replace().execute().await;
    done.map_err(|error| NetworkError::Netlink {
        what: format!("route to {cidr}"),
        source: to_io(error),
    })
}

/// Makes a bridge that nothing is attached to, where the pods have another network. There already: `Ok`.
///
/// # Errors
/// The kernel refuses.
pub async fn make_home(bridge: &str) -> Result<(), NetworkError> {
    let handle = netlink::connect()?;
    let message = LinkBridge::new(bridge).up().build();
    match handle.link().add(message).execute().await {
        Err(error) if netlink::errno(&error) != Some(Errno::EEXIST) => {
            Err(NetworkError::netlink(format!("bridge {bridge}"))(error))
        }
        _ => Ok(()),
    }
}

async fn open(bridge: &str) -> Result<(Handle, Link), NetworkError> {
    let handle = netlink::connect()?;
    let link = netlink::link_by_name(&handle, bridge).await?;
    let link =
        link.ok_or_else(|| NetworkError::Conflict(format!("interface {bridge} is not there")))?;
    Ok((handle, link))
}

//! A bridge that somebody has deleted: what was on it comes back with it.

use std::net::IpAddr;

use rtnetlink::{Handle, LinkUnspec};
use tracing::info;

use crate::{
    Cidr, NetworkError, PodNetwork, local,
    netlink::{self, Link, single},
    veth,
};

/// The bridge as it was last seen.
#[derive(Default)]
pub(super) struct Bridge {
    index: Option<u32>,
    /// Addresses of confined pods, and the node's own besides the gateways.
    addresses: Vec<IpAddr>,
    /// Ranges that lead to it.
    ranges: Vec<Cidr>,
}

impl Bridge {
    /// Puts back what was there if this is another bridge than last time, and remembers what is there now.
    pub(super) async fn look_after(
        &mut self,
        handle: &Handle,
        network: &PodNetwork,
        bridge: &Link,
    ) -> Result<(), NetworkError> {
        if self.index.is_some_and(|index| index != bridge.index) {
            info!(bridge = %bridge.name, "The bridge was made again; pods are attached to it");
            self.restore(handle, network, bridge).await?;
        }
        let addresses = netlink::addresses(handle, bridge.index).await?;
        let addresses = addresses
            .into_iter()
            .filter(|(ip, prefix_len)| *prefix_len == single(*ip));
        self.addresses = addresses.map(|(ip, _)| ip).collect();
        self.ranges.clear();
        for is_ipv6 in [false, true] {
            let routes = netlink::routes(handle, is_ipv6).await?;
            let ranges = routes
                .iter()
                .filter(|route| route.output_index == bridge.index && route.protocol_is_static)
                .filter_map(|route| route.destination);
            self.ranges.extend(ranges);
        }
        self.index = Some(bridge.index);
        Ok(())
    }

    async fn restore(
        &self,
        handle: &Handle,
        network: &PodNetwork,
        bridge: &Link,
    ) -> Result<(), NetworkError> {
        let names = network.port_names();
        for link in netlink::links(handle).await? {
            if link.controller.is_none() && names.contains(&link.name) {
                let message = LinkUnspec::new_with_index(link.index)
                    .controller(bridge.index)
                    .build();
                let done = handle.link().set(message).execute().await;
                done.map_err(NetworkError::netlink(&link.name))?;
                veth::hairpin(handle, &link.name).await?;
            }
        }
        for ip in &self.addresses {
            netlink::add_address(handle, bridge.index, *ip, single(*ip)).await?;
        }
        for range in &self.ranges {
            local::add_route(network.bridge(), range).await?;
        }
        Ok(())
    }
}

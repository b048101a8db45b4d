//! Hears when links, routes, rules or our nftables change under other hands.

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{RouteNetlinkMessage as Message, link::LinkAttribute, route::RouteMessage},
    sys::SocketAddr,
};
use tracing::warn;

use super::kernel::{self, PROTOCOL};
use crate::{NetworkConfig, firewall, netfilter, veth};

/// What may have been taken away.
const GROUPS: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

type News = UnboundedReceiver<(NetlinkMessage<Message>, SocketAddr)>;

/// Listens in the network namespace it was made in.
pub(super) struct Monitor {
    news: Option<News>,
    nftables: Option<netfilter::Monitor>,
    table: String,
    bridge: String,
}

impl Monitor {
    /// Listens as far as the kernel lets it; the relist repairs the rest.
    pub(super) fn open(config: &NetworkConfig) -> Self {
        let news = match rtnetlink::new_multicast_connection(GROUPS) {
            Ok((connection, _, news)) => {
                tokio::spawn(connection);
                Some(news)
            }
            Err(error) => {
                warn!(%error, "Changes of routes cannot be heard; they are looked for now and then");
                None
            }
        };
        let nftables = match netfilter::Monitor::open() {
            Ok(monitor) => Some(monitor).filter(|_| config.masquerade),
            Err(error) => {
                warn!(%error, "Changes of nftables cannot be heard; a table that somebody deletes stays deleted until the agent starts again");
                None
            }
        };
        Self {
            news,
            nftables,
            table: firewall::table(config),
            bridge: config.bridge.clone(),
        }
    }

    /// Waits for a change that may matter; answers whether it was one of nftables, by a process that is none of
    /// `own`.
    ///
    /// # Cancel safety
    /// News that have been read and do not matter are gone; others are not.
    pub(super) async fn changed(&mut self, own: &[u32]) -> bool {
        let Self {
            news,
            nftables,
            table,
            bridge,
        } = self;
        let routes = async {
            match news {
                Some(news) => {
                    while let Some((message, _)) = news.next().await {
                        if matters(&message, bridge) {
                            return;
                        }
                    }
                    std::future::pending().await
                }
                None => std::future::pending().await,
            }
        };
        let tables = async {
            match nftables {
                Some(monitor) => {
                    let own = |pid| own.contains(&pid);
                    monitor.foreign_deletion(&[table.as_str()], own).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = routes => false,
            () = tables => true,
        }
    }

    /// Forgets what has been heard so far: everything is about to be looked at.
    pub(super) fn drain(&mut self) {
        if let Some(news) = &mut self.news {
            while news.try_recv().is_ok() {}
        }
    }
}

/// Pods come and go by veths and by addresses on the bridge, and neighbours by themselves: none of that is news.
fn matters(message: &NetlinkMessage<Message>, bridge: &str) -> bool {
    let is_ours = |route: &RouteMessage| u8::from(route.header.protocol) == PROTOCOL;
    match &message.payload {
        NetlinkPayload::InnerMessage(message) => match message {
            Message::NewLink(link) | Message::DelLink(link) => {
                let name = link
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        LinkAttribute::IfName(name) => Some(name.as_str()),
                        _ => None,
                    });
                name.is_some_and(|name| !veth::is_name(name))
            }
            Message::DelRoute(route) => is_ours(route),
            Message::DelRule(_) => true,
            Message::NewAddress(address) | Message::DelAddress(address) => {
                kernel::index_of(bridge) != Some(address.header.index)
            }
            Message::DelNeighbour(neighbour) => {
                kernel::index_of(&kernel::tunnel_name(bridge)) == Some(neighbour.header.ifindex)
            }
            _ => false,
        },
        // News were lost.
        NetlinkPayload::Overrun(_) | NetlinkPayload::Error(_) => true,
        _ => false,
    }
}

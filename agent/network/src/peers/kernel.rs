//! What the kernel has of the ways to other nodes, and how it is brought to a [`Plan`].
//!
//! Routes are known as ours by protocol and metric, the tunnel by its name, rules by their table; all three follow
//! from the bridge's name, for nodes may share a machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::{
    Handle, IpVersion, LinkUnspec, LinkVxlan, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::AddressMessage,
        link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};
use tracing::{debug, info};

use super::plan::{Address, Local, Mac, Plan, Route, Table, Via};
use crate::{
    Cidr, NetworkConfig, NetworkError, Vxlan,
    netlink::{self, Link, is_gone, single},
};

/// Says whose a route is. Numbers from 32 on are anybody's (`/etc/iproute2/rt_protos`), and this is nobody's else.
pub(super) const PROTOCOL: u8 = 87;
/// Where our rules stand: before the main table's, 32766, and after those that people number by hand.
const RULE_PRIORITY: u32 = 20_087;
/// Tables above 255 are anybody's.
const TABLE_FIRST: u32 = 87_000_000;
const MAIN: u8 = 254;

/// A number of the node's own that fits into a metric: other nodes on one machine have other routes.
fn number(bridge: &str) -> u32 {
    1000 + u32::try_from(netlink::stable_hash(&[bridge]) % 60_000).unwrap_or(0)
}

fn table(bridge: &str) -> u32 {
    TABLE_FIRST + number(bridge)
}

/// The tunnel's interface.
pub(super) fn tunnel_name(bridge: &str) -> String {
    let name = format!("vx-{bridge}");
    if name.len() <= 15 {
        name
    } else {
        format!("vx-{}", number(bridge))
    }
}

/// The index of an interface, by its name.
pub(super) fn index_of(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// What the tunnel puts around a packet: Ethernet, VXLAN, UDP and IP.
pub(super) fn overhead(end: IpAddr) -> u32 {
    if end.is_ipv4() { 50 } else { 70 }
}

/// What the node has besides its pods.
pub(super) async fn local(handle: &Handle, config: &NetworkConfig) -> Result<Local, NetworkError> {
    let links = netlink::links(handle).await?;
    let tunnel = tunnel_name(&config.bridge);
    let is_own = |index: u32| {
        let link = links.iter().find(|link| link.index == index);
        link.is_none_or(|link| link.name == config.bridge || link.name == tunnel)
    };
    let messages: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(NetworkError::netlink("addresses"))?;
    let addresses: Vec<Address> = messages
        .iter()
        .filter(|message| !is_own(message.header.index))
        .filter_map(|message| {
            Some(Address {
                ip: netlink::address_of(message)?,
                prefix_len: message.header.prefix_len,
                link: message.header.index,
            })
        })
        .filter(|address| !address.ip.is_loopback() && !is_link_local(address.ip))
        .collect();
    let node_ip = config
        .node_ips
        .iter()
        .find(|ip| addresses.iter().any(|own| own.ip == **ip))
        .copied();
    Ok(Local {
        addresses,
        node_ip,
        pod_cidrs: config.cidrs().collect(),
    })
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Brings the kernel to the plan: what is missing is made before what is too much is removed.
pub(super) async fn apply(
    handle: &Handle,
    config: &NetworkConfig,
    local: &Local,
    plan: &Plan,
) -> Result<(), NetworkError> {
    let tunnel = match &plan.tunnel {
        Some((end, mac)) => {
            let link = ensure_tunnel(handle, config, local, *end, mac).await?;
            forwards(handle, &link, &plan.forwards).await?;
            neighbours(handle, &link, &plan.neighbours).await?;
            Some(link)
        }
        None => None,
    };
    let bridge = &config.bridge;
    let routed = routes(handle, bridge, plan, tunnel.as_ref()).await;
    rules(handle, bridge, &plan.rules).await?;
    if tunnel.is_none() {
        remove_tunnel(handle, bridge).await?;
    }
    routed
}

/// Takes away everything of it. Repeatable.
pub(crate) async fn remove(handle: &Handle, bridge: &str) -> Result<(), NetworkError> {
    routes(handle, bridge, &Plan::default(), None).await?;
    rules(handle, bridge, &BTreeSet::new()).await?;
    remove_tunnel(handle, bridge).await
}

async fn remove_tunnel(handle: &Handle, bridge: &str) -> Result<(), NetworkError> {
    let name = tunnel_name(bridge);
    match netlink::link_by_name(handle, &name).await? {
        Some(link) if link.kind == Some(InfoKind::Vxlan) => {
            info!(interface = name, "No node is behind the tunnel any more");
            netlink::delete_link(handle, &link).await
        }
        _ => Ok(()),
    }
}

async fn ensure_tunnel(
    handle: &Handle,
    config: &NetworkConfig,
    local: &Local,
    end: IpAddr,
    mac: &Mac,
) -> Result<Link, NetworkError> {
    let name = tunnel_name(&config.bridge);
    let failed = || NetworkError::netlink(format!("interface {name}"));
    let under = local.addresses.iter().find(|address| address.ip == end);
    let links = netlink::links(handle).await?;
    let under = under.and_then(|under| links.iter().find(|link| link.index == under.link));
    let mtu = under.map_or(1500, |link| link.mtu) - overhead(end);
    let found = match found_tunnel(handle, &name).await? {
        Some((link, found)) if found == tunnel_form(config.vxlan, end, mac) => Some(link),
        Some((link, _)) => {
            netlink::delete_link(handle, &link).await?;
            None
        }
        None => None,
    };
    let link = match found {
        Some(link) => link,
        None => {
            let message = LinkVxlan::new(&name, config.vxlan.vni)
                .port(config.vxlan.port)
                .learning(false);
            let message = match end {
                IpAddr::V4(end) => message.local(end),
                IpAddr::V6(end) => message.local6(end),
            };
            let message = message.address(mac.clone()).mtu(mtu).build();
            match handle.link().add(message).execute().await {
                Err(error) if netlink::errno(&error) == Some(Errno::EEXIST) => {
                    let Vxlan { vni, port } = config.vxlan;
                    return Err(NetworkError::Conflict(format!(
                        "a tunnel with VNI {vni} and port {port} is there already, and a machine can have it once; \
                         --vxlan-vni or --vxlan-port, the same on all nodes, name others"
                    )));
                }
                done => done.map_err(failed())?,
            }
            info!(interface = name, mtu, "Tunnel made");
            let link = netlink::link_by_name(handle, &name).await?;
            link.ok_or_else(|| NetworkError::Conflict(format!("interface {name} has gone")))?
        }
    };
    if link.mtu != mtu || !link.is_up {
        let message = LinkUnspec::new_with_index(link.index).mtu(mtu).up().build();
        handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed())?;
    }
    // Packets may come by the tunnel whose answers go another way, as while a node changes its backend.
    let _ = fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "2");
    // Senders that are masqueraded on the way into the tunnel appear as the node.
    netlink::add_address(handle, link.index, end, single(end)).await?;
    Ok(link)
}

/// What has to be as wanted, or the tunnel is made anew.
#[derive(PartialEq, Eq)]
struct Form {
    numbers: Vxlan,
    end: Option<IpAddr>,
    mac: Mac,
}

fn tunnel_form(numbers: Vxlan, end: IpAddr, mac: &Mac) -> Form {
    Form {
        numbers,
        end: Some(end),
        mac: mac.clone(),
    }
}

async fn found_tunnel(handle: &Handle, name: &str) -> Result<Option<(Link, Form)>, NetworkError> {
    let found = handle.link().get().match_name(name.to_owned()).execute();
    let message: LinkMessage = match found.try_collect::<Vec<_>>().await {
        Ok(mut all) if !all.is_empty() => all.swap_remove(0),
        Ok(_) => return Ok(None),
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(NetworkError::netlink(name)(error)),
    };
    let mut form = Form {
        numbers: Vxlan { vni: 0, port: 0 },
        end: None,
        mac: Mac::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(mac) => form.mac.clone_from(mac),
            LinkAttribute::LinkInfo(infos) => {
                let vxlan = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vxlan(vxlan)) => Some(vxlan),
                    _ => None,
                });
                for info in vxlan.into_iter().flatten() {
                    match info {
                        InfoVxlan::Id(vni) => form.numbers.vni = *vni,
                        InfoVxlan::Port(port) => form.numbers.port = *port,
                        InfoVxlan::Local(end) => form.end = Some((*end).into()),
                        InfoVxlan::Local6(end) => form.end = Some((*end).into()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Some((Link::from(message), form)))
}

async fn neighbour_messages(
    handle: &Handle,
    family: AddressFamily,
    index: u32,
) -> Result<Vec<NeighbourMessage>, NetworkError> {
    let all = handle.neighbours().get().set_address_family(family);
    let all: Vec<NeighbourMessage> = all
        .execute()
        .try_collect()
        .await
        .map_err(NetworkError::netlink("neighbours"))?;
    Ok(all
        .into_iter()
        .filter(|message| message.header.ifindex == index)
        .collect())
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some((*ip).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some((*ip).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                if let Ok(bytes) = <[u8; 4]>::try_from(&bytes[..]) {
                    return Some(Ipv4Addr::from(bytes).into());
                }
                Some(Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?).into())
            }
            _ => None,
        })
}

fn hardware(message: &NeighbourMessage) -> Option<Mac> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.clone()),
            _ => None,
        })
}

async fn forget(handle: &Handle, message: NeighbourMessage) -> Result<(), NetworkError> {
    match handle.neighbours().del(message).execute().await {
        Err(error) if !is_gone(&error) => Err(NetworkError::netlink("neighbour")(error)),
        _ => Ok(()),
    }
}

/// Which node has which hardware address.
async fn forwards(
    handle: &Handle,
    tunnel: &Link,
    wanted: &BTreeMap<Mac, IpAddr>,
) -> Result<(), NetworkError> {
    let mut there = BTreeSet::new();
    for message in neighbour_messages(handle, AddressFamily::Bridge, tunnel.index).await? {
        let (Some(mac), Some(ip)) = (hardware(&message), destination(&message)) else {
            continue;
        };
        if wanted.get(&mac) == Some(&ip) {
            there.insert(mac);
        } else if !wanted.contains_key(&mac) {
            forget(handle, message).await?;
        }
    }
    for (mac, ip) in wanted.iter().filter(|(mac, _)| !there.contains(*mac)) {
        let request = handle.neighbours().add_bridge(tunnel.index, mac);
        let request = request
            .destination(*ip)
            .flags(NeighbourFlags::Own)
            .replace();
        let done = request.execute().await;
        done.map_err(NetworkError::netlink(format!("tunnel to {ip}")))?;
    }
    Ok(())
}

/// Which hardware address the gateways behind the tunnel have.
async fn neighbours(
    handle: &Handle,
    tunnel: &Link,
    wanted: &BTreeMap<IpAddr, Mac>,
) -> Result<(), NetworkError> {
    let mut there = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for message in neighbour_messages(handle, family, tunnel.index).await? {
            let Some(ip) = destination(&message) else {
                continue;
            };
            let is_permanent = message.header.state == NeighbourState::Permanent;
            match wanted.get(&ip) {
                Some(mac) if is_permanent && hardware(&message).as_ref() == Some(mac) => {
                    there.insert(ip);
                }
                None if is_permanent => forget(handle, message).await?,
                _ => {}
            }
        }
    }
    for (ip, mac) in wanted.iter().filter(|(ip, _)| !there.contains(*ip)) {
        let request = handle.neighbours().add(tunnel.index, *ip);
        let done = request.link_layer_address(mac).replace().execute().await;
        done.map_err(NetworkError::netlink(format!("neighbour {ip}")))?;
    }
    Ok(())
}

/// A route of ours as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    table: Table,
    destination: Cidr,
    gateway: Option<IpAddr>,
    link: u32,
    source: Option<IpAddr>,
}

async fn routes(
    handle: &Handle,
    bridge: &str,
    plan: &Plan,
    tunnel: Option<&Link>,
) -> Result<(), NetworkError> {
    let mut wanted: BTreeMap<Found, &Route> = BTreeMap::new();
    for route in &plan.routes {
        let link = match route.via {
            Via::Link(index) => Some(index),
            Via::Tunnel => tunnel.map(|link| link.index),
        };
        if let Some(link) = link {
            let found = Found {
                table: route.table,
                destination: route.destination,
                gateway: Some(route.gateway),
                link,
                source: route.source,
            };
            wanted.insert(found, route);
        }
    }
    let places: BTreeSet<_> = wanted
        .keys()
        .map(|found| (found.table, found.destination))
        .collect();
    let mut stale = Vec::new();
    for is_ipv6 in [false, true] {
        for message in route_messages(handle, is_ipv6).await? {
            let Some(found) = found_route(&message, bridge) else {
                continue;
            };
            // What has to lead elsewhere is replaced, so that there is always a way.
            if wanted.remove(&found).is_none()
                && !places.contains(&(found.table, found.destination))
            {
                stale.push((found, message));
            }
        }
    }
    let mut failed = None;
    for (found, route) in wanted {
        let added = add_route(handle, bridge, &found, route).await;
        match added {
            Ok(()) => {
                info!(to = %route.destination, gateway = %route.gateway, tunnel = route.via == Via::Tunnel, "Route made")
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    for (found, message) in stale {
        debug!(to = %found.destination, "Route removed");
        match handle.route().del(message).execute().await {
            Err(error) if netlink::errno(&error) != Some(Errno::ESRCH) => {
                failed = failed.or(Some(NetworkError::netlink(format!(
                    "route to {}",
                    found.destination
                ))(error)));
            }
            _ => {}
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn add_route(
    handle: &Handle,
    bridge: &str,
    found: &Found,
    route: &Route,
) -> Result<(), NetworkError> {
    let what = || format!("route to {} by {}", route.destination, route.gateway);
    fn invalid(error: impl std::fmt::Display) -> NetworkError {
        NetworkError::InvalidConfig(format!("route: {error}"))
    }
    let destination = route.destination;
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.network(), destination.prefix_len())
        .map_err(invalid)?
        .gateway(route.gateway)
        .map_err(invalid)?
        .output_interface(found.link)
        .protocol(RouteProtocol::Other(PROTOCOL))
        .priority(number(bridge));
    if let Some(source) = route.source {
        builder = builder.pref_source(source).map_err(invalid)?;
    }
    if route.via == Via::Tunnel {
        // The gateway is on no network of the tunnel's; it is said to be behind it.
        builder = builder.onlink();
    }
    if route.table == Table::Pods {
        builder = builder.table_id(table(bridge));
    }
    let done = handle
        .route()
        .add(builder.build())
        .replace()
        .execute()
        .await;
    done.map_err(NetworkError::netlink(what()))
}

async fn route_messages(handle: &Handle, is_ipv6: bool) -> Result<Vec<RouteMessage>, NetworkError> {
    let message = if is_ipv6 {
        RouteMessageBuilder::<Ipv6Addr>::new().build()
    } else {
        RouteMessageBuilder::<Ipv4Addr>::new().build()
    };
    let messages = handle.route().get(message).execute().try_collect().await;
    messages.map_err(NetworkError::netlink("routes"))
}

fn found_route(message: &RouteMessage, bridge: &str) -> Option<Found> {
    if u8::from(message.header.protocol) != PROTOCOL {
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::from(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::from(*ip)),
        _ => None,
    };
    let (mut destination, mut gateway, mut source) = (None, None, None);
    let (mut link, mut metric, mut in_table) = (0, 0, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => link = *index,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Table(id) => in_table = *id,
            _ => {}
        }
    }
    let is_ours = metric == number(bridge);
    let in_table = match in_table {
        id if id == u32::from(MAIN) => Table::Main,
        id if id == table(bridge) => Table::Pods,
        _ => return None,
    };
    let destination = Cidr::new(destination?, message.header.destination_prefix_length).ok()?;
    is_ours.then_some(Found {
        table: in_table,
        destination,
        gateway,
        link,
        source,
    })
}

async fn rules(handle: &Handle, bridge: &str, wanted: &BTreeSet<Cidr>) -> Result<(), NetworkError> {
    let table = table(bridge);
    let mut there = BTreeSet::new();
    for family in [IpVersion::V4, IpVersion::V6] {
        let all: Vec<RuleMessage> = handle
            .rule()
            .get(family)
            .execute()
            .try_collect()
            .await
            .map_err(NetworkError::netlink("rules"))?;
        for message in all {
            let in_table = message
                .attributes
                .iter()
                .any(|attribute| matches!(attribute, RuleAttribute::Table(id) if *id == table));
            if !in_table {
                continue;
            }
            let source = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RuleAttribute::Source(ip) => Cidr::new(*ip, message.header.src_len).ok(),
                    _ => None,
                });
            match source {
                Some(source) if wanted.contains(&source) && there.insert(source) => {}
                _ => match handle.rule().del(message).execute().await {
                    Err(error) if netlink::errno(&error) != Some(Errno::ENOENT) => {
                        return Err(NetworkError::netlink("rule")(error));
                    }
                    _ => {}
                },
            }
        }
    }
    for source in wanted.iter().filter(|source| !there.contains(*source)) {
        let request = handle
            .rule()
            .add()
            .action(RuleAction::ToTable)
            .priority(RULE_PRIORITY)
            .table_id(table);
        let done = match source.network() {
            IpAddr::V4(ip) => {
                let request = request.v4().source_prefix(ip, source.prefix_len());
                request.execute().await
            }
            IpAddr::V6(ip) => {
                let request = request.v6().source_prefix(ip, source.prefix_len());
                request.execute().await
            }
        };
        done.map_err(NetworkError::netlink(format!("rule for {source}")))?;
    }
    Ok(())
}

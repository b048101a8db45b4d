//! Links, addresses and routes by netlink, each call repeatable.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use futures::TryStreamExt;
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
};
use rtnetlink::{
    AddressMessageBuilder, Error, Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, CacheInfo},
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
    },
};

use crate::{Cidr, NetworkError, cidr::bits_of, error::to_io};

/// What this crate wants to know of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: Option<InfoKind>,
    pub(crate) is_up: bool,
    pub(crate) mtu: u32,
    /// The bridge it is a port of.
    pub(crate) controller: Option<u32>,
    /// For a veth: the index of its peer, in the peer's namespace.
    pub(crate) peer: Option<u32>,
}

/// A route as far as it says where a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// `None` for the default route.
    pub(crate) destination: Option<Cidr>,
    pub(crate) output_index: u32,
    /// Somebody made it; the kernel did not.
    pub(crate) protocol_is_static: bool,
}

/// A connection to the network namespace of the calling thread, served by the current runtime until
/// the handle is dropped.
pub(crate) fn connect() -> Result<Handle, NetworkError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(NetworkError::io("netlink"))?;
    tokio::spawn(connection);
    Ok(handle)
}

/// A connection to another network namespace. A socket stays in the namespace it was made in, so
/// only a thread of our own, which is not used for anything else, ever enters it.
pub(crate) async fn connect_inside(namespace: &Namespace) -> Result<Handle, NetworkError> {
    let fd = namespace
        .file
        .try_clone()
        .map_err(|source| namespace.error(source))?;
    let runtime = tokio::runtime::Handle::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("netns".into());
    let spawned = thread.spawn(move || {
        let entered = setns(fd.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        let _runtime = runtime.enter();
        let _ = sender.send(entered.and_then(|()| rtnetlink::new_connection()));
    });
    spawned.map_err(|source| namespace.error(source))?;
    let connected = receiver
        .await
        .map_err(|_| namespace.error(io::Error::other("the thread ended")))?;
    let (connection, handle, _) = connected.map_err(|source| namespace.error(source))?;
    tokio::spawn(connection);
    Ok(handle)
}

/// A pod's network namespace, held open.
pub(crate) struct Namespace {
    pub(crate) file: File,
    path: String,
}

impl Namespace {
    /// Opens a namespace.
    ///
    /// # Errors
    /// It is not there, or it is the node's own.
    pub(crate) fn open(path: &Path) -> Result<Self, NetworkError> {
        let name = path.display().to_string();
        let failed = |source| NetworkError::Namespace {
            path: name.clone(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let own = std::fs::metadata("/proc/thread-self/ns/net").map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if (found.dev(), found.ino()) == (own.dev(), own.ino()) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is the node's own");
            return Err(NetworkError::Namespace { path: name, source });
        }
        Ok(Self { file, path: name })
    }

    /// By what it is known from another at the same path.
    pub(crate) fn inode(&self) -> Result<u64, NetworkError> {
        let found = self.file.metadata();
        found
            .map(|found| found.ino())
            .map_err(|source| NetworkError::Namespace {
                path: self.path.clone(),
                source,
            })
    }

    pub(crate) fn error(&self, source: io::Error) -> NetworkError {
        NetworkError::Namespace {
            path: self.path.clone(),
            source,
        }
    }
}

/// An interface by its name.
pub(crate) async fn link_by_name(
    handle: &Handle,
    name: &str,
) -> Result<Option<Link>, NetworkError> {
    let found = handle
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_next()
        .await;
    match found {
        Ok(found) => Ok(found.map(Link::from)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(NetworkError::netlink(name)(error)),
    }
}

/// All interfaces.
pub(crate) async fn links(handle: &Handle) -> Result<Vec<Link>, NetworkError> {
    let links = handle.link().get().execute().map_ok(Link::from);
    links
        .try_collect()
        .await
        .map_err(NetworkError::netlink("interfaces"))
}

/// Removes an interface. Gone already: `Ok`.
pub(crate) async fn delete_link(handle: &Handle, link: &Link) -> Result<(), NetworkError> {
    match handle.link().del(link.index).execute().await {
        Err(error) if !is_gone(&error) => Err(NetworkError::netlink(&link.name)(error)),
        _ => Ok(()),
    }
}

/// Sets an interface up.
pub(crate) async fn set_up(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let message = LinkUnspec::new_with_name(name).up().build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(NetworkError::netlink(format!("set {name} up")))
}

/// Gives an interface an address. There already: `Ok`.
pub(crate) async fn add_address(
    handle: &Handle,
    index: u32,
    address: IpAddr,
    prefix_len: u8,
) -> Result<(), NetworkError> {
    let mut request = handle.address().add(index, address, prefix_len);
    if address.is_ipv6() {
        // Nobody else can have it, and without a carrier the question would never be answered.
        let message = request.message_mut();
        message.header.flags |= AddressHeaderFlags::Nodad;
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
        if prefix_len == single(address) {
            // A confined pod's address must not become the source of the node's own packets: that is
            // what "deprecated" does, and a preferred lifetime of 0 makes it so.
            let mut lifetimes = CacheInfo::default();
            lifetimes.ifa_valid = u32::MAX;
            message
                .attributes
                .push(AddressAttribute::CacheInfo(lifetimes));
        }
    }
    match request.execute().await {
        Err(error) if errno(&error) != Some(Errno::EEXIST) => {
            Err(NetworkError::netlink(format!("address {address}"))(error))
        }
        _ => Ok(()),
    }
}

/// Takes an address from an interface. Gone already: `Ok`.
pub(crate) async fn delete_address(
    handle: &Handle,
    index: u32,
    address: IpAddr,
    prefix_len: u8,
) -> Result<(), NetworkError> {
    let message = match address {
        IpAddr::V4(address) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(address, prefix_len)
            .build(),
        IpAddr::V6(address) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(index)
            .address(address, prefix_len)
            .build(),
    };
    match handle.address().del(message).execute().await {
        Err(error) if !is_gone(&error) => {
            Err(NetworkError::netlink(format!("address {address}"))(error))
        }
        _ => Ok(()),
    }
}

/// Addresses of an interface with the lengths of their prefixes.
pub(crate) async fn addresses(
    handle: &Handle,
    index: u32,
) -> Result<Vec<(IpAddr, u8)>, NetworkError> {
    let messages = handle
        .address()
        .get()
        .set_link_index_filter(index)
        .execute();
    let messages: Vec<AddressMessage> = messages
        .try_collect()
        .await
        .map_err(NetworkError::netlink("addresses"))?;
    Ok(messages
        .iter()
        .filter_map(|message| Some((address_of(message)?, message.header.prefix_len)))
        .collect())
}

pub(crate) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
    local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
    })
}

/// Makes `gateway` the default route, whatever it was.
pub(crate) async fn set_default_route(
    handle: &Handle,
    index: u32,
    gateway: IpAddr,
) -> Result<(), NetworkError> {
    let message = match gateway {
        IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .build(),
        IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .build(),
    };
    let done = handle.route().add(message).replace().execute().await;
    done.map_err(NetworkError::netlink(format!("default route by {gateway}")))
}

/// Unicast routes of the main table.
pub(crate) async fn routes(handle: &Handle, is_ipv6: bool) -> Result<Vec<Route>, NetworkError> {
    let message = if is_ipv6 {
        RouteMessageBuilder::<Ipv6Addr>::new().build()
    } else {
        RouteMessageBuilder::<Ipv4Addr>::new().build()
    };
    let messages = handle.route().get(message).execute();
    let messages: Vec<RouteMessage> = messages
        .try_collect()
        .await
        .map_err(NetworkError::netlink("routes"))?;
    Ok(messages.iter().filter_map(route_of).collect())
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    const MAIN: u8 = 254;
    if message.header.table != MAIN || message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = Route {
        destination: None,
        output_index: 0,
        protocol_is_static: message.header.protocol == RouteProtocol::Static,
    };
    let mut destination: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = Some((*address).into())
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = Some((*address).into())
            }
            RouteAttribute::Oif(index) => route.output_index = *index,
            _ => {}
        }
    }
    let is_default = message.header.destination_prefix_length == 0;
    if !is_default {
        let unspecified: IpAddr = match message.header.address_family {
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        };
        let network = destination.unwrap_or(unspecified);
        route.destination =
            Some(Cidr::new(network, message.header.destination_prefix_length).ok()?);
    }
    Some(route)
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: None,
            is_up: message.header.flags.contains(LinkFlags::Up),
            mtu: 0,
            controller: None,
            peer: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

/// The prefix length of a single address.
pub(crate) fn single(address: IpAddr) -> u8 {
    bits_of(address) as u8
}

/// A locally administered hardware address that follows from an IP address, so that neighbours'
/// tables stay right when a pod is attached again.
pub(crate) fn hardware_address(address: IpAddr) -> Vec<u8> {
    let tail: [u8; 4] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => (u128::from(address) as u32).to_be_bytes(),
    };
    [&[0x0a, 0x58], &tail[..]].concat()
}

/// A number that follows from names, the same in every version (FNV-1a).
pub(crate) fn stable_hash(words: &[&str]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for (index, word) in words.iter().enumerate() {
        let separator = (index > 0).then_some(0);
        for byte in separator.into_iter().chain(word.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

pub(crate) fn errno(error: &Error) -> Option<Errno> {
    to_io(error.clone()).raw_os_error().map(Errno::from_raw)
}

/// Whether the kernel says that the thing is not there.
pub(crate) fn is_gone(error: &Error) -> bool {
    matches!(
        errno(error),
        Some(Errno::ENODEV | Errno::EADDRNOTAVAIL | Errno::ENXIO | Errno::ENOENT)
    )
}

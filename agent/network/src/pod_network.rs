//! The pod network of one node.

use std::{
    collections::HashSet,
    fs, io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rtnetlink::Handle;
use tokio::sync::{OnceCell, watch};
use tracing::{debug, warn};

use crate::{
    Backend, Cidr, NetworkError, Peer, Unreachable, Vxlan,
    addresses::Addresses,
    bridge, firewall,
    netlink::{self, Link, Namespace},
    peers, veth,
};

/// How pods of a node are connected.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Where reservations of addresses are kept.
    pub dir: PathBuf,
    /// The bridge's name, at most 15 letters. Nodes that share a machine need different ones.
    pub bridge: String,
    /// The node's IPv4 addresses for pods. The first is the gateway's.
    pub pod_cidr: Cidr,
    /// The node's IPv6 addresses for pods, if pods are to have both.
    pub pod_cidr_v6: Option<Cidr>,
    /// Largest packet in bytes; `None` takes that of the default route's interface.
    pub mtu: Option<u32>,
    /// Whether pods reach the outside under the node's address. Without it nftables is not touched.
    pub masquerade: bool,
    /// Ranges that see pods' own addresses all the same, besides nodes and their pods.
    pub no_masquerade: Vec<Cidr>,
    /// How packets for other nodes' pods get there.
    pub backend: Backend,
    /// The tunnel's numbers.
    pub vxlan: Vxlan,
    /// The node's addresses as other nodes know it, the preferred one first: one of them is the tunnel's end.
    pub node_ips: Vec<IpAddr>,
}

impl NetworkConfig {
    /// Bridge `wherry0`, IPv4, masquerade.
    pub fn new(dir: PathBuf, pod_cidr: Cidr) -> Self {
        Self {
            dir,
            bridge: "wherry0".into(),
            pod_cidr,
            pod_cidr_v6: None,
            mtu: None,
            masquerade: true,
            no_masquerade: Vec::new(),
            backend: Backend::default(),
            vxlan: Vxlan::default(),
            node_ips: Vec::new(),
        }
    }

    /// The node's ranges, IPv4 first.
    pub(crate) fn cidrs(&self) -> impl Iterator<Item = Cidr> {
        std::iter::once(self.pod_cidr).chain(self.pod_cidr_v6)
    }

    fn check(&self) -> Result<(), NetworkError> {
        let invalid = |why: String| Err(NetworkError::InvalidConfig(why));
        let is_name = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
        if self.bridge.is_empty() || self.bridge.len() > 15 || !self.bridge.chars().all(is_name) {
            return invalid(format!("{:?} cannot be the name of a bridge", self.bridge));
        }
        if self.pod_cidr.network().is_ipv6() {
            return invalid(format!("pod CIDR {}: must be IPv4", self.pod_cidr));
        }
        if let Some(cidr) = self.pod_cidr_v6.filter(|cidr| cidr.network().is_ipv4()) {
            return invalid(format!("pod CIDR {cidr}: must be IPv6"));
        }
        match self.cidrs().find(|cidr| cidr.pod_offsets().is_empty()) {
            Some(cidr) => invalid(format!("pod CIDR {cidr}: too small")),
            None => Ok(()),
        }
    }
}

/// How a pod meets the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attach {
    /// By an `eth0` in a network namespace that can be opened at this path.
    Namespace(PathBuf),
    /// By addresses on the bridge, which the runtime confines the pod's sockets to.
    Confined,
}

/// The pod network of one node.
///
/// Calls for one pod must not overlap; calls for different pods may.
pub struct PodNetwork {
    config: NetworkConfig,
    addresses: Mutex<Addresses>,
    netlink: OnceCell<Handle>,
    /// Set once bridge and firewall have been put in place.
    is_up: OnceCell<()>,
}

impl PodNetwork {
    /// Reads which addresses are reserved. The node's network is touched by the first
    /// [`Self::attach`], or by [`Self::up`].
    ///
    /// # Errors
    /// The configuration cannot work; the directory cannot be read or made.
    pub fn new(config: NetworkConfig) -> Result<Self, NetworkError> {
        config.check()?;
        let cidrs: Vec<Cidr> = config.cidrs().collect();
        let addresses = Addresses::open(config.dir.join("addresses"), &cidrs)?;
        Ok(Self {
            config,
            addresses: Mutex::new(addresses),
            netlink: OnceCell::new(),
            is_up: OnceCell::new(),
        })
    }

    /// The node's IPv4 address on the bridge.
    pub fn gateway(&self) -> IpAddr {
        self.config.pod_cidr.gateway()
    }

    /// The bridge's name.
    pub fn bridge(&self) -> &str {
        &self.config.bridge
    }

    /// The node's ranges, IPv4 first, as for `spec.podCIDRs`.
    pub fn pod_cidrs(&self) -> Vec<Cidr> {
        self.config.cidrs().collect()
    }

    /// What a pod has reserved, IPv4 first; nothing if it was never attached.
    pub fn addresses(&self, uid: &str) -> Vec<IpAddr> {
        self.reservations().of(uid)
    }

    /// Keeps the ways to other nodes' pods, and what is not masqueraded, as `peers` want it, and repairs what somebody
    /// takes away, until it is dropped; what is there then stays. Nothing is touched before `peers` is told. Nodes that
    /// cannot be reached are told to `unreachable`.
    pub async fn keep_peers(
        &self,
        peers: watch::Receiver<Option<Arc<[Peer]>>>,
        unreachable: watch::Sender<Vec<Unreachable>>,
    ) {
        // A connection of its own: the kernel refuses a second dump on one while there is another.
        match netlink::connect() {
            Ok(handle) => peers::keep(self, &handle, peers, unreachable).await,
            Err(error) => warn!(%error, "Other nodes' pods are not reached"),
        }
    }

    pub(crate) fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Interfaces of pods that have reserved.
    pub(crate) fn port_names(&self) -> HashSet<String> {
        let known = self.reservations().all();
        known
            .keys()
            .map(|uid| veth::name(&self.config.bridge, uid))
            .collect()
    }

    /// Puts bridge, gateway, forwarding and firewall in place. Repeatable.
    ///
    /// # Errors
    /// Something of the node's is in the way, or the kernel refuses.
    pub async fn up(&self) -> Result<(), NetworkError> {
        self.bridge_link().await.map(drop)
    }

    /// Connects a pod and answers its addresses, IPv4 first: one of each range.
    ///
    /// Repeatable: the same uid gets the same addresses until [`Self::detach`], over restarts too,
    /// and what is connected already is left alone.
    ///
    /// # Errors
    /// [`NetworkError::Exhausted`]; [`NetworkError::Namespace`] if the sandbox has gone; the kernel
    /// refuses. Addresses stay reserved until [`Self::detach`].
    ///
    /// # Cancel safety
    /// What has been made is found by the next call, or removed by [`Self::detach`].
    pub async fn attach(&self, uid: &str, attach: Attach) -> Result<Vec<IpAddr>, NetworkError> {
        let addresses = self.reservations().reserve(uid)?;
        let (handle, bridge) = self.bridge_link().await?;
        match attach {
            Attach::Namespace(path) => {
                let namespace = Namespace::open(&path)?;
                veth::attach(&handle, &self.config, &bridge, uid, &namespace, &addresses).await?;
            }
            Attach::Confined => {
                for address in &addresses {
                    netlink::add_address(
                        &handle,
                        bridge.index,
                        *address,
                        netlink::single(*address),
                    )
                    .await?;
                }
            }
        }
        debug!(pod = uid, ?addresses, "Pod attached");
        Ok(addresses)
    }

    /// Disconnects a pod and gives its addresses back. Repeatable; never attached: `Ok`.
    ///
    /// # Errors
    /// The kernel or the disk refuses; addresses stay reserved.
    pub async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        let handle = self.netlink().await?;
        veth::detach(&handle, &self.config.bridge, uid).await?;
        let addresses = self.reservations().of(uid);
        if !addresses.is_empty()
            && let Some(bridge) = netlink::link_by_name(&handle, &self.config.bridge).await?
        {
            for address in addresses {
                netlink::delete_address(&handle, bridge.index, address, netlink::single(address))
                    .await?;
            }
        }
        self.reservations().release(uid)
    }

    /// Detaches every pod that is not in `live`, and removes interfaces and addresses on the bridge
    /// that nobody has reserved. For an agent that has found out what should be here; pods that are in
    /// `live` may be attached and detached meanwhile, others may not.
    ///
    /// # Errors
    /// The first thing that could not be removed, after the others have been.
    pub async fn retain(&self, live: &HashSet<String>) -> Result<(), NetworkError> {
        let mut failed = None;
        let known = self.reservations().all();
        for uid in known.keys().filter(|uid| !live.contains(*uid)) {
            debug!(pod = %uid, "Pod is not here any more and is detached");
            if let Err(error) = self.detach(uid).await {
                warn!(pod = %uid, %error, "Pod not detached");
                failed = failed.or(Some(error));
            }
        }
        let handle = self.netlink().await?;
        if let Some(bridge) = netlink::link_by_name(&handle, &self.config.bridge).await? {
            self.remove_strays(&handle, &bridge).await?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Removes everything this network has made: interfaces, firewall, reservations. Pods that are
    /// still attached lose their network. Repeatable.
    ///
    /// # Errors
    /// The kernel or the disk refuses.
    pub async fn down(self) -> Result<(), NetworkError> {
        let handle = self.netlink().await?;
        peers::remove(&handle, &self.config.bridge).await?;
        if let Some(bridge) = netlink::link_by_name(&handle, &self.config.bridge).await? {
            for link in netlink::links(&handle).await? {
                if veth::is_port(&link, &bridge) {
                    netlink::delete_link(&handle, &link).await?;
                }
            }
            netlink::delete_link(&handle, &bridge).await?;
        }
        if self.config.masquerade {
            firewall::remove(&self.config).await?;
        }
        let dir = self.config.dir.join("addresses");
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::io(dir.display().to_string())(error))
            }
            _ => Ok(()),
        }
    }

    fn reservations(&self) -> MutexGuard<'_, Addresses> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn netlink(&self) -> Result<Handle, NetworkError> {
        let handle = self.netlink.get_or_try_init(async || netlink::connect());
        handle.await.cloned()
    }

    /// The bridge. The first call puts everything in place; a later one makes the bridge again if
    /// somebody has removed it.
    async fn bridge_link(&self) -> Result<(Handle, Link), NetworkError> {
        let handle = self.netlink().await?;
        let first = self.is_up.get_or_try_init(async || {
            bridge::ensure(&handle, &self.config).await?;
            if self.config.masquerade {
                firewall::ensure(&self.config, None).await?;
            }
            Ok(())
        });
        first.await?;
        let link = match netlink::link_by_name(&handle, &self.config.bridge).await? {
            Some(link) => link,
            None => bridge::ensure(&handle, &self.config).await?,
        };
        Ok((handle, link))
    }

    /// Removes what is on the bridge for nobody. What is there is listed before reservations are
    /// read: a pod that is being attached has reserved before it makes anything.
    async fn remove_strays(&self, handle: &Handle, bridge: &Link) -> Result<(), NetworkError> {
        let links = netlink::links(handle).await?;
        let addresses = netlink::addresses(handle, bridge.index).await?;
        let known = self.reservations().all();
        let names = self.port_names();
        for link in links.iter().filter(|link| veth::is_port(link, bridge)) {
            if !names.contains(&link.name) {
                netlink::delete_link(handle, link).await?;
            }
        }
        let reserved: HashSet<IpAddr> = known.into_values().flatten().collect();
        for (address, prefix_len) in addresses {
            let is_confined = prefix_len == netlink::single(address);
            let is_ours = self
                .config
                .cidrs()
                .any(|cidr| cidr.contains(address) && cidr.gateway() != address);
            if is_confined && is_ours && !reserved.contains(&address) {
                netlink::delete_address(handle, bridge.index, address, prefix_len).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;

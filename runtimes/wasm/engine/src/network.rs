//! Which addresses a container's sockets may use, and what they stand for.
//!
//! A confined pod has an address on the node and no network namespace. Its loopback and its
//! wildcard addresses are made to mean that address, so that the pod's containers find each other
//! on 127.0.0.1 as in a namespace, and nothing of the node's own loopback is in reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream};
use wasmtime_wasi::sockets::SocketAddrUse;
use wherry_wasm::protocol::NetworkPolicy;

/// The addresses of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// Whatever the worker's network namespace has.
    Open,
    /// The pod's addresses and no other local one.
    Confined {
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
    },
}

impl From<&NetworkPolicy> for Network {
    fn from(policy: &NetworkPolicy) -> Self {
        match policy {
            NetworkPolicy::Open => Self::Open,
            NetworkPolicy::Confined(ips) => Self::Confined {
                v4: ips.iter().find_map(|ip| {
                    if let IpAddr::V4(ip) = ip {
                        Some(*ip)
                    } else {
                        None
                    }
                }),
                v6: ips.iter().find_map(|ip| {
                    if let IpAddr::V6(ip) = ip {
                        Some(*ip)
                    } else {
                        None
                    }
                }),
            },
        }
    }
}

impl Network {
    /// The pod's address of the same family, if it is confined to one.
    pub(crate) fn source(&self, like: IpAddr) -> Option<IpAddr> {
        match (self, like) {
            (Self::Confined { v4, .. }, IpAddr::V4(_)) => v4.map(IpAddr::V4),
            (Self::Confined { v6, .. }, IpAddr::V6(_)) => v6.map(IpAddr::V6),
            (Self::Open, _) => None,
        }
    }

    /// Whether an address of this family is of any use to the pod.
    pub(crate) fn has_family_of(&self, like: IpAddr) -> bool {
        *self == Self::Open || self.source(like).is_some()
    }

    /// The address to bind when a guest asks for `address`; `None` if it may not.
    pub(crate) fn bind_address(&self, address: SocketAddr) -> Option<SocketAddr> {
        if *self == Self::Open {
            return Some(address);
        }
        let own = self.source(address.ip())?;
        let ip = address.ip().to_canonical();
        (ip.is_unspecified() || ip.is_loopback() || ip == own)
            .then(|| SocketAddr::new(own, address.port()))
    }

    /// The address to connect or send to when a guest asks for `address`; `None` if it may not.
    pub(crate) fn peer_address(&self, address: SocketAddr) -> Option<SocketAddr> {
        if *self == Self::Open {
            return Some(address);
        }
        let own = self.source(address.ip())?;
        let ip = address.ip().to_canonical();
        Some(if ip.is_loopback() || ip.is_unspecified() {
            SocketAddr::new(own, address.port())
        } else {
            address
        })
    }

    /// The last word on each socket call, after addresses were translated: what is local must be
    /// the pod's, and what is remote must not be the node's loopback.
    pub(crate) fn allows(&self, address: SocketAddr, use_: SocketAddrUse) -> bool {
        if *self == Self::Open {
            return true;
        }
        match use_ {
            SocketAddrUse::TcpBind | SocketAddrUse::TcpListen | SocketAddrUse::UdpBind => {
                self.source(address.ip()) == Some(address.ip())
            }
            _ => {
                let ip = address.ip().to_canonical();
                !ip.is_loopback() && !ip.is_unspecified()
            }
        }
    }

    /// Connects from the pod's address.
    pub(crate) async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let denied = || {
            std::io::Error::new(
                std::io::ErrorKind::PermissionDenied,
                "address not reachable from the pod",
            )
        };
        let address = self.peer_address(address).ok_or_else(denied)?;
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        if let Some(source) = self.source(address.ip()) {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.connect(address).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_confined_pod_binds_its_own_address_and_no_other() {
        let network = Network::Confined {
            v4: Some(Ipv4Addr::new(10, 0, 0, 5)),
            v6: None,
        };
        for (asked, bound) in [
            ("0.0.0.0:80", Some("10.0.0.5:80")),
            ("127.0.0.1:80", Some("10.0.0.5:80")),
            ("127.9.9.9:0", Some("10.0.0.5:0")),
            ("10.0.0.5:80", Some("10.0.0.5:80")),
            ("10.0.0.6:80", None),
            ("192.168.1.1:80", None),
            ("[::1]:80", None),
            ("[::]:80", None),
            ("[::ffff:127.0.0.1]:80", None),
        ] {
            assert_eq!(
                network.bind_address(address(asked)),
                bound.map(address),
                "{asked}"
            );
        }
    }

    #[test]
    fn loopback_means_the_pod_itself_and_the_nodes_is_out_of_reach() {
        let network = Network::Confined {
            v4: Some(Ipv4Addr::new(10, 0, 0, 5)),
            v6: Some("fd00::5".parse().unwrap()),
        };
        assert_eq!(
            network.peer_address(address("127.0.0.1:80")),
            Some(address("10.0.0.5:80"))
        );
        assert_eq!(
            network.peer_address(address("[::1]:80")),
            Some(address("[fd00::5]:80"))
        );
        assert_eq!(
            network.peer_address(address("8.8.8.8:53")),
            Some(address("8.8.8.8:53"))
        );
        assert!(!network.allows(address("127.0.0.1:80"), SocketAddrUse::TcpConnect));
        assert!(!network.allows(address("[::ffff:127.0.0.1]:80"), SocketAddrUse::UdpSend));
        assert!(!network.allows(address("0.0.0.0:0"), SocketAddrUse::TcpBind));
        assert!(network.allows(address("10.0.0.5:0"), SocketAddrUse::TcpBind));
        assert!(network.allows(address("8.8.8.8:53"), SocketAddrUse::UdpSend));
    }
}

//! Ranges of addresses. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::NetworkError;

/// Addresses are numbered by at most this many bits of the host part: an IPv6 range is as good as
/// endless, and the count must stay countable.
const HOST_BITS_MAX: u32 = 24;

/// A range of addresses: `10.88.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    network: IpAddr,
    prefix_len: u8,
}

impl Cidr {
    /// A range; host bits of `address` are cleared.
    ///
    /// # Errors
    /// The prefix is longer than the address.
    pub fn new(address: IpAddr, prefix_len: u8) -> Result<Self, NetworkError> {
        let bits = bits_of(address);
        if u32::from(prefix_len) > bits {
            let why = format!("invalid CIDR address: {address}/{prefix_len}");
            return Err(NetworkError::InvalidConfig(why));
        }
        let network = to_address(to_number(address) & mask(bits, prefix_len), address);
        Ok(Self {
            network,
            prefix_len,
        })
    }

    /// The first address, which names the range.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// Bits that all addresses share.
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// Whether an address is in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.network.is_ipv4()
            && to_number(address) & mask(bits_of(address), self.prefix_len)
                == to_number(self.network)
    }

    /// Whether two ranges share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// The node's own address in the range: the one after the network's.
    pub fn gateway(&self) -> IpAddr {
        self.nth(1)
    }

    /// The address so many after the network's.
    pub(crate) fn nth(&self, offset: u32) -> IpAddr {
        to_address(to_number(self.network) + u128::from(offset), self.network)
    }

    /// How many after the network's an address is.
    pub(crate) fn offset(&self, address: IpAddr) -> Option<u32> {
        let offset = to_number(address).checked_sub(to_number(self.network))?;
        self.contains(address)
            .then(|| u32::try_from(offset).ok())
            .flatten()
    }

    /// Offsets that pods may have: neither the network's, the gateway's nor IPv4's broadcast.
    pub(crate) fn pod_offsets(&self) -> std::ops::Range<u32> {
        let host_bits = (bits_of(self.network) - u32::from(self.prefix_len)).min(HOST_BITS_MAX);
        2..(1u32 << host_bits).saturating_sub(1).max(2)
    }
}

impl FromStr for Cidr {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || NetworkError::InvalidConfig(format!("invalid CIDR address: {text}"));
        let (address, prefix_len) = text.split_once('/').ok_or_else(invalid)?;
        let address = address.parse().map_err(|_| invalid())?;
        Self::new(address, prefix_len.parse().map_err(|_| invalid())?)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Length of an address in bits.
pub(crate) fn bits_of(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn mask(bits: u32, prefix_len: u8) -> u128 {
    let host_bits = bits - u32::from(prefix_len);
    u128::MAX.checked_shl(host_bits).unwrap_or(0)
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn to_address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_reads_as_it_is_written() {
        for (text, want) in [
            ("10.88.0.0/16", Some("10.88.0.0/16")),
            ("10.88.3.4/16", Some("10.88.0.0/16")),
            ("10.0.0.0/0", Some("0.0.0.0/0")),
            ("fd00::1/64", Some("fd00::/64")),
            ("fd00::1/0", Some("::/0")),
            ("10.88.0.0/33", None),
            ("10.88.0.0", None),
            ("x/8", None),
            ("1.2.3.4/-1", None),
        ] {
            assert_eq!(
                text.parse::<Cidr>()
                    .ok()
                    .map(|cidr| cidr.to_string())
                    .as_deref(),
                want,
                "{text}"
            );
        }
    }

    #[test]
    fn pods_get_neither_network_gateway_nor_broadcast() {
        for (text, gateway, offsets) in [
            ("10.88.0.0/16", "10.88.0.1", 2..65535),
            ("10.88.0.0/24", "10.88.0.1", 2..255),
            ("10.88.0.0/29", "10.88.0.1", 2..7),
            ("10.88.0.0/30", "10.88.0.1", 2..3),
            ("10.88.0.0/31", "10.88.0.1", 2..2),
            ("fd00::/64", "fd00::1", 2..(1 << 24) - 1),
        ] {
            assert_eq!(cidr(text).gateway().to_string(), gateway);
            assert_eq!(cidr(text).pod_offsets(), offsets, "{text}");
        }
    }

    #[test]
    fn offsets_and_addresses_are_each_others_inverse() {
        for text in ["10.88.0.0/16", "fd00::/112"] {
            for offset in [0, 1, 2, 255, 256, 65535] {
                assert_eq!(cidr(text).offset(cidr(text).nth(offset)), Some(offset));
            }
        }
        assert_eq!(
            cidr("10.88.0.0/16").offset("10.89.0.0".parse().unwrap()),
            None
        );
        assert_eq!(
            cidr("10.88.0.0/16").offset("fd00::1".parse().unwrap()),
            None
        );
    }

    #[test]
    fn ranges_overlap_when_one_holds_the_other() {
        for (a, b, want) in [
            ("10.0.0.0/8", "10.88.0.0/16", true),
            ("10.88.0.0/16", "10.88.0.0/16", true),
            ("10.88.0.0/16", "10.89.0.0/16", false),
            ("fd00::/8", "10.0.0.0/8", false),
        ] {
            assert_eq!(cidr(a).overlaps(&cidr(b)), want);
            assert_eq!(cidr(b).overlaps(&cidr(a)), want);
        }
    }
}

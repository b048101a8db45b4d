//! The range that Services' addresses are from.

use std::net::Ipv4Addr;

/// An IPv4 range, such as `10.96.0.0/12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    first: u32,
    prefix_len: u8,
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text}: not an IPv4 range such as 10.96.0.0/12");
        let (address, prefix_len) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
        let prefix_len: u8 = prefix_len
            .parse()
            .ok()
            .filter(|len| (8..=30).contains(len))
            .ok_or_else(invalid)?;
        Ok(Self {
            first: u32::from(address) & (u32::MAX << (32 - prefix_len)),
            prefix_len,
        })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.prefix_len)
    }
}

impl Cidr {
    /// The address after the network's own: that of the `kubernetes` Service.
    pub fn first_host(self) -> Ipv4Addr {
        Ipv4Addr::from(self.first + 1)
    }

    /// How many addresses there are to give, the network's and the broadcast's left out.
    pub(crate) fn hosts(self) -> u32 {
        (1_u32 << (32 - self.prefix_len)) - 2
    }

    /// The address with that number, from 0 to one less than [`Self::hosts`].
    pub(crate) fn host(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first + 1 + number)
    }

    /// Whether it is one of those to give.
    pub(crate) fn contains(self, ip: Ipv4Addr) -> bool {
        (u32::from(ip).wrapping_sub(self.first + 1)) < self.hosts()
    }
}

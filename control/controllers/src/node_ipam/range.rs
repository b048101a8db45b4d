//! Ranges of IPv4 addresses. Pure.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use thiserror::Error;

/// A text is not a range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a range of IPv4 addresses like 10.88.0.0/13")]
pub struct RangeError(String);

/// A range: `10.88.0.0/13`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: u32,
    prefix_len: u8,
}

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let read = || {
            let (address, prefix_len) = text.split_once('/')?;
            let address: Ipv4Addr = address.parse().ok()?;
            let prefix_len: u8 = prefix_len.parse().ok().filter(|len| *len <= 32)?;
            let first = u64::from(u32::from(address)) / size(prefix_len) * size(prefix_len);
            Some(Self {
                first: u32::try_from(first).ok()?,
                prefix_len,
            })
        };
        read().ok_or_else(|| RangeError(text.to_owned()))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.prefix_len)
    }
}

fn size(prefix_len: u8) -> u64 {
    1 << (32 - u32::from(prefix_len))
}

impl Range {
    /// Bits that all its addresses share.
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    fn start(self) -> u64 {
        self.first.into()
    }

    /// The first address behind it.
    fn end(self) -> u64 {
        self.start() + size(self.prefix_len)
    }

    /// Its first part of this prefix length that shares no address with those taken.
    pub(super) fn first_free(self, prefix_len: u8, mut taken: Vec<Self>) -> Option<Self> {
        if prefix_len < self.prefix_len || prefix_len > 32 {
            return None;
        }
        taken.sort_unstable_by_key(|range| range.first);
        let size = size(prefix_len);
        let mut start = self.start();
        for range in taken {
            if range.end() <= start {
                continue;
            }
            if range.start() >= start + size {
                break;
            }
            start = range.end().div_ceil(size) * size;
        }
        let is_inside = start + size <= self.end();
        let first = u32::try_from(start).ok().filter(|_| is_inside)?;
        Some(Self { first, prefix_len })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> Range {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_read_and_written() {
        for (text, expected) in [
            ("10.88.0.0/13", Some("10.88.0.0/13")),
            ("10.88.3.4/16", Some("10.88.0.0/16")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("255.255.255.255/32", Some("255.255.255.255/32")),
            ("10.0.0.0/33", None),
            ("10.0.0.0", None),
            ("fd00::/64", None),
        ] {
            let read = text.parse::<Range>().ok().map(|range| range.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn the_first_free_part_is_found() {
        for (cluster, prefix_len, taken, expected) in [
            ("10.88.0.0/13", 24, &[][..], Some("10.88.0.0/24")),
            ("10.88.0.0/13", 24, &["10.88.0.0/16"], Some("10.89.0.0/24")),
            (
                "10.88.0.0/13",
                24,
                &["10.88.0.0/24", "10.88.2.0/24"],
                Some("10.88.1.0/24"),
            ),
            (
                "10.88.0.0/13",
                24,
                &["10.88.0.128/25", "10.88.1.0/24"],
                Some("10.88.2.0/24"),
            ),
            (
                "10.88.0.0/13",
                24,
                &["192.168.0.0/24", "10.0.0.0/16"],
                Some("10.88.0.0/24"),
            ),
            ("10.88.0.0/23", 24, &["10.88.0.0/24", "10.88.1.0/24"], None),
            ("10.88.0.0/16", 24, &["0.0.0.0/0"], None),
            ("10.88.0.0/24", 16, &[], None),
        ] {
            let taken = taken.iter().map(|text| range(text)).collect();
            let found = range(cluster).first_free(prefix_len, taken);
            assert_eq!(
                found.map(|range| range.to_string()).as_deref(),
                expected,
                "{cluster}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_given_is_inside_and_nobody_elses(
            taken in prop::collection::vec((0u32..1 << 16, 8u8..=16), 0..12),
            prefix_len in 18u8..=28,
        ) {
            let cluster = range("10.88.0.0/16");
            let taken: Vec<Range> = taken
                .iter()
                .map(|(at, bits)| range(&format!("{}/{}", Ipv4Addr::from(cluster.first + at), 16 + bits)))
                .collect();
            let overlaps = |a: &Range, b: &Range| a.start() < b.end() && b.start() < a.end();
            match cluster.first_free(prefix_len, taken.clone()) {
                Some(free) => {
                    prop_assert!(free.start() >= cluster.start() && free.end() <= cluster.end());
                    prop_assert_eq!(free.start() % size(prefix_len), 0);
                    prop_assert!(!taken.iter().any(|taken| overlaps(taken, &free)));
                }
                None => {
                    let mut start = cluster.start();
                    while start < cluster.end() {
                        let part = Range { first: u32::try_from(start).unwrap(), prefix_len };
                        prop_assert!(taken.iter().any(|taken| overlaps(taken, &part)));
                        start += size(prefix_len);
                    }
                }
            }
        }
    }
}

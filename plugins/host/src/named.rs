//! Hosts that a volume names in its attributes, and which of their addresses that is good for. Pure.
//!
//! A pod's owner may make the node fetch what the pod could fetch itself. The node's own addresses are not among that:
//! what listens on loopback takes every caller for the node.

use std::{collections::BTreeMap, net::IpAddr};

use crate::protocol::ResolveError;

/// Attributes that hold no URL and name hosts all the same, as `host`, `host:port`, `host:port/path`, several parted by
/// commas.
const HOST_KEYS: [&str; 9] = [
    "hosts",
    "host",
    "server",
    "registry",
    "reference",
    "endpoint",
    "endpoints",
    "monitors",
    "targetPortal",
];

/// Hosts, each with the port that it was named with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamedHosts(Vec<(String, Option<u16>)>);

impl NamedHosts {
    /// Those that attributes name.
    pub(crate) fn of(attributes: &BTreeMap<String, String>) -> Self {
        let mut hosts = Vec::new();
        for (key, value) in attributes {
            if let Some((scheme, rest)) = value.split_once("://") {
                let default = match scheme {
                    "http" => 80,
                    "https" => 443,
                    _ => continue,
                };
                let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
                let host = authority.rsplit('@').next().unwrap_or_default();
                hosts.extend(split(host).map(|(host, port)| (host, Some(port.unwrap_or(default)))));
            } else if HOST_KEYS.contains(&key.as_str()) {
                for one in value.split(',') {
                    let host = one.trim().split('/').next().unwrap_or_default();
                    hosts.extend(split(host));
                }
            }
        }
        Self(hosts)
    }

    /// Whether a connection goes to one of them.
    pub(crate) fn has(&self, host: &str, port: u16) -> bool {
        self.0.iter().any(|(name, named)| {
            name.eq_ignore_ascii_case(host) && named.is_none_or(|named| named == port)
        })
    }
}

/// `host`, `host:port`, `[address]`, `[address]:port`.
fn split(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        Some(port) => Some(port.parse().ok()?),
        None => None,
    };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// The addresses that are not the node's alone.
///
/// # Errors
/// There are only such.
pub(crate) fn keep_outside(
    host: &str,
    addresses: Vec<IpAddr>,
) -> Result<Vec<IpAddr>, ResolveError> {
    let kept: Vec<_> = addresses
        .into_iter()
        .filter(|address| !is_of_the_node(*address))
        .collect();
    if kept.is_empty() {
        let why = format!("{host} is an address of the node itself, which needs the grant hosts");
        return Err(ResolveError::Denied(why));
    }
    Ok(kept)
}

/// Loopback, link-local (where clouds keep their nodes' credentials), and what is no one machine's.
fn is_of_the_node(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_attributes_name_is_named() {
        for (key, value, host, port, expected) in [
            (
                "repository",
                "https://git.example/a/b.git",
                "git.example",
                443,
                true,
            ),
            (
                "repository",
                "https://git.example/a",
                "git.example",
                80,
                false,
            ),
            ("url", "http://x:8080?a=b", "X", 8080, true),
            ("url", "http://x:8080", "x", 80, false),
            ("url", "http://u:p@x/", "x", 80, true),
            ("url", "http://u:p@x/", "u", 80, false),
            ("url", "http://[fd00::1]:81/", "fd00::1", 81, true),
            ("url", "ssh://x/", "x", 22, false),
            ("reference", "registry:5000/a/b:1", "registry", 5000, true),
            ("reference", "registry/a/b:1", "registry", 443, true),
            ("hosts", "a, b:1", "a", 9, true),
            ("hosts", "a, b:1", "b", 2, false),
            ("branch", "main", "main", 443, false),
            ("url", "http://", "", 80, false),
            ("hosts", "a:x", "a", 1, false),
        ] {
            let named = NamedHosts::of(&[(key.to_owned(), value.to_owned())].into());
            assert_eq!(
                named.has(host, port),
                expected,
                "{key}={value} {host}:{port}"
            );
        }
    }

    #[test]
    fn the_nodes_own_addresses_are_not_to_be_had_by_naming_them() {
        let parse = |texts: &[&str]| texts.iter().filter_map(|text| text.parse().ok()).collect();
        for own in [
            "127.0.0.1",
            "::1",
            "169.254.169.254",
            "fe80::1",
            "0.0.0.0",
            "::ffff:127.0.0.1",
        ] {
            assert!(keep_outside("x", parse(&[own])).is_err(), "{own}");
        }
        let kept = keep_outside("x", parse(&["127.0.0.1", "192.0.2.1", "2001:db8::1"]));
        assert_eq!(kept, Ok(parse(&["192.0.2.1", "2001:db8::1"])));
    }
}

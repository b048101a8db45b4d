//! What the operator grants a plugin. Nothing is granted that is not named.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A Plugin's grants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Grants {
    /// Commands may be run in probed containers.
    pub exec: bool,
    /// Where it may connect to besides the probed pod: `name`, `name:port`, `address`,
    /// `[address]:port`, `address/prefix`, `*.domain`, `*` for anywhere.
    pub hosts: Vec<String>,
    /// Secrets of a probed pod's namespace that it may read: `name`, `name/key`, `*` for all.
    pub secrets: Vec<String>,
    /// Files on a probed pod's volumes may be read.
    pub volumes: bool,
    /// What a probed container has written to its log may be read.
    pub logs: bool,
    /// For volumes: it may connect to hosts that the volume's attributes name, but not by that to addresses of the
    /// node itself.
    pub named_hosts: bool,
    /// For mounters: kinds of file systems that it may have mounted, as `nfs4`.
    pub mount_types: Vec<String>,
    /// For mounters: devices that it may have attached, `kind:what` or `kind:beginning*`, as `loop:/srv/images/*`,
    /// `iscsi:iqn.2026-01.example:*`, `rbd:pool/image`. For provisioners: images that it may have made and removed, as
    /// `image:/srv/images/*`.
    pub devices: Vec<String>,
}

impl Grants {
    /// The first interface imported that is not granted, and the grant it takes.
    pub(crate) fn missing<'a>(&self, imports: &'a [String]) -> Option<(&'a str, &'static str)> {
        let needed = |import: &'a String| {
            let (interface, _) = import.strip_prefix("wherry:plugin/")?.split_once('@')?;
            let (grant, is_given) = match interface {
                "exec" => ("exec", self.exec),
                "secret" => ("secrets", !self.secrets.is_empty()),
                "files" => ("volumes", self.volumes),
                "container-log" => ("logs", self.logs),
                _ => return None,
            };
            (!is_given).then_some((import.as_str(), grant))
        };
        imports.iter().find_map(needed)
    }

    /// Whether a key of a Secret may be read.
    pub(crate) fn allows_secret(&self, name: &str, key: &str) -> bool {
        self.secrets
            .iter()
            .any(|pattern| match pattern.split_once('/') {
                Some((granted, granted_key)) => granted == name && granted_key == key,
                None => pattern == "*" || pattern == name,
            })
    }

    /// Whether a device may be attached, or an image made and removed: `kind:pattern`, where the pattern may end with `*`.
    pub(crate) fn allows_device(&self, kind: &str, what: &str) -> bool {
        self.devices.iter().any(|granted| {
            let Some((granted_kind, pattern)) = granted.split_once(':') else {
                return false;
            };
            granted_kind == kind
                && match pattern.strip_suffix('*') {
                    Some(prefix) => what.starts_with(prefix),
                    None => pattern == what,
                }
        })
    }

    /// Whether a connection to `host`, as the plugin wrote it, is granted.
    pub(crate) fn allows_host(&self, host: &str, port: u16) -> bool {
        self.hosts
            .iter()
            .any(|pattern| matches(pattern, host, port))
    }
}

fn matches(pattern: &str, host: &str, port: u16) -> bool {
    if pattern == "*" {
        return true;
    }
    let (name, granted_port) = split(pattern);
    if granted_port.is_some_and(|granted| granted != port) {
        return false;
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return in_range(name, ip);
    }
    match name.strip_prefix("*.") {
        Some(domain) => host
            .len()
            .checked_sub(domain.len() + 1)
            .is_some_and(|at| at > 0 && ends_with_domain(host, domain, at)),
        None => name.eq_ignore_ascii_case(host),
    }
}

fn ends_with_domain(host: &str, domain: &str, at: usize) -> bool {
    host.is_char_boundary(at)
        && host[at..].starts_with('.')
        && host[at + 1..].eq_ignore_ascii_case(domain)
}

/// Host and port of a pattern; an address of IPv6 without brackets has no port.
fn split(pattern: &str) -> (&str, Option<u16>) {
    if let Some((host, rest)) = pattern.strip_prefix('[').and_then(|p| p.split_once(']')) {
        return (host, rest.strip_prefix(':').and_then(|p| p.parse().ok()));
    }
    match pattern.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (pattern, None),
        },
        _ => (pattern, None),
    }
}

fn in_range(range: &str, ip: IpAddr) -> bool {
    let (network, prefix) = match range.split_once('/') {
        Some((network, prefix)) => (network, Some(prefix)),
        None => (range, None),
    };
    let (Ok(network), Some(prefix)) = (
        network.parse::<IpAddr>(),
        prefix.map_or(Some(128), |prefix| prefix.parse::<u32>().ok()),
    ) else {
        return false;
    };
    match (network, ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            same(a.to_bits().into(), b.to_bits().into(), prefix.min(32), 32)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), prefix.min(128), 128),
        _ => false,
    }
}

fn same(a: u128, b: u128, prefix: u32, width: u32) -> bool {
    (a ^ b).checked_shr(width - prefix).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_grant_names_is_allowed() {
        for (pattern, host, port, expected) in [
            ("db.example", "db.example", 5432, true),
            ("db.example", "DB.example", 1, true),
            ("db.example:5432", "db.example", 5432, true),
            ("db.example:5432", "db.example", 5433, false),
            ("db.example", "xdb.example", 1, false),
            ("*.example", "db.example", 1, true),
            ("*.example", "example", 1, false),
            ("*.example", "badexample", 1, false),
            ("10.0.0.0/8", "10.9.8.7", 1, true),
            ("10.0.0.0/8", "11.9.8.7", 1, false),
            ("10.0.0.1", "10.0.0.1", 1, true),
            ("10.0.0.1", "10.0.0.2", 1, false),
            ("10.0.0.1:80", "10.0.0.1", 81, false),
            ("0.0.0.0/0", "1.2.3.4", 1, true),
            ("0.0.0.0/0", "::1", 1, false),
            ("fd00::/8", "fd12::1", 1, true),
            ("[fd00::1]:443", "fd00::1", 443, true),
            ("[fd00::1]:443", "fd00::1", 80, false),
            ("", "anything", 1, false),
            ("*.", "x", 1, false),
            ("*", "anything", 1, true),
            ("*", "fd00::1", 1, true),
        ] {
            let grants = Grants {
                hosts: vec![pattern.into()],
                ..Grants::default()
            };
            assert_eq!(
                grants.allows_host(host, port),
                expected,
                "{pattern} {host}:{port}"
            );
        }
        assert!(!Grants::default().allows_host("10.0.0.1", 80));
    }

    #[test]
    fn secrets_are_granted_by_name_or_by_key() {
        let grants = |pattern: &str| Grants {
            secrets: vec![pattern.into()],
            ..Grants::default()
        };
        assert!(grants("tls").allows_secret("tls", "tls.key"));
        assert!(grants("tls/tls.crt").allows_secret("tls", "tls.crt"));
        assert!(!grants("tls/tls.crt").allows_secret("tls", "tls.key"));
        assert!(!grants("tls").allows_secret("tls2", "tls.key"));
        assert!(grants("*").allows_secret("tls", "tls.key"));
        assert!(!Grants::default().allows_secret("tls", "tls.key"));
        for (import, grant) in [
            ("secret", "secrets"),
            ("files", "volumes"),
            ("container-log", "logs"),
        ] {
            let imports = [format!("wherry:plugin/{import}@0.1.0")];
            let missing = Grants::default().missing(&imports).map(|(_, grant)| grant);
            assert_eq!(missing, Some(grant));
        }
    }

    #[test]
    fn exec_has_to_be_granted_to_be_imported() {
        let imports = ["wherry:plugin/exec@0.1.0".to_owned()];
        assert_eq!(
            Grants::default().missing(&imports),
            Some(("wherry:plugin/exec@0.1.0", "exec"))
        );
        let grants = Grants {
            exec: true,
            ..Grants::default()
        };
        assert_eq!(grants.missing(&imports), None);
    }
}

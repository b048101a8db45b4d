//! What is got, and where a redirect leads from there.

use alloc::{
    format,
    string::{String, ToString},
};

use kit::address;

/// One URL.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) is_https: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Begins with `/`; with the query.
    pub(crate) path: String,
}

/// Where a redirect leads.
pub(crate) enum Next {
    /// To the same host.
    Here(Target),
    /// Anywhere else, or nowhere.
    Elsewhere,
}

/// A path with its first `/`.
pub(crate) fn rooted(path: &str) -> String {
    if path.starts_with('/') {
        path.to_string()
    } else {
        format!("/{path}")
    }
}

impl Target {
    pub(crate) fn url(&self) -> String {
        let scheme = if self.is_https { "https" } else { "http" };
        format!("{scheme}://{}{}", address(&self.host, self.port), self.path)
    }

    /// As Go resolves a `Location`, and as the kubelet follows it: within the host, to any port and scheme.
    pub(crate) fn follow(&self, location: &str) -> Next {
        let location = location.split('#').next().unwrap_or_default();
        let (is_https, rest) = match location.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            _ => match location.strip_prefix("//") {
                Some(rest) => (self.is_https, rest),
                None => return self.follow_path(location),
            },
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let authority = authority.rsplit('@').next().unwrap_or_default();
        let default = if is_https { 443 } else { 80 };
        match split(authority, default) {
            Some((host, port)) if host.eq_ignore_ascii_case(&self.host) => Next::Here(Self {
                is_https,
                host: self.host.clone(),
                port,
                path: rooted(path),
            }),
            _ => Next::Elsewhere,
        }
    }

    fn follow_path(&self, location: &str) -> Next {
        let is_scheme = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        };
        let first = location.split(['/', '?']).next().unwrap_or_default();
        if first
            .split_once(':')
            .is_some_and(|(scheme, _)| is_scheme(scheme))
        {
            return Next::Elsewhere;
        }
        let own = self.path.split('?').next().unwrap_or_default();
        let path = match location.chars().next() {
            Some('/') => location.to_string(),
            Some('?') => format!("{own}{location}"),
            None => self.path.clone(),
            Some(_) => {
                let folder = own.rfind('/').map_or("/", |at| &own[..=at]);
                format!("{folder}{location}")
            }
        };
        Next::Here(Self {
            path: without_dots(&path),
            ..self.clone()
        })
    }
}

/// Host and port; an address of IPv6 stands in brackets.
fn split(authority: &str, default: u16) -> Option<(&str, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    match port {
        None | Some("") => Some((host, default)),
        Some(port) => Some((host, port.parse().ok()?)),
    }
}

/// A path in which `.` and `..` are resolved; the query is left alone.
fn without_dots(path: &str) -> String {
    let (path, query) = match path.find('?') {
        Some(at) => path.split_at(at),
        None => (path, ""),
    };
    let mut parts = alloc::vec::Vec::new();
    let mut ends_open = false;
    for part in path.split('/').skip(1) {
        ends_open = matches!(part, "." | "..");
        match part {
            "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let end = if ends_open && !parts.is_empty() {
        "/"
    } else {
        ""
    };
    format!("/{}{end}{query}", parts.join("/"))
}

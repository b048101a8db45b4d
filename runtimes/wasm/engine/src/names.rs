//! Host names, as the pod's own files say: `/etc/hosts` first, then the servers, search domains and
//! options of its `/etc/resolv.conf`. Answers are not kept, as they are not in a container with a C
//! library.
//!
//! The worker is shared and sees no files, so the agent tells it what is in them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use hickory_resolver::{
    TokioResolver,
    config::{
        LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
        ServerOrderingStrategy,
    },
    net::{NetError, runtime::TokioRuntimeProvider},
    system_conf::parse_resolv_conf,
};

use crate::network::Network;

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LookupError {
    /// It cannot be a name.
    Invalid,
    /// There is no such name, or none with an address.
    Unknown,
    /// No server answered; it may later.
    Unavailable(String),
}

/// The names that one container knows.
#[derive(Debug, Default)]
pub(crate) struct Names {
    hosts: Box<[(Box<str>, IpAddr)]>,
    resolv_conf: Box<str>,
    /// Made by the first name that is not in `hosts`: most components ask for none.
    resolver: OnceLock<Option<Arc<TokioResolver>>>,
}

impl Names {
    pub(crate) fn new(hosts: &str, resolv_conf: &str) -> Self {
        Self {
            hosts: parse_hosts(hosts),
            resolv_conf: resolv_conf.into(),
            resolver: OnceLock::new(),
        }
    }

    /// The addresses of a name or the address it is, of families that the pod has; never none.
    pub(crate) async fn lookup(
        &self,
        network: &Network,
        name: &str,
    ) -> Result<Vec<IpAddr>, LookupError> {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return Ok(vec![address]);
        }
        // As the C library does: a name in the hosts file has these addresses and no others.
        let same = |known: &str| known.eq_ignore_ascii_case(name.trim_end_matches('.'));
        let hosts = self.hosts.iter().filter(|(known, _)| same(known));
        let found: Vec<IpAddr> = hosts
            .map(|(_, address)| *address)
            .filter(|address| network.has_family_of(*address))
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
        if name.is_empty()
            || name.len() > 255
            || name.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(LookupError::Invalid);
        }
        let resolver = self
            .resolver
            .get_or_init(|| self.resolver(network).map(Arc::new));
        let Some(resolver) = resolver.clone() else {
            return Err(LookupError::Unavailable(
                "resolv.conf names no usable server".into(),
            ));
        };
        match resolver.lookup_ip(name).await {
            Ok(answer) => {
                let addresses: Vec<IpAddr> = answer
                    .iter()
                    .map(|address| address.to_canonical())
                    .collect();
                if addresses.is_empty() {
                    Err(LookupError::Unknown)
                } else {
                    Ok(addresses)
                }
            }
            Err(NetError::Proto(_)) => Err(LookupError::Invalid),
            Err(error) if error.is_no_records_found() => Err(LookupError::Unknown),
            Err(error) => Err(LookupError::Unavailable(error.to_string())),
        }
    }

    fn resolver(&self, network: &Network) -> Option<TokioResolver> {
        let (config, options) = parse_resolv_conf(&*self.resolv_conf).unwrap_or_else(|_| {
            // Without a server: the machine itself, as resolv.conf(5) has it.
            let local = NameServerConfig::udp_and_tcp([127, 0, 0, 1].into());
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![local]);
            (config, ResolverOpts::default())
        });
        let (domain, search, mut servers) = config.into_parts();
        for server in &mut servers {
            // Queries come from the pod, as all it sends. What listens on the node's loopback is the
            // node's own resolver, which the pod's dnsPolicy asked for.
            let source = network
                .source(server.ip)
                .filter(|_| !server.ip.is_loopback());
            for connection in &mut server.connections {
                connection.bind_addr = source.map(|ip| SocketAddr::new(ip, 0));
            }
        }
        let config = ResolverConfig::from_parts(domain, search, servers);
        let provider = TokioRuntimeProvider::default();
        let mut builder =
            TokioResolver::builder_with_config(config, provider).with_options(options);
        let options = builder.options_mut();
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        options.ip_strategy = match network {
            Network::Confined { v6: None, .. } => LookupIpStrategy::Ipv4Only,
            Network::Confined { v4: None, .. } => LookupIpStrategy::Ipv6Only,
            _ => LookupIpStrategy::Ipv4AndIpv6,
        };
        builder.build().ok()
    }
}

/// Names and addresses of a hosts file; lines that are none are passed over.
fn parse_hosts(text: &str) -> Box<[(Box<str>, IpAddr)]> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let entries = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        Some(words.map(move |name| (name.into(), address)))
    });
    entries.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_hosts_file_answers_before_any_server_and_in_any_case() {
        let hosts = "# managed\n127.0.0.1 localhost\n::1 localhost\n10.0.0.7\tdb.example db # the database\nnonsense x\n";
        let names = Names::new(hosts, "");
        let both = Network::Open;
        let v4 = Network::Confined {
            v4: Some([10, 0, 0, 1].into()),
            v6: None,
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (network, name, found) in [
            (&both, "localhost", vec![ip("127.0.0.1"), ip("::1")]),
            (&v4, "localhost", vec![ip("127.0.0.1")]),
            (&v4, "DB.", vec![ip("10.0.0.7")]),
            (&v4, "db.example", vec![ip("10.0.0.7")]),
            (&v4, "[::2]", vec![ip("::2")]),
        ] {
            assert_eq!(
                names.lookup(network, name).await.as_deref(),
                Ok(&found[..]),
                "{name}"
            );
        }
        for name in ["", "two words"] {
            assert_eq!(names.lookup(&both, name).await, Err(LookupError::Invalid));
        }
    }
}

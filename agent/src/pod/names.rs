//! What a pod is called and whom it asks for names: host name, `/etc/hosts`, `/etc/resolv.conf`. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use super::{full_name, name, namespace, spec};

/// The name that `hostname` prints in the pod, and the domain if it has a subdomain.
pub(crate) fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = spec(pod);
    // A host name holds 63 characters.
    let cut: String = name(pod).chars().take(63).collect();
    if let Some(name) = spec
        .hostname_override
        .clone()
        .filter(|name| !name.is_empty())
    {
        return (name, None);
    }
    let own = spec
        .hostname
        .clone()
        .unwrap_or_else(|| cut.trim_end_matches(['-', '.']).to_owned());
    let domain = spec
        .subdomain
        .as_ref()
        .filter(|subdomain| !subdomain.is_empty())
        .map(|subdomain| format!("{subdomain}.{}.svc.{cluster_domain}", namespace(pod)));
    (own, domain)
}

/// The name that the kernel is given, which may be the whole domain name.
///
/// # Errors
/// It is longer than the kernel takes.
pub(crate) fn kernel_hostname(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    /// `HOST_NAME_MAX`.
    const LENGTH_MAX: usize = 64;
    match hostname(pod, cluster_domain) {
        (host, Some(domain)) if spec(pod).set_hostname_as_fqdn == Some(true) => {
            let whole = format!("{host}.{domain}");
            match whole.len() {
                length if length > LENGTH_MAX => Err(format!(
                    "failed to construct FQDN from pod hostname and cluster domain, FQDN {whole} is too long ({LENGTH_MAX} characters is the max, {length} characters requested)"
                )),
                _ => Ok(whole),
            }
        }
        (host, _) => Ok(host),
    }
}

/// `/etc/hosts` of a pod, as the kubelet writes it.
pub(crate) fn hosts_file(
    pod: &Pod,
    ips: &[IpAddr],
    cluster_domain: &str,
    node_hosts: Option<&str>,
) -> String {
    let mut text = match node_hosts {
        Some(hosts) => format!("# Kubernetes-managed hosts file (host network).\n{hosts}"),
        None => {
            let mut text = String::from(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            let (host, domain) = hostname(pod, cluster_domain);
            for ip in ips {
                match &domain {
                    Some(domain) => text.push_str(&format!("{ip}\t{host}.{domain}\t{host}\n")),
                    None => text.push_str(&format!("{ip}\t{host}\n")),
                }
            }
            text
        }
    };
    let aliases = spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default();
            text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
        }
    }
    text
}

/// The cluster's DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterDns {
    /// Servers; empty where there is none.
    pub servers: Vec<IpAddr>,
    /// For instance `cluster.local`.
    pub domain: String,
}

/// `/etc/resolv.conf` of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    /// The file.
    pub(crate) text: String,
    /// Reasons and messages of events: what the pod asked for and does not get.
    pub(crate) warnings: Vec<(&'static str, String)>,
}

/// What resolvers read (`MaxDNSNameservers`, `MaxDNSSearchPaths`, `MaxDNSSearchListChars`).
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_BYTES_MAX: usize = 2048;

/// Makes `/etc/resolv.conf` of a pod. `node` is the node's own.
pub(crate) fn resolv_conf(pod: &Pod, dns: &ClusterDns, node: &str) -> ResolvConf {
    const FORMING: &str = "DNSConfigForming";
    let mut warnings = Vec::new();
    let spec = spec(pod);
    let (mut servers, mut searches, mut options) = parse_resolv_conf(node);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let wants_cluster = match policy {
        "ClusterFirst" => spec.host_network != Some(true),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    if policy == "None" {
        (servers, searches, options) = (Vec::new(), Vec::new(), Vec::new());
    } else if wants_cluster && !dns.servers.is_empty() {
        servers = dns.servers.iter().map(IpAddr::to_string).collect();
        let namespace = namespace(pod);
        let domain = &dns.domain;
        let cluster = [
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        searches = cluster.into_iter().chain(searches).collect();
        options = vec!["ndots:5".into()];
    }
    if wants_cluster && dns.servers.is_empty() {
        warnings.push((
            "MissingClusterDNS",
            format!(
                "pod: \"{}\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"{policy}\" policy. Falling back to \"Default\" policy.",
                full_name(pod)
            ),
        ));
    }
    if let Some(config) = &spec.dns_config {
        servers.extend(config.nameservers.iter().flatten().cloned());
        searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            options.retain(|there| there.split(':').next() != Some(name));
            options.push(
                option
                    .value
                    .as_ref()
                    .map_or_else(|| name.clone(), |value| format!("{name}:{value}")),
            );
        }
    }
    let mut text = String::new();
    let mut seen: Vec<String> = Vec::new();
    if servers.len() > NAMESERVERS_MAX {
        servers.truncate(NAMESERVERS_MAX);
        warnings.push((
            FORMING,
            format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                servers.join(" ")
            ),
        ));
    }
    for server in &servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    for search in searches {
        if !seen.contains(&search) {
            seen.push(search);
        }
    }
    let asked = seen.len();
    seen.truncate(SEARCHES_MAX);
    while seen.join(" ").len() > SEARCH_BYTES_MAX {
        seen.pop();
    }
    if seen.len() < asked {
        warnings.push((
            FORMING,
            format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                seen.join(" ")
            ),
        ));
    }
    if !seen.is_empty() {
        text.push_str(&format!("search {}\n", seen.join(" ")));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    ResolvConf { text, warnings }
}

fn parse_resolv_conf(text: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().map(str::to_owned)),
            Some("search") => searches = words.map(str::to_owned).collect(),
            Some("options") => options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    (servers, searches, options)
}

#[cfg(test)]
mod tests;

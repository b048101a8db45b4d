//! The cluster's names, to the Kubernetes DNS specification (version 1.1.0). Pure.
//!
//! | Name below the cluster's domain | Answers |
//! |---|---|
//! | `<service>.<namespace>.svc` | A, AAAA: the cluster's addresses, or endpoints if headless; CNAME of an ExternalName; SRV of all ports |
//! | `_<port>._<protocol>.<service>.<namespace>.svc` | SRV |
//! | `<hostname>.<service>.<namespace>.svc` | A, AAAA of one endpoint of a headless Service |
//! | `<a-b-c-d>.<namespace>.pod` | A, AAAA: what the name says |
//! | `dns-version` | TXT |
//!
//! And the addresses of Services, and of endpoints of headless ones, backwards.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
};
use wherry_services::{Endpoint, Index, Kind, Service, ServiceKey, Slice, View};

/// Seconds that an answer may be kept. Short, for endpoints come and go.
pub(crate) const TTL: u32 = 5;
/// The version of the specification.
const VERSION: &str = "1.1.0";
/// ExternalNames that lead to each other, followed.
const ALIASES_MAX: usize = 8;

/// What is known of a question.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    /// These records; none if there is nothing of that type.
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// These records, and whatever others answer to that name.
    Alias { answers: Vec<Record>, target: Name },
    /// There is no such name.
    NotFound,
    /// Not known yet, or not to be said in DNS.
    Failed,
    /// Not ours to answer.
    Elsewhere,
}

/// The zone of a cluster.
pub(crate) struct Zone {
    domain: Vec<String>,
    origin: Name,
    address: IpAddr,
    index: Arc<Index>,
}

/// The records that a name has of the type asked for, and those that go with them.
#[derive(Default)]
struct Found {
    answers: Vec<(Name, RData)>,
    additionals: Vec<(Name, RData)>,
}

impl Zone {
    /// The zone of `domain`, answered at `address`. `None` if the domain is no name.
    pub(crate) fn new(domain: &str, address: IpAddr, index: Arc<Index>) -> Option<Self> {
        let mut origin = Name::from_ascii(domain.to_ascii_lowercase()).ok()?;
        origin.set_fqdn(true);
        Some(Self {
            domain: labels(&origin),
            origin,
            address,
            index,
        })
    }

    /// What goes with an answer that says that there is nothing.
    pub(crate) fn authority(&self) -> Record {
        let name =
            |label: &str| Name::from_ascii(label).and_then(|name| name.append_domain(&self.origin));
        let (server, mailbox) = (name("ns.dns"), name("hostmaster"));
        let soa = SOA::new(
            server.unwrap_or_else(|_| self.origin.clone()),
            mailbox.unwrap_or_else(|_| self.origin.clone()),
            1,
            7200,
            1800,
            86400,
            TTL,
        );
        Record::from_rdata(self.origin.clone(), TTL, RData::SOA(soa))
    }

    /// Answers a question.
    pub(crate) fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let mut asked = labels(name);
        if let Some(address) = reverse(&asked) {
            return match self.backwards(address) {
                Some(target) => Answer::Records {
                    answers: of_type(name, RData::PTR(PTR(target)), kind),
                    additionals: Vec::new(),
                },
                None if self.index.is_known() => Answer::Elsewhere,
                None => Answer::Failed,
            };
        }
        let mut answers = Vec::new();
        let mut owner = name.clone();
        for _ in 0..ALIASES_MAX {
            let Some(rest) = asked.strip_suffix(&self.domain[..]) else {
                return if answers.is_empty() {
                    Answer::Elsewhere
                } else {
                    Answer::Alias {
                        answers,
                        target: owner,
                    }
                };
            };
            if let Some(target) = self.alias(rest) {
                let Ok(mut target) = Name::from_ascii(target) else {
                    return Answer::Failed;
                };
                target.set_fqdn(true);
                let data = RData::CNAME(CNAME(target.clone()));
                answers.push(Record::from_rdata(owner, TTL, data));
                if kind == RecordType::CNAME {
                    return Answer::Records {
                        answers,
                        additionals: Vec::new(),
                    };
                }
                asked = labels(&target);
                owner = target;
                continue;
            }
            let records = |found: Vec<(Name, RData)>| {
                found
                    .into_iter()
                    .map(|(name, data)| Record::from_rdata(name, TTL, data))
            };
            return match self.find(&owner, rest, kind) {
                Some(found) => {
                    answers.extend(records(found.answers));
                    Answer::Records {
                        answers,
                        additionals: records(found.additionals).collect(),
                    }
                }
                None if !self.index.is_known() => Answer::Failed,
                None if answers.is_empty() => Answer::NotFound,
                None => Answer::Records {
                    answers,
                    additionals: Vec::new(),
                },
            };
        }
        Answer::Failed
    }

    fn alias(&self, rest: &[String]) -> Option<String> {
        let [service, namespace, svc] = rest else {
            return None;
        };
        let view = (svc == "svc").then(|| self.index.get(namespace, service))??;
        match &view.service.kind {
            Kind::External(target) => Some(target.clone()),
            _ => None,
        }
    }

    /// What `owner`, whose labels below the domain are `rest`, has; `None` if there is no such name.
    fn find(&self, owner: &Name, rest: &[String], kind: RecordType) -> Option<Found> {
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        let mut found = Found::default();
        match rest[..] {
            [] => {
                if kind == RecordType::SOA {
                    let authority = self.authority();
                    found.answers.push((owner.clone(), authority.data));
                } else if kind == RecordType::NS {
                    let server = self.below(&["ns", "dns"])?;
                    found
                        .answers
                        .push((owner.clone(), RData::NS(NS(server.clone()))));
                    found.additionals.push((server, address(self.address)));
                }
            }
            ["svc" | "pod" | "dns"] | [_, "pod"] => {}
            ["ns", "dns"] => found.answers.extend(addresses(owner, [self.address], kind)),
            ["dns-version"] => {
                if kind == RecordType::TXT {
                    let text = TXT::new(vec![VERSION.to_owned()]);
                    found.answers.push((owner.clone(), RData::TXT(text)));
                }
            }
            [namespace, "svc"] => {
                if !self.index.has_namespace(namespace) {
                    return None;
                }
            }
            [pod, _, "pod"] => found
                .answers
                .extend(addresses(owner, [spelled(pod)?], kind)),
            [service, namespace, "svc"] => {
                let view = self.index.get(namespace, service)?;
                if kind == RecordType::SRV {
                    self.ports(owner, namespace, service, &view, None, &mut found)?;
                } else {
                    found.answers.extend(addresses(owner, ips(&view), kind));
                }
            }
            [part, service, namespace, "svc"] => {
                let view = self.index.get(namespace, service)?;
                if !part.starts_with('_') {
                    let named = ready(&view).filter(|(endpoint, _)| hostname(endpoint) == part);
                    let ips: Vec<IpAddr> = named.map(|(endpoint, _)| endpoint.address).collect();
                    if view.service.kind != Kind::Headless || ips.is_empty() {
                        return None;
                    }
                    found.answers.extend(addresses(owner, ips, kind));
                }
            }
            [port, protocol, service, namespace, "svc"] => {
                let view = self.index.get(namespace, service)?;
                let wanted = (port.strip_prefix('_')?, protocol.strip_prefix('_')?);
                let is_there = view
                    .service
                    .ports
                    .iter()
                    .any(|port| port.name == wanted.0 && port.protocol.as_str() == wanted.1);
                if !is_there {
                    return None;
                }
                if kind == RecordType::SRV {
                    self.ports(owner, namespace, service, &view, Some(wanted), &mut found)?;
                }
            }
            _ => return None,
        }
        Some(found)
    }

    /// SRV records of a Service: of one port by name and protocol, or of all.
    fn ports(
        &self,
        owner: &Name,
        namespace: &str,
        service: &str,
        view: &View,
        wanted: Option<(&str, &str)>,
        found: &mut Found,
    ) -> Option<()> {
        let is_wanted = |name: &str, protocol: &str| wanted.is_none_or(|it| it == (name, protocol));
        let mut add = |port: u16, target: Name, ips: &[IpAddr]| {
            let record = RData::SRV(SRV::new(0, 100, port, target.clone()));
            if !found.answers.iter().any(|(_, known)| *known == record) {
                found.answers.push((owner.clone(), record));
                for ip in ips {
                    let record = (target.clone(), address(*ip));
                    if !found.additionals.contains(&record) {
                        found.additionals.push(record);
                    }
                }
            }
        };
        if view.service.kind == Kind::Headless {
            for (endpoint, slice) in ready(view) {
                let target = self.below(&[&*hostname(endpoint), service, namespace, "svc"])?;
                for port in &slice.ports {
                    if let Some(number) = port.port
                        && is_wanted(&port.name, port.protocol.as_str())
                    {
                        add(number, target.clone(), &[endpoint.address]);
                    }
                }
            }
        } else {
            let target = self.below(&[service, namespace, "svc"])?;
            for port in &view.service.ports {
                if is_wanted(&port.name, port.protocol.as_str()) {
                    add(port.port, target.clone(), &ips(view));
                }
            }
        }
        Some(())
    }

    fn below(&self, labels: &[&str]) -> Option<Name> {
        let name = Name::from_labels(labels.iter().map(|label| label.as_bytes())).ok()?;
        name.append_domain(&self.origin).ok()
    }

    /// The name of an address, if it is a Service's, or an endpoint's of a headless one.
    fn backwards(&self, ip: IpAddr) -> Option<Name> {
        if let Some(ServiceKey { namespace, name }) = self.index.find_cluster_ip(ip) {
            return self.below(&[&*name, &*namespace, "svc"]);
        }
        self.index.find(|key, view| {
            if view.service.kind != Kind::Headless {
                return None;
            }
            let (endpoint, _) = ready(view).find(|(endpoint, _)| endpoint.address == ip)?;
            self.below(&[&*hostname(endpoint), &*key.name, &*key.namespace, "svc"])
        })
    }
}

fn labels(name: &Name) -> Vec<String> {
    name.iter()
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect()
}

/// Where a Service is: its own addresses, or those of its endpoints.
fn ips(view: &View) -> Vec<IpAddr> {
    let Service { kind, .. } = &*view.service;
    match kind {
        Kind::Cluster(ips) => ips.clone(),
        Kind::Headless => {
            let mut ips: Vec<IpAddr> = ready(view).map(|(endpoint, _)| endpoint.address).collect();
            ips.sort_unstable();
            ips.dedup();
            ips
        }
        Kind::External(_) => Vec::new(),
    }
}

/// Endpoints that are named.
fn ready(view: &View) -> impl Iterator<Item = (&Endpoint, &Slice)> {
    let all = view.service.publishes_not_ready;
    view.endpoints()
        .filter(move |(endpoint, _)| endpoint.is_ready || all)
}

/// The name of an endpoint below its Service: its own, or its address with dashes.
fn hostname(endpoint: &Endpoint) -> String {
    match &endpoint.hostname {
        Some(name) => name.to_string(),
        None => endpoint.address.to_string().replace(['.', ':'], "-"),
    }
}

/// The address that a pod's name spells.
fn spelled(pod: &str) -> Option<IpAddr> {
    pod.replace('-', ".")
        .parse::<Ipv4Addr>()
        .map(IpAddr::from)
        .or_else(|_| pod.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::from))
        .ok()
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn addresses(
    owner: &Name,
    ips: impl IntoIterator<Item = IpAddr>,
    kind: RecordType,
) -> impl Iterator<Item = (Name, RData)> {
    ips.into_iter()
        .map(address)
        .filter(move |data| kind == data.record_type() || kind == RecordType::ANY)
        .map(|data| (owner.clone(), data))
}

fn of_type(owner: &Name, data: RData, kind: RecordType) -> Vec<Record> {
    if kind == data.record_type() || kind == RecordType::ANY {
        vec![Record::from_rdata(owner.clone(), TTL, data)]
    } else {
        Vec::new()
    }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse(labels: &[String]) -> Option<IpAddr> {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels[..] {
        [d, c, b, a, "in-addr", "arpa"] => format!("{a}.{b}.{c}.{d}")
            .parse::<Ipv4Addr>()
            .ok()
            .map(IpAddr::from),
        [ref nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let mut bits: u128 = 0;
            for nibble in nibbles.iter().rev() {
                let digit = u8::from_str_radix(nibble, 16)
                    .ok()
                    .filter(|digit| *digit < 16)?;
                bits = bits << 4 | u128::from(digit);
            }
            Some(Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests;

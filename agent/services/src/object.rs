//! Services and EndpointSlices as far as a node has to know them: small, and checked. Pure.
//!
//! They are kept on disk in this form ([`crate::kept`]): a new field needs a default.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::{core::v1, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};
use wherry_network::Cidr;

/// Says which Service an EndpointSlice is of.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Services with this label are served by somebody else's proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Kubernetes' default `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours.
const AFFINITY_SECONDS: i32 = 10_800;

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ServiceKey {
    /// A key.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// `protocol` of a port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    /// The default.
    #[default]
    Tcp,
    /// Without connections; the kernel's memory of flows is cleared when endpoints go.
    Udp,
    /// Where the kernel has it.
    Sctp,
}

impl Protocol {
    /// Reads a port's `protocol`; TCP if it says nothing.
    pub fn parse(name: Option<&str>) -> Self {
        match name {
            Some("UDP") => Self::Udp,
            Some("SCTP") => Self::Sctp,
            _ => Self::Tcp,
        }
    }

    /// The name that nftables and DNS have for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// One of a Service's ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    /// Empty if it has none.
    pub name: String,
    /// Of the transport.
    pub protocol: Protocol,
    /// At the Service's address.
    pub port: u16,
    /// At every node's address; 0 if it has none.
    pub node_port: u16,
}

/// What kind of Service it is, as far as names and packets go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// With addresses of its own, IPv4 or IPv6.
    Cluster(Vec<IpAddr>),
    /// `clusterIP: None`: known to DNS alone.
    #[default]
    Headless,
    /// Another name.
    External(String),
}

/// Who may connect to the addresses of a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Allowed {
    /// The balancer's addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Where its clients are. None is in another.
    pub sources: Vec<Cidr>,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Service {
    /// Where it is known.
    pub kind: Kind,
    /// In the order of the spec.
    pub ports: Vec<ServicePort>,
    /// Addresses besides its own: `externalIPs` and those of its load balancer.
    pub external_ips: Vec<Ipv4Addr>,
    /// Who may connect to the addresses of its load balancer (`loadBalancerSourceRanges`); `None` is everybody.
    pub allowed: Option<Allowed>,
    /// How long a client keeps its endpoint; `None` if it does not.
    pub affinity: Option<Duration>,
    /// `internalTrafficPolicy: Local`.
    pub is_internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub is_external_local: bool,
    /// Where balancers ask this node whether it has endpoints (`healthCheckNodePort`); `None` if they do not.
    pub health_check_port: Option<u16>,
    /// `publishNotReadyAddresses`.
    pub publishes_not_ready: bool,
    /// Somebody else's proxy sees to its packets.
    pub is_foreign: bool,
}

/// An address behind a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Where it is.
    pub address: IpAddr,
    /// The name that it has below a headless Service.
    #[serde(default)]
    pub hostname: Option<Box<str>>,
    /// Takes new connections.
    #[serde(default)]
    pub is_ready: bool,
    /// Answers, whether it is ending or not.
    #[serde(default)]
    pub is_serving: bool,
    /// Is ending.
    #[serde(default)]
    pub is_terminating: bool,
    /// Is on this node.
    #[serde(default)]
    pub is_local: bool,
}

/// A port that all endpoints of a slice have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SlicePort {
    /// The Service's name for it.
    pub name: String,
    /// Of the transport.
    pub protocol: Protocol,
    /// At the endpoint; `None` stands for every port.
    pub port: Option<u16>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Slice {
    /// Common to the endpoints.
    pub ports: Vec<SlicePort>,
    /// In the slice's order.
    pub endpoints: Vec<Endpoint>,
}

fn key(meta: &ObjectMeta) -> Option<ServiceKey> {
    Some(ServiceKey::new(
        meta.namespace.as_deref()?,
        meta.name.as_deref()?,
    ))
}

fn port(number: i32) -> u16 {
    // The API server lets nothing else through; 0 is no port.
    u16::try_from(number).unwrap_or(0)
}

/// IPv4 ranges without those that others hold.
fn outermost(ranges: &[String]) -> Vec<Cidr> {
    let mut ranges: Vec<Cidr> = ranges
        .iter()
        .filter_map(|range| range.trim().parse().ok())
        .filter(|range: &Cidr| range.network().is_ipv4())
        .collect();
    ranges.sort_unstable_by_key(|range| (range.prefix_len(), *range));
    let mut kept: Vec<Cidr> = Vec::new();
    for range in ranges {
        if !kept.iter().any(|wider| wider.overlaps(&range)) {
            kept.push(range);
        }
    }
    kept
}

/// Reads a Service; `None` if it has no name.
pub fn service(object: &v1::Service) -> Option<(ServiceKey, Service)> {
    let key = key(&object.metadata)?;
    let empty = v1::ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&empty);
    let kind = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
        (Some("ExternalName"), _) => Kind::External(spec.external_name.clone().unwrap_or_default()),
        (_, Some("None")) => Kind::Headless,
        (_, first) => {
            let mut ips: Vec<IpAddr> = Vec::new();
            for ip in first
                .into_iter()
                .chain(spec.cluster_ips.iter().flatten().map(String::as_str))
            {
                if let Ok(ip) = ip.parse()
                    && !ips.contains(&ip)
                {
                    ips.push(ip);
                }
            }
            Kind::Cluster(ips)
        }
    };
    let ports = spec.ports.iter().flatten().map(|item| ServicePort {
        name: item.name.clone().unwrap_or_default(),
        protocol: Protocol::parse(item.protocol.as_deref()),
        port: port(item.port),
        node_port: port(item.node_port.unwrap_or(0)),
    });
    let is_client_ip = spec.session_affinity.as_deref() == Some("ClientIP");
    let seconds = || {
        let config = spec.session_affinity_config.as_ref()?;
        config.client_ip.as_ref()?.timeout_seconds
    };
    let affinity = is_client_ip.then(|| seconds().unwrap_or(AFFINITY_SECONDS).max(1));
    let balancer = object
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref())
        .flatten()
        // "Proxy" says that packets are to go by way of the balancer.
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref())
        .filter_map(|ip| ip.parse::<Ipv4Addr>().ok());
    let balancer: Vec<Ipv4Addr> = balancer.collect();
    let ranges = spec.load_balancer_source_ranges.as_ref();
    let allowed = ranges
        .filter(|ranges| !ranges.is_empty())
        .map(|ranges| Allowed {
            addresses: balancer.clone(),
            sources: outermost(ranges),
        });
    let mut external_ips: Vec<Ipv4Addr> = spec
        .external_ips
        .iter()
        .flatten()
        .filter_map(|ip| ip.parse().ok())
        .chain(balancer)
        .collect();
    external_ips.sort_unstable();
    external_ips.dedup();
    let labels = object.metadata.labels.as_ref();
    let is_external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let is_checked = is_external_local && spec.type_.as_deref() == Some("LoadBalancer");
    let health_check_port = spec.health_check_node_port.filter(|_| is_checked).map(port);
    let service = Service {
        kind,
        ports: ports.collect(),
        external_ips,
        allowed,
        affinity: affinity.map(|seconds| Duration::from_secs(seconds.unsigned_abs().into())),
        is_internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        is_external_local,
        health_check_port: health_check_port.filter(|port| *port != 0),
        publishes_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        is_foreign: labels.is_some_and(|labels| labels.contains_key(PROXY_NAME)),
    };
    Some((key, service))
}

/// Reads an EndpointSlice as `node` sees it: the Service it is of, its own name, and what it says. `None`
/// if it is of no Service, or its addresses are names.
pub fn slice(object: &discovery::EndpointSlice, node: &str) -> Option<(ServiceKey, String, Slice)> {
    let own = key(&object.metadata)?;
    let service = object.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    if object.address_type == "FQDN" {
        return None;
    }
    let ports = object.ports.iter().flatten().map(|item| SlicePort {
        name: item.name.clone().unwrap_or_default(),
        protocol: Protocol::parse(item.protocol.as_deref()),
        port: item.port.map(port),
    });
    let endpoints = object.endpoints.iter().flatten().filter_map(|item| {
        let conditions = item.conditions.as_ref();
        // What is not said counts as ready, and as serving what is ready.
        let is_ready = conditions.and_then(|all| all.ready).unwrap_or(true);
        Some(Endpoint {
            address: item.addresses.first()?.parse().ok()?,
            hostname: item.hostname.as_deref().map(Box::from),
            is_ready,
            is_serving: conditions.and_then(|all| all.serving).unwrap_or(is_ready),
            is_terminating: conditions.and_then(|all| all.terminating).unwrap_or(false),
            is_local: item.node_name.as_deref() == Some(node),
        })
    });
    let slice = Slice {
        ports: ports.collect(),
        endpoints: endpoints.collect(),
    };
    Some((
        ServiceKey::new(&own.namespace, service),
        own.name.to_string(),
        slice,
    ))
}

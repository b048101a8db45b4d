//! Endpoints that somebody made by hand, as EndpointSlices. Pure.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{EndpointAddress, EndpointSubset, Endpoints},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};

use super::{
    MANAGED_BY, OF_ENDPOINTS, SERVICE_NAME,
    slices::{self, Changes, Common, Group},
};
use crate::watched::key_of;

/// Endpoints with this label are shown by slices of somebody else.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that are a lock of an election.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that mean the object itself.
const OWN_ANNOTATIONS: [&str; 2] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "endpoints.kubernetes.io/last-change-trigger-time",
];
/// Addresses mirrored of one subset (`--mirroring-max-endpoints-per-subset`).
const ADDRESSES_MAX: usize = 1_000;

/// Whether they are to be mirrored.
pub(super) fn is_wanted(endpoints: &Endpoints) -> bool {
    let (labels, annotations) = (&endpoints.metadata.labels, &endpoints.metadata.annotations);
    let skips = labels
        .as_ref()
        .is_some_and(|labels| labels.get(SKIP).is_some_and(|value| value == "true"));
    let is_lock = annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(LEADER));
    !skips && !is_lock && endpoints.metadata.deletion_timestamp.is_none()
}

/// What to write.
pub(super) fn plan(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>]) -> Changes {
    let mut groups: Vec<Group> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        for group in of_subset(subset) {
            let known = groups.iter_mut().find(|known| {
                known.address_type == group.address_type && known.ports == group.ports
            });
            match known {
                Some(known) => known.endpoints.extend(group.endpoints),
                None => groups.push(group),
            }
        }
    }
    slices::arrange(&common(endpoints), &groups, existing)
}

fn of_subset(subset: &EndpointSubset) -> Vec<Group> {
    let ports: Vec<_> = subset
        .ports
        .iter()
        .flatten()
        .map(|port| EndpointPort {
            app_protocol: port.app_protocol.clone(),
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port.port),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        })
        .collect();
    let ready = subset.addresses.iter().flatten().map(|at| (at, true));
    let not_ready = subset.not_ready_addresses.iter().flatten();
    let all: Vec<_> = ready
        .chain(not_ready.map(|at| (at, false)))
        .take(ADDRESSES_MAX)
        .collect();
    let of_family = |family: &str| {
        let endpoints: Vec<_> = all
            .iter()
            .filter(|(address, _)| self::family(&address.ip) == Some(family))
            .map(|(address, is_ready)| endpoint(address, *is_ready))
            .collect();
        (!endpoints.is_empty()).then(|| Group {
            address_type: family.to_owned(),
            ports: ports.clone(),
            endpoints,
        })
    };
    ["IPv4", "IPv6"].into_iter().filter_map(of_family).collect()
}

fn family(ip: &str) -> Option<&'static str> {
    match ip.parse().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

fn endpoint(address: &EndpointAddress, is_ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(is_ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn common(endpoints: &Endpoints) -> Common {
    let key = key_of(endpoints);
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), key.name.clone());
    labels.insert(MANAGED_BY.to_owned(), OF_ENDPOINTS.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| !OWN_ANNOTATIONS.contains(&name.as_str()));
    Common {
        annotations: (!annotations.is_empty()).then_some(annotations),
        labels,
        owner: OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Endpoints".to_owned(),
            name: key.name.clone(),
            uid: endpoints.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        },
        service: key,
    }
}

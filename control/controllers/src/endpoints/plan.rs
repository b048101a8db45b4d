//! Which pods are endpoints of a Service, and in which state. Pure.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::OwnerReference, util::intstr::IntOrString},
};

use super::{
    HEADLESS, Labels, MANAGED_BY, OF_PODS, SERVICE_NAME, ServiceView,
    slices::{self, Changes, Common, Group},
};
use crate::pods::PodView;

/// Whether two states of a pod are the same endpoint.
pub(super) fn is_same(a: &PodView, b: &PodView) -> bool {
    a.uid == b.uid
        && a.labels == b.labels
        && a.is_ready() == b.is_ready()
        && a.is_finished() == b.is_finished()
        && a.deleted.is_some() == b.deleted.is_some()
        && a.ips == b.ips
        && a.node == b.node
}

/// What to write for a Service with a selector, of whose pods these are all.
pub(super) fn plan(
    service: &ServiceView,
    pods: &[Arc<PodView>],
    existing: &[Arc<EndpointSlice>],
) -> Changes {
    let mut groups: Vec<Group> = Vec::new();
    for family in &service.families {
        let before = groups.len();
        for pod in pods.iter().filter(|pod| !pod.is_finished()) {
            let Some(ip) = ip(pod, family) else { continue };
            let ports = ports(service, pod);
            let ports = ports.into_iter().map(|port| port.of_slice()).collect();
            let endpoint = endpoint(service, pod, ip);
            let known = groups[before..]
                .iter_mut()
                .find(|group| group.ports == ports);
            match known {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group {
                    address_type: family.clone(),
                    ports,
                    endpoints: vec![endpoint],
                }),
            }
        }
        if groups.len() == before {
            // Nobody is there: the slice that is there says so, whatever its ports.
            let known = existing.iter().find(|slice| slice.address_type == *family);
            groups.push(Group {
                address_type: family.clone(),
                ports: known
                    .and_then(|slice| slice.ports.clone())
                    .unwrap_or_default(),
                endpoints: Vec::new(),
            });
        }
    }
    slices::arrange(&common(service), &groups, existing)
}

fn common(service: &ServiceView) -> Common {
    let mut labels = service_labels(service);
    labels.insert(SERVICE_NAME.to_owned(), service.key.name.clone());
    labels.insert(MANAGED_BY.to_owned(), OF_PODS.to_owned());
    Common {
        service: service.key.clone(),
        labels,
        annotations: None,
        owner: OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Service".to_owned(),
            name: service.key.name.clone(),
            uid: service.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        },
    }
}

/// Labels that a Service hands down.
pub(super) fn service_labels(service: &ServiceView) -> Labels {
    let mut labels = service.labels.clone();
    labels.remove(HEADLESS);
    if service.is_headless {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// A pod's address of a family.
pub(super) fn ip<'a>(pod: &'a PodView, family: &str) -> Option<&'a str> {
    let is_of = |ip: &&String| match ip.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => family == "IPv4",
        Ok(IpAddr::V6(_)) => family == "IPv6",
        Err(_) => false,
    };
    pod.ips.iter().find(is_of).map(String::as_str)
}

/// A Service's port as one pod has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) number: i32,
    pub(super) protocol: String,
    pub(super) app_protocol: Option<String>,
}

impl Port {
    fn of_slice(self) -> EndpointPort {
        EndpointPort {
            app_protocol: self.app_protocol,
            name: Some(self.name),
            port: Some(self.number),
            protocol: Some(self.protocol),
        }
    }
}

/// The ports that a pod has of a Service: a named one may be another number in each pod, or missing.
pub(super) fn ports(service: &ServiceView, pod: &PodView) -> Vec<Port> {
    let ports = service.ports.iter().filter_map(|port| {
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            number: number(port, pod)?,
            protocol: protocol(port).to_owned(),
            app_protocol: port.app_protocol.clone(),
        })
    });
    ports.collect()
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn number(port: &ServicePort, pod: &PodView) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => pod
            .ports
            .iter()
            .find(|found| found.name == *name && found.protocol == protocol(port))
            .map(|found| found.number),
    }
}

fn endpoint(service: &ServiceView, pod: &PodView, ip: &str) -> Endpoint {
    let (serving, terminating) = (pod.is_ready(), pod.deleted.is_some());
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(service.publishes_not_ready || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: node(pod),
        target_ref: Some(target(pod)),
        ..Endpoint::default()
    }
}

/// A pod has a name of its own in the Service's domain if it says that it is in that.
pub(super) fn hostname(service: &ServiceView, pod: &PodView) -> Option<String> {
    let is_in = !pod.hostname.is_empty() && pod.subdomain == service.key.name;
    is_in.then(|| pod.hostname.clone())
}

pub(super) fn node(pod: &PodView) -> Option<String> {
    (!pod.node.is_empty()).then(|| pod.node.clone())
}

pub(super) fn target(pod: &PodView) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.key.namespace.clone()),
        name: Some(pod.key.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

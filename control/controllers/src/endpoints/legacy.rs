//! The Endpoints object of a Service, as clients from before EndpointSlices read it. Pure.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    ServiceView,
    plan::{self, Port},
};
use crate::pods::PodView;

/// Addresses in one object (`maxCapacity`): ready ones first, and an annotation says that there are more.
const ADDRESSES_MAX: usize = 1_000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const US: &str = "endpoint-controller";

/// Whether this controller made it.
pub(super) fn is_ours(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels.is_some_and(|labels| labels.get(MANAGED_BY).is_some_and(|by| by == US))
}

/// The object to write; `None`: what is there is right.
pub(super) fn plan(
    service: &ServiceView,
    pods: &[Arc<PodView>],
    found: Option<&Endpoints>,
) -> Option<Endpoints> {
    let (subsets, is_cut) = subsets(service, pods);
    let mut labels = plan::service_labels(service);
    labels.insert(MANAGED_BY.to_owned(), US.to_owned());
    let mut wanted = found.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: Some(service.key.name.clone()),
            namespace: Some(service.key.namespace.clone()),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    wanted.metadata.labels = Some(labels);
    let mut annotations = wanted.metadata.annotations.take().unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    if is_cut {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    }
    wanted.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    wanted.subsets = (!subsets.is_empty()).then_some(subsets);
    if found == Some(&wanted) {
        return None;
    }
    wanted.metadata.resource_version = None;
    Some(wanted)
}

/// Addresses with the same ports, ready or not, and whether there are more.
fn subsets(service: &ServiceView, pods: &[Arc<PodView>]) -> (Vec<EndpointSubset>, bool) {
    let family = service.families.first().map_or("IPv4", String::as_str);
    let ready = |pod: &PodView| service.publishes_not_ready || pod.is_ready();
    let mut shown: Vec<_> = pods
        .iter()
        .filter(|pod| !pod.is_finished())
        // One that goes is none, unless those that are not ready are wanted too.
        .filter(|pod| pod.deleted.is_none() || service.publishes_not_ready)
        .filter_map(|pod| Some((pod, plan::ip(pod, family)?)))
        .collect();
    shown.sort_by_key(|(pod, _)| !ready(pod));
    let is_cut = shown.len() > ADDRESSES_MAX;
    shown.truncate(ADDRESSES_MAX);
    let mut by_ports: BTreeMap<Vec<Port>, [Vec<EndpointAddress>; 2]> = BTreeMap::new();
    for (pod, ip) in shown {
        let ports = plan::ports(service, pod);
        if ports.is_empty() && !service.ports.is_empty() {
            continue;
        }
        let sides = by_ports.entry(ports).or_default();
        sides[usize::from(!ready(pod))].push(EndpointAddress {
            hostname: plan::hostname(service, pod),
            ip: ip.to_owned(),
            node_name: plan::node(pod),
            target_ref: Some(plan::target(pod)),
        });
    }
    let subsets = by_ports.into_iter().map(|(ports, sides)| {
        let [addresses, not_ready_addresses] = sides.map(|mut addresses| {
            addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
            (!addresses.is_empty()).then_some(addresses)
        });
        let ports: Vec<_> = ports.into_iter().map(of_endpoints).collect();
        EndpointSubset {
            addresses,
            not_ready_addresses,
            ports: (!ports.is_empty()).then_some(ports),
        }
    });
    (subsets.collect(), is_cut)
}

fn of_endpoints(port: Port) -> EndpointPort {
    EndpointPort {
        app_protocol: port.app_protocol,
        name: (!port.name.is_empty()).then_some(port.name),
        port: port.number,
        protocol: Some(port.protocol),
    }
}

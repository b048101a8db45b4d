//! What the scheduler keeps of a node. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Taint};

use super::{
    pod::{Footprint, HostPort},
    resources::Resources,
};

/// A node with what its pods have taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeInfo {
    pub(crate) name: String,
    /// What the API says; `None` while only pods speak of the node.
    pub(crate) offer: Option<Offer>,
    pub(crate) requested: Resources,
    pub(crate) cpu_millis_assumed: i64,
    pub(crate) memory_bytes_assumed: i64,
    pub(crate) host_ports: Vec<HostPort>,
}

/// What a node has for pods and whom it takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Offer {
    pub(crate) allocatable: Resources,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    pub(crate) is_unschedulable: bool,
}

impl Offer {
    /// Reads a node as it is in the API.
    pub(crate) fn read(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        Self {
            allocatable: Resources::read(status.and_then(|status| status.allocatable.as_ref())),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec
                .and_then(|spec| spec.taints.clone())
                .unwrap_or_default(),
            is_unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
        }
    }
}

impl NodeInfo {
    /// Counts a pod in.
    pub(crate) fn add(&mut self, pod: &Footprint) {
        self.requested.add(&pod.requests);
        self.cpu_millis_assumed += pod.cpu_millis_assumed;
        self.memory_bytes_assumed += pod.memory_bytes_assumed;
        self.host_ports.extend(pod.host_ports.iter().cloned());
    }

    /// Counts a pod out.
    pub(crate) fn remove(&mut self, pod: &Footprint) {
        self.requested.subtract(&pod.requests);
        self.cpu_millis_assumed -= pod.cpu_millis_assumed;
        self.memory_bytes_assumed -= pod.memory_bytes_assumed;
        for port in &pod.host_ports {
            if let Some(index) = self.host_ports.iter().position(|own| own == port) {
                self.host_ports.swap_remove(index);
            }
        }
    }
}

//! What the scheduler keeps of a node. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Taint};

use super::{
    pod::{HostPort, Needs},
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
    /// Who is there.
    pub(crate) pods: HashSet<Arc<str>>,
    /// How many pods of an owner are there.
    pub(crate) owners: HashMap<String, u32>,
    /// How many pods of a priority are there.
    pub(crate) priorities: BTreeMap<i32, u32>,
}

/// What a node has for pods and whom it takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Offer {
    pub(crate) allocatable: Resources,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    pub(crate) is_unschedulable: bool,
    /// Runtime handlers; none are listed by a node that does not say which it has.
    pub(crate) handlers: Vec<String>,
    /// Sizes of images that are there, in bytes, by each of their names.
    pub(crate) images: BTreeMap<String, i64>,
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
            handlers: status
                .and_then(|status| status.runtime_handlers.as_ref())
                .into_iter()
                .flatten()
                .map(|handler| handler.name.clone().unwrap_or_default())
                .collect(),
            images: status
                .and_then(|status| status.images.as_ref())
                .into_iter()
                .flatten()
                .flat_map(|image| {
                    let names = image.names.iter().flatten();
                    names.map(|name| (name.clone(), image.size_bytes.unwrap_or(0)))
                })
                .collect(),
        }
    }
}

impl NodeInfo {
    /// The value of one of its labels, if the API knows the node.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.offer.as_ref()?.labels.get(key).map(String::as_str)
    }

    /// Counts a pod in.
    pub(crate) fn add(&mut self, uid: Arc<str>, pod: &Needs) {
        let footprint = &pod.footprint;
        self.requested.add(&footprint.requests);
        self.cpu_millis_assumed += footprint.cpu_millis_assumed;
        self.memory_bytes_assumed += footprint.memory_bytes_assumed;
        self.host_ports.extend(footprint.host_ports.iter().cloned());
        self.pods.insert(uid);
        *self.priorities.entry(pod.priority).or_default() += 1;
        if let Some(owner) = &pod.owner {
            *self.owners.entry(owner.clone()).or_default() += 1;
        }
    }

    /// Counts a pod out.
    pub(crate) fn remove(&mut self, uid: &str, pod: &Needs) {
        let footprint = &pod.footprint;
        self.requested.subtract(&footprint.requests);
        self.cpu_millis_assumed -= footprint.cpu_millis_assumed;
        self.memory_bytes_assumed -= footprint.memory_bytes_assumed;
        for port in &footprint.host_ports {
            if let Some(index) = self.host_ports.iter().position(|own| own == port) {
                self.host_ports.swap_remove(index);
            }
        }
        self.pods.remove(uid);
        if let Some(count) = self.priorities.get_mut(&pod.priority) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&pod.priority);
            }
        }
        if let Some(owner) = &pod.owner
            && let Some(count) = self.owners.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(owner);
            }
        }
    }
}

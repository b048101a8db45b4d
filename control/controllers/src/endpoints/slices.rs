//! How endpoints are laid out in slices. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use super::{Labels, SERVICE_NAME};
use crate::workqueue::Key;

/// Endpoints in one slice (`--max-endpoints-per-slice`).
const ENDPOINTS_MAX: usize = 100;

/// What is to be written.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<String>,
}

impl Changes {
    /// Nothing is to be left.
    pub(super) fn all_gone(slices: &[Arc<EndpointSlice>]) -> Self {
        Self {
            delete: slices.iter().map(|slice| name(slice)).collect(),
            ..Self::default()
        }
    }
}

/// Endpoints that can share a slice: of one family, with the same ports.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub(super) address_type: String,
    pub(super) ports: Vec<EndpointPort>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// What all slices of a Service have in common.
pub(super) struct Common {
    pub(super) service: Key,
    pub(super) labels: Labels,
    pub(super) annotations: Option<Labels>,
    pub(super) owner: OwnerReference,
}

/// The Service that a slice is of.
pub(super) fn service(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    let namespace = slice.metadata.namespace.clone()?;
    Some(Key::new(namespace, name.clone()))
}

fn name(slice: &EndpointSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}

/// Who an endpoint is, whatever state it is in.
fn identity(endpoint: &Endpoint) -> (String, String) {
    let target = endpoint.target_ref.as_ref();
    (
        target
            .and_then(|target| target.uid.clone())
            .unwrap_or_default(),
        endpoint.addresses.join(","),
    )
}

fn is_of(slice: &EndpointSlice, group: &Group) -> bool {
    slice.address_type == group.address_type
        && slice.ports.as_deref().unwrap_or_default() == group.ports
}

/// What to write so that the groups are what the slices say. An endpoint stays in the slice it is in; new ones go
/// where there is room.
pub(super) fn arrange(
    common: &Common,
    groups: &[Group],
    existing: &[Arc<EndpointSlice>],
) -> Changes {
    let mut changes = Changes::default();
    let mut names: BTreeSet<String> = existing.iter().map(|slice| name(slice)).collect();
    let mut kept = BTreeSet::new();
    for group in groups {
        let mut wanted: BTreeMap<_, _> = group
            .endpoints
            .iter()
            .map(|endpoint| (identity(endpoint), endpoint.clone()))
            .collect();
        let of_group = existing.iter().filter(|slice| is_of(slice, group));
        let mut filled: Vec<(Option<&Arc<EndpointSlice>>, Vec<Endpoint>)> = of_group
            .map(|slice| {
                let known = slice.endpoints.iter().flatten();
                let stay = known.filter_map(|endpoint| wanted.remove(&identity(endpoint)));
                (Some(slice), stay.collect())
            })
            .collect();
        let mut rest = wanted.into_values();
        for (_, endpoints) in &mut filled {
            let room = ENDPOINTS_MAX.saturating_sub(endpoints.len());
            endpoints.extend(rest.by_ref().take(room));
        }
        loop {
            let endpoints: Vec<_> = rest.by_ref().take(ENDPOINTS_MAX).collect();
            // A Service without endpoints has one slice that says so.
            let says_so = filled.is_empty() && group.endpoints.is_empty();
            if endpoints.is_empty() && !says_so {
                break;
            }
            filled.push((None, endpoints));
        }
        let mut is_said = !group.endpoints.is_empty();
        for (slice, endpoints) in filled {
            if endpoints.is_empty() && std::mem::replace(&mut is_said, true) {
                continue;
            }
            match slice {
                Some(slice) => {
                    kept.insert(name(slice));
                    let wanted = updated(common, slice, endpoints);
                    if wanted != **slice {
                        changes.update.push(unconditional(wanted));
                    }
                }
                None => {
                    let name = free_name(common, group, &names);
                    names.insert(name.clone());
                    changes
                        .create
                        .push(new_slice(common, group, name, endpoints));
                }
            }
        }
    }
    let left = existing.iter().map(|slice| name(slice));
    changes.delete = left.filter(|name| !kept.contains(name)).collect();
    changes
}

fn updated(common: &Common, slice: &EndpointSlice, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut wanted = slice.clone();
    wanted.metadata.labels = Some(common.labels.clone());
    if common.annotations.is_some() {
        wanted.metadata.annotations = common.annotations.clone();
    }
    wanted.metadata.owner_references = Some(vec![common.owner.clone()]);
    // An empty list may come back as none.
    if endpoints != wanted.endpoints.as_deref().unwrap_or_default() {
        wanted.endpoints = Some(endpoints);
    }
    wanted
}

/// Nobody else writes it: what is believed of its version may be old, and what it is to say is not.
fn unconditional(mut slice: EndpointSlice) -> EndpointSlice {
    slice.metadata.resource_version = None;
    slice
}

fn new_slice(
    common: &Common,
    group: &Group,
    name: String,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(common.service.namespace.clone()),
            labels: Some(common.labels.clone()),
            annotations: common.annotations.clone(),
            owner_references: Some(vec![common.owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: group.address_type.clone(),
        endpoints: Some(endpoints),
        ports: Some(group.ports.clone()),
    }
}

/// The same slice gets the same name, whoever makes it: two control planes do not make it twice.
fn free_name(common: &Common, group: &Group, taken: &BTreeSet<String>) -> String {
    let mut number: u32 = 0;
    loop {
        let text = serde_json::to_string(&(&group.address_type, &group.ports, number));
        let hash = crate::hash::short(text.unwrap_or_default().as_bytes());
        let name = format!("{}-{hash}", common.service.name);
        if !taken.contains(&name) {
            return name;
        }
        number += 1;
    }
}

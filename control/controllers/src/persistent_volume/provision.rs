//! What a StorageClass of a plugin says, which node is asked, and what is written of what it answers. Pure.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};
use wherry_api::{
    provision::CreatedVolume,
    quantity::{Format, Quantity},
};

use super::{
    matching,
    plan::{NODE, PLUGIN},
    view::PROVISIONED_BY,
};
use crate::{nodes::NodeView, workqueue::Key};

/// Kubernetes' own parameters of a class: the provisioner does not see them.
const RESERVED: &str = "csi.storage.k8s.io/";
/// The Secret that a volume is taken away with, as Kubernetes' external provisioner notes it.
pub(super) const DELETION_SECRET_NAME: &str =
    "volume.kubernetes.io/provisioner-deletion-secret-name";
pub(super) const DELETION_SECRET_NAMESPACE: &str =
    "volume.kubernetes.io/provisioner-deletion-secret-namespace";
/// The label that a node's volumes are found by.
pub(super) const HOSTNAME: &str = "kubernetes.io/hostname";
/// Failures of one node before another is asked, where any will do: what the first one made is not left there lightly.
const FAILURES_OF_A_NODE_MAX: u32 = 5;
/// Longest handle, bytes, as nodes bound it.
const HANDLE_BYTES_MAX: usize = 1024;

/// A Secret, by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SecretName {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// The parameters of a class, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    /// For the plugin.
    pub(super) of_plugin: BTreeMap<String, String>,
    pub(super) fs_type: Option<String>,
    /// For making the volume, and for taking it away.
    pub(super) provisioner_secret: Option<SecretName>,
    /// For mounting it.
    pub(super) publish_secret: Option<SecretName>,
}

impl Parameters {
    /// Those of a class, for the volume of a claim.
    ///
    /// # Errors
    /// What cannot be honoured, in words for the claim's event.
    pub(super) fn read(class: &StorageClass, claim: &Key, volume: &str) -> Result<Self, String> {
        let mut read = Self::default();
        let mut secrets: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
        for (key, value) in class.parameters.iter().flatten() {
            let Some(own) = key.strip_prefix(RESERVED) else {
                read.of_plugin.insert(key.clone(), value.clone());
                continue;
            };
            let secret = [("-secret-namespace", "namespace"), ("-secret-name", "name")]
                .into_iter()
                .find_map(|(suffix, part)| Some((own.strip_suffix(suffix)?, part)));
            match (own, secret) {
                ("fstype", _) => read.fs_type = Some(value.clone()),
                (_, Some((whose @ ("provisioner" | "node-publish"), part))) => {
                    let value = resolved(value, claim, volume)
                        .map_err(|why| format!("parameter {key:?}: {why}"))?;
                    secrets.entry(whose).or_default().insert(part, value);
                }
                (_, Some(_)) => {
                    return Err(format!(
                        "parameter {key:?}: a plugin's volume is made with the provisioner's Secret, and mounted and made \
                         larger with the node-publish one: there are no others"
                    ));
                }
                _ => {
                    return Err(format!(
                        "found unknown parameter key {key:?} with reserved namespace {RESERVED}"
                    ));
                }
            }
        }
        for (whose, mut parts) in secrets {
            let (Some(name), Some(namespace)) = (parts.remove("name"), parts.remove("namespace"))
            else {
                return Err(format!(
                    "either name and namespace for {whose} secrets specified, both must be specified"
                ));
            };
            let secret = Some(SecretName { namespace, name });
            match whose {
                "provisioner" => read.provisioner_secret = secret,
                _ => read.publish_secret = secret,
            }
        }
        Ok(read)
    }
}

/// A Secret's name or namespace, with what it is a template of.
fn resolved(template: &str, claim: &Key, volume: &str) -> Result<String, String> {
    let mut text = template.to_owned();
    for (token, value) in [
        ("${pv.name}", volume),
        ("${pvc.namespace}", &claim.namespace),
        ("${pvc.name}", &claim.name),
    ] {
        text = text.replace(token, value);
    }
    match text.is_empty() || text.contains("${") {
        true => Err(format!(
            "{template:?}: only ${{pv.name}}, ${{pvc.namespace}} and ${{pvc.name}} are known"
        )),
        false => Ok(text),
    }
}

/// The nodes that may be asked to make a volume, in the order in which they are. `selected`: the scheduler has chosen;
/// `installed`: those that have the plugin, where they are known; `failures`: how often it has failed.
pub(super) fn candidates(
    nodes: &[std::sync::Arc<NodeView>],
    selected: &str,
    class: &StorageClass,
    installed: Option<&HashSet<String>>,
    volume: &str,
    failures: u32,
) -> Vec<String> {
    if !selected.is_empty() {
        return vec![selected.to_owned()];
    }
    let topologies = class.allowed_topologies.clone().unwrap_or_default();
    let mut found: Vec<_> = nodes
        .iter()
        .filter(|node| node.ready == "True" && !node.is_unschedulable)
        .filter(|node| matching::is_allowed(&topologies, &node.labels))
        .map(|node| node.key.name.clone())
        .filter(|name| installed.is_none_or(|installed| installed.contains(name)))
        .collect();
    found.sort();
    if !found.is_empty() {
        let mut hasher = DefaultHasher::new();
        volume.hash(&mut hasher);
        let steps = u64::from(failures / FAILURES_OF_A_NODE_MAX);
        // The remainder is less than the length.
        let first = hasher.finish().wrapping_add(steps) % found.len() as u64;
        found.rotate_left(first as usize);
    }
    found
}

/// The nodes that may be asked to take a volume away, in order. `only`: it can be reached from nowhere else.
pub(super) fn deleters(
    nodes: &[std::sync::Arc<NodeView>],
    made_on: &str,
    only: bool,
) -> Vec<String> {
    let mut found: Vec<_> = nodes
        .iter()
        .filter(|node| node.key.name == made_on || (!only && node.ready == "True"))
        .map(|node| (node.key.name != made_on, node.key.name.clone()))
        .collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

/// Whether what a node answers can be a claim's volume: it says what a plugin says.
///
/// # Errors
/// Why not.
pub(super) fn check(created: &CreatedVolume, bytes_min: i128) -> Result<(), String> {
    let handle = &created.handle;
    if handle.is_empty() || handle.len() > HANDLE_BYTES_MAX || handle.contains(char::is_control) {
        return Err(format!(
            "the volume's handle has {} bytes, or control characters",
            handle.len()
        ));
    }
    if i128::from(created.bytes) < bytes_min || i64::try_from(created.bytes).is_err() {
        return Err(format!(
            "created volume capacity {} less than requested capacity {bytes_min}",
            created.bytes
        ));
    }
    Ok(())
}

/// A number of bytes as Kubernetes writes it; what was asked for as it was asked for.
pub(super) fn capacity(created: &CreatedVolume, asked: &str, asked_bytes: i128) -> String {
    match i64::try_from(created.bytes) {
        Ok(bytes) if i128::from(bytes) != asked_bytes => {
            Quantity::from_value(bytes, Format::BinarySi).to_string()
        }
        _ => asked.to_owned(),
    }
}

/// Annotations of a volume that a node has made.
pub(super) fn annotations(
    provisioner: &str,
    plugin: &str,
    node: &str,
    parameters: &Parameters,
) -> Value {
    let mut annotations = json!({ PROVISIONED_BY: provisioner, PLUGIN: plugin, NODE: node });
    if let Some(secret) = &parameters.provisioner_secret {
        annotations[DELETION_SECRET_NAME] = secret.name.clone().into();
        annotations[DELETION_SECRET_NAMESPACE] = secret.namespace.clone().into();
    }
    annotations
}

/// What a volume that was made is: fields of the PersistentVolume's spec.
pub(super) fn source(
    provisioner: &str,
    created: &CreatedVolume,
    hostname: &str,
    parameters: &Parameters,
) -> Value {
    let mut source = json!({ "csi": {
        "driver": provisioner,
        "volumeHandle": created.handle,
        "volumeAttributes": created.attributes,
    } });
    if let Some(fs_type) = &parameters.fs_type {
        source["csi"]["fsType"] = fs_type.clone().into();
    }
    if let Some(secret) = &parameters.publish_secret {
        source["csi"]["nodePublishSecretRef"] =
            json!({ "name": secret.name, "namespace": secret.namespace });
    }
    if created.is_of_this_node {
        source["nodeAffinity"] = json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [
            { "key": HOSTNAME, "operator": "In", "values": [hostname] },
        ] }] } });
    }
    source
}

#[cfg(test)]
mod tests;

//! NodeRestriction: what an agent writes is about its own node and its own pods.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use wherry_api::{Status, meta};

use crate::{admission::mirror, authz::node::LEASES, call::Call};

/// Labels of Kubernetes' own domains that an agent may give its node.
const LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Domains of Kubernetes in which an agent may label its node as it likes.
const DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Labels that say what runs on a node: for the operator alone.
const RESTRICTED: &str = "node-restriction.kubernetes.io";

/// What an agent writes of the claims of its pods: how large they are, and what is being done about it.
const OF_CLAIMS: &[&str] = &[
    "allocatedResourceStatuses",
    "allocatedResources",
    "capacity",
    "conditions",
    "currentVolumeAttributesClassName",
    "modifyVolumeStatus",
];

fn is_core(call: &Call, plural: &str) -> bool {
    call.resource.group.is_empty() && call.resource.plural == plural
}

fn forbidden(call: &Call, name: &str, detail: &str) -> Status {
    Status::forbidden(call.resource, name, detail)
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn is_below(domain: &str, parent: &str) -> bool {
    domain
        .strip_suffix(parent)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a label is not an agent's to give.
fn is_forbidden_label(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else {
        return false;
    };
    if is_below(domain, RESTRICTED) {
        return true;
    }
    let is_reserved = is_below(domain, "kubernetes.io") || is_below(domain, "k8s.io");
    is_reserved
        && !LABELS.contains(&label)
        && !DOMAINS.iter().any(|allowed| is_below(domain, allowed))
}

/// Labels that differ between two objects.
fn changed_labels(
    new: Option<&Map<String, Value>>,
    old: Option<&Map<String, Value>>,
) -> BTreeSet<String> {
    let of = |labels: Option<&Map<String, Value>>, key: &String| {
        labels.and_then(|labels| labels.get(key)).cloned()
    };
    let keys = new.into_iter().chain(old).flat_map(Map::keys);
    keys.filter(|key| of(new, key) != of(old, key))
        .cloned()
        .collect()
}

fn joined(labels: &BTreeSet<String>) -> String {
    let forbidden: Vec<&str> = labels
        .iter()
        .map(String::as_str)
        .filter(|label| is_forbidden_label(label))
        .collect();
    forbidden.join(", ")
}

pub(super) fn create(call: &Call, object: &Value) -> Result<(), Status> {
    let Some(node) = call.user.node_name() else {
        return Ok(());
    };
    let name = meta::name(object);
    let refuse = |detail: String| Err(forbidden(call, name, &detail));
    if is_core(call, "pods") {
        if !mirror::is_mirror(object) {
            return refuse(format!(
                "pod does not have {:?} annotation, node {node:?} can only create mirror pods",
                mirror::MIRROR
            ));
        }
        if text(object, "/spec/nodeName") != node {
            return refuse(format!(
                "node {node:?} can only create pods with spec.nodeName set to itself"
            ));
        }
        let is_own = |owner: &Value| text(owner, "/kind") == "Node" && text(owner, "/name") == node;
        if !meta::owner_references(object).iter().all(is_own) {
            return refuse(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
    }
    if is_core(call, "nodes") {
        if name != node {
            return refuse(format!(
                "node {node:?} is not allowed to modify node {name:?}"
            ));
        }
        if !meta::owner_references(object).is_empty() {
            return refuse(format!(
                "node {node:?} is not allowed to set ownerReferences"
            ));
        }
        let labels = joined(&changed_labels(meta::labels(object), None));
        if !labels.is_empty() {
            return refuse(format!(
                "node {node:?} is not allowed to set the following labels: {labels}"
            ));
        }
    }
    match (call.resource.group, call.resource.plural) {
        ("coordination.k8s.io", "leases") if call.namespace() != LEASES => refuse(format!(
            "can only access leases in the {LEASES:?} system namespace"
        )),
        ("coordination.k8s.io", "leases") if name != node => {
            refuse("can only access node lease with the same name as the requesting node".into())
        }
        ("storage.k8s.io", "csinodes") if name != node => {
            refuse("can only access CSINode with the same name as the requesting node".into())
        }
        _ => Ok(()),
    }
}

/// What of a claim is not its agent's to write.
fn beside_size(claim: &Value) -> Value {
    let mut claim = claim.clone();
    if let Some(status) = claim.get_mut("status").and_then(Value::as_object_mut) {
        status.retain(|field, _| !OF_CLAIMS.contains(&field.as_str()));
    }
    if claim["status"].as_object().is_none_or(Map::is_empty) {
        claim["status"] = Value::Null;
    }
    // Who wrote what follows from what was written.
    meta::metadata_mut(&mut claim).remove("managedFields");
    claim
}

pub(super) fn update(
    call: &Call,
    subresource: &str,
    new: &Value,
    old: &Value,
) -> Result<(), Status> {
    let Some(node) = call.user.node_name() else {
        return Ok(());
    };
    let name = call.name();
    let refuse = |detail: String| Err(forbidden(call, name, &detail));
    if is_core(call, "pods") {
        if text(old, "/spec/nodeName") != node {
            return refuse(format!(
                "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
            ));
        }
        if meta::labels(new) != meta::labels(old) {
            return refuse(format!(
                "node {node:?} cannot update labels through pod status"
            ));
        }
    }
    if is_core(call, "persistentvolumeclaims") {
        if subresource != "status" {
            return refuse(format!("node {node:?} may only update PVC status"));
        }
        if beside_size(new) != beside_size(old) {
            return refuse(format!(
                "node {node:?} is not allowed to update fields other than {} of the status",
                OF_CLAIMS.join(", ")
            ));
        }
    }
    if !is_core(call, "nodes") {
        return Ok(());
    }
    if name != node {
        return refuse(format!(
            "node {node:?} is not allowed to modify node {name:?}"
        ));
    }
    if subresource.is_empty() && new.pointer("/spec/taints") != old.pointer("/spec/taints") {
        return refuse(format!("node {node:?} is not allowed to modify taints"));
    }
    if meta::owner_references(new) != meta::owner_references(old) {
        return refuse(format!(
            "node {node:?} is not allowed to modify ownerReferences"
        ));
    }
    let labels = joined(&changed_labels(meta::labels(new), meta::labels(old)));
    if !labels.is_empty() {
        return refuse(format!("is not allowed to modify labels: {labels}"));
    }
    Ok(())
}

pub(super) fn delete(call: &Call, subresource: &str, object: &Value) -> Result<(), Status> {
    let Some(node) = call.user.node_name() else {
        return Ok(());
    };
    if is_core(call, "pods") && text(object, "/spec/nodeName") != node {
        let act = if subresource == "eviction" {
            "evict"
        } else {
            "delete"
        };
        let detail = format!("node {node:?} can only {act} pods with spec.nodeName set to itself");
        return Err(forbidden(call, meta::name(object), &detail));
    }
    Ok(())
}

/// A token that an agent asks for is for one of its pods; `pod` is the one the request binds it to.
pub(crate) fn token(call: &Call, pod: Option<&Value>) -> Result<(), Status> {
    let Some(node) = call.user.node_name() else {
        return Ok(());
    };
    let detail = match pod {
        None => "node requested token not bound to a pod",
        Some(pod) if text(pod, "/spec/nodeName") != node => {
            "node requested token bound to a pod scheduled on a different node"
        }
        Some(_) => return Ok(()),
    };
    Err(forbidden(call, call.name(), detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_labels_its_node_with_what_is_an_agents() {
        for (label, expected) in [
            ("app", false),
            ("example.com/zone", false),
            ("topology.kubernetes.io/zone", false),
            ("kubernetes.io/hostname", false),
            ("custom.node.kubernetes.io/x", false),
            ("kubelet.kubernetes.io/x", false),
            ("node-role.kubernetes.io/control-plane", true),
            ("node-restriction.kubernetes.io/secure", true),
            ("sub.node-restriction.kubernetes.io/secure", true),
            ("other.k8s.io/x", true),
            ("notkubernetes.io/x", false),
        ] {
            assert_eq!(is_forbidden_label(label), expected, "{label}");
        }
    }
}

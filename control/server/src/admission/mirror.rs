//! Mirror pods: what the API shows of a node's static pods. Only that node may make one, and it may need nothing
//! from the API, because the pod runs without it.

use serde_json::Value;
use wherry_api::{Status, meta};

use crate::call::Call;

const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn is_mirror(object: &Value) -> bool {
    meta::annotation(object, MIRROR).is_some()
}

pub(super) fn check(call: &Call, object: &Value) -> Result<(), Status> {
    let node = call.user.node_name();
    let forbidden =
        |detail: &str| Err(Status::forbidden(call.resource, meta::name(object), detail));
    let spec = &object["spec"];
    if !is_mirror(object) {
        return match node {
            Some(node) => {
                let name = meta::name(object);
                forbidden(&format!(
                    "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods, not {name:?}"
                ))
            }
            None => Ok(()),
        };
    }
    let assigned = spec["nodeName"].as_str().unwrap_or_default();
    if let Some(node) = node
        && assigned != node
    {
        return forbidden(&format!(
            "node {node:?} can only create pods with spec.nodeName set to itself"
        ));
    }
    if assigned.is_empty() {
        return forbidden("a mirror pod must have spec.nodeName set");
    }
    if spec["serviceAccountName"]
        .as_str()
        .is_some_and(|name| !name.is_empty())
    {
        return forbidden("a mirror pod may not reference service accounts");
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        for (source, what) in [
            ("secret", "secrets"),
            ("configMap", "configmaps"),
            ("persistentVolumeClaim", "persistentvolumeclaims"),
        ] {
            if volume.get(source).is_some() {
                return forbidden(&format!("a mirror pod may not reference {what}"));
            }
        }
    }
    Ok(())
}

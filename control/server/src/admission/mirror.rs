//! Mirror pods: what the API shows of a node's static pods. They may need nothing from the API, because the pod runs
//! without it.

use serde_json::Value;
use wherry_api::{Status, meta};

use crate::call::Call;

pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn is_mirror(object: &Value) -> bool {
    meta::annotation(object, MIRROR).is_some()
}

pub(super) fn check(call: &Call, object: &Value) -> Result<(), Status> {
    let forbidden =
        |detail: &str| Err(Status::forbidden(call.resource, meta::name(object), detail));
    if !is_mirror(object) {
        return Ok(());
    }
    let spec = &object["spec"];
    let assigned = spec["nodeName"].as_str().unwrap_or_default();
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

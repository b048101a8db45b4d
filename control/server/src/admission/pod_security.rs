//! PodSecurity: the labels of a namespace say what its pods may do.

use serde_json::Value;
use wherry_api::{
    Status, meta,
    pod_security::{self, Level},
};

use crate::{call::Call, stored, verbs::store_status};

const PREFIX: &str = "pod-security.kubernetes.io/";

/// The level and version that a mode (`enforce`, `warn`) has by the labels. One that is misspelt is the strictest, as in
/// Kubernetes.
fn level(namespace: &Value, mode: &str) -> (Level, String) {
    let version = meta::label(namespace, &format!("{PREFIX}{mode}-version")).unwrap_or("latest");
    let level = match meta::label(namespace, &format!("{PREFIX}{mode}")) {
        None => Level::Privileged,
        Some(text) => text.parse().unwrap_or(Level::Restricted),
    };
    (level, version.to_owned())
}

/// The pod, or the template of pods, in an object.
fn spec_of<'a>(call: &Call, object: &'a Value) -> Option<&'a Value> {
    let path = match (call.resource.group, call.resource.plural) {
        ("", "pods") => "/spec",
        ("apps", "daemonsets" | "deployments" | "replicasets" | "statefulsets")
        | ("batch", "jobs")
        | ("", "replicationcontrollers") => "/spec/template/spec",
        ("batch", "cronjobs") => "/spec/jobTemplate/spec/template/spec",
        _ => return None,
    };
    object.pointer(path)
}

/// Refuses pods that do more than their namespace lets them, and warns of pods and templates that do.
pub(super) async fn check(call: &Call, namespace: &str, object: &Value) -> Result<(), Status> {
    let Some(spec) = spec_of(call, object) else {
        return Ok(());
    };
    let row = wherry_api::find("", "v1", "namespaces").expect("a row");
    let found = call.app.store.get(&stored::key(row, "", namespace)).await;
    let (found, _) = found.map_err(|error| store_status(row, namespace, error))?;
    let Some(found) = found.map(|kv| stored::decode(&kv)) else {
        return Ok(());
    };
    let is_pod = call.resource.plural == "pods";
    let told = |mode| {
        let (level, version) = level(&found, mode);
        pod_security::violations(level, spec).map(|violations| {
            format!(
                "violate PodSecurity \"{}:{version}\": {violations}",
                level.name()
            )
        })
    };
    if is_pod && let Some(told) = told("enforce") {
        let detail = told.replacen("violate", "violates", 1);
        return Err(Status::forbidden(
            call.resource,
            meta::name(object),
            &detail,
        ));
    }
    if let Some(told) = told("warn") {
        call.warnings.push(format!("would {told}"));
    }
    Ok(())
}

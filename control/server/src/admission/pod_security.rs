//! PodSecurity: the labels of a namespace say what its pods may do.

mod config;
pub(super) mod namespace;

use serde_json::Value;
use wherry_api::{
    Status, meta,
    pod_security::{self, Level},
};

pub use config::{PodSecurityConfig, PodSecurityError};

use crate::{call::Call, stored, verbs::store_status};

const PREFIX: &str = "pod-security.kubernetes.io/";

/// What becomes of pods that do more than they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// They are refused.
    Enforce,
    /// The audit log has it.
    Audit,
    /// Who asks is told.
    Warn,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
            Self::Warn => "warn",
        }
    }
}

/// The level and version that a mode has by a namespace's labels, or by the configuration where it has none. One that
/// is misspelt is the strictest, as in Kubernetes.
fn level(namespace: &Value, mode: Mode, config: &PodSecurityConfig) -> (Level, String) {
    let default = config.default_of(mode);
    let name = mode.name();
    let version = meta::label(namespace, &format!("{PREFIX}{name}-version"));
    let level = match meta::label(namespace, &format!("{PREFIX}{name}")) {
        None => default.level,
        Some(text) => text.parse().unwrap_or(Level::Restricted),
    };
    (level, version.unwrap_or(&default.version).to_owned())
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
    let config = &call.app.pod_security;
    let note = |key: &str, text: String| call.notes.put(format!("{PREFIX}{key}"), text);
    let runtime_class = spec.get("runtimeClassName").and_then(Value::as_str);
    if let Some(why) = config.exemption(namespace, &call.user.name, runtime_class) {
        note("exempt", why.to_owned());
        return Ok(());
    }
    let row = wherry_api::find("", "v1", "namespaces").expect("a row");
    let found = call.judged_by(&stored::key(row, "", namespace)).await;
    let found = found.map_err(|error| store_status(row, namespace, error))?;
    let Some(found) = found.map(|kv| stored::decode(&kv)) else {
        return Ok(());
    };
    let is_pod = call.resource.plural == "pods";
    let told = |mode| {
        let (level, version) = level(&found, mode, config);
        pod_security::violations(level, spec).map(|violations| {
            format!(
                "violate PodSecurity \"{}:{version}\": {violations}",
                level.name()
            )
        })
    };
    if let Some(told) = told(Mode::Audit) {
        note("audit-violations", format!("would {told}"));
    }
    if is_pod {
        let (level, version) = level(&found, Mode::Enforce, config);
        if level != Level::Privileged {
            note("enforce-policy", format!("{}:{version}", level.name()));
        }
        if let Some(told) = told(Mode::Enforce) {
            let detail = told.replacen("violate", "violates", 1);
            return Err(Status::forbidden(
                call.resource,
                meta::name(object),
                &detail,
            ));
        }
    }
    if let Some(told) = told(Mode::Warn) {
        call.warnings.push(format!("would {told}"));
    }
    Ok(())
}

//! Plugin of wherry.dev: what the operator installs, and may revoke, on every node.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, empty, entries, flag, get, integer, list, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Image", "Reference of the plugin's OCI artifact."),
    Column::text("Ready", "Whether all nodes that tried can call it."),
    Column::text("Reason", "Why they cannot, or what else is wrong.").wide(),
    Column::text("Nodes", "Nodes that can call it, of those that tried."),
    Column::text(
        "Failure-Policy",
        "What a call without an outcome counts as.",
    )
    .wide(),
    Column::age(),
];

/// What plugins can be for.
const CLASSES: &[&str] = &["Probe", "Populator", "Mounter", "Filesystem"];
const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore", "LastResult"];
/// Limits, with the least and the most that make sense.
const LIMITS: [(&str, i64, i64); 3] = [
    ("cpuTimeMilliseconds", 1, 60_000),
    ("wallTimeMilliseconds", 1, 600_000),
    ("instances", 1, 100),
];
const HOSTS_MAX: usize = 100;

pub(super) struct Plugin;

impl Strategy for Plugin {
    fn default(&self, object: &mut Value) {
        default(object, "spec", empty());
        if let Some(spec) = object.get_mut("spec") {
            // A built-in plugin has those of its own.
            if !text(spec, "image").is_empty() {
                default(spec, "class", "Probe");
                default(spec, "failurePolicy", "Ignore");
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        if let Some(object) = object.as_object_mut() {
            object.remove("status");
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("spec");
        let spec = get(object, "spec");
        let is_builtin = text(spec, "image").is_empty();
        for field in ["class", "digest", "signature"] {
            if is_builtin && spec.get(field).is_some() {
                let detail = "may not be set without image: it would be a built-in plugin's";
                errors.push(FieldError::forbidden(&path.child(field), detail));
            }
        }
        let digest = text(spec, "digest");
        if !digest.is_empty() && !is_digest(digest) {
            let detail = "must be sha256: and 64 hexadecimal digits";
            errors.push(FieldError::invalid(&path.child("digest"), digest, detail));
        }
        for (field, supported) in [("class", CLASSES), ("failurePolicy", FAILURE_POLICIES)] {
            let value = text(spec, field);
            let is_own = is_builtin && value.is_empty();
            if !is_own && !supported.contains(&value) {
                let path = path.child(field);
                errors.push(FieldError::not_supported(&path, value, supported));
            }
        }
        let grants = path.child("grants");
        let hosts = grants.child("hosts");
        let granted = list(get(spec, "grants"), "hosts");
        if granted.len() > HOSTS_MAX {
            errors.push(FieldError::too_many(&hosts, granted.len(), HOSTS_MAX));
        }
        for (i, host) in granted.iter().enumerate() {
            let host = host.as_str().unwrap_or_default();
            if host.is_empty() || host.contains(char::is_whitespace) {
                let detail =
                    "must be a name, *.domain, an address or a range, with or without a port";
                errors.push(FieldError::invalid(&hosts.index(i), host, detail));
            }
        }
        let secrets = grants.child("secrets");
        for (i, secret) in list(get(spec, "grants"), "secrets").iter().enumerate() {
            let text = secret.as_str().unwrap_or_default();
            let parts: Vec<_> = text.split('/').collect();
            if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
                let detail = "must be a Secret's name, name/key, or *";
                errors.push(FieldError::invalid(&secrets.index(i), text, detail));
            }
        }
        let keys = path.child("signature");
        let keys = keys.child("publicKeys");
        for (i, key) in list(get(spec, "signature"), "publicKeys")
            .iter()
            .enumerate()
        {
            let text = key.as_str().unwrap_or_default();
            if !text.contains("-----BEGIN PUBLIC KEY-----") {
                let detail = "must be a public key, PEM";
                errors.push(FieldError::invalid(&keys.index(i), text, detail));
            }
        }
        limits(get(spec, "limits"), &path.child("limits"), &mut errors);
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let nodes = entries(get(object, "status"), "nodes");
        let (mut ready, mut all) = (0, 0);
        for (_, node) in nodes {
            all += 1;
            ready += i32::from(flag(node, "ready"));
        }
        let conditions = list(get(object, "status"), "conditions");
        let condition = conditions
            .iter()
            .find(|condition| text(condition, "type") == "Ready");
        let said = |field| condition.map_or("", |condition| text(condition, field));
        vec![
            meta::name(object).into(),
            text(spec, "image").into(),
            said("status").into(),
            said("reason").into(),
            format!("{ready}/{all}").into(),
            text(spec, "failurePolicy").into(),
            table::age(object, now).into(),
        ]
    }
}

fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn limits(limits: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for (field, min, max) in LIMITS {
        if let Some(value) = integer(limits, field)
            && !(min..=max).contains(&value)
        {
            let detail = format!("must be between {min} and {max}, inclusive");
            errors.push(FieldError::invalid(&path.child(field), value, detail));
        }
    }
    let memory = text(limits, "memory");
    if !memory.is_empty() && crate::quantity::Quantity::parse(memory).is_err() {
        let detail = "must be a quantity of bytes, such as 16Mi";
        errors.push(FieldError::invalid(&path.child("memory"), memory, detail));
    }
}

//! What is wrong with environment variables, and with references to fields of the pod.

use serde_json::Value;

use super::validate::{Errors, rule};
use crate::{FieldError, field::Path, meta, value::text};

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const ENV_RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

pub(super) fn env(vars: &[Value], path: &Path<'_>, errors: &mut Errors) {
    for (i, var) in vars.iter().enumerate() {
        let at = path.index(i);
        let name = text(var, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&at.child("name"), ""));
        } else {
            rule(meta::env_var_name(name), &at.child("name"), name, errors);
        }
        let Some(from) = var.get("valueFrom") else {
            continue;
        };
        let at = at.child("valueFrom");
        let mut count = 0;
        if let Some(field) = from.get("fieldRef") {
            count += 1;
            field_ref(field, ENV_FIELDS, &at.child("fieldRef"), errors);
        }
        if let Some(resource) = from.get("resourceFieldRef") {
            count += 1;
            resource_field_ref(resource, false, &at.child("resourceFieldRef"), errors);
        }
        for field in ["configMapKeyRef", "secretKeyRef"] {
            if let Some(reference) = from.get(field) {
                count += 1;
                key_ref(reference, &at.child(field), errors);
            }
        }
        let trouble = match count {
            0 => {
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
            }
            _ if !text(var, "value").is_empty() => "may not be specified when `value` is not empty",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(&at, "", trouble));
    }
}

fn key_ref(reference: &Value, path: &Path<'_>, errors: &mut Errors) {
    let name = text(reference, "name");
    rule(
        meta::dns1123_subdomain(name),
        &path.child("name"),
        name,
        errors,
    );
    let key = text(reference, "key");
    if key.is_empty() {
        errors.push(FieldError::required(&path.child("key"), ""));
    } else {
        rule(meta::config_map_key(key), &path.child("key"), key, errors);
    }
}

/// `fields`: those that may be asked for, besides single labels and annotations.
pub(super) fn field_ref(reference: &Value, fields: &[&str], path: &Path<'_>, errors: &mut Errors) {
    const KNOWN: &[&str] = &[
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    if text(reference, "apiVersion").is_empty() {
        errors.push(FieldError::required(&path.child("apiVersion"), ""));
        return;
    }
    let field = text(reference, "fieldPath");
    let at = path.child("fieldPath");
    if field.is_empty() {
        errors.push(FieldError::required(&at, ""));
        return;
    }
    if let Some((map, key)) = field
        .strip_suffix("']")
        .and_then(|field| field.split_once("['"))
    {
        match map {
            "metadata.labels" => rule(meta::qualified_name(key), path, key, errors),
            "metadata.annotations" => rule(
                meta::qualified_name(&key.to_ascii_lowercase()),
                path,
                key,
                errors,
            ),
            _ => {
                let detail = format!(
                    "error converting fieldPath: field label does not support subscript: {field}"
                );
                errors.push(FieldError::invalid(&at, field, detail));
            }
        }
    } else if !KNOWN.contains(&field) {
        let detail = format!("error converting fieldPath: field label not supported: {field}");
        errors.push(FieldError::invalid(&at, field, detail));
    } else if !fields.contains(&field) {
        errors.push(FieldError::not_supported(&at, field, fields));
    }
}

pub(super) fn resource_field_ref(
    reference: &Value,
    is_volume: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let resource = text(reference, "resource");
    let at = path.child("resource");
    if is_volume && text(reference, "containerName").is_empty() {
        errors.push(FieldError::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(&at, ""));
    } else if !ENV_RESOURCES.contains(&resource) && !resource.contains(".hugepages-") {
        errors.push(FieldError::not_supported(&at, resource, ENV_RESOURCES));
    }
    divisor(resource, text(reference, "divisor"), path, errors);
}

const MEMORY_DIVISORS: &[&str] = &[
    "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
];

fn divisor(resource: &str, divisor: &str, path: &Path<'_>, errors: &mut Errors) {
    if divisor.is_empty() || divisor == "0" {
        return;
    }
    let (what, allowed, shown) = match resource.split_once('.').map_or("", |(_, name)| name) {
        "cpu" => ("cpu", &["1m", "1"][..], "1m and 1".to_owned()),
        "memory" => ("memory", MEMORY_DIVISORS, MEMORY_DIVISORS.join(", ")),
        "ephemeral-storage" => (
            "local ephemeral storage",
            MEMORY_DIVISORS,
            MEMORY_DIVISORS.join(", "),
        ),
        name if name.starts_with("hugepages-") => {
            ("hugepages", MEMORY_DIVISORS, MEMORY_DIVISORS.join(", "))
        }
        _ => return,
    };
    if !allowed.contains(&divisor) {
        let detail =
            format!("only divisor's values {shown} are supported with the {what} resource");
        errors.push(FieldError::invalid(
            &path.child("divisor"),
            resource,
            detail,
        ));
    }
}

pub(super) fn env_from(sources: &[Value], path: &Path<'_>, errors: &mut Errors) {
    for (i, source) in sources.iter().enumerate() {
        let at = path.index(i);
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            rule(
                meta::env_var_name(prefix),
                &at.child("prefix"),
                prefix,
                errors,
            );
        }
        let mut count = 0;
        for field in ["configMapRef", "secretRef"] {
            if let Some(reference) = source.get(field) {
                count += 1;
                let name = text(reference, "name");
                if name.is_empty() {
                    errors.push(FieldError::required(&at.child(field).child("name"), ""));
                } else {
                    rule(
                        meta::dns1123_subdomain(name),
                        &at.child(field).child("name"),
                        name,
                        errors,
                    );
                }
            }
        }
        if count == 0 {
            // Kubernetes names the list here, not the item.
            errors.push(FieldError::invalid(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            ));
        } else if count > 1 {
            errors.push(FieldError::invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            ));
        }
    }
}

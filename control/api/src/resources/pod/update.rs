//! What may change in a pod, and by which path.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::validate::{Errors, rule};
use crate::{
    FieldError,
    field::Path,
    meta,
    value::{get, integer, keep, list, remove, text},
};

const MAY_CHANGE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                          `spec.tolerations` (only additions to existing tolerations),\
                          `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn prepare(subresource: &str, new: &mut Value, old: &Value) {
    match subresource {
        "status" => {
            keep(new, old, "spec");
            if let (Some(new), Some(old)) = (new.get_mut("metadata"), old.get("metadata")) {
                keep(new, old, "ownerReferences");
            }
        }
        "ephemeralcontainers" => {
            let ephemeral = get(new, "spec").get("ephemeralContainers").cloned();
            keep(new, old, "spec");
            keep(new, old, "status");
            if let Some(spec) = new.get_mut("spec") {
                keep(
                    spec,
                    &json!({"ephemeralContainers": ephemeral}),
                    "ephemeralContainers",
                );
                if ephemeral.is_none() {
                    remove(spec, "ephemeralContainers");
                }
            }
        }
        _ => {
            keep(new, old, "status");
            if let Some(spec) = new.get_mut("spec") {
                // Admission sets these anew in Kubernetes, so a manifest without them means no change.
                let old = get(old, "spec");
                for field in [
                    "priority",
                    "preemptionPolicy",
                    "serviceAccountName",
                    "serviceAccount",
                ] {
                    if spec.get(field).is_none() {
                        keep(spec, old, field);
                    }
                }
                super::defaults::default_tolerations(spec);
            }
        }
    }
}

pub(super) fn validate(subresource: &str, new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    mirror(new, old, &mut errors);
    match subresource {
        "status" => status(new, old, &mut errors),
        "ephemeralcontainers" => ephemeral(new, old, &mut errors),
        "" => spec(new, old, &mut errors),
        _ => {}
    }
    errors
}

/// What stands for a static pod does so for good.
fn mirror(new: &Value, old: &Value, errors: &mut Errors) {
    let key = "kubernetes.io/config.mirror";
    let (new, old) = (meta::annotation(new, key), meta::annotation(old, key));
    let detail = match (new, old) {
        (new, old) if new == old => return,
        (_, Some(_)) => "may not remove or update mirror pod annotation",
        (_, None) => "may not add mirror pod annotation",
    };
    let root = Path::new("metadata");
    errors.push(FieldError::forbidden(
        &root.child("annotations").key(key),
        detail,
    ));
}

fn status(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let nominated = text(get(new, "status"), "nominatedNodeName");
    if !nominated.is_empty() && nominated != text(get(old, "status"), "nominatedNodeName") {
        rule(
            meta::dns1123_subdomain(nominated),
            &path.child("nominatedNodeName"),
            nominated,
            errors,
        );
    }
}

fn spec(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let (old, new) = (get(old, "spec"), get(new, "spec"));
    for field in ["containers", "initContainers"] {
        let at = path.child(field);
        let (new, old) = (list(new, field), list(old, field));
        if new.len() != old.len() {
            let detail = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(&at, detail));
            return;
        }
        for (i, container) in new.iter().enumerate() {
            let image = text(container, "image");
            let at = at.index(i);
            if image.is_empty() {
                errors.push(FieldError::required(&at.child("image"), ""));
            } else if image.trim() != image {
                let detail = "must not have leading or trailing whitespace";
                errors.push(FieldError::invalid(&at.child("image"), image, detail));
            }
        }
    }
    active_deadline(new, old, &path, errors);
    tolerations(new, old, &path, errors);
    gates(new, old, &path, errors);
    if !errors.is_empty() {
        return;
    }
    let (munged, old) = (munge(new, old), munge(old, old));
    if munged != old {
        let detail = format!(
            "pod updates may not change fields other than {MAY_CHANGE}\n{}",
            diff(&old, &munged)
        );
        errors.push(FieldError::forbidden(&path, detail));
    }
}

fn active_deadline(new: &Value, old: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("activeDeadlineSeconds");
    match (
        integer(new, "activeDeadlineSeconds"),
        integer(old, "activeDeadlineSeconds"),
    ) {
        (Some(new), old) => {
            let max = i64::from(i32::MAX);
            if !(0..=max).contains(&new) {
                let detail = format!("must be between 0 and {max}, inclusive");
                errors.push(FieldError::invalid(&at, new, detail));
            } else if old.is_some_and(|old| old < new) {
                errors.push(FieldError::invalid(
                    &at,
                    new,
                    "must be less than or equal to previous value",
                ));
            }
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(&at, Value::Null, detail));
        }
        (None, None) => {}
    }
}

fn tolerations(new: &Value, old: &Value, path: &Path<'_>, errors: &mut Errors) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let kept: Vec<Value> = list(new, "tolerations")
        .iter()
        .map(without_seconds)
        .collect();
    if !list(old, "tolerations")
        .iter()
        .all(|toleration| kept.contains(&without_seconds(toleration)))
    {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden(&path.child("tolerations"), detail));
    }
    super::tolerations(list(new, "tolerations"), &path.child("tolerations"), errors);
}

fn gates(new: &Value, old: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("schedulingGates");
    for (i, gate) in list(new, "schedulingGates").iter().enumerate() {
        if !list(old, "schedulingGates").contains(gate) {
            let detail = format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                text(gate, "name")
            );
            errors.push(FieldError::forbidden(&at.index(i).child("name"), detail));
        }
    }
}

/// A spec with what may change as it was.
fn munge(spec: &Value, old: &Value) -> Value {
    let mut spec = spec.clone();
    for field in ["containers", "initContainers"] {
        let Some(containers) = spec.get_mut(field).and_then(Value::as_array_mut) else {
            continue;
        };
        for (container, old) in containers.iter_mut().zip(list(old, field)) {
            keep(container, old, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        keep(&mut spec, old, field);
    }
    let grace = |spec: &Value| integer(spec, "terminationGracePeriodSeconds");
    if grace(old).is_some_and(|seconds| seconds < 0) && grace(&spec) == Some(1) {
        keep(&mut spec, old, "terminationGracePeriodSeconds");
    }
    spec
}

/// The values that differ, old and new, each by its path.
fn diff(old: &Value, new: &Value) -> String {
    let mut text = String::from("  core.PodSpec{\n");
    differences(Some(old), Some(new), &Path::ROOT, &mut text);
    text.push_str("  }\n");
    text
}

fn differences(old: Option<&Value>, new: Option<&Value>, path: &Path<'_>, text: &mut String) {
    match (old, new) {
        (old, new) if old == new => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                differences(old.get(key), new.get(key), &path.child(key), text);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for i in 0..old.len().max(new.len()) {
                differences(old.get(i), new.get(i), &path.index(i), text);
            }
        }
        (old, new) => {
            for (sign, value) in [('-', old), ('+', new)] {
                if let Some(value) = value {
                    let _ = writeln!(text, "{sign} \t{path}: {value},");
                }
            }
        }
    }
}

fn ephemeral(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let at = path.child("ephemeralContainers");
    let (old_list, new_list) = (
        list(get(old, "spec"), "ephemeralContainers"),
        list(get(new, "spec"), "ephemeralContainers"),
    );
    for container in old_list {
        let name = text(container, "name");
        match new_list.iter().find(|other| text(other, "name") == name) {
            None => {
                let detail = format!(
                    "existing ephemeral containers {} may not be removed\n",
                    crate::field::quote(name)
                );
                errors.push(FieldError::forbidden(&at, detail));
            }
            Some(other) if other != container => {
                let detail = format!(
                    "existing ephemeral containers {} may not be changed\n",
                    crate::field::quote(name)
                );
                errors.push(FieldError::forbidden(&at, detail));
            }
            Some(_) => {}
        }
    }
    super::container::ephemeral_containers(get(new, "spec"), &path, errors);
}

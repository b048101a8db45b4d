//! What may change in a pod, and by which path.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    resources,
    validate::{Errors, rule},
};
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
        "resize" => {
            keep(new, old, "status");
            let wanted = get(new, "spec").clone();
            keep(new, old, "spec");
            if let Some(spec) = new.get_mut("spec") {
                resized(spec, &wanted);
                super::defaults::default_pod_spec(spec);
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

/// Takes resources and what becomes of a container they change from `wanted`, and no more. Lists with other containers
/// than the pod's are taken whole, so that they are refused.
fn resized(spec: &mut Value, wanted: &Value) {
    if let Some(resources) = wanted.get("resources") {
        spec["resources"] = resources.clone();
    }
    for field in RESIZED_LISTS {
        let (old, new) = (list(spec, field), list(wanted, field));
        let is_same = |(old, new)| text(old, "name") == text(new, "name");
        if old.len() != new.len() || !old.iter().zip(new).all(is_same) {
            keep(spec, wanted, field);
            continue;
        }
        for (container, new) in crate::value::list_mut(spec, field).iter_mut().zip(new) {
            keep(container, new, "resources");
            keep(container, new, "resizePolicy");
        }
    }
}

const RESIZED_LISTS: [&str; 2] = ["containers", "initContainers"];

/// As `ValidatePodResize`.
fn resize(new_pod: &Value, old_pod: &Value, errors: &mut Errors) {
    let refused = |detail| vec![FieldError::forbidden(&Path::new(""), detail)];
    let (new, old) = (get(new_pod, "spec"), get(old_pod, "spec"));
    if resources::has_pod_level(old) || resources::has_pod_level(new) {
        *errors = refused("pods with pod-level resources cannot be resized");
        return;
    }
    if super::is_mirror(old_pod) {
        *errors = refused("static pods cannot be resized");
        return;
    }
    if text(get(old, "os"), "name") == "windows" {
        *errors = refused("windows pods cannot be resized");
        return;
    }
    errors.extend(super::validate::whole(new_pod));
    let path = Path::new("spec");
    let class = super::qos_class(new);
    if class != super::qos_class(old) {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid(&path, class, detail));
    }
    let before = errors.len();
    for field in RESIZED_LISTS {
        let at = path.child(field);
        let (new, old) = (list(new, field), list(old, field));
        if new.len() != old.len() {
            let detail = format!("{field} may not be added or removed on resize");
            errors.push(FieldError::forbidden(&at, detail));
            continue;
        }
        for (i, (new, old)) in new.iter().zip(old).enumerate() {
            if text(new, "name") != text(old, "name") {
                let at = at.index(i);
                let detail = format!("{field} may not be renamed or reordered on resize");
                errors.push(FieldError::forbidden(&at.child("name"), detail));
            }
        }
    }
    if errors.len() > before {
        return;
    }
    let mut munged = new.clone();
    for field in RESIZED_LISTS {
        let at = path.child(field);
        let containers = list(new, field).iter().zip(list(old, field)).enumerate();
        for (i, (new, old)) in containers {
            // An init container that has to end has nothing left to be resized.
            if field == "initContainers" && text(old, "restartPolicy") != "Always" {
                continue;
            }
            resources::resize(new, old, &at.index(i), errors);
            let munged = &mut munged[field][i];
            keep(munged, old, "resizePolicy");
            for amounts in ["requests", "limits"] {
                let before = get(get(old, "resources"), amounts);
                let Some(resources) = munged.get_mut("resources") else {
                    continue;
                };
                for name in ["cpu", "memory"] {
                    match resources.get_mut(amounts) {
                        Some(now) => keep(now, before, name),
                        None => continue,
                    }
                }
                if get(resources, amounts)
                    .as_object()
                    .is_some_and(serde_json::Map::is_empty)
                    && before.is_null()
                {
                    remove(resources, amounts);
                }
            }
        }
    }
    if munged != *old {
        let detail = "only cpu and memory resources are mutable";
        errors.push(FieldError::forbidden(&path, detail));
    }
}

pub(super) fn validate(subresource: &str, new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    mirror(new, old, &mut errors);
    match subresource {
        "status" => status(new, old, &mut errors),
        "ephemeralcontainers" => ephemeral(new, old, &mut errors),
        "resize" => resize(new, old, &mut errors),
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
    conditions_and_states(new, old, errors);
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

/// What the status may not say: an end that is taken back, or addresses that are none.
fn conditions_and_states(new: &Value, old: &Value, errors: &mut Errors) {
    let metadata = Path::new("metadata");
    let at = metadata.child("conditions");
    let (now, before) = (get(new, "status"), get(old, "status"));
    for (i, condition) in list(now, "conditions").iter().enumerate() {
        let type_ = text(condition, "type");
        rule(
            meta::qualified_name(type_),
            &at.index(i).child("Type"),
            type_,
            errors,
        );
    }
    let path = Path::new("status");
    let class = text(now, "qosClass");
    if class != text(before, "qosClass") {
        errors.push(FieldError::invalid(
            &path.child("qosClass"),
            class,
            "field is immutable",
        ));
    }
    let spec = get(old, "spec");
    for field in [
        "containerStatuses",
        "initContainerStatuses",
        "ephemeralContainerStatuses",
    ] {
        // Ephemeral containers never start again.
        let policy = if field.starts_with("ephemeral") {
            "Never"
        } else {
            text(spec, "restartPolicy")
        };
        if policy == "Always" {
            continue;
        }
        let at = path.child(field);
        for (i, old) in list(before, field).iter().enumerate() {
            let name = text(old, "name");
            let terminated = get(get(old, "state"), "terminated");
            let failed = integer(terminated, "exitCode").unwrap_or_default() != 0;
            let is_sidecar = field.starts_with("init")
                && list(spec, "initContainers").iter().any(|container| {
                    text(container, "name") == name && text(container, "restartPolicy") == "Always"
                });
            if terminated.is_null() || (failed && policy == "OnFailure") || is_sidecar {
                continue;
            }
            let is_back = list(now, field).iter().any(|status| {
                text(status, "name") == name && get(get(status, "state"), "terminated").is_null()
            });
            if is_back {
                let at = at.index(i);
                let detail = "may not be transitioned to non-terminated state";
                errors.push(FieldError::forbidden(&at.child("state"), detail));
            }
        }
    }
    let at = path.child("podIPs");
    for (i, ip) in list(now, "podIPs").iter().enumerate() {
        super::ip(text(ip, "ip"), &at.index(i), errors);
    }
    let at = path.child("hostIPs");
    let host_ips = list(now, "hostIPs");
    if let Some(first) = host_ips.first()
        && text(first, "ip") != text(now, "hostIP")
    {
        let detail = "must be equal to `hostIP`";
        let at = at.index(0);
        errors.push(FieldError::invalid(
            &at.child("ip"),
            text(first, "ip"),
            detail,
        ));
    }
    for (i, ip) in host_ips.iter().enumerate() {
        super::ip(text(ip, "ip"), &at.index(i), errors);
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
    let (mut munged, old) = (munge(new, old), munge(old, old));
    if !list(&old, "schedulingGates").is_empty() {
        directives(&mut munged, &old, &path, errors);
    }
    if munged != old {
        let detail = format!(
            "pod updates may not change fields other than {MAY_CHANGE}\n{}",
            diff("core.PodSpec", &old, &munged)
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

/// A pod that waits behind gates may be told more narrowly where to run. Puts what was right back to what it was.
fn directives(new: &mut Value, old: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (now, before) = (get(new, "nodeSelector"), get(old, "nodeSelector"));
    if now != before {
        let mut kept = before.as_object().into_iter().flatten();
        if !kept.all(|(label, value)| now.get(label) == Some(value)) {
            let detail = "only additions are allowed (no mutations or deletions)";
            let at = path.child("nodeSelector");
            errors.push(FieldError::invalid(&at, now.clone(), detail));
        }
        keep(new, old, "nodeSelector");
    }
    let (now, before) = (
        get(get(new, "affinity"), "nodeAffinity").clone(),
        get(get(old, "affinity"), "nodeAffinity"),
    );
    if now == *before {
        return;
    }
    let at = path.child("affinity");
    node_affinity(&now, before, &at.child("nodeAffinity"), errors);
    if new.get("affinity").is_none() {
        new["affinity"] = json!({});
    }
    if let Some(affinity) = new.get_mut("affinity") {
        keep(affinity, get(old, "affinity"), "nodeAffinity");
    }
    let is_empty = get(new, "affinity")
        .as_object()
        .is_some_and(serde_json::Map::is_empty);
    if is_empty && old.get("affinity").is_none() {
        remove(new, "affinity");
    }
}

/// Terms are alternatives, so another one would widen; further expressions in one narrow.
fn node_affinity(new: &Value, old: &Value, path: &Path<'_>, errors: &mut Errors) {
    let field = "requiredDuringSchedulingIgnoredDuringExecution";
    let at = path.child(field);
    let terms = |affinity| list(get(affinity, field), "nodeSelectorTerms").to_vec();
    let (new, old) = (terms(new), terms(old));
    if old.is_empty() {
        return;
    }
    let at = at.child("nodeSelectorTerms");
    if new.len() != old.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.push(FieldError::invalid(&at, new, detail));
        return;
    }
    for (i, (new, old)) in new.iter().zip(&old).enumerate() {
        let is_kept = |field| {
            let (new, old) = (list(new, field), list(old, field));
            new.get(..old.len()) == Some(old)
        };
        let is_empty =
            list(old, "matchExpressions").is_empty() && list(old, "matchFields").is_empty();
        if new != old && (is_empty || !is_kept("matchExpressions") || !is_kept("matchFields")) {
            let detail = "only additions are allowed (no mutations or deletions)";
            errors.push(FieldError::invalid(&at.index(i), new.clone(), detail));
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
fn diff(type_: &str, old: &Value, new: &Value) -> String {
    let mut text = format!("  {type_}{{\n");
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
    if super::is_mirror(old) {
        let detail = "static pods do not support ephemeral containers";
        *errors = vec![FieldError::forbidden(&Path::new(""), detail)];
        return;
    }
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
                let mut detail = format!(
                    "existing ephemeral containers {} may not be changed\n",
                    crate::field::quote(name)
                );
                detail.push_str(&diff("core.EphemeralContainer", container, other));
                errors.push(FieldError::forbidden(&at, detail));
            }
            Some(_) => {}
        }
    }
    errors.extend(super::validate::whole(new));
}

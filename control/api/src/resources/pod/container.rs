//! What is wrong with the containers of a pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    env::{env, env_from},
    mounts::mounts,
    probe::{lifecycle, probe},
    resources, security,
    validate::{Errors, one_of, range, rule},
    volumes::Volumes,
};
use crate::{
    FieldError,
    field::Path,
    meta,
    value::{flag, get, integer, is_set, list, text},
};

pub(super) fn containers(
    spec: &Value,
    volumes: &Volumes<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child("containers");
    let all = list(spec, "containers");
    let mut names = BTreeSet::new();
    if all.is_empty() {
        errors.push(FieldError::required(&at, ""));
    }
    for (i, container) in all.iter().enumerate() {
        let path = at.index(i);
        container_common(spec, container, volumes, &mut names, &path, errors);
        container_life(spec, container, &path, errors);
        if is_set(container, "restartPolicy") {
            let detail = "may not be set for non-init containers";
            errors.push(FieldError::forbidden(&path.child("restartPolicy"), detail));
        }
    }
    let init = path.child("initContainers");
    for (i, container) in list(spec, "initContainers").iter().enumerate() {
        let path = init.index(i);
        container_common(spec, container, volumes, &mut names, &path, errors);
        let policy = text(container, "restartPolicy");
        if !policy.is_empty() && policy != "Always" {
            errors.push(FieldError::not_supported(
                &path.child("restartPolicy"),
                policy,
                &["Always"],
            ));
        }
        if policy == "Always" {
            container_life(spec, container, &path, errors);
            continue;
        }
        for field in [
            "lifecycle",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
        ] {
            if container.get(field).is_some() {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errors.push(FieldError::forbidden(&path.child(field), detail));
            }
        }
    }
    host_ports(list(spec, "containers"), 0, &at, errors);
    for (i, container) in list(spec, "initContainers").iter().enumerate() {
        // They run one after the other, so each is looked at by itself.
        host_ports(std::slice::from_ref(container), i, &init, errors);
    }
}

/// Names seen so far are in `names`, which are shared by all containers of a pod.
fn container_common<'a>(
    spec: &Value,
    container: &'a Value,
    volumes: &Volumes<'_>,
    names: &mut BTreeSet<&'a str>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let name = text(container, "name");
    let at = path.child("name");
    if name.is_empty() {
        errors.push(FieldError::required(&at, ""));
    } else {
        rule(meta::dns1123_label(name), &at, name, errors);
    }
    let image = text(container, "image");
    if image.is_empty() {
        errors.push(FieldError::required(&path.child("image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(&path.child("image"), image, detail));
    }
    let policy = text(container, "terminationMessagePolicy");
    one_of(
        policy,
        &["File", "FallbackToLogsOnError"],
        &path.child("terminationMessagePolicy"),
        errors,
    );
    ports(list(container, "ports"), &path.child("ports"), errors);
    env(list(container, "env"), &path.child("env"), errors);
    env_from(list(container, "envFrom"), &path.child("envFrom"), errors);
    mounts(container, volumes, path, errors);
    let policy = text(container, "imagePullPolicy");
    one_of(
        policy,
        &["Always", "IfNotPresent", "Never"],
        &path.child("imagePullPolicy"),
        errors,
    );
    resources::container(
        spec,
        get(container, "resources"),
        &path.child("resources"),
        errors,
    );
    resources::resize_policy(spec, container, &path.child("resizePolicy"), errors);
    security::container(
        get(container, "securityContext"),
        security::is_host_users(spec),
        &path.child("securityContext"),
        errors,
    );
    if !names.insert(name) && !name.is_empty() {
        errors.push(FieldError::duplicate(&path.child("name"), name));
    }
}

fn container_life(spec: &Value, container: &Value, path: &Path<'_>, errors: &mut Errors) {
    if let Some(hooks) = container.get("lifecycle") {
        lifecycle(spec, hooks, &path.child("lifecycle"), errors);
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(checked) = container.get(field) else {
            continue;
        };
        let at = path.child(field);
        probe(checked, &at, errors);
        if field == "readinessProbe" {
            if let Some(seconds) = integer(checked, "terminationGracePeriodSeconds") {
                let detail = "must not be set for readinessProbes";
                errors.push(FieldError::invalid(
                    &at.child("terminationGracePeriodSeconds"),
                    seconds,
                    detail,
                ));
            }
        } else {
            let threshold = integer(checked, "successThreshold").unwrap_or_default();
            if threshold != 1 {
                errors.push(FieldError::invalid(
                    &at.child("successThreshold"),
                    threshold,
                    "must be 1",
                ));
            }
        }
    }
}

pub(in crate::resources) fn port_number(number: i64, path: &Path<'_>, errors: &mut Errors) {
    range(number, 1, 65535, path, errors);
}

pub(in crate::resources) fn port_number_or_name(
    port: &Value,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    match port {
        Value::String(name) => rule(port_name(name), path, name, errors),
        other => port_number(other.as_i64().unwrap_or_default(), path, errors),
    }
}

/// What keeps a text from being an IANA service name.
pub(in crate::resources) fn port_name(name: &str) -> Vec<String> {
    let mut texts = Vec::new();
    if name.len() > 15 {
        texts.push("must be no more than 15 characters");
    }
    if name.is_empty()
        || !name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    {
        texts.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        texts.push("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        texts.push("must not contain consecutive hyphens");
    }
    if name.starts_with('-') || name.ends_with('-') {
        texts.push("must not begin or end with a hyphen");
    }
    texts.into_iter().map(str::to_owned).collect()
}

fn ports(ports: &[Value], path: &Path<'_>, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = path.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            let texts = port_name(name);
            if texts.is_empty() {
                if !names.insert(name) {
                    errors.push(FieldError::duplicate(&at.child("name"), name));
                }
            } else {
                rule(texts, &at.child("name"), name, errors);
            }
        }
        let number = integer(port, "containerPort").unwrap_or_default();
        if number == 0 {
            errors.push(FieldError::required(&at.child("containerPort"), ""));
        } else {
            port_number(number, &at.child("containerPort"), errors);
        }
        let host_port = integer(port, "hostPort").unwrap_or_default();
        if host_port != 0 {
            port_number(host_port, &at.child("hostPort"), errors);
        }
        if !text(port, "hostIP").is_empty() {
            super::ip(text(port, "hostIP"), &at.child("hostIP"), errors);
        }
        one_of(
            text(port, "protocol"),
            &["SCTP", "TCP", "UDP"],
            &at.child("protocol"),
            errors,
        );
    }
}

pub(super) fn host_network(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    if !flag(spec, "hostNetwork") {
        return;
    }
    let containers = path.child("containers");
    for (i, container) in list(spec, "containers").iter().enumerate() {
        let ports = containers.index(i);
        let ports = ports.child("ports");
        for (j, port) in list(container, "ports").iter().enumerate() {
            let host_port = integer(port, "hostPort").unwrap_or_default();
            if host_port != integer(port, "containerPort").unwrap_or_default() {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(
                    &ports.index(j).child("hostPort"),
                    host_port,
                    detail,
                ));
            }
        }
    }
}

/// `first`: where the first of the containers stands in its list.
fn host_ports(containers: &[Value], first: usize, path: &Path<'_>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        let ports = path.index(first + i);
        let ports = ports.child("ports");
        for (j, port) in list(container, "ports").iter().enumerate() {
            let number = integer(port, "hostPort").unwrap_or_default();
            if number == 0 {
                continue;
            }
            let shown = format!(
                "{}/{}/{number}",
                text(port, "protocol"),
                text(port, "hostIP")
            );
            if !seen.insert(shown.clone()) {
                errors.push(FieldError::duplicate(
                    &ports.index(j).child("hostPort"),
                    shown,
                ));
            }
        }
    }
}

pub(super) fn ephemeral_containers(
    spec: &Value,
    volumes: &Volumes<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    const FORBIDDEN: &[&str] = &[
        "ports",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "restartPolicy",
        "resizePolicy",
    ];
    let mut names: BTreeSet<&str> = list(spec, "containers")
        .iter()
        .chain(list(spec, "initContainers"))
        .map(|container| text(container, "name"))
        .collect();
    let targets: Vec<&str> = names.iter().copied().collect();
    let at = path.child("ephemeralContainers");
    for (i, container) in list(spec, "ephemeralContainers").iter().enumerate() {
        let path = at.index(i);
        container_common(spec, container, volumes, &mut names, &path, errors);
        let mounts = path.child("volumeMounts");
        for (j, mount) in list(container, "volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"]
                .into_iter()
                .filter(|field| is_set(mount, field))
            {
                let detail = "cannot be set for an Ephemeral Container";
                errors.push(FieldError::forbidden(&mounts.index(j).child(field), detail));
            }
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !targets.contains(&target) {
            errors.push(FieldError::not_found(
                &path.child("targetContainerName"),
                target,
            ));
        }
        let has_resources = get(container, "resources")
            .as_object()
            .is_some_and(|resources| !resources.is_empty());
        for field in FORBIDDEN
            .iter()
            .filter(|field| is_set(container, field))
            .chain(has_resources.then_some(&"resources"))
        {
            errors.push(FieldError::forbidden(
                &path.child(field),
                "cannot be set for an Ephemeral Container",
            ));
        }
    }
}

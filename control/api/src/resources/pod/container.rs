//! What is wrong with the containers of a pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    env::{env, env_from},
    probe::{handler, probe},
    validate::{Errors, ID_MAX, one_of, range, rule},
    volumes,
};
use crate::{
    FieldError,
    field::Path,
    meta,
    quantity::Quantity,
    value::{entries, flag, get, integer, is_set, list, text},
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
        container_common(container, volumes, &mut names, &path, errors);
        container_life(spec, container, &path, errors);
        if is_set(container, "restartPolicy") {
            let detail = "may not be set for non-init containers";
            errors.push(FieldError::forbidden(&path.child("restartPolicy"), detail));
        }
    }
    let init = path.child("initContainers");
    for (i, container) in list(spec, "initContainers").iter().enumerate() {
        let path = init.index(i);
        container_common(container, volumes, &mut names, &path, errors);
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
    host_ports(spec, path, errors);
}

/// What the volumes of a pod are called.
pub(super) type Volumes<'a> = BTreeSet<&'a str>;

/// Names seen so far are in `names`, which are shared by all containers of a pod.
fn container_common<'a>(
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
    resources(
        get(container, "resources"),
        &path.child("resources"),
        errors,
    );
    container_security(
        get(container, "securityContext"),
        &path.child("securityContext"),
        errors,
    );
    if !names.insert(name) && !name.is_empty() {
        errors.push(FieldError::duplicate(&path.child("name"), name));
    }
}

fn container_life(spec: &Value, container: &Value, path: &Path<'_>, errors: &mut Errors) {
    if let Some(lifecycle) = container.get("lifecycle") {
        let at = path.child("lifecycle");
        for field in ["postStart", "preStop"] {
            if let Some(action) = lifecycle.get(field) {
                let at = at.child(field);
                handler(
                    action,
                    &["exec", "httpGet", "tcpSocket", "sleep"],
                    &at,
                    errors,
                );
                if let Some(sleep) = action.get("sleep") {
                    let at = at.child("sleep");
                    let grace = integer(spec, "terminationGracePeriodSeconds").unwrap_or_default();
                    let seconds = integer(sleep, "seconds").unwrap_or_default();
                    if seconds < 0 || seconds > grace {
                        let detail = format!(
                            "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
                        );
                        errors.push(FieldError::invalid(&at, seconds, detail));
                    }
                }
            }
        }
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

fn host_ports(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    let containers = path.child("containers");
    for (i, container) in list(spec, "containers").iter().enumerate() {
        let ports = containers.index(i);
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

fn mounts(container: &Value, volumes: &Volumes<'_>, path: &Path<'_>, errors: &mut Errors) {
    let list_path = path.child("volumeMounts");
    let devices = list(container, "volumeDevices");
    let mut paths = BTreeSet::new();
    for (i, mount) in list(container, "volumeMounts").iter().enumerate() {
        let at = list_path.index(i);
        let name = text(mount, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&at.child("name"), ""));
        }
        if !volumes.contains(name) {
            errors.push(FieldError::not_found(&at.child("name"), name));
        }
        let mount_path = text(mount, "mountPath");
        if mount_path.is_empty() {
            errors.push(FieldError::required(&at.child("mountPath"), ""));
        }
        if !paths.insert(mount_path) {
            errors.push(FieldError::invalid(
                &at.child("mountPath"),
                mount_path,
                "must be unique",
            ));
        }
        if devices.iter().any(|device| text(device, "name") == name) {
            errors.push(FieldError::invalid(
                &at.child("name"),
                name,
                "must not already exist in volumeDevices",
            ));
        }
        if devices
            .iter()
            .any(|device| text(device, "devicePath") == mount_path)
        {
            let detail = "must not already exist as a path in volumeDevices";
            errors.push(FieldError::invalid(
                &at.child("mountPath"),
                mount_path,
                detail,
            ));
        }
        for field in ["subPath", "subPathExpr"] {
            let sub_path = text(mount, field);
            if !sub_path.is_empty() {
                // Kubernetes leaves out the index here, and below for propagation.
                volumes::descending_path(sub_path, &list_path.child(field), errors);
            }
        }
        if is_set(mount, "subPath") && is_set(mount, "subPathExpr") {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(
                &at.child("subPathExpr"),
                text(mount, "subPathExpr"),
                detail,
            ));
        }
        propagation(container, mount, &list_path, errors);
    }
    let at = path.child("volumeDevices");
    for (i, device) in devices.iter().enumerate() {
        let at = at.index(i);
        let name = text(device, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&at.child("name"), ""));
        } else if !volumes.contains(name) {
            errors.push(FieldError::not_found(&at.child("name"), name));
        }
        if text(device, "devicePath").is_empty() {
            errors.push(FieldError::required(&at.child("devicePath"), ""));
        }
    }
}

fn propagation(container: &Value, mount: &Value, path: &Path<'_>, errors: &mut Errors) {
    if let Some(mode) = mount.get("mountPropagation").and_then(Value::as_str) {
        let at = path.child("mountPropagation");
        one_of(
            mode,
            &["Bidirectional", "HostToContainer", "None"],
            &at,
            errors,
        );
        if mode == "Bidirectional" && !flag(get(container, "securityContext"), "privileged") {
            let detail =
                "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(&at, detail));
        }
    }
    if let Some(mode) = mount.get("recursiveReadOnly").and_then(Value::as_str) {
        let at = path.child("recursiveReadOnly");
        match mode {
            "Disabled" => {}
            "Enabled" | "IfPossible" => {
                if !flag(mount, "readOnly") {
                    errors.push(FieldError::forbidden(
                        &at,
                        "may only be specified when readOnly is true",
                    ));
                }
            }
            mode => {
                errors.push(FieldError::not_supported(
                    &at,
                    mode,
                    &["Disabled", "Enabled", "IfPossible"],
                ));
            }
        }
    }
}

fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

fn resource_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    rule(meta::qualified_name(name), path, name, errors);
    let is_standard =
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !name.contains('/') && !is_standard {
        errors.push(FieldError::invalid(
            path,
            name,
            "must be a standard resource for containers",
        ));
    }
}

pub(super) fn resource_amount(name: &str, amount: &Value, path: &Path<'_>, errors: &mut Errors) {
    let shown = amount.as_str().unwrap_or_default();
    let Ok(amount) = Quantity::parse(shown) else {
        return;
    };
    if amount.is_negative() {
        errors.push(FieldError::invalid(
            path,
            shown,
            "must be greater than or equal to 0",
        ));
    }
    if is_extended(name) && !amount.is_integer() {
        errors.push(FieldError::invalid(path, shown, "must be an integer"));
    }
}

fn resources(resources: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    for (name, amount) in entries(resources, "limits") {
        resource_name(name, &limits_path.key(name), errors);
        resource_amount(name, amount, &limits_path.key(name), errors);
    }
    for (name, amount) in entries(resources, "requests") {
        resource_name(name, &requests_path.key(name), errors);
        resource_amount(name, amount, &requests_path.key(name), errors);
        let shown = amount.as_str().unwrap_or_default();
        let is_overcommitable = !is_extended(name) && !name.starts_with("hugepages-");
        let Some(limit) = get(resources, "limits").get(name).and_then(Value::as_str) else {
            if !is_overcommitable {
                let detail = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(&limits_path, detail));
            }
            continue;
        };
        let (Ok(amount), Ok(limit_amount)) = (Quantity::parse(shown), Quantity::parse(limit))
        else {
            continue;
        };
        if !is_overcommitable && amount != limit_amount {
            let detail = format!("must be equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(&requests_path, shown, detail));
        } else if amount > limit_amount {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(&requests_path, shown, detail));
        }
    }
}

pub(super) fn user_ids(context: &Value, path: &Path<'_>, errors: &mut Errors) {
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        if let Some(id) = integer(context, field) {
            range(id, 0, ID_MAX, &path.child(field), errors);
        }
    }
}

pub(super) fn seccomp(context: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(profile) = context.get("seccompProfile") else {
        return;
    };
    let at = path.child("seccompProfile");
    let type_ = text(profile, "type");
    let localhost = text(profile, "localhostProfile");
    match type_ {
        "Localhost" if localhost.is_empty() => {
            let detail = "must be set when seccomp type is Localhost ";
            errors.push(FieldError::required(&at.child("localhostProfile"), detail));
        }
        "Localhost" => volumes::descending_path(localhost, &at.child("localhostProfile"), errors),
        "" => {
            errors.push(FieldError::required(
                &at.child("type"),
                "type is required when seccompProfile is set",
            ));
        }
        "RuntimeDefault" | "Unconfined" => {}
        type_ => {
            let supported = ["Localhost", "RuntimeDefault", "Unconfined"];
            errors.push(FieldError::not_supported(
                &at.child("type"),
                type_,
                &supported,
            ));
        }
    }
    if type_ != "Localhost" && profile.get("localhostProfile").is_some() {
        let detail = "can only be set when seccomp type is Localhost";
        errors.push(FieldError::invalid(
            &at.child("localhostProfile"),
            localhost,
            detail,
        ));
    }
}

fn container_security(context: &Value, path: &Path<'_>, errors: &mut Errors) {
    user_ids(context, path, errors);
    seccomp(context, path, errors);
    if let Some(mount) = context.get("procMount").and_then(Value::as_str) {
        one_of(
            mount,
            &["Default", "Unmasked"],
            &path.child("procMount"),
            errors,
        );
    }
    if context
        .get("allowPrivilegeEscalation")
        .and_then(Value::as_bool)
        == Some(false)
    {
        if flag(context, "privileged") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(path, context.clone(), detail));
        }
        if list(get(context, "capabilities"), "add")
            .iter()
            .any(|name| name == "CAP_SYS_ADMIN" || name == "SYS_ADMIN")
        {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(path, context.clone(), detail));
        }
    }
}

pub(super) fn ephemeral_containers(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    const FORBIDDEN: &[&str] = &[
        "ports",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "restartPolicy",
        "resizePolicy",
    ];
    let volumes: Volumes<'_> = list(spec, "volumes")
        .iter()
        .map(|volume| text(volume, "name"))
        .collect();
    let mut names: BTreeSet<&str> = list(spec, "containers")
        .iter()
        .chain(list(spec, "initContainers"))
        .map(|container| text(container, "name"))
        .collect();
    let targets: Vec<&str> = names.iter().copied().collect();
    let at = path.child("ephemeralContainers");
    for (i, container) in list(spec, "ephemeralContainers").iter().enumerate() {
        let path = at.index(i);
        container_common(container, &volumes, &mut names, &path, errors);
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

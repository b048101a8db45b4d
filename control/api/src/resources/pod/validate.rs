//! What is wrong with a new pod, after `ValidatePodSpec` of `k8s.io/kubernetes/pkg/apis/core/validation`.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::Value;

use super::volumes;
use crate::{
    FieldError,
    field::Path,
    meta,
    quantity::Quantity,
    value::{entries, flag, get, integer, is_set, list, text},
};

const ID_MAX: i64 = i32::MAX as i64;
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARS_MAX: usize = 2048;

pub(super) type Errors = Vec<FieldError>;

pub(super) fn create(pod: &Value) -> Errors {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = get(pod, "spec");
    pod_spec(spec, &path, &mut errors);
    if !list(spec, "ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden(
            &path.child("ephemeralContainers"),
            "cannot be set on create",
        ));
    }
    if is_set(spec, "nodeName") && !list(spec, "schedulingGates").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(&path.child("nodeName"), detail));
    }
    if super::is_mirror(pod) {
        mirror(pod, spec, &path, &mut errors);
    }
    errors
}

fn mirror(pod: &Value, spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let root = Path::new("metadata");
    let annotations = root.child("annotations");
    let key = "kubernetes.io/config.mirror";
    if !is_set(spec, "nodeName") {
        let shown = meta::annotation(pod, key).unwrap_or_default();
        let detail = "must set spec.nodeName if mirror pod annotation is set";
        errors.push(FieldError::invalid(&annotations.key(key), shown, detail));
    }
    if !list(spec, "ephemeralContainers").is_empty() {
        let detail = "ephemeral containers not allowed for mirror pods";
        errors.push(FieldError::forbidden(
            &path.child("ephemeralContainers"),
            detail,
        ));
    }
}

/// Adds an `Invalid` for each text of a rule.
pub(super) fn rule(texts: Vec<String>, path: &Path<'_>, value: &str, errors: &mut Errors) {
    errors.extend(
        texts
            .into_iter()
            .map(|text| FieldError::invalid(path, value, text)),
    );
}

pub(super) fn one_of(value: &str, supported: &[&str], path: &Path<'_>, errors: &mut Errors) {
    if value.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !supported.contains(&value) {
        errors.push(FieldError::not_supported(path, value, supported));
    }
}

fn range(value: i64, min: i64, max: i64, path: &Path<'_>, errors: &mut Errors) {
    if !(min..=max).contains(&value) {
        errors.push(FieldError::invalid(
            path,
            value,
            format!("must be between {min} and {max}, inclusive"),
        ));
    }
}

pub(super) fn not_negative(object: &Value, field: &str, path: &Path<'_>, errors: &mut Errors) {
    let number = integer(object, field).unwrap_or_default();
    if number < 0 {
        errors.push(FieldError::invalid(
            &path.child(field),
            number,
            "must be greater than or equal to 0",
        ));
    }
}

fn pod_spec(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let volumes = volumes::validate(list(spec, "volumes"), &path.child("volumes"), errors);
    containers(spec, &volumes, path, errors);
    one_of(
        text(spec, "restartPolicy"),
        &["Always", "OnFailure", "Never"],
        &path.child("restartPolicy"),
        errors,
    );
    dns(spec, path, errors);
    if let Some(selector) = spec.get("nodeSelector") {
        errors.extend(meta::validate_labels(selector, &path.child("nodeSelector")));
    }
    security_context(spec, path, errors);
    let secrets = path.child("imagePullSecrets");
    for (i, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            errors.push(FieldError::required(&secrets.index(i).child("name"), ""));
        }
    }
    affinity(get(spec, "affinity"), &path.child("affinity"), errors);
    for field in [
        "serviceAccountName",
        "nodeName",
        "priorityClassName",
        "runtimeClassName",
    ] {
        let name = text(spec, field);
        if !name.is_empty() {
            rule(
                meta::dns1123_subdomain(name),
                &path.child(field),
                name,
                errors,
            );
        }
    }
    if let Some(seconds) = integer(spec, "activeDeadlineSeconds") {
        range(
            seconds,
            1,
            ID_MAX,
            &path.child("activeDeadlineSeconds"),
            errors,
        );
    }
    for field in ["hostname", "subdomain"] {
        let name = text(spec, field);
        if !name.is_empty() {
            rule(meta::dns1123_label(name), &path.child(field), name, errors);
        }
    }
    tolerations(
        list(spec, "tolerations"),
        &path.child("tolerations"),
        errors,
    );
    host_aliases(spec, path, errors);
    let gates = path.child("readinessGates");
    for (i, gate) in list(spec, "readinessGates").iter().enumerate() {
        let type_ = text(gate, "conditionType");
        rule(
            meta::qualified_name(type_),
            &gates.index(i).child("conditionType"),
            type_,
            errors,
        );
    }
    let gates = path.child("schedulingGates");
    let mut seen = BTreeSet::new();
    for (i, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        rule(meta::qualified_name(name), &gates.index(i), name, errors);
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(&gates.index(i), name));
        }
    }
    topology(
        list(spec, "topologySpreadConstraints"),
        &path.child("topologySpreadConstraints"),
        errors,
    );
    for (name, amount) in entries(spec, "overhead") {
        let overhead = path.child("overhead");
        resource_amount(name, amount, &overhead.key(name), errors);
    }
    if let Some(policy) = spec.get("preemptionPolicy").and_then(Value::as_str) {
        one_of(
            policy,
            &["PreemptLowerPriority", "Never"],
            &path.child("preemptionPolicy"),
            errors,
        );
    }
    if spec.get("os").is_some() {
        let os = path.child("os");
        one_of(
            text(get(spec, "os"), "name"),
            &["linux", "windows"],
            &os.child("name"),
            errors,
        );
    }
}

fn containers(spec: &Value, volumes: &Volumes<'_>, path: &Path<'_>, errors: &mut Errors) {
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
    host_ports(spec, path, errors);
}

/// What the volumes of a pod are called.
pub(super) type Volumes<'a> = BTreeSet<&'a str>;

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
    ports(
        list(container, "ports"),
        flag(spec, "hostNetwork"),
        &path.child("ports"),
        errors,
    );
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

fn probe(probe: &Value, path: &Path<'_>, errors: &mut Errors) {
    handler(
        probe,
        &["exec", "httpGet", "tcpSocket", "grpc"],
        path,
        errors,
    );
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        not_negative(probe, field, path, errors);
    }
    if let Some(seconds) = integer(probe, "terminationGracePeriodSeconds")
        && seconds <= 0
    {
        let at = path.child("terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(&at, seconds, "must be greater than 0"));
    }
}

fn handler(action: &Value, kinds: &[&str], path: &Path<'_>, errors: &mut Errors) {
    let mut count = 0;
    for kind in kinds {
        let Some(handler) = action.get(kind) else {
            continue;
        };
        let at = path.child(kind);
        count += 1;
        if count > 1 {
            errors.push(FieldError::forbidden(
                &at,
                "may not specify more than 1 handler type",
            ));
            continue;
        }
        match *kind {
            "exec" => {
                if list(handler, "command").is_empty() {
                    errors.push(FieldError::required(&at.child("command"), ""));
                }
            }
            "httpGet" => http_get(handler, &at, errors),
            "tcpSocket" => port_number_or_name(get(handler, "port"), &at.child("port"), errors),
            "grpc" => port_number(
                integer(handler, "port").unwrap_or_default(),
                &at.child("port"),
                errors,
            ),
            _ => {}
        }
    }
    if count == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn http_get(http: &Value, path: &Path<'_>, errors: &mut Errors) {
    if text(http, "path").is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
    }
    port_number_or_name(get(http, "port"), &path.child("port"), errors);
    one_of(
        text(http, "scheme"),
        &["HTTP", "HTTPS"],
        &path.child("scheme"),
        errors,
    );
    let headers = path.child("httpHeaders");
    for header in list(http, "httpHeaders") {
        let name = text(header, "name");
        if name.is_empty()
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            let detail = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', \
                          regex used for validation is '[-A-Za-z0-9]+')";
            errors.push(FieldError::invalid(&headers, name, detail));
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

fn ports(ports: &[Value], is_host_network: bool, path: &Path<'_>, errors: &mut Errors) {
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
        if is_host_network && host_port != number {
            let detail = "must match `hostPort` when `hostNetwork` is true";
            errors.push(FieldError::invalid(
                &at.child("containerPort"),
                number,
                detail,
            ));
        }
        one_of(
            text(port, "protocol"),
            &["SCTP", "TCP", "UDP"],
            &at.child("protocol"),
            errors,
        );
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

fn env(vars: &[Value], path: &Path<'_>, errors: &mut Errors) {
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
        if from.get("fileKeyRef").is_some() {
            count += 1;
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

fn env_from(sources: &[Value], path: &Path<'_>, errors: &mut Errors) {
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

fn resource_amount(name: &str, amount: &Value, path: &Path<'_>, errors: &mut Errors) {
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

fn user_ids(context: &Value, path: &Path<'_>, errors: &mut Errors) {
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        if let Some(id) = integer(context, field) {
            range(id, 0, ID_MAX, &path.child(field), errors);
        }
    }
}

fn seccomp(context: &Value, path: &Path<'_>, errors: &mut Errors) {
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

fn security_context(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let context = get(spec, "securityContext");
    let at = path.child("securityContext");
    user_ids(context, &at, errors);
    let groups = at.child("supplementalGroups");
    for (i, group) in list(context, "supplementalGroups").iter().enumerate() {
        range(
            group.as_i64().unwrap_or(-1),
            0,
            ID_MAX,
            &groups.index(i),
            errors,
        );
    }
    if let Some(policy) = context.get("fsGroupChangePolicy").and_then(Value::as_str) {
        one_of(
            policy,
            &["Always", "OnRootMismatch"],
            &at.child("fsGroupChangePolicy"),
            errors,
        );
    }
    seccomp(context, &at, errors);
    let sysctls = at.child("sysctls");
    let mut names = BTreeSet::new();
    for (i, sysctl) in list(context, "sysctls").iter().enumerate() {
        let name = text(sysctl, "name");
        let at = sysctls.index(i);
        let at = at.child("name");
        let is_part = |part: &str| {
            let ends = part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.ends_with(|c: char| c.is_ascii_alphanumeric());
            ends && part.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte)
            })
        };
        if name.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if name.len() > 253 || !name.split(['.', '/']).all(is_part) {
            let detail = "must have at most 253 characters and match regex \
                          ([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
            errors.push(FieldError::invalid(&at, name, detail));
        } else if !names.insert(name.replace('/', ".")) {
            errors.push(FieldError::duplicate(&at, name));
        }
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(
            &path.child("shareProcessNamespace"),
            true,
            detail,
        ));
    }
}

fn dns(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let policy = text(spec, "dnsPolicy");
    let supported = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(policy, &supported, &path.child("dnsPolicy"), errors);
    let config = get(spec, "dnsConfig");
    let at = path.child("dnsConfig");
    let nameservers = list(config, "nameservers");
    if policy == "None" {
        if config.is_null() {
            errors.push(FieldError::required(
                &at,
                "must provide `dnsConfig` when `dnsPolicy` is None",
            ));
            return;
        }
        if nameservers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(FieldError::required(&at.child("nameservers"), detail));
            return;
        }
    }
    let servers = at.child("nameservers");
    if nameservers.len() > NAMESERVERS_MAX {
        let detail = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.push(FieldError::invalid(&servers, nameservers.to_vec(), detail));
    }
    for (i, server) in nameservers.iter().enumerate() {
        ip(
            server.as_str().unwrap_or_default(),
            &servers.index(i),
            errors,
        );
    }
    let searches = list(config, "searches");
    let at_searches = at.child("searches");
    if searches.len() > SEARCHES_MAX {
        let detail = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.push(FieldError::invalid(&at_searches, searches.to_vec(), detail));
    }
    let chars: usize = searches
        .iter()
        .filter_map(Value::as_str)
        .map(str::len)
        .sum::<usize>()
        + searches.len().saturating_sub(1);
    if chars > SEARCH_CHARS_MAX {
        let detail = format!(
            "must not have more than {SEARCH_CHARS_MAX} characters (including spaces) in the search list"
        );
        errors.push(FieldError::invalid(&at_searches, searches.to_vec(), detail));
    }
    for (i, search) in searches.iter().enumerate() {
        let search = search.as_str().unwrap_or_default();
        if search != "." {
            let trimmed = search.strip_suffix('.').unwrap_or(search);
            rule(
                meta::dns1123_subdomain(trimmed),
                &at_searches.index(i),
                search,
                errors,
            );
        }
    }
    let options = at.child("options");
    for (i, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.push(FieldError::required(&options.index(i), "must not be empty"));
        }
    }
}

pub(in crate::resources) fn ip(text: &str, path: &Path<'_>, errors: &mut Errors) {
    if text.parse::<IpAddr>().is_err() {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(path, text, detail));
    }
}

pub(in crate::resources) fn tolerations(
    tolerations: &[Value],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let at = path.index(i);
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        let (value, effect) = (text(toleration, "value"), text(toleration, "effect"));
        if !key.is_empty() {
            rule(meta::qualified_name(key), &at.child("key"), key, errors);
        }
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(&at.child("operator"), operator, detail));
        }
        if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(&at.child("effect"), effect, detail));
        }
        match operator {
            "Equal" | "" => {
                let texts = meta::label_value(value);
                if !texts.is_empty() {
                    errors.push(FieldError::invalid(
                        &at.child("operator"),
                        value,
                        texts.join(";"),
                    ));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    let detail = "value must be empty when `operator` is 'Exists'";
                    errors.push(FieldError::invalid(
                        &at.child("operator"),
                        toleration.clone(),
                        detail,
                    ));
                }
            }
            operator => {
                errors.push(FieldError::not_supported(
                    &at.child("operator"),
                    operator,
                    &["Equal", "Exists"],
                ));
            }
        }
        if !effect.is_empty() {
            let supported = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            one_of(effect, &supported, &at.child("effect"), errors);
        }
    }
}

fn host_aliases(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("hostAliases");
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        let at = at.index(i);
        ip(text(alias, "ip"), &at.child("ip"), errors);
        let names = at.child("hostnames");
        for name in list(alias, "hostnames") {
            let name = name.as_str().unwrap_or_default();
            rule(meta::dns1123_subdomain(name), &names, name, errors);
        }
    }
}

fn topology(constraints: &[Value], path: &Path<'_>, errors: &mut Errors) {
    for (i, constraint) in constraints.iter().enumerate() {
        let at = path.index(i);
        let skew = integer(constraint, "maxSkew").unwrap_or_default();
        if skew <= 0 {
            errors.push(FieldError::invalid(
                &at.child("maxSkew"),
                skew,
                "must be greater than zero",
            ));
        }
        let key = text(constraint, "topologyKey");
        if key.is_empty() {
            errors.push(FieldError::required(
                &at.child("topologyKey"),
                "can not be empty",
            ));
        }
        rule(
            meta::qualified_name(key),
            &at.child("topologyKey"),
            key,
            errors,
        );
        let action = text(constraint, "whenUnsatisfiable");
        let supported = ["DoNotSchedule", "ScheduleAnyway"];
        if !supported.contains(&action) {
            errors.push(FieldError::not_supported(
                &at.child("whenUnsatisfiable"),
                action,
                &supported,
            ));
        }
    }
}

fn affinity(affinity: &Value, path: &Path<'_>, errors: &mut Errors) {
    if affinity.is_null() {
        return;
    }
    let node = path.child("nodeAffinity");
    let wanted = get(affinity, "nodeAffinity");
    if let Some(required) = wanted.get("requiredDuringSchedulingIgnoredDuringExecution") {
        let at = node.child("requiredDuringSchedulingIgnoredDuringExecution");
        let terms = at.child("nodeSelectorTerms");
        if list(required, "nodeSelectorTerms").is_empty() {
            errors.push(FieldError::required(
                &terms,
                "must have at least one node selector term",
            ));
        }
        for (i, term) in list(required, "nodeSelectorTerms").iter().enumerate() {
            node_selector_term(term, &terms.index(i), errors);
        }
    }
    let preferred = node.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (i, term) in list(wanted, "preferredDuringSchedulingIgnoredDuringExecution")
        .iter()
        .enumerate()
    {
        let at = preferred.index(i);
        weight(term, &at, errors);
        node_selector_term(get(term, "preference"), &at.child("preference"), errors);
    }
    for field in ["podAffinity", "podAntiAffinity"] {
        let wanted = get(affinity, field);
        let at = path.child(field);
        let required = at.child("requiredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in list(wanted, "requiredDuringSchedulingIgnoredDuringExecution")
            .iter()
            .enumerate()
        {
            pod_affinity_term(term, &required.index(i), errors);
        }
        let preferred = at.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in list(wanted, "preferredDuringSchedulingIgnoredDuringExecution")
            .iter()
            .enumerate()
        {
            let at = preferred.index(i);
            weight(term, &at, errors);
            pod_affinity_term(
                get(term, "podAffinityTerm"),
                &at.child("podAffinityTerm"),
                errors,
            );
        }
    }
}

fn weight(term: &Value, path: &Path<'_>, errors: &mut Errors) {
    let weight = integer(term, "weight").unwrap_or_default();
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(
            &path.child("weight"),
            weight,
            "must be in the range 1-100",
        ));
    }
}

fn pod_affinity_term(term: &Value, path: &Path<'_>, errors: &mut Errors) {
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.push(FieldError::required(
            &path.child("topologyKey"),
            "can not be empty",
        ));
    }
    rule(
        meta::qualified_name(key),
        &path.child("topologyKey"),
        key,
        errors,
    );
}

fn node_selector_term(term: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("matchExpressions");
    for (i, expression) in list(term, "matchExpressions").iter().enumerate() {
        let at = at.index(i);
        let values = list(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" => {
                if values.is_empty() {
                    let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.push(FieldError::required(&at.child("values"), detail));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let detail =
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(&at.child("values"), detail));
                }
            }
            "Gt" | "Lt" => {
                if values.len() != 1 {
                    let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                    errors.push(FieldError::required(&at.child("values"), detail));
                }
            }
            other => {
                errors.push(FieldError::invalid(
                    &at.child("operator"),
                    other,
                    "not a valid selector operator",
                ));
            }
        }
        let key = text(expression, "key");
        rule(meta::qualified_name(key), &at.child("key"), key, errors);
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
        container_common(spec, container, &volumes, &mut names, &path, errors);
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

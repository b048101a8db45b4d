//! What is wrong with a new pod, after `ValidatePodSpec` of `k8s.io/kubernetes/pkg/apis/core/validation`.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::Value;

use super::{
    container::{containers, ephemeral_containers, host_network},
    resources,
    scheduling::{affinity, tolerations, topology},
    security, volumes,
};
use crate::{
    FieldError,
    field::Path,
    meta,
    value::{get, integer, is_set, list, text},
};

/// Ids of users and groups, and deadlines, end here.
pub(super) const ID_MAX: i64 = i32::MAX as i64;
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARS_MAX: usize = 2048;

pub(super) type Errors = Vec<FieldError>;

pub(super) fn create(pod: &Value) -> Errors {
    let mut errors = whole(pod);
    let path = Path::new("spec");
    let spec = get(pod, "spec");
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
    if !is_set(spec, "serviceAccountName") {
        tokens_without_account(spec, &path, &mut errors);
    }
    if super::is_mirror(pod) {
        mirror(pod, spec, &path, &mut errors);
    }
    security::annotations(pod, spec, &path, &mut errors);
    errors
}

/// What is wrong with the spec of a pod, whichever way it came to be.
pub(super) fn whole(pod: &Value) -> Errors {
    let mut errors = Vec::new();
    pod_spec(
        meta::name(pod),
        get(pod, "spec"),
        &Path::new("spec"),
        &mut errors,
    );
    errors
}

fn tokens_without_account(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let volumes = path.child("volumes");
    for (i, volume) in list(spec, "volumes").iter().enumerate() {
        let at = volumes.index(i);
        let at = at.child("projected");
        let at = at.child("sources");
        for (j, source) in list(get(volume, "projected"), "sources").iter().enumerate() {
            if source.get("serviceAccountToken").is_some() {
                let detail = "must not be specified when serviceAccountName is not set";
                errors.push(FieldError::forbidden(
                    &at.index(j).child("serviceAccountToken"),
                    detail,
                ));
            }
        }
    }
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

pub(super) fn range(value: i64, min: i64, max: i64, path: &Path<'_>, errors: &mut Errors) {
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

/// What is wrong with a pod's spec; `name` is the pod's where that is known.
pub(in super::super) fn pod_spec(name: &str, spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let volumes = volumes::validate(name, list(spec, "volumes"), &path.child("volumes"), errors);
    resources::pod_claims(spec, &path.child("resourceClaims"), errors);
    containers(spec, &volumes, path, errors);
    ephemeral_containers(spec, &volumes, path, errors);
    resources::pod(spec, &path.child("resources"), errors);
    host_network(spec, path, errors);
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
    security::pod(spec, path, errors);
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
    resources::overhead(get(spec, "overhead"), &path.child("overhead"), errors);
    if let Some(policy) = spec.get("preemptionPolicy").and_then(Value::as_str) {
        one_of(
            policy,
            &["PreemptLowerPriority", "Never"],
            &path.child("preemptionPolicy"),
            errors,
        );
    }
    security::host_users(spec, path, errors);
    security::os(spec, path, errors);
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
            // Names of services such as `_http._tcp` are searched too.
            let trimmed = search.strip_suffix('.').unwrap_or(search).replace('_', "a");
            rule(
                meta::dns1123_subdomain(&trimmed),
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

fn host_aliases(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("hostAliases");
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        let at = at.index(i);
        ip(text(alias, "ip"), &at.child("ip"), errors);
        let names = at.child("hostnames");
        for (j, name) in list(alias, "hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            rule(meta::dns1123_subdomain(name), &names.index(j), name, errors);
        }
    }
}

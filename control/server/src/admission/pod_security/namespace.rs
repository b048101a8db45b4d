//! The labels themselves: misspelt ones are refused, and a level that is raised says which pods are beyond it.

use std::collections::BTreeMap;

use serde_json::Value;
use wherry_api::{
    FieldError, Status,
    field::Path,
    meta,
    pod_security::{self, Level},
};

use super::{Mode, PREFIX, level};
use crate::{call::Call, stored, verbs::store_status};

/// Pods that are looked at when a level is raised; kube-apiserver's bound.
const PODS_MAX: usize = 3_000;

fn is_namespace(call: &Call) -> bool {
    call.resource.group.is_empty() && call.resource.plural == "namespaces"
}

/// `latest`, or `v1.` and a number.
fn is_version(text: &str) -> bool {
    let minor = text.strip_prefix("v1.");
    text == "latest"
        || minor.is_some_and(|minor| {
            !minor.is_empty()
                && minor.bytes().all(|byte| byte.is_ascii_digit())
                && (minor == "0" || !minor.starts_with('0'))
        })
}

fn errors(namespace: &Value) -> Vec<FieldError> {
    let metadata = Path::new("metadata");
    let labels = metadata.child("labels");
    let mut errors = Vec::new();
    for mode in [Mode::Enforce, Mode::Audit, Mode::Warn] {
        let key = format!("{PREFIX}{}", mode.name());
        if let Some(text) = meta::label(namespace, &key)
            && let Err(why) = text.parse::<Level>()
        {
            errors.push(FieldError::invalid(&labels.key(&key), text, why));
        }
        let key = format!("{key}-version");
        if let Some(text) = meta::label(namespace, &key)
            && !is_version(text)
        {
            let why = "must be \"latest\" or \"v1.x\"";
            errors.push(FieldError::invalid(&labels.key(&key), text, why));
        }
    }
    errors
}

/// Refuses a new namespace with labels that say nothing.
pub(in crate::admission) fn create(call: &Call, namespace: &Value) -> Result<(), Status> {
    if !is_namespace(call) {
        return Ok(());
    }
    let errors = errors(namespace);
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(
        call.resource,
        meta::name(namespace),
        errors,
    ))
}

/// Refuses labels that now say nothing, and warns of pods that are there and beyond what is enforced from now on.
pub(in crate::admission) async fn update(
    call: &Call,
    subresource: &str,
    new: &Value,
    old: &Value,
) -> Result<(), Status> {
    if !is_namespace(call) || !subresource.is_empty() {
        return Ok(());
    }
    let name = meta::name(new);
    let found = errors(new);
    if !found.is_empty() && found != errors(old) {
        return Err(Status::invalid(call.resource, name, found));
    }
    let config = &call.app.pod_security;
    let (now, version) = level(new, Mode::Enforce, config);
    let (before, version_before) = level(old, Mode::Enforce, config);
    let is_no_stricter = version == version_before && now <= before;
    let is_exempt = config.exemption(name, &call.user.name, None).is_some();
    if now == Level::Privileged || is_no_stricter || is_exempt {
        return Ok(());
    }
    let row = wherry_api::find("", "v1", "pods").expect("a row");
    let listed = call
        .app
        .store
        .list(&stored::collection(row, name), None, PODS_MAX, 0)
        .await
        .map_err(|error| store_status(row, "", error))?;
    let mut beyond: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for kv in &listed.items {
        let pod = stored::decode(kv);
        let class = pod["spec"].get("runtimeClassName").and_then(Value::as_str);
        if config.exemption(name, "", class).is_some() {
            continue;
        }
        let reasons = pod_security::reasons(now, &pod["spec"]);
        if !reasons.is_empty() {
            let pods = beyond.entry(reasons.join(", ")).or_default();
            pods.push(meta::name(&pod).to_owned());
        }
    }
    let enforced = format!("{}:{version}", now.name());
    if listed.items.len() == PODS_MAX {
        call.warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {PODS_MAX} existing pods"
        ));
    }
    if !beyond.is_empty() {
        call.warnings.push(format!(
            "existing pods in namespace {name:?} violate the new PodSecurity enforce level {enforced:?}"
        ));
    }
    let mut lines: Vec<String> = beyond
        .into_iter()
        .filter_map(|(reasons, pods)| {
            let (first, others) = pods.split_first()?;
            Some(match others.len() {
                0 => format!("{first}: {reasons}"),
                1 => format!("{first} (and 1 other pod): {reasons}"),
                more => format!("{first} (and {more} other pods): {reasons}"),
            })
        })
        .collect();
    lines.sort_unstable();
    for line in lines {
        call.warnings.push(line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_that_say_nothing_are_named() {
        for (label, value, trouble) in [
            ("enforce", "baseline", None),
            ("audit-version", "v1.30", None),
            ("warn-version", "latest", None),
            (
                "warn",
                "strict",
                Some(
                    "metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: \"strict\": must be one of \
                     privileged, baseline, restricted",
                ),
            ),
            (
                "enforce-version",
                "v1.030",
                Some(
                    "metadata.labels[pod-security.kubernetes.io/enforce-version]: Invalid value: \"v1.030\": must be \
                     \"latest\" or \"v1.x\"",
                ),
            ),
        ] {
            let namespace = json!({"metadata": {"labels": {(format!("{PREFIX}{label}")): value}}});
            let found: Vec<String> = errors(&namespace).iter().map(ToString::to_string).collect();
            let wanted: Vec<&str> = trouble.into_iter().collect();
            assert_eq!(found, wanted, "{label}={value}");
        }
    }
}

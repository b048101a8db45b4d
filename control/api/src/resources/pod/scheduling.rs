//! What is wrong with what says where a pod may run.

use serde_json::Value;

use super::validate::{Errors, one_of, rule};
use crate::{
    FieldError,
    field::Path,
    meta,
    value::{get, integer, list, text},
};

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
                    errors.push(FieldError::invalid(&at.child("operator"), value, detail));
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

pub(super) fn topology(constraints: &[Value], path: &Path<'_>, errors: &mut Errors) {
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
            let at = at.child("whenUnsatisfiable");
            errors.push(FieldError::not_supported(&at, action, &supported));
        }
        let is_same = |other: &Value| {
            text(other, "topologyKey") == key && text(other, "whenUnsatisfiable") == action
        };
        if constraints[i + 1..].iter().any(is_same) {
            let at = at.child("{topologyKey, whenUnsatisfiable}");
            errors.push(FieldError::duplicate(&at, format!("{{{key}, {action}}}")));
        }
        if let Some(domains) = integer(constraint, "minDomains") {
            let at = at.child("minDomains");
            if domains <= 0 {
                errors.push(FieldError::invalid(
                    &at,
                    domains,
                    "must be greater than zero",
                ));
            }
            if action != "DoNotSchedule" {
                let detail = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                );
                errors.push(FieldError::invalid(&at, domains, detail));
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let supported = ["Honor", "Ignore"];
            if let Some(policy) = get(constraint, field).as_str()
                && !supported.contains(&policy)
            {
                errors.push(FieldError::not_supported(
                    &at.child(field),
                    policy,
                    &supported,
                ));
            }
        }
        spread_label_keys(constraint, &at.child("matchLabelKeys"), errors);
        label_selector(
            get(constraint, "labelSelector"),
            &at.child("labelSelector"),
            errors,
        );
    }
}

fn spread_label_keys(constraint: &Value, path: &Path<'_>, errors: &mut Errors) {
    let keys = list(constraint, "matchLabelKeys");
    if keys.is_empty() {
        return;
    }
    let selector = get(constraint, "labelSelector");
    if selector.is_null() {
        let detail = "must not be specified when labelSelector is not set";
        errors.push(FieldError::forbidden(path, detail));
    }
    for (i, key) in keys.iter().enumerate() {
        let (key, at) = (key.as_str().unwrap_or_default(), path.index(i));
        rule(meta::qualified_name(key), &at, key, errors);
        let is_selected = get(selector, "matchLabels").get(key).is_some()
            || list(selector, "matchExpressions")
                .iter()
                .any(|expression| text(expression, "key") == key);
        if is_selected {
            let detail = "exists in both matchLabelKeys and labelSelector";
            errors.push(FieldError::invalid(&at, key, detail));
        }
    }
}

/// `LabelSelector`; null is none.
pub(in super::super) fn label_selector(selector: &Value, path: &Path<'_>, errors: &mut Errors) {
    if let Some(labels) = selector.get("matchLabels") {
        errors.extend(meta::validate_labels(labels, &path.child("matchLabels")));
    }
    let at = path.child("matchExpressions");
    for (i, expression) in list(selector, "matchExpressions").iter().enumerate() {
        let at = at.index(i);
        let (values, values_at) = (list(expression, "values"), at.child("values"));
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(&values_at, detail));
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let detail =
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(&values_at, detail));
                }
            }
            other => {
                let detail = "not a valid selector operator";
                errors.push(FieldError::invalid(&at.child("operator"), other, detail));
            }
        }
        let key = text(expression, "key");
        rule(meta::qualified_name(key), &at.child("key"), key, errors);
        label_values(values, &values_at, errors);
    }
}

fn label_values(values: &[Value], path: &Path<'_>, errors: &mut Errors) {
    for (i, value) in values.iter().enumerate() {
        let value = value.as_str().unwrap_or_default();
        rule(meta::label_value(value), &path.index(i), value, errors);
    }
}

pub(super) fn affinity(affinity: &Value, path: &Path<'_>, errors: &mut Errors) {
    if affinity.is_null() {
        return;
    }
    let node = path.child("nodeAffinity");
    let wanted = get(affinity, "nodeAffinity");
    if let Some(required) = wanted.get("requiredDuringSchedulingIgnoredDuringExecution") {
        let at = node.child("requiredDuringSchedulingIgnoredDuringExecution");
        node_selector(required, &at, errors);
    }
    let preferred = node.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (i, term) in list(wanted, "preferredDuringSchedulingIgnoredDuringExecution")
        .iter()
        .enumerate()
    {
        let at = preferred.index(i);
        weight(term, &at, errors);
        let preference = get(term, "preference");
        node_selector_term(preference, false, &at.child("preference"), errors);
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

/// `NodeSelector`.
pub(in super::super) fn node_selector(selector: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("nodeSelectorTerms");
    let terms = list(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        let detail = "must have at least one node selector term";
        errors.push(FieldError::required(&at, detail));
    }
    for (i, term) in terms.iter().enumerate() {
        node_selector_term(term, true, &at.index(i), errors);
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
    for field in ["labelSelector", "namespaceSelector"] {
        label_selector(get(term, field), &path.child(field), errors);
    }
    for namespace in list(term, "namespaces") {
        let namespace = namespace.as_str().unwrap_or_default();
        let at = path.child("namespace");
        rule(meta::dns1123_label(namespace), &at, namespace, errors);
    }
    let (matched, mismatched) = (
        list(term, "matchLabelKeys"),
        list(term, "mismatchLabelKeys"),
    );
    for (field, keys) in [
        ("matchLabelKeys", matched),
        ("mismatchLabelKeys", mismatched),
    ] {
        let at = path.child(field);
        if !keys.is_empty() && get(term, "labelSelector").is_null() {
            let detail = "must not be specified when labelSelector is not set";
            errors.push(FieldError::forbidden(&at, detail));
            continue;
        }
        for (i, key) in keys.iter().enumerate() {
            let key = key.as_str().unwrap_or_default();
            rule(meta::qualified_name(key), &at.index(i), key, errors);
        }
    }
    let at = path.child("matchLabelKeys");
    for (i, key) in matched.iter().enumerate() {
        if mismatched.contains(key) {
            let detail = "exists in both matchLabelKeys and mismatchLabelKeys";
            errors.push(FieldError::invalid(&at.index(i), key.clone(), detail));
        }
    }
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

/// `is_strict`: values have to be such that a label can have; what is only preferred may name others.
fn node_selector_term(term: &Value, is_strict: bool, path: &Path<'_>, errors: &mut Errors) {
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
        if is_strict {
            label_values(values, &at.child("values"), errors);
        }
    }
    let at = path.child("matchFields");
    for (i, field) in list(term, "matchFields").iter().enumerate() {
        let at = at.index(i);
        let (values, values_at) = (list(field, "values"), at.child("values"));
        let operator = text(field, "operator");
        if !matches!(operator, "In" | "NotIn") {
            let detail = "not a valid selector operator";
            errors.push(FieldError::invalid(&at.child("operator"), operator, detail));
        } else if values.len() != 1 {
            let detail =
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(&values_at, detail));
        }
        let key = text(field, "key");
        if key != "metadata.name" {
            let detail = "not a valid field selector key";
            errors.push(FieldError::invalid(&at.child("key"), key, detail));
            continue;
        }
        for (i, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            rule(
                meta::dns1123_subdomain(value),
                &values_at.index(i),
                value,
                errors,
            );
        }
    }
}

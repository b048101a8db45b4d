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
            errors.push(FieldError::not_supported(
                &at.child("whenUnsatisfiable"),
                action,
                &supported,
            ));
        }
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

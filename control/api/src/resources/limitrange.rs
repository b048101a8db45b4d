//! LimitRange of the core group.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    quantity::Quantity,
    table::Column,
    value::{default_absent, empty, entries, get, list, list_mut, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Created At", "When the object was made."),
];

/// Fields of a limit that name amounts.
const AMOUNTS: [&str; 5] = [
    "default",
    "defaultRequest",
    "max",
    "maxLimitRequestRatio",
    "min",
];

pub(super) struct LimitRange;

fn amount(limit: &Value, field: &str, name: &str) -> Option<Quantity> {
    Quantity::parse(get(limit, field).get(name)?.as_str()?).ok()
}

/// Amounts that must not be in this order, and how that is told.
const ORDER: [(&str, &str, &str); 6] = [
    ("min", "max", "min value {0} is greater than max value {1}"),
    (
        "min",
        "defaultRequest",
        "min value {0} is greater than default request value {1}",
    ),
    (
        "defaultRequest",
        "max",
        "default request value {0} is greater than max value {1}",
    ),
    (
        "defaultRequest",
        "default",
        "default request value {0} is greater than default limit value {1}",
    ),
    (
        "min",
        "default",
        "min value {0} is greater than default value {1}",
    ),
    (
        "default",
        "max",
        "default value {0} is greater than max value {1}",
    ),
];

fn validate_limit(limit: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let type_ = text(limit, "type");
    let names: BTreeSet<&String> = AMOUNTS
        .iter()
        .flat_map(|field| entries(limit, field).map(|(name, _)| name))
        .collect();
    let details = meta::qualified_name(type_);
    let at = path.child("type");
    errors.extend(
        details
            .into_iter()
            .map(|detail| FieldError::invalid(&at, type_, detail)),
    );
    if !type_.contains('/') && !["Pod", "Container", "PersistentVolumeClaim"].contains(&type_) {
        let detail = "must be a standard limit type or fully qualified";
        errors.push(FieldError::invalid(&at, type_, detail));
    }
    if type_ == "Pod" {
        for field in ["default", "defaultRequest"] {
            if entries(limit, field).next().is_some() {
                let detail = "may not be specified when `type` is 'Pod'";
                errors.push(FieldError::forbidden(&path.child(field), detail));
            }
        }
    }
    if type_ == "PersistentVolumeClaim"
        && ["min", "max"]
            .iter()
            .all(|field| get(limit, field).get("storage").is_none())
    {
        let detail =
            "either minimum or maximum storage value is required, but neither was provided";
        errors.push(FieldError::required(&path.child("limits"), detail));
    }
    for name in names {
        let native = !name.contains('/') && !name.starts_with("hugepages-");
        if native && !["cpu", "memory", "ephemeral-storage", "storage"].contains(&name.as_str()) {
            for field in AMOUNTS {
                if get(limit, field).get(name).is_some() {
                    let at = path.child(field);
                    let detail = "must be a standard resource type or fully qualified";
                    errors.push(FieldError::invalid(&at.key(name), name.as_str(), detail));
                }
            }
        }
        for (low, high, detail) in ORDER {
            if let (Some(less), Some(more)) = (amount(limit, low, name), amount(limit, high, name))
                && less > more
            {
                let at = path.child(low);
                let detail = detail
                    .replace("{0}", &less.to_string())
                    .replace("{1}", &more.to_string());
                errors.push(FieldError::invalid(&at.key(name), less.to_string(), detail));
            }
        }
        let at = path.child("maxLimitRequestRatio");
        let Some(ratio) = amount(limit, "maxLimitRequestRatio", name) else {
            continue;
        };
        if ratio < Quantity::from_milli(1000) {
            let detail = format!("ratio {ratio} is less than 1");
            errors.push(FieldError::invalid(
                &at.key(name),
                ratio.to_string(),
                detail,
            ));
        }
        if let (Some(min), Some(max)) = (amount(limit, "min", name), amount(limit, "max", name))
            && !min.is_zero()
            && let top = max.milli() as f64 / min.milli() as f64
            && ratio.milli() as f64 > top * 1000.0
        {
            let detail = format!("ratio {ratio} is greater than max/min = {top:.6}");
            errors.push(FieldError::invalid(
                &at.key(name),
                ratio.to_string(),
                detail,
            ));
        }
    }
}

impl Strategy for LimitRange {
    fn default(&self, range: &mut Value) {
        let Some(spec) = range.get_mut("spec") else {
            return;
        };
        for limit in list_mut(spec, "limits") {
            if text(limit, "type") != "Container" {
                continue;
            }
            // What is set carries on: a maximum is a limit, a limit a request, a minimum a request.
            for (from, to) in [
                ("max", "default"),
                ("default", "defaultRequest"),
                ("min", "defaultRequest"),
            ] {
                let amounts: BTreeMap<String, Value> = entries(limit, from)
                    .map(|(name, amount)| (name.clone(), amount.clone()))
                    .collect();
                if amounts.is_empty() {
                    continue;
                }
                default_absent(limit, to, empty());
                for (name, amount) in amounts {
                    default_absent(&mut limit[to], &name, amount);
                }
            }
        }
    }

    fn validate(&self, range: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("spec");
        let path = path.child("limits");
        let limits = list(get(range, "spec"), "limits");
        for (i, limit) in limits.iter().enumerate() {
            let at = path.index(i);
            let type_ = text(limit, "type");
            if limits[..i]
                .iter()
                .any(|before| text(before, "type") == type_)
            {
                errors.push(FieldError::duplicate(&at.child("type"), type_));
            }
            validate_limit(limit, &at, &mut errors);
        }
        errors
    }

    fn row(&self, range: &Value, _now: Timestamp) -> Vec<Value> {
        vec![
            meta::name(range).into(),
            meta::str_of(range, "creationTimestamp").into(),
        ]
    }
}

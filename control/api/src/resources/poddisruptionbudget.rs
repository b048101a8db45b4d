//! PodDisruptionBudget of policy.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::workload;
use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{get, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "Min available",
        "The minimum number of pods that must be available.",
    ),
    Column::text(
        "Max unavailable",
        "The maximum number of pods that can be unavailable.",
    ),
    Column::text("Allowed disruptions", "How many pods may be evicted now.").integer(),
    Column::age(),
];

const UNHEALTHY_POLICIES: &[&str] = &["AlwaysAllow", "IfHealthyBudget"];

pub(super) struct PodDisruptionBudget;

impl Strategy for PodDisruptionBudget {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({
            "currentHealthy": 0,
            "desiredHealthy": 0,
            "disruptionsAllowed": 0,
            "expectedPods": 0,
        });
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(object, "spec"), Path::new("spec"));
        let (min, max) = (get(spec, "minAvailable"), get(spec, "maxUnavailable"));
        if !min.is_null() && !max.is_null() {
            errors.push(FieldError::invalid(
                &path,
                spec.clone(),
                "minAvailable and maxUnavailable cannot be both set",
            ));
        }
        for (field, value) in [("minAvailable", min), ("maxUnavailable", max)] {
            workload::number_or_percent(value, &path.child(field), &mut errors);
            workload::not_above_whole(value, &path.child(field), &mut errors);
        }
        super::pod::label_selector(get(spec, "selector"), &path.child("selector"), &mut errors);
        let policy = text(spec, "unhealthyPodEvictionPolicy");
        if !policy.is_empty() && !UNHEALTHY_POLICIES.contains(&policy) {
            errors.push(FieldError::not_supported(
                &path.child("unhealthyPodEvictionPolicy"),
                policy,
                UNHEALTHY_POLICIES,
            ));
        }
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let amount = |field| match get(spec, field) {
            Value::Null => "N/A".to_owned(),
            Value::String(text) => text.clone(),
            number => number.to_string(),
        };
        vec![
            meta::name(object).into(),
            amount("minAvailable").into(),
            amount("maxUnavailable").into(),
            workload::count(object, "disruptionsAllowed"),
            table::age(object, now).into(),
        ]
    }
}

//! Deployment of apps.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::workload;
use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    resource::keep_other_half,
    table::{self, Column},
    value::{default, get, integer, remove, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "Ready",
        "Number of the pods that are ready, of those that are wanted.",
    ),
    Column::text(
        "Up-to-date",
        "Number of pods that are made of the present template.",
    )
    .integer(),
    Column::text(
        "Available",
        "Number of pods that have been ready for at least minReadySeconds.",
    )
    .integer(),
    Column::age(),
    workload::CONTAINERS,
    workload::IMAGES,
    workload::SELECTOR,
];

/// Numbers of the status.
const COUNTS: &[&str] = &[
    "observedGeneration",
    "replicas",
    "updatedReplicas",
    "readyReplicas",
    "availableReplicas",
    "unavailableReplicas",
    "collisionCount",
];

/// Which of them are parts of another, as the complaint calls that one.
const LIMITS: &[(&str, &str)] = &[
    ("updatedReplicas", "status.replicas"),
    ("readyReplicas", "status.replicas"),
    ("availableReplicas", "status.replicas"),
    ("availableReplicas", "readyReplicas"),
];

const STRATEGIES: &[&str] = &["Recreate", "RollingUpdate"];

pub(super) struct Deployment;

fn strategy(strategy: &Value, path: &Path<'_>, errors: &mut workload::Errors) {
    let type_ = text(strategy, "type");
    if !STRATEGIES.contains(&type_) {
        errors.push(FieldError::not_supported(
            &path.child("type"),
            type_,
            STRATEGIES,
        ));
        return;
    }
    let rolling = get(strategy, "rollingUpdate");
    let at = path.child("rollingUpdate");
    if type_ == "Recreate" {
        if !rolling.is_null() {
            errors.push(FieldError::forbidden(
                &at,
                "may not be specified when strategy `type` is 'Recreate'",
            ));
        }
        return;
    }
    let (unavailable, surge) = (get(rolling, "maxUnavailable"), get(rolling, "maxSurge"));
    workload::number_or_percent(unavailable, &at.child("maxUnavailable"), errors);
    workload::number_or_percent(surge, &at.child("maxSurge"), errors);
    if workload::is_zero(unavailable) && workload::is_zero(surge) {
        errors.push(FieldError::invalid(
            &at.child("maxUnavailable"),
            unavailable.clone(),
            "may not be 0 when `maxSurge` is 0",
        ));
    }
    workload::not_above_whole(unavailable, &at.child("maxUnavailable"), errors);
}

impl Strategy for Deployment {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec") else {
            return;
        };
        default(spec, "replicas", 1);
        let amounts = [("maxUnavailable", json!("25%")), ("maxSurge", json!("25%"))];
        workload::default_strategy(spec, "strategy", amounts);
        default(spec, "revisionHistoryLimit", 10);
        default(spec, "progressDeadlineSeconds", 600);
        workload::default_template(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn prepare_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        keep_other_half(subresource, new, old);
        // `kubectl patch` to Recreate leaves what was defaulted for the other one: nobody asked for it.
        if let Some(strategy) = new.pointer_mut("/spec/strategy")
            && text(strategy, "type") == "Recreate"
            && get(strategy, "rollingUpdate").is_null()
        {
            remove(strategy, "rollingUpdate");
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(object, "spec"), Path::new("spec"));
        for field in [
            "replicas",
            "minReadySeconds",
            "revisionHistoryLimit",
            "progressDeadlineSeconds",
        ] {
            workload::not_negative(spec, field, &path, &mut errors);
        }
        workload::selector(spec, &path, "deployment", &mut errors);
        workload::selects_template(spec, &path, &mut errors);
        workload::template(spec, &["Always"], "ReplicaSet", &path, &mut errors);
        strategy(get(spec, "strategy"), &path.child("strategy"), &mut errors);
        if let Some(deadline) = integer(spec, "progressDeadlineSeconds")
            && deadline <= integer(spec, "minReadySeconds").unwrap_or(0)
        {
            errors.push(FieldError::invalid(
                &path.child("progressDeadlineSeconds"),
                deadline,
                "must be greater than minReadySeconds",
            ));
        }
        errors
    }

    fn validate_status(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        workload::status_counts(new, old, COUNTS, LIMITS)
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        workload::immutable(new, old, "selector", &mut errors);
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let count = |field| workload::count(object, field);
        let wanted = integer(spec, "replicas").unwrap_or(0);
        let mut row = vec![
            meta::name(object).into(),
            format!("{}/{wanted}", count("readyReplicas")).into(),
            count("updatedReplicas"),
            count("availableReplicas"),
            table::age(object, now).into(),
        ];
        row.extend(workload::wide_cells(spec));
        row
    }
}

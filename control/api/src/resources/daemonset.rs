//! DaemonSet of apps.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::workload;
use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    selector::LabelSelector,
    table::{self, Column},
    value::{default, get, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Desired", "Number of nodes that should have a pod.").integer(),
    Column::text("Current", "Number of those that have one.").integer(),
    Column::text("Ready", "Number of those whose pod is ready.").integer(),
    Column::text(
        "Up-to-date",
        "Number of nodes whose pod is made of the present template.",
    )
    .integer(),
    Column::text(
        "Available",
        "Number of nodes whose pod has been ready for at least minReadySeconds.",
    )
    .integer(),
    Column::text("Node Selector", "Labels that a node must have."),
    Column::age(),
    workload::CONTAINERS,
    workload::IMAGES,
    workload::SELECTOR,
];

/// Numbers of the status.
const COUNTS: &[&str] = &[
    "currentNumberScheduled",
    "numberMisscheduled",
    "desiredNumberScheduled",
    "numberReady",
    "observedGeneration",
    "updatedNumberScheduled",
    "numberAvailable",
    "numberUnavailable",
    "collisionCount",
];

const STRATEGIES: &[&str] = &["RollingUpdate", "OnDelete"];

pub(super) struct DaemonSet;

fn strategy(strategy: &Value, path: &Path<'_>, errors: &mut workload::Errors) {
    let type_ = text(strategy, "type");
    if !STRATEGIES.contains(&type_) {
        errors.push(FieldError::not_supported(
            &path.child("type"),
            type_,
            STRATEGIES,
        ));
    }
    if type_ != "RollingUpdate" {
        return;
    }
    let rolling = get(strategy, "rollingUpdate");
    let at = path.child("rollingUpdate");
    if rolling.is_null() {
        errors.push(FieldError::required(&at, ""));
        return;
    }
    let (unavailable, surge) = (get(rolling, "maxUnavailable"), get(rolling, "maxSurge"));
    for (field, value) in [("maxUnavailable", unavailable), ("maxSurge", surge)] {
        workload::number_or_percent(value, &at.child(field), errors);
        workload::not_above_whole(value, &at.child(field), errors);
    }
    let is_given = |value: &Value| !value.is_null() && !workload::is_zero(value);
    if is_given(unavailable) && is_given(surge) {
        errors.push(FieldError::invalid(
            &at.child("maxSurge"),
            surge.clone(),
            "may not be set when maxUnavailable is non-zero",
        ));
    } else if !is_given(unavailable) && !is_given(surge) {
        errors.push(FieldError::required(
            &at.child("maxUnavailable"),
            "cannot be 0 when maxSurge is 0",
        ));
    }
}

impl Strategy for DaemonSet {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec") else {
            return;
        };
        let amounts = [("maxUnavailable", json!(1)), ("maxSurge", json!(0))];
        workload::default_strategy(spec, "updateStrategy", amounts);
        default(spec, "revisionHistoryLimit", 10);
        workload::default_template(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({
            "currentNumberScheduled": 0,
            "numberMisscheduled": 0,
            "desiredNumberScheduled": 0,
            "numberReady": 0,
        });
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(object, "spec"), Path::new("spec"));
        for field in ["minReadySeconds", "revisionHistoryLimit"] {
            workload::not_negative(spec, field, &path, &mut errors);
        }
        workload::selector(spec, &path, "daemonset", &mut errors);
        workload::selects_template(spec, &path, &mut errors);
        workload::template(spec, &["Always"], "DaemonSet", &path, &mut errors);
        strategy(
            get(spec, "updateStrategy"),
            &path.child("updateStrategy"),
            &mut errors,
        );
        errors
    }

    fn validate_status(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        workload::status_counts(new, old, COUNTS, &[])
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        workload::immutable(new, old, "selector", &mut errors);
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let count = |field| workload::count(object, field);
        let selector = get(get(get(spec, "template"), "spec"), "nodeSelector");
        let selector = selector
            .as_object()
            .map(|labels| LabelSelector::from_labels(labels).to_string())
            .filter(|text| !text.is_empty());
        let mut row = vec![
            meta::name(object).into(),
            count("desiredNumberScheduled"),
            count("currentNumberScheduled"),
            count("numberReady"),
            count("updatedNumberScheduled"),
            count("numberAvailable"),
            selector.unwrap_or_else(|| "<none>".to_owned()).into(),
            table::age(object, now).into(),
        ];
        row.extend(workload::wide_cells(spec));
        row
    }
}

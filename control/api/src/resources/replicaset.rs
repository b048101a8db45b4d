//! ReplicaSet of apps, and the ReplicationController it came from.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::workload;
use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, default_absent, get, integer},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Desired", "Number of pods that are wanted.").integer(),
    Column::text("Current", "Number of pods that there are.").integer(),
    Column::text("Ready", "Number of pods that are ready.").integer(),
    Column::age(),
    Column::text("Containers", "Names of each container in the template.").wide(),
    Column::text(
        "Images",
        "Images referenced by each container in the template.",
    )
    .wide(),
    Column::text("Selector", "Which pods are meant.").wide(),
];

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = get(object, "spec");
    let mut row = vec![
        meta::name(object).into(),
        integer(spec, "replicas").unwrap_or(0).into(),
        workload::count(object, "replicas"),
        workload::count(object, "readyReplicas"),
        table::age(object, now).into(),
    ];
    row.extend(workload::wide_cells(spec));
    row
}

pub(super) struct ReplicaSet;

impl ReplicaSet {
    fn validate(object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(object, "spec"), Path::new("spec"));
        for field in ["replicas", "minReadySeconds"] {
            workload::not_negative(spec, field, &path, &mut errors);
        }
        workload::selector(spec, &path, "ReplicaSet", &mut errors);
        workload::selects_template(spec, &path, &mut errors);
        workload::template(spec, &["Always"], "ReplicaSet", &path, &mut errors);
        errors
    }
}

impl Strategy for ReplicaSet {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec") {
            default(spec, "replicas", 1);
            workload::default_template(spec);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn prepare_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        workload::keep_other_half(subresource, new, old);
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        Self::validate(object)
    }

    fn validate_update(&self, subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
        if subresource == "status" {
            return status_counts(new);
        }
        let mut errors = Self::validate(new);
        workload::immutable(new, old, "selector", &mut errors);
        errors
    }

    fn selectable_field(&self, object: &Value, field: &str) -> Option<String> {
        replicas_field(object, field)
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        row(object, now)
    }
}

fn replicas_field(object: &Value, field: &str) -> Option<String> {
    (field == "status.replicas").then(|| workload::count(object, "replicas").to_string())
}

fn status_counts(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (status, path) = (get(object, "status"), Path::new("status"));
    let replicas = integer(status, "replicas").unwrap_or(0);
    for field in [
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
    ] {
        workload::not_negative(status, field, &path, &mut errors);
        let number = integer(status, field).unwrap_or(0);
        if number > replicas {
            errors.push(FieldError::invalid(
                &path.child(field),
                number,
                "cannot be greater than status.replicas",
            ));
        }
    }
    errors
}

pub(super) struct ReplicationController;

impl ReplicationController {
    fn validate(object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(object, "spec"), Path::new("spec"));
        for field in ["replicas", "minReadySeconds"] {
            workload::not_negative(spec, field, &path, &mut errors);
        }
        let selector = get(spec, "selector");
        let at = path.child("selector");
        match selector.as_object().filter(|labels| !labels.is_empty()) {
            None => errors.push(FieldError::required(&at, "")),
            Some(wanted) => {
                let template = get(get(get(spec, "template"), "metadata"), "labels");
                if !wanted
                    .iter()
                    .all(|(key, value)| get(template, key) == value)
                {
                    let at = path.child("template");
                    let at = at.child("metadata");
                    errors.push(FieldError::invalid(
                        &at.child("labels"),
                        template.clone(),
                        "`selector` does not match template `labels`",
                    ));
                }
            }
        }
        if spec.get("template").is_none_or(Value::is_null) {
            errors.push(FieldError::required(&path.child("template"), ""));
        } else {
            workload::template(
                spec,
                &["Always"],
                "ReplicationController",
                &path,
                &mut errors,
            );
        }
        errors
    }
}

impl Strategy for ReplicationController {
    fn default(&self, object: &mut Value) {
        let labels = object
            .pointer("/spec/template/metadata/labels")
            .filter(|labels| labels.as_object().is_some_and(|labels| !labels.is_empty()))
            .cloned();
        if let Some(labels) = labels {
            if let Some(spec) = object.get_mut("spec") {
                default_absent(spec, "selector", labels.clone());
            }
            if meta::labels(object).is_none_or(serde_json::Map::is_empty) {
                meta::metadata_mut(object).insert("labels".into(), labels);
            }
        }
        if let Some(spec) = object.get_mut("spec") {
            default(spec, "replicas", 1);
            workload::default_template(spec);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn prepare_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        workload::keep_other_half(subresource, new, old);
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        Self::validate(object)
    }

    fn validate_update(&self, subresource: &str, new: &Value, _old: &Value) -> Vec<FieldError> {
        if subresource == "status" {
            return status_counts(new);
        }
        Self::validate(new)
    }

    fn selectable_field(&self, object: &Value, field: &str) -> Option<String> {
        replicas_field(object, field)
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        row(object, now)
    }
}

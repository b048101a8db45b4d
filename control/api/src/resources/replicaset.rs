//! ReplicaSet of apps, and the ReplicationController it came from: a number of pods that is kept.

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
    workload::CONTAINERS,
    workload::IMAGES,
    workload::SELECTOR,
];

/// Numbers of the status.
const COUNTS: &[&str] = &[
    "replicas",
    "fullyLabeledReplicas",
    "readyReplicas",
    "availableReplicas",
    "observedGeneration",
];

/// Which of them are parts of another, as the complaint calls that one.
const LIMITS: &[(&str, &str)] = &[
    ("fullyLabeledReplicas", "status.replicas"),
    ("readyReplicas", "status.replicas"),
    ("availableReplicas", "status.replicas"),
    ("availableReplicas", "readyReplicas"),
];

/// The two kinds; they differ in how their selector is written.
pub(super) enum Replicas {
    Set,
    Controller,
}

impl Replicas {
    /// A ReplicationController without a selector, or without labels, takes those of its template.
    fn default_of_template(object: &mut Value) {
        let labels = object
            .pointer("/spec/template/metadata/labels")
            .filter(|labels| labels.as_object().is_some_and(|labels| !labels.is_empty()))
            .cloned();
        let Some(labels) = labels else {
            return;
        };
        if let Some(spec) = object.get_mut("spec") {
            default_absent(spec, "selector", labels.clone());
        }
        if meta::labels(object).is_none_or(serde_json::Map::is_empty) {
            meta::metadata_mut(object).insert("labels".into(), labels);
        }
    }

    /// A ReplicationController's selector is a map of labels.
    fn labels_select_template(spec: &Value, path: &Path<'_>, errors: &mut workload::Errors) {
        let selector = get(spec, "selector");
        let Some(wanted) = selector.as_object().filter(|labels| !labels.is_empty()) else {
            errors.push(FieldError::required(&path.child("selector"), ""));
            return;
        };
        let labels = get(get(get(spec, "template"), "metadata"), "labels");
        if !wanted.iter().all(|(key, value)| get(labels, key) == value) {
            errors.push(workload::not_selected(labels, path));
        }
    }
}

impl Strategy for Replicas {
    fn default(&self, object: &mut Value) {
        if matches!(self, Self::Controller) {
            Self::default_of_template(object);
        }
        if let Some(spec) = object.get_mut("spec") {
            default(spec, "replicas", 1);
            workload::default_template(spec);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(object, "spec"), Path::new("spec"));
        for field in ["replicas", "minReadySeconds"] {
            workload::not_negative(spec, field, &path, &mut errors);
        }
        let kind = match self {
            Self::Set => {
                // Kubernetes says so of a ReplicaSet too.
                workload::selector(spec, &path, "deployment", &mut errors);
                workload::selects_template(spec, &path, &mut errors);
                "ReplicaSet"
            }
            Self::Controller => {
                Self::labels_select_template(spec, &path, &mut errors);
                if get(spec, "template").is_null() {
                    errors.push(FieldError::required(&path.child("template"), ""));
                    return errors;
                }
                "ReplicationController"
            }
        };
        workload::template(spec, &["Always"], kind, &path, &mut errors);
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if matches!(self, Self::Set) {
            workload::immutable(new, old, "selector", &mut errors);
        }
        errors
    }

    fn validate_status(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        workload::status_counts(new, old, COUNTS, LIMITS)
    }

    fn selectable_field(&self, object: &Value, field: &str) -> Option<String> {
        (field == "status.replicas").then(|| workload::count(object, "replicas").to_string())
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
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
}

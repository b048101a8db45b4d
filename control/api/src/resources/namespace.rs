//! Namespace.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, empty, get, keep, list, text},
};

/// A namespace carries its own name, so that selectors can choose it.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Held until everything in the namespace is gone.
const FINALIZER: &str = "kubernetes";

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Status", "The status of the namespace"),
    Column::age(),
];

pub(super) struct Namespace;

impl Strategy for Namespace {
    fn validate_name(&self, name: &str) -> Vec<String> {
        meta::dns1123_label(name)
    }

    fn default(&self, object: &mut Value) {
        let name = meta::name(object).to_owned();
        if !name.is_empty() {
            let metadata = meta::metadata_mut(object);
            let labels = metadata.entry("labels").or_insert_with(empty);
            if let Some(labels) = labels.as_object_mut() {
                labels.insert(NAME_LABEL.to_owned(), name.into());
            }
        }
        default(object, "status", empty());
        if let Some(status) = object.get_mut("status") {
            default(status, "phase", "Active");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Active"});
        default(object, "spec", empty());
        let spec = &mut object["spec"];
        default(spec, "finalizers", json!([]));
        if let Some(finalizers) = spec.get_mut("finalizers").and_then(Value::as_array_mut)
            && !finalizers.iter().any(|finalizer| finalizer == FINALIZER)
        {
            finalizers.push(FINALIZER.into());
        }
    }

    fn prepare_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        match subresource {
            "status" => keep(new, old, "spec"),
            "finalize" => keep(new, old, "status"),
            _ => {
                keep(new, old, "spec");
                keep(new, old, "status");
            }
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let spec = Path::new("spec");
        let path = spec.child("finalizers");
        let mut errors = Vec::new();
        for finalizer in list(get(object, "spec"), "finalizers")
            .iter()
            .filter_map(Value::as_str)
        {
            errors.extend(
                meta::qualified_name(finalizer)
                    .into_iter()
                    .map(|text| FieldError::invalid(&path, finalizer, text)),
            );
            if !finalizer.contains('/') && finalizer != FINALIZER {
                let detail = "name is neither a standard finalizer name nor is it fully qualified";
                errors.push(FieldError::invalid(&path, finalizer, detail));
            }
        }
        errors
    }

    fn validate_update(&self, subresource: &str, new: &Value, _old: &Value) -> Vec<FieldError> {
        if subresource == "finalize" {
            self.validate_create(new)
        } else {
            Vec::new()
        }
    }

    fn selectable_field(&self, object: &Value, field: &str) -> Option<String> {
        match field {
            "status.phase" => Some(text(get(object, "status"), "phase").to_owned()),
            "name" => Some(meta::name(object).to_owned()),
            _ => None,
        }
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["status.phase", "name"]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let phase = text(get(object, "status"), "phase");
        vec![
            meta::name(object).into(),
            phase.into(),
            table::age(object, now).into(),
        ]
    }
}

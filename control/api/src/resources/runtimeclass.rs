//! RuntimeClass of node.k8s.io.

use jiff::Timestamp;
use serde_json::Value;

use super::configmap::unchanged;
use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{get, list, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "Handler",
        "handler specifies the underlying runtime and configuration that the CRI implementation will use to handle \
         pods of this class.",
    ),
    Column::age(),
];

pub(super) struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let handler = text(object, "handler");
        let path = Path::new("handler");
        errors.extend(
            meta::dns1123_label(handler)
                .into_iter()
                .map(|text| FieldError::invalid(&path, handler, text)),
        );
        let path = Path::new("overhead");
        let amounts = get(get(object, "overhead"), "podFixed");
        super::pod::overhead(amounts, &path.child("podFixed"), &mut errors);
        let path = Path::new("scheduling");
        let scheduling = get(object, "scheduling");
        if let Some(selector) = scheduling.get("nodeSelector") {
            errors.extend(meta::validate_labels(selector, &path.child("nodeSelector")));
        }
        super::pod::tolerations(
            list(scheduling, "tolerations"),
            &path.child("tolerations"),
            &mut errors,
        );
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        unchanged(new, old, "handler").into_iter().collect()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            meta::name(object).into(),
            text(object, "handler").into(),
            table::age(object, now).into(),
        ]
    }
}

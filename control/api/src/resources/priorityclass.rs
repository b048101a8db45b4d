//! PriorityClass of scheduling.k8s.io.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, flag, get, integer, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Value", "The priority that pods of this class get.").integer(),
    Column::text(
        "Global-Default",
        "Whether pods without a class get this one.",
    ),
    Column::age(),
    Column::text(
        "PreemptionPolicy",
        "Whether pods of this class make others go.",
    ),
];

/// Priorities above are the system's own.
const VALUE_MAX: i64 = 1_000_000_000;
const SYSTEM_PREFIX: &str = "system-";
/// The classes that the system has, and their values.
const SYSTEM: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];
const POLICIES: &[&str] = &["Never", "PreemptLowerPriority"];

pub(super) struct PriorityClass;

impl Strategy for PriorityClass {
    fn default(&self, object: &mut Value) {
        default(object, "preemptionPolicy", "PreemptLowerPriority");
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (name, value) = (meta::name(object), integer(object, "value").unwrap_or(0));
        if name.starts_with(SYSTEM_PREFIX) {
            if !SYSTEM.contains(&(name, value)) {
                let metadata = Path::new("metadata");
                errors.push(FieldError::forbidden(
                    &metadata.child("name"),
                    "priority class names with 'system-' prefix are reserved for system use only. error: only system \
                     priority classes may have these names and values",
                ));
            }
        } else if value > VALUE_MAX {
            errors.push(FieldError::forbidden(
                &Path::new("value"),
                format!("maximum allowed value of a user defined priority is {VALUE_MAX}"),
            ));
        }
        let policy = text(object, "preemptionPolicy");
        if !policy.is_empty() && !POLICIES.contains(&policy) {
            errors.push(FieldError::not_supported(
                &Path::new("preemptionPolicy"),
                policy,
                POLICIES,
            ));
        }
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if integer(new, "value") != integer(old, "value") {
            errors.push(FieldError::forbidden(
                &Path::new("value"),
                "may not be changed in an update.",
            ));
        }
        if text(new, "preemptionPolicy") != text(old, "preemptionPolicy") {
            errors.push(FieldError::invalid(
                &Path::new("preemptionPolicy"),
                get(new, "preemptionPolicy").clone(),
                "field is immutable",
            ));
        }
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            meta::name(object).into(),
            integer(object, "value").unwrap_or(0).into(),
            flag(object, "globalDefault").into(),
            table::age(object, now).into(),
            text(object, "preemptionPolicy").into(),
        ]
    }
}

//! Lease of coordination.k8s.io.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{get, integer, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "Holder",
        "holderIdentity contains the identity of the holder of a current lease.",
    ),
    Column::age(),
];

pub(super) struct Lease;

impl Strategy for Lease {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("spec");
        let spec = get(object, "spec");
        if let Some(seconds) = integer(spec, "leaseDurationSeconds")
            && seconds <= 0
        {
            let at = path.child("leaseDurationSeconds");
            errors.push(FieldError::invalid(&at, seconds, "must be greater than 0"));
        }
        if let Some(count) = integer(spec, "leaseTransitions")
            && count < 0
        {
            let at = path.child("leaseTransitions");
            errors.push(FieldError::invalid(
                &at,
                count,
                "must be greater than or equal to 0",
            ));
        }
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let holder = text(get(object, "spec"), "holderIdentity");
        vec![
            meta::name(object).into(),
            holder.into(),
            table::age(object, now).into(),
        ]
    }
}

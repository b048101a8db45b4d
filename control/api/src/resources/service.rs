//! Service.
use jiff::Timestamp;
use serde_json::Value;

use crate::{Strategy, meta, table::{self, Column}};

pub(super) const COLUMNS: &[Column] = &[Column::name(), Column::age()];

pub(super) struct Service;

impl Strategy for Service {
    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![meta::name(object).into(), table::age(object, now).into()]
    }
}

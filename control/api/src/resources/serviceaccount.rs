//! ServiceAccount.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Strategy, meta,
    table::{self, Column},
    value::list,
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "Secrets",
        "Secrets in the same namespace that pods running using this ServiceAccount are allowed to use.",
    ),
    Column::age(),
];

pub(super) struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let secrets = list(object, "secrets").len();
        vec![
            meta::name(object).into(),
            secrets.into(),
            table::age(object, now).into(),
        ]
    }
}

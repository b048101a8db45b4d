//! ConfigMap.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{entries, flag, get, text},
};

/// Keys and values of a ConfigMap or Secret together may have this many bytes.
pub(super) const DATA_BYTES_MAX: usize = 1024 * 1024;

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "Data",
        "Data contains the configuration data. Each key must consist of alphanumeric characters, '-', '_' or '.'.",
    ),
    Column::age(),
];

pub(super) struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut total_bytes = 0;
        for (field, is_base64) in [("data", false), ("binaryData", true)] {
            let path = Path::new(field);
            for (key, value) in entries(object, field) {
                let at = path.key(key);
                errors.extend(
                    meta::config_map_key(key)
                        .into_iter()
                        .map(|text| FieldError::invalid(&at, key.as_str(), text)),
                );
                if is_base64 && get(object, "data").get(key).is_some() {
                    errors.push(FieldError::invalid(
                        &at,
                        key.as_str(),
                        "duplicate of key present in data",
                    ));
                }
                let len = value.as_str().unwrap_or_default().len();
                total_bytes += if is_base64 { len / 4 * 3 } else { len };
            }
        }
        if total_bytes > DATA_BYTES_MAX {
            errors.push(FieldError::too_long(&Path::ROOT.key(""), DATA_BYTES_MAX));
        }
        errors
    }

    fn validate_update(&self, _subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = immutable(new, old, &["data", "binaryData"]);
        errors.extend(self.validate(new));
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let count = entries(object, "data").count() + entries(object, "binaryData").count();
        vec![
            meta::name(object).into(),
            count.into(),
            table::age(object, now).into(),
        ]
    }
}

/// What may not change once `immutable` is set.
pub(super) fn immutable(new: &Value, old: &Value, fields: &[&str]) -> Vec<FieldError> {
    let detail = "field is immutable when `immutable` is set";
    let mut errors = Vec::new();
    if flag(old, "immutable") {
        if !flag(new, "immutable") {
            errors.push(FieldError::forbidden(&Path::new("immutable"), detail));
        }
        for field in fields {
            if !entries(new, field).eq(entries(old, field)) {
                errors.push(FieldError::forbidden(&Path::new(field), detail));
            }
        }
    }
    errors
}

/// `field` may never change.
pub(super) fn unchanged(new: &Value, old: &Value, field: &str) -> Option<FieldError> {
    (text(new, field) != text(old, field)).then(|| {
        FieldError::invalid(
            &Path::new(field),
            get(new, field).clone(),
            "field is immutable",
        )
    })
}

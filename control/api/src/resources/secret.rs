//! Secret.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::Value;

use super::configmap::{DATA_BYTES_MAX, immutable, unchanged};
use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, empty, entries, get, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "Type",
        "Used to facilitate programmatic handling of secret data.",
    ),
    Column::text(
        "Data",
        "Data contains the secret data. Each key must consist of alphanumeric characters, '-', '_' or '.'.",
    ),
    Column::age(),
];

pub(super) struct Secret;

impl Strategy for Secret {
    fn default(&self, object: &mut Value) {
        default(object, "type", "Opaque");
        // stringData is for writing only: it goes over to data.
        let Some(map) = object.as_object_mut() else {
            return;
        };
        if let Some(Value::Object(texts)) = map.remove("stringData") {
            let data = map.entry("data").or_insert_with(empty);
            if let Some(data) = data.as_object_mut() {
                data.extend(texts.into_iter().map(|(key, text)| {
                    (
                        key,
                        STANDARD.encode(text.as_str().unwrap_or_default()).into(),
                    )
                }));
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("data");
        let mut total_bytes = 0;
        for (key, value) in entries(object, "data") {
            let at = path.key(key);
            errors.extend(
                meta::config_map_key(key)
                    .into_iter()
                    .map(|text| FieldError::invalid(&at, key.as_str(), text)),
            );
            total_bytes += value.as_str().unwrap_or_default().len() / 4 * 3;
        }
        if total_bytes > DATA_BYTES_MAX {
            errors.push(FieldError::too_long(&path, DATA_BYTES_MAX));
        }
        of_type(object, &path, &mut errors);
        errors
    }

    fn validate_update(&self, _subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors: Vec<FieldError> = unchanged(new, old, "type").into_iter().collect();
        errors.extend(immutable(new, old, &["data"]));
        errors.extend(self.validate(new));
        errors
    }

    fn selectable_field(&self, object: &Value, field: &str) -> Option<String> {
        (field == "type").then(|| text(object, "type").to_owned())
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["type"]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            meta::name(object).into(),
            text(object, "type").into(),
            entries(object, "data").count().into(),
            table::age(object, now).into(),
        ]
    }
}

/// What a secret of a known type must have.
fn of_type(object: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let data = get(object, "data");
    let mut require = |keys: &[&str]| {
        if keys.iter().all(|key| data.get(key).is_none()) {
            errors.extend(
                keys.iter()
                    .map(|key| FieldError::required(&path.key(key), "")),
            );
        }
    };
    let config = match text(object, "type") {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if meta::annotation(object, key).is_none_or(str::is_empty) {
                let metadata = Path::new("metadata");
                errors.push(FieldError::required(
                    &metadata.child("annotations").key(key),
                    "",
                ));
            }
            return;
        }
        "kubernetes.io/dockercfg" => ".dockercfg",
        "kubernetes.io/dockerconfigjson" => ".dockerconfigjson",
        "kubernetes.io/basic-auth" => return require(&["username", "password"]),
        "kubernetes.io/ssh-auth" => return require(&["ssh-privatekey"]),
        "kubernetes.io/tls" => {
            require(&["tls.crt"]);
            return require(&["tls.key"]);
        }
        _ => return,
    };
    require(&[config]);
    if let Some(text) = data.get(config).and_then(Value::as_str) {
        let decoded = STANDARD.decode(text).unwrap_or_default();
        if let Err(e) = serde_json::from_slice::<serde_json::Map<String, Value>>(&decoded) {
            errors.push(FieldError::invalid(
                &path.key(config),
                "<secret contents redacted>",
                e.to_string(),
            ));
        }
    }
}

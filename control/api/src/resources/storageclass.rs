//! StorageClass of storage.k8s.io.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, entries, flag, get, list, text},
};

/// The class that claims without one get says so with this.
const DEFAULT_ANNOTATIONS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];
const PARAMETERS_MAX: usize = 512;
const PARAMETERS_BYTES_MAX: usize = 256 * 1024;

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Provisioner", "What makes volumes of this class."),
    Column::text(
        "ReclaimPolicy",
        "What becomes of volumes of this class when their claims are gone.",
    ),
    Column::text(
        "VolumeBindingMode",
        "When volumes of this class are made and bound.",
    ),
    Column::text(
        "AllowVolumeExpansion",
        "Whether claims of this class may grow.",
    ),
    Column::age(),
];

/// Whether claims that name no class get this one.
pub fn is_default_class(class: &Value) -> bool {
    DEFAULT_ANNOTATIONS
        .iter()
        .any(|key| meta::annotation(class, key) == Some("true"))
}

pub(super) struct StorageClass;

impl Strategy for StorageClass {
    fn default(&self, class: &mut Value) {
        default(class, "reclaimPolicy", "Delete");
        default(class, "volumeBindingMode", "Immediate");
    }

    fn validate(&self, class: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (provisioner, path) = (text(class, "provisioner"), Path::new("provisioner"));
        if provisioner.is_empty() {
            errors.push(FieldError::required(&path, provisioner));
        } else {
            let details = meta::qualified_name(&provisioner.to_lowercase());
            errors.extend(
                details
                    .into_iter()
                    .map(|detail| FieldError::invalid(&path, provisioner, detail)),
            );
        }
        let path = Path::new("parameters");
        let (count, bytes) =
            entries(class, "parameters").fold((0, 0), |(count, bytes), (key, value)| {
                (
                    count + 1,
                    bytes + key.len() + value.as_str().map_or(0, str::len),
                )
            });
        if count > PARAMETERS_MAX {
            errors.push(FieldError::too_long(&path, PARAMETERS_MAX));
        } else if bytes > PARAMETERS_BYTES_MAX {
            errors.push(FieldError::too_long(&path, PARAMETERS_BYTES_MAX));
        }
        for (key, value) in entries(class, "parameters") {
            if key.is_empty() {
                let detail = "field can not be empty.";
                errors.push(FieldError::invalid(&path, value.clone(), detail));
            }
        }
        let allowed: [(&str, &[&str]); 2] = [
            ("reclaimPolicy", &["Delete", "Retain"]),
            ("volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]),
        ];
        for (field, supported) in allowed {
            let value = text(class, field);
            if !supported.contains(&value) {
                errors.push(FieldError::not_supported(
                    &Path::new(field),
                    value,
                    supported,
                ));
            }
        }
        let path = Path::new("allowedTopologies");
        for (i, term) in list(class, "allowedTopologies").iter().enumerate() {
            let at = path.index(i);
            let at = at.child("matchLabelExpressions");
            for (i, wanted) in list(term, "matchLabelExpressions").iter().enumerate() {
                let at = at.index(i);
                if list(wanted, "values").is_empty() {
                    errors.push(FieldError::required(&at.child("values"), ""));
                }
                let (key, at) = (text(wanted, "key"), at.child("key"));
                let details = meta::qualified_name(key);
                errors.extend(
                    details
                        .into_iter()
                        .map(|detail| FieldError::invalid(&at, key, detail)),
                );
            }
        }
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            if get(new, field) != get(old, field) {
                let detail = format!("updates to {field} are forbidden.");
                errors.push(FieldError::forbidden(&Path::new(field), detail));
            }
        }
        let field = "volumeBindingMode";
        if get(new, field) != get(old, field) {
            let mode = get(new, field).clone();
            errors.push(FieldError::invalid(
                &Path::new(field),
                mode,
                "field is immutable",
            ));
        }
        errors
    }

    fn row(&self, class: &Value, now: Timestamp) -> Vec<Value> {
        let name = match (meta::name(class), is_default_class(class)) {
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        vec![
            name.into(),
            text(class, "provisioner").into(),
            text(class, "reclaimPolicy").into(),
            text(class, "volumeBindingMode").into(),
            flag(class, "allowVolumeExpansion").into(),
            table::age(class, now).into(),
        ]
    }
}

//! `metav1.ObjectMeta` of a JSON object: reading it, names, and what makes it valid.

mod names;

use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value};

use crate::{FieldError, Resource, field::Path};

pub use names::{
    config_map_key, dns1035_label, dns1123_label, dns1123_subdomain, env_var_name, label_value,
    mask_trailing_dash, path_segment_name, qualified_name,
};

/// All annotations together may have this many bytes.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// Letters of generated names: no vowels and nothing that looks like another.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LEN: usize = 5;
/// A name may have 63 bytes where it becomes a label, so a generated one never has more.
const GENERATED_PREFIX_LEN_MAX: usize = 63 - SUFFIX_LEN;

/// A string of metadata; empty when it is not there.
pub fn str_of<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get("metadata")
        .and_then(|metadata| metadata.get(field))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    str_of(object, "name")
}

/// `metadata.generateName`.
pub fn generate_name(object: &Value) -> &str {
    str_of(object, "generateName")
}

/// `metadata.namespace`.
pub fn namespace(object: &Value) -> &str {
    str_of(object, "namespace")
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    str_of(object, "uid")
}

/// `metadata.resourceVersion`.
pub fn resource_version(object: &Value) -> &str {
    str_of(object, "resourceVersion")
}

/// `metadata.generation`; 0 when it is not there.
pub fn generation(object: &Value) -> i64 {
    object
        .pointer("/metadata/generation")
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

/// `metadata.creationTimestamp`.
pub fn creation_timestamp(object: &Value) -> Option<Timestamp> {
    parse_time(str_of(object, "creationTimestamp"))
}

/// `metadata.deletionTimestamp`.
pub fn deletion_timestamp(object: &Value) -> Option<Timestamp> {
    parse_time(str_of(object, "deletionTimestamp"))
}

/// Whether the object is being deleted.
pub fn is_deleting(object: &Value) -> bool {
    !str_of(object, "deletionTimestamp").is_empty()
}

/// `metadata.deletionGracePeriodSeconds`.
pub fn deletion_grace_period_seconds(object: &Value) -> Option<i64> {
    object
        .pointer("/metadata/deletionGracePeriodSeconds")
        .and_then(Value::as_i64)
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    list_of(object, "finalizers")
        .iter()
        .filter_map(Value::as_str)
}

/// `metadata.ownerReferences`.
pub fn owner_references(object: &Value) -> &[Value] {
    list_of(object, "ownerReferences")
}

fn list_of<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object
        .get("metadata")
        .and_then(|metadata| metadata.get(field))
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// `metadata.labels`.
pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.get("labels")?.as_object()
}

/// `metadata.annotations`.
pub fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.get("annotations")?.as_object()
}

/// One label.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object)?.get(key)?.as_str()
}

/// One annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    annotations(object)?.get(key)?.as_str()
}

/// The metadata to write to; made when it is not there.
///
/// # Panics
/// When the object is no JSON object; [`crate::decode::check`] has made sure of that.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    child_object(object, "metadata")
}

/// An object below an object, made (or put in the place of something that is none) when it is not there.
pub(crate) fn child_object<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    let map = object
        .as_object_mut()
        .expect("decoded objects are JSON objects");
    let child = map
        .entry(field)
        .or_insert_with(|| Value::Object(Map::new()));
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    child.as_object_mut().expect("was just made an object")
}

/// A name from a `generateName` and five random bytes.
pub fn generated_name(prefix: &str, random: [u8; SUFFIX_LEN]) -> String {
    let mut end = prefix.len().min(GENERATED_PREFIX_LEN_MAX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = prefix[..end].to_owned();
    name.extend(
        random
            .iter()
            .map(|byte| char::from(SUFFIX_ALPHABET[usize::from(*byte) % SUFFIX_ALPHABET.len()])),
    );
    name
}

/// `metav1.Time`: RFC 3339 with whole seconds.
pub fn format_time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// `metav1.MicroTime`: RFC 3339 with six digits.
pub fn format_micro_time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string()
}

/// Reads an RFC 3339 time; `None` when it is empty or none.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    if text.is_empty() {
        None
    } else {
        text.parse().ok()
    }
}

/// What is wrong with the labels at `path`.
pub fn validate_labels(labels: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        errors.extend(
            qualified_name(key)
                .into_iter()
                .map(|text| FieldError::invalid(path, key.as_str(), text)),
        );
        let value = value.as_str().unwrap_or_default();
        errors.extend(
            label_value(value)
                .into_iter()
                .map(|text| FieldError::invalid(&path.key(key), value, text)),
        );
    }
    errors
}

/// What is wrong with the annotations at `path`.
pub fn validate_annotations(annotations: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut total_bytes = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        let lower = key.to_ascii_lowercase();
        errors.extend(
            qualified_name(&lower)
                .into_iter()
                .map(|text| FieldError::invalid(path, key.as_str(), text)),
        );
        total_bytes += key.len() + value.as_str().unwrap_or_default().len();
    }
    if total_bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long(path, ANNOTATIONS_BYTES_MAX));
    }
    errors
}

/// What is wrong with the metadata of a new object.
pub fn validate_object_meta(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let root = Path::new("metadata");
    let (name, generate_name, namespace) = (name(object), generate_name(object), namespace(object));
    if !generate_name.is_empty() {
        let rule = resource
            .strategy
            .validate_name(&mask_trailing_dash(generate_name));
        let path = root.child("generateName");
        errors.extend(
            rule.into_iter()
                .map(|text| FieldError::invalid(&path, generate_name, text)),
        );
    }
    if name.is_empty() {
        errors.push(FieldError::required(
            &root.child("name"),
            "name or generateName is required",
        ));
    } else {
        let path = root.child("name");
        errors.extend(
            resource
                .strategy
                .validate_name(name)
                .into_iter()
                .map(|text| FieldError::invalid(&path, name, text)),
        );
    }
    let path = root.child("namespace");
    if resource.namespaced {
        if namespace.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else {
            errors.extend(
                dns1123_label(namespace)
                    .into_iter()
                    .map(|text| FieldError::invalid(&path, namespace, text)),
            );
        }
    } else if !namespace.is_empty() {
        errors.push(FieldError::forbidden(&path, "not allowed on this type"));
    }
    if generation(object) < 0 {
        let path = root.child("generation");
        errors.push(FieldError::invalid(
            &path,
            generation(object),
            "must be greater than or equal to 0",
        ));
    }
    validate_common(object, &root, &mut errors);
    errors
}

fn validate_common(object: &Value, root: &Path<'_>, errors: &mut Vec<FieldError>) {
    let Some(metadata) = object.get("metadata") else {
        return;
    };
    if let Some(labels) = metadata.get("labels") {
        errors.extend(validate_labels(labels, &root.child("labels")));
    }
    if let Some(annotations) = metadata.get("annotations") {
        errors.extend(validate_annotations(
            annotations,
            &root.child("annotations"),
        ));
    }
    validate_owner_references(object, root, errors);
    let path = root.child("finalizers");
    let (mut has_orphan, mut has_foreground) = (false, false);
    for (i, finalizer) in finalizers(object).enumerate() {
        let at = path.index(i);
        errors.extend(
            qualified_name(finalizer)
                .into_iter()
                .map(|text| FieldError::invalid(&at, finalizer, text)),
        );
        match finalizer {
            "orphan" => has_orphan = true,
            "foregroundDeletion" => has_foreground = true,
            finalizer if !finalizer.contains('/') && finalizer != "kubernetes" => {
                errors.push(FieldError::invalid(
                    &at,
                    finalizer,
                    "name is neither a standard finalizer name nor is it fully qualified",
                ))
            }
            _ => {}
        }
    }
    if has_orphan && has_foreground {
        let all: Vec<&str> = finalizers(object).collect();
        errors.push(FieldError::invalid(
            &path,
            all,
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
}

fn validate_owner_references(object: &Value, root: &Path<'_>, errors: &mut Vec<FieldError>) {
    let list = root.child("ownerReferences");
    let mut controller: Option<&str> = None;
    for (i, owner) in owner_references(object).iter().enumerate() {
        let path = list.index(i);
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default();
        let version = text("apiVersion");
        if version.split('/').count() > 2 || version.rsplit('/').next().is_none_or(str::is_empty) {
            errors.push(FieldError::invalid(
                &path.child("apiVersion"),
                version,
                "version must not be empty",
            ));
        }
        for (field, detail) in [
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(field).is_empty() {
                errors.push(FieldError::invalid(&path.child(field), text(field), detail));
            }
        }
        if version == "v1" && text("kind") == "Event" {
            errors.push(FieldError::invalid(
                &path,
                owner.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner
            .get("controller")
            .and_then(Value::as_bool)
            .unwrap_or(false)
        {
            let name = text("name");
            if let Some(first) = controller {
                errors.push(FieldError::invalid(
                    &list,
                    Value::Array(owner_references(object).to_vec()),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} \
                         and {name}"
                    ),
                ));
            } else {
                controller = Some(name);
            }
        }
    }
}

/// What is wrong with a change of metadata.
pub fn validate_object_meta_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let root = Path::new("metadata");
    if is_deleting(old) {
        let added: Vec<String> = finalizers(new)
            .filter(|finalizer| !finalizers(old).any(|kept| kept == *finalizer))
            .map(crate::field::quote)
            .collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                &root.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.join(", ")
                ),
            ));
        }
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
    ] {
        let (new, old) = (str_of(new, field), str_of(old, field));
        if new != old {
            errors.push(FieldError::invalid(
                &root.child(field),
                new,
                "field is immutable",
            ));
        }
    }
    if deletion_grace_period_seconds(new) != deletion_grace_period_seconds(old) {
        let shown = deletion_grace_period_seconds(new).map_or(Value::Null, Value::from);
        errors.push(FieldError::invalid(
            &root.child("deletionGracePeriodSeconds"),
            shown,
            "field is immutable",
        ));
    }
    if generation(new) < generation(old) {
        errors.push(FieldError::invalid(
            &root.child("generation"),
            generation(new),
            "must not be decremented",
        ));
    }
    validate_common(new, &root, &mut errors);
    errors
}

#[cfg(test)]
mod tests;

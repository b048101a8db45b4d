//! PersistentVolumeClaim of the core group.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::persistentvolume::{
    access_modes, class_name, class_of, modes_cell, or_unset, positive, volume_mode,
};
use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    quantity::Quantity,
    table::{self, Column},
    value::{default, get, list, remove, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Status", "Whether the claim is pending, bound or lost."),
    Column::text("Volume", "The volume that the claim is bound to."),
    Column::text("Capacity", "How much the volume holds."),
    Column::text("Access Modes", "The ways the volume can be mounted."),
    Column::text("StorageClass", "The class that is asked for."),
    Column::text(
        "VolumeAttributesClass",
        "The class of the volume's attributes.",
    ),
    Column::age(),
    Column::text(
        "VolumeMode",
        "Whether it is a file system or a block device.",
    )
    .wide(),
];

/// The `spec` of a claim, or of the template of one.
pub(super) fn validate_spec(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    super::pod::label_selector(get(spec, "selector"), &path.child("selector"), errors);
    if list(spec, "accessModes").is_empty() {
        let detail = "at least 1 access mode is required";
        errors.push(FieldError::required(&path.child("accessModes"), detail));
    }
    access_modes(spec, path, errors);
    let at = path.child("resources");
    let at = at.key("storage");
    match get(get(spec, "resources"), "requests").get("storage") {
        None => errors.push(FieldError::required(&at, "")),
        Some(amount) => positive(amount, &at, errors),
    }
    class_name(spec, path, errors);
    volume_mode(spec, path, errors);
    for field in ["dataSource", "dataSourceRef"] {
        let Some(source) = spec.get(field).filter(|source| !source.is_null()) else {
            continue;
        };
        let at = path.child(field);
        for required in ["name", "kind"] {
            if text(source, required).is_empty() {
                errors.push(FieldError::required(&at.child(required), ""));
            }
        }
        let kind = text(source, "kind");
        if text(source, "apiGroup").is_empty() && kind != "PersistentVolumeClaim" {
            let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.push(FieldError::invalid(&at, kind, detail));
        }
    }
}

fn requested(claim: &Value) -> Option<Quantity> {
    let requests = get(get(get(claim, "spec"), "resources"), "requests");
    Quantity::parse(text(requests, "storage")).ok()
}

/// A `spec` without what may change in it.
fn fixed(claim: &Value) -> Value {
    let mut spec = get(claim, "spec").clone();
    remove(&mut spec, "volumeAttributesClassName");
    if let Some(requests) = spec.pointer_mut("/resources/requests") {
        remove(requests, "storage");
    }
    spec
}

fn validate_change(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let mut errors = Vec::new();
    let (mut was, is) = (fixed(old), fixed(new));
    // The binder names the volume, and a default class is given to those that have waited for one.
    for field in ["volumeName", "storageClassName"] {
        if get(&was, field).is_null()
            || text(&was, "volumeName").is_empty() && field == "volumeName"
        {
            crate::value::keep(&mut was, &is, field);
        }
    }
    let is_bound = text(get(old, "status"), "phase") == "Bound";
    if was != is || (!is_bound && requested(new) != requested(old)) {
        let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                      bound claims";
        errors.push(FieldError::forbidden(&path, detail));
    }
    let at = path.child("resources");
    let at = at.child("requests");
    let at = at.child("storage");
    if let (Some(new_amount), Some(old_amount)) = (requested(new), requested(old))
        && new_amount < old_amount
    {
        let held = Quantity::parse(text(get(get(old, "status"), "capacity"), "storage"));
        // A larger size that was never reached may be taken back, down to what there is.
        if !held.is_ok_and(|held| new_amount > held) {
            let detail = "field can not be less than status.capacity";
            errors.push(FieldError::forbidden(&at, detail));
        }
    }
    errors
}

pub(super) struct PersistentVolumeClaim;

impl Strategy for PersistentVolumeClaim {
    fn default(&self, claim: &mut Value) {
        if let Some(spec) = claim.get_mut("spec").filter(|spec| spec.is_object()) {
            default_spec(spec);
        }
    }

    fn prepare_create(&self, claim: &mut Value) {
        claim["status"] = json!({"phase": "Pending"});
    }

    fn validate(&self, claim: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        validate_spec(get(claim, "spec"), &Path::new("spec"), &mut errors);
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        validate_change(new, old)
    }

    fn row(&self, claim: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(claim, "spec"), get(claim, "status"));
        let phase = if meta::is_deleting(claim) {
            "Terminating"
        } else {
            text(status, "phase")
        };
        let is_bound = !text(spec, "volumeName").is_empty();
        let held = if is_bound { status } else { &Value::Null };
        vec![
            meta::name(claim).into(),
            phase.into(),
            text(spec, "volumeName").into(),
            text(get(held, "capacity"), "storage").into(),
            modes_cell(list(held, "accessModes")),
            class_of(claim).into(),
            or_unset(spec, "volumeAttributesClassName").into(),
            table::age(claim, now).into(),
            or_unset(spec, "volumeMode").into(),
        ]
    }
}

/// Of a claim, or of the template of one.
pub(super) fn default_spec(spec: &mut Value) {
    default(spec, "volumeMode", "Filesystem");
    // The older field and its successor say the same.
    for (from, to) in [
        ("dataSource", "dataSourceRef"),
        ("dataSourceRef", "dataSource"),
    ] {
        let source = get(spec, from).clone();
        if source.is_object() && text(&source, "namespace").is_empty() {
            default(spec, to, source);
        }
    }
}

//! PersistentVolume of the core group, and what it shares with its claims.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::workload;
use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    quantity::Quantity,
    table::{self, Column},
    value::{default, entries, get, list, text},
};

/// The annotation that named a class before the field did; it still wins.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Capacity", "How much the volume holds."),
    Column::text("Access Modes", "The ways the volume can be mounted."),
    Column::text(
        "Reclaim Policy",
        "What becomes of the volume when its claim is gone.",
    ),
    Column::text(
        "Status",
        "Whether the volume is available, bound or released.",
    ),
    Column::text("Claim", "The claim that the volume is bound to."),
    Column::text("StorageClass", "The class of the volume."),
    Column::text(
        "VolumeAttributesClass",
        "The class of the volume's attributes.",
    ),
    Column::text("Reason", "Why the volume is in its state."),
    Column::age(),
    Column::text(
        "VolumeMode",
        "Whether it is a file system or a block device.",
    )
    .wide(),
];

const ACCESS_MODES: &[(&str, &str)] = &[
    ("ReadOnlyMany", "ROX"),
    ("ReadWriteMany", "RWX"),
    ("ReadWriteOnce", "RWO"),
    ("ReadWriteOncePod", "RWOP"),
];
/// The order in which access modes are printed.
const PRINTED: &[&str] = &[
    "ReadWriteOnce",
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOncePod",
];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const RECLAIM_POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];

/// `accessModes` of a volume or a claim.
pub(super) fn access_modes(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let at = path.child("accessModes");
    let modes: Vec<&str> = list(spec, "accessModes")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let supported: Vec<&str> = ACCESS_MODES.iter().map(|(mode, _)| *mode).collect();
    for mode in &modes {
        if !supported.contains(mode) {
            errors.push(FieldError::not_supported(&at, *mode, &supported));
        }
    }
    if modes.contains(&"ReadWriteOncePod") && modes.iter().any(|mode| *mode != "ReadWriteOncePod") {
        let detail = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(&at, detail));
    }
}

/// `volumeMode` of a volume or a claim.
pub(super) fn volume_mode(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mode = text(spec, "volumeMode");
    if !mode.is_empty() && !VOLUME_MODES.contains(&mode) {
        let at = path.child("volumeMode");
        errors.push(FieldError::not_supported(&at, mode, VOLUME_MODES));
    }
}

/// `storageClassName` of a volume or a claim.
pub(super) fn class_name(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        let at = path.child("storageClassName");
        let details = meta::dns1123_subdomain(class);
        errors.extend(
            details
                .into_iter()
                .map(|detail| FieldError::invalid(&at, class, detail)),
        );
    }
}

/// An amount that has to be more than nothing.
pub(super) fn positive(amount: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let shown = amount.as_str().unwrap_or_default();
    if Quantity::parse(shown).is_ok_and(|amount| amount <= Quantity::ZERO) {
        errors.push(FieldError::invalid(
            path,
            shown,
            "must be greater than zero",
        ));
    }
}

/// Access modes as `kubectl get` shows them.
pub(super) fn modes_cell(modes: &[Value]) -> Value {
    let has = |mode: &str| modes.iter().any(|found| found.as_str() == Some(mode));
    let short = |mode: &&str| {
        let found = ACCESS_MODES.iter().find(|(known, _)| known == mode);
        found.map_or("", |(_, short)| short)
    };
    let shown: Vec<&str> = PRINTED.iter().filter(|mode| has(mode)).map(short).collect();
    shown.join(",").into()
}

/// The class of a volume or a claim.
pub(super) fn class_of(object: &Value) -> &str {
    meta::annotation(object, CLASS_ANNOTATION)
        .unwrap_or_else(|| text(get(object, "spec"), "storageClassName"))
}

/// A field that may not be set at all, as `kubectl get` shows it.
pub(super) fn or_unset<'a>(spec: &'a Value, field: &str) -> &'a str {
    match text(spec, field) {
        "" => "<unset>",
        value => value,
    }
}

pub(super) struct PersistentVolume;

/// The part of a `spec` that says what the volume is.
fn source_of(spec: &Value) -> Value {
    let mut source = spec.clone();
    if let Some(fields) = source.as_object_mut() {
        fields.retain(|field, _| is_source(field));
    }
    source
}

/// Fields of `spec` that are no source.
fn is_source(field: &str) -> bool {
    !matches!(
        field,
        "accessModes"
            | "capacity"
            | "claimRef"
            | "mountOptions"
            | "nodeAffinity"
            | "persistentVolumeReclaimPolicy"
            | "storageClassName"
            | "volumeAttributesClassName"
            | "volumeMode"
    )
}

impl Strategy for PersistentVolume {
    fn default(&self, volume: &mut Value) {
        let Some(spec) = volume.get_mut("spec").filter(|spec| spec.is_object()) else {
            return;
        };
        default(spec, "persistentVolumeReclaimPolicy", "Retain");
        default(spec, "volumeMode", "Filesystem");
        super::pod::default_volume_source(spec);
        if let Some(claim) = spec.get_mut("claimRef") {
            default(claim, "kind", "PersistentVolumeClaim");
            default(claim, "apiVersion", "v1");
        }
    }

    fn prepare_create(&self, volume: &mut Value) {
        volume["status"] = json!({"phase": "Pending"});
    }

    fn validate(&self, volume: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(volume, "spec"), Path::new("spec"));
        if list(spec, "accessModes").is_empty() {
            errors.push(FieldError::required(&path.child("accessModes"), ""));
        }
        access_modes(spec, &path, &mut errors);
        let at = path.child("capacity");
        let amounts: Vec<_> = entries(spec, "capacity").collect();
        match amounts.as_slice() {
            [] => errors.push(FieldError::required(&at, "")),
            [(name, amount)] if *name == "storage" => {
                positive(amount, &at.key("storage"), &mut errors);
            }
            _ => {
                let amounts = get(spec, "capacity").clone();
                errors.push(FieldError::not_supported(&at, amounts, &["storage"]));
            }
        }
        let policy = text(spec, "persistentVolumeReclaimPolicy");
        let at = path.child("persistentVolumeReclaimPolicy");
        if !RECLAIM_POLICIES.contains(&policy) {
            errors.push(FieldError::not_supported(&at, policy, RECLAIM_POLICIES));
        }
        if policy == "Recycle" && text(get(spec, "hostPath"), "path") == "/" {
            let detail = "may not be 'recycle' for a hostPath mount of '/'";
            errors.push(FieldError::forbidden(&at, detail));
        }
        super::pod::volume_source(&source_of(spec), &path, &mut errors);
        let affinity = get(spec, "nodeAffinity");
        if !affinity.is_null() {
            let at = path.child("nodeAffinity");
            match affinity.get("required") {
                Some(required) => {
                    super::pod::node_selector(required, &at.child("required"), &mut errors);
                }
                None => {
                    let detail = "must specify required node constraints";
                    errors.push(FieldError::required(&at.child("required"), detail));
                }
            }
        } else if spec.get("local").is_some() {
            let metadata = Path::new("metadata");
            let at = metadata.child("annotations");
            errors.push(FieldError::required(
                &at,
                "Local volume requires node affinity",
            ));
        }
        class_name(spec, &path, &mut errors);
        volume_mode(spec, &path, &mut errors);
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("spec");
        if source_of(get(new, "spec")) != source_of(get(old, "spec")) {
            errors.push(FieldError::forbidden(
                &path.child("persistentvolumesource"),
                "spec.persistentvolumesource is immutable after creation",
            ));
        }
        workload::immutable(new, old, "volumeMode", &mut errors);
        if !get(get(old, "spec"), "nodeAffinity").is_null() {
            workload::immutable(new, old, "nodeAffinity", &mut errors);
        }
        errors
    }

    fn row(&self, volume: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(volume, "spec"), get(volume, "status"));
        let phase = if meta::is_deleting(volume) {
            "Terminating"
        } else {
            text(status, "phase")
        };
        let claim = match spec.get("claimRef") {
            Some(claim) => format!("{}/{}", text(claim, "namespace"), text(claim, "name")),
            None => String::new(),
        };
        vec![
            meta::name(volume).into(),
            text(get(spec, "capacity"), "storage").into(),
            modes_cell(list(spec, "accessModes")),
            text(spec, "persistentVolumeReclaimPolicy").into(),
            phase.into(),
            claim.into(),
            class_of(volume).into(),
            or_unset(spec, "volumeAttributesClassName").into(),
            text(status, "reason").into(),
            table::age(volume, now).into(),
            or_unset(spec, "volumeMode").into(),
        ]
    }
}

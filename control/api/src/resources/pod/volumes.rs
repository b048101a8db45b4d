//! What is wrong with a pod's volumes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    container::Volumes,
    env::{field_ref, resource_field_ref},
    validate::{Errors, rule},
};
use crate::{
    FieldError,
    field::Path,
    meta,
    quantity::Quantity,
    value::{get, integer, list, text},
};

const MODE_MAX: i64 = 0o777;
const MODE_TEXT: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;

const DOWNWARD_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// Checks the volumes, and gives back their names.
pub(super) fn validate<'a>(
    volumes: &'a [Value],
    path: &Path<'_>,
    errors: &mut Errors,
) -> Volumes<'a> {
    let mut names = BTreeSet::new();
    for (i, volume) in volumes.iter().enumerate() {
        let at = path.index(i);
        let before = errors.len();
        source(volume, &at, errors);
        let name = text(volume, "name");
        let at = at.child("name");
        if name.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else {
            rule(meta::dns1123_label(name), &at, name, errors);
        }
        if names.contains(name) {
            errors.push(FieldError::duplicate(&at, name));
        }
        // A volume that is wrong is no volume to mount, as in Kubernetes.
        if errors.len() == before {
            names.insert(name);
        }
    }
    names
}

fn required(object: &Value, field: &str, path: &Path<'_>, errors: &mut Errors) {
    if text(object, field).is_empty() {
        errors.push(FieldError::required(&path.child(field), ""));
    }
}

/// The first of these that a volume has is its type; a further one is too many.
const ORDER: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

fn source(volume: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut count = 0;
    let mut sources: Vec<(&String, &Value)> = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(kind, _)| *kind != "name")
        .collect();
    sources.sort_by_key(|(kind, _)| ORDER.iter().position(|known| known == kind));
    for (kind, source) in sources {
        let at = path.child(kind);
        count += 1;
        if count > 1 {
            errors.push(FieldError::forbidden(
                &at,
                "may not specify more than 1 volume type",
            ));
            continue;
        }
        match kind.as_str() {
            "emptyDir" => empty_dir(source, &at, errors),
            "hostPath" => host_path(source, &at, errors),
            "secret" => {
                required(source, "secretName", &at, errors);
                mode(source, "defaultMode", &at, errors);
                items(source, &at, errors);
            }
            "configMap" => {
                required(source, "name", &at, errors);
                mode(source, "defaultMode", &at, errors);
                items(source, &at, errors);
            }
            "downwardAPI" => {
                mode(source, "defaultMode", &at, errors);
                downward(source, &at, errors);
            }
            "projected" => {
                mode(source, "defaultMode", &at, errors);
                projected(source, &at, errors);
            }
            "nfs" => {
                required(source, "server", &at, errors);
                required(source, "path", &at, errors);
                let file = text(source, "path");
                if !file.is_empty() && !file.starts_with('/') {
                    errors.push(FieldError::invalid(
                        &at.child("path"),
                        file,
                        "must be an absolute path",
                    ));
                }
            }
            "gitRepo" => {
                required(source, "repository", &at, errors);
                let directory = text(source, "directory");
                if !directory.is_empty() {
                    descending_path(directory, &at.child("directory"), errors);
                }
            }
            "persistentVolumeClaim" => required(source, "claimName", &at, errors),
            "csi" => required(source, "driver", &at, errors),
            "flexVolume" => required(source, "driver", &at, errors),
            "iscsi" => {
                required(source, "targetPortal", &at, errors);
                required(source, "iqn", &at, errors);
            }
            "glusterfs" => {
                required(source, "endpoints", &at, errors);
                required(source, "path", &at, errors);
            }
            "rbd" => {
                if list(source, "monitors").is_empty() {
                    errors.push(FieldError::required(&at.child("monitors"), ""));
                }
                required(source, "image", &at, errors);
            }
            "cephfs" if list(source, "monitors").is_empty() => {
                errors.push(FieldError::required(&at.child("monitors"), ""));
            }
            "image" => required(source, "reference", &at, errors),
            _ => {}
        }
    }
    if count == 0 {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
}

fn empty_dir(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    let limit = text(source, "sizeLimit");
    if Quantity::parse(limit).is_ok_and(|limit| limit.is_negative()) {
        let detail = "SizeLimit field must be a valid resource quantity";
        errors.push(FieldError::forbidden(&path.child("sizeLimit"), detail));
    }
}

fn host_path(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    let file = text(source, "path");
    if file.is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
        return;
    }
    no_backsteps(file, &path.child("path"), errors);
    let supported = [
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    let type_ = text(source, "type");
    if !supported.contains(&type_) {
        errors.push(FieldError::not_supported(
            &path.child("type"),
            type_,
            &supported,
        ));
    }
}

fn mode(object: &Value, field: &str, path: &Path<'_>, errors: &mut Errors) {
    if let Some(mode) = integer(object, field)
        && !(0..=MODE_MAX).contains(&mode)
    {
        errors.push(FieldError::invalid(&path.child(field), mode, MODE_TEXT));
    }
}

fn items(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("items");
    for (i, item) in list(source, "items").iter().enumerate() {
        let at = at.index(i);
        required(item, "key", &at, errors);
        let file = text(item, "path");
        if file.is_empty() {
            errors.push(FieldError::required(&at.child("path"), ""));
        }
        local_path(file, &at.child("path"), errors);
        mode(item, "mode", &at, errors);
    }
}

fn downward(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("items");
    for (i, item) in list(source, "items").iter().enumerate() {
        let at = at.index(i);
        let file = text(item, "path");
        if file.is_empty() {
            errors.push(FieldError::required(&at.child("path"), ""));
        }
        local_path(file, &at.child("path"), errors);
        match (item.get("fieldRef"), item.get("resourceFieldRef")) {
            (Some(field), None) => field_ref(field, DOWNWARD_FIELDS, &at.child("fieldRef"), errors),
            (None, Some(resource)) => {
                resource_field_ref(resource, true, &at.child("resourceFieldRef"), errors);
            }
            (Some(_), Some(_)) => {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(&at, "resource", detail));
            }
            (None, None) => {
                errors.push(FieldError::required(
                    &at,
                    "one of fieldRef and resourceFieldRef is required",
                ));
            }
        }
        mode(item, "mode", &at, errors);
    }
}

fn projected(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("sources");
    let mut paths = BTreeSet::new();
    for (i, part) in list(source, "sources").iter().enumerate() {
        let at = at.index(i);
        let mut count = 0;
        for (kind, part) in part.as_object().into_iter().flatten() {
            let at = at.child(kind);
            count += 1;
            if count > 1 {
                errors.push(FieldError::forbidden(
                    &at,
                    "may not specify more than 1 volume type",
                ));
            }
            match kind.as_str() {
                "secret" | "configMap" => {
                    required(part, "name", &at, errors);
                    items(part, &at, errors);
                }
                "downwardAPI" => downward(part, &at, errors),
                "serviceAccountToken" => token(part, &at, errors),
                _ => {}
            }
            let own = if kind == "serviceAccountToken" {
                std::slice::from_ref(part)
            } else {
                list(part, "items")
            };
            for item in own {
                let file = text(item, "path");
                if !file.is_empty() && !paths.insert(file) {
                    let detail = format!("conflicting duplicate paths: {file}");
                    errors.push(FieldError::invalid(&at, get(part, "name").clone(), detail));
                }
            }
        }
    }
}

fn token(token: &Value, path: &Path<'_>, errors: &mut Errors) {
    let seconds = integer(token, "expirationSeconds").unwrap_or_default();
    let at = path.child("expirationSeconds");
    if seconds < TOKEN_SECONDS_MIN {
        errors.push(FieldError::invalid(
            &at,
            seconds,
            "may not specify a duration less than 10 minutes",
        ));
    }
    if seconds > TOKEN_SECONDS_MAX {
        errors.push(FieldError::invalid(
            &at,
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    let file = text(token, "path");
    if file.is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
    } else {
        local_path(file, &path.child("path"), errors);
    }
}

fn no_backsteps(file: &str, path: &Path<'_>, errors: &mut Errors) {
    if file.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, file, "must not contain '..'"));
    }
}

/// A path that stays below where it starts.
pub(super) fn descending_path(file: &str, path: &Path<'_>, errors: &mut Errors) {
    if file.starts_with('/') {
        errors.push(FieldError::invalid(path, file, "must be a relative path"));
    }
    no_backsteps(file, path, errors);
}

/// A descending path that also keeps clear of the names that atomic updates use.
fn local_path(file: &str, path: &Path<'_>, errors: &mut Errors) {
    descending_path(file, path, errors);
    if file.starts_with("..") && !file.starts_with("../") && file != ".." {
        errors.push(FieldError::invalid(path, file, "must not start with '..'"));
    }
}

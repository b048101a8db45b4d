//! What is wrong with how a container mounts the pod's volumes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    validate::Errors,
    volumes::{Volumes, descending_path, has_backsteps},
};
use crate::{
    FieldError,
    field::Path,
    value::{flag, get, is_set, list, text},
};

/// `volumeMounts` and `volumeDevices` of a container.
pub(super) fn mounts(
    container: &Value,
    volumes: &Volumes<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let list_path = path.child("volumeMounts");
    let devices = list(container, "volumeDevices");
    let mut paths = BTreeSet::new();
    for (i, mount) in list(container, "volumeMounts").iter().enumerate() {
        let at = list_path.index(i);
        let name = text(mount, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&at.child("name"), ""));
        }
        if !volumes.contains_key(name) {
            errors.push(FieldError::not_found(&at.child("name"), name));
        }
        let mount_path = text(mount, "mountPath");
        let mut bad_path = |detail| {
            errors.push(FieldError::invalid(
                &at.child("mountPath"),
                mount_path,
                detail,
            ))
        };
        if !paths.insert(mount_path) {
            bad_path("must be unique");
        }
        if devices
            .iter()
            .any(|device| text(device, "devicePath") == mount_path)
        {
            bad_path("must not already exist as a path in volumeDevices");
        }
        if mount_path.is_empty() {
            errors.push(FieldError::required(&at.child("mountPath"), ""));
        }
        if devices.iter().any(|device| text(device, "name") == name) {
            let detail = "must not already exist in volumeDevices";
            errors.push(FieldError::invalid(&at.child("name"), name, detail));
        }
        if is_set(mount, "subPath") && is_set(mount, "subPathExpr") {
            let detail = "subPathExpr and subPath are mutually exclusive";
            let expr = text(mount, "subPathExpr");
            errors.push(FieldError::invalid(&at.child("subPathExpr"), expr, detail));
        }
        // Kubernetes leaves out the index here, and below for propagation.
        for field in ["subPath", "subPathExpr"] {
            let sub_path = text(mount, field);
            if !sub_path.is_empty() {
                descending_path(sub_path, &list_path.child(field), errors);
            }
        }
        propagation(container, mount, &list_path, errors);
        recursive_read_only(mount, &list_path, errors);
    }
    for (i, device) in devices.iter().enumerate() {
        let at = path.child("volumeDevices");
        volume_device(
            container,
            &devices[..i],
            device,
            volumes,
            &at.index(i),
            errors,
        );
    }
}

fn propagation(container: &Value, mount: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(mode) = mount.get("mountPropagation").and_then(Value::as_str) else {
        return;
    };
    let at = path.child("mountPropagation");
    let supported = ["Bidirectional", "HostToContainer", "None"];
    if !supported.contains(&mode) {
        errors.push(FieldError::not_supported(&at, mode, &supported));
    }
    if mode == "Bidirectional" && !flag(get(container, "securityContext"), "privileged") {
        let detail = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(FieldError::forbidden(&at, detail));
    }
}

fn recursive_read_only(mount: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(mode) = mount.get("recursiveReadOnly").and_then(Value::as_str) else {
        return;
    };
    let at = path.child("recursiveReadOnly");
    match mode {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !flag(mount, "readOnly") {
                let detail = "may only be specified when readOnly is true";
                errors.push(FieldError::forbidden(&at, detail));
            }
            if !matches!(text(mount, "mountPropagation"), "" | "None") {
                let detail = "may only be specified when mountPropagation is None or not specified";
                errors.push(FieldError::forbidden(&at, detail));
            }
        }
        mode => {
            let supported = ["Disabled", "Enabled", "IfPossible"];
            errors.push(FieldError::not_supported(&at, mode, &supported));
        }
    }
}

/// `before` are the devices of the same container that stand before this one.
fn volume_device(
    container: &Value,
    before: &[Value],
    device: &Value,
    volumes: &Volumes<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let (name_at, path_at) = (path.child("name"), path.child("devicePath"));
    let (name, device_path) = (text(device, "name"), text(device, "devicePath"));
    let mounts = list(container, "volumeMounts");
    if name.is_empty() {
        errors.push(FieldError::required(&name_at, ""));
    }
    let mut bad_name = |detail| errors.push(FieldError::invalid(&name_at, name, detail));
    if !name.is_empty() && before.iter().any(|other| text(other, "name") == name) {
        bad_name("must be unique");
    }
    match volumes.get(name) {
        None => errors.push(FieldError::not_found(&name_at, name)),
        Some(volume)
            if volume.get("persistentVolumeClaim").is_none()
                && volume.get("ephemeral").is_none() =>
        {
            bad_name(
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            );
        }
        Some(_) => {}
    }
    if device_path.is_empty() {
        errors.push(FieldError::required(&path_at, ""));
    }
    if before
        .iter()
        .any(|other| text(other, "devicePath") == device_path)
    {
        errors.push(FieldError::invalid(&path_at, device_path, "must be unique"));
    }
    if has_backsteps(device_path) {
        let detail = "can not contain backsteps ('..')";
        errors.push(FieldError::invalid(&path_at, device_path, detail));
    }
    if mounts.iter().any(|mount| text(mount, "name") == name) {
        let detail = "must not already exist in volumeMounts";
        errors.push(FieldError::invalid(&name_at, name, detail));
    }
    if mounts
        .iter()
        .any(|mount| text(mount, "mountPath") == device_path)
    {
        let detail = "must not already exist as a path in volumeMounts";
        errors.push(FieldError::invalid(&path_at, device_path, detail));
    }
}

//! What is wrong with a pod's volumes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    env::{field_ref, resource_field_ref},
    scheduling::label_selector,
    validate::{Errors, range, rule},
};
use crate::{
    FieldError,
    field::Path,
    meta,
    quantity::Quantity,
    value::{flag, get, integer, list, text},
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

/// The volumes of a pod, by name.
pub(super) type Volumes<'a> = BTreeMap<&'a str, &'a Value>;

/// Checks the volumes of the pod called `pod`, and gives them back by name.
pub(super) fn validate<'a>(
    pod: &str,
    volumes: &'a [Value],
    path: &Path<'_>,
    errors: &mut Errors,
) -> Volumes<'a> {
    let mut names = Volumes::new();
    for (i, volume) in volumes.iter().enumerate() {
        let at = path.index(i);
        let before = errors.len();
        source(pod, volume, &at, errors);
        let name = text(volume, "name");
        let at = at.child("name");
        if name.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else {
            rule(meta::dns1123_label(name), &at, name, errors);
        }
        if names.contains_key(name) {
            errors.push(FieldError::duplicate(&at, name));
        }
        // A volume that is wrong is no volume to mount, as in Kubernetes.
        if errors.len() == before {
            names.insert(name, volume);
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

fn source(pod: &str, volume: &Value, path: &Path<'_>, errors: &mut Errors) {
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
                if !file.starts_with('/') {
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
            "csi" => csi(source, &at, errors),
            "local" => {
                required(source, "path", &at, errors);
                no_backsteps(text(source, "path"), &at.child("path"), errors);
            }
            "ephemeral" => ephemeral(pod, volume, source, path, errors),
            "flexVolume" => flex(source, &at, errors),
            "iscsi" => iscsi(volume, source, path, errors),
            "fc" => fibre_channel(source, &at, errors),
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
            "image" => {
                required(source, "reference", &at, errors);
                let policy = text(source, "pullPolicy");
                let supported = ["Always", "IfNotPresent", "Never"];
                if policy.is_empty() {
                    errors.push(FieldError::required(&at.child("pullPolicy"), ""));
                } else if !supported.contains(&policy) {
                    let at = at.child("pullPolicy");
                    errors.push(FieldError::not_supported(&at, policy, &supported));
                }
            }
            kind => {
                for (_, field) in OF_CLOUDS.iter().filter(|(name, _)| *name == kind) {
                    required(source, field, &at, errors);
                }
            }
        }
    }
    if count == 0 {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
}

/// What a PersistentVolume is; `volume` holds nothing but its one source.
pub(in crate::resources) fn persistent(volume: &Value, path: &Path<'_>, errors: &mut Errors) {
    source("", volume, path, errors);
    if let Some(csi) = volume.get("csi") {
        required(csi, "volumeHandle", &path.child("csi"), errors);
    }
}

/// Fields that volumes of clouds cannot be without.
const OF_CLOUDS: &[(&str, &str)] = &[
    ("gcePersistentDisk", "pdName"),
    ("awsElasticBlockStore", "volumeID"),
    ("cinder", "volumeID"),
    ("azureFile", "secretName"),
    ("azureFile", "shareName"),
    ("azureDisk", "diskName"),
    ("azureDisk", "diskURI"),
    ("vsphereVolume", "volumePath"),
    ("photonPersistentDisk", "pdID"),
    ("portworxVolume", "volumeID"),
    ("quobyte", "registry"),
    ("quobyte", "volume"),
    ("storageos", "volumeName"),
    ("scaleIO", "gateway"),
    ("scaleIO", "system"),
    ("scaleIO", "volumeName"),
];

/// As `ValidateCSIDriverName`.
pub(in crate::resources) fn driver_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    const DRIVER_BYTES_MAX: usize = 63;
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    if name.len() > DRIVER_BYTES_MAX {
        errors.push(FieldError::too_long(path, DRIVER_BYTES_MAX));
    }
    rule(
        meta::dns1123_subdomain(&name.to_ascii_lowercase()),
        path,
        name,
        errors,
    );
}

fn csi(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    driver_name(text(source, "driver"), &path.child("driver"), errors);
    if let Some(reference) = source.get("nodePublishSecretRef") {
        let at = path.child("nodePublishSecretRef");
        required(reference, "name", &at, errors);
    }
}

fn ephemeral(pod: &str, volume: &Value, source: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("ephemeral");
    let at = at.child("volumeClaimTemplate");
    let Some(template) = source.get("volumeClaimTemplate") else {
        errors.push(FieldError::required(&at, ""));
        return;
    };
    let metadata = at.child("metadata");
    let allowed = ["annotations", "labels"];
    for (field, _) in crate::value::entries(template, "metadata") {
        if !allowed.contains(&field.as_str()) {
            let detail = "cannot be set for an ephemeral volume";
            errors.push(FieldError::forbidden(&metadata.child(field), detail));
        }
    }
    let spec = get(template, "spec");
    crate::resources::persistentvolumeclaim::validate_spec(spec, &at.child("spec"), errors);
    let name = text(volume, "name");
    if !pod.is_empty() && !name.is_empty() {
        let claim = format!("{pod}-{name}");
        for detail in meta::dns1123_subdomain(&claim) {
            let detail = format!("PVC name {}: {detail}", crate::field::quote(&claim));
            errors.push(FieldError::invalid(&path.child("name"), name, detail));
        }
    }
}

fn flex(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    required(source, "driver", path, errors);
    let at = path.child("options");
    for (key, _) in crate::value::entries(source, "options") {
        let namespace = key
            .split('/')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        let is_reserved = ["kubernetes.io", "k8s.io"].iter().any(|reserved| {
            namespace
                .strip_suffix(reserved)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        });
        if is_reserved {
            let detail = "kubernetes.io and k8s.io namespaces are reserved";
            errors.push(FieldError::invalid(&at.key(key), key.as_str(), detail));
        }
    }
}

/// What keeps a text from being the name of an iSCSI node.
fn iscsi_name(name: &str) -> Option<&'static str> {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_right = if let Some(rest) = name.strip_prefix("iqn") {
        // iqn.2016-04.com.example[:anything without blanks]
        let mut parts = rest.splitn(3, '.');
        let (dot, date) = (parts.next(), parts.next().unwrap_or_default());
        let host = parts.next().unwrap_or_default();
        let is_date = date.len() == 7
            && date.as_bytes()[4] == b'-'
            && date.bytes().filter(u8::is_ascii_digit).count() == 6;
        let host = host.split(':').next().unwrap_or_default();
        dot == Some("") && is_date && !host.is_empty() && !name.contains(char::is_whitespace)
    } else if let Some(rest) = name.strip_prefix("eui") {
        rest.strip_prefix('.')
            .is_some_and(|id| id.len() == 16 && is_hex(id))
    } else if let Some(rest) = name.strip_prefix("naa") {
        rest.strip_prefix('.')
            .is_some_and(|id| matches!(id.len(), 16 | 32) && is_hex(id))
    } else {
        return Some("must be valid format starting with iqn, eui, or naa");
    };
    (!is_right).then_some("must be valid format")
}

fn iscsi(volume: &Value, source: &Value, path: &Path<'_>, errors: &mut Errors) {
    const NAME_BYTES_MAX: usize = 64;
    let at = path.child("iscsi");
    required(source, "targetPortal", &at, errors);
    let iqn = text(source, "iqn");
    if iqn.is_empty() {
        errors.push(FieldError::required(&at.child("iqn"), ""));
    } else if let Some(detail) = iscsi_name(iqn) {
        errors.push(FieldError::invalid(&at.child("iqn"), iqn, detail));
    }
    let lun = integer(source, "lun").unwrap_or_default();
    range(lun, 0, 255, &at.child("lun"), errors);
    let uses_chap = flag(source, "chapAuthDiscovery") || flag(source, "chapAuthSession");
    if uses_chap && source.get("secretRef").is_none() {
        errors.push(FieldError::required(&at.child("secretRef"), ""));
    }
    let Some(initiator) = source.get("initiatorName").and_then(Value::as_str) else {
        return;
    };
    if let Some(detail) = iscsi_name(initiator) {
        errors.push(FieldError::invalid(
            &at.child("initiatorname"),
            initiator,
            detail,
        ));
    }
    let name = text(volume, "name");
    if name.len() + 1 + text(source, "targetPortal").len() > NAME_BYTES_MAX {
        let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                      iscsi.initiatorName is specified.";
        errors.push(FieldError::invalid(&path.child("name"), name, detail));
    }
}

fn fibre_channel(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (names, ids) = (list(source, "targetWWNs"), list(source, "wwids"));
    let at = path.child("targetWWNs");
    if names.is_empty() && ids.is_empty() {
        let detail = "must specify either targetWWNs or wwids, but not both";
        errors.push(FieldError::required(&at, detail));
    }
    if !names.is_empty() && !ids.is_empty() {
        let detail = "targetWWNs and wwids can not be specified simultaneously";
        errors.push(FieldError::invalid(&at, names.to_vec(), detail));
    }
    if !names.is_empty() {
        let at = path.child("lun");
        match integer(source, "lun") {
            None => {
                let detail = "lun is required if targetWWNs is specified";
                errors.push(FieldError::required(&at, detail));
            }
            Some(lun) => range(lun, 0, 255, &at, errors),
        }
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
    const KINDS: &[&str] = &[
        "secret",
        "configMap",
        "downwardAPI",
        "serviceAccountToken",
        "clusterTrustBundle",
    ];
    let sources = path.child("sources");
    let mut paths = BTreeSet::new();
    for (i, part) in list(source, "sources").iter().enumerate() {
        let at = sources.index(i);
        let given: Vec<(&&str, &Value)> = KINDS
            .iter()
            .filter_map(|kind| Some((kind, part.get(kind)?)))
            .collect();
        for (kind, part) in &given {
            let at = at.child(kind);
            match **kind {
                "secret" | "configMap" => {
                    required(part, "name", &at, errors);
                    items(part, &at, errors);
                }
                "downwardAPI" => downward(part, &at, errors),
                "serviceAccountToken" => token(part, &at, path, errors),
                _ => trust_bundle(part, &at, errors),
            }
            let has_one_path = matches!(**kind, "serviceAccountToken" | "clusterTrustBundle");
            let own = if has_one_path {
                std::slice::from_ref(*part)
            } else {
                list(part, "items")
            };
            for item in own {
                let file = text(item, "path");
                if !file.is_empty() && !paths.insert(file) {
                    let shown = match **kind {
                        "secret" | "configMap" => text(part, "name"),
                        _ => file,
                    };
                    let detail = "conflicting duplicate paths";
                    errors.push(FieldError::invalid(path, shown, detail));
                }
            }
        }
        if given.len() > 1 {
            let detail = "may not specify more than 1 volume type per source";
            errors.push(FieldError::forbidden(&at, detail));
        }
    }
}

fn trust_bundle(bundle: &Value, path: &Path<'_>, errors: &mut Errors) {
    match (bundle.get("name"), bundle.get("signerName")) {
        (Some(_), Some(_)) => {
            let detail = "only one of name and signerName may be used";
            errors.push(FieldError::invalid(path, bundle.clone(), detail));
        }
        (Some(name), None) => {
            let at = path.child("name");
            if name.as_str().unwrap_or_default().is_empty() {
                errors.push(FieldError::required(&at, "must be a valid object name"));
            }
            if let Some(selector) = bundle.get("labelSelector") {
                let detail = "labelSelector must be unset if name is specified";
                let at = path.child("labelSelector");
                errors.push(FieldError::invalid(&at, selector.clone(), detail));
            }
        }
        (None, Some(signer)) => {
            if signer.as_str().unwrap_or_default().is_empty() {
                let at = path.child("signerName");
                errors.push(FieldError::required(&at, "must be a valid signer name"));
            }
            let at = path.child("labelSelector");
            label_selector(get(bundle, "labelSelector"), &at, errors);
        }
        (None, None) => {
            let detail = "either name or signerName must be specified";
            errors.push(FieldError::required(path, detail));
        }
    }
    let file = text(bundle, "path");
    if file.is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
    }
    local_path(file, &path.child("path"), errors);
}

/// `volume` is where the volume stands: Kubernetes names its `path` for that of the token.
fn token(token: &Value, path: &Path<'_>, volume: &Path<'_>, errors: &mut Errors) {
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
        errors.push(FieldError::required(&volume.child("path"), ""));
    } else {
        local_path(file, &volume.child("path"), errors);
    }
}

/// Whether a path goes up somewhere.
pub(super) fn has_backsteps(file: &str) -> bool {
    file.split('/').any(|part| part == "..")
}

fn no_backsteps(file: &str, path: &Path<'_>, errors: &mut Errors) {
    if has_backsteps(file) {
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

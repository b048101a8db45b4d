//! CSIDriver, CSINode and VolumeAttachment of storage.k8s.io: what volume drivers say of themselves.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::workload;
use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, default_absent, flag, get, integer, list, text},
};

const NODE_ID_BYTES_MAX: usize = 256;
const LIFECYCLE_MODES: &[&str] = &["Ephemeral", "Persistent"];
const FS_GROUP_POLICIES: &[&str] = &["File", "None", "ReadWriteOnceWithFSType"];

pub(super) const DRIVER_COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "AttachRequired",
        "Whether volumes are attached before they are mounted.",
    ),
    Column::text(
        "PodInfoOnMount",
        "Whether the driver is told which pod a mount is for.",
    ),
    Column::text(
        "StorageCapacity",
        "Whether the driver tells how much room it has.",
    ),
    Column::text(
        "TokenRequests",
        "Audiences of the tokens that the driver is given.",
    ),
    Column::text(
        "RequiresRepublish",
        "Whether the driver is asked again from time to time.",
    ),
    Column::text("Modes", "Kinds of volumes that the driver has."),
    Column::age(),
];

pub(super) const NODE_COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Drivers", "How many drivers the node has.").integer(),
    Column::age(),
];

pub(super) const ATTACHMENT_COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Attacher", "The driver that attaches."),
    Column::text("PV", "The volume to attach."),
    Column::text("Node", "The node to attach to."),
    Column::text("Attached", "Whether it has been attached."),
    Column::age(),
];

pub(super) struct CsiDriver;

impl Strategy for CsiDriver {
    fn default(&self, driver: &mut Value) {
        let Some(spec) = driver.get_mut("spec").filter(|spec| spec.is_object()) else {
            return;
        };
        default_absent(spec, "attachRequired", true);
        for field in [
            "podInfoOnMount",
            "storageCapacity",
            "requiresRepublish",
            "seLinuxMount",
        ] {
            default_absent(spec, field, false);
        }
        default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if list(spec, "volumeLifecycleModes").is_empty() {
            spec["volumeLifecycleModes"] = json!(["Persistent"]);
        }
    }

    fn validate(&self, driver: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let metadata = Path::new("metadata");
        super::pod::driver_name(meta::name(driver), &metadata.child("name"), &mut errors);
        let (spec, path) = (get(driver, "spec"), Path::new("spec"));
        let at = path.child("volumeLifecycleModes");
        for mode in list(spec, "volumeLifecycleModes") {
            let mode = mode.as_str().unwrap_or_default();
            if !LIFECYCLE_MODES.contains(&mode) {
                errors.push(FieldError::not_supported(&at, mode, LIFECYCLE_MODES));
            }
        }
        let policy = text(spec, "fsGroupPolicy");
        if !FS_GROUP_POLICIES.contains(&policy) {
            let at = path.child("fsGroupPolicy");
            errors.push(FieldError::not_supported(&at, policy, FS_GROUP_POLICIES));
        }
        let at = path.child("tokenRequests");
        let requests = list(spec, "tokenRequests");
        for (i, request) in requests.iter().enumerate() {
            let audience = |request: &Value| text(request, "audience").to_owned();
            let at = at.index(i);
            if requests[..i]
                .iter()
                .any(|before| audience(before) == audience(request))
            {
                errors.push(FieldError::duplicate(
                    &at.child("audience"),
                    audience(request),
                ));
            }
            if let Some(seconds) =
                integer(request, "expirationSeconds").filter(|seconds| *seconds < 600)
            {
                let detail = "may not specify a duration less than 10 minutes";
                errors.push(FieldError::invalid(
                    &at.child("expirationSeconds"),
                    seconds,
                    detail,
                ));
            }
        }
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for field in ["attachRequired", "volumeLifecycleModes"] {
            workload::immutable(new, old, field, &mut errors);
        }
        errors
    }

    fn row(&self, driver: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(driver, "spec");
        let joined = |texts: Vec<&str>| match texts.join(",") {
            none if none.is_empty() => "<unset>".to_owned(),
            texts => texts,
        };
        let audiences = list(spec, "tokenRequests")
            .iter()
            .map(|request| text(request, "audience"));
        let modes = list(spec, "volumeLifecycleModes")
            .iter()
            .filter_map(Value::as_str);
        vec![
            meta::name(driver).into(),
            flag(spec, "attachRequired").into(),
            flag(spec, "podInfoOnMount").into(),
            flag(spec, "storageCapacity").into(),
            joined(audiences.collect()).into(),
            flag(spec, "requiresRepublish").into(),
            joined(modes.collect()).into(),
            table::age(driver, now).into(),
        ]
    }
}

pub(super) struct CsiNode;

impl Strategy for CsiNode {
    fn validate(&self, node: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("spec");
        let path = path.child("drivers");
        let drivers = list(get(node, "spec"), "drivers");
        for (i, driver) in drivers.iter().enumerate() {
            let (name, id) = (text(driver, "name"), text(driver, "nodeID"));
            let at = path.index(i);
            super::pod::driver_name(name, &at.child("name"), &mut errors);
            if id.is_empty() {
                errors.push(FieldError::required(&at.child("nodeID"), ""));
            } else if id.len() > NODE_ID_BYTES_MAX {
                let detail = format!("must be {NODE_ID_BYTES_MAX} characters or less");
                errors.push(FieldError::invalid(&at.child("nodeID"), id, detail));
            }
            if drivers[..i]
                .iter()
                .any(|before| text(before, "name") == name)
            {
                errors.push(FieldError::duplicate(&at.child("name"), name));
            }
        }
        errors
    }

    fn row(&self, node: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            meta::name(node).into(),
            list(get(node, "spec"), "drivers").len().into(),
            table::age(node, now).into(),
        ]
    }
}

pub(super) struct VolumeAttachment;

impl Strategy for VolumeAttachment {
    fn prepare_create(&self, attachment: &mut Value) {
        attachment["status"] = json!({"attached": false});
    }

    fn validate(&self, attachment: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(attachment, "spec"), Path::new("spec"));
        super::pod::driver_name(text(spec, "attacher"), &path.child("attacher"), &mut errors);
        if text(spec, "nodeName").is_empty() {
            errors.push(FieldError::required(&path.child("nodeName"), ""));
        }
        let (source, at) = (get(spec, "source"), path.child("source"));
        let has_inline = source.get("inlineVolumeSpec").is_some_and(Value::is_object);
        match (text(source, "persistentVolumeName").is_empty(), has_inline) {
            (true, false) => {
                let detail = "must specify one of inlineVolumeSpec and persistentVolumeName";
                errors.push(FieldError::required(&at, detail));
            }
            (false, true) => {
                let detail =
                    "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
                errors.push(FieldError::forbidden(&at, detail));
            }
            _ => {}
        }
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if get(new, "spec") != get(old, "spec") {
            let spec = get(new, "spec").clone();
            errors.push(FieldError::invalid(
                &Path::new("spec"),
                spec,
                "field is immutable",
            ));
        }
        errors
    }

    fn row(&self, attachment: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(attachment, "spec");
        vec![
            meta::name(attachment).into(),
            text(spec, "attacher").into(),
            text(get(spec, "source"), "persistentVolumeName").into(),
            text(spec, "nodeName").into(),
            flag(get(attachment, "status"), "attached").into(),
            table::age(attachment, now).into(),
        ]
    }
}

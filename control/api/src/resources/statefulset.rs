//! StatefulSet of apps, and the ControllerRevisions that it and DaemonSet keep.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::workload;
use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, empty, get, integer, list, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "Ready",
        "Number of the pods that are ready, of those that are wanted.",
    ),
    Column::age(),
    workload::CONTAINERS,
    workload::IMAGES,
];

/// Numbers of the status.
const COUNTS: &[&str] = &[
    "replicas",
    "readyReplicas",
    "currentReplicas",
    "updatedReplicas",
    "availableReplicas",
    "observedGeneration",
    "collisionCount",
];

/// Which of them are parts of another, as the complaint calls that one.
const LIMITS: &[(&str, &str)] = &[
    ("readyReplicas", "status.replicas"),
    ("currentReplicas", "status.replicas"),
    ("updatedReplicas", "status.replicas"),
    ("availableReplicas", "status.replicas"),
    ("availableReplicas", "status.readyReplicas"),
];

const STRATEGIES: &[&str] = &["RollingUpdate", "OnDelete"];
const POLICIES: &[&str] = &["OrderedReady", "Parallel"];
const CLAIM_POLICIES: &[&str] = &["Retain", "Delete"];
/// What may be changed later; all else needs another StatefulSet.
const CHANGEABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

pub(super) struct StatefulSet;

impl Strategy for StatefulSet {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec") else {
            return;
        };
        default(spec, "podManagementPolicy", "OrderedReady");
        workload::default_strategy(spec, "updateStrategy", [("partition", json!(0))]);
        default(spec, "persistentVolumeClaimRetentionPolicy", empty());
        if let Some(policy) = spec.get_mut("persistentVolumeClaimRetentionPolicy") {
            default(policy, "whenDeleted", "Retain");
            default(policy, "whenScaled", "Retain");
        }
        default(spec, "replicas", 1);
        default(spec, "revisionHistoryLimit", 10);
        workload::default_template(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0, "availableReplicas": 0});
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(object, "spec"), Path::new("spec"));
        let policy = text(spec, "podManagementPolicy");
        if !POLICIES.contains(&policy) {
            errors.push(FieldError::invalid(
                &path.child("podManagementPolicy"),
                policy,
                "must be 'OrderedReady' or 'Parallel'",
            ));
        }
        let strategy = get(spec, "updateStrategy");
        let at = path.child("updateStrategy");
        let type_ = text(strategy, "type");
        if !STRATEGIES.contains(&type_) {
            errors.push(FieldError::invalid(
                &at.child("type"),
                type_,
                "must be 'RollingUpdate' or 'OnDelete'",
            ));
        }
        let rolling = get(strategy, "rollingUpdate");
        if type_ == "OnDelete" && !rolling.is_null() {
            errors.push(FieldError::invalid(
                &at.child("rollingUpdate"),
                rolling.clone(),
                "only allowed for updateStrategy 'RollingUpdate'",
            ));
        }
        let at_rolling = at.child("rollingUpdate");
        workload::not_negative(rolling, "partition", &at_rolling, &mut errors);
        let unavailable = get(rolling, "maxUnavailable");
        let at_unavailable = at_rolling.child("maxUnavailable");
        workload::number_or_percent(unavailable, &at_unavailable, &mut errors);
        workload::not_above_whole(unavailable, &at_unavailable, &mut errors);
        if workload::is_zero(unavailable) {
            errors.push(FieldError::invalid(
                &at_unavailable,
                unavailable.clone(),
                "cannot be 0",
            ));
        }
        for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
            workload::not_negative(spec, field, &path, &mut errors);
        }
        workload::not_negative(
            get(spec, "ordinals"),
            "start",
            &path.child("ordinals"),
            &mut errors,
        );
        let kept = get(spec, "persistentVolumeClaimRetentionPolicy");
        let at = path.child("persistentVolumeClaimRetentionPolicy");
        for field in ["whenDeleted", "whenScaled"] {
            let policy = text(kept, field);
            if !kept.is_null() && !CLAIM_POLICIES.contains(&policy) {
                errors.push(FieldError::not_supported(
                    &at.child(field),
                    policy,
                    CLAIM_POLICIES,
                ));
            }
        }
        let claims = path.child("volumeClaimTemplates");
        for (i, claim) in list(spec, "volumeClaimTemplates").iter().enumerate() {
            if meta::name(claim).is_empty() {
                let at = claims.index(i);
                let at = at.child("metadata");
                errors.push(FieldError::required(&at.child("name"), ""));
            }
        }
        workload::selector(spec, &path, "statefulset", &mut errors);
        workload::selects_template(spec, &path, &mut errors);
        // Volumes of the claims are mounted by name, and made when the pod is.
        let mut with_claims = spec.clone();
        if let Some(pod) = with_claims.pointer_mut("/template/spec") {
            let mut volumes = list(pod, "volumes").to_vec();
            for claim in list(spec, "volumeClaimTemplates") {
                let name = meta::name(claim);
                if !volumes.iter().any(|volume| text(volume, "name") == name) {
                    volumes.push(json!({"name": name, "emptyDir": {}}));
                }
            }
            if !volumes.is_empty() {
                pod["volumes"] = volumes.into();
            }
        }
        workload::template(&with_claims, &["Always"], "StatefulSet", &path, &mut errors);
        errors
    }

    fn validate_status(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        workload::status_counts(new, old, COUNTS, LIMITS)
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let decided = |object: &Value| {
            let mut spec = get(object, "spec").clone();
            if let Some(spec) = spec.as_object_mut() {
                spec.retain(|field, _| !CHANGEABLE.contains(&field.as_str()));
            }
            spec
        };
        if decided(new) != decided(old) {
            errors.push(FieldError::forbidden(
                &Path::new("spec"),
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                 'minReadySeconds' are forbidden",
            ));
        }
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let wanted = integer(spec, "replicas").unwrap_or(0);
        let [containers, images, _] = workload::wide_cells(spec);
        vec![
            meta::name(object).into(),
            format!("{}/{wanted}", workload::count(object, "readyReplicas")).into(),
            table::age(object, now).into(),
            containers,
            images,
        ]
    }
}

pub(super) const REVISION_COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Controller", "Controller of the object"),
    Column::text(
        "Revision",
        "Number of the revision; later ones are greater.",
    )
    .integer(),
    Column::age(),
];

pub(super) struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let revision = integer(object, "revision").unwrap_or(0);
        if revision < 0 {
            errors.push(FieldError::invalid(
                &Path::new("revision"),
                revision,
                "must be greater than or equal to 0",
            ));
        }
        if get(object, "data").is_null() {
            errors.push(FieldError::required(
                &Path::new("data"),
                "data is mandatory",
            ));
        }
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if get(new, "data") != get(old, "data") {
            errors.push(FieldError::invalid(
                &Path::new("data"),
                get(new, "data").clone(),
                "field is immutable",
            ));
        }
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let controller = meta::owner_references(object)
            .iter()
            .find(|owner| owner.get("controller") == Some(&Value::Bool(true)))
            .map_or_else(
                || "<none>".to_owned(),
                |owner| {
                    let group = text(owner, "apiVersion");
                    let kind = text(owner, "kind").to_lowercase();
                    match group.split_once('/') {
                        Some((group, _)) => format!("{kind}.{group}/{}", text(owner, "name")),
                        None => format!("{kind}/{}", text(owner, "name")),
                    }
                },
            );
        vec![
            meta::name(object).into(),
            controller.into(),
            integer(object, "revision").unwrap_or(0).into(),
            table::age(object, now).into(),
        ]
    }
}

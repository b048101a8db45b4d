//! HorizontalPodAutoscaler of autoscaling: v2 is what is kept, v1 the same object in its older words.
//!
//! Objects are kept and shown, and nothing scales by them: their status says so from the beginning.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    resource::{Conversion, keep_other_half},
    table::{self, Column},
    value::{default, default_absent, get, integer, keep, list, remove, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Reference", "What is to be scaled."),
    Column::text("Targets", "What is measured, and what it should be."),
    Column::text("MinPods", "The least number of pods."),
    Column::text("MaxPods", "The greatest number of pods.").integer(),
    Column::text("Replicas", "How many pods there are.").integer(),
    Column::age(),
];

/// Why nothing happens: the reason of the condition `ScalingActive`.
const REASON: &str = "NoAutoscaler";
const MESSAGE: &str =
    "nothing in this cluster scales by metrics: the target keeps the replicas that it is given";

/// Sources of metrics, by their types; the field is named like the type.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];
/// What is aimed at when nothing is said.
const CPU_PERCENT_DEFAULT: i64 = 80;

fn cpu_metric(percent: Value) -> Value {
    json!({
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}},
    })
}

fn validate(scaler: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (spec, path) = (get(scaler, "spec"), Path::new("spec"));
    let min = integer(spec, "minReplicas").unwrap_or(1);
    let max = integer(spec, "maxReplicas").unwrap_or_default();
    if min < 1 {
        let detail = "must be greater than or equal to 1";
        errors.push(FieldError::invalid(&path.child("minReplicas"), min, detail));
    }
    let at = path.child("maxReplicas");
    if max < 1 {
        errors.push(FieldError::invalid(&at, max, "must be greater than 0"));
    }
    if max < min {
        let detail = "must be greater than or equal to `minReplicas`";
        errors.push(FieldError::invalid(&at, max, detail));
    }
    let (target, at) = (get(spec, "scaleTargetRef"), path.child("scaleTargetRef"));
    for field in ["kind", "name"] {
        let (value, at) = (text(target, field), at.child(field));
        if value.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else {
            let details = meta::path_segment_name(value);
            errors.extend(
                details
                    .into_iter()
                    .map(|detail| FieldError::invalid(&at, value, detail)),
            );
        }
    }
    let at = path.child("metrics");
    for (i, metric) in list(spec, "metrics").iter().enumerate() {
        validate_metric(metric, &at.index(i), &mut errors);
    }
    errors
}

fn validate_metric(metric: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let type_ = text(metric, "type");
    let Some((_, field)) = SOURCES.iter().find(|(known, _)| *known == type_) else {
        let known = SOURCES.map(|(known, _)| known);
        let at = path.child("type");
        errors.push(if type_.is_empty() {
            FieldError::required(&at, "must specify a metric source type")
        } else {
            FieldError::not_supported(&at, type_, &known)
        });
        return;
    };
    let (source, at) = (get(metric, field), path.child(field));
    if source.is_null() {
        let detail = "must populate information for the given metric source";
        errors.push(FieldError::required(&at, detail));
        return;
    }
    for (_, other) in SOURCES.iter().filter(|(_, other)| other != field) {
        if metric.get(other).is_some() {
            let detail = "must populate the given metric source only";
            errors.push(FieldError::forbidden(&path.child(other), detail));
        }
    }
    if field.ends_with("esource") && text(source, "name").is_empty() {
        let detail = "must specify a resource name";
        errors.push(FieldError::required(&at.child("name"), detail));
    }
    let (target, at) = (get(source, "target"), at.child("target"));
    let amounts = ["averageUtilization", "averageValue", "value"];
    let kinds = ["Utilization", "Value", "AverageValue"];
    let kind = text(target, "type");
    if kind.is_empty() {
        let detail = "must specify a metric target type";
        errors.push(FieldError::required(&at.child("type"), detail));
    } else if !kinds.contains(&kind) {
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.push(FieldError::invalid(&at.child("type"), kind, detail));
    }
    if amounts.iter().all(|field| target.get(field).is_none()) {
        let detail = "must set either a target raw value or a target utilization";
        errors.push(FieldError::required(
            &at.child("averageUtilization"),
            detail,
        ));
    }
    if let Some(percent) = integer(target, "averageUtilization").filter(|percent| *percent < 1) {
        let detail = "must be greater than 0";
        errors.push(FieldError::invalid(
            &at.child("averageUtilization"),
            percent,
            detail,
        ));
    }
}

fn new_status() -> Value {
    json!({
        "currentReplicas": 0,
        "desiredReplicas": 0,
        "currentMetrics": null,
        "conditions": [{"type": "ScalingActive", "status": "False", "reason": REASON, "message": MESSAGE}],
    })
}

fn target_cell(metric: &Value, current: &[Value]) -> String {
    let type_ = text(metric, "type");
    let Some((_, field)) = SOURCES.iter().find(|(known, _)| *known == type_) else {
        return "<unknown type>".to_owned();
    };
    let source = get(metric, field);
    let target = get(source, "target");
    let name = match text(source, "name") {
        "" => text(get(source, "metric"), "name"),
        name => name,
    };
    let measured = current
        .iter()
        .map(|found| get(found, field))
        .find(|found| text(found, "name") == text(source, "name") && !found.is_null());
    let measured = get(measured.unwrap_or(&Value::Null), "current");
    let shown = |of: &Value| match integer(of, "averageUtilization") {
        Some(percent) => Some(format!("{percent}%")),
        None => ["averageValue", "value"]
            .iter()
            .map(|field| text(of, field))
            .find(|amount| !amount.is_empty())
            .map(str::to_owned),
    };
    let unknown = || "<unknown>".to_owned();
    format!(
        "{name}: {}/{}",
        shown(measured).unwrap_or_else(unknown),
        shown(target).unwrap_or_else(unknown)
    )
}

/// How many metrics are shown in a cell.
const SHOWN_MAX: usize = 2;

fn row(scaler: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (get(scaler, "spec"), get(scaler, "status"));
    let target = get(spec, "scaleTargetRef");
    let metrics = list(spec, "metrics");
    let current = list(status, "currentMetrics");
    let mut targets: Vec<String> = metrics
        .iter()
        .map(|metric| target_cell(metric, current))
        .collect();
    let more = targets.len().saturating_sub(SHOWN_MAX);
    targets.truncate(SHOWN_MAX);
    let targets = match (targets.is_empty(), more) {
        (true, _) => "<none>".to_owned(),
        (false, 0) => targets.join(", "),
        (false, more) => format!("{} + {more} more...", targets.join(", ")),
    };
    let min = integer(spec, "minReplicas").map_or("<unset>".to_owned(), |min| min.to_string());
    vec![
        meta::name(scaler).into(),
        format!("{}/{}", text(target, "kind"), text(target, "name")).into(),
        targets.into(),
        min.into(),
        integer(spec, "maxReplicas").unwrap_or_default().into(),
        integer(status, "currentReplicas")
            .unwrap_or_default()
            .into(),
        table::age(scaler, now).into(),
    ]
}

pub(super) struct HorizontalPodAutoscaler;

impl Strategy for HorizontalPodAutoscaler {
    fn default(&self, scaler: &mut Value) {
        let Some(spec) = scaler.get_mut("spec").filter(|spec| spec.is_object()) else {
            return;
        };
        default_absent(spec, "minReplicas", 1);
        if list(spec, "metrics").is_empty() {
            spec["metrics"] = json!([cpu_metric(CPU_PERCENT_DEFAULT.into())]);
        }
        for (direction, window) in [("scaleUp", 0), ("scaleDown", 300)] {
            if let Some(rules) = spec
                .get_mut("behavior")
                .and_then(|behavior| behavior.get_mut(direction))
            {
                default_absent(rules, "stabilizationWindowSeconds", window);
                default(rules, "selectPolicy", "Max");
            }
        }
    }

    fn prepare_create(&self, scaler: &mut Value) {
        scaler["status"] = new_status();
    }

    fn validate(&self, scaler: &Value) -> Vec<FieldError> {
        validate(scaler)
    }

    fn row(&self, scaler: &Value, now: Timestamp) -> Vec<Value> {
        row(scaler, now)
    }
}

/// What v1 has no field for is in annotations, as JSON.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

static CONVERSION: Conversion = Conversion {
    group: "autoscaling",
    version: "v2",
    to_stored,
    from_stored,
};

fn take_annotation(scaler: &mut Value, key: &str) -> Option<Value> {
    let metadata = meta::metadata_mut(scaler);
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let found = annotations.remove(key)?;
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    serde_json::from_str(found.as_str()?).ok()
}

fn put_annotation(scaler: &mut Value, key: &str, value: &Value) {
    let annotations = meta::metadata_mut(scaler)
        .entry("annotations")
        .or_insert_with(|| Value::Object(Map::new()));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(key.to_owned(), value.to_string().into());
    }
}

fn is_cpu(metric: &Value) -> bool {
    text(metric, "type") == "Resource" && text(get(metric, "resource"), "name") == "cpu"
}

fn to_stored(scaler: &mut Value) {
    let percent = get(get(scaler, "spec"), "targetCPUUtilizationPercentage").clone();
    let mut metrics = Vec::new();
    if !percent.is_null() {
        metrics.push(cpu_metric(percent));
    }
    if let Some(Value::Array(further)) = take_annotation(scaler, METRICS) {
        metrics.extend(further);
    }
    let behavior = take_annotation(scaler, BEHAVIOR);
    if let Some(spec) = scaler.get_mut("spec").filter(|spec| spec.is_object()) {
        remove(spec, "targetCPUUtilizationPercentage");
        if !metrics.is_empty() {
            spec["metrics"] = metrics.into();
        }
        if let Some(behavior) = behavior.filter(Value::is_object) {
            spec["behavior"] = behavior;
        }
    }
    let current = take_annotation(scaler, CURRENT_METRICS).filter(Value::is_array);
    let conditions = take_annotation(scaler, CONDITIONS).filter(Value::is_array);
    if let Some(status) = scaler.get_mut("status").filter(|status| status.is_object()) {
        remove(status, "currentCPUUtilizationPercentage");
        for (field, value) in [("currentMetrics", current), ("conditions", conditions)] {
            if let Some(value) = value {
                status[field] = value;
            }
        }
    }
}

fn from_stored(scaler: &mut Value) {
    let metrics = list(get(scaler, "spec"), "metrics");
    let percent_of = |metric: &&Value| {
        let target = get(get(metric, "resource"), "target");
        integer(target, "averageUtilization").filter(|_| is_cpu(metric))
    };
    let position = metrics
        .iter()
        .position(|metric| percent_of(&metric).is_some());
    let percent = position.and_then(|i| percent_of(&&metrics[i]));
    let further: Vec<Value> = metrics
        .iter()
        .enumerate()
        .filter(|(i, _)| Some(*i) != position)
        .map(|(_, metric)| metric.clone())
        .collect();
    let behavior = get(get(scaler, "spec"), "behavior").clone();
    if let Some(spec) = scaler.get_mut("spec").filter(|spec| spec.is_object()) {
        remove(spec, "metrics");
        remove(spec, "behavior");
        if let Some(percent) = percent {
            spec["targetCPUUtilizationPercentage"] = percent.into();
        }
    }
    if !further.is_empty() {
        put_annotation(scaler, METRICS, &further.into());
    }
    if behavior.is_object() {
        put_annotation(scaler, BEHAVIOR, &behavior);
    }
    for (field, key) in [
        ("currentMetrics", CURRENT_METRICS),
        ("conditions", CONDITIONS),
    ] {
        let value = get(get(scaler, "status"), field).clone();
        if value.as_array().is_some_and(|values| !values.is_empty()) {
            put_annotation(scaler, key, &value);
        }
        if let Some(status) = scaler.get_mut("status") {
            remove(status, field);
        }
    }
}

/// v1: everything by way of v2.
pub(super) struct Older;

impl Older {
    fn stored(scaler: &Value) -> Value {
        let mut stored = scaler.clone();
        to_stored(&mut stored);
        stored
    }
}

impl Strategy for Older {
    fn default(&self, scaler: &mut Value) {
        let Some(spec) = scaler.get_mut("spec").filter(|spec| spec.is_object()) else {
            return;
        };
        default_absent(spec, "minReplicas", 1);
        if meta::annotation(scaler, METRICS).is_none() {
            default_absent(
                &mut scaler["spec"],
                "targetCPUUtilizationPercentage",
                CPU_PERCENT_DEFAULT,
            );
        }
    }

    fn prepare_create(&self, scaler: &mut Value) {
        scaler["status"] = json!({"currentReplicas": 0, "desiredReplicas": 0});
        put_annotation(scaler, CONDITIONS, &new_status()["conditions"]);
    }

    fn prepare_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        keep_other_half(subresource, new, old);
        if subresource.is_empty() {
            let kept = meta::annotation(old, CONDITIONS).map(str::to_owned);
            if let (Some(kept), Some(annotations)) =
                (kept, new.pointer_mut("/metadata/annotations"))
            {
                annotations[CONDITIONS] = kept.into();
            } else {
                let old = get(get(old, "metadata"), "annotations");
                let mut annotations = json!({});
                keep(&mut annotations, old, CONDITIONS);
                if annotations.get(CONDITIONS).is_some() {
                    meta::metadata_mut(new).insert("annotations".to_owned(), annotations);
                }
            }
        }
    }

    fn validate_create(&self, scaler: &Value) -> Vec<FieldError> {
        validate(&Self::stored(scaler))
    }

    fn validate_update(&self, subresource: &str, new: &Value, _old: &Value) -> Vec<FieldError> {
        if subresource == "status" {
            return Vec::new();
        }
        validate(&Self::stored(new))
    }

    fn conversion(&self) -> Option<&'static Conversion> {
        Some(&CONVERSION)
    }

    fn row(&self, scaler: &Value, now: Timestamp) -> Vec<Value> {
        row(scaler, now)
    }
}

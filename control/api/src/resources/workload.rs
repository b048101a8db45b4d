//! What ReplicaSets, Deployments and their like have in common: a selector, a template of pods, replicas.

use serde_json::{Value, json};

use crate::{
    FieldError,
    field::Path,
    meta,
    selector::LabelSelector,
    table::Column,
    value::{default, empty, get, integer, list, text},
};

pub(super) type Errors = Vec<FieldError>;

/// Of the template; [`wide_cells`] fills these three.
pub(super) const CONTAINERS: Column =
    Column::text("Containers", "Names of each container in the template.").wide();
pub(super) const IMAGES: Column = Column::text(
    "Images",
    "Images referenced by each container in the template.",
)
.wide();
pub(super) const SELECTOR: Column = Column::text("Selector", "Which pods are meant.").wide();

/// Fills in the template of `spec`.
pub(super) fn default_template(spec: &mut Value) {
    let Some(template) = spec.get_mut("template").filter(|value| value.is_object()) else {
        return;
    };
    default(template, "metadata", empty());
    if let Some(spec) = template.get_mut("spec") {
        super::pod::default_template_spec(spec);
    }
}

/// Fills in how pods are replaced by newer ones: by and by, in these amounts, unless the type says otherwise.
pub(super) fn default_strategy<const N: usize>(
    spec: &mut Value,
    field: &str,
    amounts: [(&str, Value); N],
) {
    default(spec, field, empty());
    let Some(strategy) = spec.get_mut(field) else {
        return;
    };
    default(strategy, "type", "RollingUpdate");
    if text(strategy, "type") != "RollingUpdate" {
        return;
    }
    default(strategy, "rollingUpdate", empty());
    if let Some(rolling) = strategy.get_mut("rollingUpdate") {
        for (field, amount) in amounts {
            default(rolling, field, amount);
        }
    }
}

/// Numbers of a status: none is below zero, none above one that it is a part of (the names of both, the latter as the
/// complaint calls it), and name collisions are not forgotten.
pub(super) fn status_counts(
    new: &Value,
    old: &Value,
    counts: &[&str],
    limits: &[(&str, &str)],
) -> Errors {
    let mut errors = Vec::new();
    let (new, old, path) = (get(new, "status"), get(old, "status"), Path::new("status"));
    for field in counts {
        not_negative(new, field, &path, &mut errors);
    }
    let count = |field: &str| integer(new, field).unwrap_or(0);
    for (field, limit) in limits {
        let number = count(field);
        if number > count(limit.trim_start_matches("status.")) {
            errors.push(FieldError::invalid(
                &path.child(field),
                number,
                format!("cannot be greater than {limit}"),
            ));
        }
    }
    let collisions = count("collisionCount");
    if collisions < integer(old, "collisionCount").unwrap_or(0) {
        errors.push(FieldError::invalid(
            &path.child("collisionCount"),
            collisions,
            "cannot be decremented",
        ));
    }
    errors
}

/// A number that may not be below zero.
pub(super) fn not_negative(object: &Value, field: &str, path: &Path<'_>, errors: &mut Errors) {
    if let Some(number) = integer(object, field).filter(|number| *number < 0) {
        errors.push(FieldError::invalid(
            &path.child(field),
            number,
            "must be greater than or equal to 0",
        ));
    }
}

/// A selector that has to be there and to select something.
pub(super) fn selector(spec: &Value, path: &Path<'_>, of: &str, errors: &mut Errors) {
    let at = path.child("selector");
    let selector = get(spec, "selector");
    if selector.is_null() {
        errors.push(FieldError::required(&at, ""));
        return;
    }
    super::pod::label_selector(selector, &at, errors);
    if LabelSelector::from_value(selector).is_ok_and(|selector| selector.is_everything()) {
        let detail = format!("empty selector is invalid for {of}");
        errors.push(FieldError::invalid(&at, selector.clone(), detail));
    }
}

/// The selector chooses the template's pods.
pub(super) fn selects_template(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Ok(selector) = LabelSelector::from_value(get(spec, "selector")) else {
        return;
    };
    let template = get(spec, "template");
    let labels = get(get(template, "metadata"), "labels");
    if !selector.is_everything() && !selector.matches(labels.as_object()) {
        errors.push(not_selected(labels, path));
    }
}

/// These labels of the template are not what the selector wants.
pub(super) fn not_selected(labels: &Value, path: &Path<'_>) -> FieldError {
    let at = path.child("template");
    let at = at.child("metadata");
    let shown = if labels.is_null() {
        json!({})
    } else {
        labels.clone()
    };
    FieldError::invalid(
        &at.child("labels"),
        shown,
        "`selector` does not match template `labels`",
    )
}

/// The template of `spec`, whose pods may have one of the restart policies.
pub(super) fn template(
    spec: &Value,
    policies: &[&str],
    of: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child("template");
    let template = get(spec, "template");
    let metadata = get(template, "metadata");
    let at_metadata = at.child("metadata");
    for (field, check) in [
        (
            "labels",
            meta::validate_labels as fn(&Value, &Path<'_>) -> Errors,
        ),
        ("annotations", meta::validate_annotations),
    ] {
        if let Some(value) = metadata.get(field) {
            errors.extend(check(value, &at_metadata.child(field)));
        }
    }
    let pod = get(template, "spec");
    let at = at.child("spec");
    super::pod::pod_spec("", pod, &at, errors);
    let policy = text(pod, "restartPolicy");
    // One that Kubernetes does not know has been complained of.
    if ["Always", "OnFailure", "Never"].contains(&policy) && !policies.contains(&policy) {
        errors.push(FieldError::not_supported(
            &at.child("restartPolicy"),
            policy,
            policies,
        ));
    }
    if of != "Job"
        && pod
            .get("activeDeadlineSeconds")
            .is_some_and(|v| !v.is_null())
    {
        let detail = format!("activeDeadlineSeconds in {of} is not Supported");
        errors.push(FieldError::forbidden(
            &at.child("activeDeadlineSeconds"),
            detail,
        ));
    }
    if !list(pod, "ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden(
            &at.child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

/// A field of `spec` that is decided once.
pub(super) fn immutable(new: &Value, old: &Value, field: &str, errors: &mut Errors) {
    let (new, old) = (get(get(new, "spec"), field), get(get(old, "spec"), field));
    if new != old {
        let path = Path::new("spec");
        errors.push(FieldError::invalid(
            &path.child(field),
            new.clone(),
            "field is immutable",
        ));
    }
}

/// A number of pods, or a share of them: `3`, `"25%"`.
pub(super) fn number_or_percent(value: &Value, path: &Path<'_>, errors: &mut Errors) {
    match value {
        Value::Number(number) if number.as_i64().is_some_and(|number| number < 0) => {
            errors.push(FieldError::invalid(
                path,
                value.clone(),
                "must be greater than or equal to 0",
            ));
        }
        Value::String(share) => {
            let digits = share.strip_suffix('%').unwrap_or_default();
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                errors.push(FieldError::invalid(
                    path,
                    value.clone(),
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
                     '93%', regex used for validation is '[0-9]+%')",
                ));
            }
        }
        _ => {}
    }
}

/// A share above the whole makes no sense.
pub(super) fn not_above_whole(value: &Value, path: &Path<'_>, errors: &mut Errors) {
    let share = value
        .as_str()
        .and_then(|share| share.strip_suffix('%')?.parse::<u64>().ok());
    if share.is_some_and(|share| share > 100) {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            "must not be greater than 100%",
        ));
    }
}

/// Whether it is given and means none.
pub(super) fn is_zero(value: &Value) -> bool {
    matches!(value, Value::Number(number) if number.as_i64() == Some(0))
        || matches!(value, Value::String(text) if text == "0%")
}

/// Cells of the wide columns: names and images of the template's containers, and the selector.
pub(super) fn wide_cells(spec: &Value) -> [Value; 3] {
    let containers = list(get(get(spec, "template"), "spec"), "containers");
    let joined = |field| {
        let texts: Vec<_> = containers
            .iter()
            .map(|container| text(container, field))
            .collect();
        Value::from(texts.join(","))
    };
    let selector = match get(spec, "selector") {
        // A ReplicationController's is a map of labels.
        map if map.get("matchLabels").is_none() && map.get("matchExpressions").is_none() => map
            .as_object()
            .map(LabelSelector::from_labels)
            .unwrap_or_default(),
        selector => LabelSelector::from_value(selector).unwrap_or_default(),
    };
    let selector = match selector.to_string() {
        none if none.is_empty() => "<none>".to_owned(),
        selector => selector,
    };
    [joined("name"), joined("image"), selector.into()]
}

/// A count of the status; 0 when it has not been counted yet.
pub(super) fn count(object: &Value, field: &str) -> Value {
    integer(get(object, "status"), field).unwrap_or(0).into()
}

#[cfg(test)]
mod tests;

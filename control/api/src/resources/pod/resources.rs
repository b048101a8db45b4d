//! What is wrong with requests and limits, of containers and of the whole pod.

use std::collections::BTreeMap;

use serde_json::Value;

use super::validate::{Errors, rule};
use crate::{
    FieldError,
    field::Path,
    meta,
    quantity::Quantity,
    value::{entries, get, list, text},
};

const HUGE_PAGES: &str = "hugepages-";

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && meta::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether more of it may be promised than there is.
fn is_overcommitable(name: &str) -> bool {
    is_native(name) && !name.starts_with(HUGE_PAGES)
}

fn resource_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    rule(meta::qualified_name(name), path, name, errors);
    let is_standard =
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with(HUGE_PAGES);
    if !name.contains('/') {
        if !is_standard {
            let detail = "must be a standard resource for containers";
            errors.push(FieldError::invalid(path, name, detail));
        }
    } else if !is_native(name) && !is_extended(name) {
        let detail = "doesn't follow extended resource name standard";
        errors.push(FieldError::invalid(path, name, detail));
    }
}

/// An amount of a resource, such as those of `overhead`.
pub(super) fn resource_amount(name: &str, amount: &Value, path: &Path<'_>, errors: &mut Errors) {
    let shown = amount.as_str().unwrap_or_default();
    let Ok(amount) = Quantity::parse(shown) else {
        return;
    };
    if amount.is_negative() {
        let detail = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(path, shown, detail));
    }
    if is_extended(name) && !amount.is_integer() {
        errors.push(FieldError::invalid(path, shown, "must be an integer"));
    }
    if let Some(size) = name.strip_prefix(HUGE_PAGES)
        && let Ok(size) = Quantity::parse(size)
        && size.value() > 0
        && amount.value() % size.value() != 0
    {
        let detail = format!("{shown} is not positive integer multiple of {name}");
        errors.push(FieldError::invalid(path, shown, detail));
    }
}

/// `overhead`, that of a pod or of a RuntimeClass.
pub(in crate::resources) fn overhead(amounts: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (name, amount) in amounts.as_object().into_iter().flatten() {
        let at = path.key(name);
        resource_name(name, &at, errors);
        resource_amount(name, amount, &at, errors);
    }
}

/// `resources` of a container.
pub(super) fn container(spec: &Value, resources: &Value, path: &Path<'_>, errors: &mut Errors) {
    requirements(resources, resource_name, path, errors);
    claims(spec, resources, &path.child("claims"), errors);
}

fn requirements(
    resources: &Value,
    name_rule: fn(&str, &Path<'_>, &mut Errors),
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    for (field, at) in [("limits", &limits_path), ("requests", &requests_path)] {
        for (name, amount) in entries(resources, field) {
            let key = at.key(name);
            name_rule(name, &key, errors);
            resource_amount(name, amount, &key, errors);
            if field == "requests" {
                request_and_limit(resources, name, amount, (&limits_path, at), errors);
            }
        }
    }
    let names = || entries(resources, "limits").chain(entries(resources, "requests"));
    let has_huge_pages = names().any(|(name, _)| name.starts_with(HUGE_PAGES));
    let has_compute = names().any(|(name, _)| name == "cpu" || name == "memory");
    if has_huge_pages && !has_compute {
        errors.push(FieldError::forbidden(
            path,
            "HugePages require cpu or memory",
        ));
    }
}

fn request_and_limit(
    resources: &Value,
    name: &str,
    request: &Value,
    (limits_path, requests_path): (&Path<'_>, &Path<'_>),
    errors: &mut Errors,
) {
    let shown = request.as_str().unwrap_or_default();
    let Some(limit) = get(resources, "limits").get(name).and_then(Value::as_str) else {
        if !is_overcommitable(name) {
            let detail = "Limit must be set for non overcommitable resources";
            errors.push(FieldError::required(limits_path, detail));
        }
        return;
    };
    let (Ok(request), Ok(limit_amount)) = (Quantity::parse(shown), Quantity::parse(limit)) else {
        return;
    };
    if !is_overcommitable(name) && request != limit_amount {
        let detail = format!("must be equal to {name} limit of {limit}");
        errors.push(FieldError::invalid(requests_path, shown, detail));
    } else if request > limit_amount {
        let detail = format!("must be less than or equal to {name} limit of {limit}");
        errors.push(FieldError::invalid(requests_path, shown, detail));
    }
}

fn claims(spec: &Value, resources: &Value, path: &Path<'_>, errors: &mut Errors) {
    let known: Vec<&str> = list(spec, "resourceClaims")
        .iter()
        .map(|claim| text(claim, "name"))
        .collect();
    let mut seen = Vec::new();
    for (i, claim) in list(resources, "claims").iter().enumerate() {
        let (name, at) = (text(claim, "name"), path.index(i));
        if name.is_empty() {
            errors.push(FieldError::required(&at, ""));
            continue;
        }
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(&at, name));
        }
        seen.push(name);
        if !known.contains(&name) {
            let mut error = FieldError::not_found(&at, name);
            error.detail = if known.is_empty() {
                "must be one of the names in pod.spec.resourceClaims which is empty".to_owned()
            } else {
                format!(
                    "must be one of the names in pod.spec.resourceClaims: {}",
                    known.join(", ")
                )
            };
            errors.push(error);
        }
    }
}

/// `resourceClaims` of a pod.
pub(super) fn pod_claims(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut names = Vec::new();
    for (i, claim) in list(spec, "resourceClaims").iter().enumerate() {
        let at = path.index(i);
        let name = text(claim, "name");
        let name_at = at.child("name");
        if name.is_empty() {
            errors.push(FieldError::required(&name_at, ""));
        } else if names.contains(&name) {
            errors.push(FieldError::duplicate(&name_at, name));
        } else {
            rule(meta::dns1123_label(name), &name_at, name, errors);
            names.push(name);
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        match sources.map(|field| claim.get(field).is_some()) {
            [true, true] => {
                let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.push(FieldError::invalid(&at, claim.clone(), detail));
            }
            [false, false] => {
                let detail =
                    "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.push(FieldError::invalid(&at, claim.clone(), detail));
            }
            _ => {}
        }
        for field in sources {
            if let Some(name) = claim.get(field).and_then(Value::as_str) {
                rule(
                    meta::dns1123_subdomain(name),
                    &at.child(field),
                    name,
                    errors,
                );
            }
        }
    }
}

fn pod_resource_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    if !matches!(name, "cpu" | "memory") && !name.starts_with(HUGE_PAGES) {
        errors.push(FieldError::not_supported(path, name, &["cpu", "memory"]));
    }
}

/// `resources` of a pod as a whole: what its containers ask for together has to fit in.
pub(super) fn pod(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(resources) = spec.get("resources") else {
        return;
    };
    if resources.get("claims").is_some() {
        let detail = "claims cannot be set for Resources at pod-level";
        errors.push(FieldError::forbidden(&path.child("claims"), detail));
    }
    requirements(resources, pod_resource_name, path, errors);
    let requests = path.child("requests");
    for (name, total) in aggregate_requests(spec) {
        let given = get(resources, "requests").get(name).and_then(Value::as_str);
        let amount = given.and_then(|text| Quantity::parse(text).ok());
        if total > amount.unwrap_or(Quantity::ZERO) {
            let detail =
                format!("must be greater than or equal to aggregate container requests of {total}");
            errors.push(FieldError::invalid(
                &requests.key(name),
                given.unwrap_or("0"),
                detail,
            ));
        }
    }
    let containers = path.child("containers");
    for (i, container) in list(spec, "containers").iter().enumerate() {
        for (name, limit) in entries(get(container, "resources"), "limits") {
            let whole = get(resources, "limits").get(name).and_then(Value::as_str);
            let (Some(whole), Some(limit)) = (whole, limit.as_str()) else {
                continue;
            };
            if Quantity::parse(limit).ok() > Quantity::parse(whole).ok() {
                let at = containers.index(i);
                let at = at.key(name);
                let detail = format!("must be less than or equal to pod limits of {whole}");
                errors.push(FieldError::invalid(&at.child("limits"), limit, detail));
            }
        }
    }
}

/// Requests or limits of the whole pod (`which` is `requests` or `limits`): what its containers may need at any time, or
/// what is said for the pod as a whole, and its overhead.
pub fn pod_total<'a>(spec: &'a Value, which: &str) -> BTreeMap<&'a str, Quantity> {
    let mut total = aggregate(spec, which);
    let parsed = |amount: &Value| Quantity::parse(amount.as_str()?).ok();
    for (name, amount) in entries(get(spec, "resources"), which) {
        if let Some(amount) = parsed(amount) {
            total.insert(name, amount);
        }
    }
    for (name, amount) in entries(spec, "overhead") {
        // A limit that is not there is not made by overhead.
        if let Some(amount) = parsed(amount)
            && (which == "requests" || total.contains_key(name.as_str()))
        {
            *total.entry(name).or_insert(Quantity::ZERO) += amount;
        }
    }
    total
}

/// The most that a pod's containers ask for at any time: sidecars stay, other init containers run one by one.
pub(super) fn aggregate_requests(spec: &Value) -> BTreeMap<&str, Quantity> {
    aggregate(spec, "requests")
}

fn aggregate<'a>(spec: &'a Value, which: &str) -> BTreeMap<&'a str, Quantity> {
    let mut total: BTreeMap<&str, Quantity> = BTreeMap::new();
    let amounts = |container: &'a Value| {
        entries(get(container, "resources"), which).filter_map(|(name, amount)| {
            Some((name.as_str(), Quantity::parse(amount.as_str()?).ok()?))
        })
    };
    for container in list(spec, "containers") {
        for (name, amount) in amounts(container) {
            *total.entry(name).or_insert(Quantity::ZERO) += amount;
        }
    }
    let mut sidecars: BTreeMap<&str, Quantity> = BTreeMap::new();
    let mut peak: BTreeMap<&str, Quantity> = BTreeMap::new();
    for container in list(spec, "initContainers") {
        let is_sidecar = text(container, "restartPolicy") == "Always";
        for (name, amount) in amounts(container) {
            let before = sidecars.get(name).copied().unwrap_or(Quantity::ZERO);
            let now = before + amount;
            if is_sidecar {
                sidecars.insert(name, now);
                *total.entry(name).or_insert(Quantity::ZERO) += amount;
            }
            let most = peak.entry(name).or_insert(Quantity::ZERO);
            *most = (*most).max(now);
        }
    }
    for (name, most) in peak {
        let sum = total.entry(name).or_insert(Quantity::ZERO);
        *sum = (*sum).max(most);
    }
    total
}

/// `resizePolicy` of a container.
pub(super) fn resize_policy(spec: &Value, container: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut names = Vec::new();
    for (i, policy) in list(container, "resizePolicy").iter().enumerate() {
        let (name, restart) = (text(policy, "resourceName"), text(policy, "restartPolicy"));
        if names.contains(&name) {
            errors.push(FieldError::duplicate(&path.index(i), name));
        }
        names.push(name);
        super::validate::one_of(name, &["cpu", "memory"], path, errors);
        let supported = ["NotRequired", "RestartContainer"];
        super::validate::one_of(restart, &supported, path, errors);
        if text(spec, "restartPolicy") == "Never" && restart != "NotRequired" {
            let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(path, restart, detail));
        }
    }
}

/// What a resize may not do to one container's resources.
pub(super) fn resize(new: &Value, old: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("resources");
    let (new_resources, old_resources) = (get(new, "resources"), get(old, "resources"));
    for field in ["requests", "limits"] {
        let kept = get(new_resources, field);
        if entries(old_resources, field).any(|(name, _)| kept.get(name).is_none()) {
            let detail = format!("resource {field} cannot be removed");
            errors.push(FieldError::forbidden(&at.child(field), detail));
        }
    }
    let restarts = list(new, "resizePolicy").iter().any(|policy| {
        text(policy, "resourceName") == "memory"
            && text(policy, "restartPolicy") == "RestartContainer"
    });
    let limit = |resources| {
        let text = get(resources, "limits").get("memory")?.as_str()?;
        Quantity::parse(text).ok()
    };
    if !restarts
        && let (Some(new), Some(old)) = (limit(new_resources), limit(old_resources))
        && new < old
    {
        let at = at.child("limits");
        let detail = "memory limits cannot be decreased unless resizePolicy is RestartContainer";
        errors.push(FieldError::forbidden(&at.key("memory"), detail));
    }
}

/// Whether a pod as a whole asks for or is limited in anything.
pub(super) fn has_pod_level(spec: &Value) -> bool {
    let resources = get(spec, "resources");
    entries(resources, "requests")
        .chain(entries(resources, "limits"))
        .next()
        .is_some()
}

//! ResourceQuota of the core group.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    quantity::Quantity,
    table::{self, Column},
    value::{entries, get, list, text},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "Request",
        "What is used and what may be, of requests and counts.",
    ),
    Column::text("Limit", "What is used and what may be, of limits."),
    Column::age(),
];

/// Names without a domain that a quota may hold, `hugepages-…` and `count/…` beside.
const STANDARD: &[&str] = &[
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
/// Those of them that count objects.
const COUNTS: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
];
/// What can be held to a quota for `BestEffort` pods; all other scopes know the compute resources too.
const OF_BEST_EFFORT: &[&str] = &["pods"];
const OPERATORS: &[&str] = &["DoesNotExist", "Exists", "In", "NotIn"];

fn is_compute(name: &str) -> bool {
    name == "pods"
        || (STANDARD.contains(&name) && !COUNTS.contains(&name) && name != "requests.storage")
        || name.contains("hugepages-")
}

fn amount_name(name: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let details = meta::qualified_name(name);
    let is_well_formed = details.is_empty();
    errors.extend(
        details
            .into_iter()
            .map(|detail| FieldError::invalid(path, name, detail)),
    );
    let is_known = STANDARD.contains(&name)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
        || name.contains('/');
    if is_well_formed && !is_known {
        let detail = "must be a standard resource type or fully qualified";
        errors.push(FieldError::invalid(path, name, detail));
    }
}

fn amounts(object: &Value, field: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let at = path.child(field);
    for (name, amount) in entries(object, field) {
        let at = at.key(name);
        amount_name(name, &at, errors);
        let shown = amount.as_str().unwrap_or_default();
        let Ok(amount) = Quantity::parse(shown) else {
            continue;
        };
        if amount.is_negative() {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(&at, shown, detail));
        }
        let is_count = COUNTS.contains(&name.as_str()) || name.starts_with("count/");
        if is_count && !amount.is_integer() {
            errors.push(FieldError::invalid(&at, shown, "must be an integer"));
        }
    }
}

fn scopes(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let at = path.child("scopes");
    let found: Vec<&str> = list(spec, "scopes")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let wrong = |at: &Path<'_>, detail| FieldError::invalid(at, json!(found), detail);
    for scope in &found {
        if !SCOPES.contains(scope) {
            errors.push(wrong(&at, "unsupported scope"));
        }
        let counted = entries(spec, "hard").map(|(name, _)| name.as_str());
        let is_wrong = |name: &str| match *scope {
            "BestEffort" => !OF_BEST_EFFORT.contains(&name) && name != "count/pods",
            _ => !is_compute(name) && name != "count/pods",
        };
        if SCOPES.contains(scope) && counted.into_iter().any(is_wrong) {
            errors.push(wrong(&at, "unsupported scope applied to resource"));
        }
    }
    for pair in [
        ["BestEffort", "NotBestEffort"],
        ["Terminating", "NotTerminating"],
    ] {
        if pair.iter().all(|scope| found.contains(scope)) {
            errors.push(wrong(&at, "conflicting scopes"));
        }
    }
    let at = path.child("scopeSelector");
    let at = at.child("matchExpressions");
    for wanted in list(get(spec, "scopeSelector"), "matchExpressions") {
        let (scope, operator) = (text(wanted, "scopeName"), text(wanted, "operator"));
        if !SCOPES.contains(&scope) {
            errors.push(FieldError::invalid(
                &at.child("scopeName"),
                scope,
                "unsupported scope",
            ));
        }
        let values = list(wanted, "values");
        let at_values = at.child("values");
        if scope != "PriorityClass" && operator != "Exists" {
            let detail = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
                          ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                          ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(FieldError::invalid(&at.child("operator"), operator, detail));
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(FieldError::required(&at_values, detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.push(FieldError::invalid(&at_values, json!(values), detail));
            }
            operator if !OPERATORS.contains(&operator) => {
                let detail = "not a valid selector operator";
                errors.push(FieldError::invalid(&at.child("operator"), operator, detail));
            }
            _ => {}
        }
    }
}

pub(super) struct ResourceQuota;

impl Strategy for ResourceQuota {
    fn prepare_create(&self, quota: &mut Value) {
        quota["status"] = json!({});
    }

    fn validate(&self, quota: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (spec, path) = (get(quota, "spec"), Path::new("spec"));
        amounts(spec, "hard", &path, &mut errors);
        scopes(spec, &path, &mut errors);
        errors
    }

    fn validate_status(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (status, path) = (get(new, "status"), Path::new("status"));
        for field in ["hard", "used"] {
            amounts(status, field, &path, &mut errors);
        }
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let set = |quota: &Value| {
            let spec = get(quota, "spec");
            let mut scopes: Vec<String> =
                list(spec, "scopes").iter().map(Value::to_string).collect();
            scopes.sort();
            scopes.dedup();
            scopes
        };
        if set(new) != set(old) {
            let (path, scopes) = (Path::new("spec"), get(get(new, "spec"), "scopes").clone());
            let at = path.child("scopes");
            errors.push(FieldError::invalid(&at, scopes, "field is immutable"));
        }
        errors
    }

    fn row(&self, quota: &Value, now: Timestamp) -> Vec<Value> {
        let status = get(quota, "status");
        let cell = |is_limit: bool| {
            let mut shown: Vec<String> = entries(status, "hard")
                .filter(|(name, _)| name.starts_with("limits") == is_limit)
                .map(|(name, hard)| {
                    let used = text(get(status, "used"), name);
                    let used = if used.is_empty() { "0" } else { used };
                    format!("{name}: {used}/{}", hard.as_str().unwrap_or_default())
                })
                .collect();
            shown.sort();
            shown.join(", ")
        };
        vec![
            meta::name(quota).into(),
            cell(false).into(),
            cell(true).into(),
            table::age(quota, now).into(),
        ]
    }
}

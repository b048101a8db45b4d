//! Role, ClusterRole, RoleBinding and ClusterRoleBinding of rbac.authorization.k8s.io.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    FieldError, Strategy,
    field::Path,
    meta,
    table::{self, Column},
    value::{default, get, list, list_mut, text},
};

/// The group of all four.
const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) const ROLE_COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Created At", "When this object was created, in UTC."),
];

pub(super) const BINDING_COLUMNS: &[Column] = &[
    Column::name(),
    Column::text(
        "Role",
        "RoleRef can only reference a ClusterRole or a Role.",
    ),
    Column::age(),
    Column::text("Users", "Users bound to the role.").wide(),
    Column::text("Groups", "Groups bound to the role.").wide(),
    Column::text("ServiceAccounts", "Service accounts bound to the role.").wide(),
];

/// Rules, in a namespace or not.
pub(super) struct Role {
    pub(super) is_namespaced: bool,
}

impl Strategy for Role {
    fn validate_name(&self, name: &str) -> Vec<String> {
        meta::path_segment_name(name)
    }

    fn validate(&self, role: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("rules");
        for (i, rule) in list(role, "rules").iter().enumerate() {
            self.rule(rule, &path.index(i), &mut errors);
        }
        let path = Path::new("aggregationRule");
        if let Some(aggregation) = role.get("aggregationRule") {
            let at = path.child("clusterRoleSelectors");
            let selectors = list(aggregation, "clusterRoleSelectors");
            if selectors.is_empty() {
                let detail =
                    "at least one clusterRoleSelector required if aggregationRule is non-nil";
                errors.push(FieldError::required(&at, detail));
            }
            for (i, selector) in selectors.iter().enumerate() {
                super::pod::label_selector(selector, &at.index(i), &mut errors);
            }
        }
        errors
    }

    fn row(&self, role: &Value, _now: Timestamp) -> Vec<Value> {
        vec![
            meta::name(role).into(),
            meta::str_of(role, "creationTimestamp").into(),
        ]
    }
}

impl Role {
    fn rule(&self, rule: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
        let required = |field: &str, detail: &str| FieldError::required(&path.child(field), detail);
        if list(rule, "verbs").is_empty() {
            errors.push(required("verbs", "verbs must contain at least one value"));
        }
        let (groups, resources) = (list(rule, "apiGroups"), list(rule, "resources"));
        if !list(rule, "nonResourceURLs").is_empty() {
            let at = path.child("nonResourceURLs");
            let urls = get(rule, "nonResourceURLs").clone();
            let is_mixed = !groups.is_empty()
                || !resources.is_empty()
                || !list(rule, "resourceNames").is_empty();
            if self.is_namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(&at, urls, detail));
            } else if is_mixed {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(&at, urls, detail));
            }
            return;
        }
        if groups.is_empty() {
            let detail = "resource rules must supply at least one api group";
            errors.push(required("apiGroups", detail));
        }
        if resources.is_empty() {
            let detail = "resource rules must supply at least one resource";
            errors.push(required("resources", detail));
        }
    }
}

/// Who has a role, in a namespace or everywhere.
pub(super) struct Binding {
    pub(super) is_namespaced: bool,
}

impl Strategy for Binding {
    fn validate_name(&self, name: &str) -> Vec<String> {
        meta::path_segment_name(name)
    }

    fn default(&self, binding: &mut Value) {
        if let Some(role) = binding.get_mut("roleRef") {
            default(role, "apiGroup", GROUP);
        }
        for subject in list_mut(binding, "subjects") {
            if matches!(text(subject, "kind"), "User" | "Group") {
                default(subject, "apiGroup", GROUP);
            }
        }
    }

    fn validate(&self, binding: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("roleRef");
        let role = get(binding, "roleRef");
        let kinds: &[&str] = if self.is_namespaced {
            &["Role", "ClusterRole"]
        } else {
            &["ClusterRole"]
        };
        let group = text(role, "apiGroup");
        if group != GROUP {
            errors.push(FieldError::not_supported(
                &path.child("apiGroup"),
                group,
                &[GROUP],
            ));
        }
        let kind = text(role, "kind");
        if !kinds.contains(&kind) {
            errors.push(FieldError::not_supported(&path.child("kind"), kind, kinds));
        }
        let (name, at) = (text(role, "name"), path.child("name"));
        if name.is_empty() {
            errors.push(FieldError::required(&at, ""));
        }
        for detail in meta::path_segment_name(name) {
            errors.push(FieldError::invalid(&at, name, detail));
        }
        let path = Path::new("subjects");
        for (i, subject) in list(binding, "subjects").iter().enumerate() {
            self.subject(subject, &path.index(i), &mut errors);
        }
        errors
    }

    fn validate_change(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if new.get("roleRef") != old.get("roleRef") {
            let path = Path::new("roleRef");
            let role = get(new, "roleRef").clone();
            errors.push(FieldError::invalid(&path, role, "cannot change roleRef"));
        }
        errors
    }

    fn row(&self, binding: &Value, now: Timestamp) -> Vec<Value> {
        let role = get(binding, "roleRef");
        let names = |kind: &str| -> Value {
            let subjects = list(binding, "subjects").iter();
            let names: Vec<String> = subjects
                .filter(|subject| text(subject, "kind") == kind)
                .map(|subject| match text(subject, "namespace") {
                    "" => text(subject, "name").to_owned(),
                    namespace => format!("{namespace}/{}", text(subject, "name")),
                })
                .collect();
            names.join(", ").into()
        };
        vec![
            meta::name(binding).into(),
            format!("{}/{}", text(role, "kind"), text(role, "name")).into(),
            table::age(binding, now).into(),
            names("User"),
            names("Group"),
            names("ServiceAccount"),
        ]
    }
}

impl Binding {
    fn subject(&self, subject: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
        let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        }
        let kind = text(subject, "kind");
        match kind {
            "ServiceAccount" => {
                let at = path.child("name");
                if !name.is_empty() {
                    for detail in meta::dns1123_subdomain(name) {
                        errors.push(FieldError::invalid(&at, name, detail));
                    }
                }
                if !group.is_empty() {
                    errors.push(FieldError::not_supported(
                        &path.child("apiGroup"),
                        group,
                        &[""],
                    ));
                }
                if !self.is_namespaced && text(subject, "namespace").is_empty() {
                    errors.push(FieldError::required(&path.child("namespace"), ""));
                }
            }
            "User" | "Group" => {
                if group != GROUP {
                    let at = path.child("apiGroup");
                    errors.push(FieldError::not_supported(&at, group, &[GROUP]));
                }
            }
            _ => {
                let known = ["ServiceAccount", "User", "Group"];
                errors.push(FieldError::not_supported(&path.child("kind"), kind, &known));
            }
        }
    }
}

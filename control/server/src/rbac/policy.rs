//! Roles and bindings as rules: who may do what, and whether somebody holds what they give away. Pure.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wherry_api::meta;

use crate::{UserInfo, authz::Attributes};

const ALL: &str = "*";

/// `PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub(crate) non_resource_urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|found| found == ALL || found == wanted)
}

impl Rule {
    /// These verbs on these resources.
    pub(crate) fn new(api_groups: &[&str], resources: &[&str], verbs: &[&str]) -> Self {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self {
            verbs: owned(verbs),
            api_groups: owned(api_groups),
            resources: owned(resources),
            ..Self::default()
        }
    }

    /// Every verb on every resource.
    pub(crate) fn everything() -> Self {
        let all = || vec![ALL.to_owned()];
        Self {
            verbs: all(),
            api_groups: all(),
            resources: all(),
            ..Self::default()
        }
    }

    pub(crate) fn is_for_urls(&self) -> bool {
        !self.non_resource_urls.is_empty()
    }

    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        let combined = format!("{resource}/{subresource}");
        let wanted = if subresource.is_empty() {
            resource
        } else {
            &combined
        };
        self.resources.iter().any(|found| {
            found == ALL
                || found == wanted
                || (!subresource.is_empty() && found.strip_prefix("*/") == Some(subresource))
        })
    }

    fn has_url(&self, path: &str) -> bool {
        self.non_resource_urls.iter().any(|found| {
            found == path
                || found
                    .strip_suffix('*')
                    .is_some_and(|prefix| path.starts_with(prefix))
        })
    }

    /// Whether it lets one do what is asked.
    pub(crate) fn allows(&self, asked: &Attributes) -> bool {
        if !has(&self.verbs, &asked.verb) {
            return false;
        }
        if asked.resource.is_empty() {
            return self.has_url(&asked.path);
        }
        has(&self.api_groups, &asked.group)
            && self.has_resource(&asked.resource, &asked.subresource)
            && (self.resource_names.is_empty() || self.resource_names.contains(&asked.name))
    }

    /// Taken apart into rules about one thing each.
    fn simple(&self) -> Vec<Attributes> {
        let mut simple = Vec::new();
        for verb in &self.verbs {
            for path in &self.non_resource_urls {
                simple.push(Attributes {
                    verb: verb.clone(),
                    path: path.clone(),
                    ..Attributes::default()
                });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let (resource, subresource) =
                        resource.split_once('/').unwrap_or((resource, ""));
                    let any = [String::new()];
                    let names = match self.resource_names.as_slice() {
                        [] => &any[..],
                        names => names,
                    };
                    for name in names {
                        simple.push(Attributes {
                            verb: verb.clone(),
                            group: group.clone(),
                            resource: resource.to_owned(),
                            subresource: subresource.to_owned(),
                            name: name.clone(),
                            ..Attributes::default()
                        });
                    }
                }
            }
        }
        simple
    }

    /// As messages show it.
    fn describe(&self) -> String {
        let quoted = |list: &[String]| {
            let quoted: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
            quoted.join(" ")
        };
        let mut parts = Vec::new();
        for (name, list) in [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ] {
            if !list.is_empty() {
                parts.push(format!("{name}:[{}]", quoted(list)));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }
}

/// What of `wanted` nobody who holds `held` holds, as messages show it.
pub(crate) fn not_held(held: &[&Rule], wanted: &[Rule]) -> Vec<String> {
    let is_held = |one: &Attributes| held.iter().any(|rule| rule.allows(one));
    wanted
        .iter()
        .filter(|rule| !rule.simple().iter().all(is_held))
        .map(Rule::describe)
        .collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Subject {
    kind: String,
    namespace: String,
    name: String,
}

impl Subject {
    /// `namespace` is that of the binding, for an account that names none.
    fn is(&self, user: &UserInfo, namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => user.name == self.name,
            "Group" => user.is_in(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() {
                    namespace
                } else {
                    &self.namespace
                };
                let mut parts = user.name.splitn(4, ':');
                parts.next() == Some("system")
                    && parts.next() == Some("serviceaccount")
                    && parts.next() == Some(namespace)
                    && parts.next() == Some(&self.name)
            }
            _ => false,
        }
    }
}

#[derive(Clone, Debug)]
struct Binding {
    /// Empty: everywhere.
    namespace: String,
    /// Namespace and name; a ClusterRole has no namespace.
    role: (String, String),
    subjects: Vec<Subject>,
}

/// All roles and bindings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    /// By namespace and name.
    roles: HashMap<(String, String), Vec<Rule>>,
    bindings: Vec<Binding>,
}

/// The rules of a Role or ClusterRole.
pub(crate) fn rules_of(role: &Value) -> Vec<Rule> {
    let rules = role.get("rules").cloned().unwrap_or_default();
    serde_json::from_value(rules).unwrap_or_default()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Namespace and name of the role a binding names.
pub(crate) fn role_of(binding: &Value) -> (String, String) {
    let role = binding.get("roleRef").cloned().unwrap_or_default();
    let namespace = match text(&role, "kind") {
        "ClusterRole" => "",
        _ => meta::namespace(binding),
    };
    (namespace.to_owned(), text(&role, "name").to_owned())
}

impl Policy {
    /// From all Roles and ClusterRoles, and all RoleBindings and ClusterRoleBindings.
    pub(crate) fn new(roles: &[Value], bindings: &[Value]) -> Self {
        let mut policy = Self::default();
        for role in roles {
            let key = (
                meta::namespace(role).to_owned(),
                meta::name(role).to_owned(),
            );
            let rules = rules_of(role);
            policy.roles.insert(key, rules);
        }
        for binding in bindings {
            let subjects = binding.get("subjects").and_then(Value::as_array);
            policy.bindings.push(Binding {
                namespace: meta::namespace(binding).to_owned(),
                role: role_of(binding),
                subjects: subjects
                    .into_iter()
                    .flatten()
                    .map(|subject| Subject {
                        kind: text(subject, "kind").to_owned(),
                        namespace: text(subject, "namespace").to_owned(),
                        name: text(subject, "name").to_owned(),
                    })
                    .collect(),
            });
        }
        policy
    }

    /// The rules of a role; `None`: there is no such role.
    pub(crate) fn role(&self, key: &(String, String)) -> Option<&[Rule]> {
        self.roles.get(key).map(Vec::as_slice)
    }

    /// What a user may do in a namespace (empty: outside of all).
    pub(crate) fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<&Rule> {
        self.bindings
            .iter()
            .filter(|binding| binding.namespace.is_empty() || binding.namespace == namespace)
            .filter(|binding| {
                let mut subjects = binding.subjects.iter();
                subjects.any(|subject| subject.is(user, &binding.namespace))
            })
            .filter_map(|binding| self.roles.get(&binding.role))
            .flatten()
            .collect()
    }

    /// Whether a user may do what is asked.
    pub(crate) fn allows(&self, user: &UserInfo, asked: &Attributes) -> bool {
        let rules = self.rules_for(user, &asked.namespace);
        rules.into_iter().any(|rule| rule.allows(asked))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asks(verb: &str, group: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    fn rule(value: Value) -> Rule {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_rule_allows_what_it_names() {
        let pods =
            rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"]}));
        let named = rule(
            json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["a"]}),
        );
        let scale =
            rule(json!({"verbs": ["update"], "apiGroups": ["apps"], "resources": ["*/scale"]}));
        for (rule, asked, expected) in [
            (&pods, asks("get", "", "pods", "ns", "a"), true),
            (&pods, asks("get", "", "pods/log", "ns", "a"), true),
            (&pods, asks("get", "", "pods/exec", "ns", "a"), false),
            (&pods, asks("list", "", "pods", "ns", ""), false),
            (&pods, asks("get", "apps", "pods", "ns", "a"), false),
            (
                &named,
                asks("delete", "apps", "deployments", "ns", "a"),
                true,
            ),
            (
                &named,
                asks("delete", "apps", "deployments", "ns", "b"),
                false,
            ),
            (&named, asks("list", "", "pods", "ns", ""), false),
            (
                &scale,
                asks("update", "apps", "deployments/scale", "ns", "a"),
                true,
            ),
            (
                &scale,
                asks("update", "apps", "deployments", "ns", "a"),
                false,
            ),
        ] {
            assert_eq!(rule.allows(&asked), expected, "{rule:?} {asked:?}");
        }
        let urls = rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/api/*"]}));
        for (path, expected) in [("/healthz", true), ("/healthz/x", false), ("/api/v1", true)] {
            let asked = Attributes {
                verb: "get".into(),
                path: path.into(),
                ..Attributes::default()
            };
            assert_eq!(urls.allows(&asked), expected, "{path}");
        }
    }

    #[test]
    fn bindings_give_roles_where_they_are() {
        let read = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        let write = json!([{"verbs": ["update"], "apiGroups": [""], "resources": ["pods"]}]);
        let roles = [
            json!({"metadata": {"name": "reader", "namespace": "ns"}, "rules": read}),
            json!({"metadata": {"name": "writer", "labels": {"to": "edit"}}, "rules": write}),
        ];
        let bindings = [
            json!({
                "metadata": {"name": "a", "namespace": "ns"}, "roleRef": {"kind": "Role", "name": "reader"},
                "subjects": [{"kind": "ServiceAccount", "name": "robot"}, {"kind": "User", "name": "jane"}],
            }),
            json!({
                "metadata": {"name": "b", "namespace": "ns"}, "roleRef": {"kind": "ClusterRole", "name": "writer"},
                "subjects": [{"kind": "Group", "name": "devs"}],
            }),
            json!({
                "metadata": {"name": "c"}, "roleRef": {"kind": "ClusterRole", "name": "writer"},
                "subjects": [{"kind": "User", "name": "root"}],
            }),
        ];
        let policy = Policy::new(&roles, &bindings);
        let robot = UserInfo::service_account("ns", "robot", "");
        let stranger = UserInfo::service_account("other", "robot", "");
        let (jane, dev, root) = (
            UserInfo::new("jane", &[]),
            UserInfo::new("x", &["devs"]),
            UserInfo::new("root", &[]),
        );
        for (user, verb, namespace, expected) in [
            (&robot, "get", "ns", true),
            (&stranger, "get", "ns", false),
            (&jane, "get", "ns", true),
            (&jane, "get", "other", false),
            (&jane, "update", "ns", false),
            (&dev, "update", "ns", true),
            (&dev, "update", "", false),
            (&root, "update", "anywhere", true),
            (&root, "update", "", true),
        ] {
            let asked = asks(verb, "", "pods", namespace, "");
            assert_eq!(
                policy.allows(user, &asked),
                expected,
                "{} {asked:?}",
                user.name
            );
        }
    }

    #[test]
    fn nobody_gives_away_what_they_do_not_hold() {
        let held = [
            rule(
                json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/status"]}),
            ),
            rule(json!({"verbs": ["get"], "apiGroups": ["apps"], "resources": ["*"]})),
        ];
        let held: Vec<&Rule> = held.iter().collect();
        for (wanted, expected) in [
            (
                json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}),
                true,
            ),
            (
                json!({"verbs": ["get"], "apiGroups": [""], "resources": ["nodes/status"]}),
                true,
            ),
            (
                json!({"verbs": ["get"], "apiGroups": ["apps"], "resources": ["*"]}),
                true,
            ),
            (
                json!({"verbs": ["get"], "apiGroups": ["", "apps"], "resources": ["pods"]}),
                true,
            ),
            (
                json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]}),
                false,
            ),
            (
                json!({"verbs": ["get"], "apiGroups": ["*"], "resources": ["pods"]}),
                false,
            ),
            (json!({"verbs": ["get"], "nonResourceURLs": ["/x"]}), false),
        ] {
            let wanted = rule(wanted);
            let missing = not_held(&held, std::slice::from_ref(&wanted));
            assert_eq!(missing.is_empty(), expected, "{wanted:?}");
        }
        let wanted = [rule(
            json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]}),
        )];
        assert_eq!(
            not_held(&held, &wanted),
            [r#"{APIGroups:[""], Resources:["pods"], Verbs:["*"]}"#]
        );
    }
}

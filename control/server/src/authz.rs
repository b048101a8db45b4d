//! Who may do what.
//!
//! Administrators may do everything, everybody known may look at the discovery documents and ask about themselves, and
//! agents may do what a node needs. What roles let their subjects do beyond that is in `rbac`.

use crate::UserInfo;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// API group.
    pub group: String,
    /// Plural; empty: this is about [`path`](Self::path).
    pub resource: String,
    /// Path below an object.
    pub subresource: String,
    /// Namespace; empty: all, or none.
    pub namespace: String,
    /// Name; empty: all.
    pub name: String,
    /// A path that is no resource.
    pub path: String,
}

/// Decides.
pub trait Authorizer: Send + Sync + 'static {
    /// Whether `user` may.
    fn is_allowed(&self, user: &UserInfo, attributes: &Attributes) -> bool;
}

/// The rules that need no roles.
#[derive(Clone, Copy, Debug, Default)]
pub struct FixedRules;

/// What everybody known may look at (`system:discovery`).
const DISCOVERY: &[&str] = &[
    "/api", "/apis", "/healthz", "/livez", "/readyz", "/openapi", "/version",
];

/// What everybody known may ask about themselves (`system:basic-user`).
const ABOUT_ONESELF: &[&str] = &[
    "selfsubjectaccessreviews",
    "selfsubjectrulesreviews",
    "selfsubjectreviews",
];

impl Authorizer for FixedRules {
    fn is_allowed(&self, user: &UserInfo, asked: &Attributes) -> bool {
        if user.is_in("system:masters") {
            return true;
        }
        if asked.resource.is_empty() {
            return asked.verb == "get"
                && DISCOVERY.iter().any(|prefix| is_below(&asked.path, prefix));
        }
        if asked.verb == "create" && ABOUT_ONESELF.contains(&asked.resource.as_str()) {
            return true;
        }
        user.node_name().is_some_and(|node| node_may(node, asked))
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What `system:node` and the node authorizer let an agent do, without the graph of which objects its pods name.
fn node_may(node: &str, asked: &Attributes) -> bool {
    let reads = matches!(asked.verb.as_str(), "get" | "list" | "watch");
    let writes = matches!(
        asked.verb.as_str(),
        "create" | "update" | "patch" | "delete"
    );
    let is_own = asked.name.is_empty() || asked.name == node;
    match (
        asked.group.as_str(),
        asked.resource.as_str(),
        asked.subresource.as_str(),
    ) {
        ("", "nodes", "" | "status") => reads || (writes && is_own),
        ("", "pods", "") => reads || matches!(asked.verb.as_str(), "create" | "delete"),
        ("", "pods", "status") => reads || matches!(asked.verb.as_str(), "update" | "patch"),
        ("", "pods", "eviction") | ("", "serviceaccounts", "token") => asked.verb == "create",
        ("" | "events.k8s.io", "events", "") => {
            matches!(asked.verb.as_str(), "create" | "update" | "patch")
        }
        (
            "",
            "services" | "endpoints" | "configmaps" | "secrets" | "serviceaccounts" | "namespaces",
            "",
        )
        | ("node.k8s.io", "runtimeclasses", "")
        | ("discovery.k8s.io", "endpointslices", "") => reads,
        ("wherry.dev", "plugins", "") => reads,
        ("wherry.dev", "plugins", "status") => {
            matches!(asked.verb.as_str(), "update" | "patch")
        }
        ("coordination.k8s.io", "leases", "") => {
            reads || (writes && asked.namespace == "kube-node-lease" && is_own)
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") => {
            reads || asked.verb == "create"
        }
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews", "") => asked.verb == "create",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(
        verb: &str,
        group: &str,
        resource: &str,
        subresource: &str,
        namespace: &str,
        name: &str,
    ) -> Attributes {
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            path: String::new(),
        }
    }

    #[test]
    fn each_may_do_what_is_theirs() {
        let (node, pod) = (
            UserInfo::node("a"),
            UserInfo::service_account("ns", "default", "1"),
        );
        for (user, asked, expected) in [
            (
                &UserInfo::admin(),
                asks("delete", "", "secrets", "", "ns", "x"),
                true,
            ),
            (&node, asks("patch", "", "nodes", "status", "", "a"), true),
            (&node, asks("patch", "", "nodes", "status", "", "b"), false),
            (&node, asks("list", "", "pods", "", "", ""), true),
            (
                &node,
                asks(
                    "update",
                    "coordination.k8s.io",
                    "leases",
                    "",
                    "kube-node-lease",
                    "a",
                ),
                true,
            ),
            (
                &node,
                asks(
                    "update",
                    "coordination.k8s.io",
                    "leases",
                    "",
                    "kube-node-lease",
                    "b",
                ),
                false,
            ),
            (&node, asks("update", "", "secrets", "", "ns", "x"), false),
            (
                &node,
                asks(
                    "create",
                    "certificates.k8s.io",
                    "certificatesigningrequests",
                    "",
                    "",
                    "",
                ),
                true,
            ),
            (
                &node,
                asks(
                    "update",
                    "certificates.k8s.io",
                    "certificatesigningrequests",
                    "approval",
                    "",
                    "x",
                ),
                false,
            ),
            (&pod, asks("list", "", "pods", "", "ns", ""), false),
            (
                &pod,
                asks(
                    "create",
                    "authentication.k8s.io",
                    "selfsubjectreviews",
                    "",
                    "",
                    "",
                ),
                true,
            ),
        ] {
            assert_eq!(
                FixedRules.is_allowed(user, &asked),
                expected,
                "{} {asked:?}",
                user.name
            );
        }
        let path = |path: &str| Attributes {
            verb: "get".into(),
            path: path.into(),
            ..Attributes::default()
        };
        for (asked, expected) in [
            ("/api/v1", true),
            ("/openapi/v3", true),
            ("/apix", false),
            ("/metrics", false),
        ] {
            assert_eq!(
                FixedRules.is_allowed(&pod, &path(asked)),
                expected,
                "{asked}"
            );
        }
    }
}

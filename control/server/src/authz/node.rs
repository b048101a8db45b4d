//! The node authorizer: an agent reads what its own pods name, and writes about its own node and pods.
//!
//! What is in an object that is written is checked at admission (`admission::node_restriction`).

use std::sync::OnceLock;

use wherry_api::selector::FieldSelector;

use super::{
    Attributes,
    graph::{Kind, Object},
};
use crate::{App, rbac::Rule, stored};

/// Where the Leases of nodes are.
pub(crate) const LEASES: &str = "kube-node-lease";

const READ: &[&str] = &["get", "list", "watch"];
const KEEP: &[&str] = &["create", "get", "list", "patch", "update", "watch"];

/// The rules of `system:node`, as Kubernetes has them, and what the agent needs besides: EndpointSlices, because it
/// serves Services and names itself, and Plugins.
pub(crate) fn rules() -> &'static [Rule] {
    static RULES: OnceLock<Vec<Rule>> = OnceLock::new();
    RULES.get_or_init(|| {
        vec![
            Rule::new(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
            Rule::new(
                &["authorization.k8s.io"],
                &["localsubjectaccessreviews", "subjectaccessreviews"],
                &["create"],
            ),
            Rule::new(&[""], &["services"], READ),
            Rule::new(&[""], &["nodes"], KEEP),
            Rule::new(&[""], &["nodes/status"], &["get", "patch", "update"]),
            Rule::new(
                &["", "events.k8s.io"],
                &["events"],
                &["create", "patch", "update"],
            ),
            Rule::new(
                &[""],
                &["pods"],
                &["create", "delete", "get", "list", "watch"],
            ),
            Rule::new(&[""], &["pods/status"], &["get", "patch", "update"]),
            Rule::new(&[""], &["pods/eviction"], &["create"]),
            Rule::new(
                &["", "storage.k8s.io"],
                &[
                    "configmaps",
                    "persistentvolumeclaims",
                    "persistentvolumes",
                    "secrets",
                    "volumeattachments",
                ],
                READ,
            ),
            Rule::new(
                &[""],
                &["persistentvolumeclaims/status"],
                &["get", "patch", "update"],
            ),
            Rule::new(&[""], &["serviceaccounts"], &["get"]),
            Rule::new(&[""], &["serviceaccounts/token"], &["create"]),
            Rule::new(
                &["certificates.k8s.io"],
                &["certificatesigningrequests"],
                &["create", "get", "list", "watch"],
            ),
            Rule::new(
                &["coordination.k8s.io"],
                &["leases"],
                &["create", "delete", "get", "patch", "update"],
            ),
            Rule::new(&["discovery.k8s.io"], &["endpointslices"], READ),
            Rule::new(&["node.k8s.io"], &["runtimeclasses"], READ),
            Rule::new(&["storage.k8s.io"], &["csidrivers"], READ),
            Rule::new(
                &["storage.k8s.io"],
                &["csinodes"],
                &["create", "delete", "get", "patch", "update"],
            ),
            Rule::new(&["wherry.dev"], &["plugins"], READ),
            Rule::new(
                &["wherry.dev"],
                &["plugins/status"],
                &["get", "patch", "update"],
            ),
        ]
    })
}

/// Whether the agent of `node` may, and if not, why.
pub(super) async fn check(app: &App, node: &str, asked: &Attributes) -> Result<(), String> {
    if !rules().iter().any(|rule| rule.allows(asked)) {
        return Err(String::new());
    }
    let (name, verb) = (asked.name.as_str(), asked.verb.as_str());
    let is_own = name == node;
    // The name of a new one is in its body: admission looks there.
    let is_new = verb == "create" && name.is_empty();
    match (
        asked.group.as_str(),
        asked.resource.as_str(),
        asked.subresource.as_str(),
    ) {
        ("", "secrets", _) => named(app, node, Kind::Secret, asked).await,
        ("", "configmaps", _) => named(app, node, Kind::ConfigMap, asked).await,
        ("", "persistentvolumeclaims", _) => named(app, node, Kind::Claim, asked).await,
        ("", "persistentvolumes", _) => named(app, node, Kind::Volume, asked).await,
        ("storage.k8s.io", "volumeattachments", _) => {
            named(app, node, Kind::Attachment, asked).await
        }
        ("", "serviceaccounts", _) => named(app, node, Kind::Account, asked).await,
        ("coordination.k8s.io", "leases", _) => {
            if asked.namespace != LEASES {
                return Err(format!(
                    "can only access leases in the {LEASES:?} system namespace"
                ));
            }
            if !is_own && !is_new {
                return Err(
                    "can only access node lease with the same name as the requesting node".into(),
                );
            }
            Ok(())
        }
        ("storage.k8s.io", "csinodes", _) => {
            if !is_own && !is_new {
                return Err(
                    "can only access CSINode with the same name as the requesting node".into(),
                );
            }
            Ok(())
        }
        ("", "nodes", sub) if !READ.contains(&verb) => {
            if !is_own && !is_new {
                let what = if sub.is_empty() {
                    "node"
                } else {
                    "status of node"
                };
                return Err(format!(
                    "node {node:?} cannot modify {what} {name:?}, only its own"
                ));
            }
            Ok(())
        }
        ("", "pods", "") => pods(app, node, asked).await,
        _ => Ok(()),
    }
}

/// Only pods of the node are shown to it. One that is not there may be asked for, which is how an agent learns that.
async fn pods(app: &App, node: &str, asked: &Attributes) -> Result<(), String> {
    match asked.verb.as_str() {
        "get" => {
            let pods = wherry_api::find("", "v1", "pods").expect("a row");
            let key = stored::key(pods, &asked.namespace, &asked.name);
            let (found, _) = app
                .store
                .get(&key)
                .await
                .map_err(|error| error.to_string())?;
            let assigned = found.map(|kv| stored::decode(&kv)["spec"]["nodeName"].clone());
            match assigned {
                Some(assigned) if assigned != node => Err(format!(
                    "no relationship found between node '{node}' and this object"
                )),
                _ => Ok(()),
            }
        }
        "list" | "watch" => {
            let fields = FieldSelector::parse(&asked.field_selector);
            if fields.is_ok_and(|fields| fields.required_value("spec.nodeName") == Some(node)) {
                return Ok(());
            }
            Err("can only list/watch pods with spec.nodeName field selector".into())
        }
        _ => Ok(()),
    }
}

/// An object that pods name, by its name.
async fn named(app: &App, node: &str, kind: Kind, asked: &Attributes) -> Result<(), String> {
    if asked.name.is_empty() {
        return Err("No Object name found".into());
    }
    let object = Object::new(kind, &asked.namespace, &asked.name);
    if app.graph.leads(app, node, &object).await {
        return Ok(());
    }
    Err(format!(
        "no relationship found between node '{node}' and this object"
    ))
}

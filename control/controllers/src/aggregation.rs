//! ClusterRoles that gather: the rules of those whose labels they name become theirs.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::rbac::v1::{ClusterRole, PolicyRule},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    core::{Selector, SelectorExt},
    runtime::{
        Controller,
        controller::Action,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::keep;

struct Context {
    client: Client,
    roles: Store<ClusterRole>,
}

/// Keeps them gathered until shutdown.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let api = Api::<ClusterRole>::all(client.clone());
    let controller = Controller::new(api.clone(), watcher::Config::default());
    let roles = controller.store();
    let known = roles.clone();
    // Any of them may be one that others gather.
    let controller = controller.watches(api, watcher::Config::default(), move |_| {
        let gathering: Vec<ObjectRef<ClusterRole>> = known
            .state()
            .iter()
            .filter(|role| role.aggregation_rule.is_some())
            .map(|role| ObjectRef::from_obj(&**role))
            .collect();
        gathering
    });
    keep::until_shutdown(
        controller,
        "Rules not gathered",
        reconcile,
        Context { client, roles },
        shutdown,
    )
    .await;
}

fn matches(selectors: &[LabelSelector], labels: &BTreeMap<String, String>) -> bool {
    selectors.iter().any(|selector| {
        let selector = Selector::try_from(selector.clone());
        selector.is_ok_and(|selector| selector.matches(labels))
    })
}

/// The rules that a role gathers, in the order of the others' names, each once.
fn gathered<'a>(role: &ClusterRole, all: impl Iterator<Item = &'a ClusterRole>) -> Vec<PolicyRule> {
    let selectors = role
        .aggregation_rule
        .as_ref()
        .and_then(|rule| rule.cluster_role_selectors.as_deref());
    let selectors = selectors.unwrap_or_default();
    let mut others: Vec<&ClusterRole> = all
        .filter(|other| other.name_any() != role.name_any() && matches(selectors, other.labels()))
        .collect();
    others.sort_by_key(|other| other.name_any());
    let mut rules = Vec::new();
    for rule in others
        .into_iter()
        .flat_map(|other| other.rules.iter().flatten())
    {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    rules
}

async fn reconcile(role: Arc<ClusterRole>, context: Arc<Context>) -> kube::Result<Action> {
    if role.aggregation_rule.is_none() {
        return Ok(Action::await_change());
    }
    let all = context.roles.state();
    let wanted = gathered(&role, all.iter().map(|role| &**role));
    if role.rules.as_deref().unwrap_or_default() == wanted {
        return Ok(Action::await_change());
    }
    let roles: Api<ClusterRole> = Api::all(context.client.clone());
    let patch = json!({
        "metadata": { "resourceVersion": role.resource_version() },
        "rules": wanted,
    });
    roles
        .patch(
            &role.name_any(),
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await?;
    debug!(
        role = role.name_any(),
        rules = wanted.len(),
        "Rules gathered"
    );
    Ok(Action::await_change())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(value: serde_json::Value) -> ClusterRole {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn rules_are_gathered_by_labels_and_each_once() {
        let pods = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
        let nodes = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["nodes"]});
        let all = [
            role(
                json!({"metadata": {"name": "b", "labels": {"to": "view"}}, "rules": [nodes, pods]}),
            ),
            role(json!({"metadata": {"name": "a", "labels": {"to": "view"}}, "rules": [pods]})),
            role(
                json!({"metadata": {"name": "c", "labels": {"to": "edit"}}, "rules": [{"verbs": ["delete"]}]}),
            ),
        ];
        for (selectors, expected) in [
            (
                json!([{"matchLabels": {"to": "view"}}]),
                json!([pods, nodes]),
            ),
            (
                json!([{"matchExpressions": [{"key": "to", "operator": "In", "values": ["edit"]}]}]),
                json!([{"verbs": ["delete"]}]),
            ),
            (json!([{"matchLabels": {"to": "nobody"}}]), json!([])),
        ] {
            let gathering = role(json!({
                "metadata": {"name": "b2", "labels": {"to": "view"}},
                "aggregationRule": {"clusterRoleSelectors": selectors},
            }));
            assert_eq!(json!(gathered(&gathering, all.iter())), expected);
        }
    }
}

//! Roles: who may do what beyond the fixed rules, and what nobody may give away who does not hold it.
//!
//! The policy is kept in memory and read anew when one of its objects changes.

mod defaults;
mod policy;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wherry_api::{Resource, Status, meta};
use wherry_store::{Store, StoreError, WatchMessage};

pub(crate) use defaults::bootstrap;
use policy::Policy;
pub(crate) use policy::Rule;

use crate::{App, UserInfo, authz::Attributes, call::Call, stored};

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
const ROLES: [&str; 2] = ["clusterroles", "roles"];
const BINDINGS: [&str; 2] = ["clusterrolebindings", "rolebindings"];
/// Before the store is asked again after it failed.
const RETRY: Duration = Duration::from_millis(200);

/// The policy as it was last read.
#[derive(Default)]
pub(crate) struct Rbac(RwLock<Arc<Policy>>);

impl Rbac {
    fn policy(&self) -> Arc<Policy> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads the policy.
    pub(crate) async fn reload(&self, store: &Arc<dyn Store>) -> Result<(), StoreError> {
        let read = async |plurals: [&str; 2]| {
            let mut objects = Vec::new();
            for plural in plurals {
                let listed = store.list(&stored::prefix(row(plural)), None, 0, 0).await?;
                objects.extend(listed.items.iter().map(stored::decode));
            }
            Ok::<_, StoreError>(objects)
        };
        let (roles, bindings) = (read(ROLES).await?, read(BINDINGS).await?);
        let policy = Arc::new(Policy::new(&roles, &bindings));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = policy;
        Ok(())
    }

    /// Whether a role lets a user do what is asked.
    pub(crate) fn allows(&self, user: &UserInfo, asked: &Attributes) -> bool {
        self.policy().allows(user, asked)
    }

    /// What a user's roles let them do in a namespace, as `SelfSubjectRulesReview` has it: of resources, and of paths.
    pub(crate) fn review(&self, user: &UserInfo, namespace: &str) -> (Vec<Value>, Vec<Value>) {
        let policy = self.policy();
        let mut rules = policy.rules_for(user, namespace);
        if user.node_name().is_some() {
            rules.extend(crate::authz::node::rules());
        }
        let (of_urls, of_resources): (Vec<&Rule>, Vec<&Rule>) =
            rules.into_iter().partition(|rule| rule.is_for_urls());
        let values = |rules: Vec<&Rule>| rules.into_iter().map(|rule| json!(rule)).collect();
        (values(of_resources), values(of_urls))
    }
}

fn row(plural: &str) -> &'static Resource {
    wherry_api::find(GROUP, "v1", plural).expect("a row")
}

/// Keeps the policy as the store has it, until told to stop.
pub(crate) async fn keep(app: Arc<App>, shutdown: CancellationToken) {
    let changed = Arc::new(Notify::new());
    let watches = ROLES.into_iter().chain(BINDINGS).map(|plural| {
        let (store, changed) = (app.store.clone(), changed.clone());
        async move { watch(&store, plural, &changed).await }
    });
    let watches = futures::future::join_all(watches);
    let reloads = async {
        loop {
            changed.notified().await;
            if let Err(error) = app.rbac.reload(&app.store).await {
                tracing::warn!(%error, "Roles could not be read");
                tokio::time::sleep(RETRY).await;
                changed.notify_one();
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = watches => {}
        () = reloads => {}
    }
}

async fn watch(store: &Arc<dyn Store>, plural: &str, changed: &Notify) {
    loop {
        if let Ok(mut watch) = store.watch(&stored::prefix(row(plural)), 0).await {
            // What was written before the watch began counts too.
            changed.notify_one();
            loop {
                match watch.recv().await {
                    Some(WatchMessage::Events(_)) => changed.notify_one(),
                    Some(WatchMessage::Progress(_)) => {}
                    Some(WatchMessage::Lost) | None => break,
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Nobody makes or changes a role, or binds one, that lets others do what they themselves may not, unless they may
/// `escalate` or `bind`.
pub(crate) async fn check_escalation(call: &Call, object: &Value) -> Result<(), Status> {
    if call.resource.group != GROUP || call.user.is_in("system:masters") {
        return Ok(());
    }
    let (namespace, name) = (call.namespace(), meta::name(object));
    let policy = call.app.rbac.policy();
    let (verb, about, mut wanted) = if ROLES.contains(&call.resource.plural) {
        (
            "escalate",
            (call.resource.plural, name.to_owned()),
            policy::rules_of(object),
        )
    } else {
        let role = policy::role_of(object);
        let plural = if role.0.is_empty() {
            "clusterroles"
        } else {
            "roles"
        };
        let rules = policy.role(&role).map(<[Rule]>::to_vec);
        (
            "bind",
            (plural, role.1.clone()),
            rules.ok_or_else(|| Status::not_found(row(plural), &role.1))?,
        )
    };
    if object
        .get("aggregationRule")
        .is_some_and(|rule| !rule.is_null())
    {
        // What it will gather nobody can tell.
        wanted.push(Rule::everything());
    }
    let may = Attributes {
        verb: verb.to_owned(),
        group: GROUP.to_owned(),
        resource: about.0.to_owned(),
        namespace: namespace.to_owned(),
        name: about.1,
        ..Attributes::default()
    };
    if call.app.may(&call.user, &may).await {
        return Ok(());
    }
    let missing = policy::not_held(&policy.rules_for(&call.user, namespace), &wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = call
        .user
        .groups
        .iter()
        .map(|group| format!("{group:?}"))
        .collect();
    let detail = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        call.user.name,
        groups.join(" "),
        missing.join("\n")
    );
    Err(Status::forbidden(call.resource, name, &detail))
}

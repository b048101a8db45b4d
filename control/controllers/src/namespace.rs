//! Empties namespaces that are deleted, and lets them go.
//!
//! Pods go first and everything else once they have ended, so that what a pod needs to end is there
//! until then (`OrderedNamespaceDeletion`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, NamespaceCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
    discovery::{ApiResource, Discovery, Scope, verbs},
    runtime::{Controller, controller::Action, watcher},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{keep, retry};

/// The finalizer that keeps a namespace until it is empty.
const FINALIZER: &str = "kubernetes";

/// Objects that are looked at to say what remains; past that they are only counted.
const REMAINING_LISTED_MAX: u32 = 100;

/// Shortest and longest wait before a namespace is looked at again that is not empty yet.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(200);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(5);

/// What is left in a namespace, by resource: `pods.`, `deployments.apps`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Remaining {
    resources: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    errors: Vec<String>,
}

/// Empties namespaces until shutdown.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let controller = Controller::new(
        Api::<Namespace>::all(client.clone()),
        watcher::Config::default(),
    );
    keep::until_shutdown(
        controller,
        "Namespace not emptied",
        reconcile,
        client,
        shutdown,
    )
    .await;
}

/// Whether things may be made in a namespace.
pub(crate) fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

async fn reconcile(namespace: Arc<Namespace>, client: Arc<Client>) -> kube::Result<Action> {
    let Some(deleted_at) = &namespace.metadata.deletion_timestamp else {
        return Ok(Action::await_change());
    };
    let finalizers = namespace
        .spec
        .iter()
        .flat_map(|spec| spec.finalizers.iter().flatten());
    if !finalizers.clone().any(|finalizer| finalizer == FINALIZER) {
        return Ok(Action::await_change());
    }
    let client = (*client).clone();
    let name = namespace.name_any();
    let remaining = empty(&client, &name).await?;
    write_conditions(&client, &namespace, &remaining).await?;
    if !remaining.is_empty() {
        return Ok(Action::requeue(look_again(
            Timestamp::now().duration_since(deleted_at.0).unsigned_abs(),
        )));
    }
    finalize(&client, &name).await?;
    info!(namespace = %name, "Namespace emptied");
    Ok(Action::await_change())
}

/// Deletes what is in a namespace; answers what is there still.
async fn empty(client: &Client, namespace: &str) -> kube::Result<Remaining> {
    let mut remaining = Remaining::default();
    let resources = namespaced_resources(client).await?;
    let (pods, others): (Vec<_>, Vec<_>) = resources
        .into_iter()
        .partition(|resource| resource.group.is_empty() && resource.plural == "pods");
    for resource in pods {
        remaining.delete_all(client, namespace, &resource).await;
    }
    if remaining.is_empty() {
        for resource in others {
            remaining.delete_all(client, namespace, &resource).await;
        }
    }
    Ok(remaining)
}

/// Resources that are in namespaces and can be listed and deleted, each in one version.
async fn namespaced_resources(client: &Client) -> kube::Result<Vec<ApiResource>> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let resources = discovery
        .groups()
        .flat_map(|group| group.recommended_resources());
    let can_go = resources.filter(|(_, able)| {
        able.scope == Scope::Namespaced
            && able.supports_operation(verbs::LIST)
            && able.supports_operation(verbs::DELETE)
    });
    Ok(can_go.map(|(resource, _)| resource).collect())
}

impl Remaining {
    fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.errors.is_empty()
    }

    async fn delete_all(&mut self, client: &Client, namespace: &str, resource: &ApiResource) {
        let name = format!("{}.{}", resource.plural, resource.group);
        let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
        let listed = async {
            let list = ListParams::default().limit(REMAINING_LISTED_MAX);
            if objects.list_metadata(&list).await?.items.is_empty() {
                return Ok(None);
            }
            match objects
                .delete_collection(&DeleteParams::background(), &ListParams::default())
                .await
            {
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => {
                    delete_each(&objects).await?;
                }
                Err(error) => return Err(error),
                Ok(_) => {}
            }
            let left = objects.list_metadata(&list).await?;
            let more = left.metadata.remaining_item_count.unwrap_or(0);
            kube::Result::Ok(Some((left.items, usize::try_from(more).unwrap_or(0))))
        };
        match listed.await {
            Ok(Some((left, more))) if !left.is_empty() => {
                self.resources.insert(name, left.len() + more);
                for finalizer in left
                    .iter()
                    .flat_map(|object| object.metadata.finalizers.iter().flatten())
                {
                    *self.finalizers.entry(finalizer.clone()).or_default() += 1;
                }
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => self.errors.push(format!(
                "unexpected error deleting {name}: {}",
                retry::text(&error)
            )),
        }
    }

    /// The conditions of the namespace, in Kubernetes' words.
    fn conditions(&self) -> [(&'static str, bool, &'static str, String); 3] {
        let list = |counts: &BTreeMap<String, usize>, form: fn(&str, usize) -> String| {
            counts
                .iter()
                .map(|(name, count)| form(name, *count))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let content = if self.resources.is_empty() {
            ("ContentRemoved", "All content successfully removed".into())
        } else {
            let form = |name: &str, count| format!("{name} has {count} resource instances");
            (
                "SomeResourcesRemain",
                format!(
                    "Some resources are remaining: {}",
                    list(&self.resources, form)
                ),
            )
        };
        let finalizers = if self.finalizers.is_empty() {
            (
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".into(),
            )
        } else {
            let form = |name: &str, count| format!("{name} in {count} resource instances");
            let listed = list(&self.finalizers, form);
            (
                "SomeFinalizersRemain",
                format!("Some content in the namespace has finalizers remaining: {listed}"),
            )
        };
        let failures = if self.errors.is_empty() {
            (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".into(),
            )
        } else {
            (
                "ContentDeletionFailed",
                format!(
                    "Failed to delete all resource types, {}",
                    self.errors.join(", ")
                ),
            )
        };
        [
            (
                "NamespaceDeletionContentFailure",
                !self.errors.is_empty(),
                failures.0,
                failures.1,
            ),
            (
                "NamespaceContentRemaining",
                !self.resources.is_empty(),
                content.0,
                content.1,
            ),
            (
                "NamespaceFinalizersRemaining",
                !self.finalizers.is_empty(),
                finalizers.0,
                finalizers.1,
            ),
        ]
    }
}

async fn delete_each(objects: &Api<DynamicObject>) -> kube::Result<()> {
    let listed: Vec<PartialObjectMeta<DynamicObject>> =
        objects.list_metadata(&ListParams::default()).await?.items;
    for object in listed {
        match objects
            .delete(&object.name_any(), &DeleteParams::background())
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Says in the namespace's status how far it is, if that has changed.
async fn write_conditions(
    client: &Client,
    namespace: &Namespace,
    remaining: &Remaining,
) -> kube::Result<()> {
    let Some(status) = new_status(namespace, remaining, Timestamp::now()) else {
        return Ok(());
    };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let patch = Patch::Merge(json!({ "status": status }));
    match namespaces
        .patch_status(&namespace.name_any(), &PatchParams::default(), &patch)
        .await
    {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// The status to write. A namespace that is empty at once gets none but the phase: it is as good as
/// gone.
fn new_status(namespace: &Namespace, remaining: &Remaining, now: Timestamp) -> Option<Value> {
    let status = namespace.status.clone().unwrap_or_default();
    let old = status.conditions.unwrap_or_default();
    let mut new = old.clone();
    if !remaining.is_empty() || !old.is_empty() {
        for (type_, is_true, reason, message) in remaining.conditions() {
            set_condition(&mut new, type_, is_true, reason, message, now);
        }
    }
    let is_changed = status.phase.as_deref() != Some("Terminating") || new != old;
    is_changed.then(|| json!({ "phase": "Terminating", "conditions": new }))
}

fn set_condition(
    conditions: &mut Vec<NamespaceCondition>,
    type_: &str,
    is_true: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let status = if is_true { "True" } else { "False" };
    let old = conditions
        .iter()
        .position(|condition| condition.type_ == type_);
    let since = old
        .map(|index| &conditions[index])
        .filter(|old| old.status == status);
    let new = NamespaceCondition {
        last_transition_time: since.map_or(Some(Time(now)), |old| old.last_transition_time.clone()),
        message: Some(message),
        reason: Some(reason.into()),
        status: status.into(),
        type_: type_.into(),
    };
    match old {
        Some(index) => conditions[index] = new,
        None => conditions.push(new),
    }
}

/// Takes our finalizer off, which is what ends the namespace.
async fn finalize(client: &Client, name: &str) -> kube::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    // Read again: what has been reconciled is older than the status just written.
    let Some(mut namespace) = namespaces.get_opt(name).await? else {
        return Ok(());
    };
    if let Some(finalizers) = namespace
        .spec
        .as_mut()
        .and_then(|spec| spec.finalizers.as_mut())
    {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    let params = PostParams::default();
    match namespaces
        .replace_subresource("finalize", name, &params, &namespace)
        .await
    {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// Often at first, when small pods end, and less often the longer it takes.
fn look_again(since_deletion: Duration) -> Duration {
    (since_deletion / 4).clamp(LOOK_AGAIN_MIN, LOOK_AGAIN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[tokio::test]
    async fn a_deleted_namespace_is_emptied_pods_first_and_then_let_go() {
        let fake = Fake::new();
        fake.put(
            "v1/namespaces",
            json!({ "metadata": { "name": "keep" }, "spec": { "finalizers": ["kubernetes"] } }),
        );
        for namespace in ["shop", "keep"] {
            fake.put(
                "v1/configmaps",
                json!({ "metadata": { "name": "c", "namespace": namespace } }),
            );
            fake.put("v1/pods", json!({ "metadata": { "name": "p", "namespace": namespace, "finalizers": ["x/y"] } }));
        }
        fake.put(
            "v1/namespaces",
            json!({
                "metadata": { "name": "shop", "deletionTimestamp": "2026-01-01T00:00:00Z" },
                "spec": { "finalizers": ["kubernetes"] },
            }),
        );
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(fake.client(), shutdown.clone()));
        let said = fake
            .wait_for("v1/namespaces", |object| {
                !object["status"]["conditions"].is_null()
            })
            .await;
        assert_eq!(said["status"]["phase"], "Terminating");
        let messages: Vec<_> = said["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|condition| condition["message"].as_str().unwrap())
            .collect();
        assert_eq!(
            messages,
            [
                "All content successfully deleted, may be waiting on finalization",
                "Some resources are remaining: pods. has 1 resource instances",
                "Some content in the namespace has finalizers remaining: x/y in 1 resource instances",
            ]
        );
        assert!(
            fake.get("v1/configmaps", "shop", "c").is_some(),
            "pods go first"
        );

        fake.remove("v1/pods", "shop", "p");
        fake.wait_until_gone("v1/namespaces", "", "shop").await;
        assert!(fake.get("v1/configmaps", "shop", "c").is_none());
        assert!(fake.get("v1/configmaps", "keep", "c").is_some());
        assert!(fake.get("v1/pods", "keep", "p").is_some());
        shutdown.cancel();
        task.await.unwrap();
    }

    #[test]
    fn a_status_that_says_the_same_is_not_written() {
        let mut namespace = Namespace::default();
        let now = Timestamp::UNIX_EPOCH;
        let remaining = Remaining {
            resources: [("pods.".to_owned(), 2)].into(),
            ..Remaining::default()
        };
        let status = new_status(&namespace, &remaining, now).unwrap();
        namespace.status = Some(serde_json::from_value(status).unwrap());
        assert_eq!(
            new_status(&namespace, &remaining, now + Duration::from_secs(9)),
            None
        );
        let empty = new_status(&namespace, &Remaining::default(), now).unwrap();
        assert_eq!(empty["conditions"][1]["reason"], "ContentRemoved");
    }

    #[test]
    fn a_namespace_is_looked_at_less_often_the_longer_it_takes() {
        for (since, want) in [(0, 200), (2, 500), (100, 5000)] {
            assert_eq!(look_again(Duration::from_secs(since)).as_millis(), want);
        }
    }
}

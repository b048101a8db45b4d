//! ResourceQuotas: what is used, counted anew whenever something goes.
//!
//! The API server adds to `status.used` before it makes an object. What goes is found here, from lists; so is what
//! changed while nobody looked, every five minutes. An object whose place is reserved and that is not there yet is not
//! in a list: less than what stands in the status is written only after a second look.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, PostParams},
    core::{GroupVersionKind, PartialObjectMeta},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;
use wherry_api::{
    RESOURCES, Resource, meta,
    quantity::Quantity,
    quota::{self, Amounts},
};

use crate::{
    watched::{Watched, key_of, without_managed_fields},
    workqueue::{Key, WorkQueue},
};

/// kube-controller-manager's `--resource-quota-sync-period`.
const RECOUNT: Duration = Duration::from_secs(300);
/// Between two looks: longer than it takes to store an object whose place has been reserved.
const SECOND_LOOK: Duration = Duration::from_millis(300);
/// Looks before the last one counts.
const LOOKS_MAX: usize = 5;
/// Quotas counted at a time.
const WORKERS: usize = 2;
/// Objects asked for at a time.
const PAGE: u32 = 500;
/// Kinds that begin to be followed at a time.
const KINDS_MAX: usize = 64;

/// Objects of which only metadata is of interest.
type Metadata = PartialObjectMeta<DynamicObject>;

struct Context {
    client: Client,
    quotas: Arc<Watched<ResourceQuota>>,
    queue: Arc<WorkQueue>,
    followed: Mutex<HashSet<String>>,
    kinds: mpsc::Sender<&'static Resource>,
}

/// Counts until shutdown.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let queue = Arc::new(WorkQueue::default());
    let mut quotas = Watched::<ResourceQuota>::new("ResourceQuotas");
    let named = queue.clone();
    quotas.listen(move |old, new| {
        let hard = |quota: Option<&Arc<ResourceQuota>>| quota.map(|quota| quota.spec.clone());
        // What changes in the status is ours, and the API server's.
        if let Some(quota) = new
            && hard(old) != hard(new)
        {
            named.add(key_of(&**quota));
        }
    });
    let quotas = Arc::new(quotas);
    let (kinds, mut to_follow) = mpsc::channel(KINDS_MAX);
    let context = Arc::new(Context {
        client: client.clone(),
        quotas: quotas.clone(),
        queue: queue.clone(),
        followed: Mutex::default(),
        kinds,
    });
    let followers = TaskTracker::new();
    let follow = async {
        loop {
            let row = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(row) = to_follow.recv() => row,
            };
            followers.spawn(follow(context.clone(), row, shutdown.clone()));
        }
        followers.close();
        followers.wait().await;
    };
    let reconciled = context.clone();
    let work = queue.run("Quota not counted", WORKERS, shutdown.clone(), move |key| {
        reconcile(reconciled.clone(), key)
    });
    let watch = quotas.run(
        Api::<ResourceQuota>::all(client),
        without_managed_fields,
        shutdown.clone(),
    );
    tokio::join!(watch, work, follow);
}

fn api_resource(row: &Resource) -> ApiResource {
    let kind = GroupVersionKind::gvk(row.group, row.version, row.kind);
    ApiResource::from_gvk_with_plural(&kind, row.plural)
}

/// Kinds of which a quota holds something, each in the version it is kept in.
fn kinds_of(hard: &Amounts) -> impl Iterator<Item = &'static Resource> {
    RESOURCES
        .iter()
        .filter(|row| row.namespaced && row.strategy.conversion().is_none())
        .filter(|row| quota::is_about(hard, row.group, row.plural))
}

/// Hears of what goes, and has the quotas of its namespace counted. Pods that have ended take nothing any more.
async fn follow(context: Arc<Context>, row: &'static Resource, shutdown: CancellationToken) {
    let api = Api::<Metadata>::all_with(context.client.clone(), &api_resource(row));
    let config = match row.plural {
        "pods" => watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed"),
        _ => watcher::Config::default(),
    };
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.try_next() => event,
        };
        match event {
            Ok(Some(watcher::Event::Delete(object))) => {
                let namespace = object.namespace().unwrap_or_default();
                for quota in context.quotas.in_namespace(&namespace) {
                    context.queue.add(key_of(&*quota));
                }
            }
            // Something may have gone while nobody watched.
            Ok(Some(watcher::Event::InitDone)) => {
                for quota in context.quotas.all() {
                    context.queue.add(key_of(&*quota));
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => debug!(resource = row.plural, %error, "Watch interrupted"),
        }
    }
}

async fn reconcile(context: Arc<Context>, key: Key) -> kube::Result<Option<Duration>> {
    let row = wherry_api::find("", "v1", "resourcequotas").expect("a row");
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), &key.namespace, &api_resource(row));
    let mut before: Option<(String, Amounts)> = None;
    for look in 1..=LOOKS_MAX {
        let Some(mut found) = api.get_opt(&key.name).await? else {
            return Ok(None);
        };
        let hard = quota::amounts(&found.data["spec"], "hard");
        for kind in kinds_of(&hard) {
            let id = format!("{}/{}", kind.group, kind.plural);
            let mut followed = context
                .followed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if !followed.contains(&id) && context.kinds.try_send(kind).is_ok() {
                followed.insert(id);
            }
        }
        let used = count(&context.client, &key.namespace, &found.data["spec"], &hard).await?;
        let stands = quota::amounts(&found.data["status"], "used");
        let version = found.resource_version().unwrap_or_default();
        let is_less = used
            .iter()
            .any(|(name, now)| stands.get(name).is_some_and(|stands| now < stands));
        let seen = (version, used);
        if is_less && look < LOOKS_MAX && before.as_ref() != Some(&seen) {
            before = Some(seen);
            tokio::time::sleep(SECOND_LOOK).await;
            continue;
        }
        let status = json!({
            "hard": found.data["spec"].get("hard").cloned().unwrap_or_else(|| json!({})),
            "used": quota::to_value(&seen.1),
        });
        if found.data["status"] != status {
            found.data["status"] = status;
            match api
                .replace_status(&key.name, &PostParams::default(), &found)
                .await
            {
                // Something was reserved meanwhile.
                Err(kube::Error::Api(status)) if status.code == 409 && look < LOOKS_MAX => continue,
                written => drop(written?),
            }
        }
        break;
    }
    Ok(Some(RECOUNT))
}

/// What the objects of a namespace take of what a quota holds.
async fn count(
    client: &Client,
    namespace: &str,
    spec: &Value,
    hard: &Amounts,
) -> kube::Result<Amounts> {
    let mut used: Amounts = hard
        .keys()
        .map(|name| (name.clone(), Quantity::ZERO))
        .collect();
    for row in kinds_of(hard) {
        let api: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), namespace, &api_resource(row));
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = match api.list(&page).await {
                Ok(list) => list,
                // Not served here: nothing of it is used.
                Err(kube::Error::Api(status)) if status.code == 404 => break,
                Err(error) => return Err(error),
            };
            for object in &list.items {
                let object = json!({ "metadata": object.metadata, "spec": object.data["spec"], "status": object.data["status"] });
                if meta::name(&object).is_empty() || !quota::covers(spec, row.plural, &object) {
                    continue;
                }
                for (name, amount) in
                    quota::held(&quota::usage(row.group, row.plural, &object), hard)
                {
                    *used.entry(name).or_insert(Quantity::ZERO) += amount;
                }
            }
            match list.metadata.continue_ {
                Some(token) if !token.is_empty() => page.continue_token = Some(token),
                _ => break,
            }
        }
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn pod(name: &str, phase: &str) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "ns"}, "status": {"phase": phase},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "250m"}}}]},
        })
    }

    #[tokio::test]
    async fn what_goes_is_counted_no_more() {
        let fake = Fake::new();
        fake.put("v1/pods", pod("a", "Running"));
        fake.put("v1/pods", pod("b", "Running"));
        fake.put("v1/pods", pod("c", "Succeeded"));
        fake.put(
            "v1/resourcequotas",
            json!({
                "metadata": {"name": "q", "namespace": "ns"}, "spec": {"hard": {"pods": "5", "cpu": "1", "count/secrets": "1"}},
            }),
        );
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(fake.client(), shutdown.clone()));
        let used = |wanted: Value| move |quota: &Value| quota["status"]["used"] == wanted;
        fake.wait_for(
            "v1/resourcequotas",
            used(json!({"pods": "2", "cpu": "500m", "count/secrets": "0"})),
        )
        .await;
        fake.remove("v1/pods", "ns", "a");
        let quota = fake
            .wait_for(
                "v1/resourcequotas",
                used(json!({"pods": "1", "cpu": "250m", "count/secrets": "0"})),
            )
            .await;
        assert_eq!(quota["status"]["hard"]["pods"], "5");
        shutdown.cancel();
        task.await.unwrap();
    }
}

//! Deletes objects whose owners have gone, and sees to it that an owner's wish for its dependents is
//! met before it goes itself.
//!
//! The metadata of every resource that can be deleted is watched. What the watches say only tells
//! where to look: before anything is deleted, the API server is asked for the object and its owners.

mod graph;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use futures::{
    StreamExt,
    stream::{BoxStream, SelectAll},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::PartialObjectMeta,
    discovery::{ApiResource, Discovery, Scope, verbs},
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::retry;

use self::graph::{Deletion, Entry, FOREGROUND, Graph, Id, ORPHAN, Work};

/// How often it is looked whether other resources are served (`garbagecollector.Sync`'s period).
const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);

/// The longest one object is worked at; it is tried again later.
const WORK_TIMEOUT: Duration = Duration::from_secs(10);

type Metadata = PartialObjectMeta<DynamicObject>;

/// News of one resource.
struct News {
    resource: usize,
    event: watcher::Result<Event<Metadata>>,
}

struct Resource {
    api: ApiResource,
    is_namespaced: bool,
    is_listed: bool,
    stop: CancellationToken,
}

/// What is known of an owner when it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwnerState {
    /// There, and to stay.
    Solid,
    /// On its way out, once its dependents are.
    Waiting,
    Absent,
}

struct Collector {
    client: Client,
    graph: Graph,
    resources: Vec<Resource>,
    queue: VecDeque<Work>,
    queued: HashSet<Work>,
    /// Work that failed: how often, and when to try again.
    failed: HashMap<Work, (u32, Instant)>,
}

/// Collects until shutdown.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let collector = Collector {
        client,
        graph: Graph::default(),
        resources: Vec::new(),
        queue: VecDeque::new(),
        queued: HashSet::new(),
        failed: HashMap::new(),
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = collector.run() => {}
    }
}

impl Collector {
    async fn run(mut self) {
        let mut news: SelectAll<BoxStream<'static, News>> = SelectAll::new();
        let mut discover_at = Instant::now();
        let mut failures = 0;
        loop {
            tokio::select! {
                // News first: what is known decides what is left to do.
                biased;
                Some(news) = news.next() => self.hear(news),
                () = tokio::time::sleep_until(discover_at.into()) => {
                    discover_at = Instant::now() + match self.discover(&mut news).await {
                        Ok(()) => { failures = 0; DISCOVERY_PERIOD }
                        Err(error) => {
                            warn!(error = %retry::text(&error), "Resources not discovered");
                            failures += 1;
                            retry::backoff(failures)
                        }
                    };
                }
                Some(()) = self.due() => self.work().await,
            }
        }
    }

    /// Ends when there is something to do, but not before everything has been listed once:
    /// an owner that has not been seen yet is not an owner that has gone.
    async fn due(&self) -> Option<()> {
        if self.resources.is_empty() || self.resources.iter().any(|resource| !resource.is_listed) {
            return None;
        }
        if !self.queue.is_empty() {
            return Some(());
        }
        let next = self.failed.values().map(|(_, at)| *at).min()?;
        tokio::time::sleep_until(next.into()).await;
        Some(())
    }

    /// Watches what is served now and stops watching what is not.
    async fn discover(
        &mut self,
        news: &mut SelectAll<BoxStream<'static, News>>,
    ) -> kube::Result<()> {
        let discovery = Discovery::new(self.client.clone()).run().await?;
        let served: Vec<_> = discovery
            .groups()
            .flat_map(|group| group.recommended_resources())
            .collect();
        let served = served.into_iter().filter(|(api, able)| {
            let can = |verb| able.supports_operation(verb);
            // Events are many, own nobody and expire by themselves.
            api.plural != "events" && can(verbs::LIST) && can(verbs::WATCH) && can(verbs::DELETE)
        });
        let served: HashMap<ApiResource, bool> = served
            .map(|(api, able)| (api, able.scope == Scope::Namespaced))
            .collect();
        for index in 0..self.resources.len() {
            let resource = &self.resources[index];
            if !served.contains_key(&resource.api) && !resource.stop.is_cancelled() {
                resource.stop.cancel();
                self.resources[index].is_listed = true;
                let work = self.graph.remove_resource(index);
                self.enqueue(work);
            }
        }
        for (api, is_namespaced) in served {
            let is_watched =
                |resource: &Resource| resource.api == api && !resource.stop.is_cancelled();
            if self.resources.iter().any(is_watched) {
                continue;
            }
            let resource = self.resources.len();
            let stop = CancellationToken::new();
            let objects = Api::<Metadata>::all_with(self.client.clone(), &api);
            let events = watcher(objects, watcher::Config::default()).default_backoff();
            let events = events.take_until(stop.clone().cancelled_owned());
            news.push(events.map(move |event| News { resource, event }).boxed());
            self.resources.push(Resource {
                api,
                is_namespaced,
                is_listed: false,
                stop,
            });
        }
        Ok(())
    }

    fn hear(&mut self, news: News) {
        let resource = news.resource;
        let work = match news.event {
            Ok(Event::Init) => {
                self.graph.begin_list(resource);
                Vec::new()
            }
            Ok(Event::InitDone) => {
                self.resources[resource].is_listed = true;
                self.graph.end_list(resource)
            }
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                self.graph.set(resource, &object.metadata)
            }
            Ok(Event::Delete(object)) => self.graph.remove(
                resource,
                Id::of(object.metadata.uid.as_deref().unwrap_or_default()),
            ),
            Err(error) => {
                debug!(resource = %self.resources[resource].api.plural, %error, "Resource not watched");
                Vec::new()
            }
        };
        self.enqueue(work);
    }

    fn enqueue(&mut self, work: Vec<Work>) {
        for work in work {
            if self.queued.insert(work) {
                self.queue.push_back(work);
            }
        }
    }

    /// Does one piece of work.
    async fn work(&mut self) {
        let now = Instant::now();
        let due = self
            .failed
            .iter()
            .find(|(_, (_, at))| *at <= now)
            .map(|(work, _)| *work);
        let Some(work) = self.queue.pop_front().or(due) else {
            return;
        };
        self.queued.remove(&work);
        let done = timeout(WORK_TIMEOUT, async {
            match work {
                Work::Dependent(id) => self.dependent(id).await,
                Work::Owner(id) => self.owner(id).await,
            }
        });
        match done.await {
            Ok(Ok(())) => {
                self.failed.remove(&work);
            }
            result => {
                if let Ok(Err(error)) = result {
                    warn!(error = %retry::text(&error), "Object not collected");
                }
                let failures = self
                    .failed
                    .get(&work)
                    .map_or(1, |(failures, _)| failures + 1);
                self.failed
                    .insert(work, (failures, Instant::now() + retry::backoff(failures)));
            }
        }
    }

    /// Deletes an object none of whose owners is there to stay, and takes owners that are not from
    /// one that has others.
    async fn dependent(&self, id: Id) -> kube::Result<()> {
        let Some(entry) = self.graph.entry(id) else {
            return Ok(());
        };
        if entry
            .owners
            .iter()
            .all(|owner| self.graph.is_solid(Id::of(&owner.uid)))
        {
            return Ok(());
        }
        let Some(found) = self.get(entry).await? else {
            return Ok(());
        };
        let owners = found.owner_references.clone().unwrap_or_default();
        if owners.is_empty() || found.deletion_timestamp.is_some() {
            return Ok(());
        }
        let mut solid = Vec::new();
        let mut is_waited_for = false;
        for owner in &owners {
            match self.owner_state(entry, owner).await? {
                OwnerState::Solid => solid.push(owner.clone()),
                OwnerState::Waiting => is_waited_for = true,
                OwnerState::Absent => {}
            }
        }
        if solid.len() == owners.len() {
            return Ok(());
        }
        if !solid.is_empty() {
            let patch = json!({ "metadata": { "resourceVersion": found.resource_version, "ownerReferences": solid } });
            return self.patch(entry, patch).await;
        }
        // Those that wait for this one wait for its dependents too.
        let policy = if is_waited_for && !self.graph.dependents(id).is_empty() {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        info!(kind = %self.resources[entry.resource].api.kind, name = %entry.name, namespace = ?entry.namespace, "Object without owners deleted");
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: Some(entry.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        overtaken(self.api(entry).delete(&entry.name, &params).await.map(drop))
    }

    /// Meets the wish of an object that is on its way out.
    async fn owner(&mut self, id: Id) -> kube::Result<()> {
        let Some(entry) = self.graph.entry(id).cloned() else {
            return Ok(());
        };
        let finalizer = match entry.deletion {
            None => return Ok(()),
            Some(Deletion::Foreground) => {
                let dependents = self.graph.dependents(id);
                self.enqueue(dependents.into_iter().map(Work::Dependent).collect());
                if self.graph.has_blocking_dependents(id) {
                    return Ok(());
                }
                FOREGROUND
            }
            Some(Deletion::Orphan) => {
                for dependent in self.graph.dependents(id) {
                    self.orphan(dependent, &entry.uid).await?;
                }
                ORPHAN
            }
        };
        let Some(found) = self.get(&entry).await? else {
            return Ok(());
        };
        let left: Vec<_> = found
            .finalizers
            .iter()
            .flatten()
            .filter(|other| *other != finalizer)
            .collect();
        let patch = json!({ "metadata": { "resourceVersion": found.resource_version, "finalizers": left } });
        self.patch(&entry, patch).await
    }

    /// Makes a dependent forget an owner.
    async fn orphan(&self, id: Id, owner_uid: &str) -> kube::Result<()> {
        let Some(entry) = self.graph.entry(id) else {
            return Ok(());
        };
        let Some(found) = self.get(entry).await? else {
            return Ok(());
        };
        let owners = found.owner_references.unwrap_or_default();
        let left: Vec<_> = owners
            .iter()
            .filter(|owner| owner.uid != owner_uid)
            .collect();
        if left.len() == owners.len() {
            return Ok(());
        }
        let patch = json!({ "metadata": { "resourceVersion": found.resource_version, "ownerReferences": left } });
        self.patch(entry, patch).await
    }

    async fn owner_state(
        &self,
        dependent: &Entry,
        owner: &OwnerReference,
    ) -> kube::Result<OwnerState> {
        let served = self
            .resources
            .iter()
            .filter(|resource| !resource.stop.is_cancelled());
        let group = |api_version: &str| {
            api_version
                .rsplit_once('/')
                .map_or("", |(group, _)| group)
                .to_owned()
        };
        let wanted = group(&owner.api_version);
        let mut served = served
            .filter(|resource| resource.api.kind == owner.kind && resource.api.group == wanted);
        let Some(resource) = served.next() else {
            // A kind that is not served says nothing about its objects.
            return Ok(OwnerState::Solid);
        };
        let owners = match &dependent.namespace {
            Some(namespace) if resource.is_namespaced => {
                Api::<Metadata>::namespaced_with(self.client.clone(), namespace, &resource.api)
            }
            None if resource.is_namespaced => return Ok(OwnerState::Solid),
            _ => Api::all_with(self.client.clone(), &resource.api),
        };
        let Some(found) = owners.get_opt(&owner.name).await? else {
            return Ok(OwnerState::Absent);
        };
        let metadata = found.metadata;
        if metadata.uid.as_ref() != Some(&owner.uid) {
            return Ok(OwnerState::Absent);
        }
        let is_foreground = metadata
            .finalizers
            .iter()
            .flatten()
            .any(|finalizer| finalizer == FOREGROUND);
        if metadata.deletion_timestamp.is_some() && is_foreground {
            return Ok(OwnerState::Waiting);
        }
        Ok(OwnerState::Solid)
    }

    fn api(&self, entry: &Entry) -> Api<Metadata> {
        let resource = &self.resources[entry.resource].api;
        match &entry.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        }
    }

    /// An object as it is now, if it is the same one.
    async fn get(&self, entry: &Entry) -> kube::Result<Option<ObjectMeta>> {
        let found = self.api(entry).get_opt(&entry.name).await?;
        Ok(found
            .map(|found| found.metadata)
            .filter(|found| found.uid.as_ref() == Some(&entry.uid)))
    }

    async fn patch(&self, entry: &Entry, patch: Value) -> kube::Result<()> {
        let patched = self
            .api(entry)
            .patch(&entry.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match patched {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }
}

/// The object has gone or is another one: there will be news if there is more to do.
fn overtaken(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn object(name: &str, owner: Option<&Value>) -> Value {
        let owners: Vec<_> = owner
            .iter()
            .map(|owner| {
                json!({
                    "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
                    "uid": owner["metadata"]["uid"], "blockOwnerDeletion": true,
                })
            })
            .collect();
        json!({ "metadata": { "name": name, "namespace": "default", "ownerReferences": owners } })
    }

    fn put(fake: &Fake, resource: &str, object: Value) -> Value {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        fake.put(resource, object);
        fake.get(resource, "default", &name).unwrap()
    }

    async fn collecting(fake: &Fake) -> (CancellationToken, tokio::task::JoinHandle<()>) {
        let shutdown = CancellationToken::new();
        (shutdown.clone(), tokio::spawn(run(fake.client(), shutdown)))
    }

    #[tokio::test]
    async fn dependents_go_when_their_last_owner_has_gone() {
        let fake = Fake::new();
        let owner = put(&fake, "v1/configmaps", object("owner", None));
        let other = put(&fake, "v1/configmaps", object("other", None));
        let pod = put(&fake, "v1/pods", object("pod", Some(&owner)));
        put(&fake, "v1/secrets", object("grandchild", Some(&pod)));
        let mut shared = object("shared", Some(&owner));
        let second = object("x", Some(&other))["metadata"]["ownerReferences"][0].clone();
        shared["metadata"]["ownerReferences"]
            .as_array_mut()
            .unwrap()
            .push(second);
        put(&fake, "v1/secrets", shared);
        let mut gone = owner.clone();
        gone["metadata"]["uid"] = "of-another-life".into();
        put(&fake, "v1/pods", object("left-over", Some(&gone)));

        let (shutdown, task) = collecting(&fake).await;
        fake.wait_until_gone("v1/pods", "default", "left-over")
            .await;
        assert!(fake.get("v1/pods", "default", "pod").is_some());
        fake.remove("v1/configmaps", "default", "owner");
        fake.wait_until_gone("v1/pods", "default", "pod").await;
        fake.wait_until_gone("v1/secrets", "default", "grandchild")
            .await;
        let shared = fake
            .wait_for("v1/secrets", |object| {
                object["metadata"]["ownerReferences"]
                    .as_array()
                    .is_some_and(|owners| owners.len() == 1)
            })
            .await;
        assert_eq!(shared["metadata"]["ownerReferences"][0]["name"], "other");
        shutdown.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_foreground_deletion_waits_for_dependents_and_an_orphaning_one_lets_them_go() {
        let fake = Fake::new();
        let owner = put(&fake, "v1/configmaps", object("foreground", None));
        let mut slow = object("slow", Some(&owner));
        slow["metadata"]["finalizers"] = json!(["x/y"]);
        put(&fake, "v1/pods", slow);
        let parent = put(&fake, "v1/configmaps", object("parent", None));
        put(&fake, "v1/pods", object("orphan", Some(&parent)));
        let (shutdown, task) = collecting(&fake).await;

        for (mut object, finalizer) in [(owner, FOREGROUND), (parent, ORPHAN)] {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            object["metadata"]["finalizers"] = json!([finalizer]);
            fake.put("v1/configmaps", object);
        }
        fake.wait_until_gone("v1/configmaps", "default", "parent")
            .await;
        assert_eq!(
            fake.get("v1/pods", "default", "orphan").unwrap()["metadata"]["ownerReferences"],
            json!([])
        );
        let mut slow = fake
            .wait_for("v1/pods", |pod| {
                !pod["metadata"]["deletionTimestamp"].is_null()
            })
            .await;
        assert!(
            fake.get("v1/configmaps", "default", "foreground").is_some(),
            "its dependent is still there"
        );
        slow["metadata"]["finalizers"] = json!([]);
        fake.put("v1/pods", slow);
        fake.wait_until_gone("v1/configmaps", "default", "foreground")
            .await;
        shutdown.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn what_fails_is_tried_again() {
        let fake = Fake::new();
        let mut owner = put(&fake, "v1/configmaps", object("owner", None));
        owner["metadata"]["uid"] = "gone".into();
        put(&fake, "v1/pods", object("pod", Some(&owner)));
        fake.fail_next("DELETE /api/v1/namespaces/default/pods/pod", 500);
        let (shutdown, task) = collecting(&fake).await;
        fake.wait_until_gone("v1/pods", "default", "pod").await;
        shutdown.cancel();
        task.await.unwrap();
    }
}

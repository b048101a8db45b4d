//! What the scheduler hears of: one stream of changes to everything that it decides by.

use std::{collections::HashSet, fmt::Debug};

use futures::{
    Stream, StreamExt,
    stream::{BoxStream, SelectAll},
};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    node::v1::RuntimeClass,
    policy::v1::PodDisruptionBudget,
    storage::v1::StorageClass,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde::de::DeserializeOwned;
use tracing::warn;

use super::{
    Scheduler,
    node::Offer,
    pod::{Role, role},
    preemption::Budget,
};
use crate::{
    persistent_volume::view::{ClaimView, ClassView, VolumeView},
    watched::key_of,
    workqueue::Key,
};

/// A change, applied to the scheduler that hears of it.
pub(crate) type News = Box<dyn FnOnce(&mut Scheduler) + Send>;

/// Kinds that are heard of; nothing is decided before all of them have been listed.
pub(crate) const KINDS: usize = 8;

/// What is known of one kind's list.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    names: Option<HashSet<String>>,
    pub(crate) is_complete: bool,
}

/// A kind that the scheduler decides by.
trait Heard: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    /// Its place in [`Scheduler::listings`].
    const PLACE: usize;
    const WHAT: &'static str;

    /// What an object is known by.
    fn id(&self) -> String {
        key_of(self).to_string()
    }
    fn take(self, scheduler: &mut Scheduler);
    fn forget(id: &str, scheduler: &mut Scheduler);
    fn known(scheduler: &Scheduler) -> Vec<String>;
}

/// Everything that is to be heard.
pub(crate) fn listen(client: &Client) -> SelectAll<BoxStream<'static, News>> {
    let mut all = SelectAll::new();
    all.push(news::<Node>(client));
    all.push(news::<Pod>(client));
    all.push(news::<Namespace>(client));
    all.push(news::<RuntimeClass>(client));
    all.push(news::<PodDisruptionBudget>(client));
    all.push(news::<PersistentVolume>(client));
    all.push(news::<PersistentVolumeClaim>(client));
    all.push(news::<StorageClass>(client));
    all
}

fn news<K: Heard>(client: &Client) -> BoxStream<'static, News> {
    let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default());
    to_news(events.default_backoff()).boxed()
}

fn to_news<K: Heard>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
) -> impl Stream<Item = News> + Send + 'static {
    events.map(|event| -> News { Box::new(move |scheduler| hear(scheduler, event)) })
}

fn hear<K: Heard>(scheduler: &mut Scheduler, event: watcher::Result<Event<K>>) {
    match event {
        Ok(Event::Init) => scheduler.listings[K::PLACE].names = Some(HashSet::new()),
        Ok(Event::InitApply(object)) => {
            let listing = &mut scheduler.listings[K::PLACE];
            listing.names.get_or_insert_default().insert(object.id());
            object.take(scheduler);
        }
        Ok(Event::InitDone) => {
            let listed = scheduler.listings[K::PLACE]
                .names
                .take()
                .unwrap_or_default();
            for id in K::known(scheduler) {
                if !listed.contains(&id) {
                    K::forget(&id, scheduler);
                }
            }
            scheduler.listings[K::PLACE].is_complete = true;
        }
        Ok(Event::Apply(object)) => object.take(scheduler),
        Ok(Event::Delete(object)) => K::forget(&object.id(), scheduler),
        // A server that has no such resource has none of them.
        Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 404 => {
            scheduler.listings[K::PLACE].is_complete = true;
        }
        Err(error) => warn!(%error, "{} not watched", K::WHAT),
    }
}

fn key(id: &str) -> Key {
    let (namespace, name) = id.split_once('/').unwrap_or(("", id));
    Key::new(namespace, name)
}

impl Heard for Node {
    const PLACE: usize = 0;
    const WHAT: &'static str = "Nodes";

    fn id(&self) -> String {
        self.name_any()
    }

    fn take(self, scheduler: &mut Scheduler) {
        scheduler.has_news |= scheduler
            .state
            .set_node(&self.name_any(), Offer::read(&self));
    }

    fn forget(id: &str, scheduler: &mut Scheduler) {
        scheduler.state.remove_node(id);
    }

    fn known(scheduler: &Scheduler) -> Vec<String> {
        scheduler.state.node_names().cloned().collect()
    }
}

impl Heard for Pod {
    const PLACE: usize = 1;
    const WHAT: &'static str = "Pods";

    fn id(&self) -> String {
        self.uid().unwrap_or_default()
    }

    fn take(self, scheduler: &mut Scheduler) {
        let uid = self.uid().unwrap_or_default();
        match role(&self, &scheduler.name) {
            Role::Pending(pod) => scheduler.pod_waits(*pod),
            Role::Assigned(pod) => {
                scheduler.queue.remove(&uid);
                scheduler.binding.remove(&uid);
                scheduler.has_news |= scheduler.state.assign(&uid, *pod);
            }
            Role::Neither => scheduler.forget_pod(&uid),
        }
    }

    fn forget(id: &str, scheduler: &mut Scheduler) {
        scheduler.forget_pod(id);
    }

    fn known(scheduler: &Scheduler) -> Vec<String> {
        let counted = scheduler.state.pods().map(|uid| uid.to_string());
        counted.chain(scheduler.queue.uids().cloned()).collect()
    }
}

impl Heard for Namespace {
    const PLACE: usize = 2;
    const WHAT: &'static str = "Namespaces";

    fn id(&self) -> String {
        self.name_any()
    }

    fn take(self, scheduler: &mut Scheduler) {
        let labels = self.metadata.labels.unwrap_or_default();
        let name = self.metadata.name.unwrap_or_default();
        scheduler.has_news |= scheduler.state.set_namespace(&name, Some(labels));
    }

    fn forget(id: &str, scheduler: &mut Scheduler) {
        scheduler.state.set_namespace(id, None);
    }

    fn known(scheduler: &Scheduler) -> Vec<String> {
        scheduler.state.counts.namespaces().cloned().collect()
    }
}

impl Heard for RuntimeClass {
    const PLACE: usize = 3;
    const WHAT: &'static str = "RuntimeClasses";

    fn id(&self) -> String {
        self.name_any()
    }

    fn take(self, scheduler: &mut Scheduler) {
        let handlers = &mut scheduler.state.handlers;
        let old = handlers.insert(self.name_any(), self.handler.clone());
        scheduler.has_news |= old.as_ref() != Some(&self.handler);
    }

    fn forget(id: &str, scheduler: &mut Scheduler) {
        scheduler.state.handlers.remove(id);
    }

    fn known(scheduler: &Scheduler) -> Vec<String> {
        scheduler.state.handlers.keys().cloned().collect()
    }
}

impl Heard for PodDisruptionBudget {
    const PLACE: usize = 4;
    const WHAT: &'static str = "PodDisruptionBudgets";

    fn take(self, scheduler: &mut Scheduler) {
        let budgets = &mut scheduler.state.budgets;
        budgets.insert(key_of(&self), Budget::read(&self));
    }

    fn forget(id: &str, scheduler: &mut Scheduler) {
        scheduler.state.budgets.remove(&key(id));
    }

    fn known(scheduler: &Scheduler) -> Vec<String> {
        let budgets = scheduler.state.budgets.keys();
        budgets.map(ToString::to_string).collect()
    }
}

impl Heard for PersistentVolume {
    const PLACE: usize = 5;
    const WHAT: &'static str = "PersistentVolumes";

    fn id(&self) -> String {
        self.name_any()
    }

    fn take(self, scheduler: &mut Scheduler) {
        let volume = VolumeView::from(self);
        let volumes = &mut scheduler.state.claims.volumes;
        volumes.insert(volume.name.clone(), volume);
        scheduler.has_news = true;
    }

    fn forget(id: &str, scheduler: &mut Scheduler) {
        scheduler.state.claims.volumes.remove(id);
    }

    fn known(scheduler: &Scheduler) -> Vec<String> {
        scheduler.state.claims.volumes.keys().cloned().collect()
    }
}

impl Heard for PersistentVolumeClaim {
    const PLACE: usize = 6;
    const WHAT: &'static str = "PersistentVolumeClaims";

    fn take(self, scheduler: &mut Scheduler) {
        let claim = ClaimView::from(self);
        let claims = &mut scheduler.state.claims.claims;
        claims.insert(claim.key.clone(), claim);
        scheduler.has_news = true;
        scheduler.look_at_bindings();
    }

    fn forget(id: &str, scheduler: &mut Scheduler) {
        scheduler.state.claims.claims.remove(&key(id));
        scheduler.look_at_bindings();
    }

    fn known(scheduler: &Scheduler) -> Vec<String> {
        let claims = scheduler.state.claims.claims.keys();
        claims.map(ToString::to_string).collect()
    }
}

impl Heard for StorageClass {
    const PLACE: usize = 7;
    const WHAT: &'static str = "StorageClasses";

    fn id(&self) -> String {
        self.name_any()
    }

    fn take(self, scheduler: &mut Scheduler) {
        let class = ClassView::from(self);
        let classes = &mut scheduler.state.claims.classes;
        classes.insert(class.name.clone(), class);
        scheduler.has_news = true;
    }

    fn forget(id: &str, scheduler: &mut Scheduler) {
        scheduler.state.claims.classes.remove(id);
    }

    fn known(scheduler: &Scheduler) -> Vec<String> {
        scheduler.state.claims.classes.keys().cloned().collect()
    }
}

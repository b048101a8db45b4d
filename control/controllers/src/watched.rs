//! Objects of one kind as controllers need them, kept by one watch that all of them share.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use futures::StreamExt;
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::workqueue::{Key, WorkQueue};

/// Told of every change: what was and what is. Must not wait.
type Listener<V> = Box<dyn Fn(Option<&Arc<V>>, Option<&Arc<V>>) + Send + Sync>;

/// What an object is also found by, beside its key.
pub(crate) type Group = String;

/// What is there.
struct Objects<V> {
    by_key: BTreeMap<Key, Arc<V>>,
    /// By where they are in memory, so that one is taken out as fast as it is put in.
    by_group: HashMap<Group, BTreeMap<usize, Arc<V>>>,
    group: Option<fn(&V) -> Group>,
}

impl<V> Objects<V> {
    fn put(&mut self, key: Key, new: Option<&Arc<V>>) -> Option<Arc<V>> {
        let old = match new {
            Some(view) => self.by_key.insert(key, view.clone()),
            None => self.by_key.remove(&key),
        };
        let Some(group) = self.group else { return old };
        let address = |view: &Arc<V>| Arc::as_ptr(view) as usize;
        if let Some(old) = &old {
            let group = group(old);
            if let Some(views) = self.by_group.get_mut(&group) {
                views.remove(&address(old));
                if views.is_empty() {
                    self.by_group.remove(&group);
                }
            }
        }
        if let Some(new) = new {
            let views = self.by_group.entry(group(new)).or_default();
            views.insert(address(new), new.clone());
        }
        old
    }
}

/// Objects of one kind, as views.
pub(crate) struct Watched<V> {
    what: &'static str,
    objects: RwLock<Objects<V>>,
    listeners: Vec<Listener<V>>,
    is_complete: watch::Sender<bool>,
}

impl<V: Send + Sync + 'static> Watched<V> {
    /// Nothing yet; `what` is for messages.
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            objects: RwLock::new(Objects {
                by_key: BTreeMap::new(),
                by_group: HashMap::new(),
                group: None,
            }),
            listeners: Vec::new(),
            is_complete: watch::Sender::new(false),
        }
    }

    /// Keeps objects by a group as well, for [`Self::of_group`].
    pub(crate) fn grouped_by(mut self, group: fn(&V) -> Group) -> Self {
        let objects = self.objects.get_mut();
        objects.unwrap_or_else(PoisonError::into_inner).group = Some(group);
        self
    }

    /// All objects of a group, in no order.
    pub(crate) fn of_group(&self, group: &str) -> Vec<Arc<V>> {
        let objects = self.objects();
        let views = objects.by_group.get(group);
        views.map_or_else(Vec::new, |views| views.values().cloned().collect())
    }

    /// Lets somebody hear of changes.
    pub(crate) fn listen(
        &mut self,
        listener: impl Fn(Option<&Arc<V>>, Option<&Arc<V>>) + Send + Sync + 'static,
    ) {
        self.listeners.push(Box::new(listener));
    }

    fn objects(&self) -> RwLockReadGuard<'_, Objects<V>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// One object.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<V>> {
        self.objects().by_key.get(key).cloned()
    }

    /// All objects of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<V>> {
        self.objects()
            .by_key
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, view)| view.clone())
            .collect()
    }

    /// Objects of a namespace whose names begin so.
    pub(crate) fn with_prefix(&self, namespace: &str, prefix: &str) -> Vec<Arc<V>> {
        self.objects()
            .by_key
            .range(Key::new(namespace, prefix)..)
            .take_while(|(key, _)| key.namespace == namespace && key.name.starts_with(prefix))
            .map(|(_, view)| view.clone())
            .collect()
    }

    /// All objects.
    pub(crate) fn all(&self) -> Vec<Arc<V>> {
        self.objects().by_key.values().cloned().collect()
    }

    /// Answers once everything has been seen for the first time.
    pub(crate) async fn complete(&self) {
        // The sender lives as long as this does.
        let _ = self.is_complete.subscribe().wait_for(|done| *done).await;
    }

    /// Watches until shutdown. `view` makes of an object what is kept.
    pub(crate) async fn run<K>(
        self: Arc<Self>,
        api: Api<K>,
        mut view: impl FnMut(K) -> V + Send + 'static,
        shutdown: CancellationToken,
    ) where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let mut events = watcher(api, watcher::Config::default())
            .default_backoff()
            .boxed();
        let mut listed: Option<BTreeMap<Key, Arc<V>>> = None;
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Err(error)) => warn!(%error, "{} not watched", self.what),
                Some(Ok(Event::Init)) => listed = Some(BTreeMap::new()),
                Some(Ok(Event::InitApply(object))) => {
                    let key = key_of(&object);
                    if let Some(listed) = &mut listed {
                        listed.insert(key, Arc::new(view(object)));
                    }
                }
                Some(Ok(Event::InitDone)) => {
                    self.replace(listed.take().unwrap_or_default());
                    self.is_complete.send_replace(true);
                }
                Some(Ok(Event::Apply(object))) => {
                    let key = key_of(&object);
                    self.put(key, Some(Arc::new(view(object))));
                }
                Some(Ok(Event::Delete(object))) => self.put(key_of(&object), None),
            }
        }
    }

    fn replace(&self, new: BTreeMap<Key, Arc<V>>) {
        let gone: Vec<Key> = {
            let objects = self.objects();
            objects
                .by_key
                .keys()
                .filter(|key| !new.contains_key(key))
                .cloned()
                .collect()
        };
        for key in gone {
            self.put(key, None);
        }
        for (key, view) in new {
            self.put(key, Some(view));
        }
    }

    fn put(&self, key: Key, new: Option<Arc<V>>) {
        let old = {
            let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
            objects.put(key, new.as_ref())
        };
        for listener in &self.listeners {
            listener(old.as_ref(), new.as_ref());
        }
    }
}

impl<K: Resource + Send + Sync + 'static> Watched<K> {
    /// Names every object that changes, comes or goes in a queue.
    pub(crate) fn name_in(&mut self, queue: &Arc<WorkQueue>) {
        let queue = queue.clone();
        self.listen(move |old, new| {
            if let Some(object) = new.or(old) {
                queue.add(key_of(&**object));
            }
        });
    }
}

/// Namespace and name.
pub(crate) fn key_of<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    Key::new(
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

/// What is kept of objects that are kept whole: not who wrote which field.
pub(crate) fn without_managed_fields<K: Resource>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

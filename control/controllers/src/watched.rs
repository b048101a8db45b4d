//! Objects of one kind as controllers need them, kept by one watch that all of them share.

use std::{
    collections::BTreeMap,
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

use crate::workqueue::Key;

/// Told of every change: what was and what is. Must not wait.
type Listener<V> = Box<dyn Fn(Option<&Arc<V>>, Option<&Arc<V>>) + Send + Sync>;

/// Objects of one kind, as views.
pub(crate) struct Watched<V> {
    what: &'static str,
    objects: RwLock<BTreeMap<Key, Arc<V>>>,
    listeners: Vec<Listener<V>>,
    is_complete: watch::Sender<bool>,
}

impl<V: Send + Sync + 'static> Watched<V> {
    /// Nothing yet; `what` is for messages.
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            objects: RwLock::default(),
            listeners: Vec::new(),
            is_complete: watch::Sender::new(false),
        }
    }

    /// Lets somebody hear of changes.
    pub(crate) fn listen(
        &mut self,
        listener: impl Fn(Option<&Arc<V>>, Option<&Arc<V>>) + Send + Sync + 'static,
    ) {
        self.listeners.push(Box::new(listener));
    }

    fn objects(&self) -> RwLockReadGuard<'_, BTreeMap<Key, Arc<V>>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// One object.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<V>> {
        self.objects().get(key).cloned()
    }

    /// All objects of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<V>> {
        self.objects()
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, view)| view.clone())
            .collect()
    }

    /// Objects of a namespace whose names begin so.
    pub(crate) fn with_prefix(&self, namespace: &str, prefix: &str) -> Vec<Arc<V>> {
        self.objects()
            .range(Key::new(namespace, prefix)..)
            .take_while(|(key, _)| key.namespace == namespace && key.name.starts_with(prefix))
            .map(|(_, view)| view.clone())
            .collect()
    }

    /// All objects.
    pub(crate) fn all(&self) -> Vec<Arc<V>> {
        self.objects().values().cloned().collect()
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
        view: impl Fn(K) -> V + Send + 'static,
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
            match &new {
                Some(view) => objects.insert(key, view.clone()),
                None => objects.remove(&key),
            }
        };
        for listener in &self.listeners {
            listener(old.as_ref(), new.as_ref());
        }
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

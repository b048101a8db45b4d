//! Objects that volumes show, each followed by a watch of its own.
//!
//! A node may see only what its pods name, so nothing wider is watched. Pods that show one object
//! share its watch, which ends with the last of them. An immutable object is not watched.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use futures::StreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;
use wherry_services::watch::Soon;

/// What volumes show.
pub(crate) trait Shown:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Whether it never changes.
    fn is_immutable(&self) -> bool;
}

impl Shown for ConfigMap {
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl Shown for Secret {
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

/// What a watch has told.
#[derive(Clone, Debug)]
enum Known<K> {
    /// Nothing yet.
    Nothing,
    /// The object, or that there is none.
    Is(Option<Arc<K>>),
    /// It will not change, so it is not watched any more. One of the same name may come after it:
    /// whoever wants it now has to ask.
    Fixed(Option<String>),
}

impl<K: Shown> Known<K> {
    /// Tells one version from another.
    fn version(&self) -> Option<Option<String>> {
        match self {
            Self::Nothing => None,
            Self::Is(object) => Some(object.as_ref().and_then(|object| object.resource_version())),
            Self::Fixed(version) => Some(version.clone()),
        }
    }
}

struct Entry<K> {
    known: watch::Sender<Known<K>>,
    _watch: AbortOnDropHandle<()>,
}

/// Holds a watch open.
pub(crate) struct Follow<K> {
    _entry: Arc<Entry<K>>,
    news: watch::Receiver<Known<K>>,
}

impl<K: Shown> Follow<K> {
    /// Waits for another version than the one last told of here; the first one counts.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn changed(&mut self) {
        if self.news.changed().await.is_err() {
            // The sender is in the entry that is held here.
            std::future::pending::<()>().await;
        }
    }

    /// Whether the watch tells of changes by now: without that somebody has to ask now and then.
    pub(crate) fn is_watched(&self) -> bool {
        !matches!(*self.news.borrow(), Known::Nothing)
    }
}

type Entries<K> = HashMap<(String, String), Weak<Entry<K>>>;

/// The objects of one kind that are followed.
pub(crate) struct Followed<K> {
    entries: Mutex<Entries<K>>,
}

impl<K> Default for Followed<K> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
        }
    }
}

impl<K: Shown> Followed<K> {
    fn lock(&self) -> MutexGuard<'_, Entries<K>> {
        // Every change is one insert or a removal of what is dead.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows an object until the answer is dropped.
    pub(crate) fn follow(&self, client: &Client, namespace: &str, name: &str) -> Follow<K> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut entries = self.lock();
        let entry = match entries.get(&key).and_then(Weak::upgrade) {
            Some(entry) => entry,
            None => {
                entries.retain(|_, entry| entry.strong_count() > 0);
                let known = watch::Sender::new(Known::Nothing);
                let api = Api::<K>::namespaced(client.clone(), namespace);
                let task = tokio::spawn(run(api, name.to_owned(), known.clone()));
                let entry = Arc::new(Entry {
                    known,
                    _watch: AbortOnDropHandle::new(task),
                });
                entries.insert(key, Arc::downgrade(&entry));
                entry
            }
        };
        let news = entry.known.subscribe();
        Follow {
            _entry: entry,
            news,
        }
    }

    /// The object, if a watch says what it is. That there is none is never answered from here:
    /// somebody may just be creating it.
    pub(crate) fn known(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let key = (namespace.to_owned(), name.to_owned());
        let entry = self.lock().get(&key).and_then(Weak::upgrade)?;
        match &*entry.known.borrow() {
            Known::Is(object) => object.clone(),
            Known::Nothing | Known::Fixed(_) => None,
        }
    }

    /// Objects that are watched now.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        let entries = self.lock();
        entries
            .values()
            .filter(|entry| entry.strong_count() > 0)
            .count()
    }
}

async fn run<K: Shown>(api: Api<K>, name: String, known: watch::Sender<Known<K>>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher(api, config).backoff(Soon::default()).boxed();
    let mut listed = None;
    while let Some(event) = events.next().await {
        let object = match event {
            Ok(watcher::Event::Init) => {
                listed = None;
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed = Some(object);
                continue;
            }
            Ok(watcher::Event::InitDone) => listed.take(),
            Ok(watcher::Event::Apply(object)) => Some(object),
            Ok(watcher::Event::Delete(_)) => None,
            Err(error) => {
                debug!(kind = %K::kind(&()), name, %error, "Watch of an object failed");
                continue;
            }
        };
        let is_fixed = object.as_ref().is_some_and(Shown::is_immutable);
        let now = match object {
            Some(object) if is_fixed => Known::Fixed(object.resource_version()),
            Some(mut object) => {
                // Who wrote which field is as large as the object, and nobody here asks.
                object.meta_mut().managed_fields = None;
                Known::Is(Some(Arc::new(object)))
            }
            None => Known::Is(None),
        };
        known.send_if_modified(|before| {
            let is_news = before.version() != now.version();
            *before = now;
            is_news
        });
        if is_fixed {
            return;
        }
    }
}

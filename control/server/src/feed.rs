//! One store watch per resource, fanned out to all who watch it.
//!
//! ```text
//!                    ┌ ring of recent changes (a late watcher catches up here)
//! store.watch ─ Feed ┤
//!                    └ group per filter ─┬ queue ─ watcher
//!                      (evaluated once   └ queue ─ watcher
//!                       per change)
//! ```
//!
//! A watcher whose queue is full is cut off and starts again from a list, as with kube-apiserver. A watcher from before
//! the ring gets a store watch of its own until it ends. Values are shared with the store, so the ring costs little.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wherry_api::Resource;
use wherry_store::{Event, KeyValue, Revision, Store, StoreError, WatchMessage};

use crate::{filter::Filter, stored};

/// Changes kept for watchers that start a little in the past.
const RING_MAX: usize = 1_024;
/// Changes a watcher may be behind before it is cut off. A burst of this many pods is what a busy node sees at once.
const QUEUE_MAX: usize = 4_096;
/// Before the store is asked again after a watch on it failed.
const RETRY: Duration = Duration::from_millis(200);

/// One write to a resource.
#[derive(Debug)]
pub(crate) struct Change {
    /// What the store said.
    pub(crate) event: Event,
    object: OnceLock<Value>,
    previous: OnceLock<Value>,
    /// What most watchers are sent, by what the write is to them.
    lines: [OnceLock<Bytes>; 3],
}

impl Change {
    pub(crate) fn new(event: Event) -> Self {
        Self {
            event,
            object: OnceLock::new(),
            previous: OnceLock::new(),
            lines: Default::default(),
        }
    }

    /// What is sent to those who get whole objects in the version that is kept: `make` makes it at most once for all of
    /// them, however many they are.
    pub(crate) fn line(&self, seen: Seen, make: impl FnOnce(&KeyValue) -> Vec<u8>) -> Bytes {
        let make = || Bytes::from(make(&self.shown(seen)));
        self.lines[seen as usize].get_or_init(make).clone()
    }

    /// The object after the write (before it, for a deletion), parsed at most once for all watchers.
    pub(crate) fn object(&self) -> &Value {
        self.object.get_or_init(|| stored::decode(&self.event.kv))
    }

    fn previous(&self, kv: &KeyValue) -> &Value {
        self.previous.get_or_init(|| stored::decode(kv))
    }

    /// What the write means to someone who sees only what `filter` lets through.
    pub(crate) fn seen_through(&self, filter: &Filter) -> Option<Seen> {
        let event = &self.event;
        if !filter.covers_key(&event.kv.key) {
            return None;
        }
        let before = match &event.previous {
            Some(previous) => filter.covers(|| self.previous(previous)),
            // The store may leave the value before out of a deletion: the event's own is the same.
            None => event.deleted && filter.covers(|| self.object()),
        };
        let after = !event.deleted && filter.covers(|| self.object());
        match (before, after) {
            (false, true) => Some(Seen::Added),
            (true, true) => Some(Seen::Modified),
            (true, false) => Some(Seen::Deleted),
            (false, false) => None,
        }
    }

    /// What to show: the new object, and for one that leaves the view, what it was when last in it.
    pub(crate) fn shown(&self, seen: Seen) -> KeyValue {
        match (&self.event.previous, seen) {
            (Some(previous), Seen::Deleted) => KeyValue {
                mod_revision: self.event.revision,
                ..previous.clone()
            },
            _ => KeyValue {
                mod_revision: self.event.revision,
                ..self.event.kv.clone()
            },
        }
    }
}

/// Type of a watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Added,
    Modified,
    Deleted,
}

impl Seen {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

struct Group {
    filter: Arc<Filter>,
    queues: Vec<mpsc::Sender<(Seen, Arc<Change>)>>,
}

#[derive(Default)]
struct FeedState {
    /// All writes up to this one are in the ring and in the queues.
    revision: Revision,
    /// The ring has all writes after this one.
    ring_from: Revision,
    /// Unparsed: parsed objects are many times larger.
    ring: VecDeque<Event>,
    groups: Vec<Group>,
}

/// The watch of one resource.
pub(crate) struct Feed {
    prefix: String,
    state: Mutex<FeedState>,
}

impl Feed {
    fn state(&self) -> MutexGuard<'_, FeedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, events: Vec<Event>) {
        let mut state = self.state();
        for event in events {
            state.revision = state.revision.max(event.revision);
            let change = Arc::new(Change::new(event.clone()));
            state.groups.retain_mut(|group| {
                if let Some(seen) = change.seen_through(&group.filter) {
                    group
                        .queues
                        .retain(|queue| queue.try_send((seen, change.clone())).is_ok());
                } else {
                    group.queues.retain(|queue| !queue.is_closed());
                }
                !group.queues.is_empty()
            });
            state.ring.push_back(event);
            if state.ring.len() > RING_MAX
                && let Some(oldest) = state.ring.pop_front()
            {
                state.ring_from = oldest.revision;
            }
        }
    }

    /// Forgets everything, cutting off all watchers: what happened up to `revision` is not known.
    fn reset(&self, revision: Revision) {
        *self.state() = FeedState {
            revision,
            ring_from: revision,
            ..FeedState::default()
        };
    }

    /// `None`: the ring does not reach back that far.
    fn subscribe(
        &self,
        filter: &Arc<Filter>,
        after: Revision,
    ) -> Option<mpsc::Receiver<(Seen, Arc<Change>)>> {
        let mut state = self.state();
        if after < state.ring_from {
            return None;
        }
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        for event in state.ring.iter().filter(|event| event.revision > after) {
            let change = Arc::new(Change::new(event.clone()));
            if let Some(seen) = change.seen_through(filter) {
                queue.try_send((seen, change)).ok()?;
            }
        }
        match state
            .groups
            .iter_mut()
            .find(|group| group.filter == *filter)
        {
            Some(group) => group.queues.push(queue),
            None => state.groups.push(Group {
                filter: filter.clone(),
                queues: vec![queue],
            }),
        }
        Some(receiver)
    }

    /// Watches the store from where this feed is; when that is forgotten, from now on and without its watchers.
    async fn open(
        &self,
        store: &Arc<dyn Store>,
    ) -> Result<mpsc::Receiver<WatchMessage>, StoreError> {
        let from = self.state().revision;
        // To the store, 0 is not the beginning but now.
        if from > 0 {
            match store.watch(&self.prefix, from).await {
                Err(StoreError::Compacted { .. } | StoreError::Future { .. }) => {}
                result => return result,
            }
        }
        let receiver = store.watch(&self.prefix, 0).await?;
        // In this order: what is written in between is in the receiver too.
        self.reset(store.current_revision().await?);
        Ok(receiver)
    }

    async fn run(
        self: Arc<Self>,
        store: Arc<dyn Store>,
        opened: mpsc::Receiver<WatchMessage>,
        shutdown: CancellationToken,
    ) {
        let mut receiver = Some(opened);
        loop {
            let message = match &mut receiver {
                None => {
                    match self.open(&store).await {
                        Ok(opened) => receiver = Some(opened),
                        Err(error) => {
                            tracing::warn!(prefix = %self.prefix, %error, "Watch of the store failed");
                            tokio::select! {
                                () = shutdown.cancelled() => return,
                                () = tokio::time::sleep(RETRY) => {}
                            }
                        }
                    }
                    continue;
                }
                Some(receiver) => tokio::select! {
                    () = shutdown.cancelled() => {
                        self.reset(0);
                        return;
                    }
                    message = receiver.recv() => message,
                },
            };
            match message {
                Some(WatchMessage::Events(events)) => self.apply(events),
                Some(WatchMessage::Progress(revision)) => {
                    let mut state = self.state();
                    state.revision = state.revision.max(revision);
                }
                Some(WatchMessage::Lost) | None => {
                    receiver = None;
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
            }
        }
    }
}

/// The feeds of all resources, each started when first watched.
pub(crate) struct Feeds {
    store: Arc<dyn Store>,
    feeds: tokio::sync::Mutex<HashMap<String, Arc<Feed>>>,
    shutdown: CancellationToken,
}

impl Feeds {
    pub(crate) fn new(store: Arc<dyn Store>, shutdown: CancellationToken) -> Self {
        Self {
            store,
            feeds: tokio::sync::Mutex::new(HashMap::new()),
            shutdown,
        }
    }

    async fn feed(&self, resource: &Resource) -> Result<Arc<Feed>, StoreError> {
        let prefix = stored::prefix(resource);
        let mut feeds = self.feeds.lock().await;
        if let Some(feed) = feeds.get(&prefix) {
            return Ok(feed.clone());
        }
        let feed = Arc::new(Feed {
            prefix: prefix.clone(),
            state: Mutex::default(),
        });
        let opened = feed.open(&self.store).await?;
        tokio::spawn(
            feed.clone()
                .run(self.store.clone(), opened, self.shutdown.clone()),
        );
        feeds.insert(prefix, feed.clone());
        Ok(feed)
    }

    /// Every write after revision `after` that `filter` lets through.
    pub(crate) async fn watch(
        &self,
        resource: &Resource,
        filter: &Arc<Filter>,
        after: Revision,
    ) -> Result<Subscription, StoreError> {
        let feed = self.feed(resource).await?;
        let source = match feed.subscribe(filter, after) {
            Some(queue) => Source::Shared { feed, queue, after },
            None if after == 0 => {
                return Err(StoreError::Compacted {
                    asked: 0,
                    oldest: 1,
                });
            }
            None => Source::Own {
                receiver: self.store.watch(filter.key_prefix(), after).await?,
                filter: filter.clone(),
                ready: VecDeque::new(),
                revision: after,
            },
        };
        Ok(Subscription { source })
    }
}

enum Source {
    Shared {
        feed: Arc<Feed>,
        queue: mpsc::Receiver<(Seen, Arc<Change>)>,
        after: Revision,
    },
    Own {
        receiver: mpsc::Receiver<WatchMessage>,
        filter: Arc<Filter>,
        ready: VecDeque<(Seen, Arc<Change>)>,
        revision: Revision,
    },
}

/// One watcher's end.
pub(crate) struct Subscription {
    source: Source,
}

impl Subscription {
    /// The next change; `None`: cut off, start again from a list.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn next(&mut self) -> Option<(Seen, Arc<Change>)> {
        match &mut self.source {
            Source::Shared { queue, after, .. } => loop {
                let (seen, change) = queue.recv().await?;
                // A list may be newer than what the feed had delivered when the watch began.
                if change.event.revision > *after {
                    return Some((seen, change));
                }
            },
            Source::Own {
                receiver,
                filter,
                ready,
                revision,
            } => loop {
                if let Some(next) = ready.pop_front() {
                    return Some(next);
                }
                match receiver.recv().await? {
                    WatchMessage::Events(events) => {
                        for event in events {
                            *revision = event.revision;
                            let change = Arc::new(Change::new(event));
                            if let Some(seen) = change.seen_through(filter) {
                                ready.push_back((seen, change));
                            }
                        }
                    }
                    WatchMessage::Progress(reached) => *revision = reached.max(*revision),
                    WatchMessage::Lost => return None,
                }
            },
        }
    }

    /// A change that is there already, or else the revision up to which there are none.
    pub(crate) fn poll_now(&mut self) -> Result<(Seen, Arc<Change>), Revision> {
        match &mut self.source {
            Source::Shared { feed, queue, after } => {
                // In this order: whatever was delivered up to this revision is in the queue by now.
                let revision = feed.state().revision;
                while let Ok((seen, change)) = queue.try_recv() {
                    if change.event.revision > *after {
                        return Ok((seen, change));
                    }
                }
                Err(revision.max(*after))
            }
            Source::Own {
                ready, revision, ..
            } => match ready.pop_front() {
                Some(next) => Ok(next),
                None => Err(*revision),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use wherry_store::{Durability, MemoryStore};

    use super::*;
    use crate::request::Query;

    fn maps() -> &'static Resource {
        wherry_api::find("", "v1", "configmaps").expect("a row")
    }

    async fn write(store: &Arc<dyn Store>, count: usize) {
        for i in 0..count {
            let value = Bytes::from_static(b"{\"metadata\":{}}");
            let key = format!("/registry/configmaps/ns/{}-{i}", rand::random::<u64>());
            store.create(&key, value, Durability::Lazy).await.unwrap();
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_slow_watcher_is_cut_off_and_others_go_on() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let feeds = Feeds::new(store.clone(), CancellationToken::new());
        let filter = Arc::new(Filter::parse(maps(), "", "", &Query::default()).unwrap());
        let mut slow = feeds.watch(maps(), &filter, 0).await.unwrap();
        let mut fast = feeds.watch(maps(), &filter, 0).await.unwrap();
        for _ in 0..10 {
            write(&store, 500).await;
            for _ in 0..500 {
                fast.next().await.unwrap();
            }
        }
        let mut seen = 0;
        while slow.next().await.is_some() {
            seen += 1;
        }
        assert_eq!(seen, QUEUE_MAX);
        write(&store, 1).await;
        assert!(fast.next().await.is_some());
    }

    #[tokio::test]
    async fn an_event_is_put_into_words_once_for_all_who_watch() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let feeds = Feeds::new(store.clone(), CancellationToken::new());
        let everything = Arc::new(Filter::parse(maps(), "", "", &Query::default()).unwrap());
        let namespace = Arc::new(Filter::parse(maps(), "ns", "", &Query::default()).unwrap());
        let mut watches = Vec::new();
        for filter in [&everything, &namespace].repeat(50) {
            watches.push(feeds.watch(maps(), filter, 0).await.unwrap());
        }
        write(&store, 1).await;
        let mut encodings = 0;
        let mut lines = Vec::new();
        for watch in &mut watches {
            let (seen, change) = watch.next().await.unwrap();
            lines.push(change.line(seen, |kv| {
                encodings += 1;
                kv.value.bytes().to_vec()
            }));
        }
        assert_eq!(encodings, 1);
        assert!(lines.iter().all(|line| line.as_ptr() == lines[0].as_ptr()));
    }

    #[tokio::test]
    async fn a_bookmark_never_passes_a_change_that_has_not_been_shown() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let feeds = Feeds::new(store.clone(), CancellationToken::new());
        let filter = Arc::new(Filter::parse(maps(), "", "", &Query::default()).unwrap());
        let mut watch = feeds.watch(maps(), &filter, 0).await.unwrap();
        let writer = tokio::spawn({
            let store = store.clone();
            async move { write(&store, 1_000).await }
        });
        let (mut last, mut seen) = (0, 0);
        while seen < 1_000 {
            match watch.poll_now() {
                Ok((_, change)) => {
                    assert!(
                        change.event.revision > last,
                        "a bookmark said this had been shown"
                    );
                    seen += 1;
                }
                Err(revision) => {
                    last = revision;
                    tokio::task::yield_now().await;
                }
            }
        }
        writer.await.unwrap();
    }
}

//! What is true now, the recent past, and who watches: the part all in-process back-ends share.
//!
//! The present is a map in memory. The past is a bounded queue of events; an older moment is
//! rebuilt by undoing events from the present, so that nothing is stored twice.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{Event, KeyValue, List, Revision, StoreError, Value, WatchMessage};

/// Events kept for lists and watches from the past. kube-apiserver compacts after five minutes; a node that
/// churns 30 writes a second stays within this for as long.
const HISTORY_EVENTS_MAX: usize = 10_000;

/// Bytes of superseded values kept for the same purpose; past it the oldest events go first.
const HISTORY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Messages a watcher may be behind before it is cut off.
const WATCH_QUEUE_MAX: usize = 4_096;

/// A write that was checked and may be applied.
pub(crate) enum Write {
    Create {
        key: Arc<str>,
        value: Bytes,
    },
    Update {
        key: Arc<str>,
        value: Bytes,
        expected: Revision,
    },
    Delete {
        key: Arc<str>,
        expected: Revision,
    },
}

impl Write {
    /// What is written.
    pub(crate) fn key(&self) -> &Arc<str> {
        match self {
            Self::Create { key, .. } | Self::Update { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

/// A write that was made elsewhere.
pub(crate) struct Followed {
    /// The key as it is now; of a deletion only the key and the revision count.
    pub(crate) kv: KeyValue,
    pub(crate) deleted: bool,
}

/// Writes that are decided but not yet visible, on top of a [`State`].
#[derive(Default)]
pub(crate) struct Batch {
    pending: HashMap<Arc<str>, Option<KeyValue>>,
    pub(crate) events: Vec<Event>,
}

impl Batch {
    /// Decides one write. The answer is what the caller gets once the batch is visible.
    pub(crate) fn decide(&mut self, state: &State, write: Write) -> Result<KeyValue, StoreError> {
        let revision = state.revision + self.events.len() as Revision + 1;
        let (key, value, expected) = match write {
            Write::Create { key, value } => {
                if self.current(state, &key).is_some() {
                    return Err(StoreError::Exists(key.to_string()));
                }
                let neighbour = state.neighbour(&key);
                let kv = KeyValue {
                    value: Value::from(value).packed_near(neighbour),
                    key,
                    create_revision: revision,
                    mod_revision: revision,
                };
                self.push(Event {
                    revision,
                    kv: kv.clone(),
                    previous: None,
                    deleted: false,
                });
                return Ok(kv);
            }
            Write::Update {
                key,
                value,
                expected,
            } => (key, Some(value), expected),
            Write::Delete { key, expected } => (key, None, expected),
        };
        let Some(current) = self.current(state, &key) else {
            return Err(StoreError::NotFound(key.to_string()));
        };
        if current.mod_revision != expected && !(value.is_none() && expected == 0) {
            return Err(StoreError::Conflict {
                key: key.to_string(),
                current: Box::new(current),
            });
        }
        let deleted = value.is_none();
        let value = value.map(|value| state.packed(&key, value.into(), Some(&current.value)));
        let kv = KeyValue {
            key,
            value: value.unwrap_or_else(|| current.value.clone()),
            create_revision: current.create_revision,
            mod_revision: revision,
        };
        self.push(Event {
            revision,
            kv: kv.clone(),
            previous: Some(current),
            deleted,
        });
        Ok(kv)
    }

    fn push(&mut self, event: Event) {
        let after = (!event.deleted).then(|| event.kv.clone());
        self.pending.insert(event.kv.key.clone(), after);
        self.events.push(event);
    }

    fn current(&self, state: &State, key: &str) -> Option<KeyValue> {
        match self.pending.get(key) {
            Some(pending) => pending.clone(),
            None => state.map.get(key).cloned(),
        }
    }
}

/// The present while it is read. In the order of keys, values are packed with their neighbours.
#[derive(Default)]
pub(crate) struct Loading {
    map: BTreeMap<Arc<str>, KeyValue>,
    last: Option<KeyValue>,
}

impl Loading {
    /// Takes a key that was read.
    pub(crate) fn add(&mut self, mut kv: KeyValue) {
        let last = self.last.take();
        let last = last.filter(|last| collection(&last.key) == collection(&kv.key));
        kv.value = kv.value.packed_near(last.as_ref().map(|last| &last.value));
        self.last = Some(kv.clone());
        self.map.insert(kv.key.clone(), kv);
    }

    /// All that were read.
    pub(crate) fn finish(self) -> BTreeMap<Arc<str>, KeyValue> {
        self.map
    }
}

/// What a key has in common with others of its kind.
fn collection(key: &str) -> &str {
    key.rfind('/').map_or("", |slash| &key[..=slash])
}

struct Watcher {
    prefix: String,
    sender: mpsc::Sender<WatchMessage>,
    /// What has been delivered.
    revision: Revision,
}

/// The present, the recent past, and the watchers.
pub(crate) struct State {
    map: BTreeMap<Arc<str>, KeyValue>,
    pub(crate) revision: Revision,
    /// Lists and watches from before this revision answer `Compacted`.
    oldest: Revision,
    history: VecDeque<Event>,
    history_bytes: usize,
    watchers: Vec<Watcher>,
}

impl State {
    /// The state as found on disk; `revision` is the newest ever given out.
    pub(crate) fn new(map: BTreeMap<Arc<str>, KeyValue>, revision: Revision) -> Self {
        Self {
            map,
            revision,
            oldest: revision,
            history: VecDeque::new(),
            history_bytes: 0,
            watchers: Vec::new(),
        }
    }

    /// A value that may be much like that of a key's: siblings are next to each other.
    fn neighbour(&self, key: &str) -> Option<&Value> {
        let before = self
            .map
            .range::<str, _>((Bound::Unbounded, Bound::Excluded(key)))
            .next_back();
        let after = || {
            self.map
                .range::<str, _>((Bound::Excluded(key), Bound::Unbounded))
                .next()
        };
        let is_sibling = |(other, _): &(&Arc<str>, _)| collection(other) == collection(key);
        let found = before.filter(is_sibling);
        let (_, kv) = found.or_else(|| after().filter(is_sibling))?;
        Some(&kv.value)
    }

    /// A key's new value as it is kept.
    fn packed(&self, key: &str, value: Value, current: Option<&Value>) -> Value {
        let value = value.packed_near(current);
        if value.is_whole() {
            value.packed_near(self.neighbour(key))
        } else {
            value
        }
    }

    /// Makes decided writes visible to reads and watchers.
    pub(crate) fn apply(&mut self, batch: Batch) {
        let events = batch.events;
        let Some(last) = events.last() else { return };
        self.revision = last.revision;
        for event in &events {
            if event.deleted {
                self.map.remove(&event.kv.key);
            } else {
                self.map.insert(event.kv.key.clone(), event.kv.clone());
            }
        }
        self.publish(events);
    }

    /// Takes over writes made elsewhere, in their order, up to a revision.
    pub(crate) fn follow(&mut self, writes: Vec<Followed>, revision: Revision) {
        let mut events = Vec::with_capacity(writes.len());
        for Followed { mut kv, deleted } in writes {
            let previous = if deleted {
                self.map.remove(&kv.key)
            } else {
                let current = self.map.get(&kv.key).map(|current| &current.value);
                kv.value = self.packed(&kv.key, kv.value, current);
                self.map.insert(kv.key.clone(), kv.clone())
            };
            if let (true, Some(previous)) = (deleted, &previous) {
                kv.value = previous.value.clone();
                kv.create_revision = previous.create_revision;
            }
            events.push(Event {
                revision: kv.mod_revision,
                kv,
                previous,
                deleted,
            });
        }
        self.revision = revision;
        self.publish(events);
    }

    /// Begins anew with what is true now, where what happened in between is not known: all watches end.
    pub(crate) fn replace(&mut self, map: BTreeMap<Arc<str>, KeyValue>, revision: Revision) {
        self.close();
        *self = Self::new(map, revision);
    }

    /// The oldest revision that can be asked for.
    pub(crate) fn oldest(&self) -> Revision {
        self.oldest
    }

    /// Tells watchers and remembers.
    fn publish(&mut self, events: Vec<Event>) {
        self.watchers.retain_mut(|watcher| watcher.deliver(&events));
        for event in events {
            self.history_bytes += event_bytes(&event);
            self.history.push_back(event);
        }
        while self.history.len() > HISTORY_EVENTS_MAX || self.history_bytes > HISTORY_BYTES_MAX {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(event) = self.history.pop_front() {
            self.history_bytes -= event_bytes(&event);
            self.oldest = event.revision;
        }
    }

    /// Tells watchers that were passed over how far they are; answers whether any was behind.
    pub(crate) fn send_progress(&mut self) {
        let revision = self.revision;
        self.watchers.retain_mut(|watcher| {
            if watcher.sender.is_closed() {
                return false;
            }
            // A full queue carries news enough.
            if watcher.revision < revision && watcher.sender.capacity() > 1 {
                watcher.revision = revision;
                return watcher
                    .sender
                    .try_send(WatchMessage::Progress(revision))
                    .is_ok();
            }
            true
        });
    }

    /// What the present and the past keep in memory.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> (usize, usize) {
        let present = self.map.values().map(|kv| kv.value.kept_bytes()).sum();
        (present, self.history_bytes)
    }

    /// Ends all watches.
    pub(crate) fn close(&mut self) {
        for watcher in self.watchers.drain(..) {
            // No room or no reader: the end of the channel says the same.
            let _ = watcher.sender.try_send(WatchMessage::Lost);
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<KeyValue> {
        self.map.get(key).cloned()
    }

    pub(crate) fn count(&self, prefix: &str) -> u64 {
        self.from(prefix, None).count() as u64
    }

    pub(crate) fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        self.check_not_future(revision)?;
        while self
            .history
            .front()
            .is_some_and(|event| event.revision <= revision)
        {
            self.forget_oldest();
        }
        Ok(())
    }

    fn check_not_future(&self, asked: Revision) -> Result<(), StoreError> {
        if asked > self.revision {
            return Err(StoreError::Future {
                asked,
                current: self.revision,
            });
        }
        Ok(())
    }

    fn check_kept(&self, asked: Revision) -> Result<(), StoreError> {
        self.check_not_future(asked)?;
        if asked < self.oldest {
            return Err(StoreError::Compacted {
                asked,
                oldest: self.oldest,
            });
        }
        Ok(())
    }

    fn from<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = &'a KeyValue> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.map
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(_, kv)| kv)
    }

    pub(crate) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        revision: Revision,
    ) -> Result<List, StoreError> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        if revision == 0 || revision == self.revision {
            let mut keys = self.from(prefix, after);
            let items: Vec<_> = keys.by_ref().take(limit).cloned().collect();
            return Ok(List {
                more: keys.next().is_some(),
                items,
                revision: self.revision,
            });
        }
        self.check_kept(revision)?;
        // The value of each key changed since is the one before its first change since.
        let mut past: BTreeMap<&str, Option<&KeyValue>> = BTreeMap::new();
        for event in self
            .history
            .iter()
            .rev()
            .take_while(|event| event.revision > revision)
        {
            let key: &str = &event.kv.key;
            if key.starts_with(prefix) && after.is_none_or(|after| key > after) {
                past.insert(key, event.previous.as_ref());
            }
        }
        let mut merged: BTreeMap<&str, &KeyValue> = self
            .from(prefix, after)
            .filter(|kv| !past.contains_key(&*kv.key))
            .map(|kv| (&*kv.key, kv))
            .collect();
        merged.extend(past.into_iter().filter_map(|(key, kv)| Some((key, kv?))));
        let more = merged.len() > limit;
        Ok(List {
            items: merged.into_values().take(limit).cloned().collect(),
            revision,
            more,
        })
    }

    pub(crate) fn watch(
        &mut self,
        prefix: &str,
        revision: Revision,
    ) -> Result<mpsc::Receiver<WatchMessage>, StoreError> {
        let revision = if revision == 0 {
            self.revision
        } else {
            revision
        };
        self.check_kept(revision)?;
        let missed: Vec<Event> = self
            .history
            .iter()
            .filter(|event| event.revision > revision && event.kv.key.starts_with(prefix))
            .cloned()
            .collect();
        // One slot more, so that `Lost` always finds room.
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE_MAX + 1);
        if !missed.is_empty() {
            sender
                .try_send(WatchMessage::Events(missed))
                .expect("an empty queue has room");
        }
        self.watchers.push(Watcher {
            prefix: prefix.to_owned(),
            sender,
            revision: self.revision,
        });
        Ok(receiver)
    }
}

impl Watcher {
    /// Answers whether the watch goes on.
    fn deliver(&mut self, events: &[Event]) -> bool {
        let matching: Vec<Event> = events
            .iter()
            .filter(|event| event.kv.key.starts_with(&self.prefix))
            .cloned()
            .collect();
        let Some(last) = matching.last() else {
            return !self.sender.is_closed();
        };
        if self.sender.capacity() <= 1 {
            let _ = self.sender.try_send(WatchMessage::Lost);
            return false;
        }
        self.revision = last.revision;
        self.sender.try_send(WatchMessage::Events(matching)).is_ok()
    }
}

fn event_bytes(event: &Event) -> usize {
    // What keeping the event costs beyond the present: the value that was replaced or removed.
    event
        .previous
        .as_ref()
        .map_or(0, |previous| previous.value.kept_bytes())
        + 128
}

//! The store in the way of kine: nine methods over keys with one revision counter for all.
//!
//! Keys are `/registry/<resource>/<namespace>/<name>`, values are JSON as bytes; the store never looks inside.
//! Every write gets the next revision. Reads say which revision they are true at. A watch delivers
//! every write after a revision, in order, each once, or fails with [`StoreError::Compacted`].
//!
//! Absent on purpose: objects, selectors, defaulting, anything of Kubernetes. The server knows those.

mod backend;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod embedded;
mod etcd;
#[cfg(any(test, feature = "testing"))]
pub mod history;
mod memory;
pub mod snapshot;
mod state;
mod value;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::mpsc;

pub use embedded::{EmbeddedStore, OpenError};
pub use etcd::{EtcdConfig, EtcdError, EtcdStore};
pub use memory::MemoryStore;
pub use value::Value;

/// Orders all writes. 0 is "before everything"; the first write gets 1.
pub type Revision = u64;

/// A key, its value, and when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// For instance `/registry/pods/default/web`.
    pub key: Arc<str>,
    /// JSON.
    pub value: Value,
    /// Revision of the write that made the key.
    pub create_revision: Revision,
    /// Revision of the last write.
    pub mod_revision: Revision,
}

/// What a list answers.
#[derive(Clone, Debug)]
pub struct List {
    /// In key order.
    pub items: Vec<KeyValue>,
    /// The revision the answer is true at.
    pub revision: Revision,
    /// There are more keys after the last of `items`.
    pub more: bool,
}

/// One write, as a watch delivers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The write's revision.
    pub revision: Revision,
    /// The key and its new value; for a deletion the last value, with `mod_revision` the deletion's.
    pub kv: KeyValue,
    /// The value before, if there was one.
    pub previous: Option<KeyValue>,
    /// The key is gone.
    pub deleted: bool,
}

/// What a watch delivers.
#[derive(Clone, Debug)]
pub enum WatchMessage {
    /// Writes of one commit, in order.
    Events(Vec<Event>),
    /// Everything up to this revision has been delivered. Sent about a second after other keys changed.
    Progress(Revision),
    /// The watch is over: the reader was too slow or the store closes. Start again from a list. A channel that
    /// just ends means the same.
    Lost,
}

/// How sure a write has to be before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On disk.
    Durable,
    /// In order, visible, and on disk with the next durable write or within ten minutes. For leases and events,
    /// which would wear out flash and are worth nothing after a power cut.
    Lazy,
}

/// Failure of a store call.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// Create: the key is there.
    #[error("{0}: key exists")]
    Exists(String),
    /// Update, delete: the key is not there.
    #[error("{0}: key not found")]
    NotFound(String),
    /// Update, delete: the key's `mod_revision` is not the one expected; the current one is given.
    #[error("{key}: the revision is {}, not the one expected", current.mod_revision)]
    Conflict {
        /// The key.
        key: String,
        /// What is there.
        current: Box<KeyValue>,
    },
    /// The revision asked for is older than what is kept. Becomes 410 `Expired`.
    #[error("revision {asked} is compacted, the oldest kept is {oldest}")]
    Compacted {
        /// Asked for.
        asked: Revision,
        /// The oldest that can be asked for.
        oldest: Revision,
    },
    /// The revision asked for does not exist yet.
    #[error("revision {asked} is in the future, the current one is {current}")]
    Future {
        /// Asked for.
        asked: Revision,
        /// The newest.
        current: Revision,
    },
    /// The disk is full. Nothing was written; reads go on.
    #[error("store {0}: no space left")]
    NoSpace(String),
    /// The store cannot be written or read; the server answers 500 and /readyz fails.
    #[error("store: {0}")]
    Failed(String),
}

/// The nine methods. All are safe to cancel; a cancelled write may or may not have happened.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes a key that must not be there.
    async fn create(
        &self,
        key: &str,
        value: Bytes,
        durability: Durability,
    ) -> Result<KeyValue, StoreError>;

    /// Reads a key, and says at which revision that was.
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), StoreError>;

    /// Reads keys that start with `prefix`, in order, from the first key greater than `after`
    /// if given, `limit` at most (0: all), as of `revision` (0: now).
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        revision: Revision,
    ) -> Result<List, StoreError>;

    /// Counts keys that start with `prefix`.
    async fn count(&self, prefix: &str) -> Result<(u64, Revision), StoreError>;

    /// Replaces a key's value if its `mod_revision` is `expected`.
    async fn update(
        &self,
        key: &str,
        value: Bytes,
        expected: Revision,
        durability: Durability,
    ) -> Result<KeyValue, StoreError>;

    /// Removes a key if its `mod_revision` is `expected` (0: whatever it is). Answers what it was,
    /// with `mod_revision` the revision of the deletion.
    async fn delete(&self, key: &str, expected: Revision) -> Result<KeyValue, StoreError>;

    /// Delivers every write after `revision` to keys that start with `prefix` (0: from now on).
    /// The channel is bounded: a reader that falls behind gets [`WatchMessage::Lost`] and the end.
    async fn watch(
        &self,
        prefix: &str,
        revision: Revision,
    ) -> Result<mpsc::Receiver<WatchMessage>, StoreError>;

    /// Forgets history up to `revision`: lists and watches from before answer `Compacted`.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// The newest revision.
    async fn current_revision(&self) -> Result<Revision, StoreError>;
}

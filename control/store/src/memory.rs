//! A store in memory, for tests.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    Durability, KeyValue, List, Revision, Store, StoreError, WatchMessage,
    state::{Batch, State, Write},
};

/// Keeps everything in memory and forgets it when dropped.
pub struct MemoryStore {
    state: Mutex<State>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self {
            state: Mutex::new(State::new(BTreeMap::new(), 0)),
        }
    }
}

impl MemoryStore {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change to the state is made by calls that do not panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, write: Write) -> Result<KeyValue, StoreError> {
        let mut state = self.state();
        let mut batch = Batch::default();
        let kv = batch.decide(&state, write)?;
        state.apply(batch);
        state.send_progress();
        Ok(kv)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn create(&self, key: &str, value: Bytes, _: Durability) -> Result<KeyValue, StoreError> {
        self.write(Write::Create {
            key: key.into(),
            value,
        })
    }

    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), StoreError> {
        let state = self.state();
        Ok((state.get(key), state.revision))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Revision,
    ) -> Result<List, StoreError> {
        self.state().list(prefix, after, limit, at)
    }

    async fn count(&self, prefix: &str) -> Result<(u64, Revision), StoreError> {
        let state = self.state();
        Ok((state.count(prefix), state.revision))
    }

    async fn update(
        &self,
        key: &str,
        value: Bytes,
        expected: Revision,
        _: Durability,
    ) -> Result<KeyValue, StoreError> {
        self.write(Write::Update {
            key: key.into(),
            value,
            expected,
        })
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<KeyValue, StoreError> {
        self.write(Write::Delete {
            key: key.into(),
            expected,
        })
    }

    async fn watch(
        &self,
        prefix: &str,
        revision: Revision,
    ) -> Result<mpsc::Receiver<WatchMessage>, StoreError> {
        self.state().watch(prefix, revision)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.state().compact(revision)
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        Ok(self.state().revision)
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn the_memory_store_conforms() {
        crate::conformance::suite(|| async { super::MemoryStore::default() }).await;
    }
}

//! What all back-ends here have in common: the present and the recent past are in memory, so that reads and watches
//! are the same and only writing differs.

use std::sync::MutexGuard;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    Durability, KeyValue, List, Revision, Store, StoreError, WatchMessage,
    state::{State, Write},
};

/// A back-end with its present in memory.
#[async_trait]
pub(crate) trait Backend: Send + Sync + 'static {
    /// The present.
    fn state(&self) -> MutexGuard<'_, State>;

    /// Decides a write, keeps it and makes it visible.
    async fn write(&self, write: Write, durability: Durability) -> Result<KeyValue, StoreError>;

    /// Answers once [`Backend::state`] shows every write that anybody was told of before the call.
    async fn catch_up(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// A list of a moment that the state no longer knows.
    async fn list_past(
        &self,
        _prefix: &str,
        _after: Option<&str>,
        _limit: usize,
        _revision: Revision,
    ) -> Option<Result<List, StoreError>> {
        None
    }

    /// Lets others who keep history forget it too.
    async fn compact_elsewhere(&self, _revision: Revision) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl<B: Backend> Store for B {
    async fn create(
        &self,
        key: &str,
        value: Bytes,
        durability: Durability,
    ) -> Result<KeyValue, StoreError> {
        let key = key.into();
        self.write(Write::Create { key, value }, durability).await
    }

    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), StoreError> {
        self.catch_up().await?;
        let state = self.state();
        Ok((state.get(key), state.revision))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        revision: Revision,
    ) -> Result<List, StoreError> {
        // What was true at a revision that is here can be said without asking how far others are.
        if revision == 0 || revision > self.state().revision {
            self.catch_up().await?;
        }
        let list = self.state().list(prefix, after, limit, revision);
        match list {
            Err(StoreError::Compacted { .. }) => self
                .list_past(prefix, after, limit, revision)
                .await
                .unwrap_or(list),
            list => list,
        }
    }

    async fn count(&self, prefix: &str) -> Result<(u64, Revision), StoreError> {
        self.catch_up().await?;
        let state = self.state();
        Ok((state.count(prefix), state.revision))
    }

    async fn update(
        &self,
        key: &str,
        value: Bytes,
        expected: Revision,
        durability: Durability,
    ) -> Result<KeyValue, StoreError> {
        let write = Write::Update {
            key: key.into(),
            value,
            expected,
        };
        self.write(write, durability).await
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<KeyValue, StoreError> {
        let key = key.into();
        self.write(Write::Delete { key, expected }, Durability::Durable)
            .await
    }

    async fn watch(
        &self,
        prefix: &str,
        revision: Revision,
    ) -> Result<mpsc::Receiver<WatchMessage>, StoreError> {
        self.catch_up().await?;
        self.state().watch(prefix, revision)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.catch_up().await?;
        self.state().compact(revision)?;
        self.compact_elsewhere(revision).await
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        self.catch_up().await?;
        Ok(self.state().revision)
    }
}

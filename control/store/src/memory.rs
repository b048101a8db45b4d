//! A store in memory, for tests.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use crate::{
    Durability, KeyValue, StoreError,
    backend::Backend,
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

#[async_trait]
impl Backend for MemoryStore {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change to the state is made by calls that do not panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self, write: Write, _: Durability) -> Result<KeyValue, StoreError> {
        let mut state = self.state();
        let mut batch = Batch::default();
        let kv = batch.decide(&state, write)?;
        state.apply(batch);
        state.send_progress();
        Ok(kv)
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn the_memory_store_conforms() {
        crate::conformance::suite(|| async { super::MemoryStore::default() }).await;
    }
}

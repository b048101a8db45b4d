//! What a request's admission goes by, read as of one moment: not before the request came.
//!
//! Admission reads half a dozen small things: the namespace, its limits, the pod's account and class. A store over the
//! network has to ask how far it is before it can answer what is true now. Here only the first read asks; the others
//! are of the revision that it learnt, which a mirror that has reached it knows by itself.

use tokio::sync::OnceCell;
use wherry_store::{KeyValue, Revision, Store, StoreError};

/// A moment, settled by the first read.
#[derive(Debug, Default)]
pub(crate) struct Moment {
    revision: OnceCell<Revision>,
}

impl Moment {
    /// One key.
    pub(crate) async fn get(
        &self,
        store: &dyn Store,
        key: &str,
    ) -> Result<Option<KeyValue>, StoreError> {
        // Of all keys that begin with this one, it is the first.
        let found = self.read(store, key, 1).await?;
        Ok(found.into_iter().find(|kv| *kv.key == *key))
    }

    /// All keys that start with `prefix`, in order.
    pub(crate) async fn list(
        &self,
        store: &dyn Store,
        prefix: &str,
    ) -> Result<Vec<KeyValue>, StoreError> {
        self.read(store, prefix, 0).await
    }

    async fn read(
        &self,
        store: &dyn Store,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<KeyValue>, StoreError> {
        let revision = *self
            .revision
            .get_or_try_init(|| store.current_revision())
            .await?;
        match store.list(prefix, None, limit, revision).await {
            // What takes so long goes by what is true now.
            Err(StoreError::Compacted { .. }) => store.list(prefix, None, limit, 0).await,
            list => list,
        }
        .map(|list| list.items)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use wherry_store::{Durability, MemoryStore};

    use super::*;

    async fn put(store: &MemoryStore, key: &str) {
        let value = Bytes::from_static(b"{}");
        store.create(key, value, Durability::Durable).await.unwrap();
    }

    #[tokio::test]
    async fn all_reads_are_of_the_moment_of_the_first_and_of_the_very_key() {
        let store = MemoryStore::default();
        put(&store, "/a/b").await;
        put(&store, "/a/bc").await;
        let moment = Moment::default();
        assert!(moment.get(&store, "/a").await.unwrap().is_none());
        assert_eq!(
            *moment.get(&store, "/a/b").await.unwrap().unwrap().key,
            *"/a/b"
        );
        put(&store, "/a/d").await;
        assert!(moment.get(&store, "/a/d").await.unwrap().is_none());
        assert_eq!(moment.list(&store, "/a/").await.unwrap().len(), 2);
        assert!(
            Moment::default()
                .get(&store, "/a/d")
                .await
                .unwrap()
                .is_some()
        );
    }

    #[tokio::test]
    async fn a_moment_that_is_forgotten_becomes_now() {
        let store = MemoryStore::default();
        put(&store, "/a").await;
        let moment = Moment::default();
        assert!(moment.get(&store, "/a").await.unwrap().is_some());
        put(&store, "/b").await;
        put(&store, "/c").await;
        store.compact(2).await.unwrap();
        assert!(moment.get(&store, "/c").await.unwrap().is_some());
    }
}

//! Answers that hold for a while, in bounded number.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Answers kept. A node is asked by few.
const ENTRIES_MAX: usize = 1024;

type Entries<K, V> = HashMap<K, (Instant, V)>;

/// Clones share what is kept.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    entries: Arc<Mutex<Entries<K, V>>>,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self {
            entries: Arc::default(),
        }
    }
}

impl<K, V> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self {
            entries: Arc::clone(&self.entries),
        }
    }
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    fn lock(&self) -> MutexGuard<'_, Entries<K, V>> {
        // An answer that was not kept is asked for again.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer, as long as it holds.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.get_at(key, Instant::now())
    }

    fn get_at(&self, key: &K, now: Instant) -> Option<V> {
        let entries = self.lock();
        let (until, value) = entries.get(key)?;
        (now < *until).then(|| value.clone())
    }

    /// Keeps an answer for `ttl`. Where there are too many, those go first that hold no more.
    pub(crate) fn put(&self, key: K, value: V, ttl: Duration) {
        let now = Instant::now();
        let mut entries = self.lock();
        if entries.len() >= ENTRIES_MAX {
            entries.retain(|_, (until, _)| now < *until);
        }
        if entries.len() >= ENTRIES_MAX {
            entries.clear();
        }
        entries.insert(key, (now + ttl, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_hold_for_their_time_and_are_bounded() {
        let cache = Cache::default();
        cache.put(1, "one", Duration::from_secs(3600));
        let now = Instant::now();
        assert_eq!(cache.get_at(&1, now), Some("one"));
        assert_eq!(cache.get_at(&1, now + Duration::from_secs(3601)), None);
        for key in 0..5000 {
            cache.put(key, "many", Duration::from_secs(3600));
            assert!(cache.lock().len() <= ENTRIES_MAX);
        }
        assert_eq!(cache.get(&4999), Some("many"));
    }
}

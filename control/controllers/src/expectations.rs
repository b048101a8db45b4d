//! Writes whose effect has not been seen yet: until it is, deciding anew would do them again.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::workqueue::Key;

/// Past this the watch has lost something, and what is there decides (client-go: `ExpectationsTimeout`).
const AGE_MAX: Duration = Duration::from_secs(300);

/// What is awaited, by who awaits it.
#[derive(Default)]
pub(crate) struct Expectations(Mutex<HashMap<Key, Expected>>);

#[derive(Default)]
struct Expected {
    creations: usize,
    deletions: HashSet<String>,
    since: Option<Instant>,
}

impl Expectations {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Expected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether everything has been seen.
    pub(crate) fn are_met(&self, key: &Key) -> bool {
        self.lock().get(key).is_none_or(|expected| {
            (expected.creations == 0 && expected.deletions.is_empty())
                || expected
                    .since
                    .is_some_and(|since| since.elapsed() > AGE_MAX)
        })
    }

    /// So many objects are about to be created.
    pub(crate) fn expect_creations(&self, key: &Key, count: usize) {
        let mut all = self.lock();
        let expected = all.entry(key.clone()).or_default();
        expected.creations += count;
        expected.since = Some(Instant::now());
    }

    /// Objects of these uids are about to be deleted.
    pub(crate) fn expect_deletions(&self, key: &Key, uids: impl IntoIterator<Item = String>) {
        let mut all = self.lock();
        let expected = all.entry(key.clone()).or_default();
        expected.deletions.extend(uids);
        expected.since = Some(Instant::now());
    }

    /// One was created, or will not be.
    pub(crate) fn created(&self, key: &Key) {
        if let Some(expected) = self.lock().get_mut(key) {
            expected.creations = expected.creations.saturating_sub(1);
        }
    }

    /// One was deleted, or will not be.
    pub(crate) fn deleted(&self, key: &Key, uid: &str) {
        if let Some(expected) = self.lock().get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    /// Nobody awaits anything there any more.
    pub(crate) fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_is_awaited_until_it_is_seen() {
        let expectations = Expectations::default();
        let key = Key::new("ns", "a");
        assert!(expectations.are_met(&key));
        expectations.expect_creations(&key, 2);
        expectations.expect_deletions(&key, ["u1".to_owned()]);
        expectations.created(&key);
        expectations.created(&key);
        assert!(!expectations.are_met(&key));
        expectations.deleted(&key, "u1");
        assert!(expectations.are_met(&key));
        expectations.created(&key);
        assert!(expectations.are_met(&key), "more than awaited is no debt");
    }
}

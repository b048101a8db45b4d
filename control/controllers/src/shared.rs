//! What many objects have in common, kept once: pods of one owner have the same labels, ports and needs.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, Weak},
};

/// Fewer than this many are not worth a look for those that nobody has any more.
const KNOWN_MIN: usize = 1_024;

/// Values that are in use somewhere.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    known: HashMap<u64, Weak<T>>,
    hasher: RandomState,
    /// When those in use are counted again.
    forget_at: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            hasher: RandomState::new(),
            forget_at: KNOWN_MIN,
        }
    }
}

impl<T: PartialEq> Shared<T> {
    /// The same value, or one that equals it and is there already. `parts` are what tells most values apart.
    pub(crate) fn share(&mut self, parts: impl Hash, value: impl Into<Arc<T>>) -> Arc<T> {
        let value = value.into();
        let hash = self.hasher.hash_one(parts);
        if let Some(known) = self.known.get(&hash).and_then(Weak::upgrade)
            && *known == *value
        {
            return known;
        }
        if self.known.len() >= self.forget_at {
            self.known.retain(|_, known| known.strong_count() > 0);
            self.forget_at = KNOWN_MIN.max(2 * self.known.len());
        }
        self.known.insert(hash, Arc::downgrade(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_are_kept_once_for_as_long_as_somebody_has_them() {
        let mut shared = Shared::<String>::default();
        let a = shared.share("a", String::from("a"));
        assert!(Arc::ptr_eq(&a, &shared.share("a", String::from("a"))));
        let other = shared.share("a", String::from("told apart by more than its parts"));
        assert!(!Arc::ptr_eq(&a, &other));
        for number in 0..10 * KNOWN_MIN {
            shared.share(number, number.to_string());
        }
        assert!(shared.known.len() <= KNOWN_MIN);
        assert!(Arc::ptr_eq(&other, &shared.share("a", other.to_string())));
    }
}

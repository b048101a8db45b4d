//! Pauses after pulls that failed: 10 s, doubling to 5 min, for each pod and image. Pure.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use crate::pod::restart::BackoffPolicy;

/// Pauses remembered; those that are over are forgotten beyond, which costs an early retry.
const REMEMBERED_MAX: usize = 1024;

/// A pull that failed, and how long to leave the registry alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    /// How long.
    pub(crate) delay: Duration,
    /// Until when.
    pub(crate) until: SystemTime,
    /// The reason of the pull that failed.
    pub(crate) reason: &'static str,
    /// Its message.
    pub(crate) message: String,
}

/// The pauses of every pod.
#[derive(Debug)]
pub(crate) struct Pauses {
    policy: BackoffPolicy,
    /// By pod UID and image.
    pauses: HashMap<(String, String), Pause>,
}

impl Pauses {
    /// None yet.
    pub(crate) fn new(policy: BackoffPolicy) -> Self {
        Self {
            policy,
            pauses: HashMap::new(),
        }
    }

    /// The pause that `image` of a pod is in.
    pub(crate) fn at(&self, uid: &str, image: &str, now: SystemTime) -> Option<&Pause> {
        let pause = self.pauses.get(&(uid.to_owned(), image.to_owned()))?;
        (pause.until > now).then_some(pause)
    }

    /// Notes a failure. The pause is twice the last one, unless that is long over (twice the longest
    /// pause, as client-go's `Backoff` forgets).
    pub(crate) fn fail(
        &mut self,
        uid: &str,
        image: &str,
        now: SystemTime,
        reason: &'static str,
        message: String,
    ) -> &Pause {
        if self.pauses.len() >= REMEMBERED_MAX {
            self.pauses.retain(|_, pause| pause.until > now);
        }
        let key = (uid.to_owned(), image.to_owned());
        let delay = match self.pauses.get(&key) {
            Some(last) if now < last.until + 2 * self.policy.max => {
                (last.delay * 2).min(self.policy.max)
            }
            _ => self.policy.initial,
        };
        let pause = Pause {
            delay,
            until: now + delay,
            reason,
            message,
        };
        self.pauses.entry(key).insert_entry(pause).into_mut()
    }

    /// Notes a success.
    pub(crate) fn succeed(&mut self, uid: &str, image: &str) {
        self.pauses.remove(&(uid.to_owned(), image.to_owned()));
    }

    /// Forgets a pod.
    pub(crate) fn forget(&mut self, uid: &str) {
        self.pauses.retain(|(pod, _), _| pod != uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_ten_seconds_to_five_minutes_and_start_anew_when_long_over() {
        let policy = BackoffPolicy {
            initial: Duration::from_secs(10),
            max: Duration::from_secs(300),
        };
        let mut pauses = Pauses::new(policy);
        let mut now = SystemTime::UNIX_EPOCH;
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(pauses.at("u", "i", now), None);
            let pause = pauses.fail("u", "i", now, "ErrImagePull", "why".into());
            assert_eq!(pause.delay.as_secs(), expected);
            let (until, before) = (pause.until, pause.until - Duration::from_nanos(1));
            assert!(pauses.at("u", "i", before).is_some());
            assert!(pauses.at("u", "other", before).is_none());
            assert!(pauses.at("v", "i", before).is_none());
            now = until;
        }
        let later = now + Duration::from_secs(600);
        let delay = pauses
            .fail("u", "i", later, "ErrImagePull", String::new())
            .delay;
        assert_eq!(delay, policy.initial);
        pauses.succeed("u", "i");
        let delay = pauses
            .fail("u", "i", later, "ErrImagePull", String::new())
            .delay;
        assert_eq!(delay, policy.initial);
        pauses.forget("u");
        assert_eq!(pauses.at("u", "i", later), None);
    }
}

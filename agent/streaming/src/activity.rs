//! When a byte last moved, for the idle timeout. Pings do not count.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// The moment of the last data on a connection.
#[derive(Clone, Debug)]
pub(crate) struct Activity {
    since: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            last_ms: Arc::default(),
        }
    }
}

impl Activity {
    /// Data moved now.
    pub(crate) fn touch(&self) {
        let now_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Returns once nothing has moved for `timeout`.
    pub(crate) async fn idle_for(&self, timeout: Duration) {
        loop {
            let deadline =
                self.since + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + timeout;
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn idleness_is_counted_from_the_last_data() {
        let timeout = Duration::from_millis(60);
        let activity = Activity::default();
        let start = Instant::now();
        let touch = async {
            tokio::time::sleep(timeout / 2).await;
            activity.touch();
        };
        tokio::join!(activity.idle_for(timeout), touch);
        // Milliseconds are rounded down.
        assert!(start.elapsed() + Duration::from_millis(2) >= timeout + timeout / 2);
    }
}

//! What nodes have been asked for and have not answered yet: a plugin may take minutes, and nobody else waits for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::Queues;
use crate::{retry, workqueue::Key};

/// Calls of one plugin at a time; the rest take turns.
const OF_A_PLUGIN_MAX: usize = 16;
/// When who has no turn asks again.
const TURN: Duration = Duration::from_secs(1);

/// How a call ended.
pub(super) enum Landing {
    /// There is nothing more to do.
    Done,
    /// It is made again, after a while that grows with every failure.
    Failed,
    /// It is made again after so long, whatever was before.
    Later(Duration),
}

/// Whether a call may begin.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has been begun, and its end will be told.
    UnderWay,
    /// Not before so long.
    Wait(Duration),
    /// It may; so often it has failed.
    Go(u32),
}

struct Failure {
    count: u32,
    not_before: Instant,
}

#[derive(Default)]
struct State {
    /// With the plugin that is called.
    under_way: HashMap<Key, String>,
    failures: HashMap<Key, Failure>,
    tasks: JoinSet<()>,
}

/// Calls under way, by claim, and by volume (which has no namespace).
#[derive(Default)]
pub(super) struct Flights {
    state: Mutex<State>,
}

impl Flights {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a call for this may begin.
    pub(super) fn turn(&self, key: &Key, plugin: &str, now: Instant) -> Turn {
        let state = self.state();
        if state.under_way.contains_key(key) {
            return Turn::UnderWay;
        }
        let failure = state.failures.get(key);
        if let Some(left) = failure
            .and_then(|failure| failure.not_before.checked_duration_since(now))
            .filter(|left| !left.is_zero())
        {
            return Turn::Wait(left);
        }
        let others = state.under_way.values().filter(|other| *other == plugin);
        match others.count() < OF_A_PLUGIN_MAX {
            true => Turn::Go(failure.map_or(0, |failure| failure.count)),
            false => Turn::Wait(TURN),
        }
    }

    /// Begins a call; at its end whatever it is for is looked at again.
    pub(super) fn begin(
        self: &Arc<Self>,
        key: Key,
        plugin: &str,
        queues: &Queues,
        work: impl Future<Output = Landing> + Send + 'static,
    ) {
        let (flights, queues) = (Arc::clone(self), queues.clone());
        let mut state = self.state();
        state.under_way.insert(key.clone(), plugin.to_owned());
        while state.tasks.try_join_next().is_some() {}
        state.tasks.spawn(async move {
            let landing = work.await;
            flights.land(&key, landing);
            match key.namespace.is_empty() {
                true => queues.volumes.add(key),
                false => queues.claims.add(key),
            }
        });
    }

    fn land(&self, key: &Key, landing: Landing) {
        let mut state = self.state();
        state.under_way.remove(key);
        let count = state.failures.get(key).map_or(0, |failure| failure.count);
        let (count, wait) = match landing {
            Landing::Done => {
                state.failures.remove(key);
                return;
            }
            Landing::Failed => (count.saturating_add(1), retry::backoff(count + 1)),
            Landing::Later(wait) => (count, wait),
        };
        let not_before = Instant::now() + wait;
        state
            .failures
            .insert(key.clone(), Failure { count, not_before });
    }

    /// What is gone has no failures.
    pub(super) fn forget(&self, key: &Key) {
        self.state().failures.remove(key);
    }

    /// Ends what is under way: it is repeated by the next controller.
    pub(super) async fn stop(&self) {
        let mut tasks = std::mem::take(&mut self.state().tasks);
        tasks.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_take_turns_and_wait_after_failures() {
        let flights = Arc::new(Flights::default());
        let queues = Queues::default();
        let key = |number: usize| Key::new("ns", format!("claim-{number}"));
        let now = Instant::now();
        assert_eq!(flights.turn(&key(0), "p", now), Turn::Go(0));
        for number in 0..OF_A_PLUGIN_MAX {
            let never = std::future::pending();
            flights.begin(key(number), "p", &queues, never);
        }
        assert_eq!(flights.turn(&key(0), "p", now), Turn::UnderWay);
        assert_eq!(flights.turn(&key(99), "p", now), Turn::Wait(TURN));
        assert_eq!(flights.turn(&key(99), "another", now), Turn::Go(0));
        for count in 1..4 {
            flights.land(&key(0), Landing::Failed);
            let turn = flights.turn(&key(0), "p", Instant::now());
            assert!(matches!(turn, Turn::Wait(_)), "{turn:?}");
            let later = Instant::now() + Duration::from_secs(60);
            assert_eq!(flights.turn(&key(0), "p", later), Turn::Go(count));
        }
        flights.forget(&key(0));
        assert_eq!(flights.turn(&key(0), "p", Instant::now()), Turn::Go(0));
        flights.stop().await;
    }
}

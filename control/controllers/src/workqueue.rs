//! Which objects have to be looked at, each once at a time, and again later.
//!
//! As client-go's workqueue: however often an object is named while it waits, it is looked at once; named while it is
//! being looked at, it comes again after that.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::retry;

/// Brings objects of one kind to what is wanted of them, one after the other, as a [`WorkQueue`] names them.
pub(crate) trait Reconcile: Send + Sync + 'static {
    /// Objects looked at at once.
    const WORKERS: usize;

    /// What the log says when that failed.
    fn complaint(&self) -> &'static str;

    /// Waits until all that it looks at has been seen for the first time.
    fn complete(&self) -> impl Future<Output = ()> + Send;

    /// Looks at one object; answers when to look again if nothing happens.
    fn reconcile(&self, key: &Key) -> impl Future<Output = kube::Result<Option<Duration>>> + Send;
}

/// Namespace and name of an object; no namespace is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Objects that wait to be looked at.
#[derive(Default)]
pub(crate) struct WorkQueue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Key>,
    /// What is in `ready`.
    queued: HashSet<Key>,
    working: HashSet<Key>,
    /// Named while being worked on.
    again: HashSet<Key>,
    later: BTreeSet<(Instant, Key)>,
    failures: HashMap<Key, u32>,
}

impl State {
    fn add(&mut self, key: Key) {
        if self.working.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn take(&mut self, now: Instant) -> Result<Key, Option<Instant>> {
        while let Some((at, key)) = self.later.first().cloned().filter(|(at, _)| *at <= now) {
            self.later.remove(&(at, key.clone()));
            self.add(key);
        }
        let Some(key) = self.ready.pop_front() else {
            return Err(self.later.first().map(|(at, _)| *at));
        };
        self.queued.remove(&key);
        self.working.insert(key.clone());
        Ok(key)
    }

    fn done(&mut self, key: &Key) {
        self.working.remove(key);
        if self.again.remove(key) {
            self.add(key.clone());
        }
    }
}

impl WorkQueue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names an object.
    pub(crate) fn add(&self, key: Key) {
        self.state().add(key);
        self.changed.notify_one();
    }

    async fn next(&self) -> Key {
        loop {
            let changed = self.changed.notified();
            let taken = self.state().take(Instant::now());
            match taken {
                Ok(key) => {
                    // Another worker may find more.
                    self.changed.notify_one();
                    return key;
                }
                Err(None) => changed.await,
                Err(Some(at)) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(at) => {}
                },
            }
        }
    }

    /// Looks at objects until shutdown, several at once. `reconcile` answers when to look again if nothing happens;
    /// after an error that is soon, and later with each in a row.
    pub(crate) async fn run<R, F>(
        self: Arc<Self>,
        what: &'static str,
        workers: usize,
        shutdown: CancellationToken,
        reconcile: R,
    ) where
        R: Fn(Key) -> F + Clone + Send + 'static,
        F: Future<Output = kube::Result<Option<Duration>>> + Send,
    {
        let mut tasks = JoinSet::new();
        for _ in 0..workers {
            let (queue, shutdown, reconcile) = (self.clone(), shutdown.clone(), reconcile.clone());
            tasks.spawn(async move {
                loop {
                    let key = tokio::select! {
                        () = shutdown.cancelled() => return,
                        key = queue.next() => key,
                    };
                    let result = reconcile(key.clone()).await;
                    queue.finish(what, key, result);
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Has a controller look at objects until shutdown, once it has seen all that it needs.
    pub(crate) async fn reconcile<C: Reconcile>(
        self: Arc<Self>,
        controller: Arc<C>,
        shutdown: CancellationToken,
    ) {
        // What is not there yet when it is told to stop will not come.
        if shutdown
            .run_until_cancelled(controller.complete())
            .await
            .is_none()
        {
            return;
        }
        let what = controller.complaint();
        let reconcile = move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        };
        self.run(what, C::WORKERS, shutdown, reconcile).await;
    }

    fn finish(&self, what: &str, key: Key, result: kube::Result<Option<Duration>>) {
        let mut state = self.state();
        state.done(&key);
        match result {
            Ok(again) => {
                state.failures.remove(&key);
                if let Some(pause) = again {
                    state.later.insert((Instant::now() + pause, key));
                }
            }
            Err(error) => {
                let failures = state.failures.entry(key.clone()).or_default();
                *failures += 1;
                let pause = retry::backoff(*failures);
                // A write that lost a race is an everyday thing: what won is on its way here.
                if !matches!(&error, kube::Error::Api(status) if status.code == 409) {
                    warn!(object = %key, error = %retry::text(&error), "{what}");
                }
                state.later.insert((Instant::now() + pause, key));
            }
        }
        drop(state);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    #[test]
    fn an_object_waits_once_and_is_worked_on_once() {
        let now = Instant::now();
        let mut state = State::default();
        for _ in 0..3 {
            state.add(key("a"));
        }
        assert_eq!(state.take(now), Ok(key("a")));
        assert_eq!(state.take(now), Err(None));
        state.add(key("a"));
        assert_eq!(state.take(now), Err(None), "it is being worked on");
        state.done(&key("a"));
        assert_eq!(state.take(now), Ok(key("a")));
    }

    #[test]
    fn later_is_when_it_was_said() {
        let now = Instant::now();
        let at = now + Duration::from_secs(5);
        let mut state = State::default();
        state.later.insert((at, key("a")));
        assert_eq!(state.take(now), Err(Some(at)));
        assert_eq!(state.take(at), Ok(key("a")));
    }

    #[tokio::test]
    async fn failures_come_again_and_success_ends_them() {
        let queue = Arc::new(WorkQueue::default());
        let (sender, mut tries) = tokio::sync::mpsc::channel(8);
        let shutdown = CancellationToken::new();
        queue.add(key("a"));
        let reconcile = move |_| {
            let sender = sender.clone();
            async move {
                sender.send(()).await.expect("the test listens");
                if sender.capacity() == sender.max_capacity() - 1 {
                    Err(kube::Error::LinesCodecMaxLineLengthExceeded)
                } else {
                    Ok(None)
                }
            }
        };
        let running = tokio::spawn(queue.run("Test", 2, shutdown.clone(), reconcile));
        tries.recv().await.expect("a first try");
        tries.recv().await.expect("a second, after the failure");
        shutdown.cancel();
        running.await.expect("workers end");
    }
}

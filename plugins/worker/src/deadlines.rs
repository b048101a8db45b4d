//! The deadlines of all calls, with one timer.
//!
//! A timer that is set wakes the runtime that keeps it, which costs as much as a small check. Nearly all calls end long
//! before their deadlines, so that this one is set once a second, and not for each.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

#[derive(Default)]
struct Waiting {
    next: u64,
    wakers: BTreeMap<(Instant, u64), Waker>,
    /// When the timer goes off.
    set_to: Option<Instant>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// A deadline comes before the one that the timer is set to.
    is_sooner: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out those whose time has come, and sets the timer to the first of the others.
    fn due(&self) -> (Vec<Waker>, Option<Instant>) {
        let now = Instant::now();
        let mut waiting = self.lock();
        let mut due = Vec::new();
        while let Some(first) = waiting.wakers.first_entry()
            && first.key().0 <= now
        {
            due.push(first.remove());
        }
        waiting.set_to = waiting.wakers.keys().next().map(|(at, _)| *at);
        (due, waiting.set_to)
    }

    async fn keep(self: Arc<Self>) {
        loop {
            let (due, next) = self.due();
            due.into_iter().for_each(Waker::wake);
            match next {
                None => self.is_sooner.notified().await,
                // Both may be dropped.
                Some(at) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = self.is_sooner.notified() => {}
                },
            }
        }
    }
}

/// Who waits for deadlines, and the timer that goes off at the first.
pub(crate) struct Deadlines {
    shared: Arc<Shared>,
    _timer: AbortOnDropHandle<()>,
}

impl Deadlines {
    /// None yet. The timer is this runtime's; who waits may be of another.
    pub(crate) fn start() -> Arc<Self> {
        let shared = Arc::new(Shared::default());
        let timer = tokio::spawn(Arc::clone(&shared).keep());
        Arc::new(Self {
            shared,
            _timer: AbortOnDropHandle::new(timer),
        })
    }

    /// What comes of a future by a deadline.
    ///
    /// # Cancel safety
    /// As the future's.
    pub(crate) async fn within<F: Future>(
        &self,
        deadline: Instant,
        future: F,
    ) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut place = Place {
            shared: &self.shared,
            deadline,
            number: None,
        };
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => place.poll(context).map(|()| None),
        })
        .await
    }
}

/// Somebody who waits.
struct Place<'a> {
    shared: &'a Shared,
    deadline: Instant,
    number: Option<u64>,
}

impl Place<'_> {
    fn poll(&mut self, context: &Context<'_>) -> Poll<()> {
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        let mut waiting = self.shared.lock();
        let number = *self.number.get_or_insert_with(|| {
            waiting.next += 1;
            waiting.next
        });
        waiting
            .wakers
            .entry((self.deadline, number))
            .and_modify(|waker| waker.clone_from(context.waker()))
            .or_insert_with(|| context.waker().clone());
        if waiting.set_to.is_none_or(|at| self.deadline < at) {
            waiting.set_to = Some(self.deadline);
            self.shared.is_sooner.notify_one();
        }
        Poll::Pending
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.shared.lock().wakers.remove(&(self.deadline, number));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use tokio::task::yield_now;

    use super::*;

    fn after(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    #[tokio::test]
    async fn nobody_is_let_go_before_the_deadline_and_everybody_after_it() {
        let deadlines = Deadlines::start();
        let mut tasks = tokio::task::JoinSet::new();
        for millis in [60, 20, 40, 20] {
            let deadlines = Arc::clone(&deadlines);
            tasks.spawn(async move {
                let deadline = after(millis);
                let said = deadlines.within(deadline, pending::<()>()).await;
                assert_eq!(said, None);
                assert!(Instant::now() >= deadline, "{millis}");
            });
        }
        assert_eq!(tasks.join_all().await.len(), 4);
        assert!(deadlines.shared.lock().wakers.is_empty());
    }

    #[tokio::test]
    async fn what_ends_in_time_or_is_dropped_leaves_nothing_behind() {
        let deadlines = Deadlines::start();
        let far = after(3_600_000);
        assert_eq!(deadlines.within(far, yield_now()).await, Some(()));
        let mut dropped = Box::pin(deadlines.within(far, pending::<()>()));
        assert!(futures::poll!(&mut dropped).is_pending());
        assert_eq!(deadlines.shared.lock().wakers.len(), 1);
        drop(dropped);
        assert!(deadlines.shared.lock().wakers.is_empty());
        // One that has passed already ends at once, unless the future does.
        assert_eq!(deadlines.within(after(0), async { 7 }).await, Some(7));
        assert_eq!(deadlines.within(after(0), pending::<()>()).await, None);
    }

    #[tokio::test]
    async fn a_row_of_calls_sets_the_timer_once() {
        let deadlines = Deadlines::start();
        let first = after(3_600_000);
        for millis in 0..1000 {
            let deadline = first + Duration::from_millis(millis);
            assert_eq!(deadlines.within(deadline, yield_now()).await, Some(()));
            assert_eq!(deadlines.shared.lock().set_to, Some(first));
        }
    }
}

//! Checks that compute for long, which go on where they hold up nobody.
//!
//! Checks of all plugins share one thread, and take turns at every tick. With a few that compute for as long as they may,
//! each turn of the others would come after as many ticks.

use std::{
    future::{Future, poll_fn},
    panic::resume_unwind,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

/// A turn that took longer is a long one: a tick is 5 ms.
const TURN_MAX: Duration = Duration::from_millis(4);
/// Long turns in a row that make a check a heavy one. A single one may be the machine's, which had others to do.
const LONG_TURNS: u32 = 2;

/// Does a future's work here, and from the end of its second long turn in a row on elsewhere.
///
/// # Cancel safety
/// As the future's, wherever it is.
pub(crate) async fn elsewhere<F>(future: F, elsewhere: Handle) -> F::Output
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let mut future = Box::pin(future);
    let mut long_turns = 0;
    let done = poll_fn(|context| {
        let begun = Instant::now();
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        long_turns = match begun.elapsed() > TURN_MAX {
            true => long_turns + 1,
            false => 0,
        };
        match long_turns >= LONG_TURNS {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    })
    .await;
    if let Some(output) = done {
        return output;
    }
    match AbortOnDropHandle::new(elsewhere.spawn(future)).await {
        Ok(output) => output,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        // That runtime ends with the process.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use tokio::{
        runtime::{Builder, Runtime},
        sync::Notify,
        task::yield_now,
    };

    use super::*;

    fn other() -> Runtime {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("other");
        builder.build().expect("a runtime")
    }

    fn thread_name() -> String {
        thread::current().name().unwrap_or_default().to_owned()
    }

    /// Blocks its thread turn after turn, as a guest does that computes.
    async fn compute() {
        for _ in 0..LONG_TURNS {
            thread::sleep(TURN_MAX * 2);
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_light_check_stays_and_a_heavy_one_goes_on_elsewhere() {
        let other = other();
        let light = async {
            yield_now().await;
            thread_name()
        };
        assert_ne!(elsewhere(light, other.handle().clone()).await, "other");
        let heavy = async {
            compute().await;
            thread_name()
        };
        assert_eq!(elsewhere(heavy, other.handle().clone()).await, "other");
        other.shutdown_background();
    }

    #[tokio::test]
    async fn a_heavy_check_that_nobody_waits_for_ends() {
        let other = other();
        let (is_there, end) = (Arc::new(Notify::new()), Arc::new(()));
        let (there, held) = (Arc::clone(&is_there), Arc::clone(&end));
        let heavy = async move {
            let _held = held;
            compute().await;
            there.notify_one();
            std::future::pending::<()>().await;
        };
        let task = tokio::spawn(elsewhere(heavy, other.handle().clone()));
        is_there.notified().await;
        task.abort();
        while Arc::strong_count(&end) > 1 {
            yield_now().await;
        }
        other.shutdown_background();
    }
}

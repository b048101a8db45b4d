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

/// A turn that took longer is a heavy check's: a tick is 5 ms.
const TURN_MAX: Duration = Duration::from_millis(4);

/// Does a future's work here, and from the end of its first long turn on elsewhere.
///
/// # Cancel safety
/// As the future's, wherever it is.
pub(crate) async fn elsewhere<F>(future: F, elsewhere: Handle) -> F::Output
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let mut future = Box::pin(future);
    let done = poll_fn(|context| {
        let begun = Instant::now();
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if begun.elapsed() > TURN_MAX => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
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

    #[tokio::test]
    async fn a_light_check_stays_and_a_heavy_one_goes_on_elsewhere() {
        let other = other();
        let light = async {
            yield_now().await;
            thread_name()
        };
        assert_ne!(elsewhere(light, other.handle().clone()).await, "other");
        let heavy = async {
            // Blocks its thread, as a guest does that computes.
            thread::sleep(TURN_MAX * 2);
            yield_now().await;
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
            thread::sleep(TURN_MAX * 2);
            yield_now().await;
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

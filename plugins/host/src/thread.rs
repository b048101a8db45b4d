//! The thread on which checks are awaited, with a runtime of its own.
//!
//! A check is a handful of short steps: a timer, a message to the worker, one from it. On a runtime of several threads
//! each step wakes another one, which costs more than the step; here those that are due together are made together.

use std::{io, sync::OnceLock, thread};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Threads for what blocks, such as looking at a volume's files.
const BLOCKING_THREADS_MAX: usize = 8;

/// A thread that is started when it is first asked for, and ends with this; what still runs there is dropped then.
#[derive(Default)]
pub(crate) struct OwnThread {
    runtime: OnceLock<Option<Handle>>,
    end: CancellationToken,
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl OwnThread {
    /// Its runtime; `None` where the machine has no thread to give.
    pub(crate) fn runtime(&self) -> Option<Handle> {
        let started = || {
            let started = start(self.end.clone());
            started
                .inspect_err(|error| warn!(%error, "No thread for checks"))
                .ok()
        };
        self.runtime.get_or_init(started).clone()
    }
}

fn start(end: CancellationToken) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("checks".into())
        .spawn(move || {
            runtime.block_on(end.cancelled());
            runtime.shutdown_background();
        })?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_spawned_runs_on_the_one_thread_and_ends_with_it() {
        let own = OwnThread::default();
        let name = || thread::current().name().map(str::to_owned);
        let runtime = own.runtime().expect("a thread");
        for _ in 0..3 {
            let there = runtime.spawn(async move { name() }).await;
            assert_eq!(there.expect("it ran").as_deref(), Some("checks"));
        }
        let endless = runtime.spawn(std::future::pending::<()>());
        drop(own);
        let ended = endless.await.expect_err("it is dropped");
        assert!(ended.is_cancelled());
    }
}

//! Ends the turns of guests that do not give way: raises the engines' epochs while calls are under way,
//! and sleeps otherwise.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use wasmtime::Engine;

/// A guest's turn, and how exactly CPU time is bounded.
const TICK: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Calls {
    under_way: Mutex<usize>,
    begun: Condvar,
}

impl Calls {
    fn change(&self, by: isize) {
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *under_way = under_way.saturating_add_signed(by);
        if by > 0 {
            self.begun.notify_one();
        }
    }
}

/// The ticker's thread, which lives as long as the process.
#[derive(Clone)]
pub(crate) struct Ticker(Arc<Calls>);

/// Keeps the ticker going.
pub(crate) struct Ticking(Arc<Calls>);

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.change(-1);
    }
}

impl Ticker {
    pub(crate) fn start(engines: Vec<Engine>) -> io::Result<Self> {
        let calls = Arc::new(Calls::default());
        let watched = Arc::clone(&calls);
        std::thread::Builder::new()
            .name("ticker".into())
            .spawn(move || {
                loop {
                    let under_way = watched
                        .under_way
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    drop(
                        watched
                            .begun
                            .wait_while(under_way, |calls| *calls == 0)
                            .unwrap_or_else(PoisonError::into_inner),
                    );
                    std::thread::sleep(TICK);
                    engines.iter().for_each(Engine::increment_epoch);
                }
            })?;
        Ok(Self(calls))
    }

    /// Ticks until the answer is dropped.
    pub(crate) fn tick(&self) -> Ticking {
        self.0.change(1);
        Ticking(Arc::clone(&self.0))
    }
}

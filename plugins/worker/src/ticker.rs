//! Ends the turns of guests that do not give way: raises the engines' epochs while calls are under way,
//! and sleeps otherwise.
//!
//! Most calls are over before the first tick. So a call winds a clock and stops it again, which is a system call each,
//! and the thread is woken by none but those that last.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use wasmtime::Engine;

/// A guest's turn, and how exactly CPU time is bounded.
const TICK: Duration = Duration::from_millis(5);

struct Clock {
    under_way: Mutex<usize>,
    timer: TimerFd,
}

impl Clock {
    fn change(&self, by: isize) {
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = *under_way;
        *under_way = before.saturating_add_signed(by);
        // Neither fails for a timer that is there.
        let _ = match (before, *under_way) {
            (0, 1..) => self.timer.set(
                Expiration::Interval(TimeSpec::from_duration(TICK)),
                TimerSetTimeFlags::empty(),
            ),
            (1.., 0) => self.timer.unset(),
            _ => Ok(()),
        };
    }
}

/// The ticker's thread, which lives as long as the process.
#[derive(Clone)]
pub(crate) struct Ticker(Arc<Clock>);

/// Keeps the ticker going.
pub(crate) struct Ticking(Arc<Clock>);

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.change(-1);
    }
}

impl Ticker {
    pub(crate) fn start(engines: Vec<Engine>) -> io::Result<Self> {
        let clock = Arc::new(Clock {
            under_way: Mutex::default(),
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?,
        });
        let watched = Arc::clone(&clock);
        std::thread::Builder::new()
            .name("ticker".into())
            .spawn(move || {
                loop {
                    if let Err(errno) = watched.timer.wait() {
                        // Nothing would end a guest's turn any more: the agent starts another worker.
                        eprintln!("wherry plugin-worker: ticker: {errno}");
                        std::process::exit(1);
                    }
                    engines.iter().for_each(Engine::increment_epoch);
                }
            })?;
        Ok(Self(clock))
    }

    /// Ticks until the answer is dropped.
    pub(crate) fn tick(&self) -> Ticking {
        self.0.change(1);
        Ticking(Arc::clone(&self.0))
    }
}

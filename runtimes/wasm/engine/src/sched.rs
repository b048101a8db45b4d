//! Guest threads: who runs next, for how long, and who has had enough.
//!
//! The order is fair by CPU time used, weighted as cgroups weigh it: the guest whose account has
//! the least runs next. A turn ends at the latest when the epoch is raised (every [`TICK`]); then
//! the guest goes back into the queue, or waits if it is over its limit. Time a guest spends waiting
//! in the host is not CPU time and therefore free.

use std::{
    cmp::{Ordering as Order, Reverse},
    collections::BinaryHeap,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{runtime::Handle, sync::oneshot};
use wherry_wasm::protocol::Limits;

/// Length of a turn. Shorter costs switches, longer costs a waiting neighbour: with all threads
/// taken by spinning guests, a guest that wakes up waits for one turn at most.
pub(crate) const TICK: Duration = Duration::from_millis(5);
/// A guest may save up this much unused time, so that short bursts are not delayed.
const BURST: Duration = Duration::from_millis(20);
/// Weight of a container without a request, as the kernel's default for `cpu.shares`.
const SHARES_DEFAULT: u64 = 1024;
/// Idle ticks after which the ticker sleeps until a guest runs.
const IDLE_TICKS_MAX: u32 = 3;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CPU time of one container.
#[derive(Debug)]
pub(crate) struct CpuAccount {
    used_ns: AtomicU64,
    /// CPU time divided by weight: what the queue is ordered by.
    virtual_ns: AtomicU64,
    shares: AtomicU64,
    bucket: Mutex<Bucket>,
}

/// CPU time saved up, and how fast it comes.
#[derive(Debug)]
struct Bucket {
    /// ns of CPU time for each ns of wall time; `None` is no limit.
    rate: Option<f64>,
    saved_ns: f64,
    burst_ns: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        if let Some(rate) = self.rate {
            let passed = now.saturating_duration_since(self.at).as_nanos() as f64;
            self.saved_ns = (self.saved_ns + passed * rate).min(self.burst_ns);
        }
        self.at = now;
    }

    /// When it has something to spend again, if not now.
    fn empty_until(&mut self, now: Instant) -> Option<Instant> {
        self.refill(now);
        let rate = self.rate?;
        (self.saved_ns <= 0.0)
            .then(|| now + Duration::from_nanos((-self.saved_ns / rate) as u64 + 1_000))
    }
}

impl CpuAccount {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Self {
        let account = Self {
            used_ns: AtomicU64::new(0),
            virtual_ns: AtomicU64::new(0),
            shares: AtomicU64::new(SHARES_DEFAULT),
            bucket: Mutex::new(Bucket {
                rate: None,
                saved_ns: 0.0,
                burst_ns: 0.0,
                at: now,
            }),
        };
        account.set_limits(limits, now);
        account
    }

    pub(crate) fn set_limits(&self, limits: &Limits, now: Instant) {
        let shares = if limits.cpu_shares == 0 {
            SHARES_DEFAULT
        } else {
            limits.cpu_shares.clamp(2, 262_144)
        };
        self.shares.store(shares, Ordering::Relaxed);
        let mut bucket = lock(&self.bucket);
        bucket.refill(now);
        bucket.rate = limits
            .cpu_quota_us
            .map(|quota| (quota.max(1) as f64) / (limits.cpu_period_us.max(1) as f64));
        bucket.burst_ns = limits.cpu_quota_us.unwrap_or(0) as f64 * 1_000.0;
        bucket.burst_ns = bucket
            .burst_ns
            .max(BURST.as_nanos() as f64 * bucket.rate.unwrap_or(0.0));
        bucket.saved_ns = bucket.saved_ns.min(bucket.burst_ns);
    }

    /// CPU time used so far, ns.
    pub(crate) fn used_ns(&self) -> u64 {
        self.used_ns.load(Ordering::Relaxed)
    }

    fn charge(&self, used: Duration, now: Instant) {
        let ns = used.as_nanos() as u64;
        self.used_ns.fetch_add(ns, Ordering::Relaxed);
        self.virtual_ns.fetch_add(
            ns * SHARES_DEFAULT / self.shares.load(Ordering::Relaxed),
            Ordering::Relaxed,
        );
        let mut bucket = lock(&self.bucket);
        bucket.refill(now);
        if bucket.rate.is_some() {
            bucket.saved_ns -= ns as f64;
        }
    }

    fn empty_until(&self, now: Instant) -> Option<Instant> {
        lock(&self.bucket).empty_until(now)
    }
}

const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const RUNNING_WOKEN: u8 = 3;
const DONE: u8 = 4;

type GuestFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Task {
    future: Mutex<Option<GuestFuture>>,
    state: AtomicU8,
    account: Arc<CpuAccount>,
    pool: Arc<Pool>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let next = match state {
                IDLE => QUEUED,
                RUNNING => RUNNING_WOKEN,
                _ => return,
            };
            match self
                .state
                .compare_exchange(state, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(IDLE) => return self.pool.clone().enqueue(self),
                Ok(_) => return,
                Err(seen) => state = seen,
            }
        }
    }
}

/// An entry of a queue: least key first, then first come.
struct Entry<K> {
    key: K,
    seq: u64,
    task: Arc<Task>,
}

impl<K: Ord> PartialEq for Entry<K> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}
impl<K: Ord> Eq for Entry<K> {}
impl<K: Ord> PartialOrd for Entry<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}
impl<K: Ord> Ord for Entry<K> {
    fn cmp(&self, other: &Self) -> Order {
        (&self.key, self.seq).cmp(&(&other.key, other.seq))
    }
}

#[derive(Default)]
struct Queues {
    ready: BinaryHeap<Reverse<Entry<u64>>>,
    throttled: BinaryHeap<Reverse<Entry<Instant>>>,
    seq: u64,
    /// Virtual time of whoever ran last: a guest that slept starts from here, not from the past.
    floor_ns: u64,
}

impl Queues {
    fn push_ready(&mut self, task: Arc<Task>) {
        let virtual_ns = task
            .account
            .virtual_ns
            .fetch_max(self.floor_ns, Ordering::Relaxed)
            .max(self.floor_ns);
        self.seq += 1;
        self.ready.push(Reverse(Entry {
            key: virtual_ns,
            seq: self.seq,
            task,
        }));
    }
}

/// The guest threads of a worker.
pub(crate) struct Pool {
    queues: Mutex<Queues>,
    wakeup: Condvar,
    polling: AtomicUsize,
    ticker_sleeps: AtomicBool,
    ticker: Mutex<Option<Thread>>,
}

impl Pool {
    /// Starts `threads` guest threads and the ticker, which calls `raise_epoch`. Guests do their
    /// I/O on `handle`'s runtime.
    pub(crate) fn start(
        threads: usize,
        handle: &Handle,
        raise_epoch: impl Fn() + Send + 'static,
    ) -> std::io::Result<Arc<Self>> {
        let pool = Arc::new(Self {
            queues: Mutex::default(),
            wakeup: Condvar::new(),
            polling: AtomicUsize::new(0),
            ticker_sleeps: AtomicBool::new(false),
            ticker: Mutex::new(None),
        });
        for n in 0..threads {
            let (pool, handle) = (pool.clone(), handle.clone());
            std::thread::Builder::new()
                .name(format!("guest-{n}"))
                .spawn(move || {
                    let _runtime = handle.enter();
                    pool.run();
                })?;
        }
        let ticking = pool.clone();
        let ticker = std::thread::Builder::new()
            .name("ticker".into())
            .stack_size(64 * 1024)
            .spawn(move || ticking.tick(raise_epoch))?;
        *lock(&pool.ticker) = Some(ticker.thread().clone());
        Ok(pool)
    }

    /// Runs a future that executes guest code. The answer is an error if it panicked.
    pub(crate) fn spawn<T: Send + 'static>(
        self: &Arc<Self>,
        account: Arc<CpuAccount>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let future: GuestFuture = Box::pin(async move {
            let _ = sender.send(future.await);
        });
        self.clone().enqueue(Arc::new(Task {
            future: Mutex::new(Some(future)),
            state: AtomicU8::new(QUEUED),
            account,
            pool: self.clone(),
        }));
        receiver
    }

    fn enqueue(self: Arc<Self>, task: Arc<Task>) {
        lock(&self.queues).push_ready(task);
        self.wakeup.notify_one();
    }

    fn run(&self) {
        loop {
            let task = self.next();
            let waker = Waker::from(task.clone());
            task.state.store(RUNNING, Ordering::Release);
            self.begin_poll();
            let before = thread_cpu_time();
            let is_done = {
                let mut slot = lock(&task.future);
                let polled = slot.as_mut().map(|future| {
                    let mut context = Context::from_waker(&waker);
                    std::panic::catch_unwind(AssertUnwindSafe(|| {
                        future.as_mut().poll(&mut context)
                    }))
                });
                match polled {
                    Some(Ok(Poll::Pending)) => false,
                    // Dropping a guest is part of running it: its time is charged to it.
                    Some(Ok(Poll::Ready(()))) | None => {
                        *slot = None;
                        true
                    }
                    Some(Err(_panic)) => {
                        let future = slot.take();
                        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| drop(future)));
                        true
                    }
                }
            };
            task.account
                .charge(thread_cpu_time().saturating_sub(before), Instant::now());
            self.polling.fetch_sub(1, Ordering::SeqCst);
            if is_done {
                task.state.store(DONE, Ordering::Release);
            } else if task
                .state
                .compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire)
                .is_err()
            {
                task.state.store(QUEUED, Ordering::Release);
                lock(&self.queues).push_ready(task);
            }
        }
    }

    /// Waits for the task whose turn it is.
    fn next(&self) -> Arc<Task> {
        let mut queues = lock(&self.queues);
        loop {
            let now = Instant::now();
            while queues
                .throttled
                .peek()
                .is_some_and(|Reverse(entry)| entry.key <= now)
            {
                if let Some(Reverse(entry)) = queues.throttled.pop() {
                    queues.push_ready(entry.task);
                }
            }
            while let Some(Reverse(entry)) = queues.ready.pop() {
                if let Some(until) = entry.task.account.empty_until(now) {
                    queues.throttled.push(Reverse(Entry {
                        key: until,
                        seq: entry.seq,
                        task: entry.task,
                    }));
                    continue;
                }
                queues.floor_ns = queues.floor_ns.max(entry.key);
                return entry.task;
            }
            let until = queues.throttled.peek().map(|Reverse(entry)| entry.key);
            queues = match until {
                Some(until) => {
                    let wait = until.saturating_duration_since(now);
                    self.wakeup
                        .wait_timeout(queues, wait)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self
                    .wakeup
                    .wait(queues)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn begin_poll(&self) {
        self.polling.fetch_add(1, Ordering::SeqCst);
        if self.ticker_sleeps.load(Ordering::SeqCst)
            && let Some(ticker) = lock(&self.ticker).as_ref()
        {
            ticker.unpark();
        }
    }

    fn tick(&self, raise_epoch: impl Fn()) {
        let mut idle = 0;
        loop {
            if self.polling.load(Ordering::SeqCst) > 0 {
                idle = 0;
            } else {
                idle += 1;
            }
            if idle > IDLE_TICKS_MAX {
                self.ticker_sleeps.store(true, Ordering::SeqCst);
                while self.polling.load(Ordering::SeqCst) == 0 {
                    std::thread::park();
                }
                self.ticker_sleeps.store(false, Ordering::SeqCst);
                idle = 0;
            }
            std::thread::sleep(TICK);
            raise_epoch();
        }
    }
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_LIMITS: Limits = Limits {
        memory_bytes_max: None,
        cpu_quota_us: None,
        cpu_period_us: 100_000,
        cpu_shares: 0,
    };

    #[test]
    fn an_account_over_its_quota_waits_as_long_as_the_debt_takes_to_come_in() {
        let start = Instant::now();
        let account = CpuAccount::new(
            &Limits {
                cpu_quota_us: Some(25_000),
                ..NO_LIMITS
            },
            start,
        );
        let later = start + Duration::from_millis(100);
        assert_eq!(
            account.empty_until(later),
            None,
            "a period's worth was saved"
        );
        account.charge(Duration::from_millis(50), later);
        // 25 ms of debt at a quarter of a core.
        let until = account.empty_until(later).unwrap();
        assert!(
            until >= later + Duration::from_millis(99)
                && until <= later + Duration::from_millis(101)
        );
        assert_eq!(account.empty_until(until + Duration::from_millis(1)), None);
    }

    #[test]
    fn an_account_without_a_quota_never_waits() {
        let now = Instant::now();
        let account = CpuAccount::new(&NO_LIMITS, now);
        account.charge(Duration::from_secs(1000), now);
        assert_eq!(account.empty_until(now), None);
        assert_eq!(account.used_ns(), 1_000_000_000_000);
    }

    #[test]
    fn unused_time_is_saved_up_to_one_period_and_no_more() {
        let start = Instant::now();
        let account = CpuAccount::new(
            &Limits {
                cpu_quota_us: Some(50_000),
                ..NO_LIMITS
            },
            start,
        );
        let later = start + Duration::from_secs(3600);
        account.charge(Duration::from_millis(60), later);
        assert!(account.empty_until(later).is_some());
    }

    /// Burns CPU for a turn at a time, as an interrupted guest does.
    struct Spinner(Arc<AtomicBool>);
    impl Future for Spinner {
        type Output = ();
        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            if self.0.load(Ordering::Relaxed) {
                return Poll::Ready(());
            }
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(2) {
                std::hint::spin_loop();
            }
            context.waker().wake_by_ref();
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn two_spinners_share_a_thread_by_weight_and_a_third_guest_still_runs() {
        let pool = Pool::start(1, &Handle::current(), || {}).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let now = Instant::now();
        let heavy = Arc::new(CpuAccount::new(
            &Limits {
                cpu_shares: 3072,
                ..NO_LIMITS
            },
            now,
        ));
        let light = Arc::new(CpuAccount::new(&NO_LIMITS, now));
        let ends = [
            pool.spawn(heavy.clone(), Spinner(stop.clone())),
            pool.spawn(light.clone(), Spinner(stop.clone())),
        ];
        let third = Arc::new(CpuAccount::new(&NO_LIMITS, now));
        while heavy.used_ns() < 150_000_000 {
            assert_eq!(pool.spawn(third.clone(), async { 7 }).await.unwrap(), 7);
        }
        stop.store(true, Ordering::Relaxed);
        for end in ends {
            end.await.unwrap();
        }
        let ratio = heavy.used_ns() as f64 / light.used_ns() as f64;
        assert!(
            (2.0..4.5).contains(&ratio),
            "3:1 was asked, {ratio} was had"
        );
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_task_and_no_thread() {
        let pool = Pool::start(1, &Handle::current(), || {}).unwrap();
        let account = Arc::new(CpuAccount::new(&NO_LIMITS, Instant::now()));
        assert!(
            pool.spawn(account.clone(), async { panic!("expected in this test") })
                .await
                .is_err() as u8
                == 1
        );
        assert_eq!(pool.spawn(account, async { 1 }).await.unwrap(), 1);
    }
}

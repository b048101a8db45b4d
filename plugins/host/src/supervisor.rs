//! The worker process: started when it is first needed, started again after its end with a back-off
//! that grows until it has lived for a while.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::File,
    future::poll_fn,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use wherry_wasm_aot::{child, wire};

use crate::{
    cgroup,
    host::HostConfig,
    protocol::{Answer, Ask, Bootstrap, Call, Ended, Limits, Linked, ToAgent, ToWorker},
};

/// A worker has to make an engine; a busy machine takes its time.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Mapping and linking a compiled plugin.
const LOAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Wait before the second start; doubled for each further one.
const BACKOFF: Duration = Duration::from_millis(100);
/// Longest wait between starts.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A worker that lived this long starts the back-off anew.
const LIVED: Duration = Duration::from_secs(60);
/// Messages that wait to be written to the worker.
const MESSAGES_MAX: usize = 256;

/// News of a call that wait for the agent. Of a worker that tells more, the rest is not heard but for the end.
const NEWS_MAX: usize = 64;

/// News of a call.
pub(crate) enum CallNews {
    Ask(Ask),
    /// Bytes done, of so many.
    Progress(u64, u64),
    Ended(Box<Ended>),
}

/// What has come of a call and nobody has heard yet. A channel for each call costs more than most calls.
#[derive(Default)]
struct Unheard {
    news: VecDeque<CallNews>,
    has_ended: bool,
    hearer: Option<Waker>,
}

#[derive(Default)]
struct Waiting {
    calls: HashMap<u64, Unheard>,
    loads: HashMap<u64, oneshot::Sender<Result<Linked, String>>>,
    is_closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A worker that runs, or has run.
pub(crate) struct Worker {
    pid: Option<u32>,
    messages: mpsc::Sender<(ToWorker, Option<OwnedFd>)>,
    waiting: Mutex<Waiting>,
    loaded: tokio::sync::Mutex<HashSet<u64>>,
    next_call: AtomicU64,
    started: Instant,
}

/// A call under way; cancelled when dropped.
pub(crate) struct Pending {
    worker: Arc<Worker>,
    call: u64,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let unheard = lock(&self.worker.waiting).calls.remove(&self.call);
        // It has not ended, and nobody will ask any more.
        if unheard.is_some_and(|unheard| !unheard.has_ended) {
            let cancel = ToWorker::Cancel { call: self.call };
            // Should the queue be full, the call ends by its own time-out.
            let _ = self.worker.messages.try_send((cancel, None));
        }
    }
}

impl Pending {
    /// What the call asks, or how it ended; `None` when the worker is gone.
    pub(crate) async fn next(&mut self) -> Option<CallNews> {
        poll_fn(|context| {
            let mut waiting = lock(&self.worker.waiting);
            let Some(unheard) = waiting.calls.get_mut(&self.call) else {
                return Poll::Ready(None);
            };
            match unheard.news.pop_front() {
                Some(news) => Poll::Ready(Some(news)),
                None => {
                    unheard.hearer = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    pub(crate) async fn answer(&self, answer: Answer) {
        let message = ToWorker::Answer {
            call: self.call,
            answer,
        };
        let _ = self.worker.messages.send((message, None)).await;
    }
}

impl Worker {
    async fn start(config: &HostConfig) -> io::Result<Arc<Self>> {
        let (mut process, socket) = child::spawn(&config.exe, &["plugin-worker"], None)?;
        let pid = process.id();
        if let (Some(group), Some(pid)) = (&config.cgroup, pid) {
            cgroup::limit(
                group,
                cgroup::WORKER_MEMORY_BYTES_MAX,
                cgroup::WORKER_PIDS_MAX,
            );
            cgroup::adopt(group, pid);
        }
        let (sender, mut receiver) = wire::split(socket);
        let bootstrap = Bootstrap {
            uid: config.uid,
            gid: config.gid,
            jail: config.jail.clone(),
        };
        let ready = async {
            sender.send(&bootstrap, &[]).await?;
            receiver.receive::<ToAgent>().await
        };
        let trouble = match timeout(READY_TIMEOUT, ready).await {
            Ok(Ok(Some((ToAgent::Ready(Ok(())), _)))) => None,
            Ok(Ok(Some((ToAgent::Ready(Err(why)), _)))) => Some(why),
            Ok(Ok(_)) => Some("ended before it was ready".into()),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("not ready after {READY_TIMEOUT:?}")),
        };
        if let Some(trouble) = trouble {
            let _ = process.kill().await;
            return Err(io::Error::other(trouble));
        }
        let (messages, mut queue) = mpsc::channel::<(ToWorker, Option<OwnedFd>)>(MESSAGES_MAX);
        let worker = Arc::new(Self {
            pid,
            messages,
            waiting: Mutex::default(),
            loaded: tokio::sync::Mutex::default(),
            next_call: AtomicU64::new(1),
            started: Instant::now(),
        });
        // Calls can be dropped anywhere, and half a message would be the connection's end.
        tokio::spawn(async move {
            let mut messages = Vec::new();
            while queue.recv_many(&mut messages, MESSAGES_MAX).await > 0 {
                if send(&sender, &messages).await.is_err() {
                    break;
                }
                messages.clear();
            }
        });
        let weak = Arc::downgrade(&worker);
        tokio::spawn(async move {
            while let Ok(Some((message, _))) = receiver.receive::<ToAgent>().await {
                let Some(worker) = weak.upgrade() else { break };
                worker.take_in(message);
            }
            if let Some(worker) = weak.upgrade() {
                worker.close();
            }
            // Without its connection a worker ends; one that does not is ended.
            if timeout(Duration::from_secs(1), process.wait())
                .await
                .is_err()
            {
                let _ = process.kill().await;
            }
        });
        info!(pid, "Plugin worker started");
        Ok(worker)
    }

    fn take_in(&self, message: ToAgent) {
        match message {
            ToAgent::Ready(_) => {}
            ToAgent::Loaded { plugin, result } => {
                let waiting = lock(&self.waiting).loads.remove(&plugin);
                if let Some(waiting) = waiting {
                    let _ = waiting.send(result);
                }
            }
            ToAgent::Ask { call, ask } => self.tell(call, CallNews::Ask(ask)),
            ToAgent::Progress { call, done, total } => {
                self.tell(call, CallNews::Progress(done, total));
            }
            ToAgent::Ended { call, ended } => self.tell(call, CallNews::Ended(ended)),
        }
    }

    fn tell(&self, call: u64, news: CallNews) {
        let mut waiting = lock(&self.waiting);
        let Some(unheard) = waiting.calls.get_mut(&call) else {
            return;
        };
        let is_end = matches!(news, CallNews::Ended(_));
        if unheard.has_ended || (unheard.news.len() >= NEWS_MAX && !is_end) {
            return;
        }
        unheard.has_ended = is_end;
        unheard.news.push_back(news);
        let hearer = unheard.hearer.take();
        drop(waiting);
        if let Some(hearer) = hearer {
            hearer.wake();
        }
    }

    fn close(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.is_closed = true;
        let calls = std::mem::take(&mut waiting.calls);
        waiting.loads.clear();
        drop(waiting);
        let hearers = calls.into_values().filter_map(|unheard| unheard.hearer);
        hearers.for_each(Waker::wake);
    }

    fn is_closed(&self) -> bool {
        lock(&self.waiting).is_closed
    }

    /// Ends the process, which answers nobody any more.
    pub(crate) fn kill(&self) {
        // Once closed it is being reaped, and its number may be another's.
        if self.is_closed() {
            return;
        }
        self.close();
        let pid = self.pid.and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Makes a plugin known to the worker; answers what it is, or `None` if it was known already.
    pub(crate) async fn load(
        &self,
        plugin: u64,
        (limits, keeps_instances): (Limits, bool),
        directory: &Path,
    ) -> Result<Option<Linked>, LoadError> {
        let mut loaded = self.loaded.lock().await;
        if loaded.contains(&plugin) {
            return Ok(None);
        }
        let descriptor =
            File::open(directory).map_err(|error| LoadError::Lost(error.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            if waiting.is_closed {
                return Err(LoadError::Lost("it ended".into()));
            }
            waiting.loads.insert(plugin, sender);
        }
        let message = ToWorker::Load {
            plugin,
            limits,
            keeps_instances,
        };
        let _ = self.messages.send((message, Some(descriptor.into()))).await;
        match timeout(LOAD_TIMEOUT, receiver).await {
            Ok(Ok(Ok(linked))) => {
                loaded.insert(plugin);
                Ok(Some(linked))
            }
            Ok(Ok(Err(why))) => Err(LoadError::Refused(why)),
            Ok(Err(_)) => Err(LoadError::Lost("it ended".into())),
            Err(_) => {
                self.kill();
                Err(LoadError::Lost(format!("no answer after {LOAD_TIMEOUT:?}")))
            }
        }
    }

    pub(crate) async fn unload(&self, plugin: u64) {
        if self.loaded.lock().await.remove(&plugin) {
            let _ = self
                .messages
                .send((ToWorker::Unload { plugin }, None))
                .await;
        }
    }

    /// Begins a call; its number is set here. `None` when the worker is gone.
    pub(crate) async fn call(
        self: &Arc<Self>,
        mut call: Call,
        descriptor: Option<OwnedFd>,
    ) -> Option<Pending> {
        call.call = self.next_call.fetch_add(1, Ordering::Relaxed);
        {
            let mut waiting = lock(&self.waiting);
            if waiting.is_closed {
                return None;
            }
            waiting.calls.insert(call.call, Unheard::default());
        }
        let pending = Pending {
            worker: Arc::clone(self),
            call: call.call,
        };
        let message = ToWorker::Call(Box::new(call));
        self.messages.send((message, descriptor)).await.ok()?;
        Some(pending)
    }
}

/// Sends messages in order, those without descriptors together.
async fn send(sender: &wire::Sender, messages: &[(ToWorker, Option<OwnedFd>)]) -> io::Result<()> {
    for run in messages.chunk_by(|(_, one), (_, next)| one.is_none() && next.is_none()) {
        match run {
            [(message, Some(descriptor))] => {
                sender.send(message, &[descriptor.as_fd()]).await?;
            }
            run => {
                sender
                    .send_all(run.iter().map(|(message, _)| message))
                    .await?
            }
        }
    }
    Ok(())
}

/// A plugin could not be made known to a worker.
pub(crate) enum LoadError {
    /// The worker looked at it and cannot link it.
    Refused(String),
    /// The worker cannot say.
    Lost(String),
}

#[derive(Default)]
struct Now {
    worker: Option<Arc<Worker>>,
    backoff: Duration,
    not_before: Option<Instant>,
}

/// Keeps a worker.
#[derive(Default)]
pub(crate) struct Supervisor {
    now: tokio::sync::Mutex<Now>,
    restarts: AtomicU64,
}

impl Supervisor {
    /// The worker, started if there is none, with its connection on `runtime` should that be there.
    ///
    /// # Errors
    /// It cannot be started, or must not yet be started again.
    pub(crate) async fn worker(
        &self,
        config: &HostConfig,
        runtime: impl FnOnce() -> Option<Handle>,
    ) -> Result<Arc<Worker>, String> {
        let mut now = self.now.lock().await;
        if let Some(worker) = &now.worker {
            if !worker.is_closed() {
                return Ok(Arc::clone(worker));
            }
            let lived = worker.started.elapsed();
            now.worker = None;
            self.restarts.fetch_add(1, Ordering::Relaxed);
            let next = match lived > LIVED {
                true => BACKOFF,
                false => next_backoff(now.backoff),
            };
            now.backoff = next;
            now.not_before = Some(Instant::now() + next);
            warn!(backoff = ?next, "Plugin worker ended");
        }
        if let Some(not_before) = now.not_before {
            let wait = not_before.saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                return Err(format!("ended; started again in {} ms", wait.as_millis()));
            }
        }
        let (runtime, config) = (runtime().unwrap_or_else(Handle::current), config.clone());
        let start = async move { Worker::start(&config).await };
        // Whoever asked may go away meanwhile, and a worker that nobody has ends with its connection.
        let started = AbortOnDropHandle::new(runtime.spawn(start)).await;
        match started.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(worker) => {
                now.worker = Some(Arc::clone(&worker));
                Ok(worker)
            }
            Err(error) => {
                now.backoff = next_backoff(now.backoff);
                now.not_before = Some(Instant::now() + now.backoff);
                Err(format!("start: {error}"))
            }
        }
    }

    /// The worker, should one run.
    pub(crate) async fn running(&self) -> Option<Arc<Worker>> {
        let now = self.now.lock().await;
        now.worker
            .as_ref()
            .filter(|worker| !worker.is_closed())
            .cloned()
    }

    /// What is left of the wait before the next start, should no worker run.
    pub(crate) async fn backoff(&self) -> Option<Duration> {
        let now = self.now.lock().await;
        if now
            .worker
            .as_ref()
            .is_some_and(|worker| !worker.is_closed())
        {
            return None;
        }
        let left = now.not_before?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// How often a worker had to be replaced.
    pub(crate) fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }
}

fn next_backoff(backoff: Duration) -> Duration {
    (backoff * 2).clamp(BACKOFF, BACKOFF_MAX)
}

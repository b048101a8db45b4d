//! The worker's end of the connection: plugins that are loaded, calls that are under way.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, oneshot},
    task::AbortHandle,
};
use wasmtime::Engine;
use wherry_plugin_host::protocol::{
    Answer, Ask, Call, Ended, Fault, Limits, Linked, ToAgent, ToWorker,
};
use wherry_wasm_aot::wire;
use wherry_wasm_engine::plugin as sandbox;

use crate::{
    call,
    deadlines::Deadlines,
    heavy,
    kept::{self, Kept},
    plugin::{self, Plugin},
    state::Agent,
    ticker::Ticker,
    tls::NodeRoots,
};

/// Messages to the agent that wait to be written.
const MESSAGES_MAX: usize = 256;

struct UnderWay {
    /// It asked, and waits.
    answer: Option<oneshot::Sender<Answer>>,
    task: AbortHandle,
}

/// What the worker holds.
pub(crate) struct Worker {
    /// The first that takes a plugin has it.
    engines: Vec<Engine>,
    /// Places for instances that are being called.
    places: Semaphore,
    /// Places for those that wait to be called again.
    room: Arc<Semaphore>,
    roots: Arc<NodeRoots>,
    deadlines: Arc<Deadlines>,
    sender: mpsc::Sender<ToAgent>,
    /// Where calls about volumes run, and checks that compute for long.
    volumes: Handle,
    ticker: Ticker,
    plugins: Mutex<HashMap<u64, Arc<Plugin>>>,
    calls: Mutex<HashMap<u64, UnderWay>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    pub(crate) fn start(
        engines: Vec<Engine>,
        roots: Arc<NodeRoots>,
        sender: wire::Sender,
        volumes: Handle,
    ) -> io::Result<Arc<Self>> {
        // Calls can be dropped anywhere, and half a message would be the connection's end.
        let (queue, mut messages) = mpsc::channel::<ToAgent>(MESSAGES_MAX);
        tokio::spawn(async move {
            let mut together = Vec::new();
            while messages.recv_many(&mut together, MESSAGES_MAX).await > 0 {
                if sender.send_all(&together).await.is_err() {
                    break;
                }
                together.clear();
            }
        });
        Ok(Arc::new(Self {
            ticker: Ticker::start(engines.clone())?,
            engines,
            places: Semaphore::new(sandbox::POOLED_INSTANCES_MAX as usize - kept::INSTANCES_MAX),
            room: Arc::new(Semaphore::new(kept::INSTANCES_MAX)),
            roots,
            deadlines: Deadlines::start(),
            sender: queue,
            volumes,
            plugins: Mutex::default(),
            calls: Mutex::default(),
        }))
    }

    /// Does what the agent asks until the agent is gone.
    pub(crate) async fn serve(self: Arc<Self>, mut receiver: wire::Receiver) -> io::Result<()> {
        while let Some((message, descriptors)) = receiver.receive::<ToWorker>().await? {
            match message {
                ToWorker::Load {
                    plugin,
                    limits,
                    keeps_instances,
                } => {
                    let kept = Kept::new(keeps_instances.then(|| Arc::clone(&self.room)));
                    let result = self.load(plugin, limits, kept, descriptors);
                    let loaded = ToAgent::Loaded { plugin, result };
                    self.send(loaded).await?;
                }
                ToWorker::Unload { plugin } => {
                    lock(&self.plugins).remove(&plugin);
                }
                ToWorker::Call(call) => self.begin(*call, descriptors.into_iter().next()),
                ToWorker::Answer { call, answer } => {
                    let asked = lock(&self.calls)
                        .get_mut(&call)
                        .and_then(|under_way| under_way.answer.take());
                    if let Some(asked) = asked {
                        // A call that has ended meanwhile has no use for it.
                        let _ = asked.send(answer);
                    }
                }
                ToWorker::Cancel { call } => {
                    if let Some(under_way) = lock(&self.calls).remove(&call) {
                        under_way.task.abort();
                    }
                }
            }
        }
        Ok(())
    }

    async fn send(&self, message: ToAgent) -> io::Result<()> {
        let sent = self.sender.send(message).await;
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Asks the agent for what only it may do. A call asks one thing at a time.
    pub(crate) async fn ask(&self, call: u64, ask: Ask) -> wasmtime::Result<Answer> {
        let (sender, receiver) = oneshot::channel();
        if let Some(under_way) = lock(&self.calls).get_mut(&call) {
            under_way.answer = Some(sender);
        }
        self.send(ToAgent::Ask { call, ask }).await?;
        let answer = receiver.await;
        answer.map_err(|_| wasmtime::format_err!("the agent is gone"))
    }

    /// Tells how many bytes a call has done, of how many.
    pub(crate) fn tell(&self, call: u64, done: u64, total: u64) {
        // Should the queue be full, the next one tells more.
        let _ = self
            .sender
            .try_send(ToAgent::Progress { call, done, total });
    }

    fn load(
        &self,
        number: u64,
        limits: Limits,
        kept: Kept,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Linked, String> {
        let directory = descriptors.first().ok_or("no file came along")?;
        let (mut plugin, linked) = self
            .link(directory, limits)
            .map_err(|error| format!("{error:#}"))?;
        plugin.kept = kept;
        lock(&self.plugins).insert(number, Arc::new(plugin));
        Ok(linked)
    }

    fn link(&self, directory: &OwnedFd, limits: Limits) -> wasmtime::Result<(Plugin, Linked)> {
        let mut tried = Err(wasmtime::format_err!("no engine"));
        for engine in &self.engines {
            tried = plugin::load(engine, directory, limits);
            if tried.is_ok() {
                break;
            }
        }
        tried
    }

    fn begin(self: &Arc<Self>, call: Call, descriptor: Option<OwnedFd>) {
        let number = call.call;
        let plugin = lock(&self.plugins).get(&call.plugin).cloned();
        let worker = Arc::clone(self);
        let mut calls = lock(&self.calls);
        let is_check = call.volume.is_none();
        let call = async move {
            let ended = worker.call(plugin, call, descriptor).await;
            lock(&worker.calls).remove(&number);
            let ended = ToAgent::Ended {
                call: number,
                ended: Box::new(ended),
            };
            // Without an agent the whole worker ends.
            let _ = worker.send(ended).await;
        };
        let task = match is_check {
            true => tokio::spawn(heavy::elsewhere(call, self.volumes.clone())),
            false => self.volumes.spawn(call),
        };
        let under_way = UnderWay {
            answer: None,
            task: task.abort_handle(),
        };
        calls.insert(number, under_way);
    }

    async fn call(
        self: &Arc<Self>,
        plugin: Option<Arc<Plugin>>,
        call: Call,
        descriptor: Option<OwnedFd>,
    ) -> Ended {
        let Some(plugin) = plugin else {
            return Ended {
                result: Err(Fault::WorkerLost("it does not know the plugin".into())),
                cpu_time: std::time::Duration::ZERO,
                memory_bytes_peak: 0,
                log: Vec::new(),
                log_dropped: 0,
                denied: None,
            };
        };
        let _place = self.places.acquire().await;
        let _ticking = self.ticker.tick();
        let agent = Agent {
            worker: Arc::clone(self),
            call: call.call,
        };
        let shared = (Arc::clone(&self.roots), Arc::clone(&self.deadlines));
        call::run(&plugin, call, descriptor, shared, agent).await
    }
}

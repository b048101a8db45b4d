//! The worker's end of the connection: plugins that are loaded, calls that are under way.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
    task::AbortHandle,
};
use wasmtime::Engine;
use wherry_plugin_host::protocol::{Answer, Call, Ended, Fault, Limits, Linked, ToAgent, ToWorker};
use wherry_wasm_aot::wire;
use wherry_wasm_engine::plugin as sandbox;

use crate::{
    call,
    plugin::{self, Plugin},
    state::Agent,
    ticker::Ticker,
    tls::NodeRoots,
};

/// Messages to the agent that wait to be written.
const MESSAGES_MAX: usize = 256;

struct UnderWay {
    answers: mpsc::Sender<Answer>,
    task: AbortHandle,
}

/// What the worker holds.
pub(crate) struct Worker {
    /// The first that takes a plugin has it.
    engines: Vec<Engine>,
    /// Places for instances.
    places: Semaphore,
    roots: Arc<NodeRoots>,
    sender: mpsc::Sender<ToAgent>,
    /// Where calls about volumes run.
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
            while let Some(message) = messages.recv().await {
                if sender.send(&message, &[]).await.is_err() {
                    break;
                }
            }
        });
        Ok(Arc::new(Self {
            ticker: Ticker::start(engines.clone())?,
            engines,
            places: Semaphore::new(sandbox::POOLED_INSTANCES_MAX as usize),
            roots,
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
                ToWorker::Load { plugin, limits } => {
                    let result = self.load(plugin, limits, descriptors);
                    let loaded = ToAgent::Loaded { plugin, result };
                    self.send(loaded).await?;
                }
                ToWorker::Unload { plugin } => {
                    lock(&self.plugins).remove(&plugin);
                }
                ToWorker::Call(call) => self.begin(*call, descriptors.into_iter().next()),
                ToWorker::Answer { call, answer } => {
                    if let Some(under_way) = lock(&self.calls).get(&call) {
                        // A call asks one thing at a time: there is room.
                        let _ = under_way.answers.try_send(answer);
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

    fn load(
        &self,
        number: u64,
        limits: Limits,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Linked, String> {
        let directory = descriptors.first().ok_or("no file came along")?;
        let (plugin, linked) = self
            .link(directory, limits)
            .map_err(|error| format!("{error:#}"))?;
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
        let (answers, receiver) = mpsc::channel(1);
        let plugin = lock(&self.plugins).get(&call.plugin).cloned();
        let worker = Arc::clone(self);
        let mut calls = lock(&self.calls);
        let place = match call.volume {
            Some(_) => self.volumes.clone(),
            None => Handle::current(),
        };
        let task = place.spawn(async move {
            let ended = worker.call(plugin, call, descriptor, receiver).await;
            lock(&worker.calls).remove(&number);
            let ended = ToAgent::Ended {
                call: number,
                ended: Box::new(ended),
            };
            // Without an agent the whole worker ends.
            let _ = worker.send(ended).await;
        });
        calls.insert(
            number,
            UnderWay {
                answers,
                task: task.abort_handle(),
            },
        );
    }

    async fn call(
        self: &Arc<Self>,
        plugin: Option<Arc<Plugin>>,
        call: Call,
        descriptor: Option<OwnedFd>,
        answers: mpsc::Receiver<Answer>,
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
        let number = call.call;
        let worker = Arc::clone(self);
        let agent = Agent {
            ask: Box::new(move |ask| {
                let worker = Arc::clone(&worker);
                Box::pin(async move {
                    let ask = ToAgent::Ask { call: number, ask };
                    worker.send(ask).await
                })
            }),
            answers,
            tell: {
                let sender = self.sender.clone();
                Box::new(move |done, total| {
                    let progress = ToAgent::Progress {
                        call: number,
                        done,
                        total,
                    };
                    // Should the queue be full, the next one tells more.
                    let _ = sender.try_send(progress);
                })
            },
        };
        call::run(&plugin, call, descriptor, Arc::clone(&self.roots), agent).await
    }
}

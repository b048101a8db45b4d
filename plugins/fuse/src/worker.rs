//! The server's end of plugin workers: one process for each component, started when a volume needs it
//! and started again with a back-off.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use wherry_plugin_host::{
    filesystem::{
        frames,
        protocol::{Component, FromGuest, Hello, Load, ToGuest},
    },
    protocol::{Bootstrap, Linked, ToAgent, World},
};
use wherry_wasm_aot::{child, wire};

use crate::lock;

/// A worker has to make an engine; a busy machine takes its time.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Wait before the second start; doubled for each further one.
const BACKOFF: Duration = Duration::from_millis(20);
/// Longest wait between starts: shorter than anybody waits for a file.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A worker that lived this long starts the back-off anew.
const LIVED: Duration = Duration::from_secs(30);
/// Messages that wait to be written to a worker: a handful for each of its volumes.
const MESSAGES_MAX: usize = 4096;
/// Calls of one volume that a worker has at a time: while it makes one, the next is on its way.
pub(crate) const PIPELINE: usize = 8;
/// Messages of a worker that wait for one volume: an end for each call, and a question.
const EVENTS_MAX: usize = PIPELINE + 4;

type Event = (FromGuest, Vec<u8>);

#[derive(Default)]
struct Volumes {
    senders: HashMap<u64, mpsc::Sender<Event>>,
    is_closed: bool,
}

/// A worker's process.
pub(crate) struct Worker {
    pid: Option<u32>,
    messages: mpsc::Sender<(ToGuest, Arc<Vec<u8>>)>,
    volumes: Mutex<Volumes>,
    next: AtomicU64,
    started: Instant,
}

impl Worker {
    async fn start(
        hello: &Hello,
        component: &Component,
        directory: &OwnedFd,
    ) -> io::Result<Arc<Self>> {
        let (mut process, socket) =
            child::spawn(&hello.exe, &["plugin-worker", "filesystem"], None)?;
        let pid = process.id();
        let prepared = timeout(READY_TIMEOUT, prepare(socket, hello, component, directory)).await;
        let socket = match prepared {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                let _ = process.kill().await;
                return Err(error);
            }
            Err(_) => {
                let _ = process.kill().await;
                return Err(io::Error::other(format!(
                    "not ready after {READY_TIMEOUT:?}"
                )));
            }
        };
        let (mut sender, mut receiver) = frames::split(socket);
        let (messages, mut queue) = mpsc::channel::<(ToGuest, Arc<Vec<u8>>)>(MESSAGES_MAX);
        tokio::spawn(async move {
            while let Some((message, data)) = queue.recv().await {
                if sender.send(&message, &data).await.is_err() {
                    break;
                }
            }
        });
        let worker = Arc::new(Self {
            pid,
            messages,
            volumes: Mutex::default(),
            next: AtomicU64::new(1),
            started: Instant::now(),
        });
        let weak = Arc::downgrade(&worker);
        tokio::spawn(async move {
            while let Ok(Some((message, data))) = receiver.receive::<FromGuest>().await {
                let Some(worker) = weak.upgrade() else { break };
                let volume = match &message {
                    FromGuest::Ask { volume, .. } | FromGuest::Ended { volume, .. } => *volume,
                };
                let sender = lock(&worker.volumes).senders.get(&volume).cloned();
                if let Some(sender) = sender {
                    // A worker that says more than it was asked for is no worker of ours.
                    if sender.try_send((message, data)).is_err() && !sender.is_closed() {
                        break;
                    }
                }
            }
            if let Some(worker) = weak.upgrade() {
                worker.close();
            }
            drop(receiver);
            // Without its connection a worker ends; one that does not is ended.
            if timeout(Duration::from_secs(1), process.wait())
                .await
                .is_err()
            {
                let _ = process.kill().await;
            }
        });
        Ok(worker)
    }

    fn close(&self) {
        let mut volumes = lock(&self.volumes);
        volumes.is_closed = true;
        volumes.senders.clear();
    }

    fn is_closed(&self) -> bool {
        lock(&self.volumes).is_closed
    }

    /// Ends the process, which answers nobody any more.
    pub(crate) fn kill(&self) {
        // Once closed it is being reaped, and its number may be another's.
        if self.is_closed() {
            return;
        }
        self.close();
        if let Some(pid) = self.pid.and_then(|pid| i32::try_from(pid).ok()) {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }
}

async fn prepare(
    socket: tokio::net::UnixStream,
    hello: &Hello,
    component: &Component,
    directory: &OwnedFd,
) -> io::Result<tokio::net::UnixStream> {
    let socket = socket.into_std()?;
    let ours = socket.try_clone()?;
    let (sender, mut receiver) = wire::split(tokio::net::UnixStream::from_std(socket)?);
    let bootstrap = Bootstrap {
        uid: hello.uid,
        gid: hello.gid,
        jail: hello.jail.clone(),
    };
    sender.send(&bootstrap, &[]).await?;
    let unexpected = || io::Error::other("ended before it was ready");
    match receiver.receive::<ToAgent>().await? {
        Some((ToAgent::Ready(Ok(())), _)) => {}
        Some((ToAgent::Ready(Err(why)), _)) => return Err(io::Error::other(why)),
        _ => return Err(unexpected()),
    }
    let load = Load {
        limits: component.limits,
    };
    sender.send(&load, &[directory.as_fd()]).await?;
    match receiver.receive::<Result<Linked, String>>().await? {
        Some((Ok(linked), _)) if linked.world == World::Filesystem => {}
        Some((Ok(linked), _)) => {
            return Err(io::Error::other(format!("it is {}", linked.world.name())));
        }
        Some((Err(why), _)) => return Err(io::Error::other(why)),
        None => return Err(unexpected()),
    }
    drop((sender, receiver));
    tokio::net::UnixStream::from_std(ours)
}

/// A volume at a worker; closed when dropped.
pub(crate) struct Session {
    worker: Arc<Worker>,
    volume: u64,
    events: mpsc::Receiver<Event>,
}

impl Session {
    /// Sends a message; the volume's number is its.
    ///
    /// # Errors
    /// The worker is gone; one that does not read what it is sent is ended.
    pub(crate) fn send(
        &self,
        message: impl FnOnce(u64) -> ToGuest,
        data: Arc<Vec<u8>>,
    ) -> Result<(), Gone> {
        let sent = self.worker.messages.try_send((message(self.volume), data));
        sent.map_err(|_| {
            self.worker.kill();
            Gone
        })
    }

    /// What the worker says next; `None` when it is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn receive(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        lock(&self.worker.volumes).senders.remove(&self.volume);
        let close = ToGuest::Close {
            volume: self.volume,
        };
        let _ = self.worker.messages.try_send((close, Arc::default()));
    }
}

/// The worker is gone.
#[derive(Debug)]
pub(crate) struct Gone;

#[derive(Default)]
struct Now {
    worker: Option<Arc<Worker>>,
    backoff: Duration,
    not_before: Option<Instant>,
}

/// A component and the worker that runs it.
pub(crate) struct Plugin {
    hello: Hello,
    component: Component,
    directory: OwnedFd,
    now: tokio::sync::Mutex<Now>,
}

impl Plugin {
    pub(crate) fn new(hello: Hello, component: Component, directory: OwnedFd) -> Self {
        Self {
            hello,
            component,
            directory,
            now: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn component(&self) -> &Component {
        &self.component
    }

    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    pub(crate) fn hello(&self) -> &Hello {
        &self.hello
    }

    /// A place for a volume at the worker, which is started if there is none.
    ///
    /// # Errors
    /// It cannot be started; trying again waits by itself.
    pub(crate) async fn session(&self) -> Result<Session, String> {
        let mut now = self.now.lock().await;
        if let Some(worker) = now.worker.take_if(|worker| worker.is_closed()) {
            now.backoff = match worker.started.elapsed() > LIVED {
                true => Duration::ZERO,
                false => (now.backoff * 2).clamp(BACKOFF, BACKOFF_MAX),
            };
            now.not_before = Some(Instant::now() + now.backoff);
        }
        let worker = match &now.worker {
            Some(worker) => Arc::clone(worker),
            None => {
                if let Some(not_before) = now.not_before {
                    sleep_until(not_before).await;
                }
                match Worker::start(&self.hello, &self.component, &self.directory).await {
                    Ok(worker) => {
                        now.worker = Some(Arc::clone(&worker));
                        worker
                    }
                    Err(error) => {
                        now.backoff = (now.backoff * 2).clamp(BACKOFF, BACKOFF_MAX);
                        now.not_before = Some(Instant::now() + now.backoff);
                        return Err(format!("plugin worker: start: {error}"));
                    }
                }
            }
        };
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let volume = worker.next.fetch_add(1, Ordering::Relaxed);
        let mut volumes = lock(&worker.volumes);
        if volumes.is_closed {
            return Err("plugin worker: ended".into());
        }
        volumes.senders.insert(volume, sender);
        drop(volumes);
        Ok(Session {
            worker,
            volume,
            events,
        })
    }
}

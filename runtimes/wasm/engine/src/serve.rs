//! What a worker does for the agent.

use std::{
    collections::HashMap,
    fs::File,
    io::Write,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, broadcast},
};
use tokio_util::sync::CancellationToken;
use wherry_wasm::protocol::{
    ContainerSpec, Event, ExitRecord, PROTOCOL_VERSION, ReplyBody, Request, RequestBody, ToAgent,
    WorkerError, WorkerErrorKind,
};
use wherry_wasm_aot::wire;

use crate::{
    container::{Container, End, ExecStreams},
    engine::{Engines, Loaded, POOLED_INSTANCES_MAX},
    log::{LogFile, LogWriter},
    output::{Client, Input},
    sched::Pool,
    terminal::Terminal,
    tls::NodeRoots,
};

/// Events on their way to an agent. One that is so far behind is disconnected, and asks for
/// everything when it comes back.
const EVENTS_MAX: usize = 1024;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An exec under way.
struct Exec {
    cancel: CancellationToken,
    terminal: Arc<Terminal>,
}

/// The exit file: one line of JSON per exit nobody has acknowledged.
pub(crate) struct Exits(Mutex<File>);

impl Exits {
    pub(crate) fn new(file: File) -> Self {
        Self(Mutex::new(file))
    }

    /// Writes a record in one piece. A full disk is no reason not to report an exit.
    pub(crate) fn append(&self, record: &ExitRecord) {
        if let Ok(mut line) = serde_json::to_vec(record) {
            line.push(b'\n');
            let _ = lock(&self.0).write_all(&line);
        }
    }

    fn clear(&self) {
        let _ = lock(&self.0).set_len(0);
    }
}

/// A worker.
pub(crate) struct Worker {
    pub(crate) engines: Arc<Engines>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) log: LogWriter,
    pub(crate) exits: Exits,
    pub(crate) http_instances: Arc<Semaphore>,
    instances_max: usize,
    roots: Arc<NodeRoots>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// Code in memory, shared by the containers of one image.
    modules: Mutex<HashMap<String, Weak<Loaded>>>,
    events: broadcast::Sender<Event>,
}

impl Worker {
    pub(crate) fn new(
        engines: Arc<Engines>,
        pool: Arc<Pool>,
        log: LogWriter,
        exits: Exits,
        instances_max: usize,
        roots: Arc<NodeRoots>,
    ) -> Arc<Self> {
        Arc::new(Self {
            engines,
            pool,
            log,
            exits,
            http_instances: Arc::new(Semaphore::new(POOLED_INSTANCES_MAX as usize)),
            instances_max,
            roots,
            containers: Mutex::default(),
            modules: Mutex::default(),
            events: broadcast::Sender::new(EVENTS_MAX),
        })
    }

    /// Tells every agent that listens.
    pub(crate) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Serves agents until one asks for the end.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener) {
        let shutdown = CancellationToken::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(self.clone().serve_agent(stream, shutdown.clone()));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        }
    }

    async fn serve_agent(self: Arc<Self>, stream: UnixStream, shutdown: CancellationToken) {
        let (sender, mut receiver) = wire::split(stream);
        let sender = Arc::new(sender);
        let gone = CancellationToken::new();
        let _ends = gone.clone().drop_guard();
        let execs: Arc<Mutex<HashMap<u64, Exec>>> = Arc::default();
        let mut events = None;
        loop {
            let event = async {
                match &mut events {
                    Some(events) => broadcast::Receiver::recv(events).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                received = receiver.receive::<Request>() => {
                    let Ok(Some((request, descriptors))) = received else { break };
                    if let RequestBody::Hello { .. } = request.body {
                        events = Some(self.events.subscribe());
                    }
                    // The agent waits for an answer where order matters.
                    let (this, sender, execs) = (self.clone(), sender.clone(), execs.clone());
                    let (gone, shutdown) = (gone.clone(), shutdown.clone());
                    tokio::spawn(async move {
                        let is_shutdown = matches!(request.body, RequestBody::Shutdown);
                        let (result, answered) = this.handle(request.body, descriptors, &sender, &execs, &gone).await;
                        let is_ending = is_shutdown && result.is_ok();
                        let with: Vec<BorrowedFd<'_>> = answered.iter().map(AsFd::as_fd).collect();
                        let _ = sender.send(&ToAgent::Reply { seq: request.seq, result }, &with).await;
                        if is_ending {
                            shutdown.cancel();
                        }
                    });
                }
                event = event => {
                    let Ok(event) = event else { break };
                    if sender.send(&ToAgent::Event(event), &[]).await.is_err() {
                        break;
                    }
                }
            }
        }
    }

    async fn handle(
        self: &Arc<Self>,
        request: RequestBody,
        descriptors: Vec<OwnedFd>,
        sender: &Arc<wire::Sender>,
        execs: &Arc<Mutex<HashMap<u64, Exec>>>,
        gone: &CancellationToken,
    ) -> (Result<ReplyBody, WorkerError>, Option<OwnedFd>) {
        let mut answered = None;
        let result = match request {
            RequestBody::Hello { protocol: _ } => {
                let containers = lock(&self.containers)
                    .values()
                    .map(|container| container.report())
                    .collect();
                Ok(ReplyBody::Hello {
                    protocol: PROTOCOL_VERSION,
                    engine: self.engines.name(),
                    containers,
                })
            }
            RequestBody::Create(spec) => self.create(*spec, descriptors).await,
            RequestBody::Start { id } => match self.container(&id) {
                Ok(container) => container
                    .start(self)
                    .await
                    .map(|at| ReplyBody::Started { at }),
                Err(error) => Err(error),
            },
            RequestBody::Stop { id, grace_ms } => match self.container(&id) {
                Ok(container) => {
                    container.stop(self, Duration::from_millis(grace_ms)).await;
                    Ok(ReplyBody::Done)
                }
                Err(error) => Err(error),
            },
            RequestBody::Remove { id } => {
                self.remove(&id).await;
                Ok(ReplyBody::Done)
            }
            RequestBody::Exec {
                id,
                exec,
                args,
                tty,
                stdin,
                stdout,
                stderr,
            } => {
                let mut sockets = Sockets::new(descriptors);
                match (
                    self.container(&id),
                    sockets.take(stdin),
                    sockets.client(stdout, stderr, tty),
                ) {
                    (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => Err(error),
                    (Ok(container), _, _)
                        if container.is_exited() || container.output().is_none() =>
                    {
                        let message = format!("container {id} is not running");
                        Err(WorkerError::new(
                            WorkerErrorKind::FailedPrecondition,
                            message,
                        ))
                    }
                    (Ok(container), _, _) if !container.loaded.can_run() => {
                        let message = format!(
                            "container {id}: the component serves HTTP and exports no `wasi:cli/run` that an exec could run"
                        );
                        Err(WorkerError::new(WorkerErrorKind::Unsupported, message))
                    }
                    (Ok(container), Ok(stdin), Ok(client)) => {
                        let cancel = container.end.child_token();
                        let (input, guest) = Input::open();
                        let terminal = Terminal::new(input);
                        let running = Exec {
                            cancel: cancel.clone(),
                            terminal: terminal.clone(),
                        };
                        lock(execs).insert(exec, running);
                        let (sender, execs, gone) = (sender.clone(), execs.clone(), gone.clone());
                        let streams = ExecStreams {
                            tty,
                            stdin,
                            client,
                            terminal,
                            guest,
                        };
                        let ran = container.exec(self.clone(), args, streams, cancel.clone());
                        tokio::spawn(async move {
                            let mut ran = std::pin::pin!(ran);
                            let end = tokio::select! {
                                end = &mut ran => end,
                                () = gone.cancelled() => {
                                    cancel.cancel();
                                    ran.await
                                }
                            };
                            lock(&execs).remove(&exec);
                            let (exit_code, message) = (end.exit_code(), end.message());
                            let event = Event::ExecExited {
                                exec,
                                exit_code,
                                message,
                            };
                            let _ = sender.send(&ToAgent::Event(event), &[]).await;
                        });
                        Ok(ReplyBody::Done)
                    }
                }
            }
            RequestBody::KillExec { exec } => {
                if let Some(exec) = lock(execs).get(&exec) {
                    exec.cancel.cancel();
                }
                Ok(ReplyBody::Done)
            }
            RequestBody::Resize {
                id,
                exec,
                rows,
                columns,
            } => {
                match exec {
                    Some(exec) => {
                        if let Some(exec) = lock(execs).get(&exec) {
                            exec.terminal.resize(rows, columns);
                        }
                    }
                    None => {
                        if let Ok(container) = self.container(&id) {
                            container.resize(rows, columns);
                        }
                    }
                }
                // One that has ended has no size.
                Ok(ReplyBody::Done)
            }
            RequestBody::Attach {
                id,
                stdin,
                stdout,
                stderr,
            } => {
                let mut sockets = Sockets::new(descriptors);
                self.container(&id).and_then(|container| {
                    if container.is_exited() {
                        let message = format!("container {id} is not running");
                        return Err(WorkerError::new(
                            WorkerErrorKind::FailedPrecondition,
                            message,
                        ));
                    }
                    let stdin = sockets.take(stdin)?;
                    container.attach(
                        self,
                        stdin,
                        sockets.client(stdout, stderr, container.spec.tty)?,
                    );
                    Ok(ReplyBody::Done)
                })
            }
            RequestBody::Update { id, limits } => self.container(&id).map(|container| {
                container.set_limits(&limits);
                ReplyBody::Done
            }),
            RequestBody::Stats { id } => self
                .container(&id)
                .map(|container| ReplyBody::Stats(container.usage())),
            RequestBody::Connect { ip, port } => match connect(SocketAddr::new(ip, port)).await {
                Ok(socket) => {
                    answered = Some(socket);
                    Ok(ReplyBody::Done)
                }
                Err(error) => {
                    let message = format!("connect {ip}:{port}: {error}");
                    Err(WorkerError::new(
                        WorkerErrorKind::FailedPrecondition,
                        message,
                    ))
                }
            },
            RequestBody::ReopenLog { id } => {
                match (self.container(&id), descriptors.into_iter().next()) {
                    (Ok(container), Some(file)) => {
                        container.log.reopen(file.into());
                        Ok(ReplyBody::Done)
                    }
                    (Err(error), _) => Err(error),
                    (_, None) => Err(missing_descriptor()),
                }
            }
            RequestBody::Shutdown => {
                if lock(&self.containers).is_empty() {
                    Ok(ReplyBody::Done)
                } else {
                    Err(WorkerError::new(
                        WorkerErrorKind::FailedPrecondition,
                        "the worker holds containers",
                    ))
                }
            }
        };
        (result, answered)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, WorkerError> {
        let found = lock(&self.containers).get(id).cloned();
        found.ok_or_else(|| {
            WorkerError::new(
                WorkerErrorKind::NotFound,
                format!("container {id} not found"),
            )
        })
    }

    async fn create(
        self: &Arc<Self>,
        spec: ContainerSpec,
        descriptors: Vec<OwnedFd>,
    ) -> Result<ReplyBody, WorkerError> {
        {
            let containers = lock(&self.containers);
            if containers.contains_key(&spec.id) {
                return Ok(ReplyBody::Done);
            }
            if containers.len() >= self.instances_max {
                let message = format!(
                    "container {}: the worker holds {} already",
                    spec.id,
                    containers.len()
                );
                return Err(WorkerError::new(
                    WorkerErrorKind::ResourceExhausted,
                    message,
                ));
            }
        }
        let mut descriptors = descriptors.into_iter();
        let module = descriptors.next().ok_or_else(missing_descriptor)?;
        let log = descriptors.next().ok_or_else(missing_descriptor)?;
        let preopens: Vec<OwnedFd> = descriptors.collect();
        if preopens.len() != spec.preopens.len() {
            return Err(missing_descriptor());
        }
        let worker = self.clone();
        let (name, kind) = (spec.module.clone(), spec.kind);
        let loaded = tokio::task::spawn_blocking(move || worker.load(&name, kind, &module)).await;
        let loaded = match loaded {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(error)) => {
                let message = format!("container {}: load: {error:#}", spec.id);
                return Err(WorkerError::new(WorkerErrorKind::InvalidArgument, message));
            }
            Err(error) => {
                return Err(WorkerError::new(
                    WorkerErrorKind::Internal,
                    format!("load: {error}"),
                ));
            }
        };
        let (events, id) = (self.events.clone(), spec.id.clone());
        let log = LogFile::new(log.into(), spec.log_size_bytes_max, move || {
            let _ = events.send(Event::LogFull { id: id.clone() });
        });
        let id = spec.id.clone();
        lock(&self.containers).entry(id).or_insert_with(|| {
            Arc::new(Container::new(
                spec,
                loaded,
                log,
                preopens,
                self.roots.clone(),
            ))
        });
        Ok(ReplyBody::Done)
    }

    fn load(
        &self,
        name: &str,
        kind: wherry_wasm_aot::ModuleKind,
        directory: &OwnedFd,
    ) -> wasmtime::Result<Arc<Loaded>> {
        // Held while loading: two containers of one image share the work.
        let mut modules = lock(&self.modules);
        modules.retain(|_, module| module.strong_count() > 0);
        if let Some(loaded) = modules.get(name).and_then(Weak::upgrade) {
            return Ok(loaded);
        }
        let loaded = Arc::new(self.engines.load(kind, directory)?);
        modules.insert(name.to_owned(), Arc::downgrade(&loaded));
        Ok(loaded)
    }

    async fn remove(self: &Arc<Self>, id: &str) {
        let Ok(container) = self.container(id) else {
            return;
        };
        container.end(self, End::Killed).await;
        container.exited.cancelled().await;
        let mut containers = lock(&self.containers);
        containers.remove(id);
        if !containers.values().any(|container| container.is_exited()) {
            self.exits.clear();
        }
    }
}

fn missing_descriptor() -> WorkerError {
    WorkerError::new(WorkerErrorKind::Internal, "request without its descriptors")
}

async fn connect(address: SocketAddr) -> std::io::Result<OwnedFd> {
    let stream = tokio::net::TcpStream::connect(address).await?.into_std()?;
    Ok(stream.into())
}

/// The sockets of an exec or attach, in order.
struct Sockets(std::vec::IntoIter<OwnedFd>);

impl Sockets {
    fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter())
    }

    fn take(&mut self, is_there: bool) -> Result<Option<UnixStream>, WorkerError> {
        if !is_there {
            return Ok(None);
        }
        let open = |fd: OwnedFd| -> std::io::Result<UnixStream> {
            let socket = std::os::unix::net::UnixStream::from(fd);
            socket.set_nonblocking(true)?;
            UnixStream::from_std(socket)
        };
        let socket = self.0.next().ok_or_else(missing_descriptor)?;
        open(socket).map(Some).map_err(|error| {
            WorkerError::new(WorkerErrorKind::Internal, format!("socket: {error}"))
        })
    }

    fn client(
        &mut self,
        stdout: bool,
        stderr: bool,
        is_terminal: bool,
    ) -> Result<Client, WorkerError> {
        Ok(Client {
            stdout: self.take(stdout)?,
            stderr: self.take(stderr)?,
            is_terminal,
        })
    }
}

//! One container in a worker.
//!
//! ```text
//!  Created ── start ──▶ Running ── the guest returns, exits, traps, is ended ──▶ Exited
//!     └──────────────────────────── end ───────────────────────────────────────▶ Exited
//! ```
//! An exit is in the log, then in the exit file, then told to the agent: in this order.
//!
//! | how it ended | exit code | signal |
//! |---|---|---|
//! | returned, or `exit(n)` | n | |
//! | `wasi:cli/run` answered an error | 1 | |
//! | trapped | 134 | 6 |
//! | crossed its memory limit | 137 | 9, `oom_killed` |
//! | asked to stop (WASI has no signals: this ends it) | 143 | 15 |
//! | grace period over | 137 | 9 |
//! | Ctrl-C in an attached terminal | 130 | 2 |
//!
//! What a grace period is good for: an HTTP component finishes the requests it has and then exits
//! with 0; a component with an open stdin sees it end and may take its time.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    io::{AsyncRead, DuplexStream},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxBuilder, cli::AsyncStdinStream};
use wherry_log::LogStream;
use wherry_runtime_api::ContainerExit;
use wherry_wasm::protocol::{
    ContainerReport, ContainerSpec, Event, ExitRecord, Limits, Usage, WorkerError, WorkerErrorKind,
};

use crate::{
    engine::{Loaded, Run, in_directory},
    http,
    limits::{Limiter, Memory},
    log::LogFile,
    output::{self, Chunk, Client, Clients, GuestOutput, Input, InputEnd},
    pod::Pod,
    sched::CpuAccount,
    serve::Worker,
    state::{component_store, module_store},
    terminal::Terminal,
    tls::NodeRoots,
};

const SIGINT: i32 = 2;
const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It returned or exited.
    Exit(i32),
    /// It trapped, or could not be instantiated.
    Trap(String),
    /// It crossed its memory limit.
    Oom,
    /// It was asked to stop.
    Terminated,
    /// Its grace period was over.
    Killed,
    /// Somebody pressed Ctrl-C in its terminal.
    Interrupted,
}

impl End {
    pub(crate) fn exit_code(&self) -> i32 {
        match self {
            Self::Exit(code) => code & 0xff,
            Self::Trap(_) => 128 + SIGABRT,
            Self::Oom | Self::Killed => 128 + SIGKILL,
            Self::Terminated => 128 + SIGTERM,
            Self::Interrupted => 128 + SIGINT,
        }
    }

    pub(crate) fn message(&self) -> Option<String> {
        match self {
            Self::Trap(message) => Some(message.clone()),
            Self::Oom => Some("memory limit crossed".into()),
            _ => None,
        }
    }

    fn to_exit(&self, started_at: Option<SystemTime>) -> ContainerExit {
        let signal = match self {
            Self::Exit(_) => None,
            Self::Trap(_) => Some(SIGABRT),
            Self::Oom | Self::Killed => Some(SIGKILL),
            Self::Terminated => Some(SIGTERM),
            Self::Interrupted => Some(SIGINT),
        };
        ContainerExit {
            started_at,
            finished_at: SystemTime::now(),
            exit_code: self.exit_code(),
            signal,
            oom_killed: *self == Self::Oom,
            message: self.message(),
        }
    }
}

#[derive(Clone, Debug)]
enum Phase {
    Created,
    Running { started_at: SystemTime },
    Exited(ContainerExit),
}

/// A container.
pub(crate) struct Container {
    pub(crate) spec: ContainerSpec,
    pub(crate) loaded: Arc<Loaded>,
    /// Directories of `spec.preopens`, in order.
    preopens: Mutex<Vec<OwnedFd>>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) cpu: Arc<CpuAccount>,
    instances: AtomicU64,
    pub(crate) log: Arc<LogFile>,
    clients: Arc<Clients>,
    stdin: Input,
    terminal: Arc<Terminal>,
    stdin_guest: Mutex<Option<DuplexStream>>,
    /// Where instances write; gone once the container is over, which ends the pump.
    output: Mutex<Option<mpsc::Sender<Chunk>>>,
    phase: Mutex<Phase>,
    /// Why it is ended, once it is: the first reason counts.
    verdict: Mutex<Option<End>>,
    /// Ends the app and every exec.
    pub(crate) end: CancellationToken,
    /// Stop taking new work.
    pub(crate) drain: CancellationToken,
    /// Its exit is recorded.
    pub(crate) exited: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts an instance for as long as it lives.
struct InstanceCount(Arc<Container>);

impl InstanceCount {
    fn new(container: &Arc<Container>) -> Self {
        container.instances.fetch_add(1, Ordering::Relaxed);
        Self(container.clone())
    }
}

impl Drop for InstanceCount {
    fn drop(&mut self) {
        self.0.instances.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the module that runs beside the app reads and writes.
pub(crate) struct ExecStreams {
    /// The caller has a terminal.
    pub(crate) tty: bool,
    /// Where input comes from, if there is any.
    pub(crate) stdin: Option<tokio::net::UnixStream>,
    /// Where output goes.
    pub(crate) client: Client,
    /// What the guest is told of the terminal.
    pub(crate) terminal: Arc<Terminal>,
    /// The guest's end of its input.
    pub(crate) guest: DuplexStream,
}

impl Container {
    pub(crate) fn new(
        spec: ContainerSpec,
        loaded: Arc<Loaded>,
        log: LogFile,
        preopens: Vec<OwnedFd>,
        node: Arc<NodeRoots>,
    ) -> Self {
        let pod = Pod::new(&spec, &preopens, node);
        let memory = Memory::default();
        memory.set_max(spec.limits.memory_bytes_max);
        let (stdin, stdin_guest) = if spec.stdin {
            let (input, guest) = Input::open();
            (input, Some(guest))
        } else {
            (Input::default(), None)
        };
        Self {
            loaded,
            preopens: Mutex::new(preopens),
            pod,
            memory: Arc::new(memory),
            cpu: Arc::new(CpuAccount::new(&spec.limits, Instant::now())),
            instances: AtomicU64::new(0),
            log: Arc::new(log),
            clients: Arc::default(),
            terminal: Terminal::new(stdin.clone()),
            stdin,
            stdin_guest: Mutex::new(stdin_guest),
            output: Mutex::new(None),
            phase: Mutex::new(Phase::Created),
            verdict: Mutex::new(None),
            end: CancellationToken::new(),
            drain: CancellationToken::new(),
            exited: CancellationToken::new(),
            spec,
        }
    }

    pub(crate) fn report(&self) -> ContainerReport {
        let (started_at, exit) = match &*lock(&self.phase) {
            Phase::Created => (None, None),
            Phase::Running { started_at } => (Some(*started_at), None),
            Phase::Exited(exit) => (exit.started_at, Some(exit.clone())),
        };
        ContainerReport {
            id: self.spec.id.clone(),
            started_at,
            exit,
            log_is_full: self.log.is_full(),
        }
    }

    pub(crate) fn is_exited(&self) -> bool {
        matches!(*lock(&self.phase), Phase::Exited(_))
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            cpu_ns: self.cpu.used_ns(),
            memory_bytes: self.memory.used_bytes(),
            instances: self.instances.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn set_limits(&self, limits: &Limits) {
        self.memory.set_max(limits.memory_bytes_max);
        self.cpu.set_limits(limits, Instant::now());
    }

    /// Runs the app; answers when it runs. Repeatable.
    pub(crate) async fn start(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
    ) -> Result<SystemTime, WorkerError> {
        let listeners = match &*self.loaded {
            loaded if loaded.is_http() && matches!(*lock(&self.phase), Phase::Created) => {
                let ports = match &self.spec.http_ports[..] {
                    [] => std::slice::from_ref(&self.spec.http_port),
                    ports => ports,
                };
                let failed =
                    |message| WorkerError::new(WorkerErrorKind::FailedPrecondition, message);
                Some(http::listen(&self.pod.network, ports).map_err(failed)?)
            }
            _ => None,
        };
        let (sender, receiver) = output::channel();
        let started_at = {
            let mut phase = lock(&self.phase);
            match &*phase {
                Phase::Created => {}
                Phase::Running { started_at } => return Ok(*started_at),
                Phase::Exited(exit) => return Ok(exit.started_at.unwrap_or(exit.finished_at)),
            }
            let started_at = SystemTime::now();
            *phase = Phase::Running { started_at };
            *lock(&self.output) = Some(sender);
            started_at
        };
        let pump = tokio::spawn(output::pump(
            receiver,
            self.log.clone(),
            worker.log.clone(),
            self.clients.clone(),
            self.spec.tty.then(|| self.terminal.clone()),
        ));
        let (this, worker) = (self.clone(), worker.clone());
        tokio::spawn(async move {
            let ended = this.run(&worker, listeners).await;
            this.finish(&worker, ended, Some(pump)).await;
        });
        Ok(started_at)
    }

    async fn run(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
        listeners: Option<Vec<tokio::net::TcpListener>>,
    ) -> End {
        if let Some(listeners) = listeners {
            return http::serve(self.clone(), worker.clone(), listeners).await;
        }
        let Some(output) = self.output() else {
            return End::Killed;
        };
        let stdin = lock(&self.stdin_guest).take();
        let (this, args, tty) = (self.clone(), self.spec.args.clone(), self.spec.tty);
        let ran = worker.pool.spawn(self.cpu.clone(), async move {
            let end = this.end.clone();
            this.run_instance(args, stdin, output, tty, end).await
        });
        ran.await
            .unwrap_or_else(|_| End::Trap("host error while running the guest".into()))
    }

    /// Ends a container that may or may not have been started. The first reason counts.
    pub(crate) async fn end(self: &Arc<Self>, worker: &Arc<Worker>, reason: End) {
        lock(&self.verdict).get_or_insert(reason.clone());
        self.end.cancel();
        if matches!(*lock(&self.phase), Phase::Created) {
            self.finish(worker, reason, None).await;
        }
    }

    /// Asks it to end, and ends it once the grace period is over.
    pub(crate) async fn stop(self: &Arc<Self>, worker: &Arc<Worker>, grace: Duration) {
        if self.is_exited() {
            return;
        }
        self.drain.cancel();
        let listens = self.loaded.is_http() || self.spec.stdin;
        if grace.is_zero() {
            return self.end(worker, End::Killed).await;
        }
        if !listens {
            return self.end(worker, End::Terminated).await;
        }
        self.stdin.close().await;
        let (this, worker) = (self.clone(), worker.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(grace) => this.end(&worker, End::Killed).await,
                () = this.end.cancelled() => {}
            }
        });
    }

    /// Records the exit: log, exit file, agent.
    async fn finish(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
        ended: End,
        pump: Option<tokio::task::JoinHandle<()>>,
    ) {
        let ended = lock(&self.verdict).clone().unwrap_or(ended);
        self.end.cancel();
        *lock(&self.output) = None;
        // Volumes are not held by what only waits to be forgotten.
        lock(&self.preopens).clear();
        self.pod.trust.release();
        if let Some(pump) = pump {
            let _ = pump.await;
        }
        let record = {
            let mut phase = lock(&self.phase);
            let started_at = match &*phase {
                Phase::Created => None,
                Phase::Running { started_at } => Some(*started_at),
                Phase::Exited(_) => return,
            };
            let exit = ended.to_exit(started_at);
            let record = ExitRecord {
                id: self.spec.id.clone(),
                exit: exit.clone(),
            };
            worker.exits.append(&record);
            *phase = Phase::Exited(exit);
            record
        };
        self.exited.cancel();
        worker.tell(Event::Exited(record));
    }

    pub(crate) fn output(&self) -> Option<mpsc::Sender<Chunk>> {
        lock(&self.output).clone()
    }

    /// Runs the module once, on a guest thread.
    async fn run_instance<R>(
        self: Arc<Self>,
        args: Vec<String>,
        stdin: Option<R>,
        output: mpsc::Sender<Chunk>,
        tty: bool,
        cancel: CancellationToken,
    ) -> End
    where
        R: AsyncRead + Send + Sync + 'static,
    {
        let _count = InstanceCount::new(&self);
        let report = output.clone();
        let run = async {
            let mut wasi = match self.wasi(&args, output, tty) {
                Ok(wasi) => wasi,
                Err(error) => return Err(error),
            };
            if let Some(stdin) = stdin {
                wasi.stdin(AsyncStdinStream::new(stdin));
            }
            self.call(wasi).await
        };
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => return lock(&self.verdict).clone().unwrap_or(End::Killed),
            result = run => result,
        };
        self.end_of(result, &report).await
    }

    async fn call(&self, mut wasi: WasiCtxBuilder) -> wasmtime::Result<i32> {
        let limiter = Limiter::new(self.memory.clone());
        let pod = self.pod.clone();
        match &*self.loaded {
            Loaded::Module(pre) => {
                let mut store = module_store(pre.module().engine(), wasi.build_p1(), limiter);
                let instance = pre.instantiate_async(&mut store).await?;
                instance
                    .get_typed_func::<(), ()>(&mut store, "_start")?
                    .call_async(&mut store, ())
                    .await?;
                Ok(0)
            }
            Loaded::Command(pre)
            | Loaded::Http {
                run: Some(Run::P2(pre)),
                ..
            }
            | Loaded::HttpP3 {
                run: Some(Run::P2(pre)),
                ..
            } => {
                let mut store = component_store(pre.engine(), wasi.build(), pod, limiter);
                let command = pre.instantiate_async(&mut store).await?;
                let answer = command.wasi_cli_run().call_run(&mut store).await?;
                Ok(i32::from(answer.is_err()))
            }
            Loaded::CommandP3(pre)
            | Loaded::Http {
                run: Some(Run::P3(pre)),
                ..
            }
            | Loaded::HttpP3 {
                run: Some(Run::P3(pre)),
                ..
            } => {
                let mut store = component_store(pre.engine(), wasi.build(), pod, limiter);
                let command = pre.instantiate_async(&mut store).await?;
                let answer = store
                    .run_concurrent(async |accessor| {
                        command.wasi_cli_run().call_run(accessor).await
                    })
                    .await??;
                Ok(i32::from(answer.is_err()))
            }
            Loaded::Http { run: None, .. } | Loaded::HttpP3 { run: None, .. } => {
                wasmtime::bail!("component exports no `wasi:cli/run`")
            }
        }
    }

    /// What a guest's result means; a trap is explained on its stderr.
    pub(crate) async fn end_of(
        &self,
        result: wasmtime::Result<i32>,
        report: &mpsc::Sender<Chunk>,
    ) -> End {
        let error = match result {
            Ok(code) => return End::Exit(code),
            Err(error) => error,
        };
        if let Some(I32Exit(code)) = error.downcast_ref::<I32Exit>() {
            return End::Exit(*code);
        }
        if self.memory.is_crossed() {
            let _ = output::print(
                report,
                LogStream::Stderr,
                "wherry: memory limit crossed\n".into(),
            )
            .await;
            return End::Oom;
        }
        output::print(report, LogStream::Stderr, format!("wherry: {error:?}\n")).await;
        End::Trap(match error.downcast_ref::<wasmtime::Trap>() {
            Some(trap) => trap.to_string(),
            None => error.root_cause().to_string(),
        })
    }

    /// What the pod spec grants, as WASI.
    pub(crate) fn wasi(
        &self,
        args: &[String],
        output: mpsc::Sender<Chunk>,
        tty: bool,
    ) -> wasmtime::Result<WasiCtxBuilder> {
        let mut wasi = WasiCtx::builder();
        wasi.args(args).envs(&self.spec.env);
        if let Some(directory) = &self.spec.working_dir {
            wasi.initial_cwd(directory);
        }
        let stream = |stream| GuestOutput {
            sender: output.clone(),
            stream,
            is_terminal: tty,
        };
        wasi.stdout(stream(LogStream::Stdout))
            .stderr(stream(LogStream::Stderr));
        for (preopen, directory) in self.spec.preopens.iter().zip(lock(&self.preopens).iter()) {
            let permissions = if preopen.readonly {
                FsPerms::ReadOnly
            } else {
                FsPerms::ReadWrite
            };
            in_directory(directory, || {
                wasi.preopened_dir(".", &preopen.guest_path, permissions)
                    .map(|_| ())
            })??;
        }
        let pod = self.pod.clone();
        wasi.allow_tcp(true)
            .allow_udp(true)
            .allow_ip_name_lookup(true)
            .socket_addr_check(move |address, use_| {
                let is_allowed = pod.network.allows(address, use_);
                Box::pin(std::future::ready(is_allowed))
            });
        Ok(wasi)
    }

    /// Runs the module beside the app; answers how it ended.
    pub(crate) async fn exec(
        self: Arc<Self>,
        worker: Arc<Worker>,
        args: Vec<String>,
        streams: ExecStreams,
        cancel: CancellationToken,
    ) -> End {
        let ExecStreams {
            tty,
            stdin,
            client,
            terminal,
            guest,
        } = streams;
        let (sender, receiver) = output::channel();
        let is_interrupted = Arc::new(AtomicBool::new(false));
        let input = terminal.input().clone();
        let pump = tokio::spawn(output::pump_exec(receiver, client, tty.then_some(terminal)));
        let stdin = stdin.map(|socket| {
            let (echo, stop) = (tty.then(|| sender.clone()), cancel.clone());
            let is_interrupted = is_interrupted.clone();
            tokio::spawn(async move {
                if input.copy_from(socket, echo, stop.clone()).await == InputEnd::Interrupted {
                    is_interrupted.store(true, Ordering::Relaxed);
                    stop.cancel();
                }
                input.close().await;
            });
            guest
        });
        let (this, token) = (self.clone(), cancel.clone());
        let ran = worker.pool.spawn(self.cpu.clone(), async move {
            this.run_instance(args, stdin, sender, tty, token).await
        });
        let end = ran
            .await
            .unwrap_or_else(|_| End::Trap("host error while running the guest".into()));
        // Ends the copying of stdin, which holds a sender of the output's channel.
        cancel.cancel();
        let _ = pump.await;
        if end == End::Oom {
            self.end(&worker, End::Oom).await;
        }
        if end == End::Killed && is_interrupted.load(Ordering::Relaxed) {
            End::Interrupted
        } else {
            end
        }
    }

    /// The terminal of the client that is attached has this size now.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        self.terminal.resize(rows, columns);
    }

    /// Attaches a client to the app's streams.
    pub(crate) fn attach(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
        stdin: Option<tokio::net::UnixStream>,
        client: Client,
    ) {
        if client.stdout.is_some() || client.stderr.is_some() {
            self.clients.add(client);
        }
        if let Some(socket) = stdin {
            let (this, worker) = (self.clone(), worker.clone());
            tokio::spawn(async move {
                let echo = if this.spec.tty { this.output() } else { None };
                if this.stdin.copy_from(socket, echo, this.end.clone()).await
                    == InputEnd::Interrupted
                {
                    this.end(&worker, End::Interrupted).await;
                }
                if this.spec.stdin_once {
                    this.stdin.close().await;
                }
            });
        }
    }
}

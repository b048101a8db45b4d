//! The runtime: CRI's verbs over records and workers.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use tokio::{
    net::TcpStream,
    sync::{OnceCell, broadcast, mpsc, watch},
};
use wherry_images::StoredImage;
use wherry_runtime_api::{
    AttachRequest, ContainerConfig, ContainerExit, ContainerId, ContainerState, ContainerStats,
    ContainerStatus, Duplex, ExecRequest, ExecSyncResponse, LinuxResources, NamespaceMode,
    PodSandbox, PodSandboxConfig, PodSandboxId, PodSandboxState, Runtime, RuntimeError,
    RuntimeEvent, RuntimeFeatures, RuntimeStatus, SandboxNetwork, StreamSession,
};

use crate::{
    Config,
    aot::{Aot, Compiled},
    cgroup,
    client::Client,
    mounts,
    protocol::{ContainerReport, ContainerSpec, Event, NetworkPolicy, ReplyBody, RequestBody},
    record::{ContainerRecord, read_all, remove_directory, write_json},
    spec::{app_args, check, environment, exec_args, http_port, ignored, limits, new_worker},
    stream::{KillOnDrop, Streams, collect},
    userns,
    worker::{NewWorker, Worker, WorkerKey, lost_with_its_worker},
};

const HANDLER: &str = "wasm";
/// Events a slow subscriber may be behind before it loses the oldest.
const EVENTS_MAX: usize = 1024;
/// On top of a grace period: how long a worker may take to end a container.
const STOP_SLACK: Duration = Duration::from_secs(15);
/// Pauses between tries to reach a worker that lives and does not answer.
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(5);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long `open` waits for workers; those that take longer are found later.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Prefix of our leases in the image store.
const LEASE_PREFIX: &str = "wasm-";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The Wasm runtime.
pub struct WasmRuntime(Arc<Inner>);

impl WasmRuntime {
    /// Opens the runtime, finds what earlier agents left, and finishes what they left half done.
    pub async fn open(config: Config) -> Result<Arc<Self>, RuntimeError> {
        Ok(Arc::new(Self(Inner::open(config).await?)))
    }
}

struct Inner {
    config: Config,
    aot: Aot,
    user_namespace: OnceCell<Option<OwnedFd>>,
    sandboxes: Mutex<HashMap<PodSandboxId, PodSandbox>>,
    containers: Mutex<HashMap<ContainerId, Arc<Container>>>,
    /// Held while one is chosen, started or given up.
    workers: tokio::sync::Mutex<HashMap<String, Arc<Worker>>>,
    /// Serialises creation per (sandbox, name), so that a repeated call finds the first one's work.
    creating: Mutex<HashSet<CreateKey>>,
    created: tokio::sync::Notify,
    events: broadcast::Sender<RuntimeEvent>,
}

type CreateKey = (PodSandboxId, String, u32);

/// The right to create a container, until dropped.
struct Creating {
    inner: Arc<Inner>,
    key: CreateKey,
}

impl Drop for Creating {
    fn drop(&mut self) {
        lock(&self.inner.creating).remove(&self.key);
        self.inner.created.notify_waiters();
    }
}

struct Container {
    record: Mutex<ContainerRecord>,
    /// Its record is gone from disk; set and read under the record's lock, so that news of it that
    /// come late do not write it again.
    is_forgotten: AtomicBool,
    state: watch::Sender<ContainerState>,
    worker: Arc<Worker>,
}

impl Container {
    fn record(&self) -> ContainerRecord {
        lock(&self.record).clone()
    }
}

impl Inner {
    async fn open(config: Config) -> Result<Arc<Self>, RuntimeError> {
        for directory in [
            config.root.join("wasm/sandboxes"),
            config.root.join("wasm/containers"),
        ] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&directory)
                .map_err(RuntimeError::io(directory.display().to_string()))?;
        }
        let aot = Aot::open(&config).map_err(RuntimeError::io("compiled modules"))?;
        let runtime = Arc::new(Self {
            aot,
            user_namespace: OnceCell::new(),
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            workers: tokio::sync::Mutex::default(),
            creating: Mutex::default(),
            created: tokio::sync::Notify::new(),
            events: broadcast::Sender::new(EVENTS_MAX),
            config,
        });
        runtime.recover().await?;
        Ok(runtime)
    }

    fn sandbox_directory(&self, id: &PodSandboxId) -> PathBuf {
        self.config.root.join("wasm/sandboxes").join(id)
    }

    fn container_directory(&self, id: &ContainerId) -> PathBuf {
        self.config.root.join("wasm/containers").join(id)
    }

    async fn recover(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let failed = || RuntimeError::io("wasm records");
        let root = self.config.root.join("wasm");
        for (_, sandbox) in
            read_all::<PodSandbox>(&root.join("sandboxes"), "sandbox.json").map_err(failed())?
        {
            lock(&self.sandboxes).insert(sandbox.id.clone(), sandbox);
        }
        let records = read_all::<ContainerRecord>(&root.join("containers"), "container.json")
            .map_err(failed())?;
        let found = Worker::find_all(&self.config).map_err(failed())?;
        for name in cgroup::workers(&self.config.cgroup_root) {
            if !found.iter().any(|worker| worker.id == name) {
                cgroup::remove(&self.config.cgroup_root, &name);
            }
        }
        let mut connecting = Vec::new();
        {
            let mut workers = self.workers.lock().await;
            for worker in found {
                workers.insert(worker.id.clone(), worker);
            }
            for (_, record) in records {
                let worker = match workers.get(&record.worker) {
                    Some(worker) => worker.clone(),
                    None => {
                        self.forget_record(&record.id);
                        continue;
                    }
                };
                worker.assign();
                let state = watch::Sender::new(record.state());
                let id = record.id.clone();
                lock(&self.containers).insert(
                    id,
                    Arc::new(Container {
                        record: Mutex::new(record),
                        is_forgotten: AtomicBool::new(false),
                        state,
                        worker,
                    }),
                );
            }
            for worker in workers.values() {
                let (done, is_done) = tokio::sync::oneshot::channel();
                tokio::spawn(self.clone().attend(worker.clone(), Some(done)));
                connecting.push(is_done);
            }
        }
        let all = futures::future::join_all(connecting);
        if tokio::time::timeout(RECOVERY_TIMEOUT, all).await.is_err() {
            tracing::warn!("Some wasm workers do not answer yet");
        }
        let holders: HashSet<String> = lock(&self.containers)
            .keys()
            .map(|id| format!("{LEASE_PREFIX}{id}"))
            .collect();
        for (holder, _) in self.config.images.leases().unwrap_or_default() {
            if holder.starts_with(LEASE_PREFIX) && !holders.contains(&holder) {
                let _ = self.config.images.release(&holder);
            }
        }
        Ok(())
    }

    /// Stays connected to a worker until it is gone, and clears up after it. Says `ready` once what
    /// it holds is known.
    async fn attend(
        self: Arc<Self>,
        worker: Arc<Worker>,
        mut ready: Option<tokio::sync::oneshot::Sender<()>>,
    ) {
        let mut pause = RECONNECT_PAUSE_MIN;
        while worker.is_alive() {
            match Client::connect(&worker.id, &worker.socket()).await {
                Ok((client, reports, events)) => {
                    pause = RECONNECT_PAUSE_MIN;
                    worker.set_client(Some(client));
                    self.reconcile(&worker, reports).await;
                    if let Some(ready) = ready.take() {
                        let _ = ready.send(());
                    }
                    self.clone().retire_if_unused(&worker, true).await;
                    self.follow(&worker, events).await;
                    worker.set_client(None);
                }
                Err(error) => {
                    tracing::debug!(worker = %worker.id, %error, "Wasm worker does not answer")
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_PAUSE_MAX);
        }
        self.bury(&worker).await;
        if let Some(ready) = ready.take() {
            let _ = ready.send(());
        }
    }

    async fn follow(self: &Arc<Self>, worker: &Arc<Worker>, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Exited(record) => self.record_exit(&record.id.into(), record.exit),
                Event::LogFull { id } => {
                    let id = ContainerId::from(id);
                    if let Err(error) = self.rotate_log(worker, &id).await {
                        tracing::warn!(container = %id, %error, "Log cannot be rotated");
                    }
                }
                Event::ExecExited { .. } => {}
            }
        }
    }

    /// Brings records and a worker in line.
    async fn reconcile(self: &Arc<Self>, worker: &Arc<Worker>, reports: Vec<ContainerReport>) {
        let ours = self.containers_of(worker);
        let held: HashSet<ContainerId> = reports
            .iter()
            .map(|report| report.id.as_str().into())
            .collect();
        for report in reports {
            let id = ContainerId::from(report.id);
            match (ours.get(&id), report.exit) {
                (Some(_), Some(exit)) => self.record_exit(&id, exit),
                (Some(container), None) => {
                    if let Some(started_at) = report.started_at {
                        self.record_start(container, started_at);
                    }
                }
                // Its record is gone: it was being removed.
                (None, _) => {
                    if let Ok(client) = worker.client() {
                        let _ = client
                            .ask(RequestBody::Remove { id: id.to_string() }, &[])
                            .await;
                    }
                }
            }
        }
        for (id, container) in ours {
            let record = container.record();
            if !held.contains(&id) && record.exit.is_none() {
                if record.started_at.is_some() {
                    self.record_exit(&id, lost_with_its_worker(&id, record.started_at));
                } else {
                    // It was being made; whoever asked asks again.
                    self.forget(&id, &container).await;
                }
            }
        }
    }

    fn containers_of(&self, worker: &Arc<Worker>) -> HashMap<ContainerId, Arc<Container>> {
        let containers = lock(&self.containers);
        let ours = containers
            .iter()
            .filter(|(_, container)| container.worker.id == worker.id);
        ours.map(|(id, container)| (id.clone(), container.clone()))
            .collect()
    }

    /// A worker is dead: its containers are too.
    async fn bury(self: &Arc<Self>, worker: &Arc<Worker>) {
        self.workers.lock().await.remove(&worker.id);
        for exit in worker.exits() {
            self.record_exit(&exit.id.into(), exit.exit);
        }
        for (id, container) in self.containers_of(worker) {
            let record = container.record();
            if record.exit.is_some() {
                continue;
            }
            if record.started_at.is_some() {
                self.record_exit(&id, lost_with_its_worker(&id, record.started_at));
            } else {
                self.forget(&id, &container).await;
            }
        }
        if let Err(error) = worker.clear_away(&self.config).await {
            tracing::warn!(worker = %worker.id, %error, "What a wasm worker left cannot be removed");
        }
    }

    fn record_start(&self, container: &Container, started_at: SystemTime) {
        let mut record = lock(&container.record);
        let is_forgotten = container.is_forgotten.load(Ordering::Relaxed);
        if record.started_at.is_some() || record.exit.is_some() || is_forgotten {
            return;
        }
        record.started_at = Some(started_at);
        self.write_record(&record);
        container.state.send_replace(record.state());
        let event = RuntimeEvent::ContainerStarted {
            pod: record.pod.clone(),
            id: record.id.clone(),
        };
        drop(record);
        let _ = self.events.send(event);
    }

    fn record_exit(&self, id: &ContainerId, exit: ContainerExit) {
        let Some(container) = self.find(id) else {
            return;
        };
        // The exit of a short-lived app can overtake the answer to its start.
        if let Some(started_at) = exit.started_at {
            self.record_start(&container, started_at);
        }
        let mut record = lock(&container.record);
        if record.exit.is_some() || container.is_forgotten.load(Ordering::Relaxed) {
            return;
        }
        record.exit = Some(exit);
        self.write_record(&record);
        container.state.send_replace(record.state());
        let event = RuntimeEvent::ContainerExited {
            pod: record.pod.clone(),
            id: id.clone(),
        };
        drop(record);
        let _ = self.events.send(event);
    }

    fn find(&self, id: &ContainerId) -> Option<Arc<Container>> {
        lock(&self.containers).get(id).cloned()
    }

    fn write_record(&self, record: &ContainerRecord) {
        let path = self.container_directory(&record.id).join("container.json");
        if let Err(error) = write_json(&path, record) {
            tracing::warn!(container = %record.id, %error, "Record cannot be written");
        }
    }

    fn forget_record(&self, id: &ContainerId) {
        let _ = self.config.images.release(&format!("{LEASE_PREFIX}{id}"));
        if let Err(error) = remove_directory(&self.container_directory(id)) {
            tracing::warn!(container = %id, %error, "Record cannot be removed");
        }
    }

    /// Removes a container that no worker holds.
    async fn forget(self: &Arc<Self>, id: &ContainerId, container: &Container) {
        if lock(&self.containers).remove(id).is_none() {
            return;
        }
        {
            let _record = lock(&container.record);
            container.is_forgotten.store(true, Ordering::Relaxed);
            self.forget_record(id);
        }
        if container.worker.unassign() {
            self.clone()
                .retire_if_unused(&container.worker, false)
                .await;
        }
    }

    /// Ends a worker nobody needs: a pod's at once, a tenant's after a while.
    async fn retire_if_unused(self: Arc<Self>, worker: &Arc<Worker>, is_found: bool) {
        if !worker.is_unused() {
            return;
        }
        match worker.key {
            WorkerKey::Pod { .. } => self.retire(worker).await,
            // Found without containers: younger than its idle time, but who knows how much.
            WorkerKey::Tenant { .. } if is_found && self.config.worker_idle_max.is_zero() => {
                self.retire(worker).await
            }
            WorkerKey::Tenant { .. } => {
                let worker = worker.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(self.config.worker_idle_max).await;
                    self.retire(&worker).await;
                });
            }
        }
    }

    async fn retire(&self, worker: &Arc<Worker>) {
        let mut workers = self.workers.lock().await;
        if worker.is_unused()
            && let Ok(client) = worker.client()
            && client.ask(RequestBody::Shutdown, &[]).await.is_ok()
        {
            workers.remove(&worker.id);
        }
    }

    /// A connected worker for a container, which is counted as assigned from here on.
    async fn worker_for(
        self: &Arc<Self>,
        new: NewWorker<'_>,
        engine: &str,
    ) -> Result<(Arc<Worker>, Arc<Client>), RuntimeError> {
        let mut workers = self.workers.lock().await;
        for worker in workers.values() {
            let assigned = worker.assigned.load(Ordering::SeqCst);
            if worker.key == new.key
                && assigned < self.config.instances_per_worker_max as usize
                && let Ok(client) = worker.client()
                && client.engine == engine
            {
                worker.assign();
                return Ok((worker.clone(), client));
            }
        }
        let worker = Worker::start(&self.config, new).await?;
        worker.assign();
        workers.insert(worker.id.clone(), worker.clone());
        drop(workers);
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        tokio::spawn(self.clone().attend(worker.clone(), Some(ready)));
        let _ = is_ready.await;
        match worker.client() {
            Ok(client) => Ok((worker, client)),
            Err(error) => {
                worker.unassign();
                Err(error)
            }
        }
    }

    fn container(&self, id: &ContainerId) -> Result<Arc<Container>, RuntimeError> {
        self.find(id)
            .ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
    }

    async fn user_namespace(&self) -> Option<BorrowedFd<'_>> {
        let make = async || match userns::make(
            &self.config.exe,
            self.config.worker_uid,
            self.config.worker_gid,
        )
        .await
        {
            Ok(namespace) => Some(namespace),
            Err(error) => {
                tracing::warn!(%error, "No user namespace: components use mounts as an unprivileged user");
                None
            }
        };
        self.user_namespace
            .get_or_init(make)
            .await
            .as_ref()
            .map(AsFd::as_fd)
    }

    async fn image(
        &self,
        config: &ContainerConfig,
    ) -> Result<(StoredImage, Compiled), RuntimeError> {
        let found = self
            .config
            .images
            .image(&config.image_id)
            .map_err(|error| RuntimeError::Internal(error.to_string()))?;
        let image = found.ok_or_else(|| RuntimeError::ImageNotFound(config.image.clone()))?;
        let Some(wasm) = image.wasm.clone() else {
            return Err(RuntimeError::InvalidArgument(format!(
                "image {} holds no Wasm module",
                config.image
            )));
        };
        let key = image
            .wasm_key
            .clone()
            .unwrap_or_else(|| image.image.id.clone());
        let compiled = self.aot.compile(&config.image, &key, &wasm).await?;
        Ok((image, compiled))
    }

    async fn create(
        self: &Arc<Self>,
        sandbox: &PodSandbox,
        config: &ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        check(config)?;
        self.check_ready(sandbox)?;
        let (image, user_namespace) = tokio::join!(self.image(config), self.user_namespace());
        let (image, compiled) = image?;
        let args = app_args(&image, config);
        let id = ContainerId::new(uuid::Uuid::new_v4().simple().to_string());
        let preopens = mounts::preopens(&config.mounts, user_namespace)?;
        let module_directory = open_module(&compiled.directory)?;
        let log = open_log(&config.log_path)?;
        let record = ContainerRecord {
            id: id.clone(),
            sandbox: sandbox.id.clone(),
            pod: sandbox.config.uid.clone(),
            config: config.clone(),
            worker: String::new(),
            program: args.first().cloned().unwrap_or_default(),
            created_at: SystemTime::now(),
            started_at: None,
            exit: None,
            warnings: [ignored(config), preopens.warnings].concat(),
        };
        let spec = ContainerSpec {
            id: id.to_string(),
            module: compiled.name,
            kind: compiled.kind,
            args,
            env: environment(&image, config),
            working_dir: config
                .working_dir
                .clone()
                .or_else(|| image.config.working_dir.clone()),
            preopens: preopens.names,
            network: match sandbox.network {
                SandboxNetwork::Confined => NetworkPolicy::Confined(sandbox.ips.clone()),
                _ => NetworkPolicy::Open,
            },
            http_port: http_port(config)?,
            limits: limits(&config.resources),
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            tty: config.tty,
            log_size_bytes_max: config.log_rotation.size_bytes_max,
        };
        let engine = self.aot.engine().await?;
        let (worker, client) = self.worker_for(new_worker(sandbox, config), engine).await?;
        let record = ContainerRecord {
            worker: worker.id.clone(),
            ..record
        };
        let state = watch::Sender::new(record.state());
        let container = Arc::new(Container {
            record: Mutex::new(record.clone()),
            is_forgotten: AtomicBool::new(false),
            state,
            worker,
        });
        let made = async {
            let directory = self.container_directory(&id);
            let failed = || RuntimeError::io(format!("container {id}: record"));
            std::fs::create_dir(&directory).map_err(failed())?;
            write_json(&directory.join("container.json"), &record).map_err(failed())?;
            lock(&self.containers).insert(id.clone(), container.clone());
            // A stop that came meanwhile did not see the container.
            self.check_ready(sandbox)?;
            self.config
                .images
                .lease(&config.image_id, &format!("{LEASE_PREFIX}{id}"))
                .map_err(|error| RuntimeError::Internal(error.to_string()))?;
            let mut descriptors = vec![module_directory.as_fd(), log.as_fd()];
            descriptors.extend(preopens.directories.iter().map(AsFd::as_fd));
            client
                .ask(RequestBody::Create(Box::new(spec)), &descriptors)
                .await
        };
        if let Err(error) = made.await {
            // Also when the worker made it and could not say so.
            let _ = client
                .ask(RequestBody::Remove { id: id.to_string() }, &[])
                .await;
            lock(&self.containers).insert(id.clone(), container.clone());
            self.forget(&id, &container).await;
            return Err(error);
        }
        Ok(id)
    }

    /// That containers can be created in a sandbox. Of another runtime's, only its maker knows.
    fn check_ready(&self, sandbox: &PodSandbox) -> Result<(), RuntimeError> {
        let state = if sandbox.handler == HANDLER {
            let sandboxes = lock(&self.sandboxes);
            let known = sandboxes.get(&sandbox.id).map(|known| known.state);
            known.ok_or_else(|| RuntimeError::NotFound(format!("sandbox {}", sandbox.id)))?
        } else {
            sandbox.state
        };
        match state {
            PodSandboxState::Ready => Ok(()),
            PodSandboxState::NotReady => Err(RuntimeError::FailedPrecondition(format!(
                "sandbox {} is not ready",
                sandbox.id
            ))),
        }
    }

    fn find_created(
        &self,
        sandbox: &PodSandboxId,
        config: &ContainerConfig,
    ) -> Option<ContainerId> {
        let containers = lock(&self.containers);
        containers.iter().find_map(|(id, container)| {
            let record = lock(&container.record);
            let is_same = record.sandbox == *sandbox
                && record.config.name == config.name
                && record.config.attempt == config.attempt;
            is_same.then(|| id.clone())
        })
    }

    /// Renames a log that has outgrown its size, drops the oldest, and opens a new one.
    async fn rotate_log(&self, worker: &Arc<Worker>, id: &ContainerId) -> Result<(), RuntimeError> {
        let config = self.container(id)?.record().config;
        let path = &config.log_path;
        rotate(path, config.log_rotation.files_max)
            .map_err(RuntimeError::io(path.display().to_string()))?;
        let log = open_log(path)?;
        worker
            .client()?
            .ask(
                RequestBody::ReopenLog { id: id.to_string() },
                &[log.as_fd()],
            )
            .await?;
        Ok(())
    }

    /// Waits for a container's exit code.
    async fn wait_exit(mut state: watch::Receiver<ContainerState>) -> Result<i32, RuntimeError> {
        let exited = state
            .wait_for(|state| matches!(state, ContainerState::Exited(_)))
            .await;
        match exited.as_deref() {
            Ok(ContainerState::Exited(exit)) => Ok(exit.exit_code),
            _ => Err(RuntimeError::NotFound("container".into())),
        }
    }

    /// The worker of a container that runs now.
    fn running(&self, id: &ContainerId) -> Result<(Arc<Container>, Arc<Client>), RuntimeError> {
        let container = self.container(id)?;
        if !matches!(
            lock(&container.record).state(),
            ContainerState::Running { .. }
        ) {
            return Err(RuntimeError::FailedPrecondition(format!(
                "container {id} is not running"
            )));
        }
        let client = container.worker.client()?;
        Ok((container, client))
    }
}

/// The directory of the machine code, from which no way leads anywhere else.
fn open_module(directory: &Path) -> Result<OwnedFd, RuntimeError> {
    mounts::copy_of_code(directory)
        .or_else(|_| File::open(directory).map(OwnedFd::from))
        .map_err(RuntimeError::io("compiled module"))
}

fn open_log(path: &Path) -> Result<File, RuntimeError> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o640);
    options
        .open(path)
        .map_err(RuntimeError::io(format!("log {}", path.display())))
}

/// Renames `0.log` to `0.log.<time>` and removes the oldest, `files_max` being left with a new one.
fn rotate(path: &Path, files_max: u32) -> io::Result<()> {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut rotated = path.as_os_str().to_owned();
    rotated.push(format!(".{:020}", since.as_nanos()));
    std::fs::rename(path, &rotated)?;
    let (Some(directory), Some(name)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Ok(());
    };
    let prefix = format!("{name}.");
    let mut old: Vec<PathBuf> = std::fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(&prefix))
        })
        .collect();
    old.sort();
    let keep = (files_max.max(2) - 1) as usize;
    for path in &old[..old.len().saturating_sub(keep)] {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

#[async_trait]
impl Runtime for WasmRuntime {
    fn handler(&self) -> &'static str {
        HANDLER
    }

    async fn status(&self) -> RuntimeStatus {
        RuntimeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            not_ready: None,
            features: RuntimeFeatures::default(),
        }
    }

    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<PodSandbox, RuntimeError> {
        let mut sandboxes = lock(&self.0.sandboxes);
        let found = sandboxes.values().find(|sandbox| {
            sandbox.state == PodSandboxState::Ready
                && sandbox.config.uid == config.uid
                && sandbox.config.attempt == config.attempt
        });
        if let Some(sandbox) = found {
            return Ok(sandbox.clone());
        }
        let sandbox = PodSandbox {
            id: PodSandboxId::new(uuid::Uuid::new_v4().simple().to_string()),
            handler: HANDLER.to_owned(),
            config: config.clone(),
            state: PodSandboxState::Ready,
            created_at: SystemTime::now(),
            network: match config.namespaces.network {
                NamespaceMode::Node => SandboxNetwork::Host,
                _ => SandboxNetwork::Confined,
            },
            ips: Vec::new(),
            pid: None,
        };
        let directory = self.0.sandbox_directory(&sandbox.id);
        let failed = || RuntimeError::io(format!("sandbox {}", sandbox.id));
        std::fs::create_dir(&directory).map_err(failed())?;
        write_json(&directory.join("sandbox.json"), &sandbox).map_err(failed())?;
        sandboxes.insert(sandbox.id.clone(), sandbox.clone());
        Ok(sandbox)
    }

    async fn stop_pod_sandbox(&self, id: &PodSandboxId) -> Result<(), RuntimeError> {
        {
            let mut sandboxes = lock(&self.0.sandboxes);
            if let Some(sandbox) = sandboxes.get_mut(id)
                && sandbox.state == PodSandboxState::Ready
            {
                sandbox.state = PodSandboxState::NotReady;
                write_json(&self.0.sandbox_directory(id).join("sandbox.json"), sandbox)
                    .map_err(RuntimeError::io(format!("sandbox {id}")))?;
            }
        }
        for container in self.0.containers_in(id) {
            self.stop_container(&container, Duration::ZERO).await?;
        }
        Ok(())
    }

    async fn remove_pod_sandbox(&self, id: &PodSandboxId) -> Result<(), RuntimeError> {
        self.stop_pod_sandbox(id).await?;
        for container in self.0.containers_in(id) {
            self.remove_container(&container).await?;
        }
        remove_directory(&self.0.sandbox_directory(id))
            .map_err(RuntimeError::io(format!("sandbox {id}")))?;
        lock(&self.0.sandboxes).remove(id);
        Ok(())
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>, RuntimeError> {
        Ok(lock(&self.0.sandboxes).values().cloned().collect())
    }

    async fn create_container(
        &self,
        sandbox: &PodSandbox,
        config: &ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let key = (sandbox.id.clone(), config.name.clone(), config.attempt);
        let turn = loop {
            let done = self.0.created.notified();
            if lock(&self.0.creating).insert(key.clone()) {
                break Creating {
                    inner: self.0.clone(),
                    key,
                };
            }
            done.await;
        };
        if let Some(id) = self.0.find_created(&sandbox.id, config) {
            return Ok(id);
        }
        // In a task of its own: a caller that goes away leaves no half of a message on the socket.
        let (this, sandbox, config) = (self.0.clone(), sandbox.clone(), config.clone());
        let created = tokio::spawn(async move {
            let _turn = turn;
            this.create(&sandbox, &config).await
        });
        created.await.unwrap_or_else(|error| {
            Err(RuntimeError::Internal(format!("create container: {error}")))
        })
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let container = self.0.container(id)?;
        if !matches!(lock(&container.record).state(), ContainerState::Created) {
            return Ok(());
        }
        let (reply, _) = container
            .worker
            .client()?
            .ask(RequestBody::Start { id: id.to_string() }, &[])
            .await?;
        if let ReplyBody::Started { at } = reply {
            self.0.record_start(&container, at);
        }
        Ok(())
    }

    async fn stop_container(
        &self,
        id: &ContainerId,
        grace_period: Duration,
    ) -> Result<(), RuntimeError> {
        let Ok(container) = self.0.container(id) else {
            return Ok(());
        };
        let mut state = container.state.subscribe();
        if matches!(*state.borrow(), ContainerState::Exited(_)) {
            return Ok(());
        }
        let grace_ms = u64::try_from(grace_period.as_millis()).unwrap_or(u64::MAX);
        match container.worker.client() {
            Ok(client) => match client
                .ask(
                    RequestBody::Stop {
                        id: id.to_string(),
                        grace_ms,
                    },
                    &[],
                )
                .await
            {
                Ok(_) | Err(RuntimeError::NotFound(_)) => {}
                Err(error) => return Err(error),
            },
            // A worker that is gone is found to be so elsewhere; that ends the container, too.
            Err(error) if container.worker.is_alive() => return Err(error),
            Err(_) => {}
        }
        let after = grace_period + STOP_SLACK;
        let exited = state.wait_for(|state| matches!(state, ContainerState::Exited(_)));
        match tokio::time::timeout(after, exited).await {
            Ok(_) => Ok(()),
            Err(_) => Err(RuntimeError::DeadlineExceeded {
                what: format!("stop container {id}"),
                after,
            }),
        }
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let Ok(container) = self.0.container(id) else {
            return Ok(());
        };
        match container.worker.client() {
            Ok(client) => {
                client
                    .ask(RequestBody::Remove { id: id.to_string() }, &[])
                    .await?;
            }
            Err(error) if container.worker.is_alive() => return Err(error),
            Err(_) => {}
        }
        self.0.forget(id, &container).await;
        Ok(())
    }

    async fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError> {
        Ok(lock(&self.0.container(id)?.record).status(HANDLER))
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(lock(&self.0.containers)
            .values()
            .map(|container| lock(&container.record).status(HANDLER))
            .collect())
    }

    async fn update_container_resources(
        &self,
        id: &ContainerId,
        resources: &LinuxResources,
    ) -> Result<(), RuntimeError> {
        let container = self.0.container(id)?;
        if !matches!(lock(&container.record).state(), ContainerState::Exited(_)) {
            let body = RequestBody::Update {
                id: id.to_string(),
                limits: limits(resources),
            };
            container.worker.client()?.ask(body, &[]).await?;
        }
        let mut record = lock(&container.record);
        if container.is_forgotten.load(Ordering::Relaxed) {
            return Ok(());
        }
        record.config.resources = resources.clone();
        self.0.write_record(&record);
        Ok(())
    }

    /// What is kept: a pod of Wasm containers alone has no cgroup, each container has its own limits.
    async fn update_pod_sandbox_resources(
        &self,
        id: &PodSandboxId,
        resources: &LinuxResources,
    ) -> Result<(), RuntimeError> {
        let mut sandboxes = lock(&self.0.sandboxes);
        let sandbox = sandboxes
            .get_mut(id)
            .ok_or_else(|| RuntimeError::NotFound(format!("sandbox {id}")))?;
        sandbox.config.resources = resources.clone();
        write_json(&self.0.sandbox_directory(id).join("sandbox.json"), sandbox)
            .map_err(RuntimeError::io(format!("sandbox {id}")))
    }

    fn subscribe(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.0.events.subscribe()
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecSyncResponse, RuntimeError> {
        let request = ExecRequest {
            command: command.to_vec(),
            tty: false,
            stdin: false,
            stdout: true,
            stderr: true,
        };
        let session = self.exec(id, &request).await?;
        collect(
            &format!("exec {} in container {id}", command.join(" ")),
            session,
            timeout,
        )
        .await
    }

    async fn exec(
        &self,
        id: &ContainerId,
        request: &ExecRequest,
    ) -> Result<StreamSession, RuntimeError> {
        let (container, client) = self.0.running(id)?;
        let streams = Streams::open(
            request.stdin,
            request.stdout,
            request.stderr && !request.tty,
        )?;
        let (exec, exited) = client.register_exec();
        let mut guard = KillOnDrop::new(client.clone(), exec);
        let args = exec_args(&lock(&container.record).program, &request.command);
        let body = RequestBody::Exec {
            id: id.to_string(),
            exec,
            args,
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr && !request.tty,
        };
        client.ask(body, &streams.theirs()).await?;
        let lost = format!("exec in container {id}: the wasm worker is gone");
        Ok(streams.into_session(request.tty, async move {
            let exited = exited.await;
            guard.disarm();
            exited
                .map(|(code, _)| code)
                .map_err(|_| RuntimeError::Unavailable(lost))
        }))
    }

    async fn attach(
        &self,
        id: &ContainerId,
        request: &AttachRequest,
    ) -> Result<StreamSession, RuntimeError> {
        let (container, client) = self.0.running(id)?;
        let tty = lock(&container.record).config.tty;
        let streams = Streams::open(request.stdin, request.stdout, request.stderr && !tty)?;
        let body = RequestBody::Attach {
            id: id.to_string(),
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr && !tty,
        };
        client.ask(body, &streams.theirs()).await?;
        Ok(streams.into_session(tty, Inner::wait_exit(container.state.subscribe())))
    }

    async fn port_forward(
        &self,
        sandbox: &PodSandbox,
        port: u16,
    ) -> Result<Box<dyn Duplex>, RuntimeError> {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let ip = match &sandbox.network {
            SandboxNetwork::Confined => *sandbox.ips.first().ok_or_else(|| {
                RuntimeError::FailedPrecondition(format!("sandbox {} has no address", sandbox.id))
            })?,
            SandboxNetwork::Host => loopback,
            SandboxNetwork::Namespace { .. } => {
                let key = WorkerKey::Pod {
                    sandbox: sandbox.id.to_string(),
                };
                let workers = self.0.workers.lock().await;
                let Some(worker) = workers.values().find(|worker| worker.key == key).cloned()
                else {
                    let message = format!("sandbox {} holds no Wasm container", sandbox.id);
                    return Err(RuntimeError::FailedPrecondition(message));
                };
                drop(workers);
                let (_, sockets) = worker
                    .client()?
                    .ask(RequestBody::Connect { ip: loopback, port }, &[])
                    .await?;
                let open = |socket: OwnedFd| {
                    let stream = std::net::TcpStream::from(socket);
                    stream.set_nonblocking(true)?;
                    TcpStream::from_std(stream)
                };
                let missing = || io::Error::new(io::ErrorKind::InvalidData, "no socket came");
                let stream = sockets
                    .into_iter()
                    .next()
                    .ok_or_else(missing)
                    .and_then(open);
                return Ok(Box::new(
                    stream.map_err(RuntimeError::io(format!("port {port}")))?,
                ));
            }
        };
        let address = SocketAddr::new(ip, port);
        let stream = TcpStream::connect(address).await;
        Ok(Box::new(
            stream.map_err(RuntimeError::io(format!("connect {address}")))?,
        ))
    }

    async fn reopen_container_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let container = self.0.container(id)?;
        if matches!(lock(&container.record).state(), ContainerState::Exited(_)) {
            return Ok(());
        }
        let log = open_log(&lock(&container.record).config.log_path)?;
        container
            .worker
            .client()?
            .ask(
                RequestBody::ReopenLog { id: id.to_string() },
                &[log.as_fd()],
            )
            .await?;
        Ok(())
    }

    async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        let container = self.0.container(id)?;
        if !matches!(
            lock(&container.record).state(),
            ContainerState::Running { .. }
        ) {
            return Err(RuntimeError::NotFound(format!(
                "container {id}: running app"
            )));
        }
        let (reply, _) = container
            .worker
            .client()?
            .ask(RequestBody::Stats { id: id.to_string() }, &[])
            .await?;
        let ReplyBody::Stats(usage) = reply else {
            return Err(RuntimeError::Internal(format!(
                "container {id}: not an answer to stats"
            )));
        };
        Ok(ContainerStats {
            at: SystemTime::now(),
            cpu_usage_core_nanoseconds: usage.cpu_ns,
            memory_usage_bytes: usage.memory_bytes,
            memory_working_set_bytes: usage.memory_bytes,
            memory_rss_bytes: usage.memory_bytes,
            process_count: usage.instances,
            ..ContainerStats::default()
        })
    }
}

impl Inner {
    fn containers_in(&self, sandbox: &PodSandboxId) -> Vec<ContainerId> {
        let containers = lock(&self.containers);
        let inside = containers
            .iter()
            .filter(|(_, container)| lock(&container.record).sandbox == *sandbox);
        inside.map(|(id, _)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotating_keeps_the_newest_and_touches_no_other_file() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        std::fs::write(directory.path().join("10.log"), "another attempt's").unwrap();
        for n in 0..5 {
            std::fs::write(&log, format!("{n}")).unwrap();
            rotate(&log, 3).unwrap();
        }
        let mut names: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        let contents: Vec<_> = names
            .iter()
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect();
        assert_eq!(contents, ["3", "4", "another attempt's"]);
    }
}

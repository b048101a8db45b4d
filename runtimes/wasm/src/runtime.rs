//! The runtime: CRI's verbs over records and workers.

mod create;
mod log;
mod records;
mod recovery;
mod workers;

use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{
        fd::{AsFd, OwnedFd},
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
    sync::{broadcast, mpsc, watch},
};
use wherry_images::StoredImage;
use wherry_runtime_api::{
    AttachRequest, ContainerConfig, ContainerExit, ContainerId, ContainerState, ContainerStats,
    ContainerStatus, Duplex, ExecRequest, ExecSyncResponse, LinuxResources, NamespaceMode,
    PodSandbox, PodSandboxConfig, PodSandboxId, PodSandboxState, Runtime, RuntimeError,
    RuntimeEvent, RuntimeFeatures, RuntimeStatus, SandboxNetwork, StreamSession,
};
use wherry_wasm_aot::{Aot, Compiled, Purpose};

use self::log::open_log;
use crate::{
    Config, cgroup,
    client::Client,
    identity::Identity,
    mounts,
    protocol::{ContainerReport, ContainerSpec, Event, NetworkPolicy, ReplyBody, RequestBody},
    record::{ContainerRecord, read_all, remove_directory, write_json},
    spec::{
        app_args, check, check_sandbox, environment, etc, exec_args, http_ports, ignored, limits,
        new_worker,
    },
    stream::{KillOnDrop, Resized, Streams},
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
/// User namespaces kept for the next container of the same user; most pods have one of few.
const USER_NAMESPACES_MAX: usize = 256;
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

/// By user and group; `None` where it could not be made.
type UserNamespaces = HashMap<(u32, u32), Option<Arc<OwnedFd>>>;

struct Inner {
    config: Config,
    /// Where the runtime was opened: what it does beyond a call lives and ends with that, not with whoever called.
    tasks: tokio::runtime::Handle,
    aot: Aot,
    user_namespaces: tokio::sync::Mutex<UserNamespaces>,
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
        let aot = Aot::open(
            config.root.join("wasm/cache"),
            config.run.join("wasm/empty"),
            config.exe.clone(),
            (config.worker_uid, config.worker_gid),
            Purpose::Container,
        )
        .map_err(RuntimeError::io("compiled modules"))?;
        let runtime = Arc::new(Self {
            aot,
            user_namespaces: tokio::sync::Mutex::default(),
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            workers: tokio::sync::Mutex::default(),
            creating: Mutex::default(),
            created: tokio::sync::Notify::new(),
            events: broadcast::Sender::new(EVENTS_MAX),
            tasks: tokio::runtime::Handle::current(),
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

    fn container(&self, id: &ContainerId) -> Result<Arc<Container>, RuntimeError> {
        self.find(id)
            .ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
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

#[async_trait]
impl Runtime for WasmRuntime {
    fn handler(&self) -> &'static str {
        HANDLER
    }

    async fn status(&self) -> RuntimeStatus {
        RuntimeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            not_ready: None,
            features: RuntimeFeatures {
                // No IDs of the node's are in a component's reach, with or without.
                user_namespaces: true,
                recursive_readonly_mounts: true,
            },
        }
    }

    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<PodSandbox, RuntimeError> {
        check_sandbox(config)?;
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
        if config.isolated
            && let Err(error) = cgroup::make_pod(&config.cgroup_parent, &config.resources)
        {
            tracing::warn!(cgroup = %config.cgroup_parent, %error, "Pod without limits of its own");
        }
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
        self.0.remove_cgroup(id).await?;
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
        let created = self.0.tasks.spawn(async move {
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
        if matches!(lock(&container.record).state(), ContainerState::Exited(_)) {
            return Err(RuntimeError::FailedPrecondition(format!(
                "container {id} has exited"
            )));
        }
        let body = RequestBody::Update {
            id: id.to_string(),
            limits: limits(resources),
        };
        container.worker.client()?.ask(body, &[]).await?;
        let mut record = lock(&container.record);
        if container.is_forgotten.load(Ordering::Relaxed) {
            return Ok(());
        }
        record.config.resources = resources.clone();
        self.0.write_record(&record);
        drop(record);
        self.0.weigh(&container.worker);
        Ok(())
    }

    /// A pod of Wasm containers alone has a cgroup only if it is isolated; else what is asked is kept,
    /// and each container has its own limits.
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
        if sandbox.config.isolated {
            let path = &sandbox.config.cgroup_parent;
            cgroup::make_pod(path, resources)
                .map_err(RuntimeError::io(format!("cgroup {path}")))?;
        }
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
        let run = async {
            let session = self.exec(id, &ExecRequest::sync(command)).await?;
            ExecSyncResponse::collect(session.stdout, session.stderr, session.exit).await
        };
        ExecSyncResponse::within(timeout, command, run).await
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
        let resized = request.tty.then(|| Resized {
            client: client.clone(),
            container: id.clone(),
            exec: Some(exec),
        });
        Ok(streams.into_session(resized, async move {
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
        let resized = tty.then(|| Resized {
            client,
            container: id.clone(),
            exec: None,
        });
        Ok(streams.into_session(resized, Inner::wait_exit(container.state.subscribe())))
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
        let limits = lock(&container.record).config.resources.clone();
        Ok(ContainerStats {
            at: SystemTime::now(),
            memory_limit_bytes: limits.memory_bytes_max.filter(|bytes| *bytes > 0),
            writable_layer_inodes: Some(0),
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
    /// Removes an isolated pod's cgroup, unless another sandbox of the pod uses it.
    async fn remove_cgroup(&self, id: &PodSandboxId) -> Result<(), RuntimeError> {
        let path = {
            let sandboxes = lock(&self.sandboxes);
            let Some(config) = sandboxes.get(id).map(|sandbox| &sandbox.config) else {
                return Ok(());
            };
            let is_shared = sandboxes
                .values()
                .any(|other| other.id != *id && other.config.cgroup_parent == config.cgroup_parent);
            if !config.isolated || is_shared {
                return Ok(());
            }
            config.cgroup_parent.clone()
        };
        let failed = RuntimeError::io(format!("cgroup {path}"));
        let removed = tokio::task::spawn_blocking(move || cgroup::remove_pod(&path));
        removed
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(failed)
    }

    fn containers_in(&self, sandbox: &PodSandboxId) -> Vec<ContainerId> {
        let containers = lock(&self.containers);
        let inside = containers
            .iter()
            .filter(|(_, container)| lock(&container.record).sandbox == *sandbox);
        inside.map(|(id, _)| id.clone()).collect()
    }
}

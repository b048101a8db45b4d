//! The [`Runtime`] the agent holds. One method per CRI verb; the work is in the files beside.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{OwnedMutexGuard, broadcast};
use tokio_util::sync::CancellationToken;
use wherry_runtime_api::{
    AttachRequest, ContainerConfig, ContainerId, ContainerStats, ContainerStatus, Duplex,
    ExecRequest, ExecSyncResponse, ImageService, LinuxResources, PodSandbox, PodSandboxConfig,
    PodSandboxId, Runtime, RuntimeError, RuntimeEvent, RuntimeFeatures, RuntimeStatus,
    StreamSession,
};

use crate::{
    Config, cgroup, container::Container, engine::Engine, images::DockerImages, process,
    sandbox::Sandbox,
};

/// How this runtime is called in a RuntimeClass and before `://` in a container's ID.
pub(crate) const HANDLER: &str = "docker";
/// Events a slow reader may fall behind before it has to relist.
const EVENTS_MAX: usize = 1024;

/// Pods as containers of a Docker engine. Dropping it leaves every pod running.
#[derive(Debug)]
pub struct DockerRuntime {
    pub(crate) inner: Arc<Inner>,
    images: Arc<DockerImages>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) node: String,
    pub(crate) engine: Arc<Engine>,
    pub(crate) events: broadcast::Sender<RuntimeEvent>,
    /// Exec sessions that have ended: the engine's ID and the exit code.
    pub(crate) exec_exits: broadcast::Sender<(String, i32)>,
    state: Mutex<State>,
    /// One creation at a time for each pod; the key is its uid.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// What follows the engine and logs, ended with the runtime.
    pub(crate) stopped: CancellationToken,
}

/// What is known: a cache of what the engine says.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) sandboxes: HashMap<PodSandboxId, Arc<Sandbox>>,
    pub(crate) containers: HashMap<ContainerId, Arc<Container>>,
    /// Everything the engine holds of ours has been found; until then nothing is known to be absent.
    pub(crate) is_complete: bool,
}

impl DockerRuntime {
    /// Takes up what runs on the engine, if it answers, and follows it from then on. An engine that is not there (yet)
    /// is no error: the runtime is not ready until it comes.
    pub async fn open(config: Config) -> Arc<Self> {
        let engine = Arc::new(Engine::new(config.socket));
        let inner = Arc::new(Inner {
            node: config.node,
            engine: engine.clone(),
            events: broadcast::Sender::new(EVENTS_MAX),
            exec_exits: broadcast::Sender::new(EVENTS_MAX),
            state: Mutex::default(),
            turns: Mutex::default(),
            stopped: CancellationToken::new(),
        });
        inner.watch().await;
        Arc::new(Self {
            inner,
            images: Arc::new(DockerImages::new(engine)),
        })
    }

    /// The engine's images.
    pub fn docker_images(&self) -> Arc<DockerImages> {
        self.images.clone()
    }
}

impl Drop for DockerRuntime {
    fn drop(&mut self) {
        self.inner.stopped.cancel();
    }
}

impl Inner {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What is known, unless the engine has never been asked.
    fn complete_state(&self) -> Result<MutexGuard<'_, State>, RuntimeError> {
        let state = self.state();
        if state.is_complete {
            return Ok(state);
        }
        drop(state);
        match self.engine.docker() {
            Err(error) => Err(error),
            Ok(_) => Err(RuntimeError::Unavailable(
                "docker engine: its containers are still being listed".to_owned(),
            )),
        }
    }

    pub(crate) fn sandbox(&self, id: &PodSandboxId) -> Result<Arc<Sandbox>, RuntimeError> {
        self.complete_state()?
            .sandboxes
            .get(id)
            .cloned()
            .ok_or_else(|| RuntimeError::NotFound(format!("sandbox {id}")))
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Result<Arc<Container>, RuntimeError> {
        self.complete_state()?
            .containers
            .get(id)
            .cloned()
            .ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
    }

    /// For stop and remove, where what is gone is fine.
    pub(crate) fn known<T>(found: Result<T, RuntimeError>) -> Result<Option<T>, RuntimeError> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(RuntimeError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn containers_of(&self, id: &PodSandboxId) -> Vec<Arc<Container>> {
        self.state()
            .containers
            .values()
            .filter(|container| container.record.sandbox == *id)
            .cloned()
            .collect()
    }

    /// Waits for one's turn with a pod.
    pub(crate) async fn turn(&self, pod: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self
                .turns
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            // Those that nobody holds or waits for are only in the map.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(pod.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }
}

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    what: String,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(RuntimeError::io(what)),
        Err(error) => Err(RuntimeError::Internal(format!("{what}: {error}"))),
    }
}

/// Runs to the end even if the caller goes away: half a creation is worth less than a whole one.
macro_rules! to_the_end {
    ($self:ident, |$inner:ident| $work:expr) => {{
        let $inner = $self.inner.clone();
        tokio::spawn(async move { $work.await })
            .await
            .unwrap_or_else(|error| Err(RuntimeError::Internal(error.to_string())))
    }};
}

#[async_trait]
impl Runtime for DockerRuntime {
    fn handler(&self) -> &'static str {
        HANDLER
    }

    async fn status(&self) -> RuntimeStatus {
        match self.inner.engine.up() {
            Ok((_, facts)) => RuntimeStatus {
                version: facts.version,
                not_ready: facts.unfit,
                features: RuntimeFeatures::default(),
            },
            Err(error) => RuntimeStatus {
                version: "unknown".to_owned(),
                not_ready: Some(error.to_string()),
                features: RuntimeFeatures::default(),
            },
        }
    }

    fn images(&self) -> Option<Arc<dyn ImageService>> {
        Some(self.images.clone())
    }

    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<PodSandbox, RuntimeError> {
        let config = config.clone();
        to_the_end!(self, |inner| inner.run_pod_sandbox(config))
    }

    async fn stop_pod_sandbox(&self, id: &PodSandboxId) -> Result<(), RuntimeError> {
        let id = id.clone();
        to_the_end!(self, |inner| inner.stop_pod_sandbox(&id))
    }

    async fn remove_pod_sandbox(&self, id: &PodSandboxId) -> Result<(), RuntimeError> {
        let id = id.clone();
        to_the_end!(self, |inner| inner.remove_pod_sandbox(&id))
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>, RuntimeError> {
        Ok(self
            .inner
            .complete_state()?
            .sandboxes
            .values()
            .map(|sandbox| sandbox.status())
            .collect())
    }

    async fn create_container(
        &self,
        sandbox: &PodSandbox,
        config: &ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        if sandbox.handler != HANDLER {
            return Err(RuntimeError::Unsupported(format!(
                "container {}: a Docker container cannot run in a sandbox of runtime {}",
                config.name, sandbox.handler
            )));
        }
        let (sandbox, config) = (sandbox.id.clone(), config.clone());
        to_the_end!(self, |inner| inner.create_container(&sandbox, config))
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let id = id.clone();
        to_the_end!(self, |inner| inner.start_container(&id))
    }

    async fn stop_container(
        &self,
        id: &ContainerId,
        grace_period: Duration,
    ) -> Result<(), RuntimeError> {
        self.inner.stop_container(id, grace_period).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let id = id.clone();
        to_the_end!(self, |inner| inner.remove_container(&id))
    }

    async fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError> {
        Ok(self.inner.container(id)?.status())
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(self
            .inner
            .complete_state()?
            .containers
            .values()
            .map(|container| container.status())
            .collect())
    }

    async fn update_container_resources(
        &self,
        id: &ContainerId,
        resources: &LinuxResources,
    ) -> Result<(), RuntimeError> {
        self.inner.update_container_resources(id, resources).await
    }

    async fn update_pod_sandbox_resources(
        &self,
        id: &PodSandboxId,
        resources: &LinuxResources,
    ) -> Result<(), RuntimeError> {
        let sandbox = self.inner.sandbox(id)?;
        let resources = resources.clone();
        let path = sandbox.config.cgroup_parent.clone();
        blocking(format!("cgroup {path}"), move || {
            cgroup::set(&path, &resources)
        })
        .await
        .map(drop)
    }

    fn subscribe(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecSyncResponse, RuntimeError> {
        self.inner.exec_sync(id, command, timeout).await
    }

    async fn exec(
        &self,
        id: &ContainerId,
        request: &ExecRequest,
    ) -> Result<StreamSession, RuntimeError> {
        self.inner.exec(id, request).await
    }

    async fn attach(
        &self,
        id: &ContainerId,
        request: &AttachRequest,
    ) -> Result<StreamSession, RuntimeError> {
        self.inner.attach(id, request).await
    }

    async fn port_forward(
        &self,
        sandbox: &PodSandbox,
        port: u16,
    ) -> Result<Box<dyn Duplex>, RuntimeError> {
        let sandbox = self.inner.sandbox(&sandbox.id)?;
        if !sandbox.is_ready() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "sandbox {} is not ready",
                sandbox.id
            )));
        }
        let stream = process::connect(&sandbox.status().network, port).await?;
        Ok(Box::new(stream))
    }

    async fn reopen_container_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.inner.container(id)?.reopen_log()
    }

    async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        self.inner.container_stats(id).await
    }
}

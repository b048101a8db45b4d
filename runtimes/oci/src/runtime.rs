//! Stage 0: the [`Runtime`] the agent holds. One method per CRI verb; the work is in the files beside.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{OwnedMutexGuard, broadcast};
use wherry_cgroup::Cgroups;
use wherry_runtime_api::{
    AttachRequest, ContainerConfig, ContainerId, ContainerStats, ContainerStatus, Duplex,
    ExecRequest, ExecSyncResponse, LinuxResources, PodSandbox, PodSandboxConfig, PodSandboxId,
    Runtime, RuntimeError, RuntimeEvent, RuntimeFeatures, RuntimeStatus, StreamSession,
};

use crate::{Config, bundle::Paths, container::Container, features, sandbox::Sandbox};

/// How this runtime is called in a RuntimeClass and before `://` in a container's ID.
pub(crate) const HANDLER: &str = "oci";
/// Events a slow reader may fall behind before it has to relist.
const EVENTS_MAX: usize = 1024;

/// The daemonless OCI runtime. Dropping it leaves every pod running.
#[derive(Debug)]
pub struct OciRuntime {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) paths: Paths,
    /// The executable, seen through a mount that cannot be written.
    pub(crate) exe: Executable,
    /// What this machine offers.
    pub(crate) features: RuntimeFeatures,
    pub(crate) images: wherry_images::Store,
    pub(crate) supervisor_timeout: Duration,
    pub(crate) cgroups: Cgroups,
    pub(crate) events: broadcast::Sender<RuntimeEvent>,
    state: Mutex<State>,
    /// Filters of the default profile that this process has written, by capabilities.
    pub(crate) filters: Mutex<HashMap<String, PathBuf>>,
    /// One creation at a time for each pod; the key is its uid.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// What follows supervisors, ended with the runtime.
    pub(crate) stopped: tokio_util::sync::CancellationToken,
}

/// What is known: a cache of what the disk and the supervisors say.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) sandboxes: HashMap<PodSandboxId, Arc<Sandbox>>,
    pub(crate) containers: HashMap<ContainerId, Arc<Container>>,
}

/// How supervisors are executed.
#[derive(Debug)]
pub(crate) struct Executable {
    pub(crate) path: PathBuf,
    /// A read-only clone of the file's mount: an app that gets hold of `/proc/<pid>/exe` of a process on
    /// its way into the container (CVE-2019-5736) cannot write the node's binary through it.
    _mount: Option<OwnedFd>,
}

impl Executable {
    fn new(path: PathBuf) -> Self {
        match Self::read_only(&path) {
            Ok(mount) => {
                let path =
                    format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&mount)).into();
                Self {
                    path,
                    _mount: Some(mount),
                }
            }
            Err(error) => {
                tracing::warn!(%error, "Supervisors are executed from a writable mount");
                Self { path, _mount: None }
            }
        }
    }

    fn read_only(path: &std::path::Path) -> io::Result<OwnedFd> {
        use rustix::mount::{OpenTreeFlags, open_tree};
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(rustix::fs::CWD, path.canonicalize()?, flags)?;
        let attributes = crate::sys::MountAttributes {
            set: libc::MOUNT_ATTR_RDONLY,
            ..Default::default()
        };
        crate::sys::mount_setattr(std::os::fd::AsFd::as_fd(&mount), false, attributes)?;
        Ok(mount)
    }
}

impl OciRuntime {
    /// Opens the runtime on its directories, takes up what runs and cleans up what is left over.
    ///
    /// # Errors
    /// When the directories cannot be made or the node has no cgroups.
    pub async fn open(config: Config) -> Result<Arc<Self>, RuntimeError> {
        let paths = Paths::new(&config.root, &config.run);
        paths
            .create()
            .map_err(RuntimeError::io(config.root.display().to_string()))?;
        let exe = Executable::new(config.exe);
        let features = features::find(&exe.path, &paths.scratch()).await;
        let inner = Arc::new(Inner {
            paths,
            exe,
            features,
            images: config.images,
            supervisor_timeout: config.supervisor_timeout,
            cgroups: Cgroups::detect().map_err(RuntimeError::io("cgroups"))?,
            events: broadcast::Sender::new(EVENTS_MAX),
            state: Mutex::default(),
            filters: Mutex::default(),
            turns: Mutex::default(),
            stopped: tokio_util::sync::CancellationToken::new(),
        });
        inner.recover().await?;
        Ok(Arc::new(Self { inner }))
    }
}

impl Drop for OciRuntime {
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

    pub(crate) fn sandbox(&self, id: &PodSandboxId) -> Result<Arc<Sandbox>, RuntimeError> {
        self.state()
            .sandboxes
            .get(id)
            .cloned()
            .ok_or_else(|| RuntimeError::NotFound(format!("sandbox {id}")))
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Result<Arc<Container>, RuntimeError> {
        self.state()
            .containers
            .get(id)
            .cloned()
            .ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
    }

    pub(crate) fn containers_of(&self, id: &PodSandboxId) -> Vec<Arc<Container>> {
        self.state()
            .containers
            .values()
            .filter(|container| container.file.sandbox == *id)
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

    /// Runs file work off the async threads.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, RuntimeError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let inner = self.clone();
        finish(tokio::task::spawn_blocking(move || work(&inner)).await)
    }
}

/// Passes a panic of spawned work on as an error of the call.
fn finish<T>(
    joined: Result<Result<T, RuntimeError>, tokio::task::JoinError>,
) -> Result<T, RuntimeError> {
    joined.unwrap_or_else(|error| Err(RuntimeError::Internal(error.to_string())))
}

/// Runs to the end even if the caller goes away: half a creation is worth less than a whole one.
macro_rules! to_the_end {
    ($self:ident, |$inner:ident| $work:expr) => {{
        let $inner = $self.inner.clone();
        finish(tokio::spawn(async move { $work.await }).await)
    }};
}

#[async_trait]
impl Runtime for OciRuntime {
    fn handler(&self) -> &'static str {
        HANDLER
    }

    async fn status(&self) -> RuntimeStatus {
        let overlay = self
            .inner
            .blocking(|_| {
                let text = std::fs::read_to_string("/proc/filesystems")
                    .map_err(RuntimeError::io("/proc/filesystems"))?;
                Ok(text
                    .lines()
                    .any(|line| line.split_whitespace().next_back() == Some("overlay")))
            })
            .await;
        RuntimeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            not_ready: match overlay {
                Ok(true) => None,
                Ok(false) => Some("the kernel has no overlay file system".to_owned()),
                Err(error) => Some(error.to_string()),
            },
            features: self.inner.features,
        }
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
            .state()
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
                "container {}: an OCI container cannot run in a sandbox of runtime {}, whose namespaces it cannot join",
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
            .state()
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
        self.inner
            .update_container_resources(id, resources.clone())
            .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        id: &PodSandboxId,
        resources: &LinuxResources,
    ) -> Result<(), RuntimeError> {
        let sandbox = self.inner.sandbox(id)?;
        let resources = crate::sandbox::with_supervisor(resources);
        self.inner
            .blocking(move |inner| {
                let path = &sandbox.file.config.cgroup_parent;
                inner
                    .cgroups
                    .group(path)
                    .set(&resources)
                    .map(drop)
                    .map_err(RuntimeError::io(format!("cgroup {path}")))
            })
            .await
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
        self.inner.port_forward(&sandbox.id, port).await
    }

    async fn reopen_container_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.inner.reopen_container_log(id).await
    }

    async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        self.inner.container_stats(id).await
    }
}

//! Sandboxes: a cgroup, and a pause container that holds the pod's namespaces.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bollard::{
    Docker, body_full,
    models::ContainerInspectResponse,
    query_parameters::{
        ImportImageOptions, InspectContainerOptions, KillContainerOptionsBuilder,
        RemoveContainerOptionsBuilder, StartContainerOptions,
    },
};
use futures::StreamExt;
use tokio::sync::watch;
use wherry_runtime_api::{
    NamespaceMode, PodSandbox, PodSandboxConfig, PodSandboxId, PodSandboxState, RuntimeError,
    RuntimeEvent, SandboxNetwork,
};

use crate::{
    cgroup, container,
    engine::{Facts, status_code, to_error},
    names, pause,
    runtime::{HANDLER, Inner, blocking},
    spec,
};

/// How long a pause container may take to end once it has been killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two looks at a container that somebody else removes.
const REMOVAL_POLL: Duration = Duration::from_millis(20);

/// A sandbox this runtime knows of.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: PodSandboxId,
    pub(crate) config: PodSandboxConfig,
    pub(crate) created_at: SystemTime,
    /// The pause container's process; `None` where it does not run.
    pub(crate) pid: watch::Sender<Option<i32>>,
}

impl Sandbox {
    fn new(
        id: String,
        config: PodSandboxConfig,
        created_at: SystemTime,
        pid: Option<i32>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: id.into(),
            config,
            created_at,
            pid: watch::Sender::new(pid),
        })
    }

    /// Reads a pause container back.
    pub(crate) fn from_inspect(found: &ContainerInspectResponse) -> Result<Arc<Self>, String> {
        let id = found.id.clone().ok_or("a container without ID")?;
        let labels = found
            .config
            .as_ref()
            .and_then(|config| config.labels.clone())
            .unwrap_or_default();
        let config = names::config(&labels).map_err(|error| format!("container {id}: {error}"))?;
        let created_at = container::time(found.created.as_deref()).unwrap_or(SystemTime::now());
        Ok(Self::new(id, config, created_at, container::pid(found)))
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.pid.borrow().is_some()
    }

    pub(crate) fn status(&self) -> PodSandbox {
        let pid = *self.pid.borrow();
        let network = match (self.config.namespaces.network, pid) {
            (NamespaceMode::Node, _) => SandboxNetwork::Host,
            (_, Some(pid)) => SandboxNetwork::Namespace {
                path: format!("/proc/{pid}/ns/net").into(),
            },
            // There is none any more; the path leads nowhere, as it should.
            (_, None) => SandboxNetwork::Namespace {
                path: PathBuf::from("/proc/0/ns/net"),
            },
        };
        PodSandbox {
            id: self.id.clone(),
            handler: HANDLER.to_owned(),
            config: self.config.clone(),
            state: if pid.is_some() {
                PodSandboxState::Ready
            } else {
                PodSandboxState::NotReady
            },
            created_at: self.created_at,
            network,
            ips: Vec::new(),
            pid,
        }
    }
}

impl Inner {
    pub(crate) async fn run_pod_sandbox(
        self: &Arc<Self>,
        config: PodSandboxConfig,
    ) -> Result<PodSandbox, RuntimeError> {
        let (docker, facts) = self.engine.up()?;
        spec::verify_sandbox(&config, &facts)?;
        let _turn = self.turn(config.uid.as_str()).await;
        let same: Vec<Arc<Sandbox>> = self
            .state()
            .sandboxes
            .values()
            .filter(|sandbox| {
                sandbox.config.uid == config.uid && sandbox.config.attempt == config.attempt
            })
            .cloned()
            .collect();
        for sandbox in same {
            if sandbox.is_ready() {
                return Ok(sandbox.status());
            }
            // Half made, or dead: its place is needed.
            self.remove_in_turn(&sandbox).await?;
        }
        let image = ensure_pause_image(&docker).await?;
        let (path, resources) = (config.cgroup_parent.clone(), config.resources.clone());
        let warnings = blocking(format!("cgroup {path}"), move || {
            cgroup::create(&path, &resources)
        })
        .await?;
        for warning in warnings {
            tracing::warn!(pod = %config.uid, warning, "Pod limit not set");
        }
        let started = self.start_pause(&docker, &facts, &config, &image).await;
        if started.is_err() {
            let path = config.cgroup_parent.clone();
            let is_shared = self.has_other_in(&path, None);
            if !is_shared {
                let _ = blocking(String::new(), move || cgroup::remove(&path)).await;
            }
        }
        Ok(started?.status())
    }

    async fn start_pause(
        self: &Arc<Self>,
        docker: &Docker,
        facts: &Facts,
        config: &PodSandboxConfig,
        image: &str,
    ) -> Result<Arc<Sandbox>, RuntimeError> {
        let what = format!("sandbox of pod {}", config.uid);
        let name = names::sandbox_name(&self.node, config);
        let labels = names::labels(&self.node, names::Kind::Sandbox, config, "POD", config)
            .map_err(|error| RuntimeError::Internal(format!("{what}: {error}")))?;
        let body = spec::sandbox(config, facts, image, labels);
        let id = self.create(docker, &what, &name, body).await?;
        let started = async {
            docker
                .start_container(&id, None::<StartContainerOptions>)
                .await
                .map_err(|error| to_error(&what, error))?;
            let found = docker
                .inspect_container(&id, None::<InspectContainerOptions>)
                .await
                .map_err(|error| to_error(&what, error))?;
            let sandbox = Sandbox::from_inspect(&found).map_err(RuntimeError::Internal)?;
            if !sandbox.is_ready() {
                let message = format!("{what}: its pause container ended at once");
                return Err(RuntimeError::Internal(message));
            }
            self.state()
                .sandboxes
                .insert(sandbox.id.clone(), sandbox.clone());
            Ok(sandbox)
        };
        match started.await {
            Ok(sandbox) => Ok(sandbox),
            Err(error) => {
                if let Err(error) = remove(docker, &id).await {
                    tracing::warn!(sandbox = %id, %error, "Half-made sandbox stays");
                }
                Err(error)
            }
        }
    }

    /// The engine says, or a listing has shown, that a pause container does not run any more.
    pub(crate) fn sandbox_exited(&self, sandbox: &Sandbox) {
        let was_ready = sandbox.pid.send_if_modified(|pid| pid.take().is_some());
        if was_ready {
            let _ = self.events.send(RuntimeEvent::SandboxExited {
                pod: sandbox.config.uid.clone(),
                id: sandbox.id.clone(),
            });
        }
    }

    pub(crate) async fn stop_pod_sandbox(
        self: &Arc<Self>,
        id: &PodSandboxId,
    ) -> Result<(), RuntimeError> {
        match Self::known(self.sandbox(id))? {
            Some(sandbox) => self.stop_sandbox(&sandbox).await,
            None => Ok(()),
        }
    }

    async fn stop_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), RuntimeError> {
        let containers = self.containers_of(&sandbox.id);
        let stops = containers
            .iter()
            .map(|container| self.stop_container(&container.id, Duration::ZERO));
        for stopped in futures::future::join_all(stops).await {
            stopped?;
        }
        if !sandbox.is_ready() {
            return Ok(());
        }
        let docker = self.engine.docker()?;
        let what = format!("sandbox {}", sandbox.id);
        let options = KillContainerOptionsBuilder::default()
            .signal("SIGKILL")
            .build();
        match docker
            .kill_container(sandbox.id.as_str(), Some(options))
            .await
        {
            Ok(()) => {}
            // Not there, or not running: as it should be.
            Err(error) if matches!(status_code(&error), Some(404 | 409)) => {
                self.sandbox_exited(sandbox);
            }
            Err(error) => return Err(to_error(&what, error)),
        }
        let mut pid = sandbox.pid.subscribe();
        match tokio::time::timeout(STOP_TIMEOUT, pid.wait_for(Option::is_none)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(RuntimeError::DeadlineExceeded {
                what: format!("{what}: its end"),
                after: STOP_TIMEOUT,
            }),
        }
    }

    pub(crate) async fn remove_pod_sandbox(
        self: &Arc<Self>,
        id: &PodSandboxId,
    ) -> Result<(), RuntimeError> {
        let Some(sandbox) = Self::known(self.sandbox(id))? else {
            return Ok(());
        };
        let _turn = self.turn(sandbox.config.uid.as_str()).await;
        self.remove_in_turn(&sandbox).await
    }

    async fn remove_in_turn(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), RuntimeError> {
        self.stop_sandbox(sandbox).await?;
        for container in self.containers_of(&sandbox.id) {
            self.remove_container(&container.id).await?;
        }
        let docker = self.engine.docker()?;
        remove(&docker, sandbox.id.as_str()).await?;
        // Another attempt of the pod may live in the same group; whoever goes last removes it.
        let path = sandbox.config.cgroup_parent.clone();
        if !self.has_other_in(&path, Some(&sandbox.id)) {
            blocking(format!("sandbox {}", sandbox.id), move || {
                cgroup::remove(&path)
            })
            .await?;
        }
        self.state().sandboxes.remove(&sandbox.id);
        Ok(())
    }

    fn has_other_in(&self, cgroup_parent: &str, except: Option<&PodSandboxId>) -> bool {
        self.state()
            .sandboxes
            .values()
            .any(|other| Some(&other.id) != except && other.config.cgroup_parent == cgroup_parent)
    }
}

/// Removes a container, whatever it does. Gone already: `Ok`.
pub(crate) async fn remove(docker: &Docker, id: &str) -> Result<(), RuntimeError> {
    let options = RemoveContainerOptionsBuilder::default()
        .force(true)
        .v(true)
        .build();
    match docker.remove_container(id, Some(options)).await {
        Ok(()) => Ok(()),
        Err(error) if status_code(&error) == Some(404) => Ok(()),
        Err(error) if error.to_string().contains("already in progress") => {
            wait_until_removed(docker, id).await
        }
        Err(error) => Err(to_error(&format!("remove container {id}"), error)),
    }
}

/// Somebody else has begun to remove it.
async fn wait_until_removed(docker: &Docker, id: &str) -> Result<(), RuntimeError> {
    let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
    while tokio::time::Instant::now() < deadline {
        match docker
            .inspect_container(id, None::<InspectContainerOptions>)
            .await
        {
            Ok(_) => tokio::time::sleep(REMOVAL_POLL).await,
            Err(error) if status_code(&error) == Some(404) => return Ok(()),
            Err(error) => return Err(to_error(&format!("remove container {id}"), error)),
        }
    }
    Err(RuntimeError::DeadlineExceeded {
        what: format!("container {id}: its removal"),
        after: STOP_TIMEOUT,
    })
}

/// The pause image's ID; loaded if the engine does not have it.
async fn ensure_pause_image(docker: &Docker) -> Result<String, RuntimeError> {
    let (id, archive) = pause::image();
    let what = format!("image {}", pause::NAME);
    match docker.inspect_image(&id).await {
        Ok(_) => return Ok(id),
        Err(error) if status_code(&error) == Some(404) => {}
        Err(error) => return Err(to_error(&what, error)),
    }
    let options = ImportImageOptions {
        quiet: true,
        ..ImportImageOptions::default()
    };
    let mut progress = docker.import_image(options, body_full(archive.into()), None);
    while let Some(step) = progress.next().await {
        step.map_err(|error| to_error(&what, error))?;
    }
    docker
        .inspect_image(&id)
        .await
        .map_err(|error| to_error(&what, error))?;
    Ok(id)
}

//! Containers: from a config and an image to a directory, a cgroup and a process that waits to be told.
//!
//! ```text
//!  .<id> ─ rename ─▶ <id> ─ stage 1: create ─▶ Created ─ start ─▶ Running ─▶ Exited ─ rename ─▶ trash
//! ```
//! A directory that stage 1 does not know of yet (the agent was killed in between) counts as Created, and
//! what is missing is made up when it is created again or started.

mod create;
mod devices;
mod usage;

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use nix::sys::signal::Signal;
use oci_spec::runtime::{LinuxDevice, Spec};
use tokio::sync::watch;
use wherry_cgroup::{DeviceKind, DeviceRule};
use wherry_images::StoredImage;
use wherry_runtime_api::{
    ContainerConfig, ContainerExit, ContainerId, ContainerState, ContainerStats, ContainerStatus,
    LinuxResources, Mount, NamespaceMode, PodSandboxId, RuntimeError, RuntimeEvent, SeccompProfile,
    UserNamespace,
};

use crate::{
    bundle::{self, Bundle, ContainerFile},
    client,
    protocol::{ContainerRecord, CreateContainer, Op, Reply},
    runtime::{HANDLER, Inner},
    sandbox::{Sandbox, new_id},
    seccomp::Profile,
    spec::{self, AppArmor, ImageDefaults},
};

/// How long a killed container may take to go. Longer means it hangs in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(15);

/// A container this runtime knows of.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) file: ContainerFile,
    pub(crate) record: watch::Sender<ContainerRecord>,
    /// Limits that could not be set.
    limit_warnings: Mutex<Vec<String>>,
    layer_usage: Mutex<Option<usage::LayerUsage>>,
}

impl Container {
    pub(crate) fn new(file: ContainerFile, state: ContainerState) -> Arc<Self> {
        let record = ContainerRecord {
            id: file.id.to_string(),
            pid: None,
            state,
            warnings: Vec::new(),
        };
        Arc::new(Self {
            file,
            record: watch::Sender::new(record),
            limit_warnings: Mutex::default(),
            layer_usage: Mutex::default(),
        })
    }

    pub(crate) fn status(&self) -> ContainerStatus {
        let (record, file) = (self.record.borrow(), &self.file);
        ContainerStatus {
            id: file.id.clone(),
            handler: HANDLER.to_owned(),
            sandbox: file.sandbox.clone(),
            pod: file.pod.clone(),
            name: file.name.clone(),
            attempt: file.attempt,
            image: file.image.clone(),
            image_id: file.image_id.clone(),
            state: record.state.clone(),
            created_at: file.created_at,
            log_path: file.log_path.clone(),
            pid: record.pid,
            labels: file.labels.clone(),
            annotations: file.annotations.clone(),
            warnings: file
                .warnings
                .iter()
                .chain(&record.warnings)
                .chain(lock(&self.limit_warnings).iter())
                .cloned()
                .collect(),
        }
    }

    pub(crate) fn is_exited(&self) -> bool {
        matches!(self.record.borrow().state, ContainerState::Exited(_))
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.record.borrow().state, ContainerState::Running { .. })
    }

    async fn wait_until_exited(&self, timeout: Duration) -> bool {
        let mut record = self.record.subscribe();
        let exited = record.wait_for(|record| matches!(record.state, ContainerState::Exited(_)));
        tokio::time::timeout(timeout, exited).await.is_ok()
    }

    fn to_create(&self, directory: PathBuf) -> CreateContainer {
        CreateContainer {
            id: self.file.id.to_string(),
            directory,
            cgroup: self.file.cgroup.clone(),
            log_path: self.file.log_path.clone(),
            log_rotation: self.file.log_rotation,
            stdin: self.file.stdin,
            stdin_once: self.file.stdin_once,
            tty: self.file.tty,
            own_pid_namespace: self.file.own_pid_namespace,
        }
    }
}

const fn rank(state: &ContainerState) -> u8 {
    match state {
        ContainerState::Unknown => 0,
        ContainerState::Created => 1,
        ContainerState::Running { .. } => 2,
        ContainerState::Exited(_) => 3,
    }
}

impl Inner {
    /// Takes over what a supervisor says of a container. News may come late and twice; a container never
    /// goes back in its life.
    pub(crate) fn apply(&self, container: &Container, news: ContainerRecord) {
        let (mut has_started, mut has_exited) = (false, false);
        container.record.send_if_modified(|known| {
            let (before, after) = (rank(&known.state), rank(&news.state));
            if after < before || *known == news {
                return false;
            }
            let was_executed = match &news.state {
                ContainerState::Running { .. } => true,
                ContainerState::Exited(exit) => exit.started_at.is_some(),
                ContainerState::Created | ContainerState::Unknown => false,
            };
            has_started = before < 2 && was_executed;
            has_exited = before < 3 && after == 3;
            *known = news;
            true
        });
        let (pod, id) = (&container.file.pod, &container.file.id);
        if has_started {
            let _ = self.events.send(RuntimeEvent::ContainerStarted {
                pod: pod.clone(),
                id: id.clone(),
            });
        }
        if has_exited {
            let _ = self.events.send(RuntimeEvent::ContainerExited {
                pod: pod.clone(),
                id: id.clone(),
            });
        }
    }

    /// Settles what became of a container whose supervisor has ended: what it recorded, or that it was lost.
    pub(crate) fn record_lost(&self, container: &Container) {
        if container.is_exited() {
            return;
        }
        let path = self.paths.container(&container.file.id).join("exit.json");
        let exit = match bundle::read::<ContainerExit>(&path) {
            Ok(Some(exit)) => exit,
            _ => {
                let started_at = match container.record.borrow().state {
                    ContainerState::Running { started_at } => Some(started_at),
                    _ => None,
                };
                let exit = ContainerExit {
                    started_at,
                    finished_at: SystemTime::now(),
                    exit_code: 128 + libc::SIGKILL,
                    signal: Some(libc::SIGKILL),
                    oom_killed: false,
                    message: Some(
                        "the pod's supervisor ended and the container with it".to_owned(),
                    ),
                };
                if let Err(error) = bundle::write(&path, &exit) {
                    tracing::warn!(container = %container.file.id, %error, "Exit not recorded");
                }
                exit
            }
        };
        let warnings = container.record.borrow().warnings.clone();
        let record = ContainerRecord {
            id: container.file.id.to_string(),
            pid: None,
            state: ContainerState::Exited(exit),
            warnings,
        };
        self.apply(container, record);
    }

    pub(crate) async fn start_container(
        self: &Arc<Self>,
        id: &ContainerId,
    ) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        if rank(&container.record.borrow().state) > 1 {
            return Ok(());
        }
        let sandbox = self.sandbox(&container.file.sandbox)?;
        if !sandbox.is_ready() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "sandbox {} is not ready",
                sandbox.file.id
            )));
        }
        let directory = self.paths.pod(&container.file.sandbox);
        let what = format!("start container {}", container.file.name);
        let start = || Op::Start { id: id.to_string() };
        let mut answer = client::call(&directory, &what, start(), &[]).await;
        if matches!(answer, Err(RuntimeError::NotFound(_))) {
            let _turn = self.turn(container.file.pod.as_str()).await;
            self.ensure_created(&container).await?;
            answer = client::call(&directory, &what, start(), &[]).await;
        }
        match answer {
            Ok((Reply::Container(record), _, _)) => {
                self.apply(&container, record);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => {
                if matches!(error, RuntimeError::InvalidArgument(_)) {
                    // So that its status says the same as this error.
                    container.wait_until_exited(KILL_TIMEOUT).await;
                }
                Err(error)
            }
        }
    }

    pub(crate) async fn stop_container(
        self: &Arc<Self>,
        id: &ContainerId,
        grace_period: Duration,
    ) -> Result<(), RuntimeError> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        if container.is_exited() {
            return Ok(());
        }
        let signal = |signal, all| {
            let container = container.clone();
            async move {
                let directory = self.paths.pod(&container.file.sandbox);
                let op = Op::Signal {
                    id: container.file.id.to_string(),
                    signal,
                    all,
                };
                client::call(&directory, "signal", op, &[]).await
            }
        };
        // A container that was never started has nobody to be asked.
        if container.is_running() && !grace_period.is_zero() {
            match signal(container.file.stop_signal, false).await {
                Ok(_) if container.wait_until_exited(grace_period).await => return Ok(()),
                Ok(_) => {}
                Err(error) => tracing::debug!(container = %id, %error, "Not asked to stop"),
            }
        }
        match signal(libc::SIGKILL, true).await {
            // Prepared, and stage 1 never heard of it: there is no process to end.
            Err(RuntimeError::NotFound(_)) => {
                let container = container.clone();
                self.blocking(move |inner| {
                    inner.record_lost(&container);
                    Ok(())
                })
                .await?;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(container = %id, %error, "Not killed"),
        }
        if container.wait_until_exited(KILL_TIMEOUT).await {
            return Ok(());
        }
        Err(RuntimeError::DeadlineExceeded {
            what: format!("container {id}: its end after SIGKILL"),
            after: KILL_TIMEOUT,
        })
    }

    pub(crate) async fn remove_container(
        self: &Arc<Self>,
        id: &ContainerId,
    ) -> Result<(), RuntimeError> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        self.stop_container(id, Duration::ZERO).await?;
        let directory = self.paths.pod(&container.file.sandbox);
        match client::call(&directory, "remove", Op::Remove { id: id.to_string() }, &[]).await {
            // Without a supervisor nobody holds anything of it.
            Ok(_) | Err(RuntimeError::Unavailable(_)) => {}
            Err(error) => return Err(error),
        }
        let id = id.clone();
        self.blocking(move |inner| inner.forget_container(&id, &container.file.cgroup))
            .await
    }

    /// Deletes what is on disk of a container that has no process.
    pub(crate) fn forget_container(
        &self,
        id: &ContainerId,
        cgroup: &str,
    ) -> Result<(), RuntimeError> {
        let what = || format!("container {id}");
        self.cgroups
            .group(cgroup)
            .remove()
            .map_err(RuntimeError::io(what()))?;
        let _ = fs::remove_file(self.paths.seccomp().join(format!("{id}.bpf")));
        // In this order: a directory without a lease is found and removed, a lease without one is not.
        self.images
            .release(id.as_str())
            .map_err(|error| RuntimeError::Internal(error.to_string()))?;
        self.discard(&self.paths.container(id))
            .map_err(RuntimeError::io(what()))?;
        self.state().containers.remove(id);
        Ok(())
    }

    pub(crate) async fn update_container_resources(
        self: &Arc<Self>,
        id: &ContainerId,
        resources: LinuxResources,
    ) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        if container.is_exited() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "container {id} has exited"
            )));
        }
        self.blocking(move |inner| {
            let what = || format!("cgroup {}", container.file.cgroup);
            let group = inner.cgroups.group(&container.file.cgroup);
            group
                .set(&resources)
                .map(drop)
                .map_err(RuntimeError::io(what()))
        })
        .await
    }

    pub(crate) async fn reopen_container_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        let directory = self.paths.pod(&container.file.sandbox);
        client::call(
            &directory,
            "reopen log",
            Op::ReopenLog { id: id.to_string() },
            &[],
        )
        .await
        .map(drop)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

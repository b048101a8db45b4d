//! Containers: created below the pod's cgroup and in its namespaces, started, followed to their end, removed.
//!
//! ```text
//!  create ─▶ Created ─ start ─▶ Running ─ the engine says "die" ─▶ rest of the log copied ─▶ Exited ─ remove ─▶ gone
//! ```
//! Whoever is told that a container has exited finds all of its log.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bollard::{
    Docker,
    models::{ContainerInspectResponse, ContainerStateStatusEnum},
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
        StartContainerOptions,
    },
};
use tokio::sync::{Notify, watch};
use wherry_runtime_api::{
    ContainerConfig, ContainerExit, ContainerId, ContainerState, ContainerStatus, LinuxResources,
    PodSandboxId, RuntimeError, RuntimeEvent,
};

use crate::{
    cgroup,
    engine::{status_code, to_error},
    log::Log,
    names::{self, ContainerRecord},
    process,
    runtime::{HANDLER, Inner},
    sandbox, spec,
};

/// How long a killed container may take to go. Longer means it hangs in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
/// The engine's word for a time that has not come.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// What a container that could not be started exits with, as under other runtimes; the engine says 126 or 127.
const EXIT_CODE_START_ERROR: i32 = 128;

/// A container this runtime knows of.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) record: ContainerRecord,
    created_at: SystemTime,
    pub(crate) live: watch::Sender<Live>,
    /// The copy of its log, once there is something to copy.
    pub(crate) log: Mutex<Option<Log>>,
    /// The engine has said that it died.
    pub(crate) died: Notify,
    /// The engine has said that the kernel killed a process of it for want of memory.
    pub(crate) is_out_of_memory: AtomicBool,
    /// We have sent SIGKILL.
    pub(crate) is_killed: AtomicBool,
    is_followed: AtomicBool,
    layer_usage: Mutex<Option<(Instant, u64)>>,
}

/// What changes about a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Live {
    pub(crate) state: ContainerState,
    pub(crate) pid: Option<i32>,
    warnings: Vec<String>,
}

impl Container {
    /// Reads a container back.
    pub(crate) fn from_inspect(
        found: &ContainerInspectResponse,
        state: ContainerState,
    ) -> Result<Arc<Self>, String> {
        let id = found.id.clone().ok_or("a container without ID")?;
        let labels = found
            .config
            .as_ref()
            .and_then(|config| config.labels.clone())
            .unwrap_or_default();
        let record = names::config(&labels).map_err(|error| format!("container {id}: {error}"))?;
        Ok(Arc::new(Self {
            id: id.into(),
            record,
            created_at: time(found.created.as_deref()).unwrap_or(SystemTime::now()),
            live: watch::Sender::new(Live {
                pid: match state {
                    ContainerState::Running { .. } => pid(found),
                    _ => None,
                },
                state,
                warnings: Vec::new(),
            }),
            log: Mutex::default(),
            died: Notify::new(),
            is_out_of_memory: AtomicBool::new(false),
            is_killed: AtomicBool::new(false),
            is_followed: AtomicBool::new(false),
            layer_usage: Mutex::default(),
        }))
    }

    pub(crate) fn status(&self) -> ContainerStatus {
        let (live, record) = (self.live.borrow(), &self.record);
        ContainerStatus {
            id: self.id.clone(),
            handler: HANDLER.to_owned(),
            sandbox: record.sandbox.clone(),
            pod: record.pod.clone(),
            name: record.name.clone(),
            attempt: record.attempt,
            image: record.image.clone(),
            image_id: record.image_id.clone(),
            state: live.state.clone(),
            created_at: self.created_at,
            log_path: record.log_path.clone(),
            pid: live.pid,
            labels: record.labels.clone(),
            annotations: record.annotations.clone(),
            warnings: record
                .warnings
                .iter()
                .chain(&live.warnings)
                .cloned()
                .collect(),
        }
    }

    pub(crate) fn is_exited(&self) -> bool {
        matches!(self.live.borrow().state, ContainerState::Exited(_))
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.live.borrow().state, ContainerState::Running { .. })
    }

    /// True for the first who asks: a container is followed once.
    pub(crate) fn take_following(&self) -> bool {
        !self.is_followed.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn lock_log(&self) -> MutexGuard<'_, Option<Log>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn layer_usage(&self) -> MutexGuard<'_, Option<(Instant, u64)>> {
        self.layer_usage
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reopen_log(&self) -> Result<(), RuntimeError> {
        match &mut *self.lock_log() {
            Some(log) => log
                .reopen()
                .map_err(RuntimeError::io(self.record.log_path.display().to_string())),
            None => Ok(()),
        }
    }

    pub(crate) async fn wait_until_exited(&self, timeout: Duration) -> bool {
        let mut live = self.live.subscribe();
        let exited = live.wait_for(|live| matches!(live.state, ContainerState::Exited(_)));
        tokio::time::timeout(timeout, exited).await.is_ok()
    }

    fn warn(&self, warnings: Vec<String>) {
        if !warnings.is_empty() {
            self.live.send_modify(|live| live.warnings.extend(warnings));
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

/// A time as the engine writes it.
pub(crate) fn time(text: Option<&str>) -> Option<SystemTime> {
    text.filter(|text| *text != NEVER)?
        .parse::<jiff::Timestamp>()
        .ok()
        .map(SystemTime::from)
}

/// The process of a container that runs.
pub(crate) fn pid(found: &ContainerInspectResponse) -> Option<i32> {
    let state = found.state.as_ref()?;
    if state.running != Some(true) {
        return None;
    }
    state
        .pid
        .and_then(|pid| i32::try_from(pid).ok())
        .filter(|pid| *pid > 0)
}

/// What the engine says a container is doing.
pub(crate) fn state(found: &ContainerInspectResponse) -> ContainerState {
    let Some(state) = &found.state else {
        return ContainerState::Unknown;
    };
    let message = state.error.clone().filter(|message| !message.is_empty());
    let started_at = time(state.started_at.as_deref());
    use ContainerStateStatusEnum as S;
    match state.status {
        Some(S::RUNNING | S::PAUSED | S::RESTARTING) => ContainerState::Running {
            started_at: started_at.unwrap_or(SystemTime::now()),
        },
        Some(S::CREATED) if message.is_none() => ContainerState::Created,
        // The engine leaves one that could not be started as created, with the reason.
        Some(S::CREATED | S::EXITED | S::REMOVING | S::DEAD) => {
            let exit_code = state
                .exit_code
                .filter(|_| state.status != Some(S::CREATED))
                .and_then(|code| i32::try_from(code).ok())
                .unwrap_or(EXIT_CODE_START_ERROR);
            let finished_at = time(state.finished_at.as_deref())
                .or(started_at)
                .or_else(|| time(found.created.as_deref()))
                .unwrap_or(SystemTime::now());
            ContainerState::Exited(ContainerExit {
                // Clocks of two processes of the engine: never after its end.
                started_at: started_at.map(|started| started.min(finished_at)),
                finished_at,
                exit_code,
                signal: None,
                oom_killed: state.oom_killed.unwrap_or(false),
                message,
            })
        }
        _ => ContainerState::Unknown,
    }
}

/// How a container ended of which nobody can tell.
pub(crate) fn lost(container: &Container, message: &str) -> ContainerExit {
    let started_at = match container.live.borrow().state {
        ContainerState::Running { started_at } => Some(started_at),
        _ => None,
    };
    ContainerExit {
        started_at,
        finished_at: SystemTime::now(),
        exit_code: 128 + libc::SIGKILL,
        signal: Some(libc::SIGKILL),
        oom_killed: false,
        message: Some(message.to_owned()),
    }
}

impl Inner {
    /// Takes over what is known now. News may come late and twice; a container never goes back in its life.
    pub(crate) fn apply(&self, container: &Container, state: ContainerState, pid: Option<i32>) {
        let (mut has_started, mut has_exited) = (false, false);
        container.live.send_if_modified(|known| {
            let (before, after) = (rank(&known.state), rank(&state));
            if after <= before {
                return false;
            }
            let was_executed = match &state {
                ContainerState::Running { .. } => true,
                ContainerState::Exited(exit) => exit.started_at.is_some(),
                ContainerState::Created | ContainerState::Unknown => false,
            };
            has_started = before < 2 && was_executed;
            has_exited = after == 3;
            known.pid = if has_exited { None } else { pid };
            known.state = state;
            true
        });
        let (pod, id) = (&container.record.pod, &container.id);
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

    pub(crate) async fn create_container(
        self: &Arc<Self>,
        sandbox: &PodSandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let sandbox = self.sandbox(sandbox)?;
        let _turn = self.turn(sandbox.config.uid.as_str()).await;
        if !sandbox.is_ready() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "sandbox {} is not ready",
                sandbox.id
            )));
        }
        let existing = self.containers_of(&sandbox.id).into_iter().find(|other| {
            other.record.name == config.name && other.record.attempt == config.attempt
        });
        if let Some(existing) = existing {
            return Ok(existing.id.clone());
        }
        let (docker, facts) = self.engine.up()?;
        let image = docker
            .inspect_image(&config.image_id)
            .await
            .map_err(|error| to_error(&config.image_id, error))?
            .config
            .unwrap_or_default();
        spec::verify_container(&sandbox.config, &config, &image, &facts)?;
        let status = sandbox.status();
        let wanted = spec::container(&status, &config, &image, &facts)?;
        let signal = spec::stop_signal(&config, &image);
        let record = ContainerRecord::new(&status, &config, signal, wanted.warnings);
        let pod = &sandbox.config;
        let what = format!("container {}", config.name);
        let labels = names::labels(
            &self.node,
            names::Kind::Container,
            pod,
            &config.name,
            &record,
        )
        .map_err(|error| RuntimeError::Internal(format!("{what}: {error}")))?;
        let mut body = wanted.body;
        body.labels = Some(labels);
        let name = names::container_name(&self.node, pod, &config.name, config.attempt);
        let id = self.create(&docker, &what, &name, body).await?;
        let found = docker
            .inspect_container(&id, None::<InspectContainerOptions>)
            .await
            .map_err(|error| to_error(&what, error))?;
        let container = Container::from_inspect(&found, ContainerState::Created)
            .map_err(RuntimeError::Internal)?;
        let id = container.id.clone();
        self.state().containers.insert(id.clone(), container);
        Ok(id)
    }

    /// Creates a container under a name. One of ours that has the name and that nobody knows of is left over from an
    /// answer that never came, and makes place.
    pub(crate) async fn create(
        &self,
        docker: &Docker,
        what: &str,
        name: &str,
        body: bollard::models::ContainerCreateBody,
    ) -> Result<String, RuntimeError> {
        let options = || Some(CreateContainerOptionsBuilder::default().name(name).build());
        match docker.create_container(options(), body.clone()).await {
            Ok(made) => return Ok(made.id),
            Err(error) if status_code(&error) == Some(409) => {
                let found = docker
                    .inspect_container(name, None::<InspectContainerOptions>)
                    .await;
                let labels = found
                    .as_ref()
                    .ok()
                    .and_then(|found| found.config.as_ref()?.labels.clone())
                    .unwrap_or_default();
                let id = found.ok().and_then(|found| found.id).unwrap_or_default();
                let is_known = {
                    let state = self.state();
                    state.sandboxes.contains_key(&id.as_str().into())
                        || state.containers.contains_key(&id.as_str().into())
                };
                if is_known || names::kind(&labels, &self.node).is_none() {
                    return Err(to_error(what, error));
                }
                sandbox::remove(docker, &id).await?;
            }
            Err(error) => return Err(to_error(what, error)),
        }
        docker
            .create_container(options(), body)
            .await
            .map(|made| made.id)
            .map_err(|error| to_error(what, error))
    }

    pub(crate) async fn start_container(
        self: &Arc<Self>,
        id: &ContainerId,
    ) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        if rank(&container.live.borrow().state) > 1 {
            return Ok(());
        }
        let sandbox = self.sandbox(&container.record.sandbox)?;
        if !sandbox.is_ready() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "sandbox {} is not ready",
                sandbox.id
            )));
        }
        let docker = self.engine.docker()?;
        let what = format!("start container {}", container.record.name);
        let started = docker
            .start_container(id.as_str(), None::<StartContainerOptions>)
            .await;
        let inspect = || async {
            docker
                .inspect_container(id.as_str(), None::<InspectContainerOptions>)
                .await
        };
        match started {
            // 304: it runs already.
            Err(error) if status_code(&error) != Some(304) => {
                let error = to_error(&what, error);
                if matches!(error, RuntimeError::InvalidArgument(_))
                    && let Ok(found) = inspect().await
                {
                    // So that its status says the same as this error.
                    self.apply(&container, state(&found), None);
                }
                return Err(error);
            }
            _ => {}
        }
        let found = inspect().await.map_err(|error| to_error(&what, error))?;
        let started_at = found
            .state
            .as_ref()
            .and_then(|state| time(state.started_at.as_deref()))
            .unwrap_or(SystemTime::now());
        let limits = container.record.hugepage_bytes_max.clone();
        let group = format!("{}/{id}", container.record.cgroup_parent);
        container.warn(cgroup::set_container_hugepages(&group, &limits));
        // It may have ended by now, which is for its follower to say when the log is whole.
        self.apply(
            &container,
            ContainerState::Running { started_at },
            pid(&found),
        );
        self.follow_container(&container);
        Ok(())
    }

    pub(crate) async fn stop_container(
        self: &Arc<Self>,
        id: &ContainerId,
        grace_period: Duration,
    ) -> Result<(), RuntimeError> {
        let Some(container) = Self::known(self.container(id))? else {
            return Ok(());
        };
        if container.is_exited() {
            return Ok(());
        }
        if !container.is_running() {
            // Never started: there is nobody to be asked.
            let exit = lost(&container, "stopped before it was started");
            self.apply(&container, ContainerState::Exited(exit), None);
            return Ok(());
        }
        if !grace_period.is_zero() {
            match self.signal(&container, container.record.stop_signal).await {
                Ok(()) if container.wait_until_exited(grace_period).await => return Ok(()),
                Ok(()) => {}
                Err(error) => tracing::debug!(container = %id, %error, "Not asked to stop"),
            }
        }
        container.is_killed.store(true, Ordering::Relaxed);
        self.signal(&container, libc::SIGKILL).await?;
        if container.wait_until_exited(KILL_TIMEOUT).await {
            return Ok(());
        }
        Err(RuntimeError::DeadlineExceeded {
            what: format!("container {id}: its end after SIGKILL"),
            after: KILL_TIMEOUT,
        })
    }

    async fn signal(&self, container: &Container, signal: i32) -> Result<(), RuntimeError> {
        let options = KillContainerOptionsBuilder::default()
            .signal(&signal.to_string())
            .build();
        let docker = self.engine.docker()?;
        match docker
            .kill_container(container.id.as_str(), Some(options))
            .await
        {
            Ok(()) => Ok(()),
            // It has gone, or has ended and we have not heard yet.
            Err(error) if matches!(status_code(&error), Some(404 | 409)) => {
                container.died.notify_one();
                Ok(())
            }
            Err(error) => Err(to_error(
                &format!("signal container {}", container.id),
                error,
            )),
        }
    }

    pub(crate) async fn remove_container(
        self: &Arc<Self>,
        id: &ContainerId,
    ) -> Result<(), RuntimeError> {
        let Some(container) = Self::known(self.container(id))? else {
            return Ok(());
        };
        self.stop_container(id, Duration::ZERO).await?;
        sandbox::remove(&self.engine.docker()?, container.id.as_str()).await?;
        self.state().containers.remove(id);
        Ok(())
    }

    pub(crate) async fn update_container_resources(
        &self,
        id: &ContainerId,
        resources: &LinuxResources,
    ) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        if container.is_exited() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "container {id} has exited"
            )));
        }
        self.engine
            .docker()?
            .update_container(id.as_str(), spec::update(resources))
            .await
            .map_err(|error| to_error(&format!("update container {id}"), error))?;
        let group = format!("{}/{id}", container.record.cgroup_parent);
        container.warn(cgroup::set_container_hugepages(
            &group,
            &resources.hugepage_bytes_max,
        ));
        // The engine has no word for it once a container is there.
        let pid = container.live.borrow().pid;
        if let (Some(value), Some(pid)) = (resources.oom_score_adj, pid)
            && let Err(error) = process::set_oom_score_adj(pid, value)
        {
            container.warn(vec![format!(
                "oom_score_adj {value} cannot be set: {error}"
            )]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(state_json: serde_json::Value) -> ContainerState {
        let found = json!({"Id": "x", "Created": "2026-11-20T12:00:00.5Z", "State": state_json});
        serde_json::from_value(found).map_or(ContainerState::Unknown, |found| state(&found))
    }

    #[test]
    fn states_of_the_engine_are_states_of_cri() {
        assert_eq!(
            read(
                json!({"Status": "created", "StartedAt": NEVER, "FinishedAt": NEVER, "Error": ""})
            ),
            ContainerState::Created
        );
        assert!(matches!(
            read(json!({"Status": "running", "StartedAt": "2026-11-20T12:00:01Z"})),
            ContainerState::Running { .. }
        ));
        let ended = read(
            json!({"Status": "exited", "StartedAt": "2026-11-20T12:00:01Z",
            "FinishedAt": "2026-11-20T12:00:02Z", "ExitCode": 137, "OOMKilled": true, "Error": ""}),
        );
        let ContainerState::Exited(exit) = ended else {
            panic!("{ended:?}")
        };
        assert!(exit.oom_killed && exit.exit_code == 137 && exit.message.is_none());
        assert!(exit.started_at < Some(exit.finished_at));
    }

    #[test]
    fn what_could_not_be_started_has_exited_with_the_reason() {
        let found = read(
            json!({"Status": "created", "StartedAt": NEVER, "FinishedAt": NEVER,
            "ExitCode": 127, "Error": "OCI runtime create failed: no such file"}),
        );
        let ContainerState::Exited(exit) = found else {
            panic!("{found:?}")
        };
        assert_eq!((exit.started_at, exit.exit_code), (None, 128));
        assert!(
            exit.message
                .is_some_and(|text| text.contains("no such file"))
        );
    }
}

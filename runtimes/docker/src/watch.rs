//! Follows the engine: its events, its comings and goings, and each running container's log to the end.
//!
//! ```text
//!  Down ─ connect ─▶ list what is ours ─▶ Up ─ events: die, oom, destroy, exec_die ─┐
//!   ▲                (repairs what was missed)                                      │ the stream ends
//!   └───────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::{
    Docker,
    container::LogOutput,
    models::{ContainerInspectResponse, EventMessage},
    query_parameters::{
        EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
        LogsOptionsBuilder,
    },
};
use futures::{Stream, StreamExt};
use wherry_log::LogStream;
use wherry_runtime_api::{ContainerExit, ContainerId, ContainerState, PodSandboxId};

use crate::{
    container::{self, Container, lost},
    engine::{Connection, Facts, status_code},
    log::{Filter, Log},
    names::{self, Kind},
    runtime::Inner,
    sandbox::Sandbox,
};

/// Before asking again an engine that does not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Containers looked at side by side after a restart.
const PARALLEL: usize = 8;
/// How long the log of a container that has died may take to come to its end.
const LOG_END_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the rest of a log may take to be read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Entries of a log written in one go.
const LOG_CHUNK: usize = 256;
/// The engine hears of an end and of want of memory on two ways; the second may be this much later.
const OOM_NEWS_TIMEOUT: Duration = Duration::from_millis(200);
const OOM_NEWS_POLL: Duration = Duration::from_millis(20);

impl Inner {
    /// Speaks to the engine once, and keeps following it for as long as the runtime lives.
    pub(crate) async fn watch(self: &Arc<Self>) {
        let mut first = Some(self.take_up().await);
        if let Some(Err(why)) = &first {
            self.engine.set(Connection::Down(why.clone()));
        }
        let inner = self.clone();
        let stopped = self.stopped.clone();
        tokio::spawn(async move {
            let follow = async {
                let mut pause = RETRY_PAUSE;
                loop {
                    let taken = match first.take() {
                        Some(taken) => taken,
                        None => inner.take_up().await,
                    };
                    match taken {
                        Ok(events) => {
                            pause = RETRY_PAUSE;
                            let why = inner.follow_events(events).await;
                            tracing::warn!(error = why, "Docker engine is gone");
                            inner.engine.set(Connection::Down(why));
                        }
                        Err(why) => {
                            tracing::debug!(error = why, "Docker engine does not answer");
                            inner.engine.set(Connection::Down(why));
                        }
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_PAUSE_MAX);
                }
            };
            tokio::select! {
                () = stopped.cancelled() => {}
                () = follow => {}
            }
        });
    }

    /// Connects, finds what is there, and answers the events from before it looked.
    async fn take_up(
        self: &Arc<Self>,
    ) -> Result<impl Stream<Item = Result<EventMessage, bollard::errors::Error>> + use<>, String>
    {
        let (docker, facts): (Docker, Facts) = self.engine.connect().await?;
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.repair(&docker).await?;
        tracing::info!(version = facts.version, "Docker engine answers");
        self.engine.set(Connection::Up(docker.clone(), facts));
        self.state().is_complete = true;
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("label", vec![format!("{}={}", names::NODE, self.node)]),
            (
                "event",
                ["die", "oom", "destroy", "exec_die"]
                    .map(str::to_owned)
                    .into(),
            ),
        ]);
        let since = format!("{}.{:09}", since.as_secs(), since.subsec_nanos());
        let options = EventsOptionsBuilder::default()
            .since(&since)
            .filters(&filters)
            .build();
        Ok(docker.events(Some(options)))
    }

    /// Lasts until the engine is gone; answers why.
    async fn follow_events(
        self: &Arc<Self>,
        events: impl Stream<Item = Result<EventMessage, bollard::errors::Error>>,
    ) -> String {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.hear(&event),
                Err(error) => return format!("docker engine: {error}"),
            }
        }
        "docker engine: it has closed the connection".to_owned()
    }

    fn hear(&self, event: &EventMessage) {
        let Some(actor) = &event.actor else { return };
        let (Some(id), Some(action)) = (actor.id.as_deref(), event.action.as_deref()) else {
            return;
        };
        if action.starts_with("exec_die") {
            let attributes = actor.attributes.as_ref();
            let get = |name| attributes.and_then(|all| all.get(name));
            if let (Some(exec), Some(code)) = (get("execID"), get("exitCode"))
                && let Ok(code) = code.parse()
            {
                let _ = self.exec_exits.send((exec.clone(), code));
            }
            return;
        }
        let (container, sandbox) = {
            let state = self.state();
            (
                state.containers.get(&ContainerId::new(id)).cloned(),
                state.sandboxes.get(&PodSandboxId::new(id)).cloned(),
            )
        };
        match (container, sandbox) {
            (Some(container), _) if action == "oom" => {
                container.is_out_of_memory.store(true, Ordering::Relaxed);
            }
            (Some(container), _) => container.died.notify_one(),
            (None, Some(sandbox)) if action != "oom" => self.sandbox_exited(&sandbox),
            _ => {}
        }
    }

    /// Compares what is known with what the engine holds, and mends the former.
    async fn repair(self: &Arc<Self>, docker: &Docker) -> Result<(), String> {
        let failed = |error| format!("docker engine: {error}");
        let filters = HashMap::from([("label", vec![format!("{}={}", names::NODE, self.node)])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let listed = docker
            .list_containers(Some(options))
            .await
            .map_err(failed)?;
        let mut ids = Vec::new();
        let looks = listed.into_iter().filter_map(|summary| {
            let kind = names::kind(summary.labels.as_ref()?, &self.node)?;
            let id = summary.id?;
            ids.push(id.clone());
            Some(self.look(docker, id, kind))
        });
        let looks: Vec<_> = looks.collect();
        let mut looks = futures::stream::iter(looks).buffer_unordered(PARALLEL);
        while let Some(looked) = looks.next().await {
            looked?;
        }
        drop(looks);
        let (containers, sandboxes) = {
            let state = self.state();
            let containers: Vec<_> = state.containers.values().cloned().collect();
            let sandboxes: Vec<_> = state.sandboxes.values().cloned().collect();
            (containers, sandboxes)
        };
        let is_gone = |id: &str| !ids.iter().any(|listed| listed == id);
        for container in containers {
            if is_gone(container.id.as_str()) {
                if container.is_running() {
                    container.died.notify_one();
                } else {
                    self.state().containers.remove(&container.id);
                }
            }
        }
        for sandbox in sandboxes {
            if is_gone(sandbox.id.as_str()) {
                self.sandbox_exited(&sandbox);
            }
        }
        Ok(())
    }

    /// Looks at one container of ours.
    async fn look(self: &Arc<Self>, docker: &Docker, id: String, kind: Kind) -> Result<(), String> {
        let found = match docker
            .inspect_container(&id, None::<InspectContainerOptions>)
            .await
        {
            Ok(found) => found,
            // Removed while we listed.
            Err(error) if status_code(&error) == Some(404) => return Ok(()),
            Err(error) => return Err(format!("docker engine: {error}")),
        };
        let taken = match kind {
            Kind::Sandbox => self.look_at_sandbox(&found),
            Kind::Container => self.look_at_container(docker, &found).await,
        };
        if let Err(error) = taken {
            tracing::warn!(error, "Container of ours cannot be read and is left alone");
        }
        Ok(())
    }

    fn look_at_sandbox(&self, found: &ContainerInspectResponse) -> Result<(), String> {
        let sandbox = Sandbox::from_inspect(found)?;
        let known = self.state().sandboxes.get(&sandbox.id).cloned();
        match known {
            Some(known) if !sandbox.is_ready() => self.sandbox_exited(&known),
            Some(_) => {}
            None => drop(self.state().sandboxes.insert(sandbox.id.clone(), sandbox)),
        }
        Ok(())
    }

    async fn look_at_container(
        self: &Arc<Self>,
        docker: &Docker,
        found: &ContainerInspectResponse,
    ) -> Result<(), String> {
        let state = container::state(found);
        let id = ContainerId::new(found.id.as_deref().unwrap_or_default());
        let known = self.state().containers.get(&id).cloned();
        if let Some(known) = known {
            match state {
                ContainerState::Running { .. } => {
                    self.apply(&known, state, container::pid(found));
                    self.follow_container(&known);
                }
                ContainerState::Exited(_) if known.is_running() => known.died.notify_one(),
                _ => {}
            }
            return Ok(());
        }
        let is_exited = matches!(state, ContainerState::Exited(_));
        let container = Container::from_inspect(found, state)?;
        if is_exited {
            self.drain_log(docker, &container).await;
        }
        self.state()
            .containers
            .insert(container.id.clone(), container.clone());
        if container.is_running() {
            self.follow_container(&container);
        }
        Ok(())
    }

    /// Copies a container's log and tells of its end, in the background.
    pub(crate) fn follow_container(self: &Arc<Self>, container: &Arc<Container>) {
        if !container.take_following() {
            return;
        }
        let (inner, container) = (self.clone(), container.clone());
        let stopped = self.stopped.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = inner.follow_to_the_end(&container) => {}
            }
        });
    }

    async fn follow_to_the_end(&self, container: &Container) {
        let mut pause = RETRY_PAUSE;
        let mut has_warned = false;
        loop {
            let Some(docker) = self.engine.wait().await else {
                return;
            };
            let began = tokio::time::Instant::now();
            let copied = {
                let mut copy = std::pin::pin!(copy_log(&docker, container, true));
                tokio::select! {
                    copied = &mut copy => copied,
                    () = container.died.notified() => {
                        tokio::time::timeout(LOG_END_TIMEOUT, copy).await.unwrap_or(Ok(()))
                    }
                }
            };
            if let Err(error) = copied
                && !has_warned
            {
                has_warned = true;
                tracing::warn!(container = %container.id, error, "Log is not copied");
            }
            let found = docker
                .inspect_container(container.id.as_str(), None::<InspectContainerOptions>)
                .await;
            match found.map(|found| container::state(&found)) {
                Ok(ContainerState::Exited(exit)) => {
                    self.drain_log(&docker, container).await;
                    let exit = self.settle(&docker, container, exit).await;
                    self.apply(container, ContainerState::Exited(exit), None);
                    return;
                }
                Err(error) if status_code(&error) == Some(404) => {
                    let exit = lost(container, "removed from the engine by somebody else");
                    self.apply(container, ContainerState::Exited(exit), None);
                    return;
                }
                _ => {}
            }
            // It runs on: the engine has gone, or the log has a gap.
            if began.elapsed() > RETRY_PAUSE_MAX {
                pause = RETRY_PAUSE;
            }
            let _ = tokio::time::timeout(pause, container.died.notified()).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    /// Completes what the engine knows of an end.
    async fn settle(
        &self,
        docker: &Docker,
        container: &Container,
        mut exit: ContainerExit,
    ) -> ContainerExit {
        let is_killed = container.is_killed.load(Ordering::Relaxed);
        if exit.exit_code == 128 + libc::SIGKILL && !is_killed && !exit.oom_killed {
            let deadline = tokio::time::Instant::now() + OOM_NEWS_TIMEOUT;
            while !exit.oom_killed && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(OOM_NEWS_POLL).await;
                let found = docker
                    .inspect_container(container.id.as_str(), None::<InspectContainerOptions>)
                    .await;
                exit.oom_killed = container.is_out_of_memory.load(Ordering::Relaxed)
                    || found.is_ok_and(|found| {
                        found
                            .state
                            .is_some_and(|state| state.oom_killed == Some(true))
                    });
            }
        }
        if exit.oom_killed || is_killed {
            exit.signal = (exit.exit_code == 128 + libc::SIGKILL).then_some(libc::SIGKILL);
        }
        exit
    }

    /// Copies what is left of the log of a container that has exited.
    async fn drain_log(&self, docker: &Docker, container: &Container) {
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, copy_log(docker, container, false)).await;
        match drained {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(container = %container.id, error, "Rest of the log is not copied");
            }
            Err(_) => tracing::warn!(container = %container.id, "Rest of the log takes too long"),
        }
        // Whoever reopens it later finds how far it goes from the file.
        container.lock_log().take();
    }
}

/// An engine (seen with 20.10) may stop following a log at the moment at which it rotates it, and says nothing. So a
/// stream that has carried much and falls silent is opened anew before long, and any other now and then: opening costs
/// the engine a look through the whole log.
const BULK_BYTES: usize = 1024 * 1024;
const SILENCE_AFTER_BULK_MAX: Duration = Duration::from_secs(5);
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// Copies from where the copy ends: to the engine's end of the log, or for as long as the container runs.
async fn copy_log(docker: &Docker, container: &Container, follow: bool) -> Result<(), String> {
    let named = |error: std::io::Error| format!("{}: {error}", container.record.log_path.display());
    let is_open = container.lock_log().is_some();
    if !is_open {
        let (path, rotation) = (
            container.record.log_path.clone(),
            container.record.log_rotation,
        );
        let opened = tokio::task::spawn_blocking(move || Log::open(&path, rotation))
            .await
            .map_err(|error| error.to_string())?
            .map_err(named)?;
        container.lock_log().get_or_insert(opened);
    }
    let position = match &*container.lock_log() {
        Some(log) => log.position(),
        None => return Ok(()),
    };
    let options = LogsOptionsBuilder::default()
        .follow(follow)
        .stdout(true)
        .stderr(true)
        .timestamps(true)
        .since(i32::try_from(position.since_seconds()).unwrap_or(0))
        .tail("all")
        .build();
    let mut filter = Filter::new(position);
    let outputs = docker
        .logs(container.id.as_str(), Some(options))
        .ready_chunks(LOG_CHUNK);
    let mut outputs = std::pin::pin!(outputs);
    let mut carried_bytes = 0;
    loop {
        let silence_max = if carried_bytes < BULK_BYTES {
            SILENCE_MAX
        } else {
            SILENCE_AFTER_BULK_MAX
        };
        let chunk = match tokio::time::timeout(silence_max, outputs.next()).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            // Perhaps there is more: the caller asks anew from where the copy ends.
            Err(_) => return Ok(()),
        };
        let mut log = container.lock_log();
        let Some(log) = log.as_mut() else {
            return Ok(());
        };
        let mut failed = None;
        for output in chunk {
            match output {
                Ok(LogOutput::StdOut { message } | LogOutput::Console { message }) => {
                    carried_bytes += message.len();
                    log.append(&mut filter, LogStream::Stdout, &message);
                }
                Ok(LogOutput::StdErr { message }) => {
                    carried_bytes += message.len();
                    log.append(&mut filter, LogStream::Stderr, &message);
                }
                Ok(LogOutput::StdIn { .. }) => {}
                Err(error) => failed = Some(error),
            }
        }
        log.flush().map_err(named)?;
        if let Some(error) = failed {
            return Err(format!("docker engine: {error}"));
        }
    }
    if let Some(log) = container.lock_log().as_mut() {
        log.settle();
    }
    Ok(())
}

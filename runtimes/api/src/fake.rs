//! An in-memory runtime and image service with scripted delays and failures.
//!
//! Time is tokio's, so a test with paused time decides when containers exit. Every call is written
//! into a journal, whose order is what many tests are about.
//!
//! A container whose command begins with `program` does what the words after it say, as the conformance suite wants it
//! (`programs.rs`); any other does what [`FakeRuntime::behave`] says.

mod images;
mod programs;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures::FutureExt;
use tokio::{
    sync::{Notify, broadcast},
    time::Instant,
};

use crate::*;
pub use images::FakeImages;
use programs::{App, Ended};

/// Room for events nobody has read yet; older ones are lost as with a real runtime.
const EVENTS_MAX: usize = 256;

/// A call that can be delayed or made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// [`Runtime::run_pod_sandbox`].
    RunPodSandbox,
    /// [`Runtime::stop_pod_sandbox`].
    StopPodSandbox,
    /// [`Runtime::create_container`].
    CreateContainer,
    /// [`Runtime::start_container`].
    StartContainer,
    /// [`Runtime::stop_container`].
    StopContainer,
    /// [`Runtime::update_container_resources`].
    UpdateContainerResources,
    /// [`Runtime::update_pod_sandbox_resources`].
    UpdatePodSandboxResources,
    /// [`Runtime::exec_sync`].
    ExecSync,
    /// [`ImageService::pull_image`].
    PullImage,
}

/// What a container of an image does once started.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Exits by itself after this long with this code.
    pub exits: Option<(Duration, i32)>,
    /// How long it takes to exit when asked to; `None` waits for the kill.
    pub stops_after: Option<Duration>,
    /// Its exit code when asked to stop.
    pub stop_code: i32,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            exits: None,
            stops_after: Some(Duration::ZERO),
            stop_code: 0,
        }
    }
}

/// Wall-clock time that follows tokio's clock, paused or not, and can be put forward.
#[derive(Clone, Copy, Debug)]
pub struct FakeClock {
    wall: SystemTime,
    monotonic: Instant,
    /// Shared by copies of one clock. Leaked: a few bytes for each clock of a test.
    ahead_millis: &'static AtomicU64,
}

impl Default for FakeClock {
    fn default() -> Self {
        Self {
            wall: SystemTime::now(),
            monotonic: Instant::now(),
            ahead_millis: Box::leak(Box::default()),
        }
    }
}

impl FakeClock {
    /// The time now.
    pub fn now(&self) -> SystemTime {
        let ahead = Duration::from_millis(self.ahead_millis.load(Ordering::Relaxed));
        self.wall + self.monotonic.elapsed() + ahead
    }

    /// Puts the clock forward, for all who have it. Nobody who sleeps is woken by that.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).expect("a test is not that long");
        self.ahead_millis.fetch_add(millis, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Script {
    delays: HashMap<Call, Duration>,
    failures: HashMap<Call, VecDeque<RuntimeError>>,
    behaviours: HashMap<String, Behaviour>,
    exec_exit_codes: HashMap<String, i32>,
    missing_images: HashSet<String>,
    features: RuntimeFeatures,
    memory_working_set_bytes: u64,
}

struct Held {
    config: ContainerConfig,
    status: ContainerStatus,
    changed: Arc<Notify>,
    /// Where it runs a program of the suite.
    app: Option<Arc<App>>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    sandboxes: BTreeMap<PodSandboxId, PodSandbox>,
    containers: BTreeMap<ContainerId, Held>,
    script: Script,
    journal: Vec<String>,
}

/// The runtime. Shared by `Arc`; a restarted agent is given the same one.
pub struct FakeRuntime {
    handler: &'static str,
    clock: FakeClock,
    state: Mutex<State>,
    events: broadcast::Sender<RuntimeEvent>,
    this: std::sync::Weak<Self>,
}

impl FakeRuntime {
    /// An empty runtime. The one called `wasm` answers confined sandboxes, others a namespace.
    pub fn new(handler: &'static str, clock: FakeClock) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            handler,
            clock,
            state: Mutex::default(),
            events: broadcast::channel(EVENTS_MAX).0,
            this: this.clone(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no test panics while it holds the fake's lock")
    }

    /// What the runtime says that it offers.
    pub fn offer(&self, features: RuntimeFeatures) {
        self.state().script.features = features;
    }

    /// What every container's usage says about its memory.
    pub fn use_memory(&self, working_set_bytes: u64) {
        self.state().script.memory_working_set_bytes = working_set_bytes;
    }

    /// The config of a pod's newest container of that name, with the limits it has now.
    pub fn config(&self, pod: &str, container: &str) -> Option<ContainerConfig> {
        let state = self.state();
        let all = state.containers.values();
        all.filter(|held| held.status.pod.as_str() == pod && held.status.name == container)
            .max_by_key(|held| held.status.attempt)
            .map(|held| held.config.clone())
    }

    /// The config of a pod's newest sandbox, with the limits it has now.
    pub fn sandbox_config(&self, pod: &str) -> Option<PodSandboxConfig> {
        let state = self.state();
        let all = state.sandboxes.values();
        all.filter(|sandbox| sandbox.config.uid.as_str() == pod)
            .max_by_key(|sandbox| sandbox.config.attempt)
            .map(|sandbox| sandbox.config.clone())
    }

    /// Makes each such call take this long.
    pub fn delay(&self, call: Call, by: Duration) {
        self.state().script.delays.insert(call, by);
    }

    /// Makes the next such call fail; several are used up in order.
    pub fn fail_next(&self, call: Call, error: RuntimeError) {
        self.state()
            .script
            .failures
            .entry(call)
            .or_default()
            .push_back(error);
    }

    /// Says what containers of an image do from now on.
    pub fn behave(&self, image: &str, behaviour: Behaviour) {
        self.state()
            .script
            .behaviours
            .insert(image.into(), behaviour);
    }

    /// Says what a command run by `exec_sync` exits with (by its first word; 0 if nothing is said).
    pub fn exec_exits(&self, program: &str, exit_code: i32) {
        self.state()
            .script
            .exec_exit_codes
            .insert(program.into(), exit_code);
    }

    /// Makes containers of this image ID impossible to create.
    pub fn lack_image(&self, image_id: &str) {
        self.state().script.missing_images.insert(image_id.into());
    }

    /// The program that a container runs, if it runs one now.
    fn running_app(&self, id: &ContainerId) -> Result<Option<Arc<App>>, RuntimeError> {
        let state = self.state();
        let held = state
            .containers
            .get(id)
            .ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))?;
        match (&held.app, &held.status.state) {
            (Some(app), ContainerState::Running { .. }) => Ok(Some(app.clone())),
            (Some(_), _) => Err(RuntimeError::FailedPrecondition(format!(
                "container {id} does not run"
            ))),
            (None, _) => Ok(None),
        }
    }

    /// Ends the running container of that name in that pod.
    pub fn exit(&self, pod: &str, container: &str, exit_code: i32, oom_killed: bool) {
        let id = self
            .state()
            .containers
            .values()
            .filter(|held| held.status.pod.as_str() == pod && held.status.name == container)
            .find(|held| matches!(held.status.state, ContainerState::Running { .. }))
            .map(|held| held.status.id.clone());
        if let Some(id) = id {
            self.finish(&id, exit_code, oom_killed);
        }
    }

    /// Kills the process that holds a pod's sandbox, and with it its containers.
    pub fn lose_sandbox(&self, pod: &str) {
        let ids: Vec<_> = {
            let mut state = self.state();
            state
                .sandboxes
                .values_mut()
                .filter(|s| s.config.uid.as_str() == pod)
                .for_each(|s| s.state = PodSandboxState::NotReady);
            state
                .containers
                .values()
                .filter(|c| c.status.pod.as_str() == pod)
                .map(|c| c.status.id.clone())
                .collect()
        };
        ids.iter().for_each(|id| self.finish(id, 137, false));
        let sandboxes: Vec<_> = self
            .state()
            .sandboxes
            .values()
            .filter(|s| s.config.uid.as_str() == pod)
            .map(|s| s.id.clone())
            .collect();
        for id in sandboxes {
            let _ = self.events.send(RuntimeEvent::SandboxExited {
                pod: pod.into(),
                id,
            });
        }
    }

    /// Calls that changed something, in order: `create a/0`, `start a/0`, `stop a/0`, `run-sandbox 0` …
    pub fn journal(&self) -> Vec<String> {
        self.state().journal.clone()
    }

    /// Containers that run now, by name, sorted.
    pub fn running(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .state()
            .containers
            .values()
            .filter(|held| matches!(held.status.state, ContainerState::Running { .. }))
            .map(|held| held.status.name.clone())
            .collect();
        names.sort();
        names
    }

    /// Sandboxes and containers it still knows of.
    pub fn held(&self) -> (usize, usize) {
        let state = self.state();
        (state.sandboxes.len(), state.containers.len())
    }

    async fn begin(&self, call: Call) -> Result<(), RuntimeError> {
        let delay = self.state().script.delays.get(&call).copied();
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        match self
            .state()
            .script
            .failures
            .get_mut(&call)
            .and_then(VecDeque::pop_front)
        {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn finish(&self, id: &ContainerId, exit_code: i32, oom_killed: bool) {
        let now = self.clock.now();
        let pod = {
            let mut state = self.state();
            let Some(held) = state.containers.get_mut(id) else {
                return;
            };
            let started_at = match &held.status.state {
                ContainerState::Running { started_at } => Some(*started_at),
                ContainerState::Created => None,
                ContainerState::Exited(_) | ContainerState::Unknown => return,
            };
            held.status.state = ContainerState::Exited(ContainerExit {
                started_at,
                finished_at: now,
                exit_code,
                signal: (exit_code > 128).then(|| exit_code - 128),
                oom_killed,
                message: None,
            });
            held.changed.notify_waiters();
            if let Some(app) = &held.app {
                app.end(exit_code);
            }
            held.status.pod.clone()
        };
        let _ = self.events.send(RuntimeEvent::ContainerExited {
            pod,
            id: id.clone(),
        });
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn handler(&self) -> &'static str {
        self.handler
    }

    async fn status(&self) -> RuntimeStatus {
        RuntimeStatus {
            version: "0.0.0-fake".into(),
            not_ready: None,
            features: self.state().script.features,
        }
    }

    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<PodSandbox, RuntimeError> {
        self.begin(Call::RunPodSandbox).await?;
        let mut state = self.state();
        let there = state.sandboxes.values().find(|s| {
            s.config.uid == config.uid
                && s.config.attempt == config.attempt
                && s.state == PodSandboxState::Ready
        });
        if let Some(there) = there {
            return Ok(there.clone());
        }
        state.next_id += 1;
        let id = PodSandboxId::new(format!("sandbox-{}", state.next_id));
        let network = match (config.namespaces.network, self.handler) {
            (NamespaceMode::Node, _) => SandboxNetwork::Host,
            (_, "wasm") => SandboxNetwork::Confined,
            _ => SandboxNetwork::Namespace {
                path: PathBuf::from(format!("/fake/{id}/ns/net")),
            },
        };
        let sandbox = PodSandbox {
            id: id.clone(),
            handler: self.handler.into(),
            config: config.clone(),
            state: PodSandboxState::Ready,
            created_at: self.clock.now(),
            network,
            ips: Vec::new(),
            pid: None,
        };
        state
            .journal
            .push(format!("run-sandbox {}", config.attempt));
        state.sandboxes.insert(id, sandbox.clone());
        Ok(sandbox)
    }

    async fn stop_pod_sandbox(&self, id: &PodSandboxId) -> Result<(), RuntimeError> {
        self.begin(Call::StopPodSandbox).await?;
        let ids: Vec<_> = {
            let mut state = self.state();
            let Some(sandbox) = state.sandboxes.get_mut(id) else {
                return Ok(());
            };
            if sandbox.state == PodSandboxState::Ready {
                sandbox.state = PodSandboxState::NotReady;
                let attempt = sandbox.config.attempt;
                state.journal.push(format!("stop-sandbox {attempt}"));
            }
            state
                .containers
                .values()
                .filter(|c| c.status.sandbox == *id)
                .map(|c| c.status.id.clone())
                .collect()
        };
        ids.iter().for_each(|id| self.finish(id, 137, false));
        Ok(())
    }

    async fn remove_pod_sandbox(&self, id: &PodSandboxId) -> Result<(), RuntimeError> {
        self.stop_pod_sandbox(id).await?;
        let mut state = self.state();
        if let Some(sandbox) = state.sandboxes.remove(id) {
            state
                .journal
                .push(format!("remove-sandbox {}", sandbox.config.attempt));
        }
        state
            .containers
            .retain(|_, held| held.status.sandbox != *id);
        Ok(())
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>, RuntimeError> {
        Ok(self.state().sandboxes.values().cloned().collect())
    }

    async fn create_container(
        &self,
        sandbox: &PodSandbox,
        config: &ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        self.begin(Call::CreateContainer).await?;
        let mut state = self.state();
        if let Some(AppArmorProfile::Localhost(name)) = &config.security.apparmor {
            return Err(RuntimeError::Unsupported(format!(
                "AppArmor profile {name}: a fake has none"
            )));
        }
        if state.script.missing_images.contains(&config.image_id) {
            return Err(RuntimeError::ImageNotFound(config.image_id.clone()));
        }
        let is_own = sandbox.handler == self.handler;
        match state.sandboxes.get(&sandbox.id).map(|known| known.state) {
            None if is_own => {
                return Err(RuntimeError::NotFound(format!("sandbox {}", sandbox.id)));
            }
            Some(PodSandboxState::NotReady) => {
                return Err(RuntimeError::FailedPrecondition(format!(
                    "sandbox {} is not ready",
                    sandbox.id
                )));
            }
            _ => {}
        }
        let there = state.containers.values().find(|held| {
            held.status.sandbox == sandbox.id
                && held.status.name == config.name
                && held.status.attempt == config.attempt
        });
        if let Some(there) = there {
            return Ok(there.status.id.clone());
        }
        state.next_id += 1;
        let id = ContainerId::new(format!("container-{}", state.next_id));
        state
            .journal
            .push(format!("create {}/{}", config.name, config.attempt));
        let status = ContainerStatus {
            id: id.clone(),
            handler: self.handler.into(),
            sandbox: sandbox.id.clone(),
            pod: sandbox.config.uid.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_id: config.image_id.clone(),
            state: ContainerState::Created,
            created_at: self.clock.now(),
            log_path: config.log_path.clone(),
            pid: None,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            warnings: Vec::new(),
        };
        state.containers.insert(
            id.clone(),
            Held {
                config: config.clone(),
                status,
                changed: Arc::default(),
                app: App::new(config)?,
            },
        );
        Ok(id)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.begin(Call::StartContainer).await?;
        let (pod, app, behaviour) = {
            let mut state = self.state();
            let Some(held) = state.containers.get_mut(id) else {
                return Err(RuntimeError::NotFound(format!("container {id}")));
            };
            if held.status.state != ContainerState::Created {
                return Ok(());
            }
            held.status.state = ContainerState::Running {
                started_at: self.clock.now(),
            };
            let (pod, image) = (held.status.pod.clone(), held.status.image.clone());
            let app = held.app.clone();
            let line = format!("start {}/{}", held.status.name, held.status.attempt);
            state.journal.push(line);
            (
                pod,
                app,
                state
                    .script
                    .behaviours
                    .get(&image)
                    .copied()
                    .unwrap_or_default(),
            )
        };
        let _ = self.events.send(RuntimeEvent::ContainerStarted {
            pod,
            id: id.clone(),
        });
        if let Some(app) = app {
            let (this, id) = (self.this.clone(), id.clone());
            tokio::spawn(async move {
                let Ended {
                    exit_code,
                    oom_killed,
                } = app.run().await;
                if let Some(this) = this.upgrade() {
                    this.finish(&id, exit_code, oom_killed);
                }
            });
        } else if let Some((after, exit_code)) = behaviour.exits {
            let (this, id) = (self.this.clone(), id.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                if let Some(this) = this.upgrade() {
                    this.finish(&id, exit_code, false);
                }
            });
        }
        Ok(())
    }

    async fn stop_container(
        &self,
        id: &ContainerId,
        grace_period: Duration,
    ) -> Result<(), RuntimeError> {
        self.begin(Call::StopContainer).await?;
        let (behaviour, changed) = {
            let mut state = self.state();
            let Some(held) = state.containers.get(id) else {
                return Ok(());
            };
            if matches!(held.status.state, ContainerState::Exited(_)) {
                return Ok(());
            }
            let changed = Arc::clone(&held.changed);
            let behaviour = state
                .script
                .behaviours
                .get(&held.status.image)
                .copied()
                .unwrap_or_default();
            let line = format!("stop {}/{}", held.status.name, held.status.attempt);
            state.journal.push(line);
            (behaviour, changed)
        };
        let exited = changed.notified();
        let app = self.running_app(id).ok().flatten();
        if let Some(app) = &app {
            app.ask_to_stop();
        }
        let (wait, exit_code) = match behaviour.stops_after {
            _ if app.is_some() => (grace_period, 137),
            Some(after) if after <= grace_period => (after, behaviour.stop_code),
            _ => (grace_period, 137),
        };
        if tokio::time::timeout(wait, exited).await.is_err() {
            self.finish(id, exit_code, false);
        }
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.finish(id, 137, false);
        self.state().containers.remove(id);
        Ok(())
    }

    async fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError> {
        let state = self.state();
        let held = state
            .containers
            .get(id)
            .ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))?;
        Ok(held.status.clone())
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(self
            .state()
            .containers
            .values()
            .map(|held| held.status.clone())
            .collect())
    }

    async fn update_container_resources(
        &self,
        id: &ContainerId,
        resources: &LinuxResources,
    ) -> Result<(), RuntimeError> {
        self.begin(Call::UpdateContainerResources).await?;
        let mut state = self.state();
        let held = state
            .containers
            .get_mut(id)
            .ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))?;
        if matches!(held.status.state, ContainerState::Exited(_)) {
            return Err(RuntimeError::FailedPrecondition(format!(
                "container {id} has exited"
            )));
        }
        held.config.resources = resources.clone();
        let line = format!("update {}/{}", held.status.name, held.status.attempt);
        state.journal.push(line);
        Ok(())
    }

    async fn update_pod_sandbox_resources(
        &self,
        id: &PodSandboxId,
        resources: &LinuxResources,
    ) -> Result<(), RuntimeError> {
        self.begin(Call::UpdatePodSandboxResources).await?;
        let mut state = self.state();
        let sandbox = state
            .sandboxes
            .get_mut(id)
            .ok_or_else(|| RuntimeError::NotFound(format!("sandbox {id}")))?;
        sandbox.config.resources = resources.clone();
        let line = format!("update-sandbox {}", sandbox.config.attempt);
        state.journal.push(line);
        Ok(())
    }

    fn subscribe(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecSyncResponse, RuntimeError> {
        let begun = tokio::time::timeout(timeout, self.begin(Call::ExecSync)).await;
        begun.map_err(|_| RuntimeError::DeadlineExceeded {
            what: command.join(" "),
            after: timeout,
        })??;
        if let Some(app) = self.running_app(id)? {
            return app.exec_sync(command, timeout).await;
        }
        let program = command.first().cloned().unwrap_or_default();
        let status = self.container_status(id).await?;
        let mut state = self.state();
        state
            .journal
            .push(format!("exec {}/{} {program}", status.name, status.attempt));
        let exit_code = state
            .script
            .exec_exit_codes
            .get(&program)
            .copied()
            .unwrap_or(0);
        Ok(ExecSyncResponse {
            stdout: Vec::new(),
            stderr: Vec::new(),
            exit_code,
        })
    }

    async fn exec(
        &self,
        id: &ContainerId,
        request: &ExecRequest,
    ) -> Result<StreamSession, RuntimeError> {
        if let Some(app) = self.running_app(id)? {
            return Ok(app.exec(request));
        }
        let output = std::io::Cursor::new(format!("{}\n", request.command.join(" ")).into_bytes());
        Ok(StreamSession {
            stdin: request.stdin.then(|| Box::new(tokio::io::sink()) as _),
            stdout: request.stdout.then(|| Box::new(output) as _),
            stderr: (request.stderr && !request.tty).then(|| Box::new(tokio::io::empty()) as _),
            resize: request.tty.then(|| tokio::sync::mpsc::channel(1).0),
            exit: async { Ok(0) }.boxed(),
        })
    }

    async fn attach(
        &self,
        id: &ContainerId,
        request: &AttachRequest,
    ) -> Result<StreamSession, RuntimeError> {
        if let Some(app) = self.running_app(id)? {
            return Ok(app.attach(request));
        }
        Ok(StreamSession {
            stdin: request.stdin.then(|| Box::new(tokio::io::sink()) as _),
            stdout: request.stdout.then(|| Box::new(tokio::io::empty()) as _),
            stderr: request.stderr.then(|| Box::new(tokio::io::empty()) as _),
            resize: None,
            exit: async { Ok(0) }.boxed(),
        })
    }

    async fn port_forward(
        &self,
        sandbox: &PodSandbox,
        port: u16,
    ) -> Result<Box<dyn Duplex>, RuntimeError> {
        let listens = self.state().containers.values().any(|held| {
            held.status.sandbox == sandbox.id
                && matches!(held.status.state, ContainerState::Running { .. })
                && held.app.as_ref().is_some_and(|app| app.listens_on(port))
        });
        if listens {
            return Ok(programs::echo());
        }
        Err(RuntimeError::Unavailable(format!(
            "sandbox {}: port {port}: connection refused",
            sandbox.id
        )))
    }

    async fn reopen_container_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        match self.running_app(id)? {
            Some(app) => app.reopen_log(),
            None => Ok(()),
        }
    }

    async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        let status = self.container_status(id).await?;
        let ContainerState::Running { started_at } = status.state else {
            return Err(RuntimeError::NotFound(format!("running container {id}")));
        };
        // A millisecond to start with; a program of the suite is always busy.
        let busy = match self.running_app(id) {
            Ok(Some(_)) => self.clock.now().duration_since(started_at),
            _ => Ok(Duration::ZERO),
        };
        let busy = u64::try_from(busy.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX);
        let working_set = self.state().script.memory_working_set_bytes.max(1 << 20);
        Ok(ContainerStats {
            at: self.clock.now(),
            cpu_usage_core_nanoseconds: 1_000_000 + busy,
            memory_usage_bytes: working_set + (1 << 20),
            memory_working_set_bytes: working_set,
            memory_rss_bytes: 1 << 20,
            process_count: 1,
            ..ContainerStats::default()
        })
    }
}

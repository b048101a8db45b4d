//! An in-memory runtime and image service with scripted delays and failures.
//!
//! Time is tokio's, so a test with paused time decides when containers exit. Every call is written
//! into a journal, whose order is what many tests are about.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
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
    features: RuntimeFeatures,
    memory_working_set_bytes: u64,
}

struct Held {
    config: ContainerConfig,
    status: ContainerStatus,
    changed: Arc<Notify>,
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
            },
        );
        Ok(id)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.begin(Call::StartContainer).await?;
        let (pod, behaviour) = {
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
            let line = format!("start {}/{}", held.status.name, held.status.attempt);
            state.journal.push(line);
            (
                pod,
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
        if let Some((after, exit_code)) = behaviour.exits {
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
        let (wait, exit_code) = match behaviour.stops_after {
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
        self.container_status(id).await?;
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
        self.container_status(id).await?;
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
        Err(RuntimeError::Unavailable(format!(
            "sandbox {}: port {port}: connection refused",
            sandbox.id
        )))
    }

    async fn reopen_container_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.container_status(id).await.map(drop)
    }

    async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        let status = self.container_status(id).await?;
        if !matches!(status.state, ContainerState::Running { .. }) {
            return Err(RuntimeError::NotFound(format!("running container {id}")));
        }
        let working_set = self.state().script.memory_working_set_bytes.max(1 << 20);
        Ok(ContainerStats {
            at: self.clock.now(),
            cpu_usage_core_nanoseconds: 1_000_000,
            memory_usage_bytes: working_set + (1 << 20),
            memory_working_set_bytes: working_set,
            memory_rss_bytes: 1 << 20,
            process_count: 1,
            ..ContainerStats::default()
        })
    }
}

#[derive(Default)]
struct Images {
    registry: BTreeMap<String, ImageKind>,
    present: BTreeMap<String, Image>,
    failures: VecDeque<ImageError>,
    delay: Duration,
    pulls: Vec<(String, Vec<RegistryAuth>)>,
}

/// The image service: what the registry has is pulled, anything else is not found.
#[derive(Default)]
pub struct FakeImages {
    images: Mutex<Images>,
}

impl FakeImages {
    /// An empty store before a registry that has `images`.
    pub fn new(images: &[(&str, ImageKind)]) -> Arc<Self> {
        let this = Self::default();
        this.images().registry = images
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), *kind))
            .collect();
        Arc::new(this)
    }

    fn images(&self) -> MutexGuard<'_, Images> {
        self.images
            .lock()
            .expect("no test panics while it holds the fake's lock")
    }

    /// Makes the next pull fail.
    pub fn fail_next(&self, error: ImageError) {
        self.images().failures.push_back(error);
    }

    /// Makes each pull take this long.
    pub fn delay(&self, by: Duration) {
        self.images().delay = by;
    }

    /// Pulls made, with the credentials that were offered.
    pub fn pulls(&self) -> Vec<(String, Vec<RegistryAuth>)> {
        self.images().pulls.clone()
    }
}

#[async_trait]
impl ImageService for FakeImages {
    async fn image_status(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let images = self.images();
        Ok(images
            .present
            .values()
            .find(|i| i.id == reference || i.repo_tags.iter().any(|tag| tag == reference))
            .cloned())
    }

    async fn resolve_kind(
        &self,
        reference: &str,
        _: &[RegistryAuth],
    ) -> Result<ImageKind, ImageError> {
        let kind = self.images().registry.get(reference).copied();
        kind.ok_or_else(|| ImageError::NotFound {
            reference: reference.into(),
        })
    }

    async fn pull_image(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
        _: Option<PullProgressSender>,
    ) -> Result<Image, ImageError> {
        let delay = self.images().delay;
        tokio::time::sleep(delay).await;
        let mut images = self.images();
        images.pulls.push((reference.into(), auth.to_vec()));
        if let Some(error) = images.failures.pop_front() {
            return Err(error);
        }
        let Some(kind) = images.registry.get(reference).copied() else {
            return Err(ImageError::NotFound {
                reference: reference.into(),
            });
        };
        let image = Image {
            id: format!("sha256:{reference}"),
            repo_tags: vec![reference.into()],
            repo_digests: vec![format!("{reference}@sha256:{reference}")],
            size_bytes: 1000,
            user: None,
            kind,
        };
        images.present.insert(reference.into(), image.clone());
        Ok(image)
    }

    async fn list_images(&self) -> Result<Vec<Image>, ImageError> {
        Ok(self.images().present.values().cloned().collect())
    }

    async fn remove_image(&self, id: &str) -> Result<(), ImageError> {
        self.images().present.retain(|_, image| image.id != id);
        Ok(())
    }

    async fn fs_info(&self) -> Result<FsUsage, ImageError> {
        let used_bytes = self
            .images()
            .present
            .values()
            .map(|image| image.size_bytes)
            .sum();
        Ok(FsUsage {
            used_bytes,
            inodes_used: 1,
            capacity_bytes: 1 << 30,
            available_bytes: (1 << 30) - used_bytes,
        })
    }
}

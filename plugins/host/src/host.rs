//! Installed plugins and the calls to them.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    time::{sleep, timeout, timeout_at},
};
use tracing::{debug, error, info, warn};
use wherry_runtime_api::RuntimeError;
use wherry_wasm_aot::{Aot, NO_PLUGINS_WORLD, Purpose};

use crate::{
    Exec, Grants, Limits, PluginStats, ProbeOutcome, ProbeResult, ProbeTarget,
    agency::{Agency, Checks},
    apart::Apart,
    builtin::{self, Builtins},
    filesystem::counted::Counted,
    named::NamedHosts,
    protocol::{Call, Ended, Fault, Linked, LogLevel, Outcome, Said, Verdict, World},
    stats,
    supervisor::{CallNews, LoadError, Supervisor, Worker},
    thread::OwnThread,
};

/// A worker that has not answered this long after a call's time is up hangs, and is ended.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// Results remembered of each plugin for [`FailurePolicy::LastResult`].
const RESULTS_MAX: usize = 1024;
/// How long a worker that ended takes to be there again, if it has not ended often.
const WORKER_BACK: Duration = Duration::from_millis(150);
/// Workers that one check by a built-in plugin may lose.
const WORKERS_PER_CHECK_MAX: u32 = 5;
/// Attempts at having a plugin linked while workers end under it.
const LOAD_ATTEMPTS_MAX: u32 = 3;

/// What the host needs to know.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The program to start, which has the modes `plugin-worker` and `wasm-compile`.
    pub exe: PathBuf,
    /// Compiled plugins; the host's own.
    pub cache: PathBuf,
    /// An empty directory, which is all that workers see of the file system.
    pub jail: PathBuf,
    /// User that workers become. Should own nothing.
    pub uid: u32,
    /// Group that workers become.
    pub gid: u32,
    /// The worker's cgroup, relative to each hierarchy (`wherry/plugins`); `None` leaves it in the agent's.
    pub cgroup: Option<String>,
    /// The same of the volume server and its workers (`wherry/volumes`).
    pub volumes_cgroup: Option<String>,
}

impl HostConfig {
    /// `<root>/plugins` and `<run>/plugins` are the host's.
    pub fn new(root: &Path, run: &Path, exe: PathBuf) -> Self {
        Self {
            exe,
            cache: root.join("plugins/cache"),
            jail: run.join("plugins/empty"),
            // As for Wasm containers: "nonroot" of distroless images.
            uid: 65_532,
            gid: 65_532,
            cgroup: None,
            volumes_cgroup: None,
        }
    }
}

/// A plugin to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginSpec {
    /// The Plugin object's name, which probes call it by.
    pub name: String,
    /// Names the component's content.
    pub digest: String,
    /// What it may do.
    pub grants: Grants,
    /// What each call may use.
    pub limits: Limits,
    /// What a call without an outcome counts as.
    pub failure_policy: FailurePolicy,
    /// What the operator tells it, by key.
    pub config: BTreeMap<String, String>,
}

/// What a call without an outcome counts as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailurePolicy {
    /// The probe failed.
    Fail,
    /// It does not count.
    #[default]
    Ignore,
    /// What the same check said last; at first it does not count.
    LastResult,
}

/// A plugin cannot be installed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PluginError {
    /// It is no component that compiles. Trying again does not help.
    #[error("{0}")]
    NotAComponent(String),
    /// It is a component of no world that the host knows. Trying again does not help.
    #[error("{0}")]
    UnknownWorld(String),
    /// Its imports or exports are not as the contract has them. Trying again does not help.
    #[error("{0}")]
    Invalid(String),
    /// Settings for a built-in plugin, of which there is none by that name.
    #[error("no plugin called {0} is built in: spec.image has to say where it is")]
    NotBuiltIn(String),
    /// It imports what it is not granted.
    #[error("plugin {plugin} imports {import}: needs the grant {grant}")]
    NotGranted {
        /// The plugin.
        plugin: String,
        /// What it imports.
        import: String,
        /// The field of the Plugin's `spec.grants`.
        grant: &'static str,
    },
    /// It could not be looked at. Trying again may help.
    #[error("plugin {plugin}: {why}")]
    Unavailable {
        /// The plugin.
        plugin: String,
        /// The trouble.
        why: String,
    },
}

impl PluginError {
    /// In a word, as conditions have it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAComponent(_) => "NotAComponent",
            Self::UnknownWorld(_) => "UnknownWorld",
            Self::Invalid(_) => "CannotBeLinked",
            Self::NotBuiltIn(_) => "NotBuiltIn",
            Self::NotGranted { .. } => "GrantsMissing",
            Self::Unavailable { .. } => "WorkerUnavailable",
        }
    }
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) stats: PluginStats,
    pub(crate) apart: Apart,
    results: HashMap<String, ProbeResult>,
}

pub(crate) struct Installed {
    number: u64,
    pub(crate) spec: PluginSpec,
    pub(crate) directory: PathBuf,
    pub(crate) linked: Linked,
    pub(crate) instances: Semaphore,
    is_builtin: bool,
    pub(crate) seen: Mutex<Seen>,
}

/// The node's plugins.
pub struct PluginHost {
    pub(crate) config: HostConfig,
    aot: Aot,
    supervisor: Supervisor,
    thread: OwnThread,
    installed: Mutex<HashMap<String, Arc<Installed>>>,
    pub(crate) builtins: Builtins,
    /// Of file systems, which are called by another process.
    pub(crate) counted: Mutex<Counted>,
    /// Why plugins that the operator wants are not there, by name.
    refused: Mutex<HashMap<String, String>>,
    next_number: AtomicU64,
    /// Counts what is installed and removed.
    changed: watch::Sender<u64>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PluginHost {
    /// A host without plugins; its worker is started with the first one.
    ///
    /// # Errors
    /// Its directories cannot be made.
    pub fn open(config: HostConfig) -> io::Result<Arc<Self>> {
        let aot = Aot::open(
            config.cache.clone(),
            config.jail.clone(),
            config.exe.clone(),
            (config.uid, config.gid),
            Purpose::Plugin,
        )?;
        Ok(Arc::new(Self {
            config,
            aot,
            supervisor: Supervisor::default(),
            thread: OwnThread::default(),
            installed: Mutex::default(),
            builtins: Builtins::default(),
            counted: Mutex::default(),
            refused: Mutex::default(),
            next_number: AtomicU64::new(1),
            changed: watch::Sender::new(0),
        }))
    }

    /// Compiles, links and checks a plugin, and calls it from now on by its name. Repeatable; answers
    /// the interfaces it imports. A plugin of that name that was there goes on until this succeeds,
    /// and is then replaced.
    ///
    /// # Errors
    /// See [`PluginError`].
    pub async fn install(&self, spec: PluginSpec, wasm: &Path) -> Result<Vec<String>, PluginError> {
        if let Some(there) = self.find(&spec.name)
            && there.spec == spec
        {
            return Ok(there.linked.imports.clone());
        }
        let name = spec.name.clone();
        let installed = self.make(spec, wasm).await?;
        let imports = installed.linked.imports.clone();
        lock(&self.refused).remove(&name);
        let before = lock(&self.installed).insert(name, installed);
        self.changed.send_modify(|count| *count += 1);
        self.forget(before).await;
        Ok(imports)
    }

    /// Compiles, links and checks a plugin.
    pub(crate) async fn make(
        &self,
        spec: PluginSpec,
        wasm: &Path,
    ) -> Result<Arc<Installed>, PluginError> {
        let what = format!("plugin {}", spec.name);
        let unavailable = |why: String| PluginError::Unavailable {
            plugin: spec.name.clone(),
            why,
        };
        let compiled = match self.aot.compile(&what, &spec.digest, wasm).await {
            Ok(compiled) => compiled,
            Err(RuntimeError::InvalidArgument(why)) if why.contains(NO_PLUGINS_WORLD) => {
                return Err(PluginError::UnknownWorld(why));
            }
            Err(RuntimeError::InvalidArgument(why)) => return Err(PluginError::NotAComponent(why)),
            Err(error) => return Err(unavailable(error.to_string())),
        };
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let linked = self.link(number, &spec, &compiled.directory).await?;
        if let Some((import, grant)) = spec.grants.missing(&linked.imports) {
            if let Some(worker) = self.supervisor.running().await {
                worker.unload(number).await;
            }
            return Err(PluginError::NotGranted {
                plugin: spec.name,
                import: import.to_owned(),
                grant,
            });
        }
        info!(plugin = %spec.name, digest = %spec.digest, "Plugin installed");
        let instances = spec.limits.instances_max.max(1) as usize;
        Ok(Arc::new(Installed {
            number,
            directory: compiled.directory,
            linked,
            instances: Semaphore::new(instances),
            is_builtin: is_builtin(&spec),
            seen: Mutex::default(),
            spec,
        }))
    }

    async fn link(
        &self,
        number: u64,
        spec: &PluginSpec,
        directory: &Path,
    ) -> Result<Linked, PluginError> {
        let mut trouble = String::new();
        for attempt in 0..LOAD_ATTEMPTS_MAX {
            if attempt > 0 {
                sleep(Duration::from_millis(300)).await;
            }
            let worker = match self.worker().await {
                Ok(worker) => worker,
                Err(why) => {
                    trouble = why;
                    continue;
                }
            };
            match worker
                .load(number, (spec.limits, is_builtin(spec)), directory)
                .await
            {
                Ok(Some(linked)) => return Ok(linked),
                // The number is new: nobody has loaded it.
                Ok(None) => trouble = "loaded already".into(),
                Err(LoadError::Refused(why)) => {
                    let why = format!("plugin {}: {why}", spec.name);
                    return Err(PluginError::Invalid(why));
                }
                Err(LoadError::Lost(why)) => trouble = why,
            }
        }
        Err(PluginError::Unavailable {
            plugin: spec.name.clone(),
            why: format!("plugin worker: {trouble}"),
        })
    }

    /// Forgets a plugin; calls under way are finished.
    pub async fn remove(&self, name: &str) {
        lock(&self.refused).remove(name);
        let before = lock(&self.installed).remove(name);
        self.forget(before).await;
    }

    /// Takes note of why a plugin that is wanted cannot be installed, for those who ask for it meanwhile.
    pub fn refuse(&self, name: &str, why: String) {
        lock(&self.refused).insert(name.to_owned(), why);
    }

    /// Why a plugin that is asked for is not there.
    pub(crate) fn absence(&self, name: &str) -> String {
        match lock(&self.refused).get(name) {
            Some(why) => format!("plugin {name} cannot be called on this node: {why}"),
            None => format!("plugin {name} is not installed on this node"),
        }
    }

    async fn forget(&self, before: Option<Arc<Installed>>) {
        if let Some(before) = before
            && let Some(worker) = self.supervisor.running().await
        {
            worker.unload(before.number).await;
        }
    }

    /// Tells when a plugin has been installed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Installed>> {
        lock(&self.installed).get(name).cloned()
    }

    /// What a plugin is, if it is installed or built in.
    pub fn world(&self, name: &str) -> Option<World> {
        let installed = self.find(name).map(|plugin| plugin.linked.world);
        installed.or_else(|| builtin::world(name))
    }

    /// What has been counted of a plugin since it was installed.
    pub fn stats(&self, name: &str) -> Option<PluginStats> {
        let plugin = self.find(name).or_else(|| self.builtin_in_use(name));
        let mut stats = plugin.map(|plugin| plugin.stats());
        if let Some(counted) = lock(&self.counted).of(name) {
            stats.get_or_insert_default().merge(&counted);
        }
        stats
    }

    /// What has been counted of all plugins, in Prometheus' text format.
    pub fn metrics(&self) -> String {
        let mut all: BTreeMap<String, PluginStats> = BTreeMap::new();
        let builtins: Vec<_> = lock(&self.builtins)
            .values()
            .filter_map(|cell| cell.get().cloned())
            .collect();
        let installed = lock(&self.installed).values().cloned().collect();
        for plugin in [builtins, installed].concat() {
            all.insert(plugin.spec.name.clone(), plugin.stats());
        }
        {
            let counted = lock(&self.counted);
            for plugin in counted.plugins() {
                let stats = counted.of(plugin).unwrap_or_default();
                all.entry(plugin.clone()).or_default().merge(&stats);
            }
        }
        stats::render(&all, self.supervisor.restarts())
    }

    /// Where checks are best awaited: on the thread that has the worker's connection.
    pub fn runtime(&self) -> Option<Handle> {
        self.thread.runtime()
    }

    async fn worker(&self) -> Result<Arc<Worker>, String> {
        let runtime = || self.thread.runtime();
        self.supervisor.worker(&self.config, runtime).await
    }

    /// How long the worker is not started again, having ended too often.
    pub async fn worker_backoff(&self) -> Option<Duration> {
        self.supervisor.backoff().await
    }

    /// How often the worker has been replaced.
    pub fn worker_restarts(&self) -> u64 {
        self.supervisor.restarts()
    }

    /// The worker's process, should one run.
    pub async fn worker_pid(&self) -> Option<u32> {
        self.supervisor.running().await?.pid()
    }

    /// Makes a check, within `time`; what has to be brought in before a built-in plugin's first check is not charged.
    ///
    /// # Cancel safety
    /// A check that is dropped ends in the worker, too.
    pub async fn check(
        &self,
        name: &str,
        arguments: &[String],
        target: &ProbeTarget,
        time: Duration,
        exec: &dyn Exec,
    ) -> ProbeOutcome {
        self.check_for(name, arguments, target, time, exec, None)
            .await
    }

    /// Makes a check that `above` asks for, if it is not the agent's own.
    pub(crate) async fn check_for(
        &self,
        name: &str,
        arguments: &[String],
        target: &ProbeTarget,
        time: Duration,
        exec: &dyn Exec,
        above: Option<&Agency<'_>>,
    ) -> ProbeOutcome {
        let Some(plugin) = self.plugin(name).await else {
            return ProbeOutcome::new(ProbeResult::Unknown, self.absence(name));
        };
        if plugin.linked.world != World::Probe {
            let message = format!("plugin {name} is {}, no probe", plugin.linked.world.name());
            return ProbeOutcome::new(ProbeResult::Unknown, message);
        }
        let input = format!(
            "{}/{}/{} {arguments:?}",
            target.namespace, target.pod, target.container
        );
        let begun = Instant::now();
        let apart = lock(&plugin.seen).apart.wait(&input, begun);
        if let Some(wait) = apart {
            lock(&plugin.seen).stats.not_made += 1;
            let message = format!(
                "it kept killing the plugin and is not tried for another {} s",
                wait.as_secs().max(1)
            );
            return plugin.without_outcome(&input, &message);
        }
        let time = time.min(plugin.spec.limits.wall_time_max);
        let agency = Agency {
            grants: &plugin.spec.grants,
            named: NamedHosts::default(),
            exec,
            progress: &|_, _| {},
            checks: Some(Checks {
                host: self,
                target,
                above,
                made: AtomicU32::new(0),
            }),
        };
        // Who asks has a turn already: several of them waiting for one another's would wait for ever.
        let has_turn = above.is_some_and(|above| above.is_of(&plugin.spec.grants));
        let turn = async {
            match has_turn {
                true => None,
                false => plugin.instances.acquire().await.ok(),
            }
        };
        // A turn that does not come counts as the plugin's own slowness.
        let ended = match timeout(time, turn).await {
            Ok(_turn) => {
                let call = Call {
                    call: 0,
                    plugin: 0,
                    arguments: arguments.to_vec(),
                    target: target.clone(),
                    timeout: time.saturating_sub(begun.elapsed()),
                    volume: None,
                };
                self.call_again(&plugin, call, &agency, begun + time).await
            }
            Err(_) => fault(Fault::TimedOut { after: time }),
        };
        plugin.take_in(&input, target, &ended, begun)
    }

    /// Makes a check; again where the worker is lost with a built-in plugin, which did not do it.
    async fn call_again(
        &self,
        plugin: &Installed,
        mut call: Call,
        agency: &Agency<'_>,
        deadline: Instant,
    ) -> Ended {
        if !plugin.is_builtin {
            return self.call(plugin, call, None, agency).await;
        }
        for _ in 1..WORKERS_PER_CHECK_MAX {
            let ended = self.call(plugin, call.clone(), None, agency).await;
            let left = deadline.saturating_duration_since(Instant::now());
            if !matches!(ended.result, Err(Fault::WorkerLost(_))) || left < WORKER_BACK {
                return ended;
            }
            sleep(WORKER_BACK).await;
            call.timeout = left - WORKER_BACK;
        }
        self.call(plugin, call, None, agency).await
    }

    /// Makes a call; `call` and `plugin` of it are set here. What it asks on the way is answered by `agency`.
    pub(crate) async fn call(
        &self,
        plugin: &Installed,
        mut call: Call,
        descriptor: Option<OwnedFd>,
        agency: &Agency<'_>,
    ) -> Ended {
        let time = call.timeout;
        let lost = |why: String| fault(Fault::WorkerLost(why));
        let worker = match self.worker().await {
            Ok(worker) => worker,
            Err(why) => return lost(why),
        };
        let loaded = worker.load(
            plugin.number,
            (plugin.spec.limits, plugin.is_builtin),
            &plugin.directory,
        );
        match loaded.await {
            Ok(_) => {}
            Err(LoadError::Lost(why) | LoadError::Refused(why)) => return lost(why),
        }
        call.plugin = plugin.number;
        let deadline = tokio::time::Instant::now() + time;
        let talk = self.talk(&worker, call, descriptor, deadline, agency);
        match timeout_at(deadline + ANSWER_GRACE, talk).await {
            Ok(Some(ended)) => ended,
            Ok(None) => lost("ended during the call".into()),
            Err(_) => {
                error!(pid = worker.pid(), "Plugin worker hangs and is ended");
                worker.kill();
                fault(Fault::TimedOut { after: time })
            }
        }
    }

    /// A call with what it asks on the way; `None` when the worker is gone.
    async fn talk(
        &self,
        worker: &Arc<Worker>,
        call: Call,
        descriptor: Option<OwnedFd>,
        deadline: tokio::time::Instant,
        agency: &Agency<'_>,
    ) -> Option<Ended> {
        let mut pending = worker.call(call, descriptor).await?;
        loop {
            match pending.next().await? {
                CallNews::Ended(ended) => return Some(*ended),
                CallNews::Progress(done, total) => (agency.progress)(done, total),
                CallNews::Ask(ask) => {
                    let left = deadline.saturating_duration_since(tokio::time::Instant::now());
                    let answer = agency.answer(ask, left).await;
                    pending.answer(answer).await;
                }
            }
        }
    }
}

/// Whether a plugin is the one that the program came with.
fn is_builtin(spec: &PluginSpec) -> bool {
    let builtin = wherry_plugin_embedded::find(&spec.name);
    builtin.is_some_and(|builtin| builtin.digest == spec.digest)
}

pub(crate) fn fault(fault: Fault) -> Ended {
    Ended {
        result: Err(fault),
        cpu_time: Duration::ZERO,
        memory_bytes_peak: 0,
        log: Vec::new(),
        log_dropped: 0,
        denied: None,
    }
}

impl Installed {
    fn stats(&self) -> PluginStats {
        let seen = lock(&self.seen);
        let mut stats = seen.stats.clone();
        stats.set_apart = seen.apart.count(Instant::now());
        stats
    }

    /// Counts a call's end, and says what it means for the probe.
    fn take_in(
        &self,
        input: &str,
        target: &ProbeTarget,
        ended: &Ended,
        begun: Instant,
    ) -> ProbeOutcome {
        self.log(target, ended);
        let was_violent = ended.result.as_ref().is_err_and(Fault::is_violent);
        let apart = {
            let mut seen = lock(&self.seen);
            seen.stats.record(ended, begun.elapsed(), SystemTime::now());
            seen.apart.record(input, was_violent, Instant::now())
        };
        match &ended.result {
            Ok(Said::Outcome(Outcome { verdict, message })) => {
                let result = match verdict {
                    Verdict::Success => ProbeResult::Success,
                    Verdict::Failure => ProbeResult::Failure,
                    Verdict::Unknown => ProbeResult::Unknown,
                };
                if result != ProbeResult::Unknown {
                    let mut seen = lock(&self.seen);
                    if seen.results.len() >= RESULTS_MAX && !seen.results.contains_key(input) {
                        seen.results.clear();
                    }
                    seen.results.insert(input.to_owned(), result);
                }
                ProbeOutcome::new(result, message)
            }
            // Asked as a probe, it answers as one.
            Ok(Said::Populated(_) | Said::Done | Said::Expanded(_) | Said::Created(_)) => {
                self.without_outcome(input, self.linked.world.name())
            }
            Err(fault) => {
                let mut message = fault.to_string();
                if let Some(apart) = apart {
                    message = format!("{message}; not tried again for {} s", apart.as_secs());
                }
                self.without_outcome(input, &message)
            }
        }
    }

    fn without_outcome(&self, input: &str, message: &str) -> ProbeOutcome {
        let result = match self.spec.failure_policy {
            FailurePolicy::Fail => ProbeResult::Failure,
            FailurePolicy::Ignore => ProbeResult::Unknown,
            FailurePolicy::LastResult => lock(&self.seen)
                .results
                .get(input)
                .copied()
                .unwrap_or(ProbeResult::Unknown),
        };
        ProbeOutcome::new(result, format!("plugin {}: {message}", self.spec.name))
    }

    pub(crate) fn log(&self, target: &ProbeTarget, ended: &Ended) {
        let plugin = &self.spec.name;
        let pod = format!("{}/{}", target.namespace, target.pod);
        for (level, line) in &ended.log {
            match level {
                LogLevel::Debug => debug!(%plugin, %pod, "{line}"),
                LogLevel::Info => info!(%plugin, %pod, "{line}"),
                LogLevel::Warn => warn!(%plugin, %pod, "{line}"),
                LogLevel::Error => error!(%plugin, %pod, "{line}"),
            }
        }
        if ended.log_dropped > 0 {
            warn!(%plugin, %pod, lines = ended.log_dropped, "Plugin's lines dropped");
        }
    }
}

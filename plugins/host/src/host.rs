//! Installed plugins and the calls to them.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    net::lookup_host,
    sync::Semaphore,
    time::{sleep, timeout, timeout_at},
};
use tracing::{debug, error, info, warn};
use wherry_runtime_api::RuntimeError;
use wherry_wasm::{aot::Aot, protocol::Purpose};

use crate::{
    Exec, Grants, Limits, PluginStats, ProbeOutcome, ProbeResult, ProbeTarget,
    apart::Apart,
    named::{self, NamedHosts},
    protocol::{
        self, Answer, Ask, Call, Ended, ExecError, Fault, Linked, LogLevel, Outcome, ResolveError,
        Said, Verdict, World,
    },
    supervisor::{CallNews, LoadError, Supervisor, Worker},
};

/// A worker that has not answered this long after a call's time is up hangs, and is ended.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// Results remembered of each plugin for [`FailurePolicy::LastResult`].
const RESULTS_MAX: usize = 1024;
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
    /// It is no component of a world that the host knows. Trying again does not help.
    #[error("{0}")]
    Invalid(String),
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

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) stats: PluginStats,
    pub(crate) apart: Apart,
    results: HashMap<String, ProbeResult>,
}

pub(crate) struct Installed {
    number: u64,
    pub(crate) spec: PluginSpec,
    directory: PathBuf,
    pub(crate) linked: Linked,
    pub(crate) instances: Semaphore,
    pub(crate) seen: Mutex<Seen>,
}

/// The node's plugins.
pub struct PluginHost {
    pub(crate) config: HostConfig,
    aot: Aot,
    supervisor: Supervisor,
    installed: Mutex<HashMap<String, Arc<Installed>>>,
    next_number: AtomicU64,
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
        let aot = Aot::open_at(
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
            installed: Mutex::default(),
            next_number: AtomicU64::new(1),
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
        let what = format!("plugin {}", spec.name);
        let unavailable = |why: String| PluginError::Unavailable {
            plugin: spec.name.clone(),
            why,
        };
        let compiled = match self.aot.compile(&what, &spec.digest, wasm).await {
            Ok(compiled) => compiled,
            Err(RuntimeError::InvalidArgument(why)) => return Err(PluginError::Invalid(why)),
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
        let name = spec.name.clone();
        let imports = linked.imports.clone();
        let instances = spec.limits.instances_max.max(1) as usize;
        let installed = Arc::new(Installed {
            number,
            directory: compiled.directory,
            linked,
            instances: Semaphore::new(instances),
            seen: Mutex::default(),
            spec,
        });
        let before = lock(&self.installed).insert(name, installed);
        self.forget(before).await;
        Ok(imports)
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
            let worker = match self.supervisor.worker(&self.config).await {
                Ok(worker) => worker,
                Err(why) => {
                    trouble = why;
                    continue;
                }
            };
            match worker.load(number, spec.limits, directory).await {
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
        let before = lock(&self.installed).remove(name);
        self.forget(before).await;
    }

    async fn forget(&self, before: Option<Arc<Installed>>) {
        if let Some(before) = before
            && let Some(worker) = self.supervisor.running().await
        {
            worker.unload(before.number).await;
        }
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Installed>> {
        lock(&self.installed).get(name).cloned()
    }

    /// What a plugin is, if it is installed.
    pub fn world(&self, name: &str) -> Option<World> {
        Some(self.find(name)?.linked.world)
    }

    /// What has been counted of a plugin since it was installed.
    pub fn stats(&self, name: &str) -> Option<PluginStats> {
        let plugin = self.find(name)?;
        let seen = lock(&plugin.seen);
        let mut stats = seen.stats.clone();
        stats.set_apart = seen.apart.count(Instant::now());
        Some(stats)
    }

    /// How often the worker has been replaced.
    pub fn worker_restarts(&self) -> u64 {
        self.supervisor.restarts()
    }

    /// The worker's process, should one run.
    pub async fn worker_pid(&self) -> Option<u32> {
        self.supervisor.running().await?.pid()
    }

    /// Makes a check, within `time`.
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
        let Some(plugin) = self.find(name) else {
            let message = format!("plugin {name} is not installed on this node");
            return ProbeOutcome::new(ProbeResult::Unknown, message);
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
        // A turn that does not come counts as the plugin's own slowness.
        let ended = match timeout(time, plugin.instances.acquire()).await {
            Ok(_turn) => {
                let call = Call {
                    call: 0,
                    plugin: 0,
                    arguments: arguments.to_vec(),
                    target: target.clone(),
                    timeout: time.saturating_sub(begun.elapsed()),
                    volume: None,
                };
                let agency = Agency {
                    grants: &plugin.spec.grants,
                    named: NamedHosts::default(),
                    exec,
                    progress: &|_, _| {},
                };
                self.call(&plugin, call, None, &agency).await
            }
            Err(_) => fault(Fault::TimedOut { after: time }),
        };
        plugin.take_in(&input, target, &ended, begun)
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
        let worker = match self.supervisor.worker(&self.config).await {
            Ok(worker) => worker,
            Err(why) => return lost(why),
        };
        let loaded = worker.load(plugin.number, plugin.spec.limits, &plugin.directory);
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
                    let answer = answer(ask, agency, left).await;
                    pending.answer(answer).await;
                }
            }
        }
    }
}

/// What a call may have done for it.
pub(crate) struct Agency<'a> {
    pub(crate) grants: &'a Grants,
    /// Hosts that the call itself names, where the grants say that those are good.
    pub(crate) named: NamedHosts,
    pub(crate) exec: &'a dyn Exec,
    pub(crate) progress: &'a (dyn Fn(u64, u64) + Send + Sync),
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

/// Does what a plugin asks, should that be granted.
async fn answer(ask: Ask, agency: &Agency<'_>, left: Duration) -> Answer {
    let Agency { grants, exec, .. } = agency;
    match ask {
        Ask::Exec { .. } if !grants.exec => {
            Answer::Exec(Err(ExecError::Denied("exec needs the grant exec".into())))
        }
        Ask::Exec { command } => Answer::Exec(match exec.exec(&command, left).await {
            Ok(ended) => Ok(ended),
            Err(None) => Err(ExecError::Timeout),
            Err(Some(why)) => Err(ExecError::Failed(why)),
        }),
        Ask::Resolve { host, port } if grants.allows_host(&host, port) => {
            Answer::Resolve(resolve(&host, port, left).await)
        }
        Ask::Resolve { host, port } if agency.named.has(&host, port) => {
            let resolved = resolve(&host, port, left).await;
            Answer::Resolve(resolved.and_then(|addresses| named::keep_outside(&host, addresses)))
        }
        Ask::Resolve { host, port } => {
            let why = format!("{}:{port} needs the grant hosts", protocol::cut(host));
            Answer::Resolve(Err(ResolveError::Denied(why)))
        }
    }
}

async fn resolve(host: &str, port: u16, left: Duration) -> Result<Vec<IpAddr>, ResolveError> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    let trouble = match timeout(left, lookup_host((host, port))).await {
        Ok(Ok(addresses)) => return Ok(addresses.map(|address| address.ip()).collect()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "time is up".into(),
    };
    Err(ResolveError::NotFound(format!("look up {host}: {trouble}")))
}

impl Installed {
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
            Ok(Said::Populated(_) | Said::Done) => {
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

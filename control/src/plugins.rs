//! Plugins: follows the Plugin objects, fetches what they name, installs it in the plugin host, and
//! says on the objects how it went.
//!
//! ```text
//!  Plugin objects ──watch──▶ Installer ──▶ image store (pull, verify) ──▶ PluginHost::install
//!                  ◀─patch── .status.nodes.<node>   at changes, and counters every few seconds
//! ```

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{WatchStreamExt, watcher},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use wherry_images::{Store, StoredImage};
use wherry_plugin_host::{
    Exec, FailurePolicy, Grants, HostConfig, Limits, PluginError, PluginHost, PluginProber,
    PluginSpec, PluginStats, ProbeOutcome, ProbeRequest, Prober,
    filesystem::{FilesystemVolumes, REQUEST_TIMEOUT},
    mounter::MounterVolumes,
    volume::{PluginVolumes, VolumePlugins},
};
use wherry_runtime_api::ImageService;

use crate::{cli::RootArgs, plugin_signatures::SignaturePolicy};

/// Between looks at counters, and at what has to be tried again.
const PERIOD: Duration = Duration::from_secs(5);
/// A registry that says nothing for longer is tried again later.
const PULL_TIMEOUT: Duration = Duration::from_secs(120);

/// Plugins that are fetched and compiled at once; compiling is a process each.
const ATTEMPTS_MAX: usize = 4;

/// Makes the node's probes, and follows its Plugin objects for as long as it lives.
struct NodeProber {
    inner: PluginProber,
    _installer: Option<AbortOnDropHandle<()>>,
}

#[async_trait]
impl Prober for NodeProber {
    async fn check(&self, request: &ProbeRequest, exec: &dyn Exec) -> ProbeOutcome {
        self.inner.check(request, exec).await
    }
}

/// What plugins do on a node.
pub(crate) struct NodePlugins {
    /// Makes its probes.
    pub(crate) prober: Arc<dyn Prober>,
    /// Gives its volumes.
    pub(crate) volumes: Arc<dyn VolumePlugins>,
}

/// Where the volume server listens, below the root's run directory.
pub(crate) const VOLUME_SERVER_SOCKET: &str = "plugins/volume-server.sock";

/// Where plugins' processes are: the worker, and the volume server with its workers.
pub(crate) fn cgroups(cgroup_root: &str) -> [String; 2] {
    ["plugins", "volumes"].map(|group| format!("{cgroup_root}/{group}"))
}

/// A node's plugins. Without an API server there are no Plugin objects.
pub(crate) fn of_node(
    root: &RootArgs,
    cgroup_root: &str,
    images: Store,
    kube: Option<Client>,
    node: &str,
    signatures: SignaturePolicy,
) -> Result<NodePlugins> {
    let exe = std::env::current_exe().context("this program's own path")?;
    let mut config = HostConfig::new(&root.root, &root.run(), exe);
    let [worker, volumes] = cgroups(cgroup_root);
    config.cgroup = Some(worker);
    config.volumes_cgroup = Some(volumes);
    let host = PluginHost::open(config).context("plugins")?;
    let installer = kube.map(|client| {
        let installer = Installer {
            attempt: Arc::new(Attempt {
                host: Arc::clone(&host),
                images,
                signatures,
                turns: Semaphore::new(ATTEMPTS_MAX),
            }),
            plugins: Api::all_with(client, &resource()),
            node: node.to_owned(),
            known: BTreeMap::new(),
            under_way: JoinSet::new(),
            trying: HashSet::new(),
        };
        AbortOnDropHandle::new(tokio::spawn(installer.run()))
    });
    let socket = root.run().join(VOLUME_SERVER_SOCKET);
    let filesystems = FilesystemVolumes::new(Arc::clone(&host), socket, REQUEST_TIMEOUT);
    let mounters = MounterVolumes::open(Arc::clone(&host), root.root.join("plugins/mounts"))
        .context("records of mounts")?;
    let volumes = Arc::new(PluginVolumes::new(
        Arc::clone(&host),
        vec![Arc::new(filesystems), Arc::new(mounters)],
    ));
    let restored = Arc::clone(&volumes);
    tokio::spawn(async move { restored.restore().await });
    Ok(NodePlugins {
        volumes,
        prober: Arc::new(NodeProber {
            inner: PluginProber::new(host),
            _installer: installer,
        }),
    })
}

fn resource() -> ApiResource {
    let gvk = GroupVersionKind::gvk("wherry.dev", "v1alpha1", "Plugin");
    ApiResource::from_gvk_with_plural(&gvk, "plugins")
}

/// A Plugin's spec.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    image: String,
    digest: String,
    class: String,
    failure_policy: FailurePolicy,
    grants: Grants,
    limits: SpecLimits,
    config: BTreeMap<String, String>,
    signature: SpecSignature,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpecSignature {
    public_keys: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpecLimits {
    memory: Option<Quantity>,
    cpu_time_milliseconds: Option<u32>,
    wall_time_milliseconds: Option<u32>,
    instances: Option<u32>,
}

impl SpecLimits {
    /// `class` decides what is not said.
    fn limits(&self, class: &str) -> Limits {
        let default = match class {
            "" | "Probe" => Limits::default(),
            _ => Limits::of_volumes(),
        };
        let millis =
            |n: Option<u32>, default| n.map_or(default, |n| Duration::from_millis(u64::from(n)));
        let memory = self.memory.as_ref().and_then(|memory| {
            let bytes = wherry_api::quantity::Quantity::parse(&memory.0).ok()?;
            u64::try_from(bytes.value()).ok()
        });
        Limits {
            memory_bytes_max: memory.unwrap_or(default.memory_bytes_max),
            cpu_time_max: millis(self.cpu_time_milliseconds, default.cpu_time_max),
            wall_time_max: millis(self.wall_time_milliseconds, default.wall_time_max),
            instances_max: self.instances.unwrap_or(default.instances_max),
        }
    }
}

/// How far a plugin is on this node.
#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Nothing has been tried since the spec was written.
    New,
    Installed {
        digest: String,
        imports: Vec<String>,
    },
    /// What failed, and whether it is tried again without a change.
    Failed { why: String, is_final: bool },
}

struct Known {
    spec: Spec,
    state: State,
    /// When it is tried again.
    not_before: Instant,
    /// As the object has it.
    told: Value,
}

/// What it takes to install a plugin.
struct Attempt {
    host: Arc<PluginHost>,
    images: Store,
    signatures: SignaturePolicy,
    turns: Semaphore,
}

struct Installer {
    attempt: Arc<Attempt>,
    plugins: Api<DynamicObject>,
    node: String,
    known: BTreeMap<String, Known>,
    /// One for a name: a registry that hangs, or a large component, holds up nobody else.
    under_way: JoinSet<(String, Spec, State)>,
    trying: HashSet<String>,
}

impl Installer {
    async fn run(mut self) {
        let mut events = watcher(self.plugins.clone(), watcher::Config::default())
            .default_backoff()
            .boxed();
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listed = None;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    None => return,
                    Some(Ok(event)) => self.take_in(event, &mut listed).await,
                    // Tried again with back-off; the API server's absence is said by others.
                    Some(Err(_)) => continue,
                },
                Some(done) = self.under_way.join_next() => match done {
                    Ok((name, spec, state)) => self.take_result(&name, &spec, state).await,
                    Err(error) => warn!(%error, "Installing a plugin ended"),
                },
                _ = ticks.tick() => {}
            }
            let names: Vec<_> = self.known.keys().cloned().collect();
            for name in names {
                self.install(&name);
                self.tell(&name).await;
            }
        }
    }

    async fn take_in(
        &mut self,
        event: watcher::Event<DynamicObject>,
        listed: &mut Option<HashSet<String>>,
    ) {
        match event {
            watcher::Event::Init => *listed = Some(HashSet::new()),
            watcher::Event::InitApply(object) => {
                if let (Some(listed), Some(name)) = (listed.as_mut(), &object.metadata.name) {
                    listed.insert(name.clone());
                }
                self.want(object);
            }
            watcher::Event::InitDone => {
                let listed = listed.take().unwrap_or_default();
                let gone: Vec<_> = self
                    .known
                    .keys()
                    .filter(|name| !listed.contains(*name))
                    .cloned()
                    .collect();
                for name in gone {
                    self.forget(&name).await;
                }
            }
            watcher::Event::Apply(object) => self.want(object),
            watcher::Event::Delete(object) => {
                if let Some(name) = object.metadata.name {
                    self.forget(&name).await;
                }
            }
        }
    }

    fn want(&mut self, object: DynamicObject) {
        let Some(name) = object.metadata.name else {
            return;
        };
        let told = object.data["status"]["nodes"][&self.node].clone();
        let (spec, state) = match Spec::deserialize(&object.data["spec"]) {
            Ok(spec) => (spec, State::New),
            Err(error) => (
                Spec::default(),
                State::Failed {
                    why: format!("spec: {error}"),
                    is_final: true,
                },
            ),
        };
        match self.known.get_mut(&name) {
            Some(known) if known.spec == spec => known.told = told,
            _ => {
                let known = Known {
                    spec,
                    state,
                    not_before: Instant::now(),
                    told,
                };
                self.known.insert(name, known);
            }
        }
    }

    async fn forget(&mut self, name: &str) {
        self.known.remove(name);
        self.attempt.host.remove(name).await;
        info!(plugin = name, "Plugin removed");
    }

    fn install(&mut self, name: &str) {
        let Some(known) = self.known.get_mut(name) else {
            return;
        };
        match &known.state {
            State::Installed { .. } | State::Failed { is_final: true, .. } => return,
            State::New | State::Failed { .. } => {}
        }
        // What is under way for the spec before comes to its end first.
        if Instant::now() < known.not_before || !self.trying.insert(name.to_owned()) {
            return;
        }
        let (attempt, name, spec) = (
            Arc::clone(&self.attempt),
            name.to_owned(),
            known.spec.clone(),
        );
        self.under_way.spawn(async move {
            // The semaphore is never closed.
            let _turn = attempt.turns.acquire().await;
            let state = attempt.try_install(&name, &spec).await;
            (name, spec, state)
        });
    }

    async fn take_result(&mut self, name: &str, spec: &Spec, state: State) {
        self.trying.remove(name);
        let Some(known) = self.known.get_mut(name) else {
            // Deleted meanwhile.
            self.attempt.host.remove(name).await;
            return;
        };
        if known.spec != *spec {
            return;
        }
        if let State::Failed { why, is_final } = &state {
            warn!(plugin = name, error = why, "Plugin cannot be installed");
            // What a change of the spec made impossible must not go on as it was.
            if *is_final {
                self.attempt.host.remove(name).await;
            }
        }
        known.state = state;
        known.not_before = Instant::now() + PERIOD;
    }

    /// Writes what has changed.
    async fn tell(&mut self, name: &str) {
        let stats = self.attempt.host.stats(name);
        let restarts = self.attempt.host.worker_restarts();
        let Some(known) = self.known.get_mut(name) else {
            return;
        };
        // What it said before stays on the object until there is news.
        if known.state == State::New {
            return;
        }
        let status = status(&known.state, stats.unwrap_or_default(), restarts);
        if status == known.told {
            return;
        }
        // Fields that are gone have to be named, or a merge leaves them.
        let mut change = status.clone();
        for field in known.told.as_object().into_iter().flatten() {
            if change.get(field.0).is_none() {
                change[field.0] = Value::Null;
            }
        }
        let patch = json!({"status": {"nodes": {&self.node: change}}});
        let patched = self
            .plugins
            .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match patched {
            Ok(_) => known.told = status,
            Err(error) => warn!(plugin = name, %error, "Status of plugin not written"),
        }
    }
}

impl Attempt {
    async fn try_install(&self, name: &str, spec: &Spec) -> State {
        let later = |why: String| State::Failed {
            why,
            is_final: false,
        };
        let never = |why: String| State::Failed {
            why,
            is_final: true,
        };
        let image = match self.fetch(spec).await {
            Ok(image) => image,
            Err(why) => return later(why),
        };
        if !names_content(&spec.digest, &image) {
            let found = image.image.repo_digests.first().unwrap_or(&image.image.id);
            let why = format!("image {}: its digest is {found}", spec.image);
            return never(why);
        }
        let keys = &spec.signature.public_keys;
        let signed = self
            .signatures
            .check(&self.images, &spec.image, &image, keys);
        if let Err(why) = signed.await {
            // It may have been good enough before the policy was.
            self.host.remove(name).await;
            return later(why);
        }
        let (Some(wasm), Some(digest)) = (&image.wasm, &image.wasm_key) else {
            return never(format!("image {} holds no Wasm", spec.image));
        };
        let plugin = PluginSpec {
            name: name.to_owned(),
            digest: digest.clone(),
            grants: spec.grants.clone(),
            limits: spec.limits.limits(&spec.class),
            failure_policy: spec.failure_policy,
            config: spec.config.clone(),
        };
        match self.host.install(plugin, wasm).await {
            Ok(imports) => State::Installed {
                digest: digest.clone(),
                imports,
            },
            Err(error @ PluginError::Unavailable { .. }) => later(error.to_string()),
            Err(error) => never(error.to_string()),
        }
    }

    /// The image, from the store where it is there under that name.
    async fn fetch(&self, spec: &Spec) -> Result<StoredImage, String> {
        let find = || {
            self.images
                .image(&spec.image)
                .map_err(|error| error.to_string())
        };
        if let Some(image) = find()?
            && (image.wasm.is_none() || names_content(&spec.digest, &image))
        {
            return Ok(image);
        }
        let pull = self.images.pull_image(&spec.image, &[], None);
        let image = match timeout(PULL_TIMEOUT, pull).await {
            Ok(Ok(image)) => image,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => {
                let image = &spec.image;
                return Err(format!("pull {image}: no end after {PULL_TIMEOUT:?}"));
            }
        };
        let image = self
            .images
            .image(&image.id)
            .map_err(|error| error.to_string())?;
        image.ok_or_else(|| format!("image {} is gone again", spec.image))
    }
}

/// Whether a digest that the operator wrote down names what was found.
fn names_content(digest: &str, image: &StoredImage) -> bool {
    digest.is_empty()
        || image.image.id == digest
        || image.wasm_key.as_deref() == Some(digest)
        || image
            .image
            .repo_digests
            .iter()
            .any(|named| named.rsplit_once('@').is_some_and(|(_, end)| end == digest))
}

fn status(state: &State, stats: PluginStats, worker_restarts: u64) -> Value {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let average = |total: Duration| match stats.calls {
        0 => 0,
        calls => micros(total) / calls,
    };
    let mut status = json!({
        "ready": matches!(state, State::Installed { .. }),
        "calls": stats.calls,
        "errors": stats.errors,
        "traps": stats.traps,
        "limitsExceeded": stats.limits_exceeded,
        "lost": stats.lost,
        "denied": stats.denied,
        "notMade": stats.not_made,
        "setApart": stats.set_apart,
        "durationMicrosecondsAverage": average(stats.duration_total),
        "durationMicrosecondsMax": micros(stats.duration_max),
        "cpuMicrosecondsAverage": average(stats.cpu_time_total),
        "memoryBytesPeak": stats.memory_bytes_peak,
        "workerRestarts": worker_restarts,
    });
    match state {
        State::New => {}
        State::Installed { digest, imports } => {
            status["digest"] = digest.as_str().into();
            status["imports"] = imports.as_slice().into();
        }
        State::Failed { why, .. } => status["message"] = why.as_str().into(),
    }
    if let Some((at, error)) = stats.last_error {
        status["lastError"] = error.into();
        if let Ok(at) = jiff::Timestamp::try_from(at) {
            status["lastErrorTime"] = format!("{at:.0}").into();
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_without_limits_has_the_defaults_and_grants_nothing() {
        let spec: Spec = serde_json::from_value(json!({"image": "x/y:1"})).expect("a spec");
        assert_eq!(spec.limits.limits("Probe"), Limits::default());
        assert_eq!(spec.limits.limits("Populator"), Limits::of_volumes());
        assert_eq!(spec.grants, Grants::default());
        assert_eq!(spec.failure_policy, FailurePolicy::Ignore);
        let spec: Spec = serde_json::from_value(json!({
            "image": "x/y:1",
            "failurePolicy": "LastResult",
            "grants": {"exec": true, "hosts": ["db:1"]},
            "limits": {"memory": "1Mi", "cpuTimeMilliseconds": 7, "wallTimeMilliseconds": 8, "instances": 9},
        }))
        .expect("a spec");
        let limits = spec.limits.limits(&spec.class);
        assert_eq!(limits.memory_bytes_max, 1 << 20);
        assert_eq!(limits.cpu_time_max, Duration::from_millis(7));
        assert_eq!(limits.wall_time_max, Duration::from_millis(8));
        assert_eq!(limits.instances_max, 9);
        assert!(spec.grants.exec && spec.failure_policy == FailurePolicy::LastResult);
    }

    #[test]
    fn status_says_what_failed_and_counts() {
        let failed = State::Failed {
            why: "no such image".into(),
            is_final: false,
        };
        let said = status(&failed, PluginStats::default(), 2);
        assert_eq!(said["ready"], false);
        assert_eq!(said["message"], "no such image");
        assert_eq!(said["workerRestarts"], 2);
        let installed = State::Installed {
            digest: "sha256:1".into(),
            imports: vec!["a".into()],
        };
        let stats = PluginStats {
            calls: 2,
            duration_total: Duration::from_millis(3),
            last_error: Some((std::time::UNIX_EPOCH, "trap".into())),
            ..PluginStats::default()
        };
        let said = status(&installed, stats, 0);
        assert_eq!(said["ready"], true);
        assert_eq!(said["durationMicrosecondsAverage"], 1500);
        assert_eq!(said["lastErrorTime"], "1970-01-01T00:00:00Z");
        assert!(said.get("message").is_none());
    }
}

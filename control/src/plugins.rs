//! Plugins: follows the Plugin objects, fetches what they name, installs it in the plugin host, and
//! says on the objects how it went.
//!
//! ```text
//!  Plugin objects ──watch──▶ Installer ──▶ image store (pull, verify) ──▶ PluginHost::install
//!                  ◀─patch── .status.nodes.<node>   at changes, and counters every few seconds
//!                            .status.conditions     what all nodes' come to (status.rs)
//! ```

mod spec;
mod status;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use futures::StreamExt;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{WatchStreamExt, watcher},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use wherry_agent::NodeCredentials;
use wherry_images::{Store, StoredImage};
use wherry_plugin_host::{
    Exec, HostConfig, PluginError, PluginHost, PluginProber, PluginSpec, ProbeOutcome,
    ProbeRequest, Prober,
    filesystem::{FilesystemVolumes, REQUEST_TIMEOUT},
    mounter::MounterVolumes,
    volume::{PluginVolumes, VolumePlugins},
};
use wherry_runtime_api::ImageService;

use crate::{cli::RootArgs, plugin_signatures::SignaturePolicy};
use spec::Spec;

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

    fn runtime(&self) -> Option<Handle> {
        self.inner.runtime()
    }

    fn metrics(&self) -> String {
        self.inner.metrics()
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
                credentials: NodeCredentials::below(&root.root),
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

/// How far a plugin is on this node.
#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Nothing has been tried since the spec was written.
    New,
    Installed {
        digest: String,
        imports: Vec<String>,
    },
    /// What failed, in a word and in more, and whether it is tried again without a change.
    Failed {
        reason: &'static str,
        why: String,
        is_final: bool,
    },
}

struct Known {
    spec: Spec,
    state: State,
    /// When it is tried again.
    not_before: Instant,
    /// As the object has it: this node's part.
    told: Value,
    /// The object's whole status and its generation, as they were seen last.
    seen: (Value, i64),
}

/// What it takes to install a plugin.
struct Attempt {
    host: Arc<PluginHost>,
    images: Store,
    signatures: SignaturePolicy,
    credentials: NodeCredentials,
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
        let generation = object.metadata.generation.unwrap_or_default();
        let seen = (object.data["status"].clone(), generation);
        let (spec, state) = match Spec::deserialize(&object.data["spec"]) {
            Ok(spec) => (spec, State::New),
            Err(error) => (
                Spec::default(),
                State::Failed {
                    reason: "InvalidSpec",
                    why: format!("spec: {error}"),
                    is_final: true,
                },
            ),
        };
        match self.known.get_mut(&name) {
            Some(known) if known.spec == spec => (known.told, known.seen) = (told, seen),
            _ => {
                let known = Known {
                    spec,
                    state,
                    not_before: Instant::now(),
                    told,
                    seen,
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
        if let State::Failed {
            reason,
            why,
            is_final,
        } = &state
        {
            warn!(
                plugin = name,
                reason,
                error = why,
                "Plugin cannot be installed"
            );
            // What a change of the spec made impossible must not go on as it was.
            if *is_final {
                self.attempt.host.remove(name).await;
            }
            self.attempt.host.refuse(name, why.clone());
        }
        known.state = state;
        known.not_before = Instant::now() + PERIOD;
    }

    /// Writes what has changed.
    async fn tell(&mut self, name: &str) {
        let stats = self.attempt.host.stats(name);
        let restarts = self.attempt.host.worker_restarts();
        let backoff = self.attempt.host.worker_backoff().await;
        let Some(known) = self.known.get_mut(name) else {
            return;
        };
        // What it said before stays on the object until there is news.
        if known.state == State::New {
            return;
        }
        let status = status::of_node(&known.state, stats.unwrap_or_default(), restarts, backoff);
        let (seen, generation) = &known.seen;
        let conditions = status::conditions(
            seen,
            (&self.node, &status),
            *generation,
            jiff::Timestamp::now(),
        );
        if status == known.told && conditions.is_none() {
            return;
        }
        // Fields that are gone have to be named, or a merge leaves them.
        let mut change = status.clone();
        for field in known.told.as_object().into_iter().flatten() {
            if change.get(field.0).is_none() {
                change[field.0] = Value::Null;
            }
        }
        let mut patch = json!({"status": {"nodes": {&self.node: change}}});
        if let Some(conditions) = conditions {
            patch["status"]["conditions"] = conditions;
        }
        let patched = self
            .plugins
            .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match patched {
            Ok(object) => {
                known.told = status;
                known.seen.0 = object.data["status"].clone();
            }
            Err(error) => warn!(plugin = name, %error, "Status of plugin not written"),
        }
    }
}

impl Attempt {
    async fn try_install(&self, name: &str, spec: &Spec) -> State {
        let later = |reason, why: String| State::Failed {
            reason,
            why,
            is_final: false,
        };
        let never = |reason, why: String| State::Failed {
            reason,
            why,
            is_final: true,
        };
        let done = |installed: Result<(String, Vec<String>), PluginError>| match installed {
            Ok((digest, imports)) => State::Installed { digest, imports },
            Err(error @ PluginError::Unavailable { .. }) => {
                later(error.reason(), error.to_string())
            }
            Err(error) => never(error.reason(), error.to_string()),
        };
        if spec.image.is_empty() {
            let changed = |plugin: &mut PluginSpec| spec.change(plugin);
            return done(self.host.install_builtin(name, changed).await);
        }
        let image = match self.fetch(spec).await {
            Ok(image) => image,
            Err(why) => return later("ErrImagePull", why),
        };
        if !names_content(&spec.digest, &image) {
            let found = image.image.repo_digests.first().unwrap_or(&image.image.id);
            let why = format!("image {}: its digest is {found}", spec.image);
            return never("DigestMismatch", why);
        }
        let keys = &spec.signature.public_keys;
        let auth = self.credentials.of(&spec.image);
        let signed = self
            .signatures
            .check(&self.images, &spec.image, &image, &auth, keys);
        if let Err(why) = signed.await {
            // It may have been good enough before the policy was.
            self.host.remove(name).await;
            return later("NotSigned", why);
        }
        let (Some(wasm), Some(digest)) = (&image.wasm, &image.wasm_key) else {
            let why = format!("image {} holds no Wasm", spec.image);
            return never("NotAComponent", why);
        };
        let installed = self.host.install(spec.plugin(name, digest), wasm).await;
        done(installed.map(|imports| (digest.clone(), imports)))
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
        let auth = self.credentials.of(&spec.image);
        let pull = self.images.pull_image(&spec.image, &auth, None);
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

//! Sets a pod's volumes up, keeps them fresh and takes them down.

mod plugins;
mod provision;

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, Volume},
    apimachinery::pkg::api::resource::Quantity,
};
use tracing::{debug, warn};
use wherry_plugin_host::volume::VolumePlugins;

use crate::{
    ObjectSource, SetUpError, TokenParams, VolumeError, VolumeEvents, atomic,
    claim::{self, Planned},
    downward, host_path, mounts,
    payload::{self, File, Payload},
    plan::{self, Content, Plan, Projection, plan},
    token::{self, Validity},
};

/// Locks that keep two calls for one pod apart; pods share them by the hash of their uid.
const LOCKS: usize = 32;

/// Where volumes are.
#[derive(Clone)]
pub struct VolumeConfig {
    /// The directory with one directory for each pod, named by its uid.
    pub pods_dir: PathBuf,
    /// Who gives volumes of plugins; without it there are none.
    pub plugins: Option<Arc<dyn VolumePlugins>>,
    /// Who tells pods' owners.
    pub events: Option<Arc<dyn VolumeEvents>>,
}

impl VolumeConfig {
    /// The agent's own volumes.
    pub fn new(pods_dir: PathBuf) -> Self {
        Self {
            pods_dir,
            plugins: None,
            events: None,
        }
    }
}

/// What volumes show besides the pod's own object.
#[derive(Clone, Debug, Default)]
pub struct PodContext {
    /// What the node has for pods, by resource: stands in for limits that are not set.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// Sets a pod's volumes up, keeps them fresh and takes them down.
///
/// Everything it knows is on disk, so a new one goes on where the last one ended. Calls for one pod
/// exclude each other while they touch the disk.
#[derive(Clone)]
pub struct VolumeManager {
    inner: Arc<Inner>,
}

struct Inner {
    config: VolumeConfig,
    source: Arc<dyn ObjectSource>,
    locks: [Mutex<()>; LOCKS],
}

/// What a refresh did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Whether any file changed.
    pub changed: bool,
    /// When the next token is to be renewed.
    pub token_due: Option<Timestamp>,
}

/// A volume and what has been got together for it.
struct Work {
    name: String,
    dir: PathBuf,
    /// Where it is bound read-only, should nobody write.
    read_only: Option<PathBuf>,
    plan: Plan,
    /// For [`Plan::Content`]; `None` keeps what is there.
    payload: Option<Payload>,
}

impl VolumeManager {
    /// Touches nothing yet.
    pub fn new(config: VolumeConfig, source: Arc<dyn ObjectSource>) -> Self {
        let inner = Inner {
            config,
            source,
            locks: std::array::from_fn(|_| Mutex::default()),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Sets all volumes of a pod up and answers where each is on the node.
    ///
    /// Repeatable. A volume that shows an object and has been set up before keeps what it has if
    /// the object cannot be had now, so that a container can be restarted without the API server.
    ///
    /// # Errors
    /// The first volume that cannot be set up.
    ///
    /// # Cancel safety
    /// What has been made stays, and is found by the next call or by [`Self::unmount`].
    pub async fn mount(
        &self,
        pod: &Pod,
        context: &PodContext,
    ) -> Result<BTreeMap<String, PathBuf>, VolumeError> {
        let uid = uid(pod);
        let mut work = Vec::new();
        for volume in volumes(pod) {
            let named = |cause: SetUpError| cause.in_volume(&volume.name);
            let Planned { plan, is_read_only } = self.inner.plan(pod, volume, context).await?;
            let dir = self.inner.dir(uid, volume, &plan).map_err(named)?;
            let payload = match &plan {
                Plan::Content(content) => match self.inner.fetch(pod, context, &dir, content).await
                {
                    Ok(payload) => Some(payload),
                    Err(error) if atomic::is_written(&dir) => {
                        warn!(pod = uid, volume = %volume.name, %error, "Volume keeps what it has");
                        None
                    }
                    Err(error) => return Err(named(error)),
                },
                Plan::Plugin(asked) => {
                    let made = self.inner.set_up_plugin(pod, &volume.name, &dir, asked);
                    made.await.map_err(named)?;
                    None
                }
                Plan::EmptyDir(_) | Plan::HostPath { .. } | Plan::Local { .. } | Plan::Image => {
                    None
                }
            };
            let read_only = match is_read_only {
                true => Some(self.inner.read_only_dir(uid, volume).map_err(named)?),
                false => None,
            };
            work.push(Work {
                name: volume.name.clone(),
                dir,
                read_only,
                plan,
                payload,
            });
        }
        let paths = work
            .iter()
            .map(|work| {
                let shown = work.read_only.as_ref().unwrap_or(&work.dir);
                (work.name.clone(), shown.clone())
            })
            .collect();
        self.run(uid, move || work.iter().try_for_each(Work::set_up))
            .await?;
        Ok(paths)
    }

    /// Brings the files of configMap, secret, downwardAPI and projected volumes up to date and
    /// renews tokens that are due. Volumes that [`Self::mount`] has not set up are left alone.
    ///
    /// # Errors
    /// The first volume that cannot be brought up to date, after the others have been.
    pub async fn refresh(&self, pod: &Pod, context: &PodContext) -> Result<Refreshed, VolumeError> {
        let uid = uid(pod);
        let mut failed = None;
        let mut work = Vec::new();
        for volume in volumes(pod) {
            let result = async {
                if claim::of(pod, volume).is_some() {
                    return Ok(None);
                }
                let plan = plan(pod, volume, &context.allocatable)?;
                let Plan::Content(content) = &plan else {
                    return Ok(None);
                };
                let dir = self.inner.dir(uid, volume, &plan)?;
                if !atomic::is_written(&dir) {
                    return Ok(None);
                }
                let payload = Some(self.inner.fetch(pod, context, &dir, content).await?);
                Ok::<_, SetUpError>(Some(Work {
                    name: volume.name.clone(),
                    dir,
                    read_only: None,
                    plan,
                    payload,
                }))
            };
            match result.await {
                Ok(found) => work.extend(found),
                Err(error) => failed = failed.or_else(|| Some(error.in_volume(&volume.name))),
            }
        }
        let token_due = work.iter().filter_map(Work::token_due).min();
        let pod = uid.to_owned();
        let changed = self.run(uid, move || {
            let mut changed = false;
            for work in &work {
                if work.refresh()? {
                    debug!(pod, volume = %work.name, "Volume brought up to date");
                    changed = true;
                }
            }
            Ok(changed)
        });
        let changed = changed.await?;
        let refreshed = Refreshed { changed, token_due };
        failed.map_or(Ok(refreshed), Err)
    }

    /// Unmounts and removes all volumes of a pod, with only its uid known. What a hostPath names
    /// stays. Repeatable; gone already: `Ok`.
    ///
    /// # Errors
    /// Something is in the way; the rest may be gone.
    pub async fn unmount(&self, uid: &str) -> Result<(), VolumeError> {
        let pod = uid.to_owned();
        let refuse = |source| VolumeError::TearDown {
            pod: pod.clone(),
            path: PathBuf::new(),
            source,
        };
        let dir = self.inner.volumes_dir(uid).map_err(refuse)?;
        let given_back = self.inner.give_back(&dir).await;
        given_back.map_err(|(path, why)| VolumeError::TearDown {
            pod: pod.clone(),
            path,
            source: io::Error::other(why),
        })?;
        let pod = uid.to_owned();
        self.run(uid, move || {
            mounts::remove_tree(&dir).map_err(|source| VolumeError::TearDown {
                pod,
                path: dir,
                source,
            })
        })
        .await
    }

    /// Pods that have volumes on this node, wanted or not.
    ///
    /// # Errors
    /// The directory of pods cannot be read; one that is not there has no pods.
    pub fn known_pods(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.inner.config.pods_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut pods = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.path().join("volumes").is_dir() {
                pods.extend(entry.file_name().into_string());
            }
        }
        Ok(pods)
    }

    /// Runs what touches the disk on a thread that may block, one call at a time for each pod.
    async fn run<T: Send + 'static>(
        &self,
        uid: &str,
        work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, VolumeError> {
        let inner = self.inner.clone();
        let mut hasher = DefaultHasher::new();
        uid.hash(&mut hasher);
        let lock = hasher.finish() as usize % LOCKS;
        let done = tokio::task::spawn_blocking(move || {
            let _held = inner.locks[lock]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            work()
        });
        done.await.unwrap_or_else(|error| {
            let source = io::Error::other(error.to_string());
            Err(SetUpError::Io {
                what: "volumes".into(),
                source,
            }
            .in_volume(""))
        })
    }
}

impl Inner {
    fn volumes_dir(&self, uid: &str) -> io::Result<PathBuf> {
        volumes_dir(&self.config.pods_dir, uid)
    }

    fn dir(&self, uid: &str, volume: &Volume, plan: &Plan) -> Result<PathBuf, SetUpError> {
        match plan {
            Plan::HostPath { path, .. } | Plan::Local { path, .. } => Ok(path.clone()),
            Plan::EmptyDir(_) | Plan::Content(_) | Plan::Plugin(_) | Plan::Image => {
                let dir = self.volumes_dir(uid).map_err(SetUpError::io("volumes"))?;
                Ok(dir
                    .join(plan.plugin_dir().unwrap_or_default())
                    .join(&volume.name))
            }
        }
    }

    /// Where a volume is bound that nobody may write to.
    fn read_only_dir(&self, uid: &str, volume: &Volume) -> Result<PathBuf, SetUpError> {
        let dir = self.volumes_dir(uid).map_err(SetUpError::io("volumes"))?;
        Ok(dir.join("wherry.dev~read-only").join(&volume.name))
    }

    /// What a volume takes, a claim followed to what it is bound to.
    async fn plan(
        &self,
        pod: &Pod,
        volume: &Volume,
        context: &PodContext,
    ) -> Result<Planned, VolumeError> {
        let named = |cause: SetUpError| cause.in_volume(&volume.name);
        let Some(claim) = claim::of(pod, volume) else {
            let plan = plan(pod, volume, &context.allocatable).map_err(named)?;
            let is_read_only = matches!(&plan, Plan::Plugin(asked) if asked.is_read_only);
            return Ok(Planned { plan, is_read_only });
        };
        plan::check_name(&volume.name).map_err(named)?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let refuse = |why: String| VolumeError::Claim {
            volume: volume.name.clone(),
            claim: format!("{namespace}/{}", claim.name),
            why,
        };
        let name = &claim.name;
        let unfetched = |why: String| refuse(format!("failed to fetch PVC from API server: {why}"));
        let object = self.source.persistent_volume_claim(namespace, name).await;
        let object = object
            .map_err(unfetched)?
            .ok_or_else(|| unfetched(format!("persistentvolumeclaims \"{name}\" not found")))?;
        let bound_to = claim::bound(pod, &claim, &object).map_err(refuse)?;
        let unfetched = |why: String| {
            refuse(format!(
                "failed to fetch PV \"{bound_to}\" from API server: {why}"
            ))
        };
        let found = self.source.persistent_volume(&bound_to).await;
        let found = found
            .map_err(unfetched)?
            .ok_or_else(|| unfetched(format!("persistentvolumes \"{bound_to}\" not found")))?;
        claim::planned(pod, &claim, &object, &found).map_err(named)
    }

    async fn fetch(
        &self,
        pod: &Pod,
        context: &PodContext,
        dir: &Path,
        content: &Content,
    ) -> Result<Payload, SetUpError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mode = content.default_mode;
        let mut files = Payload::new();
        for projection in &content.projections {
            let more = match projection {
                Projection::ConfigMap {
                    name,
                    items,
                    optional,
                } => {
                    match self
                        .source
                        .config_map(namespace, name)
                        .await
                        .map_err(SetUpError::Unavailable)?
                    {
                        Some(object) => payload::config_map(&object, items, mode, *optional)?,
                        None if *optional => continue,
                        None => {
                            return Err(SetUpError::NotFound(format!(
                                "configmap \"{name}\" not found"
                            )));
                        }
                    }
                }
                Projection::Secret {
                    name,
                    items,
                    optional,
                } => {
                    match self
                        .source
                        .secret(namespace, name)
                        .await
                        .map_err(SetUpError::Unavailable)?
                    {
                        Some(object) => payload::secret(&object, items, mode, *optional)?,
                        None if *optional => continue,
                        None => {
                            return Err(SetUpError::NotFound(format!(
                                "secret \"{name}\" not found"
                            )));
                        }
                    }
                }
                Projection::DownwardApi { items } => {
                    downward::files(pod, &context.allocatable, items, mode)?
                }
                Projection::Token {
                    path, mode, uid, ..
                } => {
                    let data = self.token(pod, dir, projection).await?;
                    let mut token = Payload::new();
                    payload::insert(
                        &mut token,
                        path,
                        File {
                            data,
                            mode: *mode,
                            uid: *uid,
                        },
                    )?;
                    token
                }
            };
            for (path, file) in more {
                payload::insert(&mut files, &path, file)?;
            }
        }
        Ok(files)
    }

    /// The token in the volume as long as it is fresh, else a new one. A token that is due and
    /// cannot be renewed now is used to its end.
    async fn token(
        &self,
        pod: &Pod,
        dir: &Path,
        projection: &Projection,
    ) -> Result<Vec<u8>, SetUpError> {
        let Projection::Token {
            audience,
            expiration_seconds,
            path,
            ..
        } = projection
        else {
            return Ok(Vec::new());
        };
        let current = payload::clean_path(path)
            .ok()
            .and_then(|path| fs::read(dir.join("..data").join(path)).ok());
        let validity = current.as_deref().map_or(Validity::Expired, |token| {
            token::validity(token, Timestamp::now())
        });
        if let (Validity::Fresh, Some(current)) = (validity, &current) {
            return Ok(current.clone());
        }
        let params = TokenParams {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            service_account: pod
                .spec
                .as_ref()
                .and_then(|spec| spec.service_account_name.clone())
                .unwrap_or_else(|| "default".into()),
            audiences: audience.iter().cloned().collect(),
            expiration_seconds: *expiration_seconds,
            pod_name: pod.metadata.name.clone().unwrap_or_default(),
            pod_uid: uid(pod).to_owned(),
        };
        let asked = self.source.service_account_token(&params).await;
        match (asked.map(|status| status.token), validity, current) {
            (Ok(Some(token)), ..) => Ok(token.into_bytes()),
            (Err(error), Validity::Due, Some(current)) => {
                warn!(pod = %params.pod_uid, %error, "Service account token not renewed");
                Ok(current)
            }
            (Err(error), ..) => Err(SetUpError::Unavailable(format!(
                "failed to fetch token: {error}"
            ))),
            (Ok(None), ..) => Err(SetUpError::Unavailable(
                "failed to fetch token: the answer has none".into(),
            )),
        }
    }
}

impl Work {
    fn set_up(&self) -> Result<(), VolumeError> {
        let result = match &self.plan {
            Plan::EmptyDir(empty_dir) => empty_dir.set_up(&self.dir),
            Plan::HostPath { path, type_ } => host_path::set_up(path, type_),
            Plan::Local { path, fs_group } => host_path::set_up_local(path, *fs_group),
            // Made before, by the plugin.
            Plan::Plugin(_) => Ok(()),
            Plan::Image => fs::create_dir_all(&self.dir)
                .map_err(SetUpError::io(self.dir.display().to_string())),
            Plan::Content(content) => self.show(content).map(drop),
        };
        let bound = result.and_then(|()| match &self.read_only {
            Some(at) => mounts::bind_read_only(&self.dir, at)
                .map_err(SetUpError::io(at.display().to_string())),
            None => Ok(()),
        });
        bound.map_err(|cause| cause.in_volume(&self.name))
    }

    /// As [`Self::set_up`], but does not bring back what [`VolumeManager::unmount`] took meanwhile.
    fn refresh(&self) -> Result<bool, VolumeError> {
        match &self.plan {
            Plan::Content(content) if atomic::is_written(&self.dir) => self
                .show(content)
                .map_err(|cause| cause.in_volume(&self.name)),
            Plan::EmptyDir(_)
            | Plan::HostPath { .. }
            | Plan::Local { .. }
            | Plan::Content(_)
            | Plan::Plugin(_)
            | Plan::Image => Ok(false),
        }
    }

    /// When the first of its tokens is to be renewed.
    fn token_due(&self) -> Option<Timestamp> {
        let (Plan::Content(content), Some(payload)) = (&self.plan, &self.payload) else {
            return None;
        };
        let tokens = content.projections.iter().filter_map(|projection| {
            let Projection::Token { path, .. } = projection else {
                return None;
            };
            let file = payload.get(&payload::clean_path(path).ok()?)?;
            token::renewal(&file.data)
        });
        tokens.min()
    }

    fn show(&self, content: &Content) -> Result<bool, SetUpError> {
        let Some(payload) = &self.payload else {
            return Ok(false);
        };
        let io = || SetUpError::io(self.dir.display().to_string());
        fs::create_dir_all(&self.dir).map_err(io())?;
        if content.in_memory {
            mounts::mount_tmpfs(&self.dir, 0o755, None).map_err(io())?;
        }
        atomic::write(&self.dir, payload, content.fs_group).map_err(io())
    }
}

fn volumes_dir(pods_dir: &Path, uid: &str) -> io::Result<PathBuf> {
    if matches!(uid, "" | "." | "..") || uid.contains(['/', '\0']) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{uid:?} cannot be a pod's uid"),
        ));
    }
    Ok(pods_dir.join(uid).join("volumes"))
}

/// Where an image volume is mounted. [`VolumeManager::mount`] makes the directory and answers it;
/// whoever has the images mounts there, and [`VolumeManager::unmount`] takes it down.
///
/// # Errors
/// The pod's uid or the volume's name cannot be part of a path.
pub fn image_volume_dir(pods_dir: &Path, uid: &str, volume: &str) -> Result<PathBuf, VolumeError> {
    let check = || {
        plan::check_name(volume)?;
        let dir = volumes_dir(pods_dir, uid).map_err(SetUpError::io("volumes"))?;
        Ok(dir.join(plan::IMAGE_PLUGIN_DIR).join(volume))
    };
    check().map_err(|cause: SetUpError| cause.in_volume(volume))
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
}

#[cfg(test)]
mod tests;

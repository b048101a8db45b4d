//! Volumes that plugins give, as the agent's volume manager asks for them.
//!
//! ```text
//!  VolumePlugins ── world of the plugin ──┬── populator    PluginHost::populate, into a directory that the asker shows
//!                                         └── mounter, file system    a VolumeMounts each: publish, unpublish, restore
//!       └── create, delete ─▶ PluginHost (provision.rs), whatever the world
//! ```

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::broadcast;

use crate::{
    PluginHost,
    filesystem::protocol::News,
    protocol::{Created, Fault, Populated, VolumeError, Wanted, World},
};

/// A volume that is asked of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeRequest {
    /// The plugin's name.
    pub plugin: String,
    /// The volume's name in the pod, or the PersistentVolume's.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// What it is asked to be.
    pub attributes: BTreeMap<String, String>,
    /// Of the Secret that it names.
    pub credentials: BTreeMap<String, Vec<u8>>,
    /// Nobody writes.
    pub is_read_only: bool,
    /// The file system that it is to have, where it is a device.
    pub fs_type: Option<String>,
    /// The group whose it is to be.
    pub fs_group: Option<u32>,
    /// `mountOptions` of its PersistentVolume.
    pub mount_options: Vec<String>,
    /// Bytes it may hold, where the plugin writes them.
    pub bytes_max: Option<u64>,
}

impl VolumeRequest {
    /// What people call it.
    pub fn of(&self) -> String {
        match self.pod.is_empty() {
            true => format!("volume {}", self.name),
            false => format!("volume {}/{}/{}", self.namespace, self.pod, self.name),
        }
    }
}

/// Why a plugin gave no volume. `Display` stands in the pod's `FailedMount` event.
#[derive(Debug, Error)]
pub enum VolumeFailure {
    /// No plugin of that name. One may be installed later.
    #[error("driver name {0} not found: no plugin of that name is installed on this node")]
    NotInstalled(String),
    /// It is installed, and no plugin for this.
    #[error("plugin {plugin} is {}", world.name())]
    OfAnotherWorld {
        /// The plugin.
        plugin: String,
        /// What it is.
        world: World,
    },
    /// It was called, and there is no volume.
    #[error("plugin {plugin}: {fault}")]
    Failed {
        /// The plugin.
        plugin: String,
        /// What it said, or what happened to it.
        #[source]
        fault: Fault,
    },
    /// What it did is not taken.
    #[error("plugin {plugin}: {why}")]
    Refused {
        /// The plugin.
        plugin: String,
        /// Why not.
        why: String,
    },
    /// Nothing is mounted there yet, or not any more.
    #[error("{}: not mounted on this node", path.display())]
    NotMounted {
        /// Where.
        path: PathBuf,
    },
    /// This volume killed it again and again.
    #[error("plugin {plugin}: the volume kept killing it and is not tried for another {} s", wait.as_secs().max(1))]
    SetApart {
        /// The plugin.
        plugin: String,
        /// Until it is tried again.
        wait: Duration,
    },
    /// The node's disk or kernel.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// The trouble.
        #[source]
        source: io::Error,
    },
}

impl VolumeFailure {
    /// Gives an I/O error its subject.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// Whether only a change of the volume's fields can help.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Failed {
                fault: Fault::Volume(VolumeError::InvalidAttributes(_)),
                ..
            }
        )
    }

    /// Whether volumes of this driver cannot be made larger at all.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Self::Failed {
                fault: Fault::CannotExpand,
                ..
            }
        )
    }

    /// A plugin whose volumes cannot be made larger.
    pub fn cannot_expand(plugin: &str) -> Self {
        Self::Failed {
            plugin: plugin.to_owned(),
            fault: Fault::CannotExpand,
        }
    }
}

/// Volumes of one world that are mounted on a directory: mounters, or file systems.
///
/// What it makes outlives the agent, and so does what it needs to undo it: both are on disk before the act.
#[async_trait]
pub trait VolumeMounts: Send + Sync + 'static {
    /// Whose volumes these are.
    fn world(&self) -> World;

    /// Mounts a volume on `target`, an empty directory of the volume's own. Repeatable: what is there already stays.
    ///
    /// # Errors
    /// It cannot be had; nothing is left mounted.
    async fn publish(&self, request: &VolumeRequest, target: &Path) -> Result<(), VolumeFailure>;

    /// Undoes what was done for `target`, whether the plugin is still there or not. Repeatable; nothing of this
    /// world's is there: `Ok`.
    ///
    /// # Errors
    /// Something is in the way.
    async fn unpublish(&self, target: &Path) -> Result<(), VolumeFailure>;

    /// Makes a volume that is mounted on `target` hold at least so many bytes, while it may be in use; answers how many
    /// it holds then. Repeatable.
    ///
    /// # Errors
    /// It holds what it did, or its device is larger and its file system is not yet.
    async fn expand(
        &self,
        request: &VolumeRequest,
        _target: &Path,
        _bytes: u64,
    ) -> Result<u64, VolumeFailure> {
        Err(VolumeFailure::cannot_expand(&request.plugin))
    }

    /// Takes up again what an agent before has made. Called once, when plugins can be called.
    async fn restore(&self);

    /// What people should know of volumes that are served.
    fn news(&self) -> Option<broadcast::Receiver<News>> {
        None
    }
}

/// Volumes that plugins give. The agent's volume manager asks for them here; tests bring their own.
#[async_trait]
pub trait VolumePlugins: Send + Sync + 'static {
    /// What a plugin is, if it is installed.
    fn world(&self, plugin: &str) -> Option<World>;

    /// See [`PluginHost::populate`].
    ///
    /// # Errors
    /// The content cannot be had.
    async fn populate(
        &self,
        request: &VolumeRequest,
        staging: &Path,
        current: Option<&str>,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Populated, VolumeFailure>;

    /// See [`VolumeMounts::publish`].
    ///
    /// # Errors
    /// It cannot be had.
    async fn publish(&self, request: &VolumeRequest, target: &Path) -> Result<(), VolumeFailure>;

    /// See [`VolumeMounts::unpublish`]; asked of all worlds, because a plugin that is gone has none.
    ///
    /// # Errors
    /// Something is in the way.
    async fn unpublish(&self, target: &Path) -> Result<(), VolumeFailure>;

    /// See [`VolumeMounts::expand`]. What populators write cannot be made larger.
    ///
    /// # Errors
    /// It is as it was.
    async fn expand(
        &self,
        request: &VolumeRequest,
        _target: &Path,
        _bytes: u64,
    ) -> Result<u64, VolumeFailure> {
        Err(VolumeFailure::cannot_expand(&request.plugin))
    }

    /// See [`PluginHost::create_volume`].
    ///
    /// # Errors
    /// It is not made. [`VolumeFailure::is_no_provisioner`]: it needs no making.
    async fn create(
        &self,
        request: &VolumeRequest,
        _wanted: Wanted,
    ) -> Result<Created, VolumeFailure> {
        Err(VolumeFailure::NotInstalled(request.plugin.clone()))
    }

    /// See [`PluginHost::delete_volume`].
    ///
    /// # Errors
    /// It may be there still, or a part of it.
    async fn delete(&self, request: &VolumeRequest, _handle: &str) -> Result<(), VolumeFailure> {
        Err(VolumeFailure::NotInstalled(request.plugin.clone()))
    }

    /// See [`VolumeMounts::news`].
    fn news(&self) -> Option<broadcast::Receiver<News>> {
        None
    }
}

/// Those of the node's [`PluginHost`].
pub struct PluginVolumes {
    host: Arc<PluginHost>,
    mounts: Vec<Arc<dyn VolumeMounts>>,
}

impl PluginVolumes {
    /// Volumes of populators; and of whoever mounts.
    pub fn new(host: Arc<PluginHost>, mounts: Vec<Arc<dyn VolumeMounts>>) -> Self {
        Self { host, mounts }
    }

    /// See [`VolumeMounts::restore`].
    pub async fn restore(&self) {
        for mounts in &self.mounts {
            mounts.restore().await;
        }
    }
}

#[async_trait]
impl VolumePlugins for PluginVolumes {
    fn world(&self, plugin: &str) -> Option<World> {
        self.host.world(plugin)
    }

    fn news(&self) -> Option<broadcast::Receiver<News>> {
        self.mounts.iter().find_map(|mounts| mounts.news())
    }

    async fn populate(
        &self,
        request: &VolumeRequest,
        staging: &Path,
        current: Option<&str>,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Populated, VolumeFailure> {
        self.host
            .populate(request, staging, current, progress)
            .await
    }

    async fn publish(&self, request: &VolumeRequest, target: &Path) -> Result<(), VolumeFailure> {
        let plugin = &request.plugin;
        let Some(world) = self.world(plugin) else {
            return Err(VolumeFailure::NotInstalled(plugin.clone()));
        };
        let Some(mounts) = self.mounts.iter().find(|mounts| mounts.world() == world) else {
            return Err(VolumeFailure::OfAnotherWorld {
                plugin: plugin.clone(),
                world,
            });
        };
        mounts.publish(request, target).await
    }

    async fn expand(
        &self,
        request: &VolumeRequest,
        target: &Path,
        bytes: u64,
    ) -> Result<u64, VolumeFailure> {
        let plugin = &request.plugin;
        let Some(world) = self.world(plugin) else {
            return Err(VolumeFailure::NotInstalled(plugin.clone()));
        };
        match self.mounts.iter().find(|mounts| mounts.world() == world) {
            Some(mounts) => mounts.expand(request, target, bytes).await,
            None => Err(VolumeFailure::cannot_expand(plugin)),
        }
    }

    async fn create(
        &self,
        request: &VolumeRequest,
        wanted: Wanted,
    ) -> Result<Created, VolumeFailure> {
        self.host.create_volume(request, wanted).await
    }

    async fn delete(&self, request: &VolumeRequest, handle: &str) -> Result<(), VolumeFailure> {
        self.host.delete_volume(request, handle).await
    }

    async fn unpublish(&self, target: &Path) -> Result<(), VolumeFailure> {
        let mut failed = None;
        for mounts in &self.mounts {
            if let Err(error) = mounts.unpublish(target).await {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

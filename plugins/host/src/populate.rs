//! Calls to populators: plugins that write a volume's content into a directory of their own.
//!
//! ```text
//!  staging directory ── given to the worker's user ──▶ populate (the guest writes) ── take_over ──▶ root's, checked
//! ```
//! Whether what was written is shown, and how, is for whoever asked.

pub mod path;
mod take_over;

use std::{
    fs,
    os::fd::OwnedFd,
    os::unix::fs::chown,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use rustix::mount::{OpenTreeFlags, open_tree};
use tokio::time::timeout;

use crate::{
    Exec, PluginHost, ProbeTarget,
    agency::Agency,
    host::{Installed, fault, lock},
    named::NamedHosts,
    protocol::{Call, Ended, Fault, Populated, Said, StagingLimits, VolumeCall, World},
    volume::{VolumeFailure, VolumeRequest},
};

/// What a populator may write where the volume says nothing.
const BYTES_MAX: u64 = 4 << 30;
/// Files, directories and links of one volume.
const ENTRIES_MAX: u64 = 1_000_000;

/// Volumes have no container to run a command in.
pub(crate) struct NoContainer;

#[async_trait]
impl Exec for NoContainer {
    async fn exec(&self, _: &[String], _: Duration) -> Result<(i32, Vec<u8>), Option<String>> {
        Err(Some("a volume has no container".into()))
    }
}

impl PluginHost {
    /// Has a volume's content written into `staging`, an empty directory on the node's disk, and answers what it was
    /// made of. Where that is `current` what was written, if anything, is of no use.
    ///
    /// # Errors
    /// The content cannot be had; what is in `staging` is not to be shown.
    ///
    /// # Cancel safety
    /// The call ends in the worker, too; `staging` is left as it is.
    pub async fn populate(
        &self,
        request: &VolumeRequest,
        staging: &Path,
        current: Option<&str>,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Populated, VolumeFailure> {
        let plugin = self
            .volume_plugin(&request.plugin, World::Populator)
            .await?;
        let limits = StagingLimits {
            bytes_max: request.bytes_max.unwrap_or(BYTES_MAX),
            entries_max: ENTRIES_MAX,
        };
        let directory = give(staging, (self.config.uid, self.config.gid))
            .map_err(|error| VolumeFailure::io(staging, error))?;
        let call = request.call(&plugin, current, limits);
        let ended = self
            .call_about_volume(
                &plugin,
                request,
                call,
                Some(directory),
                progress,
                &NoContainer,
            )
            .await?;
        match ended {
            Said::Populated(populated) => {
                let staging = staging.to_owned();
                let taken =
                    tokio::task::spawn_blocking(move || take_over::take_over(&staging, limits));
                let taken = taken
                    .await
                    .unwrap_or_else(|error| Err(take_over::NotTaken::Io(error.into())));
                match taken {
                    Ok(()) => Ok(populated),
                    Err(why) => Err(VolumeFailure::Refused {
                        plugin: request.plugin.clone(),
                        why: why.to_string(),
                    }),
                }
            }
            Said::Outcome(_) | Said::Done | Said::Expanded(_) | Said::Created(_) => {
                Err(VolumeFailure::Refused {
                    plugin: request.plugin.clone(),
                    why: "it answered as no populator does".into(),
                })
            }
        }
    }

    /// A plugin that is installed and of a world.
    pub(crate) async fn volume_plugin(
        &self,
        name: &str,
        world: World,
    ) -> Result<std::sync::Arc<Installed>, VolumeFailure> {
        let Some(plugin) = self.plugin(name).await else {
            return Err(VolumeFailure::NotInstalled(name.to_owned()));
        };
        if plugin.linked.world != world {
            return Err(VolumeFailure::OfAnotherWorld {
                plugin: name.to_owned(),
                world: plugin.linked.world,
            });
        }
        Ok(plugin)
    }

    /// Makes a call about a volume, in its turn, counted as every call is.
    pub(crate) async fn call_about_volume(
        &self,
        plugin: &Installed,
        request: &VolumeRequest,
        mut call: Call,
        directory: Option<OwnedFd>,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
        exec: &dyn Exec,
    ) -> Result<Said, VolumeFailure> {
        let input = format!("{} {:?}", request.of(), request.attributes);
        let begun = Instant::now();
        let apart = lock(&plugin.seen).apart.wait(&input, begun);
        if let Some(wait) = apart {
            lock(&plugin.seen).stats.not_made += 1;
            return Err(VolumeFailure::SetApart {
                plugin: request.plugin.clone(),
                wait,
            });
        }
        let time = plugin.spec.limits.wall_time_max;
        let named = match plugin.spec.grants.named_hosts {
            true => NamedHosts::of(&request.attributes),
            false => NamedHosts::default(),
        };
        let agency = Agency {
            grants: &plugin.spec.grants,
            named,
            exec,
            progress,
            checks: None,
        };
        let ended = match timeout(time, plugin.instances.acquire()).await {
            Ok(_turn) => {
                call.timeout = time.saturating_sub(begun.elapsed());
                self.call(plugin, call, directory, &agency).await
            }
            Err(_) => fault(Fault::TimedOut { after: time }),
        };
        self.counted(plugin, request, &input, ended, begun)
    }

    fn counted(
        &self,
        plugin: &Installed,
        request: &VolumeRequest,
        input: &str,
        ended: Ended,
        begun: Instant,
    ) -> Result<Said, VolumeFailure> {
        let target = ProbeTarget {
            pod: request.pod.clone(),
            namespace: request.namespace.clone(),
            ..ProbeTarget::default()
        };
        plugin.log(&target, &ended);
        let was_violent = ended.result.as_ref().is_err_and(Fault::is_violent);
        let mut seen = lock(&plugin.seen);
        seen.stats
            .record(&ended, begun.elapsed(), SystemTime::now());
        seen.apart.record(input, was_violent, Instant::now());
        ended.result.map_err(|fault| VolumeFailure::Failed {
            plugin: request.plugin.clone(),
            fault,
        })
    }
}

impl VolumeRequest {
    /// With the file system that it is to have as an attribute, where no attribute says so.
    pub(crate) fn with_fs_type(&self) -> Self {
        let mut asked = self.clone();
        if let Some(fs_type) = &self.fs_type {
            let attribute = asked.attributes.entry("fsType".into());
            attribute.or_insert_with(|| fs_type.clone());
        }
        asked
    }

    /// As the worker is called.
    pub(crate) fn call(
        &self,
        plugin: &Installed,
        current: Option<&str>,
        staging: StagingLimits,
    ) -> Call {
        Call {
            call: 0,
            plugin: 0,
            arguments: Vec::new(),
            target: ProbeTarget::default(),
            timeout: plugin.spec.limits.wall_time_max,
            volume: Some(Box::new(self.volume_call(plugin, current, staging))),
        }
    }

    /// What a call says of the volume.
    pub(crate) fn volume_call(
        &self,
        plugin: &Installed,
        current: Option<&str>,
        staging: StagingLimits,
    ) -> VolumeCall {
        VolumeCall {
            name: self.name.clone(),
            pod: match self.pod.is_empty() {
                true => String::new(),
                false => format!("{}/{}", self.namespace, self.pod),
            },
            attributes: self.attributes.clone(),
            credentials: self.credentials.clone(),
            is_read_only: self.is_read_only,
            config: plugin.spec.config.clone(),
            current: current.map(str::to_owned),
            staging,
            expand: None,
            provision: None,
        }
    }
}

/// Lets the worker's user write to a directory, and to nothing above it: it gets the directory as a mount of its own.
fn give(directory: &Path, (uid, gid): (u32, u32)) -> std::io::Result<OwnedFd> {
    chown(directory, Some(uid), Some(gid))?;
    fs::set_permissions(
        directory,
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(rustix::fs::CWD, directory, flags)?)
}

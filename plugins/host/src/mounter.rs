//! Volumes that a plugin says how to mount. What it asks for is checked against its grants, noted on the node's disk,
//! done, and undone in reverse order when the volume goes, when the call fails, and after a crash.
//!
//! ```text
//!  guest ─ mount, attach, format ─▶ check.rs (pure) ─▶ record.rs (on disk) ─▶ system.rs (the node)
//!                                                         └──── undo ───────────┘
//! ```

mod act;
pub(crate) mod check;
mod granted;
mod record;
mod system;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tracing::{info, warn};

use crate::{
    Exec, PluginHost, VolumeError, World,
    filesystem::{is_mounted, unmount},
    host::Installed,
    named::NamedHosts,
    protocol::{MountAsk, Said, StagingLimits},
    volume::{VolumeFailure, VolumeMounts, VolumeRequest},
};

pub(crate) use self::granted::assert_granted;
pub use self::system::{MountCall, NodeSystem, System};
use self::{
    act::Acts,
    record::{Record, Records},
};

/// The node's volumes of mounters.
pub struct MounterVolumes {
    host: Arc<PluginHost>,
    records: Records,
    system: Arc<dyn System>,
    /// One at a time: programs that attach devices are no friends of one another.
    turn: tokio::sync::Mutex<()>,
}

/// The acts of one call, for a guest that asks.
struct Asking<'a>(tokio::sync::Mutex<Acts<'a>>);

#[async_trait]
impl Exec for Asking<'_> {
    async fn exec(&self, _: &[String], _: Duration) -> Result<(i32, Vec<u8>), Option<String>> {
        Err(Some("a volume has no container".into()))
    }

    async fn mount(&self, ask: MountAsk) -> Result<String, VolumeError> {
        self.0.lock().await.perform(ask).await
    }
}

impl MounterVolumes {
    /// `records` is a directory of its own, which has to outlive a reboot.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(host: Arc<PluginHost>, records: PathBuf) -> io::Result<Arc<Self>> {
        Self::open_on(host, records, Arc::new(NodeSystem))
    }

    /// As [`Self::open`], with what is done on the node done by somebody else.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open_on(
        host: Arc<PluginHost>,
        records: PathBuf,
        system: Arc<dyn System>,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            host,
            records: Records::open(records)?,
            system,
            turn: tokio::sync::Mutex::default(),
        }))
    }

    async fn undo(&self, record: Record) -> io::Result<()> {
        act::undo(&*self.system, &self.records, record).await
    }

    /// Calls the plugin: to mount what the record is of, or to make that larger. Answers what has been done by then.
    async fn call(
        &self,
        plugin: &Installed,
        request: &VolumeRequest,
        record: Record,
        expand: Option<u64>,
    ) -> (Result<Said, VolumeFailure>, Record) {
        let grants = &plugin.spec.grants;
        let named = match grants.named_hosts {
            true => NamedHosts::of(&request.attributes),
            false => NamedHosts::default(),
        };
        let acts = Acts::new(&*self.system, &self.records, grants, named, request, record);
        let asking = Asking(tokio::sync::Mutex::new(acts));
        let mut call = request
            .with_fs_type()
            .call(plugin, None, StagingLimits::default());
        if let Some(volume) = &mut call.volume {
            volume.expand = expand;
        }
        let called = self
            .host
            .call_about_volume(plugin, request, call, None, &|_, _| {}, &asking)
            .await;
        (called, asking.0.into_inner().finish())
    }
}

#[async_trait]
impl VolumeMounts for Arc<MounterVolumes> {
    fn world(&self) -> World {
        World::Mounter
    }

    async fn publish(&self, request: &VolumeRequest, target: &Path) -> Result<(), VolumeFailure> {
        let io = |error: io::Error| VolumeFailure::io(target, error);
        let plugin = self
            .host
            .volume_plugin(&request.plugin, World::Mounter)
            .await?;
        let _turn = self.turn.lock().await;
        if let Some(record) = self.records.read(target).map_err(io)? {
            if record.is_complete && is_mounted(target).map_err(io)? {
                return Ok(());
            }
            // An agent before was killed in the middle, or the node was.
            self.undo(record).await.map_err(io)?;
        }
        let record = Record::new(target, &request.plugin);
        let (called, mut record) = self.call(&plugin, request, record, None).await;
        let result = match called {
            Err(failure) => Err(failure),
            Ok(_) if !record.is_mounted() => Err(VolumeFailure::Refused {
                plugin: request.plugin.clone(),
                why: "it mounted nothing".into(),
            }),
            Ok(_) => {
                record.is_complete = true;
                self.records.write(&record).map_err(io)
            }
        };
        if let Err(failure) = result {
            if let Err(error) = self.undo(record).await {
                warn!(target = %target.display(), %error, "Volume not undone");
            }
            return Err(failure);
        }
        Ok(())
    }

    async fn expand(
        &self,
        request: &VolumeRequest,
        target: &Path,
        bytes: u64,
    ) -> Result<u64, VolumeFailure> {
        let io = |error: io::Error| VolumeFailure::io(target, error);
        let plugin = self
            .host
            .volume_plugin(&request.plugin, World::Mounter)
            .await?;
        let _turn = self.turn.lock().await;
        let record = self.records.read(target).map_err(io)?;
        let record = match record.filter(|record| record.is_complete) {
            Some(record) if is_mounted(target).map_err(io)? => record,
            _ => {
                return Err(VolumeFailure::NotMounted {
                    path: target.to_owned(),
                });
            }
        };
        let (called, _) = self.call(&plugin, request, record, Some(bytes)).await;
        let refused = |why: String| VolumeFailure::Refused {
            plugin: request.plugin.clone(),
            why,
        };
        match called? {
            Said::Expanded(held) if held >= bytes => Ok(held),
            Said::Expanded(held) => Err(refused(format!(
                "the volume holds {held} bytes and not {bytes}"
            ))),
            _ => Err(refused("it answered as no mounter does".into())),
        }
    }

    async fn unpublish(&self, target: &Path) -> Result<(), VolumeFailure> {
        let io = |error: io::Error| VolumeFailure::io(target, error);
        let _turn = self.turn.lock().await;
        match self.records.read(target).map_err(io)? {
            Some(record) => self.undo(record).await.map_err(io),
            None => Ok(()),
        }
    }

    async fn restore(&self) {
        let _turn = self.turn.lock().await;
        for record in self.records.all() {
            // Complete and mounted is as it should be; all else is of an agent or a node that was killed.
            if record.is_complete && is_mounted(&record.target).unwrap_or(false) {
                continue;
            }
            let target = record.target.clone();
            match self.undo(record).await {
                Ok(()) => info!(target = %target.display(), "Unfinished volume undone"),
                Err(error) => warn!(target = %target.display(), %error, "Volume not undone"),
            }
        }
    }
}

/// Undoes all that is recorded in a directory of records, whose agent has ended for good.
///
/// # Errors
/// The first that cannot be undone, after the others have been.
pub async fn undo_all(records: &Path) -> io::Result<()> {
    let records = Records::open(records.to_owned())?;
    let mut failed = None;
    for record in records.all() {
        if let Err(error) = act::undo(&NodeSystem, &records, record).await {
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Takes a mount off; a helper of [`system`].
fn take_off(target: &Path) -> io::Result<()> {
    unmount(target)
}

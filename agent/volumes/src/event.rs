//! What a pod's owner hears of its volumes.

use k8s_openapi::api::core::v1::Pod;
use wherry_plugin_host::volume::VolumeRequest;

use crate::record::Record;

/// Takes events about pods.
pub trait VolumeEvents: Send + Sync + 'static {
    /// Records one; never waits.
    fn tell(&self, pod: &Pod, event: VolumeEvent);
}

/// One event, of the type Normal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEvent {
    /// In one word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl VolumeEvent {
    pub(crate) fn populating(request: &VolumeRequest, done: u64, total: u64) -> Self {
        let (volume, plugin) = (&request.name, &request.plugin);
        let of = match total {
            0 => String::new(),
            total => format!(" of {total}"),
        };
        Self {
            reason: "PopulatingVolume",
            message: format!("volume \"{volume}\": plugin {plugin} has written {done}{of} bytes"),
        }
    }

    pub(crate) fn populated(request: &VolumeRequest, record: &Record) -> Self {
        let (volume, plugin) = (&request.name, &request.plugin);
        let version = record.version.as_deref().unwrap_or_default();
        Self {
            reason: "PopulatedVolume",
            message: format!("volume \"{volume}\" shows version {version} of plugin {plugin}"),
        }
    }
}

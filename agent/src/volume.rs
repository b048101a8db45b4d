//! Volumes, as far as the agent calls them: the node's own, or a fake in tests. Keeping them up to
//! date is in [`follow`].

pub(crate) mod follow;
pub(crate) mod news;
mod renew;

use std::{collections::BTreeMap, path::PathBuf};

use async_trait::async_trait;
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use wherry_volumes::{
    CreateVolume, CreatedVolume, DeleteVolume, PodContext, Refreshed, VolumeError, VolumeEvent,
    VolumeEvents, VolumeFailure, VolumeManager,
};

use crate::events::{Kind, Recorder};

/// Sets volumes up and takes them down. Calls are repeatable.
#[async_trait]
pub trait Volumes: Send + Sync + 'static {
    /// Sets all volumes of a pod up, and answers where each is.
    async fn mount(
        &self,
        pod: &Pod,
        context: &PodContext,
    ) -> Result<BTreeMap<String, PathBuf>, String>;
    /// Renews what changed in the API since.
    async fn refresh(&self, pod: &Pod, context: &PodContext) -> Result<Refreshed, String>;
    /// Asks plugins again for content whose time has come; answers when the next is due.
    async fn repopulate(
        &self,
        _pod: &Pod,
        _context: &PodContext,
        _now: Timestamp,
    ) -> Result<Option<Timestamp>, String> {
        Ok(None)
    }
    /// Has the volume of a claim, which is mounted for a pod, hold at least so many bytes.
    async fn expand(
        &self,
        pod: &Pod,
        claim: &str,
        _bytes: u64,
        _context: &PodContext,
    ) -> Result<u64, VolumeError> {
        Err(VolumeError::not_mounted(pod, claim))
    }
    /// Has a plugin make a volume for a claim.
    async fn create(
        &self,
        plugin: &str,
        _name: &str,
        _asked: CreateVolume,
    ) -> Result<CreatedVolume, VolumeFailure> {
        Err(VolumeFailure::NotInstalled(plugin.to_owned()))
    }
    /// Has a plugin take such a volume away.
    async fn delete(
        &self,
        plugin: &str,
        _name: &str,
        _asked: DeleteVolume,
    ) -> Result<(), VolumeFailure> {
        Err(VolumeFailure::NotInstalled(plugin.to_owned()))
    }
    /// Takes everything of a pod down.
    async fn unmount(&self, uid: &str) -> Result<(), String>;
}

#[async_trait]
impl Volumes for VolumeManager {
    async fn mount(
        &self,
        pod: &Pod,
        context: &PodContext,
    ) -> Result<BTreeMap<String, PathBuf>, String> {
        self.mount(pod, context)
            .await
            .map_err(|error| error.to_string())
    }

    async fn refresh(&self, pod: &Pod, context: &PodContext) -> Result<Refreshed, String> {
        self.refresh(pod, context)
            .await
            .map_err(|error| error.to_string())
    }

    async fn repopulate(
        &self,
        pod: &Pod,
        context: &PodContext,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, String> {
        self.repopulate(pod, context, now)
            .await
            .map_err(|error| error.to_string())
    }

    async fn expand(
        &self,
        pod: &Pod,
        claim: &str,
        bytes: u64,
        context: &PodContext,
    ) -> Result<u64, VolumeError> {
        self.expand(pod, claim, bytes, context).await
    }

    async fn create(
        &self,
        plugin: &str,
        name: &str,
        asked: CreateVolume,
    ) -> Result<CreatedVolume, VolumeFailure> {
        self.create(plugin, name, asked).await
    }

    async fn delete(
        &self,
        plugin: &str,
        name: &str,
        asked: DeleteVolume,
    ) -> Result<(), VolumeFailure> {
        self.delete(plugin, name, asked).await
    }

    async fn unmount(&self, uid: &str) -> Result<(), String> {
        self.unmount(uid).await.map_err(|error| error.to_string())
    }
}

impl VolumeEvents for Recorder {
    fn tell(&self, pod: &Pod, event: VolumeEvent) {
        self.record(pod, None, Kind::Normal, event.reason, event.message);
    }
}

//! Volumes made of images (`volumes[].image`): pulled like a container's image, then mounted
//! read-only where the volume manager says that the volume is.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};
use wherry_volumes::{VolumeError, image_volume_dir, is_mount_point};

use crate::pod::{self, status::reason};

use super::{ImageManager, ImageTrouble, PullPolicy, pull::Wanted};

/// One lock for each volume that is being mounted: containers of a pod may share one.
#[derive(Default)]
pub(super) struct Mounting {
    locks: Mutex<HashMap<PathBuf, Weak<tokio::sync::Mutex<()>>>>,
}

impl Mounting {
    fn lock(&self, target: &Path) -> Arc<tokio::sync::Mutex<()>> {
        // Every change is one insert or remove.
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(target).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(target.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

impl ImageManager {
    /// Mounts the image volumes that a container uses. One that is mounted stays as it is: its
    /// content changes only with the pod.
    pub(super) async fn ensure_volumes(
        &self,
        pod: &Pod,
        container: &Container,
    ) -> Result<(), ImageTrouble> {
        let mounts = container.volume_mounts.iter().flatten();
        let names: Vec<_> = mounts.map(|mount| mount.name.as_str()).collect();
        for volume in pod::spec(pod).volumes.iter().flatten() {
            if let Some(source) = &volume.image
                && names.contains(&volume.name.as_str())
            {
                self.ensure_volume(pod, &volume.name, source).await?;
            }
        }
        Ok(())
    }

    async fn ensure_volume(
        &self,
        pod: &Pod,
        name: &str,
        source: &ImageVolumeSource,
    ) -> Result<(), ImageTrouble> {
        let reference = source.reference.as_deref().unwrap_or_default();
        let service = self.sources.store();
        let wanted = Wanted {
            pod,
            container: None,
            reference,
            policy: PullPolicy::of_volume(source),
            service,
            engine: None,
        };
        let uid = pod::uid(pod);
        let refuse = |error: VolumeError| {
            self.puller.fail(
                wanted,
                reason::CREATE_CONTAINER_CONFIG_ERROR,
                error.to_string(),
            )
        };
        let target = image_volume_dir(&self.pods_dir, uid.as_str(), name).map_err(refuse)?;
        let lock = self.mounting.lock(&target);
        let _alone = lock.lock().await;
        if is_mount_point(&target).unwrap_or(false) {
            return Ok(());
        }
        let image = self.puller.get(wanted).await?;
        let mounted = match fs::create_dir_all(&target) {
            Ok(()) => service
                .mount_image(&image.id, &target)
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(format!("{}: {error}", target.display())),
        };
        mounted.map_err(|why| {
            let message = format!("MountVolume.SetUp failed for volume \"{name}\" : {why}");
            self.puller
                .fail(wanted, reason::CREATE_CONTAINER_ERROR, message)
        })
    }
}

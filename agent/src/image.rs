//! Images for containers: where they are, pull policy, back-off, credentials, events, volumes made
//! of them. Collection is in [`gc`].
//!
//! ```text
//!  container ─ sources ─▶ the runtime's own images, or the node's store
//!            ─ policy ──▶ there, or pull: back-off ─ turn ─ credentials ─▶ ImageService
//! ```

pub(crate) mod auth;
mod backoff;
mod credentials;
pub(crate) mod gc;
mod policy;
mod pull;
mod pulled;
mod sources;
mod volumes;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::Semaphore;
use wherry_runtime_api::{FsUsage, Image, ImageError, ImageKind};

use crate::{config::Config, events::Recorder, objects::Objects, pod};

pub(crate) use policy::PullPolicy;
pub(crate) use pull::ImageTrouble;

use backoff::Pauses;
use credentials::Credentials;
pub use credentials::NodeCredentials;
use pull::{Puller, Wanted};
use pulled::Pulled;
use sources::Sources;
use volumes::Mounting;

/// Gets images for containers.
pub(crate) struct ImageManager {
    sources: Sources,
    puller: Puller,
    mounting: Mounting,
    pods_dir: PathBuf,
    seen: gc::Seen,
}

impl ImageManager {
    /// A manager over the images of the node and of its runtimes.
    pub(crate) fn new(config: &Config, objects: Arc<Objects>, recorder: Recorder) -> Self {
        let node_file = config.image_credential_file.clone();
        let of_node = match node_file {
            Some(file) => NodeCredentials::new(file),
            None => NodeCredentials::below(&config.root),
        };
        let puller = Puller {
            credentials: Credentials::new(objects, recorder.clone(), of_node),
            recorder,
            clock: Arc::clone(&config.clock),
            pauses: Mutex::new(Pauses::new(config.tuning.backoff)),
            retry: config.tuning.backoff.initial,
            slots: config
                .max_parallel_image_pulls
                .map(|slots| Semaphore::new(slots.max(1))),
            pulled: Pulled::new(&config.root),
        };
        Self {
            sources: Sources::new(Arc::clone(&config.images), &config.runtimes),
            puller,
            mounting: Mounting::default(),
            pods_dir: config.pods_dir(),
            seen: gc::Seen::default(),
        }
    }

    async fn choose(
        &self,
        pod: &Pod,
        container: &Container,
        fixed_handler: Option<&str>,
    ) -> sources::Choice {
        let reference = container.image.as_deref().unwrap_or_default();
        let ask = async {
            let credentials = self.puller.credentials.of(pod, reference).await;
            let store = self.sources.store();
            store.resolve_kind(reference, &credentials).await
        };
        let policy = PullPolicy::of(container);
        self.sources
            .choose(fixed_handler, reference, policy, ask)
            .await
    }

    /// What each image of a pod without RuntimeClass is, where that can be found out now.
    pub(crate) async fn kinds(&self, pod: &Pod) -> Vec<Option<ImageKind>> {
        let spec = pod::spec(pod);
        let init = spec.init_containers.iter().flatten();
        let mut kinds = Vec::new();
        for container in init.chain(&spec.containers) {
            kinds.push(self.choose(pod, container, None).await.kind);
        }
        kinds
    }

    /// Gets a container's image by its pull policy, from who keeps the images of its runtime:
    /// `fixed_handler` is the one that a RuntimeClass names. Mounts the image volumes that the
    /// container uses first.
    pub(crate) async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        fixed_handler: Option<&str>,
    ) -> Result<Image, ImageTrouble> {
        self.ensure_volumes(pod, container).await?;
        let choice = self.choose(pod, container, fixed_handler).await;
        let wanted = Wanted {
            pod,
            container: Some(&container.name),
            reference: container.image.as_deref().unwrap_or_default(),
            policy: PullPolicy::of(container),
            service: &choice.service,
            engine: self.sources.handler_of(&choice.service),
        };
        self.puller.get(wanted).await
    }

    /// Every image on the node, engines included.
    pub(crate) async fn list(&self) -> Vec<Image> {
        self.sources.list().await
    }

    /// What images use, engines included.
    ///
    /// # Errors
    /// The content store's.
    pub(crate) async fn fs_info(&self) -> Result<FsUsage, ImageError> {
        self.sources.fs_info().await
    }

    /// Forgets the pauses of a pod that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.puller.pauses().forget(uid);
    }
}

#[cfg(test)]
mod tests;

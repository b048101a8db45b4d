//! An image service without a registry.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;

use crate::*;

#[derive(Default)]
struct Images {
    registry: BTreeMap<String, ImageKind>,
    present: BTreeMap<String, Image>,
    failures: VecDeque<ImageError>,
    delay: Duration,
    pulls: Vec<(String, Vec<RegistryAuth>)>,
}

/// The image service: what the registry has is pulled, anything else is not found.
#[derive(Default)]
pub struct FakeImages {
    images: Mutex<Images>,
}

impl FakeImages {
    /// An empty store before a registry that has `images`.
    pub fn new(images: &[(&str, ImageKind)]) -> Arc<Self> {
        let this = Self::default();
        this.images().registry = images
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), *kind))
            .collect();
        Arc::new(this)
    }

    fn images(&self) -> MutexGuard<'_, Images> {
        self.images
            .lock()
            .expect("no test panics while it holds the fake's lock")
    }

    /// Makes the next pull fail.
    pub fn fail_next(&self, error: ImageError) {
        self.images().failures.push_back(error);
    }

    /// Makes each pull take this long.
    pub fn delay(&self, by: Duration) {
        self.images().delay = by;
    }

    /// Pulls made, with the credentials that were offered.
    pub fn pulls(&self) -> Vec<(String, Vec<RegistryAuth>)> {
        self.images().pulls.clone()
    }
}

#[async_trait]
impl ImageService for FakeImages {
    async fn image_status(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let images = self.images();
        Ok(images
            .present
            .values()
            .find(|i| i.id == reference || i.repo_tags.iter().any(|tag| tag == reference))
            .cloned())
    }

    async fn resolve_kind(
        &self,
        reference: &str,
        _: &[RegistryAuth],
    ) -> Result<ImageKind, ImageError> {
        let kind = self.images().registry.get(reference).copied();
        kind.ok_or_else(|| ImageError::NotFound {
            reference: reference.into(),
        })
    }

    async fn pull_image(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
        _: Option<PullProgressSender>,
    ) -> Result<Image, ImageError> {
        let delay = self.images().delay;
        tokio::time::sleep(delay).await;
        let mut images = self.images();
        images.pulls.push((reference.into(), auth.to_vec()));
        if let Some(error) = images.failures.pop_front() {
            return Err(error);
        }
        let Some(kind) = images.registry.get(reference).copied() else {
            return Err(ImageError::NotFound {
                reference: reference.into(),
            });
        };
        let image = Image {
            id: format!("sha256:{reference}"),
            repo_tags: vec![reference.into()],
            repo_digests: vec![format!("{reference}@sha256:{reference}")],
            size_bytes: 1000,
            user: None,
            kind,
        };
        images.present.insert(reference.into(), image.clone());
        Ok(image)
    }

    async fn list_images(&self) -> Result<Vec<Image>, ImageError> {
        Ok(self.images().present.values().cloned().collect())
    }

    async fn remove_image(&self, id: &str) -> Result<(), ImageError> {
        self.images().present.retain(|_, image| image.id != id);
        Ok(())
    }

    async fn fs_info(&self) -> Result<FsUsage, ImageError> {
        let used_bytes = self
            .images()
            .present
            .values()
            .map(|image| image.size_bytes)
            .sum();
        Ok(FsUsage {
            used_bytes,
            inodes_used: 1,
            capacity_bytes: 1 << 30,
            available_bytes: (1 << 30) - used_bytes,
        })
    }
}

//! Where images are: the node's content store, and the engines that keep their own.

use std::{collections::HashSet, sync::Arc};

use tracing::debug;
use wherry_runtime_api::{FsUsage, Image, ImageError, ImageKind, ImageService, Runtime};

use crate::pod::translate;

use super::PullPolicy;

/// Where images are.
pub(crate) struct Sources {
    store: Arc<dyn ImageService>,
    /// Runtimes with images of their own, by handler.
    engines: Vec<(&'static str, Arc<dyn ImageService>)>,
    default_handler: &'static str,
}

/// Where a container's image is or will be.
pub(crate) struct Choice {
    /// Who keeps it.
    pub(crate) service: Arc<dyn ImageService>,
    /// What it is, as far as can be told now.
    pub(crate) kind: Option<ImageKind>,
}

impl Sources {
    /// `store`, and what `runtimes` keep themselves.
    pub(crate) fn new(store: Arc<dyn ImageService>, runtimes: &[Arc<dyn Runtime>]) -> Self {
        let engines = runtimes
            .iter()
            .filter_map(|runtime| Some((runtime.handler(), runtime.images()?)));
        Self {
            store,
            engines: engines.collect(),
            default_handler: runtimes.first().map_or("oci", |runtime| runtime.handler()),
        }
    }

    /// The node's content store.
    pub(crate) fn store(&self) -> &Arc<dyn ImageService> {
        &self.store
    }

    /// The store, then the engines, each with its handler.
    pub(crate) fn all(
        &self,
    ) -> impl Iterator<Item = (Option<&'static str>, &Arc<dyn ImageService>)> {
        let engines = self.engines.iter();
        std::iter::once((None, &self.store))
            .chain(engines.map(|(handler, service)| (Some(*handler), service)))
    }

    fn engine(&self, handler: &str) -> Option<&Arc<dyn ImageService>> {
        let found = self.engines.iter().find(|(name, _)| *name == handler);
        found.map(|(_, service)| service)
    }

    /// The handler of the engine that keeps its images in `service`; `None` for the store.
    pub(crate) fn handler_of(&self, service: &Arc<dyn ImageService>) -> Option<&'static str> {
        let found = self
            .engines
            .iter()
            .find(|(_, own)| Arc::ptr_eq(own, service));
        found.map(|(handler, _)| *handler)
    }

    /// Who keeps the image of a container: the engine of the handler that a RuntimeClass names; else
    /// the default runtime's engine, unless the image turns out to be Wasm. `ask` finds out, at the
    /// registry, what an image is that is nowhere on the node.
    pub(crate) async fn choose(
        &self,
        fixed_handler: Option<&str>,
        reference: &str,
        policy: PullPolicy,
        ask: impl Future<Output = Result<ImageKind, ImageError>>,
    ) -> Choice {
        let chosen = |service: &Arc<dyn ImageService>, kind| Choice {
            service: Arc::clone(service),
            kind,
        };
        if let Some(handler) = fixed_handler {
            let kind = match handler {
                translate::HANDLER_WASM | translate::HANDLER_WASM_ISOLATED => ImageKind::Wasm,
                _ => ImageKind::Container,
            };
            return chosen(self.engine(handler).unwrap_or(&self.store), Some(kind));
        }
        let engine = self.engine(self.default_handler);
        if let Some(engine) = engine
            && let Ok(Some(image)) = engine.image_status(reference).await
        {
            return chosen(engine, Some(image.kind));
        }
        let kind = match self.store.image_status(reference).await {
            Ok(Some(image)) => Some(image.kind),
            Ok(None) if policy != PullPolicy::Never => match ask.await {
                Ok(kind) => Some(kind),
                Err(error) => {
                    debug!(image = reference, %error, "Kind of image unknown");
                    None
                }
            },
            Ok(None) | Err(_) => None,
        };
        match (kind, engine) {
            (Some(ImageKind::Container) | None, Some(engine)) => chosen(engine, kind),
            _ => chosen(&self.store, kind),
        }
    }

    /// Every image on the node, the store's first. An engine that does not answer has none.
    pub(crate) async fn list(&self) -> Vec<Image> {
        let mut images: Vec<Image> = Vec::new();
        let mut known = HashSet::new();
        for (handler, service) in self.all() {
            match service.list_images().await {
                Ok(list) => images.extend(list.into_iter().filter(|i| known.insert(i.id.clone()))),
                Err(error) => debug!(handler, %error, "Images not listed"),
            }
        }
        images
    }

    /// What images use, all told, on the file system of the content store.
    ///
    /// # Errors
    /// The store's own; an engine that does not answer counts nothing.
    pub(crate) async fn fs_info(&self) -> Result<FsUsage, ImageError> {
        let mut usage = self.store.fs_info().await?;
        for (_, engine) in &self.engines {
            if let Ok(more) = engine.fs_info().await {
                usage.used_bytes += more.used_bytes;
                usage.inodes_used += more.inodes_used;
            }
        }
        Ok(usage)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use wherry_runtime_api::fake::FakeImages;

    use super::*;

    async fn with(present: &[(&str, ImageKind)]) -> Arc<dyn ImageService> {
        let images = FakeImages::new(present);
        for (name, _) in present {
            let pulled = images.pull_image(name, &[], None).await;
            pulled.expect("its registry has it");
        }
        images
    }

    #[tokio::test]
    async fn who_keeps_an_image_goes_by_class_then_by_who_has_it_then_by_what_it_is() {
        use {ImageKind::*, PullPolicy::*};
        let engine = with(&[("nginx:1", Container), ("both:1", Container)]).await;
        let store = with(&[
            ("hello:1", Wasm),
            ("redis:1", Container),
            ("both:1", Container),
        ])
        .await;
        let sources = |default_handler| Sources {
            store: Arc::clone(&store),
            engines: vec![("docker", Arc::clone(&engine))],
            default_handler,
        };
        let not_found = || ImageError::NotFound {
            reference: "x".into(),
        };
        for (default, class, name, policy, answer, in_engine, kind) in [
            (
                "docker",
                None,
                "nginx:1",
                IfNotPresent,
                None,
                true,
                Some(Container),
            ),
            (
                "docker",
                None,
                "both:1",
                IfNotPresent,
                None,
                true,
                Some(Container),
            ),
            ("docker", None, "hello:1", Always, None, false, Some(Wasm)),
            // It is where the engine cannot run it from: the engine pulls it again.
            (
                "docker",
                None,
                "redis:1",
                IfNotPresent,
                None,
                true,
                Some(Container),
            ),
            (
                "docker",
                None,
                "new:1",
                IfNotPresent,
                Some(Ok(Wasm)),
                false,
                Some(Wasm),
            ),
            (
                "docker",
                None,
                "new:1",
                IfNotPresent,
                Some(Ok(Container)),
                true,
                Some(Container),
            ),
            (
                "docker",
                None,
                "new:1",
                IfNotPresent,
                Some(Err(not_found())),
                true,
                None,
            ),
            ("docker", None, "new:1", Never, None, true, None),
            (
                "docker",
                Some("oci"),
                "nginx:1",
                Always,
                None,
                false,
                Some(Container),
            ),
            (
                "docker",
                Some("wasm"),
                "nginx:1",
                Always,
                None,
                false,
                Some(Wasm),
            ),
            (
                "oci",
                Some("docker"),
                "new:1",
                Always,
                None,
                true,
                Some(Container),
            ),
            (
                "oci",
                None,
                "nginx:1",
                IfNotPresent,
                Some(Ok(Container)),
                false,
                Some(Container),
            ),
            (
                "oci",
                None,
                "hello:1",
                IfNotPresent,
                None,
                false,
                Some(Wasm),
            ),
        ] {
            let what = format!("{name} {policy:?} default {default} class {class:?}");
            let (asked, is_wanted) = (Cell::new(false), answer.is_some());
            let ask = async {
                asked.set(true);
                answer.expect("nobody is to be asked")
            };
            let choice = sources(default).choose(class, name, policy, ask).await;
            assert_eq!(Arc::ptr_eq(&choice.service, &engine), in_engine, "{what}");
            assert_eq!(choice.kind, kind, "{what}");
            assert_eq!(asked.get(), is_wanted, "{what}");
        }
    }

    #[tokio::test]
    async fn what_two_keep_is_listed_once_and_all_of_it_counts() {
        let (engine, store) = (
            with(&[("a:1", ImageKind::Container)]).await,
            with(&[("a:1", ImageKind::Container), ("b:1", ImageKind::Container)]).await,
        );
        let sources = Sources {
            store,
            engines: vec![("docker", engine)],
            default_handler: "docker",
        };
        let ids: Vec<_> = sources
            .list()
            .await
            .into_iter()
            .map(|image| image.id)
            .collect();
        assert_eq!(ids, ["sha256:a:1", "sha256:b:1"]);
        assert_eq!(sources.fs_info().await.expect("answers").used_bytes, 3000);
    }
}

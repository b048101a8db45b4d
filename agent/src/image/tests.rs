use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Value, json};
use wherry_runtime_api::{ImageService, PullProgressSender, RegistryAuth, fake::FakeImages};

use super::*;
use crate::testing::{Node, pod};

fn manager(node: &Node, change: impl FnOnce(&mut Config)) -> ImageManager {
    let mut config = node.config();
    change(&mut config);
    let (recorder, _) = Recorder::new(None, "node-1", Arc::clone(&config.clock));
    ImageManager::new(&config, Arc::new(Objects::new(None)), recorder)
}

fn with_image(image: &str, policy: &str) -> Pod {
    let container = json!({ "name": "c", "image": image, "imagePullPolicy": policy });
    pod("p", json!({ "containers": [container] }))
}

async fn ensure(images: &ImageManager, pod: &Pod) -> Result<String, (&'static str, String)> {
    let container = &pod::spec(pod).containers[0];
    match images.ensure(pod, container, None).await {
        Ok(image) => Ok(image.id),
        Err(trouble) => Err((trouble.waiting.reason, trouble.waiting.message)),
    }
}

/// Counts how many pulls are under way at once.
struct Counting {
    images: Arc<FakeImages>,
    active: AtomicUsize,
    most: AtomicUsize,
}

#[async_trait]
impl ImageService for Counting {
    async fn image_status(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        self.images.image_status(reference).await
    }

    async fn resolve_kind(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
    ) -> Result<ImageKind, ImageError> {
        self.images.resolve_kind(reference, auth).await
    }

    async fn pull_image(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
        progress: Option<PullProgressSender>,
    ) -> Result<Image, ImageError> {
        let active = self.active.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(active, Ordering::SeqCst);
        let pulled = self.images.pull_image(reference, auth, progress).await;
        self.active.fetch_sub(1, Ordering::SeqCst);
        pulled
    }

    async fn list_images(&self) -> Result<Vec<Image>, ImageError> {
        self.images.list_images().await
    }

    async fn remove_image(&self, id: &str) -> Result<(), ImageError> {
        self.images.remove_image(id).await
    }

    async fn fs_info(&self) -> Result<FsUsage, ImageError> {
        self.images.fs_info().await
    }
}

#[tokio::test]
async fn pulls_wait_for_a_turn_only_where_that_is_asked_for() {
    for (slots, most) in [(None, 2), (Some(1), 1), (Some(2), 2)] {
        let node = Node::new();
        node.images.delay(Duration::from_millis(10));
        let counting = Arc::new(Counting {
            images: Arc::clone(&node.images),
            active: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let images = manager(&node, |config| {
            config.images = Arc::clone(&counting) as _;
            config.max_parallel_image_pulls = slots;
        });
        let pods = [
            with_image("nginx:1", "Always"),
            with_image("redis:1", "Always"),
        ];
        // On one task, so that both have begun before the first is through.
        let (one, two) = tokio::join!(ensure(&images, &pods[0]), ensure(&images, &pods[1]));
        assert!(one.is_ok() && two.is_ok());
        assert_eq!(counting.most.load(Ordering::SeqCst), most, "{slots:?}");
    }
}

#[tokio::test]
async fn a_failed_pull_shows_its_reason_and_then_waits_in_kubernetes_words() {
    let reference = || "nginx:1".to_owned();
    for (error, reason, message) in [
        (
            ImageError::NotFound {
                reference: reference(),
            },
            "ErrImagePull",
            "pull nginx:1: not found",
        ),
        (
            ImageError::Unavailable {
                reference: reference(),
                why: "connection refused".into(),
            },
            "RegistryUnavailable",
            "image pull failed for nginx:1 because the registry is unavailable: connection refused",
        ),
        (
            ImageError::InvalidName {
                reference: reference(),
                why: "invalid reference format".into(),
            },
            "InvalidImageName",
            "couldn't parse image name \"nginx:1\": invalid reference format",
        ),
    ] {
        let node = Node::new();
        let images = manager(&node, |config| {
            config.tuning.backoff.initial = Duration::from_secs(10);
        });
        let pod = with_image("nginx:1", "IfNotPresent");
        node.images.fail_next(error);
        let told = ensure(&images, &pod).await;
        assert_eq!(told, Err((reason, message.into())));
        let waits = format!("Back-off pulling image \"nginx:1\": {reason}: {message}");
        assert_eq!(
            ensure(&images, &pod).await,
            Err(("ImagePullBackOff", waits))
        );
        images.forget("p");
        assert!(ensure(&images, &pod).await.is_ok());
    }
}

#[tokio::test]
async fn never_is_never() {
    let node = Node::new();
    let images = manager(&node, |_| {});
    let told = ensure(&images, &with_image("nginx:1", "Never")).await;
    let message = "Container image \"nginx:1\" is not present with pull policy of Never";
    assert_eq!(told, Err(("ErrImageNeverPull", message.into())));
    assert!(node.images.pulls().is_empty());
}

#[tokio::test]
async fn credentials_of_the_node_are_offered_and_may_change_without_a_restart() {
    let node = Node::new();
    let file = node.root.path().join("config.json");
    let images = manager(&node, |_| {});
    let auth = |user: &str| RegistryAuth::Basic {
        username: user.into(),
        password: "word".into(),
    };
    let write = |user: &str| {
        let entry = json!({ "username": user, "password": "word" });
        let config: Value = json!({ "auths": { "index.docker.io": entry } });
        fs::write(&file, config.to_string()).expect("writable");
    };
    let pod = with_image("nginx:1", "Always");
    for (user, expected) in [
        (None, vec![]),
        (Some("ann"), vec![auth("ann")]),
        (Some("bob"), vec![auth("bob")]),
    ] {
        if let Some(user) = user {
            write(user);
        }
        ensure(&images, &pod).await.expect("pulled");
        let (_, offered) = node.images.pulls().pop().expect("a pull");
        assert_eq!(offered, expected, "{user:?}");
    }
    fs::write(&file, "no json").expect("writable");
    ensure(&images, &pod).await.expect("pulled anonymously");
}

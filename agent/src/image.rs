//! Images for containers: pull policy, back-off, credentials, events. Collection is in [`gc`].

pub(crate) mod auth;
pub(crate) mod gc;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::time::Instant;
use tracing::debug;
use wherry_runtime_api::{Image, ImageError, ImageKind, ImageService, RegistryAuth};

use crate::{
    config::Clock,
    events::{Kind, Recorder},
    objects::Objects,
    pod::{
        self,
        restart::BackoffPolicy,
        status::{Waiting, reason},
    },
    text::{go_duration, go_duration_millis},
};

/// Pauses remembered; the oldest are forgotten beyond, which costs an early retry.
const REMEMBERED_MAX: usize = 1024;

/// When an image is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    /// The registry is asked each time.
    Always,
    /// What is there is used.
    IfNotPresent,
    /// Only what is there is used.
    Never,
}

impl PullPolicy {
    /// As the container says; else `Always` for `latest`, as the API server would have set it.
    pub(crate) fn of(container: &Container) -> Self {
        match container.image_pull_policy.as_deref() {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            Some("IfNotPresent") => Self::IfNotPresent,
            _ => {
                let image = container.image.as_deref().unwrap_or_default();
                let last = image.rsplit('/').next().unwrap_or_default();
                let is_latest = !last.contains('@')
                    && last.split_once(':').is_none_or(|(_, tag)| tag == "latest");
                if is_latest {
                    Self::Always
                } else {
                    Self::IfNotPresent
                }
            }
        }
    }
}

/// An image cannot be had now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageTrouble {
    /// What the container waits for.
    pub(crate) waiting: Waiting,
    /// When to try again.
    pub(crate) until: SystemTime,
}

#[derive(Clone, Debug)]
struct Pause {
    delay: Duration,
    until: SystemTime,
    /// Of the pull that failed.
    reason: &'static str,
    message: String,
}

/// Gets images for containers.
pub(crate) struct ImageManager {
    service: Arc<dyn ImageService>,
    objects: Arc<Objects>,
    recorder: Recorder,
    clock: Clock,
    backoff: BackoffPolicy,
    pauses: Mutex<HashMap<(String, String), Pause>>,
}

impl ImageManager {
    /// A manager over the node's images.
    pub(crate) fn new(
        service: Arc<dyn ImageService>,
        objects: Arc<Objects>,
        recorder: Recorder,
        clock: Clock,
        backoff: BackoffPolicy,
    ) -> Self {
        Self {
            service,
            objects,
            recorder,
            clock,
            backoff,
            pauses: Mutex::default(),
        }
    }

    /// The node's images.
    pub(crate) fn service(&self) -> &Arc<dyn ImageService> {
        &self.service
    }

    fn pauses(&self) -> MutexGuard<'_, HashMap<(String, String), Pause>> {
        // Every change is one insert or remove.
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Credentials for an image: of the pod's pull secrets, else of its ServiceAccount's.
    async fn credentials(&self, pod: &Pod, image: &str) -> Vec<RegistryAuth> {
        let namespace = pod::namespace(pod);
        let spec = pod::spec(pod);
        let mut names: Vec<String> = spec
            .image_pull_secrets
            .iter()
            .flatten()
            .map(|s| s.name.clone())
            .collect();
        if names.is_empty() && !pod::is_static(pod) {
            let account = spec.service_account_name.as_deref().unwrap_or("default");
            names = self.objects.account_pull_secrets(namespace, account).await;
        }
        let mut keyring = auth::Keyring::new();
        for name in names.iter().filter(|name| !name.is_empty()) {
            match self.objects.secret(namespace, name).await {
                Ok(Some(secret)) => keyring.extend(auth::parse(&secret)),
                Ok(None) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({name}); attempting to pull the image may not succeed."
                    );
                    self.recorder.record(
                        pod,
                        None,
                        Kind::Warning,
                        "FailedToRetrieveImagePullSecret",
                        message,
                    );
                }
                Err(error) => {
                    debug!(pod = pod::name(pod), secret = name, %error, "Pull secret not available")
                }
            }
        }
        auth::lookup(&keyring, image)
    }

    /// What each image of a pod is, where that can be found out now.
    pub(crate) async fn kinds(&self, pod: &Pod) -> Vec<Option<ImageKind>> {
        let spec = pod::spec(pod);
        let mut kinds = Vec::new();
        for container in spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
        {
            let reference = container.image.as_deref().unwrap_or_default();
            let present = self.service.image_status(reference).await.ok().flatten();
            let kind = match present {
                Some(image) => Some(image.kind),
                None if PullPolicy::of(container) == PullPolicy::Never => None,
                None => {
                    let credentials = self.credentials(pod, reference).await;
                    match self.service.resolve_kind(reference, &credentials).await {
                        Ok(kind) => Some(kind),
                        Err(error) => {
                            debug!(image = reference, %error, "Kind of image unknown");
                            None
                        }
                    }
                }
            };
            kinds.push(kind);
        }
        kinds
    }

    /// Gets a container's image by its pull policy.
    pub(crate) async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
    ) -> Result<Image, ImageTrouble> {
        let reference = container.image.as_deref().unwrap_or_default();
        let say = |kind, reason, message| {
            self.recorder
                .record(pod, Some(&container.name), kind, reason, message)
        };
        let present = match self.service.image_status(reference).await {
            Ok(present) => present,
            Err(ImageError::InvalidName { why, .. }) => {
                let message = format!(
                    "Failed to apply default image tag \"{reference}\": couldn't parse image name \"{reference}\": {why}"
                );
                say(Kind::Warning, "InspectFailed", message.clone());
                return Err(self.fail(pod, container, reason::INVALID_IMAGE_NAME, message));
            }
            Err(error) => {
                let message = format!("Failed to inspect image \"{reference}\": {error}");
                say(Kind::Warning, "InspectFailed", message.clone());
                return Err(self.fail(pod, container, "ImageInspectError", message));
            }
        };
        match (PullPolicy::of(container), present) {
            (PullPolicy::IfNotPresent | PullPolicy::Never, Some(image)) => {
                say(
                    Kind::Normal,
                    "Pulled",
                    format!("Container image \"{reference}\" already present on machine"),
                );
                return Ok(image);
            }
            (PullPolicy::Never, None) => {
                let message = format!(
                    "Container image \"{reference}\" is not present with pull policy of Never"
                );
                say(Kind::Warning, reason::ERR_IMAGE_NEVER_PULL, message.clone());
                return Err(self.fail(pod, container, reason::ERR_IMAGE_NEVER_PULL, message));
            }
            (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, None) => {}
        }
        self.pull(pod, container, reference).await
    }

    async fn pull(
        &self,
        pod: &Pod,
        container: &Container,
        reference: &str,
    ) -> Result<Image, ImageTrouble> {
        let say = |kind, reason, message| {
            self.recorder
                .record(pod, Some(&container.name), kind, reason, message)
        };
        let key = (pod::uid(pod).to_string(), reference.to_owned());
        let now = (self.clock)();
        let pause = self.pauses().get(&key).cloned();
        if let Some(pause) = pause.as_ref().filter(|pause| pause.until > now) {
            return Err(self.back_off(pod, container, reference, pause));
        }
        say(
            Kind::Normal,
            "Pulling",
            format!("Pulling image \"{reference}\""),
        );
        let begun = Instant::now();
        let credentials = self.credentials(pod, reference).await;
        match self.service.pull_image(reference, &credentials, None).await {
            Ok(image) => {
                self.pauses().remove(&key);
                let took = go_duration_millis(begun.elapsed());
                let message = format!(
                    "Successfully pulled image \"{reference}\" in {took} ({took} including waiting). Image size: {} bytes.",
                    image.size_bytes
                );
                say(Kind::Normal, "Pulled", message);
                Ok(image)
            }
            Err(error) => {
                let (reason, why) = match &error {
                    ImageError::InvalidName { .. } => {
                        (reason::INVALID_IMAGE_NAME, error.to_string())
                    }
                    _ => (reason::ERR_IMAGE_PULL, error.to_string()),
                };
                say(
                    Kind::Warning,
                    "Failed",
                    format!("Failed to pull image \"{reference}\": {why}"),
                );
                say(Kind::Warning, "Failed", format!("Error: {reason}"));
                let now = (self.clock)();
                let delay = pause.map_or(self.backoff.initial, |pause| {
                    (pause.delay * 2).min(self.backoff.max)
                });
                let mut pauses = self.pauses();
                if pauses.len() >= REMEMBERED_MAX {
                    pauses.retain(|_, pause| pause.until > now);
                }
                pauses.insert(
                    key,
                    Pause {
                        delay,
                        until: now + delay,
                        reason,
                        message: why.clone(),
                    },
                );
                // Shown as it is for a moment, then as a back-off.
                let until = now + Duration::from_secs(1).min(delay);
                Err(ImageTrouble {
                    waiting: Waiting {
                        reason,
                        message: why,
                    },
                    until,
                })
            }
        }
    }

    fn back_off(
        &self,
        pod: &Pod,
        container: &Container,
        reference: &str,
        pause: &Pause,
    ) -> ImageTrouble {
        let plain = format!("Back-off pulling image \"{reference}\"");
        self.recorder.record(
            pod,
            Some(&container.name),
            Kind::Normal,
            "BackOff",
            plain.clone(),
        );
        let error = format!("Error: {}", reason::IMAGE_PULL_BACK_OFF);
        self.recorder
            .record(pod, Some(&container.name), Kind::Warning, "Failed", error);
        let message = format!("{plain}: {}: {}", pause.reason, pause.message);
        debug!(
            image = reference,
            pause = go_duration(pause.delay),
            "Pull waits"
        );
        ImageTrouble {
            waiting: Waiting {
                reason: reason::IMAGE_PULL_BACK_OFF,
                message,
            },
            until: pause.until,
        }
    }

    /// Trouble that no pull will mend soon.
    fn fail(
        &self,
        pod: &Pod,
        container: &Container,
        reason: &'static str,
        message: String,
    ) -> ImageTrouble {
        self.recorder.record(
            pod,
            Some(&container.name),
            Kind::Warning,
            "Failed",
            format!("Error: {reason}"),
        );
        ImageTrouble {
            waiting: Waiting { reason, message },
            until: (self.clock)() + self.backoff.initial,
        }
    }

    /// Forgets the pauses of a pod that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.pauses().retain(|(pod, _), _| pod != uid);
    }
}

//! One image, by its pull policy: events, waiting for a turn, progress, back-off.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::Pod;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, interval_at},
};
use tracing::{debug, warn};
use wherry_runtime_api::{Image, ImageError, ImageService, PullProgress};

use crate::{
    config::Clock,
    events::{Kind, Recorder},
    pod::{
        self,
        status::{Waiting, reason},
    },
    text::{go_duration, go_duration_millis},
};

use super::{
    PullPolicy,
    backoff::{Pause, Pauses},
    credentials::Credentials,
    pulled::Pulled,
};

/// The registry cannot be reached. The word is CRI's (`pkg/kubelet/images/types.go`).
pub(crate) const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";
/// What is on the node cannot be looked at.
pub(crate) const IMAGE_INSPECT_ERROR: &str = "ImageInspectError";
/// A pull that takes longer than this says how far it is, this often. Each event costs a write.
const PROGRESS_PERIOD: Duration = Duration::from_secs(20);
/// A failed pull shows its own reason this long before it shows that it waits.
const ERROR_SHOWN: Duration = Duration::from_secs(1);

/// An image cannot be had now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageTrouble {
    /// What the container waits for.
    pub(crate) waiting: Waiting,
    /// When to try again.
    pub(crate) until: SystemTime,
}

/// What is wanted.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// For whom.
    pub(crate) pod: &'a Pod,
    /// Which container events are about; `None` for a volume.
    pub(crate) container: Option<&'a str>,
    /// The image, as the manifest names it.
    pub(crate) reference: &'a str,
    /// When to fetch it.
    pub(crate) policy: PullPolicy,
    /// Who keeps it.
    pub(crate) service: &'a Arc<dyn ImageService>,
    /// The handler of the engine that `service` is, unless it is the node's store.
    pub(crate) engine: Option<&'static str>,
}

/// Pulls images.
pub(crate) struct Puller {
    pub(super) credentials: Credentials,
    pub(super) recorder: Recorder,
    pub(super) clock: Clock,
    pub(super) pauses: Mutex<Pauses>,
    /// How long a container waits after trouble that no pull will mend soon.
    pub(super) retry: Duration,
    /// Pulls at a time; `None` is no bound of ours.
    pub(super) slots: Option<Semaphore>,
    pub(super) pulled: Pulled,
}

impl Puller {
    pub(super) fn pauses(&self) -> MutexGuard<'_, Pauses> {
        // Every change is one insert or remove.
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, wanted: Wanted<'_>, kind: Kind, reason: &'static str, message: String) {
        let Wanted { pod, container, .. } = wanted;
        self.recorder.record(pod, container, kind, reason, message);
    }

    /// Finds or fetches the image.
    pub(crate) async fn get(&self, wanted: Wanted<'_>) -> Result<Image, ImageTrouble> {
        let reference = wanted.reference;
        let present = match wanted.service.image_status(reference).await {
            Ok(present) => present,
            Err(ImageError::InvalidName { why, .. }) => {
                let message = format!(
                    "Failed to apply default image tag \"{reference}\": couldn't parse image name \"{reference}\": {why}"
                );
                self.say(wanted, Kind::Warning, "InspectFailed", message.clone());
                return Err(self.fail(wanted, reason::INVALID_IMAGE_NAME, message));
            }
            Err(error) => {
                let message = format!("Failed to inspect image \"{reference}\": {error}");
                self.say(wanted, Kind::Warning, "InspectFailed", message.clone());
                return Err(self.fail(wanted, IMAGE_INSPECT_ERROR, message));
            }
        };
        match (wanted.policy, present) {
            (PullPolicy::IfNotPresent | PullPolicy::Never, Some(image)) => {
                let message = format!("Container image \"{reference}\" already present on machine");
                self.say(wanted, Kind::Normal, "Pulled", message);
                Ok(image)
            }
            (PullPolicy::Never, None) => {
                let message = format!(
                    "Container image \"{reference}\" is not present with pull policy of Never"
                );
                let reason = reason::ERR_IMAGE_NEVER_PULL;
                self.say(wanted, Kind::Warning, reason, message.clone());
                Err(self.fail(wanted, reason, message))
            }
            (PullPolicy::Always | PullPolicy::IfNotPresent, present) => {
                self.pull(wanted, present.as_ref()).await
            }
        }
    }

    async fn pull(
        &self,
        wanted: Wanted<'_>,
        present: Option<&Image>,
    ) -> Result<Image, ImageTrouble> {
        let reference = wanted.reference;
        let uid = pod::uid(wanted.pod).to_string();
        let now = (self.clock)();
        let pause = self.pauses().at(&uid, reference, now).cloned();
        if let Some(pause) = pause {
            return Err(self.back_off(wanted, &pause));
        }
        let message = format!("Pulling image \"{reference}\"");
        self.say(wanted, Kind::Normal, "Pulling", message);
        let asked = Instant::now();
        let _slot = match &self.slots {
            Some(slots) => Some(slots.acquire().await.expect("never closed")),
            None => None,
        };
        let begun = Instant::now();
        let credentials = self.credentials.of(wanted.pod, reference).await;
        let (sender, progress) = watch::channel(PullProgress::default());
        let pull = wanted
            .service
            .pull_image(reference, &credentials, Some(sender));
        match self.telling(wanted, progress, pull).await {
            Ok(image) => {
                self.pauses().succeed(&uid, reference);
                self.note(wanted, present, &image);
                let message = format!(
                    "Successfully pulled image \"{reference}\" in {} ({} including waiting). Image size: {} bytes.",
                    go_duration_millis(begun.elapsed()),
                    go_duration_millis(asked.elapsed()),
                    image.size_bytes
                );
                self.say(wanted, Kind::Normal, "Pulled", message);
                Ok(image)
            }
            Err(error) => Err(self.failed(wanted, &uid, &error)),
        }
    }

    /// Says now and then how far a pull is, until it is through.
    async fn telling<T>(
        &self,
        wanted: Wanted<'_>,
        progress: watch::Receiver<PullProgress>,
        pull: impl Future<Output = T>,
    ) -> T {
        let mut pull = std::pin::pin!(pull);
        let mut ticks = interval_at(Instant::now() + PROGRESS_PERIOD, PROGRESS_PERIOD);
        let mut told = PullProgress::default();
        loop {
            tokio::select! {
                biased;
                done = &mut pull => return done,
                _ = ticks.tick() => {
                    let now = *progress.borrow();
                    if now != told {
                        told = now;
                        let message = format!(
                            "Pulling image \"{}\": {}",
                            wanted.reference,
                            progress_text(now)
                        );
                        self.say(wanted, Kind::Normal, "Pulling", message);
                    }
                }
            }
        }
    }

    /// Remembers what was added to an engine, so that it can be collected one day.
    fn note(&self, wanted: Wanted<'_>, present: Option<&Image>, image: &Image) {
        let is_new = present.is_none_or(|before| before.id != image.id);
        if let Some(handler) = wanted.engine
            && is_new
            && let Err(error) = self.pulled.note(handler, &image.id)
        {
            warn!(image = image.id, %error, "Pull not noted; the image will not be collected");
        }
    }

    fn failed(&self, wanted: Wanted<'_>, uid: &str, error: &ImageError) -> ImageTrouble {
        let reference = wanted.reference;
        let text = error.to_string();
        let message = format!("Failed to pull image \"{reference}\": {text}");
        self.say(wanted, Kind::Warning, "Failed", message);
        let (reason, message) = match error {
            ImageError::InvalidName { .. } => (reason::INVALID_IMAGE_NAME, text),
            ImageError::Unavailable { why, .. } => (
                REGISTRY_UNAVAILABLE,
                format!(
                    "image pull failed for {reference} because the registry is unavailable: {why}"
                ),
            ),
            _ => (reason::ERR_IMAGE_PULL, text),
        };
        self.say_error(wanted, reason);
        let now = (self.clock)();
        let mut pauses = self.pauses();
        let pause = pauses.fail(uid, reference, now, reason, message.clone());
        ImageTrouble {
            waiting: Waiting { reason, message },
            until: now + ERROR_SHOWN.min(pause.delay),
        }
    }

    fn back_off(&self, wanted: Wanted<'_>, pause: &Pause) -> ImageTrouble {
        let plain = format!("Back-off pulling image \"{}\"", wanted.reference);
        self.say(wanted, Kind::Normal, "BackOff", plain.clone());
        self.say_error(wanted, reason::IMAGE_PULL_BACK_OFF);
        debug!(
            image = wanted.reference,
            pause = go_duration(pause.delay),
            "Pull waits"
        );
        ImageTrouble {
            waiting: Waiting {
                reason: reason::IMAGE_PULL_BACK_OFF,
                message: format!("{plain}: {}: {}", pause.reason, pause.message),
            },
            until: pause.until,
        }
    }

    /// Trouble that no pull will mend soon.
    pub(super) fn fail(
        &self,
        wanted: Wanted<'_>,
        reason: &'static str,
        message: String,
    ) -> ImageTrouble {
        self.say_error(wanted, reason);
        ImageTrouble {
            waiting: Waiting { reason, message },
            until: (self.clock)() + self.retry,
        }
    }

    fn say_error(&self, wanted: Wanted<'_>, reason: &'static str) {
        self.say(wanted, Kind::Warning, "Failed", format!("Error: {reason}"));
    }
}

/// `2 of 5 layers, 12.3MB of 40.0MB`. Pure.
fn progress_text(progress: PullProgress) -> String {
    let megabytes = |bytes: u64| format!("{}.{}MB", bytes / 1_000_000, bytes / 100_000 % 10);
    let PullProgress {
        layers_total,
        layers_done,
        bytes_total,
        bytes_done,
    } = progress;
    let mut text = format!("{layers_done} of {layers_total} layers, ");
    text.push_str(&megabytes(bytes_done));
    if bytes_total > 0 {
        text.push_str(&format!(" of {}", megabytes(bytes_total)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_in_layers_and_megabytes() {
        let mut progress = PullProgress {
            layers_total: 5,
            layers_done: 2,
            bytes_total: 40_000_000,
            bytes_done: 12_345_678,
        };
        assert_eq!(progress_text(progress), "2 of 5 layers, 12.3MB of 40.0MB");
        progress.bytes_total = 0;
        assert_eq!(progress_text(progress), "2 of 5 layers, 12.3MB");
    }
}

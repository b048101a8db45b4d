//! Removing images that nobody uses: those unused for too long, and, when the disk fills up above
//! the high mark, the longest unused ones until below the low mark.
//!
//! Each service has a disk and a turn of its own. Of an engine's images only those that this node
//! pulled are candidates.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wherry_runtime_api::{FsUsage, Image, ImageError, ImageService};

use crate::{config::Tuning, context::Context, events::Kind, pod};

/// When images go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Collection begins above this share of the file system, in percent.
    high_percent: u8,
    /// It ends below this share.
    low_percent: u8,
    /// Nothing that was first seen less than this ago goes.
    age_min: Duration,
    /// What was not used for longer than this goes, however much room there is; zero is no bound.
    age_max: Duration,
}

impl From<&Tuning> for Policy {
    fn from(tuning: &Tuning) -> Self {
        Self {
            high_percent: tuning.image_gc_high_percent,
            low_percent: tuning.image_gc_low_percent,
            age_min: tuning.image_gc_age_min,
            age_max: tuning.image_gc_age_max,
        }
    }
}

/// When an image was first seen, and last seen in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    first: SystemTime,
    used: Option<SystemTime>,
}

impl Times {
    fn last(self) -> SystemTime {
        self.used.unwrap_or(self.first)
    }
}

type SeenKey = (Option<&'static str>, String);

/// When images were seen, by service and ID. As with the kubelet, a new agent starts anew: nothing
/// is collected sooner for it, only later.
#[derive(Default)]
pub(crate) struct Seen(Mutex<HashMap<SeenKey, Times>>);

impl Seen {
    fn lock(&self) -> MutexGuard<'_, HashMap<SeenKey, Times>> {
        // A time that was not noted costs an earlier or later removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is there and what of it is in use; forgets what is gone.
    fn note(
        &self,
        handler: Option<&'static str>,
        images: &[Image],
        in_use: &HashSet<String>,
        now: SystemTime,
    ) -> HashMap<String, Times> {
        let mut seen = self.lock();
        seen.retain(|(service, id), _| {
            *service != handler || images.iter().any(|image| image.id == *id)
        });
        let mut times = HashMap::new();
        for image in images {
            let noted = seen.entry((handler, image.id.clone())).or_insert(Times {
                first: now,
                used: None,
            });
            if in_use.contains(&image.id) {
                noted.used = Some(now);
            }
            times.insert(image.id.clone(), *noted);
        }
        times
    }
}

/// Bytes to free, if the file system is above the high mark. Pure.
fn bytes_to_free(usage: FsUsage, policy: &Policy) -> u64 {
    let capacity = u128::from(usage.capacity_bytes);
    let used = capacity - u128::from(usage.available_bytes).min(capacity);
    if capacity == 0 || used * 100 < capacity * u128::from(policy.high_percent) {
        return 0;
    }
    let target = capacity * u128::from(policy.low_percent) / 100;
    u64::try_from(used.saturating_sub(target)).unwrap_or(u64::MAX)
}

/// The images to remove, in order: the too old ones, then the longest unused until `bytes` are
/// free. `candidates` are those that nobody uses. Pure.
fn choose<'a>(
    candidates: &[&'a Image],
    times: &HashMap<String, Times>,
    policy: &Policy,
    bytes: u64,
    now: SystemTime,
) -> Vec<&'a Image> {
    let since = |at: SystemTime| now.duration_since(at).unwrap_or_default();
    let mut order: Vec<(&'a Image, Times)> = candidates
        .iter()
        .filter_map(|image| Some((*image, *times.get(&image.id)?)))
        .filter(|(_, times)| since(times.first) >= policy.age_min)
        .collect();
    // Never used sorts before any use.
    order.sort_by_key(|(image, times)| (times.used, times.first, &image.id));
    let mut freed = 0u64;
    let mut chosen = Vec::new();
    for (image, times) in order {
        let is_old = !policy.age_max.is_zero() && since(times.last()) > policy.age_max;
        if is_old || freed < bytes {
            freed = freed.saturating_add(image.size_bytes);
            chosen.push(image);
        }
    }
    chosen
}

/// Looks now and then until shutdown.
pub(crate) async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let mut ticks = interval(context.config.tuning.image_gc_period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed_before = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let collected = collect(&context, None).await;
        if let Err(error) = &collected {
            warn!(%error, "Image collection failed");
            // Once may be a moment of the disk's; the kubelet too speaks up the second time.
            if failed_before {
                say(&context, "ImageGCFailed", error.to_string());
            }
        }
        failed_before = collected.is_err();
    }
}

/// Removes every image that nobody uses and that is old enough, and answers the bytes freed: what
/// eviction does before it evicts anybody.
///
/// # Errors
/// The images cannot be looked at.
pub(crate) async fn delete_unused(context: &Context) -> Result<u64, ImageError> {
    collect(context, Some(u64::MAX)).await
}

/// One pass over all services; `bytes` overrides what the marks ask to be freed of each.
async fn collect(context: &Context, bytes: Option<u64>) -> Result<u64, ImageError> {
    let mut freed = 0;
    let mut failed = None;
    for (handler, service) in context.images.sources.all() {
        match collect_in(context, handler, &**service, bytes).await {
            Ok(more) => freed += more,
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(freed), Err)
}

async fn collect_in(
    context: &Context,
    handler: Option<&'static str>,
    service: &dyn ImageService,
    bytes: Option<u64>,
) -> Result<u64, ImageError> {
    let policy = Policy::from(&context.config.tuning);
    let now = context.now();
    let images = service.list_images().await?;
    let held: HashSet<String> = context
        .actual
        .uids()
        .iter()
        .flat_map(|uid| context.actual.get(uid).containers)
        .map(|status| status.image_id)
        .collect();
    let times = context.images.seen.note(handler, &images, &held, now);
    let bytes = match bytes {
        Some(bytes) => bytes,
        None => bytes_to_free(service.fs_info().await?, &policy),
    };
    if bytes == 0 && policy.age_max.is_zero() {
        return Ok(0);
    }
    let named = named(context, service).await;
    let pulled = &context.images.puller.pulled;
    let is_ours = |id: &str| handler.is_none_or(|handler| pulled.holds(handler, id));
    let candidates: Vec<&Image> = images
        .iter()
        .filter(|image| !held.contains(&image.id) && !named.contains(&image.id))
        .filter(|image| is_ours(&image.id))
        .collect();
    let mut freed = 0;
    for image in choose(&candidates, &times, &policy, bytes, now) {
        match service.remove_image(&image.id).await {
            Ok(()) => {
                info!(image = image.id, names = ?image.repo_tags, "Image removed to free space");
                freed += image.size_bytes;
                if let Some(handler) = handler {
                    pulled.forget(handler, &image.id);
                }
            }
            Err(ImageError::InUse(_)) => {}
            Err(error) => warn!(image = image.id, %error, "Image not removed"),
        }
    }
    if freed < bytes && bytes < u64::MAX {
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {bytes} bytes, but only found {freed} bytes eligible to free."
        );
        say(context, "FreeDiskSpaceFailed", message);
    }
    Ok(freed)
}

/// The images that pods of this node name: one that waits to be started again needs its image too.
async fn named(context: &Context, service: &dyn ImageService) -> HashSet<String> {
    let mut names = HashSet::new();
    for pod in context.directory.pods() {
        let spec = pod::spec(&pod);
        let init = spec.init_containers.iter().flatten();
        let containers = init.chain(&spec.containers).map(|c| c.image.as_ref());
        let debuggers = spec.ephemeral_containers.iter().flatten();
        let volumes = spec.volumes.iter().flatten();
        let volumes = volumes.filter_map(|volume| volume.image.as_ref());
        names.extend(
            containers
                .chain(debuggers.map(|container| container.image.as_ref()))
                .chain(volumes.map(|source| source.reference.as_ref()))
                .flatten()
                .cloned(),
        );
    }
    let mut ids = HashSet::new();
    for name in names {
        ids.extend(
            service
                .image_status(&name)
                .await
                .ok()
                .flatten()
                .map(|image| image.id),
        );
    }
    ids
}

fn say(context: &Context, reason: &'static str, message: String) {
    let node = Node {
        metadata: ObjectMeta {
            name: Some(context.config.node_name.clone()),
            ..ObjectMeta::default()
        },
        ..Node::default()
    };
    context
        .recorder
        .record_node(&node, Kind::Warning, reason, message);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use serde_json::json;
    use wherry_runtime_api::ImageKind;

    use super::*;
    use crate::{
        Agent,
        testing::{Node, pod},
    };

    const POLICY: Policy = Policy {
        high_percent: 85,
        low_percent: 80,
        age_min: Duration::from_secs(10),
        age_max: Duration::ZERO,
    };

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn image(id: &str) -> Image {
        Image {
            id: id.into(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size_bytes: 10,
            user: None,
            kind: ImageKind::Container,
        }
    }

    #[test]
    fn nothing_is_freed_below_the_high_mark_and_down_to_the_low_one_above() {
        let usage = |available_bytes| FsUsage {
            capacity_bytes: 100,
            available_bytes,
            ..FsUsage::default()
        };
        assert_eq!(bytes_to_free(usage(16), &POLICY), 0);
        assert_eq!(bytes_to_free(usage(15), &POLICY), 5);
        assert_eq!(bytes_to_free(usage(0), &POLICY), 20);
        assert_eq!(bytes_to_free(FsUsage::default(), &POLICY), 0);
    }

    #[test]
    fn the_longest_unused_go_first_and_the_young_and_recent_stay() {
        let images = ["old", "never", "older", "young"].map(image);
        let candidates: Vec<&Image> = images.iter().collect();
        let times = HashMap::from(
            [
                ("old", 5, Some(40)),
                ("never", 20, None),
                ("older", 10, Some(30)),
                ("young", 95, Some(95)),
            ]
            .map(|(id, first, used)| {
                let (first, used) = (at(first), used.map(at));
                (id.to_owned(), Times { first, used })
            }),
        );
        let month_less = |age_max| Policy {
            age_max: Duration::from_secs(age_max),
            ..POLICY
        };
        for (policy, bytes, expected) in [
            (POLICY, 0, &[] as &[&str]),
            (POLICY, 5, &["never"]),
            (POLICY, 15, &["never", "older"]),
            (POLICY, u64::MAX, &["never", "older", "old"]),
            (month_less(65), 0, &["never", "older"]),
            (month_less(65), 25, &["never", "older", "old"]),
            (month_less(100), 0, &[]),
            (month_less(1), 0, &["never", "older", "old"]),
        ] {
            let chosen = choose(&candidates, &times, &policy, bytes, at(100));
            let chosen: Vec<_> = chosen.iter().map(|image| image.id.as_str()).collect();
            assert_eq!(chosen, expected, "{policy:?} {bytes}");
        }
    }

    #[tokio::test]
    async fn what_pods_name_stays_and_the_rest_goes_by_age_or_when_room_is_needed() {
        let node = Node::new();
        let seconds = Arc::new(AtomicU64::new(1_000));
        let mut config = node.config();
        let clock = Arc::clone(&seconds);
        config.clock = Arc::new(move || at(clock.load(Ordering::SeqCst)));
        config.tuning.image_gc_age_max = Duration::from_secs(3600);
        let agent = Agent::build(config).await.expect("a good config");
        let context = &agent.context;
        for image in ["nginx:1", "redis:1", "hello:1"] {
            let pulled = node.images.pull_image(image, &[], None).await;
            pulled.expect("the registry has it");
        }
        let named = json!({ "containers": [{ "name": "c", "image": "nginx:1" }],
            "volumes": [{ "name": "v", "image": { "reference": "hello:1" } }] });
        let pod = pod("p", named);
        context
            .directory
            .begin(&pod::uid(&pod), Arc::new(pod.clone()));
        let left = async || {
            let images = node.images.list_images().await.expect("lists");
            let mut names: Vec<_> = images
                .into_iter()
                .flat_map(|image| image.repo_tags)
                .collect();
            names.sort();
            names
        };
        for (passed, bytes, expected) in [
            (
                0,
                Some(u64::MAX),
                &["hello:1", "nginx:1", "redis:1"] as &[&str],
            ),
            (60, Some(u64::MAX), &["hello:1", "nginx:1", "redis:1"]),
            (60, None, &["hello:1", "nginx:1", "redis:1"]),
            (3600, None, &["hello:1", "nginx:1"]),
        ] {
            seconds.fetch_add(passed, Ordering::SeqCst);
            collect(context, bytes).await.expect("collects");
            assert_eq!(left().await, expected, "{passed}");
        }
        context.directory.remove(&pod::uid(&pod));
        assert_eq!(delete_unused(context).await.expect("collects"), 2000);
        assert!(left().await.is_empty());
    }

    #[test]
    fn services_are_noted_apart_and_what_is_gone_is_forgotten() {
        let seen = Seen::default();
        let none = HashSet::new();
        seen.note(None, &[image("a"), image("b")], &none, at(1));
        seen.note(Some("docker"), &[image("a")], &none, at(2));
        let times = seen.note(None, &[image("a")], &HashSet::from(["a".into()]), at(3));
        let used = Some(at(3));
        assert_eq!(times["a"], Times { first: at(1), used });
        let times = seen.note(None, &[image("b")], &none, at(4));
        assert_eq!(times["b"].first, at(4));
        let times = seen.note(Some("docker"), &[image("a")], &none, at(5));
        let used = None;
        assert_eq!(times["a"], Times { first: at(2), used });
    }
}

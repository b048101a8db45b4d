//! Removing images that nobody uses when the disk fills up: above the high mark, oldest use first,
//! until below the low mark.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wherry_runtime_api::{FsUsage, Image, ImageError};

use crate::{context::Context, pod};

/// Bytes to free, if the file system is above the high mark. Pure.
pub(crate) fn bytes_to_free(usage: FsUsage, high_percent: u8, low_percent: u8) -> u64 {
    let capacity = u128::from(usage.capacity_bytes);
    let used = capacity - u128::from(usage.available_bytes).min(capacity);
    if capacity == 0 || used * 100 < capacity * u128::from(high_percent) {
        return 0;
    }
    let target = capacity * u128::from(low_percent) / 100;
    u64::try_from(used.saturating_sub(target)).unwrap_or(u64::MAX)
}

/// The images to remove, in order. Pure.
pub(crate) fn choose(
    images: &[Image],
    in_use: &HashSet<String>,
    last_used: &HashMap<String, SystemTime>,
    unused_since: SystemTime,
    bytes: u64,
) -> Vec<String> {
    let mut candidates: Vec<_> = images
        .iter()
        .filter(|image| !in_use.contains(&image.id))
        .filter_map(|image| Some((last_used.get(&image.id).copied()?, image)))
        .filter(|(used_at, _)| *used_at <= unused_since)
        .collect();
    candidates.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.id.cmp(&y.id)));
    let mut freed = 0;
    let mut chosen = Vec::new();
    for (_, image) in candidates {
        if freed >= bytes {
            break;
        }
        freed += image.size_bytes;
        chosen.push(image.id.clone());
    }
    chosen
}

/// Looks now and then until shutdown.
pub(crate) async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let tuning = context.config.tuning.clone();
    let mut ticks = interval(tuning.image_gc_period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_used: HashMap<String, SystemTime> = HashMap::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = collect(&context, &mut last_used).await {
            warn!(%error, "Image collection failed");
        }
    }
}

async fn collect(
    context: &Context,
    last_used: &mut HashMap<String, SystemTime>,
) -> Result<(), ImageError> {
    let service = context.images.service();
    let tuning = &context.config.tuning;
    let now = context.now();
    let images = service.list_images().await?;
    let held: HashSet<String> = context
        .actual
        .uids()
        .iter()
        .flat_map(|uid| context.actual.get(uid).containers)
        .map(|status| status.image_id)
        .collect();
    // A pod that waits to be started again needs its image too.
    let named: HashSet<String> = context
        .directory
        .pods()
        .iter()
        .flat_map(|pod| {
            let spec = pod::spec(pod);
            let containers = spec
                .init_containers
                .iter()
                .flatten()
                .chain(&spec.containers);
            containers
                .filter_map(|container| container.image.clone())
                .collect::<Vec<_>>()
        })
        .collect();
    let is_named = |image: &Image| image.repo_tags.iter().any(|tag| named.contains(tag));
    let in_use: HashSet<String> = images
        .iter()
        .filter(|image| held.contains(&image.id) || is_named(image))
        .map(|image| image.id.clone())
        .collect();
    last_used.retain(|id, _| images.iter().any(|image| image.id == *id));
    for image in &images {
        let used_at = last_used.entry(image.id.clone()).or_insert(now);
        if in_use.contains(&image.id) {
            *used_at = now;
        }
    }
    let bytes = bytes_to_free(
        service.fs_info().await?,
        tuning.image_gc_high_percent,
        tuning.image_gc_low_percent,
    );
    if bytes == 0 {
        return Ok(());
    }
    for id in choose(
        &images,
        &in_use,
        last_used,
        now - tuning.image_gc_age_min,
        bytes,
    ) {
        match service.remove_image(&id).await {
            Ok(()) => info!(image = id, "Image removed to free space"),
            Err(ImageError::InUse(_)) => {}
            Err(error) => warn!(image = id, %error, "Image not removed"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wherry_runtime_api::ImageKind;

    use super::*;

    #[test]
    fn nothing_is_freed_below_the_high_mark_and_down_to_the_low_one_above() {
        let usage = |available_bytes| FsUsage {
            capacity_bytes: 100,
            available_bytes,
            ..FsUsage::default()
        };
        assert_eq!(bytes_to_free(usage(16), 85, 80), 0);
        assert_eq!(bytes_to_free(usage(15), 85, 80), 5);
        assert_eq!(bytes_to_free(usage(0), 85, 80), 20);
        assert_eq!(bytes_to_free(FsUsage::default(), 85, 80), 0);
    }

    #[test]
    fn the_longest_unused_go_first_and_those_in_use_or_young_stay() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let image = |id: &str| Image {
            id: id.into(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size_bytes: 10,
            user: None,
            kind: ImageKind::Container,
        };
        let images = ["old", "used", "older", "young"].map(image);
        let last_used = [("old", 20), ("used", 1), ("older", 10), ("young", 99)];
        let last_used = last_used
            .map(|(id, seconds)| (id.to_owned(), at(seconds)))
            .into();
        let in_use = HashSet::from(["used".to_owned()]);
        assert_eq!(
            choose(&images, &in_use, &last_used, at(50), 15),
            ["older", "old"]
        );
        assert_eq!(choose(&images, &in_use, &last_used, at(50), 5), ["older"]);
    }
}

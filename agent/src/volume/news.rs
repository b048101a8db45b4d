//! What plugins say of volumes that they serve, in events of the pods whose those are.

use std::{
    path::{Component, Path},
    sync::Arc,
};

use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use wherry_plugin_host::filesystem::protocol::News;
use wherry_runtime_api::PodUid;

use crate::{context::Context, events::Kind};

/// Reasons of events; what is said for any other is a `VolumeError`.
const REASONS: [&str; 10] = [
    "PluginDenied",
    "PluginError",
    "PluginReplaced",
    "VolumeCallSetApart",
    "VolumeLost",
    "VolumeNotOpened",
    "VolumeReopened",
    "VolumeServerRestarted",
    "VolumeTimeout",
    "VolumeError",
];

/// Tells until shutdown.
pub(crate) async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let plugins = context.config.volume_plugins.as_ref();
    let Some(mut news) = plugins.and_then(|plugins| plugins.news()) else {
        return;
    };
    loop {
        let told = tokio::select! {
            told = news.recv() => told,
            () = shutdown.cancelled() => return,
        };
        match told {
            Ok(news) => tell(&context, news),
            // Too much to be read, let alone told.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

fn tell(context: &Context, news: News) {
    let pods_dir = context.config.pods_dir();
    let Some((uid, volume)) = pod_and_volume(&pods_dir, Path::new(&news.id)) else {
        return;
    };
    let Some(pod) = context.directory.get(&uid) else {
        return;
    };
    let reason = REASONS.into_iter().find(|reason| *reason == news.reason);
    let kind = match reason {
        Some("PluginReplaced") => Kind::Normal,
        _ => Kind::Warning,
    };
    let message = format!("volume {volume}: {}", news.message);
    let reason = reason.unwrap_or("VolumeError");
    context.recorder.record(&pod, None, kind, reason, message);
}

/// Whose volume is mounted on a directory: `<pods>/<uid>/volumes/<plugin>/<name>`.
fn pod_and_volume(pods_dir: &Path, target: &Path) -> Option<(PodUid, String)> {
    let below = target.strip_prefix(pods_dir).ok()?;
    let mut names = below.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let uid = names.next()?;
    Some((uid.into(), names.next_back()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_tells_whose_volume_it_is() {
        let of = |target: &str| pod_and_volume(Path::new("/r/pods"), Path::new(target));
        let (uid, volume) = of("/r/pods/1-2/volumes/memfs/data").unwrap();
        assert_eq!((uid.to_string().as_str(), volume.as_str()), ("1-2", "data"));
        assert_eq!(of("/r/pods/1-2"), None);
        assert_eq!(of("/elsewhere/1-2/volumes/memfs/data"), None);
    }
}

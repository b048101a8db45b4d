//! Pods that the API server has bound to this node. Only those are ever held.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{PodUpdate, Source};
use crate::pod;

/// Failures in a row that are told once.
const QUIET_AFTER: u32 = 3;

/// Follows the node's pods until shutdown.
pub(crate) async fn run(
    client: Client,
    node_name: String,
    updates: mpsc::Sender<PodUpdate>,
    shutdown: CancellationToken,
) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let backoff = watcher::DefaultBackoff::default();
    let mut stream = watcher(Api::<Pod>::all(client), config)
        .backoff(backoff)
        .boxed();
    let mut listed: Option<HashSet<_>> = None;
    let mut failures = 0;
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = stream.try_next() => event,
        };
        let mut send = Vec::new();
        match event {
            Ok(Some(watcher::Event::Init)) => listed = Some(HashSet::new()),
            Ok(Some(watcher::Event::InitApply(pod))) => {
                let update = to_update(pod, false);
                if let (Some(listed), Some(PodUpdate::Set(pod))) = (&mut listed, &update) {
                    listed.insert(pod::uid(pod));
                }
                send.extend(update);
            }
            Ok(Some(watcher::Event::InitDone)) => {
                failures = 0;
                let listed = listed.take().unwrap_or_default();
                info!(pods = listed.len(), "Pods listed");
                send.push(PodUpdate::All(Source::Api, listed));
            }
            Ok(Some(watcher::Event::Apply(pod))) => {
                failures = 0;
                send.extend(to_update(pod, false));
            }
            Ok(Some(watcher::Event::Delete(pod))) => send.extend(to_update(pod, true)),
            Ok(None) => return,
            Err(error) => {
                failures += 1;
                if failures <= QUIET_AFTER {
                    warn!(%error, "Watching pods failed; pods run on");
                }
                if shutdown.is_cancelled() {
                    return;
                }
                // The stream has a back-off of its own; this bounds a stream that has none.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        for update in send {
            if updates.send(update).await.is_err() {
                return;
            }
        }
    }
}

fn to_update(mut pod: Pod, is_gone: bool) -> Option<PodUpdate> {
    pod.spec.as_ref()?;
    pod.metadata.managed_fields = None;
    if let Some(of) = pod::annotation(&pod, pod::CONFIG_MIRROR_ANNOTATION) {
        let of = of.into();
        return Some(PodUpdate::Mirror(of, (!is_gone).then(|| Arc::new(pod))));
    }
    let uid = pod::uid(&pod);
    Some(if is_gone {
        PodUpdate::Remove(uid)
    } else {
        PodUpdate::Set(Arc::new(pod))
    })
}

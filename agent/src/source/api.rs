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
    let mut stream = watcher(Api::<Pod>::all(client), config)
        .backoff(wherry_services::watch::Soon::default())
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
                let updates = to_updates(pod, false);
                listed
                    .get_or_insert_default()
                    .extend(updates.iter().filter_map(|update| match update {
                        PodUpdate::Set(pod) => Some(pod::uid(pod)),
                        PodUpdate::Mirror(of, _) => Some(of.clone()),
                        PodUpdate::Remove(_) | PodUpdate::All(..) | PodUpdate::Evict(..) => None,
                    }));
                send.extend(updates);
            }
            Ok(Some(watcher::Event::InitDone)) => {
                failures = 0;
                let listed = listed.take().unwrap_or_default();
                info!(pods = listed.len(), "Pods listed");
                send.push(PodUpdate::All(Source::Api, listed));
            }
            Ok(Some(watcher::Event::Apply(pod))) => {
                failures = 0;
                send.extend(to_updates(pod, false));
            }
            Ok(Some(watcher::Event::Delete(pod))) => send.extend(to_updates(pod, true)),
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

fn to_updates(mut pod: Pod, is_gone: bool) -> Vec<PodUpdate> {
    if pod.spec.is_none() {
        return Vec::new();
    }
    pod.metadata.managed_fields = None;
    if let Some(of) = pod::annotation(&pod, pod::CONFIG_MIRROR_ANNOTATION) {
        return vec![PodUpdate::Mirror(
            of.into(),
            (!is_gone).then(|| Arc::new(pod)),
        )];
    }
    let uid = pod::uid(&pod);
    // One that was deleted at once says so only now, with its grace period.
    let says_how = !is_gone || pod.metadata.deletion_grace_period_seconds.is_some();
    let set = says_how.then(|| PodUpdate::Set(Arc::new(pod)));
    set.into_iter()
        .chain(is_gone.then_some(PodUpdate::Remove(uid)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(metadata: serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "metadata": metadata, "spec": { "containers": [] } }))
            .expect("a pod")
    }

    #[test]
    fn a_pod_deleted_by_force_tells_its_grace_period_before_it_is_gone() {
        let forced = pod(json!({ "name": "p", "uid": "u", "deletionGracePeriodSeconds": 0 }));
        let updates = to_updates(forced, true);
        assert!(
            matches!(&updates[..], [PodUpdate::Set(_), PodUpdate::Remove(_)]),
            "{updates:?}"
        );
        let plain = pod(json!({ "name": "p", "uid": "u" }));
        assert!(matches!(
            &to_updates(plain.clone(), true)[..],
            [PodUpdate::Remove(_)]
        ));
        assert!(matches!(&to_updates(plain, false)[..], [PodUpdate::Set(_)]));
    }

    #[test]
    fn a_mirror_is_looked_at_and_not_run() {
        let annotations = json!({ "kubernetes.io/config.mirror": "static-1" });
        let mirror = pod(json!({ "name": "p", "uid": "u", "annotations": annotations }));
        let updates = to_updates(mirror, false);
        assert!(
            matches!(&updates[..], [PodUpdate::Mirror(of, Some(_))] if of.as_str() == "static-1")
        );
    }
}

//! Events are kept for an hour after they were last seen.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use wherry_store::{KeyValue, Store};

use crate::stored;

/// kube-apiserver's `--event-ttl`.
const EVENT_TTL: SignedDuration = SignedDuration::from_hours(1);
/// How often is looked.
const INTERVAL: Duration = Duration::from_secs(60);
/// Deletions under way at a time.
const PARALLEL: usize = 64;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Times {
    metadata: Metadata,
    last_timestamp: Option<String>,
    event_time: Option<String>,
    series: Option<Series>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    creation_timestamp: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Series {
    last_observed_time: Option<String>,
}

fn is_expired(kv: &KeyValue, now: Timestamp) -> bool {
    let times: Times = (kv.value)
        .with(|value| serde_json::from_slice(value))
        .unwrap_or_default();
    let series = times.series.unwrap_or_default();
    let seen = [
        Some(times.metadata.creation_timestamp),
        times.last_timestamp,
        times.event_time,
        series.last_observed_time,
    ];
    let last = seen
        .into_iter()
        .flatten()
        .filter_map(|time| time.parse::<Timestamp>().ok())
        .max();
    last.is_none_or(|last| now.duration_since(last) > EVENT_TTL)
}

/// Removes what is too old.
async fn expire(store: &Arc<dyn Store>, now: Timestamp) {
    let events = wherry_api::find("", "v1", "events").expect("a row");
    let Ok(list) = store.list(&stored::prefix(events), None, 0, 0).await else {
        return;
    };
    let expired = list.items.into_iter().filter(|kv| is_expired(kv, now));
    stream::iter(expired)
        .for_each_concurrent(PARALLEL, |kv| async move {
            // Changed or removed meanwhile: then it is not ours to remove.
            let _ = store.delete(&kv.key, kv.mod_revision).await;
        })
        .await;
}

/// Looks every now and then, until told to stop.
pub(crate) async fn run(store: Arc<dyn Store>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => expire(&store, Timestamp::now()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use wherry_store::{Durability, MemoryStore};

    use super::*;

    #[tokio::test]
    async fn an_event_stays_for_an_hour_after_it_was_last_seen() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let old = r#"{"metadata":{"creationTimestamp":"2026-01-01T00:00:00Z"}}"#;
        let seen = r#"{"metadata":{"creationTimestamp":"2026-01-01T00:00:00Z"},"lastTimestamp":"2026-01-01T01:30:00Z"}"#;
        for (key, value) in [("old", old), ("seen", seen)] {
            let key = format!("/registry/events/ns/{key}");
            store
                .create(&key, Bytes::from_static(value.as_bytes()), Durability::Lazy)
                .await
                .unwrap();
        }
        expire(&store, "2026-01-01T02:00:00Z".parse().unwrap()).await;
        let list = store.list("/registry/events/", None, 0, 0).await.unwrap();
        assert_eq!(list.items.len(), 1);
        assert_eq!(&*list.items[0].key, "/registry/events/ns/seen");
    }
}

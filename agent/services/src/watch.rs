//! Follows Services and EndpointSlices of an API server into an [`Index`].

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher,
        watcher::{DefaultBackoff, Event},
    },
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{index::Index, object};

/// Failures in a row that are told.
const FAILURES_TOLD: u32 = 3;

/// The longest that a node waits before it asks an API server again that did not answer. client-go's 30 s, on which jitter
/// comes, would leave a node without news for a minute after an outage.
const RETRY_MAX: Duration = Duration::from_secs(4);

/// How a node's watches are tried again: as kube does it, but never after more than 4 s.
#[derive(Default)]
pub struct Soon(DefaultBackoff);

impl Iterator for Soon {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(
            self.0
                .next()
                .map_or(RETRY_MAX, |pause| pause.min(RETRY_MAX)),
        )
    }
}

impl Backoff for Soon {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// How long an API server has to list everything before an agent goes on with what one before it knew, and before one
/// that knows nothing starts pods whose environment shows no Services.
const PATIENCE_LOADED: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose Services are followed.
#[derive(Clone, Debug)]
pub struct Following {
    /// The node whose endpoints count as local.
    pub node: String,
    /// Whether endpoints are asked for. A node that sees to neither packets nor names may not be allowed to.
    pub has_slices: bool,
}

/// Follows Services, and their slices if those are wanted, until shutdown.
pub async fn run(
    client: Client,
    following: Following,
    index: Arc<Index>,
    shutdown: CancellationToken,
) {
    let Following { node, has_slices } = following;
    let patience = if index.is_loaded() {
        PATIENCE_LOADED
    } else {
        PATIENCE
    };
    let slices = async {
        if has_slices {
            slices(client.clone(), &node, &index).await;
        } else {
            index.retain_slices(&HashSet::new());
        }
    };
    let wait = async {
        sleep(patience).await;
        if !index.is_complete() {
            info!(
                "The API server does not say what Services there are; those known before have to do"
            );
            index.go_alone();
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = async { tokio::join!(services(client.clone(), &index), slices, wait) } => {}
    }
}

async fn services(client: Client, index: &Index) {
    let stream = watcher(Api::<Service>::all(client), watcher::Config::default());
    let mut stream = stream.backoff(Soon::default()).boxed();
    let mut listed = HashSet::new();
    let mut failures = 0;
    loop {
        match stream.try_next().await {
            Ok(Some(Event::Init)) => listed.clear(),
            Ok(Some(Event::InitApply(object))) => {
                if let Some((key, service)) = object::service(&object) {
                    listed.insert(key.clone());
                    index.put_service(key, service);
                }
            }
            Ok(Some(Event::InitDone)) => {
                failures = 0;
                info!(services = listed.len(), "Services listed");
                index.retain_services(&std::mem::take(&mut listed));
            }
            Ok(Some(Event::Apply(object))) => {
                failures = 0;
                if let Some((key, service)) = object::service(&object) {
                    index.put_service(key, service);
                }
            }
            Ok(Some(Event::Delete(object))) => {
                if let Some((key, _)) = object::service(&object) {
                    index.remove_service(&key);
                }
            }
            Ok(None) => return,
            Err(error) => tell("services", &mut failures, &error),
        }
    }
}

async fn slices(client: Client, node: &str, index: &Index) {
    let stream = watcher(
        Api::<EndpointSlice>::all(client),
        watcher::Config::default(),
    );
    let mut stream = stream.backoff(Soon::default()).boxed();
    let mut listed = HashSet::new();
    let mut failures = 0;
    let put = |object: &EndpointSlice| match object::slice(object, node) {
        Some((service, name, slice)) => {
            let key = (Arc::clone(&service.namespace), name.clone());
            index.put_slice(service, name, slice);
            Some(key)
        }
        None => {
            remove(index, object);
            None
        }
    };
    loop {
        match stream.try_next().await {
            Ok(Some(Event::Init)) => listed.clear(),
            Ok(Some(Event::InitApply(object))) => listed.extend(put(&object)),
            Ok(Some(Event::InitDone)) => {
                failures = 0;
                index.retain_slices(&std::mem::take(&mut listed));
            }
            Ok(Some(Event::Apply(object))) => {
                failures = 0;
                put(&object);
            }
            Ok(Some(Event::Delete(object))) => remove(index, &object),
            Ok(None) => return,
            Err(error) => tell("endpointslices", &mut failures, &error),
        }
    }
}

fn remove(index: &Index, object: &EndpointSlice) {
    if let (Some(namespace), Some(name)) = (&object.metadata.namespace, &object.metadata.name) {
        index.remove_slice(namespace, name);
    }
}

fn tell(what: &str, failures: &mut u32, error: &watcher::Error) {
    *failures += 1;
    if *failures <= FAILURES_TOLD {
        warn!(resource = what, %error, "Watch failed; Services stay as they were last seen");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_of_any_length_is_over_for_a_node_within_seconds() {
        let mut soon = Soon::default();
        for _ in 0..1000 {
            let pause = soon.next().expect("it never gives up");
            assert!(
                pause <= RETRY_MAX && pause >= Duration::from_millis(500),
                "{pause:?}"
            );
        }
    }
}

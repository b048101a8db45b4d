//! Other nodes, from their Node objects, for the pod network.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use wherry_network::{Peer, Unreachable};
use wherry_services::watch::Soon;

use crate::{context::Context, events::Kind};

/// The reason of the event about a node whose pods cannot be reached from here.
const REASON: &str = "NodeUnreachable";
/// Failures in a row that are told.
const FAILURES_TOLD: u32 = 3;

/// What the network is told: nothing before everything has been listed once.
pub type Peers = Option<Arc<[Peer]>>;

/// Follows Node objects and keeps the ways to them until shutdown. What is there then stays.
pub(crate) async fn run(context: Arc<Context>, client: Client, shutdown: CancellationToken) {
    let (told, peers) = watch::channel(None);
    let (troubles, unreachable) = watch::channel(Vec::new());
    let own = watch::Sender::new(None);
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = follow(client, &context.config.node_name, &told, &own) => {}
        () = context.config.network.keep_peers(peers, troubles) => {}
        () = tell(&context, unreachable, own.subscribe()) => {}
    }
}

/// A Node as far as packets go; `None` if it has no pods of its own range.
fn peer(node: &Node) -> Option<Peer> {
    let spec = node.spec.as_ref()?;
    let first = spec.pod_cidr.iter();
    let all = first.chain(spec.pod_cidrs.iter().flatten());
    let pod_cidrs: BTreeSet<_> = all.filter_map(|cidr| cidr.parse().ok()).collect();
    let addresses = node.status.iter().flat_map(|status| &status.addresses);
    let addresses = addresses
        .flatten()
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect();
    (!pod_cidrs.is_empty()).then(|| Peer {
        name: node.metadata.name.clone().unwrap_or_default(),
        addresses,
        pod_cidrs: pod_cidrs.into_iter().collect(),
    })
}

async fn follow(
    client: Client,
    own_name: &str,
    told: &watch::Sender<Peers>,
    own: &watch::Sender<Option<Node>>,
) {
    let stream = watcher(Api::<Node>::all(client), watcher::Config::default());
    let mut stream = stream.backoff(Soon::default()).boxed();
    let mut nodes: BTreeMap<String, Peer> = BTreeMap::new();
    let mut listing = BTreeMap::new();
    let mut failures = 0;
    let publish = |nodes: &BTreeMap<String, Peer>| {
        told.send_if_modified(|known| {
            let is_same = known
                .as_ref()
                .is_some_and(|known| known.iter().eq(nodes.values()));
            if !is_same {
                *known = Some(nodes.values().cloned().collect());
            }
            !is_same
        });
    };
    loop {
        let put = |nodes: &mut BTreeMap<String, Peer>, node: Node| {
            let name = node.metadata.name.clone().unwrap_or_default();
            if name == own_name {
                own.send_replace(Some(node));
                return;
            }
            match peer(&node) {
                Some(peer) => nodes.insert(name, peer),
                None => nodes.remove(&name),
            };
        };
        match stream.try_next().await {
            Ok(Some(Event::Init)) => listing.clear(),
            Ok(Some(Event::InitApply(node))) => put(&mut listing, node),
            Ok(Some(Event::InitDone)) => {
                failures = 0;
                nodes = std::mem::take(&mut listing);
                debug!(nodes = nodes.len(), "Nodes listed");
                publish(&nodes);
            }
            Ok(Some(Event::Apply(node))) => {
                failures = 0;
                put(&mut nodes, node);
                publish(&nodes);
            }
            Ok(Some(Event::Delete(node))) => {
                nodes.remove(node.metadata.name.as_deref().unwrap_or_default());
                publish(&nodes);
            }
            Ok(None) => return,
            Err(error) => {
                failures += 1;
                if failures <= FAILURES_TOLD {
                    warn!(resource = "nodes", %error, "Watch failed; the ways to other nodes stay as they are");
                }
            }
        }
    }
}

/// Says in events about this node which others it cannot reach, once each.
async fn tell(
    context: &Context,
    mut unreachable: watch::Receiver<Vec<Unreachable>>,
    mut own: watch::Receiver<Option<Node>>,
) {
    let mut told: BTreeSet<Unreachable> = BTreeSet::new();
    loop {
        if unreachable.changed().await.is_err() {
            // Nobody will tell any more.
            return std::future::pending().await;
        }
        let Ok(node) = own.wait_for(Option::is_some).await.map(|node| node.clone()) else {
            return std::future::pending().await;
        };
        let now: BTreeSet<Unreachable> = unreachable.borrow_and_update().iter().cloned().collect();
        for Unreachable { node: name, why } in now.difference(&told) {
            let message = format!("Pods of node {name} are not reached from here: {why}");
            warn!(node = %name, why, "Pods of another node are not reached");
            if let Some(node) = &node {
                let recorder = &context.recorder;
                recorder.record_node(node, Kind::Warning, REASON, message);
            }
        }
        told = now;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_a_peer_by_its_pod_cidrs_and_internal_ips() {
        let node = |spec: serde_json::Value| -> Node {
            serde_json::from_value(json!({
                "metadata": { "name": "n" },
                "spec": spec,
                "status": { "addresses": [
                    { "type": "Hostname", "address": "10.0.0.1" },
                    { "type": "InternalIP", "address": "10.52.0.2" },
                    { "type": "InternalIP", "address": "fd52::2" },
                    { "type": "ExternalIP", "address": "192.0.2.7" },
                ] },
            }))
            .unwrap()
        };
        let found = peer(&node(
            json!({ "podCIDR": "10.89.0.0/24", "podCIDRs": ["10.89.0.0/24", "fd89::/64", "rubbish"] }),
        ))
        .unwrap();
        assert_eq!(
            found,
            Peer {
                name: "n".into(),
                addresses: vec!["10.52.0.2".parse().unwrap(), "fd52::2".parse().unwrap()],
                pod_cidrs: vec![
                    "10.89.0.0/24".parse().unwrap(),
                    "fd89::/64".parse().unwrap()
                ],
            }
        );
        assert_eq!(peer(&node(json!({}))), None);
        assert_eq!(peer(&node(json!({ "podCIDR": "" }))), None);
    }
}

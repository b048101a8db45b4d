//! A range of pod addresses for each node that has none: `spec.podCIDR`.
//!
//! A node that says which range it has keeps it, inside the cluster's range or not; the others get the first free piece.

use std::collections::BTreeMap;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde_json::json;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::range::{Range, RangeError};
use crate::{
    events::{Note, Recorder},
    retry,
};

mod range;

/// The longest a write is tried.
const WRITE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// How often nodes are looked at that could not be given a range.
const RETRY_PERIOD: std::time::Duration = std::time::Duration::from_secs(10);

/// What nodes get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRanges {
    /// The cluster's pod addresses (`--cluster-cidr`).
    pub cluster: Range,
    /// Length of a node's prefix (`--node-cidr-mask-size`).
    pub prefix_len: u8,
}

struct Keeper {
    client: Client,
    recorder: Recorder,
    ranges: NodeRanges,
    /// Ranges by node; those without one are here with none.
    nodes: BTreeMap<String, Vec<Range>>,
    /// While a list comes in: what is not in it has gone.
    listed: Option<BTreeMap<String, Vec<Range>>>,
}

/// Gives nodes their ranges until shutdown.
pub(crate) async fn run(
    client: Client,
    ranges: NodeRanges,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let nodes = watcher(Api::<Node>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .boxed();
    let keeper = Keeper {
        client,
        recorder,
        ranges,
        nodes: BTreeMap::new(),
        listed: Some(BTreeMap::new()),
    };
    keeper.run(nodes, shutdown).await;
}

fn ranges_of(node: &Node) -> Vec<Range> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    // Those of IPv6 cannot be in anybody's way here.
    all.filter_map(|text| text.parse().ok()).collect()
}

impl Keeper {
    async fn run(
        mut self,
        mut events: impl Stream<Item = watcher::Result<Event<Node>>> + Unpin,
        shutdown: CancellationToken,
    ) {
        let mut retries = tokio::time::interval(RETRY_PERIOD);
        retries.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = retries.tick() => {}
                event = events.next() => match event {
                    Some(Ok(event)) => self.hear(event),
                    Some(Err(error)) => warn!(%error, "Nodes not watched"),
                    None => return,
                },
            }
            // Only who has seen all nodes knows what is free.
            if self.listed.is_some() {
                continue;
            }
            let without =
                |(name, ranges): (&String, &Vec<Range>)| ranges.is_empty().then(|| name.clone());
            let waiting: Vec<String> = self.nodes.iter().filter_map(without).collect();
            for name in waiting {
                self.give(name).await;
            }
        }
    }

    fn hear(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.listed = Some(BTreeMap::new()),
            Event::InitApply(node) => {
                let nodes = self.listed.get_or_insert_default();
                nodes.insert(node.name_any(), ranges_of(&node));
            }
            Event::InitDone => {
                if let Some(listed) = self.listed.take() {
                    self.nodes = listed;
                }
            }
            Event::Apply(node) => drop(self.nodes.insert(node.name_any(), ranges_of(&node))),
            Event::Delete(node) => drop(self.nodes.remove(&node.name_any())),
        }
    }

    async fn give(&mut self, name: String) {
        let taken = self.nodes.values().flatten().copied().collect();
        let NodeRanges {
            cluster,
            prefix_len,
        } = self.ranges;
        let Some(free) = cluster.first_free(prefix_len, taken) else {
            warn!(node = name, cluster = %cluster, "No range of pod addresses is left");
            self.record(&name);
            return;
        };
        let text = free.to_string();
        let patch = Patch::Merge(json!({ "spec": { "podCIDR": text, "podCIDRs": [text] } }));
        let nodes: Api<Node> = Api::all(self.client.clone());
        let params = PatchParams::default();
        // Patching refuses a node that has got another range meanwhile: it may be set once.
        let written = nodes.patch(&name, &params, &patch);
        match timeout(WRITE_TIMEOUT, written).await {
            Ok(Ok(node)) => {
                info!(node = name, podCIDR = text, "Node given its pod addresses");
                self.nodes.insert(name, ranges_of(&node));
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409 | 422) => {}
            Ok(Err(error)) => {
                warn!(node = name, error = %retry::text(&error), "Node not given pod addresses")
            }
            Err(_) => warn!(node = name, "Node not given pod addresses in time"),
        }
    }

    fn record(&self, name: &str) {
        self.recorder.record(Note {
            object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(name.into()),
                uid: Some(name.into()),
                ..ObjectReference::default()
            },
            type_: "Normal",
            reason: "CIDRNotAvailable",
            message: format!("Node {name} status is now: CIDRNotAvailable"),
            component: "cidrAllocator".into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[tokio::test]
    async fn each_node_gets_a_range_of_its_own_and_those_that_have_one_keep_it() {
        let fake = Fake::new();
        fake.put(
            "v1/nodes",
            json!({ "metadata": { "name": "a" }, "spec": { "podCIDR": "10.88.0.0/16" } }),
        );
        fake.put(
            "v1/nodes",
            json!({ "metadata": { "name": "b" }, "spec": {} }),
        );
        let ranges = NodeRanges {
            cluster: "10.88.0.0/15".parse().unwrap(),
            prefix_len: 17,
        };
        let shutdown = CancellationToken::new();
        let (recorder, mut notes) = Recorder::new();
        let task = tokio::spawn(run(fake.client(), ranges, recorder, shutdown.clone()));
        let has = |name: &'static str, cidr: &'static str| {
            move |node: &serde_json::Value| {
                node["metadata"]["name"] == name && node["spec"]["podCIDR"] == cidr
            }
        };
        fake.wait_for("v1/nodes", has("b", "10.89.0.0/17")).await;
        fake.put(
            "v1/nodes",
            json!({ "metadata": { "name": "c" }, "spec": {} }),
        );
        fake.wait_for("v1/nodes", has("c", "10.89.128.0/17")).await;
        fake.put(
            "v1/nodes",
            json!({ "metadata": { "name": "d" }, "spec": {} }),
        );
        assert_eq!(notes.recv().await.unwrap().reason, "CIDRNotAvailable");
        fake.remove("v1/nodes", "", "b");
        fake.wait_for("v1/nodes", has("d", "10.89.0.0/17")).await;
        fake.wait_for("v1/nodes", has("a", "10.88.0.0/16")).await;
        shutdown.cancel();
        task.await.unwrap();
    }
}

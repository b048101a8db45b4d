//! Which addresses a node's pods get: what was given, what they had, what the cluster gives.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use serde_json::json;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::{
    cli::{NodeArgs, RootArgs},
    record::Record,
};

/// A node that is a cluster of its own, or runs static pods alone.
pub(crate) const DEFAULT: &str = "10.88.0.0/16";

/// For the cluster to give a node its range.
const PATIENCE: Duration = Duration::from_secs(60);

/// The range that was given, or that the node's pods have already.
pub(crate) fn settled(root: &RootArgs, args: &NodeArgs) -> Result<Option<String>> {
    match &args.pod_cidr {
        Some(given) => Ok(Some(given.clone())),
        None => Ok(Record::read(root)?.map(|record| record.pod_cidr)),
    }
}

/// Tells the cluster which range the node has, so that no other gets it. A Node that is not there is made.
pub(crate) async fn claim(client: &Client, name: &str, range: &str, args: &NodeArgs) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let spec = json!({ "podCIDR": range, "podCIDRs": [range] });
    let Some(node) = nodes.get_opt(name).await? else {
        if args.register_node {
            create(&nodes, name, spec).await?;
        }
        return Ok(());
    };
    match pod_cidr(&node) {
        Some(told) if told == range => {}
        Some(told) => warn!(
            node = name,
            podCIDR = told,
            range,
            "The Node says other pod addresses than this node's pods have; delete the Node to have it corrected"
        ),
        None => {
            let patch = Patch::Merge(json!({ "spec": spec }));
            nodes.patch(name, &PatchParams::default(), &patch).await?;
        }
    }
    Ok(())
}

/// Waits for the range that the cluster gives the node. A Node that is not there is made.
pub(crate) async fn given(client: &Client, name: &str, args: &NodeArgs) -> Result<String> {
    let nodes: Api<Node> = Api::all(client.clone());
    if nodes.get_opt(name).await.context("Node")?.is_none() {
        if args.register_node {
            create(&nodes, name, json!({})).await?;
        } else {
            info!(
                node = name,
                "Waiting for somebody to make the Node: --register-node is off"
            );
            await_condition(nodes.clone(), name, |node: Option<&Node>| node.is_some()).await?;
        }
    }
    let has_range = |node: Option<&Node>| node.and_then(pod_cidr).is_some();
    let node = match timeout(PATIENCE, await_condition(nodes, name, has_range)).await {
        Ok(node) => node?,
        Err(_) => bail!(
            "node {name} was given no podCIDR within {} s: the cluster's range is used up, or nobody gives any; \
             --pod-cidr names one",
            PATIENCE.as_secs()
        ),
    };
    let range = node.as_ref().and_then(pod_cidr).context("podCIDR")?;
    info!(node = name, podCIDR = range, "Pod addresses given");
    Ok(range.to_owned())
}

fn pod_cidr(node: &Node) -> Option<&str> {
    let range = node.spec.as_ref()?.pod_cidr.as_deref()?;
    (!range.is_empty()).then_some(range)
}

/// A Node on which nothing is scheduled yet: the agent fills in the rest.
async fn create(nodes: &Api<Node>, name: &str, spec: serde_json::Value) -> Result<()> {
    let node: Node = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": spec,
        "status": { "conditions": [{
            "type": "Ready",
            "status": "False",
            "reason": "KubeletNotReady",
            "message": "the agent is starting",
        }] },
    }))?;
    match nodes.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        created => created.map(drop).context("Node"),
    }
}

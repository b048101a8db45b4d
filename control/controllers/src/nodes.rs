//! Nodes as controllers of workloads see them: what does not change with every heartbeat.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::{watched::key_of, workqueue::Key};

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeView {
    pub(crate) key: Key,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    pub(crate) is_unschedulable: bool,
    /// What its condition `Ready` is: `True`, `False`, `Unknown`, or nothing yet.
    pub(crate) ready: String,
}

impl From<Node> for NodeView {
    fn from(node: Node) -> Self {
        let key = key_of(&node);
        let spec = node.spec.unwrap_or_default();
        let conditions = node.status.and_then(|status| status.conditions);
        Self {
            key,
            labels: node.metadata.labels.unwrap_or_default(),
            taints: spec.taints.unwrap_or_default(),
            is_unschedulable: spec.unschedulable.unwrap_or(false),
            ready: conditions
                .into_iter()
                .flatten()
                .find(|condition| condition.type_ == "Ready")
                .map_or_else(String::new, |condition| condition.status),
        }
    }
}

/// Whether a change is one that matters here.
pub(crate) fn is_changed(old: Option<&Arc<NodeView>>, new: Option<&Arc<NodeView>>) -> bool {
    old != new
}

//! The scheduler's decisions by themselves: no API server, no clock of its own, nothing that is written.

use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::{
    node::Offer,
    pod::{Role, role},
    queue::Queue,
    state::State,
};

/// Decides where pods go, as the scheduler does, and takes each decision to be carried out. For measuring it, and for
/// trying out what a cluster would do.
#[derive(Debug, Default)]
pub struct Decider {
    state: State,
    queue: Queue,
}

impl Decider {
    /// Takes a node, or what has changed of it.
    pub fn set_node(&mut self, node: &Node) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        self.state.set_node(name, Offer::read(node));
    }

    /// Takes a pod of the scheduler `default-scheduler`: one that has a node is counted there, one that has none waits
    /// for [`Self::decide`]. Pods are told apart by `metadata.uid`.
    pub fn set_pod(&mut self, pod: &Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        match role(pod, "default-scheduler") {
            Role::Pending(pod) => {
                self.queue.update(*pod);
            }
            Role::Assigned(pod) => {
                self.queue.remove(&uid);
                self.state.assign(&uid, *pod);
            }
            Role::Neither => {
                self.queue.remove(&uid);
                self.state.release(&uid);
            }
        }
    }

    /// Decides on the pod that is next: its uid with the name of its node, or with why there is none. `None` when no pod
    /// waits. One that has found no node is looked at no more, until there is news of it.
    pub fn decide(&mut self) -> Option<(String, Result<String, String>)> {
        let pod = self.queue.pop(Instant::now())?;
        let decided = match self.state.schedule(&pod) {
            Ok(placement) => Ok(placement.node),
            Err(rejections) => Err(rejections.message()),
        };
        self.queue.remove(&pod.uid);
        Some((pod.uid, decided))
    }
}

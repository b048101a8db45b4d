//! A cluster in a few words, for tests.

use serde_json::{Value, json};

use super::{
    node::Offer,
    pod::{Assigned, PodInfo, Role, role},
    state::{Placement, State},
};

/// A scheduler's state with nodes `name` in zones, 4 CPUs each.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) state: State,
}

/// A pod of the namespace `default` by its name, labels and spec.
pub(crate) fn pod(name: &str, labels: Value, spec: Value) -> PodInfo {
    let Role::Pending(pod) = read(name, "default", labels, spec) else {
        panic!("{name} waits");
    };
    *pod
}

fn read(name: &str, namespace: &str, labels: Value, mut spec: Value) -> Role {
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{ "name": "c" }]);
    }
    let pod = json!({
        "metadata": { "name": name, "namespace": namespace, "uid": name, "labels": labels },
        "spec": spec,
    });
    role(&serde_json::from_value(pod).unwrap(), "default-scheduler")
}

/// A container that asks for so much CPU.
pub(crate) fn cpu(amount: &str) -> Value {
    json!([{ "name": "c", "resources": { "requests": { "cpu": amount } } }])
}

impl World {
    pub(crate) fn new(nodes: &[(&str, &str)]) -> Self {
        let mut world = Self::default();
        for (name, zone) in nodes {
            world.node(name, json!({ "zone": zone, "host": name }));
        }
        world
    }

    pub(crate) fn node(&mut self, name: &str, labels: Value) {
        let node = json!({
            "metadata": { "name": name, "labels": labels },
            "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "110" } },
        });
        let offer = Offer::read(&serde_json::from_value(node).unwrap());
        self.state.set_node(name, offer);
    }

    pub(crate) fn namespace(&mut self, name: &str, labels: Value) {
        let labels = serde_json::from_value(labels).unwrap();
        self.state.set_namespace(name, Some(labels));
    }

    /// Puts a pod on a node.
    pub(crate) fn runs(&mut self, name: &str, node: &str, labels: Value, spec: Value) {
        self.runs_in("default", name, node, labels, spec);
    }

    pub(crate) fn runs_in(
        &mut self,
        namespace: &str,
        name: &str,
        node: &str,
        labels: Value,
        mut spec: Value,
    ) {
        spec["nodeName"] = node.into();
        let Role::Assigned(pod) = read(name, namespace, labels, spec) else {
            panic!("{name} runs");
        };
        self.state.assign(name, *pod);
    }

    /// Marks a pod as being deleted.
    pub(crate) fn ends(&mut self, name: &str) {
        let pod = self.state.pods.get(name).unwrap().clone();
        let assigned = Assigned {
            name: pod.name,
            node: self.state.nodes[pod.node].name.clone(),
            needs: pod.needs,
            is_terminating: true,
            started: pod.started,
        };
        self.state.assign(name, assigned);
    }

    /// Where a pod goes; otherwise why it goes nowhere, as far as nodes are concerned.
    pub(crate) fn schedule(&mut self, pod: &PodInfo) -> Result<String, String> {
        match self.state.schedule(pod) {
            Ok(Placement { node, .. }) => Ok(node),
            Err(rejections) => {
                let message = rejections.message();
                let text = message.split_once(": ").map_or(&*message, |(_, text)| text);
                Err(text.to_owned())
            }
        }
    }

    /// Where a pod would go; it does not go there.
    pub(crate) fn would(&mut self, pod: &PodInfo) -> Result<String, String> {
        let found = self.schedule(pod);
        self.state.release(&pod.uid);
        found
    }
}

//! Nodes and what pods have taken of them, and the choice of a node for a pod. Pure.

use std::collections::{HashMap, HashSet};

use super::{
    filter::{Rejections, is_tolerated, matches_term},
    node::{NodeInfo, Offer},
    pod::{Footprint, PodInfo},
};

/// Nodes that are compared for one pod: once so many can take it the search ends, so that the cost
/// of a pod does not grow with the cluster. The search starts where the last one ended.
const FEASIBLE_NODES_MAX: usize = 64;

/// Weights of kube-scheduler's default profile.
const WEIGHT_LEAST_ALLOCATED: i64 = 1;
const WEIGHT_NODE_AFFINITY: i64 = 2;
const WEIGHT_TAINTS: i64 = 3;
const SCORE_MAX: i64 = 100;

/// Nodes, and which pod has taken what of them.
#[derive(Debug, Default)]
pub(crate) struct State {
    nodes: Vec<NodeInfo>,
    index: HashMap<String, usize>,
    pods: HashMap<String, Taken>,
    next_start: usize,
    /// Places of nodes that have gone.
    free: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Taken {
    node: usize,
    footprint: Footprint,
}

impl State {
    /// Takes a node's news; answers whether pods that found no node should look again.
    pub(crate) fn set_node(&mut self, name: &str, offer: Offer) -> bool {
        let index = self.node(name);
        let node = &mut self.nodes[index];
        let changed = node.offer.as_ref() != Some(&offer);
        node.offer = Some(offer);
        changed
    }

    /// Forgets a node. Its pods stay counted until they go as well.
    pub(crate) fn remove_node(&mut self, name: &str) {
        if let Some(index) = self.index.get(name).copied() {
            self.nodes[index].offer = None;
            self.free_if_unused(index);
        }
    }

    /// Forgets nodes that are not listed.
    pub(crate) fn retain_nodes(&mut self, listed: &HashSet<String>) {
        let gone: Vec<String> = self
            .index
            .keys()
            .filter(|name| !listed.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            self.remove_node(&name);
        }
    }

    /// Counts a pod in, wherever it was counted before. Repeatable.
    pub(crate) fn assign(&mut self, uid: &str, node: &str, footprint: Footprint) {
        if let Some(taken) = self.pods.get(uid) {
            if self.nodes[taken.node].name == node && taken.footprint == footprint {
                return;
            }
            self.release(uid);
        }
        let index = self.node(node);
        self.nodes[index].add(&footprint);
        self.pods.insert(
            uid.to_owned(),
            Taken {
                node: index,
                footprint,
            },
        );
    }

    /// Counts a pod out; answers whether it was counted in.
    pub(crate) fn release(&mut self, uid: &str) -> bool {
        let taken = self.pods.remove(uid);
        if let Some(taken) = &taken {
            self.nodes[taken.node].remove(&taken.footprint);
            self.free_if_unused(taken.node);
        }
        taken.is_some()
    }

    /// Pods that are counted in.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &String> {
        self.pods.keys()
    }

    /// Chooses a node for a pod and counts the pod in there.
    ///
    /// # Errors
    /// No node can take it, and why.
    pub(crate) fn schedule(&mut self, pod: &PodInfo) -> Result<String, Rejections> {
        let mut rejections = Rejections::default();
        let mut feasible = Vec::new();
        let count = self.nodes.len();
        let mut looked_at = 0;
        while looked_at < count && feasible.len() < FEASIBLE_NODES_MAX {
            let index = (self.next_start + looked_at) % count;
            looked_at += 1;
            if rejections.check(pod, &self.nodes[index]) {
                feasible.push(index);
            }
        }
        self.next_start = (self.next_start + looked_at) % count.max(1);
        let best = best(pod, &self.nodes, &feasible).ok_or(rejections)?;
        let name = self.nodes[best].name.clone();
        self.assign(&pod.uid, &name, pod.needs.footprint.clone());
        Ok(name)
    }

    /// Gives the place of a node free that neither the API nor a pod speaks of.
    fn free_if_unused(&mut self, index: usize) {
        let node = &self.nodes[index];
        if node.offer.is_none()
            && node.requested.pods == 0
            && self.index.get(&node.name) == Some(&index)
        {
            self.index.remove(&node.name);
            self.nodes[index] = NodeInfo::default();
            self.free.push(index);
        }
    }

    fn node(&mut self, name: &str) -> usize {
        if let Some(index) = self.index.get(name) {
            return *index;
        }
        let node = NodeInfo {
            name: name.to_owned(),
            ..NodeInfo::default()
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.nodes[index] = node;
                index
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        self.index.insert(name.to_owned(), index);
        index
    }
}

/// The node with the highest score, the first of those that are equal.
fn best(pod: &PodInfo, nodes: &[NodeInfo], feasible: &[usize]) -> Option<usize> {
    let affinity: Vec<i64> = feasible
        .iter()
        .map(|index| preferred(pod, &nodes[*index]))
        .collect();
    let taints: Vec<i64> = feasible
        .iter()
        .map(|index| avoided(pod, &nodes[*index]))
        .collect();
    let affinity_max = affinity.iter().copied().max().unwrap_or(0).max(1);
    let taints_max = taints.iter().copied().max().unwrap_or(0).max(1);
    let score = |at: usize| {
        let least_allocated = least_allocated(pod, &nodes[feasible[at]]);
        WEIGHT_LEAST_ALLOCATED * least_allocated
            + WEIGHT_NODE_AFFINITY * (affinity[at] * SCORE_MAX / affinity_max)
            + WEIGHT_TAINTS * (SCORE_MAX - taints[at] * SCORE_MAX / taints_max)
    };
    // `max_by_key` would take the last of equals.
    let best = (0..feasible.len()).rev().max_by_key(|at| score(*at))?;
    Some(feasible[best])
}

/// The part of CPU and memory that stays free, of [`SCORE_MAX`].
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let Some(offer) = &node.offer else { return 0 };
    let asked = &pod.needs.footprint;
    let free = |has: i64, taken: i64| {
        if has <= 0 || taken > has {
            0
        } else {
            ((has - taken) as i128 * SCORE_MAX as i128 / has as i128) as i64
        }
    };
    let cpu = free(
        offer.allocatable.cpu_millis,
        node.cpu_millis_assumed + asked.cpu_millis_assumed,
    );
    let memory = free(
        offer.allocatable.memory_bytes,
        node.memory_bytes_assumed + asked.memory_bytes_assumed,
    );
    (cpu + memory) / 2
}

/// The sum of the weights of the preferences that a node meets.
fn preferred(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let Some(offer) = &node.offer else { return 0 };
    let met = pod
        .needs
        .preferred
        .iter()
        .filter(|term| matches_term(&term.preference, &node.name, &offer.labels));
    met.map(|term| i64::from(term.weight)).sum()
}

/// How many taints say that a pod had better go elsewhere.
fn avoided(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let taints = node.offer.iter().flat_map(|offer| &offer.taints);
    let soft = taints.filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !is_tolerated(taint, &pod.needs.tolerations))
        .count() as i64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{super::resources::Resources, *};

    fn offer(cpu_millis: i64) -> Offer {
        let allocatable = Resources {
            cpu_millis,
            memory_bytes: 1 << 40,
            pods: 110,
            ..Resources::default()
        };
        Offer {
            allocatable,
            ..Offer::default()
        }
    }

    fn pod(uid: &str, cpu_millis: i64) -> PodInfo {
        let requests = Resources {
            cpu_millis,
            pods: 1,
            ..Resources::default()
        };
        let footprint = Footprint {
            requests,
            cpu_millis_assumed: cpu_millis,
            ..Footprint::default()
        };
        let mut pod = PodInfo {
            uid: uid.into(),
            ..PodInfo::default()
        };
        pod.needs.footprint = footprint;
        pod
    }

    #[test]
    fn pods_spread_over_the_nodes_with_most_left() {
        let mut state = State::default();
        for (name, cpu) in [("small", 1000), ("large", 4000)] {
            assert!(state.set_node(name, offer(cpu)));
            assert!(!state.set_node(name, offer(cpu)), "no news");
        }
        let mut place = |uid: &str| state.schedule(&pod(uid, 900)).unwrap();
        assert_eq!(["0", "1", "2"].map(&mut place), ["large"; 3]);
        let mut last = ["3", "4"].map(&mut place);
        last.sort();
        assert_eq!(last, ["large", "small"]);
        assert!(state.schedule(&pod("5", 900)).is_err());
        assert!(state.release("0"));
        assert!(!state.release("0"));
        assert_eq!(state.schedule(&pod("5", 900)).unwrap(), "large");
    }

    #[test]
    fn preferences_and_soft_taints_decide_between_nodes_that_fit() {
        let mut state = State::default();
        state.set_node("a", offer(4000));
        let mut labelled = offer(2000);
        labelled.labels.insert("disk".into(), "ssd".into());
        state.set_node("b", labelled);
        let mut wants = pod("1", 100);
        wants.needs.preferred = serde_json::from_value(json!([
            { "weight": 1, "preference": { "matchExpressions": [{ "key": "disk", "operator": "Exists" }] } },
        ]))
        .unwrap();
        assert_eq!(state.schedule(&wants).unwrap(), "b");

        let mut tainted = offer(4000);
        tainted.taints =
            serde_json::from_value(json!([{ "key": "k", "effect": "PreferNoSchedule" }])).unwrap();
        state.set_node("a", tainted);
        assert_eq!(state.schedule(&pod("2", 100)).unwrap(), "b");
    }

    #[test]
    fn a_node_that_has_gone_takes_no_pods_and_comes_back_with_what_it_has() {
        let mut state = State::default();
        state.set_node("a", offer(1000));
        state.schedule(&pod("1", 800)).unwrap();
        state.remove_node("a");
        assert_eq!(
            state
                .schedule(&pod("2", 100))
                .unwrap_err()
                .message(&pod("2", 100)),
            "no nodes available to schedule pods"
        );
        state.set_node("a", offer(1000));
        assert!(state.schedule(&pod("2", 800)).is_err());
        state.retain_nodes(&HashSet::new());
        assert!(state.schedule(&pod("2", 100)).is_err());
    }

    #[test]
    fn nodes_that_come_and_go_leave_nothing() {
        let mut state = State::default();
        for n in 0..100 {
            let name = n.to_string();
            state.set_node(&name, offer(1000));
            state.schedule(&pod("p", 100)).unwrap();
            state.remove_node(&name);
            state.release("p");
        }
        assert_eq!((state.nodes.len(), state.index.len()), (1, 0));
    }

    proptest! {
        #[test]
        fn no_node_is_ever_overcommitted(
            cpus in proptest::collection::vec(100..2000i64, 1..6),
            steps in proptest::collection::vec((0..40u8, 1..800i64, any::<bool>()), 1..120),
        ) {
            let mut state = State::default();
            for (n, cpu) in cpus.iter().enumerate() {
                state.set_node(&n.to_string(), offer(*cpu));
            }
            let mut placed: HashMap<u8, (usize, i64)> = HashMap::new();
            for (id, cpu, is_add) in steps {
                if is_add && !placed.contains_key(&id) {
                    let fits = (0..cpus.len()).any(|n| {
                        let taken: i64 = placed.values().filter(|(node, _)| *node == n).map(|(_, cpu)| cpu).sum();
                        taken + cpu <= cpus[n]
                    });
                    let chosen = state.schedule(&pod(&id.to_string(), cpu)).ok();
                    prop_assert_eq!(chosen.is_some(), fits);
                    if let Some(node) = chosen {
                        placed.insert(id, (node.parse().unwrap(), cpu));
                    }
                } else {
                    prop_assert_eq!(state.release(&id.to_string()), placed.remove(&id).is_some());
                }
                for (n, cpu) in cpus.iter().enumerate() {
                    let taken: i64 = placed.values().filter(|(node, _)| *node == n).map(|(_, cpu)| cpu).sum();
                    prop_assert!(taken <= *cpu);
                    prop_assert_eq!(state.nodes[n].requested.cpu_millis, taken);
                }
            }
        }
    }
}

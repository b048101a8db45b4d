//! Nodes and what pods have taken of them, and the choice of a node for a pod. Pure.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    ask::Ask,
    claims::{Claims, Step},
    counts::{Counted, Counts, Pods},
    filter::{self, Rejections, Verdict},
    node::{NodeInfo, Offer},
    pod::{Assigned, Needs, PodInfo},
    preemption::Budget,
    score,
};
use crate::{shared::Shared, workqueue::Key};

/// Nodes that are compared for one pod: once so many can take it the search ends, so that the cost
/// of a pod does not grow with the cluster. The search starts where the last one ended.
const FEASIBLE_NODES_MAX: usize = 64;

/// Nodes, and which pod has taken what of them.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) nodes: Vec<NodeInfo>,
    pub(crate) counts: Counts,
    pub(crate) claims: Claims,
    /// Handlers by RuntimeClass.
    pub(crate) handlers: HashMap<String, String>,
    pub(crate) budgets: HashMap<Key, Budget>,
    /// How many nodes have an image.
    pub(crate) images: HashMap<String, usize>,
    pub(crate) pods: Pods,
    pub(crate) next_start: usize,
    index: HashMap<String, usize>,
    /// Pods for which others have been stopped, and where.
    nominated: HashMap<String, Nomination>,
    /// Pods of one owner, or that are labelled alike, mostly need the same.
    shared: Shared<Needs>,
    /// Places of nodes that have gone.
    free: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Nomination {
    node: usize,
    name: String,
    needs: Arc<Needs>,
}

/// Where a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) node: String,
    /// To be written for its claims before it is bound.
    pub(crate) steps: Vec<Step>,
    /// Others may wait for such a pod to be there.
    pub(crate) is_waited_for: bool,
}

impl State {
    /// Takes a node's news; answers whether pods that found no node should look again.
    pub(crate) fn set_node(&mut self, name: &str, offer: Offer) -> bool {
        let index = self.node(name);
        if self.nodes[index].offer.as_ref() == Some(&offer) {
            return false;
        }
        self.replace_offer(index, Some(offer));
        true
    }

    fn replace_offer(&mut self, index: usize, offer: Option<Offer>) {
        let old = std::mem::replace(&mut self.nodes[index].offer, offer);
        let new = self.nodes[index].offer.as_ref();
        let labels = |offer: Option<&Offer>| offer.map(|offer| offer.labels.clone());
        let (old_labels, new_labels) = (labels(old.as_ref()), labels(new));
        for image in old.iter().flat_map(|offer| offer.images.keys()) {
            if let Some(count) = self.images.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    self.images.remove(image);
                }
            }
        }
        for image in new.iter().flat_map(|offer| offer.images.keys()) {
            *self.images.entry(image.clone()).or_default() += 1;
        }
        if old_labels != new_labels {
            self.counts
                .move_node(index, old_labels.as_ref(), new_labels.as_ref());
        }
    }

    /// Forgets a node. Its pods stay counted until they go as well.
    pub(crate) fn remove_node(&mut self, name: &str) {
        if let Some(index) = self.index.get(name).copied() {
            self.replace_offer(index, None);
            self.nominated
                .retain(|_, nomination| nomination.node != index);
            self.free_if_unused(index);
        }
    }

    /// Follows a namespace's labels; answers whether pods that found no node should look again.
    pub(crate) fn set_namespace(
        &mut self,
        name: &str,
        labels: Option<std::collections::BTreeMap<String, String>>,
    ) -> bool {
        self.counts
            .set_namespace(name, labels, &self.pods, &self.nodes)
    }

    /// Counts a pod in, wherever it was counted before. Repeatable. Answers whether others may wait for just that.
    pub(crate) fn assign(&mut self, uid: &str, pod: Assigned) -> bool {
        if let Some(counted) = self.pods.get(uid) {
            if self.nodes[counted.node].name == pod.node
                && counted.needs == pod.needs
                && counted.is_terminating == pod.is_terminating
                && counted.started == pod.started
            {
                return false;
            }
            self.release(uid);
        }
        self.nominated.remove(uid);
        let node = self.node(&pod.node);
        let alike = (&pod.needs.namespace, &pod.needs.owner, &pod.needs.labels);
        let needs = self.shared.share(alike, pod.needs.clone());
        let counted = Counted {
            name: pod.name,
            node,
            needs,
            is_terminating: pod.is_terminating,
            started: pod.started,
        };
        let is_waited_for = !self.counts.that_mean(&counted.needs).is_empty();
        self.count_in(uid, counted);
        is_waited_for
    }

    /// Counts a pod in that is not counted in.
    pub(crate) fn count_in(&mut self, uid: &str, pod: Counted) {
        let Self {
            counts,
            pods,
            nodes,
            claims,
            ..
        } = self;
        counts.count(&pod, 1, pods, nodes);
        let names = pod.needs.claims.iter().map(|claim| claim.name.clone());
        claims.count(&pod.needs.namespace, names, 1);
        let (node, needs) = (pod.node, pod.needs.clone());
        let uid = pods.insert(uid, pod);
        nodes[node].add(uid, &needs);
    }

    /// Counts a pod out, and forgets what was kept for it; answers whether it was counted in.
    pub(crate) fn release(&mut self, uid: &str) -> bool {
        self.claims.release(uid);
        let Some(pod) = self.count_out(uid) else {
            return false;
        };
        self.free_if_unused(pod.node);
        true
    }

    /// Counts a pod out.
    pub(crate) fn count_out(&mut self, uid: &str) -> Option<Counted> {
        let pod = self.pods.remove(uid)?;
        self.nodes[pod.node].remove(uid, &pod.needs);
        self.counts.count(&pod, -1, &self.pods, &self.nodes);
        let names = pod.needs.claims.iter().map(|claim| claim.name.clone());
        self.claims.count(&pod.needs.namespace, names, -1);
        Some(pod)
    }

    /// Pods that are counted in.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &Arc<str>> {
        self.pods.uids()
    }

    /// Keeps room on a node for a pod that waits for others there to go; the room is not for pods that matter less.
    pub(crate) fn nominate(&mut self, pod: &PodInfo, node: &str) {
        if let Some(node) = self.index.get(node).copied() {
            let nomination = Nomination {
                node,
                name: pod.name.clone(),
                needs: pod.needs.clone(),
            };
            self.nominated.insert(pod.uid.clone(), nomination);
        }
    }

    /// Keeps no room for a pod any more; answers whether some was kept.
    pub(crate) fn withdraw(&mut self, uid: &str) -> bool {
        self.nominated.remove(uid).is_some()
    }

    /// Where room is kept for a pod.
    pub(crate) fn nomination(&self, uid: &str) -> Option<usize> {
        self.nominated.get(uid).map(|nomination| nomination.node)
    }

    /// Whether pods that matter less than one are on their way from the node on which room is kept for it.
    pub(crate) fn is_waiting_for_room(&self, pod: &PodInfo) -> bool {
        self.nomination(&pod.uid)
            .is_some_and(|node| self.has_terminating(node, pod.needs.priority))
    }

    /// The node on which room is kept for a pod.
    pub(crate) fn nominated_node(&self, uid: &str) -> Option<&str> {
        let node = self.nodes.get(self.nomination(uid)?)?;
        Some(&node.name)
    }

    /// Nodes, and those that only pods speak of.
    pub(crate) fn node_names(&self) -> impl Iterator<Item = &String> {
        self.index.keys()
    }

    /// Pods below a priority for which room is kept on a node: uid, namespace and name.
    pub(crate) fn nominated_below(&self, priority: i32, node: usize) -> Vec<(String, Key)> {
        let below = self.nominated.iter().filter(|(_, nomination)| {
            nomination.node == node && nomination.needs.priority < priority
        });
        below
            .map(|(uid, nomination)| {
                let key = Key::new(&nomination.needs.namespace, &nomination.name);
                (uid.clone(), key)
            })
            .collect()
    }

    /// Chooses a node for a pod and counts the pod in there.
    ///
    /// # Errors
    /// No node can take it, and why.
    pub(crate) fn schedule(&mut self, pod: &PodInfo) -> Result<Placement, Rejections> {
        self.register(&pod.needs);
        // Room that is kept for others has to be left free.
        let kept: HashSet<usize> = (self.nominated.iter())
            .filter(|(uid, other)| **uid != pod.uid && other.needs.priority >= pod.needs.priority)
            .map(|(_, nomination)| nomination.node)
            .collect();
        let of_kept: HashMap<usize, Verdict> = kept
            .into_iter()
            .map(|node| (node, self.verdict_on(pod, node)))
            .collect();
        let (best, looked_at, steps) = self.choose(pod, &of_kept)?;
        self.next_start = looked_at;
        let node = self.nodes[best].name.clone();
        self.claims.assume(&pod.uid, &steps);
        let is_waited_for = self.assign(
            &pod.uid,
            Assigned {
                name: pod.name.clone(),
                node: node.clone(),
                needs: pod.needs.clone(),
                is_terminating: false,
                started: None,
            },
        );
        Ok(Placement {
            node,
            steps,
            is_waited_for,
        })
    }

    fn choose(
        &self,
        pod: &PodInfo,
        of_kept: &HashMap<usize, Verdict>,
    ) -> Result<(usize, usize, Vec<Step>), Rejections> {
        let ask = Ask::new(pod, self).map_err(|reason| {
            let nodes = self.nodes.iter().filter(|node| node.offer.is_some());
            Rejections::of_all(reason, nodes.count())
        })?;
        let verdict = |index: usize| match of_kept.get(&index) {
            Some(verdict) => verdict.clone(),
            None => filter::verdict(&ask, &self.nodes[index]),
        };
        let own = self.nomination(&pod.uid);
        if let Some(node) = own.filter(|node| verdict(*node) == Verdict::Takes) {
            let steps = ask.steps(&self.nodes[node]).unwrap_or_default();
            return Ok((node, self.next_start, steps));
        }
        let mut rejections = Rejections::default();
        let mut feasible = Vec::new();
        let count = self.nodes.len();
        let mut looked_at = 0;
        while looked_at < count && feasible.len() < FEASIBLE_NODES_MAX {
            let index = (self.next_start + looked_at) % count;
            looked_at += 1;
            if self.nodes[index].offer.is_some() && rejections.count(index, verdict(index)) {
                feasible.push(index);
            }
        }
        let best = score::best(&ask, self, &feasible).ok_or(rejections)?;
        let steps = ask.steps(&self.nodes[best]).unwrap_or_default();
        Ok((best, (self.next_start + looked_at) % count.max(1), steps))
    }

    /// Counts what a pod asks of other pods from now on.
    pub(crate) fn register(&mut self, needs: &Needs) {
        self.counts.forget_idle();
        let between = needs.between.iter().flat_map(|between| {
            let preferred = between.preferred.iter().map(|(_, term)| term);
            let required = between.affinity.iter().chain(&between.anti_affinity);
            required.chain(preferred)
        });
        let spread = needs.spread.iter().map(|constraint| &constraint.term);
        for term in between.chain(spread) {
            self.counts.register(term, &self.pods, &self.nodes);
        }
    }

    /// A node's answer to a pod, with and without the pods for which room is kept there.
    pub(crate) fn verdict_on(&mut self, pod: &PodInfo, node: usize) -> Verdict {
        let others: Vec<(String, Counted)> = (self.nominated.iter())
            .filter(|(uid, other)| {
                **uid != pod.uid && other.node == node && other.needs.priority >= pod.needs.priority
            })
            .map(|(uid, other)| {
                let counted = Counted {
                    name: other.name.clone(),
                    node,
                    needs: other.needs.clone(),
                    is_terminating: false,
                    started: None,
                };
                (uid.clone(), counted)
            })
            .collect();
        if !others.is_empty() {
            let uids: Vec<String> = others.iter().map(|(uid, _)| uid.clone()).collect();
            for (uid, counted) in others {
                self.count_in(&uid, counted);
            }
            let verdict = self.plain_verdict(pod, node);
            for uid in uids {
                self.count_out(&uid);
            }
            if verdict != Verdict::Takes {
                return verdict;
            }
        }
        self.plain_verdict(pod, node)
    }

    fn plain_verdict(&self, pod: &PodInfo, node: usize) -> Verdict {
        match Ask::new(pod, self) {
            Ok(ask) => filter::verdict(&ask, &self.nodes[node]),
            Err(reason) => Verdict::Refuses(vec![reason.into()]),
        }
    }

    /// Gives the place of a node free that neither the API nor a pod speaks of.
    fn free_if_unused(&mut self, index: usize) {
        let node = &self.nodes[index];
        if node.offer.is_none()
            && node.pods.is_empty()
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

#[cfg(test)]
mod tests;

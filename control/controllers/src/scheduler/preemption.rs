//! Which pods would have to go so that one that matters more finds a node. Pure.

use std::cmp::Reverse;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use wherry_api::selector::LabelSelector;

use super::{
    counts::Counted,
    filter::{Reason, Rejections, Verdict},
    pod::PodInfo,
    state::State,
};
use crate::{pods, workqueue::Key};

/// Nodes that are compared: once there are so many the search ends
/// (`DefaultPreemptionArgs`: `minCandidateNodesAbsolute`, `minCandidateNodesPercentage`).
const CANDIDATES_MIN: usize = 100;
const CANDIDATES_PERCENT: usize = 10;

const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// A PodDisruptionBudget.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Budget {
    selector: LabelSelector,
    allowed: i32,
    /// Pods that it counts as gone already.
    disrupted: Vec<String>,
}

impl Budget {
    pub(crate) fn read(budget: &PodDisruptionBudget) -> Self {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let status = budget.status.as_ref();
        Self {
            selector: selector.map_or_else(LabelSelector::nothing, pods::selector),
            allowed: status
                .and_then(|status| status.disruptions_allowed)
                .unwrap_or(0),
            disrupted: status
                .and_then(|status| status.disrupted_pods.as_ref())
                .into_iter()
                .flat_map(|pods| pods.keys().cloned())
                .collect(),
        }
    }
}

/// A pod that has to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Victim {
    pub(crate) uid: String,
    pub(crate) key: Key,
    /// It is going already.
    pub(crate) is_terminating: bool,
}

/// What makes room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Preemption {
    pub(crate) node: String,
    pub(crate) victims: Vec<Victim>,
    /// Pods that matter less and for which room was kept there.
    pub(crate) withdrawn: Vec<(String, Key)>,
}

/// What stopping pods on one node costs.
struct Candidate {
    node: usize,
    violations: usize,
    victims: Vec<(String, Counted)>,
}

impl Candidate {
    /// The less the better: budgets that are broken, the priority of the most important victim, all priorities
    /// together, the number of victims; and at last the node whose most important victims are the youngest.
    fn cost(&self) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
        let priorities = || self.victims.iter().map(|(_, pod)| pod.needs.priority);
        let highest = priorities().max().unwrap_or(i32::MIN);
        // As upstream: negative priorities are shifted so that more victims always cost more.
        let sum = priorities()
            .map(|priority| i64::from(priority) + i64::from(i32::MAX) + 1)
            .sum();
        let most_important = self
            .victims
            .iter()
            .filter(|(_, pod)| pod.needs.priority == highest);
        let earliest = most_important
            .map(|(_, pod)| pod.started.unwrap_or(Timestamp::MAX))
            .min();
        (
            self.violations,
            highest,
            sum,
            self.victims.len(),
            Reverse(earliest.unwrap_or(Timestamp::MAX)),
        )
    }
}

impl State {
    /// Which pods have to go so that a pod that found no node finds one, and what is to be said if that is of no use.
    ///
    /// # Errors
    /// Nothing helps; the text is for the pod's condition.
    pub(crate) fn preempt(
        &mut self,
        pod: &PodInfo,
        rejections: &Rejections,
    ) -> Result<Preemption, String> {
        if !rejections.has_nodes() {
            return Err(String::new());
        }
        if !pod.needs.may_preempt {
            return Err("preemption: not eligible due to preemptionPolicy=Never.".into());
        }
        if self.is_waiting_for_room(pod) {
            return Err(
                "preemption: not eligible due to a terminating pod on the nominated node.".into(),
            );
        }
        let enough = CANDIDATES_MIN.max(self.nodes.len() * CANDIDATES_PERCENT / 100);
        let mut best: Option<Candidate> = None;
        let mut found = 0;
        let mut tried = Vec::new();
        for node in &rejections.by_pods {
            match self.try_without(pod, *node) {
                Ok(candidate) => {
                    found += 1;
                    if best
                        .as_ref()
                        .is_none_or(|best| candidate.cost() < best.cost())
                    {
                        best = Some(candidate);
                    }
                    if found >= enough {
                        break;
                    }
                }
                Err(reasons) => tried.push(reasons),
            }
        }
        let best = best.ok_or_else(|| rejections.preemption_message(&tried))?;
        let victims = best.victims.into_iter().map(|(uid, pod)| Victim {
            uid,
            key: Key::new(&pod.needs.namespace, &pod.name),
            is_terminating: pod.is_terminating,
        });
        Ok(Preemption {
            node: self.nodes[best.node].name.clone(),
            victims: victims.collect(),
            withdrawn: self.nominated_below(pod.needs.priority, best.node),
        })
    }

    /// Whether pods below a priority are on their way from a node.
    pub(crate) fn has_terminating(&self, node: usize, priority: i32) -> bool {
        let pods = self.nodes[node].pods.iter();
        pods.filter_map(|uid| self.pods.get(uid))
            .any(|pod| pod.is_terminating && pod.needs.priority < priority)
    }

    /// Finds out which pods a node has to lose, as few and as unimportant ones as possible. Leaves everything as it was.
    fn try_without(&mut self, pod: &PodInfo, node: usize) -> Result<Candidate, Vec<Reason>> {
        let has_lower = self.nodes[node]
            .priorities
            .first_key_value()
            .is_some_and(|(lowest, _)| *lowest < pod.needs.priority);
        if !has_lower {
            return Err(vec![NO_VICTIMS.into()]);
        }
        let mut lower: Vec<String> = self.nodes[node]
            .pods
            .iter()
            .filter(|uid| {
                self.pods
                    .get(uid)
                    .is_some_and(|other| other.needs.priority < pod.needs.priority)
            })
            .map(|uid| uid.to_string())
            .collect();
        lower.sort();
        let mut out: Vec<(String, Counted)> = lower
            .into_iter()
            .filter_map(|uid| self.count_out(&uid).map(|pod| (uid, pod)))
            .collect();
        // The most important first: they are the first to be let back.
        out.sort_by_key(|(_, pod)| {
            let started = pod.started.unwrap_or(Timestamp::MAX);
            (Reverse(pod.needs.priority), started)
        });
        let verdict = self.verdict_on(pod, node);
        let refusal = match verdict {
            Verdict::Takes => None,
            Verdict::FullBy(reasons) | Verdict::Refuses(reasons) => Some(reasons),
        };
        if let Some(reasons) = refusal {
            for (uid, pod) in out {
                self.count_in(&uid, pod);
            }
            return Err(reasons);
        }
        let (violating, others) = self.by_budget(out);
        let mut candidate = Candidate {
            node,
            violations: 0,
            victims: Vec::new(),
        };
        for (is_violation, (uid, victim)) in (violating.into_iter().map(|pod| (true, pod)))
            .chain(others.into_iter().map(|pod| (false, pod)))
        {
            self.count_in(&uid, victim.clone());
            if self.verdict_on(pod, node) != Verdict::Takes {
                self.count_out(&uid);
                candidate.violations += usize::from(is_violation);
                candidate.victims.push((uid, victim));
            }
        }
        for (uid, pod) in &candidate.victims {
            self.count_in(uid, pod.clone());
        }
        Ok(candidate)
    }

    /// Pods whose going would break a budget, and the others.
    #[expect(clippy::type_complexity, reason = "two lists of one kind")]
    fn by_budget(
        &self,
        pods: Vec<(String, Counted)>,
    ) -> (Vec<(String, Counted)>, Vec<(String, Counted)>) {
        let mut allowed: Vec<(&Key, &Budget, i32)> = self
            .budgets
            .iter()
            .map(|(key, budget)| (key, budget, budget.allowed))
            .collect();
        pods.into_iter().partition(|(_, pod)| {
            let mut is_violation = false;
            for (key, budget, left) in &mut allowed {
                if key.namespace == pod.needs.namespace
                    && budget.selector.matches_labels(&pod.needs.labels)
                    && !budget.disrupted.contains(&pod.name)
                {
                    *left -= 1;
                    is_violation |= *left < 0;
                }
            }
            is_violation
        })
    }
}

#[cfg(test)]
mod tests;

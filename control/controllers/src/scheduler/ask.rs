//! What a pod asks of nodes, looked up once before they are asked. Pure.

use std::collections::HashMap;

use super::{
    claims::{Step, Wanted},
    counts::Tally,
    filter::{Verdict, is_selected, untolerated},
    node::NodeInfo,
    pod::PodInfo,
    state::State,
    term::Constraint,
};

/// A pod that looks for a node.
pub(crate) struct Ask<'a> {
    pub(crate) pod: &'a PodInfo,
    state: &'a State,
    /// The handler that its RuntimeClass names.
    pub(crate) handler: Option<&'a str>,
    pub(crate) wanted: Wanted<'a>,
    /// Terms, by their ids in [`State::counts`].
    affinity: Vec<usize>,
    /// There is no pod of the kind that the affinity asks for, and this one is of that kind: it may be the first.
    is_first: bool,
    anti_affinity: Vec<usize>,
    preferred: Vec<(i64, usize)>,
    /// Terms that mean this pod and that others are kept apart from or drawn to.
    repelled: Vec<usize>,
    draws: Vec<usize>,
    spread: Vec<Spread<'a>>,
}

/// A topology spread constraint with the pods that are there.
struct Spread<'a> {
    topology_key: &'a str,
    there: There<'a>,
    /// How many domains there are.
    domains: usize,
    fewest: i64,
    /// The pod itself counts.
    own: i64,
    skew_max: i64,
    is_required: bool,
}

/// Pods that a constraint means, by domain.
enum There<'a> {
    /// All that there are.
    All(&'a Tally),
    /// Those of the nodes that count.
    Some(HashMap<&'a str, i64>),
}

impl Spread<'_> {
    fn of_domain(&self, domain: &str) -> i64 {
        match &self.there {
            There::All(tally) => tally.of_domain(domain),
            There::Some(counts) => counts.get(domain).copied().unwrap_or(0),
        }
    }
}

impl<'a> Ask<'a> {
    /// Looks up what a pod asks for. Its terms have to be registered.
    ///
    /// # Errors
    /// No node can take it; the text is for the pod's condition.
    pub(crate) fn new(pod: &'a PodInfo, state: &'a State) -> Result<Self, String> {
        let needs = &*pod.needs;
        let counts = &state.counts;
        let mut ask = Self {
            pod,
            state,
            handler: needs
                .runtime_class
                .as_ref()
                .and_then(|class| state.handlers.get(class))
                .map(String::as_str),
            wanted: state.claims.wanted(pod)?,
            affinity: Vec::new(),
            is_first: false,
            anti_affinity: Vec::new(),
            preferred: Vec::new(),
            repelled: Vec::new(),
            draws: Vec::new(),
            spread: Vec::new(),
        };
        let meant = counts.that_mean(needs);
        for id in &meant {
            let Some(entry) = counts.entry(*id) else {
                continue;
            };
            if !entry.repelled.is_empty() {
                ask.repelled.push(*id);
            }
            if !entry.draw.is_empty() {
                ask.draws.push(*id);
            }
        }
        if let Some(between) = &needs.between {
            ask.affinity = (between.affinity.iter())
                .filter_map(|term| counts.id(term))
                .collect();
            ask.anti_affinity = (between.anti_affinity.iter())
                .filter_map(|term| counts.id(term))
                .collect();
            ask.preferred = (between.preferred.iter())
                .filter_map(|(weight, term)| Some((*weight, counts.id(term)?)))
                .collect();
            ask.is_first = ask.affinity.iter().all(|id| {
                let entry = counts.entry(*id);
                meant.contains(id) && entry.is_some_and(|entry| entry.meant.is_empty())
            });
        }
        ask.spread = ask.spreads(&meant);
        Ok(ask)
    }

    fn spreads(&self, meant: &[usize]) -> Vec<Spread<'a>> {
        let (needs, counts) = (&*self.pod.needs, &self.state.counts);
        let mut spreads = Vec::new();
        for constraint in &needs.spread {
            let Some(id) = counts.id(&constraint.term) else {
                continue;
            };
            let Some(entry) = counts.entry(id) else {
                continue;
            };
            // A node without all the keys that matter is no part of any domain.
            let others = self.pod.needs.spread.iter();
            let keys: Vec<&str> = others
                .filter(|other| other.is_required == constraint.is_required)
                .map(|other| other.term.topology_key.as_str())
                .collect();
            let topology_key = &entry.term.topology_key;
            let chooses_nodes = constraint.honors_taints
                || constraint.honors_affinity
                    && (needs.affinity.is_some() || !needs.node_selector.is_empty());
            let domains = counts
                .domains(topology_key, &keys)
                .filter(|_| !chooses_nodes);
            let (there, domains, fewest) = match domains {
                Some(domains) => (
                    There::All(&entry.meant),
                    domains,
                    entry.meant.fewest(domains),
                ),
                None => {
                    let counts = self.counts_of_some(constraint, &entry.meant, &keys);
                    let fewest = counts.values().copied().min().unwrap_or(0);
                    let domains = counts.len();
                    (There::Some(counts), domains, fewest)
                }
            };
            let has_enough = domains >= constraint.domains_min;
            let spread = Spread {
                topology_key,
                there,
                domains,
                fewest: if has_enough { fewest } else { 0 },
                own: i64::from(meant.contains(&id)),
                skew_max: constraint.skew_max,
                is_required: constraint.is_required,
            };
            spreads.push(spread);
        }
        spreads
    }

    /// Pods by domain, when not all nodes count.
    fn counts_of_some(
        &self,
        constraint: &Constraint,
        meant: &Tally,
        keys: &[&str],
    ) -> HashMap<&'a str, i64> {
        let needs = &*self.pod.needs;
        let state: &'a State = self.state;
        let mut counts: HashMap<&'a str, i64> = HashMap::new();
        for (index, node) in state.nodes.iter().enumerate() {
            let Some(offer) = &node.offer else { continue };
            let counts_here = keys.iter().all(|key| offer.labels.contains_key(*key))
                && (!constraint.honors_affinity || is_selected(needs, node, offer))
                && (!constraint.honors_taints || untolerated(offer, &needs.tolerations).is_none());
            if counts_here && let Some(domain) = offer.labels.get(&constraint.term.topology_key) {
                *counts.entry(domain.as_str()).or_default() += meant.of_node(index);
            }
        }
        counts
    }

    /// What has to be written before the pod is bound to a node.
    ///
    /// # Errors
    /// The node cannot have the pod's claims.
    pub(crate) fn steps(&self, node: &NodeInfo) -> Result<Vec<Step>, &'static str> {
        if self.pod.needs.claims.is_empty() {
            return Ok(Vec::new());
        }
        self.state.claims.steps(&self.wanted, node)
    }

    /// Whether other pods let this one onto a node.
    pub(crate) fn between(&self, node: &NodeInfo) -> Verdict {
        let full_by = |reason: &'static str| Verdict::FullBy(vec![reason.into()]);
        for spread in self.spread.iter().filter(|spread| spread.is_required) {
            let Some(domain) = node.label(spread.topology_key) else {
                return Verdict::Refuses(vec![
                    "node(s) didn't match pod topology spread constraints (missing required label)"
                        .into(),
                ]);
            };
            let here = spread.of_domain(domain);
            if here + spread.own - spread.fewest > spread.skew_max {
                return full_by("node(s) didn't match pod topology spread constraints");
            }
        }
        let counts = &self.state.counts;
        let finds = |id: &usize| {
            counts.entry(*id).is_some_and(|entry| {
                node.label(&entry.term.topology_key)
                    .is_some_and(|domain| entry.meant.of_domain(domain) > 0)
            })
        };
        let has_keys = || {
            self.affinity.iter().all(|id| {
                counts
                    .entry(*id)
                    .is_some_and(|entry| node.label(&entry.term.topology_key).is_some())
            })
        };
        let is_near = self.affinity.iter().all(finds) || self.is_first && has_keys();
        if !is_near {
            return Verdict::Refuses(vec!["node(s) didn't match pod affinity rules".into()]);
        }
        if self.anti_affinity.iter().any(finds) {
            return full_by("node(s) didn't match pod anti-affinity rules");
        }
        let is_repelled = self.repelled.iter().any(|id| {
            counts.entry(*id).is_some_and(|entry| {
                node.label(&entry.term.topology_key)
                    .is_some_and(|domain| entry.repelled.of_domain(domain) > 0)
            })
        });
        if is_repelled {
            return full_by("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        Verdict::Takes
    }

    /// What other pods are worth on a node, by preferences of theirs and of this one.
    pub(crate) fn drawn(&self, node: &NodeInfo) -> i64 {
        let counts = &self.state.counts;
        let domain = |id: usize| {
            let entry = counts.entry(id)?;
            Some((entry, node.label(&entry.term.topology_key)?))
        };
        let own = self.preferred.iter().filter_map(|(weight, id)| {
            let (entry, domain) = domain(*id)?;
            Some(weight * entry.meant.of_domain(domain))
        });
        let theirs = self.draws.iter().filter_map(|id| {
            let (entry, domain) = domain(*id)?;
            Some(entry.draw.of_domain(domain))
        });
        own.sum::<i64>() + theirs.sum::<i64>()
    }

    /// Whether anything is to be said by [`Self::drawn`].
    pub(crate) fn is_drawn(&self) -> bool {
        !self.preferred.is_empty() || !self.draws.is_empty()
    }

    /// How crowded a node's domains are with pods that this one is to be spread among; `None` where it has none.
    pub(crate) fn crowd(&self, node: &NodeInfo) -> Option<f64> {
        let mut crowd = 0.0;
        for spread in self.spread.iter().filter(|spread| !spread.is_required) {
            let domain = node.label(spread.topology_key)?;
            let here = spread.of_domain(domain) as f64;
            // Many domains make for small numbers in each: they weigh more.
            let weight = ((spread.domains + 2) as f64).ln();
            crowd += here * weight + (spread.skew_max - 1) as f64;
        }
        Some(crowd)
    }

    /// Whether anything is to be said by [`Self::crowd`].
    pub(crate) fn is_spread(&self) -> bool {
        self.spread.iter().any(|spread| !spread.is_required)
    }
}

#[cfg(test)]
mod tests;

//! What a pod says of other pods: affinity, anti-affinity and spreading, read into one form. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{PodAffinityTerm, PodSpec, TopologySpreadConstraint},
    apimachinery::pkg::apis::meta::v1 as meta,
};
use wherry_api::selector::LabelSelector;

use crate::pods;

/// How much an existing pod's required affinity draws further pods to it
/// (`InterPodAffinityArgs.hardPodAffinityWeight`).
const REQUIRED_AFFINITY_WEIGHT: i64 = 1;

type Labels = BTreeMap<String, String>;

/// Some pods, counted by the value that their nodes' label `topology_key` has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Term {
    pub(crate) topology_key: String,
    /// Pods that all of these mean.
    pub(crate) scopes: Vec<Scope>,
    /// Whether pods that are being deleted count as well.
    pub(crate) counts_terminating: bool,
}

/// Some pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub(crate) namespaces: BTreeSet<String>,
    /// Further namespaces, by their labels.
    pub(crate) namespace_selector: Option<LabelSelector>,
    pub(crate) selector: LabelSelector,
}

impl Scope {
    /// Whether a pod is meant. `namespace_labels` are those of the pod's namespace.
    pub(crate) fn holds(
        &self,
        namespace: &str,
        labels: &Labels,
        namespace_labels: Option<&Labels>,
    ) -> bool {
        let is_in = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.matches_labels(namespace_labels.unwrap_or(&Labels::new()))
            });
        is_in && self.selector.matches_labels(labels)
    }
}

/// A pod's affinity to other pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Between {
    /// Each must find a pod in the node's domain.
    pub(crate) affinity: Vec<Arc<Term>>,
    /// None may find one there.
    pub(crate) anti_affinity: Vec<Arc<Term>>,
    /// What others are worth in the node's domain to this pod.
    pub(crate) preferred: Vec<(i64, Arc<Term>)>,
    /// What others that are meant are worth there once this pod is there: the preferences, and what it requires.
    pub(crate) draws: Vec<(i64, Arc<Term>)>,
}

/// One of a pod's topology spread constraints.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Constraint {
    pub(crate) term: Arc<Term>,
    pub(crate) skew_max: i64,
    /// `whenUnsatisfiable: DoNotSchedule`.
    pub(crate) is_required: bool,
    pub(crate) domains_min: usize,
    /// Nodes that the pod's selector and affinity leave out do not count (`nodeAffinityPolicy: Honor`).
    pub(crate) honors_affinity: bool,
    /// Nodes whose taints the pod does not tolerate do not count (`nodeTaintsPolicy: Honor`).
    pub(crate) honors_taints: bool,
}

/// Reads a pod's affinity to other pods, if it has any.
pub(crate) fn between(spec: &PodSpec, namespace: &str, labels: &Labels) -> Option<Between> {
    let affinity = spec.affinity.as_ref()?;
    let (with, apart) = (
        affinity.pod_affinity.as_ref(),
        affinity.pod_anti_affinity.as_ref(),
    );
    if with.is_none() && apart.is_none() {
        return None;
    }
    let read = |term: &PodAffinityTerm| (term.topology_key.clone(), scope(term, namespace, labels));
    let single = |(topology_key, scope)| {
        Arc::new(Term {
            topology_key,
            scopes: vec![scope],
            counts_terminating: true,
        })
    };
    let required: Vec<_> = with
        .and_then(|with| {
            with.required_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .into_iter()
        .flatten()
        .map(read)
        .collect();
    // A pod satisfies one of several terms only if it is meant by all of them.
    let scopes: Vec<Scope> = required.iter().map(|(_, scope)| scope.clone()).collect();
    let mut between = Between {
        affinity: required
            .iter()
            .map(|(topology_key, _)| {
                Arc::new(Term {
                    topology_key: topology_key.clone(),
                    scopes: scopes.clone(),
                    counts_terminating: true,
                })
            })
            .collect(),
        draws: required
            .into_iter()
            .map(|term| (REQUIRED_AFFINITY_WEIGHT, single(term)))
            .collect(),
        ..Between::default()
    };
    let required = apart.and_then(|apart| {
        apart
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    between.anti_affinity = required
        .into_iter()
        .flatten()
        .map(|term| single(read(term)))
        .collect();
    let wanted = with.and_then(|with| {
        with.preferred_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let unwanted = apart.and_then(|apart| {
        apart
            .preferred_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let weighted = wanted.into_iter().flatten().map(|term| (1, term));
    let weighted = weighted.chain(unwanted.into_iter().flatten().map(|term| (-1, term)));
    between.preferred = weighted
        .map(|(sign, term)| {
            let weight = sign * i64::from(term.weight);
            (weight, single(read(&term.pod_affinity_term)))
        })
        .collect();
    between.draws.extend(between.preferred.iter().cloned());
    Some(between)
}

fn scope(term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> Scope {
    let named = term.namespaces.iter().flatten().cloned();
    let mut namespaces: BTreeSet<String> = named.collect();
    if namespaces.is_empty() && term.namespace_selector.is_none() {
        namespaces.insert(namespace.to_owned());
    }
    let keys = |keys: &Option<Vec<String>>| keys.clone().unwrap_or_default();
    Scope {
        namespaces,
        namespace_selector: term
            .namespace_selector
            .as_ref()
            .map(|selector| read_selector(selector, &[], &[], labels)),
        selector: term
            .label_selector
            .as_ref()
            .map_or_else(LabelSelector::nothing, |selector| {
                let (same, other) = (
                    keys(&term.match_label_keys),
                    keys(&term.mismatch_label_keys),
                );
                read_selector(selector, &same, &other, labels)
            }),
    }
}

/// A selector, together with the pod's own values of some labels, and without those of others. One that makes no
/// sense means nothing; the API server refuses those.
fn read_selector(
    selector: &meta::LabelSelector,
    same: &[String],
    other: &[String],
    labels: &Labels,
) -> LabelSelector {
    let of_pod = |keys: &[String], operator: &'static str| -> Vec<_> {
        let own = keys
            .iter()
            .filter_map(|key| Some((key.clone(), operator, vec![labels.get(key)?.clone()])));
        own.collect()
    };
    let further = of_pod(same, "In").into_iter().chain(of_pod(other, "NotIn"));
    pods::selector_with(selector, further)
}

/// Reads a pod's topology spread constraints.
pub(crate) fn constraints(spec: &PodSpec, namespace: &str, labels: &Labels) -> Vec<Constraint> {
    let read = |constraint: &TopologySpreadConstraint| {
        let same = constraint.match_label_keys.clone().unwrap_or_default();
        let selector = constraint
            .label_selector
            .as_ref()
            .map_or_else(LabelSelector::nothing, |selector| {
                read_selector(selector, &same, &[], labels)
            });
        let scope = Scope {
            namespaces: BTreeSet::from([namespace.to_owned()]),
            namespace_selector: None,
            selector,
        };
        Constraint {
            term: Arc::new(Term {
                topology_key: constraint.topology_key.clone(),
                scopes: vec![scope],
                counts_terminating: false,
            }),
            skew_max: i64::from(constraint.max_skew),
            is_required: constraint.when_unsatisfiable == "DoNotSchedule",
            domains_min: usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1),
            honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    };
    spec.topology_spread_constraints
        .iter()
        .flatten()
        .map(read)
        .collect()
}

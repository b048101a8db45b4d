//! Where a DaemonSet's pods have to be. Pure.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus},
        core::v1::{
            NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
            Taint, Toleration,
        },
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{
    deployment,
    nodes::NodeView,
    pod_control::Owner,
    pods::{Phase, PodView},
    revisions::HASH_LABEL,
    scheduler,
};

/// Taints that pods of DaemonSets live with, and for which effect.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");
/// The taint that stands for `spec.unschedulable`.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// How long a pod that failed stays, so that one that always fails is not made in a circle.
const FAILED_SECONDS: i64 = 10;
/// Pods made or deleted at once (`BurstReplicas`).
const BURST: usize = 250;

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes that need a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<PodView>>,
    /// Pods that ended although they are to run for ever.
    pub(super) ended: Vec<Arc<PodView>>,
    pub(super) status: DaemonSetStatus,
    pub(super) again_seconds: Option<i64>,
}

/// A node's share.
#[derive(Default)]
struct Share {
    should_run: bool,
    may_stay: bool,
    pods: Vec<Arc<PodView>>,
}

/// Tolerations of the pods: the template's and those of every DaemonSet.
fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let host = spec.host_network.unwrap_or(false);
    let network = host.then_some(NETWORK_UNAVAILABLE);
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

/// Whether a node is to have a pod, and whether one that is there may stay.
fn fits(spec: &PodSpec, tolerations: &[Toleration], node: &NodeView) -> (bool, bool) {
    let name = &node.key.name;
    if spec.node_name.as_ref().is_some_and(|wanted| wanted != name) {
        return (false, false);
    }
    let selector = spec.node_selector.iter().flatten();
    let is_selected = selector
        .into_iter()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let required = spec.affinity.as_ref().and_then(|affinity| {
        let affinity = affinity.node_affinity.as_ref()?;
        affinity
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let is_meant = required.is_none_or(|required| {
        let terms = &required.node_selector_terms;
        terms
            .iter()
            .any(|term| scheduler::matches_term(term, name, &node.labels))
    });
    if !is_selected || !is_meant {
        return (false, false);
    }
    let keeps_out = |effect: &str| {
        let mut of_effect = node.taints.iter().filter(|taint| taint.effect == effect);
        of_effect.any(|taint| !scheduler::is_tolerated(taint, tolerations))
    };
    let cordon = Taint {
        key: UNSCHEDULABLE.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let is_cordoned = node.is_unschedulable && !scheduler::is_tolerated(&cordon, tolerations);
    let may_stay = !keeps_out("NoExecute");
    (
        may_stay && !keeps_out("NoSchedule") && !is_cordoned,
        may_stay,
    )
}

/// Where a pod is, or is to be.
fn node_of(pod: &PodView) -> &str {
    if pod.node.is_empty() {
        &pod.pinned
    } else {
        &pod.node
    }
}

/// Decides. `hash` is that of the present template.
pub(super) fn plan(
    set: &DaemonSet,
    nodes: &[Arc<NodeView>],
    pods: &[Arc<PodView>],
    hash: &str,
    now: Timestamp,
) -> Plan {
    let spec = set.spec.clone().unwrap_or_default();
    let pod_spec = spec.template.spec.clone().unwrap_or_default();
    let tolerations = tolerations(&pod_spec);
    let mut shares: BTreeMap<String, Share> = BTreeMap::new();
    for node in nodes {
        let (should_run, may_stay) = fits(&pod_spec, &tolerations, node);
        let share = Share {
            should_run,
            may_stay,
            pods: Vec::new(),
        };
        shares.insert(node.key.name.clone(), share);
    }
    for pod in pods {
        // What is being deleted and has ended is only waiting to be gone.
        if pod.deleted.is_some() && pod.is_finished() {
            continue;
        }
        shares
            .entry(node_of(pod).to_owned())
            .or_default()
            .pods
            .push(pod.clone());
    }
    for share in shares.values_mut() {
        share
            .pods
            .sort_by_key(|pod| (pod.created, pod.key.name.clone()));
    }
    let mut plan = Plan::default();
    let rules = Rules::new(&spec, &shares, hash, now);
    for (node, share) in &shares {
        place(node, share, &rules, &mut plan);
    }
    rules.roll(&shares, &mut plan);
    plan.create.truncate(BURST);
    plan.delete.truncate(BURST);
    plan.status = status(set, &shares, &rules);
    plan
}

/// What of the spec decides about pods.
struct Rules<'a> {
    hash: &'a str,
    now: Timestamp,
    min_ready_seconds: i32,
    is_rolling: bool,
    max_unavailable: usize,
    max_surge: usize,
}

impl<'a> Rules<'a> {
    fn new(
        spec: &DaemonSetSpec,
        shares: &BTreeMap<String, Share>,
        hash: &'a str,
        now: Timestamp,
    ) -> Self {
        let strategy = spec.update_strategy.clone().unwrap_or_default();
        let desired = shares.values().filter(|share| share.should_run).count();
        let rolling = strategy.rolling_update.unwrap_or_default();
        let amount = |value: Option<IntOrString>, otherwise: i32| {
            let value = value.unwrap_or(IntOrString::Int(otherwise));
            let desired = i32::try_from(desired).unwrap_or(i32::MAX);
            usize::try_from(deployment::number(&value, desired, true)).unwrap_or(0)
        };
        let max_surge = amount(rolling.max_surge, 0);
        let mut max_unavailable = amount(rolling.max_unavailable, i32::from(max_surge == 0));
        if max_surge == 0 {
            max_unavailable = max_unavailable.max(1);
        }
        Self {
            hash,
            now,
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            is_rolling: strategy.type_.as_deref() != Some("OnDelete"),
            max_unavailable,
            max_surge,
        }
    }

    fn is_new(&self, pod: &PodView) -> bool {
        pod.labels
            .get(HASH_LABEL)
            .is_some_and(|hash| hash == self.hash)
    }

    fn is_available(&self, pod: &PodView) -> bool {
        pod.deleted.is_none() && pod.is_available(self.min_ready_seconds, self.now)
    }

    /// The next steps towards the present template.
    fn roll(&self, shares: &BTreeMap<String, Share>, plan: &mut Plan) {
        if !self.is_rolling {
            return;
        }
        let gone: HashSet<String> = plan.delete.iter().map(|pod| pod.uid.clone()).collect();
        let (mut unavailable, mut surging) = (0, 0);
        let (mut broken, mut candidates) = (Vec::new(), Vec::new());
        let (mut grow, mut may_grow) = (Vec::new(), Vec::new());
        for (node, share) in shares.iter().filter(|(_, share)| share.should_run) {
            let there = share
                .pods
                .iter()
                .filter(|pod| !gone.contains(&pod.uid) && !pod.is_finished());
            let (new, old): (Vec<_>, Vec<_>) = there.partition(|pod| self.is_new(pod));
            match (new.first(), old.first()) {
                (None, Some(old)) if old.deleted.is_none() => {
                    if !self.is_available(old) {
                        unavailable += 1;
                        broken.push((*old).clone());
                        grow.push(node.clone());
                    } else {
                        candidates.push((*old).clone());
                        may_grow.push(node.clone());
                    }
                }
                (Some(new), Some(old)) if self.max_surge > 0 => {
                    if self.is_available(new) {
                        plan.delete.push((*old).clone());
                    } else {
                        surging += 1;
                    }
                }
                (Some(new), None) if self.is_available(new) => {}
                _ => unavailable += 1,
            }
        }
        if self.max_surge > 0 {
            let room = self.max_surge.saturating_sub(surging);
            plan.create.extend(grow);
            plan.create.extend(may_grow.into_iter().take(room));
            return;
        }
        let room = self.max_unavailable.saturating_sub(unavailable);
        plan.delete.extend(broken);
        plan.delete.extend(candidates.into_iter().take(room));
    }
}

/// One pod where one has to be, and none elsewhere.
fn place(node: &str, share: &Share, rules: &Rules<'_>, plan: &mut Plan) {
    if !share.may_stay {
        let live = share.pods.iter().filter(|pod| pod.deleted.is_none());
        plan.delete.extend(live.cloned());
        return;
    }
    if share.pods.is_empty() {
        if share.should_run {
            plan.create.push(node.to_owned());
        }
        return;
    }
    let mut running = Vec::new();
    for pod in share.pods.iter().filter(|pod| pod.deleted.is_none()) {
        if !pod.is_finished() {
            running.push(pod);
            continue;
        }
        let since = pod.finished.unwrap_or(pod.created).as_second();
        let left = since + FAILED_SECONDS - rules.now.as_second();
        if pod.phase == Phase::Failed && left > 0 {
            let again = plan.again_seconds.map_or(left, |known| known.min(left));
            plan.again_seconds = Some(again);
        } else {
            plan.ended.push(pod.clone());
            plan.delete.push(pod.clone());
        }
    }
    // While one is replaced there may be two of them, an old one and a new one.
    let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| rules.is_new(pod));
    if rules.max_surge > 0 && rules.is_rolling {
        plan.delete.extend(new.into_iter().skip(1).cloned());
        plan.delete.extend(old.into_iter().skip(1).cloned());
    } else {
        let mut all: Vec<_> = new.into_iter().chain(old).collect();
        all.sort_by_key(|pod| (!pod.is_ready(), pod.created));
        plan.delete.extend(all.into_iter().skip(1).cloned());
    }
}

fn status(set: &DaemonSet, shares: &BTreeMap<String, Share>, rules: &Rules<'_>) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        collision_count: set
            .status
            .as_ref()
            .and_then(|status| status.collision_count),
        conditions: set
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone()),
        observed_generation: set.metadata.generation,
        ..DaemonSetStatus::default()
    };
    let (mut available, mut updated) = (0, 0);
    for share in shares.values() {
        if !share.should_run {
            status.number_misscheduled += i32::from(!share.pods.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        if share.pods.is_empty() {
            continue;
        }
        status.current_number_scheduled += 1;
        let live = || share.pods.iter().filter(|pod| pod.deleted.is_none());
        status.number_ready += i32::from(live().any(|pod| pod.is_ready()));
        available += i32::from(live().any(|pod| rules.is_available(pod)));
        updated += i32::from(live().any(|pod| rules.is_new(pod)));
    }
    let shown = |count: i32| (count > 0).then_some(count);
    status.number_available = shown(available);
    status.number_unavailable = shown(status.desired_number_scheduled - available);
    status.updated_number_scheduled = shown(updated);
    status
}

/// The pod for a node.
pub(super) fn new_pod(owner: &Owner, set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let template = set.spec.clone().unwrap_or_default().template;
    let mut pod = owner.pod(&template, None);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    // Which nodes the template means has been asked already.
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.to_owned()]),
            }]),
        }],
    });
    pod
}

//! Which of a StatefulSet's pods come, go or wait. Pure.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetStatus},
    core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume},
};

use crate::{
    deployment::number,
    pod_control::Owner,
    pods::{Phase, PodView},
    revisions::HASH_LABEL,
};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Ordinals that get a pod, and whether it is of the version before the present one.
    pub(super) create: Vec<(i32, bool)>,
    pub(super) delete: Vec<Arc<PodView>>,
    pub(super) status: StatefulSetStatus,
    pub(super) again_seconds: Option<i64>,
}

/// The number of a pod that has a name as those of a set have.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let number = pod.strip_prefix(set)?.strip_prefix('-')?;
    let ordinal: i32 = number.parse().ok()?;
    (ordinal >= 0 && ordinal.to_string() == number).then_some(ordinal)
}

/// The set, as far as it decides.
struct Rules<'a> {
    ordinals: std::ops::Range<i32>,
    is_ordered: bool,
    is_rolling: bool,
    /// Ordinals from this on are of the present version.
    partition: i32,
    /// How many may be unavailable while the version changes; `None`: each waits for those after it.
    unavailable_max: Option<usize>,
    min_ready_seconds: i32,
    current: &'a str,
    update: &'a str,
    now: Timestamp,
}

impl Rules<'_> {
    fn is_available(&self, pod: &PodView) -> bool {
        pod.deleted.is_none() && pod.is_available(self.min_ready_seconds, self.now)
    }
}

fn is_healthy(pod: &PodView) -> bool {
    pod.deleted.is_none() && pod.phase == Phase::Running && pod.is_ready()
}

fn is_of(pod: &PodView, revision: &str) -> bool {
    pod.labels
        .get(HASH_LABEL)
        .is_some_and(|hash| hash == revision)
}

/// The ordinals that are wanted.
pub(super) fn ordinals(set: &StatefulSet) -> std::ops::Range<i32> {
    let spec = set.spec.as_ref();
    let ordinals = spec.and_then(|spec| spec.ordinals.as_ref());
    let start = ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0);
    start..start + spec.and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Decides. The versions are named by the names of their ControllerRevisions.
pub(super) fn plan(
    set: &StatefulSet,
    pods: &[Arc<PodView>],
    current: &str,
    update: &str,
    now: Timestamp,
) -> Plan {
    let spec = set.spec.clone().unwrap_or_default();
    let strategy = spec.update_strategy.unwrap_or_default();
    let rolling = strategy.rolling_update.unwrap_or_default();
    let ordinals = ordinals(set);
    let start = ordinals.start;
    let unavailable_max = rolling.max_unavailable.map(|max| {
        let max = number(&max, spec.replicas.unwrap_or(1), false);
        usize::try_from(max).unwrap_or(0).max(1)
    });
    let rules = Rules {
        ordinals,
        is_ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
        is_rolling: strategy.type_.as_deref() != Some("OnDelete"),
        partition: start + rolling.partition.unwrap_or(0),
        unavailable_max,
        min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
        current,
        update,
        now,
    };
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let by_ordinal: BTreeMap<i32, Arc<PodView>> = pods
        .iter()
        .filter_map(|pod| Some((ordinal(name, &pod.key.name)?, pod.clone())))
        .collect();
    let mut plan = Plan::default();
    if grow(&rules, &by_ordinal, &mut plan) && shrink(&rules, &by_ordinal, &mut plan) {
        roll(&rules, &by_ordinal, &mut plan);
    }
    plan.status = status(set, &rules, &by_ordinal);
    plan
}

/// Pods that are to be there, from the first on. Answers whether nothing has to be waited for.
fn grow(rules: &Rules<'_>, pods: &BTreeMap<i32, Arc<PodView>>, plan: &mut Plan) -> bool {
    for ordinal in rules.ordinals.clone() {
        let is_old = rules.is_rolling && ordinal < rules.partition;
        let is_settled = match pods.get(&ordinal) {
            None => {
                plan.create.push((ordinal, is_old));
                false
            }
            Some(pod) if pod.deleted.is_some() => false,
            Some(pod) if pod.is_finished() => {
                plan.delete.push(pod.clone());
                false
            }
            Some(pod) if is_healthy(pod) && !rules.is_available(pod) => {
                plan.again_seconds = Some(rules.min_ready_seconds.into());
                false
            }
            Some(pod) => is_healthy(pod),
        };
        if !is_settled && rules.is_ordered {
            return false;
        }
    }
    true
}

/// Pods that are not to be there, from the last on.
fn shrink(rules: &Rules<'_>, pods: &BTreeMap<i32, Arc<PodView>>, plan: &mut Plan) -> bool {
    let surplus = pods
        .iter()
        .rev()
        .filter(|(ordinal, _)| !rules.ordinals.contains(ordinal));
    for (_, pod) in surplus {
        if pod.deleted.is_none() {
            plan.delete.push(pod.clone());
        }
        if rules.is_ordered {
            return false;
        }
    }
    true
}

/// The next old pod gives way, from the last on, once those after it are healthy.
fn roll(rules: &Rules<'_>, pods: &BTreeMap<i32, Arc<PodView>>, plan: &mut Plan) {
    if !rules.is_rolling {
        return;
    }
    if let Some(max) = rules.unavailable_max {
        return roll_several(rules, pods, plan, max);
    }
    for ordinal in rules.ordinals.clone().rev() {
        if ordinal < rules.partition {
            return;
        }
        let Some(pod) = pods.get(&ordinal) else {
            return;
        };
        if !is_of(pod, rules.update) && pod.deleted.is_none() {
            if !pod.is_finished() {
                plan.delete.push(pod.clone());
            }
            return;
        }
        if !is_healthy(pod) || !rules.is_available(pod) {
            return;
        }
    }
}

/// As many old pods give way as may be unavailable, from the last on. What is unavailable already counts.
fn roll_several(
    rules: &Rules<'_>,
    pods: &BTreeMap<i32, Arc<PodView>>,
    plan: &mut Plan,
    max: usize,
) {
    let is_there = |ordinal: &i32| {
        pods.get(ordinal)
            .is_some_and(|pod| is_healthy(pod) && rules.is_available(pod))
    };
    let unavailable = rules.ordinals.clone().filter(|ordinal| !is_there(ordinal));
    let mut left = max.saturating_sub(unavailable.count());
    for ordinal in rules.ordinals.clone().rev() {
        if ordinal < rules.partition {
            return;
        }
        let Some(pod) = pods.get(&ordinal) else {
            continue;
        };
        let is_old = !is_of(pod, rules.update) && pod.deleted.is_none() && !pod.is_finished();
        if !is_old {
            continue;
        }
        // One that is unavailable anyway takes nothing from the others.
        if !is_there(&ordinal) {
            plan.delete.push(pod.clone());
        } else if left > 0 {
            left -= 1;
            plan.delete.push(pod.clone());
        }
    }
}

fn status(
    set: &StatefulSet,
    rules: &Rules<'_>,
    pods: &BTreeMap<i32, Arc<PodView>>,
) -> StatefulSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let count = |holds: &dyn Fn(&PodView) -> bool| {
        let count = pods.values().filter(|pod| holds(pod)).count();
        i32::try_from(count).unwrap_or(i32::MAX)
    };
    let live = |pod: &PodView| pod.deleted.is_none();
    let mut status = StatefulSetStatus {
        replicas: count(&|_| true),
        ready_replicas: Some(count(&|pod| pod.phase == Phase::Running && pod.is_ready())),
        available_replicas: Some(count(&|pod| rules.is_available(pod))),
        current_replicas: Some(count(&|pod| live(pod) && is_of(pod, rules.current))),
        updated_replicas: Some(count(&|pod| live(pod) && is_of(pod, rules.update))),
        current_revision: Some(rules.current.to_owned()),
        update_revision: Some(rules.update.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: old.collision_count.or(Some(0)),
        conditions: old.conditions,
    };
    let all = Some(status.replicas);
    let wanted = i32::try_from(rules.ordinals.len()).unwrap_or(i32::MAX);
    let is_rolled = rules.is_rolling
        && status.replicas == wanted
        && status.updated_replicas == all
        && status.ready_replicas == all;
    if is_rolled {
        status.current_revision.clone_from(&status.update_revision);
        status.current_replicas = status.updated_replicas;
    }
    status
}

/// A claim's name: the template's, and the pod's.
pub(super) fn claim_name(template: &str, pod: &str) -> String {
    format!("{template}-{pod}")
}

/// The pod of an ordinal, of a version.
pub(super) fn new_pod(
    owner: &Owner,
    set: &StatefulSet,
    template: &PodTemplateSpec,
    ordinal: i32,
    revision: &str,
) -> Pod {
    let spec = set.spec.clone().unwrap_or_default();
    let name = format!("{}-{ordinal}", owner.key.name);
    let mut pod = owner.pod(template, Some(name.clone()));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(HASH_LABEL.to_owned(), revision.to_owned());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.subdomain = spec.service_name.filter(|name| !name.is_empty());
    let volumes = pod_spec.volumes.get_or_insert_default();
    for claim in spec.volume_claim_templates.into_iter().flatten() {
        let volume = claim.metadata.name.unwrap_or_default();
        volumes.retain(|known| known.name != volume);
        volumes.push(Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(&volume, &name),
                read_only: None,
            }),
            name: volume,
            ..Volume::default()
        });
    }
    pod_spec.hostname = Some(name);
    pod
}

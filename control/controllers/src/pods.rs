//! Pods as controllers see them: a small part of each, for there may be many.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Affinity, Container, ContainerStatus, Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::{LabelSelector as Selector, OwnerReference},
};
use wherry_api::selector::LabelSelector;

use crate::{
    scheduler,
    shared::Shared,
    watched::{Group, Watched},
    workqueue::Key,
};

/// `controller.kubernetes.io/pod-deletion-cost`: pods with less go first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What the annotations begin with that a Job puts on its pods.
const JOB_ANNOTATIONS: &str = "batch.kubernetes.io/job-";

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Pending,
    Unknown,
    Running,
    Succeeded,
    Failed,
}

/// A port that a container names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedPort {
    pub(crate) name: String,
    pub(crate) number: i32,
    pub(crate) protocol: String,
}

/// What pods of one owner mostly have in common, conditions included, once they run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Alike {
    pub(crate) labels: BTreeMap<String, String>,
    /// Those that Jobs put on their pods: nobody here reads others, and they are long.
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) finalizers: Vec<String>,
    /// Who controls it, if anybody does.
    pub(crate) controller: Option<OwnerReference>,
    pub(crate) deletion_cost: i64,
    pub(crate) subdomain: String,
    pub(crate) ports: Vec<NamedPort>,
    /// Types of conditions that hold, such as `DisruptionTarget`.
    pub(crate) conditions: Vec<String>,
    /// Names of the PersistentVolumeClaims that it mounts, those that are made for it included.
    pub(crate) claims: Vec<String>,
    /// Some are made for it.
    pub(crate) has_ephemeral: bool,
}

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodView {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) alike: Arc<Alike>,
    pub(crate) created: Timestamp,
    pub(crate) deleted: Option<Timestamp>,
    pub(crate) phase: Phase,
    pub(crate) reason: String,
    /// Since when it is ready.
    pub(crate) ready_since: Option<Timestamp>,
    pub(crate) started: Option<Timestamp>,
    /// When its last container ended, if all have.
    pub(crate) finished: Option<Timestamp>,
    pub(crate) node: String,
    /// The one node that its affinity names, while it is on none yet.
    pub(crate) pinned: String,
    /// Restarts of all containers together.
    pub(crate) restarts: i32,
    pub(crate) ips: Vec<String>,
    pub(crate) hostname: String,
    /// Names and exit codes of containers that have ended.
    pub(crate) exits: Vec<(String, i32)>,
}

impl std::ops::Deref for PodView {
    type Target = Alike;

    fn deref(&self) -> &Alike {
        &self.alike
    }
}

/// Makes views of pods that keep once what they have in common.
pub(crate) fn views() -> impl FnMut(Pod) -> PodView + Send {
    let mut shared = Shared::default();
    move |pod| {
        let mut view = PodView::from(pod);
        let alike = view.alike.clone();
        let owner = alike.controller.as_ref().map(|owner| &owner.uid);
        let parts = (owner, &alike.labels, &alike.conditions);
        view.alike = shared.share(parts, alike.clone());
        view
    }
}

impl PodView {
    /// It has not ended and is not being deleted.
    pub(crate) fn is_active(&self) -> bool {
        self.deleted.is_none() && !self.is_finished()
    }

    /// It will not run again.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready_since.is_some()
    }

    /// It has been ready for so many seconds.
    pub(crate) fn is_available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        self.ready_since.is_some_and(|since| {
            now.as_second() - since.as_second() >= i64::from(min_ready_seconds)
        })
    }

    pub(crate) fn is_controlled_by(&self, uid: &str) -> bool {
        self.controller
            .as_ref()
            .is_some_and(|owner| owner.uid == uid)
    }

    /// Whether a selector chooses it.
    pub(crate) fn is_selected_by(&self, selector: &LabelSelector) -> bool {
        selector.matches_labels(&self.labels)
    }
}

/// Where [`Watched::of_group`] finds the pods of a controller, by its uid.
pub(crate) fn owned_by(uid: &str) -> Group {
    format!("uid {uid}")
}

/// How pods are grouped: by who controls them; those that nobody controls, by their namespace.
pub(crate) fn group(pod: &PodView) -> Group {
    match &pod.controller {
        Some(owner) => owned_by(&owner.uid),
        None => free_in(&pod.key.namespace),
    }
}

fn free_in(namespace: &str) -> Group {
    format!("namespace {namespace}")
}

/// Pods that are an owner's, and those that it may adopt, by their names. As much work as there are of these, however
/// many pods others have.
pub(crate) fn of_owner(pods: &Watched<PodView>, owner: &Key, uid: &str) -> Vec<Arc<PodView>> {
    let mut found = pods.of_group(&owned_by(uid));
    found.extend(pods.of_group(&free_in(&owner.namespace)));
    found.sort_by(|a, b| a.key.cmp(&b.key));
    found
}

/// Reads a selector; one that makes no sense chooses nothing.
pub(crate) fn selector(selector: &Selector) -> LabelSelector {
    selector_with(selector, [])
}

/// Reads a selector with further expressions: key, operator, values.
pub(crate) fn selector_with<'a>(
    selector: &'a Selector,
    further: impl IntoIterator<Item = (String, &'a str, Vec<String>)>,
) -> LabelSelector {
    let labels = selector.match_labels.iter().flatten();
    let labels = labels.map(|(key, value)| (key.clone(), value.clone()));
    let expressions = selector.match_expressions.iter().flatten();
    let expressions = expressions.map(|expression| {
        let values = expression.values.clone().unwrap_or_default();
        (expression.key.clone(), expression.operator.as_str(), values)
    });
    LabelSelector::from_parts(labels, expressions.chain(further))
        .unwrap_or_else(|_| LabelSelector::nothing())
}

/// Who controls an object.
pub(crate) fn controller(owners: Option<&Vec<OwnerReference>>) -> Option<&OwnerReference> {
    owners?.iter().find(|owner| owner.controller == Some(true))
}

impl From<Pod> for PodView {
    fn from(pod: Pod) -> Self {
        let Pod {
            metadata,
            spec,
            status,
        } = pod;
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        let conditions = status.conditions.unwrap_or_default();
        let annotations = metadata.annotations.unwrap_or_default();
        let statuses = status.container_statuses.unwrap_or_default();
        let claims = scheduler::claims_of(&spec, metadata.name.as_deref().unwrap_or_default());
        let ready_since = ready_since(&conditions);
        let alike = Alike {
            labels: metadata.labels.unwrap_or_default(),
            deletion_cost: annotations
                .get(DELETION_COST)
                .and_then(|cost| cost.parse().ok())
                .unwrap_or(0),
            annotations: annotations
                .into_iter()
                .filter(|(key, _)| key.starts_with(JOB_ANNOTATIONS))
                .collect(),
            finalizers: metadata.finalizers.unwrap_or_default(),
            controller: controller(metadata.owner_references.as_ref()).cloned(),
            subdomain: spec.subdomain.unwrap_or_default(),
            ports: spec.containers.iter().flat_map(ports).collect(),
            has_ephemeral: claims.iter().any(|claim| claim.is_ephemeral),
            claims: claims.into_iter().map(|claim| claim.name).collect(),
            conditions: conditions
                .into_iter()
                .filter(|condition| condition.status == "True")
                .map(|condition| condition.type_)
                .collect(),
        };
        Self {
            key: Key::new(
                metadata.namespace.unwrap_or_default(),
                metadata.name.unwrap_or_default(),
            ),
            uid: metadata.uid.unwrap_or_default(),
            alike: Arc::new(alike),
            created: metadata
                .creation_timestamp
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            deleted: metadata.deletion_timestamp.map(|time| time.0),
            phase: match status.phase.as_deref() {
                Some("Running") => Phase::Running,
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                Some("Unknown") => Phase::Unknown,
                _ => Phase::Pending,
            },
            reason: status.reason.unwrap_or_default(),
            ready_since,
            started: status.start_time.map(|time| time.0),
            finished: finished(&statuses),
            pinned: match (&spec.node_name, &spec.affinity) {
                (None, Some(affinity)) => pinned(affinity).unwrap_or_default(),
                _ => String::new(),
            },
            node: spec.node_name.unwrap_or_default(),
            restarts: statuses.iter().map(|status| status.restart_count).sum(),
            ips: match status.pod_ips {
                Some(ips) => ips.into_iter().map(|ip| ip.ip).collect(),
                None => status.pod_ip.into_iter().collect(),
            },
            hostname: spec.hostname.unwrap_or_default(),
            exits: statuses.iter().filter_map(exit).collect(),
        }
    }
}

fn ready_since(conditions: &[PodCondition]) -> Option<Timestamp> {
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    let since = ready.last_transition_time.as_ref();
    Some(since.map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

fn pinned(affinity: &Affinity) -> Option<String> {
    let required = affinity
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required
        .node_selector_terms
        .first()?
        .match_fields
        .as_ref()?;
    let field = fields
        .iter()
        .find(|field| field.key == "metadata.name" && field.operator == "In")?;
    field.values.as_ref()?.first().cloned()
}

fn finished(statuses: &[ContainerStatus]) -> Option<Timestamp> {
    let ended = statuses.iter().map(|status| {
        let ended = status.state.as_ref()?.terminated.as_ref()?;
        Some(ended.finished_at.as_ref()?.0)
    });
    ended.collect::<Option<Vec<_>>>()?.into_iter().max()
}

fn ports(container: &Container) -> impl Iterator<Item = NamedPort> + '_ {
    container.ports.iter().flatten().filter_map(|port| {
        Some(NamedPort {
            name: port.name.clone()?,
            number: port.container_port,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        })
    })
}

fn exit(status: &ContainerStatus) -> Option<(String, i32)> {
    let ended = status.state.as_ref()?.terminated.as_ref()?;
    Some((status.name.clone(), ended.exit_code))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_of_one_owner_keep_what_they_have_in_common_once() {
        let mut view = views();
        let mut pod = |name: &str, phase: &str, app: &str| {
            let ready = [
                json!({"type": "Ready", "status": if phase == "Running" { "True" } else { "False" }}),
            ];
            let pod = json!({
                "metadata": {"name": name, "labels": {"app": app}},
                "status": {"phase": phase, "conditions": ready},
            });
            view(serde_json::from_value(pod).unwrap())
        };
        let running = [pod("a", "Running", "web"), pod("b", "Running", "web")];
        let pending = [pod("c", "Pending", "web"), pod("d", "Pending", "web")];
        let other = pod("e", "Running", "db");
        for [a, b] in [&running, &pending] {
            assert!(Arc::ptr_eq(&a.alike, &b.alike));
        }
        assert!(Arc::ptr_eq(
            &running[0].alike,
            &pod("f", "Running", "web").alike
        ));
        assert!(!Arc::ptr_eq(&running[0].alike, &pending[0].alike));
        assert_eq!(other.labels["app"], "db");
        assert_eq!(
            (
                running[1].key.name.as_str(),
                running[1].labels["app"].as_str()
            ),
            ("b", "web")
        );
    }

    #[test]
    fn of_annotations_only_what_somebody_reads_is_kept() {
        let annotations = json!({
            "prometheus.io/scrape": "true",
            "kubectl.kubernetes.io/last-applied-configuration": "x".repeat(1_000),
            "batch.kubernetes.io/job-completion-index": "3",
            "batch.kubernetes.io/job-index-failure-count": "1",
            "controller.kubernetes.io/pod-deletion-cost": "-5",
        });
        let pod = json!({"metadata": {"name": "p", "annotations": annotations}});
        let view = PodView::from(serde_json::from_value::<Pod>(pod).unwrap());
        let kept: Vec<&String> = view.annotations.keys().collect();
        assert_eq!(
            kept,
            [
                "batch.kubernetes.io/job-completion-index",
                "batch.kubernetes.io/job-index-failure-count"
            ]
        );
        assert_eq!(view.deletion_cost, -5);
    }
}

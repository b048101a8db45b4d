//! Whether a node can take a pod, and in which words it cannot. Pure.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

use super::{
    node::{NodeInfo, Offer},
    pod::PodInfo,
};

/// The taint that stands for `spec.unschedulable`.
const TAINT_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Why nodes cannot take a pod, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rejections {
    reasons: BTreeMap<Cow<'static, str>, usize>,
    nodes: usize,
    /// Nodes that could take the pod if other pods went.
    nodes_by_pods: usize,
}

/// One node's answer.
enum Verdict {
    Takes,
    /// It could if other pods went.
    FullBy(Vec<Cow<'static, str>>),
    Refuses(Vec<Cow<'static, str>>),
}

impl Rejections {
    /// Whether a node can take a pod; if not, why is counted.
    pub(crate) fn check(&mut self, pod: &PodInfo, node: &NodeInfo) -> bool {
        let Some(offer) = &node.offer else {
            return false;
        };
        let reasons = match verdict(pod, node, offer) {
            Verdict::Takes => return true,
            Verdict::FullBy(reasons) => {
                self.nodes_by_pods += 1;
                reasons
            }
            Verdict::Refuses(reasons) => reasons,
        };
        self.nodes += 1;
        for reason in reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
        false
    }

    /// The message of the condition and the event, in Kubernetes' words.
    pub(crate) fn message(&self, pod: &PodInfo) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        let mut reasons: Vec<_> = self
            .reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        reasons.sort();
        let nodes = format!("0/{} nodes are available", self.nodes);
        let mut message = format!("{nodes}: {}.", reasons.join(", "));
        if !pod.needs.may_preempt {
            message.push_str(" preemption: not eligible due to preemptionPolicy=Never.");
            return message;
        }
        let mut why = Vec::new();
        if self.nodes_by_pods > 0 {
            why.push(format!(
                "{} No preemption victims found for incoming pod",
                self.nodes_by_pods
            ));
        }
        if self.nodes > self.nodes_by_pods {
            let count = self.nodes - self.nodes_by_pods;
            why.push(format!("{count} Preemption is not helpful for scheduling"));
        }
        why.sort();
        message.push_str(&format!(" preemption: {nodes}: {}.", why.join(", ")));
        message
    }
}

/// Asks in kube-scheduler's order; the first kind of refusal is the answer.
fn verdict(pod: &PodInfo, node: &NodeInfo, offer: &Offer) -> Verdict {
    let needs = &pod.needs;
    if offer.is_unschedulable {
        let taint = Taint {
            key: TAINT_UNSCHEDULABLE.into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        if !is_tolerated(&taint, &needs.tolerations) {
            return Verdict::Refuses(vec!["node(s) were unschedulable".into()]);
        }
    }
    if needs
        .node_name
        .as_ref()
        .is_some_and(|name| *name != node.name)
    {
        return Verdict::Refuses(vec!["node(s) didn't match the requested node name".into()]);
    }
    let keeps_out = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    if let Some(taint) = offer
        .taints
        .iter()
        .filter(keeps_out)
        .find(|taint| !is_tolerated(taint, &needs.tolerations))
    {
        let value = taint.value.as_deref().unwrap_or_default();
        return Verdict::Refuses(vec![
            format!("node(s) had untolerated taint {{{}: {value}}}", taint.key).into(),
        ]);
    }
    if !is_selected(pod, node, offer) {
        return Verdict::Refuses(vec![
            "node(s) didn't match Pod's node affinity/selector".into(),
        ]);
    }
    let ports = &needs.footprint.host_ports;
    if ports
        .iter()
        .any(|port| node.host_ports.iter().any(|taken| port.conflicts(taken)))
    {
        return Verdict::FullBy(vec![
            "node(s) didn't have free ports for the requested pod ports".into(),
        ]);
    }
    fits(pod, node, offer)
}

fn is_selected(pod: &PodInfo, node: &NodeInfo, offer: &Offer) -> bool {
    let needs = &pod.needs;
    needs
        .node_selector
        .iter()
        .all(|(key, value)| offer.labels.get(key) == Some(value))
        && needs.affinity.as_ref().is_none_or(|affinity| {
            affinity
                .node_selector_terms
                .iter()
                .any(|term| matches_term(term, &node.name, &offer.labels))
        })
}

fn fits(pod: &PodInfo, node: &NodeInfo, offer: &Offer) -> Verdict {
    let asked = &pod.needs.footprint.requests;
    let (has, taken) = (&offer.allocatable, &node.requested);
    let mut reasons: Vec<Cow<'static, str>> = Vec::new();
    let mut is_full_by_pods = true;
    let mut check = |asked: i64, has: i64, taken: i64, reason: &dyn Fn() -> Cow<'static, str>| {
        if asked > 0 && asked > has.saturating_sub(taken) {
            reasons.push(reason());
            is_full_by_pods &= asked <= has;
        }
    };
    check(asked.pods, has.pods, taken.pods, &|| "Too many pods".into());
    check(asked.cpu_millis, has.cpu_millis, taken.cpu_millis, &|| {
        "Insufficient cpu".into()
    });
    check(
        asked.memory_bytes,
        has.memory_bytes,
        taken.memory_bytes,
        &|| "Insufficient memory".into(),
    );
    let (has_disk, taken_disk) = (has.ephemeral_storage_bytes, taken.ephemeral_storage_bytes);
    check(asked.ephemeral_storage_bytes, has_disk, taken_disk, &|| {
        "Insufficient ephemeral-storage".into()
    });
    for (name, amount) in &asked.other {
        check(*amount, has.other(name), taken.other(name), &|| {
            format!("Insufficient {name}").into()
        });
    }
    match (reasons.is_empty(), is_full_by_pods) {
        (true, _) => Verdict::Takes,
        (false, true) => Verdict::FullBy(reasons),
        (false, false) => Verdict::Refuses(reasons),
    }
}

/// Whether one of the tolerations lets a pod live with a taint.
pub(crate) fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let key = toleration.key.as_deref().unwrap_or_default();
        if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
            return false;
        }
        match toleration.operator.as_deref().unwrap_or_default() {
            "" | "Equal" => {
                toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
            }
            "Exists" => true,
            _ => false,
        }
    })
}

/// Whether a node is one that a term means. A term that asks nothing means none.
pub(crate) fn matches_term(
    term: &NodeSelectorTerm,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    let expressions = || term.match_expressions.iter().flatten();
    let fields = || term.match_fields.iter().flatten();
    let asks = expressions().next().is_some() || fields().next().is_some();
    asks && expressions().all(|requirement| {
        is_met(
            requirement,
            labels.get(&requirement.key).map(String::as_str),
        )
    }) && fields()
        .all(|requirement| requirement.key == "metadata.name" && is_met(requirement, Some(name)))
}

fn is_met(requirement: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let contains = |found: &str| values.iter().any(|value| value == found);
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |wanted: std::cmp::Ordering| {
        let both = found
            .and_then(number)
            .zip(values.first().and_then(|value| number(value)));
        both.is_some_and(|(found, value)| found.cmp(&value) == wanted)
    };
    match requirement.operator.as_str() {
        "In" => found.is_some_and(contains),
        "NotIn" => !found.is_some_and(contains),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compare(std::cmp::Ordering::Greater),
        "Lt" => compare(std::cmp::Ordering::Less),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::pod::{Role, role},
        *,
    };

    fn pod(spec: Value) -> PodInfo {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{ "name": "c" }]);
        }
        match role(
            &serde_json::from_value(json!({ "spec": spec })).unwrap(),
            "default-scheduler",
        ) {
            Role::Pending(pod) => *pod,
            other => panic!("{other:?}"),
        }
    }

    fn node(node: Value) -> NodeInfo {
        let mut node = node;
        node["metadata"]["name"] = "n".into();
        if node.get("status").is_none() {
            node["status"] = json!({ "allocatable": { "cpu": "2", "memory": "1Gi", "pods": "3" } });
        }
        let offer = Offer::read(&serde_json::from_value(node).unwrap());
        NodeInfo {
            name: "n".into(),
            offer: Some(offer),
            ..NodeInfo::default()
        }
    }

    fn asking(cpu: &str, memory: &str) -> Value {
        json!([{ "name": "c", "resources": { "requests": { "cpu": cpu, "memory": memory } } }])
    }

    const FULL: &str =
        "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    const HOPELESS: &str =
        "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";

    #[test]
    fn refusals_are_in_kubernetes_words() {
        let tainted = |value: Value| json!({ "spec": { "taints": [value] } });
        for (spec, of_node, want) in [
            (json!({}), json!({}), None),
            (
                json!({}),
                json!({ "spec": { "unschedulable": true } }),
                Some(format!("1 node(s) were unschedulable. {HOPELESS}")),
            ),
            (
                json!({ "tolerations": [{ "operator": "Exists" }] }),
                json!({ "spec": { "unschedulable": true } }),
                None,
            ),
            (
                json!({}),
                tainted(json!({ "key": "k", "value": "v", "effect": "NoSchedule" })),
                Some(format!(
                    "1 node(s) had untolerated taint {{k: v}}. {HOPELESS}"
                )),
            ),
            (
                json!({ "tolerations": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] }),
                tainted(json!({ "key": "k", "value": "v", "effect": "NoSchedule" })),
                None,
            ),
            (
                json!({}),
                tainted(json!({ "key": "k", "effect": "PreferNoSchedule" })),
                None,
            ),
            (
                json!({ "nodeSelector": { "disk": "ssd" } }),
                json!({}),
                Some(format!(
                    "1 node(s) didn't match Pod's node affinity/selector. {HOPELESS}"
                )),
            ),
            (
                json!({ "nodeSelector": { "disk": "ssd" } }),
                json!({ "metadata": { "labels": { "disk": "ssd" } } }),
                None,
            ),
            (
                json!({ "containers": asking("3", "2Gi") }),
                json!({}),
                Some(format!(
                    "1 Insufficient cpu, 1 Insufficient memory. {HOPELESS}"
                )),
            ),
            (
                json!({ "containers": asking("1", "1Mi"), "preemptionPolicy": "Never" }),
                json!({ "status": { "allocatable": { "cpu": "2", "memory": "1Gi" } } }),
                Some(
                    "1 Too many pods. preemption: not eligible due to preemptionPolicy=Never."
                        .into(),
                ),
            ),
        ] {
            let (pod, node) = (pod(spec.clone()), node(of_node));
            let mut rejections = Rejections::default();
            let takes = rejections.check(&pod, &node);
            let got = (!takes).then(|| rejections.message(&pod));
            assert_eq!(
                got,
                want.map(|want| format!("0/1 nodes are available: {want}")),
                "{spec}"
            );
        }
    }

    #[test]
    fn what_pods_have_taken_is_not_there_any_more() {
        let mut node = node(json!({}));
        let first = pod(json!({ "containers": asking("1500m", "1Mi") }));
        node.add(&first.needs.footprint);
        let second = pod(json!({ "containers": asking("1", "1Mi") }));
        let mut rejections = Rejections::default();
        assert!(!rejections.check(&second, &node));
        assert_eq!(
            rejections.message(&second),
            format!("0/1 nodes are available: 1 Insufficient cpu. {FULL}")
        );
        node.remove(&first.needs.footprint);
        assert!(Rejections::default().check(&second, &node));

        let port = || json!([{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80 }] }]);
        let web = pod(json!({ "containers": port() }));
        node.add(&web.needs.footprint);
        let mut rejections = Rejections::default();
        assert!(!rejections.check(&web, &node));
        assert!(
            rejections
                .message(&web)
                .contains("1 node(s) didn't have free ports for the requested pod ports")
        );
        assert_eq!(
            Rejections::default().message(&web),
            "no nodes available to schedule pods"
        );
    }

    #[test]
    fn affinity_terms_are_alternatives_and_their_expressions_are_not() {
        let labels: BTreeMap<String, String> = [("zone", "a"), ("cpus", "8")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        for (expression, want) in [
            (
                json!({ "key": "zone", "operator": "In", "values": ["a", "b"] }),
                true,
            ),
            (
                json!({ "key": "zone", "operator": "NotIn", "values": ["a"] }),
                false,
            ),
            (
                json!({ "key": "none", "operator": "NotIn", "values": ["a"] }),
                true,
            ),
            (json!({ "key": "zone", "operator": "Exists" }), true),
            (json!({ "key": "zone", "operator": "DoesNotExist" }), false),
            (
                json!({ "key": "cpus", "operator": "Gt", "values": ["4"] }),
                true,
            ),
            (
                json!({ "key": "cpus", "operator": "Lt", "values": ["4"] }),
                false,
            ),
            (
                json!({ "key": "zone", "operator": "Gt", "values": ["4"] }),
                false,
            ),
        ] {
            let term = json!({ "matchExpressions": [expression] });
            let got = matches_term(&serde_json::from_value(term).unwrap(), "n", &labels);
            assert_eq!(got, want, "{expression}");
        }
        let by_name = json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n"] }] });
        assert!(matches_term(
            &serde_json::from_value(by_name).unwrap(),
            "n",
            &labels
        ));
        assert!(!matches_term(&NodeSelectorTerm::default(), "n", &labels));

        let either = json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "x", "operator": "Exists" }] },
                { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] },
            ],
        } } } });
        assert!(Rejections::default().check(
            &pod(either),
            &node(json!({ "metadata": { "labels": { "zone": "a" } } }))
        ));
    }

    #[test]
    fn tolerations_match_as_kubernetes_says() {
        let taint = Taint {
            key: "k".into(),
            value: Some("v".into()),
            effect: "NoExecute".into(),
            time_added: None,
        };
        for (toleration, want) in [
            (json!({ "operator": "Exists" }), true),
            (json!({ "key": "k", "operator": "Exists" }), true),
            (json!({ "key": "k", "value": "v" }), true),
            (json!({ "key": "k", "value": "w" }), false),
            (
                json!({ "key": "k", "operator": "Exists", "effect": "NoSchedule" }),
                false,
            ),
            (json!({ "key": "other", "operator": "Exists" }), false),
        ] {
            let got = is_tolerated(
                &taint,
                &[serde_json::from_value(toleration.clone()).unwrap()],
            );
            assert_eq!(got, want, "{toleration}");
        }
    }
}

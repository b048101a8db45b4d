//! Whether a node can take a pod, and in which words it cannot. Pure.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

use super::{
    ask::Ask,
    claims,
    node::{NodeInfo, Offer},
    pod::Needs,
};

/// The taint that stands for `spec.unschedulable`.
const TAINT_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Why a node cannot take a pod.
pub(crate) type Reason = Cow<'static, str>;

/// One node's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Takes,
    /// It could if other pods went.
    FullBy(Vec<Reason>),
    Refuses(Vec<Reason>),
}

impl Verdict {
    fn full_by(reason: &'static str) -> Self {
        Self::FullBy(vec![reason.into()])
    }

    fn refuses(reason: &'static str) -> Self {
        Self::Refuses(vec![reason.into()])
    }
}

/// Why nodes cannot take a pod, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rejections {
    reasons: BTreeMap<Reason, usize>,
    nodes: usize,
    /// Nodes that could take the pod if other pods went.
    pub(crate) by_pods: Vec<usize>,
    /// Why no node can, whichever it is.
    of_all: Option<String>,
}

impl Rejections {
    /// No node can take the pod, for a reason that has nothing to do with nodes.
    pub(crate) fn of_all(reason: String, nodes: usize) -> Self {
        Self {
            of_all: Some(reason),
            nodes,
            ..Self::default()
        }
    }

    /// Counts a node's answer; answers whether it takes the pod.
    pub(crate) fn count(&mut self, node: usize, verdict: Verdict) -> bool {
        let reasons = match verdict {
            Verdict::Takes => return true,
            Verdict::FullBy(reasons) => {
                self.by_pods.push(node);
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

    /// The message of the condition and the event, in Kubernetes' words, without a word on preemption.
    pub(crate) fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        match &self.of_all {
            Some(reason) => format!("{}: {reason}.", self.nodes_text()),
            None => format!("{}: {}.", self.nodes_text(), listed(&self.reasons)),
        }
    }

    /// The same of what stopping other pods would do: what came of each of the nodes that were tried.
    pub(crate) fn preemption_message(&self, tried: &[Vec<Reason>]) -> String {
        let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
        for reason in tried.iter().flatten() {
            *reasons.entry(reason.clone()).or_default() += 1;
        }
        let others = self.nodes.saturating_sub(tried.len());
        if others > 0 {
            *reasons
                .entry("Preemption is not helpful for scheduling".into())
                .or_default() += others;
        }
        format!("preemption: {}: {}.", self.nodes_text(), listed(&reasons))
    }

    /// Whether there were nodes to ask at all.
    pub(crate) fn has_nodes(&self) -> bool {
        self.nodes > 0
    }

    fn nodes_text(&self) -> String {
        format!("0/{} nodes are available", self.nodes)
    }
}

fn listed(reasons: &BTreeMap<Reason, usize>) -> String {
    let mut reasons: Vec<_> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    reasons.sort();
    reasons.join(", ")
}

/// Asks in kube-scheduler's order; the first kind of refusal is the answer.
pub(crate) fn verdict(ask: &Ask<'_>, node: &NodeInfo) -> Verdict {
    let Some(offer) = &node.offer else {
        return Verdict::Refuses(Vec::new());
    };
    let needs = &*ask.pod.needs;
    if offer.is_unschedulable {
        let taint = Taint {
            key: TAINT_UNSCHEDULABLE.into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        if !is_tolerated(&taint, &needs.tolerations) {
            return Verdict::refuses("node(s) were unschedulable");
        }
    }
    if let Some(taint) = untolerated(offer, &needs.tolerations) {
        let value = taint.value.as_deref().unwrap_or_default();
        return Verdict::Refuses(vec![
            format!("node(s) had untolerated taint {{{}: {value}}}", taint.key).into(),
        ]);
    }
    if !is_selected(needs, node, offer) {
        return Verdict::refuses("node(s) didn't match Pod's node affinity/selector");
    }
    if let Some(handler) = ask.handler
        && !offer.handlers.is_empty()
        && !offer.handlers.iter().any(|own| own == handler)
    {
        return Verdict::Refuses(vec![
            format!("node(s) didn't have the runtime handler {handler:?}").into(),
        ]);
    }
    let ports = &needs.footprint.host_ports;
    if ports
        .iter()
        .any(|port| node.host_ports.iter().any(|taken| port.conflicts(taken)))
    {
        return Verdict::full_by("node(s) didn't have free ports for the requested pod ports");
    }
    match fits(needs, node, offer) {
        Verdict::Takes => {}
        refusal => return refusal,
    }
    if ask.wanted.is_in_use {
        return Verdict::full_by(claims::REASON_ONE_POD);
    }
    if let Err(reason) = ask.steps(node) {
        return Verdict::refuses(reason);
    }
    ask.between(node)
}

/// The first taint that keeps a pod away.
pub(crate) fn untolerated<'a>(offer: &'a Offer, tolerations: &[Toleration]) -> Option<&'a Taint> {
    let keeps_out = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    offer
        .taints
        .iter()
        .filter(keeps_out)
        .find(|taint| !is_tolerated(taint, tolerations))
}

/// Whether a pod's node selector and required node affinity mean a node.
pub(crate) fn is_selected(needs: &Needs, node: &NodeInfo, offer: &Offer) -> bool {
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

fn fits(needs: &Needs, node: &NodeInfo, offer: &Offer) -> Verdict {
    let asked = &needs.footprint.requests;
    let (has, taken) = (&offer.allocatable, &node.requested);
    let mut reasons: Vec<Reason> = Vec::new();
    let mut is_full_by_pods = true;
    let mut check = |asked: i64, has: i64, taken: i64, reason: &dyn Fn() -> Reason| {
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
        super::{
            pod::{PodInfo, Role, role},
            state::State,
        },
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

    fn with_node(node: Value) -> State {
        let mut node = node;
        node["metadata"]["name"] = "n".into();
        if node.get("status").is_none() {
            node["status"] = json!({ "allocatable": { "cpu": "2", "memory": "1Gi", "pods": "3" } });
        }
        let mut state = State::default();
        state.set_node("n", Offer::read(&serde_json::from_value(node).unwrap()));
        state
    }

    /// What a pod is told, unless it gets the node.
    fn refusal(state: &mut State, pod: &PodInfo) -> Option<String> {
        let rejections = state.schedule(pod).err()?;
        let preemption = state.preempt(pod, &rejections).unwrap_err();
        Some(format!("{} {preemption}", rejections.message()))
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
            let got = refusal(&mut with_node(of_node), &pod(spec.clone()));
            assert_eq!(
                got,
                want.map(|want| format!("0/1 nodes are available: {want}")),
                "{spec}"
            );
        }
    }

    #[test]
    fn what_pods_have_taken_is_not_there_any_more() {
        let mut state = with_node(json!({}));
        let named = |uid: &str, spec: Value| PodInfo {
            uid: uid.into(),
            ..pod(spec)
        };
        let first = named("1", json!({ "containers": asking("1500m", "1Mi") }));
        assert_eq!(refusal(&mut state, &first), None);
        let second = named("2", json!({ "containers": asking("1", "1Mi") }));
        assert_eq!(
            refusal(&mut state, &second).unwrap(),
            format!("0/1 nodes are available: 1 Insufficient cpu. {FULL}")
        );
        state.release("1");
        assert_eq!(refusal(&mut state, &second), None);

        let port = json!([{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80 }] }]);
        let web = |uid| named(uid, json!({ "containers": port }));
        assert_eq!(refusal(&mut state, &web("3")), None);
        let text = refusal(&mut state, &web("4")).unwrap();
        assert!(
            text.contains("1 node(s) didn't have free ports for the requested pod ports"),
            "{text}"
        );
        assert_eq!(
            Rejections::default().message(),
            "no nodes available to schedule pods"
        );
    }

    #[test]
    fn a_node_without_the_handler_of_a_runtime_class_is_no_place() {
        let mut state = with_node(json!({ "status": {
            "allocatable": { "cpu": "2", "memory": "1Gi", "pods": "3" },
            "runtimeHandlers": [{ "name": "" }, { "name": "oci" }],
        } }));
        for class in ["oci", "wasm"] {
            state.handlers.insert(class.into(), class.into());
        }
        let wants = |class: &str| pod(json!({ "runtimeClassName": class }));
        assert_eq!(refusal(&mut state, &wants("oci")), None);
        let want = "1 node(s) didn't have the runtime handler \"wasm\".";
        let text = refusal(&mut state, &wants("wasm")).unwrap();
        assert!(text.contains(want), "{text}");
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
        let mut state = with_node(json!({ "metadata": { "labels": { "zone": "a" } } }));
        assert_eq!(refusal(&mut state, &pod(either)), None);
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

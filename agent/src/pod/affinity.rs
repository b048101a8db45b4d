//! Whether a node is one that a pod asks for: `nodeSelector`, and what its affinity requires. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};

use super::spec;

/// Whether a pod says anything about the nodes it wants.
pub(crate) fn is_particular(pod: &Pod) -> bool {
    let spec = spec(pod);
    spec.node_selector.as_ref().is_some_and(|s| !s.is_empty())
        || spec
            .affinity
            .as_ref()
            .is_some_and(|affinity| affinity.node_affinity.is_some())
}

/// Whether the node has what `nodeSelector` and the required node affinity ask for.
pub(crate) fn matches(pod: &Pod, node: &Node) -> bool {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let spec = spec(pod);
    let is_selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    let name = node.metadata.name.as_deref().unwrap_or_default();
    is_selected
        && required.is_none_or(|required| {
            required
                .node_selector_terms
                .iter()
                .any(|term| holds(term, labels, name))
        })
}

/// All of a term's requirements; a term without any selects nothing.
fn holds(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions
        .iter()
        .all(|wanted| meets(wanted, labels.get(&wanted.key).map(String::as_str)))
        && fields.iter().all(|wanted| {
            let value = (wanted.key == "metadata.name").then_some(name);
            meets(wanted, value)
        })
}

fn meets(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let is_one = value.is_some_and(|value| values.iter().any(|there| there == value));
    let compare = |holds: fn(&i64, &i64) -> bool| {
        let (have, than) = (value.map(str::parse), values.first().map(|v| v.parse()));
        matches!((have, than), (Some(Ok(have)), Some(Ok(than))) if holds(&have, &than))
    };
    match wanted.operator.as_str() {
        "In" => is_one,
        "NotIn" => !is_one,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({ "spec": spec })).expect("a pod")
    }

    #[test]
    fn a_node_is_wanted_by_its_labels_and_its_name() {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": "n1", "labels": { "zone": "a", "cores": "8" } },
        }))
        .expect("a node");
        let affinity = |terms: Value| {
            json!({ "affinity": { "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } })
        };
        let term = |key: &str, operator: &str, values: &[&str]| {
            let expression = json!({ "key": key, "operator": operator, "values": values });
            json!({ "matchExpressions": [expression] })
        };
        let table = [
            (json!({}), true),
            (json!({ "nodeSelector": { "zone": "a" } }), true),
            (json!({ "nodeSelector": { "zone": "b" } }), false),
            (affinity(json!([term("zone", "In", &["a", "b"])])), true),
            (affinity(json!([term("zone", "NotIn", &["a"])])), false),
            (affinity(json!([term("disk", "NotIn", &["ssd"])])), true),
            (affinity(json!([term("disk", "Exists", &[])])), false),
            (affinity(json!([term("disk", "DoesNotExist", &[])])), true),
            (affinity(json!([term("cores", "Gt", &["4"])])), true),
            (affinity(json!([term("cores", "Lt", &["4"])])), false),
            (affinity(json!([term("zone", "Gt", &["4"])])), false),
            (
                affinity(json!([
                    term("zone", "In", &["b"]),
                    term("cores", "Exists", &[])
                ])),
                true,
            ),
            (affinity(json!([{}])), false),
            (
                affinity(json!([{ "matchFields": [
                    { "key": "metadata.name", "operator": "In", "values": ["n2"] }] }])),
                false,
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(matches(&pod(spec.clone()), &node), expected, "{spec}");
        }
    }
}

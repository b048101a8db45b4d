//! DefaultTolerationSeconds: a pod stays some minutes on a node that does not answer, unless it says otherwise.

use serde_json::{Value, json};

/// As `--default-not-ready-toleration-seconds` and `--default-unreachable-toleration-seconds` have it.
pub(crate) const SECONDS: i64 = 300;

pub(super) fn add(object: &mut Value, seconds: i64) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let list = spec
        .entry("tolerations")
        .or_insert_with(|| Value::Array(Vec::new()));
    let Some(list) = list.as_array_mut() else {
        return;
    };
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let is_tolerated = list.iter().any(|toleration| {
            let text = |field: &str| {
                toleration
                    .get(field)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            (text("key") == key || text("key").is_empty())
                && matches!(text("effect"), "NoExecute" | "")
        });
        if !is_tolerated {
            list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_taint_is_tolerated_once() {
        let mut pod = json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]}});
        add(&mut pod, SECONDS);
        add(&mut pod, SECONDS);
        let keys: Vec<&str> = pod["spec"]["tolerations"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|t| t["key"].as_str())
            .collect();
        assert_eq!(
            keys,
            [
                "node.kubernetes.io/not-ready",
                "node.kubernetes.io/unreachable"
            ]
        );
        let mut all = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        add(&mut all, SECONDS);
        assert_eq!(all["spec"]["tolerations"].as_array().unwrap().len(), 1);
    }
}

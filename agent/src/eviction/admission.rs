//! Which pods a node that is short of something still takes. Pure.

use k8s_openapi::api::core::v1::{Pod, Toleration};

use super::{rank::is_critical, threshold::Condition};
use crate::pod::{
    qos::{self, QosClass},
    spec,
};

const MEMORY_PRESSURE_TAINT: &str = "node.kubernetes.io/memory-pressure";

/// Why a pod is not taken under these conditions, in the kubelet's words.
///
/// Where memory alone is short, only pods that promise nothing about it are refused.
pub(crate) fn refusal(pod: &Pod, conditions: &[Condition]) -> Option<String> {
    if conditions.is_empty() || is_critical(pod) {
        return None;
    }
    if conditions == [Condition::Memory] {
        let tolerations = spec(pod).tolerations.iter().flatten();
        if qos::class(pod) != QosClass::BestEffort || tolerations.into_iter().any(tolerates) {
            return None;
        }
    }
    let names: Vec<_> = conditions.iter().map(|c| c.as_str()).collect();
    Some(format!("The node had condition: [{}]. ", names.join(" ")))
}

/// Whether a toleration is one of the memory pressure taint, which has no value.
fn tolerates(toleration: &Toleration) -> bool {
    let exists = toleration.operator.as_deref() == Some("Exists");
    let has_effect = |effect: &str| effect.is_empty() || effect == "NoSchedule";
    let key = toleration.key.as_deref().unwrap_or_default();
    let value = toleration.value.as_deref().unwrap_or_default();
    has_effect(toleration.effect.as_deref().unwrap_or_default())
        && (key == MEMORY_PRESSURE_TAINT || (key.is_empty() && exists))
        && (exists || value.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_node_under_pressure_takes_what_the_kubelet_would() {
        let pod = |spec: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a pod")
        };
        let best_effort = json!({"containers": [{"name": "c"}]});
        let burstable =
            json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]});
        let mut tolerant = best_effort.clone();
        tolerant["tolerations"] =
            json!([{"key": MEMORY_PRESSURE_TAINT, "operator": "Exists", "effect": "NoSchedule"}]);
        let mut critical = best_effort.clone();
        critical["priority"] = 2_000_001_000.into();
        let memory = "The node had condition: [MemoryPressure]. ";
        let disk = "The node had condition: [DiskPressure]. ";
        let both = "The node had condition: [MemoryPressure DiskPressure]. ";
        use Condition::{Disk, Memory};
        let table: [(&Value, &[Condition], Option<&str>); 9] = [
            (&best_effort, &[], None),
            (&best_effort, &[Memory], Some(memory)),
            (&best_effort, &[Disk], Some(disk)),
            (&burstable, &[Memory], None),
            (&burstable, &[Disk], Some(disk)),
            (&burstable, &[Memory, Disk], Some(both)),
            (&tolerant, &[Memory], None),
            (&tolerant, &[Disk], Some(disk)),
            (&critical, &[Memory, Disk], None),
        ];
        for (spec, conditions, expected) in table {
            assert_eq!(
                refusal(&pod(spec.clone()), conditions).as_deref(),
                expected,
                "{spec} {conditions:?}"
            );
        }
    }
}

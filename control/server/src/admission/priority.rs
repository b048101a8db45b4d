//! Priority: what the pod's PriorityClass says, or the class that is everybody's unless they say otherwise.

use serde_json::{Value, json};
use wherry_api::{Resource, Status, meta};

use crate::{call::Call, stored, verbs::store_status};

/// The two classes that every cluster has: they are made at start, and hold while that is not done.
pub(crate) const SYSTEM_CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

fn classes() -> &'static Resource {
    wherry_api::find("scheduling.k8s.io", "v1", "priorityclasses").expect("a row")
}

pub(super) async fn admit(call: &Call, object: &mut Value) -> Result<(), Status> {
    let class = object
        .pointer("/spec/priorityClassName")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let found = if class.is_empty() {
        default_class(call).await?
    } else {
        Some(named_class(call, object, &class).await?)
    };
    apply(call.resource, object, found.as_ref())
}

async fn named_class(call: &Call, object: &Value, class: &str) -> Result<Value, Status> {
    let key = stored::key(classes(), "", class);
    let fail = |error| store_status(classes(), class, error);
    let found = call.judged_by(&key).await.map_err(fail)?;
    if let Some(found) = found {
        return Ok(stored::decode(&found));
    }
    let system = SYSTEM_CLASSES.iter().find(|(name, ..)| *name == class);
    let system = system.map(|(name, value, _)| json!({"metadata": {"name": name}, "value": value}));
    system.ok_or_else(|| {
        let detail = format!("no PriorityClass with name {class} was found");
        Status::forbidden(call.resource, meta::name(object), &detail)
    })
}

/// Of several default classes the one with the lowest value.
async fn default_class(call: &Call) -> Result<Option<Value>, Status> {
    let prefix = stored::prefix(classes());
    let fail = |error| store_status(classes(), "", error);
    let all = call.judged_by_all(&prefix).await.map_err(fail)?;
    let all = all.iter().map(stored::decode);
    Ok(all
        .filter(|class| class["globalDefault"] == true)
        .min_by_key(|class| class["value"].as_i64()))
}

fn apply(resource: &Resource, object: &mut Value, class: Option<&Value>) -> Result<(), Status> {
    let name = meta::name(object).to_owned();
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    let priority = class.and_then(|class| class["value"].as_i64()).unwrap_or(0);
    if let Some(found) = spec.get("priority").and_then(Value::as_i64)
        && found != priority
    {
        let detail = format!(
            "the integer value of priority ({found}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        );
        return Err(Status::forbidden(resource, &name, &detail));
    }
    let policy = class
        .and_then(|class| class["preemptionPolicy"].as_str())
        .unwrap_or("PreemptLowerPriority");
    if let Some(found) = spec.get("preemptionPolicy").and_then(Value::as_str)
        && found != policy
    {
        let detail = format!(
            "the string value of PreemptionPolicy ({found}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        );
        return Err(Status::forbidden(resource, &name, &detail));
    }
    if let Some(class) = class {
        spec.insert("priorityClassName".into(), meta::name(class).into());
    }
    spec.insert("priority".into(), priority.into());
    spec.insert("preemptionPolicy".into(), policy.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_gets_what_its_class_says() {
        let pods = wherry_api::find("", "v1", "pods").unwrap();
        let class = json!({
            "metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never",
        });
        for (spec, class, wanted) in [
            (json!({}), None, Some((0, "PreemptLowerPriority"))),
            (json!({}), Some(&class), Some((1000, "Never"))),
            (
                json!({"priority": 1000}),
                Some(&class),
                Some((1000, "Never")),
            ),
            (json!({"priority": 5}), Some(&class), None),
            (
                json!({"preemptionPolicy": "PreemptLowerPriority"}),
                Some(&class),
                None,
            ),
        ] {
            let mut pod = json!({"metadata": {"name": "p"}, "spec": spec});
            let result = apply(pods, &mut pod, class);
            assert_eq!(result.is_ok(), wanted.is_some(), "{spec}");
            if let Some((priority, policy)) = wanted {
                assert_eq!(pod["spec"]["priority"], priority);
                assert_eq!(pod["spec"]["preemptionPolicy"], policy);
            }
        }
    }
}

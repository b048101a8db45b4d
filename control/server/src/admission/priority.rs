//! Priority: of the two classes every cluster has, and otherwise none.

use serde_json::Value;
use wherry_api::{Status, meta};

use crate::call::Call;

pub(super) fn admit(call: &Call, object: &mut Value) -> Result<(), Status> {
    let name = meta::name(object).to_owned();
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    let class = spec
        .get("priorityClassName")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let priority: i64 = match class {
        "" => 0,
        "system-node-critical" => 2_000_001_000,
        "system-cluster-critical" => 2_000_000_000,
        other => {
            let detail = format!("no PriorityClass with name {other} was found");
            return Err(Status::forbidden(call.resource, &name, &detail));
        }
    };
    if let Some(found) = spec.get("priority").and_then(Value::as_i64)
        && found != priority
    {
        let detail = format!(
            "the integer value of priority ({found}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        );
        return Err(Status::forbidden(call.resource, &name, &detail));
    }
    spec.insert("priority".into(), priority.into());
    spec.entry("preemptionPolicy")
        .or_insert_with(|| "PreemptLowerPriority".into());
    Ok(())
}

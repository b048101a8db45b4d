//! RuntimeClass: it has to be there, and brings overhead and constraints to its pods.

use serde_json::{Map, Value};
use wherry_api::{Status, meta};

use crate::{call::Call, stored, verbs::store_status};

pub(super) async fn admit(call: &Call, object: &mut Value) -> Result<(), Status> {
    let name = meta::name(object).to_owned();
    let forbidden = |detail: String| {
        Status::forbidden(call.resource, &name, &format!("pod rejected: {detail}"))
    };
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    let class_name = spec
        .get("runtimeClassName")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if class_name.is_empty() {
        if spec
            .get("overhead")
            .and_then(Value::as_object)
            .is_some_and(|overhead| !overhead.is_empty())
        {
            return Err(forbidden(
                "Pod Overhead set without corresponding RuntimeClass defined Overhead".into(),
            ));
        }
        return Ok(());
    }
    let classes = wherry_api::find("node.k8s.io", "v1", "runtimeclasses").expect("a row");
    let key = stored::key(classes, "", &class_name);
    let class = call
        .judged_by(&key)
        .await
        .map_err(|error| store_status(classes, &class_name, error))?;
    let class = class.ok_or_else(|| forbidden(format!("RuntimeClass {class_name:?} not found")))?;
    let class = stored::decode(&class);
    match (class.pointer("/overhead/podFixed"), spec.get("overhead")) {
        (Some(overhead), None) => {
            spec.insert("overhead".into(), overhead.clone());
        }
        (overhead, Some(found)) if overhead != Some(found) => {
            return Err(forbidden(
                "Pod's Overhead doesn't match RuntimeClass's defined Overhead".into(),
            ));
        }
        _ => {}
    }
    if let Some(wanted) = class
        .pointer("/scheduling/nodeSelector")
        .and_then(Value::as_object)
    {
        let selector = spec
            .entry("nodeSelector")
            .or_insert_with(|| Value::Object(Map::new()));
        for (label, value) in wanted {
            match selector.get(label) {
                Some(found) if found != value => {
                    return Err(forbidden(format!(
                        "conflict: runtimeClass.scheduling.nodeSelector[{label}] = {}; pod.spec.nodeSelector[{label}] = {}",
                        value.as_str().unwrap_or_default(),
                        found.as_str().unwrap_or_default()
                    )));
                }
                _ => selector[label] = value.clone(),
            }
        }
    }
    if let Some(wanted) = class
        .pointer("/scheduling/tolerations")
        .and_then(Value::as_array)
    {
        let list = spec
            .entry("tolerations")
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Some(list) = list.as_array_mut() {
            for toleration in wanted {
                if !list.contains(toleration) {
                    list.push(toleration.clone());
                }
            }
        }
    }
    Ok(())
}

//! `pods/binding`: a scheduler's decision.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use wherry_api::{FieldError, Status, field::Path, meta};

use crate::{
    answer::{self, Answer},
    call::{self, Call},
    verbs::update::modify,
};

pub(super) async fn bind(call: &mut Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    let (binding, _) = call::read_value(headers, body)?;
    let name = meta::name(&binding);
    if !name.is_empty() && name != call.name() {
        return Err(Status::bad_request(format!(
            "name in URL does not match name in Binding object: {} != {name}",
            call.name()
        )));
    }
    apply(call, &binding).await
}

/// The same by a POST to `bindings`, which names the pod in the body.
pub(crate) async fn bind_by_body(call: &mut Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    let (binding, _) = call::read_value(headers, body)?;
    meta::name(&binding).clone_into(&mut call.path.name);
    apply(call, &binding).await
}

async fn apply(call: &Call, binding: &Value) -> Answer {
    let name = call.name();
    let kind = binding
        .pointer("/target/kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let node = binding
        .pointer("/target/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let root = Path::new("target");
    let invalid = |error| Err(Status::invalid_kind("", "Binding", name, vec![error]));
    if !matches!(kind, "" | "Node") {
        return invalid(FieldError::not_supported(
            &root.child("kind"),
            kind,
            &["Node", "<empty>"],
        ));
    }
    if node.is_empty() {
        return invalid(FieldError::required(&root.child("name"), ""));
    }
    let uid = meta::uid(binding).to_owned();
    modify(call, "binding", |old| {
        if !uid.is_empty() && uid != meta::uid(old) {
            let detail = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                meta::uid(old)
            );
            return Err(Status::conflict(call.resource, name, &detail));
        }
        if meta::is_deleting(old) {
            let detail = format!("pod {name} is being deleted, cannot be assigned to a host");
            return Err(Status::conflict(call.resource, name, &detail));
        }
        let assigned = old
            .pointer("/spec/nodeName")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !assigned.is_empty() {
            let detail = format!("pod {name} is already assigned to node {assigned:?}");
            return Err(Status::conflict(call.resource, name, &detail));
        }
        let mut new = old.clone();
        meta::metadata_mut(&mut new).remove("resourceVersion");
        new["spec"]["nodeName"] = node.into();
        if let Some(annotations) = meta::annotations(binding) {
            let metadata = meta::metadata_mut(&mut new);
            let merged = metadata
                .entry("annotations")
                .or_insert_with(|| Value::Object(Default::default()));
            for (key, value) in annotations {
                merged[key] = value.clone();
            }
        }
        set_scheduled(&mut new, &meta::format_time(Timestamp::now()));
        Ok(new)
    })
    .await?;
    let created = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer::value(call.accept, StatusCode::CREATED, &created))
}

fn set_scheduled(pod: &mut Value, now: &str) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let list = &mut pod["status"]["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else {
        return;
    };
    match list
        .iter_mut()
        .find(|found| found["type"] == "PodScheduled")
    {
        Some(found) => *found = condition,
        None => list.push(condition),
    }
}

//! `scale`: how many replicas there are and should be, in one form for all kinds that have them.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use wherry_api::{
    Status, meta,
    patch::{self, PatchKind},
    selector::LabelSelector,
    table::{self, Column, IncludeObject},
};
use wherry_store::KeyValue;

use crate::{
    answer::{self, Answer},
    call::{self, Call},
    request::Shape,
    stored,
    verbs::{get, patch::patch_status, update::modify},
};

pub(super) async fn get(call: &Call) -> Answer {
    show(call, &get::load(call).await?)
}

pub(super) async fn update(call: &Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    let (scale, _) = call::read_value(headers, body)?;
    let found = meta::name(&scale);
    if found != call.name() {
        return Err(Status::bad_request(format!(
            "the name of the object ({found}) does not match the name on the URL ({})",
            call.name()
        )));
    }
    let kv = modify(call, "scale", |old| scaled(old, &scale)).await?;
    show(call, &kv)
}

pub(super) async fn patch(call: &Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default().trim();
    let kind = PatchKind::from_content_type(content_type)
        .ok_or_else(|| Status::unsupported_media_type(PatchKind::CONTENT_TYPES))?;
    let patch: Value = serde_json::from_slice(body)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    let kv = modify(call, "scale", |old| {
        let mut scale =
            patch::apply(kind, call.resource, &scale_of(old), &patch).map_err(patch_status)?;
        if patch.pointer("/metadata/resourceVersion").is_none() {
            meta::metadata_mut(&mut scale).remove("resourceVersion");
        }
        scaled(old, &scale)
    })
    .await?;
    show(call, &kv)
}

fn show(call: &Call, kv: &KeyValue) -> Answer {
    let scale = scale_of(&stored::decode(kv));
    let shown = match call.accept.shape {
        Shape::Table => table_of(&scale, Timestamp::now(), call.include()?),
        Shape::Metadata => table::partial_metadata(&scale),
        Shape::Object | Shape::Discovery(_) => scale,
    };
    Ok(answer::value(call.accept, StatusCode::OK, &shown))
}

const COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("Desired", "Number of pods that are wanted.").integer(),
    Column::text("Available", "Number of pods that there are.").integer(),
    Column::age(),
];

fn table_of(scale: &Value, now: Timestamp, include: IncludeObject) -> Value {
    let cells = vec![
        meta::name(scale).into(),
        scale["spec"]["replicas"].clone(),
        scale["status"]["replicas"].clone(),
        table::age(scale, now).into(),
    ];
    table::of_rows(COLUMNS, [table::row(cells, scale, include)])
}

/// The object with as many replicas as the Scale asks for.
fn scaled(object: &Value, scale: &Value) -> Result<Value, Status> {
    let replicas = match scale.pointer("/spec/replicas") {
        // Go leaves a zero out.
        None | Some(Value::Null) => 0,
        Some(replicas) => replicas
            .as_i64()
            .ok_or_else(|| Status::bad_request("spec.replicas: must be an integer"))?,
    };
    let mut object = object.clone();
    object["spec"]["replicas"] = replicas.into();
    let metadata = meta::metadata_mut(&mut object);
    match meta::resource_version(scale) {
        "" => metadata.remove("resourceVersion"),
        version => metadata.insert("resourceVersion".to_owned(), version.into()),
    };
    Ok(object)
}

fn scale_of(object: &Value) -> Value {
    let number = |path| object.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let selector = object.pointer("/spec/selector").unwrap_or(&Value::Null);
    let is_labels =
        selector.get("matchLabels").is_none() && selector.get("matchExpressions").is_none();
    let selector = match selector.as_object() {
        // A ReplicationController's.
        Some(labels) if is_labels => LabelSelector::from_labels(labels).to_string(),
        _ => LabelSelector::from_value(selector)
            .unwrap_or_default()
            .to_string(),
    };
    let metadata = &object["metadata"];
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": number("/spec/replicas")},
        "status": {"replicas": number("/status/replicas"), "selector": selector},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_and_sets_replicas_of_every_kind() {
        let meta = json!({"name": "web", "resourceVersion": "7"});
        for (selector, shown) in [
            (json!({"matchLabels": {"app": "web"}}), "app=web"),
            (json!({"app": "web", "tier": "front"}), "app=web,tier=front"),
        ] {
            let object = json!({
                "metadata": meta,
                "spec": {"replicas": 3, "selector": selector},
                "status": {"replicas": 2},
            });
            let mut scale = scale_of(&object);
            assert_eq!(scale["spec"]["replicas"], 3);
            assert_eq!(scale["status"], json!({"replicas": 2, "selector": shown}));
            scale["spec"]["replicas"] = 5.into();
            let scaled = scaled(&object, &scale).unwrap();
            assert_eq!(scaled["spec"]["replicas"], 5);
            assert_eq!(meta::resource_version(&scaled), "7");
        }
    }

    #[test]
    fn a_scale_has_columns_of_its_own() {
        let object = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"replicas": 3},
            "status": {"replicas": 2},
        });
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let table = table_of(&scale_of(&object), now, IncludeObject::None);
        let names: Vec<_> = COLUMNS.iter().map(|column| column.name).collect();
        assert_eq!(names, ["Name", "Desired", "Available", "Age"]);
        assert_eq!(
            table["rows"],
            json!([{"cells": ["web", 3, 2, "60s"], "object": null}])
        );
    }
}

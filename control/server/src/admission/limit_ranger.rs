//! LimitRanger: what the LimitRanges of a namespace give to pods, and what they do not let through.

use serde_json::Value;
use wherry_api::{Status, limits, meta};

use crate::{call::Call, stored, verbs::store_status};

/// Whether LimitRanges have anything to say about a resource.
fn is_for(call: &Call) -> bool {
    call.resource.group.is_empty()
        && matches!(call.resource.plural, "pods" | "persistentvolumeclaims")
}

async fn ranges(call: &Call, namespace: &str) -> Result<Vec<Value>, Status> {
    let row = wherry_api::find("", "v1", "limitranges").expect("a row");
    let prefix = stored::collection(row, namespace);
    let listed = call.judged_by_all(&prefix).await;
    let listed = listed.map_err(|error| store_status(row, "", error))?;
    Ok(listed.iter().map(stored::decode).collect())
}

fn check(call: &Call, ranges: &[Value], object: &Value) -> Result<(), Status> {
    let found: Vec<String> = ranges
        .iter()
        .flat_map(|range| limits::violations(range, call.resource.plural, object))
        .collect();
    let detail = match found.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    Err(Status::forbidden(
        call.resource,
        meta::name(object),
        &detail,
    ))
}

pub(super) async fn create(call: &Call, namespace: &str, object: &mut Value) -> Result<(), Status> {
    if !is_for(call) || super::mirror::is_mirror(object) {
        return Ok(());
    }
    let ranges = ranges(call, namespace).await?;
    if call.resource.plural == "pods" {
        for range in &ranges {
            limits::apply_defaults(range, object);
        }
    }
    check(call, &ranges, object)
}

pub(super) async fn update(call: &Call, subresource: &str, object: &Value) -> Result<(), Status> {
    let is_resized = match call.resource.plural {
        "pods" => subresource == "resize",
        _ => subresource.is_empty(),
    };
    if !is_for(call) || !is_resized || meta::is_deleting(object) {
        return Ok(());
    }
    check(call, &ranges(call, call.namespace()).await?, object)
}

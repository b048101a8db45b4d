//! PATCH: JSON, merge and strategic merge.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use wherry_api::{
    Status, meta,
    patch::{self, PatchError, PatchKind},
};

use crate::{
    answer::{self, Answer},
    call::Call,
    verbs::update::modify,
};

/// What is taken; `application/apply-patch+yaml` needs managed fields, which are not recorded yet.
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

pub(crate) async fn patch(call: &mut Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let kind =
        PatchKind::from_content_type(content_type.split(';').next().unwrap_or_default().trim())
            .ok_or_else(|| Status::unsupported_media_type(PATCH_TYPES))?;
    let patch: Value = serde_json::from_slice(body)
        .or_else(|error| serde_saphyr::from_slice(body).map_err(|_| error))
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    let subresource = call.path.subresource.clone();
    let kv = patch_object(call, &subresource, kind, &patch).await?;
    Ok(answer::object(
        call.accept,
        call.include()?,
        call.resource,
        StatusCode::OK,
        &kv,
    ))
}

async fn patch_object(
    call: &mut Call,
    subresource: &str,
    kind: PatchKind,
    patch: &Value,
) -> Result<wherry_store::KeyValue, Status> {
    let resource = call.resource;
    let name = call.name().to_owned();
    // Warnings are collected once, however often the patch has to be applied again.
    let mut checker = call.clone();
    let mut is_first = true;
    let result = modify(call, subresource, |old| {
        let mut new = patch::apply(kind, resource, old, patch).map_err(|error| match error {
            PatchError::BadRequest(message) => Status::bad_request(message),
            PatchError::Unprocessable(message) => Status::failure(
                422,
                "Invalid",
                format!(
                    "the server rejected our request due to an error in our request: {message}"
                ),
            ),
            PatchError::TooLarge(message) => Status::failure(413, "RequestEntityTooLarge", message),
        })?;
        checker.check_patched(&mut new, std::mem::take(&mut is_first))?;
        if meta::name(&new) != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                meta::name(&new)
            )));
        }
        // What the patch does not set, it does not insist on.
        let is_set =
            patch.pointer("/metadata/resourceVersion").is_some() || kind == PatchKind::Json;
        let is_changed = meta::resource_version(&new) != meta::resource_version(old);
        if !is_set || (kind == PatchKind::Json && !is_changed) {
            meta::metadata_mut(&mut new).remove("resourceVersion");
        }
        Ok(new)
    })
    .await;
    call.warnings = checker.warnings;
    result
}

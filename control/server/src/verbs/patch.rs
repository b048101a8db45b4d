//! PATCH: JSON, merge and strategic merge, and what is applied.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use serde_json::Value;
use wherry_api::{
    FieldError, Status,
    field::Path,
    managed, meta,
    patch::{self, APPLY_CONTENT_TYPE, PatchError, PatchKind},
};

use crate::{
    answer::{self, Answer},
    call::Call,
    verbs::{
        create::create_object,
        update::{Record, modify, modify_with},
    },
};

pub(crate) async fn patch(call: &mut Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default().trim();
    if content_type == APPLY_CONTENT_TYPE {
        return apply(call, body).await;
    }
    let kind = PatchKind::from_content_type(content_type)
        .ok_or_else(|| Status::unsupported_media_type(PatchKind::CONTENT_TYPES))?;
    if call.query.has("force") {
        let detail = "may not be specified for non-apply patch";
        let error = FieldError::forbidden(&Path::new("force"), detail);
        return Err(invalid_options(error));
    }
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

fn invalid_options(error: FieldError) -> Status {
    Status::invalid_kind("meta.k8s.io", "PatchOptions", "", vec![error])
}

/// Server-side apply: the object becomes what the configuration says, and is made if there is none.
async fn apply(call: &mut Call, body: &Bytes) -> Answer {
    if call.query.get("fieldManager").is_empty() {
        let path = Path::new("fieldManager");
        let error = FieldError::required(&path, "is required for apply patch");
        return Err(invalid_options(error));
    }
    let manager = call.field_manager()?;
    let is_forced = call.query.flag("force");
    let mut config = call.read_config(body)?;
    let (name, namespace) = (call.name().to_owned(), call.namespace().to_owned());
    for (field, found, expected) in [
        ("name", meta::name(&config), &name),
        ("namespace", meta::namespace(&config), &namespace),
    ] {
        if !found.is_empty() && found != expected {
            return Err(Status::bad_request(format!(
                "the {field} of the object ({found}) does not match the {field} on the URL ({expected})"
            )));
        }
    }
    let metadata = meta::metadata_mut(&mut config);
    metadata.insert("name".to_owned(), name.into());
    if call.resource.namespaced {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    let subresource = call.path.subresource.clone();
    let now = meta::format_time(Timestamp::now());
    let act = managed::Act {
        resource: call.resource,
        subresource: &subresource,
        manager: &manager,
        now: &now,
    };
    let applied = |live: &Value| {
        let mut new =
            managed::apply(&act, live, &config, is_forced).map_err(|error| error.to_status())?;
        // What the configuration does not name, it does not insist on.
        if meta::resource_version(&config).is_empty() {
            meta::metadata_mut(&mut new).remove("resourceVersion");
        }
        Ok(new)
    };
    let changed = modify_with(call, &subresource, Record::Written, applied).await;
    let (kv, code) = match changed {
        Err(status) if status.is("NotFound") && subresource.is_empty() => {
            if !meta::uid(&config).is_empty() {
                let detail = format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    meta::uid(&config)
                );
                return Err(Status::conflict(call.resource, call.name(), &detail));
            }
            let object = applied(&Value::Null)?;
            match create_object(call, object, Record::Written).await {
                // Somebody was faster: then it is a change.
                Err(status) if status.is("AlreadyExists") => {
                    let changed = modify_with(call, &subresource, Record::Written, applied);
                    (changed.await?, StatusCode::OK)
                }
                result => (result?, StatusCode::CREATED),
            }
        }
        result => (result?, StatusCode::OK),
    };
    Ok(answer::object(
        call.accept,
        call.include()?,
        call.resource,
        code,
        &kv,
    ))
}

/// What the user is told of a patch that cannot be applied.
pub(crate) fn patch_status(error: PatchError) -> Status {
    match error {
        PatchError::BadRequest(message) => Status::bad_request(message),
        PatchError::Unprocessable(message) => Status::failure(
            422,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {message}"),
        ),
        PatchError::TooLarge(message) => Status::failure(413, "RequestEntityTooLarge", message),
    }
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
    modify(call, subresource, |old| {
        let mut new = patch::apply(kind, resource, old, patch).map_err(patch_status)?;
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
    .await
}

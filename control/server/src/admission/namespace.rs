//! NamespaceLifecycle: nothing is made in a namespace that is not there, or that is going.

use serde_json::Value;
use wherry_api::{Status, meta, status::StatusCause};

use crate::{call::Call, stored, verbs::store_status};

pub(super) async fn check(call: &Call, namespace: &str, object: &Value) -> Result<(), Status> {
    let namespaces = wherry_api::find("", "v1", "namespaces").expect("a row");
    let key = stored::key(namespaces, "", namespace);
    let found = call
        .judged_by(&key)
        .await
        .map_err(|error| store_status(namespaces, namespace, error))?;
    let Some(found) = found else {
        return Err(Status::not_found(namespaces, namespace));
    };
    let found = stored::decode(&found);
    if meta::is_deleting(&found)
        || found
            .pointer("/status/phase")
            .is_some_and(|phase| phase == "Terminating")
    {
        let detail = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut status = Status::forbidden(call.resource, meta::name(object), &detail);
        status
            .details
            .get_or_insert_default()
            .causes
            .push(StatusCause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            });
        return Err(status);
    }
    Ok(())
}

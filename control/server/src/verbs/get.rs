//! GET of one.

use http::StatusCode;
use wherry_api::Status;
use wherry_store::KeyValue;

use crate::{
    answer::{self, Answer},
    call::Call,
    stored,
    verbs::store_status,
};

/// The object a call names.
pub(crate) async fn load(call: &Call) -> Result<KeyValue, Status> {
    let (resource, name) = (call.resource, call.name());
    let key = stored::key(resource, call.namespace(), name);
    match call.app.store.get(&key).await {
        Ok((Some(kv), _)) => Ok(kv),
        Ok((None, _)) => Err(Status::not_found(resource, name)),
        Err(error) => Err(store_status(resource, name, error)),
    }
}

pub(crate) async fn get(call: &Call) -> Answer {
    let kv = load(call).await?;
    Ok(answer::object(
        call.accept,
        call.include()?,
        call.resource,
        StatusCode::OK,
        &kv,
    ))
}

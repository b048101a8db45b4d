//! `pods/eviction`: a deletion that may be refused. Nothing refuses one yet: disruption budgets are no resource here.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use wherry_api::{Status, meta};

use crate::{
    answer::{self, Answer},
    call::{self, Call},
    verbs::delete::{DeleteOptions, delete_object},
};

pub(super) async fn evict(call: &Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    let (eviction, _) = call::read_value(headers, body)?;
    let name = meta::name(&eviction);
    if !name.is_empty() && name != call.name() {
        return Err(Status::bad_request(format!(
            "name in URL does not match name in Eviction object: {} != {name}",
            call.name()
        )));
    }
    let options = match eviction.get("deleteOptions") {
        None | Some(Value::Null) => DeleteOptions::default(),
        Some(options) => serde_json::from_value(options.clone())
            .map_err(|error| Status::bad_request(error.to_string()))?,
    };
    delete_object(call, call.name(), &options).await?;
    let created = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer::value(call.accept, StatusCode::CREATED, &created))
}

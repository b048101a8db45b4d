//! DELETE of a collection.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::HeaderMap;
use wherry_api::Status;

use crate::{
    answer::Answer,
    call::Call,
    filter::Filter,
    stored,
    verbs::{
        delete::{DeleteOptions, delete_object},
        list,
    },
};

/// Deletions under way at a time; the store commits them together.
const PARALLEL: usize = 32;

pub(crate) async fn delete_collection(call: &Call, headers: &HeaderMap, body: &Bytes) -> Answer {
    if call.resource.namespaced && call.namespace().is_empty() {
        return Err(Status::path_method_not_allowed());
    }
    let options = DeleteOptions::read(call, headers, body)?;
    let filter = Filter::parse(call.resource, call.namespace(), "", &call.query)?;
    let page = list::read(call, &filter).await?;
    let names: Vec<String> = page
        .items
        .iter()
        .map(|kv| stored::split_key(call.resource, &kv.key).1.to_owned())
        .collect();
    stream::iter(names)
        .map(|name| {
            let options = &options;
            async move {
                match delete_object(call, &name, options).await {
                    // Somebody else was faster.
                    Err(status) if status.is("NotFound") => Ok(()),
                    result => result.map(|_| ()),
                }
            }
        })
        .buffer_unordered(PARALLEL)
        .try_collect::<()>()
        .await?;
    Ok(list::respond(
        call.accept,
        call.include()?,
        call.resource,
        page,
    ))
}

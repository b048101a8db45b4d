//! Paths below an object that are more than a part of it.

mod binding;
mod eviction;
mod proxy;
mod scale;
mod token;

use axum::extract::Request;
use bytes::Bytes;
use http::{HeaderMap, Method};
use wherry_api::Status;

use crate::{answer::Answer, call::Call, verbs};

pub(crate) use binding::bind_by_body;
pub(crate) use proxy::ask_kubelet;

/// Whether a path is proxied, so that its body is not read here.
pub(crate) fn is_streamed(subresource: &str) -> bool {
    matches!(
        subresource,
        "log" | "exec" | "attach" | "portforward" | "proxy"
    )
}

/// Answers what is read here.
pub(crate) async fn serve(
    call: &mut Call,
    method: &Method,
    headers: &HeaderMap,
    body: &Bytes,
) -> Answer {
    let subresource = call.path.subresource.clone();
    if !call
        .resource
        .subresources
        .iter()
        .any(|sub| sub.name == subresource)
    {
        return Err(Status::unknown_path());
    }
    match (method, subresource.as_str()) {
        (&Method::POST, "binding") => binding::bind(call, headers, body).await,
        (&Method::POST, "eviction") => eviction::evict(call, headers, body).await,
        (&Method::POST, "token") => token::request(call, headers, body).await,
        (&Method::GET, "scale") => scale::get(call).await,
        (&Method::PUT, "scale") => scale::update(call, headers, body).await,
        (&Method::PATCH, "scale") => scale::patch(call, headers, body).await,
        (&Method::GET, "approval" | "status" | "ephemeralcontainers" | "resize") => {
            verbs::get::get(call).await
        }
        (&Method::PUT, "approval" | "status" | "finalize" | "ephemeralcontainers" | "resize") => {
            verbs::update::update(call, headers, body).await
        }
        (&Method::PATCH, "approval" | "status" | "finalize" | "ephemeralcontainers" | "resize") => {
            verbs::patch::patch(call, headers, body).await
        }
        _ => Err(Status::path_method_not_allowed()),
    }
}

/// Answers what is passed on to a node or a pod.
pub(crate) async fn stream(call: &Call, request: Request) -> Answer {
    if !call
        .resource
        .subresources
        .iter()
        .any(|sub| sub.name == call.path.subresource)
    {
        return Err(Status::unknown_path());
    }
    proxy::proxy(call, request).await
}

//! The server as a service in memory, for the parts of the same process.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{Router, body::Body, response::Response};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::{Service, ServiceExt};

use crate::UserInfo;

/// Answers requests as the user it was made for, without a socket: `kube::Client::new(service, "default")`.
#[derive(Clone, Debug)]
pub struct ClientService {
    router: Router,
    user: UserInfo,
}

impl ClientService {
    pub(crate) fn new(router: Router, user: UserInfo) -> Self {
        Self { router, user }
    }

    /// One request with a JSON body, and its answer whole. For the few calls that the server makes of itself.
    pub(crate) async fn request(
        &self,
        method: http::Method,
        path: &str,
        body: &Value,
    ) -> (StatusCode, Value) {
        let mut request = Request::new(Body::from(body.to_string()));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().expect("paths of our own are paths");
        request.headers_mut().insert(
            header::CONTENT_TYPE,
            http::HeaderValue::from_static("application/json"),
        );
        let response = self
            .clone()
            .oneshot(request)
            .await
            .unwrap_or_else(|never| match never {});
        let code = response.status();
        let bytes = response
            .into_body()
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        (code, serde_json::from_slice(&bytes).unwrap_or_default())
    }
}

impl<B> Service<Request<B>> for ClientService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.user.clone());
        Box::pin(self.router.clone().oneshot(request))
    }
}

//! A server of a test's own.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use futures::StreamExt;
use http::{HeaderMap, Method, Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;
use wherry_server::{
    AnonymousAuth, AuditConfig, Config, Pki, PodSecurityConfig, SERVICE_CIDR_DEFAULT, Server,
    UserInfo,
};
use wherry_store::{MemoryStore, Store};

/// The one timeout of everything that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct TestServer {
    pub(crate) dir: TempDir,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) router: axum::Router,
    pub(crate) pki: Arc<Pki>,
    pub(crate) url: String,
    pub(crate) admin_kubeconfig: String,
    client: wherry_server::ClientService,
    _stop: DropGuard,
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    pub(crate) body: Value,
}

impl Answered {
    /// `metadata.<field>` as text.
    pub(crate) fn meta(&self, field: &str) -> &str {
        self.body["metadata"][field].as_str().unwrap_or_default()
    }

    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn expect(self, code: u16) -> Self {
        assert_eq!(self.code, code, "{}", self.text);
        self
    }

    #[track_caller]
    pub(crate) fn fails(self, code: u16, reason: &str, message: &str) -> Self {
        assert_eq!(
            (self.code, self.body["reason"].as_str().unwrap_or_default()),
            (code, reason),
            "{}",
            self.text
        );
        assert_eq!(self.message(), message);
        assert_eq!(self.body["kind"], "Status");
        self
    }

    /// Names of the items of a list.
    pub(crate) fn names(&self) -> Vec<&str> {
        let items = self.body["items"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        items
            .iter()
            .filter_map(|item| item["metadata"]["name"].as_str())
            .collect()
    }
}

impl TestServer {
    /// Serving, with the default service account that a controller would make.
    pub(crate) async fn start() -> Self {
        let this = Self::on(Arc::new(MemoryStore::default())).await;
        let account = json!({"metadata": {"name": "default"}});
        this.post("/api/v1/namespaces/default/serviceaccounts", &account)
            .await
            .expect(201);
        this
    }

    /// Serving what is in a store.
    pub(crate) async fn on(store: Arc<dyn Store>) -> Self {
        Self::with(store, None).await
    }

    /// Serving what is in a store, and logging who asks.
    pub(crate) async fn with(store: Arc<dyn Store>, audit: Option<AuditConfig>) -> Self {
        Self::made(
            store,
            audit,
            AnonymousAuth::default(),
            PodSecurityConfig::default(),
        )
        .await
    }

    /// Letting in who shows no credentials.
    pub(crate) async fn with_anonymous(anonymous: AnonymousAuth) -> Self {
        let store = Arc::new(MemoryStore::default());
        Self::made(store, None, anonymous, PodSecurityConfig::default()).await
    }

    /// Letting pods do what this says, and logging what is to be known of it.
    pub(crate) async fn with_pod_security(
        pod_security: PodSecurityConfig,
        audit: AuditConfig,
    ) -> Self {
        let store = Arc::new(MemoryStore::default());
        Self::made(store, Some(audit), AnonymousAuth::default(), pod_security).await
    }

    async fn made(
        store: Arc<dyn Store>,
        audit: Option<AuditConfig>,
        anonymous_auth: AnonymousAuth,
        pod_security: PodSecurityConfig,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let server = Server::build(Config {
            pki_dir: dir.path().join("pki"),
            listen: "127.0.0.1:0".parse().expect("an address"),
            advertise_addresses: vec!["192.0.2.1".parse().expect("an address")],
            names: Vec::new(),
            service_cidr: SERVICE_CIDR_DEFAULT.parse().expect("a range"),
            store: store.clone(),
            anonymous_auth,
            pod_security,
            audit,
        })
        .await
        .expect("a server");
        server.bootstrap().await.expect("first objects");
        let url = format!("https://{}", server.address());
        let stop = CancellationToken::new();
        let this = Self {
            admin_kubeconfig: server.admin_kubeconfig(&url),
            client: server.client_service(UserInfo::admin()),
            router: server.router(),
            pki: server.pki().clone(),
            url,
            store,
            dir,
            _stop: stop.clone().drop_guard(),
        };
        tokio::spawn(server.run(stop));
        this
    }

    pub(crate) fn service(&self) -> wherry_server::ClientService {
        self.client.clone()
    }

    pub(crate) async fn send(&self, user: Option<UserInfo>, request: Request<Body>) -> Answered {
        let mut request = request;
        if let Some(user) = user {
            request.extensions_mut().insert(user);
        }
        let response = self
            .router
            .clone()
            .oneshot(request)
            .await
            .expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        Answered {
            code: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
        }
    }

    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: &Value,
    ) -> Answered {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content_type);
        self.send(
            Some(UserInfo::admin()),
            request.body(Body::from(text)).expect("a request"),
        )
        .await
    }

    /// Asks as somebody; a null body is none, and a patch is a merge patch.
    pub(crate) async fn ask(
        &self,
        user: &UserInfo,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Answered {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let content_type = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content_type);
        self.send(
            Some(user.clone()),
            request.body(Body::from(text)).expect("a request"),
        )
        .await
    }

    pub(crate) async fn get(&self, path: &str) -> Answered {
        self.request(Method::GET, path, "application/json", &Value::Null)
            .await
    }

    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Answered {
        let request = Request::get(path)
            .header(header::ACCEPT, accept)
            .body(Body::empty())
            .expect("a request");
        self.send(Some(UserInfo::admin()), request).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answered {
        self.request(Method::POST, path, "application/json", body)
            .await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answered {
        self.request(Method::PUT, path, "application/json", body)
            .await
    }

    pub(crate) async fn merge(&self, path: &str, body: &Value) -> Answered {
        self.request(Method::PATCH, path, "application/merge-patch+json", body)
            .await
    }

    pub(crate) async fn delete(&self, path: &str, options: &Value) -> Answered {
        self.request(Method::DELETE, path, "application/json", options)
            .await
    }

    pub(crate) async fn config_map(&self, name: &str, labels: Value) -> Answered {
        let body = json!({"metadata": {"name": name, "labels": labels}, "data": {"k": "v"}});
        self.post("/api/v1/namespaces/default/configmaps", &body)
            .await
            .expect(201)
    }

    /// A pod that has been scheduled, so that it has something to stop.
    pub(crate) async fn pod(&self, name: &str) -> Answered {
        let spec = json!({"nodeName": "n1", "containers": [{"name": "a", "image": "busybox"}]});
        self.post(
            "/api/v1/namespaces/default/pods",
            &json!({"metadata": {"name": name}, "spec": spec}),
        )
        .await
        .expect(201)
    }

    pub(crate) async fn watch(&self, path: &str) -> Watch {
        let request = Request::get(path)
            .extension(UserInfo::admin())
            .body(Body::empty())
            .expect("a request");
        let response = self
            .router
            .clone()
            .oneshot(request)
            .await
            .expect("infallible");
        assert_eq!(response.status(), 200);
        Watch {
            stream: response.into_body().into_data_stream(),
            buffer: Vec::new(),
        }
    }
}

/// A watch, line by line.
pub(crate) struct Watch {
    stream: axum::body::BodyDataStream,
    buffer: Vec<u8>,
}

impl Watch {
    /// The next event; `None`: the watch is over.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a line is an event"));
            }
            let chunk = tokio::time::timeout(PATIENCE, self.stream.next())
                .await
                .expect("an event in time")?;
            self.buffer.extend_from_slice(&chunk.expect("a chunk"));
        }
    }

    /// The next event's type and the object's name.
    pub(crate) async fn next_name(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (
            text(&event["type"]),
            text(&event["object"]["metadata"]["name"]),
        )
    }
}

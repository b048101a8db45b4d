//! An API server of a map, for tests: enough of the verbs that controllers use.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use wherry_api::patch::{self, PatchKind};

use crate::{events::Recorder, workloads};

const WAIT: Duration = Duration::from_secs(15);

/// Resources it knows: group and version, plural, kind, whether in namespaces.
const RESOURCES: [(&str, &str, &str, bool); 26] = [
    ("v1", "namespaces", "Namespace", false),
    ("v1", "nodes", "Node", false),
    ("v1", "pods", "Pod", true),
    ("v1", "configmaps", "ConfigMap", true),
    ("v1", "secrets", "Secret", true),
    ("v1", "serviceaccounts", "ServiceAccount", true),
    ("v1", "events", "Event", true),
    ("v1", "resourcequotas", "ResourceQuota", true),
    (
        "v1",
        "replicationcontrollers",
        "ReplicationController",
        true,
    ),
    ("apps/v1", "replicasets", "ReplicaSet", true),
    ("apps/v1", "deployments", "Deployment", true),
    ("apps/v1", "daemonsets", "DaemonSet", true),
    ("apps/v1", "statefulsets", "StatefulSet", true),
    ("apps/v1", "controllerrevisions", "ControllerRevision", true),
    ("batch/v1", "jobs", "Job", true),
    ("batch/v1", "cronjobs", "CronJob", true),
    (
        "policy/v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        true,
    ),
    ("v1", "services", "Service", true),
    ("v1", "endpoints", "Endpoints", true),
    (
        "discovery.k8s.io/v1",
        "endpointslices",
        "EndpointSlice",
        true,
    ),
    ("coordination.k8s.io/v1", "leases", "Lease", true),
    ("node.k8s.io/v1", "runtimeclasses", "RuntimeClass", false),
    ("v1", "persistentvolumes", "PersistentVolume", false),
    (
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        true,
    ),
    ("storage.k8s.io/v1", "storageclasses", "StorageClass", false),
    ("wherry.dev/v1alpha1", "plugins", "Plugin", false),
];

type ResponseBody = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Clone)]
pub(crate) struct Fake {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// By resource (`v1/pods`), namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    log: Vec<(u64, String, Value)>,
    /// Requests that are to fail: part of the path, and with which code.
    failures: VecDeque<(String, u16)>,
    requests: Vec<String>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                revision: watch::Sender::new(1),
            }),
        }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Runs the controllers of workloads against this server. Nobody reads their events.
    pub(crate) fn run_workloads(&self, shutdown: &CancellationToken) -> JoinHandle<()> {
        let events = Recorder::new().0;
        tokio::spawn(workloads::run(self.client(), events, shutdown.clone()))
    }

    /// The next request whose method and path contain `what` fails with `code`.
    pub(crate) fn fail_next(&self, what: &str, code: u16) {
        self.state().failures.push_back((what.into(), code));
    }

    /// Requests so far whose method and path contain `what`.
    pub(crate) fn requests(&self, what: &str) -> usize {
        self.state()
            .requests
            .iter()
            .filter(|request| request.contains(what))
            .count()
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&self, resource: &str, object: Value) {
        self.state().put(&self.shared, resource, object);
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state()
            .objects
            .get(&key(resource, namespace, name))
            .cloned()
    }

    pub(crate) fn remove(&self, resource: &str, namespace: &str, name: &str) {
        self.state()
            .remove(&self.shared, &key(resource, namespace, name));
    }

    /// Waits until some object of a resource is as wanted.
    pub(crate) async fn wait_for(&self, resource: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait(|state| {
            let of_resource = state.objects.iter().filter(|(key, _)| key.0 == resource);
            of_resource
                .map(|(_, object)| object)
                .find(|object| wanted(object))
                .cloned()
        })
        .await
    }

    pub(crate) async fn wait_until_gone(&self, resource: &str, namespace: &str, name: &str) {
        let key = key(resource, namespace, name);
        self.wait(|state| (!state.objects.contains_key(&key)).then_some(()))
            .await;
    }

    async fn wait<T>(&self, look: impl Fn(&State) -> Option<T>) -> T {
        let mut revision = self.shared.revision.subscribe();
        let waited = tokio::time::timeout(WAIT, async {
            loop {
                revision.mark_unchanged();
                if let Some(found) = look(&self.state()) {
                    return found;
                }
                revision.changed().await.unwrap();
            }
        });
        waited
            .await
            .unwrap_or_else(|_| panic!("not in time: {:#?}", self.state().objects))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    async fn answer(&self, request: Request<Body>) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (method, path) = (parts.method, parts.uri.path().to_owned());
        let line = format!("{method} {path}");
        {
            let mut state = self.state();
            state.requests.push(line.clone());
            if let Some(index) = state
                .failures
                .iter()
                .position(|(what, _)| line.contains(what))
            {
                let (_, code) = state.failures.remove(index).unwrap();
                return status(code, "injected");
            }
        }
        if path.contains("/proxy/storage/claims/") {
            let bytes = parts
                .uri
                .query()
                .and_then(|query| query.strip_prefix("bytes="));
            let bytes: Option<u64> = bytes.and_then(|bytes| bytes.parse().ok());
            return json_response(200, json!({ "bytes": bytes }));
        }
        if path.contains("/proxy/storage/plugins/") {
            return match path.rsplit('/').next().unwrap_or_default() {
                "delete" => json_response(200, Value::Null),
                _ if path.contains("/memfs/") => status(501, "it makes no volumes for claims"),
                name => json_response(
                    200,
                    json!({
                        "handle": format!("/images/{name}"), "bytes": body["bytesMin"],
                        "attributes": { "file": name }, "isOfThisNode": true,
                    }),
                ),
            };
        }
        if path.contains("/proxy/storage/") {
            let name = path.rsplit('/').next().unwrap_or_default();
            return json_response(200, json!({ "path": format!("/node/{name}") }));
        }
        if let Some(found) = discovery(&path) {
            return json_response(200, found);
        }
        let query: BTreeMap<_, _> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.replace("%3D", "=")))
            .collect();
        let Some(target) = Target::parse(&path) else {
            return status(404, "no such path");
        };
        if query.contains_key("watch") {
            return self.watch(&target, &query);
        }
        let content_type = parts.headers.get("content-type");
        let content_type = content_type.map_or("", |value| value.to_str().unwrap());
        self.verb(&method, content_type, &target, &query, body)
    }

    fn verb(
        &self,
        method: &Method,
        content_type: &str,
        target: &Target,
        query: &BTreeMap<String, String>,
        body: Value,
    ) -> Response<ResponseBody> {
        let is_known = |(version, plural, ..): &(&str, &str, &str, bool)| {
            format!("{version}/{plural}") == target.resource
        };
        if !RESOURCES.iter().any(is_known) {
            return status(404, "the server could not find the requested resource");
        }
        let mut state = self.state();
        let found = target
            .name
            .as_ref()
            .map(|name| key(&target.resource, &target.namespace, name));
        match (method.as_str(), found) {
            ("GET", None) => {
                let items: Vec<_> = state
                    .matching(target, query)
                    .into_iter()
                    .map(|(_, object)| object)
                    .collect();
                let revision = self.shared.revision.borrow().to_string();
                json_response(
                    200,
                    json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": revision }, "items": items }),
                )
            }
            ("DELETE", None) => {
                for (key, _) in state.matching(target, query) {
                    state.delete(&self.shared, &key);
                }
                json_response(
                    200,
                    json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }),
                )
            }
            ("POST", None) => {
                let mut object = body;
                object["metadata"]["namespace"] = target.namespace.clone().into();
                if let Some(prefix) = object["metadata"]["generateName"].as_str() {
                    let name = format!("{prefix}{}", *self.shared.revision.borrow());
                    object["metadata"]["name"] = name.into();
                }
                let key = key(
                    &target.resource,
                    &target.namespace,
                    object["metadata"]["name"].as_str().unwrap(),
                );
                if state.objects.contains_key(&key) {
                    return status(409, "already exists");
                }
                json_response(201, state.put(&self.shared, &target.resource, object))
            }
            (_, Some(key)) if !state.objects.contains_key(&key) => status(404, "not found"),
            ("GET", Some(key)) => json_response(200, state.objects[&key].clone()),
            ("DELETE", Some(key)) => {
                let wanted = &body["preconditions"]["uid"];
                if !wanted.is_null() && *wanted != state.objects[&key]["metadata"]["uid"] {
                    return status(409, "the uid is another");
                }
                state.delete(&self.shared, &key);
                json_response(
                    200,
                    json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }),
                )
            }
            ("POST", Some(key)) if target.subresource.as_deref() == Some("binding") => {
                let mut pod = state.objects[&key].clone();
                if !pod["spec"]["nodeName"].is_null() {
                    return status(409, "bound already");
                }
                pod["spec"]["nodeName"] = body["target"]["name"].clone();
                state.put(&self.shared, &target.resource, pod);
                json_response(
                    201,
                    json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }),
                )
            }
            ("PUT", Some(_)) => json_response(200, state.put(&self.shared, &target.resource, body)),
            ("PATCH", Some(key)) => {
                let kind = PatchKind::from_content_type(content_type).unwrap();
                let mut object = state.objects[&key].clone();
                let wanted = &body["metadata"]["resourceVersion"];
                if !wanted.is_null() && *wanted != object["metadata"]["resourceVersion"] {
                    return status(409, "conflict");
                }
                let wanted = &body["metadata"]["uid"];
                if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
                    return status(409, "the uid is another");
                }
                let patched = patch::apply(kind, row(&target.resource), &object, &body);
                object = match patched {
                    Ok(object) => object,
                    Err(error) => return status(422, &error.to_string()),
                };
                json_response(200, state.put(&self.shared, &target.resource, object))
            }
            _ => status(405, "not allowed"),
        }
    }

    /// Events from a revision on, as they come.
    fn watch(&self, target: &Target, query: &BTreeMap<String, String>) -> Response<ResponseBody> {
        let from: u64 = query
            .get("resourceVersion")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        let (fake, target, query) = (self.clone(), target.clone(), query.clone());
        let revision = self.shared.revision.subscribe();
        let events = stream::unfold((from, revision), move |(seen, mut revision)| {
            let (fake, target, query) = (fake.clone(), target.clone(), query.clone());
            async move {
                loop {
                    revision.mark_unchanged();
                    let lines = fake.state().since(seen, &target, &query);
                    if let Some((last, lines)) = lines {
                        return Some((
                            http_body::Frame::data(Bytes::from(lines)),
                            (last, revision),
                        ));
                    }
                    revision.changed().await.ok()?;
                }
            }
        });
        Response::new(StreamBody::new(events.map(Ok)).boxed_unsync())
    }
}

impl State {
    fn put(&mut self, shared: &Shared, resource: &str, object: Value) -> Value {
        let mut object = object;
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let key = key(resource, &namespace, &name);
        let (api_version, kind) = kind_of(resource);
        object["apiVersion"] = api_version.into();
        object["kind"] = kind.into();
        let old = self.objects.get(&key);
        let revision = *shared.revision.borrow() + 1;
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        let uid = old.map(|old| old["metadata"]["uid"].clone());
        if let Some(uid) = uid {
            object["metadata"]["uid"] = uid;
        } else if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{revision}").into();
        }
        // Deleted, and nothing keeps it any more.
        let is_kept = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
        let is_over = !object["metadata"]["deletionTimestamp"].is_null()
            && !is_kept(&object["metadata"]["finalizers"])
            && !is_kept(&object["spec"]["finalizers"]);
        let type_ = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.log.push((
            revision,
            resource.into(),
            json!({ "type": type_, "object": object }),
        ));
        self.objects.insert(key.clone(), object.clone());
        shared.revision.send_replace(revision);
        if is_over {
            self.remove(shared, &key);
        }
        object
    }

    /// As the API deletes: what has finalizers is marked.
    fn delete(&mut self, shared: &Shared, key: &(String, String, String)) {
        let Some(mut object) = self.objects.get(key).cloned() else {
            return;
        };
        if object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|finalizers| !finalizers.is_empty())
        {
            if object["metadata"]["deletionTimestamp"].is_null() {
                object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
                self.put(shared, &key.0, object);
            }
        } else {
            self.remove(shared, key);
        }
    }

    fn remove(&mut self, shared: &Shared, key: &(String, String, String)) {
        let Some(mut object) = self.objects.remove(key) else {
            return;
        };
        let revision = *shared.revision.borrow() + 1;
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        self.log.push((
            revision,
            key.0.clone(),
            json!({ "type": "DELETED", "object": object }),
        ));
        shared.revision.send_replace(revision);
    }

    fn matching(
        &self,
        target: &Target,
        query: &BTreeMap<String, String>,
    ) -> Vec<((String, String, String), Value)> {
        let found = self
            .objects
            .iter()
            .filter(|(key, object)| key.0 == target.resource && target.holds(object, query));
        found
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect()
    }

    fn since(
        &self,
        seen: u64,
        target: &Target,
        query: &BTreeMap<String, String>,
    ) -> Option<(u64, String)> {
        let news = self.log.iter().filter(|(revision, resource, event)| {
            *revision > seen
                && *resource == target.resource
                && target.holds(&event["object"], query)
        });
        let news: Vec<_> = news.collect();
        let last = news.last()?.0;
        Some((
            last,
            news.iter()
                .map(|(_, _, event)| format!("{event}\n"))
                .collect(),
        ))
    }
}

/// What a path names.
#[derive(Clone, Debug)]
struct Target {
    resource: String,
    namespace: String,
    name: Option<String>,
    subresource: Option<String>,
}

impl Target {
    fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ((*version).to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return None,
        };
        let own = |text: &&str| Some((*text).to_owned());
        let (namespace, rest) = match rest {
            // The namespace itself, unless a resource in it follows.
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            rest => ("", rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (plural, None, None),
            [plural, name] => (plural, own(name), None),
            [plural, name, subresource] => (plural, own(name), own(subresource)),
            _ => return None,
        };
        let namespace = namespace.to_owned();
        Some(Self {
            resource: format!("{version}/{plural}"),
            namespace,
            name,
            subresource,
        })
    }

    fn holds(&self, object: &Value, query: &BTreeMap<String, String>) -> bool {
        let metadata = &object["metadata"];
        let selected = query
            .get("fieldSelector")
            .and_then(|selector| selector.strip_prefix("metadata.name="));
        let on_node = query
            .get("fieldSelector")
            .and_then(|selector| selector.strip_prefix("spec.nodeName="));
        (self.namespace.is_empty() || metadata["namespace"] == *self.namespace)
            && selected.is_none_or(|name| metadata["name"] == *name)
            && on_node.is_none_or(|node| object["spec"]["nodeName"] == *node)
    }
}

fn key(resource: &str, namespace: &str, name: &str) -> (String, String, String) {
    (resource.into(), namespace.into(), name.into())
}

fn kind_of(resource: &str) -> (&'static str, &'static str) {
    let found = RESOURCES
        .iter()
        .find(|(version, plural, ..)| format!("{version}/{plural}") == resource);
    found
        .map(|(version, _, kind, _)| (*version, *kind))
        .unwrap()
}

/// The row of `apps/v1/deployments`.
fn row(resource: &str) -> &'static wherry_api::Resource {
    let (version, plural) = resource.rsplit_once('/').unwrap();
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    wherry_api::find(group, version, plural).unwrap()
}

fn discovery(path: &str) -> Option<Value> {
    let list = |group_version: &str| {
        let of_version = RESOURCES
            .iter()
            .filter(|(version, ..)| *version == group_version);
        let resources: Vec<_> = of_version
            .map(|(_, plural, kind, is_namespaced)| {
                json!({
                    "name": plural, "singularName": "", "kind": kind, "namespaced": is_namespaced,
                    "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                })
            })
            .collect();
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources })
    };
    let group = |name: &str| {
        let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
        json!({ "name": name, "versions": [version], "preferredVersion": version })
    };
    match path.trim_end_matches('/') {
        "/api" => Some(
            json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }),
        ),
        "/apis" => Some(
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [
            group("apps"), group("coordination.k8s.io"),
        ] }),
        ),
        "/api/v1" => Some(list("v1")),
        "/apis/apps/v1" => Some(list("apps/v1")),
        "/apis/coordination.k8s.io/v1" => Some(list("coordination.k8s.io/v1")),
        _ => None,
    }
}

fn status(code: u16, message: &str) -> Response<ResponseBody> {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    json_response(
        code,
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message }),
    )
}

fn json_response(code: u16, body: Value) -> Response<ResponseBody> {
    let body = http_body_util::Full::new(Bytes::from(body.to_string())).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

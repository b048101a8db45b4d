//! Create, get, update, patch and delete, and what each is refused for.

use http::{Method, header};
use serde_json::{Value, json};

use crate::harness::TestServer;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn an_object_is_made_read_changed_and_removed() {
    let server = TestServer::start().await;
    let made = server.config_map("a", json!({})).await;
    assert_eq!(
        (made.body["kind"].as_str(), made.body["apiVersion"].as_str()),
        (Some("ConfigMap"), Some("v1"))
    );
    for field in ["uid", "resourceVersion", "creationTimestamp"] {
        assert!(!made.meta(field).is_empty(), "{field}");
    }
    let path = format!("{MAPS}/a");
    assert_eq!(server.get(&path).await.expect(200).body, made.body);
    let mut body = made.body.clone();
    body["data"] = json!({"k": "w"});
    let changed = server.put(&path, &body).await.expect(200);
    assert_ne!(
        changed.meta("resourceVersion"),
        made.meta("resourceVersion")
    );
    let same = server.put(&path, &changed.body).await.expect(200);
    assert_eq!(
        same.meta("resourceVersion"),
        changed.meta("resourceVersion"),
        "no change, no write"
    );
    let removed = server.delete(&path, &Value::Null).await.expect(200);
    assert_eq!(
        (
            removed.body["kind"].as_str(),
            removed.body["status"].as_str()
        ),
        (Some("Status"), Some("Success"))
    );
    server
        .get(&path)
        .await
        .fails(404, "NotFound", "configmaps \"a\" not found");
}

#[tokio::test]
async fn a_create_is_refused_in_kubernetes_words() {
    let server = TestServer::start().await;
    server.config_map("a", json!({})).await;
    let map = |name: &str| json!({"metadata": {"name": name}});
    server.post(MAPS, &map("a")).await.fails(
        409,
        "AlreadyExists",
        "configmaps \"a\" already exists",
    );
    server
        .post("/api/v1/namespaces/none/configmaps", &map("a"))
        .await
        .fails(404, "NotFound", "namespaces \"none\" not found");
    let mut elsewhere = map("b");
    elsewhere["metadata"]["namespace"] = "other".into();
    server.post(MAPS, &elsewhere).await.fails(
        400,
        "BadRequest",
        "the namespace of the provided object does not match the namespace sent on the request",
    );
    let mut versioned = map("b");
    versioned["metadata"]["resourceVersion"] = "7".into();
    let refused = server.post(MAPS, &versioned).await.expect(500);
    assert_eq!(
        refused.message(),
        "resourceVersion should not be set on objects to be created"
    );
    let invalid = server.post(MAPS, &map("Up_")).await.expect(422);
    assert!(
        invalid
            .message()
            .starts_with("ConfigMap \"Up_\" is invalid: metadata.name: Invalid value: \"Up_\":")
    );
    assert_eq!(
        invalid.body["details"]["causes"][0]["field"],
        "metadata.name"
    );
    server
        .post(MAPS, &json!({"kind": "Secret", "apiVersion": "v1"}))
        .await
        .expect(400);
    server.post("/api/v1/configmaps", &map("a")).await.fails(
        405,
        "MethodNotAllowed",
        "the server does not allow this method on the requested resource",
    );
}

#[tokio::test]
async fn nothing_is_made_in_a_namespace_that_goes() {
    let server = TestServer::start().await;
    server
        .post("/api/v1/namespaces", &json!({"metadata": {"name": "gone"}}))
        .await
        .expect(201);
    let going = server
        .delete("/api/v1/namespaces/gone", &Value::Null)
        .await
        .expect(200);
    assert_eq!(going.body["status"]["phase"], "Terminating");
    let refused = server
        .post("/api/v1/namespaces/gone/configmaps", &json!({"metadata": {"name": "a"}}))
        .await
        .fails(
            403,
            "Forbidden",
            "configmaps \"a\" is forbidden: unable to create new content in namespace gone because it is being terminated",
        );
    assert_eq!(
        refused.body["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    let mut finalized = going.body.clone();
    finalized["spec"]["finalizers"] = json!([]);
    server
        .put("/api/v1/namespaces/gone/finalize", &finalized)
        .await
        .expect(200);
    server.get("/api/v1/namespaces/gone").await.expect(404);
    server
        .delete("/api/v1/namespaces/kube-system", &Value::Null)
        .await
        .fails(
            403,
            "Forbidden",
            "namespaces \"kube-system\" is forbidden: this namespace may not be deleted",
        );
}

#[tokio::test]
async fn a_name_is_generated_when_asked_for() {
    let server = TestServer::start().await;
    let mut names = std::collections::HashSet::new();
    for _ in 0..20 {
        let made = server
            .post(MAPS, &json!({"metadata": {"generateName": "map-"}}))
            .await
            .expect(201);
        assert!(made.meta("name").starts_with("map-") && made.meta("name").len() == 9);
        assert!(names.insert(made.meta("name").to_owned()));
    }
}

#[tokio::test]
async fn an_update_of_an_old_version_is_a_conflict_and_one_of_none_is_not() {
    let server = TestServer::start().await;
    let first = server.config_map("a", json!({})).await;
    let path = format!("{MAPS}/a");
    let mut body = first.body.clone();
    body["data"] = json!({"k": "1"});
    server.put(&path, &body).await.expect(200);
    body["data"] = json!({"k": "2"});
    server.put(&path, &body).await.fails(
        409,
        "Conflict",
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to \
         the latest version and try again",
    );
    body["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    server.put(&path, &body).await.expect(200);
    body["metadata"]["uid"] = "another".into();
    let refused = server.put(&path, &body).await.expect(409);
    assert!(
        refused
            .message()
            .contains("Precondition failed: UID in precondition: another"),
        "{}",
        refused.message()
    );
    body["metadata"]["name"] = "b".into();
    server.put(&path, &body).await.fails(
        400,
        "BadRequest",
        "the name of the object (b) does not match the name on the URL (a)",
    );
}

#[tokio::test]
async fn a_lease_is_made_by_an_update() {
    let server = TestServer::start().await;
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    let lease = json!({"metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1"}});
    server.put(path, &lease).await.expect(422);
    server
        .post(
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
            &lease,
        )
        .await
        .expect(201);
}

#[tokio::test]
async fn patches_of_each_kind_are_applied() {
    let server = TestServer::start().await;
    server.config_map("a", json!({"x": "1"})).await;
    let path = format!("{MAPS}/a");
    let merged = server
        .merge(&path, &json!({"data": {"k": null, "l": "w"}}))
        .await
        .expect(200);
    assert_eq!(merged.body["data"], json!({"l": "w"}));
    let patch = json!([{"op": "replace", "path": "/data/l", "value": "x"}]);
    let patched = server
        .request(Method::PATCH, &path, "application/json-patch+json", &patch)
        .await
        .expect(200);
    assert_eq!(patched.body["data"], json!({"l": "x"}));
    let patch = json!({"metadata": {"labels": {"y": "2"}}});
    let patched = server
        .request(
            Method::PATCH,
            &path,
            "application/strategic-merge-patch+json",
            &patch,
        )
        .await
        .expect(200);
    assert_eq!(
        patched.body["metadata"]["labels"],
        json!({"x": "1", "y": "2"})
    );
    server
        .request(Method::PATCH, &path, "application/unheard-of", &patch)
        .await
        .expect(415);
    server
        .merge(&path, &json!({"metadata": {"resourceVersion": "1"}}))
        .await
        .expect(409);
    server
        .merge(&path, &json!({"metadata": {"name": "b"}}))
        .await
        .expect(400);
    server
        .merge(&format!("{MAPS}/none"), &json!({}))
        .await
        .fails(404, "NotFound", "configmaps \"none\" not found");
}

#[tokio::test]
async fn patches_at_once_are_all_applied() {
    let server = std::sync::Arc::new(TestServer::start().await);
    server.config_map("a", json!({})).await;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..8 {
        let server = server.clone();
        tasks.spawn(async move {
            server
                .merge(
                    &format!("{MAPS}/a"),
                    &json!({"data": {format!("k{i}"): "v"}}),
                )
                .await
                .code
        });
    }
    assert!(tasks.join_all().await.into_iter().all(|code| code == 200));
    assert_eq!(
        server.get(&format!("{MAPS}/a")).await.body["data"]
            .as_object()
            .unwrap()
            .len(),
        9
    );
}

#[tokio::test]
async fn a_pod_is_deleted_in_two_steps() {
    let server = TestServer::start().await;
    let pod = server.pod("a").await;
    let path = format!("{PODS}/a");
    let going = server.delete(&path, &Value::Null).await.expect(200);
    assert_eq!(going.body["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(going.body["kind"], "Pod");
    let later = server
        .delete(&path, &json!({"gracePeriodSeconds": 60}))
        .await
        .expect(200);
    assert_eq!(
        later.meta("deletionTimestamp"),
        going.meta("deletionTimestamp")
    );
    let sooner = server
        .delete(&format!("{path}?gracePeriodSeconds=5"), &Value::Null)
        .await
        .expect(200);
    assert_eq!(sooner.body["metadata"]["deletionGracePeriodSeconds"], 5);
    let wrong = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "another"}});
    let refused = server.delete(&path, &wrong).await.expect(409);
    assert!(
        refused
            .message()
            .contains("Precondition failed: UID in precondition: another, UID in object meta:")
    );
    let last = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod.meta("uid")}});
    server.delete(&path, &last).await.expect(200);
    server.get(&path).await.expect(404);
}

#[tokio::test]
async fn an_object_stays_until_its_last_finalizer_is_gone() {
    let server = TestServer::start().await;
    let body = json!({"metadata": {"name": "a", "finalizers": ["example.com/x"]}});
    server.post(MAPS, &body).await.expect(201);
    let path = format!("{MAPS}/a");
    let going = server
        .delete(&path, &json!({"propagationPolicy": "Background"}))
        .await
        .expect(200);
    assert!(!going.meta("deletionTimestamp").is_empty());
    server.get(&path).await.expect(200);
    server
        .merge(&path, &json!({"metadata": {"finalizers": null}}))
        .await
        .expect(200);
    server.get(&path).await.expect(404);
    server
        .delete(&path, &json!({"propagationPolicy": "Sideways"}))
        .await
        .fails(
            422,
            "Invalid",
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Sideways\": supported \
             values: \"Background\", \"Foreground\", \"Orphan\"",
        );
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    let server = TestServer::start().await;
    let body = json!({"metadata": {"name": "a"}});
    server
        .post(&format!("{MAPS}?dryRun=All"), &body)
        .await
        .expect(201);
    server.get(&format!("{MAPS}/a")).await.expect(404);
    server.config_map("a", json!({})).await;
    let changed = server
        .merge(
            &format!("{MAPS}/a?dryRun=All"),
            &json!({"data": {"k": "w"}}),
        )
        .await
        .expect(200);
    assert_eq!(changed.body["data"]["k"], "w");
    server
        .delete(&format!("{MAPS}/a?dryRun=All"), &Value::Null)
        .await
        .expect(200);
    assert_eq!(
        server.get(&format!("{MAPS}/a")).await.expect(200).body["data"]["k"],
        "v"
    );
    server
        .post(&format!("{MAPS}?dryRun=Some"), &body)
        .await
        .expect(422);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let server = TestServer::start().await;
    for (name, color) in [("a", "red"), ("b", "blue"), ("c", "red")] {
        server.config_map(name, json!({"color": color})).await;
    }
    let removed = server
        .delete(&format!("{MAPS}?labelSelector=color%3Dred"), &Value::Null)
        .await
        .expect(200);
    assert_eq!(removed.names(), ["a", "c"]);
    assert_eq!(server.get(MAPS).await.names(), ["b"]);
}

#[tokio::test]
async fn a_pod_gets_its_account_its_token_and_what_it_tolerates() {
    let server = TestServer::start().await;
    let pod = server.pod("a").await;
    let spec = &pod.body["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert!(
        spec["volumes"][0]["name"]
            .as_str()
            .unwrap()
            .starts_with("kube-api-access-")
    );
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(spec["priority"], 0);
    let of_none = json!({"metadata": {"name": "b"}, "spec": {
        "serviceAccountName": "none", "containers": [{"name": "a", "image": "busybox"}],
    }});
    server.post(PODS, &of_none).await.fails(
        403,
        "Forbidden",
        "pods \"b\" is forbidden: error looking up service account default/none: serviceaccount \"none\" not found",
    );
    let of_no_class = json!({"metadata": {"name": "b"}, "spec": {
        "runtimeClassName": "none", "containers": [{"name": "a", "image": "busybox"}],
    }});
    server.post(PODS, &of_no_class).await.fails(
        403,
        "Forbidden",
        "pods \"b\" is forbidden: pod rejected: RuntimeClass \"none\" not found",
    );
}

#[tokio::test]
async fn a_pod_is_bound_once_and_evicted() {
    let server = TestServer::start().await;
    let spec = json!({"containers": [{"name": "a", "image": "busybox"}]});
    server
        .post(PODS, &json!({"metadata": {"name": "a"}, "spec": spec}))
        .await
        .expect(201);
    let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}});
    server
        .post(&format!("{PODS}/a/binding"), &binding)
        .await
        .expect(201);
    let pod = server.get(&format!("{PODS}/a")).await;
    assert_eq!(pod.body["spec"]["nodeName"], "n1");
    let conditions = pod.body["status"]["conditions"].as_array().unwrap();
    assert!(
        conditions
            .iter()
            .any(|c| c["type"] == "PodScheduled" && c["status"] == "True")
    );
    server
        .post(&format!("{PODS}/a/binding"), &binding)
        .await
        .fails(
            409,
            "Conflict",
            "Operation cannot be fulfilled on pods \"a\": pod a is already assigned to node \"n1\"",
        );
    let eviction = json!({"metadata": {"name": "a"}, "deleteOptions": {"gracePeriodSeconds": 0}});
    server
        .post(&format!("{PODS}/a/eviction"), &eviction)
        .await
        .expect(201);
    server.get(&format!("{PODS}/a")).await.expect(404);
}

#[tokio::test]
async fn status_is_written_apart_from_the_rest() {
    let server = TestServer::start().await;
    let pod = server.pod("a").await;
    let path = format!("{PODS}/a");
    let patch = json!({"status": {"phase": "Running"}, "spec": {"hostname": "other"}});
    let patched = server
        .merge(&format!("{path}/status"), &patch)
        .await
        .expect(200);
    assert_eq!(patched.body["status"]["phase"], "Running");
    assert_eq!(patched.body["spec"], pod.body["spec"]);
    assert_eq!(
        patched.body["metadata"]["generation"],
        pod.body["metadata"]["generation"]
    );
    server
        .merge(&format!("{MAPS}/x/status"), &json!({}))
        .await
        .expect(404);
}

#[tokio::test]
async fn services_get_addresses_and_give_them_back() {
    let server = TestServer::start().await;
    let path = "/api/v1/namespaces/default/services";
    let service =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    let made = server.post(path, &service("a")).await.expect(201);
    let ip = made.body["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let mut taken = service("b");
    taken["spec"]["clusterIP"] = ip.clone().into();
    let refused = server.post(path, &taken).await.expect(422);
    assert!(
        refused
            .message()
            .contains("provided IP is already allocated"),
        "{}",
        refused.message()
    );
    server
        .delete(&format!("{path}/a"), &Value::Null)
        .await
        .expect(200);
    server.post(path, &taken).await.expect(201);
    let kubernetes = server.get(&format!("{path}/kubernetes")).await.expect(200);
    assert_eq!(kubernetes.body["spec"]["clusterIP"], "10.96.0.1");
    let endpoints = server
        .get("/api/v1/namespaces/default/endpoints/kubernetes")
        .await
        .expect(200);
    assert_eq!(
        endpoints.body["subsets"][0]["addresses"][0]["ip"],
        "192.0.2.1"
    );
}

#[tokio::test]
async fn a_balancer_that_keeps_who_asks_gets_a_port_for_the_health_of_nodes() {
    let server = TestServer::start().await;
    let path = "/api/v1/namespaces/default/services";
    let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
    let made = server
        .post(path, &json!({"metadata": {"name": "a"}, "spec": spec}))
        .await
        .expect(201);
    let port_of =
        |answered: &crate::harness::Answered| answered.body["spec"]["healthCheckNodePort"].as_u64();
    assert_eq!(port_of(&made), None);
    let policy = |policy: &str| json!({"spec": {"externalTrafficPolicy": policy}});
    let a = format!("{path}/a");
    let local = server.merge(&a, &policy("Local")).await.expect(200);
    let port = port_of(&local).expect("it is given one");
    assert!((30_000..=32_767).contains(&port), "{port}");
    let relabelled = server
        .merge(&a, &json!({"metadata": {"labels": {"x": "y"}}}))
        .await
        .expect(200);
    assert_eq!(port_of(&relabelled), Some(port));
    let mut other = json!({"metadata": {"name": "b"}, "spec": spec});
    other["spec"]["externalTrafficPolicy"] = "Local".into();
    other["spec"]["healthCheckNodePort"] = port.into();
    let refused = server.post(path, &other).await.expect(422);
    let trouble = format!(
        "spec.healthCheckNodePort: Invalid value: {port}: provided port is already allocated"
    );
    assert!(
        refused.message().contains(&trouble),
        "{}",
        refused.message()
    );
    let spread = server.merge(&a, &policy("Cluster")).await.expect(200);
    assert_eq!(port_of(&spread), None);
    let made = server.post(path, &other).await.expect(201);
    assert_eq!(port_of(&made), Some(port));
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_refused() {
    let server = TestServer::start().await;
    let send = |content_type: &'static str, body: String| {
        let request = http::Request::post(MAPS).header(header::CONTENT_TYPE, content_type);
        let request = request.body(axum::body::Body::from(body)).unwrap();
        server.send(Some(wherry_server::UserInfo::admin()), request)
    };
    send("text/plain", String::new()).await.expect(415);
    send("application/json", "{".into()).await.expect(400);
    send("application/json", "[]".into()).await.expect(400);
    send("application/json", "x".repeat(4 << 20)).await.fails(
        413,
        "RequestEntityTooLarge",
        "Request entity too large: limit is 3145728",
    );
    send(
        "application/yaml",
        "metadata:\n  name: from-yaml\ndata: {k: v}\n".into(),
    )
    .await
    .expect(201);
    send("application/vnd.kubernetes.protobuf", "{}".into())
        .await
        .expect(400);
}

#[tokio::test]
async fn unknown_fields_are_an_error_a_warning_or_nothing() {
    let server = TestServer::start().await;
    let body = |name: &str| json!({"metadata": {"name": name}, "dta": {}});
    server.post(&format!("{MAPS}?fieldValidation=Strict"), &body("a")).await.fails(
        400,
        "BadRequest",
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dta\"",
    );
    let warned = server.post(MAPS, &body("b")).await.expect(201);
    assert_eq!(
        warned.headers[header::WARNING],
        "299 - \"unknown field \\\"dta\\\"\""
    );
    let ignored = server
        .post(&format!("{MAPS}?fieldValidation=Ignore"), &body("c"))
        .await
        .expect(201);
    assert!(!ignored.headers.contains_key(header::WARNING));
    assert!(ignored.body.get("dta").is_none());
}

#[tokio::test]
async fn metadata_that_says_nothing_is_not_kept_and_a_dry_run_has_no_version() {
    let server = TestServer::start().await;
    let body =
        json!({"metadata": {"name": "a", "labels": {}, "annotations": {}, "finalizers": []}});
    let tried = server
        .post(&format!("{MAPS}?dryRun=All"), &body)
        .await
        .expect(201);
    assert_eq!(tried.meta("resourceVersion"), "");
    let made = server.post(MAPS, &body).await.expect(201);
    for field in ["labels", "annotations", "finalizers"] {
        assert!(made.body["metadata"].get(field).is_none(), "{field}");
    }
    let same = server
        .merge(&format!("{MAPS}/a"), &json!({"metadata": {"labels": {}}}))
        .await
        .expect(200);
    assert_eq!(same.meta("resourceVersion"), made.meta("resourceVersion"));
}

#[tokio::test]
async fn the_kubernetes_service_has_its_fixed_address_again_after_it_was_deleted() {
    let server = TestServer::start().await;
    let path = "/api/v1/namespaces/default/services/kubernetes";
    let mut watch = server
        .watch("/api/v1/namespaces/default/services?watch=true")
        .await;
    assert_eq!(watch.next_name().await.0, "ADDED");
    server.delete(path, &Value::Null).await.expect(200);
    assert_eq!(watch.next_name().await.0, "DELETED");
    assert_eq!(
        watch.next_name().await,
        ("ADDED".to_owned(), "kubernetes".to_owned())
    );
    assert_eq!(
        server.get(path).await.expect(200).body["spec"]["clusterIP"],
        "10.96.0.1"
    );
}

#[tokio::test]
async fn a_server_finds_what_an_earlier_one_left() {
    let first = TestServer::start().await;
    first.config_map("a", json!({})).await;
    let services = "/api/v1/namespaces/default/services";
    let ports = json!([{"port": 80}]);
    let service = json!({"metadata": {"name": "a"}, "spec": {"ports": ports}});
    let made = first.post(services, &service).await.expect(201);
    let ip = made.body["spec"]["clusterIP"].clone();
    let second = TestServer::on(first.store.clone()).await;
    assert_eq!(
        second.get(&format!("{MAPS}/a")).await.expect(200).body["data"]["k"],
        "v"
    );
    let taken = json!({"metadata": {"name": "b"}, "spec": {"clusterIP": ip, "ports": ports}});
    let refused = second.post(services, &taken).await.expect(422);
    assert!(
        refused
            .message()
            .contains("provided IP is already allocated"),
        "{}",
        refused.message()
    );
}

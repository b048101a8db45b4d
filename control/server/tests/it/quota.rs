//! Quotas, limits and defaults of a namespace, as objects are made in it.

use futures::future::join_all;
use http::Method;
use serde_json::{Value, json};

use crate::harness::TestServer;

const NS: &str = "/api/v1/namespaces/default";

/// A quota that has been counted.
async fn quota(server: &TestServer, name: &str, spec: Value, used: Value) {
    let quota = json!({"metadata": {"name": name}, "spec": spec});
    let path = format!("{NS}/resourcequotas");
    let mut made = server.post(&path, &quota).await.expect(201).body;
    made["status"] = json!({"hard": spec["hard"], "used": used});
    server
        .put(&format!("{path}/{name}/status"), &made)
        .await
        .expect(200);
}

async fn used(server: &TestServer, name: &str) -> Value {
    server
        .get(&format!("{NS}/resourcequotas/{name}"))
        .await
        .expect(200)
        .body["status"]["used"]
        .clone()
}

fn pod(name: &str, resources: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

#[tokio::test]
async fn of_many_at_once_as_many_are_made_as_the_quota_holds() {
    let server = TestServer::start().await;
    quota(
        &server,
        "few",
        json!({"hard": {"pods": "7", "cpu": "1"}}),
        json!({"pods": "0", "cpu": "0"}),
    )
    .await;
    quota(
        &server,
        "other",
        json!({"hard": {"count/pods": "100"}}),
        json!({"count/pods": "3"}),
    )
    .await;
    let path = format!("{NS}/pods");
    let pods: Vec<Value> = (0..40)
        .map(|i| pod(&format!("p{i}"), json!({"requests": {"cpu": "10m"}})))
        .collect();
    let answers = join_all(pods.iter().map(|pod| server.post(&path, pod))).await;
    let made = answers.iter().filter(|answer| answer.code == 201).count();
    assert_eq!(made, 7);
    assert_eq!(server.get(&path).await.names().len(), 7);
    assert_eq!(
        used(&server, "few").await,
        json!({"cpu": "70m", "pods": "7"})
    );
    assert_eq!(used(&server, "other").await, json!({"count/pods": "10"}));
    let refused = answers
        .iter()
        .find(|answer| answer.code == 403)
        .expect("some are refused");
    let message = refused.message();
    assert!(
        message.ends_with("exceeded quota: few, requested: pods=1, used: pods=7, limited: pods=7"),
        "{message}"
    );
}

#[tokio::test]
async fn what_is_not_made_gives_back_what_was_reserved() {
    let server = TestServer::start().await;
    quota(
        &server,
        "q",
        json!({"hard": {"configmaps": "2", "services.nodeports": "1"}}),
        json!({"configmaps": "0", "services.nodeports": "0"}),
    )
    .await;
    let path = format!("{NS}/configmaps");
    let map = json!({"metadata": {"name": "a"}});
    server.post(&path, &map).await.expect(201);
    server.post(&path, &map).await.expect(409);
    assert_eq!(used(&server, "q").await["configmaps"], "1");
    let dry = server
        .post(
            &format!("{path}?dryRun=All"),
            &json!({"metadata": {"name": "b"}}),
        )
        .await;
    assert_eq!(dry.code, 201);
    assert_eq!(used(&server, "q").await["configmaps"], "1");
    // A change is held to it as well.
    let services = format!("{NS}/services");
    let service = |name: &str, type_: &str| json!({"metadata": {"name": name}, "spec": {"type": type_, "ports": [{"port": 80}]}});
    server
        .post(&services, &service("a", "NodePort"))
        .await
        .expect(201);
    server
        .post(&services, &service("b", "ClusterIP"))
        .await
        .expect(201);
    let change = json!({"spec": {"type": "NodePort"}});
    let refused = server
        .merge(&format!("{services}/b"), &change)
        .await
        .expect(403);
    assert!(
        refused
            .message()
            .contains("exceeded quota: q, requested: services.nodeports=1"),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn a_pod_that_comes_into_a_scope_takes_all_of_what_it_has_of_it() {
    let server = TestServer::start().await;
    for (scope, cpu) in [("Terminating", "1"), ("NotTerminating", "2")] {
        let spec = json!({"hard": {"pods": "2", "requests.cpu": cpu}, "scopes": [scope]});
        let used = json!({"pods": "0", "requests.cpu": "0"});
        quota(&server, &scope.to_lowercase(), spec, used).await;
    }
    let path = format!("{NS}/pods");
    for name in ["a", "b"] {
        let resources = json!({"requests": {"cpu": "600m"}});
        server.post(&path, &pod(name, resources)).await.expect(201);
    }
    let ends = json!({"spec": {"activeDeadlineSeconds": 60}});
    server.merge(&format!("{path}/a"), &ends).await.expect(200);
    assert_eq!(
        used(&server, "terminating").await,
        json!({"pods": "1", "requests.cpu": "600m"})
    );
    server.merge(&format!("{path}/b"), &ends).await.fails(
        403,
        "Forbidden",
        "pods \"b\" is forbidden: exceeded quota: terminating, requested: requests.cpu=600m, used: requests.cpu=600m, \
         limited: requests.cpu=1",
    );
    // What stays in its scope takes nothing anew.
    let sooner = json!({"spec": {"activeDeadlineSeconds": 30}});
    server
        .merge(&format!("{path}/a"), &sooner)
        .await
        .expect(200);
    assert_eq!(used(&server, "terminating").await["pods"], "1");
}

#[tokio::test]
async fn a_quota_wants_pods_to_say_what_they_take() {
    let server = TestServer::start().await;
    quota(
        &server,
        "compute",
        json!({"hard": {"limits.cpu": "1"}}),
        json!({"limits.cpu": "0"}),
    )
    .await;
    quota(
        &server,
        "best-effort",
        json!({"hard": {"pods": "0"}, "scopes": ["BestEffort"]}),
        json!({"pods": "0"}),
    )
    .await;
    let path = format!("{NS}/pods");
    server
        .post(&path, &pod("a", json!({"requests": {"cpu": "1m"}})))
        .await
        .fails(
            403,
            "Forbidden",
            "pods \"a\" is forbidden: failed quota: compute: must specify limits.cpu for: c",
        );
    server
        .post(&path, &pod("a", json!({"limits": {"cpu": "100m"}})))
        .await
        .expect(201);
    // What a LimitRange gives counts.
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "200m"}, "max": {"cpu": "500m"}},
    ]}});
    server
        .post(&format!("{NS}/limitranges"), &range)
        .await
        .expect(201);
    let made = server.post(&path, &pod("b", json!({}))).await.expect(201);
    let resources = &made.body["spec"]["containers"][0]["resources"];
    assert_eq!(
        *resources,
        json!({"limits": {"cpu": "200m"}, "requests": {"cpu": "200m"}})
    );
    assert_eq!(
        used(&server, "compute").await,
        json!({"limits.cpu": "300m"})
    );
    server
        .post(&path, &pod("c", json!({"limits": {"cpu": "600m"}})))
        .await
        .fails(
            403,
            "Forbidden",
            "pods \"c\" is forbidden: maximum cpu usage per Container is 500m, but limit is 600m",
        );
}

#[tokio::test]
async fn a_claim_gets_the_default_class_and_grows_where_the_class_lets_it() {
    let server = TestServer::start().await;
    let classes = "/apis/storage.k8s.io/v1/storageclasses";
    for (name, is_default, grows) in [("plain", "false", false), ("a-usual", "true", true)] {
        let class = json!({
            "metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": is_default}},
            "provisioner": "p", "allowVolumeExpansion": grows,
        });
        server.post(classes, &class).await.expect(201);
    }
    let path = format!("{NS}/persistentvolumeclaims");
    for (name, class, expected) in [
        ("a", Value::Null, json!("a-usual")),
        ("b", json!(""), json!("")),
        ("c", json!("plain"), json!("plain")),
    ] {
        let mut claim = json!({"metadata": {"name": name}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        }});
        if !class.is_null() {
            claim["spec"]["storageClassName"] = class;
        }
        let mut made = server.post(&path, &claim).await.expect(201).body;
        assert_eq!(made["spec"]["storageClassName"], expected);
        made["status"]["phase"] = "Bound".into();
        server
            .put(&format!("{path}/{name}/status"), &made)
            .await
            .expect(200);
    }
    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    server
        .merge(&format!("{path}/a"), &larger)
        .await
        .expect(200);
    server.merge(&format!("{path}/c"), &larger).await.fails(
        403,
        "Forbidden",
        "persistentvolumeclaims \"c\" is forbidden: only dynamically provisioned pvc can be resized and the storageclass \
         that provisions the pvc must support resize",
    );
    let smaller = json!({"spec": {"resources": {"requests": {"storage": "1Mi"}}}});
    server
        .request(
            Method::PATCH,
            &format!("{path}/a"),
            "application/merge-patch+json",
            &smaller,
        )
        .await
        .expect(422);
}

//! Roles, and what nobody may give away.

use axum::body::Body;
use http::{Method, Request, header};
use serde_json::{Value, json};
use wherry_server::UserInfo;

use crate::harness::{Answered, PATIENCE, TestServer};

const GROUP: &str = "/apis/rbac.authorization.k8s.io/v1";

async fn as_user(
    server: &TestServer,
    name: &str,
    method: Method,
    path: &str,
    body: &Value,
) -> Answered {
    server
        .ask(&UserInfo::new(name, &[]), method, path, body)
        .await
}

/// Asks until the answer has this code: the policy is read when its objects have been written.
async fn eventually(server: &TestServer, name: &str, path: &str, code: u16) {
    let asked = async {
        while as_user(server, name, Method::GET, path, &Value::Null)
            .await
            .code
            != code
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .expect("the policy is read in time");
}

fn role(name: &str, rules: Value) -> Value {
    json!({"metadata": {"name": name}, "rules": rules})
}

fn binding(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "roleRef": {"kind": kind, "name": role},
        "subjects": [{"kind": "User", "name": user}],
    })
}

#[tokio::test]
async fn a_role_lets_its_subjects_do_what_it_names_where_it_is_bound() {
    let server = TestServer::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    as_user(&server, "jane", Method::GET, pods, &Value::Null).await.fails(
        403,
        "Forbidden",
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"",
    );
    let rules = json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]);
    let roles = format!("{GROUP}/namespaces/default/roles");
    server
        .post(&roles, &role("reader", rules))
        .await
        .expect(201);
    let bindings = format!("{GROUP}/namespaces/default/rolebindings");
    server
        .post(&bindings, &binding("jane", "Role", "reader", "jane"))
        .await
        .expect(201);
    eventually(&server, "jane", pods, 200).await;
    as_user(&server, "jane", Method::GET, "/api/v1/pods", &Value::Null)
        .await
        .expect(403);
    as_user(
        &server,
        "jane",
        Method::GET,
        &format!("{pods}/a"),
        &Value::Null,
    )
    .await
    .expect(403);
    let review = json!({"spec": {"namespace": "default"}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let reviewed = as_user(&server, "jane", Method::POST, path, &review)
        .await
        .expect(201);
    let expected = json!({"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]});
    let found = reviewed.body["status"]["resourceRules"].as_array().unwrap();
    assert!(found.contains(&expected), "{found:?}");
    server
        .delete(&format!("{bindings}/jane"), &Value::Null)
        .await
        .expect(200);
    eventually(&server, "jane", pods, 403).await;
}

#[tokio::test]
async fn the_roles_every_cluster_has_gather_what_they_are_to() {
    let server = TestServer::start().await;
    let bindings = format!("{GROUP}/namespaces/default/rolebindings");
    for (user, role) in [("viewer", "view"), ("editor", "edit"), ("owner", "admin")] {
        server
            .post(&bindings, &binding(user, "ClusterRole", role, user))
            .await
            .expect(201);
    }
    let maps = "/api/v1/namespaces/default/configmaps";
    let secrets = "/api/v1/namespaces/default/secrets";
    for user in ["viewer", "editor", "owner"] {
        eventually(&server, user, maps, 200).await;
    }
    let map = json!({"metadata": {"generateName": "a"}});
    for (user, reads_secrets, writes) in [
        ("viewer", 403, 403),
        ("editor", 200, 201),
        ("owner", 200, 201),
    ] {
        as_user(&server, user, Method::GET, secrets, &Value::Null)
            .await
            .expect(reads_secrets);
        as_user(&server, user, Method::POST, maps, &map)
            .await
            .expect(writes);
    }
    as_user(
        &server,
        "editor",
        Method::POST,
        &bindings,
        &binding("x", "ClusterRole", "view", "y"),
    )
    .await
    .expect(403);
}

#[tokio::test]
async fn nobody_gives_away_what_they_may_not_do_themselves() {
    let server = TestServer::start().await;
    let bindings = format!("{GROUP}/namespaces/default/rolebindings");
    let roles = format!("{GROUP}/namespaces/default/roles");
    server
        .post(
            &bindings,
            &binding("owner", "ClusterRole", "admin", "owner"),
        )
        .await
        .expect(201);
    eventually(&server, "owner", &roles, 200).await;
    let viewer = binding("v", "ClusterRole", "view", "friend");
    as_user(&server, "owner", Method::POST, &bindings, &viewer)
        .await
        .expect(201);
    let everything = binding("all", "ClusterRole", "cluster-admin", "owner");
    let refused = as_user(&server, "owner", Method::POST, &bindings, &everything)
        .await
        .expect(403);
    assert!(
        refused.message().contains(
            "user \"owner\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently \
             held:\n{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}"
        ),
        "{}",
        refused.message()
    );
    let rules = |verb: &str| json!([{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]);
    as_user(
        &server,
        "owner",
        Method::POST,
        &roles,
        &role("mine", rules("get")),
    )
    .await
    .expect(201);
    let path = format!("{roles}/mine");
    as_user(
        &server,
        "owner",
        Method::PUT,
        &path,
        &role("mine", rules("bind")),
    )
    .await
    .expect(403);
    as_user(
        &server,
        "owner",
        Method::PUT,
        &path,
        &role("mine", rules("list")),
    )
    .await
    .expect(200);
}

#[tokio::test]
async fn roles_are_refused_in_kubernetes_words() {
    let server = TestServer::start().await;
    let roles = format!("{GROUP}/namespaces/default/roles");
    let urls = json!([{"verbs": ["get"], "nonResourceURLs": ["/x"]}]);
    server.post(&roles, &role("a", urls)).await.fails(
        422,
        "Invalid",
        "Role.rbac.authorization.k8s.io \"a\" is invalid: rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced \
         rules cannot apply to non-resource URLs",
    );
    let bindings = format!("{GROUP}/namespaces/default/rolebindings");
    server
        .post(&bindings, &binding("b", "Role", "a", "x"))
        .await
        .expect(201);
    let mut other = binding("b", "Role", "c", "x");
    other["metadata"]["namespace"] = "default".into();
    let refused = server
        .put(&format!("{bindings}/b"), &other)
        .await
        .expect(422);
    assert!(
        refused.message().contains("cannot change roleRef"),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn a_node_writes_the_status_of_its_own_pods_alone() {
    let server = TestServer::start().await;
    server.pod("a").await;
    let patch = |node: &str| {
        let request = Request::patch("/api/v1/namespaces/default/pods/a/status")
            .header(header::CONTENT_TYPE, "application/merge-patch+json")
            .body(Body::from(json!({"status": {"reason": "x"}}).to_string()))
            .unwrap();
        (UserInfo::node(node), request)
    };
    let (other, request) = patch("n2");
    server.send(Some(other), request).await.fails(
        403,
        "Forbidden",
        "pods \"a\" is forbidden: node \"n2\" can only update pod status for pods with spec.nodeName set to itself",
    );
    let (own, request) = patch("n1");
    server.send(Some(own), request).await.expect(200);
}

//! Who is believed, and who may.

use axum::body::Body;
use http::{Request, header};
use serde_json::{Value, json};
use wherry_server::{AnonymousAuth, UserInfo};

use crate::harness::{Answered, TestServer};

async fn bearer(
    server: &TestServer,
    method: &str,
    path: &str,
    token: &str,
    body: Value,
) -> Answered {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    server.send(None, request).await
}

#[tokio::test]
async fn where_anonymous_requests_are_let_in_they_see_health_and_version_alone() {
    let server = TestServer::with_anonymous(AnonymousAuth::All).await;
    let ask =
        |path: &'static str| server.send(None, Request::get(path).body(Body::empty()).unwrap());
    for path in [
        "/livez",
        "/readyz",
        "/healthz",
        "/readyz?verbose",
        "/version",
        "/version/",
    ] {
        ask(path).await.expect(200);
    }
    // Whatever form a prober asks for.
    let html = Request::get("/healthz").header(header::ACCEPT, "text/html");
    let answered = server.send(None, html.body(Body::empty()).unwrap()).await;
    assert_eq!(answered.expect(200).text, "ok");
    for path in [
        "/",
        "/api",
        "/apis",
        "/openapi/v2",
        "/metrics",
        "/nonsense",
        "/readyz/ping",
    ] {
        let message = format!("forbidden: User \"system:anonymous\" cannot get path \"{path}\"");
        ask(path).await.fails(403, "Forbidden", &message);
    }
    ask("/api/v1/pods").await.fails(
        403,
        "Forbidden",
        "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster \
         scope",
    );
    let reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let request = Request::post(reviews).header(header::CONTENT_TYPE, "application/json");
    let request = request.body(Body::from("{}")).unwrap();
    server.send(None, request).await.expect(403);
    let request = Request::get("/healthz").header("Impersonate-User", "system:admin");
    server
        .send(None, request.body(Body::empty()).unwrap())
        .await
        .expect(403);
    for path in ["/api", "/healthz"] {
        bearer(&server, "GET", path, "nonsense", Value::Null)
            .await
            .fails(401, "Unauthorized", "Unauthorized");
    }
}

#[tokio::test]
async fn who_shows_no_credentials_is_unauthorized_and_may_ask_for_health() {
    let health = ["/livez", "/readyz", "/healthz", "/readyz?verbose"];
    let others = [
        "/version",
        "/api",
        "/metrics",
        "/api/v1/pods",
        "/healthz/",
        "/readyz/ping",
    ];
    for (anonymous, is_healthy) in [(AnonymousAuth::Health, true), (AnonymousAuth::None, false)] {
        let server = TestServer::with_anonymous(anonymous).await;
        let answers = health.map(|path| (path, is_healthy));
        for (path, is_let_in) in answers.into_iter().chain(others.map(|path| (path, false))) {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let answered = server.send(None, request).await;
            if is_let_in {
                answered.expect(200);
            } else {
                answered.fails(401, "Unauthorized", "Unauthorized");
            }
        }
        server.get("/healthz").await.expect(200);
    }
}

#[tokio::test]
async fn a_service_account_is_known_by_its_token_and_may_little() {
    let server = TestServer::start().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let made = server
        .post(path, &json!({"spec": {"expirationSeconds": 600}}))
        .await
        .expect(201);
    let token = made.body["status"]["token"].as_str().unwrap();
    let reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let who = bearer(&server, "POST", reviews, token, json!({}))
        .await
        .expect(201);
    assert_eq!(
        who.body["status"]["userInfo"]["username"],
        "system:serviceaccount:default:default"
    );
    bearer(&server, "GET", "/api/v1", token, Value::Null)
        .await
        .expect(200);
    bearer(&server, "GET", "/api/v1/namespaces/default/pods", token, Value::Null).await.fails(
        403,
        "Forbidden",
        "pods is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"pods\" in API group \
         \"\" in the namespace \"default\"",
    );
    server
        .post(path, &json!({"spec": {"expirationSeconds": 60}}))
        .await
        .expect(422);
    server
        .delete(
            "/api/v1/namespaces/default/serviceaccounts/default",
            &Value::Null,
        )
        .await
        .expect(200);
    bearer(&server, "POST", reviews, token, json!({}))
        .await
        .expect(401);
}

#[tokio::test]
async fn a_token_bound_to_a_pod_ends_with_it_and_is_for_its_audience() {
    let server = TestServer::start().await;
    let pod = server.pod("a").await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let reference = json!({"kind": "Pod", "apiVersion": "v1", "name": "a", "uid": pod.meta("uid")});
    let made = server
        .post(
            path,
            &json!({"spec": {"audiences": ["vault"], "boundObjectRef": reference}}),
        )
        .await
        .expect(201);
    let token = made.body["status"]["token"].clone();
    let review = |audiences: Value| {
        let server = &server;
        let body = json!({"spec": {"token": token, "audiences": audiences}});
        async move {
            server
                .post("/apis/authentication.k8s.io/v1/tokenreviews", &body)
                .await
                .expect(201)
                .body["status"]
                .clone()
        }
    };
    let status = review(json!(["vault"])).await;
    assert_eq!(status["authenticated"], true);
    assert_eq!(
        status["user"]["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["a"])
    );
    assert_eq!(review(json!([])).await["authenticated"], false);
    bearer(&server, "GET", "/api", token.as_str().unwrap(), Value::Null)
        .await
        .expect(401);
    server
        .delete(
            "/api/v1/namespaces/default/pods/a?gracePeriodSeconds=0",
            &Value::Null,
        )
        .await
        .expect(200);
    assert_eq!(review(json!(["vault"])).await["authenticated"], false);
}

#[tokio::test]
async fn an_agent_may_what_its_node_needs() {
    let server = TestServer::start().await;
    let as_node = |method: &'static str, path: &'static str, body: Value| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json");
        server.send(
            Some(UserInfo::node("n1")),
            request.body(Body::from(body.to_string())).unwrap(),
        )
    };
    as_node("POST", "/api/v1/nodes", json!({"metadata": {"name": "n1"}}))
        .await
        .expect(201);
    as_node(
        "GET",
        "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1",
        Value::Null,
    )
    .await
    .expect(200);
    as_node("DELETE", "/api/v1/nodes/n2", Value::Null)
        .await
        .expect(403);
    let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "b"}]}});
    as_node("POST", "/api/v1/namespaces/default/pods", pod.clone())
        .await
        .expect(403);
    let mut mirror = pod;
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
    let made = as_node("POST", "/api/v1/namespaces/default/pods", mirror)
        .await
        .expect(201);
    assert!(made.body["spec"].get("serviceAccountName").is_none());
}

#[tokio::test]
async fn questions_about_access_are_answered() {
    let server = TestServer::start().await;
    let attributes = json!({"verb": "list", "resource": "pods", "namespace": "default"});
    let mine = json!({"spec": {"resourceAttributes": attributes}});
    let answer = server
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &mine,
        )
        .await
        .expect(201);
    assert_eq!(answer.body["status"]["allowed"], true);
    let theirs = json!({"spec": {"user": "somebody", "resourceAttributes": attributes}});
    let answer = server
        .post(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            &theirs,
        )
        .await
        .expect(201);
    assert_eq!(answer.body["status"]["allowed"], false);
    server
        .get("/apis/authorization.k8s.io/v1/subjectaccessreviews")
        .await
        .expect(405);
}

#[tokio::test]
async fn an_administrator_may_ask_as_somebody_else_and_others_may_not() {
    let server = TestServer::start().await;
    let as_bob = |user: UserInfo, path: &'static str| {
        let request = Request::get(path).header("Impersonate-User", "bob");
        server.send(Some(user), request.body(Body::empty()).unwrap())
    };
    as_bob(UserInfo::admin(), "/api/v1").await.expect(200);
    as_bob(UserInfo::admin(), "/api/v1/pods").await.fails(
        403,
        "Forbidden",
        "pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" at the cluster scope",
    );
    as_bob(UserInfo::node("n1"), "/api/v1").await.fails(
        403,
        "Forbidden",
        "users \"bob\" is forbidden: User \"system:node:n1\" cannot impersonate resource \"users\" in API group \"\" at \
         the cluster scope",
    );
    let group_only = Request::get("/api/v1").header("Impersonate-Group", "system:masters");
    let request = group_only.body(Body::empty()).unwrap();
    server
        .send(Some(UserInfo::admin()), request)
        .await
        .expect(400);
}

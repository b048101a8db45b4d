//! Server-side apply, and the record of who manages what.

use http::{Method, Request, header};
use serde_json::{Value, json};
use wherry_server::UserInfo;

use crate::harness::{Answered, TestServer};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
}

async fn apply(server: &TestServer, query: &str, body: &Value) -> Answered {
    let path = format!("{MAPS}/a?{query}");
    server
        .request(Method::PATCH, &path, "application/apply-patch+yaml", body)
        .await
}

#[tokio::test]
async fn applying_makes_and_changes_an_object() {
    let server = TestServer::start().await;
    let made = apply(&server, "fieldManager=one", &map(json!({"x": "1"})))
        .await
        .expect(201);
    assert_eq!(made.body["metadata"]["managedFields"][0]["manager"], "one");
    let again = apply(&server, "fieldManager=one", &map(json!({"x": "1"})))
        .await
        .expect(200);
    assert_eq!(
        again.meta("resourceVersion"),
        made.meta("resourceVersion"),
        "no change, no write"
    );
    let refused = apply(&server, "fieldManager=two", &map(json!({"x": "2"})))
        .await
        .fails(
            409,
            "Conflict",
            "Apply failed with 1 conflict: conflict with \"one\": .data.x",
        );
    assert_eq!(
        refused.body["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".data.x"}])
    );
    let dry = apply(
        &server,
        "fieldManager=two&force=true&dryRun=All",
        &map(json!({"x": "2"})),
    )
    .await;
    assert_eq!(dry.expect(200).body["data"]["x"], "2");
    assert_eq!(
        server.get(&format!("{MAPS}/a")).await.body["data"]["x"],
        "1"
    );
    let forced = apply(
        &server,
        "fieldManager=two&force=true",
        &map(json!({"x": "2"})),
    )
    .await;
    assert_eq!(
        forced.expect(200).body["metadata"]["managedFields"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn an_application_is_refused_in_kubernetes_words() {
    let server = TestServer::start().await;
    apply(&server, "", &map(json!({}))).await.fails(
        422,
        "Invalid",
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
    );
    let mut other = map(json!({}));
    other["metadata"]["name"] = "b".into();
    apply(&server, "fieldManager=one", &other).await.expect(400);
    let mut recorded = map(json!({}));
    recorded["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Apply"}]);
    apply(&server, "fieldManager=one", &recorded).await.fails(
        400,
        "BadRequest",
        "metadata.managedFields must be nil",
    );
    let mut unknown = map(json!({}));
    unknown["dta"] = json!({});
    apply(&server, "fieldManager=one&fieldValidation=Strict", &unknown)
        .await
        .expect(400);
    let mut gone = map(json!({}));
    gone["metadata"]["uid"] = "1".into();
    apply(&server, "fieldManager=one", &gone).await.expect(409);
    let path = format!("{MAPS}/a?force=true");
    server.merge(&path, &json!({})).await.fails(
        422,
        "Invalid",
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
    );
}

#[tokio::test]
async fn an_update_is_its_clients_by_name() {
    let server = TestServer::start().await;
    let body = json!({"metadata": {"name": "a"}, "data": {"x": "1"}});
    let request = Request::post(MAPS)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, "kubectl/v1.33.0 (linux/amd64)")
        .body(axum::body::Body::from(body.to_string()))
        .unwrap();
    let made = server
        .send(Some(UserInfo::admin()), request)
        .await
        .expect(201);
    let entry = &made.body["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["manager"], &entry["operation"]),
        (&json!("kubectl"), &json!("Update"))
    );
    assert_eq!(entry["fieldsV1"], json!({"f:data": {"f:x": {}}}));
    let path = format!("{MAPS}/a?fieldManager=editor");
    let changed = server
        .merge(&path, &json!({"data": {"x": "2"}}))
        .await
        .expect(200);
    let managers: Vec<&str> = changed.body["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["manager"].as_str().unwrap())
        .collect();
    assert_eq!(managers, ["editor"]);
    apply(&server, "fieldManager=one", &map(json!({"x": "3"})))
        .await
        .expect(409);
}

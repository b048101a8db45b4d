//! Lists, their pages and forms, and discovery.

use serde_json::json;

use crate::harness::TestServer;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn with_maps(count: usize) -> TestServer {
    let server = TestServer::start().await;
    for i in 0..count {
        server
            .config_map(
                &format!("m{i}"),
                json!({"parity": if i % 2 == 0 { "even" } else { "odd" }}),
            )
            .await;
    }
    server
}

#[tokio::test]
async fn pages_are_true_at_one_revision() {
    let server = with_maps(5).await;
    let first = server.get(&format!("{MAPS}?limit=2")).await.expect(200);
    assert_eq!(first.names(), ["m0", "m1"]);
    assert_eq!(first.body["metadata"]["remainingItemCount"], 3);
    server.config_map("m11", json!({})).await;
    let second = server
        .get(&format!(
            "{MAPS}?limit=2&continue={}",
            first.meta("continue")
        ))
        .await
        .expect(200);
    assert_eq!(second.names(), ["m2", "m3"]);
    assert_eq!(
        second.meta("resourceVersion"),
        first.meta("resourceVersion")
    );
    let third = server
        .get(&format!(
            "{MAPS}?limit=2&continue={}",
            second.meta("continue")
        ))
        .await
        .expect(200);
    assert_eq!(third.names(), ["m4"]);
    assert_eq!(third.meta("continue"), "");
}

#[tokio::test]
async fn a_page_of_a_forgotten_revision_says_how_to_go_on() {
    let server = with_maps(3).await;
    let first = server.get(&format!("{MAPS}?limit=1")).await.expect(200);
    server.config_map("z", json!({})).await;
    server
        .store
        .compact(server.store.current_revision().await.unwrap())
        .await
        .unwrap();
    let gone = server
        .get(&format!(
            "{MAPS}?limit=1&continue={}",
            first.meta("continue")
        ))
        .await
        .expect(410);
    assert_eq!(gone.body["reason"], "Expired");
    assert!(gone.message().starts_with(
        "The provided continue parameter is too old to display a consistent list result."
    ));
    let rest = server
        .get(&format!("{MAPS}?continue={}", gone.meta("continue")))
        .await
        .expect(200);
    assert_eq!(rest.names(), ["m1", "m2", "z"]);
    server
        .get(&format!("{MAPS}?continue=nonsense"))
        .await
        .expect(400);
}

#[tokio::test]
async fn selectors_choose() {
    let server = with_maps(4).await;
    for (query, expected) in [
        ("labelSelector=parity%3Deven", vec!["m0", "m2"]),
        ("labelSelector=parity%20notin%20(even)", vec!["m1", "m3"]),
        ("fieldSelector=metadata.name%3Dm3", vec!["m3"]),
        ("fieldSelector=metadata.name!%3Dm3", vec!["m0", "m1", "m2"]),
        ("labelSelector=parity%3Deven&limit=1", vec!["m0"]),
    ] {
        let listed = server.get(&format!("{MAPS}?{query}")).await.expect(200);
        let names: Vec<&str> = listed
            .names()
            .into_iter()
            .filter(|name| name.starts_with('m'))
            .collect();
        assert_eq!(names, expected, "{query}");
    }
    let all = server
        .get("/api/v1/configmaps?fieldSelector=metadata.name%3Dm1")
        .await
        .expect(200);
    assert_eq!(all.names(), ["m1"]);
    server
        .get(&format!("{MAPS}?labelSelector=a%20b"))
        .await
        .expect(400);
    server
        .get(&format!("{MAPS}?fieldSelector=spec.x%3D1"))
        .await
        .expect(400);
}

#[tokio::test]
async fn versions_asked_for_are_kept_to() {
    let server = with_maps(1).await;
    let first = server.get(MAPS).await;
    server.config_map("m9", json!({})).await;
    let version = first.meta("resourceVersion").to_owned();
    let exact = server
        .get(&format!(
            "{MAPS}?resourceVersion={version}&resourceVersionMatch=Exact"
        ))
        .await
        .expect(200);
    assert_eq!(exact.names(), ["m0"]);
    let newer = server
        .get(&format!(
            "{MAPS}?resourceVersion={version}&resourceVersionMatch=NotOlderThan"
        ))
        .await
        .expect(200);
    assert_eq!(newer.names(), ["m0", "m9"]);
    let future = server
        .get(&format!("{MAPS}?resourceVersion=99999"))
        .await
        .expect(504);
    assert!(
        future
            .message()
            .starts_with("Timeout: Too large resource version: 99999, current: ")
    );
    server
        .get(&format!("{MAPS}?resourceVersionMatch=Exact"))
        .await
        .expect(422);
    server
        .get(&format!("{MAPS}?resourceVersion=x"))
        .await
        .expect(422);
}

#[tokio::test]
async fn a_list_is_a_table_metadata_or_yaml_when_asked_for() {
    let server = with_maps(2).await;
    let table = server
        .get_as(
            MAPS,
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        )
        .await
        .expect(200);
    assert_eq!(table.body["kind"], "Table");
    assert_eq!(table.body["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table.body["rows"][0]["cells"][0], "m0");
    assert_eq!(
        table.body["rows"][0]["object"]["kind"],
        "PartialObjectMetadata"
    );
    let bare = server
        .get_as(
            &format!("{MAPS}?includeObject=None"),
            "application/json;as=Table;v=v1;g=meta.k8s.io",
        )
        .await;
    assert!(bare.body["rows"][0]["object"].is_null());
    let partial = server
        .get_as(
            MAPS,
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
        )
        .await;
    assert_eq!(partial.body["kind"], "PartialObjectMetadataList");
    assert!(partial.body["items"][0].get("data").is_none());
    assert_eq!(partial.names(), ["m0", "m1"]);
    let yaml = server
        .get_as(&format!("{MAPS}/m0"), "application/yaml")
        .await
        .expect(200);
    assert!(yaml.text.contains("kind: ConfigMap"), "{}", yaml.text);
    server
        .get_as(MAPS, "application/vnd.kubernetes.protobuf")
        .await
        .fails(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json, application/yaml",
        );
}

#[tokio::test]
async fn a_long_list_arrives_whole() {
    let server = TestServer::start().await;
    for i in 0..300 {
        let body =
            json!({"metadata": {"name": format!("m{i:03}")}, "data": {"k": "x".repeat(1000)}});
        server.post(MAPS, &body).await.expect(201);
    }
    let listed = server.get(MAPS).await.expect(200);
    assert_eq!(listed.names().len(), 300);
    assert_eq!(
        listed.body["items"][299]["data"]["k"]
            .as_str()
            .unwrap()
            .len(),
        1000
    );
}

#[tokio::test]
async fn discovery_names_what_is_served() {
    let server = TestServer::start().await;
    let core = server.get("/api/v1").await.expect(200);
    let names: Vec<&str> = core.body["resources"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|r| r["name"].as_str())
        .collect();
    for name in [
        "pods",
        "pods/log",
        "pods/exec",
        "nodes/proxy",
        "bindings",
        "namespaces/finalize",
    ] {
        assert!(names.contains(&name), "{name}");
    }
    let groups = server.get("/apis").await.expect(200);
    assert!(
        groups.body["groups"]
            .as_array()
            .unwrap()
            .iter()
            .any(|group| group["name"] == "coordination.k8s.io")
    );
    server.get("/apis/coordination.k8s.io").await.expect(200);
    server.get("/apis/none").await.fails(
        404,
        "NotFound",
        "the server could not find the requested resource",
    );
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let aggregated = server.get_as("/api", accept).await.expect(200);
    assert_eq!(aggregated.headers["content-type"], accept);
    assert_eq!(aggregated.body["items"][0]["versions"][0]["version"], "v1");
    assert_eq!(server.get("/version").await.expect(200).body["major"], "1");
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there_are_refused() {
    let server = TestServer::start().await;
    let unknown = "the server could not find the requested resource";
    for path in [
        "/nonsense",
        "/api/v2/pods",
        "/api/v1/nonsense",
        "/apis/apps/v1/nonsense",
        "/api/v1/pods/a",
        "/api/v1/namespaces/default/nodes",
        "/api/v1/namespaces/default/pods/a/nonsense",
    ] {
        server.get(path).await.fails(404, "NotFound", unknown);
    }
    server.put(MAPS, &json!({})).await.expect(405);
    server
        .post(&format!("{MAPS}/a"), &json!({}))
        .await
        .expect(405);
}

#[tokio::test]
async fn the_old_openapi_document_is_had_in_protobuf_as_kubectl_asks_for_it() {
    let server = TestServer::start().await;
    for accept in [
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    ] {
        let answered = server.get_as("/openapi/v2", accept).await.expect(200);
        assert_eq!(
            answered.headers["content-type"],
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
        );
        assert!(
            answered.text.starts_with("\n\u{3}2.0"),
            "field 1 is the version, 2.0"
        );
    }
}

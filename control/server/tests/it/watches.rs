//! Watches: where they begin, what they show, how they end.

use std::{collections::BTreeMap, sync::Arc};

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, runtime::watcher};
use serde_json::{Value, json};

use crate::harness::TestServer;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn named(event: &str, name: &str) -> (String, String) {
    (event.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_watch_from_nowhere_begins_with_what_is_there() {
    let server = TestServer::start().await;
    server.config_map("a", json!({})).await;
    let mut watch = server.watch(&format!("{MAPS}?watch=true")).await;
    assert_eq!(watch.next_name().await, named("ADDED", "a"));
    server.config_map("b", json!({})).await;
    assert_eq!(watch.next_name().await, named("ADDED", "b"));
    server
        .merge(&format!("{MAPS}/b"), &json!({"data": {"k": "w"}}))
        .await
        .expect(200);
    let event = watch.next().await.unwrap();
    assert_eq!(
        (
            event["type"].as_str(),
            event["object"]["data"]["k"].as_str()
        ),
        (Some("MODIFIED"), Some("w"))
    );
    assert_eq!(event["object"]["kind"], "ConfigMap");
    server
        .delete(&format!("{MAPS}/b"), &Value::Null)
        .await
        .expect(200);
    assert_eq!(watch.next_name().await, named("DELETED", "b"));
}

#[tokio::test]
async fn a_watch_from_a_version_shows_every_later_change_once_and_in_order() {
    let server = TestServer::start().await;
    // The feed begins with this watch; the next one's beginning is before it.
    let _first = server.watch(&format!("{MAPS}?watch=true")).await;
    let from = server.get(MAPS).await.meta("resourceVersion").to_owned();
    for i in 0..50 {
        server.config_map(&format!("m{i:02}"), json!({})).await;
    }
    let mut watch = server
        .watch(&format!("{MAPS}?watch=true&resourceVersion={from}"))
        .await;
    for i in 50..100 {
        server.config_map(&format!("m{i:02}"), json!({})).await;
    }
    for i in 0..100 {
        assert_eq!(watch.next_name().await, named("ADDED", &format!("m{i:02}")));
    }
}

#[tokio::test]
async fn a_watch_from_before_the_feed_is_served_by_the_store() {
    let server = TestServer::start().await;
    let from = server.get(MAPS).await.meta("resourceVersion").to_owned();
    server.config_map("a", json!({})).await;
    let _starts_the_feed = server.watch(&format!("{MAPS}?watch=true")).await;
    let mut watch = server
        .watch(&format!("{MAPS}?watch=true&resourceVersion={from}"))
        .await;
    assert_eq!(watch.next_name().await, named("ADDED", "a"));
    server.config_map("b", json!({})).await;
    assert_eq!(watch.next_name().await, named("ADDED", "b"));
}

#[tokio::test]
async fn an_object_that_enters_or_leaves_the_view_is_added_or_deleted() {
    let server = TestServer::start().await;
    let mut watch = server
        .watch(&format!("{MAPS}?watch=true&labelSelector=color%3Dred"))
        .await;
    server.config_map("a", json!({"color": "blue"})).await;
    server.config_map("b", json!({"color": "red"})).await;
    assert_eq!(watch.next_name().await, named("ADDED", "b"));
    server
        .merge(
            &format!("{MAPS}/a"),
            &json!({"metadata": {"labels": {"color": "red"}}}),
        )
        .await
        .expect(200);
    assert_eq!(watch.next_name().await, named("ADDED", "a"));
    let left = server
        .merge(
            &format!("{MAPS}/a"),
            &json!({"metadata": {"labels": {"color": "blue"}}}),
        )
        .await
        .expect(200);
    let event = watch.next().await.unwrap();
    assert_eq!(
        (
            event["type"].as_str(),
            event["object"]["metadata"]["name"].as_str()
        ),
        (Some("DELETED"), Some("a"))
    );
    assert_eq!(
        event["object"]["metadata"]["labels"]["color"], "red",
        "as it was when last seen"
    );
    assert_eq!(
        event["object"]["metadata"]["resourceVersion"].as_str(),
        Some(left.meta("resourceVersion"))
    );
}

#[tokio::test]
async fn one_object_is_watched_by_name() {
    let server = TestServer::start().await;
    let mut by_field = server
        .watch(&format!(
            "{MAPS}?watch=true&fieldSelector=metadata.name%3Db"
        ))
        .await;
    let mut by_path = server
        .watch("/api/v1/watch/namespaces/default/configmaps/b")
        .await;
    server.config_map("a", json!({})).await;
    server.config_map("b", json!({})).await;
    for watch in [&mut by_field, &mut by_path] {
        assert_eq!(watch.next_name().await, named("ADDED", "b"));
    }
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let server = TestServer::start().await;
    server.config_map("a", json!({})).await;
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = server.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(watch.next_name().await, named("ADDED", "a"));
    let event = watch.next().await.unwrap();
    assert_eq!(event["type"], "BOOKMARK");
    assert_eq!(
        event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(event["object"]["kind"], "ConfigMap");
    server
        .get(&format!("{MAPS}?watch=true&sendInitialEvents=true"))
        .await
        .expect(422);
}

#[tokio::test]
async fn a_forgotten_version_is_an_error_event() {
    let server = TestServer::start().await;
    for name in ["a", "b"] {
        server.config_map(name, json!({})).await;
    }
    server
        .store
        .compact(server.store.current_revision().await.unwrap())
        .await
        .unwrap();
    let mut watch = server
        .watch(&format!("{MAPS}?watch=true&resourceVersion=1"))
        .await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (event["type"].as_str(), event["object"]["code"].as_u64()),
        (Some("ERROR"), Some(410))
    );
    assert!(
        event["object"]["message"]
            .as_str()
            .unwrap()
            .starts_with("too old resource version: 1 (")
    );
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_version_nobody_has_seen_is_an_error_event_that_makes_clients_list_again() {
    let server = TestServer::start().await;
    let mut watch = server
        .watch(&format!("{MAPS}?watch=true&resourceVersion=99999"))
        .await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (event["type"].as_str(), event["object"]["reason"].as_str()),
        (Some("ERROR"), Some("Expired"))
    );
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_over() {
    let server = TestServer::start().await;
    let mut watch = server
        .watch(&format!("{MAPS}?watch=true&timeoutSeconds=1"))
        .await;
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_watch_may_be_a_table() {
    let server = TestServer::start().await;
    server.config_map("a", json!({})).await;
    let table = server
        .get_as(
            &format!("{MAPS}?watch=true&timeoutSeconds=1"),
            "application/json;as=Table;v=v1;g=meta.k8s.io",
        )
        .await
        .expect(200);
    assert_eq!(table.body["object"]["kind"], "Table");
    assert_eq!(table.body["object"]["rows"][0]["cells"][0], "a");
}

#[tokio::test]
async fn a_kube_client_works_without_a_socket() {
    let server = TestServer::start().await;
    let api: Api<ConfigMap> = Api::namespaced(Client::new(server.service(), "default"), "default");
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).unwrap();
    api.create(&Default::default(), &map).await.unwrap();
    assert_eq!(api.get("a").await.unwrap().data.unwrap()["k"], "v");
    let mut events = Box::pin(watcher(api.clone(), watcher::Config::default()));
    let mut seen = Vec::new();
    while let Some(event) = events.try_next().await.unwrap() {
        match event {
            watcher::Event::InitApply(map) => seen.push(map.metadata.name.unwrap()),
            watcher::Event::InitDone => api
                .delete("a", &Default::default())
                .await
                .map(|_| ())
                .unwrap(),
            watcher::Event::Delete(map) => {
                seen.push(map.metadata.name.unwrap());
                break;
            }
            _ => {}
        }
    }
    assert_eq!(seen, ["a", "a"]);
    let error = api.get("a").await.unwrap_err();
    assert!(
        error.to_string().contains("configmaps \"a\" not found"),
        "{error}"
    );
    let mut streaming = Box::pin(watcher(api, watcher::Config::default().streaming_lists()));
    while let Some(event) = streaming.try_next().await.unwrap() {
        if matches!(event, watcher::Event::InitDone) {
            return;
        }
    }
    panic!("the initial list never ended");
}

/// What a watcher believes is there, by what it was shown.
async fn believed(watch: &mut crate::harness::Watch, last_name: &str) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    loop {
        let event = watch.next().await.expect("the watch goes on");
        let meta = &event["object"]["metadata"];
        let text = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
        let (name, version) = (text("name"), text("resourceVersion"));
        if name == last_name {
            return seen;
        }
        match event["type"].as_str() {
            Some("ADDED") => {
                assert!(
                    seen.insert(name.clone(), version).is_none(),
                    "{name} was there already"
                );
            }
            Some("MODIFIED") => {
                let before = seen.insert(name.clone(), version.clone());
                let number = |text: &str| text.parse::<u64>().unwrap();
                assert!(
                    before.is_some_and(|before| number(&before) < number(&version)),
                    "{name}"
                );
            }
            Some("DELETED") => assert!(seen.remove(&name).is_some(), "{name} was not there"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_written_at_once_every_watcher_ends_with_what_a_list_shows() {
    let server = Arc::new(TestServer::start().await);
    let red = "labelSelector=color%3Dred";
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4_u64 {
        let server = server.clone();
        writers.spawn(async move {
            let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(writer + 1);
            for _ in 0..150 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (name, color) = (format!("m{}", (random >> 33) % 8), if random >> 60 & 1 == 0 { "red" } else { "blue" });
                let path = format!("{MAPS}/{name}");
                let labels = json!({"metadata": {"name": name, "labels": {"color": color, "n": random.to_string()}}});
                let code = match (random >> 40) % 3 {
                    0 => server.post(MAPS, &labels).await.code,
                    1 => server.merge(&path, &labels).await.code,
                    _ => server.delete(&path, &Value::Null).await.code,
                };
                assert!(matches!(code, 200 | 201 | 404 | 409), "{code}");
            }
        });
    }
    let mut watches = Vec::new();
    for i in 0..6 {
        let query = if i % 2 == 0 {
            String::new()
        } else {
            format!("&{red}")
        };
        let from = if i < 3 {
            String::new()
        } else {
            format!(
                "&resourceVersion={}",
                server.get(MAPS).await.meta("resourceVersion")
            )
        };
        let listed = if i < 3 {
            BTreeMap::new()
        } else {
            listed(&server, &query, &from).await
        };
        watches.push((
            query.clone(),
            listed,
            server
                .watch(&format!("{MAPS}?watch=true{query}{from}"))
                .await,
        ));
    }
    writers.join_all().await;
    let marker = json!({"metadata": {"name": "z", "labels": {"color": "red"}}});
    let final_lists = [
        listed(&server, "", "").await,
        listed(&server, &format!("&{red}"), "").await,
    ];
    server.post(MAPS, &marker).await.expect(201);
    for (query, began_with, mut watch) in watches {
        let expected = &final_lists[usize::from(!query.is_empty())];
        if began_with.is_empty() {
            assert_eq!(&believed(&mut watch, "z").await, expected);
        } else {
            // Changes to what it began with are not additions; only where it ends matters here.
            let mut seen = began_with;
            loop {
                let event = watch.next().await.expect("the watch goes on");
                let meta = &event["object"]["metadata"];
                let name = meta["name"].as_str().unwrap().to_owned();
                if name == "z" {
                    break;
                }
                if event["type"] == "DELETED" {
                    seen.remove(&name);
                } else {
                    seen.insert(name, meta["resourceVersion"].as_str().unwrap().to_owned());
                }
            }
            assert_eq!(&seen, expected);
        }
    }
}

/// Names and versions of a list that is true at the version in `from`.
async fn listed(server: &TestServer, query: &str, from: &str) -> BTreeMap<String, String> {
    let exact = if from.is_empty() {
        ""
    } else {
        "&resourceVersionMatch=Exact"
    };
    let list = server
        .get(&format!("{MAPS}?x=y{query}{from}{exact}"))
        .await
        .expect(200);
    let items = list.body["items"].as_array().cloned().unwrap_or_default();
    let text = |item: &Value, field: &str| {
        item["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    items
        .iter()
        .map(|item| (text(item, "name"), text(item, "resourceVersion")))
        .collect()
}

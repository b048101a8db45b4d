use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

use super::*;
use crate::testing::eventually;

type Lines = BoxStream<'static, Result<Frame<Bytes>, Infallible>>;
type Watchers = Vec<(String, mpsc::UnboundedSender<Bytes>)>;

/// An API server of ConfigMaps that answers get, list by name and watch by name.
#[derive(Default)]
struct FakeApi {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<String, Value>,
    watchers: Watchers,
    requests: Vec<String>,
    is_forbidden: bool,
}

impl FakeApi {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(self: &Arc<Self>) -> Client {
        let api = Arc::clone(self);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let answer = api.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        Client::new(service, "ns")
    }

    fn answer(
        &self,
        request: &http::Request<kube::client::Body>,
    ) -> http::Response<StreamBody<Lines>> {
        let mut state = self.state();
        let uri = request.uri();
        let query = uri.query().unwrap_or_default();
        state.requests.push(uri.to_string());
        let (sender, lines) = mpsc::unbounded_channel::<Bytes>();
        let say = |value: Value| drop(sender.send(Bytes::from(format!("{value}\n"))));
        let name = query
            .split('&')
            .find_map(|part| part.strip_prefix("fieldSelector=metadata.name%3D"));
        let name = name
            .unwrap_or_else(|| uri.path().rsplit('/').next().unwrap_or_default())
            .to_owned();
        let found = state.objects.get(&name).cloned();
        let mut status = 200;
        if state.is_forbidden && query.contains("fieldSelector") {
            status = 403;
            say(
                json!({ "kind": "Status", "status": "Failure", "code": 403, "message": "no", "reason": "Forbidden" }),
            );
        } else if query.contains("watch=true") {
            state.watchers.push((name, sender));
        } else if query.contains("fieldSelector") {
            let version = state.version.to_string();
            let items: Vec<_> = found.into_iter().collect();
            say(
                json!({ "kind": "ConfigMapList", "metadata": { "resourceVersion": version }, "items": items }),
            );
        } else if let Some(object) = found {
            say(object);
        } else {
            status = 404;
            say(
                json!({ "kind": "Status", "status": "Failure", "code": 404, "message": "none", "reason": "NotFound" }),
            );
        }
        drop(state);
        let lines = futures::stream::unfold(lines, |mut lines| async move {
            let line = lines.recv().await?;
            Some((Ok(Frame::data(line)), lines))
        });
        http::Response::builder()
            .status(status)
            .body(StreamBody::new(lines.boxed()))
            .expect("a response")
    }

    fn put(&self, name: &str, text: &str, immutable: bool) {
        let mut state = self.state();
        state.version += 1;
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": name, "namespace": "ns", "resourceVersion": state.version.to_string() },
            "immutable": immutable,
            "data": { "key": text },
        });
        state.objects.insert(name.into(), object.clone());
        let event = json!({ "type": "MODIFIED", "object": object });
        for (watched, sender) in &state.watchers {
            if watched == name {
                let _ = sender.send(Bytes::from(format!("{event}\n")));
            }
        }
    }

    fn count(&self, part: &str) -> usize {
        let state = self.state();
        state
            .requests
            .iter()
            .filter(|request| request.contains(part))
            .count()
    }
}

async fn text(objects: &Objects, name: &str) -> Option<String> {
    let object = ObjectSource::config_map(objects, "ns", name)
        .await
        .expect("answers");
    object.and_then(|object| object.data?.remove("key"))
}

async fn changed(following: &mut Following) {
    let wait = timeout(Duration::from_secs(10), following.changed());
    wait.await.expect("told of the change");
}

fn config_map(name: &str) -> ObjectRef {
    ObjectRef::ConfigMap(name.into())
}

#[tokio::test]
async fn pods_share_one_watch_that_ends_with_the_last_of_them() {
    let api = Arc::new(FakeApi::default());
    api.put("c", "1", false);
    let objects = Objects::new(Some(api.client()));
    let mut one = objects.follow("ns", &config_map("c")).expect("a client");
    changed(&mut one).await;
    let mut two = objects.follow("ns", &config_map("c")).expect("a client");
    eventually("watched", || api.count("watch=true") == 1).await;
    assert!(one.is_watched() && two.is_watched());
    assert_eq!(api.count("fieldSelector"), 2, "one list, one watch");

    api.put("other", "x", false);
    api.put("c", "2", false);
    changed(&mut one).await;
    changed(&mut two).await;
    assert_eq!(text(&objects, "c").await.as_deref(), Some("2"));
    assert_eq!(
        api.count("configmaps/c"),
        0,
        "what is watched is not asked for"
    );

    drop(one);
    assert_eq!(objects.watched(), 1);
    drop(two);
    assert_eq!(objects.watched(), 0);
    eventually("hung up", || {
        api.state()
            .watchers
            .iter()
            .all(|(_, sender)| sender.is_closed())
    })
    .await;
    api.put("c", "3", false);
    assert_eq!(text(&objects, "c").await.as_deref(), Some("3"));
}

#[tokio::test]
async fn an_object_that_comes_later_is_told_of() {
    let api = Arc::new(FakeApi::default());
    let objects = Objects::new(Some(api.client()));
    let mut following = objects.follow("ns", &config_map("c")).expect("a client");
    changed(&mut following).await;
    assert_eq!(text(&objects, "c").await, None);
    eventually("watched", || api.count("watch=true") == 1).await;
    api.put("c", "1", false);
    changed(&mut following).await;
    assert_eq!(text(&objects, "c").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn an_immutable_object_is_not_watched_and_its_successor_is_found() {
    let api = Arc::new(FakeApi::default());
    api.put("c", "1", true);
    let objects = Objects::new(Some(api.client()));
    let mut following = objects.follow("ns", &config_map("c")).expect("a client");
    changed(&mut following).await;
    assert!(following.is_watched(), "nothing has to be asked for");
    assert_eq!(api.count("watch=true"), 0);
    api.put("c", "2", true);
    assert_eq!(text(&objects, "c").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_watch_that_is_not_allowed_leaves_asking() {
    let api = Arc::new(FakeApi::default());
    api.state().is_forbidden = true;
    api.put("c", "1", false);
    let objects = Objects::new(Some(api.client()));
    let following = objects.follow("ns", &config_map("c")).expect("a client");
    eventually("refused", || api.count("fieldSelector") > 0).await;
    assert!(!following.is_watched());
    assert_eq!(text(&objects, "c").await.as_deref(), Some("1"));
}

//! What every back-end must do. A new one starts by passing [`suite`].

#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation here is a failed test"
)]

use std::{future::Future, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::mpsc::Receiver;

use crate::{
    Durability::{Durable, Lazy},
    Event, KeyValue, Store, StoreError, WatchMessage,
    history::{Answer, Recorder, check},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A check. Needs a store that nobody else writes to.
pub type Case = fn(Box<dyn Store>) -> BoxFuture<'static, ()>;

/// Every check.
pub const CASES: &[Case] = &[
    |store| Box::pin(writes_are_ordered_and_checked(store)),
    |store| Box::pin(a_list_pages_through_a_moment(store)),
    |store| Box::pin(long_values_that_are_alike_come_back_as_they_were(store)),
    |store| Box::pin(a_watch_delivers_each_write_once_in_order(store)),
    |store| Box::pin(compaction_is_said_and_not_guessed(store)),
    |store| Box::pin(concurrent_compare_and_swap_loses_nothing(store)),
    |store| Box::pin(a_slow_watcher_is_told(store)),
    |store| Box::pin(lazy_writes_are_ordered_among_the_others(store)),
    |store| Box::pin(what_clients_are_told_is_what_happened(store)),
];

/// Runs every check, each on a store of its own.
pub async fn suite<S: Store, F: Future<Output = S>>(mut make: impl FnMut() -> F) {
    for case in CASES {
        case(Box::new(make().await)).await;
    }
}

fn text(value: &str) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}

async fn next_events(watch: &mut Receiver<WatchMessage>, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        match tokio::time::timeout(PATIENCE, watch.recv())
            .await
            .unwrap()
            .unwrap()
        {
            WatchMessage::Events(more) => events.extend(more),
            WatchMessage::Progress(_) => {}
            WatchMessage::Lost => panic!("the watch was lost"),
        }
    }
    events
}

/// Long enough to be kept as what it differs in from others.
fn long(number: usize, version: &str) -> Bytes {
    let common: String = (0..200)
        .map(|n| format!("\"key-{n}\":{},", n * n))
        .collect();
    text(&format!(
        "{{{common}\"number\":{number},\"version\":\"{version}\"}}"
    ))
}

async fn long_values_that_are_alike_come_back_as_they_were(store: Box<dyn Store>) {
    const COUNT: usize = 30;
    let key = |number: usize| format!("/registry/x/{number:02}");
    for number in 0..COUNT {
        let (key, value) = (key(number), long(number, "first"));
        let made = store.create(&key, value.clone(), Durable).await.unwrap();
        assert_eq!(made.value, value);
    }
    let first = store.list("/registry/x/", None, 0, 0).await.unwrap();
    for kv in &first.items {
        let number: usize = kv.key[kv.key.len() - 2..].parse().unwrap();
        let (value, expected) = (long(number, "second"), kv.mod_revision);
        store
            .update(&kv.key, value, expected, Durable)
            .await
            .unwrap();
    }
    let gone = store.delete(&key(0), 0).await.unwrap();
    assert_eq!(gone.value, long(0, "second"));
    let all_are = |items: &[KeyValue], from: usize, version: &str| {
        assert_eq!(items.len(), COUNT - from);
        for (number, kv) in (from..).zip(items) {
            assert_eq!(
                (&*kv.key, &kv.value.bytes()),
                (key(number).as_str(), &long(number, version))
            );
        }
    };
    let now = store.list("/registry/x/", None, 0, 0).await.unwrap();
    all_are(&now.items, 1, "second");
    let past = store
        .list("/registry/x/", None, 0, first.revision)
        .await
        .unwrap();
    all_are(&past.items, 0, "first");
    let mut watch = store.watch("/registry/x/", first.revision).await.unwrap();
    let events = next_events(&mut watch, COUNT + 1).await;
    for (number, event) in events[..COUNT].iter().enumerate() {
        assert_eq!(event.kv.value, long(number, "second"));
        let previous = event.previous.as_ref().unwrap();
        assert_eq!(previous.value, long(number, "first"));
    }
}

async fn writes_are_ordered_and_checked(store: Box<dyn Store>) {
    let start = store.current_revision().await.unwrap();
    let a = store
        .create("/registry/x/a", text("1"), Durable)
        .await
        .unwrap();
    assert_eq!((a.create_revision, a.mod_revision), (start + 1, start + 1));
    assert!(matches!(
        store.create("/registry/x/a", text("2"), Durable).await,
        Err(StoreError::Exists(_))
    ));

    let a2 = store
        .update("/registry/x/a", text("2"), a.mod_revision, Durable)
        .await
        .unwrap();
    assert_eq!(
        (a2.create_revision, a2.mod_revision),
        (start + 1, start + 2)
    );
    match store
        .update("/registry/x/a", text("3"), a.mod_revision, Durable)
        .await
    {
        Err(StoreError::Conflict { current, .. }) => assert_eq!(*current, a2),
        other => panic!("an update of a stale revision answered {other:?}"),
    }
    assert!(matches!(
        store.delete("/registry/x/a", a.mod_revision).await,
        Err(StoreError::Conflict { .. })
    ));
    assert!(matches!(
        store.update("/registry/x/b", text(""), 1, Durable).await,
        Err(StoreError::NotFound(_))
    ));
    assert_eq!(
        store.get("/registry/x/a").await.unwrap(),
        (Some(a2.clone()), start + 2)
    );

    let gone = store.delete("/registry/x/a", 0).await.unwrap();
    assert_eq!((gone.value, gone.mod_revision), (a2.value, start + 3));
    assert!(matches!(
        store.delete("/registry/x/a", 0).await,
        Err(StoreError::NotFound(_))
    ));
    assert_eq!(store.get("/registry/x/a").await.unwrap(), (None, start + 3));
    assert_eq!(store.current_revision().await.unwrap(), start + 3);
}

async fn a_list_pages_through_a_moment(store: Box<dyn Store>) {
    for n in 0..5 {
        store
            .create(&format!("/registry/x/{n}"), text("old"), Durable)
            .await
            .unwrap();
    }
    store
        .create("/registry/xy/0", text("other"), Durable)
        .await
        .unwrap();
    let first = store.list("/registry/x/", None, 2, 0).await.unwrap();
    assert_eq!(keys(&first.items), ["/registry/x/0", "/registry/x/1"]);
    assert!(first.more);

    // What happens between two pages is not seen by the second.
    store.delete("/registry/x/2", 0).await.unwrap();
    let three = store.get("/registry/x/3").await.unwrap().0.unwrap();
    let three = store
        .update("/registry/x/3", text("new"), three.mod_revision, Durable)
        .await
        .unwrap();
    store
        .update("/registry/x/3", text("newer"), three.mod_revision, Durable)
        .await
        .unwrap();
    store
        .create("/registry/x/35", text("late"), Durable)
        .await
        .unwrap();
    let second = store
        .list("/registry/x/", Some("/registry/x/1"), 0, first.revision)
        .await
        .unwrap();
    assert_eq!(
        keys(&second.items),
        ["/registry/x/2", "/registry/x/3", "/registry/x/4"]
    );
    assert!(second.items.iter().all(|kv| kv.value == "old"));
    assert_eq!((second.revision, second.more), (first.revision, false));

    let now = store.list("/registry/x/", None, 0, 0).await.unwrap();
    assert_eq!(
        keys(&now.items),
        [
            "/registry/x/0",
            "/registry/x/1",
            "/registry/x/3",
            "/registry/x/35",
            "/registry/x/4"
        ]
    );
    assert_eq!(store.count("/registry/x/").await.unwrap().0, 5);
    let future = now.revision + 1;
    assert!(matches!(
        store.list("/registry/x/", None, 0, future).await,
        Err(StoreError::Future { .. })
    ));
}

fn keys(items: &[crate::KeyValue]) -> Vec<&str> {
    items.iter().map(|kv| &*kv.key).collect()
}

async fn a_watch_delivers_each_write_once_in_order(store: Box<dyn Store>) {
    let before = store
        .create("/registry/x/a", text("1"), Durable)
        .await
        .unwrap();
    let a2 = store
        .update("/registry/x/a", text("2"), before.mod_revision, Durable)
        .await
        .unwrap();
    let mut from_past = store
        .watch("/registry/x/", before.mod_revision)
        .await
        .unwrap();
    let mut from_now = store.watch("/registry/x/", 0).await.unwrap();
    store
        .create("/registry/y/a", text("other"), Durable)
        .await
        .unwrap();
    let b = store
        .create("/registry/x/b", text("1"), Durable)
        .await
        .unwrap();
    let gone = store
        .delete("/registry/x/a", a2.mod_revision)
        .await
        .unwrap();

    let events = next_events(&mut from_past, 3).await;
    let told: Vec<_> = events
        .iter()
        .map(|e| (e.revision, &*e.kv.key, e.deleted))
        .collect();
    assert_eq!(
        told,
        [
            (a2.mod_revision, "/registry/x/a", false),
            (b.mod_revision, "/registry/x/b", false),
            (gone.mod_revision, "/registry/x/a", true)
        ]
    );
    assert_eq!(events[0].previous.as_ref(), Some(&before));
    assert_eq!(events[2].kv.value, "2");
    assert_eq!(next_events(&mut from_now, 2).await, events[1..]);

    // Other keys' writes move the watch on.
    let elsewhere = store
        .create("/registry/y/b", text(""), Durable)
        .await
        .unwrap();
    let progress = tokio::time::timeout(PATIENCE, async {
        loop {
            if let WatchMessage::Progress(revision) = from_now.recv().await.unwrap()
                && revision >= elsewhere.mod_revision
            {
                break;
            }
        }
    });
    progress.await.unwrap();
}

async fn compaction_is_said_and_not_guessed(store: Box<dyn Store>) {
    let a = store
        .create("/registry/x/a", text("1"), Durable)
        .await
        .unwrap();
    let b = store
        .create("/registry/x/b", text("1"), Durable)
        .await
        .unwrap();
    let c = store
        .create("/registry/x/c", text("1"), Durable)
        .await
        .unwrap();
    store.compact(b.mod_revision).await.unwrap();
    let compacted = |result| matches!(result, Err(StoreError::Compacted { .. }));
    assert!(compacted(
        store
            .list("/registry/x/", None, 0, a.mod_revision)
            .await
            .map(drop)
    ));
    assert!(compacted(
        store.watch("/registry/x/", a.mod_revision).await.map(drop)
    ));
    let list = store
        .list("/registry/x/", None, 0, b.mod_revision)
        .await
        .unwrap();
    assert_eq!(keys(&list.items), ["/registry/x/a", "/registry/x/b"]);
    let mut watch = store.watch("/registry/x/", b.mod_revision).await.unwrap();
    assert_eq!(next_events(&mut watch, 1).await[0].kv, c);
}

async fn concurrent_compare_and_swap_loses_nothing(store: Box<dyn Store>) {
    const CLIENTS: usize = 8;
    const INCREMENTS: usize = 25;
    store
        .create("/registry/x/counter", text("0"), Durable)
        .await
        .unwrap();
    let increment = async || {
        loop {
            let kv = store.get("/registry/x/counter").await.unwrap().0.unwrap();
            let count = kv.value.bytes();
            let count: usize = std::str::from_utf8(&count).unwrap().parse().unwrap();
            let next = text(&(count + 1).to_string());
            match store
                .update("/registry/x/counter", next, kv.mod_revision, Durable)
                .await
            {
                Ok(_) => break,
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let client = async || {
        for _ in 0..INCREMENTS {
            increment().await;
        }
    };
    futures::future::join_all((0..CLIENTS).map(|_| client())).await;
    let counter = store.get("/registry/x/counter").await.unwrap().0.unwrap();
    assert_eq!(
        counter.value,
        *(CLIENTS * INCREMENTS).to_string().as_bytes()
    );
}

async fn a_slow_watcher_is_told(store: Box<dyn Store>) {
    // Far more messages than any back-end may queue for one reader; lazy, for they cost no disk.
    const WRITES_MAX: usize = 20_000;
    let slow = store.watch("/registry/x/", 0).await.unwrap();
    let mut kv = store.create("/registry/x/a", text(""), Lazy).await.unwrap();
    let mut writes = 0;
    while !slow.is_closed() {
        assert!(
            writes < WRITES_MAX,
            "the queue of a slow watcher has no bound"
        );
        writes += 1;
        kv = store
            .update("/registry/x/a", text(""), kv.mod_revision, Lazy)
            .await
            .unwrap();
    }
}

async fn lazy_writes_are_ordered_among_the_others(store: Box<dyn Store>) {
    let start = store.current_revision().await.unwrap();
    let mut watch = store.watch("/registry/", start).await.unwrap();
    let mut told = Vec::new();
    for (n, durability) in [Durable, Lazy, Lazy, Durable, Lazy].into_iter().enumerate() {
        let key = format!("/registry/leases/{n}");
        let kv = store.create(&key, text("1"), durability).await.unwrap();
        told.push((kv.mod_revision, key.clone()));
        assert_eq!(store.get(&key).await.unwrap().0, Some(kv));
    }
    let revisions: Vec<_> = told.iter().map(|(revision, _)| *revision).collect();
    assert_eq!(revisions, (start + 1..=start + 5).collect::<Vec<_>>());
    let seen: Vec<_> = next_events(&mut watch, 5)
        .await
        .into_iter()
        .map(|event| (event.revision, event.kv.key.to_string()))
        .collect();
    assert_eq!(seen, told);
}

async fn what_clients_are_told_is_what_happened(store: Box<dyn Store>) {
    let start = store.current_revision().await.unwrap();
    let mut watch = store.watch("/registry/x/", start).await.unwrap();
    let recorder = Recorder::default();
    let clients = (0..8).map(|client| recorder.client(&*store, "/registry/x/", client, 40));
    futures::future::join_all(clients).await;
    let calls = recorder.calls();
    let written = calls
        .iter()
        .filter(|call| matches!(call.answer, Answer::Written(_)))
        .count();
    let events = next_events(&mut watch, written).await;
    assert_eq!(check(&calls, &events), Ok(()));
}

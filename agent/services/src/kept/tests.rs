use std::{net::IpAddr, sync::Arc};

use wherry_network::Cidr;

use super::*;
use crate::object::{Allowed, Endpoint, Kind, Protocol, ServicePort, SlicePort};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("ns", name)
}

/// One with something in every field.
fn full() -> Service {
    let ranges: [Cidr; 1] = ["10.1.0.0/16".parse().unwrap()];
    Service {
        kind: Kind::Cluster(vec![ip("10.96.0.5"), ip("fd96::5")]),
        ports: vec![ServicePort {
            name: "dns".into(),
            protocol: Protocol::Udp,
            port: 53,
            node_port: 30053,
        }],
        external_ips: vec![[192, 0, 2, 1].into()],
        allowed: Some(Allowed {
            addresses: vec![[192, 0, 2, 1].into()],
            sources: ranges.into(),
        }),
        affinity: Some(Duration::from_secs(10_800)),
        is_internal_local: true,
        is_external_local: true,
        health_check_port: Some(31_000),
        publishes_not_ready: true,
        is_foreign: true,
    }
}

fn slice() -> Slice {
    Slice {
        ports: vec![SlicePort {
            name: "dns".into(),
            protocol: Protocol::Sctp,
            port: Some(5353),
        }],
        endpoints: vec![Endpoint {
            address: ip("10.88.0.2"),
            hostname: Some("db-0".into()),
            is_ready: true,
            is_serving: true,
            is_terminating: true,
            is_local: true,
        }],
    }
}

/// An index of everything that there is to be kept, listed.
fn filled() -> Index {
    let index = Index::of_nothing();
    index.put_service(key("full"), full());
    index.put_service(key("headless"), Service::default());
    let external = Service {
        kind: Kind::External("example.org".into()),
        ..Service::default()
    };
    index.put_service(key("far"), external);
    index.put_slice(key("full"), "full-1".into(), slice());
    index.put_slice(key("early"), "early-1".into(), Slice::default());
    index
}

fn assert_same(one: &Index, other: &Index) {
    let [mut one, mut other] = [one, other].map(Index::snapshot);
    assert_eq!(one.services, other.services);
    for snapshot in [&mut one, &mut other] {
        snapshot.slices.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    }
    assert_eq!(one.slices, other.slices);
}

#[tokio::test]
async fn what_was_kept_is_known_to_the_next_agent_and_is_not_said_to_be_all() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Kept::new(dir.path().join("agent/services.jsonl"), "n1");
    let index = filled();
    kept.write(index.snapshot()).await.unwrap();
    let next = Index::default();
    kept.load(&next);
    assert_same(&index, &next);
    assert!(!next.is_complete() && !next.is_known());
    assert_eq!(next.take_changed().len(), 4, "the table is made of them");
    // Nobody is there to ask.
    next.go_alone();
    next.settled().await;
    next.known().await;
    assert!(next.is_known() && !next.is_complete());
    // The API server is back, and has less.
    let listed = std::iter::once(key("full")).collect();
    next.retain_services(&listed);
    next.retain_slices(&std::iter::once((Arc::from("ns"), "full-1".to_owned())).collect());
    assert!(next.is_complete());
    let snapshot = next.snapshot();
    assert_eq!((snapshot.services.len(), snapshot.slices.len()), (1, 1));
}

#[tokio::test]
async fn an_agent_that_was_never_told_anything_does_not_say_that_there_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let index = Index::default();
    Kept::new(dir.path().join("services.jsonl"), "n1").load(&index);
    index.go_alone();
    index.settled().await;
    assert!(!index.is_known());
}

#[tokio::test]
async fn what_is_broken_or_of_another_node_or_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("services.jsonl");
    let kept = Kept::new(path.clone(), "n1");
    kept.write(filled().snapshot()).await.unwrap();
    assert!(read(&path, "n1").unwrap().is_some());
    assert!(read(&path, "n2").unwrap().is_none());
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replacen(":1,", ":2,", 1)).unwrap();
    assert!(read(&path, "n1").unwrap().is_none(), "a newer version");
    // However it is cut off.
    for len in [0, 1, 40, whole.len() / 2, whole.len() - 2] {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(read(&path, "n1").is_err(), "{len} bytes of it");
        let index = Index::default();
        kept.load(&index);
        assert!(!index.is_loaded());
    }
    // What an older agent wrote has fewer fields.
    let old = "{\"version\":1,\"node\":\"n1\",\"lines\":2}\n\
               {\"service\":{\"namespace\":\"ns\",\"name\":\"a\",\"is\":{\"new\":1}}}\n\
               {\"slice\":{\"namespace\":\"ns\",\"service\":\"a\",\"name\":\"a-1\",\
               \"is\":{\"endpoints\":[{\"address\":\"10.88.0.2\"}]}}}\n";
    fs::write(&path, old).unwrap();
    let found = read(&path, "n1").unwrap().unwrap();
    assert_eq!(found.services, [(key("a"), Service::default())]);
    assert!(!found.slices[0].2.endpoints[0].is_ready);
}

/// Runs until told to stop, after `change`.
async fn run(kept: &Kept, index: &Index, change: impl AsyncFnOnce()) {
    let shutdown = CancellationToken::new();
    let change = async {
        change().await;
        shutdown.cancel();
    };
    tokio::join!(kept.run(index, &shutdown), change);
}

#[tokio::test]
async fn it_is_written_once_listed_after_changes_and_at_the_end_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("services.jsonl");
    let mut kept = Kept::new(path.clone(), "n1");
    kept.pause = Duration::from_millis(5);
    let known = || read(&path, "n1").unwrap().map_or(0, |it| it.services.len());
    let put = |index: &Index, name| index.put_service(key(name), Service::default());

    let index = Index::default();
    put(&index, "a");
    run(&kept, &index, async || put(&index, "b")).await;
    assert!(!path.exists(), "half a list is not kept");

    let list = || {
        index.retain_services(&["a", "b"].map(key).into());
        index.retain_slices(&Default::default());
    };
    run(&kept, &index, async || {
        list();
        put(&index, "b2");
        while known() != 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        put(&index, "c");
    })
    .await;
    assert_eq!(known(), 4, "the last change is not waited for");

    // Without a change nothing is written, however often it is listed.
    fs::remove_file(&path).unwrap();
    let index = Index::of_nothing();
    put(&index, "a");
    run(&kept, &index, async || {
        put(&index, "a");
        index.retain_services(&[key("a")].into());
        index.retain_slices(&Default::default());
    })
    .await;
    assert!(!path.exists());
}

#[test]
fn services_that_never_rest_cost_less_than_200_mb_a_day() {
    let day = Duration::from_secs(24 * 60 * 60);
    let start = Instant::now();
    for file in [4_096, 300_000, 5_000_000] {
        let (mut now, mut written) = (start, 0);
        let mut budget = Budget::new(now);
        while now < start + day {
            budget.spend(file, now);
            written += file;
            now = (now + PAUSE).max(budget.free_at());
        }
        assert!(written < 120_000_000, "{file}: {written}");
        assert!(written > 80_000_000, "{file}: {written}");
    }
    // After a quiet hour there is no wait.
    let mut budget = Budget::new(start);
    budget.spend(300_000, start);
    assert_eq!(budget.free_at(), start);
}

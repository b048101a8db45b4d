//! Against real members on loopback.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::*;
use crate::{
    Event, Store, WatchMessage, conformance,
    history::{Recorder, check},
};

/// An etcd cluster of its own; ends with the test.
struct Cluster {
    /// In memory: these tests are about etcd's answers, not about the disk.
    directory: tempfile::TempDir,
    ports: Vec<(u16, u16)>,
    members: Vec<Option<Child>>,
    tls: Vec<String>,
}

impl Cluster {
    async fn start(members: usize) -> Self {
        Self::start_with(members, Vec::new()).await
    }

    async fn start_with(members: usize, tls: Vec<String>) -> Self {
        // Held all at once, so that no port is given twice.
        let held: Vec<TcpListener> = (0..members * 2)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
            .collect();
        let ports: Vec<u16> = held
            .iter()
            .map(|listener| listener.local_addr().unwrap().port())
            .collect();
        drop(held);
        let mut cluster = Self {
            directory: tempfile::tempdir_in("/dev/shm").unwrap(),
            ports: ports.chunks(2).map(|pair| (pair[0], pair[1])).collect(),
            members: (0..members).map(|_| None).collect(),
            tls,
        };
        for member in 0..members {
            cluster.start_member(member);
        }
        cluster
    }

    fn start_member(&mut self, member: usize) {
        let all: Vec<String> = self
            .ports
            .iter()
            .enumerate()
            .map(|(n, (_, peer))| format!("m{n}=http://127.0.0.1:{peer}"))
            .collect();
        let (client, peer) = self.ports[member];
        let scheme = if self.tls.is_empty() { "http" } else { "https" };
        let client = format!("{scheme}://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let log = std::fs::File::create(self.directory.path().join(format!("m{member}.log")));
        let child = Command::new("etcd")
            .args(["--name", &format!("m{member}"), "--data-dir"])
            .arg(self.directory.path().join(format!("m{member}")))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &all.join(",")])
            // Shorter than the defaults, so that a lost leader costs a test less.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(&self.tls)
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .expect("etcd starts: Debian's etcd-server has it");
        self.members[member] = Some(child);
    }

    fn kill_member(&mut self, member: usize) {
        let mut child = self.members[member].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn config(&self) -> EtcdConfig {
        EtcdConfig {
            members: self
                .ports
                .iter()
                .map(|(client, _)| format!("127.0.0.1:{client}"))
                .collect(),
            ..EtcdConfig::default()
        }
    }

    async fn store(&self) -> EtcdStore {
        EtcdStore::open(&self.config()).await.unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in self.members.iter_mut().flatten() {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// A store that keeps its cluster running.
async fn on_a_cluster_of(members: usize) -> (Cluster, EtcdStore) {
    let cluster = Cluster::start(members).await;
    let store = cluster.store().await;
    (cluster, store)
}

#[tokio::test]
async fn the_store_on_one_member_conforms() {
    let mut clusters = Vec::new();
    for case in conformance::CASES {
        let (cluster, store) = on_a_cluster_of(1).await;
        case(Box::new(store)).await;
        clusters.push(cluster);
    }
}

#[tokio::test]
async fn the_store_on_three_members_conforms() {
    let cluster = Cluster::start(3).await;
    for case in conformance::CASES {
        let store = cluster.store().await;
        case(Box::new(store)).await;
        let store = cluster.store().await;
        for kv in store.list(PREFIX, None, 0, 0).await.unwrap().items {
            store.delete(&kv.key, 0).await.unwrap();
        }
    }
}

async fn events_to(
    mut watch: tokio::sync::mpsc::Receiver<WatchMessage>,
    revision: Revision,
) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_secs(30), watch.recv()).await {
            Ok(Some(WatchMessage::Events(more))) => events.extend(more),
            Ok(Some(WatchMessage::Progress(at))) if at >= revision => return events,
            Ok(Some(WatchMessage::Progress(_))) => {}
            other => panic!("the watch ended before revision {revision}: {other:?}"),
        }
        if events
            .last()
            .is_some_and(|event| event.revision >= revision)
        {
            return events;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_reordered_while_members_die() {
    let mut cluster = Cluster::start(3).await;
    // Two control planes.
    let stores = [
        Arc::new(cluster.store().await),
        Arc::new(cluster.store().await),
    ];
    let watch = stores[0].watch("/registry/x/", 0).await.unwrap();
    let recorder = Arc::new(Recorder::default());
    let clients: Vec<_> = (0..6)
        .map(|client| {
            let (recorder, store) = (recorder.clone(), stores[client % 2].clone());
            tokio::spawn(async move {
                recorder
                    .client(&*store, "/registry/x/", client as u64, 150)
                    .await;
            })
        })
        .collect();
    let mut seen = stores[1].watch("/registry/x/", 0).await.unwrap();
    for member in [0, 1, 2, 0] {
        // Killed in the middle of writes: some have happened since the last kill.
        for _ in 0..20 {
            let _ = tokio::time::timeout(Duration::from_secs(5), seen.recv()).await;
        }
        cluster.kill_member(member);
        for _ in 0..20 {
            let _ = tokio::time::timeout(Duration::from_secs(5), seen.recv()).await;
        }
        cluster.start_member(member);
    }
    for client in clients {
        client.await.unwrap();
    }
    let calls = recorder.calls();
    let acknowledged = calls
        .iter()
        .filter(|call| matches!(call.answer, crate::history::Answer::Written(_)))
        .count();
    assert!(
        acknowledged > 200,
        "only {acknowledged} writes were acknowledged"
    );
    let end = stores[1].current_revision().await.unwrap();
    let events = events_to(watch, end).await;
    assert_eq!(check(&calls, &events), Ok(()));
}

#[tokio::test]
async fn two_control_planes_see_each_others_writes_at_once() {
    let (cluster, one) = on_a_cluster_of(1).await;
    let other = cluster.store().await;
    let mut kv = one
        .create("/registry/x/a", "0".into(), Durability::Durable)
        .await
        .unwrap();
    for round in 1..50 {
        let (writer, reader) = if round % 2 == 0 {
            (&one, &other)
        } else {
            (&other, &one)
        };
        kv = writer
            .update(
                "/registry/x/a",
                round.to_string().into(),
                kv.mod_revision,
                Durability::Durable,
            )
            .await
            .unwrap();
        assert_eq!(
            reader.get("/registry/x/a").await.unwrap().0,
            Some(kv.clone())
        );
    }
}

#[tokio::test]
async fn who_asks_and_looks_away_stops_nobody() {
    let (_cluster, store) = on_a_cluster_of(1).await;
    // Each has asked, and nobody looks at it again: what a task does that handles one thing and watches another.
    let mut forgotten: Vec<_> = (0..3).map(|_| store.catch_up()).collect();
    for asking in &mut forgotten {
        let _ = futures::poll!(asking.as_mut());
    }
    let asked = timeout(Duration::from_secs(60), store.catch_up()).await;
    asked.expect("an answer").unwrap();
}

#[tokio::test]
async fn a_page_asked_of_another_control_plane_is_of_the_same_moment() {
    let (cluster, one) = on_a_cluster_of(1).await;
    for n in 0..4 {
        let key = format!("/registry/x/{n}");
        one.create(&key, "old".into(), Durability::Durable)
            .await
            .unwrap();
    }
    let first = one.list("/registry/x/", None, 2, 0).await.unwrap();
    one.delete("/registry/x/3", 0).await.unwrap();
    // It begins after the moment, so its own memory does not reach back.
    let other = cluster.store().await;
    let second = other
        .list("/registry/x/", Some("/registry/x/1"), 1, first.revision)
        .await
        .unwrap();
    assert_eq!(&*second.items[0].key, "/registry/x/2");
    assert!(second.more);
    assert_eq!(second.revision, first.revision);
}

#[tokio::test]
async fn keys_and_values_are_what_etcdctl_shows() {
    let (cluster, store) = on_a_cluster_of(1).await;
    let etcdctl = |args: &[&str]| {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &cluster.config().members[0]])
            .args(args)
            .output()
            .expect("etcdctl starts: Debian's etcd-client has it");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    store
        .create(
            "/registry/pods/default/web",
            "{\"kind\":\"Pod\"}".into(),
            Durability::Durable,
        )
        .await
        .unwrap();
    etcdctl(&["put", "/elsewhere", "not ours"]);
    let keys = etcdctl(&["get", "/registry", "--prefix", "--keys-only"]);
    assert_eq!(keys.trim(), "/registry/pods/default/web");
    assert!(etcdctl(&["get", "/registry/pods/default/web"]).contains("{\"kind\":\"Pod\"}"));
    assert_eq!(store.count("/").await.unwrap().0, 1);
    etcdctl(&["del", "/registry/pods/default/web"]);
    assert_eq!(
        store.get("/registry/pods/default/web").await.unwrap().0,
        None
    );
}

#[tokio::test]
async fn missed_writes_that_are_compacted_end_watches_and_reads_go_on() {
    let (mut cluster, store) = on_a_cluster_of(1).await;
    let mut watch = store.watch("/registry/x/", 0).await.unwrap();
    cluster.kill_member(0);
    cluster.start_member(0);
    // Another writes and compacts before this one is back, or after: what it shows is true either way.
    let other = cluster.store().await;
    for n in 0..20 {
        let key = format!("/registry/x/{n}");
        other
            .create(&key, "1".into(), Durability::Durable)
            .await
            .unwrap();
    }
    let end = other.current_revision().await.unwrap();
    other.compact(end).await.unwrap();
    assert_eq!(store.count("/registry/x/").await.unwrap().0, 20);
    let mut told = 0;
    while told < 20 {
        match watch.recv().await {
            Some(WatchMessage::Events(events)) => told += events.len(),
            Some(WatchMessage::Progress(_)) => {}
            Some(WatchMessage::Lost) | None => break,
        }
    }
}

#[tokio::test]
async fn members_that_speak_tls_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::make(directory.path());
    let file = |name: &str| directory.path().join(name).display().to_string();
    let tls = [
        "--cert-file",
        &file("server.pem"),
        "--key-file",
        &file("server.key"),
    ]
    .into_iter()
    .chain(["--client-cert-auth", "--trusted-ca-file", &file("ca.pem")])
    .map(str::to_owned)
    .collect();
    let cluster = Cluster::start_with(1, tls).await;
    let trusted = EtcdConfig {
        ca_file: Some(pki.ca.clone()),
        cert_file: Some(directory.path().join("client.pem")),
        key_file: Some(directory.path().join("client.key")),
        ..cluster.config()
    };
    let store = EtcdStore::open(&trusted).await.unwrap();
    store
        .create("/registry/x/a", "1".into(), Durability::Durable)
        .await
        .unwrap();
}

/// An authority with a certificate for 127.0.0.1 and one for a client, as files.
struct Pki {
    ca: PathBuf,
}

impl Pki {
    fn make(directory: &std::path::Path) -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = write("ca.pem", params.self_signed(&ca_key).unwrap().pem());
        let issuer = Issuer::new(params, ca_key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            write(&format!("{name}.pem"), certificate.pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Self { ca }
    }
}

#[test]
fn the_end_of_a_prefix_is_after_all_its_keys() {
    assert_eq!(end_of("/registry/"), Bytes::from_static(b"/registry0"));
    assert_eq!(end_of("a\u{7f}"), Bytes::from_static(b"a\x80"));
    assert_eq!(end_of(""), Bytes::from_static(b"\0"));
}

#[test]
fn a_lost_answer_is_cleared_up_by_what_is_there() {
    let kv = |value: &'static str, created: Revision, modified: Revision| KeyValue {
        key: "/registry/x/a".into(),
        value: value.into(),
        create_revision: created,
        mod_revision: modified,
    };
    let create = Write::Create {
        key: "/registry/x/a".into(),
        value: Bytes::from_static(b"mine"),
    };
    let update = Write::Update {
        key: "/registry/x/a".into(),
        value: Bytes::from_static(b"mine"),
        expected: 5,
    };
    let delete = Write::Delete {
        key: "/registry/x/a".into(),
        expected: 5,
    };
    let is = |write, current| match after_lost_answer(write, current) {
        Lost::Written(kv) => format!("written at {}", kv.mod_revision),
        Lost::NotYet => "not yet".to_owned(),
        Lost::Refused(_) => "refused".to_owned(),
        Lost::Unknown => "unknown".to_owned(),
    };
    assert_eq!(is(&create, None), "not yet");
    assert_eq!(is(&create, Some(kv("mine", 6, 6))), "written at 6");
    assert_eq!(is(&create, Some(kv("theirs", 6, 6))), "unknown");
    assert_eq!(is(&update, Some(kv("old", 1, 5))), "not yet");
    assert_eq!(is(&update, Some(kv("mine", 1, 6))), "written at 6");
    assert_eq!(is(&update, Some(kv("theirs", 1, 6))), "unknown");
    assert_eq!(is(&update, None), "unknown");
    assert_eq!(is(&delete, Some(kv("old", 1, 5))), "not yet");
    assert_eq!(is(&delete, Some(kv("theirs", 1, 6))), "refused");
    assert_eq!(is(&delete, None), "unknown");
}

#[test]
fn a_value_does_not_keep_the_message_it_came_in() {
    let message = Bytes::from(vec![b'x'; 1 << 20]);
    let kept = key_value(rpc::Kv {
        key: Bytes::from_static(b"/registry/pods/ns/a"),
        value: message.slice(100..200),
        ..rpc::Kv::default()
    })
    .unwrap();
    assert_eq!(kept.value, message.slice(100..200));
    drop(message);
    let whole = kept.value.bytes();
    drop(kept);
    let room = whole.try_into_mut().expect("nobody shares it");
    assert_eq!(room.capacity(), 100);
}

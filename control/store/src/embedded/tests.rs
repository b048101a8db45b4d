use std::{collections::BTreeMap, fs, path::Path};

use bytes::Bytes;

use super::{EmbeddedStore, OpenError};
use crate::{
    Durability::{Durable, Lazy},
    Store, StoreError,
    backend::Backend as _,
};

fn file(dir: &tempfile::TempDir) -> std::path::PathBuf {
    dir.path().join("store")
}

async fn contents(store: &EmbeddedStore) -> BTreeMap<String, Bytes> {
    let list = store.list("/", None, 0, 0).await.unwrap();
    list.items
        .into_iter()
        .map(|kv| (kv.key.to_string(), kv.value.bytes()))
        .collect()
}

#[tokio::test]
async fn the_embedded_store_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let mut number = 0;
    let make = || {
        number += 1;
        let path = dir.path().join(number.to_string());
        async move { EmbeddedStore::open(&path).unwrap() }
    };
    crate::conformance::suite(make).await;
}

#[tokio::test]
async fn everything_is_there_after_it_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&file(&dir)).unwrap();
    let a = store.create("/a", "1".into(), Durable).await.unwrap();
    store.create("/b", "2".into(), Lazy).await.unwrap();
    store.delete("/a", a.mod_revision).await.unwrap();
    let (before, revision) = (
        contents(&store).await,
        store.current_revision().await.unwrap(),
    );
    drop(store);
    let store = EmbeddedStore::open(&file(&dir)).unwrap();
    assert_eq!(contents(&store).await, before);
    assert_eq!(store.current_revision().await.unwrap(), revision);
    assert!(matches!(
        store.watch("/", revision - 1).await,
        Err(StoreError::Compacted { .. })
    ));
}

/// As pods of a Deployment are alike.
fn sibling(number: usize, phase: &str) -> Bytes {
    let common: String = (0..200).map(|n| format!("\"f:field-{n}\":{{}},")).collect();
    Bytes::from(format!(
        "{{{common}\"name\":\"web-{number}\",\"phase\":\"{phase}\"}}"
    ))
}

#[tokio::test]
async fn objects_that_are_alike_take_a_tenth_of_their_bytes_now_in_the_past_and_after_a_restart() {
    const COUNT: usize = 200;
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&file(&dir)).unwrap();
    for number in 0..COUNT {
        let key = format!("/registry/pods/ns/web-{number}");
        let made = store
            .create(&key, sibling(number, "Pending"), Lazy)
            .await
            .unwrap();
        let value = sibling(number, "Running");
        store
            .update(&key, value, made.mod_revision, Lazy)
            .await
            .unwrap();
    }
    let bytes = COUNT * sibling(0, "Running").len();
    let kept_bytes = |store: &EmbeddedStore| store.state().kept_bytes();
    let (present, past) = kept_bytes(&store);
    assert!(present < bytes / 10, "{present} of {bytes} bytes");
    assert!(past < bytes / 5, "{past} of {bytes} bytes");
    let before = contents(&store).await;
    drop(store);
    let store = EmbeddedStore::open(&file(&dir)).unwrap();
    assert_eq!(contents(&store).await, before);
    let (present, _) = kept_bytes(&store);
    assert!(
        present < bytes / 10,
        "{present} of {bytes} bytes after a restart"
    );
}

/// A copy of the file is what a power cut would have left.
fn crash(path: &Path, to: &Path) -> EmbeddedStore {
    fs::copy(path, to).unwrap();
    EmbeddedStore::open(to).unwrap()
}

#[tokio::test]
async fn a_crash_loses_no_durable_write_and_gives_no_revision_twice() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&file(&dir)).unwrap();
    for n in 0..50 {
        store
            .create(&format!("/durable/{n}"), "1".into(), Durable)
            .await
            .unwrap();
    }
    let lazy = store.create("/lazy", "1".into(), Lazy).await.unwrap();
    let after = crash(&file(&dir), &dir.path().join("crashed"));
    assert_eq!(after.count("/durable/").await.unwrap().0, 50);
    assert_eq!(
        after.count("/lazy").await.unwrap().0,
        0,
        "a lazy write alone must not reach the disk"
    );
    let next = after.create("/next", "1".into(), Durable).await.unwrap();
    assert!(next.mod_revision > lazy.mod_revision);
}

#[tokio::test]
async fn lazy_writes_cost_no_disk_writes_until_a_durable_one_takes_them_along() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&file(&dir)).unwrap();
    let mut lease = store.create("/lease", "0".into(), Lazy).await.unwrap();
    store.create("/a", "1".into(), Durable).await.unwrap();
    let before = fs::read(file(&dir)).unwrap();
    for n in 0..500 {
        lease = store
            .update("/lease", n.to_string().into(), lease.mod_revision, Lazy)
            .await
            .unwrap();
    }
    assert!(
        fs::read(file(&dir)).unwrap() == before,
        "500 lease renewals wrote to the disk"
    );
    store.create("/b", "1".into(), Durable).await.unwrap();
    let after = crash(&file(&dir), &dir.path().join("crashed"));
    assert_eq!(after.get("/lease").await.unwrap().0.unwrap().value, "499");
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _store = EmbeddedStore::open(&file(&dir)).unwrap();
    assert!(matches!(
        EmbeddedStore::open(&file(&dir)),
        Err(OpenError::InUse(_))
    ));
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&file(&dir)).unwrap();
    for n in 0..200 {
        store
            .create(&format!("/{n}"), vec![b'x'; 2_000].into(), Durable)
            .await
            .unwrap();
    }
    drop(store);
    let whole = fs::read(file(&dir)).unwrap();
    let mut overwritten = whole.clone();
    overwritten[8_192..].fill(0xa5);
    for (what, damaged) in [
        ("empty", Vec::new()),
        ("text", b"this is no store".repeat(1_000)),
        ("cut short", whole[..whole.len() / 3].to_vec()),
        ("overwritten", overwritten),
    ] {
        fs::write(file(&dir), &damaged).unwrap();
        match EmbeddedStore::open(&file(&dir)) {
            Err(error @ OpenError::Corrupt { .. }) => {
                assert!(error.to_string().contains("left as it is"), "{error}")
            }
            Err(error) => panic!("{what}: {error}"),
            Ok(_) => panic!("{what}: was opened"),
        }
        assert!(
            fs::read(file(&dir)).unwrap() == damaged,
            "{what}: the file was changed"
        );
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_loses_nothing_and_is_left_behind() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    let dir = tempfile::tempdir().unwrap();
    mount(
        Some("tmpfs"),
        dir.path(),
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=4m"),
    )
    .unwrap();
    let ballast = dir.path().join("ballast");
    fs::write(&ballast, vec![0; 1_000_000]).unwrap();
    let store = EmbeddedStore::open(&file(&dir)).unwrap();
    let mut written = 0;
    let refused = loop {
        match store
            .create(&format!("/{written}"), vec![b'x'; 50_000].into(), Durable)
            .await
        {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StoreError::NoSpace(_)), "{refused}");
    assert_eq!(store.count("/").await.unwrap().0, written);
    fs::remove_file(&ballast).unwrap();
    store.create("/after", "1".into(), Durable).await.unwrap();
    drop(store);
    let store = EmbeddedStore::open(&file(&dir)).unwrap();
    assert_eq!(store.count("/").await.unwrap().0, written + 1);
    drop(store);
    umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
}

/// Clients of the process that is killed.
const CLIENTS: u64 = 4;
const STORE_VARIABLE: &str = "WHERRY_TEST_STORE";

/// Run by the test after this one, in a process of its own: writes until it is killed, and prints what was
/// acknowledged.
#[tokio::test]
#[ignore = "the process that no_acknowledged_write_is_lost_when_the_process_is_killed kills"]
async fn writer_until_killed() {
    let path = std::env::var_os(STORE_VARIABLE).unwrap();
    let store = EmbeddedStore::open(Path::new(&path)).unwrap();
    let write = async |client: u64| {
        let prefix = format!("/{client}/");
        for n in store.count(&prefix).await.unwrap().0.. {
            let key = format!("{prefix}{n}");
            let kv = store.create(&key, "1".into(), Durable).await.unwrap();
            println!("wrote {key} {}", kv.mod_revision);
        }
    };
    futures::future::join_all((0..CLIENTS).map(write)).await;
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_when_the_process_is_killed() {
    use std::io::{BufRead, BufReader};

    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    for round in 0..12 {
        let mut writer = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["embedded::tests::writer_until_killed", "--exact"])
            .args(["--ignored", "--nocapture"])
            .env(STORE_VARIABLE, file(&dir))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut note = |line: &str| {
            let (key, revision) = line.strip_prefix("wrote ")?.split_once(' ')?;
            acknowledged.insert(key.to_owned(), revision.parse::<u64>().ok()?);
            Some(())
        };
        let mut left = 10 + 17 * round;
        while left > 0 {
            left -= usize::from(note(&lines.next().unwrap().unwrap()).is_some());
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            note(&line);
        }
        let store = EmbeddedStore::open(&file(&dir)).unwrap();
        let kept = store.list("/", None, 0, 0).await.unwrap().items;
        let revisions: BTreeMap<_, _> = kept
            .iter()
            .map(|kv| (kv.key.to_string(), kv.mod_revision))
            .collect();
        for (key, revision) in &acknowledged {
            assert_eq!(revisions.get(key), Some(revision), "{key}");
        }
        let unique: std::collections::BTreeSet<_> = revisions.values().collect();
        assert_eq!(unique.len(), revisions.len(), "a revision was given twice");
        // What was under way may have happened: one write of each client in each round.
        assert!(revisions.len() <= acknowledged.len() + (round + 1) * CLIENTS as usize);
    }
}

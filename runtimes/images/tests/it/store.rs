//! Imports, names, leases, and what happens when the disk or its content is bad.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use serde_json::json;
use wherry_images::{
    ImageConfig, Limits, Store, StoreConfig,
    layout::{PackConfig, pack},
};
use wherry_runtime_api::{ImageError, ImageKind, ImageService};

use crate::support::{
    Made, SmallDisk, assert_empty, config, digest, gzip, names, noise, open, tar,
};

const MODULE: &[u8] = b"\0asm\x01\0\0\0";
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

fn rootfs(at: &Path) {
    fs::create_dir_all(at.join("bin")).unwrap();
    fs::write(at.join("bin/app"), "#!").unwrap();
    std::os::unix::fs::chown(at.join("bin/app"), Some(7), Some(8)).unwrap();
    fs::set_permissions(at.join("bin/app"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(at.join("bin/app"), at.join("bin/other")).unwrap();
    std::os::unix::fs::symlink("bin/app", at.join("link")).unwrap();
}

#[tokio::test]
async fn a_packed_directory_comes_back_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    rootfs(&at("rootfs"));
    let wanted = PackConfig {
        run: ImageConfig {
            env: vec![("A".into(), "b=c".into())],
            entrypoint: vec!["/bin/app".into()],
            user: Some("7:8".into()),
            exposed_ports: vec!["80/tcp".into()],
            ..ImageConfig::default()
        },
        name: Some("localhost/app:1".into()),
        compression: 6,
        ..PackConfig::default()
    };
    let id = pack(&at("rootfs"), &wanted, &at("layout")).unwrap();
    assert_eq!(pack(&at("rootfs"), &wanted, &at("again")).unwrap(), id);
    assert_eq!(
        names(at("layout").join("blobs/sha256")),
        names(at("again").join("blobs/sha256"))
    );

    let store = open(&at("store"));
    let images = store.import(&at("layout"), &[]).await.unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(
        (images[0].id.as_str(), images[0].kind),
        (id.as_str(), ImageKind::Container)
    );
    assert_eq!(images[0].repo_tags, ["localhost/app:1"]);
    assert_eq!(images[0].user.as_deref(), Some("7:8"));

    let stored = store.image("localhost/app:1").unwrap().unwrap();
    assert_eq!(stored.config, wanted.run);
    assert_eq!(stored, store.image(&id).unwrap().unwrap());
    let [layer] = stored.layers.as_slice() else {
        panic!("{:?}", stored.layers)
    };
    let app = fs::symlink_metadata(layer.join("bin/app")).unwrap();
    assert_eq!(
        (app.mode() & 0o7777, app.uid(), app.gid(), app.nlink()),
        (0o4755, 7, 8, 2)
    );
    assert_eq!(
        fs::read_link(layer.join("link")).unwrap(),
        Path::new("bin/app")
    );
    // Nothing of the compressed layer stays.
    assert_eq!(names(at("store").join("blobs")), Vec::<String>::new());
    assert_eq!(names(at("store").join("tmp")), Vec::<String>::new());
    // Set-uid programs of images are nothing for the node's users.
    assert_eq!(fs::metadata(at("store")).unwrap().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn every_form_of_archive_is_the_same_image() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let plain = tar(&[("app", b"1")]);
    let made = Made::of(&[(gzip(&plain), plain.clone())], json!({ "Cmd": ["/app"] }));
    made.write_layout(&at("layout"), "docker.io/library/hello:1");

    let mut archive = tar::Builder::new(Vec::new());
    archive.append_dir_all(".", at("layout")).unwrap();
    let archive = archive.into_inner().unwrap();
    fs::write(at("oci.tar"), &archive).unwrap();
    fs::write(at("oci.tar.gz"), gzip(&archive)).unwrap();
    fs::write(
        at("oci.tar.zst"),
        zstd::encode_all(archive.as_slice(), 1).unwrap(),
    )
    .unwrap();

    // As old `docker save` wrote them: a layer twice, the second time as a link.
    let manifest =
        json!([{ "Config": "c.json", "RepoTags": ["hello:1"], "Layers": ["b/layer.tar"] }])
            .to_string();
    let mut docker = tar::Builder::new(Vec::new());
    for (name, content) in [
        ("manifest.json", manifest.as_bytes()),
        ("c.json", &made.config),
        ("a/layer.tar", &plain),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        docker.append_data(&mut header, name, content).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    docker
        .append_link(&mut header, "b/layer.tar", "../a/layer.tar")
        .unwrap();
    fs::write(at("docker.tar"), docker.into_inner().unwrap()).unwrap();

    for archive in [
        "layout",
        "oci.tar",
        "oci.tar.gz",
        "oci.tar.zst",
        "docker.tar",
    ] {
        let root = at(&format!("store of {archive}"));
        let store = open(&root);
        let images = store.import(&at(archive), &[]).await.unwrap();
        assert_eq!(images[0].id, made.id(), "{archive}");
        assert_eq!(
            images[0].repo_tags,
            ["docker.io/library/hello:1"],
            "{archive}"
        );
        let stored = store.image("hello:1").unwrap().unwrap();
        assert_eq!(
            fs::read_to_string(stored.layers[0].join("app")).unwrap(),
            "1",
            "{archive}"
        );
        assert_eq!(names(root.join("tmp")), Vec::<String>::new(), "{archive}");
        // Again, under another name.
        let again = store.import(&at(archive), &["other".into()]).await.unwrap();
        assert_eq!(
            again[0].repo_tags,
            [
                "docker.io/library/other:latest",
                "docker.io/library/hello:1"
            ]
        );
        assert_eq!(store.list_images().await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn modules_are_images() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let store = open(&at("store"));
    fs::write(at("hello_World.wasm"), COMPONENT).unwrap();
    let bare = &store.import(&at("hello_World.wasm"), &[]).await.unwrap()[0];
    assert_eq!(
        (bare.kind, bare.repo_tags[0].as_str()),
        (ImageKind::Wasm, "docker.io/library/hello-world:latest")
    );
    let stored = store.image("hello-world").unwrap().unwrap();
    assert_eq!(fs::read(stored.wasm.unwrap()).unwrap(), COMPONENT);
    assert_eq!(stored.wasm_key.unwrap(), digest(COMPONENT));

    // FROM scratch, with the entry point a link to be resolved inside.
    let mut plain = tar::Builder::new(tar(&[("lib/real.wasm", MODULE)]));
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    let plain = {
        // Appending to a finished archive: drop its two closing blocks.
        plain.get_mut().truncate(1024);
        plain
            .append_link(&mut header, "app.wasm", "/lib/real.wasm")
            .unwrap();
        plain.into_inner().unwrap()
    };
    let made = Made::of(
        &[(gzip(&plain), plain)],
        json!({ "Entrypoint": ["app.wasm"] }),
    );
    made.write_layout(&at("layout"), "localhost/scratch:1");
    assert_eq!(
        store.import(&at("layout"), &[]).await.unwrap()[0].kind,
        ImageKind::Wasm
    );
    let stored = store.image("localhost/scratch:1").unwrap().unwrap();
    assert_eq!(
        stored.wasm.as_deref(),
        Some(stored.layers[0].join("lib/real.wasm").as_path())
    );

    // Called so without being one: a container, then.
    let made = Made::with_files(&[("app.wasm", b"\x7fELF....")]);
    let entry = Made::of(
        &[(made.layers[0].clone(), tar(&[("app.wasm", b"\x7fELF....")]))],
        json!({ "Entrypoint": ["/app.wasm"] }),
    );
    entry.write_layout(&at("elf"), "localhost/elf:1");
    assert_eq!(
        store.import(&at("elf"), &[]).await.unwrap()[0].kind,
        ImageKind::Container
    );

    fs::write(at("not.wasm"), b"\0asm????").unwrap();
    let failed = store.import(&at("not.wasm"), &[]).await;
    assert!(
        matches!(failed, Err(ImageError::Corrupt { .. })),
        "{failed:?}"
    );
}

#[tokio::test]
async fn images_in_use_stay_and_shared_layers_too() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let layer = |content: &[u8]| {
        let plain = tar(&[("f", content)]);
        (gzip(&plain), plain)
    };
    let (shared, one, two) = (layer(b"shared"), layer(b"one"), layer(b"two"));
    Made::of(&[shared.clone(), one], json!({})).write_layout(&at("1"), "localhost/one:1");
    Made::of(&[shared.clone(), two, shared], json!({})).write_layout(&at("2"), "localhost/two:1");
    let store = open(&at("store"));
    store.import(&at("1"), &[]).await.unwrap();
    store.import(&at("2"), &[]).await.unwrap();
    assert_eq!(names(at("store").join("layers")).len(), 3);
    // Of a layer that occurs twice the upper one counts.
    let two = store.image("localhost/two:1").unwrap().unwrap();
    assert_eq!(two.layers.len(), 2);
    assert_eq!(
        fs::read_to_string(two.layers[1].join("f")).unwrap(),
        "shared"
    );

    store.lease("localhost/one:1", "container-1").unwrap();
    store.lease("localhost/one:1", "container-1").unwrap();
    assert!(matches!(
        store.lease("localhost/none", "container-2"),
        Err(ImageError::NotFound { .. })
    ));
    for bad in ["", "..", "a/b", ".hidden"] {
        assert!(store.lease("localhost/one:1", bad).is_err(), "{bad:?}");
    }
    // Another process, or this one after a restart, sees the lease.
    let again = open(&at("store"));
    assert!(matches!(
        again.remove_image("localhost/one:1").await,
        Err(ImageError::InUse(_))
    ));
    again.release("container-1").unwrap();
    again.release("container-1").unwrap();
    again.remove_image("localhost/one:1").await.unwrap();
    again.remove_image("localhost/one:1").await.unwrap();
    assert!(store.image("localhost/one:1").unwrap().is_none());
    assert_eq!(names(at("store").join("layers")).len(), 2);
    store.remove_image(&two.image.id).await.unwrap();
    assert_empty(&at("store"));
}

#[tokio::test]
async fn a_name_moves_to_the_image_that_took_it_last() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (old, new) = (
        Made::with_files(&[("app", b"old")]),
        Made::with_files(&[("app", b"new")]),
    );
    old.write_layout(&at("old"), "localhost/app:1");
    new.write_layout(&at("new"), "localhost/app:1");
    let store = open(&at("store"));
    store.import(&at("old"), &[]).await.unwrap();
    store.import(&at("new"), &[]).await.unwrap();
    assert_eq!(
        store.image("localhost/app:1").unwrap().unwrap().image.id,
        new.id()
    );
    let left = store.image_status(&old.id()).await.unwrap().unwrap();
    assert_eq!(left.repo_tags, Vec::<String>::new());
    // What its digest names stays named.
    assert_eq!(
        store
            .image_status(&left.repo_digests[0])
            .await
            .unwrap()
            .unwrap()
            .id,
        old.id()
    );
    assert!(matches!(
        store.image_status("NOT A NAME").await,
        Err(ImageError::InvalidName { .. })
    ));
}

#[tokio::test]
async fn bad_archives_say_what_is_wrong_and_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let made = Made::with_files(&[("app", &noise(5000))]);
    let layer = digest(&made.layers[0]);
    let blob = |layout: &str| {
        at(layout)
            .join("blobs/sha256")
            .join(layer.strip_prefix("sha256:").unwrap())
    };

    made.write_layout(&at("flipped"), "localhost/a");
    let mut bytes = made.layers[0].clone();
    bytes[2000] ^= 1;
    fs::write(blob("flipped"), bytes).unwrap();
    made.write_layout(&at("cut"), "localhost/a");
    fs::write(blob("cut"), &made.layers[0][..3000]).unwrap();
    made.write_layout(&at("missing"), "localhost/a");
    fs::remove_file(blob("missing")).unwrap();
    made.write_layout(&at("outside"), "localhost/a");
    fs::remove_file(blob("outside")).unwrap();
    fs::write(at("secret"), &made.layers[0]).unwrap();
    std::os::unix::fs::symlink(at("secret"), blob("outside")).unwrap();
    let plain = tar(&[("app", b"x")]);
    Made::of(&[(gzip(&plain), tar(&[("app", b"y")]))], json!({}))
        .write_layout(&at("diff"), "localhost/a");
    let evil = {
        let mut plain = tar(&[("aa/evil", b"x")]);
        plain[..2].copy_from_slice(b"..");
        let mut header = *tar::Header::from_byte_slice(&plain[..512]).as_bytes();
        tar::Header::from_byte_slice(&header.clone())
            .cksum()
            .unwrap();
        let mut fixed = tar::Header::new_gnu();
        fixed.as_mut_bytes().copy_from_slice(&header);
        fixed.set_cksum();
        header.copy_from_slice(fixed.as_bytes());
        plain[..512].copy_from_slice(&header);
        plain
    };
    Made::of(&[(gzip(&evil), evil)], json!({})).write_layout(&at("evil"), "localhost/a");
    fs::write(
        at("text"),
        "no archive at all, but long enough to hold a header: ".repeat(20),
    )
    .unwrap();
    fs::create_dir(at("empty")).unwrap();

    for (archive, part) in [
        ("flipped", "digest mismatch"),
        ("cut", "digest mismatch"),
        ("missing", "is missing"),
        ("outside", "is missing"),
        ("diff", "unpacked layer digest mismatch"),
        ("evil", "outside of the root"),
        ("text", "not a tar archive"),
        ("empty", "neither an OCI layout"),
    ] {
        let store = open(&at("store"));
        match store.import(&at(archive), &[]).await {
            Err(ImageError::Corrupt { reference, why }) => {
                assert!(why.contains(part), "{archive}: {why}");
                assert!(reference.ends_with(archive), "{archive}: {reference}");
            }
            other => panic!("{archive}: {other:?}"),
        }
        assert_empty(&at("store"));
    }
    let store = open(&at("store"));
    made.write_layout(&at("good"), "localhost/a");
    assert!(matches!(
        store.import(&at("good"), &["A B".into()]).await,
        Err(ImageError::InvalidName { .. })
    ));
    assert!(matches!(
        store.import(&at("none"), &[]).await,
        Err(ImageError::Io { .. })
    ));
}

#[tokio::test]
async fn bombs_stop_at_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    // 300 MiB of zeros after the end of the archive, which nobody would even write to disk.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    std::io::copy(
        &mut std::io::Read::take(std::io::repeat(0), 300 << 20),
        &mut encoder,
    )
    .unwrap();
    let bomb = encoder.finish().unwrap();
    Made::of(&[(bomb, tar(&[]))], json!({})).write_layout(&at("ratio"), "localhost/a");
    Made::with_files(&[("a", &vec![0; 3 << 20])]).write_layout(&at("bytes"), "localhost/a");
    let layer = |name: &str| {
        let plain = tar(&[(name, &vec![0; 600 << 10])]);
        (gzip(&plain), plain)
    };
    Made::of(&[layer("a"), layer("b")], json!({})).write_layout(&at("two layers"), "localhost/a");
    let limits = Limits {
        unpacked_bytes_max: 1 << 20,
        ..Limits::default()
    };
    for archive in ["ratio", "bytes", "two layers"] {
        let root = at(&format!("store of {archive}"));
        let store = Store::open(&root, StoreConfig { limits, ..config() }).unwrap();
        let failed = store.import(&at(archive), &[]).await;
        assert!(
            matches!(failed, Err(ImageError::TooLarge { .. })),
            "{archive}: {failed:?}"
        );
        assert_eq!(names(root.join("tmp")), Vec::<String>::new());
        assert_eq!(names(root.join("images")), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_cleared() {
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(1 << 20);
    let at = |name: &str| directory.path().join(name);
    let layer = |name: &str, size: usize| {
        let plain = tar(&[(name, &noise(size))]);
        (gzip(&plain), plain)
    };
    Made::of(&[layer("a", 400 << 10), layer("b", 2 << 20)], json!({}))
        .write_layout(&at("big"), "localhost/big");
    Made::of(&[layer("a", 300 << 10)], json!({})).write_layout(&at("small"), "localhost/small");
    let root = disk.path().join("store");
    let store = Store::open(&root, StoreConfig::default()).unwrap();
    match store.import(&at("big"), &[]).await {
        Err(ImageError::NoSpace { reference, path }) => {
            assert!(reference.ends_with("/big"));
            assert_eq!(Path::new(&path), root);
        }
        other => panic!("{other:?}"),
    }
    assert_empty(&root);
    store.import(&at("small"), &[]).await.unwrap();
    assert!(store.fs_info().await.unwrap().used_bytes > 300 << 10);
}

#[tokio::test]
async fn a_damaged_store_opens_and_says_what_it_lost() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let root = at("store");
    let (one, two) = (
        Made::with_files(&[("app", b"1")]),
        Made::with_files(&[("app", b"2")]),
    );
    one.write_layout(&at("1"), "localhost/one");
    two.write_layout(&at("2"), "localhost/two");
    let store = open(&root);
    store.import(&at("1"), &[]).await.unwrap();
    store.import(&at("2"), &[]).await.unwrap();
    let layer_of_two = store.image("localhost/two").unwrap().unwrap().layers[0]
        .parent()
        .unwrap()
        .to_path_buf();

    let record = root.join("images").join(format!(
        "{}.json",
        one.id().strip_prefix("sha256:").unwrap()
    ));
    fs::write(&record, "{ torn").unwrap();
    fs::remove_dir_all(layer_of_two).unwrap();
    // A layer whose pull never ended, from before a power cut; and work of a process that is gone.
    let lost = root.join("layers").join("0".repeat(64));
    fs::create_dir_all(lost.join("fs")).unwrap();
    fs::write(
        lost.join("layer.json"),
        r#"{"size_bytes":1,"entries":1,"boot_id":"another"}"#,
    )
    .unwrap();
    let torn = root.join("blobs").join("0".repeat(64));
    fs::write(&torn, "").unwrap();
    let work = root.join("tmp/w-gone");
    fs::create_dir(&work).unwrap();

    let store = open(&root);
    assert_eq!(store.list_images().await.unwrap(), []);
    assert!(record.with_extension("json.broken").exists());
    assert!(!lost.exists() && !torn.exists() && !work.exists());
    // Nothing hinders getting them again.
    store.import(&at("1"), &[]).await.unwrap();
    store.import(&at("2"), &[]).await.unwrap();
    assert_eq!(store.list_images().await.unwrap().len(), 2);

    fs::write(root.join("version"), "99").unwrap();
    let refused = Store::open(&root, config()).unwrap_err().to_string();
    assert!(refused.contains("another version of wherry"), "{refused}");
}

const KILLED_ROOT: &str = "WHERRY_IMAGES_TEST_ROOT";

/// Not a test of its own: what the test below runs in another process, and kills there.
#[tokio::test]
#[ignore = "run by another test"]
async fn import_and_remove_for_ever() {
    let root = std::path::PathBuf::from(std::env::var_os(KILLED_ROOT).unwrap());
    let store = open(&root.join("store"));
    println!("ready");
    loop {
        store.import(&root.join("layout"), &[]).await.unwrap();
        store.remove_image("localhost/app").await.unwrap();
    }
}

#[tokio::test]
async fn a_process_killed_at_any_moment_leaves_a_store_that_works() {
    use std::io::{BufRead, BufReader};
    let directory = tempfile::tempdir().unwrap();
    let many: Vec<(String, Vec<u8>)> = (0..100).map(|n| (format!("d/{n}"), noise(3000))).collect();
    let files: Vec<(&str, &[u8])> = many
        .iter()
        .map(|(name, content)| (name.as_str(), content.as_slice()))
        .collect();
    let plain = tar(&files);
    let made = Made::of(
        &[
            (gzip(&plain), plain.clone()),
            (gzip(&tar(&[("x", b"y")])), tar(&[("x", b"y")])),
        ],
        json!({}),
    );
    made.write_layout(&directory.path().join("layout"), "localhost/app");
    let root = directory.path().join("store");
    for round in 0..12u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::import_and_remove_for_ever",
                "--ignored",
                "--nocapture",
            ])
            .env(KILLED_ROOT, directory.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("ready")));
        // Moments spread over an import and a removal, which take some 30 ms.
        std::thread::sleep(std::time::Duration::from_millis(round * 7));
        child.kill().unwrap();
        child.wait().unwrap();

        let store = open(&root);
        assert_eq!(names(root.join("tmp")), Vec::<String>::new());
        for image in store.list_images().await.unwrap() {
            let stored = store.image(&image.id).unwrap().unwrap();
            assert_eq!(
                fs::read_dir(stored.layers[0].join("d")).unwrap().count(),
                100
            );
        }
        store
            .import(&directory.path().join("layout"), &[])
            .await
            .unwrap();
        store.remove_image("localhost/app").await.unwrap();
        assert_empty(&root);
    }
}

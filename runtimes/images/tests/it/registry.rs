//! Pulls from Debian's docker-registry, and from one that misbehaves.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::sync::watch;
use wherry_images::{RegistryConfig, Store, StoreConfig};
use wherry_runtime_api::{ImageError, ImageKind, ImageService, PullProgress, RegistryAuth};

use crate::support::{
    Answer, DockerRegistry, FakeRegistry, Made, PASSWORD, SmallDisk, USER, assert_empty, config,
    digest, gzip, names, noise, open, serve_image, tar,
};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn basic(username: &str, password: &str) -> RegistryAuth {
    RegistryAuth::Basic {
        username: username.into(),
        password: password.into(),
    }
}

fn layer(name: &str, size: usize) -> (Vec<u8>, Vec<u8>) {
    let plain = tar(&[(name, &noise(size))]);
    (gzip(&plain), plain)
}

#[tokio::test(flavor = "multi_thread")]
async fn debians_registry_with_tls_and_users_is_pulled_from() {
    let registry = DockerRegistry::with_tls_and_users();
    let made = Made::with_files(&[("app", b"hello")]);
    let reference = registry.push("team/app:1", &made, LAYER, CONFIG).await;
    let module = b"\0asm\x0d\0\x01\0".to_vec();
    let wasm = Made::artifact(
        vec![module.clone()],
        "application/wasm",
        b"{}".to_vec(),
        "application/vnd.wasm.config.v0+json",
    );
    let wasm_reference = registry
        .push(
            "team/component:1",
            &wasm,
            "application/wasm",
            "application/vnd.wasm.config.v0+json",
        )
        .await;

    let directory = tempfile::tempdir().unwrap();
    let registries = RegistryConfig {
        ca_files: registry.ca_file.iter().cloned().collect(),
        ..RegistryConfig::default()
    };
    let store = Store::open(
        directory.path(),
        StoreConfig {
            registries,
            ..config()
        },
    )
    .unwrap();
    let alice = basic(USER, PASSWORD);
    let mallory = basic(USER, "guess");

    for credentials in [vec![], vec![mallory.clone()]] {
        let refused = store.pull_image(&reference, &credentials, None).await;
        assert!(
            matches!(refused, Err(ImageError::Unauthorized { .. })),
            "{refused:?}"
        );
    }
    let missing = store
        .pull_image(
            &format!("{}/team/none:1", registry.address),
            std::slice::from_ref(&alice),
            None,
        )
        .await;
    assert!(
        matches!(missing, Err(ImageError::NotFound { .. })),
        "{missing:?}"
    );

    let both = [mallory, alice];
    assert_eq!(
        store.resolve_kind(&reference, &both).await.unwrap(),
        ImageKind::Container
    );
    assert_eq!(names(directory.path().join("layers")), Vec::<String>::new());
    let (progress, mut seen) = watch::channel(PullProgress::default());
    let image = store
        .pull_image(&reference, &both, Some(progress))
        .await
        .unwrap();
    assert_eq!(
        (image.id, image.repo_tags),
        (made.id(), vec![reference.clone()])
    );
    let size = made.layers[0].len() as u64;
    let done = PullProgress {
        layers_total: 1,
        layers_done: 1,
        bytes_total: size,
        bytes_done: size,
    };
    assert_eq!(*seen.borrow_and_update(), done);
    let stored = store.image(&reference).unwrap().unwrap();
    assert_eq!(
        fs::read_to_string(stored.layers[0].join("app")).unwrap(),
        "hello"
    );

    // By digest; everything is here already.
    let by_digest = &image.repo_digests[0];
    assert!(by_digest.starts_with(&format!("{}/team/app@sha256:", registry.address)));
    assert_eq!(
        store.pull_image(by_digest, &both, None).await.unwrap().id,
        made.id()
    );

    assert_eq!(
        store.resolve_kind(&wasm_reference, &both).await.unwrap(),
        ImageKind::Wasm
    );
    let image = store
        .pull_image(&wasm_reference, &both, None)
        .await
        .unwrap();
    assert_eq!(image.kind, ImageKind::Wasm);
    let stored = store.image(&image.id).unwrap().unwrap();
    assert_eq!(fs::read(stored.wasm.unwrap()).unwrap(), module);
}

#[tokio::test(flavor = "multi_thread")]
async fn debians_plain_registry_is_pulled_from_and_tls_is_not_forgone_in_silence() {
    let registry = DockerRegistry::plain();
    let made = Made::of(
        &[
            layer("a", 100_000),
            layer("b", 10),
            layer("c", 300_000),
            layer("d", 20),
        ],
        json!({}),
    );
    let reference = registry.push("app:1", &made, LAYER, CONFIG).await;
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let image = store.pull_image(&reference, &[], None).await.unwrap();
    assert!(image.size_bytes >= 400_030);
    assert_eq!(store.image(&image.id).unwrap().unwrap().layers.len(), 4);

    // Its authority is not known here.
    let tls = DockerRegistry::with_tls_and_users();
    let refused = store
        .pull_image(
            &format!("{}/app:1", tls.address),
            &[basic(USER, PASSWORD)],
            None,
        )
        .await;
    assert!(
        matches!(&refused, Err(ImageError::Unavailable { why, .. }) if why.contains("certificate")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let made = Made::of(&[layer("a", 300_000)], json!({}));
    let blob = digest(&made.layers[0]);
    let attempts = Arc::new(AtomicUsize::new(0));
    let (image, counted, cut_blob) = (made.clone(), attempts.clone(), blob.clone());
    let registry = FakeRegistry::start(move |request| {
        let mut answer = serve_image(&image, request);
        // Each time a little further, twice not at all.
        if request.path.contains(&cut_blob) {
            match counted.fetch_add(1, Ordering::SeqCst) {
                0 => answer.cut = Some(100_000),
                1 => answer = Answer::status(503),
                2 => answer.cut = Some(0),
                3 => answer.cut = Some(50_000),
                _ => {}
            }
        }
        answer
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let image = store
        .pull_image(&registry.name("app"), &[], None)
        .await
        .unwrap();
    assert_eq!(image.id, made.id());
    let ranges: Vec<Option<String>> = registry
        .requests(&blob)
        .iter()
        .map(|r| r.headers.get("range").cloned())
        .collect();
    let resumed = |from: usize| Some(format!("bytes={from}-"));
    assert_eq!(
        ranges,
        [
            None,
            resumed(100_000),
            resumed(100_000),
            resumed(100_000),
            resumed(150_000)
        ]
    );
    assert_eq!(
        names(directory.path().join("partial")),
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn a_registry_that_cannot_resume_starts_again() {
    let made = Made::of(&[layer("a", 300_000)], json!({}));
    let blob = digest(&made.layers[0]);
    let attempts = Arc::new(AtomicUsize::new(0));
    let (image, cut_blob) = (made.clone(), blob.clone());
    let registry = FakeRegistry::start(move |request| {
        let mut plain = request.clone();
        plain.headers.remove("range");
        let mut answer = serve_image(&image, &plain);
        if request.path.contains(&cut_blob) && attempts.fetch_add(1, Ordering::SeqCst) == 0 {
            answer.cut = Some(100_000);
        }
        answer
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let image = open(directory.path())
        .pull_image(&registry.name("app"), &[], None)
        .await
        .unwrap();
    assert_eq!(image.id, made.id());
}

#[tokio::test]
async fn a_pull_given_up_is_taken_up_by_the_next() {
    let made = Made::of(&[layer("a", 2_000_000)], json!({}));
    let blob = digest(&made.layers[0]);
    let attempts = Arc::new(AtomicUsize::new(0));
    let (image, stalled_blob) = (made.clone(), blob.clone());
    let registry = FakeRegistry::start(move |request| {
        let mut answer = serve_image(&image, request);
        if request.path.contains(&stalled_blob) && attempts.fetch_add(1, Ordering::SeqCst) == 0 {
            answer.stall = Some(1_500_000);
        }
        answer
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let (progress, mut seen) = watch::channel(PullProgress::default());
    let reference = registry.name("app");
    tokio::select! {
        done = store.pull_image(&reference, &[], Some(progress)) => panic!("{done:?}"),
        reached = seen.wait_for(|now| now.bytes_done == 1_500_000) => drop(reached.unwrap()),
    }
    assert_eq!(names(directory.path().join("partial")).len(), 1);
    // As after a restart of the agent.
    let store = open(directory.path());
    let image = store.pull_image(&reference, &[], None).await.unwrap();
    assert_eq!(image.id, made.id());
    let from: u64 = registry.requests(&blob)[1].headers["range"]
        .trim_start_matches("bytes=")
        .trim_end_matches('-')
        .parse()
        .unwrap();
    assert!(from >= 1_000_000, "resumed at {from}");
}

#[tokio::test]
async fn a_damaged_leftover_costs_one_more_download_and_no_more() {
    let made = Made::of(&[layer("a", 300_000)], json!({}));
    let blob = digest(&made.layers[0]);
    let registry = FakeRegistry::with(&made).await;
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    fs::write(
        directory
            .path()
            .join("partial")
            .join(blob.strip_prefix("sha256:").unwrap()),
        noise(10),
    )
    .unwrap();
    store
        .pull_image(&registry.name("app"), &[], None)
        .await
        .unwrap();
    assert_eq!(registry.requests(&blob).len(), 2);
}

#[tokio::test]
async fn content_that_is_not_what_its_digest_says_is_refused() {
    let made = Made::of(&[layer("a", 30_000)], json!({}));
    let tampered_layer = digest(&made.layers[0]);
    for (what, part) in [
        ("layer", "layer digest mismatch"),
        ("config", "config digest mismatch"),
        ("longer", "longer"),
    ] {
        let (image, tampered) = (made.clone(), tampered_layer.clone());
        let registry = FakeRegistry::start(move |request| {
            let mut answer = serve_image(&image, request);
            let is_layer = request.path.contains(&tampered);
            let is_config = request.path.ends_with(&digest(&image.config));
            match what {
                "layer" if is_layer => answer.body[5000] ^= 1,
                "config" if is_config => answer.body[0] = b' ',
                "longer" if is_layer => answer.body.push(0),
                _ => {}
            }
            answer
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        let refused = open(directory.path())
            .pull_image(&registry.name("app"), &[], None)
            .await;
        assert!(
            matches!(&refused, Err(ImageError::Corrupt { why, .. }) if why.contains(part)),
            "{what}: {refused:?}"
        );
        assert_empty(directory.path());
    }
    // And a manifest asked for by digest.
    let registry = FakeRegistry::start(|_| Answer::ok("{}")).await;
    let directory = tempfile::tempdir().unwrap();
    let name = format!("{}@sha256:{}", registry.name("app"), "0".repeat(64));
    let refused = open(directory.path()).pull_image(&name, &[], None).await;
    assert!(
        matches!(refused, Err(ImageError::Corrupt { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn answers_without_end_do_not_fill_memory() {
    let registry = FakeRegistry::start(|request| match request.path.as_str() {
        "/v2/" => Answer::ok("{}"),
        _ => Answer::ok(vec![b' '; 5 << 20]),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let refused = open(directory.path())
        .pull_image(&registry.name("app"), &[], None)
        .await;
    assert!(
        matches!(&refused, Err(ImageError::Corrupt { why, .. }) if why.contains("larger")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_one_image_share_the_work() {
    let made = Made::of(&[layer("a", 500_000), layer("b", 1000)], json!({}));
    let registry = FakeRegistry::with(&made).await;
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let name = registry.name("app");
    let all = (0..5).map(|_| store.pull_image(&name, &[], None));
    for image in futures::future::join_all(all).await {
        assert_eq!(image.unwrap().id, made.id());
    }
    for blob in &made.layers {
        assert_eq!(registry.requests(&digest(blob)).len(), 1);
    }
}

#[tokio::test]
async fn tokens_are_asked_for_as_the_registry_says() {
    let made = Made::with_files(&[("app", b"1")]);
    for (credential, accepted) in [
        (None, "none"),
        (Some(basic("u", "p")), "basic"),
        (
            Some(RegistryAuth::IdentityToken("refresh".into())),
            "refresh",
        ),
        (Some(RegistryAuth::Bearer("ready".into())), "ready"),
    ] {
        let image = made.clone();
        let registry = FakeRegistry::start(move |request| {
            let authorization = request.headers.get("authorization").map_or("", String::as_str);
            if request.path.starts_with("/token") {
                let asked = if request.method == "POST" { &request.body } else { &request.path };
                assert!(asked.contains("service=here") && asked.contains("scope=repository%3Aapp%3Apull"), "{asked}");
                return match (accepted, authorization) {
                    ("none", "") => Answer::ok(r#"{"token":"t-none"}"#),
                    ("basic", "Basic dTpw") => Answer::ok(r#"{"access_token":"t-basic"}"#),
                    ("refresh", "") if asked.contains("refresh_token=refresh") => Answer::ok(r#"{"token":"t-refresh"}"#),
                    _ => Answer::status(401),
                };
            }
            let is_accepted = authorization == format!("Bearer t-{accepted}") || authorization == "Bearer ready";
            if request.path == "/v2/" || is_accepted {
                return serve_image(&image, request);
            }
            let host = &request.headers["host"];
            Answer::status(401).header(
                "WWW-Authenticate",
                &format!(r#"Bearer realm="http://{host}/token",service="here",scope="repository:app:pull""#),
            )
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        let credentials: Vec<RegistryAuth> = credential.into_iter().collect();
        let pulled = open(directory.path())
            .pull_image(&registry.name("app"), &credentials, None)
            .await;
        assert_eq!(pulled.unwrap().id, made.id(), "{accepted}");
        if accepted != "none" {
            let refused = open(&directory.path().join("2"))
                .pull_image(&registry.name("app"), &[], None)
                .await;
            assert!(
                matches!(refused, Err(ImageError::Unauthorized { .. })),
                "{refused:?}"
            );
        }
    }
}

#[tokio::test]
async fn registries_in_trouble_are_told_from_images_that_are_not_there() {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let refused = store.pull_image(&format!("{closed}/app"), &[], None).await;
    assert!(
        matches!(refused, Err(ImageError::Unavailable { .. })),
        "{refused:?}"
    );
    for (status, body) in [
        (500, ""),
        (503, ""),
        (
            429,
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow"}]}"#,
        ),
    ] {
        let registry = FakeRegistry::start(move |request| match request.path.as_str() {
            "/v2/" => Answer::ok("{}"),
            _ => Answer {
                body: body.into(),
                ..Answer::status(status)
            },
        })
        .await;
        match store.pull_image(&registry.name("app"), &[], None).await {
            Err(ImageError::Unavailable { why, .. }) => {
                assert!(why.contains(&status.to_string()), "{why}");
                assert!(
                    status != 429 || why.contains("toomanyrequests: slow"),
                    "{why}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    let denied = FakeRegistry::start(|request| match request.path.as_str() {
        "/v2/" => Answer::ok("{}"),
        _ => Answer::status(403),
    })
    .await;
    let refused = store.pull_image(&denied.name("app"), &[], None).await;
    assert!(
        matches!(refused, Err(ImageError::Unauthorized { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_index_leads_to_this_machines_image() {
    let made = Made::with_files(&[("app", b"1")]);
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifests": [
            { "digest": format!("sha256:{}", "0".repeat(64)), "size": 1, "platform": { "os": "linux", "architecture": "s390x" } },
            { "digest": digest(&made.manifest), "size": 1, "platform": { "os": "linux", "architecture": architecture } },
        ],
    })
    .to_string();
    let (image, listed) = (made.clone(), index.clone());
    let registry = FakeRegistry::start(move |request| {
        if request.path.contains("/manifests/latest") {
            Answer::ok(listed.clone())
        } else {
            serve_image(&image, request)
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let image = store
        .pull_image(&registry.name("app"), &[], None)
        .await
        .unwrap();
    assert_eq!(image.id, made.id());
    let by = |digest: String| format!("{}@{digest}", registry.name("app"));
    assert_eq!(
        image.repo_digests,
        [by(digest(index.as_bytes())), by(digest(&made.manifest))]
    );
    assert!(store.image(&image.repo_digests[1]).unwrap().is_some());
}

#[tokio::test]
async fn mirrors_are_asked_first_and_get_no_credentials() {
    let made = Made::with_files(&[("app", b"1")]);
    let (empty, mirror) = (
        FakeRegistry::start(|_| Answer::status(404)).await,
        FakeRegistry::with(&made).await,
    );
    let directory = tempfile::tempdir().unwrap();
    let registries = RegistryConfig {
        mirrors: vec![(
            "r.example".into(),
            vec![empty.address.to_string(), mirror.address.to_string()],
        )],
        ..RegistryConfig::default()
    };
    let store = Store::open(
        directory.path(),
        StoreConfig {
            registries,
            ..config()
        },
    )
    .unwrap();
    let image = store
        .pull_image("r.example/app:1", &[basic("u", "p")], None)
        .await
        .unwrap();
    assert_eq!(image.repo_tags, ["r.example/app:1"]);
    assert!(empty.requests("/v2/app/manifests/1?ns=r.example").len() == 1);
    for registry in [&empty, &mirror] {
        assert!(
            registry
                .requests("")
                .iter()
                .all(|r| !r.headers.contains_key("authorization"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_during_a_pull_is_told_and_cleared() {
    let made = Made::of(&[layer("a", 200_000), layer("b", 3_000_000)], json!({}));
    let registry = FakeRegistry::with(&made).await;
    let disk = SmallDisk::mount(1 << 20);
    let root = disk.path().join("store");
    let store = open(&root);
    let failed = store.pull_image(&registry.name("app"), &[], None).await;
    assert!(
        matches!(failed, Err(ImageError::NoSpace { .. })),
        "{failed:?}"
    );
    // What was already being unpacked when the other layer failed may take a moment to end, or to begin and end.
    let left = || ["partial", "images", "tmp"].map(|kind| names(root.join(kind)));
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let mut empty_looks = 0;
    while empty_looks < 30 {
        let left = left();
        let is_empty = left.iter().all(Vec::is_empty);
        empty_looks = if is_empty { empty_looks + 1 } else { 0 };
        assert!(std::time::Instant::now() < deadline, "{left:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let small = Made::with_files(&[("app", &noise(100_000))]);
    let registry = FakeRegistry::with(&small).await;
    store
        .pull_image(&registry.name("app"), &[], None)
        .await
        .unwrap();
}

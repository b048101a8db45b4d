//! The engine's images, and a real registry for them.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use wherry_runtime_api::{conformance::ShellNode, *};

use crate::node::{Node, import_busybox, tests};

tests! {
    imported_images_are_listed_and_removed
    images_are_pulled_with_the_credentials_that_fit
    what_cannot_be_pulled_is_told_apart
    the_images_user_is_seen_and_used
}

struct Registry {
    process: Child,
    host: String,
}

impl Registry {
    fn start(node: &Node, has_users: bool) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let place = node.place.join("registry");
        std::fs::create_dir_all(&place).unwrap();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            place.display()
        );
        if has_users {
            let users = place.join("htpasswd");
            let made = Command::new("htpasswd")
                .args(["-Bbn", "me", "secret"])
                .output();
            std::fs::write(&users, made.unwrap().stdout).unwrap();
            let path = users.display();
            config += &format!("auth: {{htpasswd: {{realm: here, path: {path}}}}}\n");
        }
        let file = place.join("config.yml");
        std::fs::write(&file, config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let deadline = std::time::Instant::now() + crate::engine::TIMEOUT;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(10));
        }
        Self {
            process,
            host: format!("127.0.0.1:{port}"),
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn docker(node: &Node, arguments: &[&str]) {
    let output = Command::new("docker")
        .env("DOCKER_CONFIG", node.place.join("docker-config"))
        .args(["--host", &format!("unix://{}", node.socket.display())])
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {arguments:?}: {text}");
}

async fn imported_images_are_listed_and_removed(node: Node) {
    let images = node.runtime.docker_images();
    let id = import_busybox(&node.runtime, &node.place, "wherry.test/gone:1", Some("7")).await;
    let listed = images.list_images().await.unwrap();
    let found = listed.iter().find(|image| image.id == id).unwrap();
    assert_eq!(found.repo_tags, ["wherry.test/gone:1"]);
    assert_eq!(
        (found.user.as_deref(), found.kind),
        (Some("7"), ImageKind::Container)
    );
    assert!(found.size_bytes > 500_000);
    assert!(images.fs_info().await.unwrap().used_bytes >= found.size_bytes);
    // What holds pods is nobody's to collect.
    node.sandbox("pause").await;
    let listed = images.list_images().await.unwrap();
    assert!(
        listed
            .iter()
            .all(|image| image.repo_tags.iter().all(|tag| !tag.contains("pause")))
    );
    // A container, running or not, keeps its image.
    assert!(matches!(
        images.remove_image(&node.image).await,
        Ok(()) | Err(ImageError::InUse(_))
    ));
    for _ in 0..2 {
        images.remove_image(&id).await.unwrap();
    }
    assert_eq!(images.image_status(&id).await.unwrap(), None);
    assert_eq!(
        images.image_status("wherry.test/gone:1").await.unwrap(),
        None
    );
}

async fn images_are_pulled_with_the_credentials_that_fit(node: Node) {
    let registry = Registry::start(&node, true);
    let name = format!("{}/team/app:1", registry.host);
    let images = node.runtime.docker_images();
    let id = import_busybox(&node.runtime, &node.place, &name, Some("33")).await;
    docker(
        &node,
        &[
            "login",
            "--username",
            "me",
            "--password",
            "secret",
            &registry.host,
        ],
    );
    docker(&node, &["push", &name]);
    images.remove_image(&id).await.unwrap();
    let basic = |password: &str| RegistryAuth::Basic {
        username: "me".into(),
        password: password.into(),
    };
    for auth in [vec![], vec![basic("wrong")]] {
        let error = images.pull_image(&name, &auth, None).await;
        assert!(
            matches!(error, Err(ImageError::Unauthorized { .. })),
            "{error:?}"
        );
    }
    let (sender, progress) = tokio::sync::watch::channel(PullProgress::default());
    let auth = [basic("wrong"), basic("secret")];
    let pulled = images.pull_image(&name, &auth, Some(sender)).await.unwrap();
    assert_eq!(
        (pulled.id.as_str(), pulled.repo_tags.as_slice()),
        (id.as_str(), &[name][..])
    );
    assert!(pulled.repo_digests[0].contains("/team/app@sha256:"));
    let progress = *progress.borrow();
    assert_eq!((progress.layers_total, progress.layers_done), (1, 1));
    // The digest names it as well, and the node's pods run it.
    let by_digest = images.image_status(&pulled.repo_digests[0]).await.unwrap();
    assert_eq!(by_digest.map(|image| image.id), Some(id.clone()));
    images.remove_image(&id).await.unwrap();
}

async fn what_cannot_be_pulled_is_told_apart(node: Node) {
    let registry = Registry::start(&node, false);
    let images = node.runtime.docker_images();
    let pull = async |name: String| images.pull_image(&name, &[], None).await.map(drop);
    let absent = pull(format!("{}/absent:1", registry.host)).await;
    assert!(
        matches!(absent, Err(ImageError::NotFound { .. })),
        "{absent:?}"
    );
    let host = registry.host.clone();
    drop(registry);
    let away = pull(format!("{host}/absent:1")).await;
    assert!(
        matches!(away, Err(ImageError::Unavailable { .. })),
        "{away:?}"
    );
    let invalid = pull("UPPER/case:1".to_owned()).await;
    assert!(
        matches!(invalid, Err(ImageError::InvalidName { .. })),
        "{invalid:?}"
    );
}

async fn the_images_user_is_seen_and_used(node: Node) {
    let image = import_busybox(
        &node.runtime,
        &node.place,
        "wherry.test/user:1",
        Some("app"),
    )
    .await;
    let sandbox = node.sandbox("user").await;
    let mut config = node.script(&sandbox, "main", "id");
    config.image_id = image.clone();
    let (_, text) = node.run(&sandbox, &config).await;
    assert!(
        text.contains("uid=1000(app)") && text.contains("2000(extra)"),
        "{text}"
    );
    let mut config = node.script(&sandbox, "non-root", "id");
    config.image_id = image;
    config.security.run_as_non_root = true;
    let refused = node.runtime.create_container(&sandbox, &config).await;
    assert!(
        matches!(refused, Err(RuntimeError::InvalidArgument(_))),
        "{refused:?}"
    );
    config.security.run_as_user = Some(1000);
    config.security.run_as_group = Some(0);
    config.security.supplemental_groups = vec![4000];
    let (_, text) = node.run(&sandbox, &config).await;
    assert!(
        text.contains("uid=1000(app) gid=0(root)") && text.contains("4000"),
        "{text}"
    );
}

//! A node: a label on an engine, directories, a cgroup and a runtime.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Instant,
};

use async_trait::async_trait;
use libtest_mimic::Trial;
use sha2::{Digest, Sha256};
use wherry_docker::{Config, DockerRuntime};
use wherry_runtime_api::{conformance::ShellNode, *};

use crate::engine::{self, TIMEOUT};

/// The reference of the image that containers are of.
const BUSYBOX: &str = "wherry.test/busybox:1";

pub(crate) type Body = fn(Node) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// Lists async functions that take a [`Node`] of the shared engine.
macro_rules! tests {
    ($($name:ident)*) => {
        pub(crate) fn trials() -> Vec<libtest_mimic::Trial> {
            vec![$(crate::node::trial(stringify!($name), |node| Box::pin($name(node)))),*]
        }
    };
}
pub(crate) use tests;

/// A test with a node of its own on the shared engine, which is left as it was.
pub(crate) fn trial(name: &'static str, body: Body) -> Trial {
    Trial::test(name, move || {
        run(async move {
            let node = Node::new(name, engine::shared()).await;
            let kept = node.clone();
            let outcome = tokio::spawn(body(node)).await;
            kept.clean_up().await;
            outcome.unwrap();
        });
        Ok(())
    })
}

pub(crate) fn run(body: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(body);
}

#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) place: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) cgroup: String,
    pub(crate) runtime: Arc<DockerRuntime>,
    pub(crate) image: String,
}

#[async_trait]
impl ShellNode for Node {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime.clone()
    }

    async fn restart(&mut self) {
        self.runtime = open(&self.socket, &self.place).await;
    }

    fn place(&self) -> &Path {
        &self.place
    }

    fn cgroup(&self) -> &str {
        &self.cgroup
    }

    fn shell_image(&self) -> (String, &'static str) {
        (self.image.clone(), BUSYBOX)
    }
}

impl Node {
    pub(crate) async fn new(name: &str, socket: PathBuf) -> Self {
        let place = tempfile::Builder::new()
            .prefix("wherry-docker-")
            .tempdir()
            .unwrap()
            .keep();
        let runtime = open(&socket, &place).await;
        let image = import_busybox(&runtime, &place, BUSYBOX, None).await;
        Self {
            cgroup: format!(
                "wherry-test-{}-{}",
                std::process::id(),
                &name[..name.len().min(60)]
            ),
            place,
            socket,
            runtime,
            image,
        }
    }

    /// Removes every sandbox, as the agent would, and checks that nothing is left.
    pub(crate) async fn clean_up(&self) {
        let runtime = open(&self.socket, &self.place).await;
        for sandbox in runtime.list_pod_sandboxes().await.unwrap() {
            runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
        }
        assert_eq!(runtime.list_containers().await.unwrap(), []);
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let base = hierarchy.path().join(&self.cgroup);
            // Groups above the pods' are the agent's and empty by now.
            for group in ["kubepods/besteffort", "kubepods", ""] {
                let _ = fs::remove_dir(base.join(group));
            }
            assert!(!base.exists(), "{}: cgroups are left", base.display());
        }
        fs::remove_dir_all(&self.place).unwrap();
    }
}

pub(crate) async fn open(socket: &Path, place: &Path) -> Arc<DockerRuntime> {
    let endpoint = format!("unix://{}", socket.display());
    DockerRuntime::open(Config::new(&endpoint, place.to_str().unwrap()).unwrap()).await
}

/// Imports a busybox image, by way of an OCI layout, and answers its ID.
pub(crate) async fn import_busybox(
    runtime: &DockerRuntime,
    place: &Path,
    name: &str,
    user: Option<&str>,
) -> String {
    let images = runtime.docker_images();
    if let Ok(Some(image)) = images.image_status(name).await {
        return image.id;
    }
    let layout = place.join("layout");
    write_layout(&layout, user);
    images.import(&layout, &[name.to_owned()]).await.unwrap();
    fs::remove_dir_all(&layout).unwrap();
    images.image_status(name).await.unwrap().unwrap().id
}

fn write_layout(layout: &Path, user: Option<&str>) {
    let layer = busybox_layer();
    let blob = |content: &[u8]| {
        let hex = format!("{:x}", Sha256::digest(content));
        let directory = layout.join("blobs/sha256");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(&hex), content).unwrap();
        format!("sha256:{hex}")
    };
    let diff_id = blob(&layer);
    let mut run =
        serde_json::json!({"Cmd": ["/bin/sh"], "Env": ["IMAGE=busybox"], "WorkingDir": "/"});
    if let Some(user) = user {
        run["User"] = user.into();
    }
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = blob(config.to_string().as_bytes());
    let manifest =
        serde_json::json!({"config": {"digest": config}, "layers": [{"digest": diff_id}]});
    let manifest = blob(manifest.to_string().as_bytes());
    let index = serde_json::json!({"manifests": [{"digest": manifest}]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
}

fn busybox_layer() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(0);
        header
    };
    use tar::EntryType as E;
    for name in ["bin", "etc", "proc", "home/app", "dev", "sys"] {
        let mut header = header(E::Directory, 0o755, 0);
        layer.append_data(&mut header, name, &[][..]).unwrap();
    }
    let mut header_of_tmp = header(E::Directory, 0o1777, 0);
    layer
        .append_data(&mut header_of_tmp, "tmp", &[][..])
        .unwrap();
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    for (name, mode, content) in [
        ("bin/busybox", 0o755, busybox.as_slice()),
        (
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        ),
        (
            "etc/group",
            0o644,
            b"root:x:0:\napp:x:1000:\nextra:x:2000:app\n",
        ),
    ] {
        let mut header = header(E::Regular, mode, content.len() as u64);
        layer.append_data(&mut header, name, content).unwrap();
    }
    let applets = std::process::Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines() {
        if applet != "busybox" {
            let mut header = header(E::Symlink, 0o777, 0);
            layer
                .append_link(&mut header, format!("bin/{applet}"), "busybox")
                .unwrap();
        }
    }
    layer.into_inner().unwrap()
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

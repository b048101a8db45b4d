//! What the tests have in common: a node in a directory, and that nothing is left of it.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    process::{Command, ExitCode},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use libtest_mimic::Trial;
use wherry_images::{Store, StoreConfig, layout::PackConfig};
use wherry_oci::{Config, OciRuntime};
use wherry_runtime_api::{conformance::ShellNode, *};

/// Tests under way at once. They mostly wait.
const PARALLEL: usize = 8;
/// One limit for everything that is waited for.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) type Body = Box<dyn FnOnce(Node) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Lists async functions that take a [`Node`].
macro_rules! tests {
    ($($name:ident)*) => {
        pub(crate) fn tests() -> Vec<(String, crate::harness::Body)> {
            vec![$((stringify!($name).to_owned(), Box::new(|node| Box::pin($name(node))))),*]
        }
    };
}
pub(crate) use tests;

/// Runs them, each on a node of its own.
pub(crate) fn run(tests: Vec<(String, Body)>) -> ExitCode {
    let mut args = libtest_mimic::Arguments::from_args();
    args.test_threads.get_or_insert(PARALLEL);
    let image = Arc::new(OnceLock::new());
    let trials = tests.into_iter().map(|(name, body)| {
        let image = Arc::clone(&image);
        Trial::test(name.clone(), move || {
            run_one(&name, body, image.get_or_init(BusyboxImage::build));
            Ok(())
        })
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}

fn run_one(name: &str, body: Body, image: &BusyboxImage) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let node = Node::new(name, image).await;
        let (place, cgroup) = (node.place.clone(), node.cgroup.clone());
        let outcome = tokio::spawn(body(node)).await;
        clean_up(&place, &cgroup).await;
        if let Err(error) = outcome {
            std::panic::resume_unwind(error.into_panic());
        }
        assert_nothing_left(&place, &cgroup);
    });
}

/// A busybox image, packed once.
pub(crate) struct BusyboxImage {
    directory: tempfile::TempDir,
}

impl BusyboxImage {
    fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        for name in ["bin", "etc", "tmp", "home/app", "proc", "file-in-the-way"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
        for applet in String::from_utf8(applets.stdout).unwrap().lines() {
            if applet != "busybox" {
                std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
            }
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        )
        .unwrap();
        fs::write(
            root.join("etc/group"),
            "root:x:0:\napp:x:1000:\nextra:x:2000:app\n",
        )
        .unwrap();
        fs::write(root.join("not-executable"), "text").unwrap();
        fs::write(root.join("a-file"), "text").unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", root.join("etc/dangling")).unwrap();
        std::os::unix::fs::symlink("../../../../../../../../tmp", root.join("escape")).unwrap();
        let pack = |name: &str, change: fn(&mut PackConfig)| {
            let mut config = PackConfig {
                name: Some(name.to_owned()),
                ..PackConfig::default()
            };
            config.run.cmd = vec!["/bin/sh".into()];
            config.run.env = vec![("IMAGE".into(), "busybox".into())];
            change(&mut config);
            wherry_images::layout::pack(&root, &config, &directory.path().join(name)).unwrap();
        };
        pack("busybox", |_| {});
        pack("named-user", |config| config.run.user = Some("app".into()));
        pack("volumes", |config| {
            config.run.volumes = vec!["/home".into(), "/made/volume".into()];
        });
        pack("unknown-user", |config| {
            config.run.user = Some("nobody-knows".into())
        });
        Self { directory }
    }
}

/// A node: directories, a cgroup and a runtime.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) place: PathBuf,
    pub(crate) cgroup: String,
    pub(crate) runtime: Arc<OciRuntime>,
    images: Store,
    image_ids: Vec<(String, String)>,
}

#[async_trait]
impl ShellNode for Node {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime.clone()
    }

    async fn restart(&mut self) {
        self.runtime = open(&self.place, &self.images).await;
    }

    fn place(&self) -> &Path {
        &self.place
    }

    fn cgroup(&self) -> &str {
        &self.cgroup
    }

    fn shell_image(&self) -> (String, &'static str) {
        (self.image("busybox"), "busybox")
    }
}

impl Node {
    async fn new(name: &str, image: &BusyboxImage) -> Self {
        let place = tempfile::Builder::new()
            .prefix("wherry-oci-")
            .tempdir()
            .unwrap()
            .keep();
        let images = open_images(&place);
        let mut image_ids = Vec::new();
        for tag in ["busybox", "named-user", "unknown-user", "volumes"] {
            let found = images
                .import(&image.directory.path().join(tag), &[tag.to_owned()])
                .await
                .unwrap();
            image_ids.push((tag.to_owned(), found[0].id.clone()));
        }
        let runtime = open(&place, &images).await;
        let name = name.rsplit("::").next().unwrap();
        let cgroup = format!(
            "wherry-test-{}-{}",
            std::process::id(),
            &name[..name.len().min(40)]
        );
        Self {
            place,
            cgroup,
            runtime,
            images,
            image_ids,
        }
    }

    /// A node that another process has made.
    pub(crate) async fn existing(place: PathBuf, cgroup: String, image: String) -> Self {
        let images = open_images(&place);
        let runtime = open(&place, &images).await;
        Self {
            place,
            cgroup,
            runtime,
            images,
            image_ids: vec![("busybox".to_owned(), image)],
        }
    }

    /// The agent ends, and there is one that knows of nothing here.
    pub(crate) async fn stop_agent(&mut self) {
        let elsewhere = self.place.join("elsewhere");
        self.runtime = open(&elsewhere, &self.images).await;
    }

    pub(crate) fn image(&self, tag: &str) -> String {
        self.image_ids
            .iter()
            .find(|(name, _)| name == tag)
            .unwrap()
            .1
            .clone()
    }
}

fn open_images(place: &Path) -> Store {
    let config = StoreConfig {
        is_durable: false,
        ..StoreConfig::default()
    };
    Store::open(&place.join("images"), config).unwrap()
}

async fn open(place: &Path, images: &Store) -> Arc<OciRuntime> {
    let exe = std::env::current_exe().unwrap();
    OciRuntime::open(Config::new(
        place.join("root"),
        place.join("run"),
        exe,
        images.clone(),
    ))
    .await
    .unwrap()
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Removes every sandbox, as the agent would.
async fn clean_up(place: &Path, cgroup: &str) {
    let images = open_images(place);
    let runtime = open(place, &images).await;
    for sandbox in runtime.list_pod_sandboxes().await.unwrap() {
        runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
    }
    for hierarchy in hierarchies() {
        // Only groups above the pods', which are the agent's and empty by now.
        let base = hierarchy.join(cgroup);
        for group in ["kubepods/besteffort", "kubepods", ""] {
            let _ = fs::remove_dir(base.join(group));
        }
    }
}

fn hierarchies() -> Vec<PathBuf> {
    fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

fn assert_nothing_left(place: &Path, cgroup: &str) {
    let name = place.file_name().unwrap().to_str().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(name), "mounts are left");
    let processes = Command::new("ps")
        .args(["-eo", "pid,args"])
        .output()
        .unwrap();
    let processes = String::from_utf8_lossy(&processes.stdout).into_owned();
    let left: Vec<_> = processes
        .lines()
        .filter(|line| line.contains(name))
        .collect();
    assert!(left.is_empty(), "processes are left: {left:?}");
    for hierarchy in hierarchies() {
        assert!(
            !hierarchy.join(cgroup).exists(),
            "{}: cgroups are left",
            hierarchy.display()
        );
    }
    for directory in [
        "root/oci/sandboxes",
        "root/oci/containers",
        "root/oci/trash",
        "run/oci/pods",
        "images/leases",
    ] {
        let left: Vec<_> = fs::read_dir(place.join(directory))
            .unwrap()
            .flatten()
            .collect();
        assert!(left.is_empty(), "{directory} holds {left:?}");
    }
    fs::remove_dir_all(place).unwrap();
}

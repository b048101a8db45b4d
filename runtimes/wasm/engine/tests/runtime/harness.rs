//! A node with a Wasm runtime and nothing else.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Trial};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    runtime::Runtime as TokioRuntime,
};
use wherry_images::{Store, StoreConfig};
use wherry_runtime_api::{
    ContainerConfig, ContainerExit, ContainerId, ContainerState, Mount, MountPropagation,
    PodSandbox, PodSandboxConfig, Runtime,
};
use wherry_wasm::{Config, WasmRuntime};

/// One time-out for everything that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Names test functions for [`main_of_tests`].
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        vec![$(libtest_mimic::Trial::test(stringify!($name), || {
            $crate::harness::block_on($name());
            Ok(())
        })),*]
    };
}

pub(crate) fn block_on(test: impl Future<Output = ()>) {
    TokioRuntime::new().unwrap().block_on(test);
}

/// Runs the tests in a network namespace with an address for each pod.
pub(crate) fn main_of_tests(tests: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
    ip(&["link", "set", "lo", "up"]);
    for n in 1..=250 {
        ip(&["address", "add", &format!("10.99.0.{n}/32"), "dev", "lo"]);
    }
    ip(&["address", "add", "fd99::1/128", "dev", "lo", "nodad"]);
    // Each test has threads of its own.
    arguments.test_threads.get_or_insert(4);
    libtest_mimic::run(&arguments, tests).exit_code()
}

fn ip(args: &[&str]) {
    assert!(
        Command::new("ip")
            .args(args)
            .status()
            .expect("iproute2 is installed")
            .success(),
        "ip {args:?}"
    );
}

/// Waits until it is true.
pub(crate) async fn eventually(what: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_true().await {
        assert!(
            start.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn guest(name: &str, target: &str) -> Vec<u8> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/guests/target");
    let guests = std::env::var_os("WHERRY_GUESTS").map_or(built, PathBuf::from);
    let path = guests
        .join(target)
        .join("release")
        .join(name)
        .with_extension("wasm");
    let missing = format!("{}: start the tests with tests/run.sh", path.display());
    std::fs::read(path).expect(&missing)
}

pub(crate) fn mount(container_path: &str, host_path: &Path, readonly: bool) -> Mount {
    Mount {
        container_path: container_path.into(),
        host_path: host_path.into(),
        readonly,
        recursive_readonly: false,
        propagation: MountPropagation::None,
    }
}

/// A runtime under a directory of its own.
pub(crate) struct Node {
    directory: tempfile::TempDir,
    images: Store,
    configure: fn(&mut Config),
    agent: Option<(TokioRuntime, Arc<WasmRuntime>)>,
    pub(crate) runtime: Handle,
}

/// The runtime, whichever agent it is of now.
pub(crate) struct Handle(Option<Arc<WasmRuntime>>);

impl Handle {
    pub(crate) fn to_arc(&self) -> Arc<WasmRuntime> {
        self.0.clone().expect("the agent runs")
    }
}

impl std::ops::Deref for Handle {
    type Target = WasmRuntime;
    fn deref(&self) -> &WasmRuntime {
        self.0.as_deref().expect("the agent runs")
    }
}

impl Node {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(configure: fn(&mut Config)) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("wherry-wasm-")
            .tempdir()
            .unwrap();
        let images = Store::open(
            &directory.path().join("root/images"),
            StoreConfig::default(),
        )
        .unwrap();
        let mut node = Self {
            directory,
            images,
            configure,
            agent: None,
            runtime: Handle(None),
        };
        node.start_agent().await;
        node
    }

    /// Has the agent do something by itself.
    pub(crate) fn spawn<F>(&self, work: impl FnOnce(Arc<WasmRuntime>) -> F)
    where
        F: Future<Output = Result<(), wherry_runtime_api::RuntimeError>> + Send + 'static,
    {
        let (agent, runtime) = self.agent.as_ref().unwrap();
        agent.spawn(work(runtime.clone()));
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    fn cgroup_root(&self) -> String {
        format!(
            "wherry-test-{}",
            self.root().file_name().unwrap().to_str().unwrap()
        )
    }

    /// An agent has a tokio runtime of its own, so that all of it can be taken away at once.
    pub(crate) async fn start_agent(&mut self) {
        let agent = TokioRuntime::new().unwrap();
        let exe = std::env::current_exe().unwrap();
        let mut config = Config::new(
            self.root().join("root"),
            self.root().join("run"),
            exe,
            self.images.clone(),
        );
        config.cgroup_root = self.cgroup_root();
        (self.configure)(&mut config);
        let runtime = agent
            .spawn(async move { WasmRuntime::open(config).await.unwrap() })
            .await
            .unwrap();
        self.runtime = Handle(Some(runtime.clone()));
        self.agent = Some((agent, runtime));
    }

    /// Takes the agent away without a word to anybody.
    pub(crate) fn stop_agent(&mut self) {
        self.runtime = Handle(None);
        if let Some((agent, _)) = self.agent.take() {
            // Killed means that nothing of it runs any more. A runtime cannot be waited for by a task.
            let stopped = std::thread::spawn(move || agent.shutdown_timeout(PATIENCE));
            stopped.join().unwrap();
        }
    }

    pub(crate) async fn restart(&mut self) {
        self.stop_agent();
        self.start_agent().await;
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.root().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn pod_config(&self, name: &str, namespace: &str) -> PodSandboxConfig {
        PodSandboxConfig::new(
            format!("uid-{name}"),
            name,
            namespace,
            self.directory("log"),
            format!("{}/{name}", self.cgroup_root()),
        )
    }

    /// A pod with an address nobody else has.
    pub(crate) async fn pod(&self, namespace: &str) -> PodSandbox {
        let ip = next_ip();
        let config = self.pod_config(&format!("pod-{ip}"), namespace);
        let mut pod = self.runtime.run_pod_sandbox(&config).await.unwrap();
        pod.ips = vec![IpAddr::V4(ip)];
        pod
    }

    /// A container of a component of tests/guests.
    pub(crate) fn container(&self, name: &str) -> ContainerConfig {
        futures::executor::block_on(self.container_of(name, &guest(name, "wasm32-wasip2")))
    }

    /// A container of the toolbox: a script, as busybox would run it.
    pub(crate) fn shell(&self, script: &str) -> ContainerConfig {
        let command = ["sh", "-c", script].map(str::to_owned);
        ContainerConfig {
            command: command.into(),
            ..self.container("toolbox")
        }
    }

    /// Runs a script beside the app: exit code, then stdout with stderr after it.
    pub(crate) async fn exec(&self, id: &ContainerId, script: &str) -> (i32, String) {
        let command = ["sh", "-c", script].map(str::to_owned);
        let answer = self
            .runtime
            .exec_sync(id, &command, PATIENCE)
            .await
            .unwrap();
        let said = [answer.stdout, answer.stderr].concat();
        (answer.exit_code, String::from_utf8(said).unwrap())
    }

    /// A container of the same as a core module.
    pub(crate) fn core_module(&self, name: &str) -> ContainerConfig {
        futures::executor::block_on(self.container_of(name, &guest(name, "wasm32-wasip1")))
    }

    pub(crate) async fn container_of(&self, name: &str, wasm: &[u8]) -> ContainerConfig {
        let path = self.directory("modules").join(format!("{name}.wasm"));
        std::fs::write(&path, wasm).unwrap();
        let image = format!("registry.test/{name}:1");
        let (images, tag) = (self.images.clone(), image.clone());
        let import = self
            .agent
            .as_ref()
            .unwrap()
            .0
            .spawn(async move { images.import(&path, &[tag]).await });
        let imported = import.await.unwrap().unwrap();
        let logs = self.directory(&format!("log/{}-{}", name, uuid()));
        ContainerConfig::new(name, imported[0].id.clone(), image, logs.join("0.log"))
    }

    pub(crate) async fn run(&self, pod: &PodSandbox, config: &ContainerConfig) -> ContainerId {
        let id = self.runtime.create_container(pod, config).await.unwrap();
        self.runtime.start_container(&id).await.unwrap();
        id
    }

    pub(crate) async fn exited(&self, id: &ContainerId) -> ContainerExit {
        let start = Instant::now();
        loop {
            let status = self.runtime.container_status(id).await.unwrap();
            if let ContainerState::Exited(exit) = status.state {
                return exit;
            }
            assert!(start.elapsed() < PATIENCE, "still {:?}", status.state);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// That it runs.
    pub(crate) async fn assert_runs(&self, id: &ContainerId) {
        let status = self.runtime.container_status(id).await.unwrap();
        assert!(
            matches!(status.state, ContainerState::Running { .. }),
            "{:?}",
            status.state
        );
        // An HTTP component has an instance only while it answers.
        if status.name != "http_hello" {
            eventually("it has memory", async || {
                self.runtime
                    .container_stats(id)
                    .await
                    .unwrap()
                    .memory_usage_bytes
                    > 0
            })
            .await;
        }
    }

    pub(crate) async fn http(&self, pod: &PodSandbox, port: u16, path: &str) -> String {
        http_over(
            tokio::net::TcpStream::connect((pod.ips[0], port))
                .await
                .unwrap(),
            path,
        )
        .await
    }

    /// Workers whose directories are there.
    pub(crate) fn workers(&self) -> usize {
        std::fs::read_dir(self.root().join("run/wasm/workers")).map_or(0, Iterator::count)
    }

    /// Processes whose root is one of our jails.
    pub(crate) fn worker_processes(&self) -> Vec<i32> {
        let jails = self.root().join("run/wasm");
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_str()?.parse().ok()?;
            std::fs::read_link(entry.path().join("root"))
                .ok()?
                .starts_with(&jails)
                .then_some(pid)
        });
        processes.collect()
    }

    pub(crate) fn kill_workers(&self) {
        for pid in self.worker_processes() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop_agent();
        self.kill_workers();
        let start = Instant::now();
        while !self.worker_processes().is_empty() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Ok(cgroups) = wherry_cgroup::Cgroups::detect() {
            let removed = cgroups.group(&self.cgroup_root()).remove();
            // A test that failed has something else to say.
            assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
        }
        // Tasks of the agent that was taken away may be at work for a moment yet.
        while std::fs::remove_dir_all(self.root()).is_err() && self.root().exists() {
            assert!(
                start.elapsed() < PATIENCE,
                "{} cannot be removed",
                self.root().display()
            );
        }
    }
}

/// One of the addresses of this program's network namespace.
pub(crate) fn next_ip() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    Ipv4Addr::new(10, 99, 0, NEXT.fetch_add(1, Ordering::Relaxed) % 250 + 1)
}

fn uuid() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    format!("{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// One request and all of its answer.
pub(crate) async fn http_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &str,
) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    if !head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        return answer;
    }
    let mut whole = format!("{head}\r\n\r\n");
    let mut rest = body;
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole += &after[..size];
        rest = after[size..].strip_prefix("\r\n").unwrap_or("");
    }
    whole
}

/// A network namespace with nothing but loopback, held by a thread.
pub(crate) struct NetworkNamespace {
    path: PathBuf,
    _end: std::sync::mpsc::Sender<()>,
}

impl NetworkNamespace {
    pub(crate) fn new() -> Self {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (made, is_made) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ip(&["link", "set", "lo", "up"]);
            made.send(format!(
                "/proc/{}/task/{}/ns/net",
                std::process::id(),
                nix::unistd::gettid()
            ))
            .unwrap();
            let _ = ended.recv();
        });
        Self {
            path: is_made.recv().unwrap().into(),
            _end: end,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }
}

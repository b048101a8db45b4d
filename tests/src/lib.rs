//! The harness of the end-to-end tests and of the bench: a node in a network of its own, real `kubectl`, and the
//! counting of what is left over.
//!
//! ```text
//!  namespace wt<pid>n<k>: wherry up, kubectl, curl ── veth ── namespace …o: "the outside", 10.51.0.2
//! ```
//!
//! Everything runs as root with a temporary root directory. Traffic stays on loopback and in the namespaces made here.

mod client;
mod docker;
mod front;
mod hosts;
mod leaks;
mod load;
mod netns;
mod nodes;

use std::{
    fs,
    io::{BufRead, BufReader},
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

pub use client::Client;
pub use docker::Engine;
pub use front::Front;
pub use hosts::{Host, Hosts};
pub use leaks::Leftovers;
pub use load::{Load, Loaded, in_network};
pub use netns::{Network, within};
pub use nodes::Nodes;

/// How long anything awaited may take; generous, for two busy cores.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// How often a condition that nothing announces is looked at again.
const POLL: Duration = Duration::from_millis(100);

/// Waits until the closure answers `Some`, and panics with `what` and the last word on it when patience ends.
#[track_caller]
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match check() {
            Ok(value) => return value,
            Err(why) if start.elapsed() > PATIENCE => {
                panic!("{what}: not within {PATIENCE:?}: {why}")
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// The program under test.
pub fn wherry() -> PathBuf {
    match std::env::var_os("WHERRY_BIN") {
        Some(path) => path.into(),
        // Beside the test binary's directory: target/<profile>/deps/it → target/<profile>/wherry.
        None => {
            let mut path = std::env::current_exe().expect("a running program has a path");
            path.pop();
            if path.ends_with("deps") {
                path.pop();
            }
            path.join("wherry")
        }
    }
}

/// A file that tests/run.sh made and named in the environment.
pub fn made_by_run_sh(variable: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || panic!("{variable} is not set: start the tests with tests/run.sh"),
        Into::into,
    )
}

/// A compiled guest of tests/guests.
pub fn guest(name: &str) -> PathBuf {
    made_by_run_sh("WHERRY_GUESTS")
        .join("wasm32-wasip2/release")
        .join(format!("{name}.wasm"))
}

/// A node with its control plane, and its network.
pub struct Cluster {
    /// Its Docker engine, if it has one; ended before its network goes.
    pub engine: Option<Engine>,
    /// Where it lives.
    pub network: Network,
    root: tempfile::TempDir,
    args: Vec<String>,
    node: Option<Child>,
    name: String,
    client: Client,
}

impl Deref for Cluster {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Cluster {
    /// Starts a node and waits until it is Ready.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more arguments for `wherry up`.
    pub fn start_with(args: &[&str]) -> Self {
        let mut cluster = Self::prepare(args);
        cluster.up();
        cluster
    }

    /// Everything but the node's process: [`Cluster::up`] starts it.
    pub fn prepare(args: &[&str]) -> Self {
        let network = Network::new();
        let root = tempfile::Builder::new()
            .prefix("wherry-it-")
            .tempdir()
            .expect("a temporary directory");
        let name = network.name().to_owned();
        let mut all: Vec<String> = [
            "--node-ip",
            Network::NODE_IP,
            "--hostname-override",
            "node",
            // How full the disk of whoever runs the tests is says nothing about them.
            "--eviction-hard",
            "nodefs.available<512Mi,imagefs.available<512Mi",
            "--image-gc-high-threshold",
            "100",
            "--cgroup-root",
        ]
        .map(String::from)
        .into();
        all.push(name.clone());
        all.extend(args.iter().map(ToString::to_string));
        let kubeconfig = root.path().join("control/admin.kubeconfig");
        Self {
            client: Client::new(network.name(), kubeconfig, root.path()),
            engine: None,
            network,
            root,
            args: all,
            node: None,
            name,
        }
    }

    /// Gives the node a Docker engine; before [`Cluster::up`].
    pub fn add_engine(&mut self) {
        let engine = Engine::start(&self.network);
        self.add_args(&["--docker-endpoint", &engine.endpoint()]);
        self.engine = Some(engine);
    }

    /// More arguments for the next `wherry up`.
    pub fn add_args(&mut self, args: &[&str]) {
        self.args.extend(args.iter().map(ToString::to_string));
    }

    /// The node's root directory.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The node's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.root().join("up.log")).unwrap_or_default()
    }

    /// The node's process.
    pub fn pid(&self) -> u32 {
        self.node.as_ref().expect("the node is up").id()
    }

    /// Starts `wherry up` and waits until it says that it is ready.
    pub fn up(&mut self) {
        let ready = self.spawn();
        match ready.recv_timeout(PATIENCE) {
            Ok(line) => assert!(line.starts_with("ready"), "wherry up said: {line}"),
            Err(error) => {
                let status = self
                    .node
                    .as_mut()
                    .and_then(|node| node.try_wait().ok().flatten());
                panic!(
                    "wherry up is not ready ({error}, exit: {status:?}); its log:\n{}",
                    tail(&self.log())
                )
            }
        }
    }

    /// Starts `wherry up`; what it prints arrives on the channel.
    pub fn spawn(&mut self) -> mpsc::Receiver<String> {
        assert!(self.node.is_none(), "the node is up already");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.root().join("up.log"))
            .expect("a log file");
        let mut up = self.network.command(wherry());
        up.args(["up", "--root"]).arg(self.root()).args(&self.args);
        let (node, said) = spawn(up.stderr(log));
        self.node = Some(node);
        said
    }

    /// Ends the node's process with a signal and waits for it; pods run on.
    pub fn signal(&mut self, signal: nix::sys::signal::Signal) {
        let mut node = self.node.take().expect("the node is up");
        let pid = nix::unistd::Pid::from_raw(node.id() as i32);
        nix::sys::signal::kill(pid, signal).expect("the node's process is there");
        node.wait().expect("the node's process can be waited for");
    }

    /// `kill -9`, then a new process.
    pub fn kill_and_restart(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
        self.up();
    }

    /// Runs `wherry` with the node's root.
    pub fn wherry(&self, args: &[&str]) -> String {
        let output = self
            .network
            .command(wherry())
            .args(args)
            .arg("--root")
            .arg(self.root())
            .output()
            .expect("wherry starts");
        success(&format!("wherry {}", args.join(" ")), output)
    }

    /// `wherry image import`.
    pub fn import(&self, path: &Path, name: &str) {
        self.wherry(&["image", "import", &path.to_string_lossy(), "--name", name]);
    }

    /// Fetches a URL from the node.
    pub fn curl(&self, url: &str) -> Result<String, String> {
        outcome(
            self.network
                .command("curl")
                .args(["-sS", "--max-time", "10", url]),
        )
    }

    /// What exists on this machine because of this node.
    pub fn leftovers(&self) -> Leftovers {
        Leftovers::count(
            self.root(),
            &self.name,
            self.network.name(),
            self.engine.as_ref(),
        )
    }

    /// `wherry down`; gives what it said.
    pub fn down(&mut self) -> String {
        let said = self.wherry(&["down"]);
        if let Some(mut node) = self.node.take() {
            node.wait().expect("the node's process can be waited for");
        }
        said
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Also after a failed test; what cannot be ended now is said and left for a person.
        let output = self
            .network
            .command(wherry())
            .args(["down", "--root"])
            .arg(self.root())
            .output();
        if let Some(node) = &mut self.node {
            let _ = node.kill();
            let _ = node.wait();
        }
        match output {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("wherry down: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("wherry down: {error}"),
        }
        if std::thread::panicking() {
            eprintln!("the node's log ends with:\n{}", tail(&self.log()));
        }
    }
}

/// Starts a program of which every line that it prints arrives on the channel.
fn spawn(command: &mut Command) -> (Child, mpsc::Receiver<String>) {
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = piped.spawn().expect("the program starts");
    let stdout = child.stdout.take().expect("stdout is piped");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    (child, receiver)
}

/// Runs a program to its end; what it printed, or what it complained of.
///
/// # Errors
/// Its stderr, if its status is not 0.
pub fn outcome(command: &mut Command) -> Result<String, String> {
    let output = command.output().expect("the program starts");
    let said = if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(output.stderr)
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    said.map(text).map_err(text)
}

#[track_caller]
fn success(what: &str, output: Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{what}: {}\n{stdout}{stderr}",
        output.status
    );
    stdout
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

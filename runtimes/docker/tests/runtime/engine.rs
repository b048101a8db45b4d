//! A real engine in a directory.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// One limit for everything that is waited for.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// Engines change the firewall of their network and mount a lot. Before any thread is made.
pub(crate) fn enter_namespaces() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    let flags = |kind| MsFlags::MS_REC | kind;
    mount(none, "/", none, flags(MsFlags::MS_PRIVATE), none).unwrap();
    // Volumes that propagate need something shared, and now it is shared with nobody else.
    mount(none, "/", none, flags(MsFlags::MS_SHARED), none).unwrap();
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(up.unwrap().success());
}

pub(crate) struct Engine {
    pub(crate) place: PathBuf,
    arguments: Vec<String>,
    daemon: Option<Child>,
}

static SHARED: OnceLock<Mutex<Option<Engine>>> = OnceLock::new();

/// The socket of the engine that most tests share.
pub(crate) fn shared() -> PathBuf {
    let engine = SHARED.get_or_init(|| Mutex::new(Some(Engine::start(&[]))));
    engine.lock().unwrap().as_ref().unwrap().socket()
}

/// Ends the shared engine, if there is one.
pub(crate) fn stop_shared() {
    if let Some(shared) = SHARED.get() {
        drop(shared.lock().unwrap().take());
    }
}

impl Engine {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let place = tempfile::Builder::new()
            .prefix("wherry-dockerd-")
            .tempdir()
            .unwrap()
            .keep();
        let mut engine = Self {
            place,
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
            daemon: None,
        };
        engine.up();
        engine
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.place.join("docker.sock")
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn up(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.place.join("dockerd.log"))
            .unwrap();
        let path = |name: &str| self.place.join(name).display().to_string();
        let daemon = Command::new("dockerd")
            .args(["--data-root", &path("data"), "--exec-root", &path("run")])
            .args(["--pidfile", &path("dockerd.pid")])
            .args(["--host", &format!("unix://{}", path("docker.sock"))])
            .args(["--bridge", "none", "--iptables=false", "--ip6tables=false"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("dockerd is installed");
        self.daemon = Some(daemon);
        let deadline = Instant::now() + TIMEOUT;
        while !answers(&self.socket()) {
            let log = fs::read_to_string(self.place.join("dockerd.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "dockerd does not come up: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the daemon, politely or not.
    pub(crate) fn down(&mut self, signal: Signal) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        kill(Pid::from_raw(daemon.id() as i32), signal).unwrap();
        daemon.wait().unwrap();
        self.wait_for_containerd();
    }

    /// Its containerd ends with it. The next daemon takes one that is ending, or has and was not reaped, for alive.
    fn wait_for_containerd(&self) {
        let file = self.place.join("run/containerd/containerd.pid");
        let Some(pid) = fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.trim().parse::<i32>().ok())
        else {
            return;
        };
        let deadline = Instant::now() + TIMEOUT;
        while fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains("(containerd) Z"))
        {
            assert!(Instant::now() < deadline, "containerd does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = fs::remove_file(file);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.daemon.is_none() {
            self.up();
        }
        remove_all(&self.socket());
        self.down(Signal::SIGTERM);
        // What is mounted goes with the namespace; what is in the way of deleting is taken off here.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut points: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|point| Path::new(point).starts_with(&self.place))
            .collect();
        points.sort_unstable();
        for point in points.iter().rev() {
            let _ = nix::mount::umount2(*point, nix::mount::MntFlags::MNT_DETACH);
        }
        if let Err(error) = fs::remove_dir_all(&self.place) {
            eprintln!("{}: {error}", self.place.display());
        }
    }
}

/// Asks over plain HTTP, beside the code under test.
fn request(socket: &Path, line: &str) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    write!(
        stream,
        "{line} HTTP/1.0\r\nHost: docker\r\nContent-Length: 0\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn answers(socket: &Path) -> bool {
    request(socket, "GET /_ping").is_some_and(|answer| answer.contains("200 OK"))
}

fn remove_all(socket: &Path) {
    let listed = request(socket, "GET /containers/json?all=1").unwrap_or_default();
    let body = listed.split("\r\n\r\n").nth(1).unwrap_or("[]");
    let containers: Vec<serde_json::Value> = serde_json::from_str(body).unwrap_or_default();
    for container in containers {
        let id = container["Id"].as_str().unwrap_or_default();
        request(socket, &format!("DELETE /containers/{id}?force=1&v=1"));
    }
}

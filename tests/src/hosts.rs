//! Several hosts on one network: a namespace each, on one bridge.
//!
//! ```text
//!  wt<pid>h<k>l: bridge lan0 ─┬─ veth ── wt<pid>h<k>n1: eth0 10.52.0.1, fd52::1
//!                             ├─ veth ── wt<pid>h<k>n2: eth0 10.52.0.2, fd52::2
//!                             └─ …
//! ```
//!
//! The bridge has 10.52.0.254, where every host's default route leads: what runs there is outside the cluster.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use crate::{Client, Leftovers, PATIENCE, netns::within, spawn, success, tail, wherry};

/// What takes longer to end is said.
const SLOW: Duration = Duration::from_secs(5);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Hosts that reach each other, ended and removed when dropped.
pub struct Hosts {
    lan: String,
    hosts: Vec<Host>,
}

/// One of them, and the `wherry` that runs there.
pub struct Host {
    name: String,
    address: String,
    root: tempfile::TempDir,
    process: Option<Child>,
}

fn ip(line: &str) {
    let output = Command::new("ip")
        .args(line.split(' '))
        .output()
        .expect("ip starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {line}: {said}");
}

impl Hosts {
    /// The address of what is outside, on the common network.
    pub const OUTSIDE_IP: &str = "10.52.0.254";

    /// Makes `count` hosts.
    pub fn new(count: usize) -> Self {
        let site = format!(
            "wt{}h{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let lan = format!("{site}l");
        let mut hosts = Self {
            lan: lan.clone(),
            hosts: Vec::new(),
        };
        ip(&format!("netns add {lan}"));
        ip(&format!("-n {lan} link add lan0 type bridge"));
        ip(&format!("-n {lan} link set lo up"));
        ip(&format!(
            "-n {lan} addr add {}/24 dev lan0",
            Self::OUTSIDE_IP
        ));
        ip(&format!("-n {lan} link set lan0 up"));
        for number in 1..=count {
            let name = format!("{site}n{number}");
            let address = format!("10.52.0.{number}");
            ip(&format!("netns add {name}"));
            hosts.hosts.push(Host {
                root: tempfile::Builder::new()
                    .prefix("wherry-it-")
                    .tempdir()
                    .expect("a temporary directory"),
                name: name.clone(),
                address: address.clone(),
                process: None,
            });
            for line in [
                format!("-n {name} link set lo up"),
                format!("link add eth0 netns {name} type veth peer name p{number} netns {lan}"),
                format!("-n {lan} link set p{number} master lan0 up"),
                format!("-n {name} addr add {address}/24 dev eth0"),
                format!("-n {name} -6 addr add fd52::{number}/64 dev eth0 nodad"),
                format!("-n {name} link set eth0 up"),
                format!("-n {name} route add default via {}", Self::OUTSIDE_IP),
            ] {
                ip(&line);
            }
        }
        hosts
    }

    /// Puts a host, on which nothing runs yet, onto a network of its own; what is outside becomes the router between the
    /// two, which sends on only what comes from where it should.
    pub fn move_behind_router(&mut self, index: usize) {
        let (lan, number) = (&self.lan, index + 1);
        let host = &mut self.hosts[index];
        let (name, port) = (&host.name, format!("p{number}"));
        let (address, router) = (format!("10.53.{number}.1"), format!("10.53.{number}.254"));
        for line in [
            format!("-n {lan} link set {port} nomaster"),
            format!("-n {lan} addr add {router}/24 dev {port}"),
            format!("-n {name} addr flush dev eth0"),
            format!("-n {name} addr add {address}/24 dev eth0"),
            format!("-n {name} route add default via {router}"),
        ] {
            ip(&line);
        }
        let switches = format!(
            "cd /proc/sys/net/ipv4; echo 1 > ip_forward; for at in lan0 {port}; do echo 1 > conf/$at/rp_filter; done"
        );
        let mut shell = within(lan, "sh");
        let done = shell.args(["-ec", &switches]).status();
        assert!(done.is_ok_and(|status| status.success()), "{switches}");
        host.address = address;
    }

    /// A host, counted from 0.
    pub fn host(&mut self, index: usize) -> &mut Host {
        &mut self.hosts[index]
    }

    /// A host to look at, counted from 0.
    pub fn at(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.hosts.len()
    }

    /// The namespace of the bridge, which is outside.
    pub fn outside(&self) -> &str {
        &self.lan
    }

    /// A command that runs outside.
    pub fn outside_command(&self, program: impl AsRef<OsStr>) -> Command {
        within(&self.lan, program)
    }

    /// Takes a host off the network, or puts it back.
    pub fn plug(&self, index: usize, is_in: bool) {
        let state = if is_in { "up" } else { "down" };
        ip(&format!("-n {} link set p{} {state}", self.lan, index + 1));
    }

    /// `kubectl` on the first host, as the administrator of the cluster that it controls.
    pub fn client(&self) -> Client {
        let host = &self.hosts[0];
        let kubeconfig = host.root().join("control/admin.kubeconfig");
        Client::new(host.name(), kubeconfig, host.root())
    }
}

impl Host {
    /// The namespace, a good name for what else has to be unique.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address on the common network.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The root directory of its `wherry`.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    fn log_path(&self) -> PathBuf {
        self.root().join("wherry.log")
    }

    /// The log of its `wherry` so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A command that runs in the host's network.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        within(&self.name, program)
    }

    /// A `wherry` command of this host's root.
    pub fn wherry_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = self.command(wherry());
        command.args(args).arg("--root").arg(self.root());
        command
    }

    /// Runs `wherry`, which has to succeed, and gives what it printed.
    #[track_caller]
    pub fn wherry<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let output = self.wherry_command(args).output().expect("wherry starts");
        success("wherry", output)
    }

    /// Runs `wherry`, which has to fail, and gives what it said on stderr.
    #[track_caller]
    pub fn wherry_fails<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let output = self.wherry_command(args).output().expect("wherry starts");
        assert!(!output.status.success(), "wherry succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// What a node of this host is told so that it is in nobody's way.
    pub fn node_args(&self, node: &str) -> Vec<String> {
        [
            "--node-ip",
            &self.address,
            "--hostname-override",
            node,
            "--eviction-hard",
            "nodefs.available<512Mi,imagefs.available<512Mi",
            "--image-gc-high-threshold",
            "100",
            "--cgroup-root",
            &self.name,
        ]
        .map(String::from)
        .into()
    }

    /// Starts `wherry`; what it prints arrives on the channel.
    pub fn spawn(&mut self, args: &[String]) -> mpsc::Receiver<String> {
        assert!(self.process.is_none(), "wherry runs already");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log file");
        let (process, said) = spawn(self.wherry_command(args).stderr(log));
        self.process = Some(process);
        said
    }

    /// Starts `wherry` and waits until it says that it is ready.
    #[track_caller]
    pub fn start(&mut self, args: &[String]) {
        let said = self.spawn(args).recv_timeout(PATIENCE);
        let is_ready = said.as_ref().is_ok_and(|line| line.starts_with("ready"));
        assert!(
            is_ready,
            "{args:?} said {said:?}; its log:\n{}",
            tail(&self.log())
        );
    }

    /// What exists on this machine because of this host's node.
    pub fn leftovers(&self) -> Leftovers {
        Leftovers::count(self.root(), &self.name, &self.name, None)
    }

    /// Processes of this host's node whose command line has a word: `stage1`, `wasm-worker`.
    pub fn processes(&self, word: &str) -> Vec<nix::unistd::Pid> {
        let all = self.leftovers().processes.into_iter();
        all.filter_map(|line| {
            let mut words = line.split(' ');
            let pid = words.next()?.parse().ok()?;
            words
                .any(|found| found == word)
                .then_some(nix::unistd::Pid::from_raw(pid))
        })
        .collect()
    }

    /// The process of its `wherry`.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("wherry runs").id()
    }

    /// Ends `wherry` with a signal and waits for it; pods run on.
    pub fn signal(&mut self, signal: nix::sys::signal::Signal) {
        let mut process = self.process.take().expect("wherry runs");
        let pid = nix::unistd::Pid::from_raw(process.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("wherry runs");
        process.wait().expect("wherry can be waited for");
    }
}

impl Host {
    /// Ends everything that runs here, also after a failed test; what cannot be ended is said and left for a person.
    fn end(&mut self) {
        let start = Instant::now();
        let down = self.wherry_command(&["down"]).output();
        let took = start.elapsed();
        if took > SLOW {
            eprintln!("{}: wherry down took {took:.1?}", self.name);
        }
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
        match down {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("wherry down: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("wherry down: {error}"),
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in &self.hosts {
                eprintln!("the log of {} ends with:\n{}", host.name, tail(&host.log()));
            }
        }
        std::thread::scope(|scope| {
            for host in &mut self.hosts {
                scope.spawn(|| host.end());
            }
        });
        // Only now: nobody waits for an answer from a host that has vanished.
        for name in self.hosts.iter().map(|host| &host.name).chain([&self.lan]) {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

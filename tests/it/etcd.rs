//! Debian's etcd, of one member or of several, at one address of a network of the tests'.

use std::process::{Child, Command, Stdio};

use wherry_tests::{eventually, outcome, within};

/// Members that agree, ended when dropped.
pub(crate) struct Etcd {
    network: String,
    address: String,
    members: Vec<Option<Child>>,
    directory: tempfile::TempDir,
}

impl Etcd {
    /// Starts members in a network namespace and waits until they agree.
    #[track_caller]
    pub(crate) fn start(network: &str, address: &str, members: usize) -> Self {
        let mut etcd = Self {
            network: network.to_owned(),
            address: address.to_owned(),
            members: (0..members).map(|_| None).collect(),
            directory: tempfile::tempdir().expect("a temporary directory"),
        };
        for member in 0..members {
            etcd.start_member(member);
        }
        eventually("all members agree", || {
            let mut health = etcd.etcdctl(&["endpoint", "health", "--cluster"]);
            let output = health.output().expect("etcdctl starts");
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            if said.matches("is healthy").count() == members {
                Ok(())
            } else {
                Err(said)
            }
        });
        etcd
    }

    /// What `--store` is told.
    pub(crate) fn store(&self) -> String {
        format!("etcd://{}", self.endpoints())
    }

    fn port(member: usize) -> usize {
        2379 + 100 * member
    }

    fn endpoints(&self) -> String {
        let all: Vec<String> = (0..self.members.len())
            .map(|member| format!("{}:{}", self.address, Self::port(member)))
            .collect();
        all.join(",")
    }

    /// Starts a member, for the first time or with what it has stored.
    pub(crate) fn start_member(&mut self, member: usize) {
        let at = |port: usize| format!("http://{}:{port}", self.address);
        let (client, peer) = (at(Self::port(member)), at(Self::port(member) + 1));
        let cluster: Vec<String> = (0..self.members.len())
            .map(|each| format!("m{each}={}", at(Self::port(each) + 1)))
            .collect();
        let name = format!("m{member}");
        let process = within(&self.network, "etcd")
            .arg("--data-dir")
            .arg(self.directory.path().join(&name))
            .args(["--name", &name, "--initial-cluster", &cluster.join(",")])
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        self.members[member] = Some(process);
    }

    /// An `etcdctl` command.
    pub(crate) fn etcdctl(&self, args: &[&str]) -> Command {
        let mut command = within(&self.network, "etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoints()])
            .args(args);
        command
    }

    /// The member that leads.
    #[track_caller]
    pub(crate) fn leader(&self) -> usize {
        eventually("a leader", || {
            let said = outcome(&mut self.etcdctl(&["endpoint", "status"]))?;
            // "127.0.0.1:2379, 8e9e05c52164694d, 3.4.23, 20 kB, true, …": the fifth column says who leads.
            let leads = |line: &&str| line.split(", ").nth(4) == Some("true");
            let leader = said.lines().find(leads).and_then(|line| {
                (0..self.members.len())
                    .find(|member| line.contains(&format!(":{},", Self::port(*member))))
            });
            leader.ok_or(said)
        })
    }

    /// Ends a member with SIGKILL.
    pub(crate) fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|member| self.kill(member));
    }
}

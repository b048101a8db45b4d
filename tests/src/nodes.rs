//! A cluster of several nodes: `wherry control` on the first host, and on each of the others an agent that joined it.
//!
//! ```text
//!  10.52.0.1    host 0: wherry control, embedded store
//!  10.52.0.2    host 1: wherry agent, node n1
//!  10.52.0.3    host 2: wherry agent, node n2 …
//!  10.52.0.254  outside
//! ```
//!
//! More control planes, if there are any, have the hosts after those of the nodes.

use std::{fs, net::SocketAddr, ops::Deref, path::Path, thread};

use nix::sys::signal::Signal;

use crate::{Client, Host, Hosts, PATIENCE, eventually, tail};

/// The hosts, what was told to each, and the administrator's `kubectl` on the first.
pub struct Nodes {
    client: Client,
    /// Host 0 is the control plane's, host `n` is node `n<n>`'s.
    pub hosts: Hosts,
    count: usize,
    /// How each host's `wherry` was started.
    args: Vec<Vec<String>>,
}

impl Deref for Nodes {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Nodes {
    /// Starts a control plane and `count` nodes, and waits until all are Ready.
    pub fn start(count: usize) -> Self {
        Self::start_with(count, &[], &[])
    }

    /// The same with more arguments for `wherry control` and for every `wherry agent`.
    pub fn start_with(count: usize, control: &[&str], agent: &[&str]) -> Self {
        let mut nodes = Self::prepare(count);
        nodes.start_control(control);
        nodes.join(agent);
        nodes
    }

    /// The hosts alone, where nothing runs yet.
    pub fn prepare(count: usize) -> Self {
        Self::prepare_with(count, 1)
    }

    /// The same for several control planes.
    pub fn prepare_with(count: usize, control_planes: usize) -> Self {
        let hosts = Hosts::new(count + control_planes);
        Self {
            client: hosts.client(),
            args: vec![Vec::new(); hosts.count()],
            hosts,
            count,
        }
    }

    /// Starts the control plane, for the first time.
    pub fn start_control(&mut self, more: &[&str]) {
        let address = self.hosts.at(0).address().to_owned();
        self.start_control_at(0, &address, more);
    }

    /// Starts a control plane on a host, for the first time, that says it is met at an address.
    #[track_caller]
    pub fn start_control_at(&mut self, index: usize, address: &str, more: &[&str]) {
        let mut args: Vec<String> = ["control", "--advertise-address", address]
            .map(String::from)
            .into();
        args.extend(more.iter().map(ToString::to_string));
        self.hosts.host(index).start(&args);
        self.args[index] = args;
    }

    /// Lets kubectl run outside and meet the control plane at an address, whoever is there.
    pub fn meet_control_at(&mut self, address: SocketAddr) {
        let first = self.hosts.at(0);
        let own = fs::read_to_string(self.client.kubeconfig()).expect("the kubeconfig is there");
        let met = own.replace(
            &format!("https://127.0.0.1:{}", address.port()),
            &format!("https://{address}"),
        );
        assert_ne!(own, met, "the kubeconfig names another server");
        let kubeconfig = first.root().join("outside.kubeconfig");
        fs::write(&kubeconfig, met).expect("it can be written");
        self.client = Client::new(self.hosts.outside(), kubeconfig, first.root());
    }

    /// Lets every other host join with the command that `wherry token create` prints, and waits for them.
    pub fn join(&mut self, more: &[&str]) {
        let line = self.hosts.at(0).wherry(&["token", "create", "--ttl", "1h"]);
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[..3], ["wherry", "agent", "--join"], "{line}");
        let mut ready = Vec::new();
        for index in 1..=self.count {
            let host = self.hosts.host(index);
            let manifests = host.root().join("manifests");
            fs::create_dir_all(&manifests).expect("a directory can be made");
            let mut args: Vec<String> = words[1..].iter().map(ToString::to_string).collect();
            args.extend(host.node_args(&format!("n{index}")));
            args.extend([
                "--pod-manifest-path".to_owned(),
                manifests.display().to_string(),
            ]);
            args.extend(more.iter().map(ToString::to_string));
            ready.push((index, host.spawn(&args)));
            self.args[index] = args;
        }
        for (index, said) in ready {
            let said = said.recv_timeout(PATIENCE);
            let log = || tail(&self.hosts.at(index).log());
            let is_ready = said.as_ref().is_ok_and(|line| line.starts_with("ready"));
            assert!(is_ready, "n{index} said {said:?}; its log:\n{}", log());
        }
        for index in 1..=self.count {
            self.wait_node(index, "True");
        }
    }

    /// How many nodes there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The host of node `n<index>`; that of the control plane for 0.
    pub fn at(&self, index: usize) -> &Host {
        self.hosts.at(index)
    }

    /// Waits until the Ready condition of node `n<index>` has a status.
    #[track_caller]
    pub fn wait_node(&self, index: usize, status: &str) {
        let path = ".status.conditions[?(@.type==\"Ready\")].status";
        self.wait_field("default", &format!("node/n{index}"), path, status);
    }

    /// Ends the `wherry` of a host; pods run on.
    pub fn stop(&mut self, index: usize, signal: Signal) {
        self.hosts.host(index).signal(signal);
    }

    /// Starts the `wherry` of a host as it was started before, with more arguments.
    pub fn start_again_with(&mut self, index: usize, more: &[&str]) {
        self.args[index].extend(more.iter().map(ToString::to_string));
        self.start_again(index);
    }

    /// The same, for one that does not come to be Ready: there is nobody who would say so.
    pub fn start_again_alone(&mut self, index: usize) {
        let args = self.args[index].clone();
        drop(self.hosts.host(index).spawn(&args));
    }

    /// Starts the `wherry` of a host as it was started before.
    #[track_caller]
    pub fn start_again(&mut self, index: usize) {
        let args = self.args[index].clone();
        self.hosts.host(index).start(&args);
    }

    /// `wherry image import` on every node, all at once.
    pub fn import(&self, path: &Path, name: &str) {
        let path = path.to_string_lossy().into_owned();
        thread::scope(|scope| {
            for index in 1..=self.count {
                let (host, path) = (self.hosts.at(index), &path);
                scope.spawn(move || host.wherry(&["image", "import", path, "--name", name]));
            }
        });
    }

    /// Waits until as many pods of a label are Ready as are wanted, and no other is there; gives (name, node, IP).
    #[track_caller]
    pub fn wait_pods(
        &self,
        namespace: &str,
        selector: &str,
        wanted: usize,
    ) -> Vec<(String, String, String)> {
        let row = "{.metadata.name} {.spec.nodeName} {.status.podIP} {.status.conditions[?(@.type==\"Ready\")].status} \
                   {.metadata.deletionTimestamp}";
        let output = format!("jsonpath={{range .items[*]}}{row}{{\"\\n\"}}{{end}}");
        eventually(&format!("{wanted} ready pods of {selector}"), || {
            let said = self.k(namespace, &["get", "pods", "-l", selector, "-o", &output]);
            let pods: Vec<_> = said
                .lines()
                .filter_map(
                    |line| match line.split_whitespace().collect::<Vec<_>>()[..] {
                        [name, node, ip, "True"] => {
                            Some([name, node, ip].map(str::to_owned).into())
                        }
                        _ => None,
                    },
                )
                .collect();
            if pods.len() == wanted && said.lines().count() == wanted {
                Ok(pods)
            } else {
                Err(said)
            }
        })
    }
}

//! What goes wrong in a cluster, one thing at a time: pods, Services and names go on, nothing that was acknowledged is
//! lost, and in the end everything is as it should be and nothing is left over.

mod alone;
mod control;
mod kills;
mod leader;
mod links;

use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};
use wherry_tests::{Leftovers, Load, Nodes, eventually, guest, made_by_run_sh, outcome};

use crate::{
    asking::{answers, curl_on, start_asking, wait_answers},
    own_trials,
};

pub(crate) fn trials() -> Vec<Trial> {
    own_trials![
        kills::any_process_of_ours_is_killed_and_what_it_kept_goes_on,
        links::a_node_that_is_cut_off_is_replaced_and_cleaned_when_it_returns,
        links::one_packet_in_ten_is_lost_and_work_goes_on,
        control::pods_do_without_a_control_plane_for_two_minutes,
        control::a_member_of_etcd_is_lost_and_no_write_is,
        control::a_full_disk_under_the_store_refuses_writes_and_loses_none,
        alone::agents_that_are_restarted_alone_keep_their_pods_and_tell_the_truth_later,
        leader::control_planes_behind_one_address_take_over_in_the_middle_of_an_update,
    ]
}

const NS: &str = "default";

/// Where every node answers names.
const DNS_IP: &str = "10.96.0.10";

/// Two workloads with a Service each, one of containers and one of components, and pods that ask `webapp` by name.
struct Site {
    nodes: Nodes,
    /// What each node's host had before there was a pod.
    before: Vec<Leftovers>,
}

const WORKLOADS: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: webapp}
spec:
  replicas: 3
  selector: {matchLabels: {app: webapp}}
  template:
    metadata: {labels: {app: webapp}}
    spec:
      terminationGracePeriodSeconds: 5
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers:
      - name: nginx
        image: nginx:1.22
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: component}
spec:
  replicas: 3
  selector: {matchLabels: {app: component}}
  template:
    metadata: {labels: {app: component}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers:
      - name: toolbox
        image: toolbox:1
        args: [sh, -c, 'hostname > /www/index.html; exec httpd -f -p 80 -h /www']
        volumeMounts: [{name: www, mountPath: /www}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
      volumes: [{name: www, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: webapp}
spec: {selector: {app: webapp}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: component}
spec: {selector: {app: component}, ports: [{port: 80}]}
";

/// The pods that ask, on node n1, each with its image.
const ASKING: [(&str, &str); 2] = [
    ("asks-container", "busybox:1"),
    ("asks-component", "toolbox:1"),
];

impl Site {
    /// The workloads on nodes that are Ready and run nothing.
    fn on(nodes: Nodes) -> Self {
        for (variable, name) in [
            ("WHERRY_IMAGE_NGINX", "nginx:1.22"),
            ("WHERRY_IMAGE_BUSYBOX", "busybox:1"),
        ] {
            nodes.import(&made_by_run_sh(variable), name);
        }
        for (file, name) in [("toolbox", "toolbox:1"), ("probe_plugin", "probe-plugin:1")] {
            nodes.import(&guest(file), name);
        }
        let hosts = 1..=nodes.count();
        let before = hosts.map(|index| nodes.at(index).leftovers()).collect();
        let site = Self { nodes, before };
        site.nodes.apply_in(NS, WORKLOADS);
        for (name, image) in ASKING {
            start_asking(&site.nodes, NS, name, image, "kubernetes.io/hostname: n1");
        }
        site.wait_workloads();
        for (name, _) in ASKING {
            wait_answers(&site.nodes, NS, name, 1);
        }
        site
    }

    /// Waits until there are as many pods as there should be, all Ready.
    fn wait_workloads(&self) {
        for app in ["webapp", "component"] {
            self.nodes.wait_pods(NS, &format!("app={app}"), 3);
        }
    }

    /// Where a Service is met from a node.
    fn address(&self, service: &str) -> SocketAddr {
        let service = format!("service/{service}");
        let ip = self.nodes.field(NS, &service, ".spec.clusterIP");
        format!("{ip}:80").parse().expect("an address and a port")
    }

    /// Constant load on a Service from the host of node n1.
    fn load(&self, service: &str) -> Load {
        Load::start(self.nodes.at(1).name(), self.address(service), 1)
    }

    /// What a pod's container is, when it was started, and how often.
    fn containers(&self) -> String {
        let row = "{.metadata.name} {.status.containerStatuses[0].containerID} \
                   {.status.containerStatuses[0].restartCount}";
        let output = format!("jsonpath={{range .items[*]}}{row}{{\"\\n\"}}{{end}}");
        let mut rows: Vec<String> = self
            .nodes
            .k(NS, &["get", "pods", "-o", &output])
            .lines()
            .map(str::to_owned)
            .collect();
        rows.sort();
        rows.join("\n")
    }

    /// Requests of the asking pods, answered and failed.
    fn asked(&self) -> [(usize, usize); 2] {
        ASKING.map(|(name, _)| answers(&self.nodes, NS, name))
    }

    /// Kills the processes of a node that have a word on their command line; at least one must be there.
    fn kill(&self, index: usize, word: &str) {
        let found = self.nodes.at(index).processes(word);
        assert!(!found.is_empty(), "no {word} on n{index}");
        for pid in found {
            kill(pid, Signal::SIGKILL).expect("it can be killed");
        }
    }

    /// Names resolve on every node, asked of the node's own server, and lead to who answers.
    fn assert_names_resolve(&self) {
        self.assert_webapp_is_met_at(self.address("webapp"));
    }

    /// The same where nobody could say what the Service's address is.
    fn assert_webapp_is_met_at(&self, address: SocketAddr) {
        let ip = address.ip().to_string();
        for index in 1..=self.nodes.count() {
            eventually(&format!("webapp by its name on n{index}"), || {
                let mut ask = self.nodes.at(index).command("busybox");
                ask.args(["nslookup", "webapp.default.svc.cluster.local", DNS_IP]);
                let said = outcome(&mut ask)?;
                if said.contains(&ip) {
                    Ok(())
                } else {
                    Err(said)
                }
            });
            let page = curl_on(&self.nodes, index, &[&format!("http://{ip}/")]);
            assert!(page.is_ok(), "n{index}: {page:?}");
        }
    }

    /// Everything is taken away, and nothing of it is left on any host.
    fn end(self) {
        let kinds = "deployment,service,pod,configmap";
        let selector = "component!=apiserver";
        self.nodes
            .k(NS, &["delete", kinds, "-l", selector, "--wait"]);
        for (index, before) in self.before.iter().enumerate() {
            eventually(&format!("nothing is left on n{}", index + 1), || {
                let left = self.nodes.at(index + 1).leftovers().since(before);
                if left.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{left:#?}"))
                }
            });
        }
    }
}

/// ConfigMaps that were acknowledged, written one after the other while something else happens.
struct Writer {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

impl Writer {
    /// Starts writing; what is refused is left out.
    fn start(nodes: &Nodes) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let create = |name: &str| {
            nodes.kubectl_command(&["create", "configmap", name, "--request-timeout=5s"])
        };
        let mut commands: Vec<_> = (0..2000)
            .map(|number| {
                let name = format!("w{number}");
                (create(&name), name)
            })
            .collect();
        let over = is_over.clone();
        let thread = std::thread::spawn(move || {
            let mut written = Vec::new();
            for (command, name) in &mut commands {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let output = command.output().expect("kubectl starts");
                if output.status.success() {
                    written.push(name.clone());
                }
            }
            written
        });
        Self { is_over, thread }
    }

    /// Ends the writing; every write that was acknowledged has to be there.
    #[track_caller]
    fn assert_nothing_is_lost(self, nodes: &Nodes) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        let written = self.thread.join().expect("the writer does not panic");
        assert_are_there(nodes, &written);
        written.len()
    }
}

#[track_caller]
fn assert_are_there(nodes: &Nodes, written: &[String]) {
    let listed = nodes.k(NS, &["get", "configmaps", "-o", "name"]);
    let there: std::collections::BTreeSet<&str> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("configmap/"))
        .collect();
    let lost: Vec<_> = written
        .iter()
        .filter(|name| !there.contains(name.as_str()))
        .collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}

/// The lines of what [`Site::containers`] tells that are of the containers behind `webapp`.
fn of_webapp(containers: &str) -> Vec<String> {
    let lines = containers
        .lines()
        .filter(|line| !line.starts_with("component-"));
    lines.map(str::to_owned).collect()
}

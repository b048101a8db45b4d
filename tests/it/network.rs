//! Pods of several nodes: each reaches each under its own address, whatever the runtimes and the way between.

use std::process::{Child, Command, Stdio};

use libtest_mimic::Trial;
use nix::sys::signal::Signal::SIGTERM;
use wherry_tests::{Engine, Nodes, eventually, guest, made_by_run_sh};

use crate::{asking::until, own_trials};

pub(crate) fn trials() -> Vec<Trial> {
    own_trials![
        pods_of_all_runtimes_meet_by_routes_and_use_services_and_names_of_the_cluster,
        pods_meet_through_a_tunnel_that_comes_back,
        pods_of_plugins_networks_meet_and_nothing_is_left
    ]
}

const NS: &str = "default";
/// A web server in a container: who asks, and more than fits into a packet.
const CONTAINER: &str = "mkdir -p /tmp/www/cgi-bin; cd /tmp/www; head -c 300000 /dev/zero > big; \
                         printf '#!/bin/sh\\\\necho; echo from $REMOTE_ADDR:' > cgi-bin/who; \
                         chmod +x cgi-bin/who; exec httpd -f -p 0.0.0.0:8080 -h .";
/// Where it says who asks.
const WHO: &str = "8080/cgi-bin/who";

fn import(nodes: &Nodes) {
    nodes.import(&made_by_run_sh("WHERRY_IMAGE_BUSYBOX"), "busybox:1");
    for (file, name) in [("toolbox", "toolbox:1"), ("tcp", "tcp:1")] {
        nodes.import(&guest(file), name);
    }
}

/// A pod on a node; `kinds` are `box` (a container that answers), `tool` and `tcp` (components; the last one answers).
fn pod(name: &str, node: &str, kinds: &[&str]) -> String {
    let containers: Vec<String> = kinds
        .iter()
        .map(|kind| match *kind {
            "box" => format!(
                r#"{{"name": "box", "image": "busybox:1", "command": ["sh", "-c", "{CONTAINER}"]}}"#
            ),
            "tool" => {
                r#"{"name": "tool", "image": "toolbox:1", "args": ["sleep", "100000"]}"#.into()
            }
            _ => r#"{"name": "tcp", "image": "tcp:1", "args": ["serve", "0.0.0.0:8080", "here"]}"#
                .into(),
        })
        .collect();
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}", "labels": {{"app": "{name}"}}}},
            "spec": {{"nodeName": "{node}", "terminationGracePeriodSeconds": 0, "containers": [{}]}}}}"#,
        containers.join(",")
    )
}

/// Starts pods and gives their addresses.
fn start(nodes: &Nodes, pods: &[(&'static str, &str, &[&str])]) -> Vec<(&'static str, String)> {
    for (name, node, kinds) in pods {
        nodes.apply(&pod(name, node, kinds));
    }
    let address = |name: &'static str| {
        nodes.wait_ready(NS, name);
        (
            name,
            nodes.field(NS, &format!("pod/{name}"), ".status.podIP"),
        )
    };
    pods.iter().map(|(name, ..)| address(name)).collect()
}

fn exec(nodes: &Nodes, pod: &str, container: &str, words: &[&str]) -> Command {
    nodes.kubectl_command(&[&["exec", "-n", NS, pod, "-c", container, "--"], words].concat())
}

/// Asks a web server from a container of a pod.
fn ask(nodes: &Nodes, pod: &str, container: &str, address: &str) -> Command {
    let url = format!("http://{address}:{WHO}");
    exec(nodes, pod, container, &["wget", "-q", "-O", "-", &url])
}

/// Connects to a component that answers everybody and logs who it was.
fn ask_component(nodes: &Nodes, pod: &str, container: &str, address: &str) -> Command {
    let script = format!("nc -w 5 {address} 8080 </dev/null");
    match container {
        "box" => exec(nodes, pod, container, &["sh", "-c", &script]),
        _ => exec(nodes, pod, container, &["nc", address, "8080"]),
    }
}

/// Asks from a host.
fn curl(mut command: Command, url: &str) -> Command {
    command.args(["-sS", "--max-time", "5", url]);
    command
}

/// Every client container reaches every server, which sees the pod's own address.
#[track_caller]
fn all_meet(
    nodes: &Nodes,
    clients: &[(&str, &str, &str)],
    containers: &[&(&str, String)],
    components: &[&(&str, String)],
) {
    for (pod, container, own) in clients {
        for (name, address) in containers {
            let what = format!("{container} of {pod} to {name} {address}");
            until(&what, &format!("from {own}:"), || {
                ask(nodes, pod, container, address)
            });
        }
        for (name, address) in components {
            let what = format!("{container} of {pod} to {name} {address}");
            until(&what, "here", || {
                ask_component(nodes, pod, container, address)
            });
            let logs = || nodes.kubectl_command(&["logs", "-n", NS, name, "-c", "tcp"]);
            until(&what, &format!("connection from {own}:"), logs);
        }
    }
}

/// A server of a host, ended when dropped.
struct Server(Child);

impl Server {
    fn start(mut command: Command) -> Self {
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("it starts"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn on_host(nodes: &Nodes, index: usize, script: &str) -> Command {
    let mut command = nodes.at(index).command("sh");
    command.args(["-c", script]);
    command
}

#[track_caller]
fn run_on(nodes: &Nodes, index: usize, script: &str) {
    let output = on_host(nodes, index, script).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
}

fn pods_of_all_runtimes_meet_by_routes_and_use_services_and_names_of_the_cluster() {
    let mut nodes = Nodes::prepare(3);
    nodes.start_control(&[
        "--cluster-domain",
        "pod.test",
        "--service-cluster-ip-range",
        "10.43.0.0/16",
    ]);
    nodes.join(&[]);
    let engine = Engine::start_in(nodes.at(3).name());
    nodes.stop(3, SIGTERM);
    let endpoint = engine.endpoint();
    nodes.start_again_with(
        3,
        &[
            "--docker-endpoint",
            &endpoint,
            "--default-runtime",
            "docker",
        ],
    );
    import(&nodes);
    let pods = start(
        &nodes,
        &[
            ("oci", "n1", &["box"]),
            ("wasm", "n2", &["tcp"]),
            ("tool", "n2", &["tool"]),
            ("mixed", "n3", &["box", "tool"]),
            ("both", "n1", &["tcp", "tool"]),
        ],
    );
    let id = nodes.field(
        NS,
        "pod/mixed",
        ".status.containerStatuses[?(@.name==\"box\")].containerID",
    );
    assert!(id.starts_with("docker://"), "{id}");
    let routes = on_host(&nodes, 1, "ip route show proto 87")
        .output()
        .expect("ip starts");
    let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
    assert!(routes.contains("via 10.52.0.3 dev eth0"), "{routes}");
    let ip = |name: &str| {
        pods.iter()
            .find(|(pod, _)| *pod == name)
            .expect("a pod")
            .1
            .clone()
    };
    let clients = [
        ("oci", "box", ip("oci")),
        ("tool", "tool", ip("tool")),
        ("mixed", "box", ip("mixed")),
        ("mixed", "tool", ip("mixed")),
    ];
    let clients: Vec<_> = clients
        .iter()
        .map(|(pod, container, ip)| (*pod, *container, ip.as_str()))
        .collect();
    all_meet(
        &nodes,
        &clients,
        &[&pods[0], &pods[3]],
        &[&pods[1], &pods[4]],
    );
    // Nodes reach pods of others, under their own addresses; and pods other nodes.
    let url = format!("http://{}:{WHO}", ip("oci"));
    for (index, own) in [(2, "10.52.0.3"), (3, "10.52.0.4")] {
        until("a node to a pod", &format!("from {own}:"), || {
            curl(nodes.at(index).command("curl"), &url)
        });
    }
    let www = tempfile::tempdir().expect("a temporary directory");
    let script = CONTAINER.replace("/tmp/www", &www.path().display().to_string());
    let script = script
        .replace("0.0.0.0:8080", "10.52.0.3:8080")
        .replace("\\\\n", "\\n");
    let script = script.replace("exec httpd", "exec busybox httpd");
    let server = Server::start(on_host(&nodes, 2, &script));
    for (pod, container, own) in &clients {
        until("a pod to a node", &format!("from {own}:"), || {
            ask(&nodes, pod, container, "10.52.0.3")
        });
    }
    drop(server);

    // A Service of pods on one node, from pods and from the nodes themselves, by name and by the nodes' addresses.
    nodes.k(
        NS,
        &[
            "expose",
            "pod",
            "oci",
            "--name=web",
            "--port=8080",
            "--type=LoadBalancer",
        ],
    );
    let service = nodes.field(NS, "service/web", ".spec.clusterIP");
    assert!(service.starts_with("10.43."), "{service}");
    for (pod, container, _) in &clients {
        for address in [&service, "web.default.svc.pod.test"] {
            until("a Service of another node", "from ", || {
                ask(&nodes, pod, container, address)
            });
        }
    }
    let ingress = ".status.loadBalancer.ingress[*].ip";
    nodes.wait_field(NS, "service/web", ingress, "10.52.0.2 10.52.0.3 10.52.0.4");
    for address in [service.as_str(), "10.52.0.4"] {
        until("a Service from a node", "from ", || {
            curl(
                nodes.at(2).command("curl"),
                &format!("http://{address}:{WHO}"),
            )
        });
    }
    until("a balancer from outside", "from ", || {
        let url = format!("http://10.52.0.3:{WHO}");
        curl(nodes.hosts.outside_command("curl"), &url)
    });

    // What somebody takes away comes back; what nobody is at any more goes.
    run_on(&nodes, 1, "ip route flush proto 87");
    let flushed = "a route that was deleted";
    until(flushed, "via 10.52.0.3", || {
        on_host(&nodes, 1, "ip route show proto 87")
    });
    run_on(&nodes, 1, "ip link del wherry0");
    all_meet(&nodes, &clients, &[&pods[0]], &[&pods[4]]);
    nodes.stop(3, SIGTERM);
    nodes.at(3).wherry(&["down"]);
    nodes.kubectl(&["delete", "node", "n3"]);
    until("the route to a node that left", "gone", || {
        on_host(
            &nodes,
            1,
            "ip route show proto 87 | grep -q 10.52.0.4 || echo gone",
        )
    });
    let left = on_host(
        &nodes,
        3,
        "ip route show table all proto 87; ip -o link | grep -c wherry0; nft list tables | grep wherry",
    );
    let left = { left }.output().expect("it starts");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "0\n");
}

fn pods_meet_through_a_tunnel_that_comes_back() {
    let mut nodes = Nodes::prepare(2);
    nodes.hosts.move_behind_router(2);
    nodes.start_control(&[]);
    nodes.join(&[]);
    import(&nodes);
    let pods = start(
        &nodes,
        &[
            ("oci", "n1", &["box"]),
            ("tool", "n1", &["tool"]),
            ("far", "n2", &["box"]),
            ("wasm", "n2", &["tcp"]),
            ("mixed", "n2", &["box", "tool"]),
        ],
    );
    let routes = on_host(&nodes, 1, "ip route show proto 87")
        .output()
        .expect("ip starts");
    let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
    assert!(routes.contains("dev vx-wherry0"), "{routes}");
    let here = [
        ("oci", "box", pods[0].1.as_str()),
        ("tool", "tool", &pods[1].1),
    ];
    let there = [
        ("far", "box", pods[2].1.as_str()),
        ("mixed", "box", &pods[4].1),
        ("mixed", "tool", &pods[4].1),
    ];
    all_meet(&nodes, &here, &[&pods[2], &pods[4]], &[&pods[3]]);
    all_meet(&nodes, &there, &[&pods[0]], &[]);
    // More than a packet, both ways, for those too that have to find out how much one is.
    for (pod, container, address) in [
        ("oci", "box", &pods[2].1),
        ("tool", "tool", &pods[2].1),
        ("far", "box", &pods[0].1),
        ("mixed", "tool", &pods[0].1),
    ] {
        let url = format!("http://{address}:8080/big");
        let command = exec(&nodes, pod, container, &["wget", "-q", "-O", "-", &url]);
        let output = { command }.output().expect("kubectl starts");
        assert_eq!(output.stdout.len(), 300_000, "{container} of {pod}");
    }
    // A Service whose endpoint is behind the tunnel, by the node's own port, from a neighbour of that node.
    nodes.k(
        NS,
        &[
            "expose",
            "pod",
            "far",
            "--name=far",
            "--port=8080",
            "--type=NodePort",
        ],
    );
    let port = nodes.field(NS, "service/far", ".spec.ports[0].nodePort");
    until("a node's port", "from 10.52.0.2:", || {
        let url = format!("http://10.52.0.2:{port}/cgi-bin/who");
        curl(nodes.hosts.outside_command("curl"), &url)
    });
    run_on(&nodes, 1, "ip link del vx-wherry0");
    all_meet(&nodes, &here, &[&pods[2]], &[&pods[3]]);
}

/// Debian's plugins: a bridge of their own, with addresses from a directory.
fn plugins_of(nodes: &Nodes, index: usize) -> String {
    let dir = nodes.at(index).root().join("net.d");
    std::fs::create_dir_all(&dir).expect("a directory can be made");
    let data = nodes.at(index).root().join("ipam");
    let list = format!(
        r#"{{"cniVersion": "1.0.0", "name": "it", "plugins": [
            {{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": true,
              "ipam": {{"type": "host-local", "dataDir": "{}", "routes": [{{"dst": "0.0.0.0/0"}}],
                        "ranges": [[{{"subnet": "10.90.0.0/24"}}]]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#,
        data.display()
    );
    std::fs::write(dir.join("10-it.conflist"), list).expect("a file can be written");
    dir.display().to_string()
}

fn pods_of_plugins_networks_meet_and_nothing_is_left() {
    let mut nodes = Nodes::prepare(1);
    nodes.start_control(&[]);
    let conf = plugins_of(&nodes, 1);
    nodes.join(&[
        "--network-backend",
        "cni",
        "--cni-conf-dir",
        &conf,
        "--pod-cidr",
        "10.90.0.0/24",
    ]);
    import(&nodes);
    let pods = start(
        &nodes,
        &[
            ("oci", "n1", &["box"]),
            ("wasm", "n1", &["tcp"]),
            ("mixed", "n1", &["box", "tool"]),
            ("tool", "n1", &["tool"]),
        ],
    );
    for (name, address) in &pods {
        assert!(address.starts_with("10.90.0."), "{name} {address}");
    }
    let clients = [
        ("oci", "box", pods[0].1.as_str()),
        ("mixed", "tool", &pods[2].1),
        ("tool", "tool", &pods[3].1),
    ];
    all_meet(&nodes, &clients, &[&pods[0], &pods[2]], &[&pods[1]]);
    nodes.k(NS, &["expose", "pod", "oci", "--name=web", "--port=8080"]);
    for (pod, container, _) in clients {
        let name = "web.default.svc.cluster.local";
        until("a Service by its name", "from ", || {
            ask(&nodes, pod, container, name)
        });
    }
    // The agent's end is not the pods', and their end is the plugins'.
    nodes.stop(1, nix::sys::signal::Signal::SIGKILL);
    nodes.start_again(1);
    all_meet(&nodes, &clients, &[&pods[2]], &[&pods[1]]);
    nodes.k(NS, &["delete", "pod", "oci", "--wait=true"]);
    let reserved = nodes.at(1).root().join("ipam/it");
    let count = || {
        let entries = std::fs::read_dir(&reserved).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("10."))
            .count()
    };
    eventually("the address of a pod that went", || {
        let count = count();
        if count == 3 {
            Ok(())
        } else {
            Err(count.to_string())
        }
    });
    nodes.stop(1, SIGTERM);
    nodes.at(1).wherry(&["down"]);
    assert_eq!(count(), 0);
}

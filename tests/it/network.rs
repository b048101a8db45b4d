//! The pod network of one node.

use std::{process::Stdio, sync::Arc};

use libtest_mimic::Trial;
use wherry_tests::{Cluster, Network, eventually};

use crate::{
    Shared,
    kubectl::{ready_shell_pod, shell_pod},
    pods::apply,
    trials,
};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    trials![shared;
        pods_reach_each_other_and_the_node_by_their_own_addresses,
        pods_reach_the_outside,
        a_pod_sees_its_own_name_and_hosts_file,
        host_network_is_the_nodes,
        a_taken_port_is_the_programs_own_error,
    ]
}

fn pods_reach_each_other_and_the_node_by_their_own_addresses(cluster: &Cluster, ns: &str) {
    ready_shell_pod(cluster, ns, "server", "nc -ll -p 7000 -e sh -c 'echo seen'");
    ready_shell_pod(cluster, ns, "client", "sleep 1000");
    let ip = cluster.field(ns, "pod/server", ".status.podIP");
    let get = format!("nc {ip} 7000 < /dev/null");
    assert_eq!(
        cluster.kubectl(&["exec", "-n", ns, "client", "--", "sh", "-c", &get]),
        "seen\n"
    );
    // From the node, and a pod reaching itself by its own address.
    let output = cluster
        .network
        .command("busybox")
        .args(["nc", &ip, "7000"])
        .stdin(Stdio::null())
        .output()
        .expect("busybox starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "seen\n");
    assert_eq!(
        cluster.kubectl(&["exec", "-n", ns, "server", "--", "sh", "-c", &get]),
        "seen\n"
    );
}

fn pods_reach_the_outside(cluster: &Cluster, ns: &str) {
    let mut outside = cluster
        .network
        .outside_command("busybox")
        .args(["nc", "-ll", "-p", "7000", "-e", "echo", "outside"])
        .stdin(Stdio::null())
        .spawn()
        .expect("busybox starts");
    ready_shell_pod(cluster, ns, "client", "sleep 1000");
    let get = format!("nc {} 7000 < /dev/null", Network::OUTSIDE_IP);
    eventually("an answer from outside", || {
        let output = cluster
            .kubectl_command(&["exec", "-n", ns, "client", "--", "sh", "-c", &get])
            .output()
            .expect("kubectl starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said == "outside\n" {
            Ok(())
        } else {
            Err(said)
        }
    });
    outside.kill().expect("busybox listens until it is killed");
    outside.wait().expect("busybox can be waited for");
}

fn a_pod_sees_its_own_name_and_hosts_file(cluster: &Cluster, ns: &str) {
    let yaml = shell_pod("named", "sleep 1000").replace(
        "spec:",
        "spec:\n  hostname: boat\n  hostAliases: [{ip: 10.1.2.3, hostnames: [far.away]}]\n  dnsPolicy: None\n  dnsConfig: {nameservers: [10.9.9.9], searches: [a.b], options: [{name: ndots, value: '2'}]}",
    );
    apply(cluster, ns, &yaml);
    cluster.wait_ready(ns, "named");
    let sh = |script: &str| cluster.kubectl(&["exec", "-n", ns, "named", "--", "sh", "-c", script]);
    assert_eq!(sh("hostname"), "boat\n");
    let hosts = sh("cat /etc/hosts");
    let ip = cluster.field(ns, "pod/named", ".status.podIP");
    assert!(
        hosts.contains("10.1.2.3\tfar.away") && hosts.contains(&format!("{ip}\tboat")),
        "{hosts}"
    );
    let resolv = sh("cat /etc/resolv.conf");
    assert!(
        resolv.contains("nameserver 10.9.9.9")
            && resolv.contains("search a.b")
            && resolv.contains("options ndots:2"),
        "{resolv}"
    );
}

fn host_network_is_the_nodes(cluster: &Cluster, ns: &str) {
    let yaml = shell_pod("host", "sleep 1000").replace("spec:", "spec:\n  hostNetwork: true");
    apply(cluster, ns, &yaml);
    cluster.wait_ready(ns, "host");
    assert_eq!(
        cluster.field(ns, "pod/host", ".status.podIP"),
        Network::NODE_IP
    );
    assert!(
        cluster
            .kubectl(&["exec", "-n", ns, "host", "--", "ip", "addr"])
            .contains(Network::NODE_IP)
    );
}

fn a_taken_port_is_the_programs_own_error(cluster: &Cluster, ns: &str) {
    // Two containers of a pod share its ports: the second nginx finds 80 taken, says so and is restarted.
    let container = |name: &str| {
        format!("  - {{name: {name}, image: 'test/nginx:1', imagePullPolicy: Never}}\n")
    };
    let spec = format!("  containers:\n{}{}", container("one"), container("two"));
    apply(cluster, ns, &crate::pods::pod("twice", &spec));
    eventually("one of them says that the port is taken", || {
        let logs = ["one", "two"].map(|name| {
            let args = ["logs", "-n", ns, "twice", "-c", name];
            String::from_utf8_lossy(
                &cluster
                    .kubectl_command(&args)
                    .output()
                    .expect("kubectl starts")
                    .stdout,
            )
            .into_owned()
        });
        if logs
            .iter()
            .any(|log| log.contains("Address already in use"))
        {
            Ok(())
        } else {
            Err(logs.concat())
        }
    });
    // A host port that a pod of this node has already is refused before anything starts.
    let with_port = |name: &str| {
        shell_pod(name, "sleep 1000").replace(
            "\n    image:",
            "\n    ports: [{containerPort: 80, hostPort: 18080}]\n    image:",
        )
    };
    apply(cluster, ns, &with_port("first"));
    cluster.wait_ready(ns, "first");
    apply(cluster, ns, &with_port("second"));
    let said = cluster.wait_event(ns, "second", "FailedScheduling");
    assert!(
        said.contains("0/1 nodes are available") && said.contains("didn't have free ports"),
        "{said}"
    );
}

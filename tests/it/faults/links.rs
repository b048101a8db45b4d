//! The network between nodes: gone for one of them, and bad for all.

use std::process::{Command, Stdio};

use wherry_tests::{Nodes, eventually};

use super::{NS, Site, Writer, of_webapp};
use crate::asking::wait_answers;

pub(super) fn a_node_that_is_cut_off_is_replaced_and_cleaned_when_it_returns() {
    // Nodes renew their leases every ten seconds.
    let grace = ["--node-monitor-grace-period", "25s"];
    let site = Site::on(Nodes::start_with(3, &grace, &[]));
    let lost = 2;
    let on_lost = |app: &str| -> Vec<String> {
        let pods = site.nodes.wait_pods(NS, &format!("app={app}"), 3);
        let there = pods.into_iter().filter(|(_, node, _)| node == "n2");
        there.map(|(name, ..)| name).collect()
    };
    let cut = [on_lost("webapp"), on_lost("component")].concat();
    assert!(!cut.is_empty(), "no pod on n2");
    site.nodes.hosts.plug(lost, false);
    site.nodes.wait_node(lost, "Unknown");
    let taints = "jsonpath={.spec.taints[*].key}";
    eventually("the node is tainted", || {
        let said = site.nodes.kubectl(&["get", "node", "n2", "-o", taints]);
        if said.contains("node.kubernetes.io/unreachable") {
            Ok(())
        } else {
            Err(said)
        }
    });
    // Evicted pods cannot end where nobody is met; what replaces them is elsewhere.
    for app in ["webapp", "component"] {
        eventually(&format!("{app} is replaced"), || {
            let row = "{.spec.nodeName}/{.status.conditions[?(@.type==\"Ready\")].status} ";
            let output = format!("jsonpath={{range .items[*]}}{row}{{end}}");
            let args = ["get", "pods", "-l", &format!("app={app}"), "-o", &output];
            let said = site.nodes.k(NS, &args);
            let ready = said.split(' ').filter(|pod| pod.ends_with("/True"));
            if ready.filter(|pod| !pod.starts_with("n2/")).count() == 3 {
                Ok(())
            } else {
                Err(said)
            }
        });
    }
    // Services know: no new connection leads to the lost node. One that was begun before may wait there for minutes, as
    // the kernel does, so that a pod which asks one thing after the other says nothing now.
    let load = site.load("webapp");
    load.wait_answers(50);
    load.stop()
        .assert_no_failure("beside a node that is cut off");

    site.nodes.hosts.plug(lost, true);
    site.nodes.wait_node(lost, "True");
    eventually("what was evicted has gone", || {
        let names = site.nodes.k(NS, &["get", "pods", "-o", "name"]);
        match cut.iter().find(|name| names.contains(name.as_str())) {
            None => Ok(()),
            Some(name) => Err(format!("{name} is there")),
        }
    });
    eventually("no taint is left", || {
        let said = site.nodes.kubectl(&["get", "node", "n2", "-o", taints]);
        if said.is_empty() { Ok(()) } else { Err(said) }
    });
    eventually("nothing runs on the returned node", || {
        let left = site.nodes.at(lost).leftovers();
        let left = left.since(&site.before[lost - 1]).processes;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:#?}"))
        }
    });
    site.wait_workloads();
    for ((name, _), (asked, _)) in super::ASKING.into_iter().zip(site.asked()) {
        wait_answers(&site.nodes, NS, name, asked + 20);
    }
    // It is used again.
    site.nodes
        .k(NS, &["scale", "deployment/webapp", "--replicas=9"]);
    let pods = site.nodes.wait_pods(NS, "app=webapp", 9);
    assert!(pods.iter().any(|(_, node, _)| node == "n2"), "{pods:?}");
    site.assert_names_resolve();
    site.end();
}

/// Loses one packet in ten of those that arrive at a host, or none again.
fn lose(nodes: &Nodes, index: usize, is_lossy: bool) {
    let rules = if is_lossy {
        "table netdev loss { chain arriving { type filter hook ingress device eth0 priority 0; \
         numgen random mod 10 0 drop; }; }"
    } else {
        "delete table netdev loss"
    };
    let mut command: Command = nodes.at(index).command("nft");
    let output = command.arg(rules).stdin(Stdio::null()).output();
    let output = output.expect("nft starts");
    assert!(output.status.success(), "nft: {output:?}");
}

pub(super) fn one_packet_in_ten_is_lost_and_work_goes_on() {
    let site = Site::on(Nodes::start(3));
    let containers = site.containers();
    for index in 0..=3 {
        lose(&site.nodes, index, true);
    }
    let load = site.load("webapp");
    let writer = Writer::start(&site.nodes);
    site.nodes
        .k(NS, &["scale", "deployment/component", "--replicas=6"]);
    site.nodes.wait_pods(NS, "app=component", 6);
    site.nodes
        .k(NS, &["scale", "deployment/component", "--replicas=3"]);
    site.nodes.wait_pods(NS, "app=component", 3);
    let asked = site.asked();
    for ((name, _), (ok, _)) in super::ASKING.into_iter().zip(asked) {
        wait_answers(&site.nodes, NS, name, ok + 20);
    }
    let written = writer.assert_nothing_is_lost(&site.nodes);
    assert!(written > 0, "nothing was written");
    let loaded = load.stop();
    loaded.assert_no_failure("over bad links");
    for index in 1..=3 {
        site.nodes.wait_node(index, "True");
    }
    for (ok, failed) in site.asked() {
        assert!(failed * 50 <= ok, "{failed} failed of {ok}");
    }
    for index in 0..=3 {
        lose(&site.nodes, index, false);
    }
    assert_eq!(of_webapp(&site.containers()), of_webapp(&containers));
    site.wait_workloads();
    site.assert_names_resolve();
    site.end();
}

//! A pod that needs what another holds which is being ended: it waits, and says for whom.

use std::sync::Arc;

use libtest_mimic::Trial;
use wherry_tests::Cluster;

use crate::{
    Shared,
    pods::{apply, container, pod},
    trials,
};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    trials![shared; a_pod_that_waits_for_a_port_of_the_node_says_so]
}

/// A port of the node that nobody else here wants.
const PORT: u16 = 48_217;

fn a_pod_that_waits_for_a_port_of_the_node_says_so(cluster: &Cluster, ns: &str) {
    let node = cluster.kubectl(&["get", "node", "-o", "jsonpath={.items[0].metadata.name}"]);
    // Placed by hand: the scheduler would wait itself.
    let with_port = |name: &str, script: &str| {
        let ports = format!("ports: [{{containerPort: 80, hostPort: {PORT}}}], command:");
        let main = container("main", script).replace("command:", &ports);
        pod(name, &format!("  nodeName: {node}\n  containers:\n{main}"))
    };
    let deaf = "trap \"\" TERM; while :; do sleep 1; done";
    let old = with_port("old", deaf).replace("GracePeriodSeconds: 1", "GracePeriodSeconds: 600");
    apply(cluster, ns, &old);
    cluster.wait_ready(ns, "old");
    cluster.k(ns, &["delete", "pod", "old", "--wait=false"]);
    apply(cluster, ns, &with_port("new", "sleep 1000"));

    let said = cluster.wait_event(ns, "new", "WaitingForTermination");
    assert!(
        said.contains(&format!("{ns}/old")) && said.contains("free ports"),
        "{said}"
    );
    let condition = ".status.conditions[?(@.type==\"ContainersReady\")]";
    cluster.wait_field(ns, "pod/new", &format!("{condition}.reason"), "NodePorts");
    assert_eq!(cluster.field(ns, "pod/new", ".status.phase"), "Pending");
    let waiting = ".status.containerStatuses[0].state.waiting.message";
    let waiting = cluster.field(ns, "pod/new", waiting);
    assert!(waiting.contains(&format!("{ns}/old")), "{waiting}");

    cluster.k(ns, &["delete", "pod", "old", "--grace-period=1"]);
    cluster.wait_ready(ns, "new");
    assert_eq!(
        cluster.field(ns, "pod/new", &format!("{condition}.message")),
        ""
    );
    let told = cluster.k(ns, &["get", "events", "--no-headers"]);
    assert_eq!(told.matches("WaitingForTermination").count(), 1, "{told}");
}

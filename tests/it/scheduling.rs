//! The scheduler and the node life cycle by kubectl, on one node: who makes room for whom, what is said, what waits.

use std::sync::Arc;

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually};

use crate::{Shared, trials};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    trials![shared;
        a_pod_that_matters_more_takes_the_port_of_one_that_matters_less,
        pods_that_keep_apart_are_told_why_they_wait,
        a_gated_pod_waits_until_its_gate_is_gone,
        a_taint_that_evicts_ends_pods_that_do_not_tolerate_it,
    ]
}

fn pod(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web}}}}
spec:
  terminationGracePeriodSeconds: 1
{spec}
  containers:
  - name: c
    image: test/busybox:1
    imagePullPolicy: Never
    args: [sleep, '100000']
"
    )
}

const MESSAGE: &str = ".status.conditions[?(@.type=='PodScheduled')].message";

fn a_pod_that_matters_more_takes_the_port_of_one_that_matters_less(cluster: &Cluster, ns: &str) {
    cluster.apply(&format!(
        "apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {{name: {ns}-high}}
value: 1000
"
    ));
    let port = "    ports: [{containerPort: 80, hostPort: 18090}]\n";
    cluster.apply_in(ns, &(pod("low", "") + port));
    cluster.wait_ready(ns, "low");
    // One that matters as much has to wait.
    cluster.apply_in(ns, &(pod("equal", "") + port));
    cluster.wait_field(
        ns,
        "pod/equal",
        MESSAGE,
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports. preemption: \
         0/1 nodes are available: 1 No preemption victims found for incoming pod.",
    );
    let high = pod("high", &format!("  priorityClassName: {ns}-high")) + port;
    cluster.apply_in(ns, &high);
    cluster.wait_ready(ns, "high");
    let said = cluster.wait_event(ns, "low", "Preempted");
    assert!(said.starts_with("Preempted by pod "), "{said}");
    let found = cluster.k(ns, &["get", "pods", "--no-headers", "-o", "name"]);
    assert_eq!(found, "pod/equal\npod/high\n");
    cluster.kubectl(&["delete", "priorityclass", &format!("{ns}-high")]);
}

fn pods_that_keep_apart_are_told_why_they_wait(cluster: &Cluster, ns: &str) {
    let apart = "  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}";
    cluster.apply_in(ns, &pod("first", apart));
    cluster.wait_ready(ns, "first");
    let preemption =
        "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    cluster.apply_in(ns, &pod("second", apart));
    cluster.apply_in(ns, &pod("plain", ""));
    for (name, why) in [
        ("second", "node(s) didn't match pod anti-affinity rules"),
        (
            "plain",
            "node(s) didn't satisfy existing pods anti-affinity rules",
        ),
    ] {
        let message = format!("0/1 nodes are available: 1 {why}. {preemption}");
        cluster.wait_field(ns, &format!("pod/{name}"), MESSAGE, &message);
    }
    let near = apart.replace("podAntiAffinity", "podAffinity");
    cluster.apply_in(ns, &pod("near", &near.replace("app: web", "app: none")));
    cluster.wait_field(
        ns,
        "pod/near",
        MESSAGE,
        "0/1 nodes are available: 1 node(s) didn't match pod affinity rules. preemption: \
         0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    );
    cluster.k(ns, &["delete", "pod", "first", "second"]);
    cluster.wait_ready(ns, "plain");
}

fn a_gated_pod_waits_until_its_gate_is_gone(cluster: &Cluster, ns: &str) {
    cluster.apply_in(
        ns,
        &pod("gated", "  schedulingGates: [{name: example.com/wait}]"),
    );
    let reason = ".status.conditions[?(@.type=='PodScheduled')].reason";
    cluster.wait_field(ns, "pod/gated", reason, "SchedulingGated");
    let open = r#"{"spec": {"schedulingGates": null}}"#;
    cluster.k(ns, &["patch", "pod", "gated", "--type=merge", "-p", open]);
    cluster.wait_ready(ns, "gated");
}

fn a_taint_that_evicts_ends_pods_that_do_not_tolerate_it(cluster: &Cluster, ns: &str) {
    // A node that is only an object; nobody is scheduled to it.
    cluster.apply(&format!(
        "apiVersion: v1
kind: Node
metadata: {{name: {ns}-hollow}}
spec: {{unschedulable: true}}
"
    ));
    let node = format!("{ns}-hollow");
    let on_node = format!("  nodeName: {node}");
    let tolerates = format!(
        "{on_node}\n  tolerations: [{{key: example.com/gone, operator: Exists, effect: NoExecute}}]"
    );
    cluster.apply_in(ns, &pod("leaves", &on_node));
    cluster.apply_in(ns, &pod("stays", &tolerates));
    cluster.kubectl(&["taint", "node", &node, "example.com/gone=yes:NoExecute"]);
    let said = cluster.wait_event(ns, "leaves", "TaintManagerEviction");
    assert_eq!(said, format!("Marking for deletion Pod {ns}/leaves"));
    eventually("the pod is being deleted or has gone", || {
        let args = ["get", "pod", "leaves", "--ignore-not-found", "-o", "yaml"];
        let found = cluster.k(ns, &args);
        let is_going = found.is_empty() || found.contains("deletionTimestamp");
        is_going.then_some(()).ok_or(found)
    });
    assert_eq!(
        cluster.field(ns, "pod/stays", ".metadata.deletionTimestamp"),
        ""
    );
    cluster.k(
        ns,
        &["delete", "pods", "--all", "--force", "--grace-period=0"],
    );
    cluster.kubectl(&["delete", "node", &node]);
}

//! `kill -9` of every kind of process that Wherry has.

use nix::sys::signal::Signal::SIGKILL;
use wherry_tests::{Nodes, eventually};

use super::{NS, Site, Writer};

/// What the readiness of a pod is asked of: a plugin, so that there is a process for plugins.
const PROBED: &str = "apiVersion: wherry.dev/v1alpha1
kind: Plugin
metadata: {name: ping}
spec: {image: 'probe-plugin:1', grants: {exec: true}}
---
apiVersion: v1
kind: Pod
metadata: {name: probed, labels: {app: probed}}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: n1}
  containers:
  - name: nginx
    image: nginx:1.22
    readinessProbe: {exec: {command: ['wasm:ping', exec, echo, hello]}, periodSeconds: 1}
";

pub(super) fn any_process_of_ours_is_killed_and_what_it_kept_goes_on() {
    let mut site = Site::on(Nodes::start(3));
    site.nodes.apply_in(NS, PROBED);
    site.nodes.wait_ready(NS, "probed");
    let containers = site.containers();

    // Who keeps and who arranges: without them everything goes on as it is.
    let loads = ["webapp", "component"].map(|service| site.load(service));
    let writer = Writer::start(&site.nodes);
    loads[0].wait_answers(50);
    site.nodes.stop(0, SIGKILL);
    loads[0].wait_answers(100);
    site.nodes.start_again(0);
    for index in 1..=3 {
        site.nodes.stop(index, SIGKILL);
        loads[1].wait_answers(50);
        site.nodes.start_again(index);
        site.nodes.wait_node(index, "True");
    }
    site.kill(1, "plugin-worker");
    eventually("another process for plugins", || {
        let found = site.nodes.at(1).processes("plugin-worker");
        if found.is_empty() {
            Err("none")
        } else {
            Ok(())
        }
        .map_err(str::to_owned)
    });
    site.nodes.wait_ready(NS, "probed");
    let written = writer.assert_nothing_is_lost(&site.nodes);
    assert!(written > 0, "nothing was ever written");
    for load in loads {
        let loaded = load.stop();
        loaded.assert_no_failure("while processes are killed");
    }
    for (ok, failed) in site.asked() {
        assert_eq!(failed, 0, "beside {ok} answers to a pod");
    }
    assert_eq!(
        site.containers(),
        containers,
        "a container was started again"
    );

    // Who runs a pod: its containers end with it and are started again; others on the node do not notice.
    let web = site.load("webapp");
    site.kill(1, "wasm-worker");
    eventually("components are started again", || {
        let restarts = "{.items[*].status.containerStatuses[0].restartCount}";
        let output = format!("jsonpath={restarts}");
        let args = ["get", "pods", "-l", "app=component", "-o", &output];
        let said = site.nodes.k(NS, &args);
        if said.contains('1') {
            Ok(())
        } else {
            Err(said)
        }
    });
    site.wait_workloads();
    let loaded = web.stop();
    loaded.assert_no_failure("containers and a component's end");
    site.kill(1, "stage1");
    eventually("containers are started again", || {
        let restarts = site.nodes.field(
            NS,
            "pod/probed",
            ".status.containerStatuses[0].restartCount",
        );
        if restarts == "0" || restarts.is_empty() {
            Err(restarts)
        } else {
            Ok(())
        }
    });
    site.nodes.wait_ready(NS, "probed");
    site.wait_workloads();
    site.assert_names_resolve();
    site.nodes.kubectl(&["delete", "plugin", "ping"]);
    site.end();
}

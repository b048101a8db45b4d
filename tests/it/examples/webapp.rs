//! nginx, run, exposed and updated.

use wherry_tests::{Load, Nodes, eventually};

use super::node_port;
use crate::asking::{answers, curl_on, curl_outside, start_asking, wait_answers};

pub(super) fn a_pod_is_run_and_exposed_and_answers_at_its_cluster_ip(nodes: &Nodes, ns: &str) {
    let said = nodes.k(ns, &["run", "webapp", "--image", "nginx:1.22"]);
    assert_eq!(said, "pod/webapp created\n");
    let said = nodes.k(ns, &["expose", "pod", "webapp", "--port", "80"]);
    assert_eq!(said, "service/webapp exposed\n");
    nodes.wait_ready(ns, "webapp");
    let ip = nodes.field(ns, "service/webapp", ".spec.clusterIP");
    for index in 1..=nodes.count() {
        eventually(&format!("the ClusterIP on n{index}"), || {
            let page = curl_on(nodes, index, &[&format!("http://{ip}/")])?;
            if page.contains("Welcome to nginx") {
                Ok(())
            } else {
                Err(page)
            }
        });
    }
}

pub(super) fn an_image_changes_under_load_without_a_failed_request(nodes: &Nodes, ns: &str) {
    let image = "--image=nginx:1.22";
    nodes.k(
        ns,
        &["create", "deployment", "webapp", image, "--replicas=3"],
    );
    let expose = [
        "expose",
        "deployment",
        "webapp",
        "--port=80",
        "--type=NodePort",
    ];
    nodes.k(ns, &expose);
    nodes.wait_pods(ns, "app=webapp", 3);
    let address = node_port(nodes, ns, "service/webapp");
    eventually("the port of the node", || {
        curl_outside(nodes, &format!("http://{address}/"))
    });
    let asking = [("container", "busybox:1"), ("component", "toolbox:1")];
    for (name, image) in asking {
        start_asking(nodes, ns, name, image, "kubernetes.io/os: linux");
    }
    let before = asking.map(|(pod, _)| wait_answers(nodes, ns, pod, 1));

    let load = Load::start(nodes.hosts.outside(), address, 2);
    let change = ["set", "image", "deployment/webapp", "nginx=nginx:1.23"];
    let undo = ["rollout", "undo", "deployment/webapp"];
    for (change, image) in [(&change[..], "nginx:1.23"), (&undo[..], "nginx:1.22")] {
        nodes.k(ns, change);
        let status = ["rollout", "status", "deployment/webapp", "--timeout=90s"];
        nodes.k(ns, &status);
        nodes.wait_pods(ns, "app=webapp", 3);
        let path = "jsonpath={.items[*].spec.containers[0].image}";
        let images = nodes.k(ns, &["get", "pods", "-l", "app=webapp", "-o", path]);
        assert_eq!(images, [image; 3].join(" "));
    }
    let loaded = load.stop();
    let after = asking.map(|(pod, _)| answers(nodes, ns, pod));
    let answered = loaded.answered();
    loaded.assert_no_failure(&format!("outside; inside {after:?}"));
    assert!(answered > 100, "that was no load: {answered}");
    for ((pod, _), (before, after)) in asking.into_iter().zip(before.into_iter().zip(after)) {
        assert_eq!(
            after.1, 0,
            "failures in the {pod}, beside {} answers",
            after.0
        );
        assert!(
            after.0 > before.0 + 20,
            "the {pod} has asked little: {after:?}"
        );
    }
}

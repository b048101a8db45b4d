//! What shows on several nodes alone: how many pods a rolling update may take away at a time, and what balancers are
//! told of each node.

use wherry_tests::{Nodes, eventually};

use crate::asking::until;

/// An image that no node has and none asks for, so that an update stops where it may not go on.
const ABSENT: &str = "absent:1";
const IMAGE: &str = "busybox:1";

/// A workload of `kind` whose pods wait, with more lines of its spec.
fn workload(kind: &str, name: &str, image: &str, spec: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: {kind}
metadata: {{name: {name}}}
spec:
  {spec}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: c, image: '{image}', imagePullPolicy: Never, command: [sleep, '100000']}}]
"
    )
}

/// Which pods there are by their images: `uid=image`, sorted.
fn pods(nodes: &Nodes, ns: &str, app: &str) -> Vec<(String, String)> {
    let template = "jsonpath={range .items[*]}{.metadata.uid}={.spec.containers[0].image} {end}";
    let found = nodes.k(
        ns,
        &["get", "pods", "-l", &format!("app={app}"), "-o", template],
    );
    let pods = found
        .split_whitespace()
        .filter_map(|pod| pod.split_once('='));
    pods.map(|(uid, image)| (uid.to_owned(), image.to_owned()))
        .collect()
}

/// Waits until an update has replaced two pods of three; gives the one that it has left.
fn left_of_three(nodes: &Nodes, ns: &str, app: &str) -> String {
    eventually("two of three pods are replaced", || {
        let found = pods(nodes, ns, app);
        let (new, old): (Vec<_>, Vec<_>) = found.iter().partition(|(_, image)| image == ABSENT);
        match (new.len(), &old[..]) {
            (2, [(uid, _)]) => Ok(uid.clone()),
            _ => Err(format!("{found:?}")),
        }
    })
}

pub(super) fn a_daemon_set_takes_no_more_nodes_than_may_be_unavailable(nodes: &Nodes, ns: &str) {
    let spec = "updateStrategy: {rollingUpdate: {maxUnavailable: 2}}";
    let apply = |image| nodes.apply_in(ns, &workload("DaemonSet", "agents", image, spec));
    let rolled_out = || nodes.k(ns, &["rollout", "status", "ds/agents", "--timeout=90s"]);
    apply(IMAGE);
    rolled_out();
    apply(ABSENT);
    let left = left_of_three(nodes, ns, "agents");
    nodes.wait_field(ns, "ds/agents", ".status.numberUnavailable", "2");
    nodes.wait_field(ns, "ds/agents", ".status.updatedNumberScheduled", "2");
    // Back again: two are made anew, and the third has been there all the time.
    nodes.k(ns, &["rollout", "undo", "ds/agents"]);
    rolled_out();
    let found = pods(nodes, ns, "agents");
    assert!(
        found.len() == 3 && found.contains(&(left, IMAGE.to_owned())),
        "{found:?}"
    );
}

pub(super) fn a_stateful_set_takes_no_more_pods_than_may_be_unavailable(nodes: &Nodes, ns: &str) {
    let spec = "replicas: 3
  serviceName: peers
  podManagementPolicy: Parallel
  updateStrategy: {rollingUpdate: {maxUnavailable: 2}}";
    let apply = |image| nodes.apply_in(ns, &workload("StatefulSet", "peers", image, spec));
    apply(IMAGE);
    nodes.k(ns, &["rollout", "status", "sts/peers", "--timeout=90s"]);
    let first = nodes.field(ns, "pod/peers-0", ".metadata.uid");
    apply(ABSENT);
    // The highest go first, two at a time.
    assert_eq!(left_of_three(nodes, ns, "peers"), first);
    nodes.wait_field(ns, "sts/peers", ".status.updatedReplicas", "2");
    nodes.wait_field(ns, "sts/peers", ".status.availableReplicas", "1");
    assert_eq!(nodes.field(ns, "pod/peers-0", ".metadata.uid"), first);
}

pub(super) fn balancers_are_told_which_nodes_have_endpoints(nodes: &Nodes, ns: &str) {
    nodes.apply_in(
        ns,
        "apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: 'busybox:1', imagePullPolicy: Never, command: [httpd, -f, -p, '8080']}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
",
    );
    nodes.wait_ready(ns, "web");
    let port = nodes.field(ns, "service/web", ".spec.healthCheckNodePort");
    let says = |index: usize, endpoints: u32, status: u32| {
        let wanted = format!("\"localEndpoints\":{endpoints},");
        let url = format!("http://{}:{port}/", nodes.at(index).address());
        let what = format!("node {index} tells of {endpoints} endpoints");
        eventually(&what, || {
            let mut curl = nodes.hosts.outside_command("curl");
            let output = curl
                .args(["-sS", "--max-time", "10", "-w", " %{http_code}", &url])
                .output()
                .expect("curl starts");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if said.contains(&wanted) && said.ends_with(&format!(" {status}")) {
                Ok(())
            } else {
                Err(format!(
                    "{said} {}",
                    String::from_utf8_lossy(&output.stderr)
                ))
            }
        });
    };
    says(1, 1, 200);
    says(2, 0, 503);
    says(3, 0, 503);
    nodes.k(ns, &["delete", "pod", "web"]);
    says(1, 0, 503);
    // With the Service goes the port.
    nodes.k(ns, &["delete", "service", "web"]);
    until("nobody listens any more", "Couldn't connect", || {
        let mut curl = nodes.hosts.outside_command("curl");
        let url = format!("http://{}:{port}/", nodes.at(1).address());
        curl.args(["-sS", "--max-time", "10", &url]);
        curl
    });
}

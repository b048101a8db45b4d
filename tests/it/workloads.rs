//! Workloads by kubectl: what a newcomer types to have pods kept, changed, counted and taken away.

mod kinds;
mod several;

use std::sync::Arc;

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually};

use crate::{Shared, on_nodes, trials};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    let mut all = trials![shared;
        a_deployment_is_created_scaled_and_deleted,
        a_rollout_is_watched_undone_paused_and_restarted,
        an_orphaned_replica_set_keeps_its_pods,
        a_replication_controller_counts_and_replaces,
        a_list_of_a_service_and_a_controller,
        kinds::endpoints_follow_the_pods_of_a_service,
        kinds::a_job_runs_to_its_end_and_a_cron_job_makes_one,
        kinds::an_indexed_job_tells_each_pod_its_index,
        kinds::a_daemon_set_is_on_the_node_and_rolls_back,
        kinds::a_stateful_set_keeps_names_and_order,
        kinds::a_disruption_budget_refuses_an_eviction,
        kinds::a_priority_class_decides_a_pods_priority,
    ];
    all.extend(on_nodes![shared;
        several::a_daemon_set_takes_no_more_nodes_than_may_be_unavailable,
        several::a_stateful_set_takes_no_more_pods_than_may_be_unavailable,
        several::balancers_are_told_which_nodes_have_endpoints,
    ]);
    all
}

const IMAGE: &str = "test/nginx:1";

/// The first columns of a table without its header.
fn rows(table: &str, columns: usize) -> Vec<Vec<&str>> {
    let lines = table.lines().skip(1);
    lines
        .map(|line| line.split_whitespace().take(columns).collect())
        .collect()
}

/// Names of pods that a label selects and that are not being deleted.
fn pods(cluster: &Cluster, ns: &str, selector: &str) -> Vec<String> {
    let template = "{range .items[*]}{.metadata.name}={.metadata.deletionTimestamp} {end}";
    let output = format!("jsonpath={template}");
    let names = cluster.k(ns, &["get", "pods", "-l", selector, "-o", &output]);
    let live = names
        .split_whitespace()
        .filter_map(|pod| pod.strip_suffix('='));
    live.map(str::to_owned).collect()
}

fn wait_pods(cluster: &Cluster, ns: &str, selector: &str, wanted: usize) -> Vec<String> {
    eventually(&format!("{wanted} pods of {selector}"), || {
        let found = pods(cluster, ns, selector);
        if found.len() == wanted {
            Ok(found)
        } else {
            Err(format!("{found:?}"))
        }
    })
}

/// `kubectl create deployment` whose pods never ask a registry and end at once.
fn deploy(cluster: &Cluster, ns: &str, name: &str, replicas: i32) {
    cluster.apply_in(
        ns,
        &format!(
            "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: web, image: '{IMAGE}', imagePullPolicy: Never}}]
"
        ),
    );
}

fn wait_rolled_out(cluster: &Cluster, ns: &str, what: &str) -> String {
    cluster.k(ns, &["rollout", "status", what, "--timeout=90s"])
}

fn a_deployment_is_created_scaled_and_deleted(cluster: &Cluster, ns: &str) {
    let said = cluster.k(
        ns,
        &[
            "create",
            "deployment",
            "web",
            "--image",
            IMAGE,
            "--replicas=2",
        ],
    );
    assert_eq!(said, "deployment.apps/web created\n");
    let said = wait_rolled_out(cluster, ns, "deployment/web");
    assert!(
        said.contains("deployment \"web\" successfully rolled out"),
        "{said}"
    );
    let table = cluster.k(ns, &["get", "deploy"]);
    assert_eq!(rows(&table, 4), [["web", "2/2", "2", "2"]]);
    let table = cluster.k(ns, &["get", "rs"]);
    assert_eq!(rows(&table, 4)[0][1..], ["2", "2", "2"]);
    let names = wait_pods(cluster, ns, "app=web", 2);
    assert!(
        names.iter().all(|name| name.starts_with("web-")),
        "{names:?}"
    );
    for wanted in [4, 1] {
        cluster.k(
            ns,
            &["scale", "deployment/web", &format!("--replicas={wanted}")],
        );
        wait_pods(cluster, ns, "app=web", wanted);
        wait_rolled_out(cluster, ns, "deployment/web");
    }
    let said = cluster.k(
        ns,
        &["expose", "deployment/web", "--port=80", "--type=NodePort"],
    );
    assert_eq!(said, "service/web exposed\n");
    assert_eq!(
        cluster.field(ns, "service/web", ".spec.selector"),
        r#"{"app":"web"}"#
    );
    let shown = cluster.k(ns, &["describe", "deployment", "web"]);
    assert!(shown.contains("ScalingReplicaSet"), "{shown}");
    cluster.k(ns, &["delete", "deployment", "web"]);
    wait_pods(cluster, ns, "app=web", 0);
    eventually("no set is left", || {
        let left = cluster.k(ns, &["get", "rs", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

fn a_rollout_is_watched_undone_paused_and_restarted(cluster: &Cluster, ns: &str) {
    deploy(cluster, ns, "web", 2);
    wait_rolled_out(cluster, ns, "deployment/web");
    let image = || {
        cluster.field(
            ns,
            "deployment/web",
            ".spec.template.spec.containers[0].image",
        )
    };
    let said = cluster.k(
        ns,
        &["set", "image", "deployment/web", "web=example/nginx:1"],
    );
    assert_eq!(said, "deployment.apps/web image updated\n");
    wait_rolled_out(cluster, ns, "deployment/web");
    let history = cluster.k(ns, &["rollout", "history", "deployment/web"]);
    let revisions: Vec<_> = rows(&history, 1)
        .into_iter()
        .flatten()
        .filter(|first| first.parse::<u32>().is_ok())
        .collect();
    assert_eq!(revisions, ["1", "2"], "{history}");
    let second = cluster.k(
        ns,
        &["rollout", "history", "deployment/web", "--revision=2"],
    );
    assert!(second.contains("example/nginx:1"), "{second}");

    let said = cluster.k(ns, &["rollout", "undo", "deployment/web"]);
    assert_eq!(said, "deployment.apps/web rolled back\n");
    wait_rolled_out(cluster, ns, "deployment/web");
    assert_eq!(image(), IMAGE);
    let table = cluster.k(ns, &["get", "rs"]);
    assert_eq!(
        rows(&table, 2).len(),
        2,
        "the old set is used again: {table}"
    );

    cluster.k(ns, &["rollout", "pause", "deployment/web"]);
    cluster.k(ns, &["set", "env", "deployment/web", "COLOUR=red"]);
    cluster.k(
        ns,
        &["set", "resources", "deployment/web", "--limits=memory=64Mi"],
    );
    cluster.wait_field(ns, "deployment/web", ".status.unavailableReplicas", "");
    let table = cluster.k(ns, &["get", "rs"]);
    assert_eq!(
        rows(&table, 2).len(),
        2,
        "nothing moves while paused: {table}"
    );
    cluster.k(ns, &["rollout", "resume", "deployment/web"]);
    wait_rolled_out(cluster, ns, "deployment/web");
    let table = cluster.k(ns, &["get", "rs"]);
    assert_eq!(rows(&table, 2).len(), 3, "{table}");

    let before = wait_pods(cluster, ns, "app=web", 2);
    cluster.k(ns, &["rollout", "restart", "deployment/web"]);
    wait_rolled_out(cluster, ns, "deployment/web");
    let after = wait_pods(cluster, ns, "app=web", 2);
    assert!(
        before.iter().all(|name| !after.contains(name)),
        "{before:?} {after:?}"
    );
}

fn an_orphaned_replica_set_keeps_its_pods(cluster: &Cluster, ns: &str) {
    deploy(cluster, ns, "web", 1);
    wait_rolled_out(cluster, ns, "deployment/web");
    let before = wait_pods(cluster, ns, "app=web", 1);
    cluster.k(ns, &["delete", "deployment", "web", "--cascade=orphan"]);
    eventually("the set has no owner", || {
        let owners = cluster.k(
            ns,
            &[
                "get",
                "rs",
                "-o",
                "jsonpath={.items[*].metadata.ownerReferences}",
            ],
        );
        if owners.is_empty() {
            Ok(())
        } else {
            Err(owners)
        }
    });
    assert_eq!(pods(cluster, ns, "app=web"), before);
    // Made again, it takes them back.
    deploy(cluster, ns, "web", 1);
    wait_rolled_out(cluster, ns, "deployment/web");
    assert_eq!(pods(cluster, ns, "app=web"), before);
    cluster.k(ns, &["delete", "deployment", "web", "--cascade=foreground"]);
    assert_eq!(pods(cluster, ns, "app=web"), Vec::<String>::new());
}

const INSPECTOR: &str = "apiVersion: v1
kind: ReplicationController
metadata: {name: inspector}
spec:
  replicas: 1
  selector: {app: inspector}
  template:
    metadata: {labels: {app: inspector}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: test/nginx:1, imagePullPolicy: Never}]
";

fn a_replication_controller_counts_and_replaces(cluster: &Cluster, ns: &str) {
    cluster.apply_in(ns, INSPECTOR);
    wait_pods(cluster, ns, "app=inspector", 1);
    for wanted in [5, 2] {
        let replicas = format!("--replicas={wanted}");
        cluster.k(ns, &["scale", "rc", "inspector", &replicas]);
        wait_pods(cluster, ns, "app=inspector", wanted);
        cluster.wait_field(
            ns,
            "rc/inspector",
            ".status.readyReplicas",
            &wanted.to_string(),
        );
    }
    let pods = wait_pods(cluster, ns, "app=inspector", 2);
    let left = &pods[0];
    cluster.k(ns, &["label", "pod", left, "app=looked-at", "--overwrite"]);
    let after = wait_pods(cluster, ns, "app=inspector", 2);
    assert!(!after.contains(left));
    cluster.wait_field(ns, &format!("pod/{left}"), ".metadata.ownerReferences", "");
    let table = cluster.k(ns, &["get", "rc"]);
    assert_eq!(rows(&table, 3), [["inspector", "2", "2"]]);
    cluster.k(ns, &["delete", "rc", "inspector"]);
    wait_pods(cluster, ns, "app=inspector", 0);
    assert_eq!(
        wait_pods(cluster, ns, "app=looked-at", 1),
        std::slice::from_ref(left)
    );
}

const MOCK: &str = "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: mock, labels: {app: mock, status: replaced}}
  spec:
    ports: [{protocol: TCP, port: 99, targetPort: 9949}]
    selector: {app: mock}
- apiVersion: v1
  kind: ReplicationController
  metadata: {name: mock, labels: {app: mock, status: replaced}}
  spec:
    replicas: 1
    selector: {app: mock}
    template:
      metadata: {labels: {app: mock}}
      spec:
        containers:
        - name: mock-container
          image: test/nginx:1
          imagePullPolicy: Never
          ports: [{containerPort: 9949, protocol: TCP}]
";

fn a_list_of_a_service_and_a_controller(cluster: &Cluster, ns: &str) {
    let output = cluster.kubectl_with_input(&["create", "-n", ns, "-f", "-"], MOCK);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "service/mock created\nreplicationcontroller/mock created\n"
    );
    cluster.wait_field(ns, "rc/mock", ".status.readyReplicas", "1");
    let table = cluster.k(ns, &["get", "svc,rc", "-l", "app=mock"]);
    assert!(table.contains("service/mock") && table.contains("replicationcontroller/mock"));
}

//! Workloads by kubectl: what a newcomer types to have pods kept, changed, counted and taken away.

use std::sync::Arc;

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually};

use crate::{Shared, trials};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    trials![shared;
        a_deployment_is_created_scaled_and_deleted,
        a_rollout_is_watched_undone_paused_and_restarted,
        an_orphaned_replica_set_keeps_its_pods,
        a_replication_controller_counts_and_replaces,
        a_list_of_a_service_and_a_controller,
        endpoints_follow_the_pods_of_a_service,
        a_job_runs_to_its_end_and_a_cron_job_makes_one,
        an_indexed_job_tells_each_pod_its_index,
        a_daemon_set_is_on_the_node_and_rolls_back,
        a_stateful_set_keeps_names_and_order,
        a_disruption_budget_refuses_an_eviction,
        a_priority_class_decides_a_pods_priority,
    ]
}

const IMAGE: &str = "test/nginx:1";

fn apply(cluster: &Cluster, ns: &str, yaml: &str) {
    let output = cluster.kubectl_with_input(&["apply", "-n", ns, "-f", "-"], yaml);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl apply: {said}");
}

fn k(cluster: &Cluster, ns: &str, args: &[&str]) -> String {
    let mut all = vec!["-n", ns];
    all.extend(args);
    cluster.kubectl(&all)
}

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
    let names = k(cluster, ns, &["get", "pods", "-l", selector, "-o", &output]);
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
    apply(
        cluster,
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
    k(cluster, ns, &["rollout", "status", what, "--timeout=90s"])
}

fn a_deployment_is_created_scaled_and_deleted(cluster: &Cluster, ns: &str) {
    let said = k(
        cluster,
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
    let table = k(cluster, ns, &["get", "deploy"]);
    assert_eq!(rows(&table, 4), [["web", "2/2", "2", "2"]]);
    let table = k(cluster, ns, &["get", "rs"]);
    assert_eq!(rows(&table, 4)[0][1..], ["2", "2", "2"]);
    let names = wait_pods(cluster, ns, "app=web", 2);
    assert!(
        names.iter().all(|name| name.starts_with("web-")),
        "{names:?}"
    );
    for wanted in [4, 1] {
        k(
            cluster,
            ns,
            &["scale", "deployment/web", &format!("--replicas={wanted}")],
        );
        wait_pods(cluster, ns, "app=web", wanted);
        wait_rolled_out(cluster, ns, "deployment/web");
    }
    let said = k(
        cluster,
        ns,
        &["expose", "deployment/web", "--port=80", "--type=NodePort"],
    );
    assert_eq!(said, "service/web exposed\n");
    assert_eq!(
        cluster.field(ns, "service/web", ".spec.selector"),
        r#"{"app":"web"}"#
    );
    let shown = k(cluster, ns, &["describe", "deployment", "web"]);
    assert!(shown.contains("ScalingReplicaSet"), "{shown}");
    k(cluster, ns, &["delete", "deployment", "web"]);
    wait_pods(cluster, ns, "app=web", 0);
    eventually("no set is left", || {
        let left = k(cluster, ns, &["get", "rs", "-o", "name"]);
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
    let said = k(
        cluster,
        ns,
        &["set", "image", "deployment/web", "web=example/nginx:1"],
    );
    assert_eq!(said, "deployment.apps/web image updated\n");
    wait_rolled_out(cluster, ns, "deployment/web");
    let history = k(cluster, ns, &["rollout", "history", "deployment/web"]);
    let revisions: Vec<_> = rows(&history, 1)
        .into_iter()
        .flatten()
        .filter(|first| first.parse::<u32>().is_ok())
        .collect();
    assert_eq!(revisions, ["1", "2"], "{history}");
    let second = k(
        cluster,
        ns,
        &["rollout", "history", "deployment/web", "--revision=2"],
    );
    assert!(second.contains("example/nginx:1"), "{second}");

    let said = k(cluster, ns, &["rollout", "undo", "deployment/web"]);
    assert_eq!(said, "deployment.apps/web rolled back\n");
    wait_rolled_out(cluster, ns, "deployment/web");
    assert_eq!(image(), IMAGE);
    let table = k(cluster, ns, &["get", "rs"]);
    assert_eq!(
        rows(&table, 2).len(),
        2,
        "the old set is used again: {table}"
    );

    k(cluster, ns, &["rollout", "pause", "deployment/web"]);
    k(cluster, ns, &["set", "env", "deployment/web", "COLOUR=red"]);
    k(
        cluster,
        ns,
        &["set", "resources", "deployment/web", "--limits=memory=64Mi"],
    );
    cluster.wait_field(ns, "deployment/web", ".status.unavailableReplicas", "");
    let table = k(cluster, ns, &["get", "rs"]);
    assert_eq!(
        rows(&table, 2).len(),
        2,
        "nothing moves while paused: {table}"
    );
    k(cluster, ns, &["rollout", "resume", "deployment/web"]);
    wait_rolled_out(cluster, ns, "deployment/web");
    let table = k(cluster, ns, &["get", "rs"]);
    assert_eq!(rows(&table, 2).len(), 3, "{table}");

    let before = wait_pods(cluster, ns, "app=web", 2);
    k(cluster, ns, &["rollout", "restart", "deployment/web"]);
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
    k(
        cluster,
        ns,
        &["delete", "deployment", "web", "--cascade=orphan"],
    );
    eventually("the set has no owner", || {
        let owners = k(
            cluster,
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
    k(
        cluster,
        ns,
        &["delete", "deployment", "web", "--cascade=foreground"],
    );
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
    apply(cluster, ns, INSPECTOR);
    wait_pods(cluster, ns, "app=inspector", 1);
    for wanted in [5, 2] {
        let replicas = format!("--replicas={wanted}");
        k(cluster, ns, &["scale", "rc", "inspector", &replicas]);
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
    k(
        cluster,
        ns,
        &["label", "pod", left, "app=looked-at", "--overwrite"],
    );
    let after = wait_pods(cluster, ns, "app=inspector", 2);
    assert!(!after.contains(left));
    cluster.wait_field(ns, &format!("pod/{left}"), ".metadata.ownerReferences", "");
    let table = k(cluster, ns, &["get", "rc"]);
    assert_eq!(rows(&table, 3), [["inspector", "2", "2"]]);
    k(cluster, ns, &["delete", "rc", "inspector"]);
    wait_pods(cluster, ns, "app=inspector", 0);
    assert_eq!(wait_pods(cluster, ns, "app=looked-at", 1), [left.clone()]);
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
    let table = k(cluster, ns, &["get", "svc,rc", "-l", "app=mock"]);
    assert!(table.contains("service/mock") && table.contains("replicationcontroller/mock"));
}

fn endpoints_follow_the_pods_of_a_service(cluster: &Cluster, ns: &str) {
    deploy(cluster, ns, "web", 2);
    k(cluster, ns, &["expose", "deployment/web", "--port=80"]);
    wait_rolled_out(cluster, ns, "deployment/web");
    let ready = || {
        let path = "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}";
        let selector = "kubernetes.io/service-name=web";
        let found = k(
            cluster,
            ns,
            &["get", "endpointslices", "-l", selector, "-o", path],
        );
        let mut found: Vec<_> = found.split_whitespace().map(str::to_owned).collect();
        found.sort();
        found
    };
    let path = "jsonpath={.items[*].status.podIP}";
    let mut ips: Vec<_> = k(cluster, ns, &["get", "pods", "-l", "app=web", "-o", path])
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    ips.sort();
    let is = |wanted: &[String]| {
        let found = ready();
        if found == wanted {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    };
    eventually("slices name both pods", || is(&ips));
    let endpoints = k(cluster, ns, &["get", "endpoints", "web"]);
    assert!(
        ips.iter().all(|ip| endpoints.contains(&format!("{ip}:80"))),
        "{endpoints}"
    );
    k(cluster, ns, &["scale", "deployment/web", "--replicas=0"]);
    eventually("slices name nobody", || is(&[]));
    k(cluster, ns, &["delete", "service", "web"]);
    eventually("slices and endpoints have gone", || {
        let left = k(
            cluster,
            ns,
            &["get", "endpoints,endpointslices", "-o", "name"],
        );
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

fn a_job_runs_to_its_end_and_a_cron_job_makes_one(cluster: &Cluster, ns: &str) {
    let image = "--image=test/busybox:1";
    let said = k(
        cluster,
        ns,
        &[
            "create",
            "job",
            "once",
            image,
            "--",
            "sh",
            "-c",
            "echo done",
        ],
    );
    assert_eq!(said, "job.batch/once created\n");
    k(
        cluster,
        ns,
        &[
            "wait",
            "--for=condition=complete",
            "job/once",
            "--timeout=60s",
        ],
    );
    assert_eq!(k(cluster, ns, &["logs", "job/once"]), "done\n");
    let table = k(cluster, ns, &["get", "jobs"]);
    assert_eq!(rows(&table, 3), [["once", "Complete", "1/1"]]);

    apply(
        cluster,
        ns,
        "apiVersion: batch/v1
kind: Job
metadata: {name: fails}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: 'test/busybox:1', imagePullPolicy: Never, command: [sh, -c, exit 3]}]
",
    );
    k(
        cluster,
        ns,
        &[
            "wait",
            "--for=condition=failed",
            "job/fails",
            "--timeout=60s",
        ],
    );
    let reason = ".status.conditions[?(@.type==\"Failed\")].reason";
    assert_eq!(
        cluster.field(ns, "job/fails", reason),
        "BackoffLimitExceeded"
    );
    assert_eq!(cluster.field(ns, "job/fails", ".status.failed"), "1");

    let said = k(
        cluster,
        ns,
        &[
            "create",
            "cronjob",
            "tick",
            image,
            "--schedule=@every 1s",
            "--",
            "true",
        ],
    );
    assert_eq!(said, "cronjob.batch/tick created\n");
    eventually("the CronJob's Job has succeeded", || {
        let table = k(cluster, ns, &["get", "jobs"]);
        let done = rows(&table, 2);
        let is_done = |row: &Vec<&str>| row[0].starts_with("tick-") && row[1] == "Complete";
        if done.iter().any(is_done) {
            Ok(())
        } else {
            Err(table)
        }
    });
    k(
        cluster,
        ns,
        &["create", "job", "by-hand", "--from=cronjob/tick"],
    );
    k(
        cluster,
        ns,
        &[
            "wait",
            "--for=condition=complete",
            "job/by-hand",
            "--timeout=60s",
        ],
    );
    k(cluster, ns, &["delete", "cronjob", "tick"]);
}

fn an_indexed_job_tells_each_pod_its_index(cluster: &Cluster, ns: &str) {
    apply(
        cluster,
        ns,
        "apiVersion: batch/v1
kind: Job
metadata: {name: parts}
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: c, image: 'test/busybox:1', imagePullPolicy: Never, command: [sh, -c, echo index $JOB_COMPLETION_INDEX]}
",
    );
    k(
        cluster,
        ns,
        &[
            "wait",
            "--for=condition=complete",
            "job/parts",
            "--timeout=90s",
        ],
    );
    assert_eq!(
        cluster.field(ns, "job/parts", ".status.completedIndexes"),
        "0-2"
    );
    let said = k(
        cluster,
        ns,
        &["logs", "-l", "job-name=parts", "--prefix=false"],
    );
    let mut lines: Vec<_> = said.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["index 0", "index 1", "index 2"]);
}

fn a_daemon_set_is_on_the_node_and_rolls_back(cluster: &Cluster, ns: &str) {
    let manifest = |image: &str| {
        format!(
            "apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: log}}
spec:
  selector: {{matchLabels: {{app: log}}}}
  template:
    metadata: {{labels: {{app: log}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: web, image: '{image}', imagePullPolicy: Never}}]
"
        )
    };
    apply(cluster, ns, &manifest(IMAGE));
    wait_rolled_out(cluster, ns, "ds/log");
    let table = k(cluster, ns, &["get", "ds"]);
    assert_eq!(rows(&table, 6), [["log", "1", "1", "1", "1", "1"]]);
    apply(cluster, ns, &manifest("example/nginx:1"));
    wait_rolled_out(cluster, ns, "ds/log");
    let history = k(cluster, ns, &["rollout", "history", "ds/log"]);
    assert!(
        history.contains("\n1 ") && history.contains("\n2 "),
        "{history}"
    );
    k(cluster, ns, &["rollout", "undo", "ds/log"]);
    wait_rolled_out(cluster, ns, "ds/log");
    let image = ".spec.template.spec.containers[0].image";
    assert_eq!(cluster.field(ns, "ds/log", image), IMAGE);
    k(cluster, ns, &["delete", "ds", "log"]);
    wait_pods(cluster, ns, "app=log", 0);
}

fn a_stateful_set_keeps_names_and_order(cluster: &Cluster, ns: &str) {
    let manifest = |image: &str, more: &str| {
        format!(
            "apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  replicas: 2
  serviceName: db
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: web, image: '{image}', imagePullPolicy: Never}}]
{more}"
        )
    };
    apply(cluster, ns, &manifest(IMAGE, ""));
    wait_rolled_out(cluster, ns, "sts/db");
    assert_eq!(wait_pods(cluster, ns, "app=db", 2), ["db-0", "db-1"]);
    let host = k(cluster, ns, &["exec", "db-1", "--", "hostname"]);
    assert_eq!(host, "db-1\n");
    apply(cluster, ns, &manifest("example/nginx:1", ""));
    wait_rolled_out(cluster, ns, "sts/db");
    for pod in ["pod/db-0", "pod/db-1"] {
        assert_eq!(
            cluster.field(ns, pod, ".spec.containers[0].image"),
            "example/nginx:1"
        );
    }
    k(cluster, ns, &["rollout", "undo", "sts/db"]);
    wait_rolled_out(cluster, ns, "sts/db");
    assert_eq!(
        cluster.field(ns, "pod/db-1", ".spec.containers[0].image"),
        IMAGE
    );
    k(cluster, ns, &["scale", "sts/db", "--replicas=1"]);
    assert_eq!(wait_pods(cluster, ns, "app=db", 1), ["db-0"]);
    k(cluster, ns, &["delete", "sts", "db"]);
    wait_pods(cluster, ns, "app=db", 0);
}

fn a_disruption_budget_refuses_an_eviction(cluster: &Cluster, ns: &str) {
    deploy(cluster, ns, "web", 2);
    wait_rolled_out(cluster, ns, "deployment/web");
    k(
        cluster,
        ns,
        &[
            "create",
            "pdb",
            "web",
            "--selector=app=web",
            "--min-available=2",
        ],
    );
    cluster.wait_field(ns, "pdb/web", ".status.currentHealthy", "2");
    let pods = wait_pods(cluster, ns, "app=web", 2);
    let evict = |pod: &str| {
        let path = format!("/api/v1/namespaces/{ns}/pods/{pod}/eviction");
        let body = format!(
            r#"{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{pod}","namespace":"{ns}"}}}}"#
        );
        cluster.kubectl_with_input(&["create", "--raw", &path, "-f", "-"], &body)
    };
    let refused = evict(&pods[0]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("Cannot evict pod as it would violate the pod's disruption budget."),
        "{said}"
    );
    k(
        cluster,
        ns,
        &[
            "patch",
            "pdb",
            "web",
            "-p",
            r#"{"spec":{"minAvailable":1}}"#,
        ],
    );
    cluster.wait_field(ns, "pdb/web", ".status.disruptionsAllowed", "1");
    assert!(evict(&pods[0]).status.success());
    eventually("another pod takes its place", || {
        let now = self::pods(cluster, ns, "app=web");
        if now.len() == 2 && !now.contains(&pods[0]) {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });
}

fn a_priority_class_decides_a_pods_priority(cluster: &Cluster, ns: &str) {
    let table = cluster.kubectl(&["get", "priorityclasses"]);
    for name in ["system-node-critical", "system-cluster-critical"] {
        assert!(table.contains(name), "{table}");
    }
    let class = format!("high-{ns}");
    cluster.kubectl(&["create", "priorityclass", &class, "--value=1000"]);
    apply(
        cluster,
        ns,
        &format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: high}}
spec:
  priorityClassName: {class}
  containers: [{{name: c, image: 'test/busybox:1', imagePullPolicy: Never, command: [sleep, '1']}}]
"
        ),
    );
    assert_eq!(cluster.field(ns, "pod/high", ".spec.priority"), "1000");
    cluster.kubectl(&["delete", "priorityclass", &class]);
}

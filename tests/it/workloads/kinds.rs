//! The kinds beside Deployments: Jobs, DaemonSets, StatefulSets, and what goes with them.

use wherry_tests::{Cluster, eventually};

use super::{IMAGE, deploy, pods, rows, wait_pods, wait_rolled_out};

pub(super) fn endpoints_follow_the_pods_of_a_service(cluster: &Cluster, ns: &str) {
    deploy(cluster, ns, "web", 2);
    cluster.k(ns, &["expose", "deployment/web", "--port=80"]);
    wait_rolled_out(cluster, ns, "deployment/web");
    let ready = || {
        let path = "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}";
        let selector = "kubernetes.io/service-name=web";
        let found = cluster.k(ns, &["get", "endpointslices", "-l", selector, "-o", path]);
        let mut found: Vec<_> = found.split_whitespace().map(str::to_owned).collect();
        found.sort();
        found
    };
    let path = "jsonpath={.items[*].status.podIP}";
    let mut ips: Vec<_> = cluster
        .k(ns, &["get", "pods", "-l", "app=web", "-o", path])
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
    let endpoints = cluster.k(ns, &["get", "endpoints", "web"]);
    assert!(
        ips.iter().all(|ip| endpoints.contains(&format!("{ip}:80"))),
        "{endpoints}"
    );
    cluster.k(ns, &["scale", "deployment/web", "--replicas=0"]);
    eventually("slices name nobody", || is(&[]));
    cluster.k(ns, &["delete", "service", "web"]);
    eventually("slices and endpoints have gone", || {
        let left = cluster.k(ns, &["get", "endpoints,endpointslices", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

pub(super) fn a_job_runs_to_its_end_and_a_cron_job_makes_one(cluster: &Cluster, ns: &str) {
    let image = "--image=test/busybox:1";
    let said = cluster.k(
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
    cluster.k(
        ns,
        &[
            "wait",
            "--for=condition=complete",
            "job/once",
            "--timeout=60s",
        ],
    );
    assert_eq!(cluster.k(ns, &["logs", "job/once"]), "done\n");
    let table = cluster.k(ns, &["get", "jobs"]);
    assert_eq!(rows(&table, 3), [["once", "Complete", "1/1"]]);

    cluster.apply_in(ns,
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
    cluster.k(
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

    let said = cluster.k(
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
        let table = cluster.k(ns, &["get", "jobs"]);
        let done = rows(&table, 2);
        let is_done = |row: &Vec<&str>| row[0].starts_with("tick-") && row[1] == "Complete";
        if done.iter().any(is_done) {
            Ok(())
        } else {
            Err(table)
        }
    });
    cluster.k(ns, &["create", "job", "by-hand", "--from=cronjob/tick"]);
    cluster.k(
        ns,
        &[
            "wait",
            "--for=condition=complete",
            "job/by-hand",
            "--timeout=60s",
        ],
    );
    cluster.k(ns, &["delete", "cronjob", "tick"]);
}

pub(super) fn an_indexed_job_tells_each_pod_its_index(cluster: &Cluster, ns: &str) {
    cluster.apply_in(ns,
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
    cluster.k(
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
    let said = cluster.k(ns, &["logs", "-l", "job-name=parts", "--prefix=false"]);
    let mut lines: Vec<_> = said.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["index 0", "index 1", "index 2"]);
}

pub(super) fn a_daemon_set_is_on_the_node_and_rolls_back(cluster: &Cluster, ns: &str) {
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
    cluster.apply_in(ns, &manifest(IMAGE));
    wait_rolled_out(cluster, ns, "ds/log");
    let table = cluster.k(ns, &["get", "ds"]);
    assert_eq!(rows(&table, 6), [["log", "1", "1", "1", "1", "1"]]);
    cluster.apply_in(ns, &manifest("example/nginx:1"));
    wait_rolled_out(cluster, ns, "ds/log");
    let history = cluster.k(ns, &["rollout", "history", "ds/log"]);
    assert!(
        history.contains("\n1 ") && history.contains("\n2 "),
        "{history}"
    );
    cluster.k(ns, &["rollout", "undo", "ds/log"]);
    wait_rolled_out(cluster, ns, "ds/log");
    let image = ".spec.template.spec.containers[0].image";
    assert_eq!(cluster.field(ns, "ds/log", image), IMAGE);
    cluster.k(ns, &["delete", "ds", "log"]);
    wait_pods(cluster, ns, "app=log", 0);
}

pub(super) fn a_stateful_set_keeps_names_and_order(cluster: &Cluster, ns: &str) {
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
    cluster.apply_in(ns, &manifest(IMAGE, ""));
    wait_rolled_out(cluster, ns, "sts/db");
    assert_eq!(wait_pods(cluster, ns, "app=db", 2), ["db-0", "db-1"]);
    let host = cluster.k(ns, &["exec", "db-1", "--", "hostname"]);
    assert_eq!(host, "db-1\n");
    cluster.apply_in(ns, &manifest("example/nginx:1", ""));
    wait_rolled_out(cluster, ns, "sts/db");
    for pod in ["pod/db-0", "pod/db-1"] {
        assert_eq!(
            cluster.field(ns, pod, ".spec.containers[0].image"),
            "example/nginx:1"
        );
    }
    cluster.k(ns, &["rollout", "undo", "sts/db"]);
    wait_rolled_out(cluster, ns, "sts/db");
    assert_eq!(
        cluster.field(ns, "pod/db-1", ".spec.containers[0].image"),
        IMAGE
    );
    cluster.k(ns, &["scale", "sts/db", "--replicas=1"]);
    assert_eq!(wait_pods(cluster, ns, "app=db", 1), ["db-0"]);
    cluster.k(ns, &["delete", "sts", "db"]);
    wait_pods(cluster, ns, "app=db", 0);
}

pub(super) fn a_disruption_budget_refuses_an_eviction(cluster: &Cluster, ns: &str) {
    deploy(cluster, ns, "web", 2);
    wait_rolled_out(cluster, ns, "deployment/web");
    cluster.k(
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
    cluster.k(
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

pub(super) fn a_priority_class_decides_a_pods_priority(cluster: &Cluster, ns: &str) {
    let table = cluster.kubectl(&["get", "priorityclasses"]);
    for name in ["system-node-critical", "system-cluster-critical"] {
        assert!(table.contains(name), "{table}");
    }
    let class = format!("high-{ns}");
    cluster.kubectl(&["create", "priorityclass", &class, "--value=1000"]);
    cluster.apply_in(
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

//! Every verb of kubectl that a newcomer uses, with the output people know.

use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
    sync::Arc,
};

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually};

use crate::{Shared, trials};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    trials![shared;
        apply_creates_then_changes_then_says_unchanged,
        create_refuses_what_is_there,
        get_prints_tables_and_every_other_form,
        get_watches,
        get_selects_by_label_and_field,
        describe_shows_a_pod_and_the_node,
        a_scale_is_shown_as_one,
        what_is_deprecated_is_said,
        delete_waits_for_the_grace_period_or_forces,
        label_annotate_and_patch_change_a_pod,
        edit_changes_what_the_editor_changed,
        replace_swaps_the_object,
        explain_knows_the_fields,
        api_resources_versions_and_cluster_info,
        wait_waits_for_conditions_and_deletion,
        events_are_listed,
        run_starts_a_pod,
        dry_run_changes_nothing,
        anonymous_requests_get_401,
    ]
}

/// A pod of one busybox container that runs a shell script.
pub(crate) fn shell_pod(name: &str, script: &str) -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: test/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, {script:?}]
"
    )
}

/// Applies a shell pod and waits until it is Ready.
pub(crate) fn ready_shell_pod(cluster: &Cluster, ns: &str, name: &str, script: &str) {
    cluster.apply_in(ns, &shell_pod(name, script));
    cluster.wait_ready(ns, name);
}

const CONFIG_MAP: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: red}\n";

fn apply_creates_then_changes_then_says_unchanged(cluster: &Cluster, ns: &str) {
    assert_eq!(
        cluster.apply_in(ns, CONFIG_MAP),
        "configmap/settings created\n"
    );
    assert_eq!(
        cluster.apply_in(ns, CONFIG_MAP),
        "configmap/settings unchanged\n"
    );
    let changed = CONFIG_MAP.replace("red", "blue");
    assert_eq!(
        cluster.apply_in(ns, &changed),
        "configmap/settings configured\n"
    );
    assert_eq!(
        cluster.field(ns, "configmap/settings", ".data.colour"),
        "blue"
    );
    // A key that was applied before and is not any more goes.
    let other = CONFIG_MAP.replace("colour: red", "shape: round");
    cluster.apply_in(ns, &other);
    assert_eq!(
        cluster.field(ns, "configmap/settings", ".data"),
        r#"{"shape":"round"}"#
    );
}

fn create_refuses_what_is_there(cluster: &Cluster, ns: &str) {
    let create = |input| cluster.kubectl_with_input(&["create", "-n", ns, "-f", "-"], input);
    assert_eq!(
        String::from_utf8_lossy(&create(CONFIG_MAP).stdout),
        "configmap/settings created\n"
    );
    let again = create(CONFIG_MAP);
    assert_eq!(
        String::from_utf8_lossy(&again.stderr),
        "Error from server (AlreadyExists): error when creating \"STDIN\": configmaps \"settings\" already exists\n"
    );
    cluster.kubectl(&[
        "create",
        "configmap",
        "-n",
        ns,
        "literal",
        "--from-literal=a=b",
    ]);
    cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "-n",
        ns,
        "hidden",
        "--from-literal=a=b",
    ]);
    assert_eq!(cluster.field(ns, "secret/hidden", ".data.a"), "Yg==");
}

fn get_prints_tables_and_every_other_form(cluster: &Cluster, ns: &str) {
    ready_shell_pod(cluster, ns, "web", "sleep 1000");
    let table = cluster.kubectl(&["get", "pods", "-n", ns]);
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(lines[1][..4], ["web", "1/1", "Running", "0"]);

    let wide = cluster.kubectl(&["get", "pods", "-n", ns, "-o", "wide"]);
    assert!(wide.starts_with("NAME"), "{wide}");
    assert!(
        wide.contains("IP") && wide.contains("NODE") && wide.contains("NOMINATED NODE"),
        "{wide}"
    );
    let ip = cluster.field(ns, "pod/web", ".status.podIP");
    assert!(
        !ip.is_empty() && wide.contains(&ip) && wide.contains(" node "),
        "{wide}"
    );

    let yaml = cluster.kubectl(&["get", "pod", "web", "-n", ns, "-o", "yaml"]);
    assert!(
        yaml.contains("kind: Pod\n") && yaml.contains("  phase: Running\n"),
        "{yaml}"
    );
    let json = cluster.kubectl(&["get", "pod", "web", "-n", ns, "-o", "json"]);
    let pod: serde_json::Value = serde_json::from_str(&json).expect("-o json prints JSON");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    assert_eq!(
        cluster.kubectl(&["get", "pods", "-n", ns, "-o", "name"]),
        "pod/web\n"
    );
    let path = "jsonpath={.items[*].spec.containers[*].image}";
    assert_eq!(
        cluster.kubectl(&["get", "pods", "-n", ns, "-o", path]),
        "test/busybox:1"
    );
    let columns = cluster.kubectl(&[
        "get",
        "pods",
        "-n",
        ns,
        "-o",
        "custom-columns=N:.metadata.name",
    ]);
    assert_eq!(columns, "N\nweb\n");

    let everywhere = cluster.kubectl(&["get", "pods", "-A"]);
    assert!(everywhere.starts_with("NAMESPACE"), "{everywhere}");
    assert!(
        everywhere
            .lines()
            .any(|line| line.starts_with(ns) && line.contains("web")),
        "{everywhere}"
    );
    let missing = cluster.kubectl_fails(&["get", "pod", "absent", "-n", ns]);
    assert_eq!(
        missing,
        "Error from server (NotFound): pods \"absent\" not found\n"
    );
    let unknown = cluster.kubectl_fails(&["get", "boats"]);
    assert_eq!(
        unknown,
        "error: the server doesn't have a resource type \"boats\"\n"
    );
    let nodes = cluster.kubectl(&["get", "nodes"]);
    assert!(
        nodes
            .lines()
            .any(|line| line.starts_with("node ") && line.contains("Ready")),
        "{nodes}"
    );
    let services = cluster.kubectl(&["get", "services", "-n", "default"]);
    assert!(
        services
            .lines()
            .any(|line| line.starts_with("kubernetes ") && line.contains("443/TCP")),
        "{services}"
    );
    for resource in [
        "namespaces",
        "endpoints",
        "secrets",
        "serviceaccounts",
        "leases",
        "runtimeclasses",
        "configmaps",
    ] {
        cluster.kubectl(&["get", resource, "-A"]);
    }
}

fn get_watches(cluster: &Cluster, ns: &str) {
    let mut watch = cluster
        .kubectl_command(&[
            "get",
            "configmaps",
            "-n",
            ns,
            "--watch-only",
            "--no-headers",
            "--output-watch-events",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("stdout is piped"))
        .lines()
        .map_while(Result::ok);
    // The watch says nothing when it has begun; each try makes an event that it could see.
    let mut tries = 0;
    let (sender, seen) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in lines.by_ref() {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    eventually("the watch sees a new object", || {
        tries += 1;
        cluster.kubectl(&["create", "configmap", "-n", ns, &format!("watched-{tries}")]);
        match seen.recv_timeout(std::time::Duration::from_millis(500)) {
            Ok(line) if line.starts_with("ADDED") && line.contains("watched-") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    cluster.kubectl(&["delete", "configmap", "-n", ns, &format!("watched-{tries}")]);
    eventually("the watch sees a deletion", || {
        match seen.recv_timeout(std::time::Duration::from_millis(500)) {
            Ok(line) if line.starts_with("DELETED") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    watch.kill().expect("kubectl runs until it is killed");
    watch.wait().expect("kubectl can be waited for");
    reader.join().expect("the reader does not panic");
}

fn get_selects_by_label_and_field(cluster: &Cluster, ns: &str) {
    for (name, labels) in [
        ("a", "tier=front,canary=yes"),
        ("b", "tier=front"),
        ("c", "tier=back"),
    ] {
        cluster.kubectl(&["create", "configmap", "-n", ns, name]);
        let mut args = vec!["label", "configmap", name, "-n", ns];
        args.extend(labels.split(','));
        cluster.kubectl(&args);
    }
    let get = |flags: &[&str]| {
        let mut args = vec!["get", "configmaps", "-n", ns, "-o", "name"];
        args.extend(flags);
        cluster
            .kubectl(&args)
            .replace("configmap/", "")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    for (selector, names) in [
        ("tier=front", "a b"),
        ("tier==front,canary", "a"),
        ("tier in (front, back),!canary", "b c"),
        ("tier,tier notin (front)", "c"),
        ("tier,tier!=front", "c"),
    ] {
        assert_eq!(get(&["-l", selector]), names, "-l {selector}");
    }
    assert_eq!(get(&["--field-selector", "metadata.name=b"]), "b");
    assert_eq!(
        get(&["-l", "tier", "--field-selector", "metadata.name!=b"]),
        "a c"
    );
    let refused = cluster.kubectl_fails(&[
        "get",
        "configmaps",
        "-n",
        ns,
        "--field-selector",
        "data.x=y",
    ]);
    assert!(
        refused.contains("is not a known field selector"),
        "{refused}"
    );
    assert_eq!(get(&["-l", "tier", "--chunk-size", "1"]), "a b c");
    cluster.kubectl(&["delete", "configmaps", "-n", ns, "-l", "tier=front"]);
    assert_eq!(get(&["-l", "tier"]), "c");
}

fn describe_shows_a_pod_and_the_node(cluster: &Cluster, ns: &str) {
    ready_shell_pod(cluster, ns, "shown", "sleep 1000");
    cluster.wait_event(ns, "shown", "Started");
    let pod = cluster.describe(ns, "pod/shown");
    for part in [
        "Status:",
        "Running",
        "Container ID:",
        "oci://",
        "Ready:",
        "QoS Class:",
        "Started container main",
        "Successfully assigned",
    ] {
        assert!(pod.contains(part), "no {part:?} in\n{pod}");
    }
    let node = cluster.describe("default", "node/node");
    for part in [
        "Conditions:",
        "KubeletReady",
        "Capacity:",
        "Allocatable:",
        "Container Runtime Version:",
        "Non-terminated Pods:",
    ] {
        assert!(node.contains(part), "no {part:?} in\n{node}");
    }
}

fn a_scale_is_shown_as_one(cluster: &Cluster, ns: &str) {
    let image = "--image=test/busybox:1";
    cluster.k(ns, &["create", "deployment", "idle", image, "--replicas=0"]);
    let table = cluster.k(ns, &["get", "deployment/idle", "--subresource=scale"]);
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["NAME", "DESIRED", "AVAILABLE", "AGE"]);
    assert_eq!(lines[1][..3], ["idle", "0", "0"]);
}

fn what_is_deprecated_is_said(cluster: &Cluster, ns: &str) {
    let output = cluster
        .kubectl_command(&["get", "endpoints", "-n", ns])
        .output()
        .expect("kubectl starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let warning =
        "Warning: v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";
    assert!(
        output.status.success() && said.starts_with(warning),
        "{said}"
    );
}

fn delete_waits_for_the_grace_period_or_forces(cluster: &Cluster, ns: &str) {
    // A shell that ignores the request to end is killed when the grace period is over.
    ready_shell_pod(
        cluster,
        ns,
        "stubborn",
        "trap '' TERM; while :; do sleep 1; done",
    );
    assert_eq!(
        cluster.kubectl(&["delete", "pod", "stubborn", "-n", ns, "--grace-period=1"]),
        format!("pod \"stubborn\" deleted\n")
    );
    cluster.kubectl_fails(&["get", "pod", "stubborn", "-n", ns]);
    // One that listens has time to finish, and who follows its log reads it to the end.
    let script = "trap 'echo bye; exit 0' TERM; echo here; while :; do sleep 0.1; done";
    ready_shell_pod(cluster, ns, "polite", script);
    let mut follow = cluster
        .kubectl_command(&["logs", "-f", "-n", ns, "polite"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut log = BufReader::new(follow.stdout.take().expect("stdout is piped"));
    let mut first = String::new();
    log.read_line(&mut first).expect("the log can be read");
    assert_eq!(first, "here\n");
    cluster.kubectl(&["delete", "pod", "polite", "-n", ns, "--grace-period=30"]);
    let mut rest = String::new();
    log.read_to_string(&mut rest).expect("the log can be read");
    follow.wait().expect("kubectl can be waited for");
    assert_eq!(rest, "bye\n");
    ready_shell_pod(
        cluster,
        ns,
        "gone",
        "trap '' TERM; while :; do sleep 1; done",
    );
    cluster.kubectl(&[
        "delete",
        "pod",
        "gone",
        "-n",
        ns,
        "--force",
        "--grace-period=0",
    ]);
    cluster.kubectl_fails(&["get", "pod", "gone", "-n", ns]);
}

fn label_annotate_and_patch_change_a_pod(cluster: &Cluster, ns: &str) {
    ready_shell_pod(cluster, ns, "changed", "sleep 1000");
    assert_eq!(
        cluster.kubectl(&["label", "pod", "changed", "-n", ns, "colour=red"]),
        "pod/changed labeled\n"
    );
    let refused = cluster.kubectl_fails(&["label", "pod", "changed", "-n", ns, "colour=blue"]);
    assert!(refused.contains("--overwrite"), "{refused}");
    cluster.kubectl(&[
        "label",
        "pod",
        "changed",
        "-n",
        ns,
        "colour=blue",
        "--overwrite",
    ]);
    cluster.kubectl(&["label", "pod", "changed", "-n", ns, "app-"]);
    assert_eq!(
        cluster.field(ns, "pod/changed", ".metadata.labels"),
        r#"{"colour":"blue"}"#
    );
    assert_eq!(
        cluster.kubectl(&["annotate", "pod", "changed", "-n", ns, "note=text"]),
        "pod/changed annotated\n"
    );
    assert_eq!(
        cluster.field(ns, "pod/changed", ".metadata.annotations.note"),
        "text"
    );

    for (kind, patch) in [
        ("strategic", r#"{"metadata":{"labels":{"strategic":"1"}}}"#),
        (
            "merge",
            r#"{"metadata":{"labels":{"merge":"1","strategic":null}}}"#,
        ),
        (
            "json",
            r#"[{"op":"add","path":"/metadata/labels/json","value":"1"}]"#,
        ),
    ] {
        let said = cluster.kubectl(&[
            "patch", "pod", "changed", "-n", ns, "--type", kind, "-p", patch,
        ]);
        assert_eq!(said, "pod/changed patched\n");
    }
    let labels = cluster.field(ns, "pod/changed", ".metadata.labels");
    assert!(
        labels.contains("merge") && labels.contains("json") && !labels.contains("strategic"),
        "{labels}"
    );
    let patch = r#"{"spec":{"containers":[{"name":"main","command":["other"]}]}}"#;
    let refused = cluster.kubectl_fails(&["patch", "pod", "changed", "-n", ns, "-p", patch]);
    assert!(
        refused.contains("pod updates may not change fields other than"),
        "{refused}"
    );
}

fn edit_changes_what_the_editor_changed(cluster: &Cluster, ns: &str) {
    cluster.apply_in(ns, CONFIG_MAP);
    let output = cluster
        .kubectl_command(&["edit", "configmap", "settings", "-n", ns])
        .env("KUBE_EDITOR", "sed -i s/red/green/")
        .output()
        .expect("kubectl starts");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "configmap/settings edited\n"
    );
    assert_eq!(
        cluster.field(ns, "configmap/settings", ".data.colour"),
        "green"
    );
}

fn replace_swaps_the_object(cluster: &Cluster, ns: &str) {
    cluster.apply_in(ns, CONFIG_MAP);
    let other = CONFIG_MAP.replace("colour: red", "shape: round");
    let output = cluster.kubectl_with_input(&["replace", "-n", ns, "-f", "-"], &other);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "configmap/settings replaced\n"
    );
    assert_eq!(
        cluster.field(ns, "configmap/settings", ".data"),
        r#"{"shape":"round"}"#
    );
    let absent = cluster.kubectl_with_input(
        &["replace", "-n", ns, "-f", "-"],
        &other.replace("settings", "absent"),
    );
    assert!(String::from_utf8_lossy(&absent.stderr).contains("NotFound"));
    // With --force the pod is deleted and made anew.
    ready_shell_pod(cluster, ns, "pod", "sleep 1000");
    let uid = cluster.field(ns, "pod/pod", ".metadata.uid");
    let output = cluster.kubectl_with_input(
        &["replace", "--force", "-n", ns, "-f", "-"],
        &shell_pod("pod", "sleep 2000"),
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_ne!(cluster.field(ns, "pod/pod", ".metadata.uid"), uid);
}

fn explain_knows_the_fields(cluster: &Cluster, _: &str) {
    let said = cluster.kubectl(&["explain", "pod.spec.containers.image"]);
    assert!(
        said.contains("KIND:       Pod")
            && said.contains("<string>")
            && said.contains("Container image name"),
        "{said}"
    );
    let said = cluster.kubectl(&["explain", "configmap"]);
    assert!(said.contains("binaryData"), "{said}");
    let said = cluster.kubectl(&["explain", "lease.spec", "--recursive"]);
    assert!(said.contains("renewTime"), "{said}");
    cluster.kubectl_fails(&["explain", "pod.spec.boats"]);
}

fn api_resources_versions_and_cluster_info(cluster: &Cluster, _: &str) {
    let resources = cluster.kubectl(&["api-resources"]);
    let pods = resources
        .lines()
        .find(|line| line.starts_with("pods "))
        .expect("pods are listed");
    assert_eq!(
        pods.split_whitespace().collect::<Vec<_>>(),
        ["pods", "po", "v1", "true", "Pod"]
    );
    let versions = cluster.kubectl(&["api-versions"]);
    for version in ["v1", "coordination.k8s.io/v1", "node.k8s.io/v1"] {
        assert!(versions.lines().any(|line| line == version), "{versions}");
    }
    let info = cluster.kubectl(&["cluster-info"]);
    assert!(info.contains("is running at"), "{info}");
    let output = cluster
        .kubectl_command(&["version"])
        .output()
        .expect("kubectl starts");
    assert!(String::from_utf8_lossy(&output.stdout).contains("Server Version: v1."));
    assert!(
        !String::from_utf8_lossy(&output.stderr).contains("WARNING"),
        "kubectl sees a version skew"
    );
    assert_eq!(cluster.kubectl(&["get", "--raw", "/readyz"]), "ok");
}

fn wait_waits_for_conditions_and_deletion(cluster: &Cluster, ns: &str) {
    cluster.apply_in(ns, &shell_pod("waited", "sleep 1000"));
    let said = cluster.kubectl(&[
        "wait",
        "-n",
        ns,
        "pod/waited",
        "--for=condition=Ready",
        "--timeout=60s",
    ]);
    assert_eq!(said, "pod/waited condition met\n");
    cluster.kubectl(&[
        "wait",
        "-n",
        ns,
        "pod/waited",
        "--for=jsonpath={.status.phase}=Running",
        "--timeout=60s",
    ]);
    cluster.kubectl(&["delete", "pod", "waited", "-n", ns, "--wait=false"]);
    cluster.kubectl(&[
        "wait",
        "-n",
        ns,
        "pod/waited",
        "--for=delete",
        "--timeout=60s",
    ]);
    cluster.apply_in(ns, CONFIG_MAP);
    let late = cluster.kubectl_fails(&[
        "wait",
        "-n",
        ns,
        "configmap/settings",
        "--for=jsonpath={.data.colour}=blue",
        "--timeout=1s",
    ]);
    assert!(late.contains("timed out waiting"), "{late}");
}

fn events_are_listed(cluster: &Cluster, ns: &str) {
    ready_shell_pod(cluster, ns, "eventful", "sleep 1000");
    for (reason, message) in [
        ("Scheduled", "Successfully assigned"),
        (
            "Pulled",
            "Container image \"test/busybox:1\" already present on machine",
        ),
        ("Created", "Created container"),
        ("Started", "Started container main"),
    ] {
        let said = cluster.wait_event(ns, "eventful", reason);
        assert!(said.contains(message), "{reason}: {said}");
    }
    let table = cluster.kubectl(&["get", "events", "-n", ns]);
    assert!(
        table.starts_with("LAST SEEN") && table.contains("pod/eventful"),
        "{table}"
    );
    let table = cluster.kubectl(&["events", "-n", ns, "--for", "pod/eventful"]);
    assert!(
        table.starts_with("LAST SEEN") && table.contains("Started"),
        "{table}"
    );
}

fn run_starts_a_pod(cluster: &Cluster, ns: &str) {
    let image = ["--image=test/busybox:1", "--image-pull-policy=Never"];
    let mut args = vec!["run", "ran", "-n", ns];
    args.extend(image);
    args.extend(["--command", "--", "sleep", "1000"]);
    assert_eq!(cluster.kubectl(&args), "pod/ran created\n");
    cluster.wait_ready(ns, "ran");
    // Attached, with the pod removed at the end.
    let mut args = vec!["run", "once", "-n", ns, "-i", "--rm", "--restart=Never"];
    args.extend(image);
    args.extend(["--command", "--", "cat"]);
    let output = cluster.kubectl_with_input(&args, "through the pod\n");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("through the pod"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("pod \"once\" deleted"), "{said}");
}

fn dry_run_changes_nothing(cluster: &Cluster, ns: &str) {
    let output = cluster.kubectl_with_input(
        &[
            "create",
            "-n",
            ns,
            "--dry-run=server",
            "-o",
            "yaml",
            "-f",
            "-",
        ],
        CONFIG_MAP,
    );
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("uid:") && said.contains("colour: red"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    cluster.kubectl_fails(&["get", "configmap", "settings", "-n", ns]);
    cluster.apply_in(ns, CONFIG_MAP);
    cluster.kubectl(&[
        "delete",
        "configmap",
        "settings",
        "-n",
        ns,
        "--dry-run=server",
    ]);
    cluster.kubectl(&["get", "configmap", "settings", "-n", ns]);
}

fn anonymous_requests_get_401(cluster: &Cluster, _: &str) {
    let config = std::fs::read_to_string(cluster.kubeconfig()).expect("the kubeconfig is there");
    let server = config
        .lines()
        .find_map(|line| line.trim().strip_prefix("server: "))
        .expect("it names the server");
    let args = [
        "-sk",
        "-o",
        "/dev/stdout",
        "-w",
        "\n%{http_code}",
        &format!("{server}/api/v1/pods"),
    ];
    let output = cluster
        .network
        .command("curl")
        .args(args)
        .output()
        .expect("curl starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("\n401"), "{said}");
    assert!(
        said.contains("\"message\": \"Unauthorized\"")
            || said.contains("\"message\":\"Unauthorized\""),
        "{said}"
    );
    let mut bad = cluster.kubectl_command(&["get", "pods", "--token=nonsense"]);
    bad.env("KUBECONFIG", "/dev/null")
        .args(["--server", server, "--insecure-skip-tls-verify"])
        .stdin(Stdio::null());
    let output = bad.output().expect("kubectl starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("Unauthorized") || said.contains("logged in"),
        "{said}"
    );
}

//! Pods of Wasm components, alone and beside containers.

use std::sync::Arc;

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually};

use crate::{
    Shared,
    pods::{apply, pod},
    trials,
};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    trials![shared;
        a_component_gets_arguments_and_environment,
        exit_codes_and_traps_are_told_apart,
        volumes_are_directories_of_the_component,
        sockets_are_confined_to_the_pod,
        an_http_component_serves_the_container_port,
        the_example_serves_its_page,
        the_runtime_class_names_the_runtime,
        deleting_a_component_ends_it,
    ]
}

/// A Wasm container, as an item of `containers:`.
pub(crate) fn component(name: &str, image: &str, args: &[&str]) -> String {
    format!(
        "  - {{name: {name}, image: 'test/{image}:1', imagePullPolicy: Never, args: {args:?}}}\n"
    )
}

fn logs(cluster: &Cluster, ns: &str, name: &str, container: &str) -> String {
    let output = cluster
        .kubectl_command(&["logs", "-n", ns, name, "-c", container])
        .output()
        .expect("kubectl starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn wait_log(cluster: &Cluster, ns: &str, name: &str, container: &str, part: &str) -> String {
    eventually(&format!("{part:?} in the log of {name}"), || {
        let log = logs(cluster, ns, name, container);
        if log.contains(part) {
            Ok(log)
        } else {
            Err(format!(
                "{log}\n{}",
                cluster.describe(ns, &format!("pod/{name}"))
            ))
        }
    })
}

fn a_component_gets_arguments_and_environment(cluster: &Cluster, ns: &str) {
    let line = component("main", "hello", &["one", "two"])
        .replace("args:", "env: [{name: COLOUR, value: red}], args:");
    apply(
        cluster,
        ns,
        &pod(
            "hello",
            &format!("  restartPolicy: Never\n  containers:\n{line}"),
        ),
    );
    cluster.wait_field(ns, "pod/hello", ".status.phase", "Succeeded");
    let log = logs(cluster, ns, "hello", "main");
    assert!(
        log.contains(" one two\n")
            && log.contains("env: COLOUR=red\n")
            && log.contains("this is stderr\n"),
        "{log}"
    );
    assert!(
        cluster
            .field(ns, "pod/hello", ".status.containerStatuses[0].containerID")
            .starts_with("wasm://")
    );
    assert!(!cluster.field(ns, "pod/hello", ".status.podIP").is_empty());
}

fn exit_codes_and_traps_are_told_apart(cluster: &Cluster, ns: &str) {
    let never = |name: &str, line: String| {
        pod(
            name,
            &format!("  restartPolicy: Never\n  containers:\n{line}"),
        )
    };
    apply(
        cluster,
        ns,
        &never("code", component("main", "exit-code", &["7"])),
    );
    apply(
        cluster,
        ns,
        &never("trapped", component("main", "trap", &[])),
    );
    cluster.wait_field(ns, "pod/code", ".status.phase", "Failed");
    // Preview 2 keeps only whether it is 0.
    assert_eq!(
        cluster.field(
            ns,
            "pod/code",
            ".status.containerStatuses[0].state.terminated.exitCode"
        ),
        "1"
    );
    cluster.wait_field(ns, "pod/trapped", ".status.phase", "Failed");
    let message = cluster.field(
        ns,
        "pod/trapped",
        ".status.containerStatuses[0].state.terminated.message",
    );
    assert!(message.contains("unreachable"), "{message}");
    assert!(logs(cluster, ns, "trapped", "main").contains("about to trap"));
}

fn volumes_are_directories_of_the_component(cluster: &Cluster, ns: &str) {
    cluster.kubectl(&[
        "create",
        "configmap",
        "-n",
        ns,
        "settings",
        "--from-literal=colour=red",
    ]);
    let mounts = "volumeMounts: [{name: data, mountPath: /data}, {name: settings, mountPath: /etc/settings, readOnly: true}], args:";
    let line = component("main", "files", &["wait"]).replace("args:", mounts);
    let spec = format!(
        "  volumes: [{{name: data, emptyDir: {{}}}}, {{name: settings, configMap: {{name: settings}}}}]\n  containers:\n{line}"
    );
    apply(cluster, ns, &pod("files", &spec));
    cluster.wait_ready(ns, "files");
    let exec =
        |args: &[&str]| cluster.kubectl(&[&["exec", "-n", ns, "files", "--"], args].concat());
    exec(&["write", "/data/note", "written"]);
    assert_eq!(exec(&["read", "/data/note"]), "written");
    assert_eq!(exec(&["read", "/etc/settings/colour"]), "red");
    let refuse =
        |args: &[&str]| cluster.kubectl_fails(&[&["exec", "-n", ns, "files", "--"], args].concat());
    refuse(&["write", "/etc/settings/colour", "blue"]);
    // Nothing but what the pod names is there.
    refuse(&["read", "/etc/passwd"]);
    refuse(&["read", "/data/../../../../etc/passwd"]);
}

fn sockets_are_confined_to_the_pod(cluster: &Cluster, ns: &str) {
    // Two pods bind the same port: each on its own address.
    for name in ["a", "b"] {
        let line = component("main", "tcp", &["serve", "0.0.0.0:7000", name]);
        apply(cluster, ns, &pod(name, &format!("  containers:\n{line}")));
        cluster.wait_ready(ns, name);
        wait_log(cluster, ns, name, "main", "listening on");
    }
    let ip = |name: &str| cluster.field(ns, &format!("pod/{name}"), ".status.podIP");
    let (a, b) = (ip("a"), ip("b"));
    assert_ne!(a, b);
    let exec = |args: &[&str]| cluster.kubectl(&[&["exec", "-n", ns, "a", "--"], args].concat());
    assert_eq!(exec(&["get", &format!("{b}:7000")]), "b\n");
    assert_eq!(
        exec(&["get", "127.0.0.1:7000"]),
        "a\n",
        "loopback is the pod's own"
    );
    // The other side sees the pod's address, not the node's.
    wait_log(cluster, ns, "b", "main", &format!("connection from {a}:"));
    let foreign = cluster.kubectl_fails(&[
        "exec",
        "-n",
        ns,
        "a",
        "--",
        "serve",
        &format!("{b}:7001"),
        "x",
    ]);
    assert!(foreign.contains("tcp serve"), "{foreign}");
}

fn an_http_component_serves_the_container_port(cluster: &Cluster, ns: &str) {
    let line = component("main", "http-hello", &[])
        .replace("args:", "ports: [{containerPort: 8080}], readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}, args:");
    apply(cluster, ns, &pod("http", &format!("  containers:\n{line}")));
    cluster.wait_ready(ns, "http");
    let ip = cluster.field(ns, "pod/http", ".status.podIP");
    assert_eq!(
        cluster.curl(&format!("http://{ip}:8080/boat")),
        Ok("hello from wasm: /boat\n".to_owned())
    );
    // An instance per request: one that traps costs its own request and no other.
    let _ = cluster.curl(&format!("http://{ip}:8080/trap"));
    assert_eq!(
        cluster.curl(&format!("http://{ip}:8080/after")),
        Ok("hello from wasm: /after\n".to_owned())
    );
    assert_eq!(
        cluster.field(ns, "pod/http", ".status.containerStatuses[0].restartCount"),
        "0"
    );
    wait_log(cluster, ns, "http", "main", "request for /boat");
}

fn the_example_serves_its_page(cluster: &Cluster, ns: &str) {
    let manifest = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/examples/mixed-pod/pod.yaml"
    ))
    .expect("the example is there");
    apply(cluster, ns, &manifest);
    cluster.wait_ready(ns, "mixed");
    let ip = cluster.field(ns, "pod/mixed", ".status.podIP");
    let page = || cluster.curl(&format!("http://{ip}/"));
    let first = eventually("the component's page", || {
        page().and_then(|p| if p.contains("page ") { Ok(p) } else { Err(p) })
    });
    assert!(
        first.contains("Hello from a Wasm component in pod mixed"),
        "{first}"
    );
    eventually("a newer page", || {
        page().and_then(|p| if p == first { Err(p) } else { Ok(()) })
    });
}

fn the_runtime_class_names_the_runtime(cluster: &Cluster, ns: &str) {
    let line = component("main", "sleeper", &[]);
    apply(
        cluster,
        ns,
        &pod(
            "isolated",
            &format!("  runtimeClassName: wasm-isolated\n  containers:\n{line}"),
        ),
    );
    cluster.wait_ready(ns, "isolated");
    let missing = pod(
        "odd",
        &format!("  runtimeClassName: absent\n  containers:\n{line}"),
    );
    let output = cluster.kubectl_with_input(&["apply", "-n", ns, "-f", "-"], &missing);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("RuntimeClass \"absent\" not found"), "{said}");
    // A root file system is nothing that the Wasm runtime can run, and it says so.
    let line = crate::pods::container("main", "sleep 1000");
    apply(
        cluster,
        ns,
        &pod(
            "mismatch",
            &format!("  runtimeClassName: wasm\n  containers:\n{line}"),
        ),
    );
    cluster.wait_field(
        ns,
        "pod/mismatch",
        ".status.containerStatuses[0].state.waiting.reason",
        "CreateContainerError",
    );
}

fn deleting_a_component_ends_it(cluster: &Cluster, ns: &str) {
    apply(
        cluster,
        ns,
        &pod(
            "gone",
            &format!("  containers:\n{}", component("main", "ticker", &["50"])),
        ),
    );
    cluster.wait_ready(ns, "gone");
    let ip = cluster.field(ns, "pod/gone", ".status.podIP");
    cluster.kubectl(&["delete", "pod", "gone", "-n", ns]);
    let output = cluster
        .network
        .command("ip")
        .args(["-brief", "addr"])
        .output()
        .expect("ip starts");
    let addresses = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!addresses.contains(&format!("{ip}/")), "{addresses}");
}

//! Pods beyond the table of behaviours: versions of a ConfigMap, static pods; and manifests for other tests.

use std::sync::Arc;

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually};

use crate::{Shared, kubectl::shell_pod, trials};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    trials![shared;
        config_map_volumes_follow_changes_at_once,
        a_static_pod_runs_and_is_mirrored,
    ]
}

/// A pod from the lines below `spec:`.
pub(crate) fn pod(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}"
    )
}

/// A busybox container that runs a script, as an item of `containers:`.
pub(crate) fn container(name: &str, script: &str) -> String {
    format!(
        "  - {{name: {name}, image: 'test/busybox:1', imagePullPolicy: Never, command: [sh, -c, {script:?}]}}\n"
    )
}

pub(crate) fn apply(cluster: &Cluster, ns: &str, yaml: &str) {
    cluster.apply_in(ns, yaml);
}

fn config_map_volumes_follow_changes_at_once(cluster: &Cluster, ns: &str) {
    cluster.kubectl(&[
        "create",
        "configmap",
        "-n",
        ns,
        "settings",
        "--from-literal=a=1",
        "--from-literal=b=1",
    ]);
    let volumes = "\n  volumes: [{name: v, configMap: {name: settings}}]\n  containers:";
    // Never does one key show the new value and the other the old one in one version of the directory. A version that
    // goes while it is read says nothing.
    let script = "while :; do d=$(readlink /v/..data); a=$(cat /v/$d/a 2>/dev/null) && b=$(cat /v/$d/b 2>/dev/null) && [ \"$a\" != \"$b\" ] && echo torn; sleep 0.01; done";
    let yaml = shell_pod("follows", script)
        .replace("\n  containers:", volumes)
        .replace(
            "\n    image:",
            "\n    volumeMounts: [{name: v, mountPath: /v}]\n    image:",
        );
    apply(cluster, ns, &yaml);
    cluster.wait_ready(ns, "follows");
    for n in 2..5 {
        let patch = format!(r#"{{"data":{{"a":"{n}","b":"{n}"}}}}"#);
        cluster.kubectl(&["patch", "configmap", "settings", "-n", ns, "-p", &patch]);
        eventually("the file follows", || {
            let value = cluster.kubectl(&["exec", "-n", ns, "follows", "--", "cat", "/v/a"]);
            if value == n.to_string() {
                Ok(())
            } else {
                Err(value)
            }
        });
    }
    let log = cluster.kubectl(&["logs", "-n", ns, "follows"]);
    assert!(!log.contains("torn"), "{log}");
}

fn a_static_pod_runs_and_is_mirrored(cluster: &Cluster, _: &str) {
    let arguments =
        std::fs::read(format!("/proc/{}/cmdline", cluster.pid())).expect("the node runs");
    let arguments = String::from_utf8_lossy(&arguments).into_owned();
    let mut words = arguments
        .split('\0')
        .skip_while(|word| *word != "--pod-manifest-path");
    let dir = std::path::PathBuf::from(
        words
            .nth(1)
            .expect("the node was given a manifest directory"),
    );
    let file = dir.join("fixed.yaml");
    std::fs::write(&file, shell_pod("fixed", "sleep 1000")).expect("a manifest can be written");
    cluster.wait_ready("default", "fixed-node");
    let annotations = cluster.field("default", "pod/fixed-node", ".metadata.annotations");
    assert!(
        annotations.contains("kubernetes.io/config.mirror") && annotations.contains("\"file\""),
        "{annotations}"
    );
    // Deleting the mirror does not end the pod: its mirror comes back, the container is the same.
    let container = cluster.field(
        "default",
        "pod/fixed-node",
        ".status.containerStatuses[0].containerID",
    );
    let uid = cluster.field("default", "pod/fixed-node", ".metadata.uid");
    cluster.kubectl(&[
        "delete",
        "pod",
        "fixed-node",
        "-n",
        "default",
        "--wait=false",
    ]);
    eventually("the mirror comes back", || {
        let now = cluster.field("default", "pod/fixed-node", ".metadata.uid");
        if now.is_empty() || now == uid {
            Err(now)
        } else {
            Ok(())
        }
    });
    cluster.wait_field(
        "default",
        "pod/fixed-node",
        ".status.containerStatuses[0].containerID",
        &container,
    );
    std::fs::remove_file(&file).expect("the manifest is there");
    eventually("the pod goes with its manifest", || {
        let phase = cluster.field("default", "pod/fixed-node", ".status.phase");
        if phase.is_empty() { Ok(()) } else { Err(phase) }
    });
}

//! Plugins as probes: installed by a `Plugin` object, named by `exec.command`, confined to what is granted.

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
        a_plugin_decides_readiness_and_its_absence_decides_nothing,
        a_plugin_that_traps_is_told_of_and_its_failure_policy_decides,
        what_is_not_granted_is_refused_and_said,
        plugins_that_are_none_are_refused_by_reason,
        a_builtin_plugin_is_given_limits_and_one_that_is_none_is_not,
        a_period_that_is_none_is_told_of,
        a_redis_is_pinged_with_the_password_of_a_secret,
        probes_are_combined_and_files_have_an_age,
        a_probe_reads_its_containers_log_and_usage_where_granted,
    ]
}

/// A Plugin; `more` is added to its spec, and its names are the test's own.
fn plugin(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: wherry.dev/v1alpha1\nkind: Plugin\nmetadata: {{name: {name}}}\n\
         spec:\n  image: 'test/{image}:1'\n{more}"
    )
}

/// A redis whose readiness is asked every half second, by a command.
fn redis(name: &str, command: &[&str]) -> String {
    pod(
        name,
        &format!(
            "  containers:\n  - name: main\n    image: 'test/redis:1'\n    imagePullPolicy: Never\n    \
             ports: [{{name: redis, containerPort: 6379}}]\n    \
             readinessProbe:\n      exec: {{command: {command:?}}}\n      timeoutSeconds: 2\n"
        ),
    )
    .replace(
        "metadata: {",
        "metadata: {annotations: {wherry.dev/probe-period-ms: '500'}, ",
    )
}

fn a_redis_is_pinged_with_the_password_of_a_secret(cluster: &Cluster, ns: &str) {
    let locked = |name: &str, more: &[&str]| {
        let command = [&["wasm:redis-ping", "--port=redis"], more].concat();
        redis(name, &command).replace(
            "    ports:",
            "    command: [redis-server, --requirepass, sesame]\n    ports:",
        )
    };
    apply(cluster, ns, &locked("outside", &[]));
    let event = cluster.wait_event(ns, "outside", "Unhealthy");
    assert!(event.contains("redis answered -NOAUTH"), "{event}");
    let secret = "--from-literal=password=sesame";
    cluster.kubectl(&["-n", ns, "create", "secret", "generic", "db", secret]);
    let inside = locked("inside", &["--password-secret=db"]);
    apply(cluster, ns, &inside);
    let event = cluster.wait_event(ns, "inside", "Unhealthy");
    assert!(
        event.contains("the pod does not refer to secret db"),
        "{event}"
    );
    let shown = "  volumes: [{name: password, secret: {secretName: db}}]\n";
    apply(
        cluster,
        ns,
        &(inside.replace("name: inside", "name: let-in") + shown),
    );
    cluster.wait_ready(ns, "let-in");
}

fn probes_are_combined_and_files_have_an_age(cluster: &Cluster, ns: &str) {
    let fresh = |name: &str, path: &str| {
        let file = format!("--path={path}");
        let command = [
            "wasm:all-of",
            "wasm:any-of",
            "(",
            "wasm:tcp-socket",
            "--port=6379",
            ";",
            "wasm:redis-ping",
            "--port=redis",
            ")",
            ";",
            "redis-cli",
            "ping",
            ";",
            "wasm:file-age",
            "--volume=data",
            &file,
            "--max-age=60",
        ];
        redis(name, &command).replace(
            "    ports:",
            "    volumeMounts: [{name: data, mountPath: /data}]\n    ports:",
        ) + "  - name: beat\n    image: 'test/busybox:1'\n    imagePullPolicy: Never\n    \
             command: [sh, -c, 'while :; do touch /data/beat; sleep 1; done']\n    \
             volumeMounts: [{name: data, mountPath: /data}]\n  volumes: [{name: data, emptyDir: {}}]\n"
    };
    apply(cluster, ns, &fresh("beats", "beat"));
    cluster.wait_ready(ns, "beats");
    apply(cluster, ns, &fresh("silent", "absent"));
    let expected =
        "wasm:file-age --volume=data --path=absent --max-age=60: data/absent is not there";
    // Before redis listens, something else is said.
    eventually("the file's absence is told of", || {
        let event = cluster.wait_event(ns, "silent", "Unhealthy");
        event.contains(expected).then_some(()).ok_or(event)
    });
}

fn a_probe_reads_its_containers_log_and_usage_where_granted(cluster: &Cluster, ns: &str) {
    let name = format!("{ns}-log");
    cluster.apply(&plugin(&name, "log-probe", ""));
    let object = format!("plugin/{name}");
    cluster.wait_field("", &object, &of_node(cluster, "reason"), "GrantsMissing");
    let message = cluster.field("", &object, &of_node(cluster, "message"));
    assert!(message.ends_with("needs the grant logs"), "{message}");
    cluster.apply(&plugin(&name, "log-probe", "  grants: {logs: true}\n"));
    let probe = format!("wasm:{name}");
    // A container of the OCI runtime and a component, whose logs and counters are kept by different hands.
    let says = |pod_name: &str, command: &str| {
        let container = format!(
            "  containers:\n  - name: main\n    image: 'test/busybox:1'\n    imagePullPolicy: Never\n    \
             command: [sh, -c, {command:?}]\n    readinessProbe: {{exec: {{command: [{probe:?}, '--lines=2']}}}}\n"
        );
        let often = "metadata: {annotations: {wherry.dev/probe-period-ms: '500'}, ";
        pod(pod_name, &container).replace("metadata: {", often)
    };
    apply(
        cluster,
        ns,
        &says("well", "echo starting; echo ready; sleep 100000"),
    );
    cluster.wait_ready(ns, "well");
    apply(
        cluster,
        ns,
        &says("ill", "echo ready; echo 'ERROR: gone'; sleep 100000"),
    );
    eventually("the log's end is told of", || {
        let event = cluster.wait_event(ns, "ill", "Unhealthy");
        let is_told = event.contains("Readiness probe failed: ready|ERROR: gone");
        is_told.then_some(()).ok_or(event)
    });
    let uses = "  containers:\n  - name: main\n    image: 'test/sleeper:1'\n    imagePullPolicy: Never\n    \
                readinessProbe: {exec: {command: ["
        .to_owned()
        + &format!("{probe:?}, '--usage']}}}}\n");
    apply(cluster, ns, &pod("used", &uses));
    cluster.wait_ready(ns, "used");
    cluster.kubectl(&["delete", "plugin", &name]);
}

fn of_node(cluster: &Cluster, field: &str) -> String {
    let node = cluster.field("", "nodes", ".items[0].metadata.name");
    format!(".status.nodes.{node}.{field}")
}

fn a_plugin_decides_readiness_and_its_absence_decides_nothing(cluster: &Cluster, ns: &str) {
    let name = format!("{ns}-ping");
    let probe = format!("wasm:{name}");
    apply(cluster, ns, &redis("redis", &[&probe, "tcp", "", "6379"]));
    let event = cluster.wait_event(ns, "redis", "Unhealthy");
    assert!(event.contains("is not installed on this node"), "{event}");
    cluster.apply(&plugin(&name, "probe-plugin", "  grants: {exec: true}\n"));
    cluster.wait_ready(ns, "redis");
    let object = format!("plugin/{name}");
    cluster.wait_field("", &object, &of_node(cluster, "ready"), "true");
    let digest = cluster.field("", &object, &of_node(cluster, "digest"));
    assert!(digest.starts_with("sha256:"), "{digest}");
    let node = cluster.field("", "nodes", ".items[0].metadata.name");
    let path = format!("/api/v1/nodes/{node}/proxy/metrics");
    let metrics = cluster.kubectl(&["get", "--raw", &path]);
    let bucket =
        format!("wherry_plugin_call_duration_seconds_bucket{{plugin=\"{name}\",le=\"+Inf\"}}");
    assert!(metrics.contains(&bucket), "{metrics}");
    // Commands run in the container, as the plugin was granted.
    apply(
        cluster,
        ns,
        &redis("exec", &[&probe, "exec", "redis-cli", "ping"]),
    );
    cluster.wait_ready(ns, "exec");
    // What it says is the pod's: a failure takes readiness away.
    apply(cluster, ns, &redis("fails", &[&probe, "fail", "too slow"]));
    let event = cluster.wait_event(ns, "fails", "Unhealthy");
    assert!(
        event.contains("Readiness probe failed: too slow"),
        "{event}"
    );
    cluster.kubectl(&["delete", "plugin", &name]);
}

const READY: &str = ".status.conditions[?(@.type==\"Ready\")]";

fn a_builtin_plugin_is_given_limits_and_one_that_is_none_is_not(cluster: &Cluster, ns: &str) {
    let object = |name: &str, spec: &str| {
        format!(
            "apiVersion: wherry.dev/v1alpha1\nkind: Plugin\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        )
    };
    // Nobody else here has anything to do with rbd.
    cluster.apply(&object("rbd", "{limits: {instances: 2}}"));
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "plugin/rbd",
        "--timeout=60s",
    ]);
    let reason = cluster.field("", "plugin/rbd", &format!("{READY}.reason"));
    assert_eq!(reason, "Installed");
    cluster.kubectl(&["delete", "plugin", "rbd"]);
    let name = format!("{ns}-none");
    let plugin = format!("plugin/{name}");
    cluster.apply(&object(&name, "{limits: {instances: 2}}"));
    cluster.wait_field("", &plugin, &format!("{READY}.reason"), "NotBuiltIn");
    // Who asks for it is told why it is not there.
    apply(cluster, ns, &redis("asks", &[&format!("wasm:{name}")]));
    let event = cluster.wait_event(ns, "asks", "Unhealthy");
    assert!(
        event.contains(&format!("no plugin called {name} is built in")),
        "{event}"
    );
    cluster.kubectl(&["delete", "plugin", &name]);
    let zeros = "0".repeat(64);
    let pinned = object(&name, &format!("{{digest: 'sha256:{zeros}'}}"));
    let refused = cluster.kubectl_with_input(&["apply", "-f", "-"], &pinned);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        said.contains("spec.digest: Forbidden: may not be set without image"),
        "{said}"
    );
}

fn a_period_that_is_none_is_told_of(cluster: &Cluster, ns: &str) {
    let odd = redis("odd", &["true"]).replace("'500'", "'often'");
    apply(cluster, ns, &odd);
    let event = cluster.wait_event(ns, "odd", "InvalidAnnotation");
    assert!(
        event.contains("wherry.dev/probe-period-ms: Invalid value: \"often\""),
        "{event}"
    );
    cluster.wait_ready(ns, "odd");
}

fn a_plugin_that_traps_is_told_of_and_its_failure_policy_decides(cluster: &Cluster, ns: &str) {
    let name = format!("{ns}-traps");
    cluster.apply(&plugin(
        &name,
        "probe-plugin",
        "  grants: {exec: true}\n  failurePolicy: Fail\n",
    ));
    let object = format!("plugin/{name}");
    cluster.wait_field("", &object, &of_node(cluster, "ready"), "true");
    let probe = format!("wasm:{name}");
    apply(cluster, ns, &redis("bad", &[&probe, "trap"]));
    apply(cluster, ns, &redis("good", &[&probe, "tcp", "", "6379"]));
    let event = cluster.wait_event(ns, "bad", "Unhealthy");
    assert!(
        event.contains(&format!("Readiness probe failed: plugin {name}: trap:")),
        "{event}"
    );
    cluster.wait_ready(ns, "good");
    // The fifth in a row sets the input apart.
    cluster.wait_field("", &object, &of_node(cluster, "setApart"), "1");
    let last = cluster.field("", &object, &of_node(cluster, "lastError"));
    assert!(last.contains("trap"), "{last}");
    cluster.kubectl(&["delete", "plugin", &name]);
}

fn what_is_not_granted_is_refused_and_said(cluster: &Cluster, ns: &str) {
    let name = format!("{ns}-greedy");
    cluster.apply(&plugin(&name, "probe-plugin", ""));
    let object = format!("plugin/{name}");
    let message = format!("plugin {name} imports wherry:plugin/exec@0.1.2: needs the grant exec");
    cluster.wait_field("", &object, &of_node(cluster, "message"), &message);
    // The grant makes it good, and other addresses stay out of reach.
    cluster.apply(&plugin(&name, "probe-plugin", "  grants: {exec: true}\n"));
    cluster.wait_field("", &object, &of_node(cluster, "ready"), "true");
    let probe = format!("wasm:{name}");
    apply(
        cluster,
        ns,
        &redis("away", &[&probe, "tcp", "127.0.0.1", "10250"]),
    );
    let event = cluster.wait_event(ns, "away", "Unhealthy");
    assert!(
        event.contains("not granted: 127.0.0.1:10250 needs the grant hosts"),
        "{event}"
    );
    cluster.kubectl(&["delete", "plugin", &name]);
}

fn plugins_that_are_none_are_refused_by_reason(cluster: &Cluster, ns: &str) {
    for (suffix, image, more, expected) in [
        (
            "world",
            "hello",
            "",
            "but not the function `check` of the world `wherry:plugin/probe`",
        ),
        ("rootfs", "redis", "", "holds no Wasm"),
        (
            "digest",
            "probe-plugin",
            "  digest: 'sha256:0000000000000000000000000000000000000000000000000000000000000000'\n",
            "probe-plugin",
        ),
    ] {
        let name = format!("{ns}-{suffix}");
        cluster.apply(&plugin(&name, image, more));
        let object = format!("plugin/{name}");
        cluster.wait_field("", &object, &of_node(cluster, "ready"), "false");
        let message = cluster.field("", &object, &of_node(cluster, "message"));
        assert!(message.contains(expected), "{suffix}: {message}");
        cluster.kubectl(&["delete", "plugin", &name]);
    }
    let refused = cluster.kubectl_with_input(
        &["apply", "-f", "-"],
        &plugin("x", "probe-plugin", "  limits: {instances: 0}\n"),
    );
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("spec.limits.instances"), "{said}");
}

//! Services and the cluster's names: from the node, from containers, from components and from outside.

use std::{process::Command, sync::Arc};

use libtest_mimic::Trial;
use wherry_tests::{Cluster, Network};

use crate::{
    Shared,
    asking::until,
    pods::{apply, container, pod},
    trials,
    wasm::component,
};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    trials![shared;
        a_service_is_reached_from_everywhere_and_leaves_with_its_endpoint,
        names_resolve_in_containers_and_components,
        a_pod_calls_the_api_by_its_service,
        a_host_port_leads_to_its_pod,
    ]
}

/// A web server that says its name.
fn server(cluster: &Cluster, ns: &str, name: &str, ports: &str) {
    let script = format!(
        "mkdir -p /tmp/www; echo {name} > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"
    );
    let line = container("main", &script).replace(
        "command:",
        &format!("ports: [{ports}], readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}, command:"),
    );
    let manifest = pod(name, &format!("  containers:\n{line}"))
        .replace("metadata: {name:", "metadata: {labels: {app: web}, name:");
    apply(cluster, ns, &manifest);
    cluster.wait_ready(ns, name);
}

fn exec(cluster: &Cluster, ns: &str, pod: &str, command: &[&str]) -> Command {
    let words = [&["exec", "-n", ns, pod, "--"], command].concat();
    cluster.kubectl_command(&words)
}

fn a_service_is_reached_from_everywhere_and_leaves_with_its_endpoint(cluster: &Cluster, ns: &str) {
    server(cluster, ns, "one", "{containerPort: 8080}");
    cluster.kubectl(&[
        "expose",
        "pod",
        "one",
        "-n",
        ns,
        "--name=web",
        "--port=80",
        "--target-port=8080",
        "--selector=app=web",
        "--type=NodePort",
    ]);
    apply(
        cluster,
        ns,
        &pod(
            "box",
            &format!("  containers:\n{}", container("main", "sleep 1000")),
        ),
    );
    let tool = component("main", "toolbox", &["sleep", "1000"]);
    apply(cluster, ns, &pod("tool", &format!("  containers:\n{tool}")));
    cluster.wait_ready(ns, "box");
    cluster.wait_ready(ns, "tool");
    let ip = cluster.field(ns, "service/web", ".spec.clusterIP");
    let port = cluster.field(ns, "service/web", ".spec.ports[0].nodePort");
    let url = format!("http://{ip}/");
    let curl = |url: &str, mut command: Command| {
        command.args(["-sS", "--max-time", "5", url]);
        command
    };
    until("the Service from the node", "one", || {
        curl(&url, cluster.network.command("curl"))
    });
    until("the Service from a container", "one", || {
        exec(cluster, ns, "box", &["wget", "-q", "-O", "-", &url])
    });
    until("the Service from its own endpoint", "one", || {
        exec(cluster, ns, "one", &["wget", "-q", "-O", "-", &url])
    });
    until("the Service from a component", "one", || {
        exec(cluster, ns, "tool", &["wget", "-O", "-", &url])
    });
    let outside = format!("http://{}:{port}/", Network::NODE_IP);
    until("the node's port from outside", "one", || {
        curl(&outside, cluster.network.outside_command("curl"))
    });

    // Of two, one that goes is not met any more; of none, one is refused.
    server(cluster, ns, "two", "{containerPort: 8080}");
    until("the other endpoint", "two", || {
        curl(&url, cluster.network.command("curl"))
    });
    cluster.kubectl(&["delete", "pod", "-n", ns, "one"]);
    for _ in 0..20 {
        assert_eq!(cluster.curl(&url), Ok("two\n".to_owned()));
    }
    cluster.kubectl(&["delete", "pod", "-n", ns, "two"]);
    until("a refusal", "Couldn't connect", || {
        curl(&url, cluster.network.command("curl"))
    });
}

fn names_resolve_in_containers_and_components(cluster: &Cluster, ns: &str) {
    server(cluster, ns, "one", "{containerPort: 8080}");
    cluster.kubectl(&[
        "expose",
        "pod",
        "one",
        "-n",
        ns,
        "--name=web",
        "--port=80",
        "--target-port=8080",
        "--selector=app=web",
    ]);
    cluster.kubectl(&[
        "create",
        "service",
        "externalname",
        "far",
        "-n",
        ns,
        "--external-name=kubernetes.default.svc.cluster.local",
    ]);
    let both = [
        container("box", "sleep 1000"),
        component("tool", "toolbox", &["sleep", "1000"]),
    ];
    apply(
        cluster,
        ns,
        &pod("both", &format!("  containers:\n{}", both.concat())),
    );
    apply(
        cluster,
        ns,
        &pod(
            "tool",
            &format!(
                "  containers:\n{}",
                component("tool", "toolbox", &["sleep", "1000"])
            ),
        ),
    );
    cluster.wait_ready(ns, "both");
    cluster.wait_ready(ns, "tool");
    let ip = cluster.field(ns, "service/web", ".spec.clusterIP");
    let api = cluster.field("default", "service/kubernetes", ".spec.clusterIP");
    let full = format!("web.{ns}.svc.cluster.local");
    for (pod, container) in [("both", "box"), ("both", "tool"), ("tool", "tool")] {
        for (name, want) in [
            (full.as_str(), &ip),
            ("kubernetes.default.svc.cluster.local", &api),
        ] {
            until(&format!("{name} in {container} of {pod}"), want, || {
                let words = [
                    "exec", "-n", ns, pod, "-c", container, "--", "nslookup", name,
                ];
                cluster.kubectl_command(&words)
            });
        }
        // By the shortest name, which the search list completes.
        until(&format!("web from {container} of {pod}"), "one", || {
            let words = [
                "exec",
                "-n",
                ns,
                pod,
                "-c",
                container,
                "--",
                "wget",
                "-O",
                "-",
                "http://web/",
            ];
            cluster.kubectl_command(&words)
        });
    }
    let far = format!("far.{ns}.svc.cluster.local");
    until("an ExternalName", &api, || {
        exec(cluster, ns, "both", &["nslookup", &far])
    });
}

fn a_pod_calls_the_api_by_its_service(cluster: &Cluster, ns: &str) {
    let script = "sleep 1000";
    apply(
        cluster,
        ns,
        &pod(
            "box",
            &format!("  containers:\n{}", container("main", script)),
        ),
    );
    cluster.wait_ready(ns, "box");
    // No TLS client is in the image: what answers plain HTTP with a complaint about TLS is the API server, or its
    // connection is accepted at the least.
    until("a connection to the API server", "connected", || {
        exec(
            cluster,
            ns,
            "box",
            &[
                "sh",
                "-c",
                "nc -w 2 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo connected",
            ],
        )
    });
    // The same way with the pod's own token, from its network.
    let token = cluster.kubectl(&[
        "exec",
        "-n",
        ns,
        "box",
        "--",
        "cat",
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
    ]);
    let api = cluster.field("default", "service/kubernetes", ".spec.clusterIP");
    let header = format!("Authorization: Bearer {}", token.trim());
    let url = format!("https://{api}/api/v1/namespaces/{ns}/pods");
    until(
        "an answer to the pod's account",
        &format!("system:serviceaccount:{ns}:default"),
        || {
            let mut command = cluster.network.command("curl");
            command.args(["-sSk", "--max-time", "5", "-H", &header, &url]);
            command
        },
    );
}

fn a_host_port_leads_to_its_pod(cluster: &Cluster, ns: &str) {
    server(cluster, ns, "one", "{containerPort: 8080, hostPort: 18091}");
    let url = format!("http://{}:18091/", Network::NODE_IP);
    until("the port from outside", "one", || {
        let mut command = cluster.network.outside_command("curl");
        command.args(["-sS", "--max-time", "5", &url]);
        command
    });
    // By force: the API server forgets it at once, and the next one finds it still ending.
    cluster.kubectl(&["delete", "pod", "-n", ns, "one", "--force"]);
    server(cluster, ns, "two", "{containerPort: 8080, hostPort: 18091}");
    until("the port from outside again", "two", || {
        let mut command = cluster.network.outside_command("curl");
        command.args(["-sS", "--max-time", "5", &url]);
        command
    });
    cluster.kubectl(&["delete", "pod", "-n", ns, "two"]);
    until("a refusal", "Couldn't connect", || {
        let mut command = cluster.network.outside_command("curl");
        command.args(["-sS", "--max-time", "5", &url]);
        command
    });
}

//! Who is let in, what they are allowed to take, and what is written down of it.

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Stdio},
    sync::Arc,
};

use libtest_mimic::Trial;
use wherry_tests::{Cluster, eventually, wherry};

use crate::{Shared, own_trials, trials};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    let mut all = trials![shared;
        a_quota_holds_and_what_goes_makes_room,
        a_namespace_refuses_pods_below_its_security_level,
    ];
    all.extend(own_trials![
        nothing_listens_that_does_not_ask_who_is_there,
        controllers_run_for_any_api_server,
    ]);
    all
}

fn a_quota_holds_and_what_goes_makes_room(cluster: &Cluster, ns: &str) {
    cluster.k(
        ns,
        &[
            "create",
            "quota",
            "few",
            "--hard=pods=2,count/configmaps=10",
        ],
    );
    cluster.wait_field(ns, "quota/few", ".status.hard.pods", "2");
    cluster.k(
        ns,
        &[
            "create",
            "deployment",
            "web",
            "--image=test/busybox:1",
            "--replicas=4",
            "--",
            "sleep",
            "1000",
        ],
    );
    cluster.wait_field(ns, "quota/few", ".status.used.pods", "2");
    eventually("the third pod is refused", || {
        let events = cluster.k(ns, &["get", "events", "-o", "jsonpath={.items[*].message}"]);
        let wanted = "exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2";
        if events.contains(wanted) {
            Ok(())
        } else {
            Err(events)
        }
    });
    let pods = || cluster.k(ns, &["get", "pods", "-o", "name"]);
    let before: BTreeSet<String> = pods().lines().map(str::to_owned).collect();
    assert_eq!(before.len(), 2);
    let gone = before.first().expect("a pod");
    cluster.k(ns, &["delete", gone, "--now"]);
    eventually("another pod takes its place", || {
        let now: BTreeSet<String> = pods().lines().map(str::to_owned).collect();
        if now.len() == 2 && !now.contains(gone) {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });
    let shown = cluster.describe(ns, "quota/few");
    assert!(
        shown.contains("pods") && shown.contains("count/configmaps"),
        "{shown}"
    );
}

fn a_namespace_refuses_pods_below_its_security_level(cluster: &Cluster, ns: &str) {
    let level = "pod-security.kubernetes.io/enforce=baseline";
    cluster.kubectl(&[
        "label",
        "ns",
        ns,
        level,
        "pod-security.kubernetes.io/warn=restricted",
    ]);
    let privileged = r#"--overrides={"spec":{"hostNetwork":true,"containers":[{"name":"a","image":"x","securityContext":{"privileged":true}}]}}"#;
    let refused = cluster.kubectl_fails(&["-n", ns, "run", "a", "--image=x", privileged]);
    let wanted = "violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true), privileged (container \
                  \"a\" must not set securityContext.privileged=true)";
    assert!(refused.contains(wanted), "{refused}");
    let made = cluster
        .kubectl_command(&["-n", ns, "run", "b", "--image=x"])
        .output()
        .expect("kubectl starts");
    assert!(made.status.success());
    let warned = String::from_utf8_lossy(&made.stderr);
    assert!(
        warned.contains("would violate PodSecurity \"restricted:latest\""),
        "{warned}"
    );
}

/// What one request is answered, by its HTTP code; `None` is no HTTP at all.
fn code(cluster: &Cluster, url: &str) -> Option<u16> {
    let output = cluster
        .network
        .command("curl")
        .args([
            "-sk",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--max-time",
            "5",
            url,
        ])
        .output()
        .expect("curl starts");
    String::from_utf8_lossy(&output.stdout)
        .parse()
        .ok()
        .filter(|code| *code != 0)
}

fn nothing_listens_that_does_not_ask_who_is_there() {
    let files = tempfile::tempdir().expect("a temporary directory");
    let (policy, log) = (
        files.path().join("policy.yaml"),
        files.path().join("audit.log"),
    );
    let rules =
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata, verbs: [create]}]";
    fs::write(&policy, rules).expect("the policy is written");
    let cluster = Cluster::start_with(&[
        "--audit-policy-file",
        &policy.to_string_lossy(),
        "--audit-log-path",
        &log.to_string_lossy(),
    ]);
    let listeners = cluster
        .network
        .command("ss")
        .args(["-Hltn"])
        .output()
        .expect("ss starts");
    let listeners = String::from_utf8_lossy(&listeners.stdout).into_owned();
    let addresses: BTreeSet<&str> = listeners
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3))
        .collect();
    assert!(addresses.len() >= 2, "{listeners}");
    for address in addresses {
        // Names are asked for by everybody, and DNS knows nobody.
        if address.ends_with(":53") {
            continue;
        }
        let address = address
            .replace("0.0.0.0", "127.0.0.1")
            .replace('*', "127.0.0.1");
        assert!(
            code(&cluster, &format!("http://{address}/healthz")).is_none_or(|code| code == 400),
            "{address}: no TLS"
        );
        assert_eq!(
            code(&cluster, &format!("https://{address}/healthz")),
            Some(200),
            "{address}"
        );
        for path in [
            "/",
            "/pods",
            "/metrics",
            "/api",
            "/api/v1/secrets",
            "/stats/summary",
            "/configz",
            "/debug/pprof/",
        ] {
            let answered = code(&cluster, &format!("https://{address}{path}"));
            assert!(
                matches!(answered, Some(401 | 403)),
                "{address}{path}: {answered:?}"
            );
        }
    }
    cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "hidden",
        "--from-literal=a=hunter2",
    ]);
    eventually("the secret's creation is in the audit log", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let about = text
            .lines()
            .find(|line| line.contains("\"hidden\"") && line.contains("ResponseComplete"));
        about
            .map(drop)
            .ok_or_else(|| format!("{} lines", text.lines().count()))
    });
    let text = fs::read_to_string(&log).expect("the log");
    assert!(
        !text.contains("hunter2") && !text.contains("aHVudGVyMg"),
        "secrets are in the log"
    );
}

/// Ends a process of the test's own.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn controllers_run_for_any_api_server() {
    let cluster = Cluster::start_with(&["--run-controllers=false"]);
    cluster.kubectl(&["create", "deployment", "web", "--image=x", "--replicas=2"]);
    let controllers = cluster
        .network
        .command(wherry())
        .args(["control", "controllers", "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _controllers = Ended(controllers.expect("wherry starts"));
    cluster.wait_field("default", "deployment/web", ".status.replicas", "2");
    eventually("its pods have a node", || {
        let nodes = cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"]);
        if nodes == "node node" {
            Ok(())
        } else {
            Err(nodes)
        }
    });
    let holder = cluster.field(
        "kube-system",
        "lease/wherry-control",
        ".spec.holderIdentity",
    );
    assert!(!holder.is_empty(), "the Lease is held");
}

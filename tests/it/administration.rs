//! What administrators type: forms of `create`, `set`, certificates, conflicts, differences, and nodes that are emptied.

use std::{fs, process::Command, sync::Arc};

use libtest_mimic::Trial;
use wherry_tests::{Cluster, Nodes, eventually, made_by_run_sh};

use crate::{Shared, own_trials, trials};

pub(crate) fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    let mut all = trials![shared;
        create_has_a_form_for_each_kind,
        set_changes_image_environment_resources_and_more,
        autoscale_is_kept_and_says_what_is_missing,
        a_certificate_is_asked_for_approved_and_used,
        apply_on_the_server_finds_conflicts,
        diff_shows_what_apply_would_change,
        component_statuses_and_several_kinds_at_once,
        a_service_account_is_what_its_roles_say,
    ];
    all.extend(own_trials![
        nodes_are_cordoned_drained_and_tainted,
        a_node_that_restarts_keeps_its_pods_and_one_made_by_hand_is_labelled
    ]);
    all
}

const IMAGE: &str = "test/busybox:1";

fn create_has_a_form_for_each_kind(cluster: &Cluster, ns: &str) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    key_pair(directory.path(), "/CN=web");
    let (cert, key) = (
        format!("--cert={}", directory.path().join("pem").display()),
        format!("--key={}", directory.path().join("key").display()),
    );
    let image = format!("--image={IMAGE}");
    let image = image.as_str();
    let forms: [(&[&str], &str); 20] = [
        (
            &["deployment", "web", image, "--replicas=0", "--port=80"],
            "deployment.apps/web",
        ),
        (
            &["service", "clusterip", "inner", "--tcp=80:8080"],
            "service/inner",
        ),
        (
            &["service", "clusterip", "headless", "--clusterip=None"],
            "service/headless",
        ),
        (&["service", "nodeport", "port", "--tcp=80"], "service/port"),
        (
            &["service", "loadbalancer", "balanced", "--tcp=80"],
            "service/balanced",
        ),
        (
            &[
                "service",
                "externalname",
                "far",
                "--external-name=example.com",
            ],
            "service/far",
        ),
        (&["job", "once", image, "--", "true"], "job.batch/once"),
        (
            &[
                "cronjob",
                "often",
                image,
                "--schedule=0 0 1 1 *",
                "--",
                "true",
            ],
            "cronjob.batch/often",
        ),
        (&["job", "now", "--from=cronjob/often"], "job.batch/now"),
        (
            &["configmap", "settings", "--from-literal=a=b"],
            "configmap/settings",
        ),
        (
            &["secret", "generic", "hidden", "--from-literal=a=b"],
            "secret/hidden",
        ),
        (&["secret", "tls", "keys", &cert, &key], "secret/keys"),
        (
            &[
                "secret",
                "docker-registry",
                "pull",
                "--docker-server=r.example",
                "--docker-username=u",
                "--docker-password=p",
            ],
            "secret/pull",
        ),
        (&["serviceaccount", "robot"], "serviceaccount/robot"),
        (
            &[
                "role",
                "reader",
                "--verb=get,list",
                "--resource=pods,pods/log",
            ],
            "role.rbac.authorization.k8s.io/reader",
        ),
        (
            &[
                "rolebinding",
                "reads",
                "--role=reader",
                "--serviceaccount=somewhere:robot",
            ],
            "rolebinding.rbac.authorization.k8s.io/reads",
        ),
        (
            &["quota", "few", "--hard=pods=100,configmaps=50"],
            "resourcequota/few",
        ),
        (
            &[
                "poddisruptionbudget",
                "some",
                "--selector=app=web",
                "--min-available=1",
            ],
            "poddisruptionbudget.policy/some",
        ),
        (
            &["configmap", "dry", "--from-literal=a=b", "--dry-run=server"],
            "configmap/dry",
        ),
        (
            &["configmap", "file", "--from-file=/etc/hostname"],
            "configmap/file",
        ),
    ];
    for (form, made) in forms {
        let said = cluster.k(ns, &[&["create"], form].concat());
        let dry = if form.contains(&"--dry-run=server") {
            " (server dry run)"
        } else {
            ""
        };
        assert_eq!(said, format!("{made} created{dry}\n"), "{form:?}");
    }
    let own = [ns, "own"].join("-");
    for (form, made) in [
        (
            vec!["clusterrole", &own, "--verb=get", "--resource=nodes"],
            "clusterrole.rbac.authorization.k8s.io",
        ),
        (
            vec![
                "clusterrolebinding",
                &own,
                "--clusterrole=view",
                "--user=jane",
            ],
            "clusterrolebinding.rbac.authorization.k8s.io",
        ),
        (
            vec!["priorityclass", &own, "--value=7"],
            "priorityclass.scheduling.k8s.io",
        ),
        (vec!["namespace", &own], "namespace"),
    ] {
        let kind = form[0].to_owned();
        let said = cluster.kubectl(&[vec!["create"], form].concat());
        assert_eq!(said, format!("{made}/{own} created\n"));
        cluster.kubectl(&["delete", &kind, &own, "--wait=false"]);
    }
    for job in ["once", "now"] {
        let complete = ["wait", "--for=condition=complete", "--timeout=60s"];
        cluster.k(ns, &[&complete[..], &[&format!("job/{job}")]].concat());
    }
    assert_eq!(
        cluster.field(ns, "secret/keys", ".type"),
        "kubernetes.io/tls"
    );
    assert_eq!(
        cluster.field(ns, "service/headless", ".spec.clusterIP"),
        "None"
    );
    // A token is who it says it is.
    let token = cluster.k(ns, &["create", "token", "robot", "--duration=10m"]);
    assert_eq!(token.trim().split('.').count(), 3, "{token}");
    let who = with_token(
        cluster,
        token.trim(),
        &[
            "auth",
            "whoami",
            "-o",
            "jsonpath={.status.userInfo.username}",
        ],
    );
    assert_eq!(who, Ok(format!("system:serviceaccount:{ns}:robot")));
    let missing = cluster.kubectl_fails(&["create", "token", "-n", ns, "nobody"]);
    assert!(
        missing.contains("serviceaccounts \"nobody\" not found"),
        "{missing}"
    );
}

/// kubectl as whoever a token stands for.
fn with_token(cluster: &Cluster, token: &str, args: &[&str]) -> Result<String, String> {
    let admin = fs::read_to_string(cluster.kubeconfig()).expect("the kubeconfig is there");
    let mut config: serde_json::Value = match serde_json::from_str(&admin) {
        Ok(config) => config,
        Err(_) => {
            let view = cluster.kubectl(&["config", "view", "--raw", "-o", "json"]);
            serde_json::from_str(&view).expect("kubectl prints JSON")
        }
    };
    config["users"][0]["user"] = serde_json::json!({"token": token});
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), config.to_string()).expect("it can be written");
    let output = cluster
        .client_command("kubectl")
        .env("KUBECONFIG", file.path())
        .args(args)
        .output()
        .expect("kubectl starts");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A key, `key`, and a certificate for it that it signed itself, `pem`.
fn key_pair(directory: &std::path::Path, subject: &str) {
    let output = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args([
            "-nodes", "-days", "2", "-subj", subject, "-keyout", "key", "-out", "pem",
        ])
        .current_dir(directory)
        .output()
        .expect("openssl starts");
    assert!(output.status.success(), "{output:?}");
}

fn set_changes_image_environment_resources_and_more(cluster: &Cluster, ns: &str) {
    let image = format!("--image={IMAGE}");
    cluster.k(ns, &["create", "deployment", "web", &image, "--replicas=0"]);
    let container = ".spec.template.spec.containers[0]";
    let field = |path: &str| cluster.field(ns, "deployment/web", &format!("{container}{path}"));
    let all: [(&[&str], &str, &str); 4] = [
        (
            &["image", "deployment/web", "*=test/nginx:1"],
            "image",
            "image updated",
        ),
        (
            &["env", "deployment/web", "COLOUR=red", "SHAPE=round"],
            "env",
            "env updated",
        ),
        (
            &[
                "resources",
                "deployment/web",
                "--limits=cpu=200m,memory=64Mi",
                "--requests=cpu=100m",
            ],
            "resources",
            "resource requirements updated",
        ),
        (
            &["serviceaccount", "deployment/web", "default"],
            "",
            "serviceaccount updated",
        ),
    ];
    for (args, _, said) in all {
        let printed = cluster.k(ns, &[&["set"], args].concat());
        assert_eq!(printed, format!("deployment.apps/web {said}\n"));
    }
    assert_eq!(field(".image"), "test/nginx:1");
    assert_eq!(
        field(".resources"),
        r#"{"limits":{"cpu":"200m","memory":"64Mi"},"requests":{"cpu":"100m"}}"#
    );
    assert_eq!(field(".env[*].name"), "COLOUR SHAPE");
    cluster.k(ns, &["set", "env", "deployment/web", "SHAPE-"]);
    assert_eq!(field(".env[*].name"), "COLOUR");
    let listed = cluster.k(ns, &["set", "env", "deployment/web", "--list"]);
    assert!(listed.contains("COLOUR=red"), "{listed}");
    cluster.k(
        ns,
        &["create", "configmap", "settings", "--from-literal=size=big"],
    );
    cluster.k(
        ns,
        &["set", "env", "deployment/web", "--from=configmap/settings"],
    );
    assert_eq!(
        field(".env[?(@.name==\"SIZE\")].valueFrom.configMapKeyRef.key"),
        "size"
    );
    cluster.k(ns, &["create", "service", "clusterip", "web", "--tcp=80"]);
    cluster.k(ns, &["set", "selector", "service", "web", "app=other"]);
    assert_eq!(
        cluster.field(ns, "service/web", ".spec.selector"),
        r#"{"app":"other"}"#
    );
    let refused = cluster.kubectl_fails(&["set", "image", "-n", ns, "deployment/web", "nobody=x"]);
    assert!(
        refused.contains("unable to find container named \"nobody\""),
        "{refused}"
    );
}

fn autoscale_is_kept_and_says_what_is_missing(cluster: &Cluster, ns: &str) {
    let image = format!("--image={IMAGE}");
    cluster.k(ns, &["create", "deployment", "web", &image, "--replicas=0"]);
    let said = cluster.k(
        ns,
        &[
            "autoscale",
            "deployment",
            "web",
            "--min=1",
            "--max=3",
            "--cpu-percent=50",
        ],
    );
    assert_eq!(said, "horizontalpodautoscaler.autoscaling/web autoscaled\n");
    let table = cluster.k(ns, &["get", "hpa"]);
    assert!(table.contains("Deployment/web"), "{table}");
    let shown = cluster.describe(ns, "hpa/web");
    assert!(
        shown.contains("Deployment/web") && shown.contains("ScalingActive"),
        "{shown}"
    );
    let condition = ".status.conditions[?(@.type==\"ScalingActive\")].status";
    cluster.wait_field(ns, "hpa/web", condition, "False");
}

fn a_certificate_is_asked_for_approved_and_used(cluster: &Cluster, ns: &str) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let user = format!("jane-{ns}");
    let output = Command::new("openssl")
        .args([
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args([
            "-subj",
            &format!("/CN={user}/O=readers-{ns}"),
            "-keyout",
            "key",
            "-out",
            "csr",
        ])
        .current_dir(directory.path())
        .output()
        .expect("openssl starts");
    assert!(output.status.success(), "{output:?}");
    let base64 = |file: &str| {
        let output = Command::new("base64")
            .arg("-w0")
            .arg(directory.path().join(file))
            .output();
        String::from_utf8(output.expect("base64 starts").stdout).expect("it is text")
    };
    let request = |name: &str| {
        format!(
            "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\n\
             spec: {{request: {}, signerName: kubernetes.io/kube-apiserver-client, usages: [client auth], expirationSeconds: 600}}\n",
            base64("csr")
        )
    };
    let (good, bad) = (format!("good-{ns}"), format!("bad-{ns}"));
    for name in [&good, &bad] {
        cluster.apply(&request(name));
        let table = cluster.kubectl(&["get", "csr", name]);
        assert!(table.contains("Pending"), "{table}");
    }
    let said = cluster.kubectl(&["certificate", "approve", &good]);
    assert_eq!(
        said,
        format!("certificatesigningrequest.certificates.k8s.io/{good} approved\n")
    );
    let said = cluster.kubectl(&["certificate", "deny", &bad]);
    assert_eq!(
        said,
        format!("certificatesigningrequest.certificates.k8s.io/{bad} denied\n")
    );
    let object = format!("csr/{good}");
    let certificate = eventually("the certificate is issued", || {
        let certificate = cluster.field("", &object, ".status.certificate");
        if certificate.is_empty() {
            Err("not yet".to_owned())
        } else {
            Ok(certificate)
        }
    });
    let table = cluster.kubectl(&["get", "csr", &bad]);
    assert!(table.contains("Denied"), "{table}");

    let view = cluster.kubectl(&["config", "view", "--raw", "-o", "json"]);
    let mut config: serde_json::Value = serde_json::from_str(&view).expect("kubectl prints JSON");
    config["users"][0]["user"] = serde_json::json!({"client-certificate-data": certificate, "client-key-data": base64("key")});
    let kubeconfig = directory.path().join("kubeconfig");
    fs::write(&kubeconfig, config.to_string()).expect("it can be written");
    let jane = |args: &[&str]| {
        let output = cluster
            .client_command("kubectl")
            .env("KUBECONFIG", &kubeconfig)
            .args(args)
            .output();
        let output = output.expect("kubectl starts");
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).into_owned()
    };
    let said = jane(&["get", "pods", "-n", ns]);
    assert!(
        said.contains(&format!("User \"{user}\" cannot list resource \"pods\"")),
        "{said}"
    );
    let group = format!("--group=readers-{ns}");
    cluster.k(
        ns,
        &[
            "create",
            "rolebinding",
            "readers",
            "--clusterrole=view",
            &group,
        ],
    );
    eventually("the group may read", || {
        let said = jane(&["get", "pods", "-n", ns]);
        if said.contains("No resources found") {
            Ok(())
        } else {
            Err(said)
        }
    });
    let may = |args: &[&str]| jane(&[&["auth", "can-i", "-n", ns], args].concat());
    assert_eq!(may(&["list", "pods"]), "yes\n");
    assert!(may(&["delete", "pods"]).starts_with("no"));
    cluster.kubectl(&["delete", "csr", &good, &bad]);
}

fn apply_on_the_server_finds_conflicts(cluster: &Cluster, ns: &str) {
    let settings = |colour: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{colour: {colour}{more}}}\n"
        )
    };
    let apply = |manager: &str, yaml: &str, more: &[&str]| {
        let manager = format!("--field-manager={manager}");
        let args = [
            &["apply", "-n", ns, "--server-side", &manager, "-f", "-"],
            more,
        ]
        .concat();
        let output = cluster.kubectl_with_input(&args, yaml);
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    let (is_done, said) = apply("first", &settings("red", ", shape: round"), &[]);
    assert!(
        is_done && said == "configmap/settings serverside-applied\n",
        "{said}"
    );
    let (is_done, said) = apply("second", &settings("blue", ""), &[]);
    assert!(!is_done, "{said}");
    for part in [
        "Apply failed with 1 conflict: conflict with \"first\": .data.colour",
        "--force-conflicts",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Who wants the same is an owner as well, and who lets go of a field leaves it to the others.
    assert!(apply("second", &settings("red", ""), &[]).0);
    assert!(apply("second", &settings("blue", ""), &["--force-conflicts"]).0);
    assert_eq!(
        cluster.field(ns, "configmap/settings", ".data"),
        r#"{"colour":"blue","shape":"round"}"#
    );
    let empty = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\n";
    assert!(apply("first", empty, &[]).0);
    assert_eq!(
        cluster.field(ns, "configmap/settings", ".data"),
        r#"{"colour":"blue"}"#
    );
    let managers = ".metadata.managedFields[*].manager";
    let shown = cluster.field(ns, "configmap/settings", managers);
    assert!(shown.contains("second"), "{shown}");
}

fn diff_shows_what_apply_would_change(cluster: &Cluster, ns: &str) {
    let settings =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: red}\n";
    let diff = |yaml: &str, more: &[&str]| {
        let output =
            cluster.kubectl_with_input(&[&["diff", "-n", ns, "-f", "-"], more].concat(), yaml);
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let (code, said) = diff(settings, &[]);
    assert!(
        code == Some(1) && said.contains("+  colour: red"),
        "{code:?} {said}"
    );
    cluster.apply_in(ns, settings);
    assert_eq!(diff(settings, &[]), (Some(0), String::new()));
    for more in [&[][..], &["--server-side", "--force-conflicts"]] {
        let (code, said) = diff(&settings.replace("red", "blue"), more);
        assert!(
            code == Some(1) && said.contains("-  colour: red") && said.contains("+  colour: blue"),
            "{code:?} {said}"
        );
    }
    assert_eq!(
        cluster.field(ns, "configmap/settings", ".data.colour"),
        "red"
    );
}

fn component_statuses_and_several_kinds_at_once(cluster: &Cluster, ns: &str) {
    let table = cluster.kubectl(&["get", "componentstatuses"]);
    for name in ["scheduler", "controller-manager", "etcd-0"] {
        let line = table.lines().find(|line| line.starts_with(name));
        assert!(
            line.is_some_and(|line| line.contains("Healthy")),
            "{name}: {table}"
        );
    }
    cluster.k(ns, &["create", "service", "clusterip", "web", "--tcp=80"]);
    let shown = cluster.k(ns, &["get", "no,rc,svc"]);
    assert!(
        shown.contains("node/node") && shown.contains("service/web"),
        "{shown}"
    );
    let shown = cluster.k(ns, &["get", "all"]);
    assert!(shown.contains("service/web"), "{shown}");
    let name = cluster.kubectl(&[
        "get",
        "no",
        "-o",
        "template",
        "--template={{range .items}}{{.metadata.name}}{{end}}",
    ]);
    assert_eq!(name, "node");
}

fn a_service_account_is_what_its_roles_say(cluster: &Cluster, ns: &str) {
    cluster.k(ns, &["create", "serviceaccount", "robot"]);
    let robot = format!("--as=system:serviceaccount:{ns}:robot");
    let may = |args: &[&str]| {
        let args = [&["auth", "can-i", "-n", ns, &robot], args].concat();
        let output = cluster
            .kubectl_command(&args)
            .output()
            .expect("kubectl starts");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(may(&["get", "pods"]), "no");
    cluster.k(
        ns,
        &[
            "create",
            "role",
            "reader",
            "--verb=get",
            "--resource=pods",
            "--resource-name=one",
        ],
    );
    let account = format!("--serviceaccount={ns}:robot");
    cluster.k(
        ns,
        &["create", "rolebinding", "reads", "--role=reader", &account],
    );
    eventually("the account may read", || {
        let said = may(&["get", "pods/one"]);
        if said == "yes" { Ok(()) } else { Err(said) }
    });
    assert_eq!(may(&["get", "pods/two"]), "no");
    assert_eq!(may(&["delete", "pods/one"]), "no");
    let listed = may(&["--list"]);
    assert!(
        listed.contains("pods") && listed.contains("[one]"),
        "{listed}"
    );
    let all = cluster.kubectl(&["auth", "can-i", "*", "*", "--all-namespaces"]);
    assert_eq!(all, "yes\n");
}

/// A Deployment on the nodes, with a budget that leaves one of its pods.
fn guarded(nodes: &Nodes) {
    nodes.apply_in(
        "default",
        "apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'busybox:1', args: [sleep, '100000']}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
",
    );
    nodes.wait_pods("default", "app=web", 2);
}

fn nodes_are_cordoned_drained_and_tainted() {
    let nodes = Nodes::start(2);
    nodes.import(&made_by_run_sh("WHERRY_IMAGE_BUSYBOX"), "busybox:1");
    guarded(&nodes);
    nodes.kubectl(&[
        "run",
        "alone",
        "--image=busybox:1",
        "--overrides={\"spec\":{\"nodeName\":\"n1\",\"terminationGracePeriodSeconds\":0}}",
        "--",
        "sleep",
        "100000",
    ]);
    nodes.wait_ready("default", "alone");
    nodes.apply_in(
        "default",
        "apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'busybox:1', args: [sleep, '100000']}]
",
    );
    nodes.wait_pods("default", "app=everywhere", 2);
    let said = nodes.kubectl(&["cordon", "n1"]);
    assert_eq!(said, "node/n1 cordoned\n");
    let table = nodes.kubectl(&["get", "node", "n1"]);
    assert!(table.contains("Ready,SchedulingDisabled"), "{table}");

    // It says what it will not do unasked.
    let refused = nodes.kubectl_fails(&["drain", "n1", "--timeout=20s"]);
    for part in ["DaemonSet-managed", "--force"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let said = nodes.kubectl(&[
        "drain",
        "n1",
        "--ignore-daemonsets",
        "--force",
        "--timeout=80s",
    ]);
    assert!(said.contains("node/n1 drained"), "{said}");
    let pods = nodes.wait_pods("default", "app=web", 2);
    assert!(pods.iter().all(|(_, node, _)| node == "n2"), "{pods:?}");
    assert_eq!(nodes.field("default", "pod/alone", ".metadata.name"), "");
    nodes.wait_pods("default", "app=everywhere", 2);

    // With nowhere to go, the budget keeps the last one where it is.
    let stuck = nodes.kubectl_fails(&["drain", "n2", "--ignore-daemonsets", "--timeout=7s"]);
    assert!(
        stuck.contains("Cannot evict pod as it would violate the pod's disruption budget"),
        "{stuck}"
    );
    let running = nodes.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "--field-selector=status.phase=Running",
        "-o",
        "name",
    ]);
    assert!(running.lines().count() >= 1, "{running}");
    assert_eq!(nodes.kubectl(&["uncordon", "n1"]), "node/n1 uncordoned\n");
    nodes.kubectl(&["uncordon", "n2"]);
    nodes.wait_pods("default", "app=web", 2);

    // A taint keeps new pods away, and with NoExecute sends others away.
    assert_eq!(
        nodes.kubectl(&["taint", "node", "n2", "only=some:NoSchedule"]),
        "node/n2 tainted\n"
    );
    nodes.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    let pods = nodes.wait_pods("default", "app=web", 4);
    assert!(
        pods.iter().filter(|(_, node, _)| node == "n1").count() >= 2,
        "{pods:?}"
    );
    nodes.kubectl(&["taint", "node", "n2", "only=some:NoExecute"]);
    eventually("all are on n1", || {
        let pods = nodes.wait_pods("default", "app=web", 4);
        if pods.iter().all(|(_, node, _)| node == "n1") {
            Ok(())
        } else {
            Err(format!("{pods:?}"))
        }
    });
    nodes.wait_pods("default", "app=everywhere", 1);
    assert_eq!(
        nodes.kubectl(&["taint", "node", "n2", "only-"]),
        "node/n2 untainted\n"
    );
    nodes.wait_pods("default", "app=everywhere", 2);
    let table = nodes.kubectl(&["top", "node"]);
    assert!(table.contains("n1") && table.contains("n2"), "{table}");
}

fn a_node_that_restarts_keeps_its_pods_and_one_made_by_hand_is_labelled() {
    let mut nodes = Nodes::prepare(2);
    nodes.start_control(&[]);
    nodes.kubectl(&["get", "ns"]);
    for (name, disk) in [("n1", "ssd"), ("n2", "slow")] {
        nodes.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{disk: {disk}, kubernetes.io/hostname: {name}}}}}\n"
        ));
    }
    nodes.join(&["--register-node", "false"]);
    nodes.import(&made_by_run_sh("WHERRY_IMAGE_BUSYBOX"), "busybox:1");
    let shown = nodes.kubectl(&["get", "nodes", "-L", "disk", "--no-headers"]);
    assert!(shown.contains("ssd") && shown.contains("slow"), "{shown}");
    nodes.apply_in(
        "default",
        "apiVersion: v1
kind: ReplicationController
metadata: {name: fast}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: fast}}
    spec:
      nodeSelector: {disk: ssd}
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'busybox:1', args: [sleep, '100000']}]
",
    );
    let pods = nodes.wait_pods("default", "app=fast", 2);
    assert!(pods.iter().all(|(_, node, _)| node == "n1"), "{pods:?}");
    let started = "jsonpath={.items[*].status.containerStatuses[0].containerID}";
    let of_pods = ["get", "pods", "-l", "app=fast", "-o", started];
    let before = nodes.kubectl(&of_pods);
    for signal in [
        nix::sys::signal::Signal::SIGTERM,
        nix::sys::signal::Signal::SIGKILL,
    ] {
        nodes.stop(1, signal);
        nodes.start_again(1);
        nodes.wait_node(1, "True");
        assert_eq!(nodes.kubectl(&of_pods), before, "after {signal}");
        assert_eq!(nodes.wait_pods("default", "app=fast", 2), pods);
    }
    // The same for the whole control plane.
    nodes.stop(0, nix::sys::signal::Signal::SIGKILL);
    nodes.start_again(0);
    for index in [1, 2] {
        nodes.wait_node(index, "True");
    }
    assert_eq!(nodes.kubectl(&of_pods), before);
}

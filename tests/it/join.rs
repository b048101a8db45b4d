//! Hosts that become nodes of a cluster on another host.

use libtest_mimic::Trial;
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use wherry_tests::{Hosts, eventually, guest, made_by_run_sh, outcome};

use crate::own_trials;

pub(crate) fn trials() -> Vec<Trial> {
    own_trials![
        hosts_join_with_a_token_and_run_pods,
        a_host_that_may_not_join_is_told_why,
        certificates_are_renewed_without_a_pod_noticing,
        a_node_made_by_hand_is_used_and_never_made
    ]
}

/// The control plane's arguments: `wherry control` on the first host.
fn control(hosts: &mut Hosts, args: &[&str]) {
    let address = hosts.host(0).address().to_owned();
    let mut all: Vec<String> = ["control", "--advertise-address", &address]
        .map(String::from)
        .into();
    all.extend(args.iter().map(ToString::to_string));
    hosts.host(0).start(&all);
}

/// What `wherry token create` printed, as arguments, for a node.
fn join_args(hosts: &mut Hosts, index: usize, node: &str) -> Vec<String> {
    let line = hosts.host(0).wherry(&["token", "create", "--ttl", "1h"]);
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..3], ["wherry", "agent", "--join"], "{line}");
    let mut args: Vec<String> = words[1..].iter().map(ToString::to_string).collect();
    args.extend(hosts.host(index).node_args(node));
    args
}

#[track_caller]
fn wait(hosts: &Hosts, args: &[&str], wanted: &str) {
    eventually(&format!("{} = {wanted}", args.join(" ")), || match outcome(
        &mut hosts.client().kubectl_command(args),
    ) {
        Ok(said) if said == wanted => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

const READY: &str = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";

/// A pod on a node, of a container and a component.
fn pod(name: &str, node: &str) -> String {
    format!(
        "{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {{\"name\": \"{name}\"}}, \"spec\": \
         {{\"nodeSelector\": {{\"kubernetes.io/hostname\": \"{node}\"}}, \"terminationGracePeriodSeconds\": 0, \
         \"containers\": [{{\"name\": \"box\", \"image\": \"test/busybox:1\", \"imagePullPolicy\": \"Never\", \
         \"command\": [\"sh\", \"-c\", \"echo here is {node}; exec sleep 100000\"]}}]}}}}"
    )
}

fn run_pod(hosts: &Hosts, name: &str, node: &str) {
    let client = hosts.client();
    client.apply(&pod(name, node));
    client.wait_ready("default", name);
}

fn import(hosts: &mut Hosts, index: usize) {
    let image = made_by_run_sh("WHERRY_IMAGE_BUSYBOX");
    let host = hosts.host(index);
    host.wherry(&[
        "image",
        "import",
        &image.to_string_lossy(),
        "--name",
        "test/busybox:1",
    ]);
    host.wherry(&[
        "image",
        "import",
        &guest("hello").to_string_lossy(),
        "--name",
        "test/hello:1",
    ]);
}

fn hosts_join_with_a_token_and_run_pods() {
    let mut hosts = Hosts::new(3);
    let mut up: Vec<String> = vec!["up".into()];
    up.extend(hosts.host(0).node_args("n0"));
    hosts.host(0).start(&up);
    let mut joins = Vec::new();
    for (index, node) in [(1, "n1"), (2, "n2")] {
        let args = join_args(&mut hosts, index, node);
        hosts.host(index).start(&args);
        joins.push(args);
    }
    wait(&hosts, &["get", "nodes", "-o", READY], "True True True");
    // The cluster's own node keeps what single nodes have; the others get theirs.
    wait(
        &hosts,
        &["get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"],
        "10.88.0.0/16 10.89.0.0/24 10.89.1.0/24",
    );
    for index in 0..3 {
        import(&mut hosts, index);
        let (name, node) = (format!("p{index}"), format!("n{index}"));
        run_pod(&hosts, &name, &node);
        assert_eq!(
            hosts.client().kubectl(&["logs", &name]),
            format!("here is {node}\n")
        );
        assert_eq!(
            hosts.client().kubectl(&["exec", &name, "--", "echo", "hi"]),
            "hi\n"
        );
    }
    let requests = hosts.client().kubectl(&["get", "csr", "--no-headers"]);
    assert_eq!(requests.matches("Approved,Issued").count(), 4, "{requests}");
    assert_eq!(
        requests.matches("system:bootstrap:").count(),
        2,
        "{requests}"
    );

    // A node that has joined needs no token: neither that it is good, nor that it is given.
    let tokens = hosts.host(0).wherry(&["token", "list"]);
    let ids: Vec<&str> = tokens
        .lines()
        .skip(1)
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(ids.len(), 2, "{tokens}");
    let ids: Vec<String> = ids.into_iter().map(String::from).collect();
    for id in &ids {
        hosts.host(0).wherry(&["token", "delete", id]);
    }
    let started = [
        "get",
        "pod",
        "p1",
        "-o",
        "jsonpath={.status.containerStatuses[0].state.running.startedAt}",
    ];
    let before = hosts.client().kubectl(&started);
    hosts.host(1).signal(SIGKILL);
    hosts.host(1).start(&joins[0]);
    let mut plain: Vec<String> = vec!["agent".into()];
    plain.extend(hosts.host(2).node_args("n2"));
    hosts.host(2).signal(SIGTERM);
    hosts.host(2).start(&plain);
    assert_eq!(hosts.client().kubectl(&started), before);
    eventually("exec after restarts", || {
        let exec = ["exec", "p2", "--", "echo", "hi"];
        match outcome(&mut hosts.client().kubectl_command(&exec)) {
            Ok(said) if said == "hi\n" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // The node's own rights, with its own kubeconfig.
    let kubeconfig = hosts.host(1).root().join("agent/kubeconfig");
    let as_node = |args: &[&str]| {
        let flag = format!("--kubeconfig={}", kubeconfig.display());
        let args = [&[flag.as_str()], args].concat();
        outcome(&mut hosts.client().kubectl_command(&args))
    };
    as_node(&["get", "node", "n1"]).expect("a node may see itself");
    let refused = as_node(&["label", "node", "n2", "a=b"]);
    assert!(
        matches!(&refused, Err(said) if said.contains("forbidden")),
        "{refused:?}"
    );
}

fn a_host_that_may_not_join_is_told_why() {
    let mut hosts = Hosts::new(2);
    control(&mut hosts, &[]);
    let args = join_args(&mut hosts, 1, "n1");
    let place =
        |args: &[String], flag: &str| args.iter().position(|arg| arg == flag).expect(flag) + 1;
    let changed = |flag: &str, value: &str| {
        let mut args = args.clone();
        let at = place(&args, flag);
        args[at] = value.to_owned();
        args.extend(["--join-timeout", "1s"].map(String::from));
        args
    };
    let hash = format!("sha256:{}", "00".repeat(32));
    let right = args[place(&args, "--ca-cert-hash")].clone();
    let said = hosts
        .host(1)
        .wherry_fails(&changed("--ca-cert-hash", &hash));
    assert!(
        said.contains("no authority with the hash given") && said.contains(&right),
        "{said}"
    );
    let said = hosts
        .host(1)
        .wherry_fails(&changed("--ca-cert-hash", "md5:1"));
    assert!(said.contains("is not sha256:"), "{said}");
    let said = hosts
        .host(1)
        .wherry_fails(&changed("--token", "abcdef.0123456789abcdef"));
    assert!(said.contains("does not take this token"), "{said}");
    let said = hosts
        .host(1)
        .wherry_fails(&changed("--join", "https://10.52.0.1:6444"));
    assert!(
        said.contains("10.52.0.1:6444") && said.contains("refused"),
        "{said}"
    );
    // A token whose time is over: the Secret is still there, or has just been cleared away.
    let expired = hosts.host(0).wherry(&["token", "create", "--ttl", "1s"]);
    let token = expired
        .split_whitespace()
        .nth(5)
        .expect("a token")
        .to_owned();
    eventually("an expired token is removed", || {
        let tokens = hosts.host(0).wherry(&["token", "list"]);
        if tokens.contains(&token[..6]) {
            Err(tokens)
        } else {
            Ok(())
        }
    });
    let said = hosts.host(1).wherry_fails(&changed("--token", &token));
    assert!(said.contains("does not take this token"), "{said}");
    hosts.plug(0, false);
    let said = hosts
        .host(1)
        .wherry_fails(&changed("--ca-cert-hash", &right));
    assert!(
        said.contains("no answer within") || said.contains("No route to host"),
        "{said}"
    );
}

fn certificates_are_renewed_without_a_pod_noticing() {
    let mut hosts = Hosts::new(2);
    control(&mut hosts, &["--cluster-signing-duration", "20s"]);
    let args = join_args(&mut hosts, 1, "n1");
    hosts.host(1).start(&args);
    import(&mut hosts, 1);
    run_pod(&hosts, "p", "n1");
    let started = [
        "get",
        "pod",
        "p",
        "-o",
        "jsonpath={.status.containerStatuses[0].state.running.startedAt}",
    ];
    let before = hosts.client().kubectl(&started);
    let kept = |hosts: &mut Hosts, name: &str| {
        std::fs::read(hosts.host(1).root().join("agent").join(name)).ok()
    };
    let first = ["kubeconfig", "kubelet-server.pem"].map(|name| (name, kept(&mut hosts, name)));
    for (name, first) in first {
        eventually(&format!("a new {name}"), || {
            if kept(&mut hosts, name) == first {
                Err("the old one".into())
            } else {
                Ok(())
            }
        });
    }
    assert_eq!(
        hosts.client().kubectl(&["exec", "p", "--", "echo", "hi"]),
        "hi\n"
    );
    wait(&hosts, &["get", "nodes", "-o", READY], "True");
    assert_eq!(hosts.client().kubectl(&started), before);
}

fn a_node_made_by_hand_is_used_and_never_made() {
    let mut hosts = Hosts::new(2);
    control(&mut hosts, &[]);
    let mut args = join_args(&mut hosts, 1, "byhand");
    args.extend(["--register-node", "false"].map(String::from));
    let ready = hosts.host(1).spawn(&args);
    eventually("the agent waits for its Node", || {
        let log = hosts.host(1).log();
        if log.contains("Waiting for somebody to make the Node") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_eq!(hosts.client().kubectl(&["get", "nodes", "-o", "name"]), "");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let node = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "byhand", "labels": {"disk": "ssd"}}}"#;
    std::fs::write(file.path(), node).expect("it can be written");
    hosts
        .client()
        .kubectl(&["create", "-f", &file.path().to_string_lossy()]);
    ready
        .recv_timeout(wherry_tests::PATIENCE)
        .expect("the node is ready");
    wait(
        &hosts,
        &["get", "nodes", "-l", "disk=ssd", "-o", READY],
        "True",
    );
}

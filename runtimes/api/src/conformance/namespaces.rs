//! What containers of a pod share, and what they share with the node.

use std::path::Path;

use super::{Fixture, Program, support::*};
use crate::*;

const NAMESPACES: &str = "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done; hostname; ps | grep -c '[s]leep 7654'";

fn node(kind: &str) -> String {
    let link = std::fs::read_link(Path::new("/proc/self/ns").join(kind));
    link.expect("the node has namespaces").display().to_string()
}

async fn with(
    fixture: &dyn Fixture,
    name: &str,
    change: impl FnOnce(&mut PodSandboxConfig),
) -> PodSandbox {
    let mut config = fixture.sandbox_config(name);
    change(&mut config);
    let sandbox = ok(fixture.runtime().run_pod_sandbox(&config).await);
    if config.namespaces.network == NamespaceMode::Node {
        assert_eq!(sandbox.network, SandboxNetwork::Host);
        return sandbox;
    }
    fixture.attach_network(sandbox).await
}

pub(super) async fn containers_of_a_pod_share_network_ipc_and_host_name(fixture: &dyn Fixture) {
    let sandbox = with(fixture, "shares", |config| {
        config.hostname = Some("named".to_owned());
    })
    .await;
    let script = "touch /dev/shm/mine; nc -ll -p 47113 -e cat & sleep 0.05; echo up; sleep 7654";
    let first = fixture.container_config(&sandbox, "first", Program::Shell(script));
    let first_id = start(fixture, &sandbox, &first).await;
    up(&first).await;
    let pid = ok(fixture.runtime().container_status(&first_id).await).pid;
    let pid = pid.expect("a Linux container has a process");
    let theirs = |kind: &str| {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        link.expect("it runs").display().to_string()
    };
    let (code, lines) = run_script(fixture, &sandbox, "second", NAMESPACES, |_| {}).await;
    assert_eq!(code, 1, "another's processes are seen: {lines:?}");
    for (index, kind) in ["net", "ipc"].iter().enumerate() {
        assert_eq!(lines[index], theirs(kind));
        assert_ne!(lines[index], node(kind));
    }
    // The name is the pod's; one that an app gives itself later need not be (an engine has no word for that).
    assert_ne!(lines[2], node("uts"));
    for (index, kind) in [(3, "pid"), (4, "mnt")] {
        assert_ne!(lines[index], theirs(kind));
        assert_ne!(lines[index], node(kind));
    }
    assert_eq!(lines[5], "named");
    let script = "ls /dev/shm; echo ping | nc 127.0.0.1 47113";
    let (_, lines) = run_script(fixture, &sandbox, "third", script, |_| {}).await;
    assert_eq!(lines, ["mine", "ping"]);
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_pod_may_share_its_processes(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = with(fixture, "shared-pid", |config| {
        config.namespaces.pid = NamespaceMode::Pod;
    })
    .await;
    let script = "echo up; exec sleep 7654";
    let first = fixture.container_config(&sandbox, "first", Program::Shell(script));
    let id = start(fixture, &sandbox, &first).await;
    up(&first).await;
    let (code, lines) = run_script(fixture, &sandbox, "second", NAMESPACES, |_| {}).await;
    assert_eq!((code, lines[6].as_str()), (0, "1"), "{lines:?}");
    assert_ne!(lines[3], node("pid"));
    // One container's end is not another's.
    assert!(matches!(
        ok(runtime.container_status(&id).await).state,
        ContainerState::Running { .. }
    ));
    ok(runtime.stop_container(&id, std::time::Duration::ZERO).await);
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_pod_may_share_the_nodes_namespaces(fixture: &dyn Fixture) {
    let sandbox = with(fixture, "node", |config| {
        config.hostname = None;
        config.namespaces = NamespaceOptions {
            network: NamespaceMode::Node,
            pid: NamespaceMode::Node,
            ipc: NamespaceMode::Node,
        };
    })
    .await;
    let (_, lines) = run_script(fixture, &sandbox, "main", NAMESPACES, |_| {}).await;
    for (index, kind) in ["net", "ipc", "uts", "pid"].iter().enumerate() {
        assert_eq!(lines[index], node(kind));
    }
    assert_ne!(lines[4], node("mnt"));
    remove(fixture, &sandbox).await;
}

pub(super) async fn sysctls_are_the_pods_own(fixture: &dyn Fixture) {
    let sandbox = with(fixture, "sysctl", |config| {
        config.sysctls = vec![(
            "net.ipv4.ip_local_port_range".to_owned(),
            "40000 40100".to_owned(),
        )];
    })
    .await;
    let script = "cat /proc/sys/net/ipv4/ip_local_port_range";
    let (_, lines) = run_script(fixture, &sandbox, "main", script, |_| {}).await;
    assert_eq!(lines, ["40000\t40100"]);
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_debugger_sees_its_targets_processes(fixture: &dyn Fixture) {
    let sandbox = with(fixture, "target", |_| {}).await;
    let script = "echo up; exec sleep 7654";
    let app = fixture.container_config(&sandbox, "app", Program::Shell(script));
    let app_id = start(fixture, &sandbox, &app).await;
    up(&app).await;
    let (code, lines) = run_script(fixture, &sandbox, "debug", NAMESPACES, |config| {
        config.pid_target = Some(app_id);
    })
    .await;
    assert_eq!((code, lines[6].as_str()), (0, "1"), "{lines:?}");
    remove(fixture, &sandbox).await;
}

/// The feature a runtime tells of is the one it has.
pub(super) async fn a_pod_may_have_a_user_namespace(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let range = UserNamespace {
        host_id: 300_000,
        length: 65_536,
    };
    let config = PodSandboxConfig {
        user_namespace: Some(range),
        ..fixture.sandbox_config("mapped")
    };
    let made = runtime.run_pod_sandbox(&config).await;
    if !runtime.status().await.features.user_namespaces {
        assert!(
            matches!(made, Err(RuntimeError::Unsupported(_))),
            "not a feature, and not refused: {made:?}"
        );
        return;
    }
    let sandbox = fixture.attach_network(ok(made)).await;
    let volume = volume(&sandbox, "mapped");
    let script = "id -u; cat /proc/self/uid_map; stat -c %u /bin/sh; echo x > /v/new; stat -c %u /v/new; touch /new";
    let (code, lines) = run_script(fixture, &sandbox, "main", script, |config| {
        config.mounts.push(mount(&volume, "/v"));
    })
    .await;
    let words: Vec<&str> = lines
        .iter()
        .flat_map(|line| line.split_whitespace())
        .collect();
    assert_eq!(words, ["0", "0", "300000", "65536", "0", "0"]);
    assert_eq!(code, 0);
    let owner = std::fs::metadata(volume.join("new"))
        .map(|found| std::os::unix::fs::MetadataExt::uid(&found));
    assert_eq!(
        owner.ok(),
        Some(0),
        "the volume keeps the IDs it has on disk"
    );
    remove(fixture, &sandbox).await;
}

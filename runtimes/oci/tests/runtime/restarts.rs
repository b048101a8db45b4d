//! The agent ends, the supervisor is killed, things are half made.

use std::{fs, time::Duration};

use wherry_runtime_api::{
    conformance::{ShellNode, read_log},
    *,
};

use crate::harness::{Node, TIMEOUT, eventually, tests};

tests! {
    everything_survives_an_agent_restart_and_no_line_is_lost
    an_exit_while_no_agent_runs_is_known_afterwards
    a_killed_supervisor_is_a_sandbox_not_ready_and_known_exits
    what_is_half_made_is_finished_or_removed
    a_dead_half_of_a_sandbox_makes_room_for_a_new_one
    a_supervisor_is_small
    what_no_container_refers_to_is_removed_at_open
}

async fn everything_survives_an_agent_restart_and_no_line_is_lost(mut node: Node) {
    let sandbox = node.sandbox("pod").await;
    let config = node.script(&sandbox, "main", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; [ -e /tmp/go ] || sleep 0.001; done; sleep 100");
    let id = node.start(&sandbox, &config).await;
    let created = node
        .runtime
        .create_container(&sandbox, &node.script(&sandbox, "waiting", "echo late"))
        .await
        .unwrap();
    let before = node.runtime.container_status(&id).await.unwrap();
    for _ in 0..3 {
        node.restart().await;
        assert_eq!(
            node.runtime.list_pod_sandboxes().await.unwrap(),
            std::slice::from_ref(&sandbox)
        );
        assert_eq!(node.runtime.container_status(&id).await.unwrap(), before);
    }
    assert_eq!(node.exec(&id, "touch /tmp/go").await.exit_code, 0);
    eventually("all lines", || {
        read_log(&config.log_path).ends_with("3000\n")
    })
    .await;
    let lines: Vec<u32> = read_log(&config.log_path)
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(lines, (1..=3000).collect::<Vec<_>>());
    assert_eq!(
        node.runtime.container_status(&created).await.unwrap().state,
        ContainerState::Created
    );
    node.runtime.start_container(&created).await.unwrap();
    assert_eq!(node.exit(&created).await.exit_code, 0);
    let mut events = node.runtime.subscribe();
    node.runtime
        .stop_container(&id, Duration::ZERO)
        .await
        .unwrap();
    assert!(
        matches!(events.recv().await.unwrap(), RuntimeEvent::ContainerExited { id: exited, .. } if exited == id)
    );
}

async fn an_exit_while_no_agent_runs_is_known_afterwards(mut node: Node) {
    let sandbox = node.sandbox("pod").await;
    let config = node.script(
        &sandbox,
        "main",
        "while ! [ -e /v/go ]; do sleep 0.01; done; echo gone; exit 42",
    );
    let volume = node.place.join("v");
    fs::create_dir_all(&volume).unwrap();
    let config = ContainerConfig {
        mounts: vec![Mount {
            container_path: "/v".into(),
            host_path: volume.clone(),
            readonly: true,
            recursive_readonly: true,
            propagation: MountPropagation::None,
        }],
        ..config
    };
    let id = node.start(&sandbox, &config).await;
    node.stop_agent().await;
    fs::write(volume.join("go"), "").unwrap();
    let exit = node
        .place
        .join(format!("root/oci/containers/{id}/exit.json"));
    eventually("the exit is on disk", || exit.exists()).await;
    node.restart().await;
    let ContainerState::Exited(exit) = node.runtime.container_status(&id).await.unwrap().state
    else {
        panic!()
    };
    assert_eq!((exit.exit_code, exit.message), (42, None));
    assert_eq!(read_log(&config.log_path), "gone\n");
}

async fn a_killed_supervisor_is_a_sandbox_not_ready_and_known_exits(mut node: Node) {
    for with_agent in [true, false] {
        let sandbox = node.sandbox(&format!("pod-{with_agent}")).await;
        let id = node
            .start(
                &sandbox,
                &node.script(&sandbox, "main", "sleep 106 & sleep 107"),
            )
            .await;
        let app = node
            .runtime
            .container_status(&id)
            .await
            .unwrap()
            .pid
            .unwrap();
        let mut events = node.runtime.subscribe();
        if !with_agent {
            node.stop_agent().await;
        }
        let supervisor = nix::unistd::Pid::from_raw(sandbox.pid.unwrap());
        nix::sys::signal::kill(supervisor, nix::sys::signal::Signal::SIGKILL).unwrap();
        if with_agent {
            let wait = async {
                while !matches!(
                    events.recv().await.unwrap(),
                    RuntimeEvent::SandboxExited { .. }
                ) {}
            };
            tokio::time::timeout(TIMEOUT, wait).await.unwrap();
        } else {
            eventually("the lock is free", || {
                !fs::exists(format!("/proc/{supervisor}/ns/net")).unwrap_or(true)
            })
            .await;
            node.restart().await;
        }
        eventually("the app is gone", || {
            !fs::exists(format!("/proc/{app}/ns/net")).unwrap_or(true)
        })
        .await;
        let listed = node.runtime.list_pod_sandboxes().await.unwrap();
        assert_eq!(
            listed
                .iter()
                .find(|known| known.id == sandbox.id)
                .unwrap()
                .state,
            PodSandboxState::NotReady
        );
        let ContainerState::Exited(exit) = node.runtime.container_status(&id).await.unwrap().state
        else {
            panic!()
        };
        assert_eq!((exit.exit_code, exit.signal), (137, Some(9)));
        assert!(exit.started_at.is_some() && exit.message.is_some());
        let config = node.script(&sandbox, "other", "true");
        let error = node
            .runtime
            .create_container(&sandbox, &config)
            .await
            .unwrap_err();
        assert!(
            matches!(error, RuntimeError::FailedPrecondition(_)),
            "{error}"
        );
        // The pod goes on in a new sandbox.
        let again = node
            .runtime
            .run_pod_sandbox(&PodSandboxConfig {
                attempt: 1,
                ..sandbox.config.clone()
            })
            .await
            .unwrap();
        node.runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
        assert_eq!(
            node.run(&again, &node.script(&again, "main", "exit 1"))
                .await
                .0
                .exit_code,
            1
        );
    }
}

async fn what_is_half_made_is_finished_or_removed(mut node: Node) {
    let sandbox = node.sandbox("pod").await;
    let config = node.script(&sandbox, "main", "sleep 100");
    let id = node
        .runtime
        .create_container(&sandbox, &config)
        .await
        .unwrap();
    let whole = node.place.join(format!("root/oci/containers/{id}"));
    // As if the agent had been killed while it filled a directory: the lease is there, the container is not.
    let half = node.place.join("root/oci/containers/.half");
    fs::create_dir_all(half.join("upper/dev")).unwrap();
    fs::copy(whole.join("config.json"), half.join("config.json")).unwrap();
    std::os::unix::fs::symlink(node.image("busybox"), node.place.join("images/leases/half"))
        .unwrap();
    // Between the rename and stage 1's creation: stage 1 knows of nothing.
    let unknown = node.place.join("root/oci/containers/unknown");
    fs::create_dir_all(&unknown).unwrap();
    for directory in ["upper", "work", "rootfs"] {
        fs::create_dir_all(unknown.join(directory)).unwrap();
    }
    for file in [
        "config.json",
        "bundle.json",
        "resources.json",
        "container.json",
    ] {
        let text = fs::read_to_string(whole.join(file)).unwrap();
        let text = text
            .replace(id.as_str(), "unknown")
            .replace("\"name\":\"main\"", "\"name\":\"other\"");
        fs::write(unknown.join(file), text).unwrap();
    }
    // A sandbox of which only the directory was made, and one in trash.
    let dead = node.place.join("root/oci/sandboxes/dead");
    fs::create_dir_all(&dead).unwrap();
    let text = fs::read_to_string(
        node.place
            .join(format!("root/oci/sandboxes/{}/sandbox.json", sandbox.id)),
    )
    .unwrap();
    fs::write(
        dead.join("sandbox.json"),
        text.replace(sandbox.id.as_str(), "dead")
            .replace("uid-pod", "uid-dead")
            .replace("pod-pod", "pod-dead"),
    )
    .unwrap();
    fs::create_dir_all(node.place.join("root/oci/trash/x/y")).unwrap();
    fs::create_dir_all(node.place.join("root/oci/sandboxes/.new")).unwrap();
    fs::create_dir_all(node.place.join("run/oci/pods/nobody")).unwrap();
    node.restart().await;
    assert!(!half.exists() && fs::symlink_metadata(node.place.join("images/leases/half")).is_err());
    assert!(
        !node.place.join("root/oci/trash/x").exists()
            && !node.place.join("run/oci/pods/nobody").exists()
    );
    let unknown = ContainerId::new("unknown");
    assert_eq!(
        node.runtime.container_status(&unknown).await.unwrap().state,
        ContainerState::Created
    );
    node.runtime.start_container(&unknown).await.unwrap();
    assert_eq!(node.exec_text(&unknown, "echo works").await, "works\n");
    let dead = PodSandboxId::new("dead");
    let listed = node.runtime.list_pod_sandboxes().await.unwrap();
    assert_eq!(
        listed.iter().find(|known| known.id == dead).unwrap().state,
        PodSandboxState::NotReady
    );
    node.runtime.remove_pod_sandbox(&dead).await.unwrap();
    assert_eq!(node.runtime.list_pod_sandboxes().await.unwrap().len(), 1);
}

async fn a_dead_half_of_a_sandbox_makes_room_for_a_new_one(mut node: Node) {
    let sandbox = node.sandbox("pod").await;
    node.runtime.stop_pod_sandbox(&sandbox.id).await.unwrap();
    node.restart().await;
    let again = node.runtime.run_pod_sandbox(&sandbox.config).await.unwrap();
    assert_ne!(again.id, sandbox.id);
    assert_eq!(node.runtime.list_pod_sandboxes().await.unwrap().len(), 1);
    // A sysctl that does not exist: said by name, and nothing stays.
    let mut config = node.sandbox_config("other");
    config.sysctls = vec![("kernel.no_such".into(), "1".into())];
    let error = node.runtime.run_pod_sandbox(&config).await.unwrap_err();
    assert!(error.to_string().contains("kernel.no_such"), "{error}");
    assert_eq!(node.runtime.list_pod_sandboxes().await.unwrap().len(), 1);
}

async fn a_supervisor_is_small(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let config = node.script(&sandbox, "main", "seq 1 20000; sleep 100");
    let id = node.start(&sandbox, &config).await;
    eventually("all lines", || {
        read_log(&config.log_path).ends_with("20000\n")
    })
    .await;
    node.exec(&id, "seq 1 1000").await;
    let smaps = fs::read_to_string(format!("/proc/{}/smaps_rollup", sandbox.pid.unwrap())).unwrap();
    let kib = |name: &str| -> u64 {
        smaps
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .trim()
            .parse()
            .unwrap()
    };
    let private = kib("Anonymous:");
    // What else is private is pages of files, which the next supervisor shares.
    assert!(private <= 1536, "{private} KiB\n{smaps}");
    println!("     a supervisor's private memory: {private} KiB");
}

async fn what_no_container_refers_to_is_removed_at_open(mut node: Node) {
    let sandbox = node.sandbox("pod").await;
    node.run(&sandbox, &node.script(&sandbox, "main", "true"))
        .await;
    let filters = node.place.join("root/oci/seccomp");
    fs::write(filters.join("stale.bpf"), "x").unwrap();
    node.restart().await;
    assert!(!filters.join("stale.bpf").exists());
    assert_eq!(fs::read_dir(&filters).unwrap().count(), 1);
    let containers = node.runtime.list_containers().await.unwrap();
    node.runtime
        .remove_container(&containers[0].id)
        .await
        .unwrap();
    node.restart().await;
    assert_eq!(fs::read_dir(&filters).unwrap().count(), 0);
    assert_eq!(
        node.run(&sandbox, &node.script(&sandbox, "again", "exit 2"))
            .await
            .0
            .exit_code,
        2
    );
}

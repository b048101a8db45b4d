//! User namespaces of pods, and containers that join another's process namespace.

use std::{fs, os::unix::fs::MetadataExt};

use wherry_runtime_api::{
    conformance::{ShellNode, read_log},
    *,
};

use crate::harness::{Node, eventually, tests};

tests! {
    a_pod_in_a_user_namespace_is_root_inside_and_nobody_outside
    volumes_keep_their_owners_in_a_user_namespace
    exec_and_terminals_work_in_a_user_namespace
    a_user_namespace_owns_what_the_pod_shares
    what_a_user_namespace_cannot_show_is_said_at_create
    a_container_joins_the_process_namespace_of_its_target
    a_target_that_does_not_run_is_said_at_create
}

const RANGE: UserNamespace = UserNamespace {
    host_id: 200_000,
    length: 65_536,
};

fn config(node: &Node) -> PodSandboxConfig {
    PodSandboxConfig {
        user_namespace: Some(RANGE),
        ..node.sandbox_config("pod")
    }
}

async fn sandbox(node: &Node) -> PodSandbox {
    assert!(node.runtime.status().await.features.user_namespaces);
    node.runtime.run_pod_sandbox(&config(node)).await.unwrap()
}

fn mount(host: &std::path::Path, at: &str, readonly: bool) -> Mount {
    Mount {
        container_path: at.into(),
        host_path: host.into(),
        readonly,
        recursive_readonly: false,
        propagation: MountPropagation::None,
    }
}

async fn a_pod_in_a_user_namespace_is_root_inside_and_nobody_outside(node: Node) {
    let sandbox = sandbox(&node).await;
    let script = "id -u; id -g; cat /proc/self/uid_map; stat -c %u:%g / /bin/busybox /dev /dev/shm /dev/null /made; \
                  touch /x /made/y /dev/shm/z && echo written; mkdir -p /tmp/d && stat -c %u /tmp/d; \
                  grep CapEff /proc/self/status; hostname; echo > /dev/null && echo null; \
                  kill -0 1 && echo signal; echo end; sleep 1000";
    let mut config = node.script(&sandbox, "main", script);
    config.working_dir = Some("/made".into());
    config.resources.memory_bytes_max = Some(64 << 20);
    config.resources.pids_max = Some(50);
    let id = node.start(&sandbox, &config).await;
    eventually("it says all", || {
        read_log(&config.log_path).contains("end\n")
    })
    .await;
    let log = read_log(&config.log_path);
    let words: Vec<&str> = log.split_whitespace().collect();
    assert_eq!(words[..5], ["0", "0", "0", "200000", "65536"], "{log}");
    assert_eq!(words[5..11], ["0:0"; 6], "{log}");
    assert!(log.contains("written\n0\n"), "{log}");
    assert!(
        log.contains("00000000a80425fb") && log.contains("null\n") && log.contains("signal\n"),
        "{log}"
    );
    let pid = node
        .runtime
        .container_status(&id)
        .await
        .unwrap()
        .pid
        .unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        status.contains("Uid:\t200000\t200000\t200000\t200000"),
        "{status}"
    );
    for kind in ["user", "mnt", "net", "ipc", "uts", "cgroup"] {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(
            theirs,
            fs::read_link(format!("/proc/self/ns/{kind}")).unwrap()
        );
    }
    let mut user = node.script(
        &sandbox,
        "user",
        "id -u; id -G; touch /dev/stdout && echo ok; grep CapEff /proc/self/status",
    );
    user.security.run_as_user = Some(1000);
    user.security.run_as_group = Some(1000);
    user.security.supplemental_groups = vec![5000];
    let (_, log) = node.run(&sandbox, &user).await;
    assert_eq!(log, "1000\n1000 2000 5000\nok\nCapEff:\t0000000000000000\n");
}

async fn volumes_keep_their_owners_in_a_user_namespace(node: Node) {
    let sandbox = sandbox(&node).await;
    let volume = node.place.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("roots"), "x").unwrap();
    fs::write(volume.join("apps"), "x").unwrap();
    std::os::unix::fs::chown(volume.join("apps"), Some(1000), Some(1000)).unwrap();
    let message = node.place.join("message");
    fs::write(&message, "").unwrap();
    let script = "stat -c %u:%g /v /v/roots /v/apps; echo new > /v/new; /bin/busybox chown 1000:1000 /v/new; echo done > /message; \
                  touch /ro/x && echo written; true";
    let mut config = node.script(&sandbox, "main", script);
    config.mounts = vec![
        mount(&volume, "/v", false),
        mount(&message, "/message", false),
        mount(&volume, "/ro", true),
    ];
    let (exit, log) = node.run(&sandbox, &config).await;
    assert_eq!(
        (exit.exit_code, log.replace('\n', " ")),
        (
            0,
            "0:0 0:0 1000:1000 touch: /ro/x: Read-only file system ".to_owned()
        )
    );
    let new = fs::metadata(volume.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (1000, 1000));
    assert_eq!(fs::read_to_string(&message).unwrap(), "done\n");
    // What another pod, without a user namespace, sees of it.
    assert_eq!(fs::metadata(volume.join("roots")).unwrap().uid(), 0);
}

async fn exec_and_terminals_work_in_a_user_namespace(node: Node) {
    let sandbox = sandbox(&node).await;
    let mut config = node.script(&sandbox, "main", "tty; stat -c %u:%g $(tty); sleep 1000");
    config.tty = true;
    let id = node.start(&sandbox, &config).await;
    eventually("it says all", || read_log(&config.log_path).contains(":5")).await;
    assert_eq!(
        read_log(&config.log_path).replace('\r', ""),
        "/dev/pts/0\n0:5\n"
    );
    let text = node
        .exec_text(
            &id,
            "id -u; cat /proc/self/uid_map; touch /made && stat -c %u /made; cat /proc/1/comm",
        )
        .await;
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "200000", "65536", "0", "sleep"]);
    let request = ExecRequest {
        command: ["/bin/sh", "-c", "tty && touch $(tty) && stat -c %u $(tty)"]
            .map(str::to_owned)
            .to_vec(),
        tty: true,
        stdin: false,
        stdout: true,
        stderr: false,
    };
    let mut session = node.runtime.exec(&id, &request).await.unwrap();
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(session.stdout.as_mut().unwrap(), &mut text)
        .await
        .unwrap();
    assert_eq!(text.replace('\r', ""), "/dev/pts/1\n0\n");
    assert_eq!(session.exit.await.unwrap(), 0);
}

async fn a_user_namespace_owns_what_the_pod_shares(node: Node) {
    let mut config = config(&node);
    config.namespaces.pid = NamespaceMode::Pod;
    config.sysctls = vec![("net.ipv4.ip_local_port_range".into(), "40000 40100".into())];
    let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();
    let script = "cat /proc/sys/net/ipv4/ip_local_port_range; touch /dev/shm/one; ps -o user,args; sleep 1000";
    let first = node.script(&sandbox, "first", script);
    let id = node.start(&sandbox, &first).await;
    eventually("it says all", || read_log(&first.log_path).contains("ps")).await;
    let log = read_log(&first.log_path);
    assert!(log.contains("40000\t40100"), "{log}");
    // Process 1 of the pod is its root too.
    assert!(!log.contains("65534"), "{log}");
    // With the capabilities for it, it may do to its own namespaces what root may do.
    let script = "hostname other && hostname; mount -t tmpfs x /tmp && touch /tmp/a && echo mounted; \
                  mount -t proc x /tmp && echo proc; /bin/busybox umount /proc && echo bared; ls /dev/shm; \
                  cat /proc/1/comm; ls /proc/1/root && echo node";
    let mut second = node.script(&sandbox, "second", script);
    second.security.capabilities_add =
        vec!["SYS_ADMIN".into(), "NET_ADMIN".into(), "SYS_PTRACE".into()];
    let (_, log) = node.run(&sandbox, &second).await;
    assert!(
        log.contains("other\n") && log.contains("mounted\n") && log.contains("one\n"),
        "{log}"
    );
    assert!(
        log.contains("pause\n") && !log.contains("node\n") && !log.contains("bared"),
        "{log}"
    );
    node.runtime
        .stop_container(&id, std::time::Duration::ZERO)
        .await
        .unwrap();
}

async fn what_a_user_namespace_cannot_show_is_said_at_create(node: Node) {
    let mut host = config(&node);
    host.namespaces.network = NamespaceMode::Node;
    let error = node.runtime.run_pod_sandbox(&host).await.unwrap_err();
    assert!(matches!(error, RuntimeError::InvalidArgument(_)), "{error}");
    let sandbox = sandbox(&node).await;
    let create = async |change: &(dyn Fn(&mut ContainerConfig) + Sync)| {
        let mut config = node.script(&sandbox, "main", "true");
        change(&mut config);
        node.runtime.create_container(&sandbox, &config).await
    };
    let error = create(&|config| config.security.run_as_user = Some(65_536)).await;
    assert!(
        matches!(&error, Err(RuntimeError::InvalidArgument(text)) if text.contains("65536")),
        "{error:?}"
    );
    let error = create(&|config| config.mounts = vec![mount("/proc".as_ref(), "/p", false)]).await;
    assert!(
        matches!(&error, Err(RuntimeError::Unsupported(text)) if text.contains("/p: /proc")),
        "{error:?}"
    );
    let error = create(&|config| {
        config.mounts = vec![Mount {
            propagation: MountPropagation::Bidirectional,
            ..mount("/tmp".as_ref(), "/t", false)
        }];
    })
    .await;
    assert!(
        matches!(&error, Err(RuntimeError::Unsupported(text)) if text.contains("/t")),
        "{error:?}"
    );
    assert!(node.runtime.list_containers().await.unwrap().is_empty());
}

async fn a_container_joins_the_process_namespace_of_its_target(node: Node) {
    for range in [None, Some(RANGE)] {
        let sandbox = PodSandboxConfig {
            user_namespace: range,
            ..node.sandbox_config(if range.is_some() { "mapped" } else { "plain" })
        };
        let sandbox = node.runtime.run_pod_sandbox(&sandbox).await.unwrap();
        let app = node.script(&sandbox, "app", "sleep 1234");
        let app = node.start(&sandbox, &app).await;
        let script = "ps -o pid,args; ls /proc/1/root/etc/passwd; sleep 1000";
        let mut debug = node.script(&sandbox, "debug", script);
        debug.pid_target = Some(app.clone());
        debug.security.capabilities_add = vec!["SYS_PTRACE".into()];
        let id = node.start(&sandbox, &debug).await;
        eventually("it says all", || {
            read_log(&debug.log_path).contains("passwd")
        })
        .await;
        let log = read_log(&debug.log_path);
        assert!(
            log.lines()
                .any(|line| line.trim().starts_with("1 ") && line.contains("sleep 1234")),
            "{log}"
        );
        assert!(node.exec_text(&id, "ps").await.contains("sleep 1234"));
        // And the other way round; the target has the namespace, so the two end together.
        assert!(node.exec_text(&app, "ps").await.contains("sleep 1000"));
        let zero = std::time::Duration::ZERO;
        node.runtime.stop_container(&app, zero).await.unwrap();
        assert_eq!(node.exit(&id).await.exit_code, 137);
    }
}

async fn a_target_that_does_not_run_is_said_at_create(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let app = node.script(&sandbox, "app", "true");
    let target = node.start(&sandbox, &app).await;
    node.exit(&target).await;
    let mut debug = node.script(&sandbox, "debug", "true");
    debug.pid_target = Some(target);
    let error = node.runtime.create_container(&sandbox, &debug).await;
    assert!(
        matches!(&error, Err(RuntimeError::FailedPrecondition(text)) if text.contains("not running")),
        "{error:?}"
    );
    assert_eq!(node.runtime.list_containers().await.unwrap().len(), 1);
}

//! A container's life: output, exits, limits, signals.

use std::{
    fs,
    time::{Duration, Instant},
};

use wherry_runtime_api::{
    conformance::{ShellNode, read_log},
    *,
};

use crate::harness::{Node, eventually, tests};

tests! {
    volumes_of_the_image_can_be_written_under_a_readonly_root
    a_kill_is_not_a_want_of_memory_that_was_survived
    a_container_runs_and_its_output_is_in_cri_format
    long_lines_come_in_parts_and_nothing_is_lost
    logs_are_rotated_and_the_oldest_removed
    reopening_a_log_makes_the_file_anew
    calls_are_repeatable
    a_missing_command_is_a_start_error_in_runcs_words
    what_image_and_config_make_impossible_is_said_at_create
    environment_arguments_and_working_directory_follow_kubernetes
    memory_beyond_the_limit_is_oom_killed
    limits_are_set_and_updated
    stop_asks_and_then_kills
    a_second_stop_shortens_the_grace_period
    the_images_user_and_groups_are_looked_up_inside
    two_containers_share_network_ipc_and_hostname
    a_shared_process_namespace_is_shared
    host_namespaces_are_the_nodes
    mounts_are_made_as_asked
    links_in_the_image_lead_nowhere_else
    stats_count
    fifty_containers_at_once
    a_wasm_sandbox_is_refused
    a_limit_the_kernel_refuses_is_an_invalid_argument
    a_full_disk_loses_output_and_stalls_nobody
}

async fn a_container_runs_and_its_output_is_in_cri_format(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let config = node.script(
        &sandbox,
        "main",
        "echo out; echo err >&2; printf tail; exit 7",
    );
    let mut events = node.runtime.subscribe();
    let (exit, log) = node.run(&sandbox, &config).await;
    assert_eq!(exit.exit_code, 7);
    assert!(exit.started_at.is_some() && exit.finished_at >= exit.started_at.unwrap());
    assert!(
        log.contains("out\n") && log.contains("err\n") && log.contains("tail"),
        "{log:?}"
    );
    let raw = fs::read_to_string(&config.log_path).unwrap();
    let line = raw.lines().find(|line| line.ends_with(" out")).unwrap();
    let (time, rest) = line.split_at(30);
    assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    assert_eq!(rest, " stdout F out");
    assert!(
        raw.contains(" stderr F err\n") && raw.contains(" stdout P tail\n"),
        "{raw}"
    );
    assert!(matches!(
        events.recv().await.unwrap(),
        RuntimeEvent::ContainerStarted { .. }
    ));
    assert!(matches!(
        events.recv().await.unwrap(),
        RuntimeEvent::ContainerExited { .. }
    ));
    let status = &node.runtime.list_containers().await.unwrap()[0];
    assert_eq!(
        (status.name.as_str(), status.handler.as_str(), status.pid),
        ("main", "oci", None)
    );
    assert_eq!(status.labels, [("k".to_owned(), "v".to_owned())]);
}

async fn long_lines_come_in_parts_and_nothing_is_lost(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let config = node.script(
        &sandbox,
        "main",
        "head -c 40000 /dev/zero | tr '\\0' x; echo; seq 1 50000",
    );
    let mut config = config;
    config.command[2] = config.command[2].replace("tr ", "/bin/busybox tr ");
    let (_, log) = node.run(&sandbox, &config).await;
    let raw = fs::read_to_string(&config.log_path).unwrap();
    let parts: Vec<_> = raw
        .lines()
        .filter(|line| line.contains("xxx"))
        .map(|line| line.split(' ').nth(2).unwrap())
        .collect();
    assert_eq!(parts, ["P", "P", "F"]);
    let mut expected = "x".repeat(40000) + "\n";
    (1..=50000).for_each(|number| expected.push_str(&format!("{number}\n")));
    assert!(
        log == expected,
        "{} bytes logged of {}",
        log.len(),
        expected.len()
    );
}

async fn logs_are_rotated_and_the_oldest_removed(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let mut config = node.script(&sandbox, "main", "seq 1 20000");
    config.log_rotation = LogRotation {
        size_bytes_max: 100_000,
        files_max: 3,
    };
    node.run(&sandbox, &config).await;
    let mut files: Vec<_> = fs::read_dir(config.log_path.parent().unwrap())
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 3, "{files:?}");
    assert!(
        files
            .iter()
            .all(|file| fs::metadata(file).unwrap().len() <= 100_000)
    );
    // The current file sorts first; the others by age.
    files.rotate_left(1);
    let text: String = files.iter().map(|file| read_log(file)).collect();
    let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(*numbers.last().unwrap(), 20000);
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "lines are missing between files"
    );
}

async fn reopening_a_log_makes_the_file_anew(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let config = node.script(&sandbox, "main", "echo before; cat /tmp/go 2>/dev/null; while ! [ -e /tmp/go ]; do sleep 0.01; done; echo after");
    let id = node.start(&sandbox, &config).await;
    eventually("the first line", || {
        read_log(&config.log_path) == "before\n"
    })
    .await;
    fs::rename(&config.log_path, config.log_path.with_extension("old")).unwrap();
    node.runtime.reopen_container_log(&id).await.unwrap();
    node.exec(&id, "touch /tmp/go").await;
    node.exit(&id).await;
    assert_eq!(read_log(&config.log_path), "after\n");
}

async fn calls_are_repeatable(node: Node) {
    let sandbox = node.sandbox("pod").await;
    assert_eq!(
        node.runtime.run_pod_sandbox(&sandbox.config).await.unwrap(),
        sandbox
    );
    let config = node.script(&sandbox, "main", "sleep 100");
    let id = node
        .runtime
        .create_container(&sandbox, &config)
        .await
        .unwrap();
    assert_eq!(
        node.runtime
            .create_container(&sandbox, &config)
            .await
            .unwrap(),
        id
    );
    assert_eq!(
        node.runtime.container_status(&id).await.unwrap().state,
        ContainerState::Created
    );
    for _ in 0..2 {
        node.runtime.start_container(&id).await.unwrap();
    }
    assert_eq!(
        node.runtime
            .create_container(&sandbox, &config)
            .await
            .unwrap(),
        id
    );
    for _ in 0..2 {
        node.runtime
            .stop_container(&id, Duration::ZERO)
            .await
            .unwrap();
    }
    node.runtime.start_container(&id).await.unwrap();
    for _ in 0..2 {
        node.runtime.remove_container(&id).await.unwrap();
    }
    assert!(
        node.runtime
            .container_status(&id)
            .await
            .unwrap_err()
            .is_not_found()
    );
    let again = node
        .runtime
        .create_container(&sandbox, &config)
        .await
        .unwrap();
    assert_ne!(again, id);
    for _ in 0..2 {
        node.runtime.stop_pod_sandbox(&sandbox.id).await.unwrap();
    }
    let listed = node.runtime.list_pod_sandboxes().await.unwrap();
    assert_eq!(listed[0].state, PodSandboxState::NotReady);
    assert!(matches!(
        node.runtime.container_status(&again).await.unwrap().state,
        ContainerState::Exited(_)
    ));
    for _ in 0..2 {
        node.runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
    }
    assert!(node.runtime.list_pod_sandboxes().await.unwrap().is_empty());
    assert!(node.runtime.list_containers().await.unwrap().is_empty());
}

async fn a_missing_command_is_a_start_error_in_runcs_words(node: Node) {
    let sandbox = node.sandbox("pod").await;
    for (name, command, words) in [
        (
            "a",
            "foo",
            "exec: \"foo\": executable file not found in $PATH",
        ),
        (
            "b",
            "/foo",
            "exec: \"/foo\": stat /foo: no such file or directory",
        ),
        (
            "c",
            "/not-executable",
            "exec: \"/not-executable\": permission denied",
        ),
        ("d", "/etc", "exec: \"/etc\": is a directory"),
    ] {
        let mut config = node.script(&sandbox, name, "");
        config.command = vec![command.into()];
        let id = node
            .runtime
            .create_container(&sandbox, &config)
            .await
            .unwrap();
        let error = node.runtime.start_container(&id).await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::InvalidArgument(message) if message == words),
            "{error}"
        );
        let ContainerState::Exited(exit) = node.runtime.container_status(&id).await.unwrap().state
        else {
            panic!()
        };
        assert_eq!(
            (exit.exit_code, exit.started_at, exit.message.as_deref()),
            (128, None, Some(words))
        );
    }
}

async fn what_image_and_config_make_impossible_is_said_at_create(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let create = async |name: &str, change: &(dyn Fn(&mut ContainerConfig) + Sync)| {
        let mut config = node.script(&sandbox, name, "true");
        change(&mut config);
        match node.runtime.create_container(&sandbox, &config).await {
            Err(RuntimeError::InvalidArgument(message)) => message,
            other => panic!("{name}: {other:?}"),
        }
    };
    let unknown = node.image("unknown-user");
    let message = create("user", &|config| config.image_id = unknown.clone()).await;
    assert_eq!(
        message,
        "unable to find user nobody-knows: no matching entries in passwd file"
    );
    let message = create("cwd", &|config| config.working_dir = Some("/a-file".into())).await;
    assert_eq!(message, "mkdir /a-file: not a directory");
    let message = create("root", &|config| config.security.run_as_non_root = true).await;
    assert_eq!(
        message,
        "container has runAsNonRoot and image will run as root (pod: \"pod_default(uid-pod)\", container: root)"
    );
    let message = create("cap", &|config| {
        config.security.capabilities_add = vec!["FLY".into()]
    })
    .await;
    assert_eq!(message, "unknown capability \"CAP_FLY\"");
    let message = create("device", &|config| {
        config.devices.push(Device {
            host_path: "/dev/no-such".into(),
            container_path: "/dev/x".into(),
            permissions: "rwm".into(),
        });
    })
    .await;
    assert!(message.contains("/dev/no-such"), "{message}");
    let message = create("seccomp", &|config| {
        config.security.seccomp = SeccompProfile::Localhost("/no/such.json".into());
    })
    .await;
    assert!(message.contains("/no/such.json"), "{message}");
    let mut config = node.script(&sandbox, "image", "true");
    config.image_id =
        "sha256:0000000000000000000000000000000000000000000000000000000000000000".into();
    let error = node
        .runtime
        .create_container(&sandbox, &config)
        .await
        .unwrap_err();
    assert!(matches!(error, RuntimeError::ImageNotFound(_)), "{error}");
    assert!(node.runtime.list_containers().await.unwrap().is_empty());
}

async fn environment_arguments_and_working_directory_follow_kubernetes(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let mut config = node.script(&sandbox, "main", "env; pwd; echo $0 $1");
    config.args = vec!["zero".into(), "one".into()];
    config.env = vec![
        ("IMAGE".into(), "replaced".into()),
        ("B".into(), "two words".into()),
    ];
    config.working_dir = Some("/made/here".into());
    let (_, log) = node.run(&sandbox, &config).await;
    for line in [
        "IMAGE=replaced",
        "B=two words",
        "HOSTNAME=pod",
        "HOME=/root",
        "/made/here",
        "zero one",
    ] {
        assert!(
            log.lines().any(|known| known == line),
            "{line} is not in {log}"
        );
    }
    assert!(log.contains("PATH=/usr/local/sbin:"));
    // No command of its own: the image's, with nothing to read.
    config.name = "image".into();
    config.command.clear();
    config.args.clear();
    assert_eq!(node.run(&sandbox, &config).await.0.exit_code, 0);
}

async fn memory_beyond_the_limit_is_oom_killed(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let mut config = node.script(
        &sandbox,
        "main",
        "exec dd if=/dev/zero of=/dev/null bs=200M count=1",
    );
    config.resources.memory_bytes_max = Some(32 * 1024 * 1024);
    let (exit, _) = node.run(&sandbox, &config).await;
    assert_eq!(
        (exit.exit_code, exit.signal, exit.oom_killed),
        (137, Some(9), true),
        "{exit:?}"
    );
    let mut config = node.script(&sandbox, "other", "kill -9 $$; sleep 9");
    config.command[2] = "exit 3".into();
    let (exit, _) = node.run(&sandbox, &config).await;
    assert_eq!((exit.exit_code, exit.oom_killed), (3, false));
}

async fn limits_are_set_and_updated(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let mut config = node.script(&sandbox, "main", "sleep 100");
    config.resources = LinuxResources {
        cpu_shares: Some(512),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(100_000),
        memory_bytes_max: Some(64 << 20),
        pids_max: Some(77),
        ..LinuxResources::default()
    };
    let id = node.start(&sandbox, &config).await;
    let read = |file: &str| {
        let (controller, _) = file.split_once('.').unwrap();
        let path = format!(
            "/sys/fs/cgroup/{controller}/{}/{id}/{file}",
            sandbox.config.cgroup_parent
        );
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    assert_eq!(read("cpu.shares"), "512");
    assert_eq!(read("cpu.cfs_quota_us"), "50000");
    assert_eq!(read("memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!(read("pids.max"), "77");
    // The container sees its own group as the root.
    let seen = node
        .exec_text(
            &id,
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes; cat /proc/self/cgroup",
        )
        .await;
    assert!(seen.starts_with(&(64 << 20).to_string()), "{seen}");
    assert!(
        seen.lines().any(|line| line.ends_with(":memory:/")),
        "{seen}"
    );
    for limit in [128u64 << 20, 48 << 20] {
        let resources = LinuxResources {
            memory_bytes_max: Some(limit),
            cpu_quota_us: Some(-1),
            ..LinuxResources::default()
        };
        node.runtime
            .update_container_resources(&id, &resources)
            .await
            .unwrap();
        assert_eq!(read("memory.limit_in_bytes"), limit.to_string());
        assert_eq!(read("cpu.cfs_quota_us"), "-1");
    }
}

async fn stop_asks_and_then_kills(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let polite = node.script(
        &sandbox,
        "polite",
        "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.02; done",
    );
    let id = node.start(&sandbox, &polite).await;
    eventually("it is up", || read_log(&polite.log_path) == "up\n").await;
    node.runtime
        .stop_container(&id, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(node.exit(&id).await.exit_code, 5);
    assert_eq!(read_log(&polite.log_path), "up\nbye\n");

    let mut quit = node.script(
        &sandbox,
        "quit",
        "trap 'exit 6' QUIT; echo up; while :; do sleep 0.02; done",
    );
    quit.stop_signal = Some(3);
    let id = node.start(&sandbox, &quit).await;
    eventually("it is up", || read_log(&quit.log_path) == "up\n").await;
    node.runtime
        .stop_container(&id, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(node.exit(&id).await.exit_code, 6);

    let deaf = node.script(&sandbox, "deaf", "trap '' TERM; sleep 100 & sleep 100");
    let id = node.start(&sandbox, &deaf).await;
    let asked = Instant::now();
    node.runtime
        .stop_container(&id, Duration::from_millis(200))
        .await
        .unwrap();
    assert!(asked.elapsed() >= Duration::from_millis(200));
    let exit = node.exit(&id).await;
    assert_eq!(
        (exit.exit_code, exit.signal, exit.oom_killed),
        (137, Some(9), false)
    );
}

async fn a_second_stop_shortens_the_grace_period(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let id = node
        .start(
            &sandbox,
            &node.script(&sandbox, "deaf", "trap '' TERM; sleep 100"),
        )
        .await;
    let (runtime, first) = (node.runtime.clone(), id.clone());
    let patient = tokio::spawn(async move {
        runtime
            .stop_container(&first, Duration::from_secs(100))
            .await
    });
    node.runtime
        .stop_container(&id, Duration::from_millis(50))
        .await
        .unwrap();
    patient.await.unwrap().unwrap();
}

async fn the_images_user_and_groups_are_looked_up_inside(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let run = async |name: &str, change: &(dyn Fn(&mut ContainerConfig) + Sync)| {
        let mut config = node.script(
            &sandbox,
            name,
            "id -u; id -g; id -G; echo $HOME; echo ok > /dev/stdout",
        );
        change(&mut config);
        node.run(&sandbox, &config).await.1
    };
    assert_eq!(run("root", &|_| {}).await, "0\n0\n0\n/root\nok\n");
    let named = node.image("named-user");
    let log = run("named", &|config| config.image_id = named.clone()).await;
    assert_eq!(log, "1000\n1000\n1000 2000\n/home/app\nok\n");
    let log = run("numbers", &|config| {
        config.security.run_as_user = Some(4321);
        config.security.run_as_group = Some(99);
        config.security.supplemental_groups = vec![7, 8];
        config.security.run_as_non_root = true;
    })
    .await;
    assert_eq!(log, "4321\n99\n99 7 8\n/\nok\n");
}

async fn two_containers_share_network_ipc_and_hostname(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let first = node
        .start(&sandbox, &node.script(&sandbox, "first", "sleep 100"))
        .await;
    let second = node
        .start(&sandbox, &node.script(&sandbox, "second", "sleep 100"))
        .await;
    let namespaces = "for n in net ipc uts pid mnt cgroup; do readlink /proc/self/ns/$n; done";
    let (one, two) = (
        node.exec_text(&first, namespaces).await,
        node.exec_text(&second, namespaces).await,
    );
    let (one, two): (Vec<_>, Vec<_>) = (one.lines().collect(), two.lines().collect());
    assert_eq!(one[..3], two[..3]);
    assert!(one[3] != two[3] && one[4] != two[4]);
    let ours = fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(one[0], ours.to_str().unwrap());
    let SandboxNetwork::Namespace { path } = &sandbox.network else {
        panic!("{:?}", sandbox.network)
    };
    assert_eq!(fs::read_link(path).unwrap().to_str().unwrap(), one[0]);
    assert_eq!(node.exec_text(&first, "hostname").await, "pod\n");
    node.exec(&first, "echo shared > /dev/shm/x").await;
    assert_eq!(node.exec_text(&second, "cat /dev/shm/x").await, "shared\n");
    // The loopback interface is up.
    assert_eq!(
        node.exec(&first, "ping -c 1 -W 1 127.0.0.1")
            .await
            .exit_code,
        0
    );
    // Each is process 1 of its own.
    assert_eq!(
        node.exec_text(&first, "ps -o pid,comm | grep sleep | head -1")
            .await
            .trim(),
        "1 sleep"
    );
}

async fn a_shared_process_namespace_is_shared(node: Node) {
    let mut config = node.sandbox_config("pod");
    config.namespaces.pid = NamespaceMode::Pod;
    let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();
    let first = node
        .start(&sandbox, &node.script(&sandbox, "first", "sleep 101"))
        .await;
    let second = node
        .start(
            &sandbox,
            &node.script(&sandbox, "second", "sleep 102 & sleep 103"),
        )
        .await;
    let seen = node.exec_text(&first, "ps -o pid,args").await;
    assert!(
        seen.contains("sleep 101") && seen.contains("sleep 103"),
        "{seen}"
    );
    assert!(
        !seen
            .lines()
            .any(|line| line.trim().starts_with("1 ") && line.contains("sleep")),
        "{seen}"
    );
    // What a container leaves behind ends with it, and only that.
    node.runtime
        .stop_container(&second, Duration::ZERO)
        .await
        .unwrap();
    eventually("its children are gone", || {
        let group = format!(
            "/sys/fs/cgroup/pids/{}/{second}/cgroup.procs",
            config.cgroup_parent
        );
        fs::read_to_string(group).unwrap().is_empty()
    })
    .await;
    assert!(
        node.exec_text(&first, "ps -o args")
            .await
            .contains("sleep 101")
    );
}

async fn host_namespaces_are_the_nodes(node: Node) {
    let mut config = node.sandbox_config("pod");
    config.namespaces = NamespaceOptions {
        network: NamespaceMode::Node,
        pid: NamespaceMode::Node,
        ipc: NamespaceMode::Node,
    };
    config.hostname = None;
    let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();
    assert_eq!(sandbox.network, SandboxNetwork::Host);
    let id = node
        .start(
            &sandbox,
            &node.script(&sandbox, "main", "sleep 104 & sleep 105"),
        )
        .await;
    for name in ["net", "pid", "ipc", "uts"] {
        let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let theirs = node
            .exec_text(&id, &format!("readlink /proc/self/ns/{name}"))
            .await;
        assert_eq!(theirs.trim(), ours.to_str().unwrap());
    }
    node.runtime
        .stop_container(&id, Duration::ZERO)
        .await
        .unwrap();
    let group = format!(
        "/sys/fs/cgroup/pids/{}/{id}/cgroup.procs",
        config.cgroup_parent
    );
    eventually("its children are gone", || {
        fs::read_to_string(&group).unwrap().is_empty()
    })
    .await;
}

async fn mounts_are_made_as_asked(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let volume = node.place.join("volume");
    fs::create_dir_all(volume.join("inner")).unwrap();
    fs::write(node.place.join("hosts"), "127.0.0.1 me\n").unwrap();
    let mount = |container: &str, host: &std::path::Path, readonly| Mount {
        container_path: container.into(),
        host_path: host.into(),
        readonly,
        recursive_readonly: false,
        propagation: MountPropagation::None,
    };
    let mut config = node.script(
        &sandbox,
        "main",
        "exec 2>&1; cat /etc/hosts; echo a > /data/new/dir/f; echo b > /ro/f && echo written; cat /etc/dangling; \
         touch /proc/sys/x; echo 1 > /proc/sys/kernel/domainname && echo written; touch /sys/x && echo written; \
         cat /proc/kcore | head -c 1 | wc -c; ls /proc/acpi | wc -l; mount | grep -c overlay",
    );
    config.mounts = vec![
        mount("/etc/hosts", &node.place.join("hosts"), false),
        mount("/data/new/dir", &volume, false),
        mount("/ro", &volume, true),
        mount("/etc/dangling", &node.place.join("hosts"), true),
    ];
    let (_, log) = node.run(&sandbox, &config).await;
    assert_eq!(fs::read_to_string(volume.join("f")).unwrap(), "a\n");
    assert!(!log.contains("written"), "{log}");
    assert_eq!(log.matches("127.0.0.1 me").count(), 2, "{log}");
    assert!(log.ends_with("0\n0\n1\n"), "{log}");
    // A file on a directory is refused.
    config.name = "wrong".into();
    config.mounts = vec![mount("/etc", &node.place.join("hosts"), false)];
    let error = node
        .runtime
        .create_container(&sandbox, &config)
        .await
        .unwrap_err();
    assert!(matches!(error, RuntimeError::InvalidArgument(_)), "{error}");
}

async fn links_in_the_image_lead_nowhere_else(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let volume = node.place.join("volume");
    fs::create_dir_all(&volume).unwrap();
    let marker = node.place.join("marker");
    let mut config = node.script(
        &sandbox,
        "main",
        "readlink /escape; touch /tmp/v/inside; touch /escape/v/marker; ls /tmp/v",
    );
    config.mounts = vec![Mount {
        container_path: "/escape/v".into(),
        host_path: volume.clone(),
        readonly: false,
        recursive_readonly: false,
        propagation: MountPropagation::None,
    }];
    let (_, log) = node.run(&sandbox, &config).await;
    assert!(log.ends_with("inside\nmarker\n"), "{log}");
    assert!(volume.join("inside").exists() && !marker.exists());
}

async fn stats_count(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let script = "head -c 3000000 /dev/zero > /big; i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo up; sleep 100";
    let config = node.script(&sandbox, "main", script);
    let id = node.start(&sandbox, &config).await;
    eventually("it is up", || read_log(&config.log_path) == "up\n").await;
    let stats = node.runtime.container_stats(&id).await.unwrap();
    assert!(stats.cpu_usage_core_nanoseconds > 1_000_000, "{stats:?}");
    assert!(
        stats.memory_usage_bytes > 100_000
            && stats.memory_usage_bytes >= stats.memory_working_set_bytes
    );
    assert!(stats.process_count >= 1);
    assert!(stats.writable_layer_bytes >= 3_000_000, "{stats:?}");
    node.runtime
        .stop_container(&id, Duration::ZERO)
        .await
        .unwrap();
    assert!(
        node.runtime
            .container_stats(&id)
            .await
            .unwrap_err()
            .is_not_found()
    );
}

async fn fifty_containers_at_once(node: Node) {
    let pods = (0..50).map(|number| {
        let node = node.clone();
        async move {
            let sandbox = node.sandbox(&format!("pod-{number}")).await;
            let config = node.script(&sandbox, "main", &format!("echo {number}; exit {number}"));
            let (exit, log) = node.run(&sandbox, &config).await;
            assert_eq!((exit.exit_code, log), (number, format!("{number}\n")));
        }
    });
    futures::future::join_all(pods.map(tokio::spawn))
        .await
        .into_iter()
        .for_each(|joined| joined.unwrap());
}

async fn a_wasm_sandbox_is_refused(node: Node) {
    let mut sandbox = node.sandbox("pod").await;
    sandbox.handler = "wasm".into();
    let config = node.script(&sandbox, "main", "true");
    let error = node
        .runtime
        .create_container(&sandbox, &config)
        .await
        .unwrap_err();
    assert!(matches!(error, RuntimeError::Unsupported(_)), "{error}");
}

async fn a_limit_the_kernel_refuses_is_an_invalid_argument(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let mut config = node.script(&sandbox, "main", "true");
    config.resources.cpu_period_us = Some(7);
    let error = node
        .runtime
        .create_container(&sandbox, &config)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, RuntimeError::InvalidArgument(why) if why.contains("cpu.cfs_period_us")),
        "{error}"
    );
    assert!(node.runtime.list_containers().await.unwrap().is_empty());
}

async fn a_full_disk_loses_output_and_stalls_nobody(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let small = node.place.join("small");
    fs::create_dir(&small).unwrap();
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        assert!(
            std::process::Command::new(program)
                .args(arguments)
                .status()
                .unwrap()
                .success()
        );
    };
    run(
        "mount",
        &[
            "-t".as_ref(),
            "tmpfs".as_ref(),
            "-o".as_ref(),
            "size=64k".as_ref(),
            "x".as_ref(),
            small.as_ref(),
        ],
    );
    let mut config = node.script(&sandbox, "main", "seq 1 100000; exit 9");
    config.log_path = small.join("0.log");
    let id = node.start(&sandbox, &config).await;
    let exit = node.exit(&id).await;
    let logged = fs::metadata(&config.log_path).unwrap().len();
    node.runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
    run("umount", &[small.as_ref()]);
    assert_eq!(exit.exit_code, 9);
    assert!(logged > 0 && logged <= 64 * 1024, "{logged}");
}

async fn volumes_of_the_image_can_be_written_under_a_readonly_root(node: Node) {
    for user_namespace in [None, Some((400_000, 65_536))] {
        let name = if user_namespace.is_some() {
            "mapped"
        } else {
            "plain"
        };
        let config = PodSandboxConfig {
            user_namespace: user_namespace
                .map(|(host_id, length)| UserNamespace { host_id, length }),
            ..node.sandbox_config(name)
        };
        let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();
        let script = "touch /x 2>/dev/null || echo refused; ls /home; touch /home/app/a /made/volume/b && echo written; stat -c %u /made/volume";
        let mut config = node.script(&sandbox, "main", script);
        config.image_id = node.image("volumes");
        config.security.readonly_rootfs = true;
        let (_, log) = node.run(&sandbox, &config).await;
        assert!(
            log.contains("refused\n") && log.contains("app\nwritten\n0\n"),
            "{log}"
        );
        // What the pod mounts there is what is there.
        let volume = node.place.join("volume");
        fs::create_dir_all(&volume).unwrap();
        config.name = "mounted".into();
        config.mounts = vec![Mount {
            container_path: "/home".into(),
            host_path: volume.clone(),
            readonly: false,
            recursive_readonly: false,
            propagation: MountPropagation::None,
        }];
        config.command[2] = "touch /home/here; touch /made/volume/b && echo written".into();
        let (_, log) = node.run(&sandbox, &config).await;
        assert!(log.ends_with("\n0\nwritten\n"), "{log}");
        assert!(volume.join("here").exists());
    }
}

async fn a_kill_is_not_a_want_of_memory_that_was_survived(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let script =
        "trap '' TERM; dd if=/dev/zero of=/dev/null bs=200M count=1; echo survived; sleep 1000";
    let mut config = node.script(&sandbox, "main", script);
    config.resources.memory_bytes_max = Some(32 << 20);
    let id = node.start(&sandbox, &config).await;
    eventually("its child was killed", || {
        read_log(&config.log_path).contains("survived")
    })
    .await;
    node.runtime
        .stop_container(&id, Duration::ZERO)
        .await
        .unwrap();
    let exit = node.exit(&id).await;
    assert_eq!((exit.exit_code, exit.oom_killed), (137, false), "{exit:?}");
    // It did not cope with it: that is told, though the app itself was not killed.
    config.name = "fails".into();
    config.command[2] = "dd if=/dev/zero of=/dev/null bs=200M count=1 || exit 9".into();
    let (exit, _) = node.run(&sandbox, &config).await;
    assert_eq!((exit.exit_code, exit.oom_killed), (9, true), "{exit:?}");
}

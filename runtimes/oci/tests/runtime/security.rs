//! What a container may do and what not.

use std::fs;

use wherry_runtime_api::{conformance::ShellNode, *};

use crate::harness::{Node, tests};

tests! {
    the_default_container_holds_dockers_capabilities_and_a_filter
    capabilities_are_added_and_dropped
    what_the_node_cannot_give_is_a_warning
    no_new_privs_and_a_readonly_root_hold
    the_default_filter_refuses_what_dockers_refuses
    a_profile_on_the_node_is_used
    a_privileged_container_has_everything_the_node_has
    devices_are_limited_to_those_given
    exec_holds_no_more_than_the_container
    propagation_goes_the_way_that_was_asked
}

const STATUS: &str = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp:' /proc/self/status";

fn field(log: &str, name: &str) -> String {
    log.lines()
        .find_map(|line| line.strip_prefix(&format!("{name}:")))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

async fn the_default_container_holds_dockers_capabilities_and_a_filter(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let (_, log) = node
        .run(&sandbox, &node.script(&sandbox, "main", STATUS))
        .await;
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(field(&log, set), "00000000a80425fb");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(field(&log, set), "0000000000000000");
    }
    assert_eq!(
        (
            field(&log, "Seccomp").as_str(),
            field(&log, "NoNewPrivs").as_str()
        ),
        ("2", "0")
    );
    let mut user = node.script(&sandbox, "user", STATUS);
    user.security.run_as_user = Some(1000);
    let (_, log) = node.run(&sandbox, &user).await;
    assert_eq!(
        (
            field(&log, "CapEff").as_str(),
            field(&log, "CapPrm").as_str()
        ),
        ("0000000000000000", "0000000000000000")
    );
}

async fn capabilities_are_added_and_dropped(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let run = async |name: &str, add: &[&str], drop: &[&str]| {
        let mut config = node.script(&sandbox, name, STATUS);
        config.security.capabilities_add = add.iter().map(ToString::to_string).collect();
        config.security.capabilities_drop = drop.iter().map(ToString::to_string).collect();
        field(&node.run(&sandbox, &config).await.1, "CapEff")
    };
    assert_eq!(
        run("one", &["NET_BIND_SERVICE"], &["ALL"]).await,
        "0000000000000400"
    );
    assert_eq!(
        run("two", &["sys_time", "CAP_NET_ADMIN"], &["KILL"]).await,
        "00000000aa0435db"
    );
    assert_eq!(run("three", &[], &["ALL"]).await, "0000000000000000");
}

async fn no_new_privs_and_a_readonly_root_hold(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let mut config = node.script(
        &sandbox,
        "main",
        &format!("{STATUS}; touch /x && echo written; touch /dev/shm/x && echo shm"),
    );
    config.security.no_new_privs = true;
    config.security.readonly_rootfs = true;
    config.working_dir = Some("/made".into());
    let (_, log) = node.run(&sandbox, &config).await;
    assert_eq!(
        (
            field(&log, "Seccomp").as_str(),
            field(&log, "NoNewPrivs").as_str()
        ),
        ("2", "1")
    );
    assert!(!log.contains("written") && log.contains("shm"), "{log}");
}

async fn the_default_filter_refuses_what_dockers_refuses(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let script = "mount -t tmpfs x /tmp && echo mounted; unshare -n true && echo unshared; dmesg >/dev/null && echo read; \
                  chroot / true && echo chrooted; mknod /tmp/n c 1 3 && echo made";
    let (_, log) = node
        .run(&sandbox, &node.script(&sandbox, "main", script))
        .await;
    assert!(
        !log.contains("mounted") && !log.contains("unshared") && !log.contains("read\n"),
        "{log}"
    );
    assert!(log.contains("chrooted") && log.contains("made"), "{log}");
    // With the capability the call is let through.
    let mut config = node.script(&sandbox, "admin", script);
    config.security.capabilities_add = vec!["SYS_ADMIN".into()];
    let (_, log) = node.run(&sandbox, &config).await;
    assert!(log.contains("mounted") && log.contains("unshared"), "{log}");
}

async fn a_profile_on_the_node_is_used(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let profile = node.place.join("profile.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28,"args":null},
        {"names":["fchmodat","chmod"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":511,"op":"SCMP_CMP_EQ"}]},
        {"name":"fchmodat","action":"SCMP_ACT_ERRNO","args":[{"index":2,"value":511,"op":"SCMP_CMP_EQ"}]}]}"#;
    fs::write(&profile, text).unwrap();
    let script = "B=/bin/busybox; $B mkdir /d; $B chmod 777 /tmp && echo all; $B chmod 755 /tmp && echo some";
    let mut config = node.script(&sandbox, "main", script);
    config.security.seccomp = SeccompProfile::Localhost(profile);
    let (_, log) = node.run(&sandbox, &config).await;
    assert!(
        log.contains("No space left") && !log.contains("all\n") && log.contains("some\n"),
        "{log}"
    );
    config.name = "free".into();
    config.security.seccomp = SeccompProfile::Unconfined;
    config.command[2] = STATUS.into();
    let (_, log) = node.run(&sandbox, &config).await;
    assert_eq!(field(&log, "Seccomp"), "0");
}

async fn a_privileged_container_has_everything_the_node_has(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let script = format!(
        "{STATUS}; mount -t tmpfs x /tmp && echo mounted; ls /dev; touch /proc/sys/kernel/hostname && echo sys"
    );
    let mut config = node.script(&sandbox, "main", &script);
    config.security.privileged = true;
    let (_, log) = node.run(&sandbox, &config).await;
    assert_eq!(field(&log, "Seccomp"), "0");
    let ours = fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(field(&log, "CapEff"), field(&ours, "CapEff"));
    assert!(log.contains("mounted\n") && log.contains("sys\n"), "{log}");
    let device = fs::read_dir("/dev")
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .find(|name| name == "kmsg" || name == "fuse");
    assert!(
        device.is_none_or(|name| log.lines().any(|line| line == name.to_str().unwrap())),
        "{log}"
    );
}

async fn devices_are_limited_to_those_given(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let script = "exec 2>&1; mknod /tmp/kmsg c 1 11; cat /tmp/kmsg; echo $?; cat /dev/given | head -c 3 | wc -c; : > /dev/given; echo $?";
    let mut config = node.script(&sandbox, "main", script);
    config.devices.push(Device {
        host_path: "/dev/zero".into(),
        container_path: "/dev/given".into(),
        permissions: "rwm".into(),
    });
    let (_, log) = node.run(&sandbox, &config).await;
    assert!(
        log.ends_with("1\n3\n0\n") && log.contains("not permitted"),
        "{log}"
    );
}

async fn exec_holds_no_more_than_the_container(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let mut config = node.script(&sandbox, "main", "sleep 100");
    config.security.no_new_privs = true;
    config.security.capabilities_drop = vec!["ALL".into()];
    let id = node.start(&sandbox, &config).await;
    let log = node
        .exec_text(
            &id,
            &format!("{STATUS}; ls /proc/self/fd | wc -l; cat /proc/self/cgroup"),
        )
        .await;
    assert_eq!(field(&log, "CapEff"), "0000000000000000");
    assert_eq!(field(&log, "CapBnd"), "0000000000000000");
    assert_eq!(
        (
            field(&log, "Seccomp").as_str(),
            field(&log, "NoNewPrivs").as_str()
        ),
        ("2", "1")
    );
    // stdin, stdout, stderr and the directory that ls reads.
    assert!(log.lines().any(|line| line == "4"), "{log}");
    assert!(
        log.lines()
            .filter(|line| line.contains("memory"))
            .all(|line| line.ends_with(":/")),
        "{log}"
    );
}

async fn propagation_goes_the_way_that_was_asked(node: Node) {
    let sandbox = node.sandbox("pod").await;
    // A shared mount of the test's own: the node's root is private here.
    let shared = node.place.join("shared");
    fs::create_dir_all(shared.join("sub")).unwrap();
    let mount = |arguments: &[&str]| {
        assert!(
            std::process::Command::new("mount")
                .args(arguments)
                .status()
                .unwrap()
                .success(),
            "{arguments:?}"
        );
    };
    let path = shared.to_str().unwrap();
    mount(&["-t", "tmpfs", "wherry-test", path]);
    mount(&["--make-rshared", path]);
    fs::create_dir_all(shared.join("from-host")).unwrap();
    fs::create_dir_all(shared.join("from-container")).unwrap();
    let start = async |name: &str, propagation| {
        let mut config = node.script(&sandbox, name, "sleep 100");
        config.security.privileged = true;
        config.mounts = vec![Mount {
            container_path: "/v".into(),
            host_path: shared.clone(),
            readonly: false,
            recursive_readonly: false,
            propagation,
        }];
        node.start(&sandbox, &config).await
    };
    let none = start("none", MountPropagation::None).await;
    let slave = start("slave", MountPropagation::HostToContainer).await;
    let both = start("both", MountPropagation::Bidirectional).await;
    mount(&["-t", "tmpfs", "x", &format!("{path}/from-host")]);
    fs::write(shared.join("from-host/marker"), "").unwrap();
    for (id, seen) in [(&none, ""), (&slave, "marker\n"), (&both, "marker\n")] {
        assert_eq!(node.exec_text(id, "ls /v/from-host").await, seen);
    }
    for (id, seen) in [(&slave, false), (&both, true)] {
        assert_eq!(
            node.exec(
                id,
                "mount -t tmpfs x /v/from-container && touch /v/from-container/marker"
            )
            .await
            .exit_code,
            0
        );
        assert_eq!(shared.join("from-container/marker").exists(), seen);
    }
    node.runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
    // Only what the bidirectional container put there is the node's to undo.
    for place in ["from-container", "from-host", ""] {
        assert!(
            std::process::Command::new("umount")
                .arg(shared.join(place))
                .status()
                .unwrap()
                .success(),
            "{place}"
        );
    }
}

async fn what_the_node_cannot_give_is_a_warning(node: Node) {
    let sandbox = node.sandbox("pod").await;
    let ours = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = u64::from_str_radix(&field(&ours, "CapBnd"), 16).unwrap();
    let mut config = node.script(&sandbox, "main", STATUS);
    config.security.capabilities_add = vec!["SYS_RESOURCE".into()];
    config.resources.oom_score_adj = Some(-997);
    let id = node.start(&sandbox, &config).await;
    node.exit(&id).await;
    let warnings = node.runtime.container_status(&id).await.unwrap().warnings;
    // Both go with CAP_SYS_RESOURCE, which not every root has.
    let expected: &[&str] = match bounding & 1 << 24 {
        0 => &[
            "oom_score_adj -997",
            "capabilities that this node does not have: CAP_SYS_RESOURCE",
        ],
        _ => &[],
    };
    assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
    for (warning, start) in warnings.iter().zip(expected) {
        assert!(warning.starts_with(start), "{warning}");
    }
}

//! Fields of the pod contract that mean something of their own to a component.

use std::{net::IpAddr, os::unix::fs::MetadataExt, time::Duration};

use libtest_mimic::Trial;
use wherry_runtime_api::{
    AppArmorProfile, MountPropagation, NamespaceMode, Runtime, RuntimeError, SandboxNetwork,
    SeccompProfile,
};

use crate::{
    harness::{self, NetworkNamespace, Node, eventually, mount},
    tests,
};

/// The tests of this file.
pub(crate) fn trials() -> Vec<Trial> {
    tests!(
        a_component_keeps_its_exit_code_and_runs_a_script_as_busybox_does,
        what_a_component_makes_belongs_to_the_pods_user_and_group,
        who_must_not_be_root_writes_as_the_workers_user,
        what_cannot_be_honoured_is_refused_before_anything_is_made,
        what_means_nothing_is_said_and_does_no_harm,
        an_http_component_is_served_on_every_port_and_address,
        in_a_namespace_it_is_served_on_both_families,
        a_last_word_is_written_to_a_file_of_its_own,
        a_pods_worker_is_in_the_pods_cgroup_and_weighs_what_its_containers_do,
        a_pod_out_of_memory_is_told_as_such,
        an_isolated_pod_has_a_cgroup_of_its_own_which_goes_with_it,
    )
}

async fn a_component_keeps_its_exit_code_and_runs_a_script_as_busybox_does() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let id = node.run(&pod, &node.shell("sleep infinity")).await;
    for (script, expected) in [
        ("exit 7", (7, "")),
        ("false || echo no && true; echo $?", (0, "no\n0\n")),
        (
            "for x in a 'b c'; do printf '%s,' \"$x\"; done",
            (0, "a,b c,"),
        ),
        (
            "n=3; while [ $n -gt 0 ]; do echo -n $n; n=$((n - 1)); done",
            (0, "321"),
        ),
        ("echo one two | wc -c", (0, "8\n")),
        ("x=$(echo in; echo side); echo \"$x\"", (0, "in\nside\n")),
        (
            "if test -e /nothing; then echo yes; else exit 3; fi",
            (3, ""),
        ),
        (
            "echo oops >&2; nonsense",
            (127, "oops\nsh: nonsense: not found\n"),
        ),
        (
            "cat /nothing; echo $?",
            (
                0,
                "1\ncat: /nothing: No such file or directory (os error 44)\n",
            ),
        ),
    ] {
        let (code, said) = node.exec(&id, script).await;
        assert_eq!((code, said.as_str()), expected, "{script}");
    }
    let answer = node
        .runtime
        .exec_sync(&id, &["false".into()], Duration::from_secs(20))
        .await;
    assert_eq!(answer.unwrap().exit_code, 1);
}

async fn what_a_component_makes_belongs_to_the_pods_user_and_group() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let [own, shared, foreign] = ["own", "shared", "foreign"].map(|name| node.directory(name));
    let owned = |path: &std::path::Path, user, group, mode| {
        std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).unwrap();
    };
    owned(&own, 1234, 5678, 0o700);
    // As the agent leaves a volume with fsGroup 4242.
    owned(&shared, 0, 4242, 0o2770);
    owned(&foreign, 999, 999, 0o700);
    let mut config = node.shell("sleep infinity");
    config.mounts = vec![
        mount("/own", &own, false),
        mount("/shared", &shared, false),
        mount("/foreign", &foreign, false),
    ];
    config.security.run_as_user = Some(1234);
    config.security.run_as_group = Some(5678);
    config.security.supplemental_groups = vec![4241, 4242];
    let id = node.run(&pod, &config).await;
    let script = "echo a > /own/file && mkdir /shared/directory && echo b > /shared/file";
    assert_eq!(node.exec(&id, script).await, (0, String::new()));
    let owner = |path: std::path::PathBuf| {
        let file = std::fs::metadata(path).unwrap();
        (file.uid(), file.gid())
    };
    assert_eq!(owner(own.join("file")), (1234, 5678));
    assert_eq!(owner(shared.join("file")), (1234, 4242));
    assert_eq!(owner(shared.join("directory")), (1234, 4242));
    assert_eq!(node.exec(&id, "echo c > /foreign/file").await.0, 2);
}

async fn who_must_not_be_root_writes_as_the_workers_user() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let volume = node.directory("volume");
    let mut config = node.shell("echo a > /data/file");
    config.mounts = vec![mount("/data", &volume, false)];
    config.security.run_as_non_root = true;
    let id = node.run(&pod, &config).await;
    assert_eq!(
        node.exited(&id).await.exit_code,
        2,
        "the directory is root's"
    );
    std::os::unix::fs::chown(&volume, Some(65_532), None).unwrap();
    config.name = "again".into();
    let id = node.run(&pod, &config).await;
    assert_eq!(node.exited(&id).await.exit_code, 0);
    assert_eq!(
        std::fs::metadata(volume.join("file")).unwrap().uid(),
        65_532
    );
}

async fn what_cannot_be_honoured_is_refused_before_anything_is_made() {
    let node = Node::new().await;
    let mut sandbox = node.pod_config("sysctls", "default");
    sandbox.sysctls = vec![("net.ipv4.ip_unprivileged_port_start".into(), "0".into())];
    let refused = node.runtime.run_pod_sandbox(&sandbox).await.map(drop);
    assert!(
        matches!(&refused, Err(RuntimeError::Unsupported(why)) if why.starts_with("sysctl net.ipv4")),
        "{refused:?}"
    );
    let pod = node.pod("default").await;
    let good = node.shell("true");
    let mut travelling = mount("/data", &node.directory("volume"), false);
    travelling.propagation = MountPropagation::HostToContainer;
    let change = |change: &dyn Fn(&mut wherry_runtime_api::ContainerConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    for (config, what) in [
        (
            change(&|config| config.mounts = vec![travelling.clone()]),
            "mount /data",
        ),
        (
            change(&|config| config.security.seccomp = SeccompProfile::Localhost("/p.json".into())),
            "seccomp profile /p.json",
        ),
        (
            change(&|config| {
                config.security.apparmor = Some(AppArmorProfile::Localhost("p".into()))
            }),
            "AppArmor profile p",
        ),
        (
            change(&|config| config.resources.hugepage_bytes_max = vec![("2MB".into(), 1 << 21)]),
            "hugepages-2MB",
        ),
    ] {
        let refused = node.runtime.create_container(&pod, &config).await.map(drop);
        assert!(
            matches!(&refused, Err(RuntimeError::Unsupported(why)) if why.starts_with(what)),
            "{what}: {refused:?}"
        );
    }
    assert!(node.runtime.list_containers().await.unwrap().is_empty());
    assert_eq!(node.workers(), 0);
}

async fn what_means_nothing_is_said_and_does_no_harm() {
    let node = Node::new().await;
    let mut pod = node.pod("default").await;
    pod.config.namespaces.pid = NamespaceMode::Node;
    pod.config.namespaces.ipc = NamespaceMode::Node;
    let mut config = node.shell("true");
    config.security.privileged = true;
    config.security.unmasked_proc = true;
    config.security.capabilities_drop = vec!["ALL".into()];
    config.security.readonly_rootfs = true;
    config.security.no_new_privs = true;
    config.security.apparmor = Some(AppArmorProfile::RuntimeDefault);
    config.pid_target = Some("somebody".into());
    config.stop_signal = Some(10);
    let id = node.run(&pod, &config).await;
    assert_eq!(node.exited(&id).await.exit_code, 0);
    let warnings = node.runtime.container_status(&id).await.unwrap().warnings;
    let about: Vec<&str> = warnings
        .iter()
        .map(|text| text.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        about,
        [
            "privileges",
            "procMount",
            "hostPID",
            "hostIPC",
            "targetContainerName",
            "stopSignal"
        ]
    );
}

async fn an_http_component_is_served_on_every_port_and_address() {
    let node = Node::new().await;
    let mut pod = node.pod("default").await;
    pod.ips.push("fd99::1".parse().unwrap());
    let mut config = node.container("http_hello");
    config.annotations = vec![("wherry.dev/http-port".into(), "8085, 8086".into())];
    let id = node.run(&pod, &config).await;
    for port in [8085, 8086] {
        for ip in &pod.ips {
            let stream = tokio::net::TcpStream::connect((*ip, port)).await.unwrap();
            let answer = harness::http_over(stream, "/a").await;
            assert!(
                answer.ends_with("hello from wasm: /a\n"),
                "{ip} {port}: {answer}"
            );
        }
    }
    node.runtime.remove_container(&id).await.unwrap();
}

async fn in_a_namespace_it_is_served_on_both_families() {
    let node = Node::new().await;
    let namespace = NetworkNamespace::new();
    let mut pod = node.pod("default").await;
    pod.network = SandboxNetwork::Namespace {
        path: namespace.path(),
    };
    pod.handler = "oci".into();
    node.run(&pod, &node.container("http_hello")).await;
    let mut config = node.shell("sleep infinity");
    config.name = "client".into();
    let id = node.run(&pod, &config).await;
    for url in ["http://127.0.0.1:8080/a", "http://[::1]:8080/a"] {
        let script = format!("wget -q -O - {url}");
        assert_eq!(
            node.exec(&id, &script).await,
            (0, "hello from wasm: /a\n".into()),
            "{url}"
        );
    }
}

async fn a_last_word_is_written_to_a_file_of_its_own() {
    let node = Node::new().await;
    let pod = node.pod("default").await;
    let words = node.directory("pod").join("last-words");
    std::fs::write(&words, "").unwrap();
    let mut config = node.shell("echo gone wrong > /dev/termination-log; exit 4");
    config.mounts = vec![mount("/dev/termination-log", &words, false)];
    let id = node.run(&pod, &config).await;
    assert_eq!(node.exited(&id).await.exit_code, 4);
    assert_eq!(std::fs::read_to_string(words).unwrap(), "gone wrong\n");
}

/// The cgroup files of a pod, one per hierarchy that has it.
fn cgroup(path: &str, controller: &str, file: &str) -> Option<String> {
    let v1 = format!("/sys/fs/cgroup/{controller}/{path}/{file}");
    let v2 = format!("/sys/fs/cgroup/{path}/{file}");
    std::fs::read_to_string(v1)
        .or_else(|_| std::fs::read_to_string(v2))
        .ok()
}

async fn a_pods_worker_is_in_the_pods_cgroup_and_weighs_what_its_containers_do() {
    let node = Node::new().await;
    let namespace = NetworkNamespace::new();
    let mut pod = node.pod("default").await;
    pod.network = SandboxNetwork::Namespace {
        path: namespace.path(),
    };
    pod.handler = "oci".into();
    let mut ids = Vec::new();
    for (n, shares) in [512, 256].into_iter().enumerate() {
        let mut config = node.shell("sleep infinity");
        config.name = format!("c{n}");
        config.resources.cpu_shares = Some(shares);
        ids.push(node.run(&pod, &config).await);
    }
    let [process] = node.worker_processes()[..] else {
        panic!("one worker holds the pod")
    };
    let groups = std::fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap();
    let group = groups
        .lines()
        .find(|line| line.contains(":memory:") || line.starts_with("0::/wherry"));
    let group = group.unwrap().rsplit(':').next().unwrap().to_owned();
    assert!(
        group.contains(&format!("{}/wasm/", pod.config.cgroup_parent)),
        "{groups}"
    );
    let weight = || {
        let shares = cgroup(&group, "cpu", "cpu.shares");
        shares
            .or_else(|| cgroup(&group, "cpu", "cpu.weight"))
            .unwrap()
            .trim()
            .parse::<u64>()
            .unwrap()
    };
    let both = weight();
    node.runtime.remove_container(&ids[0]).await.unwrap();
    eventually("it weighs what is left", async || weight() < both).await;
    node.runtime.remove_container(&ids[1]).await.unwrap();
    eventually("its group goes with it", async || {
        cgroup(&group, "memory", "cgroup.procs").is_none()
    })
    .await;
}

async fn a_pod_out_of_memory_is_told_as_such() {
    let node = Node::new().await;
    let namespace = NetworkNamespace::new();
    let mut pod = node.pod("default").await;
    pod.network = SandboxNetwork::Namespace {
        path: namespace.path(),
    };
    pod.handler = "oci".into();
    let cgroups = wherry_cgroup::Cgroups::detect().unwrap();
    let group = cgroups.group(&pod.config.cgroup_parent);
    group.create().unwrap();
    pod.config.resources.memory_bytes_max = Some(128 << 20);
    group.set(&pod.config.resources).unwrap();
    // No limit of its own: the pod's holds.
    let id = node.run(&pod, &node.shell("eat")).await;
    let exit = node.exited(&id).await;
    assert_eq!((exit.exit_code, exit.oom_killed), (137, true), "{exit:?}");
}

async fn an_isolated_pod_has_a_cgroup_of_its_own_which_goes_with_it() {
    let node = Node::new().await;
    let mut config = node.pod_config("isolated", "default");
    config.isolated = true;
    config.resources.memory_bytes_max = Some(256 << 20);
    let mut pod = node.runtime.run_pod_sandbox(&config).await.unwrap();
    pod.ips = vec![IpAddr::V4(harness::next_ip())];
    let path = &config.cgroup_parent;
    let limit = || {
        let v1 = cgroup(path, "memory", "memory.limit_in_bytes");
        v1.or_else(|| cgroup(path, "memory", "memory.max"))
            .map(|text| text.trim().to_owned())
    };
    assert_eq!(limit().as_deref(), Some("268435456"));
    node.run(&pod, &node.shell("sleep infinity")).await;
    let mut resources = config.resources.clone();
    resources.memory_bytes_max = Some(512 << 20);
    node.runtime
        .update_pod_sandbox_resources(&pod.id, &resources)
        .await
        .unwrap();
    assert_eq!(limit().as_deref(), Some("536870912"));
    node.runtime.remove_pod_sandbox(&pod.id).await.unwrap();
    assert_eq!(limit(), None);
}

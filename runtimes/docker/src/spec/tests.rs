#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::SystemTime;

use wherry_runtime_api::*;

use super::*;

fn facts() -> Facts {
    Facts {
        capabilities: u64::MAX,
        ..Facts::default()
    }
}

fn poor() -> Facts {
    Facts {
        capabilities: !(1 << 24),
        ..Facts::default()
    }
}

fn pod() -> PodSandbox {
    PodSandbox {
        id: "sandbox".into(),
        handler: "docker".into(),
        config: PodSandboxConfig {
            hostname: Some("pod".into()),
            ..PodSandboxConfig::new("uid", "pod", "default", "/log", "wherry/pod")
        },
        state: PodSandboxState::Ready,
        created_at: SystemTime::UNIX_EPOCH,
        network: SandboxNetwork::Host,
        ips: Vec::new(),
        pid: Some(1),
    }
}

fn config() -> ContainerConfig {
    ContainerConfig::new("main", "sha256:0", "image", "/log/0.log")
}

fn host_config(pod: &PodSandbox, config: &ContainerConfig, facts: &Facts) -> HostConfig {
    container(pod, config, &ImageConfig::default(), facts)
        .unwrap()
        .body
        .host_config
        .unwrap()
}

#[test]
fn namespaces_follow_the_pod() {
    let mut pod = pod();
    let of_pod = || Some("container:sandbox".to_owned());
    let made = host_config(&pod, &config(), &facts());
    assert_eq!((made.network_mode, made.ipc_mode), (of_pod(), of_pod()));
    assert_eq!((made.pid_mode, made.uts_mode), (None, None));
    assert_eq!(made.cgroup_parent.as_deref(), Some("/wherry/pod"));

    pod.config.namespaces.pid = NamespaceMode::Pod;
    assert_eq!(host_config(&pod, &config(), &facts()).pid_mode, of_pod());
    let target = ContainerConfig {
        pid_target: Some("other".into()),
        ..config()
    };
    let made = host_config(&pod, &target, &facts());
    assert_eq!(made.pid_mode.as_deref(), Some("container:other"));

    pod.config.namespaces = NamespaceOptions {
        network: NamespaceMode::Node,
        pid: NamespaceMode::Node,
        ipc: NamespaceMode::Node,
    };
    let made = host_config(&pod, &config(), &facts());
    let host = || Some("host".to_owned());
    assert_eq!((made.pid_mode, made.ipc_mode), (host(), host()));
    let pause = sandbox(&pod.config, &facts(), "id", HashMap::new());
    let pause = pause.host_config.unwrap();
    assert_eq!((pause.network_mode, pause.ipc_mode), (host(), host()));
}

#[test]
fn a_score_below_zero_is_asked_for_only_where_the_engine_may_set_it() {
    let mut config = config();
    for (asked, allowed, refused) in [(-997, -997, 0), (0, 0, 0), (1000, 1000, 1000)] {
        config.resources.oom_score_adj = Some(asked);
        for (facts, expected) in [(facts(), allowed), (poor(), refused)] {
            let wanted = container(&pod(), &config, &ImageConfig::default(), &facts).unwrap();
            let set = wanted.body.host_config.unwrap().oom_score_adj;
            assert_eq!(set, Some(expected));
            assert_eq!(wanted.warnings.is_empty(), i64::from(asked) == expected);
        }
    }
}

#[test]
fn privileged_is_the_engines_word_where_it_has_everything() {
    let mut config = config();
    config.security.privileged = true;
    assert_eq!(
        host_config(&pod(), &config, &facts()).privileged,
        Some(true)
    );
    let wanted = container(&pod(), &config, &ImageConfig::default(), &poor()).unwrap();
    assert!(wanted.warnings[0].contains("SYS_RESOURCE"));
    let made = wanted.body.host_config.unwrap();
    assert_eq!(made.privileged, None);
    assert_eq!(made.cap_add.unwrap(), ["ALL"]);
    assert_eq!(made.cap_drop.unwrap(), ["SYS_RESOURCE"]);
    assert!(made.devices.unwrap().len() > 3);
}

#[test]
fn users_are_the_configs_before_the_images() {
    let with = |user, group| ContainerSecurity {
        run_as_user: user,
        run_as_group: group,
        ..ContainerSecurity::default()
    };
    for (user_id, group, image, expected) in [
        (None, None, Some("app"), None),
        (Some(7), None, Some("app"), Some("7")),
        (Some(7), Some(8), None, Some("7:8")),
        (None, Some(8), Some("app:app"), Some("app:8")),
        (None, Some(8), None, Some("0:8")),
    ] {
        assert_eq!(user(&with(user_id, group), image).as_deref(), expected);
    }
}

#[test]
fn what_cannot_be_honoured_is_said_before_work_starts() {
    let verify = |config: &ContainerConfig, user: Option<&str>| {
        let image = ImageConfig {
            user: user.map(str::to_owned),
            ..ImageConfig::default()
        };
        verify_container(&pod().config, config, &image, &facts())
    };
    assert!(verify(&config(), None).is_ok());
    let mut recursive = config();
    recursive.mounts.push(Mount {
        container_path: "/data".into(),
        host_path: "/".into(),
        readonly: true,
        recursive_readonly: true,
        propagation: MountPropagation::None,
    });
    assert!(
        matches!(verify(&recursive, None), Err(RuntimeError::Unsupported(why)) if why.contains("/data"))
    );
    let mut apparmor = config();
    apparmor.security.apparmor = Some(AppArmorProfile::Localhost("mine".into()));
    assert!(matches!(
        verify(&apparmor, None),
        Err(RuntimeError::Unsupported(_))
    ));
    let mut non_root = config();
    non_root.security.run_as_non_root = true;
    for (user, is_fine) in [
        (None, false),
        (Some("0"), false),
        (Some("app"), false),
        (Some("1000:0"), true),
    ] {
        assert_eq!(verify(&non_root, user).is_ok(), is_fine, "{user:?}");
    }
    let mut mapped = pod().config;
    mapped.user_namespace = Some(UserNamespace {
        host_id: 65536,
        length: 65536,
    });
    assert!(matches!(
        verify_sandbox(&mapped, &facts()),
        Err(RuntimeError::Unsupported(_))
    ));
}

#[test]
fn signals_are_read_as_images_write_them() {
    for (name, number) in [
        ("SIGQUIT", Some(3)),
        ("quit", Some(3)),
        ("9", Some(9)),
        ("SIGRTMIN+3", Some(libc::SIGRTMIN() + 3)),
        ("0", None),
        ("SIGNOTHING", None),
        ("SIGRTMIN+99", None),
    ] {
        assert_eq!(signal_number(name), number, "{name}");
    }
}

#[test]
fn a_limit_of_memory_holds_with_swap() {
    let resources = LinuxResources {
        memory_bytes_max: Some(64 << 20),
        cpu_quota_us: Some(0),
        ..LinuxResources::default()
    };
    let body = update(&resources);
    assert_eq!(
        (body.memory, body.memory_swap),
        (Some(64 << 20), Some(64 << 20))
    );
    assert_eq!((body.cpu_quota, body.cpu_shares), (Some(-1), None));
}

use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "ns", "uid": "u1" },
        "spec": spec,
    }))
    .expect("a pod")
}

fn image(user: Option<&str>) -> Image {
    Image {
        id: "sha256:1".into(),
        repo_tags: Vec::new(),
        repo_digests: Vec::new(),
        size_bytes: 1,
        user: user.map(str::to_owned),
        kind: ImageKind::Container,
    }
}

fn config(pod: &Pod, image: &Image) -> Result<ContainerConfig, TranslateError> {
    let objects = env::Objects::default();
    let volumes = [("data".to_owned(), PathBuf::from("/pods/u1/volumes/data"))].into();
    let inputs = Inputs {
        env: env::Inputs {
            pod,
            objects: &objects,
            services: &[],
            pod_ips: &[],
            host_ips: &[],
            node_name: "n",
            allocatable: &BTreeMap::new(),
        },
        volumes: &volumes,
        files: &[("/etc/hosts".into(), "/pods/u1/etc-hosts".into())],
        termination_message: Path::new("/pods/u1/containers/a/0"),
        log_root: Path::new("/log/pods"),
        log_rotation: LogRotation::default(),
        memory_capacity_bytes: 10 << 30,
        seccomp_root: Path::new("/seccomp"),
        has_recursive_readonly: false,
        sub_path: &|_, volume, sub| Ok(volume.join(sub)),
        pid_target: None,
    };
    container(inputs, &spec(pod).containers[0], 0, image)
}

#[test]
fn the_runtime_goes_by_class_then_by_what_the_images_are() {
    let plain = pod(json!({ "containers": [{ "name": "a" }] }));
    let host = pod(json!({ "hostNetwork": true, "containers": [{ "name": "a" }] }));
    let (wasm, oci) = (Some(ImageKind::Wasm), Some(ImageKind::Container));
    type Row<'a> = (
        &'a Pod,
        Option<&'a str>,
        Vec<Option<ImageKind>>,
        (&'a str, bool, Option<&'a str>),
    );
    let table: [Row<'_>; 8] = [
        (&plain, None, vec![oci], ("oci", false, None)),
        (&plain, None, vec![wasm], ("wasm", false, None)),
        (&plain, None, vec![wasm, wasm], ("wasm", false, None)),
        (&plain, None, vec![wasm, oci], ("oci", false, None)),
        (&plain, None, vec![wasm, None], ("oci", false, None)),
        (&host, None, vec![wasm], ("oci", false, None)),
        (
            &plain,
            Some("wasm-isolated"),
            vec![],
            ("wasm", true, Some("wasm")),
        ),
        (
            &plain,
            Some("docker"),
            vec![],
            ("docker", false, Some("docker")),
        ),
    ];
    for (pod, class, kinds, (sandbox, isolated, fixed)) in table {
        let expected = Handlers {
            sandbox: sandbox.into(),
            isolated,
            fixed: fixed.map(str::to_owned),
        };
        assert_eq!(
            handlers(pod, class, &kinds, "oci"),
            expected,
            "{class:?} {kinds:?}"
        );
    }
}

#[test]
fn mounts_are_in_order_and_a_volume_wins_over_the_agents_own_files() {
    let spec = json!({ "containers": [{
        "name": "a",
        "volumeMounts": [
            { "name": "data", "mountPath": "/data", "readOnly": true },
            { "name": "data", "mountPath": "/etc/hosts", "subPath": "hosts" },
        ],
    }] });
    let config = config(&pod(spec), &image(None)).expect("a good pod");
    let mounts: Vec<_> = config
        .mounts
        .iter()
        .map(|m| {
            (
                m.container_path.to_str().expect("text"),
                m.host_path.to_str().expect("text"),
                m.readonly,
            )
        })
        .collect();
    assert_eq!(
        mounts,
        [
            ("/data", "/pods/u1/volumes/data", true),
            ("/etc/hosts", "/pods/u1/volumes/data/hosts", false),
            ("/dev/termination-log", "/pods/u1/containers/a/0", false),
        ]
    );
    assert_eq!(config.log_path, Path::new("/log/pods/ns_web_u1/a/0.log"));
}

#[test]
fn a_sub_path_does_not_leave_its_volume() {
    for sub in ["../x", "/x", "a/../../x"] {
        let mount = json!({ "name": "data", "mountPath": "/d", "subPath": sub });
        let error = config(
            &pod(json!({ "containers": [{ "name": "a", "volumeMounts": [mount] }] })),
            &image(None),
        );
        assert!(
            matches!(error, Err(TranslateError::SubPath { .. })),
            "{sub}"
        );
    }
}

#[test]
fn the_containers_security_context_is_laid_over_the_pods() {
    let spec = json!({
        "securityContext": { "runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4] },
        "containers": [{ "name": "a", "securityContext": {
            "runAsUser": 9,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "add": ["net_admin"], "drop": ["ALL"] },
            "seccompProfile": { "type": "Localhost", "localhostProfile": "p.json" },
        } }],
    });
    let security = config(&pod(spec), &image(None))
        .expect("a good pod")
        .security;
    assert_eq!(
        (security.run_as_user, security.run_as_group),
        (Some(9), Some(2))
    );
    assert_eq!(security.supplemental_groups, [3, 4]);
    assert!(security.no_new_privs && security.readonly_rootfs && !security.privileged);
    assert_eq!(
        (security.capabilities_add, security.capabilities_drop),
        (vec!["NET_ADMIN".into()], vec!["ALL".into()])
    );
    assert_eq!(
        security.seccomp,
        SeccompProfile::Localhost("/seccomp/p.json".into())
    );
}

#[test]
fn run_as_non_root_is_checked_against_the_image() {
    let pod_with = |context: Value| {
        pod(json!({ "containers": [{ "name": "a", "securityContext": context }] }))
    };
    let table = [
        (
            json!({ "runAsNonRoot": true }),
            None,
            Some("image will run as root"),
        ),
        (
            json!({ "runAsNonRoot": true }),
            Some("0:0"),
            Some("image will run as root"),
        ),
        (
            json!({ "runAsNonRoot": true }),
            Some("nginx"),
            Some("non-numeric user (nginx)"),
        ),
        (json!({ "runAsNonRoot": true }), Some("101"), None),
        (json!({ "runAsNonRoot": true, "runAsUser": 5 }), None, None),
        (
            json!({ "runAsNonRoot": true, "runAsUser": 0 }),
            Some("101"),
            Some("breaks non-root policy"),
        ),
        (json!({}), None, None),
    ];
    for (context, user, expected) in table {
        let result = config(&pod_with(context.clone()), &image(user));
        match expected {
            None => assert!(result.is_ok(), "{context} {user:?}"),
            Some(text) => assert!(
                result.expect_err(text).to_string().contains(text),
                "{context} {user:?}"
            ),
        }
    }
}

#[test]
fn qos_follows_requests_and_limits() {
    let pod_with =
        |resources: Value| pod(json!({ "containers": [{ "name": "a", "resources": resources }] }));
    let both = json!({ "cpu": "500m", "memory": "1Gi" });
    let table = [
        (json!({}), "BestEffort", "r/kubepods/besteffort/podu1", 1000),
        (
            json!({ "limits": both }),
            "Guaranteed",
            "r/kubepods/podu1",
            -997,
        ),
        (
            json!({ "requests": both }),
            "Burstable",
            "r/kubepods/burstable/podu1",
            900,
        ),
        (
            json!({ "requests": { "cpu": "1" } }),
            "Burstable",
            "r/kubepods/burstable/podu1",
            999,
        ),
    ];
    for (resources, class, cgroup, score) in table {
        let pod = pod_with(resources);
        assert_eq!(qos::class(&pod).as_str(), class);
        assert_eq!(qos::cgroup_parent("r", &pod), cgroup);
        assert_eq!(
            qos::oom_score_adj(&pod, &spec(&pod).containers[0], 10 << 30),
            score,
            "{class}"
        );
    }
    let limits = config(&pod_with(json!({ "limits": both })), &image(None))
        .expect("a good pod")
        .resources;
    assert_eq!(
        (limits.cpu_shares, limits.cpu_quota_us),
        (Some(512), Some(50_000))
    );
    assert_eq!(limits.memory_bytes_max, Some(1 << 30));
    let own = json!({ "limits": { "memory": "64Mi" } });
    let of_pod = pod(json!({
        "resources": { "limits": { "cpu": "1", "memory": "1Gi" } },
        "containers": [{ "name": "a", "resources": own }],
    }));
    let found = config(&of_pod, &image(None)).expect("a good pod").resources;
    assert_eq!(
        (found.cpu_quota_us, found.memory_bytes_max),
        (Some(100_000), Some(64 << 20)),
        "what a container does not limit, its pod does"
    );
    let none = config(&pod_with(json!({})), &image(None))
        .expect("a good pod")
        .resources;
    assert_eq!(
        (none.cpu_shares, none.cpu_quota_us, none.memory_bytes_max),
        (Some(2), None, None)
    );
}

#[test]
fn stop_signals_go_by_name_and_unknown_ones_are_refused() {
    let signal_of = |name: &str| {
        let container = json!({ "name": "a", "lifecycle": { "stopSignal": name } });
        config(&pod(json!({ "containers": [container] })), &image(None)).map(|c| c.stop_signal)
    };
    for (name, number) in [
        ("SIGUSR1", 10),
        ("SIGRTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("SIGRTMAX-1", 63),
    ] {
        assert_eq!(signal_of(name), Ok(Some(number)), "{name}");
    }
    for name in ["SIGNONSENSE", "SIGRTMIN+40", "SIGRTMAX+1"] {
        assert!(
            matches!(signal_of(name), Err(TranslateError::StopSignal { .. })),
            "{name}"
        );
    }
}

#[test]
fn what_cannot_be_done_is_refused_or_said() {
    let refused =
        |container: Value| config(&pod(json!({ "containers": [container] })), &image(None));
    let mount = json!({ "name": "data", "mountPath": "/d", "readOnly": true, "recursiveReadOnly": "Enabled" });
    assert!(matches!(
        refused(json!({ "name": "a", "volumeMounts": [mount] })),
        Err(TranslateError::RecursiveReadOnly { .. })
    ));
    let mut lenient = mount;
    lenient["recursiveReadOnly"] = json!("IfPossible");
    let made =
        refused(json!({ "name": "a", "volumeMounts": [lenient] })).expect("as far as possible");
    assert!(made.mounts[0].readonly && !made.mounts[0].recursive_readonly);
    assert!(matches!(
        refused(
            json!({ "name": "a", "volumeDevices": [{ "name": "data", "devicePath": "/dev/x" }] })
        ),
        Err(TranslateError::Unsupported {
            field: "volumeDevices",
            ..
        })
    ));
    let said = pod(json!({ "containers": [{
        "name": "a",
        "ports": [{ "containerPort": 80, "hostPort": 8080 }],
        "securityContext": { "seLinuxOptions": { "level": "s0" } },
    }] }));
    let said = not_done(&said, &spec(&said).containers[0], false);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[1].starts_with("hostPort 8080 "));
}

#[test]
fn command_and_arguments_are_expanded() {
    let spec = json!({ "containers": [{
        "name": "a",
        "env": [{ "name": "X", "value": "1" }],
        "command": ["run", "$(X)"],
        "args": ["$$(X)", "$(Y)"],
    }] });
    let config = config(&pod(spec), &image(None)).expect("a good pod");
    assert_eq!(config.command, ["run", "1"]);
    assert_eq!(config.args, ["$(X)", "$(Y)"]);
}

#[test]
fn components_serve_every_tcp_port_unless_the_pod_says_which() {
    let ports = |ports: Value, annotations: Value| {
        let mut pod = pod(json!({ "containers": [{ "name": "a", "ports": ports }] }));
        pod.metadata.annotations = serde_json::from_value(annotations).expect("annotations");
        let config = config(&pod, &image(None)).expect("a config");
        let found = config.annotations.into_iter();
        found
            .map(|(key, ports)| (key == HTTP_PORT_ANNOTATION, ports))
            .next()
    };
    let two = json!([
        { "containerPort": 80 },
        { "containerPort": 53, "protocol": "UDP" },
        { "containerPort": 81, "protocol": "TCP" },
    ]);
    assert_eq!(ports(two.clone(), json!({})), Some((true, "80,81".into())));
    assert_eq!(
        ports(two, json!({ HTTP_PORT_ANNOTATION: "8000" })),
        Some((true, "8000".into()))
    );
    assert_eq!(ports(json!([]), json!({})), None);
}

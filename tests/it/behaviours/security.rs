//! Who a container is and what it may do.

use serde_json::{Value, json};

use super::{
    Behaviour, Group,
    case::{Case, Outcome},
    program::{sh, stay, write},
};

/// Of a component that is no process.
const NO_PROCESS: &str =
    "a component makes no system calls: nothing of the kernel's is there to be given or taken";

pub(super) const GROUP: Group = Group {
    name: "security",
    title: "Security",
    rows: &[
        Behaviour::new("files are made as runAsUser and runAsGroup", run_as),
        Behaviour::new("runAsUser, runAsGroup and groups are the process's", groups)
            .wasm_moot("WASI shows no user; files are made as runAsUser and runAsGroup"),
        Behaviour::new("runAsNonRoot refuses root and says so", non_root),
        Behaviour::new("fsGroup owns the volumes", fs_group),
        Behaviour::new(
            "fsGroupChangePolicy OnRootMismatch leaves a right volume alone",
            fs_group_policy,
        ),
        Behaviour::new("capabilities are dropped", capabilities_dropped)
            .wasm_moot("a component has none to begin with"),
        Behaviour::new("capabilities are added", capabilities_added)
            .wasm_cannot(NO_PROCESS, "capabilities mean nothing"),
        Behaviour::new("privileged may do everything", privileged)
            .wasm_cannot(NO_PROCESS, "privileges and capabilities mean nothing"),
        Behaviour::new(
            "allowPrivilegeEscalation false sets no_new_privs",
            no_new_privileges,
        )
        .wasm_moot("a component cannot start a program, so it cannot gain anything by one"),
        Behaviour::new("seccomp RuntimeDefault filters system calls", |case| {
            seccomp(case, json!({"type": "RuntimeDefault"}), "2")
        })
        .wasm_moot("a component makes no system calls; its worker is under a filter of its own"),
        Behaviour::new("seccomp Unconfined does not", |case| {
            seccomp(case, json!({"type": "Unconfined"}), "0")
        })
        .wasm_moot("a component makes no system calls; its worker is under a filter of its own"),
        Behaviour::new(
            "seccomp Localhost takes the node's profile",
            seccomp_localhost,
        )
        .wasm_cannot(NO_PROCESS, "eccomp"),
        Behaviour::new("AppArmor is refused where the kernel has none", app_armor),
        Behaviour::new("readOnlyRootFilesystem is read-only", read_only_root),
        Behaviour::new("procMount Unmasked shows all of proc", unmasked)
            .docker_cannot(
                "it needs hostUsers false, which needs an engine with userns-remap",
                "does not support user namespaces",
            )
            .wasm_cannot(NO_PROCESS, "procMount means nothing"),
        Behaviour::new("safe sysctls are the pod's own", sysctls).wasm_cannot(NO_PROCESS, "ysctl"),
        Behaviour::new("a sysctl that is not safe is forbidden", unsafe_sysctl),
        Behaviour::new(
            "hostUsers false gives the pod users of its own",
            user_namespace,
        )
        .docker_cannot(
            "an engine has them for all containers (userns-remap) or for none",
            "does not support user namespaces",
        )
        .wasm_moot("a component has no user to be mapped; its worker is an unprivileged process"),
    ],
};

fn context(context: Value) -> Value {
    json!({"securityContext": context})
}

/// The line `key:` of a status file of the container's first process.
fn proc_status(case: &Case<'_>, pod: &str, key: &str) -> Outcome<String> {
    let line = case.exec(pod, &[sh(format!("grep ^{key}: /proc/1/status"))])?;
    Ok(line
        .split_once(':')
        .map_or("", |(_, value)| value.trim())
        .to_owned())
}

fn run_as(case: &Case<'_>) -> Outcome {
    let host = case.cluster.root().join(format!("security-{}", case.ns));
    std::fs::create_dir_all(&host).expect("a directory can be made");
    std::os::unix::fs::chown(&host, Some(1000), Some(2000)).expect("a directory can be given away");
    let pod = case.pod_with(
        "owns",
        &[write("/data/file", "x"), stay()],
        context(json!({"runAsUser": 1000, "runAsGroup": 2000})),
    );
    case.ready(&pod.volume("data", json!({"hostPath": {"path": host}})))?;
    let file = wherry_tests::eventually("the file is there", || {
        std::fs::metadata(host.join("file")).map_err(|error| error.to_string())
    });
    use std::os::unix::fs::MetadataExt;
    assert_eq!((file.uid(), file.gid()), (1000, 2000));
    Ok(())
}

fn groups(case: &Case<'_>) -> Outcome {
    let pod = case
        .pod_with("guarded", &[stay()], context(json!({"runAsGroup": 2001})))
        .spec(context(json!({"runAsUser": 1000, "runAsGroup": 2000, "supplementalGroups": [3000], "fsGroup": 4000})));
    case.ready(&pod)?;
    assert_eq!(case.exec("guarded", &[sh("id -u; id -g")])?, "1000\n2001\n");
    let groups = case.exec("guarded", &[sh("id -G")])?;
    assert!(
        groups.contains("3000") && groups.contains("4000"),
        "{groups}"
    );
    Ok(())
}

fn non_root(case: &Case<'_>) -> Outcome {
    let nobody = context(json!({"runAsNonRoot": true, "runAsUser": 1000}));
    case.ready(&case.pod_with("nobody", &[stay()], nobody))?;
    let root = context(json!({"runAsNonRoot": true, "runAsUser": 0}));
    case.create(&case.pod_with("root", &[stay()], root))?;
    case.until_first(
        "root",
        ".state.waiting.reason",
        "CreateContainerConfigError",
    );
    let message = case.first("root", ".state.waiting.message");
    assert!(
        message.contains("container's runAsUser breaks non-root policy"),
        "{message}"
    );
    Ok(())
}

fn fs_group(case: &Case<'_>) -> Outcome {
    let pod = case
        .pod_with(
            "owns",
            &[write("/data/file", "x"), stay()],
            context(json!({"runAsUser": 1000})),
        )
        .spec(context(json!({"fsGroup": 4000})));
    case.ready(&pod.volume("data", json!({"emptyDir": {}})))?;
    let uid = case.field("owns", ".metadata.uid");
    let find = std::process::Command::new("find")
        .arg(case.cluster.root().join(format!("pods/{uid}/volumes")))
        .args(["-name", "data", "-printf", "%g %m\n"])
        .output()
        .expect("find starts");
    let found = String::from_utf8_lossy(&find.stdout).into_owned();
    assert!(
        found
            .lines()
            .any(|line| line == "4000 2777" || line == "4000 2775"),
        "{found}"
    );
    Ok(())
}

fn fs_group_policy(case: &Case<'_>) -> Outcome {
    case.secret("hidden", json!({"word": "sesame"}))?;
    let pod = case
        .pod_with(
            "owns",
            &[super::program::read("/hidden/word"), sh("echo"), stay()],
            context(json!({"runAsUser": 1000})),
        )
        .spec(context(
            json!({"fsGroup": 4000, "fsGroupChangePolicy": "OnRootMismatch"}),
        ));
    case.ready(&pod.volume(
        "hidden",
        json!({"secret": {"secretName": "hidden", "defaultMode": 0o440}}),
    ))?;
    case.until_log("owns", "main", "sesame");
    Ok(())
}

fn capabilities_dropped(case: &Case<'_>) -> Outcome {
    let none = context(json!({"capabilities": {"drop": ["ALL"]}}));
    case.ready(&case.pod_with("none", &[stay()], none))?;
    for set in ["CapEff", "CapBnd", "CapPrm"] {
        assert_eq!(proc_status(case, "none", set)?, "0000000000000000", "{set}");
    }
    // The default is Docker's fourteen.
    case.ready(&case.pod("default", &[stay()]))?;
    assert_eq!(proc_status(case, "default", "CapEff")?, "00000000a80425fb");
    Ok(())
}

fn capabilities_added(case: &Case<'_>) -> Outcome {
    // NET_ADMIN is bit 12, MKNOD bit 27.
    let more = context(json!({"capabilities": {"add": ["NET_ADMIN"], "drop": ["MKNOD"]}}));
    case.ready(&case.pod_with("more", &[stay()], more))?;
    assert_eq!(proc_status(case, "more", "CapEff")?, "00000000a00435fb");
    Ok(())
}

fn privileged(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod_with("mighty", &[stay()], context(json!({"privileged": true}))))?;
    case.exec(
        "mighty",
        &[sh("mkdir -p /mnt && mount -t tmpfs tmpfs /mnt")],
    )?;
    assert_eq!(proc_status(case, "mighty", "Seccomp")?, "0");
    Ok(())
}

fn no_new_privileges(case: &Case<'_>) -> Outcome {
    let fixed = context(json!({"allowPrivilegeEscalation": false}));
    case.ready(&case.pod_with("fixed", &[stay()], fixed))?;
    assert_eq!(proc_status(case, "fixed", "NoNewPrivs")?, "1");
    case.ready(&case.pod("free", &[stay()]))?;
    assert_eq!(proc_status(case, "free", "NoNewPrivs")?, "0");
    Ok(())
}

fn seccomp(case: &Case<'_>, profile: Value, mode: &str) -> Outcome {
    let pod = case.pod("filtered", &[stay()]);
    case.ready(&pod.spec(context(json!({"seccompProfile": profile}))))?;
    assert_eq!(proc_status(case, "filtered", "Seccomp")?, mode);
    Ok(())
}

fn seccomp_localhost(case: &Case<'_>) -> Outcome {
    let dir = case.cluster.root().join("seccomp");
    std::fs::create_dir_all(&dir).expect("a directory can be made");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
    });
    let name = format!("no-mkdir-{}.json", case.runtime.class());
    std::fs::write(dir.join(&name), profile.to_string()).expect("a file can be written");
    let local = |name: &str| {
        context(json!({"seccompProfile": {"type": "Localhost", "localhostProfile": name}}))
    };
    case.ready(&case.pod("filtered", &[stay()]).spec(local(&name)))?;
    let said = case.exec_fails("filtered", &[sh("mkdir /tmp/x")]);
    assert!(said.contains("not implemented"), "{said}");
    case.create(&case.pod("absent", &[stay()]).spec(local("absent.json")))?;
    case.until_told("absent", "absent.json");
    Ok(())
}

fn app_armor(case: &Case<'_>) -> Outcome {
    let has = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let profile = json!({"type": "Localhost", "localhostProfile": "harbour"});
    case.create(
        &case
            .pod("guarded", &[stay()])
            .spec(context(json!({"appArmorProfile": profile}))),
    )?;
    if has.is_ok_and(|text| text.starts_with('Y')) {
        case.until_told("guarded", "harbour");
    } else {
        case.until("guarded", ".status.phase", "Failed");
        assert_eq!(case.field("guarded", ".status.reason"), "AppArmor");
        case.until_told("guarded", "Cannot enforce AppArmor");
    }
    Ok(())
}

fn read_only_root(case: &Case<'_>) -> Outcome {
    let fixed = context(json!({"readOnlyRootFilesystem": true}));
    let pod = case.pod_with("fixed", &[stay()], fixed);
    case.ready(&pod.volume("data", json!({"emptyDir": {}})))?;
    case.exec_fails("fixed", &[write("/file", "x")]);
    case.exec("fixed", &[write("/data/file", "x")])?;
    Ok(())
}

fn unmasked(case: &Case<'_>) -> Outcome {
    let look = [sh("grep -c ' /proc/' /proc/1/mounts || true")];
    let open = context(json!({"procMount": "Unmasked"}));
    let pod = case.pod_with("open", &[stay()], open);
    case.ready(&pod.spec(json!({"hostUsers": false})))?;
    case.ready(&case.pod("masked", &[stay()]))?;
    assert_eq!(case.exec("open", &look)?, "0\n");
    assert_ne!(case.exec("masked", &look)?, "0\n");
    Ok(())
}

fn sysctls(case: &Case<'_>) -> Outcome {
    let wanted = json!([
        {"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"},
        {"name": "kernel.shm_rmid_forced", "value": "1"},
    ]);
    case.ready(
        &case
            .pod("tuned", &[stay()])
            .spec(context(json!({"sysctls": wanted}))),
    )?;
    let look = [sh(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced",
    )];
    assert_eq!(case.exec("tuned", &look)?, "80\n1\n");
    Ok(())
}

fn unsafe_sysctl(case: &Case<'_>) -> Outcome {
    let wanted = json!([{"name": "kernel.msgmax", "value": "65536"}]);
    let pod = case.pod("tuned", &[stay()]);
    case.ends(&pod.spec(context(json!({"sysctls": wanted}))), "Failed")?;
    assert_eq!(case.field("tuned", ".status.reason"), "SysctlForbidden");
    let message = case.field("tuned", ".status.message");
    assert!(
        message.contains("forbidden sysctl: \"kernel.msgmax\" not allowlisted"),
        "{message}"
    );
    Ok(())
}

fn user_namespace(case: &Case<'_>) -> Outcome {
    let steps = [write("/data/file", "x"), stay()];
    let pod = |name: &str| {
        case.pod(name, &steps)
            .volume("data", json!({"emptyDir": {}}))
            .spec(json!({"hostUsers": false}))
    };
    case.ready(&pod("one"))?;
    case.ready(&pod("two"))?;
    let map = |name: &str| -> Outcome<Vec<String>> {
        let text = case.exec(
            name,
            &[sh("cat /proc/self/uid_map; id -u; stat -c %u /data/file")],
        )?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    };
    let (one, two) = (map("one")?, map("two")?);
    for words in [&one, &two] {
        assert_eq!(
            (words[0].as_str(), words[2].as_str()),
            ("0", "65536"),
            "{words:?}"
        );
        assert_eq!(
            words[3..],
            ["0", "0"],
            "root inside, and owner of its files"
        );
        assert_ne!(words[1], "0", "root outside");
    }
    assert_ne!(one[1], two[1], "two pods have the same users");
    Ok(())
}

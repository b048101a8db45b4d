//! Who an app is, and what it may do.

use super::{Fixture, support::*};
use crate::*;

const STATUS: &str =
    "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | while read k v; do echo $v; done";
/// Docker's default set.
const CAPABILITIES_DEFAULT: u64 = 0xa804_25fb;

fn capabilities(lines: &[String]) -> u64 {
    u64::from_str_radix(&lines[0], 16).expect("capabilities are a number")
}

pub(super) async fn an_app_runs_as_the_user_it_is_given(fixture: &dyn Fixture) {
    let sandbox = sandbox(fixture, "user").await;
    let script = "id -u; id -g; id -G; touch /dev/stdout && echo mine";
    let (_, lines) = run_script(fixture, &sandbox, "main", script, |config| {
        config.security.run_as_user = Some(4321);
        config.security.run_as_group = Some(5432);
        config.security.supplemental_groups = vec![6543, 7654];
    })
    .await;
    assert_eq!(lines, ["4321", "5432", "5432 6543 7654", "mine"]);
    let mut config = fixture.container_config(&sandbox, "root", super::Program::Shell(script));
    config.security.run_as_non_root = true;
    let created = fixture.runtime().create_container(&sandbox, &config).await;
    assert!(
        matches!(created, Err(RuntimeError::InvalidArgument(_))),
        "{created:?}"
    );
    remove(fixture, &sandbox).await;
}

pub(super) async fn capabilities_are_those_given(fixture: &dyn Fixture) {
    let sandbox = sandbox(fixture, "capabilities").await;
    let run = async |name: &str, add: &[&str], drop: &[&str]| {
        let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let (add, drop): (Vec<String>, Vec<String>) = (strings(add), strings(drop));
        let (_, lines) = run_script(fixture, &sandbox, name, STATUS, |config| {
            config.security.capabilities_add = add;
            config.security.capabilities_drop = drop;
        })
        .await;
        capabilities(&lines)
    };
    assert_eq!(run("default", &[], &[]).await, CAPABILITIES_DEFAULT);
    assert_eq!(run("none", &[], &["ALL"]).await, 0);
    assert_eq!(run("one", &["NET_BIND_SERVICE"], &["ALL"]).await, 1 << 10);
    // CAP_NET_ADMIN is 12, CAP_KILL 5.
    let changed = (CAPABILITIES_DEFAULT | 1 << 12) & !(1 << 5);
    assert_eq!(run("changed", &["NET_ADMIN"], &["KILL"]).await, changed);
    remove(fixture, &sandbox).await;
}

pub(super) async fn privileges_are_not_gained_nor_the_root_written(fixture: &dyn Fixture) {
    let sandbox = sandbox(fixture, "hardened").await;
    let (_, lines) = run_script(fixture, &sandbox, "privileges", STATUS, |config| {
        config.security.no_new_privs = true;
    })
    .await;
    assert_eq!(lines[1..], ["1", "2"], "{lines:?}");
    let script = "touch /x || echo refused; touch /dev/shm/x && echo shm";
    let (_, lines) = run_script(fixture, &sandbox, "root", script, |config| {
        config.security.readonly_rootfs = true;
    })
    .await;
    assert!(lines.contains(&"refused".to_owned()), "{lines:?}");
    assert!(lines.contains(&"shm".to_owned()), "{lines:?}");
    remove(fixture, &sandbox).await;
}

pub(super) async fn system_calls_are_filtered_as_asked(fixture: &dyn Fixture) {
    let sandbox = sandbox(fixture, "filter").await;
    let run = async |name: &str, profile: SeccompProfile, script: &'static str| {
        run_script(fixture, &sandbox, name, script, |config| {
            config.security.seccomp = profile;
        })
        .await
    };
    let (_, lines) = run("default", SeccompProfile::RuntimeDefault, STATUS).await;
    assert_eq!(lines[2], "2");
    let (_, lines) = run("none", SeccompProfile::Unconfined, STATUS).await;
    assert_eq!(lines[2], "0");
    let path = volume(&sandbox, "profiles").join("no-mkdir.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#;
    std::fs::write(&path, text).expect("a profile can be written");
    let script = "mkdir /d 2>&1; touch /f && echo rest";
    let (_, lines) = run("local", SeccompProfile::Localhost(path), script).await;
    assert!(
        lines[0].contains("No space left") && lines[1] == "rest",
        "{lines:?}"
    );
    let mut config = fixture.container_config(&sandbox, "missing", super::Program::Shell(script));
    config.security.seccomp = SeccompProfile::Localhost("/no/such/profile.json".into());
    let created = fixture.runtime().create_container(&sandbox, &config).await;
    assert!(
        matches!(&created, Err(RuntimeError::InvalidArgument(text)) if text.contains("/no/such/profile.json")),
        "{created:?}"
    );
    remove(fixture, &sandbox).await;
}

pub(super) async fn an_apparmor_profile_the_node_cannot_apply_is_refused(fixture: &dyn Fixture) {
    let runtime = fixture.runtime();
    let sandbox = sandbox(fixture, "apparmor").await;
    let mut config =
        fixture.container_config(&sandbox, "main", super::Program::Print { exit_code: 0 });
    config.security.apparmor = Some(AppArmorProfile::Localhost("no-such-profile".to_owned()));
    let created = runtime.create_container(&sandbox, &config).await;
    // Without AppArmor it is Unsupported, with it there is no such profile.
    assert!(
        matches!(
            created,
            Err(RuntimeError::Unsupported(_) | RuntimeError::InvalidArgument(_))
        ),
        "{created:?}"
    );
    // The default is what the kernel has, which may be nothing.
    config.security.apparmor = Some(AppArmorProfile::RuntimeDefault);
    let id = start(fixture, &sandbox, &config).await;
    assert_eq!(exit(&runtime, &id).await.exit_code, 0);
    remove(fixture, &sandbox).await;
}

pub(super) async fn what_of_proc_is_hidden_can_be_shown(fixture: &dyn Fixture) {
    let sandbox = sandbox(fixture, "proc").await;
    let script = "grep -c ' /proc/' /proc/self/mounts; true";
    let (_, lines) = run_script(fixture, &sandbox, "masked", script, |_| {}).await;
    assert_ne!(lines[0], "0");
    let (_, lines) = run_script(fixture, &sandbox, "unmasked", script, |config| {
        config.security.unmasked_proc = true;
    })
    .await;
    assert_eq!(lines[0], "0");
    remove(fixture, &sandbox).await;
}

pub(super) async fn a_privileged_container_may_what_the_node_may(fixture: &dyn Fixture) {
    let sandbox = sandbox(fixture, "privileged").await;
    let script = "mount -t tmpfs x /mnt 2>/dev/null || { mkdir -p /mnt && mount -t tmpfs x /mnt; } && echo mounted; \
                  grep -c ' /proc/' /proc/self/mounts; grep Seccomp: /proc/self/status; ls /dev | wc -l";
    let (_, lines) = run_script(fixture, &sandbox, "main", script, |config| {
        config.security.privileged = true;
        config.security.seccomp = SeccompProfile::Unconfined;
    })
    .await;
    assert_eq!(lines[..3], ["mounted", "0", "Seccomp:\t0"]);
    let devices: usize = lines[3].parse().expect("a count");
    assert!(devices > 20, "{lines:?}");
    remove(fixture, &sandbox).await;
}

pub(super) async fn devices_are_those_given(fixture: &dyn Fixture) {
    let sandbox = sandbox(fixture, "devices").await;
    let script = "head -c 3 /dev/mine | wc -c; echo x > /dev/mine || echo refused; ls /dev/kmsg 2>/dev/null; true";
    let (_, lines) = run_script(fixture, &sandbox, "main", script, |config| {
        config.devices.push(Device {
            host_path: "/dev/fuse".into(),
            container_path: "/dev/mine".into(),
            permissions: "m".into(),
        });
    })
    .await;
    assert!(lines.contains(&"refused".to_owned()), "{lines:?}");
    assert!(!lines.contains(&"/dev/kmsg".to_owned()), "{lines:?}");
    let script = "[ -c /dev/other ] && : < /dev/other && echo opened";
    let (_, lines) = run_script(fixture, &sandbox, "open", script, |config| {
        config.devices.push(Device {
            host_path: "/dev/fuse".into(),
            container_path: "/dev/other".into(),
            permissions: "rwm".into(),
        });
    })
    .await;
    assert_eq!(lines, ["opened"]);
    remove(fixture, &sandbox).await;
}

//! From CRI's words to the engine's. Pure, but for a seccomp profile and the node's devices, which are read here.

use std::{collections::HashMap, fs, os::unix::fs::FileTypeExt, path::Path};

use bollard::models::{
    ContainerCreateBody, ContainerUpdateBody, DeviceMapping, HostConfig, HostConfigLogConfig,
    ImageConfig, Mount as EngineMount, MountBindOptions, MountBindOptionsPropagationEnum,
    MountType,
};
use nix::sys::signal::Signal;
use wherry_runtime_api::{
    AppArmorProfile, ContainerConfig, ContainerSecurity, LinuxResources, LogRotation, Mount,
    MountPropagation, NamespaceMode, PodSandbox, PodSandboxConfig, RuntimeError, SeccompProfile,
};

use crate::engine::Facts;

/// What a pause container is given of the CPU when there is not enough: the least.
const PAUSE_CPU_SHARES: i64 = 2;
/// What the kubelet gives its pause containers: killed for want of memory after all else.
const PAUSE_OOM_SCORE_ADJ: i64 = -998;
/// The kernel's capabilities by number (include/uapi/linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// Devices below these are the container's own, privileged or not.
const OWN_DEVICES: [&str; 6] = ["pts", "shm", "mqueue", "fd", "console", "ptmx"];

/// A cgroup path as the engine's `cgroupfs` driver takes it: from the hierarchy's root.
pub(crate) fn cgroup_parent(path: &str) -> String {
    format!("/{}", path.trim_matches('/'))
}

/// Fields of a sandbox that cannot be honoured, checked before any work.
pub(crate) fn verify_sandbox(config: &PodSandboxConfig, facts: &Facts) -> Result<(), RuntimeError> {
    if let Some(why) = &facts.unfit {
        return Err(RuntimeError::Unavailable(why.clone()));
    }
    if config.user_namespace.is_some() {
        let why = if facts.remaps_users {
            "the engine maps all its containers to one range (--userns-remap) and cannot map a volume to it"
        } else {
            "the engine gives no container a user namespace of its own"
        };
        return Err(RuntimeError::Unsupported(format!(
            "pod {}: user namespace: {why}",
            config.name
        )));
    }
    Ok(())
}

/// Fields of a container that cannot be honoured, checked before any work.
pub(crate) fn verify_container(
    pod: &PodSandboxConfig,
    config: &ContainerConfig,
    image: &ImageConfig,
    facts: &Facts,
) -> Result<(), RuntimeError> {
    let refuse = |what: String| Err(RuntimeError::Unsupported(what));
    if let Some(mount) = config.mounts.iter().find(|mount| mount.recursive_readonly) {
        return refuse(format!(
            "mount {}: recursive read-only: the engine does not offer it",
            mount.container_path.display()
        ));
    }
    if let Some(AppArmorProfile::Localhost(name)) = &config.security.apparmor
        && !facts.has_apparmor
    {
        return refuse(format!(
            "AppArmor profile {name}: AppArmor is not enabled on the host"
        ));
    }
    if let Some(value) = config.resources.oom_score_adj
        && !(-1000..=1000).contains(&value)
    {
        return Err(RuntimeError::InvalidArgument(format!(
            "oom_score_adj {value} is not between -1000 and 1000"
        )));
    }
    verify_run_as_non_root(pod, config, image.user.as_deref())
}

fn verify_run_as_non_root(
    pod: &PodSandboxConfig,
    config: &ContainerConfig,
    image_user: Option<&str>,
) -> Result<(), RuntimeError> {
    if !config.security.run_as_non_root {
        return Ok(());
    }
    let user = image_user
        .unwrap_or_default()
        .split(':')
        .next()
        .unwrap_or_default();
    let trouble = match (config.security.run_as_user, user.parse::<u32>()) {
        (Some(0), _) => "container's runAsUser breaks non-root policy".to_owned(),
        (Some(_), _) => return Ok(()),
        (None, Ok(0)) => "container has runAsNonRoot and image will run as root".to_owned(),
        (None, Ok(_)) => return Ok(()),
        (None, Err(_)) if user.is_empty() => {
            "container has runAsNonRoot and image will run as root".to_owned()
        }
        (None, Err(_)) => format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root"
        ),
    };
    Err(RuntimeError::InvalidArgument(format!(
        "{trouble} (pod: \"{}_{}({})\", container: {})",
        pod.name, pod.namespace, pod.uid, config.name
    )))
}

/// What holds a pod's namespaces.
pub(crate) fn sandbox(
    config: &PodSandboxConfig,
    facts: &Facts,
    image: &str,
    labels: HashMap<String, String>,
) -> ContainerCreateBody {
    let is_node = |mode| mode == NamespaceMode::Node;
    let namespaces = config.namespaces;
    let mut security = Vec::new();
    match &config.seccomp {
        SeccompProfile::RuntimeDefault => {}
        // The pause program makes four system calls; a profile of the pod's is for its apps.
        SeccompProfile::Unconfined | SeccompProfile::Localhost(_) => {
            security.push("seccomp=unconfined".to_owned());
        }
    }
    security.push("no-new-privileges".to_owned());
    let host_config = HostConfig {
        cgroup_parent: Some(cgroup_parent(&config.cgroup_parent)),
        network_mode: Some(
            if is_node(namespaces.network) {
                "host"
            } else {
                "none"
            }
            .to_owned(),
        ),
        ipc_mode: Some(
            if is_node(namespaces.ipc) {
                "host"
            } else {
                "shareable"
            }
            .to_owned(),
        ),
        pid_mode: is_node(namespaces.pid).then(|| "host".to_owned()),
        uts_mode: config.hostname.is_none().then(|| "host".to_owned()),
        userns_mode: facts.remaps_users.then(|| "host".to_owned()),
        sysctls: (!config.sysctls.is_empty()).then(|| config.sysctls.iter().cloned().collect()),
        security_opt: Some(security),
        cpu_shares: Some(PAUSE_CPU_SHARES),
        oom_score_adj: Some(if facts.can_lower_oom_score() {
            PAUSE_OOM_SCORE_ADJ
        } else {
            0
        }),
        readonly_rootfs: Some(true),
        log_config: Some(HostConfigLogConfig {
            typ: Some("none".to_owned()),
            config: None,
        }),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(image.to_owned()),
        hostname: config.hostname.clone(),
        labels: Some(labels),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    }
}

/// A container, and what could not be had as asked.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) body: ContainerCreateBody,
    pub(crate) warnings: Vec<String>,
}

/// An app's container in a sandbox; its labels are the caller's.
pub(crate) fn container(
    sandbox: &PodSandbox,
    config: &ContainerConfig,
    image: &ImageConfig,
    facts: &Facts,
) -> Result<Wanted, RuntimeError> {
    let pod = &sandbox.config;
    let security = &config.security;
    let mut warnings = Vec::new();
    let of_sandbox = format!("container:{}", sandbox.id);
    let pid_mode = match (&config.pid_target, pod.namespaces.pid) {
        (Some(target), _) => Some(format!("container:{target}")),
        (None, NamespaceMode::Node) => Some("host".to_owned()),
        (None, NamespaceMode::Pod) => Some(of_sandbox.clone()),
        (None, NamespaceMode::Container) => None,
    };
    let mut host_config = HostConfig {
        cgroup_parent: Some(cgroup_parent(&pod.cgroup_parent)),
        network_mode: Some(of_sandbox.clone()),
        ipc_mode: Some(if pod.namespaces.ipc == NamespaceMode::Node {
            "host".to_owned()
        } else {
            of_sandbox
        }),
        pid_mode,
        uts_mode: pod.hostname.is_none().then(|| "host".to_owned()),
        userns_mode: facts.remaps_users.then(|| "host".to_owned()),
        mounts: Some(config.mounts.iter().map(mount).collect()),
        security_opt: Some(security_options(security)?),
        group_add: Some(
            security
                .supplemental_groups
                .iter()
                .map(u32::to_string)
                .collect(),
        ),
        readonly_rootfs: Some(security.readonly_rootfs),
        cap_add: Some(security.capabilities_add.clone()),
        cap_drop: Some(security.capabilities_drop.clone()),
        log_config: Some(log_config(config.log_rotation)),
        oom_score_adj: oom_score_adj(&config.resources, facts, &mut warnings),
        ..HostConfig::default()
    };
    set_limits(&mut host_config, &config.resources);
    if security.unmasked_proc {
        unmask(&mut host_config);
    }
    let mut devices: Vec<DeviceMapping> = config
        .devices
        .iter()
        .map(|device| DeviceMapping {
            path_on_host: Some(device.host_path.display().to_string()),
            path_in_container: Some(device.container_path.display().to_string()),
            cgroup_permissions: Some(device.permissions.clone()),
        })
        .collect();
    if security.privileged {
        set_privileged(&mut host_config, facts, &mut devices, &mut warnings)?;
    }
    host_config.devices = Some(devices);
    let list = |words: &[String]| (!words.is_empty()).then(|| words.to_vec());
    let body = ContainerCreateBody {
        image: Some(config.image_id.clone()),
        entrypoint: list(&config.command),
        cmd: list(&config.args),
        working_dir: config.working_dir.clone().filter(|dir| !dir.is_empty()),
        env: Some(
            config
                .env
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
        ),
        user: user(security, image.user.as_deref()),
        tty: Some(config.tty),
        open_stdin: Some(config.stdin),
        stdin_once: Some(config.stdin_once),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    };
    Ok(Wanted { body, warnings })
}

fn mount(mount: &Mount) -> EngineMount {
    let propagation = match mount.propagation {
        MountPropagation::None => MountBindOptionsPropagationEnum::RPRIVATE,
        MountPropagation::HostToContainer => MountBindOptionsPropagationEnum::RSLAVE,
        MountPropagation::Bidirectional => MountBindOptionsPropagationEnum::RSHARED,
    };
    EngineMount {
        typ: Some(MountType::BIND),
        source: Some(mount.host_path.display().to_string()),
        target: Some(mount.container_path.display().to_string()),
        read_only: Some(mount.readonly),
        bind_options: Some(MountBindOptions {
            propagation: Some(propagation),
            ..MountBindOptions::default()
        }),
        ..EngineMount::default()
    }
}

fn security_options(security: &ContainerSecurity) -> Result<Vec<String>, RuntimeError> {
    let mut options = Vec::new();
    if security.no_new_privs {
        options.push("no-new-privileges".to_owned());
    }
    match &security.seccomp {
        SeccompProfile::RuntimeDefault => {}
        SeccompProfile::Unconfined => options.push("seccomp=unconfined".to_owned()),
        SeccompProfile::Localhost(path) => {
            let profile = fs::read_to_string(path).map_err(|error| {
                RuntimeError::InvalidArgument(format!(
                    "seccomp profile {}: {error}",
                    path.display()
                ))
            })?;
            options.push(format!("seccomp={profile}"));
        }
    }
    match &security.apparmor {
        None | Some(AppArmorProfile::RuntimeDefault) => {}
        Some(AppArmorProfile::Unconfined) => options.push("apparmor=unconfined".to_owned()),
        Some(AppArmorProfile::Localhost(name)) => options.push(format!("apparmor={name}")),
    }
    Ok(options)
}

/// `None` leaves it to the image. The engine completes a missing group from the image's passwd, as a kubelet does.
fn user(security: &ContainerSecurity, image_user: Option<&str>) -> Option<String> {
    let image_user = image_user
        .unwrap_or_default()
        .split(':')
        .next()
        .filter(|user| !user.is_empty())
        .unwrap_or("0");
    match (security.run_as_user, security.run_as_group) {
        (None, None) => None,
        (Some(user), None) => Some(user.to_string()),
        (Some(user), Some(group)) => Some(format!("{user}:{group}")),
        (None, Some(group)) => Some(format!("{image_user}:{group}")),
    }
}

fn oom_score_adj(
    resources: &LinuxResources,
    facts: &Facts,
    warnings: &mut Vec<String>,
) -> Option<i64> {
    let wanted = resources.oom_score_adj?;
    if wanted < 0 && !facts.can_lower_oom_score() {
        warnings.push(format!(
            "oom_score_adj {wanted} cannot be set: the engine may not go below 0 on this node"
        ));
        return Some(0);
    }
    Some(wanted.into())
}

fn unmask(host_config: &mut HostConfig) {
    host_config.masked_paths = Some(Vec::new());
    host_config.readonly_paths = Some(Vec::new());
}

/// The engine's own word for it where the engine has everything to give. Else it would fail, so everything it has is
/// named one by one.
fn set_privileged(
    host_config: &mut HostConfig,
    facts: &Facts,
    devices: &mut Vec<DeviceMapping>,
    warnings: &mut Vec<String>,
) -> Result<(), RuntimeError> {
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(bit, _)| facts.capabilities & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        host_config.privileged = Some(true);
        return Ok(());
    }
    warnings.push(format!(
        "privileged without {}, which the engine does not have on this node, and with a read-only /sys",
        missing.join(", ")
    ));
    host_config.cap_add = Some(vec!["ALL".to_owned()]);
    // An engine older than a capability neither gives it nor knows its name.
    let known = facts.capabilities_known();
    host_config.cap_drop = Some(
        CAPABILITIES[..known]
            .iter()
            .filter(|name| missing.contains(name))
            .map(|name| (*name).to_owned())
            .collect(),
    );
    let options = host_config.security_opt.get_or_insert_default();
    options.retain(|option| !option.starts_with("seccomp="));
    options.push("seccomp=unconfined".to_owned());
    if facts.has_apparmor {
        options.retain(|option| !option.starts_with("apparmor="));
        options.push("apparmor=unconfined".to_owned());
    }
    host_config.device_cgroup_rules = Some(vec!["a *:* rwm".to_owned()]);
    unmask(host_config);
    collect_devices(Path::new("/dev"), devices)
        .map_err(RuntimeError::io("devices of the node".to_owned()))
}

fn collect_devices(directory: &Path, devices: &mut Vec<DeviceMapping>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if OWN_DEVICES.iter().any(|own| name == *own) {
            continue;
        }
        if kind.is_dir() {
            collect_devices(&path, devices)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            let path = path.display().to_string();
            devices.push(DeviceMapping {
                path_on_host: Some(path.clone()),
                path_in_container: Some(path),
                cgroup_permissions: Some("rwm".to_owned()),
            });
        }
    }
    Ok(())
}

/// The engine's copy of the log is bounded like ours, so that an agent that was away finds what it would have kept.
fn log_config(rotation: LogRotation) -> HostConfigLogConfig {
    let mut options = HashMap::new();
    if rotation.size_bytes_max > 0 {
        options.insert("max-size".to_owned(), rotation.size_bytes_max.to_string());
        let files = rotation.files_max.max(2);
        options.insert("max-file".to_owned(), files.to_string());
    }
    HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(options),
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn quota(value: i64) -> i64 {
    if value > 0 { value } else { -1 }
}

fn set_limits(host_config: &mut HostConfig, resources: &LinuxResources) {
    host_config.cpu_shares = resources.cpu_shares.map(signed);
    host_config.cpu_quota = resources.cpu_quota_us.map(quota);
    host_config.cpu_period = resources.cpu_period_us.map(signed);
    host_config.memory = resources.memory_bytes_max.map(signed);
    // Swap does not count on top of the limit.
    host_config.memory_swap = resources.memory_bytes_max.map(signed);
    host_config.pids_limit = resources.pids_max.map(signed);
}

/// Limits in place. What is not named stays as it is.
pub(crate) fn update(resources: &LinuxResources) -> ContainerUpdateBody {
    let mut all = HostConfig::default();
    set_limits(&mut all, resources);
    ContainerUpdateBody {
        cpu_shares: all.cpu_shares,
        cpu_quota: all.cpu_quota,
        cpu_period: all.cpu_period,
        memory: all.memory,
        memory_swap: all.memory_swap,
        pids_limit: all.pids_limit,
        ..ContainerUpdateBody::default()
    }
}

/// The signal that asks a container to exit, by number: the config's, the image's, SIGTERM.
pub(crate) fn stop_signal(config: &ContainerConfig, image: &ImageConfig) -> i32 {
    config
        .stop_signal
        .or_else(|| signal_number(image.stop_signal.as_deref()?))
        .unwrap_or(libc::SIGTERM)
}

/// `SIGQUIT`, `QUIT`, `SIGRTMIN+3` or `3`.
fn signal_number(name: &str) -> Option<i32> {
    let name = name.trim();
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    if let Some(offset) = full.strip_prefix("SIGRTMIN+") {
        let number = libc::SIGRTMIN() + offset.parse::<i32>().ok()?;
        return (number <= libc::SIGRTMAX()).then_some(number);
    }
    full.parse::<Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests;

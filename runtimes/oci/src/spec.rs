//! From CRI's words and the image's to an OCI runtime spec. Pure, but for the list of the node's
//! devices, which a privileged container gets and the caller reads.

use std::{collections::HashSet, path::PathBuf};

use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDevice, LinuxDeviceBuilder,
    LinuxDeviceType, LinuxNamespaceBuilder, LinuxNamespaceType, Mount as SpecMount, MountBuilder,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use wherry_runtime_api::{
    AppArmorProfile, ContainerConfig, ContainerSecurity, LinuxResources, Mount, MountPropagation,
    NamespaceMode, PodSandboxConfig, RuntimeError, RuntimeFeatures,
};

/// Docker's default set, which is also containerd's.
const CAPABILITIES_DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container must not see of the node's `/proc` and `/sys`: containerd's list.
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// What a container may see and not change: containerd's list.
const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What the image says, as far as the spec needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageDefaults {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) working_dir: Option<String>,
}

/// Builds the spec.
pub(crate) fn build(
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
    image: &ImageDefaults,
    host_devices: &[LinuxDevice],
    cgroup: &str,
) -> Result<Spec, RuntimeError> {
    let security = &config.security;
    let internal =
        |error: oci_spec::OciSpecError| RuntimeError::Internal(format!("OCI spec: {error}"));
    let held = capabilities(security, highest_capability())?;
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(held.clone())
        .effective(held.clone())
        .permitted(held)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()
        .map_err(internal)?;
    let mut process = ProcessBuilder::default()
        .terminal(config.tty)
        .user(UserBuilder::default().build().map_err(internal)?)
        .args(arguments(config, image)?)
        .env(environment(sandbox, config, image))
        .cwd(working_dir(config, image)?)
        .capabilities(capabilities)
        .rlimits(Vec::new())
        .no_new_privileges(security.no_new_privs);
    if let Some(adjustment) = config.resources.oom_score_adj {
        process = process.oom_score_adj(adjustment);
    }
    if let Some(AppArmorProfile::Localhost(name)) = &security.apparmor {
        process = process.apparmor_profile(name.as_str());
    }
    let namespace = |kind| {
        LinuxNamespaceBuilder::default()
            .typ(kind)
            .build()
            .map_err(internal)
    };
    let mut namespaces = vec![
        namespace(LinuxNamespaceType::Mount)?,
        namespace(LinuxNamespaceType::Cgroup)?,
    ];
    if sandbox.namespaces.pid == NamespaceMode::Container {
        namespaces.push(namespace(LinuxNamespaceType::Pid)?);
    }
    let is_unmasked = security.privileged || security.unmasked_proc;
    let list = |paths: &[&str]| {
        if is_unmasked {
            Vec::new()
        } else {
            paths.iter().map(|p| (*p).to_owned()).collect()
        }
    };
    let linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .devices(host_devices.to_vec())
        .cgroups_path(PathBuf::from(cgroup))
        .rootfs_propagation(root_propagation(&config.mounts))
        .masked_paths(list(&MASKED_PATHS))
        .readonly_paths(list(&READONLY_PATHS))
        .build()
        .map_err(internal)?;
    SpecBuilder::default()
        .version("1.2.0")
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(security.readonly_rootfs)
                .build()
                .map_err(internal)?,
        )
        .process(process.build().map_err(internal)?)
        .mounts(mounts(sandbox, config).map_err(internal)?)
        .linux(linux)
        .build()
        .map_err(internal)
}

/// The last capability that this kernel knows.
fn highest_capability() -> u8 {
    caps::runtime::thread_all_supported()
        .iter()
        .map(caps::Capability::index)
        .max()
        .unwrap_or(40)
}

/// The capabilities a container holds: the default set, then added, then dropped, as the API has it.
/// `highest` is the last one that the kernel knows.
fn capabilities(
    security: &ContainerSecurity,
    highest: u8,
) -> Result<HashSet<Capability>, RuntimeError> {
    let known: Vec<(u8, String)> = caps::all()
        .into_iter()
        .filter(|capability| capability.index() <= highest)
        .map(|capability| (capability.index(), capability.to_string()))
        .collect();
    let parse = |name: &str| -> Result<u8, RuntimeError> {
        let upper = name.to_ascii_uppercase();
        let full = if upper.starts_with("CAP_") {
            upper
        } else {
            format!("CAP_{upper}")
        };
        known
            .iter()
            .find(|(_, known)| *known == full)
            .map(|(index, _)| *index)
            .ok_or_else(|| RuntimeError::InvalidArgument(format!("unknown capability \"{full}\"")))
    };
    let all = || {
        known
            .iter()
            .fold(0u64, |mask, (index, _)| mask | 1 << index)
    };
    let has_all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let mut mask = 0u64;
    if security.privileged {
        mask = all();
    } else {
        // `ALL` counts first, so that "drop ALL, add NET_BIND_SERVICE" leaves one.
        if has_all(&security.capabilities_add) {
            mask = all();
        } else if !has_all(&security.capabilities_drop) {
            for name in CAPABILITIES_DEFAULT {
                mask |= 1 << parse(name)?;
            }
        }
        for name in security
            .capabilities_add
            .iter()
            .filter(|name| !name.eq_ignore_ascii_case("ALL"))
        {
            mask |= 1 << parse(name)?;
        }
        for name in security
            .capabilities_drop
            .iter()
            .filter(|name| !name.eq_ignore_ascii_case("ALL"))
        {
            mask &= !(1 << parse(name)?);
        }
    }
    known
        .into_iter()
        .filter(|(index, _)| mask & 1 << index != 0)
        .map(|(_, name)| {
            serde_json::from_value(serde_json::Value::String(name.clone()))
                .map_err(|error| RuntimeError::Internal(format!("capability {name}: {error}")))
        })
        .collect()
}

/// The command line, by the table of the Kubernetes documentation.
fn arguments(config: &ContainerConfig, image: &ImageDefaults) -> Result<Vec<String>, RuntimeError> {
    let (command, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.command),
        (true, false) => (&image.entrypoint, &config.args),
        (false, _) => (&config.command, &config.args),
    };
    let line: Vec<String> = command.iter().chain(args).cloned().collect();
    if line.is_empty() {
        return Err(RuntimeError::InvalidArgument(
            "no command specified".to_owned(),
        ));
    }
    if line.iter().any(|word| word.contains('\0')) {
        return Err(RuntimeError::InvalidArgument(
            "command: holds a NUL byte".to_owned(),
        ));
    }
    Ok(line)
}

fn environment(
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
    image: &ImageDefaults,
) -> Vec<String> {
    let mut env: Vec<String> = vec![PATH_DEFAULT.to_owned()];
    if let Some(hostname) = &sandbox.hostname {
        env.push(format!("HOSTNAME={hostname}"));
    }
    if config.tty {
        env.push("TERM=xterm".to_owned());
    }
    let named = config
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    for entry in image.env.iter().cloned().chain(named) {
        let key = entry.split_once('=').map_or(entry.as_str(), |(key, _)| key);
        match env
            .iter_mut()
            .find(|known| known.split_once('=').is_some_and(|(known, _)| known == key))
        {
            Some(known) => *known = entry,
            None => env.push(entry),
        }
    }
    env
}

fn working_dir(config: &ContainerConfig, image: &ImageDefaults) -> Result<PathBuf, RuntimeError> {
    let directory = config
        .working_dir
        .as_deref()
        .filter(|directory| !directory.is_empty())
        .or(image
            .working_dir
            .as_deref()
            .filter(|directory| !directory.is_empty()))
        .unwrap_or("/");
    if !directory.starts_with('/') {
        return Err(RuntimeError::InvalidArgument(format!(
            "working directory \"{directory}\" is not absolute"
        )));
    }
    Ok(directory.into())
}

fn root_propagation(mounts: &[Mount]) -> &'static str {
    let any = |propagation| mounts.iter().any(|mount| mount.propagation == propagation);
    if any(MountPropagation::Bidirectional) {
        "rshared"
    } else if any(MountPropagation::HostToContainer) {
        "rslave"
    } else {
        "rprivate"
    }
}

fn mounts(
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
) -> Result<Vec<SpecMount>, oci_spec::OciSpecError> {
    let system = |kind: &str, path: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(path)
            .typ(kind)
            .source(kind)
            .options(
                options
                    .iter()
                    .map(|option| (*option).to_owned())
                    .collect::<Vec<_>>(),
            )
            .build()
    };
    let access = if config.security.privileged {
        "rw"
    } else {
        "ro"
    };
    let mut mounts = vec![
        system("proc", "/proc", &["nosuid", "noexec", "nodev"])?,
        system(
            "tmpfs",
            "/dev",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        system(
            "devpts",
            "/dev/pts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        )?,
        system("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"])?,
        system("sysfs", "/sys", &["nosuid", "noexec", "nodev", access])?,
        system(
            "cgroup",
            "/sys/fs/cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        )?,
    ];
    mounts.push(match sandbox.namespaces.ipc {
        NamespaceMode::Node => bind("/dev/shm", "/dev/shm", &["rbind", "rprivate", "rw"])?,
        _ => system(
            "tmpfs",
            "/dev/shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        )?,
    });
    for mount in &config.mounts {
        let mut options = vec!["rbind"];
        options.push(match mount.propagation {
            MountPropagation::None => "rprivate",
            MountPropagation::HostToContainer => "rslave",
            MountPropagation::Bidirectional => "rshared",
        });
        options.push(match (mount.readonly, mount.recursive_readonly) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        });
        mounts.push(bind(&mount.container_path, &mount.host_path, &options)?);
    }
    Ok(mounts)
}

fn bind(
    destination: impl Into<PathBuf>,
    source: impl Into<PathBuf>,
    options: &[&str],
) -> Result<SpecMount, oci_spec::OciSpecError> {
    MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(source)
        .options(
            options
                .iter()
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
        .build()
}

/// A device node for the container.
pub(crate) fn device(
    path: PathBuf,
    is_block: bool,
    number: u64,
    mode: u32,
    uid: u32,
    gid: u32,
) -> Result<LinuxDevice, RuntimeError> {
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(if is_block {
            LinuxDeviceType::B
        } else {
            LinuxDeviceType::C
        })
        .major(i64::from(libc::major(number)))
        .minor(i64::from(libc::minor(number)))
        .file_mode(mode & 0o7777)
        .uid(uid)
        .gid(gid)
        .build()
        .map_err(|error| RuntimeError::Internal(format!("OCI spec: {error}")))
}

/// Whether the container would run as root though it must not, in the kubelet's words.
pub(crate) fn verify_run_as_non_root(
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
    image_user: Option<&str>,
) -> Result<(), RuntimeError> {
    if !config.security.run_as_non_root {
        return Ok(());
    }
    let whom = format!(
        "(pod: \"{}_{}({})\", container: {})",
        sandbox.name, sandbox.namespace, sandbox.uid, config.name
    );
    let trouble = match config.security.run_as_user {
        Some(0) => "container's runAsUser breaks non-root policy".to_owned(),
        Some(_) => return Ok(()),
        None => {
            let user = image_user
                .unwrap_or_default()
                .split(':')
                .next()
                .unwrap_or_default();
            match user.parse::<u32>() {
                Ok(0) => "container has runAsNonRoot and image will run as root".to_owned(),
                Ok(_) => return Ok(()),
                Err(_) if user.is_empty() => {
                    "container has runAsNonRoot and image will run as root".to_owned()
                }
                Err(_) => format!(
                    "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root"
                ),
            }
        }
    };
    Err(RuntimeError::InvalidArgument(format!("{trouble} {whom}")))
}

/// The kernel's AppArmor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AppArmor {
    /// The kernel has none, or it is turned off.
    Absent,
    /// Lines `<profile> (<mode>)`; `None` if they cannot be read.
    Enabled(Option<String>),
}

impl AppArmor {
    /// Asks the kernel.
    pub(crate) fn find() -> Self {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        if enabled.is_ok_and(|text| text.trim() == "Y") {
            Self::Enabled(std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").ok())
        } else {
            Self::Absent
        }
    }

    fn verify(&self, name: &str) -> Result<(), RuntimeError> {
        match self {
            Self::Absent => Err(RuntimeError::Unsupported(format!(
                "AppArmor profile {name}: AppArmor is not enabled on the host"
            ))),
            Self::Enabled(Some(profiles))
                if !profiles
                    .lines()
                    .any(|line| line.rsplit_once(" (").map_or(line, |(name, _)| name) == name) =>
            {
                Err(RuntimeError::InvalidArgument(format!(
                    "AppArmor profile {name} is not loaded on the host"
                )))
            }
            Self::Enabled(_) => Ok(()),
        }
    }
}

/// Fields this runtime cannot honour, checked before any work.
pub(crate) fn verify_supported(
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
    features: RuntimeFeatures,
    apparmor: &AppArmor,
) -> Result<(), RuntimeError> {
    let recursive = config.mounts.iter().find(|mount| mount.recursive_readonly);
    if let Some(mount) = recursive
        && !features.recursive_readonly_mounts
    {
        return Err(RuntimeError::Unsupported(format!(
            "mount {}: this kernel has no recursive read-only mounts",
            mount.container_path.display()
        )));
    }
    let shared = config
        .mounts
        .iter()
        .find(|mount| mount.propagation == MountPropagation::Bidirectional);
    if let (Some(mount), Some(_)) = (shared, sandbox.user_namespace) {
        return Err(RuntimeError::Unsupported(format!(
            "mount {}: mounts cannot propagate out of a pod's user namespace",
            mount.container_path.display()
        )));
    }
    if let Some(AppArmorProfile::Localhost(name)) = &config.security.apparmor {
        apparmor.verify(name)?;
    }
    verify_resources(&config.resources)
}

fn verify_resources(resources: &LinuxResources) -> Result<(), RuntimeError> {
    match resources.oom_score_adj {
        Some(value) if !(-1000..=1000).contains(&value) => Err(RuntimeError::InvalidArgument(
            format!("oom_score_adj {value} is not between -1000 and 1000"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;

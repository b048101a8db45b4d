//! A Pod as the runtimes understand it. Pure, and the only place where Kubernetes types become theirs.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    AppArmorProfile as ApiAppArmor, Container, Pod, SeccompProfile as ApiSeccomp, VolumeMount,
};
use thiserror::Error;
use wherry_runtime_api::{
    AppArmorProfile, ContainerConfig, ContainerId, ContainerSecurity, Image, ImageKind,
    LogRotation, Mount, MountPropagation, NamespaceMode, NamespaceOptions, PodSandboxConfig,
    SeccompProfile, UserNamespace,
};

use super::{annotation, env, full_name, name, namespace, qos, spec, uid};

/// Handler of Wasm runtimes.
pub(crate) const HANDLER_WASM: &str = "wasm";
/// RuntimeClass handler that asks for a Wasm worker of the pod's own.
pub(crate) const HANDLER_WASM_ISOLATED: &str = "wasm-isolated";
/// Tells a Wasm runtime the port of a component that answers HTTP.
pub(crate) const HTTP_PORT_ANNOTATION: &str = "wherry.dev/http-port";
/// Where a container's last words are looked for, unless it says otherwise.
pub(crate) const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";

/// Why a pod cannot be put into a runtime's words; a `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum TranslateError {
    /// The environment refers to what is not there.
    #[error(transparent)]
    Env(#[from] env::EnvError),
    /// `runAsNonRoot`, and the image says root.
    #[error(
        "container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})"
    )]
    RunsAsRoot {
        /// `name_namespace(uid)`.
        pod: String,
        /// The container.
        container: String,
    },
    /// `runAsNonRoot`, and the image names a user by name.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    UserHasName {
        /// The user.
        user: String,
        /// `name_namespace(uid)`.
        pod: String,
        /// The container.
        container: String,
    },
    /// `runAsNonRoot` and `runAsUser: 0`.
    #[error(
        "container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})"
    )]
    RunAsUserIsRoot {
        /// `name_namespace(uid)`.
        pod: String,
        /// The container.
        container: String,
    },
    /// A mount names a volume that is not there.
    #[error("cannot find volume \"{volume}\" to mount into container \"{container}\"")]
    NoVolume {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
    },
    /// A `subPath` that leaves its volume, or refers to a variable that is not there.
    #[error(
        "failed to prepare subPath for volumeMount \"{volume}\" of container \"{container}\": {why}"
    )]
    SubPath {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
        /// What is wrong with it.
        why: String,
    },
    /// `recursiveReadOnly: Enabled`, and the runtime does not do it.
    #[error(
        "failed to resolve recursive read-only mode: volumeMount \"{volume}\" of container \"{container}\" asks for recursiveReadOnly: Enabled, which its runtime does not support"
    )]
    RecursiveReadOnly {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
    },
    /// A signal that this kernel does not have.
    #[error("container \"{container}\": unknown stop signal \"{signal}\"")]
    StopSignal {
        /// The container.
        container: String,
        /// As written.
        signal: String,
    },
    /// A field that nothing here can do.
    #[error("container \"{container}\": {field} is not supported on this node")]
    Unsupported {
        /// The container.
        container: String,
        /// As the API spells it.
        field: &'static str,
    },
}

/// Which runtimes a pod is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handlers {
    /// Makes the sandbox.
    pub(crate) sandbox: String,
    /// A worker of the pod's own, where workers are shared.
    pub(crate) isolated: bool,
    /// From the RuntimeClass, for every container; else each goes by its image.
    pub(crate) fixed: Option<String>,
}

/// Chooses the sandbox's runtime by RuntimeClass, else by what the images are.
pub(crate) fn handlers(
    pod: &Pod,
    class_handler: Option<&str>,
    kinds: &[Option<ImageKind>],
    default: &str,
) -> Handlers {
    if let Some(handler) = class_handler {
        let (handler, isolated) = match handler {
            HANDLER_WASM_ISOLATED => (HANDLER_WASM, true),
            other => (other, false),
        };
        return Handlers {
            sandbox: handler.into(),
            isolated,
            fixed: Some(handler.into()),
        };
    }
    let is_all_wasm = !kinds.is_empty() && kinds.iter().all(|kind| *kind == Some(ImageKind::Wasm));
    let sandbox = if is_all_wasm && spec(pod).host_network != Some(true) {
        HANDLER_WASM
    } else {
        default
    };
    Handlers {
        sandbox: sandbox.into(),
        isolated: false,
        fixed: None,
    }
}

/// The runtime of a container: the pod's, else by what its image is.
pub(crate) fn container_handler<'a>(
    fixed: Option<&'a str>,
    kind: ImageKind,
    default: &'a str,
) -> &'a str {
    match (fixed, kind) {
        (Some(handler), _) => handler,
        (None, ImageKind::Wasm) => HANDLER_WASM,
        (None, ImageKind::Container) => default,
    }
}

/// `<namespace>_<name>_<uid>` below the log root.
pub(crate) fn log_directory(log_root: &Path, pod: &Pod) -> PathBuf {
    log_root.join(format!("{}_{}_{}", namespace(pod), name(pod), uid(pod)))
}

/// The name that `hostname` prints in the pod, and the domain if it has a subdomain.
pub(crate) fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = spec(pod);
    // A host name holds 63 characters.
    let cut: String = name(pod).chars().take(63).collect();
    if let Some(name) = spec
        .hostname_override
        .clone()
        .filter(|name| !name.is_empty())
    {
        return (name, None);
    }
    let own = spec
        .hostname
        .clone()
        .unwrap_or_else(|| cut.trim_end_matches(['-', '.']).to_owned());
    let domain = spec
        .subdomain
        .as_ref()
        .filter(|subdomain| !subdomain.is_empty())
        .map(|subdomain| format!("{subdomain}.{}.svc.{cluster_domain}", namespace(pod)));
    (own, domain)
}

/// The name that the kernel is given, which may be the whole domain name.
///
/// # Errors
/// It is longer than the kernel takes.
pub(crate) fn kernel_hostname(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    /// `HOST_NAME_MAX`.
    const LENGTH_MAX: usize = 64;
    match hostname(pod, cluster_domain) {
        (host, Some(domain)) if spec(pod).set_hostname_as_fqdn == Some(true) => {
            let whole = format!("{host}.{domain}");
            match whole.len() {
                length if length > LENGTH_MAX => Err(format!(
                    "failed to construct FQDN from pod hostname and cluster domain, FQDN {whole} is too long ({LENGTH_MAX} characters is the max, {length} characters requested)"
                )),
                _ => Ok(whole),
            }
        }
        (host, _) => Ok(host),
    }
}

/// What a sandbox's config is made of besides the pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SandboxInputs<'a> {
    /// `<root>/log/pods`.
    pub(crate) log_root: &'a Path,
    /// Prefix of the pods' cgroups.
    pub(crate) cgroup_root: &'a str,
    /// As [`kernel_hostname`] made it.
    pub(crate) hostname: &'a str,
    /// Processes and threads that a pod may have.
    pub(crate) pids_max: Option<u64>,
    /// With `hostUsers: false`.
    pub(crate) user_namespace: Option<UserNamespace>,
}

/// The sandbox's config.
pub(crate) fn sandbox(
    pod: &Pod,
    attempt: u32,
    handlers: &Handlers,
    inputs: SandboxInputs<'_>,
) -> PodSandboxConfig {
    let SandboxInputs {
        log_root,
        cgroup_root,
        hostname,
        pids_max,
        user_namespace,
    } = inputs;
    let spec = spec(pod);
    let node_or = |is_host: Option<bool>, own| {
        if is_host == Some(true) {
            NamespaceMode::Node
        } else {
            own
        }
    };
    let is_host_network = spec.host_network == Some(true);
    let pid = if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    let context = spec.security_context.as_ref();
    PodSandboxConfig {
        uid: uid(pod),
        name: name(pod).into(),
        namespace: namespace(pod).into(),
        attempt,
        hostname: (!is_host_network).then(|| hostname.into()),
        log_directory: log_directory(log_root, pod),
        namespaces: NamespaceOptions {
            network: node_or(spec.host_network, NamespaceMode::Pod),
            pid: node_or(spec.host_pid, pid),
            ipc: node_or(spec.host_ipc, NamespaceMode::Pod),
        },
        cgroup_parent: qos::cgroup_parent(cgroup_root, pod),
        resources: qos::pod_resources(pod, pids_max),
        sysctls: context
            .and_then(|c| c.sysctls.as_ref())
            .into_iter()
            .flatten()
            .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
            .collect(),
        seccomp: SeccompProfile::RuntimeDefault,
        isolated: handlers.isolated,
        labels: vec![
            ("io.kubernetes.pod.name".into(), name(pod).into()),
            ("io.kubernetes.pod.namespace".into(), namespace(pod).into()),
            ("io.kubernetes.pod.uid".into(), uid(pod).to_string()),
        ],
        annotations: pod
            .metadata
            .annotations
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        user_namespace,
    }
}

/// What a container's config is made of besides pod and image.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    /// For the environment.
    pub(crate) env: env::Inputs<'a>,
    /// Where each volume is on the node.
    pub(crate) volumes: &'a BTreeMap<String, PathBuf>,
    /// Files that the agent makes for the pod: container path and host path.
    pub(crate) files: &'a [(PathBuf, PathBuf)],
    /// Host file of the termination message.
    pub(crate) termination_message: &'a Path,
    /// `<root>/log/pods`.
    pub(crate) log_root: &'a Path,
    /// Rotation of logs.
    pub(crate) log_rotation: LogRotation,
    /// The node's memory.
    pub(crate) memory_capacity_bytes: u64,
    /// The directory with `Localhost` seccomp profiles.
    pub(crate) seccomp_root: &'a Path,
    /// Whether the runtime makes mounts read-only with what is below them.
    pub(crate) has_recursive_readonly: bool,
    /// Where the sub-path of a volume is to be mounted from: by mount, volume and path below it.
    pub(crate) sub_path: &'a dyn Fn(usize, &Path, &Path) -> std::io::Result<PathBuf>,
    /// Whose processes it sees.
    pub(crate) pid_target: Option<&'a ContainerId>,
}

/// A container's config.
pub(crate) fn container(
    inputs: Inputs<'_>,
    container: &Container,
    attempt: u32,
    image: &Image,
) -> Result<ContainerConfig, TranslateError> {
    let pod = inputs.env.pod;
    let env = env::build(inputs.env, container)?;
    let expand = |text: &String| {
        env::expand(text, |name| {
            env.iter()
                .find(|(there, _)| there == name)
                .map(|(_, value)| value.clone())
        })
    };
    let security = security(pod, container, inputs.seccomp_root);
    verify_non_root(pod, container, &security, image)?;
    let command = container.command.iter().flatten().map(&expand).collect();
    let args = container.args.iter().flatten().map(&expand).collect();
    let mounts = mounts(inputs, container, &env)?;
    let mut annotations: Vec<(String, String)> = Vec::new();
    let port = annotation(pod, HTTP_PORT_ANNOTATION)
        .map(str::to_owned)
        .or_else(|| {
            let ports = container.ports.as_ref()?;
            Some(ports.first()?.container_port.to_string())
        });
    annotations.extend(port.map(|port| (HTTP_PORT_ANNOTATION.to_owned(), port)));
    Ok(ContainerConfig {
        pid_target: inputs.pid_target.cloned(),
        name: container.name.clone(),
        attempt,
        image_id: image.id.clone(),
        image: container.image.clone().unwrap_or_default(),
        command,
        args,
        working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
        env,
        mounts,
        devices: Vec::new(),
        labels: vec![
            (
                "io.kubernetes.container.name".into(),
                container.name.clone(),
            ),
            ("io.kubernetes.pod.name".into(), name(pod).into()),
            ("io.kubernetes.pod.namespace".into(), namespace(pod).into()),
            ("io.kubernetes.pod.uid".into(), uid(pod).to_string()),
        ],
        annotations,
        log_path: log_directory(inputs.log_root, pod)
            .join(&container.name)
            .join(format!("{attempt}.log")),
        log_rotation: inputs.log_rotation,
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        stop_signal: stop_signal(container)?,
        resources: qos::container_resources(pod, container, inputs.memory_capacity_bytes),
        security,
    })
}

fn stop_signal(container: &Container) -> Result<Option<i32>, TranslateError> {
    let name = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    let known = |name: &str| {
        signal(name).ok_or_else(|| TranslateError::StopSignal {
            container: container.name.clone(),
            signal: name.into(),
        })
    };
    name.map(known).transpose()
}

/// A signal by its name (`SIGUSR1`, `SIGRTMIN+3`).
fn signal(name: &str) -> Option<i32> {
    /// As users of the C library see them; the kernel's first two are the library's own.
    const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
    let offset = |rest: &str, sign| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<i32>().ok(),
    };
    let number = if let Some(rest) = name.strip_prefix("SIGRTMIN") {
        REAL_TIME.start().checked_add(offset(rest, '+')?)?
    } else if let Some(rest) = name.strip_prefix("SIGRTMAX") {
        REAL_TIME.end().checked_sub(offset(rest, '-')?)?
    } else {
        return name
            .parse::<nix::sys::signal::Signal>()
            .ok()
            .map(|signal| signal as i32);
    };
    REAL_TIME.contains(&number).then_some(number)
}

fn mounts(
    inputs: Inputs<'_>,
    container: &Container,
    env: &[(String, String)],
) -> Result<Vec<Mount>, TranslateError> {
    let mut mounts = Vec::new();
    if container
        .volume_devices
        .as_ref()
        .is_some_and(|d| !d.is_empty())
    {
        return Err(TranslateError::Unsupported {
            container: container.name.clone(),
            field: "volumeDevices",
        });
    }
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let no_volume = || TranslateError::NoVolume {
            volume: mount.name.clone(),
            container: container.name.clone(),
        };
        let volume = inputs.volumes.get(&mount.name).ok_or_else(no_volume)?;
        let refused = |why: String| TranslateError::SubPath {
            volume: mount.name.clone(),
            container: container.name.clone(),
            why,
        };
        let host_path = match sub_path(mount, env).map_err(refused)? {
            Some(sub) => (inputs.sub_path)(index, volume, &sub)
                .map_err(|error| refused(error.to_string()))?,
            None => volume.clone(),
        };
        let is_readonly = mount.read_only == Some(true);
        let recursive = mount.recursive_read_only.as_deref();
        if recursive == Some("Enabled") && !inputs.has_recursive_readonly {
            return Err(TranslateError::RecursiveReadOnly {
                volume: mount.name.clone(),
                container: container.name.clone(),
            });
        }
        mounts.push(Mount {
            container_path: Path::new("/").join(&mount.mount_path),
            host_path,
            readonly: is_readonly,
            recursive_readonly: is_readonly
                && inputs.has_recursive_readonly
                && matches!(recursive, Some("Enabled" | "IfPossible")),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => MountPropagation::HostToContainer,
                Some("Bidirectional") => MountPropagation::Bidirectional,
                _ => MountPropagation::None,
            },
        });
    }
    let plain = |container_path: &Path, host_path: &Path| Mount {
        container_path: container_path.into(),
        host_path: host_path.into(),
        readonly: false,
        recursive_readonly: false,
        propagation: MountPropagation::None,
    };
    for (container_path, host_path) in inputs.files {
        // A volume over the same place is what the user wants.
        if !mounts
            .iter()
            .any(|mount| mount.container_path == *container_path)
        {
            mounts.push(plain(container_path, host_path));
        }
    }
    let message_path = container
        .termination_message_path
        .as_deref()
        .unwrap_or(TERMINATION_MESSAGE_PATH);
    if !message_path.is_empty() {
        mounts.push(plain(Path::new(message_path), inputs.termination_message));
    }
    Ok(mounts)
}

/// The path below the volume, checked not to leave it by its own words.
fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<PathBuf>, String> {
    let text = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => path.clone(),
        (_, Some(expression)) if !expression.is_empty() => {
            let text = env::expand(expression, |name| {
                env.iter()
                    .find(|(there, _)| there == name)
                    .map(|(_, value)| value.clone())
            });
            if text.contains("$(") {
                return Err(format!(
                    "\"{expression}\" refers to a variable that is not set"
                ));
            }
            text
        }
        _ => return Ok(None),
    };
    let path = PathBuf::from(text);
    let stays = path.components().all(|part| {
        matches!(
            part,
            std::path::Component::Normal(_) | std::path::Component::CurDir
        )
    });
    if stays {
        Ok(Some(path))
    } else {
        Err(format!("\"{}\" leaves the volume", path.display()))
    }
}

/// What a container asks for and does not get here, for events; everything else is done or refused.
pub(crate) fn not_done(pod: &Pod, container: &Container) -> Vec<String> {
    let own = container.security_context.as_ref();
    let of_pod = spec(pod).security_context.as_ref();
    let mut list = Vec::new();
    let has_selinux = own.is_some_and(|c| c.se_linux_options.is_some())
        || of_pod.is_some_and(|c| c.se_linux_options.is_some());
    if has_selinux {
        list.push("seLinuxOptions are not applied: this node does not use SELinux".to_owned());
    }
    let ports = container.ports.iter().flatten();
    if spec(pod).host_network != Some(true) {
        list.extend(ports.filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            Some(format!(
                "hostPort {number} is kept free for this pod and not forwarded to it: use a Service of type NodePort, or hostNetwork"
            ))
        }));
    }
    list
}

/// The container's security context over the pod's.
fn security(pod: &Pod, container: &Container, seccomp_root: &Path) -> ContainerSecurity {
    let pod_context = spec(pod).security_context.as_ref();
    let own = container.security_context.as_ref();
    let id = |value: i64| u32::try_from(value).ok();
    let capabilities = own.and_then(|c| c.capabilities.as_ref());
    let plain = |name: &String| name.strip_prefix("CAP_").unwrap_or(name).to_uppercase();
    let privileged = own.and_then(|c| c.privileged) == Some(true);
    let mut groups: Vec<u32> = pod_context
        .and_then(|c| c.fs_group)
        .and_then(id)
        .into_iter()
        .collect();
    groups.extend(
        pod_context
            .and_then(|c| c.supplemental_groups.as_ref())
            .into_iter()
            .flatten()
            .copied()
            .filter_map(id),
    );
    let seccomp = own
        .and_then(|c| c.seccomp_profile.as_ref())
        .or(pod_context.and_then(|c| c.seccomp_profile.as_ref()));
    let apparmor = own
        .and_then(|c| c.app_armor_profile.as_ref())
        .or(pod_context.and_then(|c| c.app_armor_profile.as_ref()));
    ContainerSecurity {
        run_as_user: own
            .and_then(|c| c.run_as_user)
            .or(pod_context.and_then(|c| c.run_as_user))
            .and_then(id),
        run_as_group: own
            .and_then(|c| c.run_as_group)
            .or(pod_context.and_then(|c| c.run_as_group))
            .and_then(id),
        run_as_non_root: own
            .and_then(|c| c.run_as_non_root)
            .or(pod_context.and_then(|c| c.run_as_non_root))
            == Some(true),
        supplemental_groups: groups,
        privileged,
        capabilities_add: capabilities
            .and_then(|c| c.add.as_ref())
            .into_iter()
            .flatten()
            .map(plain)
            .collect(),
        capabilities_drop: capabilities
            .and_then(|c| c.drop.as_ref())
            .into_iter()
            .flatten()
            .map(plain)
            .collect(),
        readonly_rootfs: own.and_then(|c| c.read_only_root_filesystem) == Some(true),
        no_new_privs: own.and_then(|c| c.allow_privilege_escalation) == Some(false) && !privileged,
        seccomp: if privileged {
            SeccompProfile::Unconfined
        } else {
            to_seccomp(seccomp, seccomp_root)
        },
        apparmor: apparmor.and_then(to_apparmor),
        unmasked_proc: own.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked"),
    }
}

fn to_seccomp(profile: Option<&ApiSeccomp>, root: &Path) -> SeccompProfile {
    match profile.map(|profile| (profile.type_.as_str(), profile.localhost_profile.as_deref())) {
        Some(("Unconfined", _)) => SeccompProfile::Unconfined,
        Some(("Localhost", Some(name))) => SeccompProfile::Localhost(root.join(name)),
        // The kubelet's default is no filter; ours is the runtime's, as with its `seccompDefault`.
        _ => SeccompProfile::RuntimeDefault,
    }
}

fn to_apparmor(profile: &ApiAppArmor) -> Option<AppArmorProfile> {
    match (profile.type_.as_str(), &profile.localhost_profile) {
        ("Unconfined", _) => Some(AppArmorProfile::Unconfined),
        ("RuntimeDefault", _) => Some(AppArmorProfile::RuntimeDefault),
        ("Localhost", Some(name)) => Some(AppArmorProfile::Localhost(name.clone())),
        _ => None,
    }
}

fn verify_non_root(
    pod: &Pod,
    container: &Container,
    security: &ContainerSecurity,
    image: &Image,
) -> Result<(), TranslateError> {
    if !security.run_as_non_root || image.kind == ImageKind::Wasm {
        return Ok(());
    }
    let (pod, container) = (full_name(pod), container.name.clone());
    let user = image
        .user
        .as_deref()
        .unwrap_or_default()
        .split(':')
        .next()
        .unwrap_or_default();
    match (security.run_as_user, user.parse::<u32>()) {
        (Some(0), _) => Err(TranslateError::RunAsUserIsRoot { pod, container }),
        (Some(_), _) => Ok(()),
        (None, Ok(0)) => Err(TranslateError::RunsAsRoot { pod, container }),
        (None, Ok(_)) => Ok(()),
        (None, Err(_)) if user.is_empty() => Err(TranslateError::RunsAsRoot { pod, container }),
        (None, Err(_)) => Err(TranslateError::UserHasName {
            user: user.into(),
            pod,
            container,
        }),
    }
}

/// `/etc/hosts` of a pod, as the kubelet writes it.
pub(crate) fn hosts_file(
    pod: &Pod,
    ips: &[IpAddr],
    cluster_domain: &str,
    node_hosts: Option<&str>,
) -> String {
    let mut text = match node_hosts {
        Some(hosts) => format!("# Kubernetes-managed hosts file (host network).\n{hosts}"),
        None => {
            let mut text = String::from(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            let (host, domain) = hostname(pod, cluster_domain);
            for ip in ips {
                match &domain {
                    Some(domain) => text.push_str(&format!("{ip}\t{host}.{domain}\t{host}\n")),
                    None => text.push_str(&format!("{ip}\t{host}\n")),
                }
            }
            text
        }
    };
    let aliases = spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default();
            text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
        }
    }
    text
}

/// The cluster's DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterDns {
    /// Servers; empty where there is none.
    pub servers: Vec<IpAddr>,
    /// For instance `cluster.local`.
    pub domain: String,
}

/// `/etc/resolv.conf` of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    /// The file.
    pub(crate) text: String,
    /// Reasons and messages of events: what the pod asked for and does not get.
    pub(crate) warnings: Vec<(&'static str, String)>,
}

/// What resolvers read (`MaxDNSNameservers`, `MaxDNSSearchPaths`, `MaxDNSSearchListChars`).
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_BYTES_MAX: usize = 2048;

/// Makes `/etc/resolv.conf` of a pod. `node` is the node's own.
pub(crate) fn resolv_conf(pod: &Pod, dns: &ClusterDns, node: &str) -> ResolvConf {
    const FORMING: &str = "DNSConfigForming";
    let mut warnings = Vec::new();
    let spec = spec(pod);
    let (mut servers, mut searches, mut options) = parse_resolv_conf(node);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let wants_cluster = match policy {
        "ClusterFirst" => spec.host_network != Some(true),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    if policy == "None" {
        (servers, searches, options) = (Vec::new(), Vec::new(), Vec::new());
    } else if wants_cluster && !dns.servers.is_empty() {
        servers = dns.servers.iter().map(IpAddr::to_string).collect();
        let namespace = namespace(pod);
        let domain = &dns.domain;
        let cluster = [
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        searches = cluster.into_iter().chain(searches).collect();
        options = vec!["ndots:5".into()];
    }
    if wants_cluster && dns.servers.is_empty() {
        warnings.push((
            "MissingClusterDNS",
            format!(
                "pod: \"{}\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"{policy}\" policy. Falling back to \"Default\" policy.",
                full_name(pod)
            ),
        ));
    }
    if let Some(config) = &spec.dns_config {
        servers.extend(config.nameservers.iter().flatten().cloned());
        searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            options.retain(|there| there.split(':').next() != Some(name));
            options.push(
                option
                    .value
                    .as_ref()
                    .map_or_else(|| name.clone(), |value| format!("{name}:{value}")),
            );
        }
    }
    let mut text = String::new();
    let mut seen: Vec<String> = Vec::new();
    if servers.len() > NAMESERVERS_MAX {
        servers.truncate(NAMESERVERS_MAX);
        warnings.push((
            FORMING,
            format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                servers.join(" ")
            ),
        ));
    }
    for server in &servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    for search in searches {
        if !seen.contains(&search) {
            seen.push(search);
        }
    }
    let asked = seen.len();
    seen.truncate(SEARCHES_MAX);
    while seen.join(" ").len() > SEARCH_BYTES_MAX {
        seen.pop();
    }
    if seen.len() < asked {
        warnings.push((
            FORMING,
            format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                seen.join(" ")
            ),
        ));
    }
    if !seen.is_empty() {
        text.push_str(&format!("search {}\n", seen.join(" ")));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    ResolvConf { text, warnings }
}

fn parse_resolv_conf(text: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().map(str::to_owned)),
            Some("search") => searches = words.map(str::to_owned).collect(),
            Some("options") => options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    (servers, searches, options)
}

#[cfg(test)]
mod tests;

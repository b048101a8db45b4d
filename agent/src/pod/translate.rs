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
    AppArmorProfile, ContainerConfig, ContainerSecurity, Image, ImageKind, LogRotation, Mount,
    MountPropagation, NamespaceMode, NamespaceOptions, PodSandboxConfig, SeccompProfile,
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
    #[error("failed to prepare subPath for volumeMount \"{volume}\" of container \"{container}\"")]
    SubPath {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
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

/// The sandbox's config.
pub(crate) fn sandbox(
    pod: &Pod,
    attempt: u32,
    handlers: &Handlers,
    log_root: &Path,
    cgroup_root: &str,
    cluster_domain: &str,
) -> PodSandboxConfig {
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
    let (host, domain) = hostname(pod, cluster_domain);
    let host = match domain {
        Some(domain) if spec.set_hostname_as_fqdn == Some(true) => format!("{host}.{domain}"),
        _ => host,
    };
    PodSandboxConfig {
        uid: uid(pod),
        name: name(pod).into(),
        namespace: namespace(pod).into(),
        attempt,
        hostname: (!is_host_network).then_some(host),
        log_directory: log_directory(log_root, pod),
        namespaces: NamespaceOptions {
            network: node_or(spec.host_network, NamespaceMode::Pod),
            pid: node_or(spec.host_pid, pid),
            ipc: node_or(spec.host_ipc, NamespaceMode::Pod),
        },
        cgroup_parent: qos::cgroup_parent(cgroup_root, pod),
        resources: qos::pod_resources(pod),
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
        user_namespace: None,
    }
}

/// What a container's config is made of besides pod and image.
#[derive(Clone, Copy, Debug)]
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
        pid_target: None,
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
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|l| signal(l.stop_signal.as_deref()?)),
        resources: qos::container_resources(pod, container, inputs.memory_capacity_bytes),
        security,
    })
}

/// A signal by its name (`SIGUSR1`).
fn signal(name: &str) -> Option<i32> {
    name.parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|signal| signal as i32)
}

fn mounts(
    inputs: Inputs<'_>,
    container: &Container,
    env: &[(String, String)],
) -> Result<Vec<Mount>, TranslateError> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let no_volume = || TranslateError::NoVolume {
            volume: mount.name.clone(),
            container: container.name.clone(),
        };
        let volume = inputs.volumes.get(&mount.name).ok_or_else(no_volume)?;
        let host_path = match sub_path(mount, env) {
            Ok(Some(sub)) => volume.join(sub),
            Ok(None) => volume.clone(),
            Err(()) => {
                let (volume, container) = (mount.name.clone(), container.name.clone());
                return Err(TranslateError::SubPath { volume, container });
            }
        };
        let is_readonly = mount.read_only == Some(true);
        mounts.push(Mount {
            container_path: Path::new("/").join(&mount.mount_path),
            host_path,
            readonly: is_readonly,
            recursive_readonly: is_readonly
                && matches!(
                    mount.recursive_read_only.as_deref(),
                    Some("Enabled" | "IfPossible")
                ),
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
fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<PathBuf>, ()> {
    let text = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => path.clone(),
        (_, Some(expression)) if !expression.is_empty() => {
            let text = env::expand(expression, |name| {
                env.iter()
                    .find(|(there, _)| there == name)
                    .map(|(_, value)| value.clone())
            });
            if text.contains("$(") {
                return Err(());
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
    if stays { Ok(Some(path)) } else { Err(()) }
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

/// `/etc/resolv.conf` of a pod. `node` is the node's own.
pub(crate) fn resolv_conf(pod: &Pod, dns: &ClusterDns, node: &str) -> String {
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
    let mut seen = Vec::new();
    for server in servers.iter().take(3) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    for search in searches {
        if !seen.contains(&search) {
            seen.push(search);
        }
    }
    if !seen.is_empty() {
        text.push_str(&format!("search {}\n", seen.join(" ")));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
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

//! A Pod as the runtimes understand it. Pure, and the only place where Kubernetes types become theirs.

mod security;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use thiserror::Error;
use wherry_runtime_api::{
    ContainerConfig, ContainerId, Image, ImageKind, LogRotation, Mount, MountPropagation,
    NamespaceMode, NamespaceOptions, PodSandboxConfig, SeccompProfile, UserNamespace,
};

use super::{annotation, env, name, namespace, qos, spec, uid};
pub(crate) use security::not_done;
use security::{security, verify_non_root};

/// Handler of Wasm runtimes.
pub(crate) const HANDLER_WASM: &str = "wasm";
/// RuntimeClass handler that asks for a Wasm worker of the pod's own.
pub(crate) const HANDLER_WASM_ISOLATED: &str = "wasm-isolated";
/// Tells a Wasm runtime the ports of a component that answers HTTP, with commas between.
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

impl Handlers {
    /// For a network that reaches pods by namespaces alone: a sandbox of Wasm's own has none, so that `default` makes
    /// one, as for a pod of both.
    pub(crate) fn need_namespace(&mut self, default: &str) {
        if matches!(self.sandbox.as_str(), HANDLER_WASM | HANDLER_WASM_ISOLATED) {
            self.sandbox = default.into();
        }
    }
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
        .or_else(|| tcp_ports(container));
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

/// The TCP ports that a container names, with commas between.
fn tcp_ports(container: &Container) -> Option<String> {
    let ports: Vec<String> = container
        .ports
        .iter()
        .flatten()
        .filter(|port| {
            port.protocol
                .as_deref()
                .is_none_or(|protocol| protocol == "TCP")
        })
        .map(|port| port.container_port.to_string())
        .collect();
    (!ports.is_empty()).then(|| ports.join(","))
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

#[cfg(test)]
mod tests;

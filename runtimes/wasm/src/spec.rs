//! From CRI's config to what a worker is told: arguments, environment, limits, ports, and which
//! worker it is to be.

use std::{fs::File, io, path::Path};

use wherry_images::StoredImage;
use wherry_runtime_api::{
    AppArmorProfile, ContainerConfig, LinuxResources, Mount, MountPropagation, NamespaceMode,
    PodSandbox, PodSandboxConfig, RuntimeError, SandboxNetwork, SeccompProfile,
};

use crate::{
    HTTP_PORT_ANNOTATION,
    protocol::Limits,
    worker::{NewWorker, WorkerKey},
};

/// Kubernetes' default period.
const CPU_PERIOD_US: u64 = 100_000;
/// Where an HTTP component is served if nothing says otherwise.
const HTTP_PORT_DEFAULT: u16 = 8080;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// Resolver configuration and hosts files past this are not read.
const RESOLVER_BYTES_MAX: u64 = 64 * 1024;

/// What a pod of Wasm containers alone cannot have.
pub(crate) fn check_sandbox(config: &PodSandboxConfig) -> Result<(), RuntimeError> {
    match config.sysctls.first() {
        Some((name, _)) => Err(RuntimeError::Unsupported(format!(
            "sysctl {name}: a pod of Wasm containers alone has no namespace to set it in"
        ))),
        None => Ok(()),
    }
}

/// What cannot be honoured, and what contradicts itself. The table is in the crate's documentation.
pub(crate) fn check(config: &ContainerConfig) -> Result<(), RuntimeError> {
    let unsupported = |what: String| Err(RuntimeError::Unsupported(what));
    if let Some(device) = config.devices.first() {
        let path = device.container_path.display();
        return unsupported(format!("device {path}: WASI has no devices"));
    }
    let travels = |mount: &&Mount| mount.propagation != MountPropagation::None;
    if let Some(mount) = config.mounts.iter().find(travels) {
        let path = mount.container_path.display();
        return unsupported(format!(
            "mount {path}: a component has its mounts from its start on; none can travel to it or from it"
        ));
    }
    if let SeccompProfile::Localhost(profile) = &config.security.seccomp {
        let profile = profile.display();
        return unsupported(format!(
            "seccomp profile {profile}: a Wasm component makes no system calls that it could filter"
        ));
    }
    if let Some(AppArmorProfile::Localhost(profile)) = &config.security.apparmor {
        return unsupported(format!(
            "AppArmor profile {profile}: a Wasm component is no process that it could confine"
        ));
    }
    if let Some((size, _)) = config
        .resources
        .hugepage_bytes_max
        .iter()
        .find(|(_, bytes)| *bytes > 0)
    {
        return unsupported(format!(
            "hugepages-{size}: a component's memory is not made of huge pages"
        ));
    }
    http_ports(config).map(|_| ())
}

/// What has no meaning for a component and does no harm, said as warnings of the container.
pub(crate) fn ignored(sandbox: &PodSandboxConfig, config: &ContainerConfig) -> Vec<String> {
    let (security, namespaces) = (&config.security, &sandbox.namespaces);
    let signal = config.stop_signal;
    let nothing = [
        (
            security.privileged || !security.capabilities_add.is_empty(),
            "privileges and capabilities mean nothing to a Wasm component: it has no system calls",
        ),
        (
            security.unmasked_proc,
            "procMount means nothing to a Wasm component: it has no /proc",
        ),
        (
            namespaces.pid == NamespaceMode::Pod,
            "shareProcessNamespace means nothing to a Wasm component: it is no process",
        ),
        (
            namespaces.pid == NamespaceMode::Node,
            "hostPID means nothing to a Wasm component: it sees no processes",
        ),
        (
            namespaces.ipc == NamespaceMode::Node,
            "hostIPC means nothing to a Wasm component: WASI has no IPC",
        ),
        (
            config.pid_target.is_some(),
            "targetContainerName means nothing to a Wasm component: it sees no processes",
        ),
        (
            signal.is_some_and(|signal| signal != SIGTERM && signal != SIGKILL),
            "stopSignal means nothing to a Wasm component: WASI has no signals",
        ),
    ];
    let asked = nothing.into_iter().filter(|(is_asked, _)| *is_asked);
    asked.map(|(_, why)| why.to_owned()).collect()
}

/// The ports on which an HTTP component is served; never none.
pub(crate) fn http_ports(config: &ContainerConfig) -> Result<Vec<u16>, RuntimeError> {
    let annotation = config
        .annotations
        .iter()
        .find(|(key, _)| key == HTTP_PORT_ANNOTATION);
    let variable = config.env.iter().rev().find(|(key, _)| key == "PORT");
    match (annotation, variable) {
        (Some((key, value)), _) => {
            let mut ports = Vec::new();
            for port in value.split(',') {
                match port.trim().parse() {
                    Ok(port) if port > 0 && !ports.contains(&port) => ports.push(port),
                    Ok(port) if port > 0 => {}
                    _ => {
                        return Err(RuntimeError::InvalidArgument(format!(
                            "annotation {key}: {port:?} is not a port"
                        )));
                    }
                }
            }
            Ok(ports)
        }
        // The variable may mean something else to a component that serves no HTTP.
        (None, Some((_, value))) => Ok(vec![
            value
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .unwrap_or(HTTP_PORT_DEFAULT),
        ]),
        (None, None) => Ok(vec![HTTP_PORT_DEFAULT]),
    }
}

/// WASI arguments of the app, as Kubernetes combines command, args and the image's.
pub(crate) fn app_args(image: &StoredImage, config: &ContainerConfig) -> Vec<String> {
    let mut args = if !config.command.is_empty() {
        config.command.clone()
    } else if !image.config.entrypoint.is_empty() {
        image.config.entrypoint.clone()
    } else {
        vec![program_name(&config.image)]
    };
    if !config.args.is_empty() {
        args.extend(config.args.iter().cloned());
    } else if config.command.is_empty() {
        args.extend(image.config.cmd.iter().cloned());
    }
    args
}

/// A program's name out of an image's: `registry:5000/team/app:1.2` is `app`.
fn program_name(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split(['@', ':']).next().unwrap_or(name).to_owned()
}

/// WASI arguments of an exec.
///
/// A module is one program. A command that begins with the program's own name, whole or without its
/// directory, is the whole of the arguments; any other command is what comes after the name. So
/// `kubectl exec pod -- app --check` and `kubectl exec pod -- --check` do the same.
pub fn exec_args(program: &str, command: &[String]) -> Vec<String> {
    let base = |name: &str| {
        name.rsplit('/')
            .next()
            .unwrap_or(name)
            .trim_end_matches(".wasm")
            .to_owned()
    };
    match command.first() {
        Some(first) if first == program || base(first) == base(program) => command.to_vec(),
        _ => std::iter::once(program.to_owned())
            .chain(command.iter().cloned())
            .collect(),
    }
}

/// The image's, then the pod's; before both the host name, which runtimes give whoever asks for it.
pub(crate) fn environment(
    image: &StoredImage,
    sandbox: &PodSandboxConfig,
    config: &ContainerConfig,
) -> Vec<(String, String)> {
    let node = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hostname = sandbox.hostname.clone().unwrap_or_else(node);
    let hostname = hostname.trim_end().to_owned();
    let mut env = vec![("HOSTNAME".to_owned(), hostname)];
    env.extend(image.config.env.iter().cloned());
    for (key, value) in &config.env {
        match env.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => old.clone_from(value),
            None => env.push((key.clone(), value.clone())),
        }
    }
    env
}

pub(crate) fn limits(resources: &LinuxResources) -> Limits {
    Limits {
        memory_bytes_max: resources.memory_bytes_max.filter(|bytes| *bytes > 0),
        cpu_quota_us: resources
            .cpu_quota_us
            .and_then(|quota| u64::try_from(quota).ok())
            .filter(|quota| *quota > 0),
        cpu_period_us: resources
            .cpu_period_us
            .filter(|period| *period > 0)
            .unwrap_or(CPU_PERIOD_US),
        cpu_shares: resources.cpu_shares.unwrap_or(0),
    }
}

pub(crate) fn new_worker(sandbox: &PodSandbox) -> NewWorker<'_> {
    let pod = WorkerKey::Pod {
        sandbox: sandbox.id.to_string(),
    };
    let (key, network_namespace) = match &sandbox.network {
        SandboxNetwork::Namespace { path } => (pod, Some(path.as_path())),
        _ if sandbox.config.isolated => (pod, None),
        network => {
            let key = WorkerKey::Tenant {
                namespace: sandbox.config.namespace.clone(),
                host_network: *network == SandboxNetwork::Host,
                resolver: 0,
            };
            (key, None)
        }
    };
    let cgroup_parent = match key {
        WorkerKey::Pod { .. } => Some(sandbox.config.cgroup_parent.as_str()),
        WorkerKey::Tenant { .. } => None,
    };
    NewWorker {
        key,
        network_namespace,
        cgroup_parent,
    }
}

/// What the container would find in a file of `/etc` if it were a process: what is mounted there, or
/// else the node's.
pub(crate) fn etc(config: &ContainerConfig, name: &str) -> String {
    let path = Path::new("/etc").join(name);
    let mount = config
        .mounts
        .iter()
        .find(|mount| mount.container_path == path);
    let source = mount.map_or(path.as_path(), |mount| mount.host_path.as_path());
    String::from_utf8_lossy(&read_limited(source).unwrap_or_default()).into_owned()
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    io::Read::read_to_end(
        &mut io::Read::take(File::open(path)?, RESOLVER_BYTES_MAX),
        &mut content,
    )?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn an_exec_may_begin_with_the_programs_name_or_not() {
        for (program, command, args) in [
            ("app", "--check", "app --check"),
            ("app", "app --check", "app --check"),
            ("/bin/app.wasm", "app --check", "app --check"),
            (
                "/bin/app.wasm",
                "/bin/app.wasm --check",
                "/bin/app.wasm --check",
            ),
            ("app", "read /data/app", "app read /data/app"),
            ("app", "", "app"),
        ] {
            assert_eq!(
                exec_args(program, &words(command)),
                words(args),
                "{program}: {command}"
            );
        }
    }

    #[test]
    fn a_program_is_named_after_its_image() {
        for (image, name) in [
            ("app", "app"),
            ("registry:5000/team/app:1.2", "app"),
            ("registry:5000/team/app@sha256:0123", "app"),
        ] {
            assert_eq!(program_name(image), name);
        }
    }

    #[test]
    fn limits_that_limit_nothing_are_none() {
        let none = LinuxResources {
            cpu_quota_us: Some(-1),
            memory_bytes_max: Some(0),
            ..LinuxResources::default()
        };
        let unlimited = Limits {
            cpu_period_us: CPU_PERIOD_US,
            ..Limits::default()
        };
        assert_eq!(limits(&none), unlimited);
        assert_eq!(limits(&LinuxResources::default()), unlimited);
    }
}

//! Identity and privileges of a container: its own security context over the pod's.

use std::path::Path;

use k8s_openapi::api::core::v1::{
    AppArmorProfile as ApiAppArmor, Container, Pod, SeccompProfile as ApiSeccomp,
};
use wherry_runtime_api::{AppArmorProfile, ContainerSecurity, Image, ImageKind, SeccompProfile};

use super::{
    super::{full_name, spec},
    TranslateError,
};

/// What a container asks for and does not get here, for events; everything else is done or refused.
/// `forwards_ports`: whether the node's own ports lead to pods.
pub(crate) fn not_done(pod: &Pod, container: &Container, forwards_ports: bool) -> Vec<String> {
    let own = container.security_context.as_ref();
    let of_pod = spec(pod).security_context.as_ref();
    let mut list = Vec::new();
    let has_selinux = own.is_some_and(|c| c.se_linux_options.is_some())
        || of_pod.is_some_and(|c| c.se_linux_options.is_some());
    if has_selinux {
        list.push("seLinuxOptions are not applied: this node does not use SELinux".to_owned());
    }
    let ports = container.ports.iter().flatten();
    if spec(pod).host_network != Some(true) && !forwards_ports {
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
pub(super) fn security(pod: &Pod, container: &Container, seccomp_root: &Path) -> ContainerSecurity {
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

/// Refuses root where the pod does, whichever way it is named.
pub(super) fn verify_non_root(
    pod: &Pod,
    container: &Container,
    security: &ContainerSecurity,
    image: &Image,
) -> Result<(), TranslateError> {
    // A component that names no user has one that is not root.
    let is_named = image.kind != ImageKind::Wasm || security.run_as_user.is_some();
    if !security.run_as_non_root || !is_named {
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

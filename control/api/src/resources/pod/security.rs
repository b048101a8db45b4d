//! What is wrong with security contexts, of the pod and of its containers, and with what they share with the host.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    validate::{Errors, ID_MAX, one_of, range},
    volumes::descending_path,
};
use crate::{
    FieldError,
    field::Path,
    meta,
    value::{entries, flag, get, integer, is_set, list, text},
};

const SYSCTL_NAME_BYTES_MAX: usize = 253;
/// `PATH_MAX` without the byte that ends it.
const PROFILE_NAME_BYTES_MAX: usize = 4095;
const WINDOWS_USER_BYTES_MAX: usize = 104;
const WINDOWS_DOMAIN_BYTES_MAX: usize = 256;
const WINDOWS_SPEC_BYTES_MAX: usize = 64 * 1024;

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Lists of containers in a pod's spec, in the order in which they are looked at.
pub(super) const CONTAINER_LISTS: [&str; 3] =
    ["initContainers", "containers", "ephemeralContainers"];

/// Whether the pod's containers share the host's users, which they do unless told not to.
pub(super) fn is_host_users(spec: &Value) -> bool {
    get(spec, "hostUsers").as_bool().unwrap_or(true)
}

/// `securityContext` of a pod.
pub(super) fn pod(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let context = get(spec, "securityContext");
    let at = path.child("securityContext");
    user_ids(
        context,
        &["fsGroup", "runAsUser", "runAsGroup"],
        &at,
        errors,
    );
    let groups = at.child("supplementalGroups");
    for (i, group) in list(context, "supplementalGroups").iter().enumerate() {
        let group = group.as_i64().unwrap_or(-1);
        range(group, 0, ID_MAX, &groups.index(i), errors);
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        let at = at.child("shareProcessNamespace");
        errors.push(FieldError::invalid(&at, true, detail));
    }
    sysctls(spec, context, &at.child("sysctls"), errors);
    let choices: [(&str, &[&str]); 1] = [("fsGroupChangePolicy", &["Always", "OnRootMismatch"])];
    for (field, supported) in choices {
        choice(context, field, supported, &at, errors);
    }
    seccomp(context, &at, errors);
    windows_options(context, &at, errors);
    apparmor(context, &at, errors);
    choice(
        context,
        "supplementalGroupsPolicy",
        &["Merge", "Strict"],
        &at,
        errors,
    );
    choice(
        context,
        "seLinuxChangePolicy",
        &["MountOption", "Recursive"],
        &at,
        errors,
    );
}

/// `securityContext` of a container.
pub(super) fn container(
    context: &Value,
    is_host_users: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    user_ids(context, &["runAsUser", "runAsGroup"], path, errors);
    choice(context, "procMount", &["Default", "Unmasked"], path, errors);
    if is_host_users && text(context, "procMount") == "Unmasked" {
        let detail = "`hostUsers` must be false to use `Unmasked`";
        errors.push(FieldError::invalid(
            &path.child("procMount"),
            "Unmasked",
            detail,
        ));
    }
    seccomp(context, path, errors);
    if get(context, "allowPrivilegeEscalation").as_bool() == Some(false) {
        if flag(context, "privileged") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(path, context.clone(), detail));
        }
        let added = list(get(context, "capabilities"), "add");
        for _ in added.iter().filter(|name| *name == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(path, context.clone(), detail));
        }
    }
    windows_options(context, path, errors);
    apparmor(context, path, errors);
}

/// What a pod with users of its own may not share with the host.
pub(super) fn host_users(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    if is_host_users(spec) {
        return;
    }
    // Kubernetes names two of these fields as Go does.
    for (field, shown) in [
        ("hostNetwork", "hostNetwork"),
        ("hostPID", "HostPID"),
        ("hostIPC", "HostIPC"),
    ] {
        if flag(spec, field) {
            let detail = "when `pod.Spec.HostUsers` is false";
            errors.push(FieldError::forbidden(&path.child(shown), detail));
        }
    }
}

/// What the operating system that a pod names leaves no room for.
pub(super) fn os(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(os) = spec.get("os") else {
        return;
    };
    let name = text(os, "name");
    let context = get(spec, "securityContext");
    let at = path.child("securityContext");
    match name {
        "linux" => {
            const DETAIL: &str = "windows options cannot be set for a linux pod";
            forbid(context, &["windowsOptions"], DETAIL, &at, errors);
            each_container(spec, path, |container, path| {
                let context = get(container, "securityContext");
                let at = path.child("securityContext");
                forbid(context, &["windowsOptions"], DETAIL, &at, errors);
            });
        }
        "windows" => {
            const DETAIL: &str = "cannot be set for a windows pod";
            const OF_SPEC: &[&str] = &["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"];
            const OF_POD: &[&str] = &[
                "appArmorProfile",
                "seLinuxOptions",
                "seccompProfile",
                "fsGroup",
                "fsGroupChangePolicy",
                "sysctls",
                "runAsUser",
                "runAsGroup",
                "supplementalGroups",
                "supplementalGroupsPolicy",
                "seLinuxChangePolicy",
            ];
            const OF_CONTAINER: &[&str] = &[
                "appArmorProfile",
                "seLinuxOptions",
                "seccompProfile",
                "capabilities",
                "readOnlyRootFilesystem",
                "privileged",
                "allowPrivilegeEscalation",
                "procMount",
                "runAsUser",
                "runAsGroup",
            ];
            forbid(spec, OF_SPEC, DETAIL, path, errors);
            forbid(context, OF_POD, DETAIL, &at, errors);
            each_container(spec, path, |container, path| {
                let context = get(container, "securityContext");
                let at = path.child("securityContext");
                forbid(context, OF_CONTAINER, DETAIL, &at, errors);
            });
        }
        _ => {
            let at = path.child("os");
            one_of(name, &["linux", "windows"], &at.child("name"), errors);
        }
    }
}

fn forbid(object: &Value, fields: &[&str], detail: &str, path: &Path<'_>, errors: &mut Errors) {
    let is_given = |field: &&&str| {
        let value = get(object, field);
        let is_empty_list = value.as_array().is_some_and(Vec::is_empty);
        is_set(object, field) && *value != Value::Bool(false) && !is_empty_list
    };
    for field in fields.iter().filter(is_given) {
        errors.push(FieldError::forbidden(&path.child(field), detail));
    }
}

/// Calls back with each container of a pod and where it stands.
pub(super) fn each_container(
    spec: &Value,
    path: &Path<'_>,
    mut visit: impl FnMut(&Value, &Path<'_>),
) {
    for field in CONTAINER_LISTS {
        let at = path.child(field);
        for (i, container) in list(spec, field).iter().enumerate() {
            visit(container, &at.index(i));
        }
    }
}

/// What a pod's annotations of old say otherwise than its fields, or of containers that are not there.
pub(super) fn annotations(pod: &Value, spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let metadata = Path::new("metadata");
    let at = metadata.child("annotations");
    let mut names = BTreeSet::new();
    each_container(spec, path, |container, _| {
        names.insert(text(container, "name").to_owned());
    });
    for (key, value) in entries(get(pod, "metadata"), "annotations") {
        let value = value.as_str().unwrap_or_default();
        let Some(container) = key.strip_prefix(APPARMOR_CONTAINER) else {
            continue;
        };
        if !names.contains(container) {
            let detail = "container not found";
            errors.push(FieldError::invalid(&at.key(key), container, detail));
        }
        let is_profile = matches!(value, "" | "runtime/default" | "unconfined")
            || value.starts_with("localhost/");
        if !is_profile {
            let shown = crate::field::quote(value);
            let detail = format!("invalid AppArmor profile name: {shown}");
            errors.push(FieldError::invalid(&at.key(key), value, detail));
        }
    }
    let pod_context = get(spec, "securityContext");
    if let Some(value) = meta::annotation(pod, SECCOMP_POD) {
        let at = path.child("securityContext");
        same_profile(
            get(pod_context, "seccompProfile"),
            value,
            "seccomp",
            &at,
            errors,
        );
    }
    each_container(spec, path, |container, path| {
        let (name, context) = (text(container, "name"), get(container, "securityContext"));
        let at = path.child("securityContext");
        if let Some(value) = meta::annotation(pod, &format!("{SECCOMP_CONTAINER}{name}")) {
            same_profile(
                get(context, "seccompProfile"),
                value,
                "seccomp",
                &at,
                errors,
            );
        }
        if let Some(value) = meta::annotation(pod, &format!("{APPARMOR_CONTAINER}{name}"))
            && text(get(spec, "os"), "name") != "windows"
        {
            let profile = match get(context, "appArmorProfile") {
                Value::Null => get(pod_context, "appArmorProfile"),
                profile => profile,
            };
            same_profile(profile, value, "apparmor", &at, errors);
        }
    });
}

/// Whether an annotation and a field name the same profile.
fn same_profile(
    profile: &Value,
    annotation: &str,
    what: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child(if what == "seccomp" {
        "seccompProfile"
    } else {
        "appArmorProfile"
    });
    let is_same = match text(profile, "type") {
        "" => return,
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => {
            annotation == "runtime/default" || (what == "seccomp" && annotation == "docker/default")
        }
        "Localhost" => match annotation.strip_prefix("localhost/") {
            Some(name) if name != text(profile, "localhostProfile") => {
                let detail = format!("{what} profile in annotation and field must match");
                errors.push(FieldError::forbidden(&at.child("localhostProfile"), detail));
                return;
            }
            name => name.is_some(),
        },
        _ => true,
    };
    if !is_same {
        let detail = format!("{what} type in annotation and field must match");
        errors.push(FieldError::forbidden(&at.child("type"), detail));
    }
}

fn choice(context: &Value, field: &str, supported: &[&str], path: &Path<'_>, errors: &mut Errors) {
    if let Some(value) = get(context, field).as_str()
        && !supported.contains(&value)
    {
        errors.push(FieldError::not_supported(
            &path.child(field),
            value,
            supported,
        ));
    }
}

fn user_ids(context: &Value, fields: &[&str], path: &Path<'_>, errors: &mut Errors) {
    for field in fields {
        if let Some(id) = integer(context, field) {
            range(id, 0, ID_MAX, &path.child(field), errors);
        }
    }
}

fn sysctls(spec: &Value, context: &Value, path: &Path<'_>, errors: &mut Errors) {
    let is_part = |part: &str| {
        let ends = part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric());
        ends && part
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
    };
    let mut names = BTreeSet::new();
    for (i, sysctl) in list(context, "sysctls").iter().enumerate() {
        let name = text(sysctl, "name");
        let at = path.index(i);
        let at = at.child("name");
        if name.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if name.len() > SYSCTL_NAME_BYTES_MAX || !name.split(['.', '/']).all(is_part) {
            let detail = "must have at most 253 characters and match regex \
                          ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(FieldError::invalid(&at, name, detail));
        } else if names.contains(&dotted(name)) {
            errors.push(FieldError::duplicate(&at, name));
        }
        let name_dotted = dotted(name);
        if flag(spec, "hostNetwork") && name_dotted.starts_with("net.") {
            let detail = "may not be specified when 'hostNetwork' is true";
            errors.push(FieldError::invalid(&at, name, detail));
        } else if flag(spec, "hostIPC") && is_of_ipc(&name_dotted) {
            let detail = "may not be specified when 'hostIPC' is true";
            errors.push(FieldError::invalid(&at, name, detail));
        }
        names.insert(name_dotted);
    }
}

/// A sysctl's name with dots between its parts; where slashes are, dots are part of a part.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'/' => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn is_of_ipc(name: &str) -> bool {
    matches!(name, "kernel.sem" | "kernel.shm_rmid_forced")
        || ["kernel.shm", "kernel.msg", "fs.mqueue."]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

fn seccomp(context: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(profile) = context.get("seccompProfile") else {
        return;
    };
    let at = path.child("seccompProfile");
    let type_ = text(profile, "type");
    let supported = ["Localhost", "RuntimeDefault", "Unconfined"];
    if type_.is_empty() {
        let detail = "type is required when seccompProfile is set";
        errors.push(FieldError::required(&at.child("type"), detail));
    } else if !supported.contains(&type_) {
        errors.push(FieldError::not_supported(
            &at.child("type"),
            type_,
            &supported,
        ));
    }
    let at = at.child("localhostProfile");
    match (type_, profile.get("localhostProfile")) {
        ("Localhost", None) => {
            let detail = "must be set when seccomp type is Localhost";
            errors.push(FieldError::required(&at, detail));
        }
        ("Localhost", Some(name)) => {
            descending_path(name.as_str().unwrap_or_default(), &at, errors);
        }
        (_, Some(_)) => {
            let detail = "can only be set when seccomp type is Localhost";
            errors.push(FieldError::invalid(&at, profile.clone(), detail));
        }
        (_, None) => {}
    }
}

fn apparmor(context: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(profile) = context.get("appArmorProfile") else {
        return;
    };
    let at = path.child("appArmorProfile");
    let name_at = at.child("localhostProfile");
    let name = profile.get("localhostProfile").and_then(Value::as_str);
    match text(profile, "type") {
        "Localhost" => {
            let name = name.unwrap_or_default();
            if name.trim() != name {
                let detail = "must not be padded with whitespace";
                errors.push(FieldError::invalid(&name_at, name, detail));
            } else if name.is_empty() {
                let detail = "must be set when AppArmor type is Localhost";
                errors.push(FieldError::required(&name_at, detail));
            }
            if name.len() > PROFILE_NAME_BYTES_MAX {
                errors.push(FieldError::too_long(&name_at, PROFILE_NAME_BYTES_MAX));
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if let Some(name) = name {
                let detail = "can only be set when AppArmor type is Localhost";
                errors.push(FieldError::invalid(&name_at, name, detail));
            }
        }
        "" => {
            let detail = "type is required when appArmorProfile is set";
            errors.push(FieldError::required(&at.child("type"), detail));
        }
        other => {
            let supported = ["Localhost", "RuntimeDefault", "Unconfined"];
            errors.push(FieldError::not_supported(
                &at.child("type"),
                other,
                &supported,
            ));
        }
    }
}

fn windows_options(context: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(options) = context.get("windowsOptions") else {
        return;
    };
    let at = path.child("windowsOptions");
    if let Some(name) = options
        .get("gmsaCredentialSpecName")
        .and_then(Value::as_str)
    {
        let at = at.child("gmsaCredentialSpecName");
        for detail in meta::dns1123_subdomain(name) {
            errors.push(FieldError::invalid(&at, name, detail));
        }
    }
    if let Some(spec) = options.get("gmsaCredentialSpec").and_then(Value::as_str) {
        let at = at.child("gmsaCredentialSpec");
        if spec.is_empty() {
            let detail = "gmsaCredentialSpec cannot be an empty string";
            errors.push(FieldError::invalid(&at, spec, detail));
        } else if spec.len() > WINDOWS_SPEC_BYTES_MAX {
            let detail = "gmsaCredentialSpec size must be under 64 KiB";
            errors.push(FieldError::invalid(&at, spec, detail));
        }
    }
    if let Some(user) = options.get("runAsUserName").and_then(Value::as_str) {
        windows_user(user, &at.child("runAsUserName"), errors);
    }
    if flag(options, "hostProcess") {
        let detail =
            "windows host process containers are not supported by the nodes of this cluster";
        errors.push(FieldError::forbidden(&at.child("hostProcess"), detail));
    }
}

fn windows_user(user: &str, path: &Path<'_>, errors: &mut Errors) {
    let mut refuse = |detail: String| errors.push(FieldError::invalid(path, user, detail));
    if user.is_empty() {
        refuse("runAsUserName cannot be an empty string".to_owned());
        return;
    }
    if user.chars().any(char::is_control) {
        refuse("runAsUserName cannot contain control characters".to_owned());
        return;
    }
    let (domain, name) = match user.split_once('\\') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, user),
    };
    if name.contains('\\') {
        refuse("runAsUserName cannot contain more than one backslash".to_owned());
        return;
    }
    if let Some(domain) = domain {
        if domain.len() > WINDOWS_DOMAIN_BYTES_MAX {
            refuse(format!(
                "runAsUserName's Domain length must be under {WINDOWS_DOMAIN_BYTES_MAX} characters"
            ));
        }
        let is_netbios = !domain.starts_with('.')
            && (1..=15).contains(&domain.len())
            && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|']);
        let is_dns = domain.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        });
        if !is_netbios && !is_dns {
            refuse(
                "runAsUserName's Domain doesn't match the NetBios nor the DNS format".to_owned(),
            );
        }
    }
    if name.is_empty() {
        refuse("runAsUserName's User cannot be empty".to_owned());
    } else if name.len() > WINDOWS_USER_BYTES_MAX {
        refuse(format!(
            "runAsUserName's User length must not be longer than {WINDOWS_USER_BYTES_MAX} characters"
        ));
    }
    if !name.is_empty() && name.chars().all(|c| matches!(c, '.' | ' ')) {
        refuse("runAsUserName's User cannot contain only periods or spaces".to_owned());
    }
    if name.contains([
        '"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']',
    ]) {
        refuse(
            "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]"
                .to_owned(),
        );
    }
}

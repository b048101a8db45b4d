//! The Pod Security Standards: what pods may not do at the levels `baseline` and `restricted`. Pure.
//!
//! Checks are those of Kubernetes' policy in its newest version, with its words; those about Windows are left out.

use serde_json::Value;

use crate::value::{flag, get, integer, list, text};

/// How much pods may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    #[default]
    Privileged,
    /// Nothing by which a pod gets known rights over the node.
    Baseline,
    /// What hardening asks for.
    Restricted,
}

impl Level {
    /// As it stands in a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Privileged, Self::Baseline, Self::Restricted]
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or_else(|| "must be one of privileged, baseline, restricted".to_owned())
    }
}

/// Capabilities that containers have anyway.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
const SELINUX_TYPES: &[&str] = &[
    "",
    "container_engine_t",
    "container_init_t",
    "container_kvm_t",
    "container_t",
];
/// Volumes that the strictest level knows.
const VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// A pod's `spec` with its containers.
struct Pod<'a> {
    spec: &'a Value,
    containers: Vec<&'a Value>,
}

impl<'a> Pod<'a> {
    fn new(spec: &'a Value) -> Self {
        let lists = ["initContainers", "containers", "ephemeralContainers"];
        Self {
            spec,
            containers: lists.iter().flat_map(|field| list(spec, field)).collect(),
        }
    }

    fn context(&self) -> &'a Value {
        get(self.spec, "securityContext")
    }

    /// Names of containers whose security context is so.
    fn named(&self, is_so: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        let wanted = self
            .containers
            .iter()
            .filter(|container| is_so(get(container, "securityContext")));
        wanted.map(|container| text(container, "name")).collect()
    }
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(crate::field::quote).collect();
    quoted.join(", ")
}

/// `container "a"`, `containers "a", "b"`.
fn subject(names: &[&str]) -> String {
    let word = if names.len() == 1 {
        "container"
    } else {
        "containers"
    };
    format!("{word} {}", quoted(names.iter().copied()))
}

/// A check's finding: what is wrong, and where.
type Finding = Option<(&'static str, String)>;

fn about(names: &[&str], reason: &'static str, must: &str) -> Finding {
    (!names.is_empty()).then(|| (reason, format!("{} {must}", subject(names))))
}

fn sorted<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut values: Vec<&str> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}

fn allow_privilege_escalation(pod: &Pod<'_>) -> Finding {
    let names = pod.named(|context| {
        context
            .get("allowPrivilegeEscalation")
            .and_then(Value::as_bool)
            != Some(false)
    });
    about(
        &names,
        "allowPrivilegeEscalation != false",
        "must set securityContext.allowPrivilegeEscalation=false",
    )
}

fn app_armor(pod: &Pod<'_>) -> Finding {
    let is_wrong = |context: &Value| text(get(context, "appArmorProfile"), "type") == "Unconfined";
    let mut found = Vec::new();
    if is_wrong(pod.context()) {
        found.push("pod must not set AppArmor profile type to \"Unconfined\"".to_owned());
    }
    let names = pod.named(is_wrong);
    if !names.is_empty() {
        found.push(format!(
            "{} must not set AppArmor profile type to \"Unconfined\"",
            subject(&names)
        ));
    }
    (!found.is_empty()).then(|| ("forbidden AppArmor profile", found.join("; ")))
}

fn added(context: &Value) -> impl Iterator<Item = &str> {
    list(get(context, "capabilities"), "add")
        .iter()
        .filter_map(Value::as_str)
}

fn forbidden_capabilities(pod: &Pod<'_>, allowed: &[&str]) -> Option<String> {
    let is_wrong = |capability: &&str| !allowed.contains(capability);
    let names = pod.named(|context| added(context).any(|capability| is_wrong(&capability)));
    let all = pod
        .containers
        .iter()
        .flat_map(|container| added(get(container, "securityContext")));
    let capabilities = sorted(all.filter(is_wrong));
    (!names.is_empty()).then(|| {
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            subject(&names),
            quoted(capabilities)
        )
    })
}

fn capabilities_baseline(pod: &Pod<'_>) -> Finding {
    forbidden_capabilities(pod, DEFAULT_CAPABILITIES)
        .map(|detail| ("non-default capabilities", detail))
}

fn capabilities_restricted(pod: &Pod<'_>) -> Finding {
    let keeps = pod.named(|context| {
        let mut dropped = list(get(context, "capabilities"), "drop").iter();
        !dropped.any(|capability| capability == "ALL")
    });
    let mut found = Vec::new();
    if !keeps.is_empty() {
        found.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            subject(&keeps)
        ));
    }
    found.extend(forbidden_capabilities(pod, &["NET_BIND_SERVICE"]));
    (!found.is_empty()).then(|| ("unrestricted capabilities", found.join("; ")))
}

fn host_namespaces(pod: &Pod<'_>) -> Finding {
    let fields = ["hostNetwork", "hostPID", "hostIPC"].into_iter();
    let set: Vec<String> = fields
        .filter(|field| flag(pod.spec, field))
        .map(|field| format!("{field}=true"))
        .collect();
    (!set.is_empty()).then(|| ("host namespaces", set.join(", ")))
}

fn volumes_of<'a>(pod: &Pod<'a>, is_wrong: impl Fn(&str) -> bool) -> Vec<(&'a str, &'a str)> {
    let kind = |volume: &'a Value| {
        let mut kinds = volume.as_object().into_iter().flat_map(|map| map.keys());
        kinds
            .find(|field| *field != "name")
            .map_or("", String::as_str)
    };
    list(pod.spec, "volumes")
        .iter()
        .map(|volume| (text(volume, "name"), kind(volume)))
        .filter(|(_, kind)| is_wrong(kind))
        .collect()
}

fn host_paths(pod: &Pod<'_>) -> Finding {
    let found = volumes_of(pod, |kind| kind == "hostPath");
    let word = if found.len() == 1 {
        "volume"
    } else {
        "volumes"
    };
    let names = quoted(found.iter().map(|(name, _)| *name));
    (!found.is_empty()).then(|| ("hostPath volumes", format!("{word} {names}")))
}

fn restricted_volumes(pod: &Pod<'_>) -> Finding {
    let found = volumes_of(pod, |kind| !VOLUMES.contains(&kind));
    let kinds = sorted(found.iter().map(|(_, kind)| *kind));
    let (word, verb) = if found.len() == 1 {
        ("volume", "uses")
    } else {
        ("volumes", "use")
    };
    let type_ = if kinds.len() == 1 { "type" } else { "types" };
    let names = quoted(found.iter().map(|(name, _)| *name));
    (!found.is_empty()).then(|| {
        let detail = format!(
            "{word} {names} {verb} restricted volume {type_} {}",
            quoted(kinds)
        );
        ("restricted volume types", detail)
    })
}

fn host_ports(pod: &Pod<'_>) -> Finding {
    let ports = |container: &Value| -> Vec<i64> {
        let ports = list(container, "ports")
            .iter()
            .filter_map(|port| integer(port, "hostPort"));
        ports.filter(|port| *port != 0).collect()
    };
    let with = pod
        .containers
        .iter()
        .filter(|container| !ports(container).is_empty());
    let names: Vec<&str> = with.map(|container| text(container, "name")).collect();
    let mut all: Vec<i64> = pod
        .containers
        .iter()
        .flat_map(|container| ports(container))
        .collect();
    all.sort_unstable();
    all.dedup();
    let verb = if names.len() == 1 { "uses" } else { "use" };
    let word = if all.len() == 1 {
        "hostPort"
    } else {
        "hostPorts"
    };
    let shown: Vec<String> = all.iter().map(i64::to_string).collect();
    about(
        &names,
        "hostPort",
        &format!("{verb} {word} {}", shown.join(", ")),
    )
}

fn privileged(pod: &Pod<'_>) -> Finding {
    let names = pod.named(|context| flag(context, "privileged"));
    about(
        &names,
        "privileged",
        "must not set securityContext.privileged=true",
    )
}

fn proc_mount(pod: &Pod<'_>) -> Finding {
    let names = pod.named(|context| !matches!(text(context, "procMount"), "" | "Default"));
    about(
        &names,
        "procMount",
        "must not set securityContext.procMount to \"Unmasked\"",
    )
}

fn run_as_non_root(pod: &Pod<'_>) -> Finding {
    let said = |context: &Value| context.get("runAsNonRoot").and_then(Value::as_bool);
    let of_pod = said(pod.context());
    let wrong = pod.named(|context| said(context) == Some(false));
    if !wrong.is_empty() {
        return about(
            &wrong,
            "runAsNonRoot != true",
            "must not set securityContext.runAsNonRoot=false",
        );
    }
    let silent = pod.named(|context| said(context).is_none());
    let detail = match of_pod {
        Some(true) => return None,
        Some(false) => "pod must not set securityContext.runAsNonRoot=false".to_owned(),
        None if silent.is_empty() => return None,
        None => format!(
            "pod or {} must set securityContext.runAsNonRoot=true",
            subject(&silent)
        ),
    };
    Some(("runAsNonRoot != true", detail))
}

fn run_as_user(pod: &Pod<'_>) -> Finding {
    let is_root = |context: &Value| integer(context, "runAsUser") == Some(0);
    let mut found = Vec::new();
    if is_root(pod.context()) {
        found.push("pod must not set runAsUser=0".to_owned());
    }
    let names = pod.named(is_root);
    if !names.is_empty() {
        found.push(format!("{} must not set runAsUser=0", subject(&names)));
    }
    (!found.is_empty()).then(|| ("runAsUser=0", found.join("; ")))
}

fn selinux(pod: &Pod<'_>) -> Finding {
    let is_wrong = |context: &Value| {
        let options = get(context, "seLinuxOptions");
        !SELINUX_TYPES.contains(&text(options, "type"))
            || !text(options, "user").is_empty()
            || !text(options, "role").is_empty()
    };
    let mut found = Vec::new();
    if is_wrong(pod.context()) {
        found.push("pod set forbidden securityContext.seLinuxOptions".to_owned());
    }
    let names = pod.named(is_wrong);
    if !names.is_empty() {
        found.push(format!(
            "{} set forbidden securityContext.seLinuxOptions",
            subject(&names)
        ));
    }
    (!found.is_empty()).then(|| ("seLinuxOptions", found.join("; ")))
}

fn seccomp(context: &Value) -> &str {
    text(get(context, "seccompProfile"), "type")
}

fn seccomp_unconfined(pod: &Pod<'_>) -> Vec<String> {
    let must = "must not set securityContext.seccompProfile.type to \"Unconfined\"";
    let mut found = Vec::new();
    if seccomp(pod.context()) == "Unconfined" {
        found.push(format!("pod {must}"));
    }
    let names = pod.named(|context| seccomp(context) == "Unconfined");
    if !names.is_empty() {
        found.push(format!("{} {must}", subject(&names)));
    }
    found
}

fn seccomp_baseline(pod: &Pod<'_>) -> Finding {
    let found = seccomp_unconfined(pod);
    (!found.is_empty()).then(|| ("seccompProfile", found.join("; ")))
}

fn seccomp_restricted(pod: &Pod<'_>) -> Finding {
    let mut found = seccomp_unconfined(pod);
    let silent = pod.named(|context| seccomp(context).is_empty());
    if found.is_empty() && seccomp(pod.context()).is_empty() && !silent.is_empty() {
        found.push(format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            subject(&silent)
        ));
    }
    (!found.is_empty()).then(|| ("seccompProfile", found.join("; ")))
}

fn sysctls(pod: &Pod<'_>) -> Finding {
    let names = list(pod.context(), "sysctls")
        .iter()
        .map(|sysctl| text(sysctl, "name"));
    let wrong: Vec<&str> = names.filter(|name| !SAFE_SYSCTLS.contains(name)).collect();
    (!wrong.is_empty()).then(|| ("forbidden sysctls", wrong.join(", ")))
}

type Check = fn(&Pod<'_>) -> Finding;

/// In the order of their names in Kubernetes.
const BASELINE: &[Check] = &[
    app_armor,
    capabilities_baseline,
    host_namespaces,
    host_paths,
    host_ports,
    privileged,
    proc_mount,
    selinux,
    seccomp_baseline,
    sysctls,
];
/// Those of the strictest level stand in the place of laxer ones about the same.
const RESTRICTED: &[Check] = &[
    allow_privilege_escalation,
    app_armor,
    capabilities_restricted,
    host_namespaces,
    host_ports,
    privileged,
    proc_mount,
    restricted_volumes,
    run_as_non_root,
    run_as_user,
    selinux,
    seccomp_restricted,
    sysctls,
];

fn found(level: Level, spec: &Value) -> Vec<(&'static str, String)> {
    let checks = match level {
        Level::Privileged => return Vec::new(),
        Level::Baseline => BASELINE,
        Level::Restricted => RESTRICTED,
    };
    let pod = Pod::new(spec);
    checks.iter().filter_map(|check| check(&pod)).collect()
}

/// What a pod's `spec` has that the level does not allow, as Kubernetes says it; nothing where it is fine.
pub fn violations(level: Level, spec: &Value) -> Option<String> {
    let found: Vec<String> = found(level, spec)
        .into_iter()
        .map(|(reason, detail)| format!("{reason} ({detail})"))
        .collect();
    (!found.is_empty()).then(|| found.join(", "))
}

/// [`violations`] without which containers they are of.
pub fn reasons(level: Level, spec: &Value) -> Vec<String> {
    let found = found(level, spec).into_iter();
    found.map(|(reason, _)| reason.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn levels_refuse_in_the_words_of_kubernetes() {
        let plain = json!({"containers": [{"name": "a"}]});
        let hard = json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            }}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        });
        let wild = json!({
            "hostNetwork": true, "hostPID": true,
            "containers": [
                {"name": "a", "ports": [{"hostPort": 80}], "securityContext": {
                    "privileged": true, "capabilities": {"add": ["NET_ADMIN", "CHOWN"]},
                }},
                {"name": "b", "securityContext": {"privileged": true, "runAsUser": 0}},
            ],
            "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
        });
        for (level, spec, expected) in [
            (Level::Privileged, &wild, None),
            (Level::Baseline, &plain, None),
            (Level::Restricted, &hard, None),
            (
                Level::Baseline,
                &wild,
                Some(
                    "non-default capabilities (container \"a\" must not include \"NET_ADMIN\" in \
                     securityContext.capabilities.add), host namespaces (hostNetwork=true, hostPID=true), hostPath \
                     volumes (volume \"v\"), hostPort (container \"a\" uses hostPort 80), privileged (containers \"a\", \
                     \"b\" must not set securityContext.privileged=true)",
                ),
            ),
            (
                Level::Restricted,
                &plain,
                Some(
                    "allowPrivilegeEscalation != false (container \"a\" must set \
                     securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"a\" must \
                     set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"a\" must \
                     set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"a\" must set \
                     securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
                ),
            ),
        ] {
            assert_eq!(violations(level, spec).as_deref(), expected, "{level:?}");
        }
    }
}

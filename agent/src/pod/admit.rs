//! Whether the node takes a pod. Pure; the scheduler has looked before, but static pods and races pass it by.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{as_container, qos, quantity, spec};

/// Kernel parameters that hurt nobody outside the pod (`SafeSysctlAllowlist`).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What pods may request of a node, with the reason for a pod that asks for more than is left.
const RESOURCES: [(&str, &str); 5] = [
    ("cpu", "OutOfcpu"),
    ("memory", "OutOfmemory"),
    ("ephemeral-storage", "OutOfephemeral-storage"),
    ("hugepages-2Mi", "OutOfhugepages-2Mi"),
    ("hugepages-1Gi", "OutOfhugepages-1Gi"),
];

/// What the node allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits<'a> {
    /// Pods at a time.
    pub(crate) max_pods: u32,
    /// Privileged containers.
    pub(crate) allow_privileged: bool,
    /// Kernel parameters besides the safe ones; `net.core.*` stands for all that begin so.
    pub(crate) allowed_unsafe_sysctls: &'a [String],
    /// For all pods together.
    pub(crate) allocatable: &'a BTreeMap<String, Quantity>,
    /// The kernel can enforce AppArmor profiles.
    pub(crate) has_apparmor: bool,
}

/// Why the node does not take a pod, in the kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Of the event and the pod's status.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = spec(pod);
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
}

fn host_ports(pod: &Pod) -> HashSet<(i32, String)> {
    let is_host_network = spec(pod).host_network == Some(true);
    containers(pod)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port
                .host_port
                .filter(|port| *port > 0)
                .or(is_host_network.then_some(port.container_port))?;
            Some((
                number,
                port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            ))
        })
        .collect()
}

/// Whether a pod holds resources of the node.
pub(crate) fn is_active(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether what other pods hold matters to a pod: ports of the node, or resources.
pub(crate) fn looks_at_others(pod: &Pod) -> bool {
    !host_ports(pod).is_empty()
        || RESOURCES
            .iter()
            .any(|(resource, _)| qos::pod_request_millis(pod, resource) > 0)
}

/// What the node has for pods, in thousandths.
pub(crate) fn allocatable_millis(list: &BTreeMap<String, Quantity>) -> BTreeMap<&str, i128> {
    list.iter()
        .filter_map(|(resource, amount)| Some((resource.as_str(), quantity::millis(amount)?)))
        .collect()
}

/// Refuses a pod that the node cannot take. `active` pods are on the node, of which `others` may hold
/// ports and resources.
///
/// # Errors
/// Why it is refused.
pub(crate) fn check(
    pod: &Pod,
    active: usize,
    others: &[Arc<Pod>],
    limits: Limits<'_>,
) -> Result<(), Refused> {
    let refuse = |reason: &'static str, message: String| Err(Refused { reason, message });
    let os = spec(pod).os.as_ref().map(|os| os.name.as_str());
    if os.is_some_and(|os| os != "linux") {
        return refuse(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS".into(),
        );
    }
    if active >= limits.max_pods as usize {
        return refuse(
            "OutOfpods",
            format!(
                "Node didn't have enough resource: pods, requested: 1, used: {active}, capacity: {}",
                limits.max_pods
            ),
        );
    }
    check_resources(pod, others, limits.allocatable)?;
    let wanted = host_ports(pod);
    let has_clash = |other: &Arc<Pod>| is_active(other) && !host_ports(other).is_disjoint(&wanted);
    if !wanted.is_empty() && others.iter().any(has_clash) {
        return refuse(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
                .into(),
        );
    }
    check_security(pod, limits)?;
    check_sysctls(pod, limits.allowed_unsafe_sysctls)
}

fn check_resources(
    pod: &Pod,
    others: &[Arc<Pod>],
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<(), Refused> {
    for (resource, reason) in RESOURCES {
        let requested = qos::pod_request_millis(pod, resource);
        if requested == 0 {
            continue;
        }
        let used: i128 = others
            .iter()
            .filter(|other| is_active(other))
            .map(|other| qos::pod_request_millis(other, resource))
            .sum();
        let capacity = allocatable.get(resource).and_then(quantity::millis);
        let capacity = capacity.unwrap_or(0);
        if used + requested > capacity {
            // CPU is counted in thousandths, everything else whole.
            let unit = if resource == "cpu" { 1 } else { 1000 };
            let (r, u, c) = (requested / unit, used / unit, capacity / unit);
            return Err(Refused {
                reason,
                message: format!(
                    "Node didn't have enough resource: {resource}, requested: {r}, used: {u}, capacity: {c}"
                ),
            });
        }
    }
    Ok(())
}

fn check_security(pod: &Pod, limits: Limits<'_>) -> Result<(), Refused> {
    let ephemerals = spec(pod).ephemeral_containers.iter().flatten();
    let all: Vec<_> = containers(pod)
        .cloned()
        .chain(ephemerals.map(as_container))
        .filter_map(|container| container.security_context)
        .collect();
    let refuse = |reason: &'static str, message: &str| {
        Err(Refused {
            reason,
            message: message.into(),
        })
    };
    if !limits.allow_privileged && all.iter().any(|c| c.privileged == Some(true)) {
        return refuse(
            "Forbidden",
            "privileged containers are not allowed on this node (--allow-privileged is not set)",
        );
    }
    let unmasks = |mount: &Option<String>| mount.as_deref() == Some("Unmasked");
    if spec(pod).host_users != Some(false) && all.iter().any(|c| unmasks(&c.proc_mount)) {
        return refuse(
            "Forbidden",
            "`hostUsers` must be false to use `Unmasked` procMount",
        );
    }
    let of_pod = spec(pod).security_context.as_ref();
    let mut profiles = all
        .iter()
        .filter_map(|c| c.app_armor_profile.as_ref())
        .chain(of_pod.and_then(|c| c.app_armor_profile.as_ref()));
    if of_pod.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict") {
        return refuse(
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        );
    }
    if !limits.has_apparmor && profiles.any(|profile| profile.type_ != "Unconfined") {
        return refuse(
            "AppArmor",
            "Cannot enforce AppArmor: AppArmor is not enabled on the host",
        );
    }
    Ok(())
}

fn check_sysctls(pod: &Pod, allowed: &[String]) -> Result<(), Refused> {
    let refuse = |message: String| {
        Err(Refused {
            reason: "SysctlForbidden",
            message,
        })
    };
    let spec = spec(pod);
    let sysctls = spec
        .security_context
        .as_ref()
        .and_then(|context| context.sysctls.as_ref());
    for sysctl in sysctls.into_iter().flatten() {
        let name = sysctl.name.replace('/', ".");
        let is_allowed = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *pattern == name,
        };
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !allowed.iter().any(is_allowed) {
            return refuse(format!(
                "forbidden sysctl: \"{}\" not allowlisted",
                sysctl.name
            ));
        }
        if name.starts_with("net.") && spec.host_network == Some(true) {
            return refuse(format!(
                "forbidden sysctl: \"{}\" not allowed with host net enabled",
                sysctl.name
            ));
        }
        let is_ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        if is_ipc && spec.host_ipc == Some(true) {
            return refuse(format!(
                "forbidden sysctl: \"{}\" not allowed with host ipc enabled",
                sysctl.name
            ));
        }
        // What is not of a namespace would be set for the whole node.
        if !is_ipc && !name.starts_with("net.") {
            return refuse(format!(
                "forbidden sysctl: \"{}\" not allowlisted",
                sysctl.name
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).expect("a pod")
    }

    fn with(context: Value) -> Pod {
        pod(json!({ "containers": [{ "name": "a", "securityContext": context }] }))
    }

    fn sysctl(name: &str, more: Value) -> Pod {
        let mut spec = more;
        spec["securityContext"] = json!({ "sysctls": [{ "name": name, "value": "1" }] });
        spec["containers"] = json!([{ "name": "a" }]);
        pod(spec)
    }

    fn requests(resource: &str, amount: &str) -> Pod {
        let resources = json!({ "requests": { resource: amount } });
        pod(json!({ "containers": [{ "name": "a", "resources": resources }] }))
    }

    #[test]
    fn what_the_node_cannot_give_is_refused_with_the_reason() {
        let port = pod(
            json!({ "containers": [{ "name": "a", "ports": [{ "containerPort": 80, "hostPort": 80 }] }] }),
        );
        let host = pod(
            json!({ "hostNetwork": true, "containers": [{ "name": "a", "ports": [{ "containerPort": 80 }] }] }),
        );
        let plain = pod(json!({ "containers": [{ "name": "a" }] }));
        let mut done = port.clone();
        done.status = serde_json::from_value(json!({ "phase": "Succeeded" })).expect("a status");
        let none = json!({});
        let profile = json!({ "appArmorProfile": { "type": "RuntimeDefault" } });
        let unconfined = json!({ "appArmorProfile": { "type": "Unconfined" } });
        let mut unmasked = with(json!({ "procMount": "Unmasked" }));
        let table: Vec<(Pod, Vec<&Pod>, Option<&str>)> = vec![
            (plain.clone(), vec![], None),
            (plain.clone(), vec![&plain, &plain], Some("OutOfpods")),
            (plain.clone(), vec![&plain, &done], None),
            (port.clone(), vec![&host], Some("NodePorts")),
            (port.clone(), vec![&done], None),
            (requests("cpu", "2"), vec![], None),
            (requests("cpu", "2001m"), vec![], Some("OutOfcpu")),
            (requests("memory", "2Gi"), vec![], Some("OutOfmemory")),
            (
                requests("ephemeral-storage", "1"),
                vec![],
                Some("OutOfephemeral-storage"),
            ),
            (
                requests("hugepages-2Mi", "2Mi"),
                vec![],
                Some("OutOfhugepages-2Mi"),
            ),
            (requests("example.com/thing", "1"), vec![], None),
            (
                with(json!({ "privileged": true })),
                vec![],
                Some("Forbidden"),
            ),
            (with(profile), vec![], Some("AppArmor")),
            (with(unconfined), vec![], None),
            (unmasked.clone(), vec![], Some("Forbidden")),
            (
                {
                    unmasked.spec.as_mut().expect("a spec").host_users = Some(false);
                    unmasked
                },
                vec![],
                None,
            ),
            (
                pod(json!({ "os": { "name": "windows" }, "containers": [] })),
                vec![],
                Some("PodOSNotSupported"),
            ),
            (
                sysctl("kernel.msgmax", none.clone()),
                vec![],
                Some("SysctlForbidden"),
            ),
            (
                sysctl("net.ipv4.tcp_syncookies", none.clone()),
                vec![],
                None,
            ),
            (
                sysctl("net/ipv4/tcp_syncookies", none.clone()),
                vec![],
                None,
            ),
            (sysctl("net.core.somaxconn", none.clone()), vec![], None),
            (
                sysctl("vm.swappiness", none),
                vec![],
                Some("SysctlForbidden"),
            ),
            (
                sysctl("net.ipv4.tcp_syncookies", json!({ "hostNetwork": true })),
                vec![],
                Some("SysctlForbidden"),
            ),
            (
                sysctl("kernel.shm_rmid_forced", json!({ "hostIPC": true })),
                vec![],
                Some("SysctlForbidden"),
            ),
        ];
        let allocatable: BTreeMap<_, _> = [("cpu", "2"), ("memory", "1Gi")]
            .map(|(resource, amount)| (resource.to_owned(), Quantity(amount.into())))
            .into();
        let allowed = ["net.core.*".to_owned(), "vm.swappiness".to_owned()];
        let limits = Limits {
            max_pods: 2,
            allow_privileged: false,
            allowed_unsafe_sysctls: &allowed,
            allocatable: &allocatable,
            has_apparmor: false,
        };
        for (index, (pod, others, expected)) in table.into_iter().enumerate() {
            let others: Vec<_> = others.into_iter().cloned().map(Arc::new).collect();
            let active = others.iter().filter(|pod| is_active(pod)).count();
            let reason = check(&pod, active, &others, limits).err().map(|r| r.reason);
            assert_eq!(reason, expected, "row {index}");
        }
    }

    #[test]
    fn what_others_hold_is_counted_with_the_overhead_of_their_class() {
        let mut other = requests("cpu", "1");
        other.spec.as_mut().expect("a spec").overhead =
            Some([("cpu".to_owned(), Quantity("500m".into()))].into());
        let allocatable = [("cpu".to_owned(), Quantity("2".into()))].into();
        let limits = Limits {
            max_pods: 10,
            allow_privileged: false,
            allowed_unsafe_sysctls: &[],
            allocatable: &allocatable,
            has_apparmor: false,
        };
        let others = [Arc::new(other)];
        assert_eq!(check(&requests("cpu", "500m"), 1, &others, limits), Ok(()));
        let refused = check(&requests("cpu", "501m"), 1, &others, limits).expect_err("no room");
        assert_eq!(
            refused.message,
            "Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000"
        );
    }
}

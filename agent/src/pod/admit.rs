//! Whether the node takes a pod. Pure; the scheduler has looked before, but static pods and races pass it by.

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{spec, status::Verdict};

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

/// What the node allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Pods at a time.
    pub(crate) max_pods: u32,
    /// Privileged containers.
    pub(crate) allow_privileged: bool,
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

/// Whether a pod wants ports of the node.
pub(crate) fn wants_host_ports(pod: &Pod) -> bool {
    !host_ports(pod).is_empty()
}

/// Why the pod is refused, if it is. `active` pods are on the node, of which `others` may hold ports.
pub(crate) fn check(
    pod: &Pod,
    active: usize,
    others: &[Arc<Pod>],
    limits: Limits,
) -> Option<Verdict> {
    let verdict = |reason: &str, message: String| {
        Some(Verdict {
            reason: reason.into(),
            message,
        })
    };
    if active >= limits.max_pods as usize {
        return verdict(
            "OutOfpods",
            format!(
                "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: {active}, capacity: {}",
                limits.max_pods
            ),
        );
    }
    let wanted = host_ports(pod);
    let has_clash = |other: &Arc<Pod>| is_active(other) && !host_ports(other).is_disjoint(&wanted);
    if !wanted.is_empty() && others.iter().any(has_clash) {
        return verdict(
            "NodePorts",
            "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
                .into(),
        );
    }
    let is_privileged = |container: &Container| {
        container
            .security_context
            .as_ref()
            .and_then(|c| c.privileged)
            == Some(true)
    };
    if !limits.allow_privileged && containers(pod).any(is_privileged) {
        return verdict(
            "Forbidden",
            "Pod was rejected: privileged containers are not allowed on this node (--allow-privileged is not set)".into(),
        );
    }
    let sysctls = spec(pod)
        .security_context
        .as_ref()
        .and_then(|context| context.sysctls.as_ref());
    for sysctl in sysctls.into_iter().flatten() {
        let name = sysctl.name.replace('/', ".");
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            return verdict(
                "SysctlForbidden",
                format!("forbidden sysctl: \"{}\" not allowlisted", sysctl.name),
            );
        }
        if name.starts_with("net.") && spec(pod).host_network == Some(true) {
            return verdict(
                "SysctlForbidden",
                format!(
                    "forbidden sysctl: \"{}\" not allowed with host net enabled",
                    sysctl.name
                ),
            );
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).expect("a pod")
    }

    const LIMITS: Limits = Limits {
        max_pods: 2,
        allow_privileged: false,
    };

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
        let privileged = pod(
            json!({ "containers": [{ "name": "a", "securityContext": { "privileged": true } }] }),
        );
        let sysctl = |name: &str| {
            let context = json!({ "sysctls": [{ "name": name, "value": "1" }] });
            pod(json!({ "securityContext": context, "containers": [{ "name": "a" }] }))
        };
        let table: [(&Pod, Vec<&Pod>, Option<&str>); 8] = [
            (&plain, vec![], None),
            (&plain, vec![&plain, &plain], Some("OutOfpods")),
            (&plain, vec![&plain, &done], None),
            (&port, vec![&host], Some("NodePorts")),
            (&port, vec![&done], None),
            (&privileged, vec![], Some("Forbidden")),
            (&sysctl("kernel.msgmax"), vec![], Some("SysctlForbidden")),
            (&sysctl("net.ipv4.tcp_syncookies"), vec![], None),
        ];
        for (index, (pod, others, expected)) in table.into_iter().enumerate() {
            let others: Vec<_> = others.into_iter().cloned().map(Arc::new).collect();
            let active = others.iter().filter(|pod| is_active(pod)).count();
            let verdict = check(pod, active, &others, LIMITS);
            assert_eq!(
                verdict.as_ref().map(|v| v.reason.as_str()),
                expected,
                "row {index}"
            );
        }
    }
}

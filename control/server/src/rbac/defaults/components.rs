//! What scheduler, controller manager, nodes and proxies may do, as Kubernetes has it.

use serde_json::{Value, json};

use super::{binding_of, cluster_role, rule, user};
use crate::authz::node;

const READ: &[&str] = &["get", "list", "watch"];
const RECORD: &[&str] = &["create", "patch", "update"];

fn named(groups: &[&str], resource: &str, names: &[&str], verbs: &[&str]) -> Value {
    let mut rule = rule(groups, &[resource], verbs);
    rule["resourceNames"] = json!(names);
    rule
}

pub(super) fn cluster_roles() -> Vec<Value> {
    let leases = &["coordination.k8s.io"];
    let reviews = || {
        [
            rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
            rule(
                &["authorization.k8s.io"],
                &["subjectaccessreviews"],
                &["create"],
            ),
        ]
    };
    let mut manager = vec![
        rule(&["", "events.k8s.io"], &["events"], RECORD),
        rule(leases, &["leases"], &["create"]),
        named(
            leases,
            "leases",
            &["kube-controller-manager", "wherry-control"],
            &["get", "patch", "update"],
        ),
        rule(&[""], &["secrets", "serviceaccounts"], &["create"]),
        rule(&[""], &["secrets"], &["delete"]),
        rule(&[""], &["configmaps", "namespaces", "secrets"], &["get"]),
        rule(&[""], &["serviceaccounts"], &["get", "update"]),
        rule(&[""], &["serviceaccounts/token"], &["create"]),
        rule(&["*"], &["*"], &["list", "watch"]),
    ];
    manager.extend(reviews());
    let mut scheduler = vec![
        rule(&["", "events.k8s.io"], &["events"], RECORD),
        rule(leases, &["leases"], &["create"]),
        named(
            leases,
            "leases",
            &["kube-scheduler"],
            &["get", "list", "update", "watch"],
        ),
        rule(
            &[""],
            &["namespaces", "nodes", "replicationcontrollers", "services"],
            READ,
        ),
        rule(&[""], &["pods"], &["delete", "get", "list", "watch"]),
        rule(&[""], &["bindings", "pods/binding"], &["create"]),
        rule(&[""], &["pods/status"], &["patch", "update"]),
        rule(&["apps"], &["replicasets", "statefulsets"], READ),
        rule(&["node.k8s.io"], &["runtimeclasses"], READ),
        rule(&["policy"], &["poddisruptionbudgets"], READ),
        rule(
            &["storage.k8s.io"],
            &["csidrivers", "csinodes", "csistoragecapacities"],
            READ,
        ),
    ];
    scheduler.extend(reviews());
    let proxier = vec![
        rule(&[""], &["endpoints", "services"], &["list", "watch"]),
        rule(&[""], &["nodes"], READ),
        rule(&["", "events.k8s.io"], &["events"], RECORD),
        rule(
            &["discovery.k8s.io"],
            &["endpointslices"],
            &["list", "watch"],
        ),
    ];
    let kubelet_api = vec![
        rule(&[""], &["nodes"], READ),
        rule(&[""], &["nodes"], &["proxy"]),
        rule(
            &[""],
            &[
                "nodes/healthz",
                "nodes/log",
                "nodes/metrics",
                "nodes/pods",
                "nodes/proxy",
                "nodes/stats",
            ],
            &["*"],
        ),
    ];
    let monitoring = vec![json!({
        "nonResourceURLs": ["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/readyz", "/readyz/*"],
        "verbs": ["get"],
    })];
    let volumes = vec![
        rule(
            &[""],
            &["persistentvolumeclaims", "persistentvolumes"],
            &["get", "list", "patch", "update", "watch"],
        ),
        rule(&["storage.k8s.io"], &["storageclasses"], READ),
    ];
    vec![
        cluster_role("system:kube-controller-manager", &[], manager),
        cluster_role("system:kube-scheduler", &[], scheduler),
        cluster_role("system:kubelet-api-admin", &[], kubelet_api),
        cluster_role("system:monitoring", &[], monitoring),
        // What the node authorizer goes by; nobody is bound to it.
        cluster_role(
            "system:node",
            &[],
            node::rules().iter().map(|rule| json!(rule)).collect(),
        ),
        cluster_role("system:node-proxier", &[], proxier),
        cluster_role("system:volume-scheduler", &[], volumes),
    ]
}

pub(super) fn cluster_role_bindings() -> Vec<Value> {
    let of = |role: &str, name: &str| binding_of(role, role, vec![user(name)]);
    let groups = |role: &str, name: &str| super::binding(role, &[name]);
    let mut node = groups("system:node", "");
    if let Some(binding) = node.as_object_mut() {
        binding.remove("subjects");
    }
    vec![
        of(
            "system:kube-controller-manager",
            "system:kube-controller-manager",
        ),
        of("system:kube-scheduler", "system:kube-scheduler"),
        groups("system:monitoring", "system:monitoring"),
        node,
        of("system:node-proxier", "system:kube-proxy"),
        of("system:volume-scheduler", "system:kube-scheduler"),
    ]
}

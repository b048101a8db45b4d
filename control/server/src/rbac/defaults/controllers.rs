//! What each controller may do: Kubernetes' `system:controller:*`, bound to accounts in `kube-system`. Ours patch where
//! those of Kubernetes update, so they may do both.

use serde_json::Value;

use super::{account, binding_of, cluster_role, rule};

const READ: &[&str] = &["get", "list", "watch"];
const CHANGE: &[&str] = &["patch", "update"];
const GET_CHANGE: &[&str] = &["get", "patch", "update"];
const READ_CHANGE: &[&str] = &["get", "list", "patch", "update", "watch"];
const ALL: &[&str] = &[
    "create", "delete", "get", "list", "patch", "update", "watch",
];
const OWN: &[&str] = &["create", "delete", "get", "list", "patch", "watch"];
const RECORD: &[&str] = &["create", "patch", "update"];

/// Groups, resources, verbs.
type Rules = &'static [(
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
)];

/// Rules beside those for events, which everyone writes.
const CONTROLLERS: &[(&str, Rules)] = &[
    (
        "certificate-controller",
        &[
            (
                &["certificates.k8s.io"],
                &["certificatesigningrequests"],
                &["delete", "get", "list", "watch"],
            ),
            (
                &["certificates.k8s.io"],
                &[
                    "certificatesigningrequests/approval",
                    "certificatesigningrequests/status",
                ],
                CHANGE,
            ),
            (&["certificates.k8s.io"], &["signers"], &["approve", "sign"]),
            (
                &["authorization.k8s.io"],
                &["subjectaccessreviews"],
                &["create"],
            ),
            (&[""], &["nodes"], &["get"]),
        ],
    ),
    (
        "clusterrole-aggregation-controller",
        &[(
            &["rbac.authorization.k8s.io"],
            &["clusterroles"],
            &["escalate", "get", "list", "patch", "update", "watch"],
        )],
    ),
    (
        "cronjob-controller",
        &[
            (&["batch"], &["cronjobs"], READ_CHANGE),
            (&["batch"], &["jobs"], ALL),
            (
                &["batch"],
                &["cronjobs/finalizers", "cronjobs/status"],
                CHANGE,
            ),
            (&[""], &["pods"], &["delete", "list"]),
        ],
    ),
    (
        "daemon-set-controller",
        &[
            (&["apps"], &["daemonsets"], READ),
            (
                &["apps"],
                &["daemonsets/finalizers", "daemonsets/status"],
                CHANGE,
            ),
            (&[""], &["nodes"], &["list", "watch"]),
            (&[""], &["pods"], OWN),
            (&[""], &["pods/binding"], &["create"]),
            (&["apps"], &["controllerrevisions"], ALL),
        ],
    ),
    (
        "deployment-controller",
        &[
            (&["apps"], &["deployments"], READ_CHANGE),
            (
                &["apps"],
                &["deployments/finalizers", "deployments/status"],
                CHANGE,
            ),
            (&["apps"], &["replicasets"], ALL),
            (&[""], &["pods"], READ_CHANGE),
        ],
    ),
    (
        "disruption-controller",
        &[
            (
                &["apps"],
                &["deployments", "replicasets", "statefulsets"],
                READ,
            ),
            (&[""], &["replicationcontrollers"], READ),
            (&["policy"], &["poddisruptionbudgets"], READ),
            (&["policy"], &["poddisruptionbudgets/status"], CHANGE),
            (&[""], &["pods"], READ),
            (&[""], &["pods/status"], CHANGE),
            (&["*"], &["*/scale"], &["get"]),
        ],
    ),
    (
        "endpoint-controller",
        &[
            (&[""], &["pods", "services"], READ),
            (&[""], &["endpoints"], ALL),
            (&[""], &["endpoints/restricted"], &["create"]),
            (&["discovery.k8s.io"], &["endpointslices"], ALL),
            (
                &["discovery.k8s.io"],
                &["endpointslices/restricted"],
                &["create"],
            ),
        ],
    ),
    (
        "generic-garbage-collector",
        &[(
            &["*"],
            &["*"],
            &["delete", "get", "list", "patch", "update", "watch"],
        )],
    ),
    (
        "job-controller",
        &[
            (
                &["batch"],
                &["jobs"],
                &["delete", "get", "list", "patch", "update", "watch"],
            ),
            (&["batch"], &["jobs/finalizers", "jobs/status"], CHANGE),
            (&[""], &["pods"], OWN),
            (&[""], &["pods/status"], CHANGE),
        ],
    ),
    (
        "namespace-controller",
        &[
            (
                &[""],
                &["namespaces"],
                &["delete", "get", "list", "patch", "update", "watch"],
            ),
            (&[""], &["namespaces/finalize", "namespaces/status"], CHANGE),
            (
                &["*"],
                &["*"],
                &["delete", "deletecollection", "get", "list"],
            ),
        ],
    ),
    (
        "node-controller",
        &[
            (
                &[""],
                &["nodes"],
                &["delete", "get", "list", "patch", "update", "watch"],
            ),
            (&[""], &["nodes/status", "pods/status"], CHANGE),
            (&[""], &["pods"], &["delete", "get", "list", "watch"]),
            (&["coordination.k8s.io"], &["leases"], READ),
            (&["wherry.dev"], &["plugins"], READ),
            (&["wherry.dev"], &["plugins/status"], CHANGE),
        ],
    ),
    (
        "persistent-volume-binder",
        &[
            (&[""], &["persistentvolumes", "persistentvolumeclaims"], ALL),
            (
                &[""],
                &["persistentvolumes/status", "persistentvolumeclaims/status"],
                GET_CHANGE,
            ),
            (&["storage.k8s.io"], &["storageclasses"], READ),
            (
                &[""],
                &["endpoints", "services"],
                &["create", "delete", "get", "update"],
            ),
            (&[""], &["nodes", "secrets"], READ),
            // Nodes make and remove the directories of local volumes when they are asked.
            (&[""], &["nodes/proxy"], &["create", "delete"]),
            (&[""], &["pods"], ALL),
            (&["wherry.dev"], &["plugins"], READ),
        ],
    ),
    (
        "pod-garbage-collector",
        &[
            (&[""], &["pods"], &["delete", "get", "list", "watch"]),
            (&[""], &["nodes"], READ),
            (&[""], &["pods/status"], CHANGE),
        ],
    ),
    (
        "pv-protection-controller",
        &[
            (&[""], &["persistentvolumes"], READ_CHANGE),
            (&[""], &["pods"], READ),
        ],
    ),
    (
        "pvc-protection-controller",
        &[
            (&[""], &["persistentvolumeclaims"], READ_CHANGE),
            (&[""], &["pods"], READ),
        ],
    ),
    (
        "replicaset-controller",
        &[
            (&["apps"], &["replicasets"], READ_CHANGE),
            (
                &["apps"],
                &["replicasets/finalizers", "replicasets/status"],
                CHANGE,
            ),
            (&[""], &["pods"], OWN),
        ],
    ),
    (
        "replication-controller",
        &[
            (&[""], &["replicationcontrollers"], READ_CHANGE),
            (
                &[""],
                &[
                    "replicationcontrollers/finalizers",
                    "replicationcontrollers/status",
                ],
                CHANGE,
            ),
            (&[""], &["pods"], OWN),
        ],
    ),
    (
        "resourcequota-controller",
        &[
            (&["*"], &["*"], &["list", "watch"]),
            (&[""], &["resourcequotas"], READ),
            (&[""], &["resourcequotas/status"], GET_CHANGE),
        ],
    ),
    (
        "root-ca-cert-publisher",
        &[
            (&[""], &["configmaps"], ALL),
            (&[""], &["namespaces"], READ),
        ],
    ),
    (
        "service-account-controller",
        &[
            (
                &[""],
                &["serviceaccounts"],
                &["create", "get", "list", "watch"],
            ),
            (&[""], &["namespaces"], READ),
        ],
    ),
    (
        "service-controller",
        &[
            (&[""], &["services"], READ),
            (&[""], &["services/status"], CHANGE),
            (&[""], &["endpoints", "nodes"], READ),
            (&["discovery.k8s.io"], &["endpointslices"], READ),
        ],
    ),
    (
        "statefulset-controller",
        &[
            (&[""], &["pods"], ALL),
            (&["apps"], &["statefulsets"], READ),
            (
                &["apps"],
                &["statefulsets/finalizers", "statefulsets/status"],
                CHANGE,
            ),
            (&["apps"], &["controllerrevisions"], ALL),
            (&[""], &["persistentvolumeclaims"], ALL),
        ],
    ),
    (
        "taint-eviction-controller",
        &[
            (&[""], &["nodes"], READ),
            (&[""], &["pods"], &["delete", "get", "list", "watch"]),
            (&[""], &["pods/status"], CHANGE),
        ],
    ),
    (
        "token-cleaner",
        &[(&[""], &["secrets"], &["delete", "get", "list", "watch"])],
    ),
];

fn role_name(controller: &str) -> String {
    format!("system:controller:{controller}")
}

/// Roles that are good everywhere.
pub(super) fn cluster_roles() -> Vec<Value> {
    CONTROLLERS
        .iter()
        .filter(|(name, _)| *name != TOKEN_CLEANER)
        .map(|(name, rules)| cluster_role(&role_name(name), &[], self::rules(rules)))
        .collect()
}

fn rules(rules: Rules) -> Vec<Value> {
    let events = rule(&["", "events.k8s.io"], &["events"], RECORD);
    rules
        .iter()
        .map(|(groups, resources, verbs)| rule(groups, resources, verbs))
        .chain([events])
        .collect()
}

/// Bindings of those.
pub(super) fn cluster_role_bindings() -> Vec<Value> {
    CONTROLLERS
        .iter()
        .filter(|(name, _)| *name != TOKEN_CLEANER)
        .map(|(name, _)| {
            let role = role_name(name);
            binding_of(&role, &role, vec![account("kube-system", name)])
        })
        .collect()
}

/// Sees the secrets of `kube-system` and no others.
const TOKEN_CLEANER: &str = "token-cleaner";

/// The role and binding that are good in `kube-system` alone.
pub(super) fn of_kube_system() -> [Value; 2] {
    let name = role_name(TOKEN_CLEANER);
    let wanted = CONTROLLERS.iter().find(|(name, _)| *name == TOKEN_CLEANER);
    let mut role = cluster_role(
        &name,
        &[],
        wanted.map_or_else(Vec::new, |(_, rules)| self::rules(rules)),
    );
    let mut binding = binding_of(&name, &name, vec![account("kube-system", TOKEN_CLEANER)]);
    role["kind"] = "Role".into();
    binding["kind"] = "RoleBinding".into();
    binding["roleRef"]["kind"] = "Role".into();
    for object in [&mut role, &mut binding] {
        object["metadata"]["namespace"] = "kube-system".into();
    }
    [role, binding]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_listed_once_and_in_order() {
        assert!(CONTROLLERS.is_sorted_by(|a, b| a.0 < b.0));
    }
}

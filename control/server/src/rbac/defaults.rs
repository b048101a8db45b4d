//! The roles every cluster begins with.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::GROUP;
use crate::{bootstrap::BootstrapError, client::ClientService};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn cluster_role(name: &str, labels: &[(&str, &str)], rules: Vec<Value>) -> Value {
    let mut metadata =
        json!({"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}});
    for (label, value) in labels {
        metadata["labels"][*label] = (*value).into();
    }
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole", "metadata": metadata, "rules": rules})
}

/// One that gathers the rules of those with a label.
fn gathering(name: &str, label: &str, labels: &[(&str, &str)]) -> Value {
    let mut role = cluster_role(name, labels, Vec::new());
    role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
    role
}

fn binding(name: &str, groups: &[&str]) -> Value {
    binding_to(name, name, groups)
}

fn binding_to(name: &str, role: &str, groups: &[&str]) -> Value {
    let subjects: Vec<Value> = groups
        .iter()
        .map(|group| json!({"kind": "Group", "apiGroup": GROUP, "name": group}))
        .collect();
    json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    })
}

const TO_ADMIN: &str = "rbac.authorization.k8s.io/aggregate-to-admin";
const TO_EDIT: &str = "rbac.authorization.k8s.io/aggregate-to-edit";
const TO_VIEW: &str = "rbac.authorization.k8s.io/aggregate-to-view";

const CERTIFICATES: &str = "certificates.k8s.io";
const FIRST_CERTIFICATE: &str = "system:certificates.k8s.io:certificatesigningrequests:nodeclient";
const NEXT_CERTIFICATE: &str =
    "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient";

const WORKLOADS: &[&str] = &[
    "daemonsets",
    "deployments",
    "deployments/scale",
    "replicasets",
    "replicasets/scale",
    "statefulsets",
    "statefulsets/scale",
];

fn cluster_roles() -> Vec<Value> {
    let view_core = [
        "bindings",
        "configmaps",
        "endpoints",
        "events",
        "namespaces",
        "namespaces/status",
        "persistentvolumeclaims",
        "persistentvolumeclaims/status",
        "pods",
        "pods/log",
        "pods/status",
        "serviceaccounts",
        "services",
        "services/status",
    ];
    let edit_core = [
        "configmaps",
        "endpoints",
        "events",
        "persistentvolumeclaims",
        "pods",
        "pods/attach",
        "pods/ephemeralcontainers",
        "pods/exec",
        "pods/portforward",
        "pods/proxy",
        "pods/resize",
        "secrets",
        "serviceaccounts",
        "services",
        "services/proxy",
    ];
    let batch = ["cronjobs", "jobs"];
    vec![
        cluster_role(
            "cluster-admin",
            &[],
            vec![
                rule(&["*"], &["*"], &["*"]),
                json!({"nonResourceURLs": ["*"], "verbs": ["*"]}),
            ],
        ),
        gathering("admin", TO_ADMIN, &[]),
        gathering("edit", TO_EDIT, &[(TO_ADMIN, "true")]),
        gathering("view", TO_VIEW, &[(TO_EDIT, "true")]),
        cluster_role(
            "system:aggregate-to-admin",
            &[(TO_ADMIN, "true")],
            vec![
                rule(
                    &["authorization.k8s.io"],
                    &["localsubjectaccessreviews"],
                    &["create"],
                ),
                rule(
                    &[GROUP],
                    &["rolebindings", "roles"],
                    &[READ, WRITE].concat(),
                ),
            ],
        ),
        cluster_role(
            "system:aggregate-to-edit",
            &[(TO_EDIT, "true")],
            vec![
                rule(
                    &[""],
                    &[
                        "pods/attach",
                        "pods/exec",
                        "pods/portforward",
                        "pods/proxy",
                        "secrets",
                        "services/proxy",
                    ],
                    READ,
                ),
                rule(&[""], &["serviceaccounts"], &["impersonate"]),
                rule(&[""], &edit_core, WRITE),
                rule(
                    &[""],
                    &["pods/eviction", "serviceaccounts/token"],
                    &["create"],
                ),
                rule(&["apps"], WORKLOADS, WRITE),
                rule(&["batch"], &batch, WRITE),
                rule(&["policy"], &["poddisruptionbudgets"], WRITE),
                rule(
                    &["coordination.k8s.io"],
                    &["leases"],
                    &[READ, WRITE].concat(),
                ),
            ],
        ),
        cluster_role(
            "system:aggregate-to-view",
            &[(TO_VIEW, "true")],
            vec![
                rule(&[""], &view_core, READ),
                rule(&["discovery.k8s.io"], &["endpointslices"], READ),
                rule(
                    &["apps"],
                    &[WORKLOADS, &["controllerrevisions"]].concat(),
                    READ,
                ),
                rule(&["batch"], &batch, READ),
                rule(&["policy"], &["poddisruptionbudgets"], READ),
                rule(&["metrics.k8s.io"], &["nodes", "pods"], READ),
            ],
        ),
        cluster_role(
            "system:basic-user",
            &[],
            vec![
                rule(
                    &["authorization.k8s.io"],
                    &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                    &["create"],
                ),
                rule(
                    &["authentication.k8s.io"],
                    &["selfsubjectreviews"],
                    &["create"],
                ),
            ],
        ),
        cluster_role(
            "system:node-bootstrapper",
            &[],
            vec![rule(
                &[CERTIFICATES],
                &["certificatesigningrequests"],
                &["create", "get", "list", "watch"],
            )],
        ),
        // What lets a request be approved without a person.
        cluster_role(
            FIRST_CERTIFICATE,
            &[],
            vec![rule(
                &[CERTIFICATES],
                &["certificatesigningrequests/nodeclient"],
                &["create"],
            )],
        ),
        cluster_role(
            NEXT_CERTIFICATE,
            &[],
            vec![rule(
                &[CERTIFICATES],
                &["certificatesigningrequests/selfnodeclient"],
                &["create"],
            )],
        ),
        cluster_role(
            "system:discovery",
            &[],
            vec![json!({
                "nonResourceURLs": [
                    "/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz",
                    "/version", "/version/",
                ],
                "verbs": ["get"],
            })],
        ),
        cluster_role(
            "system:public-info-viewer",
            &[],
            vec![json!({
                "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version", "/version/"],
                "verbs": ["get"],
            })],
        ),
    ]
}

fn cluster_role_bindings() -> Vec<Value> {
    vec![
        binding("cluster-admin", &["system:masters"]),
        // kubeadm's three, by which a host with a token becomes a node and stays one.
        binding_to(
            "wherry:node-bootstrapper",
            "system:node-bootstrapper",
            &["system:bootstrappers"],
        ),
        binding_to(
            "wherry:node-autoapprove-bootstrap",
            FIRST_CERTIFICATE,
            &["system:bootstrappers"],
        ),
        binding_to(
            "wherry:node-autoapprove-certificate-rotation",
            NEXT_CERTIFICATE,
            &["system:nodes"],
        ),
        binding("system:basic-user", &["system:authenticated"]),
        binding("system:discovery", &["system:authenticated"]),
        binding(
            "system:public-info-viewer",
            &["system:authenticated", "system:unauthenticated"],
        ),
    ]
}

/// Makes those that are not there; one that somebody has changed stays as it is. Repeatable.
pub(crate) async fn bootstrap(client: &ClientService) -> Result<(), BootstrapError> {
    for (plural, objects) in [
        ("clusterroles", cluster_roles()),
        ("clusterrolebindings", cluster_role_bindings()),
    ] {
        let path = format!("/apis/{GROUP}/v1/{plural}");
        for object in objects {
            let (code, answer) = client.request(Method::POST, &path, &object).await;
            if !code.is_success() && code != StatusCode::CONFLICT {
                let message = answer["message"].as_str().unwrap_or_default().to_owned();
                return Err(BootstrapError { path, message });
            }
        }
    }
    Ok(())
}

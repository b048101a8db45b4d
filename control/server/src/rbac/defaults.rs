//! The roles every cluster begins with: those of people here, those of the cluster's own parts below.

mod components;
mod controllers;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::GROUP;
use crate::{bootstrap::BootstrapError, client::ClientService};

/// `false` on a role or binding keeps it as somebody has made it.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTOUPDATE: "true"},
    })
}

fn cluster_role(name: &str, labels: &[(&str, &str)], rules: Vec<Value>) -> Value {
    let mut metadata = metadata(name);
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
    let subjects = groups
        .iter()
        .map(|group| json!({"kind": "Group", "apiGroup": GROUP, "name": group}))
        .collect();
    binding_of(name, role, subjects)
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "apiGroup": GROUP, "name": name})
}

fn account(namespace: &str, name: &str) -> Value {
    json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
}

fn binding_of(name: &str, role: &str, subjects: Vec<Value>) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": "ClusterRoleBinding",
        "metadata": metadata(name),
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
        "limitranges",
        "namespaces",
        "namespaces/status",
        "persistentvolumeclaims",
        "persistentvolumeclaims/status",
        "pods",
        "pods/log",
        "pods/status",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "replicationcontrollers/status",
        "resourcequotas",
        "resourcequotas/status",
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
        "replicationcontrollers",
        "replicationcontrollers/scale",
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
                rule(&["autoscaling"], &["horizontalpodautoscalers"], WRITE),
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
                rule(
                    &["autoscaling"],
                    &[
                        "horizontalpodautoscalers",
                        "horizontalpodautoscalers/status",
                    ],
                    READ,
                ),
                rule(&["batch"], &batch, READ),
                rule(&["events.k8s.io"], &["events"], READ),
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

/// Gives those that gather the rules of others what they have to gather; a controller does so from then on.
fn gather(roles: &mut [Value]) {
    // Several times: what `view` has comes to `edit`, and from there to `admin`.
    for _ in 0..3 {
        let before = roles.to_vec();
        for role in roles.iter_mut() {
            let selector = role.pointer("/aggregationRule/clusterRoleSelectors/0/matchLabels");
            let Some(label) = selector.and_then(|labels| labels.as_object()?.keys().next()) else {
                continue;
            };
            let label = label.clone();
            let mut rules: Vec<Value> = Vec::new();
            for other in before
                .iter()
                .filter(|other| other["metadata"]["labels"].get(&label).is_some())
            {
                for rule in other["rules"].as_array().into_iter().flatten() {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
            role["rules"] = rules.into();
        }
    }
}

/// What of the list `field` of `wanted` is missing in `found`.
fn missing(found: &Value, wanted: &Value, field: &str) -> Vec<Value> {
    let list = |object: &Value| object[field].as_array().cloned().unwrap_or_default();
    let has = list(found);
    list(wanted)
        .into_iter()
        .filter(|item| !has.contains(item))
        .collect()
}

/// What is there already, with what it lacks; `None`: it lacks nothing, or is to be left alone.
fn completed(found: &Value, wanted: &Value) -> Option<Value> {
    if found["metadata"]["annotations"][AUTOUPDATE] == "false"
        || found["roleRef"] != wanted["roleRef"]
    {
        return None;
    }
    let mut completed = found.clone();
    let mut is_changed = false;
    // The rules of one that gathers are the controller's.
    let is_gathering = wanted.get("aggregationRule").is_some();
    for field in ["rules", "subjects"] {
        let missing = missing(found, wanted, field);
        if missing.is_empty() || (is_gathering && field == "rules") {
            continue;
        }
        is_changed = true;
        let mut list = found[field].as_array().cloned().unwrap_or_default();
        list.extend(missing);
        completed[field] = list.into();
    }
    is_changed.then_some(completed)
}

/// Makes those that are not there, and gives those that are what a newer version brings; what somebody has added
/// stays. Repeatable.
pub(crate) async fn bootstrap(client: &ClientService) -> Result<(), BootstrapError> {
    let mut roles = cluster_roles();
    gather(&mut roles);
    roles.extend(components::cluster_roles());
    roles.extend(controllers::cluster_roles());
    let mut bindings = cluster_role_bindings();
    bindings.extend(components::cluster_role_bindings());
    bindings.extend(controllers::cluster_role_bindings());
    let [role, binding] = controllers::of_kube_system();
    for (collection, objects) in [
        ("clusterroles", roles),
        ("clusterrolebindings", bindings),
        ("namespaces/kube-system/roles", vec![role]),
        ("namespaces/kube-system/rolebindings", vec![binding]),
    ] {
        let path = format!("/apis/{GROUP}/v1/{collection}");
        for object in objects {
            ensure(client, &path, &object).await?;
        }
    }
    Ok(())
}

async fn ensure(client: &ClientService, path: &str, object: &Value) -> Result<(), BootstrapError> {
    let failed = |answer: &Value| BootstrapError {
        path: path.to_owned(),
        message: answer["message"].as_str().unwrap_or_default().to_owned(),
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let of_one = format!("{path}/{name}");
    let (code, found) = client.request(Method::GET, &of_one, &Value::Null).await;
    let (code, answer) = match code {
        StatusCode::OK => match completed(&found, object) {
            Some(completed) => client.request(Method::PUT, &of_one, &completed).await,
            None => return Ok(()),
        },
        StatusCode::NOT_FOUND => client.request(Method::POST, path, object).await,
        _ => (code, found),
    };
    // Somebody else was there in between, and does the same.
    if code.is_success() || code == StatusCode::CONFLICT {
        return Ok(());
    }
    Err(failed(&answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_keeps_what_was_added_and_gets_what_is_new() {
        let wanted = cluster_role(
            "r",
            &[],
            vec![
                rule(&[""], &["pods"], &["get"]),
                rule(&[""], &["nodes"], &["get"]),
            ],
        );
        let own = rule(&["mine"], &["things"], &["get"]);
        let mut found = cluster_role(
            "r",
            &[],
            vec![own.clone(), rule(&[""], &["pods"], &["get"])],
        );
        let completed = super::completed(&found, &wanted).expect("something is missing");
        assert_eq!(
            completed["rules"],
            json!([
                own,
                rule(&[""], &["pods"], &["get"]),
                rule(&[""], &["nodes"], &["get"])
            ])
        );
        assert_eq!(super::completed(&completed, &wanted), None);
        found["metadata"]["annotations"][AUTOUPDATE] = "false".into();
        assert_eq!(super::completed(&found, &wanted), None);
    }

    #[test]
    fn roles_of_people_hold_what_the_lesser_ones_hold() {
        let mut roles = cluster_roles();
        gather(&mut roles);
        let rules = |name: &str| {
            let role = roles
                .iter()
                .find(|role| role["metadata"]["name"] == name)
                .expect(name);
            role["rules"].as_array().expect("rules").clone()
        };
        let (admin, edit, view) = (rules("admin"), rules("edit"), rules("view"));
        assert!(
            view.iter().all(|rule| edit.contains(rule))
                && edit.iter().all(|rule| admin.contains(rule))
        );
        assert!(view.len() < edit.len() && edit.len() < admin.len());
        let secrets = |rules: &[Value]| {
            rules
                .iter()
                .any(|rule| rule["resources"].to_string().contains("secrets"))
        };
        assert!(!secrets(&view) && secrets(&edit));
    }
}

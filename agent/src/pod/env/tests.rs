use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::*;

fn pod(container: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "ns", "uid": "u1", "labels": { "app": "x" } },
        "spec": { "serviceAccountName": "robot", "containers": [container] },
    }))
    .expect("a pod")
}

fn objects() -> Objects {
    let map = ConfigMap {
        data: Some(
            [
                ("k".to_owned(), "v".to_owned()),
                ("z".to_owned(), "w".to_owned()),
            ]
            .into(),
        ),
        ..ConfigMap::default()
    };
    let secret = Secret {
        data: Some([("pass".to_owned(), ByteString(b"word".to_vec()))].into()),
        ..Secret::default()
    };
    Objects {
        config_maps: [("map".to_owned(), Some(map)), ("gone".to_owned(), None)].into(),
        secrets: [("secret".to_owned(), Some(secret))].into(),
    }
}

fn services() -> Vec<ServiceEnv> {
    let service = |namespace: &str, name: &str, ip: &str| ServiceEnv {
        namespace: namespace.into(),
        name: name.into(),
        ip: ip.into(),
        ports: vec![(Some("https".into()), 443, "TCP".into())],
    };
    vec![
        service("default", "kubernetes", "10.96.0.1"),
        service("ns", "redis-master", "10.96.0.2"),
        service("other", "far", "10.96.0.3"),
    ]
}

fn build_of(pod: &Pod) -> Result<Vec<(String, String)>, EnvError> {
    let (objects, services) = (objects(), services());
    let inputs = Inputs {
        pod,
        objects: &objects,
        services: &services,
        pod_ips: &["10.88.0.2".parse().expect("an address")],
        host_ips: &["192.0.2.1".parse().expect("an address")],
        node_name: "node-1",
        allocatable: &[
            ("cpu", "4"),
            ("memory", "8Gi"),
            ("ephemeral-storage", "9Gi"),
        ]
        .map(|(resource, amount)| (resource.to_owned(), Quantity(amount.into())))
        .into(),
    };
    build(inputs, &spec(pod).containers[0])
}

fn value(env: &[(String, String)], name: &str) -> Option<String> {
    env.iter()
        .find(|(there, _)| there == name)
        .map(|(_, value)| value.clone())
}

#[test]
fn every_source_is_resolved_in_kubernetes_order() {
    let pod = pod(json!({
        "name": "a",
        "resources": { "limits": { "memory": "64Mi" }, "requests": { "cpu": "250m" } },
        "envFrom": [{ "prefix": "P_", "configMapRef": { "name": "map" } }, { "secretRef": { "name": "secret" } }],
        "env": [
            { "name": "LITERAL", "value": "x" },
            { "name": "USES", "value": "$(LITERAL)-$(P_k)-$(NOPE)-$$(LITERAL)-$(KUBERNETES_SERVICE_HOST)" },
            { "name": "EMPTY" },
            { "name": "P_z", "value": "overridden" },
            { "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            { "name": "LABEL", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['app']" } } },
            { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            { "name": "HOST", "valueFrom": { "fieldRef": { "fieldPath": "status.hostIP" } } },
            { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
            { "name": "KEY", "valueFrom": { "configMapKeyRef": { "name": "map", "key": "k" } } },
            { "name": "PASS", "valueFrom": { "secretKeyRef": { "name": "secret", "key": "pass" } } },
            { "name": "MAYBE", "valueFrom": { "secretKeyRef": { "name": "none", "key": "x", "optional": true } } },
            { "name": "MEM", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Mi" } } },
            { "name": "CPU", "valueFrom": { "resourceFieldRef": { "resource": "requests.cpu", "divisor": "1m" } } },
            { "name": "CPUS", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu" } } },
        ],
    }));
    let env = build_of(&pod).expect("everything is there");
    let table = [
        ("P_k", Some("v")),
        ("P_z", Some("overridden")),
        ("pass", Some("word")),
        ("USES", Some("x-v-$(NOPE)-$(LITERAL)-10.96.0.1")),
        ("EMPTY", Some("")),
        ("NAME", Some("web")),
        ("LABEL", Some("x")),
        ("IP", Some("10.88.0.2")),
        ("HOST", Some("192.0.2.1")),
        ("NODE", Some("node-1")),
        ("KEY", Some("v")),
        ("PASS", Some("word")),
        ("MAYBE", None),
        ("MEM", Some("64")),
        ("CPU", Some("250")),
        ("CPUS", Some("4")),
        ("KUBERNETES_SERVICE_PORT_HTTPS", Some("443")),
        ("KUBERNETES_PORT", Some("tcp://10.96.0.1:443")),
        ("REDIS_MASTER_SERVICE_HOST", Some("10.96.0.2")),
        ("REDIS_MASTER_PORT_443_TCP_ADDR", Some("10.96.0.2")),
        ("FAR_SERVICE_HOST", None),
    ];
    for (name, expected) in table {
        assert_eq!(value(&env, name).as_deref(), expected, "{name}");
    }
}

#[test]
fn what_is_missing_is_said_in_the_kubelets_words() {
    let key = |kind: &str, name: &str, key: &str| json!({ "name": "a", "env": [{ "name": "X", "valueFrom": { kind: { "name": name, "key": key } } }] });
    let table = [
        (
            key("configMapKeyRef", "map", "nope"),
            "couldn't find key nope in ConfigMap ns/map",
        ),
        (
            key("secretKeyRef", "secret", "nope"),
            "couldn't find key nope in Secret ns/secret",
        ),
        (
            key("configMapKeyRef", "gone", "k"),
            "configmap \"gone\" not found",
        ),
        (
            key("secretKeyRef", "gone", "k"),
            "secret \"gone\" not found",
        ),
        (
            json!({ "name": "a", "envFrom": [{ "configMapRef": { "name": "gone" } }] }),
            "configmap \"gone\" not found",
        ),
    ];
    for (container, expected) in table {
        assert_eq!(
            build_of(&pod(container)).expect_err(expected).to_string(),
            expected
        );
    }
    let optional = json!({ "name": "a", "envFrom": [{ "configMapRef": { "name": "gone", "optional": true } }] });
    build_of(&pod(optional)).expect("optional");
}

#[test]
fn expansion_leaves_alone_what_it_does_not_know() {
    let table = [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$A", "$A"),
        ("$(B)", "$(B)"),
        ("$(A", "$(A"),
        ("a$", "a$"),
        ("$$$(A)", "$1"),
    ];
    for (text, expected) in table {
        assert_eq!(
            expand(text, |name| (name == "A").then(|| "1".into())),
            expected,
            "{text}"
        );
    }
}

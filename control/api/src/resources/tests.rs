//! Rules and rows of every kind but Pod.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{RESOURCES, find};
use crate::{Resource, decode};

mod amounts;
mod storage;

fn row(plural: &str) -> &'static Resource {
    RESOURCES
        .iter()
        .find(|row| row.plural == plural)
        .expect(plural)
}

fn now() -> Timestamp {
    "2024-05-01T12:00:00Z".parse().expect("time")
}

fn created(resource: &Resource, mut object: Value) -> Value {
    if object.get("metadata").is_none() {
        object["metadata"] = json!({});
    }
    if object["metadata"].get("name").is_none() {
        object["metadata"]["name"] = "x".into();
    }
    if resource.namespaced && object["metadata"].get("namespace").is_none() {
        object["metadata"]["namespace"] = "default".into();
    }
    decode::check(resource, &mut object, b"").expect("types are right");
    resource.strategy.default(&mut object);
    resource.strategy.prepare_create(&mut object);
    object
}

fn create_errors(plural: &str, object: Value) -> Vec<String> {
    let resource = row(plural);
    resource
        .validate_create(&created(resource, object))
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn update_errors(plural: &str, old: Value, new: Value) -> Vec<String> {
    let resource = row(plural);
    let (old, mut new) = (created(resource, old), created(resource, new));
    resource.strategy.prepare_update("", &mut new, &old);
    resource
        .validate_update("", &new, &old)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn cells(plural: &str, object: Value) -> Vec<Value> {
    let resource = row(plural);
    let cells = resource.strategy.row(&object, now());
    assert_eq!(cells.len(), resource.columns.len(), "{plural}");
    cells
}

#[test]
fn rows_are_found_by_group_version_and_name() {
    assert_eq!(find("", "v1", "pods").map(|row| row.kind), Some("Pod"));
    assert_eq!(
        find("coordination.k8s.io", "v1", "leases").map(|row| row.kind),
        Some("Lease")
    );
    assert!(find("", "v2", "pods").is_none());
    assert!(find("", "v1", "leases").is_none());
}

#[test]
fn every_row_answers_for_an_empty_object_and_for_its_own_fields() {
    for resource in RESOURCES {
        let object = json!({});
        assert_eq!(
            resource.strategy.row(&object, now()).len(),
            resource.columns.len(),
            "{resource:?}"
        );
        for field in resource.strategy.selectable_fields() {
            assert!(
                resource.strategy.selectable_field(&object, field).is_some(),
                "{resource:?} {field}"
            );
        }
        assert_eq!(
            resource.strategy.selectable_field(&object, "spec.nothing"),
            None
        );
        let object = created(resource, json!({}));
        assert_eq!(
            created(resource, object.clone()),
            object,
            "{resource:?}: defaults are stable"
        );
    }
}

#[test]
fn what_is_wrong_is_told_in_the_words_of_kubernetes() {
    for (plural, object, errors) in [
        ("configmaps", json!({"data": {"a": "b"}}), vec![]),
        (
            "configmaps",
            json!({"data": {"a": "b"}, "binaryData": {"a": "aGk="}}),
            vec!["binaryData[a]: Invalid value: \"a\": duplicate of key present in data"],
        ),
        (
            "configmaps",
            json!({"data": {"a b": "c"}}),
            vec![
                "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', \
                 '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
                 '[-._a-zA-Z0-9]+')",
            ],
        ),
        (
            "configmaps",
            json!({"data": {"a": "x".repeat(1024 * 1024 + 1)}}),
            vec!["[]: Too long: may not be more than 1048576 bytes"],
        ),
        (
            "secrets",
            json!({"stringData": {"a": "x".repeat(1024 * 1024 + 1)}}),
            vec!["data: Too long: may not be more than 1048576 bytes"],
        ),
        (
            "secrets",
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
            vec!["data[tls.key]: Required value"],
        ),
        (
            "secrets",
            json!({"type": "kubernetes.io/dockerconfigjson"}),
            vec!["data[.dockerconfigjson]: Required value"],
        ),
        (
            "secrets",
            json!({"type": "kubernetes.io/basic-auth"}),
            vec![
                "data[username]: Required value",
                "data[password]: Required value",
            ],
        ),
        (
            "services",
            json!({"spec": {"ports": [{"port": 80}]}}),
            vec![],
        ),
        (
            "services",
            json!({"spec": {}}),
            vec!["spec.ports: Required value"],
        ),
        ("services", json!({"spec": {"clusterIP": "None"}}), vec![]),
        (
            "services",
            json!({"spec": {"type": "x", "ports": [{"port": 80}]}}),
            vec![
                "spec.type: Unsupported value: \"x\": supported values: \"ClusterIP\", \"ExternalName\", \
                 \"LoadBalancer\", \"NodePort\"",
            ],
        ),
        (
            "services",
            json!({"spec": {"ports": [{"port": 80}, {"port": 0, "name": "a"}]}}),
            vec![
                "spec.ports[0].name: Required value",
                "spec.ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[1].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ],
        ),
        (
            "services",
            json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "a"}]}}),
            vec![
                "spec.ports[1].name: Duplicate value: \"a\"",
                "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
            ],
        ),
        (
            "services",
            json!({"spec": {"ports": [{"port": 80, "nodePort": 30000}]}}),
            vec!["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
        ),
        (
            "services",
            json!({"spec": {"clusterIP": "x", "ports": [{"port": 80}]}}),
            vec![
                "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or \
                 2001:db8::ffff)",
            ],
        ),
        (
            "services",
            json!({"spec": {"type": "ExternalName"}}),
            vec!["spec.externalName: Required value"],
        ),
        (
            "services",
            json!({"metadata": {"name": "1a"}, "spec": {"ports": [{"port": 80}]}}),
            vec![
                "metadata.name: Invalid value: \"1a\": a DNS-1035 label must consist of lower case alphanumeric \
                 characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. \
                 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
            ],
        ),
        (
            "endpoints",
            json!({"subsets": [{}]}),
            vec!["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"],
        ),
        (
            "events",
            json!({"involvedObject": {"namespace": "other"}}),
            vec![
                "involvedObject.namespace: Invalid value: \"other\": does not match event.namespace",
            ],
        ),
        (
            "events",
            json!({"involvedObject": {"kind": "Node", "name": "n"}}),
            vec![],
        ),
        (
            "leases",
            json!({"spec": {"leaseDurationSeconds": 0}}),
            vec!["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
        ),
        (
            "nodes",
            json!({"spec": {"taints": [{"key": "a", "effect": "NoRun"}]}}),
            vec![
                "spec.taints[0].effect: Unsupported value: \"NoRun\": supported values: \"NoSchedule\", \
                 \"PreferNoSchedule\", \"NoExecute\"",
            ],
        ),
        (
            "namespaces",
            json!({"metadata": {"name": "a.b"}}),
            vec!["metadata.name: Invalid value: \"a.b\": must not contain dots"],
        ),
        ("runtimeclasses", json!({"handler": "wasm"}), vec![]),
    ] {
        assert_eq!(
            create_errors(plural, object.clone()),
            errors,
            "{plural} {object}"
        );
    }
}

#[test]
fn what_may_not_change_is_told_in_the_words_of_kubernetes() {
    let immutable = "Forbidden: field is immutable when `immutable` is set";
    for (plural, old, new, errors) in [
        ("configmaps", json!({"data": {"a": "1"}}), json!({"data": {"a": "2"}}), vec![]),
        (
            "configmaps",
            json!({"immutable": true, "data": {"a": "1"}}),
            json!({"data": {"a": "2"}}),
            vec![format!("immutable: {immutable}"), format!("data: {immutable}")],
        ),
        (
            "secrets",
            json!({"type": "a/b"}),
            json!({"type": "a/c"}),
            vec!["type: Invalid value: \"a/c\": field is immutable".to_owned()],
        ),
        (
            "runtimeclasses",
            json!({"handler": "a"}),
            json!({"handler": "b"}),
            vec!["handler: Invalid value: \"b\": field is immutable".to_owned()],
        ),
        (
            "services",
            json!({"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}),
            json!({"spec": {"clusterIP": "10.0.0.2", "ports": [{"port": 80}]}}),
            vec!["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set".to_owned()],
        ),
        (
            "services",
            json!({"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}),
            json!({"spec": {"ports": [{"port": 81}]}}),
            vec![],
        ),
        (
            "nodes",
            json!({"spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]}}),
            json!({"spec": {"podCIDR": "10.0.1.0/24", "podCIDRs": ["10.0.1.0/24"]}}),
            vec!["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid".to_owned()],
        ),
    ] {
        assert_eq!(update_errors(plural, old.clone(), new.clone()), errors, "{plural} {old} → {new}");
    }
}

#[test]
fn a_service_gives_back_what_its_old_type_had() {
    let resource = row("services");
    let old = created(
        resource,
        json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 30080}]}}),
    );
    let mut new = old.clone();
    new["spec"]["type"] = "ClusterIP".into();
    resource.strategy.prepare_update("", &mut new, &old);
    assert_eq!(
        new["spec"]["ports"],
        json!([{"port": 80, "protocol": "TCP", "targetPort": 80}])
    );
    assert_eq!(new["spec"]["clusterIP"], "10.0.0.1");
    assert_eq!(resource.validate_update("", &new, &old), []);

    let mut new = old.clone();
    new["spec"]["type"] = "ExternalName".into();
    new["spec"]["externalName"] = "a.b".into();
    resource.strategy.prepare_update("", &mut new, &old);
    assert_eq!(new["spec"].get("clusterIP"), None);
}

#[test]
fn a_service_is_refused_that_would_need_addresses_of_another_family() {
    let resource = row("services");
    let errors = |spec: Value| -> Vec<String> {
        let mut object = json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": {"ports": [{"port": 80}]}});
        for (field, value) in spec.as_object().expect("fields") {
            object["spec"][field] = value.clone();
        }
        let errors = resource.validate_create(&created(resource, object));
        errors.iter().map(ToString::to_string).collect()
    };
    let unknown = "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster";
    let single = "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack \
                  services";
    let none: [&str; 0] = [];
    assert_eq!(errors(json!({"ipFamilies": ["IPv4"]})), none);
    assert_eq!(errors(json!({"ipFamilyPolicy": "PreferDualStack"})), none);
    assert_eq!(errors(json!({"ipFamilies": ["IPv6"]})), [unknown]);
    assert_eq!(
        errors(json!({"ipFamilyPolicy": "RequireDualStack"})),
        [single]
    );
    let chosen = json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilies": ["IPv6"]});
    assert_eq!(errors(chosen), [unknown]);
    // Its endpoints are made by hand, and answered as they are.
    let by_hand = json!({"clusterIP": "None", "ipFamilies": ["IPv6"]});
    assert_eq!(errors(by_hand), none);
    assert_eq!(
        errors(json!({"ipFamilies": ["IPv5"]})),
        ["spec.ipFamilies[0]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\""]
    );
}

#[test]
fn the_port_for_a_services_health_comes_and_goes_with_the_policy() {
    let resource = row("services");
    let service = |spec: Value| {
        let mut object = json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": {
            "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 30080}], "type": "LoadBalancer",
        }});
        for (field, value) in spec.as_object().expect("fields") {
            object["spec"][field] = value.clone();
        }
        created(resource, object)
    };
    let local =
        |port: i64| service(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": port}));
    let alone = "spec.healthCheckNodePort: Invalid value: 30001: may only be set when `type` is 'LoadBalancer' and \
                 `externalTrafficPolicy` is 'Local'";
    let errors = |errors: Vec<crate::FieldError>| -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    };
    for (spec, expected) in [
        (json!({"healthCheckNodePort": 30001}), vec![alone]),
        (
            json!({"healthCheckNodePort": 30001, "externalTrafficPolicy": "Local", "type": "NodePort"}),
            vec![alone],
        ),
        (
            json!({"healthCheckNodePort": 30001, "externalTrafficPolicy": "Local"}),
            vec![],
        ),
    ] {
        assert_eq!(
            errors(resource.validate_create(&service(spec.clone()))),
            expected,
            "{spec}"
        );
    }
    let old = local(30001);
    let changed = |mut new: Value| {
        resource.strategy.prepare_update("", &mut new, &old);
        let errors = errors(resource.validate_update("", &new, &old));
        (new["spec"].get("healthCheckNodePort").cloned(), errors)
    };
    assert_eq!(
        changed(local(0)),
        (Some(30001.into()), vec![]),
        "not said, so kept"
    );
    assert_eq!(
        changed(local(30002)).1,
        ["spec.healthCheckNodePort: Forbidden: field is immutable"]
    );
    for (field, value) in [("externalTrafficPolicy", "Cluster"), ("type", "NodePort")] {
        let mut new = old.clone();
        new["spec"][field] = value.into();
        assert_eq!(changed(new), (None, vec![]), "{field}: {value}");
    }
}

#[test]
fn objects_get_the_defaults_of_kubernetes() {
    let namespace = created(row("namespaces"), json!({"metadata": {"name": "a"}}));
    assert_eq!(
        namespace["metadata"]["labels"],
        json!({"kubernetes.io/metadata.name": "a"})
    );
    assert_eq!(namespace["spec"], json!({"finalizers": ["kubernetes"]}));
    assert_eq!(namespace["status"], json!({"phase": "Active"}));

    let secret = created(
        row("secrets"),
        json!({"data": {"a": "eA=="}, "stringData": {"b": "y"}}),
    );
    assert_eq!(secret["type"], "Opaque");
    assert_eq!(secret["data"], json!({"a": "eA==", "b": "eQ=="}));
    assert_eq!(secret.get("stringData"), None);

    let service = created(
        row("services"),
        json!({"spec": {"type": "NodePort", "ports": [{"port": 80}], "sessionAffinity": "ClientIP"}}),
    );
    assert_eq!(
        service["spec"],
        json!({
            "externalTrafficPolicy": "Cluster",
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
            "type": "NodePort",
        })
    );
    assert_eq!(service["status"], json!({"loadBalancer": {}}));
}

#[test]
fn a_namespace_is_finalized_only_by_its_own_path() {
    let strategy = row("namespaces").strategy;
    let old = created(row("namespaces"), json!({"metadata": {"name": "a"}}));
    let mut without = old.clone();
    without["spec"] = json!({});
    let mut new = without.clone();
    strategy.prepare_update("", &mut new, &old);
    assert_eq!(new["spec"], old["spec"]);
    let mut new = without.clone();
    strategy.prepare_update("finalize", &mut new, &old);
    assert_eq!(new["spec"], json!({}));
}

#[test]
fn rows_look_as_kubectl_prints_them() {
    let age = "2024-05-01T11:00:00Z";
    let object = |fields: Value| {
        let mut object = json!({"metadata": {"name": "x", "creationTimestamp": age}});
        json_patch::merge(&mut object, &fields);
        object
    };
    for (plural, fields, row) in [
        (
            "configmaps",
            json!({"data": {"a": ""}, "binaryData": {"b": ""}}),
            json!(["x", 2, "60m"]),
        ),
        (
            "secrets",
            json!({"type": "Opaque", "data": {"a": ""}}),
            json!(["x", "Opaque", 1, "60m"]),
        ),
        ("serviceaccounts", json!({}), json!(["x", 0, "60m"])),
        (
            "namespaces",
            json!({"status": {"phase": "Active"}}),
            json!(["x", "Active", "60m"]),
        ),
        (
            "leases",
            json!({"spec": {"holderIdentity": "n"}}),
            json!(["x", "n", "60m"]),
        ),
        (
            "runtimeclasses",
            json!({"handler": "wasm"}),
            json!(["x", "wasm", "60m"]),
        ),
        (
            "nodes",
            json!({
                "metadata": {"labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
                "spec": {"unschedulable": true},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                    "nodeInfo": {"kubeletVersion": "v1", "osImage": "Debian", "kernelVersion": "6"},
                },
            }),
            json!([
                "x",
                "Ready,SchedulingDisabled",
                "control-plane,worker",
                "60m",
                "v1",
                "10.0.0.1",
                "<none>",
                "Debian",
                "6",
                "<unknown>"
            ]),
        ),
        (
            "nodes",
            json!({}),
            json!([
                "x",
                "Unknown",
                "<none>",
                "60m",
                "",
                "<none>",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>"
            ]),
        ),
        (
            "services",
            json!({"spec": {
                "type": "NodePort", "clusterIP": "10.0.0.1", "selector": {"a": "b", "c": "d"},
                "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
            }}),
            json!([
                "x",
                "NodePort",
                "10.0.0.1",
                "<none>",
                "80:30080/TCP,53/UDP",
                "60m",
                "a=b,c=d"
            ]),
        ),
        (
            "services",
            json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1"}}),
            json!([
                "x",
                "LoadBalancer",
                "10.0.0.1",
                "<pending>",
                "<none>",
                "60m",
                "<none>"
            ]),
        ),
        (
            "services",
            json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}),
            json!([
                "x",
                "ExternalName",
                "<none>",
                "a.b",
                "<none>",
                "60m",
                "<none>"
            ]),
        ),
        ("endpoints", json!({}), json!(["x", "<none>", "60m"])),
        (
            "endpoints",
            json!({"subsets": [{
                "addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}, {"ip": "fd00::1"}, {"ip": "10.0.0.4"}],
                "ports": [{"port": 80}],
            }]}),
            json!([
                "x",
                "10.0.0.1:80,10.0.0.2:80,[fd00::1]:80 + 1 more...",
                "60m"
            ]),
        ),
        (
            "events",
            json!({
                "type": "Warning", "reason": "BackOff", "message": "back-off \n", "count": 4,
                "firstTimestamp": "2024-05-01T11:50:00Z", "lastTimestamp": "2024-05-01T11:59:00Z",
                "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"},
                "source": {"component": "kubelet", "host": "n"},
            }),
            json!([
                "60s",
                "Warning",
                "BackOff",
                "pod/p",
                "spec.containers{c}",
                "kubelet, n",
                "back-off",
                "10m",
                4,
                "x"
            ]),
        ),
        (
            "events",
            json!({"type": "Normal", "eventTime": "2024-05-01T11:59:58.000000Z", "reportingComponent": "s"}),
            json!(["2s", "Normal", "", "", "", "s", "", "2s", 1, "x"]),
        ),
    ] {
        assert_eq!(Value::Array(cells(plural, object(fields))), row, "{plural}");
    }
}

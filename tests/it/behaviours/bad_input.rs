//! What cannot be: refused at admission in Kubernetes' words, or told by the node before anything starts.

use serde_json::{Value, json};

use super::{
    Behaviour, Group, Runtime,
    case::{Case, Outcome},
    manifest::Pod,
    program::stay,
};

pub(super) const GROUP: Group = Group {
    name: "bad_input",
    title: "Bad input",
    rows: &[
        Behaviour::new("names and images are checked", |case| refused(case, NAMES)),
        Behaviour::new("ports and policies are checked", |case| {
            refused(case, PORTS)
        }),
        Behaviour::new("mounts and volumes are checked", |case| {
            refused(case, MOUNTS)
        }),
        Behaviour::new("resources are checked", |case| refused(case, RESOURCES)),
        Behaviour::new("probes and hooks are checked", |case| refused(case, PROBES)),
        Behaviour::new("security contexts are checked", |case| {
            refused(case, SECURITY)
        }),
        Behaviour::new("host namespaces and names are checked", |case| {
            refused(case, HOST)
        }),
        Behaviour::new("what a pod is cannot be changed later", changes),
        Behaviour::new("an image of the other kind is told", other_kind),
        Behaviour::new("a RuntimeClass that is not there is told", no_class),
        Behaviour::new("more than the node has is not scheduled", too_much),
        Behaviour::new(
            "more than the node has is refused by the node as well",
            out_of_cpu,
        ),
        Behaviour::new(
            "a node selector that does not match is refused by the node",
            wrong_node,
        ),
        Behaviour::new(
            "privileged is refused where the node does not allow it",
            privileged,
        )
        .strictly(),
    ],
};

/// More of a pod's spec, more of its container, and what the API server says to it.
type Bad = (&'static str, &'static str, &'static str);

const NAMES: &[Bad] = &[
    (
        "{}",
        r#"{"name": "Main"}"#,
        "spec.containers[0].name: Invalid value: \"Main\"",
    ),
    (
        "{}",
        r#"{"image": ""}"#,
        "spec.containers[0].image: Required value",
    ),
    (
        "{}",
        r#"{"image": " busybox"}"#,
        "spec.containers[0].image: Invalid value: \" busybox\": must not have leading or trailing whitespace",
    ),
    (
        "{}",
        r#"{"imagePullPolicy": "Sometimes"}"#,
        "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
    ),
    (
        "{}",
        r#"{"env": [{"name": ""}]}"#,
        "spec.containers[0].env[0].name: Required value",
    ),
    (
        "{}",
        r#"{"env": [{"name": "X", "value": "a", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}"#,
        "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
    ),
    (
        "{}",
        r#"{"env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.boat"}}}]}"#,
        "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.boat\"",
    ),
    (
        r#"{"containers": [{"name": "main", "image": "x"}]}"#,
        "{}",
        "spec.containers[1].name: Duplicate value: \"main\"",
    ),
];

const PORTS: &[Bad] = &[
    (
        "{}",
        r#"{"ports": [{"containerPort": 70000}]}"#,
        "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
    ),
    (
        "{}",
        r#"{"ports": [{"containerPort": 80, "protocol": "BOAT"}]}"#,
        "spec.containers[0].ports[0].protocol: Unsupported value: \"BOAT\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
    ),
    (
        r#"{"restartPolicy": "Sometimes"}"#,
        "{}",
        "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
    ),
    (
        r#"{"activeDeadlineSeconds": 0}"#,
        "{}",
        "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
    ),
    (
        r#"{"dnsPolicy": "None"}"#,
        "{}",
        "must provide `dnsConfig` when `dnsPolicy` is None",
    ),
    (
        r#"{"dnsPolicy": "Harbour"}"#,
        "{}",
        "spec.dnsPolicy: Unsupported value: \"Harbour\"",
    ),
];

const MOUNTS: &[Bad] = &[
    (
        "{}",
        r#"{"volumeMounts": [{"name": "v", "mountPath": "/v"}]}"#,
        "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
    ),
    (
        r#"{"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}"#,
        "{}",
        "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
    ),
    (
        r#"{"volumes": [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]}"#,
        "{}",
        "spec.volumes[1].name: Duplicate value: \"v\"",
    ),
    (
        r#"{"volumes": [{"name": "v", "hostPath": {"path": "/x", "type": "Boat"}}]}"#,
        "{}",
        "spec.volumes[0].hostPath.type: Unsupported value: \"Boat\"",
    ),
    (
        r#"{"volumes": [{"name": "v", "emptyDir": {}}]}"#,
        r#"{"volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/v"}]}"#,
        "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/v\": must be unique",
    ),
    (
        r#"{"volumes": [{"name": "v", "emptyDir": {}}]}"#,
        r#"{"volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "a", "subPathExpr": "b"}]}"#,
        "spec.containers[0].volumeMounts[0].subPathExpr: Invalid value: \"b\": subPathExpr and subPath are mutually exclusive",
    ),
    (
        r#"{"volumes": [{"name": "v", "configMap": {"name": "c", "defaultMode": 512}}]}"#,
        "{}",
        "spec.volumes[0].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
    ),
    (
        r#"{"volumes": [{"name": "v", "emptyDir": {}}]}"#,
        r#"{"volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]}"#,
        "Bidirectional mount propagation is available only to privileged containers",
    ),
    (
        r#"{"volumes": [{"name": "v", "emptyDir": {}}]}"#,
        r#"{"volumeMounts": [{"name": "v", "mountPath": "/v", "recursiveReadOnly": "Enabled"}]}"#,
        "spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
    ),
];

const RESOURCES: &[Bad] = &[
    (
        "{}",
        r#"{"resources": {"requests": {"cpu": 2}, "limits": {"cpu": 1}}}"#,
        "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
    ),
    (
        "{}",
        r#"{"resources": {"limits": {"memory": "-1"}}}"#,
        "spec.containers[0].resources.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
    ),
    (
        "{}",
        r#"{"resources": {"requests": {"hugepages-2Mi": "2Mi"}}}"#,
        "Limit must be set for non overcommitable resources",
    ),
    (
        "{}",
        r#"{"resources": {"limits": {"boats": 1}}}"#,
        "spec.containers[0].resources.limits[boats]: Invalid value: \"boats\": must be a standard resource for containers",
    ),
];

const PROBES: &[Bad] = &[
    (
        "{}",
        r#"{"readinessProbe": {}}"#,
        "spec.containers[0].readinessProbe: Required value: must specify a handler type",
    ),
    (
        "{}",
        r#"{"livenessProbe": {"exec": {"command": ["x"]}, "successThreshold": 2}}"#,
        "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
    ),
    (
        "{}",
        r#"{"readinessProbe": {"exec": {"command": ["x"]}, "terminationGracePeriodSeconds": 2}}"#,
        "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 2: must not be set for readinessProbes",
    ),
    (
        "{}",
        r#"{"readinessProbe": {"exec": {"command": ["x"]}, "tcpSocket": {"port": 1}}}"#,
        "spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
    ),
    (
        "{}",
        r#"{"readinessProbe": {"httpGet": {"port": 0}}}"#,
        "spec.containers[0].readinessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
    ),
    (
        "{}",
        r#"{"lifecycle": {"preStop": {"sleep": {"seconds": 100}}}}"#,
        "spec.containers[0].lifecycle.preStop.sleep",
    ),
    (
        "{}",
        r#"{"lifecycle": {"stopSignal": "SIGBOAT"}}"#,
        "spec.containers[0].lifecycle.stopSignal",
    ),
];

const SECURITY: &[Bad] = &[
    (
        "{}",
        r#"{"securityContext": {"runAsUser": -1}}"#,
        "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
    ),
    (
        "{}",
        r#"{"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}"#,
        "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
    ),
    (
        "{}",
        r#"{"securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"add": ["CAP_SYS_ADMIN"]}}}"#,
        "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
    ),
    (
        "{}",
        r#"{"securityContext": {"seccompProfile": {"type": "Localhost"}}}"#,
        "spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
    ),
    (
        "{}",
        r#"{"securityContext": {"procMount": "Unmasked"}}"#,
        "`hostUsers` must be false to use `Unmasked`",
    ),
    (
        r#"{"securityContext": {"sysctls": [{"name": "Boat!", "value": "1"}]}}"#,
        "{}",
        "spec.securityContext.sysctls[0].name: Invalid value: \"Boat!\"",
    ),
    (
        r#"{"securityContext": {"fsGroupChangePolicy": "Boat"}}"#,
        "{}",
        "spec.securityContext.fsGroupChangePolicy: Unsupported value: \"Boat\": supported values: \"Always\", \"OnRootMismatch\"",
    ),
];

const HOST: &[Bad] = &[
    (
        r#"{"hostPID": true, "shareProcessNamespace": true}"#,
        "{}",
        "ShareProcessNamespace and HostPID cannot both be enabled",
    ),
    (
        r#"{"hostUsers": false, "hostNetwork": true}"#,
        "{}",
        "spec.hostNetwork: Forbidden: when `pod.Spec.HostUsers` is false",
    ),
    (
        r#"{"hostNetwork": true}"#,
        r#"{"ports": [{"containerPort": 80, "hostPort": 81}]}"#,
        "must match `containerPort` when `hostNetwork` is true",
    ),
    (
        r#"{"hostAliases": [{"ip": "boat", "hostnames": ["x"]}]}"#,
        "{}",
        "spec.hostAliases[0].ip: Invalid value: \"boat\": must be a valid IP address",
    ),
    (
        r#"{"hostname": "Boat!"}"#,
        "{}",
        "spec.hostname: Invalid value: \"Boat!\"",
    ),
    (
        r#"{"readinessGates": [{"conditionType": "a b"}]}"#,
        "{}",
        "spec.readinessGates[0].conditionType: Invalid value: \"a b\"",
    ),
];

fn refused(case: &Case<'_>, table: &[Bad]) -> Outcome {
    for (spec, container, words) in table {
        let [spec, container] = [spec, container]
            .map(|text| serde_json::from_str::<Value>(text).expect("the table has JSON"));
        case.invalid(
            &case.pod_with("bad", &[stay()], container).spec(spec),
            words,
        );
    }
    Ok(())
}

fn changes(case: &Case<'_>) -> Outcome {
    case.ready(&case.pod("fixed", &[stay()]))?;
    for patch in [
        r#"{"spec":{"containers":[{"name":"main","command":["other"]}]}}"#,
        r#"{"spec":{"hostname":"boat"}}"#,
        r#"{"spec":{"restartPolicy":"Never"}}"#,
    ] {
        let said = case.kubectl_fails(&["patch", "pod", "fixed", "-p", patch]);
        assert!(
            said.contains(
                "pod updates may not change fields other than `spec.containers[*].image`"
            ),
            "{said}"
        );
    }
    Ok(())
}

fn other_kind(case: &Case<'_>) -> Outcome {
    let other = if case.is_wasm() {
        Runtime::Oci
    } else {
        Runtime::Wasm
    };
    let container = super::case::container_of(other, "main", &[stay()]);
    case.create(&case.empty("mismatch").container(container))?;
    wherry_tests::eventually("its state says so", || {
        let reason = case.first("mismatch", ".state.waiting.reason");
        if ["CreateContainerError", "ErrImageNeverPull"].contains(&reason.as_str()) {
            Ok(())
        } else {
            Err(case.told("mismatch"))
        }
    });
    assert!(!case.first("mismatch", ".state.waiting.message").is_empty());
    Ok(())
}

fn no_class(case: &Case<'_>) -> Outcome {
    let mut pod = case.pod("odd", &[stay()]);
    pod.object["spec"]["runtimeClassName"] = json!("absent");
    case.invalid(&pod, "RuntimeClass \"absent\" not found");
    Ok(())
}

fn too_much(case: &Case<'_>) -> Outcome {
    for (name, resource, amount) in [
        ("cpu", "cpu", "1000"),
        ("memory", "memory", "100Ti"),
        ("huge", "hugepages-2Mi", "64Gi"),
    ] {
        let mut more = json!({"resources": {"requests": {"cpu": "1m"}, "limits": {"cpu": "1001"}}});
        more["resources"]["requests"][resource] = json!(amount);
        if resource != "cpu" {
            more["resources"]["limits"][resource] = json!(amount);
        }
        case.create(&case.pod_with(name, &[stay()], more))?;
        let event = case.event(name, "FailedScheduling");
        assert!(
            event.contains(&format!("Insufficient {resource}")),
            "{event}"
        );
    }
    Ok(())
}

fn out_of_cpu(case: &Case<'_>) -> Outcome {
    let more = json!({"resources": {"requests": {"cpu": "1000"}}});
    // Past the scheduler.
    let pod = case.pod_with("large", &[stay()], more);
    case.ends(&pod.spec(json!({"nodeName": "node"})), "Failed")?;
    assert_eq!(case.field("large", ".status.reason"), "OutOfcpu");
    let message = case.field("large", ".status.message");
    assert!(
        message.contains("Node didn't have enough resource: cpu"),
        "{message}"
    );
    Ok(())
}

fn wrong_node(case: &Case<'_>) -> Outcome {
    let pod: Pod = case.pod("picky", &[stay()]);
    case.ends(
        &pod.spec(json!({"nodeName": "node", "nodeSelector": {"boat": "yes"}})),
        "Failed",
    )?;
    assert_eq!(case.field("picky", ".status.reason"), "NodeAffinity");
    let message = case.field("picky", ".status.message");
    assert!(
        message.contains("Predicate NodeAffinity failed"),
        "{message}"
    );
    Ok(())
}

fn privileged(case: &Case<'_>) -> Outcome {
    let more = json!({"securityContext": {"privileged": true}});
    case.create(&case.pod_with("mighty", &[stay()], more))?;
    case.until_told("mighty", "privileged");
    assert_ne!(case.field("mighty", ".status.phase"), "Running");
    Ok(())
}

//! Rules of pods.

use serde_json::{Value, json};

use crate::{Resource, decode};

mod contract;

fn pods() -> &'static Resource {
    crate::find("", "v1", "pods").expect("pods")
}

fn merge(mut base: Value, change: &Value) -> Value {
    json_patch::merge(&mut base, change);
    base
}

fn bare() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]},
    })
}

/// As it is stored after creation.
fn created(mut pod: Value) -> Value {
    decode::check(pods(), &mut pod, b"").expect("types are right");
    pods().strategy.default(&mut pod);
    pods().strategy.prepare_create(&mut pod);
    pod
}

fn texts(errors: &[crate::FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn errors_of_spec(spec: Value) -> Vec<String> {
    let mut pod = bare();
    pod["spec"] = spec;
    texts(&pods().validate_create(&created(pod)))
}

/// Errors of a pod with one container, changed by a merge patch.
fn errors_of_container(change: Value) -> Vec<String> {
    let container = merge(json!({"name": "c", "image": "i"}), &change);
    errors_of_spec(json!({"containers": [container], "volumes": [{"name": "v", "emptyDir": {}}]}))
}

#[test]
fn a_bare_pod_gets_the_defaults_of_kubernetes() {
    let pod = created(bare());
    assert_eq!(texts(&pods().validate_create(&pod)), [""; 0]);
    assert_eq!(
        pod["spec"],
        json!({
            "containers": [{
                "name": "c",
                "image": "nginx",
                "imagePullPolicy": "Always",
                "resources": {},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
            }],
            "dnsPolicy": "ClusterFirst",
            "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority",
            "priority": 0,
            "restartPolicy": "Always",
            "schedulerName": "default-scheduler",
            "securityContext": {},
            "terminationGracePeriodSeconds": 30,
            "tolerations": [
                {"effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300},
                {"effect": "NoExecute", "key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 300},
            ],
        })
    );
    assert_eq!(
        pod["status"],
        json!({"phase": "Pending", "qosClass": "BestEffort"})
    );
}

#[test]
fn defaults_are_the_same_when_applied_again() {
    let once = created(bare());
    let mut twice = once.clone();
    pods().strategy.default(&mut twice);
    assert_eq!(once, twice);
}

#[test]
fn the_pull_policy_follows_the_tag() {
    for (image, policy) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.25", "IfNotPresent"),
        ("localhost:5000/nginx", "Always"),
        ("localhost:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:0123", "IfNotPresent"),
        ("nginx:latest@sha256:0123", "Always"),
    ] {
        let mut pod = bare();
        pod["spec"]["containers"][0]["image"] = image.into();
        assert_eq!(
            created(pod)["spec"]["containers"][0]["imagePullPolicy"],
            policy,
            "{image}"
        );
    }
}

#[test]
fn probes_volumes_and_resources_get_their_defaults() {
    let pod = created(merge(
        bare(),
        &json!({"spec": {
            "containers": [{
                "name": "c",
                "image": "i:1",
                "livenessProbe": {"httpGet": {"port": 80}, "timeoutSeconds": 0},
                "resources": {"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "500m"}},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "ports": [{"containerPort": 80}],
            }],
            "hostNetwork": true,
            "serviceAccount": "robot",
            "terminationGracePeriodSeconds": -5,
            "volumes": [
                {"name": "a"},
                {"name": "b", "configMap": {"name": "x"}},
                {"name": "d", "hostPath": {"path": "/x"}},
                {"name": "e", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
            ],
        }}),
    ));
    let spec = &pod["spec"];
    let container = &spec["containers"][0];
    assert_eq!(
        container["livenessProbe"],
        json!({
            "httpGet": {"path": "/", "port": 80, "scheme": "HTTP"},
            "failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1,
        })
    );
    assert_eq!(
        container["resources"]["requests"],
        json!({"cpu": "500m", "memory": "64Mi"})
    );
    assert_eq!(
        container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"],
        "v1"
    );
    assert_eq!(
        container["ports"][0],
        json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"})
    );
    assert_eq!(spec["serviceAccountName"], "robot");
    assert_eq!(spec["terminationGracePeriodSeconds"], 1);
    assert_eq!(
        spec["volumes"],
        json!([
            {"name": "a", "emptyDir": {}},
            {"name": "b", "configMap": {"name": "x", "defaultMode": 420}},
            {"name": "d", "hostPath": {"path": "/x", "type": ""}},
            {"name": "e", "projected": {
                "defaultMode": 420,
                "sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}],
            }},
        ])
    );
    assert_eq!(texts(&pods().validate_create(&pod)), [""; 0]);
}

#[test]
fn the_qos_class_follows_requests_and_limits() {
    for (resources, class) in [
        (json!({}), "BestEffort"),
        (json!({"requests": {"cpu": "0"}}), "BestEffort"),
        (json!({"requests": {"cpu": "1"}}), "Burstable"),
        (json!({"limits": {"cpu": "1"}}), "Burstable"),
        (
            json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
            "Guaranteed",
        ),
        (
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
            "Guaranteed",
        ),
        (
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}),
            "Burstable",
        ),
    ] {
        let spec = json!({"containers": [{"resources": resources}]});
        assert_eq!(super::qos_class(&spec), class, "{spec}");
    }
}

#[test]
fn tolerations_that_are_there_already_are_not_added_again() {
    let pod = created(merge(
        bare(),
        &json!({"spec": {"tolerations": [{"operator": "Exists"}]}}),
    ));
    assert_eq!(pod["spec"]["tolerations"], json!([{"operator": "Exists"}]));
}

#[test]
fn what_is_wrong_with_a_pod_is_told_in_the_words_of_kubernetes() {
    let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
                 end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    let one = |change: Value| {
        merge(
            json!({"containers": [{"name": "c", "image": "i"}]}),
            &change,
        )
    };
    for (spec, errors) in [
        (json!({}), vec!["spec.containers: Required value".to_owned()]),
        (
            json!({"containers": [{}]}),
            vec![
                "spec.containers[0].name: Required value".to_owned(),
                "spec.containers[0].image: Required value".to_owned(),
            ],
        ),
        (
            json!({"containers": [{"name": "C_", "image": "i"}]}),
            vec![format!("spec.containers[0].name: Invalid value: \"C_\": {label}")],
        ),
        (
            json!({"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]}),
            vec!["spec.containers[1].name: Duplicate value: \"a\"".to_owned()],
        ),
        (
            json!({"containers": [{"name": "a", "image": "i"}], "initContainers": [{"name": "a", "image": "i"}]}),
            vec!["spec.initContainers[0].name: Duplicate value: \"a\"".to_owned()],
        ),
        (
            json!({
                "containers": [{"name": "a", "image": "i"}],
                "initContainers": [{"name": "b", "image": "i", "readinessProbe": {"exec": {"command": ["x"]}}}],
            }),
            vec![
                "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without \
                 restartPolicy=Always"
                    .to_owned(),
            ],
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "restartPolicy": "Always"}]}),
            vec!["spec.containers[0].restartPolicy: Forbidden: may not be set for non-init containers".to_owned()],
        ),
        (
            one(json!({"restartPolicy": "Sometimes"})),
            vec![
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \
                 \"Never\""
                    .to_owned(),
            ],
        ),
        (
            one(json!({"dnsPolicy": "x"})),
            vec![
                "spec.dnsPolicy: Unsupported value: \"x\": supported values: \"ClusterFirstWithHostNet\", \
                 \"ClusterFirst\", \"Default\", \"None\""
                    .to_owned(),
            ],
        ),
        (
            one(json!({"dnsPolicy": "None"})),
            vec!["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None".to_owned()],
        ),
        (
            one(json!({"dnsConfig": {"nameservers": ["x"]}})),
            vec![
                "spec.dnsConfig.nameservers[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or \
                 2001:db8::ffff)"
                    .to_owned(),
            ],
        ),
        (
            one(json!({"activeDeadlineSeconds": 0})),
            vec!["spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive".to_owned()],
        ),
        (one(json!({"hostname": "A"})), vec![format!("spec.hostname: Invalid value: \"A\": {label}")]),
        (
            one(json!({"nodeSelector": {"a": "b c"}})),
            vec![
                "spec.nodeSelector[a]: Invalid value: \"b c\": a valid label must be an empty string or consist of \
                 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
                 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
                 '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                    .to_owned(),
            ],
        ),
        (
            one(json!({"tolerations": [{"key": "a", "operator": "Is"}]})),
            vec![
                "spec.tolerations[0].operator: Unsupported value: \"Is\": supported values: \"Equal\", \"Exists\"".to_owned(),
            ],
        ),
        (
            one(json!({"tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 1}]})),
            vec![
                "spec.tolerations[0].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when \
                 `tolerationSeconds` is set"
                    .to_owned(),
            ],
        ),
        (
            one(json!({"shareProcessNamespace": true, "hostPID": true})),
            vec![
                "spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be \
                 enabled"
                    .to_owned(),
            ],
        ),
        (
            one(json!({"volumes": [{"name": "v", "emptyDir": {}, "configMap": {"name": "x"}}]})),
            vec!["spec.volumes[0].configMap: Forbidden: may not specify more than 1 volume type".to_owned()],
        ),
        (
            one(json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]})),
            vec!["spec.volumes[1].name: Duplicate value: \"v\"".to_owned()],
        ),
        (
            one(json!({"volumes": [{"emptyDir": {}}]})),
            vec!["spec.volumes[0].name: Required value".to_owned()],
        ),
        (
            one(json!({"volumes": [{"name": "v", "hostPath": {"path": "/a/../b", "type": "Dir"}}]})),
            vec![
                "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'".to_owned(),
                "spec.volumes[0].hostPath.type: Unsupported value: \"Dir\": supported values: \"\", \"BlockDevice\", \
                 \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\""
                    .to_owned(),
            ],
        ),
        (
            one(json!({"volumes": [{"name": "v", "secret": {"defaultMode": 512}}]})),
            vec![
                "spec.volumes[0].secret.secretName: Required value".to_owned(),
                "spec.volumes[0].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), \
                 both inclusive"
                    .to_owned(),
            ],
        ),
        (
            one(json!({"volumes": [{"name": "v", "configMap": {"name": "x", "items": [
                {"key": "k", "path": "/a"}, {"key": "k", "path": "../a"}, {"key": "k", "path": "..a"},
            ]}}]})),
            vec![
                "spec.volumes[0].configMap.items[0].path: Invalid value: \"/a\": must be a relative path".to_owned(),
                "spec.volumes[0].configMap.items[1].path: Invalid value: \"../a\": must not contain '..'".to_owned(),
                "spec.volumes[0].configMap.items[2].path: Invalid value: \"..a\": must not start with '..'".to_owned(),
            ],
        ),
        (
            one(json!({"serviceAccountName": "a", "volumes": [{"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"path": "t", "expirationSeconds": 5}},
            ]}}]})),
            vec![
                "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 5: may not \
                 specify a duration less than 10 minutes"
                    .to_owned(),
            ],
        ),
        (
            one(json!({"volumes": [{"name": "v", "downwardAPI": {"items": [{"path": "a"}]}}]})),
            vec![
                "spec.volumes[0].downwardAPI.items[0]: Required value: one of fieldRef and resourceFieldRef is required"
                    .to_owned(),
            ],
        ),
        (
            one(json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]})),
            vec![
                "spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when \
                 serviceAccountName is not set"
                    .to_owned(),
            ],
        ),
        (
            json!({
                "hostNetwork": true,
                "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 81}]}],
            }),
            vec![
                "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when \
                 `hostNetwork` is true"
                    .to_owned(),
            ],
        ),
        (
            one(json!({"ephemeralContainers": [{"name": "e", "image": "i"}]})),
            vec!["spec.ephemeralContainers: Forbidden: cannot be set on create".to_owned()],
        ),
        (
            one(json!({"runtimeClassName": "A"})),
            vec![
                "spec.runtimeClassName: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case \
                 alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
                 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                    .to_owned(),
            ],
        ),
        (
            one(json!({"overhead": {"cpu": "-1"}})),
            vec!["spec.overhead[cpu]: Invalid value: \"-1\": must be greater than or equal to 0".to_owned()],
        ),
    ] {
        assert_eq!(errors_of_spec(spec.clone()), errors, "{spec}");
    }
}

#[test]
fn what_is_wrong_with_a_container_is_told_in_the_words_of_kubernetes() {
    for (change, error) in [
        (
            json!({"image": " i"}),
            "image: Invalid value: \" i\": must not have leading or trailing whitespace",
        ),
        (
            json!({"imagePullPolicy": "Maybe"}),
            "imagePullPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            json!({"terminationMessagePolicy": "x"}),
            "terminationMessagePolicy: Unsupported value: \"x\": supported values: \"File\", \"FallbackToLogsOnError\"",
        ),
        (
            json!({"ports": [{}]}),
            "ports[0].containerPort: Required value",
        ),
        (
            json!({"ports": [{"containerPort": 70000}]}),
            "ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"ports": [{"containerPort": 80, "protocol": "ICMP"}]}),
            "ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            json!({"ports": [{"containerPort": 80, "name": "a-name-that-is-too-long"}]}),
            "ports[0].name: Invalid value: \"a-name-that-is-too-long\": must be no more than 15 characters",
        ),
        (
            json!({"ports": [{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a"}]}),
            "ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"ports": [{"containerPort": 80, "hostPort": 8}, {"containerPort": 81, "hostPort": 8}]}),
            "ports[1].hostPort: Duplicate value: \"TCP//8\"",
        ),
        (
            json!({"env": [{"value": "x"}]}),
            "env[0].name: Required value",
        ),
        (
            json!({"env": [{"name": "A=B", "value": "x"}]}),
            "env[0].name: Invalid value: \"A=B\": a valid environment variable name must consist only of printable \
             ASCII characters other than '='",
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {}}]}),
            "env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, \
             `configMapKeyRef` or `secretKeyRef`",
        ),
        (
            json!({"env": [{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
            "env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {
                "secretKeyRef": {"name": "s", "key": "k"}, "configMapKeyRef": {"name": "s", "key": "k"},
            }}]}),
            "env[0].valueFrom: Invalid value: \"\": may not have more than one field specified at a time",
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.foo"}}}]}),
            "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.foo\": error converting fieldPath: field label \
             not supported: spec.foo",
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}]}),
            "env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": supported values: \
             \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \
             \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}}}]}),
            "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 \
             are supported with the cpu resource",
        ),
        (
            json!({"envFrom": [{}]}),
            "envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
        ),
        (
            json!({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}),
            "volumeMounts[0].name: Not found: \"x\"",
        ),
        (
            json!({"volumeMounts": [{"name": "v"}]}),
            "volumeMounts[0].mountPath: Required value",
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/x"}, {"name": "v", "mountPath": "/x"}]}),
            "volumeMounts[1].mountPath: Invalid value: \"/x\": must be unique",
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/x", "subPath": "../y"}]}),
            "volumeMounts.subPath: Invalid value: \"../y\": must not contain '..'",
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/x", "mountPropagation": "Bidirectional"}]}),
            "volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged \
             containers",
        ),
        (
            json!({"livenessProbe": {}}),
            "livenessProbe: Required value: must specify a handler type",
        ),
        (
            json!({"livenessProbe": {"exec": {"command": ["a"]}, "tcpSocket": {"port": 80}}}),
            "livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
        ),
        (
            json!({"livenessProbe": {"exec": {}}}),
            "livenessProbe.exec.command: Required value",
        ),
        (
            json!({"livenessProbe": {"tcpSocket": {"port": 0}}}),
            "livenessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"livenessProbe": {"httpGet": {"port": 80, "scheme": "FTP"}}}),
            "livenessProbe.httpGet.scheme: Unsupported value: \"FTP\": supported values: \"HTTP\", \"HTTPS\"",
        ),
        (
            json!({"livenessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": -1}}),
            "livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            json!({"livenessProbe": {"tcpSocket": {"port": 80}, "successThreshold": 2}}),
            "livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            json!({"readinessProbe": {"tcpSocket": {"port": 80}, "terminationGracePeriodSeconds": 2}}),
            "readinessProbe.terminationGracePeriodSeconds: Invalid value: 2: must not be set for readinessProbes",
        ),
        (
            json!({"lifecycle": {"preStop": {}}}),
            "lifecycle.preStop: Required value: must specify a handler type",
        ),
        (
            json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}}),
            "lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than \
             terminationGracePeriodSeconds (30)",
        ),
        (
            json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}),
            "resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"resources": {"limits": {"memory": "-1"}, "requests": {"memory": "-1"}}}),
            "resources.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
        ),
        (
            json!({"resources": {"limits": {"disk": "1"}, "requests": {"disk": "1"}}}),
            "resources.limits[disk]: Invalid value: \"disk\": must be a standard resource for containers",
        ),
        (
            json!({"resources": {"requests": {"example.com/gpu": "1"}}}),
            "resources.limits: Required value: Limit must be set for non overcommitable resources",
        ),
        (
            json!({"securityContext": {"runAsUser": -1}}),
            "securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ),
        (
            json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}),
            "securityContext: Invalid value: {\"allowPrivilegeEscalation\":false,\"privileged\":true}: cannot set \
             `allowPrivilegeEscalation` to false and `privileged` to true",
        ),
        (
            json!({"securityContext": {"seccompProfile": {"type": "x"}}}),
            "securityContext.seccompProfile.type: Unsupported value: \"x\": supported values: \"Localhost\", \
             \"RuntimeDefault\", \"Unconfined\"",
        ),
    ] {
        let errors = errors_of_container(change.clone());
        assert_eq!(
            errors.first(),
            Some(&format!("spec.containers[0].{error}")),
            "{change}"
        );
    }
}

#[test]
fn a_pod_that_uses_everything_is_right() {
    let errors = errors_of_spec(json!({
        "initContainers": [
            {"name": "init", "image": "i"},
            {"name": "sidecar", "image": "i", "restartPolicy": "Always", "readinessProbe": {"tcpSocket": {"port": "web"}}},
        ],
        "containers": [{
            "name": "c", "image": "registry.local:5000/a/b:1",
            "command": ["a"], "args": ["b"],
            "env": [
                {"name": "A", "value": ""},
                {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
                {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "D", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": true}}},
            ],
            "envFrom": [{"prefix": "P_", "secretRef": {"name": "s"}}],
            "ports": [{"name": "web", "containerPort": 80}],
            "volumeMounts": [{"name": "data", "mountPath": "/data", "subPath": "a/b", "readOnly": true, "recursiveReadOnly": "Enabled"}],
            "resources": {"limits": {"cpu": "1", "memory": "64Mi", "example.com/gpu": "1"}},
            "lifecycle": {"postStart": {"exec": {"command": ["x"]}}, "preStop": {"httpGet": {"port": "web"}}},
            "livenessProbe": {"grpc": {"port": 9000}, "terminationGracePeriodSeconds": 5},
            "startupProbe": {"exec": {"command": ["wasm:probe"]}},
            "securityContext": {"runAsUser": 1, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}},
            "stdin": true, "tty": true,
        }],
        "volumes": [
            {"name": "data", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "git", "csi": {"driver": "git.wherry.dev", "volumeAttributes": {"a": "b"}}},
            {"name": "down", "downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}, "mode": 256},
            ]}},
        ],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
        ]}}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a.b"]}],
        "imagePullSecrets": [{"name": "s"}],
        "runtimeClassName": "wasm",
        "hostname": "h", "subdomain": "s",
        "dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.1"], "searches": ["a.b."], "options": [{"name": "ndots", "value": "2"}]},
        "securityContext": {"fsGroup": 1, "supplementalGroups": [1], "sysctls": [{"name": "net.ipv4.ip_forward", "value": "1"}]},
        "os": {"name": "linux"},
    }));
    assert_eq!(errors, [""; 0]);
}

fn updated(old: &Value, change: Value) -> Vec<String> {
    let mut new = merge(old.clone(), &change);
    pods().strategy.default(&mut new);
    pods().strategy.prepare_update("", &mut new, old);
    texts(&pods().validate_update("", &new, old))
}

#[test]
fn only_a_few_fields_of_a_pod_may_change() {
    let old = created(bare());
    let container = |change: Value| json!({"spec": {"containers": [merge(old["spec"]["containers"][0].clone(), &change)]}});
    assert_eq!(updated(&old, json!({})), [""; 0]);
    assert_eq!(
        updated(&old, container(json!({"image": "nginx:2"}))),
        [""; 0]
    );
    assert_eq!(
        updated(&old, json!({"spec": {"activeDeadlineSeconds": 5}})),
        [""; 0]
    );
    assert_eq!(
        updated(&old, json!({"metadata": {"labels": {"a": "b"}}})),
        [""; 0]
    );
    let mut more = old["spec"]["tolerations"].as_array().expect("list").clone();
    more.push(json!({"key": "a", "operator": "Exists"}));
    assert_eq!(
        updated(&old, json!({"spec": {"tolerations": more}})),
        [""; 0]
    );

    for (change, error) in [
        (
            json!({"spec": {"hostNetwork": true}}),
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,\
             `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
             tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously \
             negative)\n  core.PodSpec{\n+ \thostNetwork: true,\n  }\n",
        ),
        (
            json!({"spec": {"containers": [old["spec"]["containers"][0], {"name": "d", "image": "i"}]}}),
            "spec.containers: Forbidden: pod updates may not add or remove containers",
        ),
        (
            container(json!({"image": ""})),
            "spec.containers[0].image: Required value",
        ),
        (
            json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
            "metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not add mirror pod annotation",
        ),
        (
            json!({"metadata": {"name": "other"}}),
            "metadata.name: Invalid value: \"other\": field is immutable",
        ),
    ] {
        assert_eq!(updated(&old, change.clone()), [error], "{change}");
    }
    let errors = updated(&old, container(json!({"command": ["x"]})));
    assert!(
        errors[0].starts_with("spec: Forbidden: pod updates may not change fields other than"),
        "{errors:?}"
    );
    assert!(
        errors[0].ends_with("{\n+ \tcontainers[0].command: [\"x\"],\n  }\n"),
        "{errors:?}"
    );

    let old = created(merge(
        bare(),
        &json!({"spec": {"activeDeadlineSeconds": 5, "tolerations": [{"key": "a", "operator": "Exists"}]}}),
    ));
    assert_eq!(
        updated(&old, json!({"spec": {"activeDeadlineSeconds": 6}})),
        [
            "spec.activeDeadlineSeconds: Invalid value: 6: must be less than or equal to previous value"
        ]
    );
    assert_eq!(
        updated(&old, json!({"spec": {"tolerations": []}})),
        [
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
        ]
    );
}

#[test]
fn each_path_changes_only_its_part() {
    let strategy = pods().strategy;
    let old = created(bare());
    let mut new = merge(
        old.clone(),
        &json!({"spec": {"nodeName": "n"}, "status": {"phase": "Running"}, "metadata": {"labels": {"a": "b"}}}),
    );
    strategy.prepare_update("status", &mut new, &old);
    assert_eq!(new["spec"], old["spec"]);
    assert_eq!(new["status"]["phase"], "Running");

    let mut new = merge(old.clone(), &json!({"status": {"phase": "Running"}}));
    strategy.prepare_update("", &mut new, &old);
    assert_eq!(new["status"], old["status"]);

    let mut new = merge(
        old.clone(),
        &json!({"spec": {"hostname": "x", "ephemeralContainers": [{"name": "debug", "image": "i"}]}}),
    );
    strategy.default(&mut new);
    strategy.prepare_update("ephemeralcontainers", &mut new, &old);
    assert_eq!(new["spec"].get("hostname"), None);
    assert_eq!(new["spec"]["ephemeralContainers"][0]["name"], "debug");
    assert_eq!(
        texts(&strategy.validate_update("ephemeralcontainers", &new, &old)),
        [""; 0]
    );
    let mut without = new.clone();
    without["spec"]["ephemeralContainers"] = json!([]);
    assert_eq!(
        texts(&strategy.validate_update("ephemeralcontainers", &without, &new)),
        [
            "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"debug\" may not be removed\n"
        ]
    );
}

#[test]
fn only_a_pod_that_may_be_running_gets_a_grace_period() {
    let grace = pods().deletion_grace_seconds.expect("pods have one");
    for (pod, seconds) in [
        (json!({"spec": {"terminationGracePeriodSeconds": 30}}), 0),
        (
            json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}}),
            30,
        ),
        (
            json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": -1}}),
            1,
        ),
        (
            json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Failed"}}),
            0,
        ),
    ] {
        assert_eq!(grace(&pod), seconds, "{pod}");
    }
}

#[test]
fn the_status_column_is_that_of_kubectl() {
    let now = "2024-05-01T12:00:00Z".parse().expect("time");
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let with_init =
        json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
    let sidecar = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
    let running = json!({"running": {"startedAt": "2024-05-01T11:00:00Z"}});
    for (claim, spec, status, cells) in [
        (
            "pending",
            &spec,
            json!({"phase": "Pending"}),
            ["0/2", "Pending", "0"],
        ),
        (
            "running and ready",
            &spec,
            json!({"phase": "Running", "containerStatuses": [
                {"name": "a", "ready": true, "state": running}, {"name": "b", "ready": false, "state": running},
            ]}),
            ["1/2", "Running", "0"],
        ),
        (
            "back-off, with the time since the last end",
            &spec,
            json!({"phase": "Running", "containerStatuses": [{
                "name": "a", "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2024-05-01T11:55:00Z"}},
            }]}),
            ["0/2", "CrashLoopBackOff", "3 (5m ago)"],
        ),
        (
            "exit code without a reason",
            &spec,
            json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 7}}}]}),
            ["0/2", "ExitCode:7", "0"],
        ),
        (
            "signal",
            &spec,
            json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
            ["0/2", "Signal:9", "0"],
        ),
        (
            "one completed, one running, pod not ready",
            &spec,
            json!({"phase": "Running", "containerStatuses": [
                {"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
                {"name": "b", "ready": true, "state": running},
            ]}),
            ["1/2", "NotReady", "0"],
        ),
        (
            "first init container runs",
            &with_init,
            json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "state": running}, {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}},
            ]}),
            ["0/1", "Init:0/2", "0"],
        ),
        (
            "second init container runs",
            &with_init,
            json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "state": {"terminated": {"exitCode": 0}}},
                {"name": "j", "restartCount": 2, "state": running},
            ]}),
            ["0/1", "Init:1/2", "2"],
        ),
        (
            "init container failed",
            &with_init,
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}]}),
            ["0/1", "Init:Error", "0"],
        ),
        (
            "init container in back-off",
            &with_init,
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            ["0/1", "Init:CrashLoopBackOff", "0"],
        ),
        (
            "side car counts among the containers",
            &sidecar,
            json!({
                "phase": "Running",
                "conditions": [{"type": "Initialized", "status": "True"}],
                "initContainerStatuses": [{"name": "s", "ready": true, "started": true, "restartCount": 1, "state": running}],
                "containerStatuses": [{"name": "a", "ready": true, "state": running}],
            }),
            ["2/2", "Running", "1"],
        ),
        (
            "evicted",
            &spec,
            json!({"phase": "Failed", "reason": "Evicted"}),
            ["0/2", "Evicted", "0"],
        ),
        (
            "scheduling gated",
            &spec,
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            ["0/2", "SchedulingGated", "0"],
        ),
    ] {
        let pod = json!({
            "metadata": {"name": "p", "creationTimestamp": "2024-05-01T10:00:00Z"}, "spec": spec, "status": status,
        });
        let row = pods().strategy.row(&pod, now);
        let shown: Vec<&str> = row[1..4].iter().filter_map(Value::as_str).collect();
        assert_eq!(shown, cells, "{claim}");
        assert_eq!(row[4], "120m", "{claim}");
    }

    let mut pod = json!({
        "metadata": {"name": "p", "deletionTimestamp": "2024-05-01T12:00:00Z"},
        "spec": {"nodeName": "n", "containers": [], "readinessGates": [{"conditionType": "a"}, {"conditionType": "b"}]},
        "status": {
            "phase": "Running", "podIPs": [{"ip": "10.1.2.3"}],
            "conditions": [{"type": "a", "status": "True"}],
        },
    });
    let row = pods().strategy.row(&pod, now);
    assert_eq!(row[2], "Terminating");
    assert_eq!(
        row[5..],
        [json!("10.1.2.3"), json!("n"), json!("<none>"), json!("1/2")]
    );
    pod["status"]["reason"] = "NodeLost".into();
    assert_eq!(pods().strategy.row(&pod, now)[2], "Unknown");
}

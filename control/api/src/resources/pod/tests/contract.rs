//! Fields that contradict each other, and what may change by which path.

use serde_json::{Value, json};

use super::{bare, created, errors_of_container, errors_of_spec, merge, pods, texts};

fn errors_of_pod(change: &Value) -> Vec<String> {
    errors_of_spec(merge(
        json!({"containers": [{"name": "c", "image": "i"}]}),
        change,
    ))
}

fn errors_of_volume(source: Value) -> Vec<String> {
    errors_of_pod(&json!({"volumes": [merge(json!({"name": "v"}), &source)]}))
}

#[test]
fn what_contradicts_itself_in_a_pod_is_told() {
    for (change, error) in [
        (
            json!({"hostUsers": false, "hostNetwork": true}),
            "spec.hostNetwork: Forbidden: when `pod.Spec.HostUsers` is false",
        ),
        (
            json!({"hostUsers": false, "hostPID": true}),
            "spec.HostPID: Forbidden: when `pod.Spec.HostUsers` is false",
        ),
        (
            json!({"hostUsers": false, "hostIPC": true}),
            "spec.HostIPC: Forbidden: when `pod.Spec.HostUsers` is false",
        ),
        (
            json!({"hostNetwork": true, "securityContext": {"sysctls": [{"name": "net/core/somaxconn", "value": "1"}]}}),
            "spec.securityContext.sysctls[0].name: Invalid value: \"net/core/somaxconn\": may not be specified when \
             'hostNetwork' is true",
        ),
        (
            json!({"hostIPC": true, "securityContext": {"sysctls": [{"name": "kernel.shmmax", "value": "1"}]}}),
            "spec.securityContext.sysctls[0].name: Invalid value: \"kernel.shmmax\": may not be specified when \
             'hostIPC' is true",
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "Kernel.x", "value": "1"}]}}),
            "spec.securityContext.sysctls[0].name: Invalid value: \"Kernel.x\": must have at most 253 characters and \
             match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
        ),
        (
            json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}}),
            "spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is \
             Localhost",
        ),
        (
            json!({"securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": " x"}}}),
            "spec.securityContext.appArmorProfile.localhostProfile: Invalid value: \" x\": must not be padded with \
             whitespace",
        ),
        (
            json!({"securityContext": {"appArmorProfile": {"type": "Unconfined", "localhostProfile": "x"}}}),
            "spec.securityContext.appArmorProfile.localhostProfile: Invalid value: \"x\": can only be set when \
             AppArmor type is Localhost",
        ),
        (
            json!({"securityContext": {"supplementalGroupsPolicy": "Some"}}),
            "spec.securityContext.supplementalGroupsPolicy: Unsupported value: \"Some\": supported values: \"Merge\", \
             \"Strict\"",
        ),
        (
            json!({"os": {"name": "linux"}, "securityContext": {"windowsOptions": {"runAsUserName": "a"}}}),
            "spec.securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod",
        ),
        (
            json!({"os": {"name": "windows"}, "securityContext": {"runAsUser": 1}}),
            "spec.securityContext.runAsUser: Forbidden: cannot be set for a windows pod",
        ),
        (
            json!({"os": {"name": "plan9"}}),
            "spec.os.name: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\"",
        ),
        (
            json!({"overhead": {"disk": "1"}}),
            "spec.overhead[disk]: Invalid value: \"disk\": must be a standard resource for containers",
        ),
        (
            json!({"resources": {"limits": {"disk": "1"}}}),
            "spec.resources.limits[disk]: Unsupported value: \"disk\": supported values: \"cpu\", \"memory\"",
        ),
        (
            json!({
                "resources": {"requests": {"cpu": "1"}},
                "containers": [
                    {"name": "a", "image": "i", "resources": {"requests": {"cpu": "600m"}}},
                    {"name": "b", "image": "i", "resources": {"requests": {"cpu": "600m"}}},
                ],
            }),
            "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container \
             requests of 1200m",
        ),
        (
            json!({"resourceClaims": [{"name": "a"}]}),
            "spec.resourceClaims[0]: Invalid value: {\"name\":\"a\"}: must specify one of: `resourceClaimName`, \
             `resourceClaimTemplateName`",
        ),
        (
            json!({"topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"},
                {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"},
            ]}),
            "spec.topologySpreadConstraints[0].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{zone, \
             DoNotSchedule}\"",
        ),
        (
            json!({"topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 2},
            ]}),
            "spec.topologySpreadConstraints[0].minDomains: Invalid value: 2: can only use minDomains if \
             whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
        ),
        (
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": [{"key": "spec.x", "operator": "In", "values": ["a"]}]}],
            }}}}),
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]\
             .matchFields[0].key: Invalid value: \"spec.x\": not a valid field selector key",
        ),
        (
            json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "zone", "labelSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
            ]}}}),
            "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector\
             .matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
        ),
        (
            json!({"initContainers": [{"name": "x", "image": "i", "restartPolicy": "Never"}]}),
            "spec.initContainers[0].restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
    ] {
        assert_eq!(
            errors_of_pod(&change).first().map(String::as_str),
            Some(error),
            "{change}"
        );
    }
}

#[test]
fn what_contradicts_itself_in_a_container_is_told() {
    for (change, error) in [
        (
            json!({"securityContext": {"procMount": "Unmasked"}}),
            "securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`",
        ),
        (
            json!({"lifecycle": {"stopSignal": "SIGUSR1"}}),
            "lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`",
        ),
        (
            json!({"resources": {"limits": {"hugepages-2Mi": "2Mi"}}}),
            "resources: Forbidden: HugePages require cpu or memory",
        ),
        (
            json!({"resources": {"limits": {"hugepages-2Mi": "3Mi", "cpu": "1"}}}),
            "resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of \
             hugepages-2Mi",
        ),
        (
            json!({"resources": {"limits": {"hugepages-2Mi": "4Mi", "cpu": "1"}, "requests": {"hugepages-2Mi": "2Mi"}}}),
            "resources.requests: Invalid value: \"2Mi\": must be equal to hugepages-2Mi limit of 4Mi",
        ),
        (
            json!({"resources": {"claims": [{"name": "gpu"}]}}),
            "resources.claims[0]: Not found: \"gpu\": must be one of the names in pod.spec.resourceClaims which is empty",
        ),
        (
            json!({"resizePolicy": [{"resourceName": "disk", "restartPolicy": "NotRequired"}]}),
            "resizePolicy: Unsupported value: \"disk\": supported values: \"cpu\", \"memory\"",
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/x", "recursiveReadOnly": "Enabled"}]}),
            "volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
        ),
        (
            json!({"volumeMounts": [{
                "name": "v", "mountPath": "/x", "readOnly": true, "recursiveReadOnly": "Enabled",
                "mountPropagation": "HostToContainer",
            }]}),
            "volumeMounts.recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None or not \
             specified",
        ),
        (
            json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]}),
            "volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of PersistentVolumeClaim or \
             Ephemeral for block mode",
        ),
    ] {
        let errors = errors_of_container(change.clone());
        let first = errors.first();
        assert_eq!(
            first,
            Some(&format!("spec.containers[0].{error}")),
            "{change}"
        );
    }
}

#[test]
fn what_is_wrong_with_a_volume_is_told() {
    for (source, error) in [
        (json!({"csi": {"driver": ""}}), "csi.driver: Required value"),
        (
            json!({"csi": {"driver": "git.wherry.dev", "nodePublishSecretRef": {}}}),
            "csi.nodePublishSecretRef.name: Required value",
        ),
        (
            json!({"image": {"reference": ""}}),
            "image.reference: Required value",
        ),
        (
            json!({"image": {"reference": "x", "pullPolicy": "Now"}}),
            "image.pullPolicy: Unsupported value: \"Now\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            json!({"ephemeral": {}}),
            "ephemeral.volumeClaimTemplate: Required value",
        ),
        (
            json!({"ephemeral": {"volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}}),
            "ephemeral.volumeClaimTemplate.spec.accessModes: Required value: at least 1 access mode is required",
        ),
        (
            json!({"iscsi": {"targetPortal": "1.2.3.4", "iqn": "x", "lun": 0}}),
            "iscsi.iqn: Invalid value: \"x\": must be valid format starting with iqn, eui, or naa",
        ),
        (
            json!({"nfs": {"server": "s", "path": "x"}}),
            "nfs.path: Invalid value: \"x\": must be an absolute path",
        ),
        (
            json!({"projected": {"sources": [{"configMap": {"name": "a"}, "secret": {"name": "b"}}]}}),
            "projected.sources[0]: Forbidden: may not specify more than 1 volume type per source",
        ),
        (
            json!({"projected": {"sources": [
                {"configMap": {"name": "a", "items": [{"key": "k", "path": "p"}]}},
                {"secret": {"name": "b", "items": [{"key": "k", "path": "p"}]}},
            ]}}),
            "projected: Invalid value: \"b\": conflicting duplicate paths",
        ),
        (
            json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "p"}}]}}),
            "projected.sources[0].clusterTrustBundle: Required value: either name or signerName must be specified",
        ),
        (
            json!({"flexVolume": {"driver": "a/b", "options": {"kubernetes.io/x": "y"}}}),
            "flexVolume.options[kubernetes.io/x]: Invalid value: \"kubernetes.io/x\": kubernetes.io and k8s.io \
             namespaces are reserved",
        ),
    ] {
        let expected = format!("spec.volumes[0].{error}");
        assert_eq!(errors_of_volume(source.clone()), [expected], "{source}");
    }
    let right = json!({"iscsi": {"targetPortal": "1.2.3.4", "iqn": "iqn.2016-04.com.example:disk", "lun": 0}});
    assert_eq!(errors_of_volume(right), [""; 0]);
}

#[test]
fn an_image_volume_may_have_sub_paths() {
    let spec = json!({
        "containers": [{"name": "c", "image": "i", "volumeMounts": [
            {"name": "v", "mountPath": "/x", "subPath": "a"},
        ]}],
        "volumes": [{"name": "v", "image": {"reference": "x"}}],
    });
    // Since Kubernetes 1.33.
    assert_eq!(errors_of_spec(spec), [""; 0]);
}

fn sized(resources: Value) -> Value {
    let mut pod = bare();
    pod["spec"]["containers"][0]["resources"] = resources;
    created(pod)
}

fn resized(old: &Value, change: Value) -> (Value, Vec<String>) {
    let mut new = merge(old.clone(), &change);
    pods().strategy.default(&mut new);
    pods().strategy.prepare_update("resize", &mut new, old);
    let errors = texts(&pods().validate_update("resize", &new, old));
    (new, errors)
}

#[test]
fn a_resize_changes_cpu_and_memory_and_nothing_else() {
    let old = sized(
        json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}}),
    );
    let container = |resources: Value| json!({"spec": {"priority": 7, "containers": [{"name": "c", "image": "other", "resources": resources}]}});
    let (new, errors) = resized(
        &old,
        container(
            json!({"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"cpu": "2", "memory": "256Mi"}}),
        ),
    );
    assert_eq!(errors, [""; 0]);
    assert_eq!(
        new["spec"]["containers"][0]["image"], "nginx",
        "only resources are taken"
    );
    assert_eq!(new["spec"]["priority"], 0);
    assert_eq!(
        new["spec"]["containers"][0]["resources"]["limits"]["cpu"],
        "2"
    );
    for (resources, error) in [
        (
            json!({"requests": {"cpu": "1", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}}),
            "spec: Invalid value: \"Guaranteed\": Pod QOS Class may not change as a result of resizing",
        ),
        (
            json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "1"}}),
            "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed",
        ),
        (
            json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "100Mi"}}),
            "spec.containers[0].resources.limits[memory]: Forbidden: memory limits cannot be decreased unless \
             resizePolicy is RestartContainer",
        ),
        (
            json!({"requests": {"cpu": "100m", "memory": "64Mi", "ephemeral-storage": "1Gi"}, "limits": {"cpu": "1", "memory": "128Mi"}}),
            "spec: Forbidden: only cpu and memory resources are mutable",
        ),
        (
            json!({"requests": {"cpu": "3", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}}),
            "spec.containers[0].resources.requests: Invalid value: \"3\": must be less than or equal to cpu limit of 1",
        ),
    ] {
        let (_, errors) = resized(&old, container(resources.clone()));
        assert_eq!(errors, [error], "{resources}");
    }
    let other = json!({"spec": {"containers": [{"name": "d", "image": "i"}]}});
    assert_eq!(
        resized(&old, other).1.last().map(String::as_str),
        Some(
            "spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize"
        )
    );
}

#[test]
fn a_container_that_had_no_limit_may_get_one() {
    let old = sized(json!({"requests": {"cpu": "100m"}}));
    let change = json!({"spec": {"containers": [{"name": "c", "image": "nginx", "resources": {
        "requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"},
    }}]}});
    assert_eq!(resized(&old, change).1, [""; 0]);
}

#[test]
fn a_gated_pod_may_be_told_more_narrowly_where_to_run() {
    let mut pod = bare();
    pod["spec"]["schedulingGates"] = json!([{"name": "a"}]);
    pod["spec"]["nodeSelector"] = json!({"x": "1"});
    let old = created(pod);
    let update = |change: Value| {
        let mut new = merge(old.clone(), &change);
        pods().strategy.default(&mut new);
        pods().strategy.prepare_update("", &mut new, &old);
        texts(&pods().validate_update("", &new, &old))
    };
    let term = json!({"matchExpressions": [{"key": "k", "operator": "Exists"}]});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
    assert_eq!(
        update(json!({"spec": {"nodeSelector": {"y": "2"}}})),
        [""; 0]
    );
    assert_eq!(update(json!({"spec": {"affinity": affinity}})), [""; 0]);
    assert_eq!(
        update(json!({"spec": {"nodeSelector": {"x": "2"}}})),
        [
            "spec.nodeSelector: Invalid value: {\"x\":\"2\"}: only additions are allowed (no mutations or deletions)"
        ]
    );
}

#[test]
fn a_status_does_not_take_an_end_back() {
    let mut old = created(merge(bare(), &json!({"spec": {"restartPolicy": "Never"}})));
    old["status"]["containerStatuses"] =
        json!([{"name": "c", "state": {"terminated": {"exitCode": 1}}}]);
    let mut new = old.clone();
    new["status"]["containerStatuses"] = json!([{"name": "c", "state": {"running": {}}}]);
    assert_eq!(
        texts(&pods().validate_update("status", &new, &old)),
        [
            "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"
        ]
    );
}

#[test]
fn limits_of_the_whole_pod_decide_its_class_and_its_requests() {
    let pod = created(merge(
        bare(),
        &json!({"spec": {"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}}),
    ));
    assert_eq!(
        pod["spec"]["resources"]["requests"],
        json!({"cpu": "1", "memory": "1Gi"})
    );
    assert_eq!(pod["status"]["qosClass"], "Guaranteed");
}

#[test]
fn annotations_of_old_agree_with_the_fields() {
    let mut pod = bare();
    pod["metadata"]["annotations"] = json!({
        "container.apparmor.security.beta.kubernetes.io/c": "localhost/x",
        "container.apparmor.security.beta.kubernetes.io/d": "unconfined",
    });
    pod["spec"]["containers"][0]["securityContext"] =
        json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "y"}});
    assert_eq!(
        texts(&pods().validate_create(&created(pod))),
        [
            "metadata.annotations[container.apparmor.security.beta.kubernetes.io/d]: Invalid value: \"d\": container \
             not found",
            "spec.containers[0].securityContext.appArmorProfile.localhostProfile: Forbidden: apparmor profile in \
             annotation and field must match",
        ]
    );
}

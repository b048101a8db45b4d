//! Rules and rows of volumes, their claims and their classes.

use serde_json::json;

use super::{cells, create_errors, created, row, update_errors};

fn volume(spec: serde_json::Value) -> serde_json::Value {
    let mut volume = json!({"spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "nfs": {"server": "s", "path": "/"},
    }});
    for (field, value) in spec.as_object().expect("fields") {
        volume["spec"][field] = value.clone();
    }
    volume
}

fn claim(spec: serde_json::Value) -> serde_json::Value {
    let mut claim = json!({"spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "slow",
    }});
    for (field, value) in spec.as_object().expect("fields") {
        claim["spec"][field] = value.clone();
    }
    claim
}

#[test]
fn what_is_wrong_with_a_volume_or_a_claim_is_told_in_the_words_of_kubernetes() {
    for (plural, object, errors) in [
        ("persistentvolumes", volume(json!({})), vec![]),
        (
            "persistentvolumes",
            json!({"spec": {}}),
            vec![
                "spec.accessModes: Required value",
                "spec.capacity: Required value",
                "spec: Required value: must specify a volume type",
            ],
        ),
        (
            "persistentvolumes",
            volume(json!({"accessModes": ["ReadWriteOncePod", "x"], "hostPath": {"path": "/x"}})),
            vec![
                "spec.accessModes: Unsupported value: \"x\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \
                 \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
                "spec.nfs: Forbidden: may not specify more than 1 volume type",
            ],
        ),
        (
            "persistentvolumes",
            volume(json!({"capacity": {"storage": "0"}, "persistentVolumeReclaimPolicy": "Keep"})),
            vec![
                "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
                "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Keep\": supported values: \"Delete\", \
                 \"Recycle\", \"Retain\"",
            ],
        ),
        (
            "persistentvolumes",
            json!({"spec": {
                "capacity": {"storage": "1"}, "accessModes": ["ReadWriteOnce"], "local": {"path": "/a/../b"},
            }}),
            vec![
                "spec.local.path: Invalid value: \"/a/../b\": must not contain '..'",
                "metadata.annotations: Required value: Local volume requires node affinity",
            ],
        ),
        (
            "persistentvolumes",
            json!({"spec": {
                "capacity": {"storage": "1"}, "accessModes": ["ReadWriteOnce"], "csi": {"driver": "d"},
            }}),
            vec!["spec.csi.volumeHandle: Required value"],
        ),
        ("persistentvolumeclaims", claim(json!({})), vec![]),
        (
            "persistentvolumeclaims",
            json!({"spec": {}}),
            vec![
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ],
        ),
        (
            "persistentvolumeclaims",
            claim(
                json!({"volumeMode": "Tape", "dataSource": {"kind": "VolumeSnapshot", "name": "a"}}),
            ),
            vec![
                "spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\"",
                "spec.dataSource: Invalid value: \"VolumeSnapshot\": must be 'PersistentVolumeClaim' when referencing \
                 the default apiGroup",
                "spec.dataSourceRef: Invalid value: \"VolumeSnapshot\": must be 'PersistentVolumeClaim' when \
                 referencing the default apiGroup",
            ],
        ),
        (
            "storageclasses",
            json!({"reclaimPolicy": "Recycle"}),
            vec![
                "provisioner: Required value",
                "reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"",
            ],
        ),
        (
            "volumeattachments",
            json!({"spec": {"attacher": "a", "nodeName": "n", "source": {}}}),
            vec![
                "spec.source: Required value: must specify one of inlineVolumeSpec and persistentVolumeName",
            ],
        ),
        (
            "csinodes",
            json!({"spec": {"drivers": [{"name": "a", "nodeID": "n"}, {"name": "a", "nodeID": ""}]}}),
            vec![
                "spec.drivers[1].nodeID: Required value",
                "spec.drivers[1].name: Duplicate value: \"a\"",
            ],
        ),
    ] {
        assert_eq!(create_errors(plural, object), errors, "{plural}");
    }
}

#[test]
fn what_a_volume_or_claim_is_does_not_change() {
    for (plural, old, new, errors) in [
        (
            "persistentvolumes",
            volume(json!({})),
            volume(json!({"nfs": {"server": "other", "path": "/"}})),
            vec![
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
            ],
        ),
        (
            "persistentvolumes",
            volume(json!({})),
            volume(
                json!({"claimRef": {"name": "a", "namespace": "b"}, "capacity": {"storage": "2Gi"}}),
            ),
            vec![],
        ),
        (
            "persistentvolumeclaims",
            claim(json!({})),
            claim(json!({"volumeName": "v"})),
            vec![],
        ),
        (
            "persistentvolumeclaims",
            claim(json!({"volumeName": "v"})),
            claim(json!({"volumeName": "w"})),
            vec![
                "spec: Forbidden: spec is immutable after creation except resources.requests and \
                 volumeAttributesClassName for bound claims",
            ],
        ),
        (
            "storageclasses",
            json!({"provisioner": "a"}),
            json!({"provisioner": "b"}),
            vec!["provisioner: Forbidden: updates to provisioner are forbidden."],
        ),
    ] {
        assert_eq!(update_errors(plural, old, new), errors, "{plural}");
    }
}

#[test]
fn rows_show_what_kubectl_shows_of_volumes() {
    let resource = row("persistentvolumes");
    let made = created(resource, volume(json!({"storageClassName": "slow"})));
    assert_eq!(
        json!(cells("persistentvolumes", made)),
        json!([
            "x",
            "1Gi",
            "RWO",
            "Retain",
            "Pending",
            "",
            "slow",
            "<unset>",
            "",
            "<unknown>",
            "Filesystem"
        ])
    );
    let bound = json!({
        "metadata": {"name": "x"}, "spec": {"volumeName": "v", "volumeMode": "Block"},
        "status": {"phase": "Bound", "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteMany", "ReadOnlyMany"]},
    });
    assert_eq!(
        json!(cells("persistentvolumeclaims", bound)),
        json!([
            "x",
            "Bound",
            "v",
            "2Gi",
            "ROX,RWX",
            "",
            "<unset>",
            "<unknown>",
            "Block"
        ])
    );
    let class = json!({
        "metadata": {"name": "x", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "p",
    });
    let class = created(row("storageclasses"), class);
    assert_eq!(
        json!(cells("storageclasses", class)),
        json!([
            "x (default)",
            "p",
            "Delete",
            "Immediate",
            false,
            "<unknown>"
        ])
    );
}

use std::sync::Arc;

use super::*;

fn class(parameters: Value) -> StorageClass {
    let class =
        json!({ "metadata": { "name": "c" }, "provisioner": "p", "parameters": parameters });
    serde_json::from_value(class).unwrap()
}

fn claim() -> Key {
    Key::new("shop", "data")
}

fn secret(namespace: &str, name: &str) -> Option<SecretName> {
    Some(SecretName {
        namespace: namespace.into(),
        name: name.into(),
    })
}

#[test]
fn parameters_of_kubernetes_are_honoured_or_refused_and_the_rest_is_the_plugins() {
    let read = |parameters| Parameters::read(&class(parameters), &claim(), "pvc-u");
    assert_eq!(read(json!(null)), Ok(Parameters::default()));
    let full = read(json!({
        "directory": "/d",
        "csi.storage.k8s.io/fstype": "xfs",
        "csi.storage.k8s.io/provisioner-secret-name": "${pvc.name}-${pv.name}",
        "csi.storage.k8s.io/provisioner-secret-namespace": "${pvc.namespace}",
        "csi.storage.k8s.io/node-publish-secret-name": "chap",
        "csi.storage.k8s.io/node-publish-secret-namespace": "storage",
    }))
    .unwrap();
    assert_eq!(
        full.of_plugin,
        BTreeMap::from([("directory".into(), "/d".into())])
    );
    assert_eq!(full.fs_type.as_deref(), Some("xfs"));
    assert_eq!(full.provisioner_secret, secret("shop", "data-pvc-u"));
    assert_eq!(full.publish_secret, secret("storage", "chap"));
    for (key, value, why) in [
        (
            "csi.storage.k8s.io/colour",
            "red",
            "found unknown parameter key",
        ),
        (
            "csi.storage.k8s.io/node-stage-secret-name",
            "s",
            "there are no others",
        ),
        (
            "csi.storage.k8s.io/provisioner-secret-name",
            "s",
            "both must be specified",
        ),
        (
            "csi.storage.k8s.io/provisioner-secret-name",
            "${pvc.annotations['a']}",
            "only ${pv.name}",
        ),
        ("csi.storage.k8s.io/provisioner-secret-name", "", "only"),
    ] {
        let refused = read(json!({ key: value })).expect_err(key);
        assert!(refused.contains(why), "{key}: {refused}");
    }
}

fn node(name: &str, ready: &str, zone: &str) -> Arc<NodeView> {
    Arc::new(NodeView {
        key: Key::new("", name),
        labels: BTreeMap::from([("zone".to_owned(), zone.to_owned())]),
        taints: Vec::new(),
        is_unschedulable: name == "cordoned",
        ready: ready.into(),
    })
}

fn nodes() -> Vec<Arc<NodeView>> {
    [
        ("a", "True", "1"),
        ("b", "True", "1"),
        ("c", "True", "2"),
        ("cordoned", "True", "1"),
        ("lost", "Unknown", "1"),
    ]
    .map(|(name, ready, zone)| node(name, ready, zone))
    .to_vec()
}

#[test]
fn the_chosen_node_is_asked_or_one_that_can() {
    let ask = |selected: &str, class: &StorageClass, installed: Option<&[&str]>, failures| {
        let installed =
            installed.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        candidates(
            &nodes(),
            selected,
            class,
            installed.as_ref(),
            "pvc-u",
            failures,
        )
    };
    let any = class(json!({}));
    assert_eq!(ask("lost", &any, None, 7), ["lost"]);
    let first = ask("", &any, None, 0);
    let mut sorted = first.clone();
    sorted.sort();
    assert_eq!(sorted, ["a", "b", "c"]);
    // The same one again, and another when it has failed for long.
    for failures in 0..FAILURES_OF_A_NODE_MAX {
        assert_eq!(ask("", &any, None, failures), first);
    }
    let next = ask("", &any, None, FAILURES_OF_A_NODE_MAX);
    assert_eq!(next[0], first[1]);
    assert_eq!(ask("", &any, Some(&["c", "lost"]), 3), ["c"]);
    assert_eq!(ask("", &any, Some(&[]), 3), [""; 0]);
    let mut zoned = any.clone();
    zoned.allowed_topologies = serde_json::from_value(json!([
        { "matchLabelExpressions": [{ "key": "zone", "values": ["2"] }] }
    ]))
    .unwrap();
    assert_eq!(ask("", &zoned, None, 0), ["c"]);

    assert_eq!(deleters(&nodes(), "c", false), ["c", "a", "b", "cordoned"]);
    assert_eq!(deleters(&nodes(), "lost", true), ["lost"]);
    assert_eq!(deleters(&nodes(), "gone", true), [""; 0]);
    assert_eq!(deleters(&nodes(), "gone", false)[0], "a");
}

#[test]
fn a_volume_is_what_the_plugin_says_of_it() {
    const GIB: u64 = 1 << 30;
    let created = CreatedVolume {
        handle: "disk-7".into(),
        bytes: GIB,
        attributes: BTreeMap::from([("file".into(), "/f".into())]),
        is_of_this_node: true,
    };
    assert_eq!(check(&created, i128::from(GIB)), Ok(()));
    for (handle, bytes) in [
        ("x".repeat(10 << 20), GIB),
        (String::new(), GIB),
        ("a\nb".into(), GIB),
        ("fine".into(), GIB - 1),
        ("fine".into(), u64::MAX),
    ] {
        let bad = CreatedVolume {
            handle,
            bytes,
            ..created.clone()
        };
        let refused = check(&bad, i128::from(GIB)).unwrap_err();
        assert!(refused.len() < 200, "{refused}");
    }
    assert_eq!(capacity(&created, "1024Mi", i128::from(GIB)), "1024Mi");
    assert_eq!(capacity(&created, "1G", 1_000_000_000), "1Gi");

    let parameters = Parameters {
        fs_type: Some("xfs".into()),
        provisioner_secret: secret("s", "make"),
        publish_secret: secret("s", "mount"),
        ..Parameters::default()
    };
    assert_eq!(
        source("loop.wherry.dev", &created, "host-a", &parameters),
        json!({
            "csi": {
                "driver": "loop.wherry.dev", "volumeHandle": "disk-7", "fsType": "xfs",
                "volumeAttributes": { "file": "/f" },
                "nodePublishSecretRef": { "name": "mount", "namespace": "s" },
            },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": ["host-a"] },
            ] }] } },
        })
    );
    let anywhere = CreatedVolume {
        is_of_this_node: false,
        ..created
    };
    let plain = source("x", &anywhere, "host-a", &Parameters::default());
    assert!(plain["nodeAffinity"].is_null() && plain["csi"]["fsType"].is_null());
    assert_eq!(
        annotations("loop.wherry.dev", "loop", "a", &parameters),
        json!({
            "pv.kubernetes.io/provisioned-by": "loop.wherry.dev",
            "wherry.dev/plugin": "loop",
            "wherry.dev/node": "a",
            "volume.kubernetes.io/provisioner-deletion-secret-name": "make",
            "volume.kubernetes.io/provisioner-deletion-secret-namespace": "s",
        })
    );
}

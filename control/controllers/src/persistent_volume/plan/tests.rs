use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use serde_json::{Value, json};

use super::*;

fn merged(mut base: Value, more: &Value) -> Value {
    json_patch::merge(&mut base, more);
    base
}

fn claim(more: Value) -> ClaimView {
    let base = json!({
        "metadata": { "name": "data", "namespace": "ns", "uid": "u" },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": { "requests": { "storage": "1Gi" } },
        },
    });
    let claim: PersistentVolumeClaim = serde_json::from_value(merged(base, &more)).unwrap();
    claim.into()
}

fn volume(name: &str, more: Value) -> VolumeView {
    let base = json!({
        "metadata": { "name": name, "uid": name },
        "spec": { "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"] },
        "status": { "phase": "Available" },
    });
    let volume: PersistentVolume = serde_json::from_value(merged(base, &more)).unwrap();
    volume.into()
}

fn class(name: &str, provisioner: &str, waits: bool, is_default: bool) -> Arc<ClassView> {
    let mode = if waits {
        "WaitForFirstConsumer"
    } else {
        "Immediate"
    };
    let class = json!({
        "metadata": { "name": name, "annotations": { super::super::view::DEFAULT_CLASS: is_default.to_string() } },
        "provisioner": provisioner, "volumeBindingMode": mode,
    });
    Arc::new(
        serde_json::from_value::<StorageClass>(class)
            .unwrap()
            .into(),
    )
}

fn world(volumes: Vec<VolumeView>) -> World {
    World {
        volumes: volumes.into_iter().map(Arc::new).collect(),
        classes: vec![
            class("local", LOCAL_PATH, true, false),
            class("now", LOCAL_PATH, false, false),
            class("other", "x.dev/y", false, false),
            class("plugin", "memfs.wherry.dev", false, false),
            class("hand", NO_PROVISIONER, true, false),
        ],
        nodes: HashSet::from(["n".to_owned()]),
        waiting_pod: None,
    }
}

fn promised(uid: &str) -> Value {
    json!({ "spec": { "claimRef": { "namespace": "ns", "name": "data", "uid": uid } } })
}

fn reason(step: &ClaimStep) -> &str {
    match step {
        ClaimStep::Wait(Some(say)) | ClaimStep::Lost(say) => say.reason,
        ClaimStep::Wait(None) => "-",
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_claim_gets_the_smallest_volume_that_suffices_or_the_one_it_is_promised() {
    let large = || {
        volume(
            "large",
            json!({ "spec": { "capacity": { "storage": "5Gi" } } }),
        )
    };
    let labelled = || {
        volume(
            "labelled",
            json!({ "metadata": { "labels": { "disk": "ssd" } } }),
        )
    };
    let selects = json!({ "spec": { "selector": { "matchLabels": { "disk": "ssd" } } } });
    let wide = json!({ "spec": { "accessModes": ["ReadWriteMany"] } });
    for (what, more, volumes, want) in [
        (
            "the smallest",
            json!({}),
            vec![large(), volume("right", json!({}))],
            Some("right"),
        ),
        (
            "by name",
            json!({}),
            vec![volume("b", json!({})), volume("a", json!({}))],
            Some("a"),
        ),
        (
            "too small",
            json!({}),
            vec![volume(
                "s",
                json!({ "spec": { "capacity": { "storage": "1Mi" } } }),
            )],
            None,
        ),
        (
            "other class",
            json!({}),
            vec![volume("s", json!({ "spec": { "storageClassName": "x" } }))],
            None,
        ),
        (
            "its class",
            json!({ "spec": { "storageClassName": "other" } }),
            vec![volume(
                "s",
                json!({ "spec": { "storageClassName": "other" } }),
            )],
            Some("s"),
        ),
        ("other mode", wide, vec![large()], None),
        (
            "block",
            json!({ "spec": { "volumeMode": "Block" } }),
            vec![large()],
            None,
        ),
        (
            "selected",
            selects,
            vec![volume("plain", json!({})), labelled()],
            Some("labelled"),
        ),
        (
            "another's",
            json!({}),
            vec![volume("s", promised("other"))],
            None,
        ),
        (
            "promised",
            json!({}),
            vec![
                volume("right", json!({})),
                volume(
                    "z",
                    merged(
                        promised("u"),
                        &json!({ "spec": { "capacity": { "storage": "9Gi" } } }),
                    ),
                ),
            ],
            Some("z"),
        ),
        (
            "promised by name",
            json!({}),
            vec![volume("z", promised(""))],
            Some("z"),
        ),
        (
            "released",
            json!({}),
            vec![volume("s", json!({ "status": { "phase": "Released" } }))],
            None,
        ),
        (
            "going",
            json!({}),
            vec![volume(
                "s",
                json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
            )],
            None,
        ),
    ] {
        let step = claim_step(&claim(more), &world(volumes));
        match want {
            Some(name) => assert_eq!(step, ClaimStep::Bind(name.into()), "{what}"),
            None => assert!(!matches!(step, ClaimStep::Bind(_)), "{what}: {step:?}"),
        }
    }
}

#[test]
fn a_claim_that_waits_says_for_what() {
    let of = |class: Value| claim(json!({ "spec": { "storageClassName": class } }));
    for (what, class, want) in [
        ("no class", json!(""), "FailedBinding"),
        ("no such class", json!("none"), "ProvisioningFailed"),
        ("a consumer", json!("local"), "WaitForFirstConsumer"),
        ("no time to wait", json!("now"), "ProvisioningFailed"),
        ("volumes by hand", json!("hand"), "WaitForFirstConsumer"),
    ] {
        assert_eq!(
            reason(&claim_step(&of(class), &world(vec![]))),
            want,
            "{what}"
        );
    }
    let mut seen = world(vec![volume(
        "v",
        json!({ "spec": { "storageClassName": "local" } }),
    )]);
    assert_eq!(
        reason(&claim_step(&of(json!("local")), &seen)),
        "WaitForFirstConsumer",
        "the scheduler chooses"
    );
    seen.waiting_pod = Some("web".into());
    let ClaimStep::Wait(Some(said)) = claim_step(&of(json!("local")), &seen) else {
        panic!("it waits");
    };
    assert_eq!(said.message, "waiting for pod web to be scheduled");
    assert_eq!(
        claim_step(&of(json!("other")), &seen),
        ClaimStep::Ask {
            class: "other".into(),
            provisioner: "x.dev/y".into(),
            node: String::new(),
        }
    );
    assert_eq!(
        claim_step(&of(json!("plugin")), &seen),
        ClaimStep::Give {
            class: "plugin".into(),
            plugin: "memfs.wherry.dev".into(),
            node: String::new(),
        }
    );
    let any = claim(json!({ "spec": { "storageClassName": null } }));
    assert_eq!(reason(&claim_step(&any, &seen)), "FailedBinding");
    seen.classes.push(class("main", "x.dev/y", true, true));
    assert_eq!(claim_step(&any, &seen), ClaimStep::TakeClass("main".into()));
}

#[test]
fn a_directory_is_made_where_the_scheduler_said_and_only_if_one_will_do() {
    let on = |node: &str, more: Value| {
        let base = json!({
            "metadata": { "annotations": { SELECTED_NODE: node } },
            "spec": { "storageClassName": "local" },
        });
        claim_step(&claim(merged(base, &more)), &world(vec![]))
    };
    let made = ClaimStep::Make {
        node: "n".into(),
        class: "local".into(),
    };
    assert_eq!(on("n", json!({})), made);
    assert_eq!(on("gone", json!({})), ClaimStep::ForgetNode);
    for more in [
        json!({ "spec": { "accessModes": ["ReadWriteMany"] } }),
        json!({ "spec": { "volumeMode": "Block" } }),
        json!({ "spec": { "selector": { "matchLabels": { "a": "b" } } } }),
    ] {
        assert_eq!(
            reason(&on("n", more.clone())),
            "ProvisioningFailed",
            "{more}"
        );
    }
}

#[test]
fn a_claim_that_names_a_volume_gets_it_or_is_told_why_not() {
    let names = claim(json!({ "spec": { "volumeName": "v" } }));
    let step = |more: Value| claim_step(&names, &world(vec![volume("v", more)]));
    assert_eq!(step(json!({})), ClaimStep::Bind("v".into()));
    assert_eq!(step(promised("u")), ClaimStep::Bind("v".into()));
    assert_eq!(reason(&step(promised("other"))), "FailedBinding");
    let small = step(json!({ "spec": { "capacity": { "storage": "1Mi" } } }));
    let ClaimStep::Wait(Some(said)) = small else {
        panic!("{small:?}")
    };
    assert_eq!(
        said.message,
        "Cannot bind to requested volume \"v\": requested PV is too small"
    );
    assert_eq!(claim_step(&names, &world(vec![])), ClaimStep::Wait(None));
}

#[test]
fn what_is_bound_stays_bound_grows_or_is_lost() {
    let bound = |more: Value| {
        let base = json!({
            "metadata": { "annotations": { BIND_COMPLETED: "yes" } },
            "spec": { "volumeName": "v" },
            "status": { "phase": "Bound", "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"] },
        });
        claim(merged(base, &more))
    };
    let its = |more: Value| {
        let base = merged(promised("u"), &json!({ "status": { "phase": "Bound" } }));
        volume("v", merged(base, &more))
    };
    assert_eq!(
        claim_step(&bound(json!({})), &world(vec![its(json!({}))])),
        ClaimStep::Done
    );
    let step = claim_step(
        &bound(json!({ "status": { "phase": "Pending" } })),
        &world(vec![its(json!({}))]),
    );
    assert_eq!(step, ClaimStep::Bind("v".into()), "half of it was written");
    let larger = json!({ "spec": { "resources": { "requests": { "storage": "2Gi" } } } });
    let step = claim_step(&bound(larger.clone()), &world(vec![its(json!({}))]));
    assert_eq!(reason(&step), "ExternalExpanding");
    let ours = its(json!({ "metadata": { "annotations": { PROVISIONED_BY: LOCAL_PATH } } }));
    assert_eq!(
        claim_step(&bound(larger.clone()), &world(vec![ours])),
        ClaimStep::Grow("v".into())
    );
    let plugins =
        its(json!({ "metadata": { "annotations": { PROVISIONED_BY: "loop.wherry.dev" } } }));
    let step = claim_step(&bound(larger), &world(vec![plugins]));
    assert_eq!(step, ClaimStep::Expand("v".into()));
    let waited = json!({ "status": { "conditions": [{ "type": "FileSystemResizePending", "status": "True" }] } });
    assert_eq!(
        claim_step(&bound(waited), &world(vec![its(json!({}))])),
        ClaimStep::Settle,
        "it asks for no more than there is"
    );
    assert_eq!(
        reason(&claim_step(&bound(json!({})), &world(vec![]))),
        "ClaimLost"
    );
    let step = claim_step(
        &bound(json!({})),
        &world(vec![volume("v", promised("other"))]),
    );
    assert_eq!(reason(&step), "ClaimMisbound");
}

#[test]
fn a_volume_follows_its_claim_and_its_reclaim_policy() {
    let bound = claim(json!({ "spec": { "volumeName": "v" } }));
    let elsewhere = claim(json!({ "spec": { "volumeName": "w" } }));
    let pending = claim(json!({}));
    let with = |policy: &str, annotations: Value| {
        let more = json!({
            "metadata": { "annotations": annotations },
            "spec": { "persistentVolumeReclaimPolicy": policy },
        });
        volume("v", merged(promised("u"), &more))
    };
    let plain = || with("Retain", json!({}));
    for (what, volume, claim, want) in [
        (
            "free",
            volume("v", json!({})),
            None,
            VolumeStep::Phase("Available"),
        ),
        (
            "promised by name",
            volume("v", promised("")),
            None,
            VolumeStep::Phase("Available"),
        ),
        (
            "its claim is there",
            volume("v", promised("")),
            Some(&pending),
            VolumeStep::Claim,
        ),
        ("bound", plain(), Some(&bound), VolumeStep::Phase("Bound")),
        ("half bound", plain(), Some(&pending), VolumeStep::Claim),
        (
            "claim has another",
            with("Retain", json!({ BOUND_BY_CONTROLLER: "yes" })),
            Some(&elsewhere),
            VolumeStep::Unbind,
        ),
        ("retained", plain(), None, VolumeStep::Keep),
        (
            "ours",
            with("Delete", json!({ PROVISIONED_BY: LOCAL_PATH, NODE: "n" })),
            None,
            VolumeStep::Remove { node: "n".into() },
        ),
        (
            "somebody's",
            with("Delete", json!({ PROVISIONED_BY: "x.dev/y" })),
            None,
            VolumeStep::Leave,
        ),
        (
            "a plugin's",
            with("Delete", json!({ PROVISIONED_BY: "memfs.wherry.dev" })),
            None,
            VolumeStep::Forget,
        ),
        (
            "what a plugin has made",
            with(
                "Delete",
                json!({ PROVISIONED_BY: "loop.wherry.dev", NODE: "n" }),
            ),
            None,
            VolumeStep::Delete,
        ),
        (
            "what an installed plugin has made",
            with(
                "Delete",
                json!({ PROVISIONED_BY: "mine", PLUGIN: "mine", NODE: "n" }),
            ),
            None,
            VolumeStep::Delete,
        ),
        (
            "a plugin's that is kept",
            with(
                "Retain",
                json!({ PROVISIONED_BY: "loop.wherry.dev", NODE: "n" }),
            ),
            None,
            VolumeStep::Keep,
        ),
    ] {
        assert_eq!(volume_step(&volume, claim), want, "{what}");
    }
    for (policy, want) in [
        ("Delete", "VolumeFailedDelete"),
        ("Recycle", "VolumeFailedRecycle"),
    ] {
        match volume_step(&with(policy, json!({})), None) {
            VolumeStep::Fail(say) => assert_eq!(say.reason, want),
            other => panic!("{other:?}"),
        }
    }
    // Another claim took the name.
    let other = claim(json!({ "metadata": { "uid": "new" } }));
    assert_eq!(volume_step(&plain(), Some(&other)), VolumeStep::Keep);
}

#[test]
fn a_plugins_volume_is_written_down_and_forgotten() {
    for (provisioner, expected) in [
        ("memfs.wherry.dev", true),
        (LOCAL_PATH, false),
        (".wherry.dev", false),
        ("x.y.wherry.dev", false),
        ("x/y.wherry.dev", false),
        ("x.dev/y", false),
    ] {
        assert_eq!(is_plugin(provisioner), expected, "{provisioner}");
    }
    assert_eq!(plugin_name("memfs.wherry.dev"), "memfs");
    assert_eq!(plugin_name("mine"), "mine");
}

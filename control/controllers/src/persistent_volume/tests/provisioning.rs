//! Volumes of classes whose provisioner is a plugin.

use super::*;

const CLASSES: &str = "storage.k8s.io/v1/storageclasses";

impl Cluster {
    fn class(&self, provisioner: &str, mode: &str, parameters: Value) {
        self.fake.put(
            CLASSES,
            json!({
                "metadata": { "name": "images" }, "provisioner": provisioner, "volumeBindingMode": mode,
                "reclaimPolicy": "Delete", "allowVolumeExpansion": true, "mountOptions": ["noatime"],
                "parameters": parameters,
            }),
        );
    }

    async fn is_said(&self, reason: &str, text: &str) {
        let wanted = |event: &Value| {
            let message = event["message"].as_str().unwrap_or_default();
            event["reason"] == *reason && message.contains(text)
        };
        self.fake.wait_for("v1/events", wanted).await;
    }
}

#[tokio::test]
async fn a_plugin_makes_a_volume_where_the_pod_is_to_run_and_takes_it_away() {
    let cluster = Cluster::start();
    let parameters = json!({ "directory": "/d", "csi.storage.k8s.io/fstype": "xfs" });
    cluster.class("loop.wherry.dev", "WaitForFirstConsumer", parameters);
    cluster.claim("images");
    cluster.says("WaitForFirstConsumer").await;
    let made = "POST /api/v1/nodes/n/proxy/storage/plugins/loop/volumes/pvc-u";
    assert_eq!(cluster.fake.requests(made), 0);
    // Twice it goes wrong.
    for code in [500, 507] {
        cluster.fake.fail_next("storage/plugins/loop", code);
    }
    let select = || {
        let chosen = json!({ "metadata": { "annotations": { view::SELECTED_NODE: "n" } } });
        cluster.change(CLAIMS, "ns", "data", chosen);
    };
    select();
    cluster
        .is_said("ProvisioningFailed", "node n: injected")
        .await;
    // No room: the scheduler chooses again.
    let is_free = |claim: &Value| claim["metadata"]["annotations"][view::SELECTED_NODE].is_null();
    cluster.fake.wait_for(CLAIMS, is_free).await;
    select();
    let volume = cluster.is(VOLUMES, "Bound").await;
    assert_eq!(volume["metadata"]["name"], "pvc-u");
    assert_eq!(
        volume["spec"]["csi"],
        json!({
            "driver": "loop.wherry.dev", "volumeHandle": "/images/pvc-u", "fsType": "xfs",
            "volumeAttributes": { "file": "pvc-u" },
        })
    );
    let annotations = &volume["metadata"]["annotations"];
    assert_eq!(annotations[view::PROVISIONED_BY], "loop.wherry.dev");
    assert_eq!(annotations[plan::NODE], "n");
    assert_eq!(volume["spec"]["mountOptions"], json!(["noatime"]));
    assert_eq!(volume["spec"]["capacity"]["storage"], "1Gi");
    assert_eq!(volume["spec"]["claimRef"]["uid"], "u");
    assert_eq!(
        volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"],
        json!(["host"])
    );
    let claim = cluster.is(CLAIMS, "Bound").await;
    let annotations = &claim["metadata"]["annotations"];
    assert_eq!(annotations[view::PROVISIONER], "loop.wherry.dev");
    cluster.is_said("Provisioning", "claim \"ns/data\"").await;
    cluster.is_said("ProvisioningSucceeded", "pvc-u").await;

    // What cannot be taken away is said, and tried again.
    cluster.fake.fail_next("/pvc-u/delete", 500);
    cluster.delete_claim();
    cluster.fake.wait_until_gone(CLAIMS, "ns", "data").await;
    cluster
        .is_said("VolumeFailedDelete", "node n: injected")
        .await;
    cluster.fake.wait_until_gone(VOLUMES, "", "pvc-u").await;
    assert!(cluster.fake.requests(&format!("{made}/delete")) >= 2);
    cluster.stop().await;
}

#[tokio::test]
async fn a_volume_of_a_node_that_has_gone_is_told_of_and_kept() {
    let cluster = Cluster::start();
    cluster.class("loop.wherry.dev", "Immediate", Value::Null);
    cluster.claim("images");
    cluster.is(VOLUMES, "Bound").await;
    cluster.is(CLAIMS, "Bound").await;
    // Until it is seen that the node has gone, it does not answer.
    for _ in 0..20 {
        cluster.fake.fail_next("/pvc-u/delete", 503);
    }
    cluster.fake.remove("v1/nodes", "", "n");
    cluster.delete_claim();
    cluster.is(VOLUMES, "Failed").await;
    let text = "node \"n\": it is not there any more";
    cluster.is_said("VolumeFailedDelete", text).await;
    let volume = cluster.fake.get(VOLUMES, "", "pvc-u").unwrap();
    assert!(volume["metadata"]["deletionTimestamp"].is_null());
    cluster.stop().await;
}

#[tokio::test]
async fn volumes_that_need_no_making_are_written_down_and_forgotten() {
    let cluster = Cluster::start();
    cluster.class("memfs.wherry.dev", "Immediate", json!({ "size": "1Mi" }));
    cluster.claim("images");
    let volume = cluster.is(VOLUMES, "Bound").await;
    assert_eq!(
        volume["spec"]["csi"],
        json!({ "driver": "memfs.wherry.dev", "volumeHandle": "pvc-u", "volumeAttributes": { "size": "1Mi" } })
    );
    assert!(volume["metadata"]["annotations"][plan::NODE].is_null());
    cluster.is(CLAIMS, "Bound").await;
    cluster.delete_claim();
    cluster.fake.wait_until_gone(VOLUMES, "", "pvc-u").await;
    assert_eq!(cluster.fake.requests("/delete"), 0);
    cluster.stop().await;
}

#[tokio::test]
async fn a_provisioner_that_nobody_is_leaves_its_claim_waiting() {
    for provisioner in ["nobody.wherry.dev", "nobody", "x.dev/y"] {
        let cluster = Cluster::start();
        cluster.fake.fail_next("storage/plugins/nobody", 404);
        cluster.class(provisioner, "Immediate", Value::Null);
        cluster.claim("images");
        cluster.is_said("ExternalProvisioning", provisioner).await;
        let claim = cluster.is(CLAIMS, "Pending").await;
        let annotations = &claim["metadata"]["annotations"];
        assert_eq!(annotations[view::PROVISIONER], provisioner);
        assert!(cluster.fake.get(VOLUMES, "", "pvc-u").is_none());
        cluster.stop().await;
    }
}

#[tokio::test]
async fn what_a_class_cannot_ask_for_and_a_node_cannot_answer_is_said() {
    let cluster = Cluster::start();
    let unknown = json!({ "csi.storage.k8s.io/colour": "red" });
    cluster.class("loop.wherry.dev", "Immediate", unknown);
    cluster.claim("images");
    let text = "found unknown parameter key \"csi.storage.k8s.io/colour\"";
    cluster.is_said("ProvisioningFailed", text).await;
    assert_eq!(cluster.fake.requests("storage/plugins"), 0);
    cluster.stop().await;

    let cluster = Cluster::start();
    let secret = json!({
        "csi.storage.k8s.io/provisioner-secret-name": "s",
        "csi.storage.k8s.io/provisioner-secret-namespace": "${pvc.namespace}",
    });
    cluster.class("loop.wherry.dev", "Immediate", secret);
    cluster.claim("images");
    let text = "secret ns/s: not found";
    cluster.is_said("ProvisioningFailed", text).await;
    cluster.stop().await;
}

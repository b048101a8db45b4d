use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::*;
use crate::{events, fake::Fake};

mod provisioning;

const CLAIMS: &str = "v1/persistentvolumeclaims";
const VOLUMES: &str = "v1/persistentvolumes";

struct Cluster {
    fake: Fake,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Cluster {
    fn start() -> Self {
        let fake = Fake::new();
        fake.put(
            "v1/nodes",
            json!({
                "metadata": { "name": "n", "labels": { "kubernetes.io/hostname": "host" } },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
            }),
        );
        fake.put(
            "storage.k8s.io/v1/storageclasses",
            json!({
                "metadata": { "name": "local-path" }, "provisioner": plan::LOCAL_PATH,
                "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete", "allowVolumeExpansion": true,
            }),
        );
        let shutdown = CancellationToken::new();
        let (recorder, notes) = Recorder::new();
        let (nodes, mut pods) = (Watched::new("Nodes"), Watched::new("Pods"));
        let prepared = Prepared::new(fake.client(), recorder, &mut pods);
        let (nodes, pods) = (Arc::new(nodes), Arc::new(pods));
        let mut tasks = JoinSet::new();
        tasks.spawn(events::run(fake.client(), notes, shutdown.clone()));
        let api = Api::<Node>::all(fake.client());
        tasks.spawn(nodes.clone().run(api, NodeView::from, shutdown.clone()));
        let api = Api::<Pod>::all(fake.client());
        tasks.spawn(pods.clone().run(api, PodView::from, shutdown.clone()));
        tasks.spawn(prepared.run(pods, nodes, shutdown.clone()));
        Self {
            fake,
            shutdown,
            tasks,
        }
    }

    fn claim(&self, class: &str) {
        self.fake.put(
            CLAIMS,
            json!({
                "metadata": { "name": "data", "namespace": "ns", "uid": "u" },
                "spec": {
                    "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                    "resources": { "requests": { "storage": "1Gi" } },
                },
            }),
        );
    }

    fn change(&self, resource: &str, namespace: &str, name: &str, change: Value) {
        let mut object = self.fake.get(resource, namespace, name).unwrap();
        json_patch::merge(&mut object, &change);
        self.fake.put(resource, object);
    }

    async fn is(&self, resource: &str, phase: &str) -> Value {
        let wanted = |object: &Value| object["status"]["phase"] == *phase;
        self.fake.wait_for(resource, wanted).await
    }

    async fn says(&self, reason: &str) -> Value {
        let wanted = |event: &Value| event["reason"] == *reason;
        self.fake.wait_for("v1/events", wanted).await
    }

    fn delete_claim(&self) {
        self.change(
            CLAIMS,
            "ns",
            "data",
            json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
        );
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test]
async fn a_directory_is_made_bound_grown_and_removed() {
    let cluster = Cluster::start();
    cluster.claim("local-path");
    cluster.says("WaitForFirstConsumer").await;
    cluster.is(CLAIMS, "Pending").await;
    cluster.change(
        CLAIMS,
        "ns",
        "data",
        json!({ "metadata": { "annotations": { view::SELECTED_NODE: "n" } } }),
    );
    let volume = cluster.is(VOLUMES, "Bound").await;
    assert_eq!(volume["metadata"]["name"], "pvc-u");
    assert_eq!(volume["spec"]["local"]["path"], "/node/pvc-u");
    assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Delete");
    assert_eq!(
        volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"],
        json!(["host"])
    );
    let claim = cluster.is(CLAIMS, "Bound").await;
    assert_eq!(claim["spec"]["volumeName"], "pvc-u");
    assert_eq!(claim["status"]["capacity"]["storage"], "1Gi");
    cluster.says("ProvisioningSucceeded").await;

    cluster.change(
        CLAIMS,
        "ns",
        "data",
        json!({ "spec": { "resources": { "requests": { "storage": "2Gi" } } } }),
    );
    cluster
        .fake
        .wait_for(CLAIMS, |claim| {
            claim["status"]["capacity"]["storage"] == "2Gi"
        })
        .await;

    // A pod keeps the claim, and the claim the volume.
    let pod = json!({
        "metadata": { "name": "web", "namespace": "ns" },
        "spec": { "nodeName": "n", "containers": [], "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] },
    });
    cluster.fake.put("v1/pods", pod);
    cluster.delete_claim();
    cluster
        .fake
        .wait_for(CLAIMS, |claim| {
            !claim["metadata"]["deletionTimestamp"].is_null()
        })
        .await;
    assert_eq!(
        cluster
            .fake
            .requests("DELETE /api/v1/nodes/n/proxy/storage/local-path/pvc-u"),
        0
    );
    cluster.fake.remove("v1/pods", "ns", "web");
    cluster.fake.wait_until_gone(CLAIMS, "ns", "data").await;
    cluster.fake.wait_until_gone(VOLUMES, "", "pvc-u").await;
    let removal = "DELETE /api/v1/nodes/n/proxy/storage/local-path/pvc-u";
    assert!(cluster.fake.requests(removal) > 0);
    cluster.stop().await;
}

#[tokio::test]
async fn a_volume_made_by_hand_is_bound_and_stays_when_its_claim_goes() {
    let cluster = Cluster::start();
    cluster.claim("");
    cluster.says("FailedBinding").await;
    cluster.fake.put(
        VOLUMES,
        json!({
            "metadata": { "name": "hand" },
            "spec": {
                "capacity": { "storage": "5Gi" }, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": { "path": "/data" },
            },
        }),
    );
    cluster.is(VOLUMES, "Bound").await;
    let claim = cluster.is(CLAIMS, "Bound").await;
    assert_eq!(claim["spec"]["volumeName"], "hand");
    assert_eq!(
        claim["metadata"]["finalizers"],
        json!(["kubernetes.io/pvc-protection"])
    );
    cluster.delete_claim();
    cluster.fake.wait_until_gone(CLAIMS, "ns", "data").await;
    let volume = cluster.is(VOLUMES, "Released").await;
    assert_eq!(
        volume["metadata"]["finalizers"],
        json!(["kubernetes.io/pv-protection"])
    );
    cluster.change(
        VOLUMES,
        "",
        "hand",
        json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
    );
    cluster.fake.wait_until_gone(VOLUMES, "", "hand").await;
    cluster.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_said() {
    let cluster = Cluster::start();
    cluster.fake.put(
        VOLUMES,
        json!({
            "metadata": { "name": "old", "finalizers": ["kubernetes.io/pv-protection"] },
            "spec": {
                "capacity": { "storage": "5Gi" }, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Recycle", "hostPath": { "path": "/data" },
                "claimRef": { "namespace": "ns", "name": "gone", "uid": "x" },
            },
        }),
    );
    cluster.is(VOLUMES, "Failed").await;
    cluster.says("VolumeFailedRecycle").await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_pod_with_an_ephemeral_volume_gets_a_claim_of_its_own() {
    let cluster = Cluster::start();
    cluster.fake.put(
        "v1/pods",
        json!({
            "metadata": { "name": "web", "namespace": "ns", "uid": "p" },
            "spec": { "containers": [], "volumes": [{ "name": "scratch", "ephemeral": { "volumeClaimTemplate": {
                "metadata": { "labels": { "a": "b" } },
                "spec": {
                    "accessModes": ["ReadWriteOnce"], "storageClassName": "local-path",
                    "resources": { "requests": { "storage": "1Gi" } },
                },
            } } }] },
        }),
    );
    let claim = cluster.is(CLAIMS, "Pending").await;
    assert_eq!(claim["metadata"]["name"], "web-scratch");
    assert_eq!(claim["metadata"]["ownerReferences"][0]["uid"], "p");
    assert_eq!(claim["metadata"]["labels"], json!({ "a": "b" }));
    cluster.says("WaitForPodScheduled").await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_plugins_volume_is_made_larger_by_the_node_that_has_it_mounted() {
    let cluster = Cluster::start();
    cluster.fake.put(
        "storage.k8s.io/v1/storageclasses",
        json!({
            "metadata": { "name": "images" }, "provisioner": "loop.wherry.dev",
            "reclaimPolicy": "Delete", "allowVolumeExpansion": true,
        }),
    );
    cluster.claim("images");
    cluster.is(CLAIMS, "Bound").await;
    let asks = |storage: &str| {
        let change = json!({ "spec": { "resources": { "requests": { "storage": storage } } } });
        cluster.change(CLAIMS, "ns", "data", change);
    };
    let says = async |type_: &str| {
        let wanted = |claim: &Value| claim["status"]["conditions"][0]["type"] == *type_;
        cluster.fake.wait_for(CLAIMS, wanted).await
    };
    asks("2Gi");
    let claim = says("FileSystemResizePending").await;
    assert_eq!(claim["status"]["capacity"]["storage"], "1Gi");
    cluster.says("FileSystemResizeRequired").await;

    // The pod is there, and its volume not yet; and then it is.
    let grow = "POST /api/v1/nodes/n/proxy/storage/claims/ns/web/data";
    cluster.fake.fail_next("storage/claims/ns/web", 409);
    let pod = json!({
        "metadata": { "name": "web", "namespace": "ns" },
        "spec": { "containers": [], "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] },
    });
    cluster.fake.put("v1/pods", pod);
    cluster.change(
        "v1/pods",
        "ns",
        "web",
        json!({ "spec": { "nodeName": "n" } }),
    );
    let holds = async |storage: &str| {
        let wanted = |claim: &Value| {
            claim["status"]["capacity"]["storage"] == *storage
                && claim["status"]["conditions"]
                    .as_array()
                    .is_none_or(Vec::is_empty)
        };
        cluster.fake.wait_for(CLAIMS, wanted).await
    };
    holds("2Gi").await;
    assert_eq!(cluster.fake.requests(grow), 2);
    let volume = cluster.fake.get(VOLUMES, "", "pvc-u").unwrap();
    assert_eq!(volume["spec"]["capacity"]["storage"], "2Gi");
    cluster.says("VolumeResizeSuccessful").await;

    // A driver that cannot is said, and what is asked for may be taken back.
    for _ in 0..5 {
        // It may be asked again before it has seen what it wrote.
        cluster.fake.fail_next("storage/claims/ns/web", 501);
    }
    asks("3Gi");
    let claim = says("NodeResizeError").await;
    assert_eq!(claim["status"]["capacity"]["storage"], "2Gi");
    cluster.says("VolumeResizeFailed").await;
    cluster.says("Resizing").await;
    asks("2Gi");
    holds("2Gi").await;
    cluster.stop().await;
}

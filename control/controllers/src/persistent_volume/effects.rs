//! What is written of claims and volumes, and asked of nodes. Each is repeatable.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{
    core::v1::{Node, ObjectReference, PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::{
    plan::{LOCAL_PATH, NODE, Say},
    provision::HOSTNAME,
    view::{
        BIND_COMPLETED, BOUND_BY_CONTROLLER, ClaimView, PROVISIONED_BY, SELECTED_NODE, VolumeView,
    },
};
use crate::{
    events::{Note, Recorder},
    retry,
    workqueue::Key,
};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
const COMPONENT: &str = "persistentvolume-controller";

/// When a node that did not do what it was asked is asked again.
const NODE_RETRY: Duration = Duration::from_secs(5);

/// A node's answer to being asked for a directory.
#[derive(Deserialize)]
struct Directory {
    path: String,
}

/// A volume that is to be written down for a claim.
pub(super) struct NewVolume<'a> {
    pub(super) claim: &'a ClaimView,
    pub(super) class: &'a StorageClass,
    pub(super) capacity: String,
    /// Without those that are null.
    pub(super) annotations: Value,
    /// Fields of its spec that say what it is.
    pub(super) source: Value,
}

/// Writes and asks.
pub(super) struct Effects {
    pub(super) client: Client,
    recorder: Recorder,
}

impl Effects {
    pub(super) fn new(client: Client, recorder: Recorder) -> Self {
        Self { client, recorder }
    }

    pub(super) fn claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    pub(super) async fn patch_claim(
        &self,
        claim: &ClaimView,
        mut patch: Value,
    ) -> kube::Result<()> {
        patch["metadata"]["resourceVersion"] = claim.resource_version.clone().into();
        let claims = self.claims(&claim.key.namespace);
        let patch = Patch::Merge(patch);
        let params = PatchParams::default();
        let written = claims.patch(&claim.key.name, &params, &patch);
        written.await.map(drop)
    }

    async fn patch_volume(&self, volume: &VolumeView, mut patch: Value) -> kube::Result<()> {
        patch["metadata"]["resourceVersion"] = volume.resource_version.clone().into();
        let volumes = self.volumes();
        let patch = Patch::Merge(patch);
        let params = PatchParams::default();
        let written = volumes.patch(&volume.name, &params, &patch);
        written.await.map(drop)
    }

    /// Keeps a claim from going while it is used; answers whether that was new.
    pub(super) async fn protect_claim(&self, claim: &ClaimView) -> kube::Result<bool> {
        if claim.finalizers.iter().any(|own| own == CLAIM_FINALIZER) {
            return Ok(false);
        }
        let mut finalizers = claim.finalizers.clone();
        finalizers.push(CLAIM_FINALIZER.into());
        let patch = json!({ "metadata": { "finalizers": finalizers } });
        self.patch_claim(claim, patch).await?;
        Ok(true)
    }

    /// Nobody uses a claim that is being deleted any more.
    pub(super) async fn release_claim(&self, claim: &ClaimView) -> kube::Result<()> {
        if !claim.finalizers.iter().any(|own| own == CLAIM_FINALIZER) {
            return Ok(());
        }
        let mut finalizers = claim.finalizers.clone();
        finalizers.retain(|own| own != CLAIM_FINALIZER);
        let patch = json!({ "metadata": { "finalizers": finalizers } });
        gone_is_well(self.patch_claim(claim, patch).await)
    }

    /// Keeps a volume from going while it is bound; answers whether that was new.
    pub(super) async fn protect_volume(&self, volume: &VolumeView) -> kube::Result<bool> {
        if volume.finalizers.iter().any(|own| own == VOLUME_FINALIZER) {
            return Ok(false);
        }
        let mut finalizers = volume.finalizers.clone();
        finalizers.push(VOLUME_FINALIZER.into());
        let patch = json!({ "metadata": { "finalizers": finalizers } });
        self.patch_volume(volume, patch).await?;
        Ok(true)
    }

    /// A volume that is being deleted is nobody's any more.
    pub(super) async fn release_volume(&self, volume: &VolumeView) -> kube::Result<()> {
        if !volume.finalizers.iter().any(|own| own == VOLUME_FINALIZER) {
            return Ok(());
        }
        let mut finalizers = volume.finalizers.clone();
        finalizers.retain(|own| own != VOLUME_FINALIZER);
        let patch = json!({ "metadata": { "finalizers": finalizers } });
        gone_is_well(self.patch_volume(volume, patch).await)
    }

    /// Writes what is missing for a claim and a volume to be each other's: the volume first, so that no other claim
    /// gets it.
    pub(super) async fn bind(&self, claim: &ClaimView, volume: &VolumeView) -> kube::Result<()> {
        let yes = Value::from("yes");
        let has_uid = volume
            .claim
            .as_ref()
            .is_some_and(|reference| reference.uid.as_deref() == Some(&claim.uid));
        if !has_uid {
            let mut patch = json!({ "spec": { "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": claim.key.namespace, "name": claim.key.name, "uid": claim.uid,
            } } });
            if volume.claim.is_none() {
                patch["metadata"]["annotations"][BOUND_BY_CONTROLLER] = yes.clone();
            }
            self.patch_volume(volume, patch).await?;
        }
        self.set_volume_phase(volume, "Bound").await?;
        if !claim.is_bound() {
            let mut patch = json!({
                "metadata": { "annotations": { BIND_COMPLETED: yes } },
                "spec": { "volumeName": volume.name },
            });
            if claim.volume.is_empty() {
                patch["metadata"]["annotations"][BOUND_BY_CONTROLLER] = yes;
            }
            self.patch_claim(claim, patch).await?;
        }
        let status = json!({ "status": {
            "phase": "Bound",
            "accessModes": volume.access_modes,
            "capacity": { "storage": volume.capacity },
        } });
        self.patch_claim_status(claim, status).await
    }

    pub(super) async fn patch_claim_status(
        &self,
        claim: &ClaimView,
        mut patch: Value,
    ) -> kube::Result<()> {
        patch["metadata"]["uid"] = claim.uid.clone().into();
        let claims = self.claims(&claim.key.namespace);
        let patch = Patch::Merge(patch);
        let params = PatchParams::default();
        let written = claims.patch_status(&claim.key.name, &params, &patch);
        written.await.map(drop)
    }

    pub(super) async fn set_claim_phase(&self, claim: &ClaimView, phase: &str) -> kube::Result<()> {
        if claim.phase == phase {
            return Ok(());
        }
        let patch = json!({ "status": { "phase": phase } });
        self.patch_claim_status(claim, patch).await
    }

    pub(super) async fn set_volume_phase(
        &self,
        volume: &VolumeView,
        phase: &str,
    ) -> kube::Result<()> {
        if volume.phase == phase {
            return Ok(());
        }
        let patch = json!({ "metadata": { "uid": volume.uid }, "status": { "phase": phase } });
        let volumes = self.volumes();
        let patch = Patch::Merge(patch);
        let params = PatchParams::default();
        let written = volumes.patch_status(&volume.name, &params, &patch);
        written.await.map(drop)
    }

    /// A claim without a class takes the default one.
    pub(super) async fn take_class(&self, claim: &ClaimView, class: &str) -> kube::Result<()> {
        let patch = json!({ "spec": { "storageClassName": class } });
        self.patch_claim(claim, patch).await
    }

    /// Tells whoever provisions that a claim is theirs.
    pub(super) async fn ask(&self, claim: &ClaimView, provisioner: &str) -> kube::Result<()> {
        self.name_provisioner(claim, provisioner).await?;
        self.set_claim_phase(claim, "Pending").await?;
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
             system administrator. If volume creation is delayed, please verify that the provisioner is running and \
             correctly registered."
        );
        self.say_of_claim(
            claim,
            Say {
                is_warning: false,
                reason: "ExternalProvisioning",
                message,
            },
        );
        Ok(())
    }

    /// The scheduler is to choose another node.
    pub(super) async fn forget_node(&self, claim: &ClaimView) -> kube::Result<()> {
        let patch = json!({ "metadata": { "annotations": { SELECTED_NODE: null } } });
        self.patch_claim(claim, patch).await
    }

    /// Has a node make a directory, and makes the volume that stands for it.
    pub(super) async fn make(
        &self,
        claim: &ClaimView,
        node: &str,
        labels: &BTreeMap<String, String>,
        class: &str,
    ) -> kube::Result<Option<Duration>> {
        let name = format!("pvc-{}", claim.uid);
        let request = proxy(http::Method::POST, node, &format!("local-path/{name}"));
        let directory: Directory = match self.client.request(request).await {
            Ok(directory) => directory,
            Err(error) => {
                let why = retry::text(&error);
                let message = format!(
                    "failed to provision volume with StorageClass {class:?}: node {node}: {why}"
                );
                self.say_of_claim(claim, failed("ProvisioningFailed", message));
                self.set_claim_phase(claim, "Pending").await?;
                return Ok(Some(NODE_RETRY));
            }
        };
        let hostname = labels.get(HOSTNAME).map_or(node, String::as_str);
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let claims = self.claims(&claim.key.namespace);
        let asked = claims.get(&claim.key.name).await?;
        let requests = asked.spec.and_then(|spec| spec.resources?.requests);
        let capacity = requests.and_then(|mut requests| requests.remove("storage"));
        self.write_down(NewVolume {
            claim,
            class: &classes.get(class).await?,
            capacity: capacity.map(|capacity| capacity.0).unwrap_or_default(),
            annotations: json!({ PROVISIONED_BY: LOCAL_PATH, NODE: node }),
            source: json!({
                "local": { "path": directory.path },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                    { "key": HOSTNAME, "operator": "In", "values": [hostname] },
                ] }] } },
            }),
        })
        .await?;
        Ok(None)
    }

    /// Makes the object of a claim's volume.
    pub(super) async fn write_down(&self, new: NewVolume<'_>) -> kube::Result<()> {
        let NewVolume {
            claim,
            class,
            capacity,
            annotations,
            source,
        } = new;
        let name = format!("pvc-{}", claim.uid);
        let mut volume = json!({
            "metadata": {
                "name": name,
                "annotations": annotations,
                "finalizers": [VOLUME_FINALIZER],
            },
            "spec": {
                "capacity": { "storage": capacity },
                "accessModes": claim.access_modes,
                "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
                "storageClassName": class.metadata.name,
                "volumeMode": "Filesystem",
                "mountOptions": class.mount_options,
                "claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "namespace": claim.key.namespace, "name": claim.key.name, "uid": claim.uid,
                },
            },
        });
        if let Some(annotations) = volume["metadata"]["annotations"].as_object_mut() {
            annotations.retain(|_, value| !value.is_null());
        }
        if let (Value::Object(source), Some(spec)) = (source, volume["spec"].as_object_mut()) {
            spec.extend(source);
        }
        let volume: PersistentVolume =
            serde_json::from_value(volume).map_err(kube::Error::SerdeError)?;
        match self.volumes().create(&PostParams::default(), &volume).await {
            // It was made before, and that has not been seen yet.
            Err(kube::Error::Api(status)) if status.code == 409 => return Ok(()),
            made => drop(made?),
        }
        info!(volume = name, claim = %claim.key, "Volume made");
        self.say_of_claim(
            claim,
            Say {
                is_warning: false,
                reason: "ProvisioningSucceeded",
                message: format!("Successfully provisioned volume {name}"),
            },
        );
        Ok(())
    }

    /// Has a node remove a volume's directory, and then the volume.
    pub(super) async fn remove(
        &self,
        volume: &VolumeView,
        node: &str,
    ) -> kube::Result<Option<Duration>> {
        let fail = |why: String| {
            let message = format!("node {node:?}: {why}");
            self.say_of_volume(volume, failed("VolumeFailedDelete", message));
        };
        let nodes: Api<Node> = Api::all(self.client.clone());
        if node.is_empty() || nodes.get_metadata_opt(node).await?.is_none() {
            if volume.phase != "Failed" {
                fail("it is not there any more: delete the volume, and the directory if the machine lives".into());
                self.set_volume_phase(volume, "Failed").await?;
            }
            return Ok(None);
        }
        let path = format!("local-path/{}", volume.name);
        let request = proxy(http::Method::DELETE, node, &path);
        if let Err(error) = self.client.request_text(request).await {
            fail(retry::text(&error));
            return Ok(Some(NODE_RETRY));
        }
        self.forget(volume).await?;
        Ok(None)
    }

    /// Removes a volume of which there is nothing but the object.
    pub(super) async fn forget(&self, volume: &VolumeView) -> kube::Result<()> {
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: Some(volume.uid.clone()),
            resource_version: None,
        });
        let deleted = self.volumes().delete(&volume.name, &params).await;
        gone_is_well(deleted.map(drop))?;
        info!(volume = volume.name, "Volume removed");
        Ok(())
    }

    /// A volume is promised to nobody any more.
    pub(super) async fn unbind(&self, volume: &VolumeView) -> kube::Result<()> {
        let patch = json!({
            "metadata": { "annotations": { BOUND_BY_CONTROLLER: null } },
            "spec": { "claimRef": null },
        });
        self.patch_volume(volume, patch).await
    }

    /// Whether the claim that a volume was promised to is there, as the API server has it now.
    pub(super) async fn is_claim_there(&self, volume: &VolumeView) -> kube::Result<bool> {
        let Some(key) = volume.claim_key() else {
            return Ok(false);
        };
        let found = self
            .claims(&key.namespace)
            .get_metadata_opt(&key.name)
            .await?;
        let uid = volume.claim.as_ref().and_then(|claim| claim.uid.as_ref());
        Ok(found.is_some_and(|found| found.metadata.uid.as_ref() == uid))
    }

    pub(super) fn say_of_claim(&self, claim: &ClaimView, say: Say) {
        self.say("PersistentVolumeClaim", &claim.key, &claim.uid, say);
    }

    pub(super) fn say_of_volume(&self, volume: &VolumeView, say: Say) {
        let key = Key::new("", &volume.name);
        self.say("PersistentVolume", &key, &volume.uid, say);
    }

    fn say(&self, kind: &str, key: &Key, uid: &str, say: Say) {
        self.recorder.record(Note {
            object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some(kind.into()),
                namespace: Some(key.namespace.clone()).filter(|namespace| !namespace.is_empty()),
                name: Some(key.name.clone()),
                uid: Some(uid.into()),
                ..ObjectReference::default()
            },
            type_: if say.is_warning { "Warning" } else { "Normal" },
            reason: say.reason,
            message: say.message,
            component: COMPONENT.into(),
        });
    }
}

pub(super) fn failed(reason: &'static str, message: String) -> Say {
    Say {
        is_warning: true,
        reason,
        message,
    }
}

/// What is asked of a node, through the API server.
pub(super) fn proxy(method: http::Method, node: &str, what: &str) -> http::Request<Vec<u8>> {
    let mut request = http::Request::new(Vec::new());
    *request.method_mut() = method;
    // Names of nodes, pods, claims and volumes that are made here are DNS names: they need no escaping.
    let path = format!("/api/v1/nodes/{node}/proxy/storage/{what}");
    if let Ok(path) = path.parse() {
        *request.uri_mut() = path;
    }
    request
}

fn gone_is_well(written: kube::Result<()>) -> kube::Result<()> {
    match written {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        written => written,
    }
}

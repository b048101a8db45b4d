//! What the scheduler writes: bindings, conditions, claims, and the end of pods that have to make room.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Value, json};

use super::{
    pod::PodInfo,
    preemption::{Preemption, Victim},
};
use crate::{
    events::{Note, Recorder},
    persistent_volume::view::{BOUND_BY_CONTROLLER, SELECTED_NODE},
    workqueue::Key,
};

/// Gives a pod its node.
pub(crate) async fn bind(client: &Client, pod: &PodInfo, node: &str) -> kube::Result<()> {
    let namespace = &pod.needs.namespace;
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": { "name": pod.name, "namespace": namespace, "uid": pod.uid },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node },
    });
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let _: Value = pods
        .create_subresource("binding", &pod.name, &PostParams::default(), &binding)
        .await?;
    Ok(())
}

/// Says that a pod found no node, and on which one room is being made for it.
pub(crate) async fn report(
    client: &Client,
    pod: &PodInfo,
    message: &str,
    nominated: Option<&str>,
) -> kube::Result<()> {
    let patch = Patch::Strategic(unschedulable_patch(message, nominated, Timestamp::now()));
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.needs.namespace);
    pods.patch_status(&pod.name, &PatchParams::default(), &patch)
        .await
        .map(drop)
}

fn unschedulable_patch(message: &str, nominated: Option<&str>, now: Timestamp) -> Value {
    json!({ "status": {
        "nominatedNodeName": nominated,
        "conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": Time(now),
        }],
    } })
}

/// What is to be written for a claim, with what has to be known for it.
#[derive(Clone, Debug)]
pub(crate) enum ClaimWrite {
    /// The volume is promised to the claim, if it is still as it was seen.
    Bind {
        claim: Key,
        claim_uid: String,
        volume: String,
        volume_version: String,
    },
    /// The node is named to whoever provisions.
    Provision { claim: Key },
}

/// Prepares a claim for a pod that will be on a node.
pub(crate) async fn prepare(client: &Client, write: &ClaimWrite, node: &str) -> kube::Result<()> {
    let params = PatchParams::default();
    match write {
        ClaimWrite::Bind {
            claim,
            claim_uid,
            volume,
            volume_version,
        } => {
            let patch = json!({
                "metadata": {
                    "resourceVersion": volume_version,
                    "annotations": { BOUND_BY_CONTROLLER: "yes" },
                },
                "spec": { "claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "namespace": claim.namespace, "name": claim.name, "uid": claim_uid,
                } },
            });
            let volumes: Api<PersistentVolume> = Api::all(client.clone());
            volumes.patch(volume, &params, &Patch::Merge(patch)).await?;
        }
        ClaimWrite::Provision { claim } => {
            let patch = json!({ "metadata": { "annotations": { SELECTED_NODE: node } } });
            let claims: Api<PersistentVolumeClaim> =
                Api::namespaced(client.clone(), &claim.namespace);
            claims
                .patch(&claim.name, &params, &Patch::Merge(patch))
                .await?;
        }
    }
    Ok(())
}

/// Stops the pods that have to make room for another, gracefully, and says so.
pub(crate) async fn preempt(
    client: &Client,
    recorder: &Recorder,
    scheduler: &str,
    pod: &PodInfo,
    preemption: &Preemption,
) -> kube::Result<()> {
    for victim in preemption
        .victims
        .iter()
        .filter(|victim| !victim.is_terminating)
    {
        match stop(client, scheduler, victim).await {
            // It has gone by itself.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => continue,
            stopped => stopped?,
        }
        let object = reference(&victim.key, &victim.uid, None);
        recorder.record(Note {
            object,
            type_: "Normal",
            reason: "Preempted",
            message: format!("Preempted by pod {} on node {}", pod.uid, preemption.node),
            component: scheduler.to_owned(),
        });
    }
    for (_, key) in &preemption.withdrawn {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
        let patch = Patch::Strategic(json!({ "status": { "nominatedNodeName": null } }));
        match pods
            .patch_status(&key.name, &PatchParams::default(), &patch)
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            written => drop(written?),
        }
    }
    Ok(())
}

async fn stop(client: &Client, scheduler: &str, victim: &Victim) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &victim.key.namespace);
    let condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
        "lastTransitionTime": Time(Timestamp::now()),
    });
    let patch = json!({
        "metadata": { "uid": victim.uid },
        "status": { "conditions": [condition] },
    });
    pods.patch_status(
        &victim.key.name,
        &PatchParams::default(),
        &Patch::Strategic(patch),
    )
    .await?;
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: Some(victim.uid.clone()),
        resource_version: None,
    });
    pods.delete(&victim.key.name, &params).await.map(drop)
}

/// Names a pod in an event.
pub(crate) fn reference(key: &Key, uid: &str, resource_version: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(key.namespace.clone()),
        name: Some(key.name.clone()),
        uid: Some(uid.to_owned()),
        resource_version,
        field_path: None,
    }
}

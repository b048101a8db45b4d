//! Claims that are made for one pod and go with it (`volumes[].ephemeral`).

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, ResourceExt, api::PostParams};

use super::effects::Effects;
use crate::workqueue::Key;

/// Makes a pod's claims that are not there.
pub(super) async fn make(effects: &Effects, key: &Key) -> kube::Result<Option<Duration>> {
    let pods: Api<Pod> = Api::namespaced(effects.client.clone(), &key.namespace);
    let Some(pod) = pods.get_opt(&key.name).await? else {
        return Ok(None);
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let claims = effects.claims(&key.namespace);
    for claim in of(&pod) {
        match claims.create(&PostParams::default(), &claim).await {
            // Whose it is the scheduler looks at.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            made => drop(made?),
        }
    }
    Ok(None)
}

/// The claims that are made for a pod. Pure.
fn of(pod: &Pod) -> Vec<PersistentVolumeClaim> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let claims = volumes.filter_map(|volume| {
        let template = volume.ephemeral.as_ref()?.volume_claim_template.clone()?;
        let given = template.metadata.unwrap_or_default();
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        };
        Some(PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(format!("{}-{}", pod.name_any(), volume.name)),
                labels: given.labels,
                annotations: given.annotations,
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec),
            status: None,
        })
    });
    claims.collect()
}

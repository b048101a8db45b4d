//! ServiceAccount: each pod runs as one, and finds its token, the CA and its namespace where client libraries look.

use serde_json::{Value, json};
use wherry_api::{Status, meta};

use crate::{admission::mirror, call::Call, stored, verbs::store_status};

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// An hour, and seven seconds by which kubelets tell these from tokens of an hour that someone asked for.
const TOKEN_SECONDS: i64 = 3_607;

pub(super) async fn admit(call: &Call, namespace: &str, object: &mut Value) -> Result<(), Status> {
    if mirror::is_mirror(object) {
        return Ok(());
    }
    let pod_name = meta::name(object).to_owned();
    let forbidden = |detail: String| Status::forbidden(call.resource, &pod_name, &detail);
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    let name = match spec.get("serviceAccountName").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => "default".to_owned(),
    };
    spec.insert("serviceAccountName".into(), name.clone().into());
    spec.insert("serviceAccount".into(), name.clone().into());
    let accounts = wherry_api::find("", "v1", "serviceaccounts").expect("a row");
    let account = call
        .judged_by(&stored::key(accounts, namespace, &name))
        .await
        .map_err(|error| store_status(accounts, &name, error))?;
    let account = account.ok_or_else(|| {
        forbidden(format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        ))
    })?;
    let account = stored::decode(&account);
    if spec
        .get("imagePullSecrets")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
        && let Some(secrets) = account
            .get("imagePullSecrets")
            .filter(|secrets| secrets.is_array())
    {
        spec.insert("imagePullSecrets".into(), secrets.clone());
    }
    let automounts = spec
        .get("automountServiceAccountToken")
        .or_else(|| account.get("automountServiceAccountToken"))
        .and_then(Value::as_bool)
        .unwrap_or(true);
    if automounts {
        mount_token(spec);
    }
    Ok(())
}

fn mount_token(spec: &mut serde_json::Map<String, Value>) {
    let found = spec
        .get("volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find_map(|volume| {
            let name = volume.get("name")?.as_str()?;
            (name.starts_with(VOLUME_PREFIX) && volume.get("projected").is_some())
                .then(|| name.to_owned())
        });
    let is_there = found.is_some();
    let volume = found.unwrap_or_else(|| meta::generated_name(VOLUME_PREFIX, rand::random()));
    let mut is_used = false;
    for list in ["initContainers", "containers"] {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let Some(container) = container.as_object_mut() else {
                continue;
            };
            let mounts = container
                .entry("volumeMounts")
                .or_insert_with(|| Value::Array(Vec::new()));
            let Some(mounts) = mounts.as_array_mut() else {
                continue;
            };
            if mounts.iter().any(|mount| {
                mount
                    .get("mountPath")
                    .is_some_and(|path| path == MOUNT_PATH)
            }) {
                continue;
            }
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
            is_used = true;
        }
    }
    if !is_used || is_there {
        return;
    }
    let volumes = spec
        .entry("volumes")
        .or_insert_with(|| Value::Array(Vec::new()));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(json!({
            "name": volume,
            "projected": {
                "defaultMode": 420,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [
                        {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                    ]}},
                ],
            },
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_mounted_once_and_not_over_a_mount_of_the_pods_own() {
        let own = json!({"name": "mine", "mountPath": MOUNT_PATH});
        let mut pod = json!({"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [own]}]});
        let spec = pod.as_object_mut().unwrap();
        mount_token(spec);
        let once = spec.clone();
        mount_token(spec);
        assert_eq!(*spec, once);
        let volume = spec["volumes"][0]["name"].as_str().unwrap();
        assert_eq!(volume.len(), VOLUME_PREFIX.len() + 5);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume);
        assert_eq!(spec["containers"][1]["volumeMounts"], json!([own]));
    }
}

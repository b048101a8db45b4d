//! What an object names. Pure.

use serde_json::Value;
use wherry_api::{Resource, meta};
use wherry_store::KeyValue;

use super::{Kind, Object};
use crate::stored;

/// What one object has to say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The node sees these.
    Of(Box<str>, Vec<Object>),
    /// Who sees the first sees these.
    Through(Object, Vec<Object>),
}

/// What a pod, a volume or an attachment has to say.
pub(super) fn of(row: &Resource, kv: &KeyValue) -> Option<Found> {
    let object = stored::decode(kv);
    match row.plural {
        "pods" => of_pod(&object),
        "persistentvolumes" => of_volume(&object),
        _ => {
            let node = text(&object["spec"], "nodeName");
            let name = Object::new(Kind::Attachment, "", meta::name(&object));
            (!node.is_empty()).then(|| Found::Of(node.into(), vec![name]))
        }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(field)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// References that are in each volume of a pod, by the volume's type: the fields that lead to the name.
const OF_VOLUMES: [(&str, &str, Kind); 12] = [
    ("/secret", "secretName", Kind::Secret),
    ("/configMap", "name", Kind::ConfigMap),
    ("/persistentVolumeClaim", "claimName", Kind::Claim),
    ("/azureFile", "secretName", Kind::Secret),
    ("/cephfs/secretRef", "name", Kind::Secret),
    ("/cinder/secretRef", "name", Kind::Secret),
    ("/csi/nodePublishSecretRef", "name", Kind::Secret),
    ("/flexVolume/secretRef", "name", Kind::Secret),
    ("/iscsi/secretRef", "name", Kind::Secret),
    ("/rbd/secretRef", "name", Kind::Secret),
    ("/scaleIO/secretRef", "name", Kind::Secret),
    ("/storageos/secretRef", "name", Kind::Secret),
];

fn of_pod(pod: &Value) -> Option<Found> {
    let (spec, namespace) = (&pod["spec"], meta::namespace(pod));
    let node = text(spec, "nodeName");
    if node.is_empty() {
        return None;
    }
    let mut objects = Vec::new();
    let mut add = |kind, name: &str| {
        let object = Object::new(kind, namespace, name);
        if !name.is_empty() && !objects.contains(&object) {
            objects.push(object);
        }
    };
    add(Kind::Account, text(spec, "serviceAccountName"));
    for secret in list(spec, "imagePullSecrets") {
        add(Kind::Secret, text(secret, "name"));
    }
    for containers in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list(spec, containers) {
            for from in list(container, "envFrom") {
                add(Kind::ConfigMap, text(&from["configMapRef"], "name"));
                add(Kind::Secret, text(&from["secretRef"], "name"));
            }
            for variable in list(container, "env") {
                let from = &variable["valueFrom"];
                add(Kind::ConfigMap, text(&from["configMapKeyRef"], "name"));
                add(Kind::Secret, text(&from["secretKeyRef"], "name"));
            }
        }
    }
    for volume in list(spec, "volumes") {
        for (path, field, kind) in OF_VOLUMES {
            if let Some(source) = volume.pointer(path) {
                add(kind, text(source, field));
            }
        }
        if volume.get("ephemeral").is_some() {
            let claim = format!("{}-{}", meta::name(pod), text(volume, "name"));
            add(Kind::Claim, &claim);
        }
        if let Some(projected) = volume.get("projected") {
            for source in list(projected, "sources") {
                add(Kind::ConfigMap, text(&source["configMap"], "name"));
                add(Kind::Secret, text(&source["secret"], "name"));
            }
        }
    }
    Some(Found::Of(node.into(), objects))
}

/// Secrets that a volume names, by where; those without a namespace are in that of the claim.
const OF_PERSISTENT: [&str; 10] = [
    "/azureFile",
    "/cephfs/secretRef",
    "/cinder/secretRef",
    "/csi/nodePublishSecretRef",
    "/csi/nodeStageSecretRef",
    "/csi/nodeExpandSecretRef",
    "/flexVolume/secretRef",
    "/iscsi/secretRef",
    "/rbd/secretRef",
    "/scaleIO/secretRef",
];

fn of_volume(volume: &Value) -> Option<Found> {
    let claim = volume.pointer("/spec/claimRef")?;
    let namespace = text(claim, "namespace");
    let mut objects = vec![Object::new(Kind::Volume, "", meta::name(volume))];
    for path in OF_PERSISTENT {
        let Some(reference) = volume["spec"].pointer(path) else {
            continue;
        };
        let (field, place) = match path {
            "/azureFile" => ("secretName", "secretNamespace"),
            _ => ("name", "namespace"),
        };
        let place = match text(reference, place) {
            "" => namespace,
            place => place,
        };
        let object = Object::new(Kind::Secret, place, text(reference, field));
        if !objects.contains(&object) {
            objects.push(object);
        }
    }
    Some(Found::Through(
        Object::new(Kind::Claim, namespace, text(claim, "name")),
        objects,
    ))
}

//! DefaultStorageClass, PersistentVolumeClaimResize.

use serde_json::Value;
use wherry_api::{Resource, Status, is_default_class, meta, quantity::Quantity};

use crate::{call::Call, stored, verbs::store_status};

/// The annotation that named a class before the field did.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) fn is_for(call: &Call) -> bool {
    call.resource.group.is_empty() && call.resource.plural == "persistentvolumeclaims"
}

fn classes() -> &'static Resource {
    wherry_api::find("storage.k8s.io", "v1", "storageclasses").expect("a row")
}

/// A claim that names no class gets the default one, the youngest if there are several. An empty name is a choice: no
/// class at all.
pub(super) async fn create(call: &Call, claim: &mut Value) -> Result<(), Status> {
    if claim["spec"]["storageClassName"].is_string()
        || meta::annotation(claim, CLASS_ANNOTATION).is_some()
    {
        return Ok(());
    }
    let listed = call.judged_by_all(&stored::prefix(classes())).await;
    let listed = listed.map_err(|error| store_status(classes(), "", error))?;
    let default = listed
        .iter()
        .map(stored::decode)
        .filter(is_default_class)
        .max_by_key(|class| {
            (
                meta::creation_timestamp(class),
                std::cmp::Reverse(meta::name(class).to_owned()),
            )
        });
    if let Some(class) = default
        && let Some(spec) = claim.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.insert("storageClassName".to_owned(), meta::name(&class).into());
    }
    Ok(())
}

fn requested(claim: &Value) -> Option<Quantity> {
    let amount = claim.pointer("/spec/resources/requests/storage")?;
    Quantity::parse(amount.as_str()?).ok()
}

/// A claim grows only where its class lets it.
pub(super) async fn update(call: &Call, new: &Value, old: &Value) -> Result<(), Status> {
    if requested(new) <= requested(old) || new["status"]["phase"] != "Bound" {
        return Ok(());
    }
    let class = match meta::annotation(new, CLASS_ANNOTATION) {
        Some(class) => class,
        None => new["spec"]["storageClassName"].as_str().unwrap_or_default(),
    };
    let found = call.judged_by(&stored::key(classes(), "", class)).await;
    let found = found.map_err(|error| store_status(classes(), class, error))?;
    if found.is_some_and(|kv| stored::decode(&kv)["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    let detail = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                  support resize";
    Err(Status::forbidden(call.resource, call.name(), detail))
}

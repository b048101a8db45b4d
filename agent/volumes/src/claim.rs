//! Volumes of PersistentVolumes: from a pod's claim to what is behind it. Pure.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};

use crate::{
    SetUpError,
    plan::{self, Plan},
    plugin,
};

/// The claim that a volume of a pod names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) name: String,
    pub(crate) is_read_only: bool,
    /// It is made for the pod, and has to be the pod's own.
    pub(crate) is_ephemeral: bool,
}

/// A volume's plan, and whether the pod may write there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    pub(crate) is_read_only: bool,
}

/// The claim of a volume, if it has one.
pub(crate) fn of(pod: &Pod, volume: &Volume) -> Option<Claim> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(Claim {
            name: source.claim_name.clone(),
            is_read_only: source.read_only == Some(true),
            is_ephemeral: false,
        });
    }
    volume.ephemeral.as_ref()?;
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    Some(Claim {
        name: format!("{pod}-{}", volume.name),
        is_read_only: false,
        is_ephemeral: true,
    })
}

/// The PersistentVolume that a claim is bound to.
///
/// # Errors
/// It is not bound, on its way out, or another pod's; in the kubelet's words.
pub(crate) fn bound(
    pod: &Pod,
    claim: &Claim,
    object: &PersistentVolumeClaim,
) -> Result<String, String> {
    let metadata = &object.metadata;
    if metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted".into());
    }
    if claim.is_ephemeral {
        let owners = metadata.owner_references.iter().flatten();
        let mut owners = owners.filter(|owner| owner.controller == Some(true));
        let is_own = owners.any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref());
        if !is_own {
            let of = |namespace: &Option<String>, name: &Option<String>| {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                format!("{}/{}", text(namespace), text(name))
            };
            return Err(format!(
                "PVC {} was not created for pod {} (pod is not owner)",
                of(&metadata.namespace, &metadata.name),
                of(&pod.metadata.namespace, &pod.metadata.name)
            ));
        }
    }
    let spec = object.spec.as_ref();
    if spec.and_then(|spec| spec.volume_mode.as_deref()) == Some("Block") {
        return Err("volumeMode Block is not supported on this node".into());
    }
    let phase = object
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let volume = spec.and_then(|spec| spec.volume_name.clone());
    match volume.filter(|name| !name.is_empty()) {
        Some(volume) if phase == Some("Bound") => Ok(volume),
        _ => Err("PVC is not bound".into()),
    }
}

/// What a PersistentVolume takes.
///
/// # Errors
/// It is not the claim's after all, or this agent has no code for it.
pub(crate) fn planned(
    pod: &Pod,
    claim: &Claim,
    object: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<Planned, SetUpError> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let invalid = |why: String| Err(SetUpError::Invalid(why));
    let Some(spec) = &volume.spec else {
        return invalid(format!("persistentvolume \"{name}\" has no spec"));
    };
    let uid = spec.claim_ref.as_ref().and_then(|claim| claim.uid.as_ref());
    if uid != object.metadata.uid.as_ref() {
        return invalid(format!(
            "persistentvolume \"{name}\" is bound to another claim"
        ));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return invalid("volumeMode Block is not supported on this node".into());
    }
    let modes: Vec<_> = spec.access_modes.iter().flatten().collect();
    let read_many = !modes.is_empty() && modes.iter().all(|mode| *mode == "ReadOnlyMany");
    let is_read_only = claim.is_read_only || read_many;
    let has_options = spec
        .mount_options
        .as_ref()
        .is_some_and(|options| !options.is_empty());
    let path = match (&spec.host_path, &spec.local) {
        (Some(source), _) => {
            let type_ = source.type_.clone().unwrap_or_default();
            Some(Plan::HostPath {
                path: source.path.clone().into(),
                type_,
            })
        }
        (None, Some(source)) => Some(Plan::Local {
            path: source.path.clone().into(),
            fs_group: plan::fs_group(pod),
        }),
        (None, None) => None,
    };
    if let Some(plan) = path {
        if has_options {
            return invalid("Mount options are not supported for this volume type".into());
        }
        return Ok(Planned { plan, is_read_only });
    }
    match plugin::of_persistent(spec) {
        Some(made) => {
            let mut made = made?;
            made.is_read_only |= is_read_only;
            let is_read_only = made.is_read_only;
            Ok(Planned {
                plan: Plan::Plugin(made),
                is_read_only,
            })
        }
        None => invalid(format!(
            "persistentvolume \"{name}\" has no source that this node can mount"
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn pod() -> Pod {
        from(
            json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [], "securityContext": {"fsGroup": 7}}}),
        )
    }

    #[test]
    fn only_a_bound_claim_of_the_pods_own_is_followed() {
        let claim = |is_ephemeral| Claim {
            name: "c".into(),
            is_read_only: false,
            is_ephemeral,
        };
        let owned = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]);
        for (is_ephemeral, object, wanted) in [
            (
                false,
                json!({"spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}}),
                Ok("pv"),
            ),
            (
                false,
                json!({"spec": {"volumeName": "pv"}, "status": {"phase": "Pending"}}),
                Err("PVC is not bound"),
            ),
            (
                false,
                json!({"spec": {}, "status": {"phase": "Bound"}}),
                Err("PVC is not bound"),
            ),
            (false, json!({"spec": {}}), Err("PVC is not bound")),
            (
                false,
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
                    "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}}),
                Err("PVC is being deleted"),
            ),
            (
                false,
                json!({"spec": {"volumeName": "pv", "volumeMode": "Block"}, "status": {"phase": "Bound"}}),
                Err("volumeMode Block is not supported on this node"),
            ),
            (
                true,
                json!({"metadata": {"name": "p-v", "namespace": "ns"}, "spec": {"volumeName": "pv"},
                    "status": {"phase": "Bound"}}),
                Err("PVC ns/p-v was not created for pod ns/p (pod is not owner)"),
            ),
            (
                true,
                json!({"metadata": {"ownerReferences": owned}, "spec": {"volumeName": "pv"},
                    "status": {"phase": "Bound"}}),
                Ok("pv"),
            ),
        ] {
            let mut object = object;
            if object.get("metadata").is_none() {
                object["metadata"] = json!({});
            }
            let found = bound(&pod(), &claim(is_ephemeral), &from(object.clone()));
            let wanted = wanted.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(found, wanted, "{object}");
        }
    }

    #[test]
    fn a_volume_of_a_pod_names_its_claim() {
        let volume = from(
            json!({"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}}),
        );
        let claim = of(&pod(), &volume).unwrap();
        assert_eq!((claim.name.as_str(), claim.is_read_only), ("c", true));
        let volume = from(json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}));
        let claim = of(&pod(), &volume).unwrap();
        assert_eq!((claim.name.as_str(), claim.is_ephemeral), ("p-v", true));
        assert_eq!(
            of(&pod(), &from(json!({"name": "v", "emptyDir": {}}))),
            None
        );
    }

    #[test]
    fn a_persistent_volume_becomes_what_it_stands_for() {
        let claim = Claim {
            name: "c".into(),
            is_read_only: false,
            is_ephemeral: false,
        };
        let object = from(json!({"metadata": {"uid": "c1"}}));
        let read = |spec: Value| {
            let mut volume = json!({"metadata": {"name": "pv"}, "spec": spec});
            volume["spec"]["claimRef"] = json!({"uid": "c1"});
            planned(&pod(), &claim, &object, &from(volume)).map_err(|error| error.to_string())
        };
        let made = read(json!({"hostPath": {"path": "/x"}, "accessModes": ["ReadOnlyMany"]}));
        let wanted = Plan::HostPath {
            path: "/x".into(),
            type_: String::new(),
        };
        assert_eq!(
            made,
            Ok(Planned {
                plan: wanted,
                is_read_only: true
            })
        );
        let made = read(json!({"local": {"path": "/x"}, "accessModes": ["ReadWriteOnce"]}));
        let wanted = Plan::Local {
            path: "/x".into(),
            fs_group: Some(7),
        };
        assert_eq!(
            made,
            Ok(Planned {
                plan: wanted,
                is_read_only: false
            })
        );
        let made = read(json!({"nfs": {"server": "s", "path": "/", "readOnly": true}})).unwrap();
        assert!(made.is_read_only && matches!(made.plan, Plan::Plugin(_)));
        for (spec, why) in [
            (
                json!({"hostPath": {"path": "/x"}, "mountOptions": ["noatime"]}),
                "Mount options are not supported for this volume type",
            ),
            (
                json!({"local": {"path": "/x"}, "volumeMode": "Block"}),
                "volumeMode Block is not supported on this node",
            ),
            (
                json!({"gcePersistentDisk": {"pdName": "d"}}),
                "persistentvolume \"pv\" has no source that this node can mount",
            ),
        ] {
            assert_eq!(read(spec), Err(why.to_owned()));
        }
        let other = from(json!({"metadata": {"name": "pv"},
            "spec": {"hostPath": {"path": "/"}, "claimRef": {"uid": "c2"}}}));
        let refused = planned(&pod(), &claim, &object, &other);
        assert!(refused.unwrap_err().to_string().contains("another claim"));
    }
}

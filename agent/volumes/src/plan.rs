//! What each volume of a pod takes, before anything is fetched or made. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use k8s_openapi::{
    api::core::v1::{
        Container, DownwardAPIVolumeFile, EmptyDirVolumeSource, KeyToPath, Pod,
        ProjectedVolumeSource, Volume,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use wherry_api::quantity;

use crate::{
    SetUpError,
    empty_dir::{EmptyDir, Medium},
    payload,
    plugin::{self, PluginVolume},
};

/// The kubelet's directory for image volumes.
pub(crate) const IMAGE_PLUGIN_DIR: &str = "kubernetes.io~image";
/// Lifetime of a token for which the volume names none, in seconds.
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

/// What a volume takes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plan {
    EmptyDir(EmptyDir),
    HostPath {
        path: PathBuf,
        type_: String,
    },
    Content(Content),
    /// A directory of the node's that a PersistentVolume names: it has to be there.
    Local {
        path: PathBuf,
        fs_group: Option<u32>,
    },
    Plugin(PluginVolume),
    /// A place for whoever has the images to mount one at.
    Image,
}

/// A volume that shows objects of the API.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Content {
    /// The kubelet's directory for this kind of volume.
    pub(crate) plugin_dir: &'static str,
    /// On a tmpfs: what is secret or of the moment is never written to a disk.
    pub(crate) in_memory: bool,
    pub(crate) default_mode: u32,
    pub(crate) fs_group: Option<u32>,
    pub(crate) projections: Vec<Projection>,
}

/// One source of a volume's files.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Projection {
    ConfigMap {
        name: String,
        items: Vec<KeyToPath>,
        optional: bool,
    },
    Secret {
        name: String,
        items: Vec<KeyToPath>,
        optional: bool,
    },
    DownwardApi {
        items: Vec<DownwardAPIVolumeFile>,
    },
    Token {
        audience: Option<String>,
        expiration_seconds: i64,
        path: String,
        mode: u32,
        uid: Option<u32>,
    },
}

impl Plan {
    /// Where the volume is, below `<pod>/volumes`; `None` if it is a place of the node's own.
    pub(crate) fn plugin_dir(&self) -> Option<&'static str> {
        match self {
            Self::EmptyDir(_) => Some("kubernetes.io~empty-dir"),
            Self::HostPath { .. } | Self::Local { .. } => None,
            Self::Plugin(_) => Some("kubernetes.io~csi"),
            Self::Content(content) => Some(content.plugin_dir),
            Self::Image => Some(IMAGE_PLUGIN_DIR),
        }
    }
}

/// Whether a volume's name can be a directory's.
///
/// # Errors
/// It cannot.
pub(crate) fn check_name(name: &str) -> Result<(), SetUpError> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(SetUpError::Invalid(format!(
            "{name:?} cannot be the name of a volume"
        )));
    }
    Ok(())
}

/// Reads one volume of a pod.
///
/// # Errors
/// The volume has no source, one this agent has no code for, or one that cannot work.
pub(crate) fn plan(
    pod: &Pod,
    volume: &Volume,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<Plan, SetUpError> {
    check_name(&volume.name)?;
    let fs_group = fs_group(pod);
    let content = |plugin_dir, in_memory, default_mode, projection| {
        let projections = vec![projection];
        Plan::Content(Content {
            plugin_dir,
            in_memory,
            default_mode: payload::mode(default_mode),
            fs_group,
            projections,
        })
    };
    if let Some(source) = &volume.empty_dir {
        return empty_dir(pod, source, allocatable).map(Plan::EmptyDir);
    }
    if let Some(source) = &volume.host_path {
        let type_ = source.type_.clone().unwrap_or_default();
        return Ok(Plan::HostPath {
            path: source.path.clone().into(),
            type_,
        });
    }
    if let Some(source) = volume.config_map.clone() {
        let (items, optional) = (
            source.items.unwrap_or_default(),
            source.optional.unwrap_or(false),
        );
        let projection = Projection::ConfigMap {
            name: source.name,
            items,
            optional,
        };
        return Ok(content(
            "kubernetes.io~configmap",
            false,
            source.default_mode,
            projection,
        ));
    }
    if let Some(source) = volume.secret.clone() {
        let (items, optional) = (
            source.items.unwrap_or_default(),
            source.optional.unwrap_or(false),
        );
        let projection = Projection::Secret {
            name: source.secret_name.unwrap_or_default(),
            items,
            optional,
        };
        return Ok(content(
            "kubernetes.io~secret",
            true,
            source.default_mode,
            projection,
        ));
    }
    if let Some(source) = volume.downward_api.clone() {
        let projection = Projection::DownwardApi {
            items: source.items.unwrap_or_default(),
        };
        return Ok(content(
            "kubernetes.io~downward-api",
            true,
            source.default_mode,
            projection,
        ));
    }
    if volume.image.is_some() {
        return Ok(Plan::Image);
    }
    if let Some(source) = &volume.projected {
        return projected(pod, source, fs_group).map(Plan::Content);
    }
    if let Some(made) = plugin::of_pod(volume) {
        return made.map(Plan::Plugin);
    }
    Err(of_a_cloud(volume)
        .unwrap_or_else(|| SetUpError::Unsupported(unsupported_source(volume).to_owned())))
}

/// Disks that only the nodes of one company have.
fn of_a_cloud(volume: &Volume) -> Option<SetUpError> {
    let (kind, disk) = if let Some(source) = &volume.gce_persistent_disk {
        ("gcePersistentDisk", source.pd_name.as_str())
    } else if let Some(source) = &volume.aws_elastic_block_store {
        ("awsElasticBlockStore", source.volume_id.as_str())
    } else if let Some(source) = &volume.azure_disk {
        ("azureDisk", source.disk_name.as_str())
    } else if let Some(source) = &volume.cinder {
        ("cinder", source.volume_id.as_str())
    } else {
        return None;
    };
    Some(SetUpError::Invalid(format!(
        "{kind} \"{disk}\": no such disk here, this node is no machine of that cloud; a plugin's volume \
         (csi, or a PersistentVolume of one) can take its place"
    )))
}

fn empty_dir(
    pod: &Pod,
    source: &EmptyDirVolumeSource,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<EmptyDir, SetUpError> {
    let medium = match source.medium.as_deref().unwrap_or_default() {
        "" => Medium::Disk,
        "Memory" => {
            let limits = [source.size_limit.as_ref(), allocatable.get("memory")];
            let sizes = limits
                .into_iter()
                .flatten()
                .filter_map(bytes)
                .chain(pod_memory_limit(pod));
            let size_bytes = sizes.filter(|size| *size > 0).min();
            Medium::Memory { size_bytes }
        }
        medium => match medium.strip_prefix("HugePages") {
            Some(size) => Medium::HugePages {
                page_bytes: huge_page_bytes(pod, medium, size)?,
            },
            None => {
                return Err(SetUpError::Invalid(format!(
                    "unknown storage medium \"{medium}\""
                )));
            }
        },
    };
    Ok(EmptyDir {
        medium,
        fs_group: fs_group(pod),
    })
}

/// The page size of a medium `HugePages` or `HugePages-<size>`: one that a container requests, and
/// without a size the only one.
fn huge_page_bytes(pod: &Pod, medium: &str, size: &str) -> Result<u64, SetUpError> {
    let wanted = match size.strip_prefix('-') {
        Some(size) => Some(
            bytes(&Quantity(size.into()))
                .filter(|size| *size > 0)
                .ok_or_else(|| {
                    SetUpError::Invalid(format!(
                        "medium {medium}: {size} is not the size of a page"
                    ))
                })?,
        ),
        None if size.is_empty() => None,
        None => {
            return Err(SetUpError::Invalid(format!(
                "unknown storage medium \"{medium}\""
            )));
        }
    };
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
    });
    let requested: BTreeSet<u64> = containers
        .filter_map(|container| container.resources.as_ref())
        .flat_map(|resources| resources.requests.iter().chain(&resources.limits).flatten())
        .filter_map(|(name, _)| bytes(&Quantity(name.strip_prefix("hugepages-")?.into())))
        .collect();
    let mut sizes = requested
        .into_iter()
        .filter(|size| wanted.is_none_or(|wanted| wanted == *size));
    match (sizes.next(), sizes.next()) {
        (Some(size), None) => Ok(size),
        (Some(_), Some(_)) => Err(SetUpError::Invalid(format!(
            "medium {medium} can't be used if container requests multiple huge page sizes"
        ))),
        (None, _) => Err(SetUpError::Invalid(format!(
            "medium {medium} can't be used: no container requests huge pages of that size"
        ))),
    }
}

/// The sum of the containers' memory limits, if each has one: more than that cannot be used.
fn pod_memory_limit(pod: &Pod) -> Option<u64> {
    let limit = |container: &Container| {
        bytes(
            container
                .resources
                .as_ref()?
                .limits
                .as_ref()?
                .get("memory")?,
        )
    };
    let spec = pod.spec.as_ref()?;
    let apps: Option<u64> = spec.containers.iter().map(limit).sum();
    let init: Option<Vec<u64>> = spec.init_containers.iter().flatten().map(limit).collect();
    Some(apps?.max(init?.into_iter().sum()))
}

fn bytes(quantity: &Quantity) -> Option<u64> {
    u64::try_from(quantity::Quantity::parse(&quantity.0).ok()?.value()).ok()
}

fn projected(
    pod: &Pod,
    source: &ProjectedVolumeSource,
    fs_group: Option<u32>,
) -> Result<Content, SetUpError> {
    let default_mode = payload::mode(source.default_mode);
    let uid = common_user(pod);
    // As the kubelet: a token somebody owns is for that somebody.
    let token_mode = if uid.is_some() || fs_group.is_some() {
        0o600
    } else {
        default_mode
    };
    let mut projections = Vec::new();
    for source in source.sources.iter().flatten() {
        if let Some(source) = source.config_map.clone() {
            let (items, optional) = (
                source.items.unwrap_or_default(),
                source.optional.unwrap_or(false),
            );
            projections.push(Projection::ConfigMap {
                name: source.name,
                items,
                optional,
            });
        } else if let Some(source) = source.secret.clone() {
            let (items, optional) = (
                source.items.unwrap_or_default(),
                source.optional.unwrap_or(false),
            );
            projections.push(Projection::Secret {
                name: source.name,
                items,
                optional,
            });
        } else if let Some(source) = source.downward_api.clone() {
            projections.push(Projection::DownwardApi {
                items: source.items.unwrap_or_default(),
            });
        } else if let Some(source) = source.service_account_token.clone() {
            projections.push(Projection::Token {
                audience: source.audience.filter(|audience| !audience.is_empty()),
                expiration_seconds: source.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT),
                path: source.path,
                mode: token_mode,
                uid,
            });
        } else if source.cluster_trust_bundle.is_some() {
            return Err(SetUpError::Unsupported(
                "projected clusterTrustBundle".into(),
            ));
        } else if source.pod_certificate.is_some() {
            return Err(SetUpError::Unsupported("projected podCertificate".into()));
        }
    }
    let plugin_dir = "kubernetes.io~projected";
    Ok(Content {
        plugin_dir,
        in_memory: true,
        default_mode,
        fs_group,
        projections,
    })
}

pub(crate) fn fs_group(pod: &Pod) -> Option<u32> {
    u32::try_from(pod.spec.as_ref()?.security_context.as_ref()?.fs_group?).ok()
}

/// The user all containers of a pod run as, if the manifest says one.
fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.run_as_user);
    let of = |container: &Container| {
        container
            .security_context
            .as_ref()
            .and_then(|context| context.run_as_user)
            .or(of_pod)
    };
    let mut users = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(of);
    let first = users.next()??;
    users
        .all(|user| user == Some(first))
        .then(|| u32::try_from(first).ok())
        .flatten()
}

/// The API's word for a source this agent has no code for.
fn unsupported_source(volume: &Volume) -> &'static str {
    let sources = [
        (volume.azure_file.is_some(), "azureFile"),
        (volume.fc.is_some(), "fc"),
        (volume.flocker.is_some(), "flocker"),
        (
            volume.photon_persistent_disk.is_some(),
            "photonPersistentDisk",
        ),
        (volume.portworx_volume.is_some(), "portworxVolume"),
        (volume.quobyte.is_some(), "quobyte"),
        (volume.scale_io.is_some(), "scaleIO"),
        (volume.storageos.is_some(), "storageos"),
        (volume.vsphere_volume.is_some(), "vsphereVolume"),
    ];
    sources
        .into_iter()
        .find(|(is_set, _)| *is_set)
        .map_or("unnamed", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).unwrap()
    }

    fn read(spec: Value, volume: Value) -> Result<Plan, String> {
        let allocatable = [("memory".to_owned(), Quantity("1Gi".to_owned()))].into();
        let volume = serde_json::from_value(volume).unwrap();
        plan(&pod(spec), &volume, &allocatable).map_err(|error| error.to_string())
    }

    #[test]
    fn a_tmpfs_is_no_larger_than_limit_pod_or_node() {
        let limited = |memory: &str| json!({ "containers": [{ "name": "c", "resources": { "limits": { "memory": memory } } }] });
        for (spec, source, want) in [
            (json!({ "containers": [] }), json!({}), None),
            (
                json!({ "containers": [{ "name": "c" }] }),
                json!({ "medium": "Memory" }),
                Some(1 << 30),
            ),
            (
                json!({ "containers": [{ "name": "c" }] }),
                json!({ "medium": "Memory", "sizeLimit": "1Mi" }),
                Some(1 << 20),
            ),
            (
                limited("64Mi"),
                json!({ "medium": "Memory", "sizeLimit": "1Gi" }),
                Some(64 << 20),
            ),
            (
                limited("64Mi"),
                json!({ "medium": "Memory", "sizeLimit": "1Mi" }),
                Some(1 << 20),
            ),
        ] {
            let medium = match source.get("medium") {
                Some(_) => Medium::Memory { size_bytes: want },
                None => Medium::Disk,
            };
            let want = Plan::EmptyDir(EmptyDir {
                medium,
                fs_group: None,
            });
            assert_eq!(
                read(spec, json!({ "name": "v", "emptyDir": source })).unwrap(),
                want
            );
        }
    }

    #[test]
    fn huge_pages_are_of_the_size_that_is_requested() {
        let request = |sizes: &[&str]| {
            let limits: serde_json::Map<_, _> = sizes
                .iter()
                .map(|size| (format!("hugepages-{size}"), "4Mi".into()))
                .collect();
            json!({ "containers": [{ "name": "c", "resources": { "limits": limits } }] })
        };
        let many = "medium HugePages can't be used if container requests multiple huge page sizes";
        for (sizes, medium, want) in [
            (&["2Mi"] as &[&str], "HugePages", Ok(2 << 20)),
            (&["2Mi"], "HugePages-2Mi", Ok(2 << 20)),
            (&["2Mi", "1Gi"], "HugePages-1Gi", Ok(1 << 30)),
            (&["2Mi", "1Gi"], "HugePages", Err(many)),
            (
                &["2Mi"],
                "HugePages-1Gi",
                Err(
                    "medium HugePages-1Gi can't be used: no container requests huge pages of that size",
                ),
            ),
            (
                &["2Mi"],
                "HugePages-x",
                Err("medium HugePages-x: x is not the size of a page"),
            ),
            (
                &["2Mi"],
                "HugePagesX",
                Err("unknown storage medium \"HugePagesX\""),
            ),
        ] {
            let volume = json!({ "name": "v", "emptyDir": { "medium": medium } });
            let want = want
                .map(|page_bytes| {
                    Plan::EmptyDir(EmptyDir {
                        medium: Medium::HugePages { page_bytes },
                        fs_group: None,
                    })
                })
                .map_err(str::to_owned);
            assert_eq!(read(request(sizes), volume), want, "{medium}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        let containers = || json!({ "containers": [] });
        for (volume, want) in [
            (
                json!({ "fc": { "lun": 1 } }),
                "no volume plugin matched: fc volumes are not supported on this node",
            ),
            (
                json!({ "gcePersistentDisk": { "pdName": "d" } }),
                "gcePersistentDisk \"d\": no such disk here, this node is no machine of that cloud; a plugin's volume \
                 (csi, or a PersistentVolume of one) can take its place",
            ),
            (
                json!({ "emptyDir": { "medium": "HugePages" } }),
                "medium HugePages can't be used: no container requests huge pages of that size",
            ),
            (
                json!({ "emptyDir": { "medium": "Floppy" } }),
                "unknown storage medium \"Floppy\"",
            ),
            (
                json!({ "projected": { "sources": [{ "clusterTrustBundle": { "path": "x" } }] } }),
                "no volume plugin matched: projected clusterTrustBundle volumes are not supported on this node",
            ),
        ] {
            let mut volume = volume;
            volume["name"] = "v".into();
            assert_eq!(read(containers(), volume).unwrap_err(), want);
        }
        for name in ["", "..", "a/b"] {
            assert!(read(containers(), json!({ "name": name, "emptyDir": {} })).is_err());
        }
    }

    #[test]
    fn a_token_belongs_to_the_user_all_containers_run_as() {
        let volume = || json!({ "name": "v", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } });
        let container =
            |user: Option<i64>| json!({ "name": "c", "securityContext": { "runAsUser": user } });
        for (spec, mode, uid) in [
            (json!({ "containers": [container(None)] }), 0o644, None),
            (
                json!({ "containers": [container(Some(7)), container(Some(7))] }),
                0o600,
                Some(7),
            ),
            (
                json!({ "containers": [container(Some(7)), container(Some(8))] }),
                0o644,
                None,
            ),
            (
                json!({ "securityContext": { "runAsUser": 7 }, "containers": [container(None)] }),
                0o600,
                Some(7),
            ),
            (
                json!({ "securityContext": { "fsGroup": 9 }, "containers": [container(None)] }),
                0o600,
                None,
            ),
        ] {
            let Plan::Content(content) = read(spec, volume()).unwrap() else {
                panic!("not content")
            };
            let want = Projection::Token {
                audience: None,
                expiration_seconds: 3600,
                path: "token".into(),
                mode,
                uid,
            };
            assert_eq!(content.projections, [want]);
            assert!(content.in_memory);
        }
    }
}

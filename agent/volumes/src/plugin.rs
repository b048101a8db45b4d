//! Volumes that plugins give: which plugin, and what it is asked. Pure.
//!
//! | In the manifest | Plugin | Attributes |
//! |---|---|---|
//! | `csi.driver: git.wherry.dev` | `git` | `volumeAttributes` |
//! | `flexVolume.driver: wherry.dev/git` | `git` | `options` |
//! | `gitRepo`, `nfs`, `iscsi`, `rbd`, `cephfs`, `glusterfs` | `git`, and the others by their own names | the fields |
//!
//! A driver without `.wherry.dev` is the name of a Plugin object. PersistentVolumes have the same fields.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeSpec, Volume};
use serde_json::Value;
use wherry_api::quantity;
use wherry_plugin_host::volume::VolumeRequest;

use crate::SetUpError;

/// The domain of plugins: a driver's name without it is the plugin's.
const DOMAIN: &str = ".wherry.dev";
/// The attribute that bounds what a populator may write, a quantity of bytes.
const SIZE_LIMIT: &str = "sizeLimit";
/// The attribute with a PersistentVolume's `volumeHandle`, named as those that Kubernetes itself adds: plugins that know
/// their attributes let it pass.
const VOLUME_HANDLE: &str = "csi.storage.k8s.io/volumeHandle";
/// Fields of in-tree volumes, and the plugins that stand for them.
const IN_TREE: [(&str, &str); 6] = [
    ("gitRepo", "git"),
    ("nfs", "nfs"),
    ("iscsi", "iscsi"),
    ("rbd", "rbd"),
    ("cephfs", "cephfs"),
    ("glusterfs", "glusterfs"),
];
/// Fields that are no attributes: they have places of their own in a request.
const NOT_ATTRIBUTES: [&str; 3] = ["readOnly", "fsType", "secretRef"];

/// A volume to be asked of a plugin, but for who asks and for the secret's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PluginVolume {
    pub(crate) plugin: String,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Namespace, where it is not the pod's, and name.
    pub(crate) secret: Option<(Option<String>, String)>,
    pub(crate) is_read_only: bool,
    pub(crate) fs_type: Option<String>,
    pub(crate) mount_options: Vec<String>,
    pub(crate) bytes_max: Option<u64>,
}

impl PluginVolume {
    /// What the plugin is asked, but for the pod and the secret.
    pub(crate) fn request(&self, name: &str, fs_group: Option<u32>) -> VolumeRequest {
        VolumeRequest {
            plugin: self.plugin.clone(),
            name: name.to_owned(),
            attributes: self.attributes.clone(),
            is_read_only: self.is_read_only,
            fs_type: self.fs_type.clone(),
            fs_group,
            mount_options: self.mount_options.clone(),
            bytes_max: self.bytes_max,
            ..VolumeRequest::default()
        }
    }

    fn named(driver: &str) -> Result<Self, SetUpError> {
        let plugin = driver.strip_suffix(DOMAIN).unwrap_or(driver);
        if plugin.is_empty() {
            return Err(SetUpError::Invalid(format!("{driver:?} names no driver")));
        }
        Ok(Self {
            plugin: plugin.to_owned(),
            ..Self::default()
        })
    }

    fn bounded(mut self) -> Result<Self, SetUpError> {
        if let Some(limit) = self.attributes.get(SIZE_LIMIT) {
            let bytes = quantity::Quantity::parse(limit)
                .ok()
                .and_then(|limit| u64::try_from(limit.value()).ok())
                .filter(|bytes| *bytes > 0);
            let why = || format!("{SIZE_LIMIT}: {limit:?} is no quantity of bytes");
            self.bytes_max = Some(bytes.ok_or_else(|| SetUpError::Invalid(why()))?);
        }
        Ok(self)
    }
}

fn some(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

/// The plugin's volume that a volume of a pod is; `None`: it is none of a plugin's.
///
/// # Errors
/// It is one, and cannot work as written.
pub(crate) fn of_pod(volume: &Volume) -> Option<Result<PluginVolume, SetUpError>> {
    if let Some(source) = &volume.csi {
        let made = PluginVolume::named(&source.driver).map(|named| PluginVolume {
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            secret: source
                .node_publish_secret_ref
                .as_ref()
                .map(|secret| (None, secret.name.clone())),
            is_read_only: source.read_only == Some(true),
            fs_type: some(source.fs_type.as_ref()),
            ..named
        });
        return Some(made.and_then(PluginVolume::bounded));
    }
    if let Some(source) = &volume.flex_volume {
        let driver = flex_driver(&source.driver);
        let made = PluginVolume::named(driver).map(|named| PluginVolume {
            attributes: source.options.clone().unwrap_or_default(),
            secret: source
                .secret_ref
                .as_ref()
                .map(|secret| (None, secret.name.clone())),
            is_read_only: source.read_only == Some(true),
            fs_type: some(source.fs_type.as_ref()),
            ..named
        });
        return Some(made.and_then(PluginVolume::bounded));
    }
    in_tree(&serde_json::to_value(volume).ok()?).map(Ok)
}

/// The same of a PersistentVolume.
///
/// # Errors
/// As [`of_pod`].
pub(crate) fn of_persistent(
    spec: &PersistentVolumeSpec,
) -> Option<Result<PluginVolume, SetUpError>> {
    let made = persistent(spec)?;
    Some(made.map(|made| PluginVolume {
        mount_options: spec.mount_options.clone().unwrap_or_default(),
        ..made
    }))
}

fn persistent(spec: &PersistentVolumeSpec) -> Option<Result<PluginVolume, SetUpError>> {
    if let Some(source) = &spec.csi {
        let mut attributes = source.volume_attributes.clone().unwrap_or_default();
        attributes.insert(VOLUME_HANDLE.into(), source.volume_handle.clone());
        let secret = source.node_publish_secret_ref.as_ref();
        let made = PluginVolume::named(&source.driver).map(|named| PluginVolume {
            attributes,
            secret: secret
                .and_then(|secret| Some((secret.namespace.clone(), some(secret.name.as_ref())?))),
            is_read_only: source.read_only == Some(true),
            fs_type: some(source.fs_type.as_ref()),
            ..named
        });
        return Some(made.and_then(PluginVolume::bounded));
    }
    if let Some(source) = &spec.flex_volume {
        let secret = source.secret_ref.as_ref();
        let driver = flex_driver(&source.driver);
        let made = PluginVolume::named(driver).map(|named| PluginVolume {
            attributes: source.options.clone().unwrap_or_default(),
            secret: secret
                .and_then(|secret| Some((secret.namespace.clone(), some(secret.name.as_ref())?))),
            is_read_only: source.read_only == Some(true),
            fs_type: some(source.fs_type.as_ref()),
            ..named
        });
        return Some(made.and_then(PluginVolume::bounded));
    }
    in_tree(&serde_json::to_value(spec).ok()?).map(Ok)
}

/// `vendor/driver` is what a flexVolume names.
fn flex_driver(driver: &str) -> &str {
    driver.rsplit('/').next().unwrap_or(driver)
}

/// The volume that one of the fields of [`IN_TREE`] describes.
fn in_tree(volume: &Value) -> Option<PluginVolume> {
    let (field, plugin) = IN_TREE
        .into_iter()
        .find(|(field, _)| volume[field].is_object())?;
    let source = &volume[field];
    let mut attributes = BTreeMap::new();
    flatten(String::new(), source, &mut attributes);
    if field == "gitRepo" {
        git_repo(&mut attributes);
    }
    let text = |value: &Value| {
        value
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let secret = &source["secretRef"];
    Some(PluginVolume {
        plugin: plugin.to_owned(),
        attributes,
        secret: text(&secret["name"]).map(|name| (text(&secret["namespace"]), name)),
        is_read_only: source["readOnly"] == true,
        fs_type: text(&source["fsType"]),
        ..PluginVolume::default()
    })
}

/// A gitRepo without a directory is cloned into one of the repository's name, as git does it.
fn git_repo(attributes: &mut BTreeMap<String, String>) {
    if attributes
        .get("directory")
        .is_some_and(|directory| !directory.is_empty())
    {
        return;
    }
    let repository = attributes.get("repository").map_or("", String::as_str);
    let last = repository.trim_end_matches('/').rsplit('/').next();
    let last = last.unwrap_or_default();
    let name = last.strip_suffix(".git").unwrap_or(last);
    attributes.insert("directory".into(), name.to_owned());
}

/// Fields by their names, those of objects after a `.`; lists of texts are joined by commas.
fn flatten(prefix: String, value: &Value, into: &mut BTreeMap<String, String>) {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    match value {
        Value::Null => {}
        Value::String(_) | Value::Bool(_) | Value::Number(_) => {
            into.extend(text(value).map(|text| (prefix, text)));
        }
        Value::Array(list) => {
            let texts: Vec<_> = list.iter().filter_map(text).collect();
            into.insert(prefix, texts.join(","));
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                let is_top = prefix.is_empty();
                if is_top && NOT_ATTRIBUTES.contains(&name.as_str()) {
                    continue;
                }
                let name = match is_top {
                    true => name.clone(),
                    false => format!("{prefix}.{name}"),
                };
                flatten(name, value, into);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(mut volume: Value) -> Option<Result<PluginVolume, String>> {
        volume["name"] = "v".into();
        let volume = serde_json::from_value(volume).unwrap();
        of_pod(&volume).map(|made| made.map_err(|error| error.to_string()))
    }

    fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn every_field_that_names_a_plugin_is_translated() {
        for (volume, plugin, wanted) in [
            (
                json!({"csi": {"driver": "git.wherry.dev", "volumeAttributes": {"a": "b"}}}),
                "git",
                attributes(&[("a", "b")]),
            ),
            (
                json!({"csi": {"driver": "my-plugin"}}),
                "my-plugin",
                attributes(&[]),
            ),
            (
                json!({"flexVolume": {"driver": "wherry.dev/s3", "options": {"bucket": "x"}}}),
                "s3",
                attributes(&[("bucket", "x")]),
            ),
            (
                json!({"flexVolume": {"driver": "acme"}}),
                "acme",
                attributes(&[]),
            ),
            (
                json!({"gitRepo": {"repository": "https://h/a/b.git", "revision": "v1"}}),
                "git",
                attributes(&[
                    ("repository", "https://h/a/b.git"),
                    ("revision", "v1"),
                    ("directory", "b"),
                ]),
            ),
            (
                json!({"gitRepo": {"repository": "https://h/a/b/", "directory": "."}}),
                "git",
                attributes(&[("repository", "https://h/a/b/"), ("directory", ".")]),
            ),
            (
                json!({"nfs": {"server": "s", "path": "/p", "readOnly": true}}),
                "nfs",
                attributes(&[("server", "s"), ("path", "/p")]),
            ),
            (
                json!({"iscsi": {"targetPortal": "p:3260", "iqn": "iqn.x", "lun": 2, "fsType": "xfs",
                    "portals": ["q", "r"], "chapAuthSession": true, "secretRef": {"name": "chap"}}}),
                "iscsi",
                attributes(&[
                    ("targetPortal", "p:3260"),
                    ("iqn", "iqn.x"),
                    ("lun", "2"),
                    ("portals", "q,r"),
                    ("chapAuthSession", "true"),
                ]),
            ),
            (
                json!({"rbd": {"monitors": ["a:1", "b:1"], "image": "i", "pool": "p"}}),
                "rbd",
                attributes(&[("monitors", "a:1,b:1"), ("image", "i"), ("pool", "p")]),
            ),
            (
                json!({"cephfs": {"monitors": ["a"], "path": "/x", "user": "u"}}),
                "cephfs",
                attributes(&[("monitors", "a"), ("path", "/x"), ("user", "u")]),
            ),
            (
                json!({"glusterfs": {"endpoints": "e", "path": "v"}}),
                "glusterfs",
                attributes(&[("endpoints", "e"), ("path", "v")]),
            ),
        ] {
            let made = read(volume.clone()).unwrap().unwrap();
            assert_eq!(
                (made.plugin.as_str(), &made.attributes),
                (plugin, &wanted),
                "{volume}"
            );
        }
        assert_eq!(read(json!({"emptyDir": {}})), None);
    }

    #[test]
    fn secrets_and_ways_to_mount_are_no_attributes() {
        let made = read(
            json!({"csi": {"driver": "x", "readOnly": true, "fsType": "ext4",
            "nodePublishSecretRef": {"name": "s"}, "volumeAttributes": {"sizeLimit": "1Ki"}}}),
        );
        let made = made.unwrap().unwrap();
        assert_eq!(made.secret, Some((None, "s".into())));
        assert_eq!((made.is_read_only, made.bytes_max), (true, Some(1024)));
        assert_eq!(made.fs_type.as_deref(), Some("ext4"));
        let chap = read(json!({"iscsi": {"targetPortal": "p", "iqn": "i", "lun": 0,
            "readOnly": true, "secretRef": {"name": "chap"}}}));
        let chap = chap.unwrap().unwrap();
        assert_eq!(chap.secret, Some((None, "chap".into())));
        assert!(chap.is_read_only && !chap.attributes.contains_key("secretRef.name"));
        for bad in ["x", "-1", "0"] {
            let volume = json!({"csi": {"driver": "x", "volumeAttributes": {"sizeLimit": bad}}});
            assert!(
                read(volume).unwrap().unwrap_err().contains("sizeLimit"),
                "{bad}"
            );
        }
        let nameless = read(json!({"csi": {"driver": ".wherry.dev"}}));
        assert!(nameless.unwrap().unwrap_err().contains("names no driver"));
    }

    #[test]
    fn a_persistent_volume_has_the_same_fields() {
        let read = |spec: Value| {
            let spec = serde_json::from_value(spec).unwrap();
            of_persistent(&spec).map(|made| made.unwrap())
        };
        let csi = read(
            json!({"mountOptions": ["noatime"], "csi": {"driver": "memfs.wherry.dev",
            "volumeHandle": "h", "nodePublishSecretRef": {"name": "s", "namespace": "n"}}}),
        );
        let csi = csi.unwrap();
        assert_eq!(csi.attributes, attributes(&[(VOLUME_HANDLE, "h")]));
        assert_eq!(csi.secret, Some((Some("n".into()), "s".into())));
        assert_eq!(csi.mount_options, ["noatime"]);
        let nfs = read(json!({"nfs": {"server": "s", "path": "/"}})).unwrap();
        assert_eq!(nfs.plugin, "nfs");
        let rbd = read(json!({"rbd": {"monitors": ["m"], "image": "i",
            "secretRef": {"name": "s", "namespace": "n"}}}));
        assert_eq!(rbd.unwrap().secret, Some((Some("n".into()), "s".into())));
        assert_eq!(read(json!({"hostPath": {"path": "/"}})), None);
    }
}

//! What a volume is to hold, worked out without touching the node. Pure.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use k8s_openapi::api::core::v1::{ConfigMap, KeyToPath, Secret};

use crate::SetUpError;

/// Mode of a file for which the volume gives none (validation fills it in as well).
pub const DEFAULT_MODE: u32 = 0o644;

/// Longest path a volume may hold, in bytes (`maxPathLength` of Kubernetes' atomic writer).
const PATH_BYTES_MAX: usize = 4096;

/// Longest name of one file, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// The files of a volume, by clean relative path.
pub type Payload = BTreeMap<String, File>;

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner, if not root.
    pub uid: Option<u32>,
}

/// Permission bits as the API has them: a signed number, absent for the default.
pub fn mode(bits: Option<i32>) -> u32 {
    bits.and_then(|bits| u32::try_from(bits).ok())
        .map_or(DEFAULT_MODE, |bits| bits & 0o777)
}

/// Files of a ConfigMap: each key, or the ones that `items` names.
///
/// # Errors
/// A key of `items` is not there and the volume is not `optional`, or a path leaves the volume.
pub fn config_map(
    object: &ConfigMap,
    items: &[KeyToPath],
    default_mode: u32,
    optional: bool,
) -> Result<Payload, SetUpError> {
    let text = object
        .data
        .iter()
        .flatten()
        .map(|(key, text)| (key.as_str(), text.as_bytes()));
    let binary = object
        .binary_data
        .iter()
        .flatten()
        .map(|(key, bytes)| (key.as_str(), bytes.0.as_slice()));
    select(
        text.chain(binary).collect(),
        items,
        default_mode,
        optional,
        "configmap references non-existent config key",
    )
}

/// Files of a Secret: each key, or the ones that `items` names.
///
/// # Errors
/// As [`config_map`].
pub fn secret(
    object: &Secret,
    items: &[KeyToPath],
    default_mode: u32,
    optional: bool,
) -> Result<Payload, SetUpError> {
    let keys = object
        .data
        .iter()
        .flatten()
        .map(|(key, bytes)| (key.as_str(), bytes.0.as_slice()));
    select(
        keys.collect(),
        items,
        default_mode,
        optional,
        "references non-existent secret key",
    )
}

fn select(
    keys: BTreeMap<&str, &[u8]>,
    items: &[KeyToPath],
    default_mode: u32,
    optional: bool,
    missing: &str,
) -> Result<Payload, SetUpError> {
    let mut payload = Payload::new();
    if items.is_empty() {
        for (key, data) in keys {
            insert(
                &mut payload,
                key,
                File {
                    data: data.to_vec(),
                    mode: default_mode,
                    uid: None,
                },
            )?;
        }
        return Ok(payload);
    }
    for item in items {
        match keys.get(item.key.as_str()) {
            Some(data) => {
                let mode = item.mode.map_or(default_mode, |bits| mode(Some(bits)));
                insert(
                    &mut payload,
                    &item.path,
                    File {
                        data: data.to_vec(),
                        mode,
                        uid: None,
                    },
                )?;
            }
            None if optional => {}
            None => return Err(SetUpError::NotFound(format!("{missing}: {}", item.key))),
        }
    }
    Ok(payload)
}

/// Puts a file into a payload under its clean path; a later file of the same path wins.
///
/// # Errors
/// The path leaves the volume, is too long, or passes through another file.
pub fn insert(payload: &mut Payload, path: &str, file: File) -> Result<(), SetUpError> {
    let path = clean_path(path)?;
    let above = path
        .match_indices('/')
        .map(|(end, _)| &path[..end])
        .find(|dir| payload.contains_key(*dir));
    let below = format!("{path}/");
    let below = payload
        .range(below.clone()..)
        .next()
        .filter(|(other, _)| other.starts_with(&below));
    if let Some(other) = above.or(below.map(|(other, _)| other.as_str())) {
        return Err(SetUpError::Invalid(format!(
            "invalid path: {path} and {other} cannot both be files"
        )));
    }
    payload.insert(path, file);
    Ok(())
}

/// A path below the volume's root in its shortest form.
///
/// # Errors
/// It is empty, absolute, too long, climbs, or could be mistaken for the writer's own files, which
/// begin with two dots.
pub fn clean_path(path: &str) -> Result<String, SetUpError> {
    let invalid = |why: &str| {
        Err(SetUpError::Invalid(format!(
            "invalid path: {why}: {path:?}"
        )))
    };
    if path.is_empty() {
        return invalid("must not be empty");
    }
    if path.starts_with('/') {
        return invalid("must be relative path");
    }
    if path.len() > PATH_BYTES_MAX {
        return invalid(&format!(
            "must be less than or equal to {PATH_BYTES_MAX} characters"
        ));
    }
    if path.contains('\0') {
        return invalid("must not contain NUL");
    }
    let mut parts = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().unwrap_or_default()),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return invalid("must not contain '..'");
            }
        }
    }
    let Some(first) = parts.first() else {
        return invalid("must name a file");
    };
    if first.starts_with("..") {
        return invalid("must not start with '..'");
    }
    if parts.iter().any(|part| part.len() > NAME_BYTES_MAX) {
        return invalid(&format!(
            "filenames must be no longer than {NAME_BYTES_MAX} characters"
        ));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use proptest::prelude::*;

    use super::*;

    fn map() -> ConfigMap {
        ConfigMap {
            data: Some([("a".into(), "text".into()), ("b".into(), "more".into())].into()),
            binary_data: Some([("bin".into(), ByteString(vec![0, 255]))].into()),
            ..ConfigMap::default()
        }
    }

    fn item(key: &str, path: &str, mode: Option<i32>) -> KeyToPath {
        KeyToPath {
            key: key.into(),
            path: path.into(),
            mode,
        }
    }

    #[test]
    fn without_items_every_key_is_a_file() {
        let payload = config_map(&map(), &[], 0o640, false).unwrap();
        let shown: Vec<_> = payload
            .iter()
            .map(|(path, file)| (path.as_str(), file.data.clone(), file.mode))
            .collect();
        assert_eq!(
            shown,
            [
                ("a", b"text".to_vec(), 0o640),
                ("b", b"more".to_vec(), 0o640),
                ("bin", vec![0, 255], 0o640)
            ]
        );
    }

    #[test]
    fn items_choose_rename_and_set_modes() {
        let payload = config_map(
            &map(),
            &[item("bin", "x/./y", Some(0o400)), item("a", "z", None)],
            0o644,
            false,
        )
        .unwrap();
        assert_eq!(payload.keys().collect::<Vec<_>>(), ["x/y", "z"]);
        assert_eq!((payload["x/y"].mode, payload["z"].mode), (0o400, 0o644));
    }

    #[test]
    fn a_missing_key_is_an_error_unless_optional() {
        let items = [item("k", "k", None)];
        assert_eq!(
            config_map(&map(), &items, 0o644, false)
                .unwrap_err()
                .to_string(),
            "configmap references non-existent config key: k"
        );
        assert_eq!(
            secret(&Secret::default(), &items, 0o644, false)
                .unwrap_err()
                .to_string(),
            "references non-existent secret key: k"
        );
        assert!(config_map(&map(), &items, 0o644, true).unwrap().is_empty());
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        for (path, want) in [
            ("", None),
            ("/etc/passwd", None),
            ("../x", None),
            ("a/../../x", None),
            ("a/..", None),
            ("..data", None),
            ("..x", None),
            (".", None),
            ("a\0b", None),
            ("a", Some("a")),
            ("./a//b/", Some("a/b")),
            (".hidden", Some(".hidden")),
            ("a/..b", Some("a/..b")),
        ] {
            assert_eq!(clean_path(path).ok().as_deref(), want, "{path:?}");
        }
        assert!(clean_path(&"x".repeat(256)).is_err());
        assert!(clean_path(&"x/".repeat(2100)).is_err());
    }

    #[test]
    fn a_file_cannot_also_be_a_directory() {
        let file = || File {
            data: vec![],
            mode: 0o644,
            uid: None,
        };
        let mut payload = Payload::new();
        insert(&mut payload, "a/b", file()).unwrap();
        assert!(insert(&mut payload, "a", file()).is_err());
        assert!(insert(&mut payload, "a/b/c", file()).is_err());
        insert(&mut payload, "a.b", file()).unwrap();
        insert(&mut payload, "a/b", file()).unwrap();
    }

    proptest! {
        #[test]
        fn a_clean_path_is_relative_stays_below_and_is_its_own_clean_path(path in "[a./\\\\x]{0,12}") {
            if let Ok(clean) = clean_path(&path) {
                prop_assert!(!clean.starts_with('/') && !clean.starts_with(".."));
                prop_assert!(clean.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
                prop_assert_eq!(clean_path(&clean).unwrap(), clean);
            }
        }
    }
}

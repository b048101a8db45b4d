//! Directories that stand for PersistentVolumes of the class `local-path`.
//!
//! The control plane asks for them over the kubelet's HTTP (`/storage/local-path/<name>`): POST makes one, repeatably,
//! and answers where it is; DELETE removes one with everything in it. Nothing outside of `<root>/local-path` can be
//! named. Left to others: which claims get one (control plane), and mounting (`wherry-volumes`).

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::PathBuf,
};

use thiserror::Error;

/// Names are DNS subdomains, as those of objects are.
const NAME_MAX: usize = 253;

/// Directories are prefixed so while they are being removed; no volume can be called so.
const REMOVED: &str = "_";

/// Whoever runs in the pod may write, as with other provisioners of directories; `fsGroup` narrows it.
const MODE: u32 = 0o777;

/// A directory could not be made or removed.
#[derive(Debug, Error)]
pub enum StorageError {
    /// The name is no name of a volume.
    #[error("volume {0:?}: a lowercase RFC 1123 subdomain is expected")]
    Name(String),
    /// The file system says no.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The directories of one node.
#[derive(Clone, Debug)]
pub struct LocalVolumes {
    root: PathBuf,
}

impl LocalVolumes {
    /// Below the node's root, `<root>/local-path`.
    pub fn new(root: &std::path::Path) -> Self {
        Self {
            root: root.join("local-path"),
        }
    }

    /// Makes a volume's directory and answers where it is. Repeatable.
    ///
    /// # Errors
    /// The name is none, or the directory cannot be made.
    pub fn make(&self, name: &str) -> Result<PathBuf, StorageError> {
        let path = self.path(name)?;
        let io = |source| StorageError::Io {
            path: path.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.root)
            .map_err(io)?;
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => {
                made.map_err(io)?;
                // The process's umask has no say in it.
                fs::set_permissions(&path, Permissions::from_mode(MODE)).map_err(io)?;
            }
        }
        Ok(path)
    }

    /// Removes a volume's directory and everything in it. Repeatable; one that is not there is removed.
    ///
    /// # Errors
    /// The name is none, or something in the directory cannot be removed: it is tried again by the next call.
    pub fn remove(&self, name: &str) -> Result<(), StorageError> {
        let path = self.path(name)?;
        // Half a volume is never found under its name.
        let removed = self.root.join(format!("{REMOVED}{name}"));
        match fs::rename(&path, &removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(|source| StorageError::Io { path, source })?,
        }
        match fs::remove_dir_all(&removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            gone => gone.map_err(|source| StorageError::Io {
                path: removed,
                source,
            }),
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, StorageError> {
        let is_label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        if name.len() > NAME_MAX || !name.split('.').all(is_label) {
            return Err(StorageError::Name(name.to_owned()));
        }
        Ok(self.root.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_kept_and_removed_with_what_is_in_it() {
        let root = tempfile::tempdir().unwrap();
        let volumes = LocalVolumes::new(root.path());
        let path = volumes.make("pvc-1").unwrap();
        assert_eq!(path, root.path().join("local-path/pvc-1"));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, MODE);
        fs::create_dir(path.join("d")).unwrap();
        fs::write(path.join("d/f"), "data").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap();
        assert_eq!(volumes.make("pvc-1").unwrap(), path);
        assert_eq!(fs::read_to_string(path.join("d/f")).unwrap(), "data");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o750, "what a pod has made of it stays");

        let outside = root.path().join("outside");
        fs::write(&outside, "kept").unwrap();
        std::os::unix::fs::symlink(&outside, path.join("link")).unwrap();
        volumes.remove("pvc-1").unwrap();
        assert!(!path.exists() && outside.exists());
        volumes.remove("pvc-1").unwrap();
        assert_eq!(
            fs::read_dir(root.path().join("local-path"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn nothing_else_can_be_named() {
        let root = tempfile::tempdir().unwrap();
        let volumes = LocalVolumes::new(root.path());
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc",
            "_a",
            "A",
            "a..b",
            "-a",
            "a\0b",
            &"a".repeat(300),
        ] {
            assert!(volumes.make(name).is_err(), "{name:?}");
            assert!(volumes.remove(name).is_err(), "{name:?}");
        }
        assert!(!root.path().join("local-path").exists());
        assert!(volumes.make("pvc-0a1b.x").is_ok());
    }
}

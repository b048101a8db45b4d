//! Whose files a component's are.
//!
//! A component has no user: WASI knows none, and its worker is an unprivileged process that others
//! share. What `runAsUser`, `runAsGroup`, `fsGroup` and supplemental groups can mean is which files it
//! may use and who owns those it makes, and this they mean: each mount is shown to the worker with
//! the container's user and the worker's having changed places (`userns.rs`).
//!
//! A process has many groups and a mapping one. So each mount gets the one that counts there: that of
//! its directory where the container is in it, as with `fsGroup`, or of the first of its files of
//! which that is true, or else the container's own.
//!
//! What is missing: a user 0 is the owner of root's files and has no power over those of others.

use std::{collections::VecDeque, os::unix::fs::MetadataExt, path::Path};

use wherry_runtime_api::{ContainerSecurity, Mount, RuntimeError};

/// A volume's group shows at its top, or soon below in a Secret's or a ConfigMap's.
const FILES_LOOKED_AT_MAX: usize = 64;

/// User and groups of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    groups: Vec<u32>,
}

impl Identity {
    /// What the pod says, else the image, else root; of a container that must not be root and says
    /// no more, the worker's own.
    pub(crate) fn new(
        security: &ContainerSecurity,
        image_user: Option<&str>,
        worker: (u32, u32),
    ) -> Result<Self, RuntimeError> {
        let image = image_user.filter(|user| !user.is_empty());
        let named = |what: &str| {
            RuntimeError::InvalidArgument(format!(
                "user {what}: a Wasm image has no passwd file to look it up in; set runAsUser"
            ))
        };
        let (mut uid, mut gid) = match image {
            None if security.run_as_non_root => worker,
            None => (0, 0),
            Some(user) => {
                let (user, group) = user.split_once(':').unwrap_or((user, "0"));
                match (user.parse(), group.parse()) {
                    (Ok(user), Ok(group)) => (user, group),
                    // What the pod says makes up for it.
                    _ if security.run_as_user.is_some() => (0, 0),
                    _ => return Err(named(user)),
                }
            }
        };
        if let Some(user) = security.run_as_user {
            uid = user;
            // As for other runtimes: the image's group goes with the image's user.
            gid = 0;
        }
        gid = security.run_as_group.unwrap_or(gid);
        if security.run_as_non_root && uid == 0 {
            return Err(RuntimeError::InvalidArgument(
                "container has runAsNonRoot and would run as user 0".into(),
            ));
        }
        Ok(Self {
            uid,
            gid,
            groups: security.supplemental_groups.clone(),
        })
    }

    /// User and group for one mount.
    pub(crate) fn on(&self, mount: &Mount) -> (u32, u32) {
        if self.groups.is_empty() {
            return (self.uid, self.gid);
        }
        (
            self.uid,
            self.group_of(&mount.host_path).unwrap_or(self.gid),
        )
    }

    /// The first group of the container's that a file in a volume belongs to, directories first.
    fn group_of(&self, volume: &Path) -> Option<u32> {
        let mut waiting = VecDeque::from([volume.to_owned()]);
        for _ in 0..FILES_LOOKED_AT_MAX {
            let path = waiting.pop_front()?;
            let Ok(file) = std::fs::symlink_metadata(&path) else {
                continue;
            };
            if self.groups.contains(&file.gid()) {
                return Some(file.gid());
            }
            if file.is_dir() && waiting.len() < FILES_LOOKED_AT_MAX {
                let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
                waiting.extend(entries.take(FILES_LOOKED_AT_MAX).map(|entry| entry.path()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: (u32, u32) = (65_532, 65_532);

    #[test]
    fn the_pod_wins_over_the_image_and_the_image_over_root() {
        let security = |user, group| ContainerSecurity {
            run_as_user: user,
            run_as_group: group,
            ..ContainerSecurity::default()
        };
        for (image, user, group, expected) in [
            (None, None, None, (0, 0)),
            (Some("7:8"), None, None, (7, 8)),
            (Some("7"), None, None, (7, 0)),
            (Some("7:8"), Some(1000), None, (1000, 0)),
            (Some("7:8"), None, Some(9), (7, 9)),
            (Some("nginx"), Some(1000), Some(9), (1000, 9)),
        ] {
            let identity = Identity::new(&security(user, group), image, WORKER).unwrap();
            assert_eq!(
                (identity.uid, identity.gid),
                expected,
                "{image:?} {user:?} {group:?}"
            );
        }
        assert!(Identity::new(&security(None, None), Some("nginx"), WORKER).is_err());
    }

    #[test]
    fn a_mount_gets_the_group_that_its_files_are_of() {
        let volume = tempfile::tempdir().unwrap();
        let below = volume.path().join("..data");
        std::fs::create_dir(&below).unwrap();
        std::fs::write(below.join("word"), "sesame").unwrap();
        let mount = Mount {
            container_path: "/data".into(),
            host_path: volume.path().into(),
            readonly: false,
            recursive_readonly: false,
            propagation: wherry_runtime_api::MountPropagation::None,
        };
        let security = ContainerSecurity {
            run_as_user: Some(1000),
            run_as_group: Some(1001),
            supplemental_groups: vec![7, 4000],
            ..ContainerSecurity::default()
        };
        let identity = Identity::new(&security, None, WORKER).unwrap();
        assert_eq!(identity.on(&mount), (1000, 1001));
        std::os::unix::fs::chown(below.join("word"), None, Some(4000)).unwrap();
        assert_eq!(identity.on(&mount), (1000, 4000));
        std::os::unix::fs::chown(volume.path(), None, Some(7)).unwrap();
        assert_eq!(identity.on(&mount), (1000, 7));
    }

    #[test]
    fn who_must_not_be_root_is_the_workers_user_and_never_root() {
        let mut security = ContainerSecurity {
            run_as_non_root: true,
            ..ContainerSecurity::default()
        };
        let identity = Identity::new(&security, None, WORKER).unwrap();
        assert_eq!((identity.uid, identity.gid), WORKER);
        security.run_as_user = Some(0);
        assert!(Identity::new(&security, None, WORKER).is_err());
    }
}

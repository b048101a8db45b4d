//! Whose files a component's are.
//!
//! A component has no user: WASI knows none, and its worker is an unprivileged process that others
//! share. What `runAsUser`, `runAsGroup`, `fsGroup` and supplemental groups can mean is which files it
//! may use and who owns those it makes, and this they mean: each mount is shown to the worker with
//! the container's user and the worker's having changed places (`userns.rs`).
//!
//! A process has many groups and a mapping one. So each mount gets the one that counts there: that of
//! its directory where the container is in it, as with `fsGroup`, or else the container's own.
//!
//! What is missing: a user 0 is the owner of root's files and has no power over those of others.

use std::os::unix::fs::MetadataExt;

use wherry_runtime_api::{ContainerSecurity, Mount, RuntimeError};

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
        let owner = std::fs::metadata(&mount.host_path).map(|file| file.gid());
        let group = owner.ok().filter(|group| self.groups.contains(group));
        (self.uid, group.unwrap_or(self.gid))
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

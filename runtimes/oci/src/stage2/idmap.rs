//! A pod's own user namespace, as its processes come to be in it.
//!
//! Whoever sets a container up is the node's root until the very end, because only the node's root can show layers
//! and volumes with other IDs, make device nodes and mount what the pod shares. But what it makes belongs to the
//! pod's root ([`IdMap::own_files`]), and the last step is [`IdMap::enter`].
//!
//! The process namespace of a single container is the one thing that stays the node's: its first process has to be
//! the one that is still privileged. What a container with CAP_SYS_ADMIN loses by that is mounting `/proc` anew.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::sched::CloneFlags;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use wherry_runtime_api::UserNamespace;

use super::Failure;
use crate::{
    protocol::{FailureKind, Identity},
    sys,
};

/// The pod's user namespace: a descriptor, and the IDs of the node that it has.
pub(crate) struct IdMap<'a> {
    namespace: &'a OwnedFd,
    range: UserNamespace,
}

impl<'a> IdMap<'a> {
    pub(crate) fn new(namespace: &'a OwnedFd, range: UserNamespace) -> Self {
        Self { namespace, range }
    }

    /// The node's ID for one of the container's.
    pub(super) fn to_host(&self, id: u32) -> u32 {
        self.range.host_id.saturating_add(id)
    }

    /// Whether all IDs are ones that the namespace has.
    pub(super) fn verify(&self, identity: &Identity) -> Result<(), Failure> {
        let ids = [identity.uid, identity.gid];
        match ids
            .iter()
            .chain(&identity.groups)
            .find(|id| **id >= self.range.length)
        {
            None => Ok(()),
            Some(id) => Err(Failure::invalid(format!(
                "ID {id} is beyond the {} IDs of the pod's user namespace",
                self.range.length
            ))),
        }
    }

    /// Shows a tree that is attached nowhere yet with the pod's IDs: what is 0 on disk is the pod's root.
    pub(super) fn apply(
        &self,
        tree: BorrowedFd<'_>,
        recursive: bool,
        what: &str,
    ) -> Result<(), Failure> {
        let attributes = sys::MountAttributes {
            set: libc::MOUNT_ATTR_IDMAP,
            user_namespace: self.namespace.as_raw_fd() as u64,
            ..Default::default()
        };
        sys::mount_setattr(tree, recursive, attributes).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS) => Failure::new(
                    FailureKind::Unsupported,
                    format!(
                        "{what}: its file system cannot be shown with the IDs of the pod's user namespace: {error}"
                    ),
                ),
                _ => Failure::named(what)(error),
            }
        })
    }

    /// Puts a view of a directory with the pod's IDs over it, in the calling process' mount namespace.
    pub(crate) fn cover(&self, directory: &Path) -> Result<(), Failure> {
        let what = directory.display().to_string();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree =
            open_tree(rustix::fs::CWD, directory, flags).map_err(Failure::named(what.as_str()))?;
        self.apply(tree.as_fd(), false, &what)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", rustix::fs::CWD, directory, flags)
            .map_err(Failure::named(what.as_str()))
    }

    /// Makes the pod's root the owner of what the calling process makes from now on; it keeps its capabilities,
    /// `permitted`.
    pub(super) fn own_files(&self, permitted: u64) -> Result<(), Failure> {
        sys::set_fs_owner(self.range.host_id);
        sys::set_capabilities(permitted).map_err(Failure::named("capabilities"))
    }

    /// Enters the namespace with all capabilities there and none on the node. A first process gets mount and cgroup
    /// namespaces that belong to it: what is mounted so far can be added to, not taken away.
    pub(super) fn enter(&self, is_first: bool) -> Result<(), Failure> {
        let trouble = || Failure::named::<io::Error>("enter user namespace");
        nix::sched::setns(self.namespace, CloneFlags::CLONE_NEWUSER)
            .map_err(|error| trouble()(error.into()))?;
        if is_first {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
                .map_err(|error| trouble()(error.into()))?;
        }
        Ok(())
    }
}

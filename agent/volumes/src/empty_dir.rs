//! emptyDir: a directory that lives as long as its pod, on disk, in memory or in huge pages.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use crate::{
    SetUpError, mounts,
    ownership::{self, Access},
};

/// Everybody in the pod may use it.
const MODE: u32 = 0o777;

/// What an emptyDir is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EmptyDir {
    /// What it is made of.
    pub(crate) medium: Medium,
    /// The pod's `fsGroup`.
    pub(crate) fs_group: Option<u32>,
}

/// What an emptyDir is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// The disk of the node. A limit is watched by eviction.
    Disk,
    /// A tmpfs.
    Memory {
        /// Its size in bytes.
        size_bytes: Option<u64>,
    },
    /// A hugetlbfs; what it takes counts against the containers' limits.
    HugePages {
        /// The size of a page in bytes.
        page_bytes: u64,
    },
}

impl EmptyDir {
    /// Makes it, or finds it there.
    pub(crate) fn set_up(&self, dir: &Path) -> Result<(), SetUpError> {
        let io = || SetUpError::io(dir.display().to_string());
        fs::create_dir_all(dir).map_err(io())?;
        match self.medium {
            Medium::Disk => Ok(()),
            Medium::Memory { size_bytes } => mounts::mount_tmpfs(dir, MODE, size_bytes),
            Medium::HugePages { page_bytes } => mounts::mount_hugetlbfs(dir, page_bytes),
        }
        .map_err(io())?;
        let mode = fs::metadata(dir).map_err(io())?.permissions().mode();
        if mode & MODE != MODE {
            fs::set_permissions(dir, Permissions::from_mode(mode | MODE)).map_err(io())?;
        }
        match self.fs_group {
            Some(group) => ownership::give_to_group(dir, group, Access::ReadWrite).map_err(io()),
            None => Ok(()),
        }
    }
}

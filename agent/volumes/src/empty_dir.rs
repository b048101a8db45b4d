//! emptyDir: a directory that lives as long as its pod, on disk or in memory.

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
    /// Whether it is a tmpfs.
    pub(crate) in_memory: bool,
    /// Size of the tmpfs in bytes. On disk a limit is watched by eviction instead.
    pub(crate) size_bytes: Option<u64>,
    /// The pod's `fsGroup`.
    pub(crate) fs_group: Option<u32>,
}

impl EmptyDir {
    /// Makes it, or finds it there.
    pub(crate) fn set_up(&self, dir: &Path) -> Result<(), SetUpError> {
        let io = || SetUpError::io(dir.display().to_string());
        fs::create_dir_all(dir).map_err(io())?;
        if self.in_memory {
            mounts::mount_tmpfs(dir, MODE, self.size_bytes).map_err(io())?;
        }
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

//! `fsGroup`: giving a volume's files to a group.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown},
    path::Path,
};

/// Bits the group gets on files it may write (`rwMask` in `pkg/volume/volume_linux.go`).
const READ_WRITE: u32 = 0o660;
/// Bits the group gets on files it may only read (`roMask`).
const READ_ONLY: u32 = 0o440;
/// Bits added on directories: search, and the group handed on to new files.
const DIRECTORY: u32 = 0o2110;

/// Whether the group may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

/// Gives `group` everything below `root`, and `root` itself last: a root that has it already means
/// that an earlier run got to the end, so nothing is done. Links are not followed.
pub(crate) fn give_to_group(root: &Path, group: u32, access: Access) -> io::Result<()> {
    let found = fs::symlink_metadata(root)?;
    let wanted = bits(found.mode(), true, access);
    if found.gid() == group && found.mode() & 0o7777 == wanted {
        return Ok(());
    }
    descend(root, group, access)?;
    give(root, group, access)
}

fn descend(dir: &Path, group: u32, access: Access) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            descend(&entry.path(), group, access)?;
        }
        give(&entry.path(), group, access)?;
    }
    Ok(())
}

fn give(path: &Path, group: u32, access: Access) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if found.is_symlink() {
        return Ok(());
    }
    fs::set_permissions(
        path,
        Permissions::from_mode(bits(found.mode(), found.is_dir(), access)),
    )
}

/// The bits a file ends up with when a group may only read it.
pub(crate) fn read_only_bits(mode: u32) -> u32 {
    bits(mode, false, Access::ReadOnly)
}

fn bits(mode: u32, is_dir: bool, access: Access) -> u32 {
    let added = if access == Access::ReadWrite {
        READ_WRITE
    } else {
        READ_ONLY
    };
    mode & 0o7777 | added | if is_dir { DIRECTORY } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_gets_the_bits_that_kubernetes_gives() {
        for (mode, is_dir, access, want) in [
            (0o644, false, Access::ReadWrite, 0o664),
            (0o600, false, Access::ReadOnly, 0o640),
            (0o777, true, Access::ReadWrite, 0o2777),
            (0o755, true, Access::ReadOnly, 0o2755),
            (0o700, true, Access::ReadOnly, 0o2750),
        ] {
            assert_eq!(bits(mode, is_dir, access), want, "{mode:o}");
        }
    }

    #[test]
    fn files_and_directories_change_hands_and_links_targets_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(root.join("a/file"), "").unwrap();
        fs::write(dir.path().join("outside"), "").unwrap();
        std::os::unix::fs::symlink("../outside", root.join("link")).unwrap();
        give_to_group(&root, 4242, Access::ReadWrite).unwrap();
        for path in ["", "a", "a/file", "link"] {
            assert_eq!(
                fs::symlink_metadata(root.join(path)).unwrap().gid(),
                4242,
                "{path}"
            );
        }
        assert_ne!(
            fs::metadata(dir.path().join("outside")).unwrap().gid(),
            4242
        );
    }
}

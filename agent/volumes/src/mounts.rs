//! Mount points below a pod's directory, and removing what is there without leaving it.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, Mode, OFlags, StatxAttributes, StatxFlags, openat, renameat, statx,
        unlinkat,
    },
    io::Errno,
};

/// One descriptor is open for each level of a tear-down. What lies deeper is moved up to the root
/// first, so that no workload can make a tree that cannot be removed.
const DEPTH_MAX: usize = 256;

/// Most mounts taken off one mount point, and most times one directory is listed, before giving up
/// on somebody who keeps adding.
const ATTEMPTS_MAX: usize = 1024;

/// Whether something is mounted exactly at `path`. Costs one system call however many mounts the
/// node has.
///
/// # Errors
/// `path` cannot be looked at; the kernel is older than 5.8.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    is_mount_point_at(CWD, &CString::new(path.as_os_str().as_bytes())?)
}

fn is_mount_point_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = statx(dir, name, flags, StatxFlags::empty())?;
    if !found
        .stx_attributes_mask
        .contains(StatxAttributes::MOUNT_ROOT)
    {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel does not tell mount points",
        ));
    }
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Mounts a tmpfs at `path` unless something is mounted there. Its pages are kept out of swap where
/// the kernel can do that (6.4).
pub(crate) fn mount_tmpfs(path: &Path, mode: u32, size_bytes: Option<u64>) -> io::Result<()> {
    if is_mount_point(path)? {
        return Ok(());
    }
    let size = size_bytes.map_or_else(String::new, |size| format!(",size={size}"));
    let attempt = |options: &str| {
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some(options),
        )
    };
    match attempt(&format!("mode={mode:o}{size},noswap")) {
        Err(nix::errno::Errno::EINVAL) => attempt(&format!("mode={mode:o}{size}"))?,
        result => result?,
    }
    Ok(())
}

/// Mounts huge pages of one size at `path` unless something is mounted there.
pub(crate) fn mount_hugetlbfs(path: &Path, page_bytes: u64) -> io::Result<()> {
    if is_mount_point(path)? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = format!("pagesize={page_bytes}");
    let none = Some("nodev");
    Ok(mount(
        none,
        path,
        Some("hugetlbfs"),
        flags,
        Some(options.as_str()),
    )?)
}

/// Binds `source`, a directory or a file, at `target` for nobody to write, unless something is mounted there.
pub(crate) fn bind_read_only(source: &Path, target: &Path) -> io::Result<()> {
    if source.is_dir() {
        fs::create_dir_all(target)?;
    } else {
        fs::create_dir_all(target.parent().unwrap_or(target))?;
        fs::File::create(target)?;
    }
    if is_mount_point(target)? {
        return Ok(());
    }
    let none = None::<&str>;
    mount(Some(source), target, none, MsFlags::MS_BIND, none)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let made = mount(none, target, none, flags, none);
    if made.is_err() {
        // Never left where a pod could write.
        umount2(target, MntFlags::MNT_DETACH)?;
    }
    Ok(made?)
}

/// Takes off whatever is mounted at an entry of a directory. Gone already: `Ok`.
fn unmount_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // Through the descriptor, so that nobody can swap a directory above for a link meanwhile.
    let path = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name_of(name));
    for _ in 0..ATTEMPTS_MAX {
        match is_mount_point_at(dir, name) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("mounts keep coming"))
}

fn name_of(name: &CStr) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

/// Removes a tree: whatever is mounted in it is unmounted and never entered, symbolic links are
/// removed and never followed. Gone already: `Ok`.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the path of a directory",
        ));
    };
    let name = CString::new(name.as_bytes())?;
    match open_dir(CWD, &CString::new(parent.as_os_str().as_bytes())?) {
        Ok(parent) => remove_at(parent.as_fd(), &name, None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn open_dir(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?)
}

/// Where the tear-down is: what is too deep goes to the root.
#[derive(Clone, Copy)]
struct Place<'a> {
    root: BorrowedFd<'a>,
    depth: usize,
}

fn remove_at(dir: BorrowedFd<'_>, name: &CStr, place: Option<Place<'_>>) -> io::Result<()> {
    unmount_at(dir, name)?;
    let child = match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // A directory: EISDIR on Linux, EPERM by the letter of POSIX.
        Err(Errno::ISDIR | Errno::PERM) => open_dir(dir, name),
        Err(error) => return Err(error.into()),
    };
    let child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let (root, depth) = place.map_or((child.as_fd(), 0), |place| (place.root, place.depth));
    if depth == DEPTH_MAX {
        let moved = CString::new(format!(".deep.{}", uncommon_name(&child)?))?;
        return Ok(renameat(dir, name, root, &moved)?);
    }
    for _ in 0..ATTEMPTS_MAX {
        for entry in Dir::read_from(&child)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                remove_at(
                    child.as_fd(),
                    entry.file_name(),
                    Some(Place {
                        root,
                        depth: depth + 1,
                    }),
                )?;
            }
        }
        match unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("files keep coming"))
}

/// A name no sibling can have: the directory's own inode number.
fn uncommon_name(dir: &OwnedFd) -> io::Result<String> {
    Ok(rustix::fs::fstat(dir)?.st_ino.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn removing_never_leaves_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, tree) = (dir.path().join("outside"), dir.path().join("tree"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(tree.join("bound")).unwrap();
        fs::write(tree.join("a/bound-file"), "").unwrap();
        fs::create_dir(tree.join("a/tmp")).unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        symlink("nowhere", tree.join("a/b/dangling")).unwrap();
        let none: Option<&str> = None;
        mount(
            Some(&outside),
            &tree.join("bound"),
            none,
            MsFlags::MS_BIND,
            none,
        )
        .unwrap();
        mount(
            Some(&outside.join("kept")),
            &tree.join("a/bound-file"),
            none,
            MsFlags::MS_BIND,
            none,
        )
        .unwrap();
        mount_tmpfs(&tree.join("a/tmp"), 0o755, Some(1 << 20)).unwrap();
        fs::create_dir(tree.join("a/tmp/inner")).unwrap();
        mount_tmpfs(&tree.join("a/tmp/inner"), 0o755, Some(1 << 20)).unwrap();

        remove_tree(&tree).unwrap();

        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(tree.to_str().unwrap()), "mounts are left");
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn a_root_that_is_a_link_is_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        remove_tree(&dir.path().join("link")).unwrap();
        assert!(dir.path().join("real").exists());
        assert!(fs::symlink_metadata(dir.path().join("link")).is_err());
    }

    #[test]
    fn no_tree_is_too_deep_to_remove() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = open_dir(CWD, &CString::new(tree.as_os_str().as_bytes()).unwrap()).unwrap();
        for _ in 0..3 * DEPTH_MAX {
            rustix::fs::mkdirat(&at, c"d", Mode::from_raw_mode(0o755)).unwrap();
            at = open_dir(at.as_fd(), c"d").unwrap();
        }
        drop(at);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn huge_pages_are_mounted_and_taken_down() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("huge");
        fs::create_dir(&at).unwrap();
        mount_hugetlbfs(&at, 2 << 20).unwrap();
        mount_hugetlbfs(&at, 2 << 20).unwrap();
        let found = nix::sys::statvfs::statvfs(&at).unwrap();
        assert_eq!(found.fragment_size(), 2 << 20);
        remove_tree(&at).unwrap();
        assert!(!at.exists());
    }

    #[test]
    fn mounting_twice_mounts_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_mount_point(dir.path()).unwrap());
        mount_tmpfs(dir.path(), 0o750, Some(1 << 20)).unwrap();
        fs::write(dir.path().join("x"), "").unwrap();
        mount_tmpfs(dir.path(), 0o750, Some(1 << 20)).unwrap();
        assert!(is_mount_point(dir.path()).unwrap());
        assert!(dir.path().join("x").exists());
        remove_tree(dir.path()).unwrap();
        assert!(!dir.path().exists());
    }
}

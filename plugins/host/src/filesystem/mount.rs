//! Mounting FUSE for somebody else to serve.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
};

use nix::mount::{MntFlags, MsFlags, mount as mount_fs, umount2};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, statx};

/// As much as the volume server lets it.
const READ_AHEAD_KIB: &str = "1024";
/// Most mounts taken off one directory before giving up on somebody who keeps adding.
const ATTEMPTS_MAX: usize = 64;

/// Whether something is mounted on a directory, answering or not.
pub(crate) fn is_mounted(target: &Path) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    match statx(CWD, target, flags, StatxFlags::empty()) {
        Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        // Whoever served it is gone.
        Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Mounts FUSE on a directory, and answers the descriptor to serve it by. Every user may come in; the kernel
/// checks permissions by what files are said to be.
pub(crate) fn mount(target: &Path, plugin: &str, is_read_only: bool) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|error| {
        io::Error::new(
            io::Error::from(error).kind(),
            format!("open /dev/fuse: {error}"),
        )
    })?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read={}",
        device.as_raw_fd(),
        super::protocol::DATA_BYTES_MAX,
    );
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_RDONLY, is_read_only);
    let kind = format!("fuse.{plugin}");
    mount_fs(
        Some(plugin),
        target,
        Some(kind.as_str()),
        flags,
        Some(options.as_str()),
    )?;
    Ok(device)
}

/// Has the kernel read further ahead than it does by itself: several requests are under way while one is answered.
/// Where that cannot be said, reading is slower.
pub(crate) fn read_ahead(target: &Path) {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    if let Ok(found) = statx(CWD, target, flags, StatxFlags::empty()) {
        let (major, minor) = (found.stx_dev_major, found.stx_dev_minor);
        let device = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        let _ = std::fs::write(device, READ_AHEAD_KIB);
    }
}

/// Lets nobody write to what is mounted.
pub(crate) fn make_read_only(target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    let none: Option<&str> = None;
    Ok(mount_fs(none, target, none, flags, none)?)
}

/// Gives a volume's directory to a group, and what is made in it. A guest that knows no groups says so.
pub(crate) fn give(target: &Path, group: u32) -> io::Result<()> {
    let found = std::fs::metadata(target)?;
    if found.gid() == group {
        return Ok(());
    }
    std::os::unix::fs::chown(target, None, Some(group))?;
    let mode = found.mode() & 0o7777 | 0o2770;
    std::fs::set_permissions(target, std::fs::Permissions::from_mode(mode))
}

/// Takes off whatever is mounted on a directory. Nothing is, or it is gone: `Ok`.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    for _ in 0..ATTEMPTS_MAX {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("mounts keep coming"))
}

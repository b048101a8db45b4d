//! A pod's `/dev/shm`: a file system of its containers' own that is mounted nowhere on the node.
//!
//! Stage 1 holds it by a descriptor and stage 2 takes a clone of it, so it is gone with the pod however the
//! supervisor ends. Kernels before 6.15 cannot clone what is attached nowhere. There it is the root, and all there
//! is, of a mount namespace that the descriptor keeps alive.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::CloneFlags,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};

use crate::sys;

/// As in Docker and containerd.
const SIZE: &str = "64m";
/// A directory that every node has, to be mounted over in a mount namespace that nobody sees.
const PLACE: &str = "/proc";

/// The file system, as its holder has it.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    fd: OwnedFd,
    kind: Kind,
}

/// What the descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A mount attached nowhere.
    Detached,
    /// A mount namespace whose root it is.
    Namespace,
}

impl SharedMemory {
    /// Makes an empty one that belongs to this user and group of the node. Only for processes with one thread.
    pub(crate) fn make(owner: u32) -> io::Result<Self> {
        let detached = Self::make_detached(owner)?;
        match clone(detached.fd.as_fd(), Kind::Detached) {
            Ok(_) => Ok(detached),
            Err(_) => Self::make_in_namespace(owner),
        }
    }

    fn make_detached(owner: u32) -> io::Result<Self> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options(owner) {
            fsconfig_set_string(&context, key, value)?;
        }
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        Ok(Self {
            fd: fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?,
            kind: Kind::Detached,
        })
    }

    fn make_in_namespace(owner: u32) -> io::Result<Self> {
        let options = options(owner).map(|(key, value)| format!("{key}={value}"));
        let options = options.join(",");
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let ((wait, go), (ready, made)) = (pipe()?, pipe()?);
        let child = sys::fork(libc::CLONE_NEWNS)?;
        if child == 0 {
            drop((go, ready));
            if become_root(&options).is_ok() {
                let _ = rustix::io::write(&made, b"y");
                let _ = rustix::io::retry_on_intr(|| rustix::io::read(&wait, &mut [0; 1]));
            }
            sys::exit(0);
        }
        drop((wait, made));
        let mut word = [0; 1];
        let heard = rustix::io::retry_on_intr(|| rustix::io::read(&ready, &mut word));
        let namespace = match heard {
            Ok(1) => fs::File::open(format!("/proc/{child}/ns/mnt")),
            _ => Err(io::Error::other("/dev/shm: no mount namespace for it")),
        };
        drop(go);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None);
        Ok(Self {
            fd: namespace?.into(),
            kind: Kind::Namespace,
        })
    }

    /// What a child is handed.
    pub(crate) fn parts(&self) -> (&OwnedFd, Kind) {
        (&self.fd, self.kind)
    }
}

fn options(owner: u32) -> [(&'static str, String); 4] {
    [
        ("size", SIZE.to_owned()),
        ("mode", "1777".to_owned()),
        ("uid", owner.to_string()),
        ("gid", owner.to_string()),
    ]
}

/// Makes the file system the root of the calling process' mount namespace, and drops all else that is in it.
fn become_root(options: &str) -> nix::Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), flags, Some(options))?;
    nix::unistd::chdir(PLACE)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)
}

/// A clone that can be attached in the caller's mount namespace. Changes its working directory.
pub(crate) fn clone(fd: BorrowedFd<'_>, kind: Kind) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match kind {
        Kind::Detached => Ok(open_tree(fd, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?),
        Kind::Namespace => {
            let home = fs::File::open("/proc/self/ns/mnt")?;
            nix::sched::setns(fd, CloneFlags::CLONE_NEWNS)?;
            let tree = open_tree(rustix::fs::CWD, "/", flags);
            nix::sched::setns(home, CloneFlags::CLONE_NEWNS)?;
            Ok(tree?)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use rustix::mount::{MoveMountFlags, move_mount};

    use super::*;

    #[test]
    fn clones_of_either_kind_are_one_file_system() {
        let place = tempfile::tempdir().unwrap();
        let (a, b) = (place.path().join("a"), place.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        // A thread with mounts of its own: they go with it.
        std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
            const NONE: Option<&str> = None;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(NONE, "/", NONE, private, NONE).unwrap();
            for memory in [
                SharedMemory::make(7).unwrap(),
                SharedMemory::make_in_namespace(7).unwrap(),
            ] {
                let (fd, kind) = memory.parts();
                for at in [&a, &b] {
                    let tree = clone(fd.as_fd(), kind).unwrap();
                    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                    move_mount(&tree, "", rustix::fs::CWD, at, flags).unwrap();
                }
                fs::write(a.join("x"), "shared").unwrap();
                assert_eq!(fs::read_to_string(b.join("x")).unwrap(), "shared");
                let found = rustix::fs::stat(&b).unwrap();
                assert_eq!((found.st_uid, found.st_mode & 0o7777), (7, 0o1777));
                for at in [&a, &b] {
                    umount2(at.as_path(), MntFlags::MNT_DETACH).unwrap();
                }
            }
        })
        .join()
        .unwrap();
    }
}

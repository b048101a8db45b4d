//! A pod's mounts as directories a worker can be given.
//!
//! A worker is an unprivileged process that sees no files but those behind descriptors it is handed.
//! What it is handed is therefore not the host's directory but a detached copy of its mount: `..`
//! leads nowhere, read-only is the kernel's business (for everything below a mount, too), and, where
//! the file system allows it, user IDs are mapped so that the worker's user stands for the
//! container's (`identity.rs`). So no file has to be opened up for the worker's user.
//!
//! All mounts of a container hang in one tree at their container paths, below an empty read-only
//! root which is the guest's `/`. Since kernel 6.15 such a tree can be built without mounting it
//! anywhere; before, it is built in a mount namespace that lasts for a moment.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, statat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change,
        move_mount, open_tree,
    },
};
use wherry_runtime_api::{Mount, RuntimeError};

use crate::protocol::Preopen;

/// What a container is given.
#[derive(Debug, Default)]
pub(crate) struct Preopens {
    pub(crate) names: Vec<Preopen>,
    pub(crate) directories: Vec<OwnedFd>,
    pub(crate) warnings: Vec<String>,
}

/// A mount, and the user namespace through which it is seen.
#[derive(Clone, Debug)]
pub(crate) struct Source<'a> {
    pub(crate) mount: &'a Mount,
    pub(crate) user_namespace: Option<Arc<OwnedFd>>,
}

/// A detached copy of a mount, and where it belongs below the guest's root.
struct Branch {
    copy: OwnedFd,
    target: PathBuf,
    is_directory: bool,
}

/// Makes the directories for a container's mounts.
pub(crate) fn preopens(sources: &[Source<'_>]) -> Result<Preopens, RuntimeError> {
    for Source { mount, .. } in sources {
        if relative(&mount.container_path).is_none() {
            let path = mount.container_path.display();
            return Err(RuntimeError::InvalidArgument(format!(
                "mount {path}: not an absolute path without `..`"
            )));
        }
    }
    if sources.is_empty() {
        return Ok(Preopens::default());
    }
    let mut warnings = Vec::new();
    let branches = branches(sources, &mut warnings).and_then(|branches| {
        // The first is cheap and needs kernel 6.15; the second copies the node's mount table.
        match assemble_detached(&branches) {
            Err((None, _)) => assemble_in_namespace(branches),
            other => other,
        }
    });
    match branches {
        Ok(root) => Ok(Preopens {
            names: vec![Preopen {
                guest_path: "/".into(),
                readonly: false,
            }],
            directories: vec![root],
            warnings,
        }),
        // The tree cannot be built on this kernel, or not by us.
        Err((None, error)) => {
            tracing::debug!(%error, "No mount tree; giving directories one by one");
            Ok(one_by_one(sources))
        }
        Err((Some(path), error)) => {
            Err(RuntimeError::io(format!("mount {}", path.display()))(error))
        }
    }
}

/// What failed and at which mount; without one, nothing of the kind works here.
type TreeError = (Option<PathBuf>, io::Error);

fn branches(sources: &[Source<'_>], warnings: &mut Vec<String>) -> Result<Vec<Branch>, TreeError> {
    let mut branch = |source: &Source<'_>| {
        let copy = copy(source, warnings)?;
        let is_directory = File::from(copy.try_clone()?).metadata()?.is_dir();
        Ok(Branch {
            copy,
            target: relative(&source.mount.container_path).unwrap_or_default(),
            is_directory,
        })
    };
    let mut branches = Vec::with_capacity(sources.len());
    for source in sources {
        let failed = |error| (Some(source.mount.container_path.clone()), error);
        branches.push(branch(source).map_err(failed)?);
    }
    Ok(branches)
}

/// An empty file system that is mounted nowhere.
fn empty_root() -> Result<OwnedFd, TreeError> {
    let unavailable = |errno: Errno| (None, io::Error::from(errno));
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(unavailable)?;
    fsconfig_set_string(context.as_fd(), "mode", "0755").map_err(unavailable)?;
    fsconfig_create(context.as_fd()).map_err(unavailable)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(unavailable)
}

/// Hangs the branches on a root, in order: a later one may lie below an earlier one.
fn hang(root: &OwnedFd, branches: &[Branch]) -> Result<(), TreeError> {
    for (n, branch) in branches.iter().enumerate() {
        let failed = |error: io::Error| (Some(Path::new("/").join(&branch.target)), error);
        make_target(root.as_fd(), &branch.target, branch.is_directory).map_err(failed)?;
        let moved = move_mount(
            branch.copy.as_fd(),
            "",
            root.as_fd(),
            &branch.target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        );
        match moved {
            Ok(()) => {}
            Err(errno) if n == 0 => return Err((None, errno.into())),
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    Ok(())
}

fn read_only(root: OwnedFd) -> Result<OwnedFd, TreeError> {
    set_attributes(root.as_fd(), false, libc::MOUNT_ATTR_RDONLY, None)
        .map_err(|error| (None, error))?;
    Ok(root)
}

fn assemble_detached(branches: &[Branch]) -> Result<OwnedFd, TreeError> {
    let root = empty_root()?;
    hang(&root, branches)?;
    read_only(root)
}

/// The same for kernels that mount nothing on what is itself mounted nowhere: in a mount namespace
/// that lasts as long as a thread, from which a detached copy of the whole is taken.
fn assemble_in_namespace(branches: Vec<Branch>) -> Result<OwnedFd, TreeError> {
    let assemble = move || -> Result<OwnedFd, TreeError> {
        let unavailable = |errno: Errno| (None, io::Error::from(errno));
        enter_mount_namespace().map_err(|error| (None, error))?;
        // Nothing that is mounted here is to appear on the node.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).map_err(unavailable)?;
        let root = empty_root()?;
        let onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(root.as_fd(), "", rustix::fs::CWD, "/", onto).map_err(unavailable)?;
        hang(&root, &branches)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        read_only(open_tree(root.as_fd(), "", flags).map_err(unavailable)?)
    };
    let thread = std::thread::Builder::new()
        .name("mounts".into())
        .spawn(assemble)
        .map_err(|error| (None, error))?;
    let died = |_| (None, io::Error::other("the thread that mounts died"));
    thread.join().map_err(died)?
}

#[expect(
    unsafe_code,
    reason = "unshare of one thread has no safe wrapper in rustix"
)]
fn enter_mount_namespace() -> io::Result<()> {
    // SAFETY: takes no pointer. The calling thread alone gets a working directory and a mount table
    // of its own, and it does nothing else before it ends.
    match unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Without a tree: each directory by itself, and no single files.
fn one_by_one(sources: &[Source<'_>]) -> Preopens {
    let mut preopens = Preopens::default();
    for source in sources {
        let mount = source.mount;
        let path = mount.container_path.display();
        if !mount.host_path.is_dir() {
            preopens.warnings.push(format!(
                "mount {path}: this kernel has no detached mounts, and single files need them"
            ));
            continue;
        }
        let directory = copy(source, &mut preopens.warnings).or_else(|_| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(&mount.host_path, flags, Mode::empty())
        });
        match directory {
            Ok(directory) => {
                preopens.names.push(Preopen {
                    guest_path: path.to_string(),
                    readonly: mount.readonly,
                });
                preopens.directories.push(directory);
            }
            Err(error) => preopens.warnings.push(format!("mount {path}: {error}")),
        }
    }
    preopens
}

/// A detached, read-only copy of a directory of ours, whose files may be mapped as code.
pub(crate) fn copy_of_code(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let source = open_tree(rustix::fs::CWD, directory, flags)?;
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_RDONLY;
    set_attributes(source.as_fd(), false, attributes, None)?;
    Ok(source)
}

/// A detached copy of the mount below a host path.
fn copy(source: &Source<'_>, warnings: &mut Vec<String>) -> io::Result<OwnedFd> {
    let Source {
        mount,
        user_namespace,
    } = source;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let open = |flags| open_tree(rustix::fs::CWD, &mount.host_path, flags);
    let source = open(flags | OpenTreeFlags::AT_RECURSIVE)?;
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    if mount.readonly {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    set_attributes(source.as_fd(), true, attributes, None)?;
    if let Some(user_namespace) = user_namespace
        && let Err(error) = set_attributes(
            source.as_fd(),
            true,
            libc::MOUNT_ATTR_IDMAP,
            Some(user_namespace.as_fd()),
        )
    {
        tracing::debug!(path = %mount.host_path.display(), %error, "File system without mapped user IDs");
        if !mount.readonly {
            let path = mount.container_path.display();
            warnings.push(format!(
                "mount {path}: its file system cannot map user IDs; the component uses it as an unprivileged user"
            ));
        }
    }
    Ok(source)
}

/// A container path relative to its root; `None` if it could lead elsewhere.
fn relative(path: &Path) -> Option<PathBuf> {
    let mut components = path.components();
    if components.next() != Some(Component::RootDir) {
        return None;
    }
    let mut relative = PathBuf::new();
    for component in components {
        match component {
            Component::Normal(name) => relative.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!relative.as_os_str().is_empty()).then_some(relative)
}

/// Makes the directory or file to mount on, and what leads there, without following links.
fn make_target(root: BorrowedFd<'_>, target: &Path, is_directory: bool) -> io::Result<()> {
    let mut at: OwnedFd = root.try_clone_to_owned()?;
    let mut names = target.iter().peekable();
    while let Some(name) = names.next() {
        let is_last = names.peek().is_none();
        if is_last && !is_directory {
            match openat(
                &at,
                name,
                OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::from(0o644),
            ) {
                Ok(_) => return Ok(()),
                // A read-only mount that has the file already will do.
                Err(error) => {
                    return match statat(&at, name, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => Ok(()),
                        _ => Err(error.into()),
                    };
                }
            }
        }
        match mkdirat(&at, name, Mode::from(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        at = openat(
            &at,
            name,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
    }
    Ok(())
}

#[expect(
    unsafe_code,
    reason = "mount_setattr has no safe wrapper in rustix or nix"
)]
fn set_attributes(
    mount: BorrowedFd<'_>,
    recursive: bool,
    attributes: u64,
    user_namespace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.map_or(0, |fd| u64::try_from(fd.as_raw_fd()).unwrap_or(0)),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string, and the structure outlives the call and is as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use wherry_runtime_api::MountPropagation;

    use super::*;

    fn mount(container_path: &str, host_path: &Path, readonly: bool) -> Mount {
        Mount {
            container_path: container_path.into(),
            host_path: host_path.into(),
            readonly,
            recursive_readonly: false,
            propagation: MountPropagation::None,
        }
    }

    fn sources(mounts: &[Mount]) -> Vec<Source<'_>> {
        let source = |mount| Source {
            mount,
            user_namespace: None,
        };
        mounts.iter().map(source).collect()
    }

    #[test]
    fn an_older_kernels_way_builds_the_same_tree_and_mounts_nothing_on_the_node() {
        let host = tempfile::tempdir().unwrap();
        std::fs::create_dir(host.path().join("data")).unwrap();
        std::fs::write(host.path().join("last-words"), "").unwrap();
        let mounts = [
            mount("/data", &host.path().join("data"), false),
            mount(
                "/data/below/last-words",
                &host.path().join("last-words"),
                false,
            ),
        ];
        let table = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = table();
        let branches = branches(&sources(&mounts), &mut Vec::new()).unwrap();
        let root = assemble_in_namespace(branches).unwrap();
        let open = |path: &str, flags| openat(&root, path, flags, Mode::from(0o644));
        let mut words = File::from(open("data/below/last-words", OFlags::WRONLY).unwrap());
        std::io::Write::write_all(&mut words, b"bye").unwrap();
        assert_eq!(
            std::fs::read(host.path().join("last-words")).unwrap(),
            b"bye"
        );
        open("data/new", OFlags::CREATE | OFlags::WRONLY).unwrap();
        assert!(host.path().join("data/new").exists());
        let flags = OFlags::CREATE | OFlags::WRONLY;
        assert_eq!(open("new", flags).unwrap_err(), Errno::ROFS);
        assert!(
            open("../../data/new", OFlags::RDONLY).is_ok(),
            "the root's parent is the root"
        );
        assert!(
            !table().contains(&*host.path().to_string_lossy()),
            "{before}"
        );
    }

    #[test]
    fn files_and_directories_hang_in_one_tree_and_the_way_up_leads_nowhere() {
        let host = tempfile::tempdir().unwrap();
        std::fs::create_dir(host.path().join("data")).unwrap();
        std::fs::write(host.path().join("hosts"), "127.0.0.1 localhost").unwrap();
        let mounts = [
            mount("/data", &host.path().join("data"), false),
            mount("/etc/hosts", &host.path().join("hosts"), true),
        ];
        let preopens = preopens(&sources(&mounts)).unwrap();
        assert_eq!(
            preopens.names,
            [Preopen {
                guest_path: "/".into(),
                readonly: false
            }]
        );
        let root = &preopens.directories[0];
        let open = |path: &str, flags| openat(root, path, flags, Mode::from(0o644));
        assert!(open("etc/hosts", OFlags::RDONLY).is_ok());
        assert_eq!(open("etc/hosts", OFlags::WRONLY).unwrap_err(), Errno::ROFS);
        assert_eq!(
            open("new", OFlags::CREATE | OFlags::WRONLY).unwrap_err(),
            Errno::ROFS
        );
        open("data/new", OFlags::CREATE | OFlags::WRONLY).unwrap();
        assert!(host.path().join("data/new").exists());
        let above = open("data/../..", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        assert!(
            openat(&above, "data/new", OFlags::RDONLY, Mode::empty()).is_ok(),
            "the root's parent is the root"
        );
    }

    #[test]
    fn paths_that_could_lead_out_are_refused() {
        for path in ["data", "/", "/a/../../b", ""] {
            assert!(
                preopens(&sources(&[mount(path, Path::new("/tmp"), false)])).is_err(),
                "{path}"
            );
        }
    }

    #[test]
    fn a_target_is_made_below_an_earlier_mount() {
        let host = tempfile::tempdir().unwrap();
        for name in ["outer", "inner"] {
            std::fs::create_dir(host.path().join(name)).unwrap();
        }
        std::fs::set_permissions(
            host.path().join("inner"),
            std::fs::Permissions::from_mode(0o700),
        )
        .unwrap();
        let mounts = [
            mount("/outer", &host.path().join("outer"), false),
            mount("/outer/x/inner", &host.path().join("inner"), false),
        ];
        let preopens = preopens(&sources(&mounts)).unwrap();
        let inner = statat(&preopens.directories[0], "outer/x/inner", AtFlags::empty()).unwrap();
        assert_eq!(
            inner.st_ino,
            host.path().join("inner").metadata().unwrap().ino()
        );
    }
}

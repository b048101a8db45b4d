//! A pod's mounts as directories a worker can be given.
//!
//! A worker is an unprivileged process that sees no files but those behind descriptors it is handed.
//! What it is handed is therefore not the host's directory but a detached copy of its mount: `..`
//! leads nowhere, read-only is the kernel's business, and, where the file system allows it, user IDs
//! are mapped so that the worker's user stands for root. So a component finds and makes files as a
//! container running as root does, and no file has to be opened up for the worker's user.
//!
//! All mounts of a container hang in one tree at their container paths, below an empty read-only
//! root which is the guest's `/`. Kernels before 6.15 cannot build such a tree; there the guest gets
//! each directory by itself, and mounts of single files are left out with a warning.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, statat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
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

/// Makes the directories for a container's mounts.
pub(crate) fn preopens(
    mounts: &[Mount],
    user_namespace: Option<BorrowedFd<'_>>,
) -> Result<Preopens, RuntimeError> {
    for mount in mounts {
        if relative(&mount.container_path).is_none() {
            let path = mount.container_path.display();
            return Err(RuntimeError::InvalidArgument(format!(
                "mount {path}: not an absolute path without `..`"
            )));
        }
    }
    if mounts.is_empty() {
        return Ok(Preopens::default());
    }
    match tree(mounts, user_namespace) {
        Ok(tree) => Ok(tree),
        // The tree cannot be built on this kernel, or not by us.
        Err((None, error)) => {
            tracing::debug!(%error, "No mount tree; giving directories one by one");
            Ok(one_by_one(mounts, user_namespace))
        }
        Err((Some(path), error)) => {
            Err(RuntimeError::io(format!("mount {}", path.display()))(error))
        }
    }
}

type TreeError = (Option<PathBuf>, io::Error);

fn tree(mounts: &[Mount], user_namespace: Option<BorrowedFd<'_>>) -> Result<Preopens, TreeError> {
    let unavailable = |errno: Errno| (None, io::Error::from(errno));
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(unavailable)?;
    fsconfig_set_string(context.as_fd(), "mode", "0755").map_err(unavailable)?;
    fsconfig_create(context.as_fd()).map_err(unavailable)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root =
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(unavailable)?;
    let mut warnings = Vec::new();
    let mut first = true;
    for mount in mounts {
        let failed = |error: io::Error| (Some(mount.container_path.clone()), error);
        let source = copy(mount, user_namespace, &mut warnings).map_err(failed)?;
        let is_directory = File::from(source.try_clone().map_err(failed)?)
            .metadata()
            .map_err(failed)?
            .is_dir();
        let target = relative(&mount.container_path).unwrap_or_default();
        make_target(root.as_fd(), &target, is_directory).map_err(failed)?;
        let moved = move_mount(
            source.as_fd(),
            "",
            root.as_fd(),
            &target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        );
        match moved {
            Ok(()) => {}
            Err(errno) if first => return Err(unavailable(errno)),
            Err(errno) => return Err(failed(errno.into())),
        }
        first = false;
    }
    set_attributes(root.as_fd(), false, libc::MOUNT_ATTR_RDONLY, None)
        .map_err(|error| (None, error))?;
    Ok(Preopens {
        names: vec![Preopen {
            guest_path: "/".into(),
            readonly: false,
        }],
        directories: vec![root],
        warnings,
    })
}

fn one_by_one(mounts: &[Mount], user_namespace: Option<BorrowedFd<'_>>) -> Preopens {
    let mut preopens = Preopens::default();
    for mount in mounts {
        let path = mount.container_path.display();
        if !mount.host_path.is_dir() {
            preopens
                .warnings
                .push(format!("mount {path}: single files need kernel 6.15"));
            continue;
        }
        let mut warnings = Vec::new();
        let directory = copy(mount, user_namespace, &mut warnings).or_else(|_| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(&mount.host_path, flags, Mode::empty())
        });
        preopens.warnings.append(&mut warnings);
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
fn copy(
    mount: &Mount,
    user_namespace: Option<BorrowedFd<'_>>,
    warnings: &mut Vec<String>,
) -> io::Result<OwnedFd> {
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
            Some(user_namespace),
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

    #[test]
    fn files_and_directories_hang_in_one_tree_and_the_way_up_leads_nowhere() {
        let host = tempfile::tempdir().unwrap();
        std::fs::create_dir(host.path().join("data")).unwrap();
        std::fs::write(host.path().join("hosts"), "127.0.0.1 localhost").unwrap();
        let mounts = [
            mount("/data", &host.path().join("data"), false),
            mount("/etc/hosts", &host.path().join("hosts"), true),
        ];
        let preopens = preopens(&mounts, None).unwrap();
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
                preopens(&[mount(path, Path::new("/tmp"), false)], None).is_err(),
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
        let preopens = preopens(&mounts, None).unwrap();
        let inner = statat(&preopens.directories[0], "outer/x/inner", AtFlags::empty()).unwrap();
        assert_eq!(
            inner.st_ino,
            host.path().join("inner").metadata().unwrap().ino()
        );
    }
}

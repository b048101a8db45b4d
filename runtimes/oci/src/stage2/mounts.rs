//! A container's file systems.
//!
//! Sources are cloned off the node's tree first; then the root is entered; then everything is attached
//! to paths that are resolved inside that root. All of it lives in the container's own mount namespace,
//! so that nothing has to be cleaned up however the container ends.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::symlink,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, makedev, mknod},
};
use oci_spec::runtime::{LinuxDeviceType, Mount, Spec};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::{Failure, IdMap, permitted_capabilities};
use wherry_cgroup::Cgroups;

use crate::{bundle::Bundle, shm, sys};

/// Links followed for one path, as in the kernel.
const LINKS_MAX: usize = 40;

const NONE: Option<&str> = None;

/// What a container's file systems have in common with those of its pod.
pub(super) struct Shared<'a> {
    pub(super) cgroups: &'a Cgroups,
    /// The pod's `/dev/shm`.
    pub(super) shm: Option<(&'a OwnedFd, shm::Kind)>,
    /// The pod's user namespace.
    pub(super) ids: Option<&'a IdMap<'a>>,
}

/// Makes the root file system and enters it.
pub(super) fn enter_root(
    spec: &Spec,
    bundle: &Bundle,
    directory: &Path,
    shared: &Shared<'_>,
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    let linux = spec.linux().clone().unwrap_or_default();
    let propagation = propagation(linux.rootfs_propagation().as_deref().unwrap_or("rprivate"));
    // Whatever happens to mounts here from now on is not for the node, unless a pod asked for that.
    let whole = if propagation == MsFlags::MS_SHARED {
        propagation
    } else {
        MsFlags::MS_SLAVE
    };
    mount(NONE, "/", NONE, MsFlags::MS_REC | whole, NONE)
        .map_err(Failure::named("mount propagation"))?;
    let rootfs = directory.join("rootfs");
    if whole == MsFlags::MS_SHARED {
        let parent = mountpoint_of(&rootfs).map_err(Failure::named("mount points"))?;
        mount(NONE, &parent, NONE, MsFlags::MS_PRIVATE, NONE)
            .map_err(Failure::named(parent.display().to_string()))?;
    }

    let mounts = spec.mounts().clone().unwrap_or_default();
    let mut sources = Vec::with_capacity(mounts.len());
    for entry in &mounts {
        sources.push(if is_bind(entry) {
            Some(clone_source(entry, shared.ids)?)
        } else {
            None
        });
    }
    let mut shm = shared
        .shm
        .filter(|_| bundle.pod_shm)
        .map(|(fd, kind)| shm::clone(fd.as_fd(), kind));
    for layer in bundle.layers.iter().filter(|_| shared.ids.is_some()) {
        shared.ids.map_or(Ok(()), |ids| ids.cover(layer))?;
    }
    mount_overlay(bundle, directory, &rootfs)?;
    // Read while there is a /proc.
    let permitted = permitted_capabilities();
    change_root(&rootfs).map_err(Failure::named("enter the root file system"))?;
    if let Some(ids) = shared.ids {
        ids.own_files(permitted.unwrap_or(u64::MAX))?;
    }

    for volume in &bundle.image_volumes {
        mount_image_volume(volume)?;
    }
    let has_terminal = spec
        .process()
        .as_ref()
        .and_then(oci_spec::runtime::Process::terminal)
        .unwrap_or(false);
    for (entry, source) in mounts.iter().zip(&sources) {
        let what = || format!("mount {}", entry.destination().display());
        match (source, entry.typ().as_deref()) {
            (Some(source), _) => attach(source, entry.destination())?,
            (None, Some("cgroup")) => {
                mount_cgroups(entry, shared.cgroups).map_err(Failure::named(what()))?
            }
            (None, Some("tmpfs"))
                if entry.destination() == Path::new("/dev/shm") && bundle.pod_shm =>
            {
                match shm.take() {
                    Some(Ok(shm)) => attach(&shm, entry.destination())?,
                    other => {
                        let why = other.and_then(Result::err).map(|error| error.to_string());
                        warnings.push(format!(
                            "/dev/shm is not shared with the pod's other containers: {}",
                            why.as_deref().unwrap_or("the pod has none")
                        ));
                        mount_system(entry, shared.ids).map_err(Failure::named(what()))?;
                    }
                }
            }
            (None, _) => mount_system(entry, shared.ids).map_err(Failure::named(what()))?,
        }
        if entry.destination() == Path::new("/dev") {
            make_devices(spec).map_err(Failure::named("/dev"))?;
            if has_terminal {
                fs::File::create("/dev/console").map_err(Failure::named("/dev/console"))?;
            }
        }
    }
    Ok(())
}

/// What may be done only once everything else is: masks, and the read-only root.
pub(super) fn seal(spec: &Spec) -> Result<(), Failure> {
    let linux = spec.linux().clone().unwrap_or_default();
    for path in linux.readonly_paths().iter().flatten() {
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        match mount(Some(path.as_str()), path.as_str(), NONE, bind, NONE) {
            Err(nix::errno::Errno::ENOENT) => continue,
            other => other.map_err(Failure::named(path))?,
        }
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept_flags(path);
        mount(NONE, path.as_str(), NONE, flags, NONE).map_err(Failure::named(path))?;
    }
    for path in linux.masked_paths().iter().flatten() {
        let masked = match fs::metadata(path) {
            Ok(found) if found.is_dir() => mount(
                Some("tmpfs"),
                path.as_str(),
                Some("tmpfs"),
                MsFlags::MS_RDONLY,
                Some("size=0k"),
            ),
            Ok(_) => mount(
                Some("/dev/null"),
                path.as_str(),
                NONE,
                MsFlags::MS_BIND,
                NONE,
            ),
            Err(_) => continue,
        };
        masked.map_err(Failure::named(path))?;
    }
    if spec
        .root()
        .as_ref()
        .and_then(oci_spec::runtime::Root::readonly)
        .unwrap_or(false)
    {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, "/", NONE, flags, NONE)
            .map_err(Failure::named("read-only root file system"))?;
    }
    Ok(())
}

/// Shows the terminal as `/dev/console`.
pub(super) fn bind_console() -> Result<(), Failure> {
    let terminal =
        rustix::termios::ttyname(io::stdin(), Vec::new()).map_err(Failure::named("terminal"))?;
    mount(
        Some(terminal.as_c_str()),
        c"/dev/console",
        None::<&std::ffi::CStr>,
        MsFlags::MS_BIND,
        None::<&std::ffi::CStr>,
    )
    .map_err(Failure::named("/dev/console"))
}

fn is_bind(entry: &Mount) -> bool {
    entry.typ().as_deref() == Some("bind")
}

fn propagation(name: &str) -> MsFlags {
    match name {
        "rshared" | "shared" => MsFlags::MS_SHARED,
        "rslave" | "slave" => MsFlags::MS_SLAVE,
        _ => MsFlags::MS_PRIVATE,
    }
}

/// Takes a copy of a piece of the node's tree, with the entry's access and propagation.
fn clone_source(entry: &Mount, ids: Option<&IdMap<'_>>) -> Result<OwnedFd, Failure> {
    let source = entry.source().clone().unwrap_or_default();
    let what = || {
        format!(
            "mount {}: {}",
            entry.destination().display(),
            source.display()
        )
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(rustix::fs::CWD, &source, flags).map_err(Failure::named(what()))?;
    if let Some(ids) = ids {
        ids.apply(tree.as_fd(), true, &what())?;
    }
    for option in entry.options().iter().flatten() {
        let (recursive, attributes) = match option.as_str() {
            "ro" => (
                false,
                sys::MountAttributes {
                    set: libc::MOUNT_ATTR_RDONLY,
                    ..Default::default()
                },
            ),
            "rro" => (
                true,
                sys::MountAttributes {
                    set: libc::MOUNT_ATTR_RDONLY,
                    ..Default::default()
                },
            ),
            "rprivate" | "rslave" | "rshared" => {
                let propagation = propagation(option).bits();
                (
                    true,
                    sys::MountAttributes {
                        propagation,
                        ..Default::default()
                    },
                )
            }
            _ => continue,
        };
        sys::mount_setattr(tree.as_fd(), recursive, attributes).map_err(Failure::named(what()))?;
    }
    Ok(tree)
}

/// Attaches a tree where the container is to see it, making the place if need be.
fn attach(tree: &OwnedFd, destination: &Path) -> Result<(), Failure> {
    let what = || format!("mount {}", destination.display());
    let is_dir = fs::metadata(format!("/proc/self/fd/{}", tree.as_raw_fd()))
        .map(|found| found.is_dir())
        .or_else(|_| {
            rustix::fs::fstat(tree).map(|found| found.st_mode & libc::S_IFMT == libc::S_IFDIR)
        })
        .map_err(Failure::named(what()))?;
    let place = make_place(destination, is_dir).map_err(|error| match error.kind() {
        io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::AlreadyExists => Failure::invalid(format!("{}: {error}", what())),
        _ => Failure::named(what())(error),
    })?;
    move_mount(tree, "", rustix::fs::CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS)
        .map_err(|error| {
            let kind = io::Error::from(error);
            if matches!(error, rustix::io::Errno::NOTDIR | rustix::io::Errno::INVAL) {
                return Failure::invalid(format!(
                    "{}: not a directory: are you trying to mount a directory onto a file (or vice-versa)?",
                    what()
                ));
            }
            Failure::named(what())(kind)
        })
}

/// Makes a directory or an empty file where there is none, following links that lead nowhere yet.
fn make_place(path: &Path, is_dir: bool) -> io::Result<PathBuf> {
    let mut place = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::symlink_metadata(&place) {
            Ok(found) if found.is_symlink() && fs::metadata(&place).is_err() => {
                let target = fs::read_link(&place)?;
                place = normal(&place.parent().unwrap_or(Path::new("/")).join(target));
            }
            Ok(_) => return Ok(place),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if is_dir {
                    fs::create_dir_all(&place)?;
                } else {
                    if let Some(parent) = place.parent() {
                        fs::create_dir_all(parent)?;
                    }
                    fs::OpenOptions::new()
                        .create(true)
                        .write(true)
                        .truncate(false)
                        .open(&place)?;
                }
                return Ok(place);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// Makes a directory that the image declares as a volume a mount of its own: it can be written where the root cannot,
/// holds what the image has there, and goes with the container like any volume without a name.
fn mount_image_volume(volume: &Path) -> Result<(), Failure> {
    let what = || format!("volume {} of the image", volume.display());
    let place = make_place(&normal(volume), true).map_err(Failure::named(what()))?;
    if place == Path::new("/") {
        return Ok(());
    }
    let bind = MsFlags::MS_BIND;
    mount(Some(&place), &place, NONE, bind, NONE).map_err(Failure::named(what()))
}

/// Without `.` and `..`, by the text alone: inside the root there is nothing to escape to.
fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(part) => result.push(part),
            Component::ParentDir => drop(result.pop()),
            _ => {}
        }
    }
    result
}

fn mount_overlay(bundle: &Bundle, directory: &Path, rootfs: &Path) -> Result<(), Failure> {
    let open = |path: &Path| {
        rustix::fs::open(
            path,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(Failure::named(path.display().to_string()))
    };
    let mut layers = Vec::new();
    for layer in bundle.layers.iter().rev() {
        layers.push(open(layer)?);
    }
    if layers.is_empty() {
        layers.push(open(rootfs)?);
    }
    let (upper, work) = (
        open(&directory.join("upper"))?,
        open(&directory.join("work"))?,
    );
    // Descriptors' names, because options are one page at most and paths may hold colons.
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower: Vec<String> = layers.iter().map(name).collect();
    let base = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        name(&upper),
        name(&work)
    );
    // The writable layer ends with the container, so its syncs would wear disks for nothing.
    let options = format!("{base},volatile");
    let flags = MsFlags::empty();
    let mut result = mount(
        Some("overlay"),
        rootfs,
        Some("overlay"),
        flags,
        Some(options.as_str()),
    );
    if result == Err(nix::errno::Errno::EINVAL) {
        result = mount(
            Some("overlay"),
            rootfs,
            Some("overlay"),
            flags,
            Some(base.as_str()),
        );
    }
    result.map_err(Failure::named("mount the root file system"))
}

fn change_root(rootfs: &Path) -> io::Result<()> {
    let directory =
        rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let old = rustix::fs::open("/", directory, rustix::fs::Mode::empty())?;
    nix::unistd::chdir(rootfs)?;
    nix::unistd::pivot_root(".", ".")?;
    // The old root lies on the new one now; its unmounting is not to reach the node.
    nix::unistd::fchdir(&old)?;
    mount(NONE, ".", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    Ok(())
}

/// The mount that a path is on.
fn mountpoint_of(path: &Path) -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut best = PathBuf::from("/");
    for line in text.lines() {
        if let Some(point) = line.split(' ').nth(4) {
            let point = Path::new(point);
            if path.starts_with(point) && point.components().count() >= best.components().count() {
                best = point.to_owned();
            }
        }
    }
    Ok(best)
}

fn mount_system(entry: &Mount, ids: Option<&IdMap<'_>>) -> io::Result<()> {
    let kind = entry.typ().clone().unwrap_or_default();
    let mut options = entry.options().clone().unwrap_or_default();
    for option in &mut options {
        // The terminals' group: mounts are made with the node's IDs.
        if let (Some(ids), Some(Ok(gid))) = (ids, option.strip_prefix("gid=").map(str::parse)) {
            *option = format!("gid={}", ids.to_host(gid));
        }
    }
    let (flags, data) = parse_options(&options);
    let place = make_place(entry.destination(), true)?;
    // A link in the image (`/proc -> elsewhere`) must not move what later steps rely on.
    if place != *entry.destination() || fs::symlink_metadata(&place)?.is_symlink() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "is a symbolic link in the image",
        ));
    }
    mount(
        Some(kind.as_str()),
        &place,
        Some(kind.as_str()),
        flags,
        Some(data.as_str()),
    )?;
    Ok(())
}

fn parse_options(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        match option.as_str() {
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => {}
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

/// `/sys/fs/cgroup` as the container is to see it: its own group is the root.
fn mount_cgroups(entry: &Mount, cgroups: &Cgroups) -> io::Result<()> {
    let (flags, _) = parse_options(entry.options().as_deref().unwrap_or_default());
    let root = entry.destination();
    let place = make_place(root, true)?;
    let Some(controllers) = cgroups.v1_controllers() else {
        mount(Some("cgroup2"), &place, Some("cgroup2"), flags, NONE)?;
        return Ok(());
    };
    let writable = flags.difference(MsFlags::MS_RDONLY);
    mount(
        Some("tmpfs"),
        &place,
        Some("tmpfs"),
        writable,
        Some("mode=755,size=64k"),
    )?;
    for (name, hierarchy) in controllers {
        let directory_name = hierarchy.file_name().unwrap_or(std::ffi::OsStr::new(name));
        let directory = place.join(directory_name);
        if !directory.exists() {
            fs::create_dir(&directory)?;
            // Controllers mounted together can only be mounted together.
            let together: Vec<&str> = controllers
                .iter()
                .filter(|(_, other)| other == hierarchy)
                .map(|(name, _)| *name)
                .collect();
            mount(
                Some("cgroup"),
                &directory,
                Some("cgroup"),
                flags,
                Some(together.join(",").as_str()),
            )?;
        }
        if directory_name != std::ffi::OsStr::new(name) {
            let _ = symlink(directory_name, place.join(name));
        }
    }
    mount(
        NONE,
        &place,
        NONE,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags,
        NONE,
    )?;
    Ok(())
}

fn make_devices(spec: &Spec) -> io::Result<()> {
    let mode = Mode::from_bits_truncate;
    nix::sys::stat::umask(mode(0));
    for (name, minor) in [
        ("null", 3),
        ("zero", 5),
        ("full", 7),
        ("random", 8),
        ("urandom", 9),
    ] {
        mknod(
            &Path::new("/dev").join(name),
            SFlag::S_IFCHR,
            mode(0o666),
            makedev(1, minor),
        )?;
    }
    mknod("/dev/tty", SFlag::S_IFCHR, mode(0o666), makedev(5, 0))?;
    for (target, name) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("/proc/kcore", "core"),
        ("pts/ptmx", "ptmx"),
    ] {
        symlink(target, Path::new("/dev").join(name))?;
    }
    for device in spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.devices().as_ref())
        .into_iter()
        .flatten()
    {
        let kind = match device.typ() {
            LinuxDeviceType::B => SFlag::S_IFBLK,
            LinuxDeviceType::P => SFlag::S_IFIFO,
            _ => SFlag::S_IFCHR,
        };
        let path = normal(device.path());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let number = makedev(device.major() as u64, device.minor() as u64);
        match mknod(
            &path,
            kind,
            mode(device.file_mode().unwrap_or(0o666)),
            number,
        ) {
            Err(nix::errno::Errno::EEXIST) => {}
            other => {
                other.map_err(|error| {
                    io::Error::new(
                        io::Error::from(error).kind(),
                        format!("{}: {error}", path.display()),
                    )
                })?;
                std::os::unix::fs::chown(&path, device.uid(), device.gid())?;
            }
        }
    }
    nix::sys::stat::umask(mode(0o022));
    Ok(())
}

/// Flags that a remount has to repeat, or it would take them away.
fn kept_flags(path: &str) -> MsFlags {
    let Ok(found) = nix::sys::statvfs::statvfs(path) else {
        return MsFlags::empty();
    };
    let mut flags = MsFlags::empty();
    for (has, flag) in [
        (nix::sys::statvfs::FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (nix::sys::statvfs::FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (nix::sys::statvfs::FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        if found.flags().contains(has) {
            flags |= flag;
        }
    }
    flags
}

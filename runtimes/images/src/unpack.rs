//! Makes a layer's tar stream a directory that overlayfs can stack.
//!
//! Every name is resolved by the kernel inside the layer's directory (`openat2` with
//! `RESOLVE_IN_ROOT`), and the last component is never followed. So whatever links a layer brings,
//! absolute ones included, they lead nowhere outside.
//!
//! Whiteouts become overlayfs' own: `.wh.name` a character device 0:0 called `name`, and
//! `.wh..wh..opq` the attribute `trusted.overlay.opaque`. They concern the layers below alone, so
//! what a layer itself brings under such a name stays, wherever in the stream the two are.
//!
//! A layer is unpacked without regard to those below it, for other images may have others. Two
//! things follow, as with Docker's overlay2: a directory that the archive leaves out but puts files
//! into is made anew (root's, 0755), hiding a symbolic link of that name below; and a whiteout of
//! what is not there is seen by `readdir`, though nothing can be opened under its name.

use std::{
    ffi::{CString, OsStr},
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid,
        XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr, ftruncate, futimens, linkat,
        lsetxattr, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat,
        utimensat,
    },
    io::Errno,
};

use crate::{
    Limits,
    tarball::{Entry, Kind, Tarball},
};

/// Zeros of this length, aligned to it, become a hole. A block of the usual file systems.
const HOLE: usize = 4096;

/// Bytes of directory names remembered until the end. Enough for a million directories, and little
/// enough for a hostile layer of nothing but long names.
const DIRECTORY_NAMES_BYTES_MAX: usize = 64 << 20;

/// Why a layer was given up.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The stream is not a proper layer.
    Corrupt(String),
    /// It goes past a limit.
    TooLarge(String),
    /// The disk.
    Io(String, io::Error),
}

impl Failure {
    /// Sorts an error of the source: damaged data or a damaged disk.
    pub(crate) fn from_source(error: io::Error) -> Self {
        match error.downcast::<OverLimit>() {
            Ok(over) => Self::TooLarge(over.0),
            Err(error) if error.raw_os_error().is_some() => Self::Io("read layer".into(), error),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::Corrupt("layer ends too early".into())
            }
            Err(error) => Self::Corrupt(error.to_string()),
        }
    }
}

/// What a reader says when it has given as much as it may.
#[derive(Debug)]
pub(crate) struct OverLimit(pub(crate) String);

impl std::fmt::Display for OverLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OverLimit {}

/// What an image has used of its [`Limits`], over all its layers.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    bytes: AtomicU64,
    entries: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    fn spend(&self, bytes: u64) -> Result<(), Failure> {
        let entries = self.entries.fetch_add(1, Ordering::Relaxed) + 1;
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if entries > self.limits.entries_max {
            return Err(Failure::TooLarge(format!(
                "more than {} files",
                self.limits.entries_max
            )));
        }
        if before.saturating_add(bytes) > self.limits.unpacked_bytes_max {
            return Err(Failure::TooLarge(format!(
                "more than {} bytes when unpacked",
                self.limits.unpacked_bytes_max
            )));
        }
        Ok(())
    }
}

/// What a layer came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Bytes written.
    pub(crate) size_bytes: u64,
    /// Files, directories and links.
    pub(crate) entries: u64,
}

/// Unpacks a stream into `root`, an empty directory. What is left after the end of the archive is
/// not read.
pub(crate) fn unpack<R: Read>(
    tarball: &mut Tarball<R>,
    root: &Path,
    budget: &Budget,
) -> Result<Unpacked, Failure> {
    let root_fd = openat(
        CWD,
        root,
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| Failure::Io(root.display().to_string(), e.into()))?;
    let mut layer = Layer {
        root: root_fd,
        parent: None,
        directories: Vec::new(),
        directory_names_bytes: 0,
        done: Unpacked::default(),
        budget,
    };
    while let Some(entry) = tarball.next().map_err(Failure::from_source)? {
        layer.add(&entry, tarball)?;
    }
    layer.finish()
}

struct Layer<'a> {
    root: OwnedFd,
    /// The directory used last: entries come directory by directory.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories' times are set at the end, since every entry changes its directory's.
    directories: Vec<(Vec<u8>, (i64, u32))>,
    directory_names_bytes: usize,
    done: Unpacked,
    budget: &'a Budget,
}

/// What is at a name.
enum Present {
    Nothing,
    Directory,
    Whiteout,
    Other,
}

impl Layer<'_> {
    fn add<R: Read>(&mut self, entry: &Entry, data: &mut Tarball<R>) -> Result<(), Failure> {
        let path = normalize(&entry.path)?;
        let shown = String::from_utf8_lossy(&path).into_owned();
        self.budget
            .spend(if matches!(entry.kind, Kind::Regular(_)) {
                entry.size
            } else {
                0
            })?;
        self.done.entries += 1;
        let Some((parent, leaf)) = split(&path) else {
            return match entry.kind {
                Kind::Directory => {
                    let root = self
                        .root
                        .try_clone()
                        .map_err(|e| Failure::Io("layer".into(), e))?;
                    self.dress_directory(root.as_fd(), entry, path)
                }
                _ => Err(Failure::Corrupt(format!(
                    "entry {:?} replaces the root",
                    String::from_utf8_lossy(&entry.path)
                ))),
            };
        };
        let io = |e: Errno| path_failure(&shown, e);
        let directory = self.directory(parent)?;
        if let Some(hidden) = leaf.strip_prefix(b".wh.") {
            return self.whiteout(&directory, hidden, &shown);
        }

        let present = present(&directory, leaf).map_err(io)?;
        let is_link_to_itself = matches!(&entry.kind, Kind::Link(target) if normalize(target).is_ok_and(|target| target == path));
        if is_link_to_itself {
            return Ok(());
        }
        match (&present, &entry.kind) {
            (Present::Nothing, _) | (Present::Directory, Kind::Directory) => {}
            _ => self.remove(&directory, leaf, &present).map_err(io)?,
        }
        let owner = owner(entry)?;
        match &entry.kind {
            Kind::Directory => {
                if !matches!(present, Present::Directory) {
                    mkdirat(&directory, leaf, Mode::from_raw_mode(0o700)).map_err(io)?;
                }
                let made = openat(
                    &directory,
                    leaf,
                    OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY,
                    Mode::empty(),
                )
                .map_err(io)?;
                // The layers below had it removed here; so nothing of theirs may show through.
                if matches!(present, Present::Whiteout) {
                    make_opaque(&made).map_err(io)?;
                }
                self.dress_directory(made.as_fd(), entry, path)?;
            }
            Kind::Regular(map) => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file =
                    openat(&directory, leaf, flags, Mode::from_raw_mode(0o600)).map_err(io)?;
                self.done.size_bytes +=
                    write_file(&file, entry.size, map.as_deref(), data, &shown)?;
                fchown(&file, Some(owner.0), Some(owner.1)).map_err(io)?;
                fchmod(&file, mode(entry)).map_err(io)?;
                for (name, value) in kept_xattrs(entry) {
                    ignore_unsupported(fsetxattr(&file, name, value, XattrFlags::empty()))
                        .map_err(io)?;
                }
                futimens(&file, &times(entry.mtime)).map_err(io)?;
            }
            Kind::Link(target) => {
                let target = normalize(target)?;
                let missing = || {
                    Failure::Corrupt(format!(
                        "{shown}: hard link to {:?}, which this layer does not have",
                        String::from_utf8_lossy(&target)
                    ))
                };
                let (target_parent, target_leaf) = split(&target).ok_or_else(missing)?;
                let target_directory = self.open_in_root(target_parent).map_err(|e| match e {
                    Errno::NOENT | Errno::NOTDIR | Errno::LOOP => missing(),
                    e => path_failure(&shown, e),
                })?;
                match self::present(&target_directory, target_leaf).map_err(io)? {
                    Present::Other => {}
                    _ => return Err(missing()),
                }
                linkat(
                    &target_directory,
                    target_leaf,
                    &directory,
                    leaf,
                    AtFlags::empty(),
                )
                .map_err(io)?;
            }
            Kind::Symlink(target) => {
                if target.is_empty() {
                    return Err(Failure::Corrupt(format!(
                        "{shown}: symbolic link to nothing"
                    )));
                }
                let target = c_string(target)?;
                symlinkat(target.as_c_str(), &directory, leaf).map_err(io)?;
                self.dress_special(&directory, leaf, entry, owner)
                    .map_err(io)?;
            }
            Kind::CharacterDevice(major, minor) => {
                self.make_node(
                    &directory,
                    leaf,
                    FileType::CharacterDevice,
                    (*major, *minor),
                    entry,
                    owner,
                )
                .map_err(io)?;
            }
            Kind::BlockDevice(major, minor) => {
                self.make_node(
                    &directory,
                    leaf,
                    FileType::BlockDevice,
                    (*major, *minor),
                    entry,
                    owner,
                )
                .map_err(io)?;
            }
            Kind::Fifo => self
                .make_node(&directory, leaf, FileType::Fifo, (0, 0), entry, owner)
                .map_err(io)?,
        }
        Ok(())
    }

    fn whiteout(&mut self, directory: &OwnedFd, hidden: &[u8], shown: &str) -> Result<(), Failure> {
        let io = |e: Errno| path_failure(shown, e);
        if hidden == b".wh..opq" {
            // O_PATH descriptors take no attributes.
            let directory = openat(
                directory,
                ".",
                OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(io)?;
            return make_opaque(&directory).map_err(io);
        }
        // AUFS left housekeeping of its own in old images.
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(Failure::Corrupt(format!("{shown}: whiteout of nothing")));
        }
        match present(directory, hidden).map_err(io)? {
            Present::Nothing => mknodat(
                directory,
                hidden,
                FileType::CharacterDevice,
                Mode::empty(),
                makedev(0, 0),
            )
            .map_err(io),
            Present::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let own = openat(directory, hidden, flags, Mode::empty()).map_err(io)?;
                make_opaque(&own).map_err(io)
            }
            Present::Whiteout | Present::Other => Ok(()),
        }
    }

    /// Opens a directory of the layer, following the layer's own links inside the layer.
    fn open_in_root(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() {
            b".".as_slice()
        } else {
            path
        };
        openat2(
            &self.root,
            OsStr::from_bytes(path),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// The directory an entry goes into, made if the archive left it out.
    fn directory(&mut self, path: &[u8]) -> Result<OwnedFd, Failure> {
        let clone = |fd: &OwnedFd| fd.try_clone().map_err(|e| Failure::Io("layer".into(), e));
        if let Some((known, fd)) = &self.parent
            && known == path
        {
            return clone(fd);
        }
        let fd = match self.open_in_root(path) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(path)?,
            Err(e) => return Err(path_failure(&String::from_utf8_lossy(path), e)),
        };
        let answer = clone(&fd)?;
        self.parent = Some((path.to_vec(), fd));
        Ok(answer)
    }

    fn make_directories(&mut self, path: &[u8]) -> Result<OwnedFd, Failure> {
        let io = |e: Errno| path_failure(&String::from_utf8_lossy(path), e);
        let mut at = self.open_in_root(b"").map_err(io)?;
        let mut end = 0;
        for component in path.split(|b| *b == b'/') {
            end += component.len() + usize::from(end > 0);
            let found = present(&at, component).map_err(io)?;
            if matches!(found, Present::Whiteout) {
                self.remove(&at, component, &found).map_err(io)?;
            }
            if matches!(found, Present::Nothing | Present::Whiteout) {
                self.budget.spend(0)?;
                self.done.entries += 1;
                mkdirat(&at, component, Mode::from_raw_mode(0o755)).map_err(io)?;
                chmodat(&at, component, Mode::from_raw_mode(0o755), AtFlags::empty())
                    .map_err(io)?;
                if matches!(found, Present::Whiteout) {
                    let made = openat(
                        &at,
                        component,
                        OFlags::DIRECTORY | OFlags::CLOEXEC,
                        Mode::empty(),
                    )
                    .map_err(io)?;
                    make_opaque(&made).map_err(io)?;
                }
            }
            at = self.open_in_root(&path[..end]).map_err(io)?;
        }
        Ok(at)
    }

    fn remove(&mut self, directory: &OwnedFd, leaf: &[u8], present: &Present) -> Result<(), Errno> {
        self.parent = None;
        if !matches!(present, Present::Directory) {
            return unlinkat(directory, leaf, AtFlags::empty());
        }
        let path = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(OsStr::from_bytes(leaf));
        std::fs::remove_dir_all(path).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    }

    fn dress_directory(
        &mut self,
        fd: impl AsFd + Copy,
        entry: &Entry,
        path: Vec<u8>,
    ) -> Result<(), Failure> {
        let shown = String::from_utf8_lossy(&path).into_owned();
        let io = |e: Errno| path_failure(&shown, e);
        let (uid, gid) = owner(entry)?;
        fchown(fd, Some(uid), Some(gid)).map_err(io)?;
        fchmod(fd, mode(entry)).map_err(io)?;
        for (name, value) in kept_xattrs(entry) {
            ignore_unsupported(fsetxattr(fd, name, value, XattrFlags::empty())).map_err(io)?;
        }
        self.directory_names_bytes += path.len();
        if self.directory_names_bytes > DIRECTORY_NAMES_BYTES_MAX {
            let why = format!("directory names of more than {DIRECTORY_NAMES_BYTES_MAX} bytes");
            return Err(Failure::TooLarge(why));
        }
        self.directories.push((path, entry.mtime));
        Ok(())
    }

    fn make_node(
        &self,
        directory: &OwnedFd,
        leaf: &[u8],
        kind: FileType,
        device: (u32, u32),
        entry: &Entry,
        owner: (Uid, Gid),
    ) -> Result<(), Errno> {
        mknodat(
            directory,
            leaf,
            kind,
            Mode::from_raw_mode(0o600),
            makedev(device.0, device.1),
        )?;
        self.dress_special(directory, leaf, entry, owner)
    }

    /// Owner, mode and time of what cannot be opened.
    fn dress_special(
        &self,
        directory: &OwnedFd,
        leaf: &[u8],
        entry: &Entry,
        owner: (Uid, Gid),
    ) -> Result<(), Errno> {
        chownat(
            directory,
            leaf,
            Some(owner.0),
            Some(owner.1),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if !matches!(entry.kind, Kind::Symlink(_)) {
            chmodat(directory, leaf, mode(entry), AtFlags::empty())?;
        }
        let path = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(OsStr::from_bytes(leaf));
        for (name, value) in kept_xattrs(entry) {
            // `user.` attributes are for files and directories alone.
            match lsetxattr(&path, name, value, XattrFlags::empty()) {
                Err(Errno::PERM) => {}
                set => ignore_unsupported(set)?,
            }
        }
        utimensat(
            directory,
            leaf,
            &times(entry.mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )
    }

    fn finish(mut self) -> Result<Unpacked, Failure> {
        for (path, mtime) in std::mem::take(&mut self.directories).into_iter().rev() {
            let name = if path.is_empty() {
                b".".as_slice()
            } else {
                &path
            };
            let flags = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            // One that a later entry replaced is not there any more.
            let Ok(fd) = openat2(
                &self.root,
                OsStr::from_bytes(name),
                OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
                flags,
            ) else {
                continue;
            };
            futimens(&fd, &times(mtime))
                .map_err(|e| path_failure(&String::from_utf8_lossy(&path), e))?;
        }
        Ok(self.done)
    }
}

/// Writes a file's data, leaving holes where there are only zeros; answers the bytes written.
fn write_file<R: Read>(
    file: &OwnedFd,
    size: u64,
    map: Option<&[(u64, u64)]>,
    data: &mut Tarball<R>,
    shown: &str,
) -> Result<u64, Failure> {
    let io = |e: Errno| path_failure(shown, e);
    let whole = [(0, size)];
    let mut written = 0;
    let mut buffer = vec![0; (128 * 1024).min(usize::try_from(size.max(1)).unwrap_or(usize::MAX))];
    for (offset, length) in map.unwrap_or(&whole) {
        let mut at = *offset;
        let end = offset + length;
        while at < end {
            let most = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let part = &mut buffer[..most];
            data.read_exact(part).map_err(Failure::from_source)?;
            let part = &*part;
            let mut start = 0;
            while start < part.len() {
                let is_hole = |from: usize| {
                    part.len() - from >= HOLE && part[from..from + HOLE].iter().all(|b| *b == 0)
                };
                if is_hole(start) {
                    start += HOLE;
                    continue;
                }
                let mut stop = (start + HOLE).min(part.len());
                while stop < part.len() && !is_hole(stop) {
                    stop = (stop + HOLE).min(part.len());
                }
                let mut done = start;
                while done < stop {
                    done += rustix::io::pwrite(file, &part[done..stop], at + done as u64)
                        .map_err(io)?;
                }
                written += (stop - start) as u64;
                start = stop;
            }
            at += most as u64;
        }
    }
    ftruncate(file, size).map_err(io)?;
    Ok(written)
}

fn present(directory: &OwnedFd, leaf: &[u8]) -> Result<Present, Errno> {
    let stat = match statat(directory, leaf, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Present::Nothing),
        Err(e) => return Err(e),
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Present::Directory,
        FileType::CharacterDevice if stat.st_rdev == makedev(0, 0) => Present::Whiteout,
        _ => Present::Other,
    })
}

fn make_opaque(directory: &OwnedFd) -> Result<(), Errno> {
    fsetxattr(
        directory,
        "trusted.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    )
}

/// Not every file system has every attribute; an image is not refused for that.
fn ignore_unsupported(set: Result<(), Errno>) -> Result<(), Errno> {
    match set {
        Err(Errno::NOTSUP) => Ok(()),
        set => set,
    }
}

/// Attributes that an image may set. Not overlayfs' own, which would let it redirect names, and
/// none that the node's security modules read.
fn kept_xattrs(entry: &Entry) -> impl Iterator<Item = (&OsStr, &[u8])> {
    entry.xattrs.iter().filter_map(|(name, value)| {
        let is_kept = name == b"security.capability"
            || name.starts_with(b"system.posix_acl_")
            || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."));
        (is_kept && !name.contains(&0)).then_some((OsStr::from_bytes(name), value.as_slice()))
    })
}

fn owner(entry: &Entry) -> Result<(Uid, Gid), Failure> {
    let id = |id: u64| match u32::try_from(id) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Failure::Corrupt(format!(
            "{}: owner {id} out of range",
            String::from_utf8_lossy(&entry.path)
        ))),
    };
    Ok((Uid::from_raw(id(entry.uid)?), Gid::from_raw(id(entry.gid)?)))
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode & 0o7777)
}

fn times(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.0,
        tv_nsec: mtime.1.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn c_string(bytes: &[u8]) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|_| Failure::Corrupt("name with a NUL".into()))
}

/// Errors that a layer's own names cause are its fault; the others are the disk's.
fn path_failure(path: &str, errno: Errno) -> Failure {
    let error = io::Error::from(errno);
    match errno {
        Errno::LOOP
        | Errno::NAMETOOLONG
        | Errno::NOTDIR
        | Errno::NOENT
        | Errno::XDEV
        | Errno::INVAL
        | Errno::ISDIR
        | Errno::EXIST
        | Errno::MLINK => Failure::Corrupt(format!("{path}: {error}")),
        _ => Failure::Io(path.to_string(), error),
    }
}

/// A path below the root, without empty, `.` and `..` components.
///
/// # Errors
/// A path that would lead above the root.
fn normalize(path: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                if kept.pop().is_none() {
                    return Err(Failure::Corrupt(format!(
                        "entry {:?} leads outside of the root",
                        String::from_utf8_lossy(path)
                    )));
                }
            }
            component if component.contains(&0) => {
                return Err(Failure::Corrupt("name with a NUL".into()));
            }
            component => kept.push(component),
        }
    }
    Ok(kept.join(&b'/'))
}

/// Parent and last component; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    })
}

#[cfg(test)]
mod tests;

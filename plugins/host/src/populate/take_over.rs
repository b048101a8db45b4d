//! Takes what a populator wrote over from the worker: root's from then on, looked at again from the top, because the
//! worker is what guests run in.

use std::{
    ffi::CStr,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, fchown,
        fstat, openat, openat2, readlinkat, statat,
    },
    io::Errno,
};
use thiserror::Error;

use super::path::check_link;
use crate::protocol::StagingLimits;

/// What was written cannot be shown.
#[derive(Debug, Error)]
pub(super) enum NotTaken {
    /// More than it may be.
    #[error("it wrote more than {0}")]
    TooMuch(String),
    /// A device, a socket, a pipe, a link that leads out, a name at the top that the host keeps for itself.
    #[error("it wrote what a volume may not hold: {0}")]
    Forbidden(String),
    /// The disk.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for NotTaken {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

const ROOT: (Option<Uid>, Option<Gid>) = (Some(Uid::ROOT), Some(Gid::ROOT));

/// Gives everything below `staging` to root, and checks it. A directory is taken before it is listed, so that nobody
/// changes it meanwhile.
pub(super) fn take_over(staging: &Path, limits: StagingLimits) -> Result<(), NotTaken> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, staging, flags, Mode::empty())?;
    let mut seen = Seen {
        limits,
        bytes: 0,
        entries: 0,
    };
    let mut directories = vec![PathBuf::from(".")];
    while let Some(path) = directories.pop() {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let directory = openat2(&root, &path, flags, Mode::empty(), beneath)?;
        fchown(&directory, ROOT.0, ROOT.1)?;
        fchmod(&directory, Mode::from_raw_mode(0o755))?;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                let below = path.join(text(name));
                if seen.take(&directory, name, &below)? {
                    directories.push(below);
                }
            }
        }
    }
    Ok(())
}

fn text(name: &CStr) -> &Path {
    Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name.to_bytes()))
}

struct Seen {
    limits: StagingLimits,
    bytes: u64,
    entries: u64,
}

impl Seen {
    /// Takes an entry; answers whether it is a directory, which is taken when its turn comes.
    fn take(&mut self, directory: &OwnedFd, name: &CStr, path: &Path) -> Result<bool, NotTaken> {
        let forbidden = |what: &str| {
            let path = path.strip_prefix(".").unwrap_or(path);
            NotTaken::Forbidden(format!("{} {what}", path.display()))
        };
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            let entries = self.limits.entries_max;
            return Err(NotTaken::TooMuch(format!("{entries} entries")));
        }
        if path.parent() == Some(Path::new(".")) && name.to_bytes().starts_with(b"..") {
            return Err(forbidden("is a name of the host's"));
        }
        let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => Ok(true),
            FileType::Symlink => {
                let to = readlinkat(directory, name, Vec::new())?;
                let relative = path.strip_prefix(".").unwrap_or(path);
                check_link(relative, text(&to)).map_err(|why| forbidden(&why.to_string()))?;
                chownat(directory, name, ROOT.0, ROOT.1, AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(false)
            }
            FileType::RegularFile => {
                // Its directory is root's: it is still what was just seen.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(directory, name, flags, Mode::empty())?;
                let found = fstat(&file)?;
                if found.st_nlink != 1 {
                    return Err(forbidden("has a second name"));
                }
                self.bytes = self
                    .bytes
                    .saturating_add(u64::try_from(found.st_size).unwrap_or(0));
                if self.bytes > self.limits.bytes_max {
                    let bytes = self.limits.bytes_max;
                    return Err(NotTaken::TooMuch(format!("{bytes} bytes")));
                }
                fchown(&file, ROOT.0, ROOT.1)?;
                let mode = match found.st_mode & 0o111 {
                    0 => 0o644,
                    _ => 0o755,
                };
                fchmod(&file, Mode::from_raw_mode(mode))?;
                Ok(false)
            }
            _ => Err(forbidden("is no file, directory or link")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    use super::*;

    const LIMITS: StagingLimits = StagingLimits {
        bytes_max: 100,
        entries_max: 10,
    };

    fn said(make: impl FnOnce(&Path)) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        make(directory.path());
        match take_over(directory.path(), LIMITS) {
            Ok(()) => String::new(),
            Err(why) => why.to_string(),
        }
    }

    #[test]
    fn everything_becomes_roots_and_plain() {
        let directory = tempfile::tempdir().expect("a directory");
        let top = directory.path();
        fs::create_dir_all(top.join("d/e")).expect("made");
        fs::write(top.join("d/run"), "x").expect("written");
        fs::set_permissions(top.join("d/run"), PermissionsExt::from_mode(0o6711)).expect("set");
        symlink("../d/run", top.join("d/link")).expect("made");
        for path in ["d", "d/e", "d/run", "d/link", "."] {
            std::os::unix::fs::lchown(top.join(path), Some(65_532), Some(65_532)).expect("given");
        }
        take_over(top, LIMITS).expect("taken");
        for (path, mode) in [(".", 0o755), ("d", 0o755), ("d/e", 0o755), ("d/run", 0o755)] {
            let found = fs::symlink_metadata(top.join(path)).expect("there");
            assert_eq!(
                (found.uid(), found.gid(), found.mode() & 0o7777),
                (0, 0, mode),
                "{path}"
            );
        }
        let link = fs::symlink_metadata(top.join("d/link")).expect("there");
        assert_eq!((link.uid(), link.gid()), (0, 0));
    }

    #[test]
    fn what_a_volume_may_not_hold_is_refused() {
        let fifo = said(|top| {
            nix::unistd::mkfifo(&top.join("p"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        });
        assert!(fifo.contains("p is no file"), "{fifo}");
        let link = said(|top| symlink("../../etc", top.join("l")).expect("made"));
        assert!(link.contains("l a link that leads out"), "{link}");
        let hard = said(|top| {
            fs::write(top.join("a"), "").expect("written");
            fs::hard_link(top.join("a"), top.join("b")).expect("made");
        });
        assert!(hard.contains("has a second name"), "{hard}");
        let name = said(|top| fs::write(top.join("..data"), "").expect("written"));
        assert!(name.contains("a name of the host's"), "{name}");
        let large = said(|top| fs::write(top.join("a"), [0; 101]).expect("written"));
        assert_eq!(large, "it wrote more than 100 bytes");
        let many = said(|top| {
            (0..11).for_each(|n| fs::write(top.join(n.to_string()), "").expect("written"));
        });
        assert_eq!(many, "it wrote more than 10 entries");
    }
}

//! Files that are there whole or not at all, and locks that end with their holder.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::{FlockOperation, flock};
use wherry_runtime_api::ImageError;

/// Gives an I/O error its subject.
pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ImageError {
    let what = what.into();
    move |source| ImageError::Io { what, source }
}

/// Like [`io_error`], with the path in front.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> ImageError + use<> {
    io_error(path.display().to_string())
}

/// Whether the error says that the disk, or what is left of it for us, is full.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Turns "the disk is full" into its own variant, with the image it happened to.
pub(crate) fn for_image(reference: &str, root: &Path) -> impl Fn(ImageError) -> ImageError + use<> {
    let (reference, path) = (reference.to_string(), root.display().to_string());
    move |error| match error {
        ImageError::Io { source, .. } if is_no_space(&source) => ImageError::NoSpace {
            reference: reference.clone(),
            path: path.clone(),
        },
        ImageError::Corrupt { why, .. } => ImageError::Corrupt {
            reference: reference.clone(),
            why,
        },
        ImageError::TooLarge { why, .. } => ImageError::TooLarge {
            reference: reference.clone(),
            why,
        },
        error => error,
    }
}

/// Writes a file whole: to a temporary name in the same directory, renamed when it is complete.
pub(crate) fn write_whole(path: &Path, content: &[u8], is_durable: bool) -> Result<(), ImageError> {
    let directory = path.parent().expect("a file in the store has a directory");
    let write = || {
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .tempfile_in(directory)?;
        file.write_all(content)?;
        if is_durable {
            file.as_file().sync_all()?;
        }
        file.persist(path).map_err(|e| e.error)?;
        if is_durable {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(at(path))
}

/// Opens a lock file, making it if need be.
fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// A `flock` on a file, given up when dropped or when the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until nobody else holds it. Only for locks that are held briefly.
    pub(crate) fn exclusive(path: &Path) -> Result<Self, ImageError> {
        Self::take(path, FlockOperation::LockExclusive)
    }

    /// Waits until nobody holds it exclusively.
    pub(crate) fn shared(path: &Path) -> Result<Self, ImageError> {
        Self::take(path, FlockOperation::LockShared)
    }

    /// Takes it if nobody else holds it.
    pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Self>, ImageError> {
        let file = open_lock(path).map_err(at(path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(at(path)(e.into())),
        }
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Self, ImageError> {
        let file = open_lock(path).map_err(at(path))?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(at(path)(e.into())),
            }
        }
    }
}

/// Times a sweep may be in the way of making a [`Workspace`].
const CREATE_ATTEMPTS_MAX: u32 = 100;

/// A directory for work under way; removed when dropped, and by anybody once its process is gone.
#[derive(Debug)]
pub(crate) struct Workspace {
    directory: tempfile::TempDir,
    _lock: File,
}

impl Workspace {
    /// Makes one below `parent`.
    pub(crate) fn create(parent: &Path) -> Result<Self, ImageError> {
        let create = || -> io::Result<Option<Self>> {
            let directory = tempfile::Builder::new().prefix("w-").tempdir_in(parent)?;
            let lock = File::open(directory.path())?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            // A sweep may have taken it for rubbish before the lock was there.
            let is_there = is_at(&lock, directory.path());
            Ok(is_there.then_some(Self {
                directory,
                _lock: lock,
            }))
        };
        for _ in 0..CREATE_ATTEMPTS_MAX {
            match create() {
                Ok(Some(made)) => return Ok(made),
                Ok(None) => {}
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::WouldBlock
                    ) => {}
                Err(e) => return Err(at(parent)(e)),
            }
        }
        Err(at(parent)(io::ErrorKind::WouldBlock.into()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Removes what processes that are gone left below `parent`.
    pub(crate) fn sweep(parent: &Path) -> Result<(), ImageError> {
        for name in names(parent)? {
            let path = parent.join(name);
            let Ok(lock) = File::open(&path) else {
                continue;
            };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }
}

/// Whether an open file or directory is still what a path leads to.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(own), Ok(there)) => (own.dev(), own.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Time since a file's last change, if there is such a file and its time is past.
pub(crate) fn age(path: &Path) -> Option<std::time::Duration> {
    fs::symlink_metadata(path)
        .ok()?
        .modified()
        .ok()?
        .elapsed()
        .ok()
}

/// Removes a file or directory, whatever it is; gone already: `Ok`.
pub(crate) fn remove_tree(path: &Path) -> Result<(), ImageError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(path)(e)),
        _ => Ok(()),
    }
}

/// Names in a directory that are text; none if there is no directory.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, ImageError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(at(directory)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(at(directory))?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Syncs the whole file system that holds `path`: one call for the thousands of files of a layer.
pub(crate) fn sync_file_system(path: &Path) -> Result<(), ImageError> {
    let sync = || rustix::fs::syncfs(File::open(path)?).map_err(io::Error::from);
    sync().map_err(at(path))
}

/// Names this boot of the kernel: what was written in it is readable, synced or not.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_string())
        .unwrap_or_default()
}

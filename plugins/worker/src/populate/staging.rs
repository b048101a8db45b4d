//! `wherry:plugin/staging`: files below one directory, within the volume's limits.
//!
//! The directory comes from the agent as a detached mount with nothing above it, and every step is taken by the kernel
//! beneath it, through no link. The agent looks at all of it again before anybody else sees it.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{Mode, mkdirat},
    unistd::symlinkat,
};
use wasmtime::component::Resource;
use wherry_plugin_host::{
    populate::path,
    protocol::{self, StagingLimits},
};

use crate::{
    bindings::populator::wherry::plugin::staging::{Host, HostFile, StagingError},
    state::State,
};

/// Bytes of one append.
const APPEND_BYTES_MAX: usize = 1 << 20;
/// Files open at once.
const OPEN_MAX: usize = 256;
/// Between tellings of progress.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);

/// A file of a guest's, being written.
#[expect(unreachable_pub, reason = "the generated bindings use it as public")]
pub struct File(fs::File);

/// The directory, and what has been written.
pub(crate) struct Staging {
    root: OwnedFd,
    limits: StagingLimits,
    bytes: u64,
    entries: u64,
    open: usize,
    told: Option<Instant>,
    /// The directory that was written to last, and its path.
    last: Option<(PathBuf, OwnedFd)>,
}

fn other(path: &str, error: Errno) -> StagingError {
    match error {
        Errno::EEXIST => StagingError::Exists(protocol::cut(path.to_owned())),
        Errno::ENOSPC | Errno::EDQUOT => StagingError::NoSpace(error.desc().into()),
        // A link on the way, or a file where a directory would be.
        Errno::ELOOP | Errno::EXDEV | Errno::ENOTDIR | Errno::ENAMETOOLONG | Errno::EINVAL => {
            StagingError::InvalidPath(format!("{}: {}", protocol::cut(path.into()), error.desc()))
        }
        error => StagingError::Other(format!("{}: {}", protocol::cut(path.into()), error.desc())),
    }
}

fn invalid(why: path::InvalidPath) -> StagingError {
    StagingError::InvalidPath(protocol::cut(why.to_string()))
}

impl Staging {
    pub(crate) fn new(root: OwnedFd, limits: StagingLimits) -> Self {
        Self {
            root,
            limits,
            bytes: 0,
            entries: 0,
            open: 0,
            told: None,
            last: None,
        }
    }

    fn add_entry(&mut self) -> Result<(), StagingError> {
        if self.entries >= self.limits.entries_max {
            let why = format!("more than {} entries", self.limits.entries_max);
            return Err(StagingError::NoSpace(why));
        }
        self.entries += 1;
        Ok(())
    }

    fn add_bytes(&mut self, bytes: u64) -> Result<(), StagingError> {
        if bytes > self.limits.bytes_max - self.bytes {
            let why = format!("more than {} bytes", self.limits.bytes_max);
            return Err(StagingError::NoSpace(why));
        }
        self.bytes += bytes;
        Ok(())
    }

    fn open(&self, path: &Path, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(mode)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(&self.root, path, how)
    }

    fn open_directory(&self, path: &Path) -> nix::Result<OwnedFd> {
        let path = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        self.open(path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())
    }

    /// Makes directories that are missing.
    fn make_directories(&mut self, path: &Path) -> Result<(), StagingError> {
        if self.open_directory(path).is_ok() {
            return Ok(());
        }
        let mut at = PathBuf::new();
        for part in path {
            let parent = self
                .open_directory(&at)
                .map_err(|error| other(&at.to_string_lossy(), error))?;
            at.push(part);
            match mkdirat(&parent, part, Mode::from_bits_truncate(0o755)) {
                Ok(()) => self.add_entry()?,
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(other(&at.to_string_lossy(), error)),
            }
        }
        // What was there already may be no directory.
        let made = self.open_directory(path);
        made.map(drop)
            .map_err(|error| other(&path.to_string_lossy(), error))
    }

    /// The directory above a path, made if it is missing, and the last part. Counts what is about to be made there.
    fn enter<'a>(&mut self, path: &'a str) -> Result<(&OwnedFd, &'a OsStr), StagingError> {
        let path = path::check(path).map_err(invalid)?;
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(StagingError::InvalidPath("the directory itself".into()));
        };
        self.add_entry()?;
        // Files come by directories, and nothing is ever renamed.
        let last = match self.last.take() {
            Some((path, directory)) if path == above => (path, directory),
            _ => {
                self.make_directories(above)?;
                let directory = self
                    .open_directory(above)
                    .map_err(|error| other(&above.to_string_lossy(), error))?;
                (above.to_owned(), directory)
            }
        };
        Ok((&self.last.insert(last).1, name))
    }

    fn make_directory(&mut self, path: &str) -> Result<(), StagingError> {
        let path = path::check(path).map_err(invalid)?;
        self.make_directories(path)
    }

    fn make_link(&mut self, path: &str, to: &str) -> Result<(), StagingError> {
        let checked = path::check(path).map_err(invalid)?;
        path::check_link(checked, Path::new(to)).map_err(invalid)?;
        let (parent, name) = self.enter(path)?;
        symlinkat(to, parent, name).map_err(|error| other(path, error))
    }

    fn create(&mut self, path: &str, is_executable: bool) -> Result<fs::File, StagingError> {
        if self.open >= OPEN_MAX {
            let why = format!("{OPEN_MAX} files are open");
            return Err(StagingError::Other(why));
        }
        let mode = match is_executable {
            true => 0o755,
            false => 0o644,
        };
        let (parent, name) = self.enter(path)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        let file = nix::fcntl::openat(
            parent,
            name,
            flags | OFlag::O_CLOEXEC,
            Mode::from_bits_truncate(mode),
        )
        .map_err(|error| other(path, error))?;
        self.open += 1;
        Ok(file.into())
    }
}

impl State {
    fn staging(&mut self) -> wasmtime::Result<&mut Staging> {
        let staging = self
            .volume
            .as_mut()
            .and_then(|volume| volume.staging.as_mut());
        staging.ok_or_else(|| wasmtime::format_err!("the call has no directory to write to"))
    }
}

impl Host for State {
    async fn make_directory(&mut self, path: String) -> wasmtime::Result<Result<(), StagingError>> {
        Ok(self.staging()?.make_directory(&path))
    }

    async fn make_link(
        &mut self,
        path: String,
        to: String,
    ) -> wasmtime::Result<Result<(), StagingError>> {
        Ok(self.staging()?.make_link(&path, &to))
    }

    async fn progress(&mut self, done: u64, total: u64) -> wasmtime::Result<()> {
        let staging = self.staging()?;
        let is_due = staging
            .told
            .is_none_or(|told| told.elapsed() >= PROGRESS_PERIOD);
        if is_due {
            staging.told = Some(Instant::now());
            self.tell(done, total);
        }
        Ok(())
    }
}

impl HostFile for State {
    async fn create(
        &mut self,
        path: String,
        is_executable: bool,
    ) -> wasmtime::Result<Result<Resource<File>, StagingError>> {
        Ok(match self.staging()?.create(&path, is_executable) {
            Ok(file) => Ok(self.table.push(File(file))?),
            Err(error) => Err(error),
        })
    }

    async fn append(
        &mut self,
        file: Resource<File>,
        bytes: Vec<u8>,
    ) -> wasmtime::Result<Result<(), StagingError>> {
        if bytes.len() > APPEND_BYTES_MAX {
            let why = format!("{} bytes at once", bytes.len());
            return Ok(Err(StagingError::Other(why)));
        }
        if let Err(error) = self.staging()?.add_bytes(bytes.len() as u64) {
            return Ok(Err(error));
        }
        let file = self.table.get_mut(&file)?;
        // Into the page cache: short enough for a thread that guests share.
        Ok(file
            .0
            .write_all(&bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    StagingError::NoSpace(error.to_string())
                }
                _ => StagingError::Other(error.to_string()),
            }))
    }

    async fn drop(&mut self, file: Resource<File>) -> wasmtime::Result<()> {
        self.table.delete(file)?;
        let staging = self.staging()?;
        staging.open = staging.open.saturating_sub(1);
        Ok(())
    }
}

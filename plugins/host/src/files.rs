//! Files below a volume's directory, for those who may see nothing else.
//!
//! A path is resolved by the kernel, which keeps it below the directory whatever links there are; what it leads to is
//! looked at before it is opened, and opened as what was looked at.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{SFlag, fstat},
};

use crate::protocol::{FileError, FileMetadata};

/// Bytes of one read.
const READ_BYTES_MAX: u32 = 64 << 10;

fn denied(path: &str, why: &str) -> FileError {
    FileError::Denied(format!("{}: {why}", crate::protocol::cut(path.to_owned())))
}

fn trouble(path: &str, errno: Errno) -> FileError {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => FileError::NotFound,
        Errno::EXDEV | Errno::ELOOP => denied(path, "leads out of the volume"),
        other => FileError::Other(other.desc().into()),
    }
}

/// What is at a path; it may be a file or a directory.
fn find(root: &Path, path: &str) -> Result<(OwnedFd, FileMetadata), FileError> {
    let root = File::open(root).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => FileError::NotFound,
        _ => FileError::Other(error.to_string()),
    })?;
    let relative = if path.is_empty() { "." } else { path };
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
    let found = openat2(&root, relative, how).map_err(|errno| trouble(path, errno))?;
    let stat = fstat(&found).map_err(|errno| trouble(path, errno))?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    if kind != SFlag::S_IFREG && kind != SFlag::S_IFDIR {
        return Err(denied(path, "neither file nor directory"));
    }
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let metadata = FileMetadata {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: Duration::new(u64::try_from(stat.st_mtime).unwrap_or(0), nanoseconds),
        is_directory: kind == SFlag::S_IFDIR,
    };
    Ok((found, metadata))
}

/// What is at a path below `root`, links followed.
pub(crate) fn stat(root: &Path, path: &str) -> Result<FileMetadata, FileError> {
    find(root, path).map(|(_, metadata)| metadata)
}

/// Bytes of a file below `root`.
pub(crate) fn read(
    root: &Path,
    path: &str,
    offset: u64,
    length: u32,
) -> Result<Vec<u8>, FileError> {
    let (found, metadata) = find(root, path)?;
    if metadata.is_directory {
        return Err(FileError::Other("is a directory".into()));
    }
    let other = |error: io::Error| FileError::Other(error.to_string());
    // The same file again, now to be read.
    let mut file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(other)?;
    file.seek(SeekFrom::Start(offset)).map_err(other)?;
    let mut bytes = Vec::new();
    file.take(length.min(READ_BYTES_MAX).into())
        .read_to_end(&mut bytes)
        .map_err(other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn files_of_a_volume_are_seen_and_nothing_outside_of_it() {
        let above = tempfile::tempdir().expect("a directory");
        let root = above.path().join("volume");
        fs::create_dir_all(root.join("deep")).expect("writable");
        fs::write(above.path().join("outside"), "no").expect("writable");
        fs::write(root.join("deep/file"), "0123456789").expect("writable");
        for (link, to) in [
            ("inside", "deep/file"),
            ("up", "../outside"),
            ("absolute", "/etc/passwd"),
            ("magic", "/proc/self/root/etc/passwd"),
            ("round", "round"),
        ] {
            symlink(to, root.join(link)).expect("a link");
        }
        mkfifo(&root.join("pipe"), Mode::S_IRWXU).expect("a pipe");
        assert_eq!(read(&root, "inside", 2, 3), Ok(b"234".to_vec()));
        assert_eq!(read(&root, "deep/file", 8, 100), Ok(b"89".to_vec()));
        assert_eq!(read(&root, "deep/file", 100, 100), Ok(Vec::new()));
        assert_eq!(stat(&root, "inside").map(|seen| seen.size), Ok(10));
        assert_eq!(stat(&root, "").map(|seen| seen.is_directory), Ok(true));
        assert_eq!(stat(&root, "absent"), Err(FileError::NotFound));
        assert_eq!(stat(&root, "deep/file/x"), Err(FileError::NotFound));
        for path in [
            "../outside",
            "deep/../../outside",
            "/etc/passwd",
            "up",
            "absolute",
            "magic",
            "round",
            "pipe",
        ] {
            let seen = stat(&root, path);
            assert!(
                matches!(seen, Err(FileError::Denied(_))),
                "{path}: {seen:?}"
            );
            let seen = read(&root, path, 0, 1);
            assert!(
                matches!(seen, Err(FileError::Denied(_))),
                "{path}: {seen:?}"
            );
        }
        assert!(matches!(stat(&root, "a\0b"), Err(FileError::Other(_))));
        assert!(matches!(
            read(&root, "deep", 0, 1),
            Err(FileError::Other(_))
        ));
    }
}

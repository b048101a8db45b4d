//! How much a directory holds: a walk that is bounded, stays on one file system and follows no link.

use std::{
    collections::HashSet,
    fs, io,
    ops::AddAssign,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Bytes per block of `st_blocks`, whatever the file system's own.
const BLOCK_BYTES: u64 = 512;

/// Where a walk ends early.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Directory entries looked at.
    pub(crate) entries_max: u64,
    /// Time spent.
    pub(crate) time_max: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            entries_max: 500_000,
            time_max: Duration::from_secs(5),
        }
    }
}

/// What a directory holds. Of a walk that ended early, at least so much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskUsage {
    /// Bytes allocated; a file with two names counts once, holes do not.
    pub(crate) bytes: u64,
    /// Inodes, directories included.
    pub(crate) inodes: u64,
}

impl AddAssign for DiskUsage {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// Walks `root`. What vanishes meanwhile counts as far as it was seen; what cannot be read is left out.
///
/// # Errors
/// `root` itself cannot be looked at.
pub(crate) fn disk_usage(root: &Path, bounds: Bounds) -> io::Result<DiskUsage> {
    let top = fs::symlink_metadata(root)?;
    let end = Instant::now() + bounds.time_max;
    let mut usage = of(&top);
    if !top.is_dir() {
        return Ok(usage);
    }
    let mut linked = HashSet::new();
    let mut left: Vec<PathBuf> = vec![root.to_owned()];
    let mut entries = 0;
    while let Some(directory) = left.pop() {
        let Ok(list) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in list.flatten() {
            entries += 1;
            if entries > bounds.entries_max || Instant::now() > end {
                return Ok(usage);
            }
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            // Something is mounted here: it is somebody else's.
            if metadata.dev() != top.dev() {
                continue;
            }
            if metadata.is_dir() {
                left.push(entry.path());
            } else if metadata.nlink() > 1 && !linked.insert(metadata.ino()) {
                continue;
            }
            usage += of(&metadata);
        }
    }
    Ok(usage)
}

fn of(metadata: &fs::Metadata) -> DiskUsage {
    DiskUsage {
        bytes: metadata.blocks() * BLOCK_BYTES,
        inodes: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_two_names_counts_once_and_links_are_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).expect("space");
        fs::write(inner.join("one"), vec![1; 1 << 20]).expect("space");
        fs::hard_link(inner.join("one"), dir.path().join("two")).expect("a link");
        std::os::unix::fs::symlink("/", dir.path().join("root")).expect("a link");
        let usage = disk_usage(dir.path(), Bounds::default()).expect("there");
        assert!(
            (1 << 20..(1 << 20) + (64 << 10)).contains(&usage.bytes),
            "{usage:?}"
        );
        assert_eq!(usage.inodes, 4);
    }

    #[test]
    fn holes_take_no_space() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = fs::File::create(dir.path().join("sparse")).expect("space");
        file.set_len(1 << 30).expect("a sparse file");
        let usage = disk_usage(dir.path(), Bounds::default()).expect("there");
        assert!(usage.bytes < 1 << 20, "{usage:?}");
    }

    #[test]
    fn a_walk_ends_at_its_bound_with_what_it_has() {
        let dir = tempfile::tempdir().expect("a directory");
        for number in 0..20 {
            fs::write(dir.path().join(number.to_string()), "x").expect("space");
        }
        let bounds = Bounds {
            entries_max: 10,
            ..Bounds::default()
        };
        assert_eq!(disk_usage(dir.path(), bounds).expect("there").inodes, 11);
        assert!(disk_usage(&dir.path().join("absent"), bounds).is_err());
    }
}

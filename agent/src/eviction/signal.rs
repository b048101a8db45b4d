//! Reads what the node has left.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use super::{
    storage::FileSystem,
    threshold::{Reading, Readings, Signal},
};

/// Reads all signals. `root` is where pods write, `images` where images are; what cannot be read is
/// left out.
pub(crate) fn read(root: &Path, images: &Path) -> Readings {
    let mut readings = Readings::new();
    readings.extend(memory().map(|reading| (Signal::MemoryAvailable, reading)));
    readings.extend(pids().map(|reading| (Signal::PidAvailable, reading)));
    let node_fs = FileSystem::of(root);
    let image_fs = if is_same_device(root, images).unwrap_or(true) {
        node_fs
    } else {
        FileSystem::of(images)
    };
    let pairs = [
        (node_fs, Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
        (
            image_fs,
            Signal::ImageFsAvailable,
            Signal::ImageFsInodesFree,
        ),
    ];
    for (file_system, bytes, inodes) in pairs {
        let Some(file_system) = file_system else {
            continue;
        };
        readings.insert(
            bytes,
            Reading {
                available: file_system.available_bytes,
                capacity: file_system.capacity_bytes,
            },
        );
        readings.insert(
            inodes,
            Reading {
                available: file_system.inodes_free,
                capacity: file_system.inodes,
            },
        );
    }
    readings
}

fn is_same_device(one: &Path, other: &Path) -> io::Result<bool> {
    Ok(fs::metadata(one)?.dev() == fs::metadata(other)?.dev())
}

fn memory() -> Option<Reading> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
        Some(kib * 1024)
    };
    Some(Reading {
        available: field("MemAvailable")?,
        capacity: field("MemTotal")?,
    })
}

/// Process IDs: the kernel's bounds on numbers and on threads, whichever is lower, less what runs.
pub(crate) fn pids() -> Option<Reading> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let capacity = number("/proc/sys/kernel/pid_max")?
        .min(number("/proc/sys/kernel/threads-max").unwrap_or(u64::MAX));
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let running = load
        .split_whitespace()
        .nth(3)
        .and_then(|pair| pair.split_once('/')?.1.parse::<u64>().ok())?;
    Some(Reading {
        available: capacity.saturating_sub(running),
        capacity,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_tells_all_of_them() {
        let readings = read(Path::new("/"), Path::new("/"));
        assert_eq!(readings.len(), Signal::ALL.len());
        for (signal, reading) in readings {
            assert!(
                reading.available <= reading.capacity,
                "{signal:?} {reading:?}"
            );
        }
    }
}

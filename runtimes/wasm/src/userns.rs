//! User namespaces through which workers see mounts: a container's user and the worker's change places.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use crate::{USER_NAMESPACE_ARGUMENT, child, wire};

/// One for every pair of IDs, in which two stand for each other and all else for itself.
fn map(one: u32, other: u32) -> String {
    let (low, high) = (one.min(other), one.max(other));
    let ranges = [
        (0, 0, low),
        (low, high, 1),
        (
            low.saturating_add(1),
            low.saturating_add(1),
            (high - low).saturating_sub(1),
        ),
        (high, low, u32::from(high != low)),
        (
            high.saturating_add(1),
            high.saturating_add(1),
            u32::MAX - 1 - high,
        ),
    ];
    let lines = ranges.into_iter().filter(|(_, _, length)| *length > 0);
    lines
        .map(|(inside, outside, length)| format!("{inside} {outside} {length}\n"))
        .collect()
}

/// Makes a namespace, by way of a child that exists for as long as it takes to open it. `user` and
/// `group` are what a container is to be, `worker` what its worker is.
pub(crate) async fn make(
    exe: &Path,
    worker: (u32, u32),
    user: u32,
    group: u32,
) -> io::Result<OwnedFd> {
    let (mut holder, socket) = child::spawn(exe, &["wasm-worker", USER_NAMESPACE_ARGUMENT], None)?;
    let (_sender, mut receiver) = wire::split(socket);
    let made = async {
        if receiver.receive::<()>().await?.is_none() {
            return Err(io::Error::other("user namespaces are not available"));
        }
        let id = holder
            .id()
            .ok_or_else(|| io::Error::other("the holder of the user namespace is gone"))?;
        let process = PathBuf::from(format!("/proc/{id}"));
        std::fs::write(process.join("uid_map"), map(user, worker.0))?;
        std::fs::write(process.join("gid_map"), map(group, worker.1))?;
        Ok(File::open(process.join("ns/user"))?.into())
    };
    let made = made.await;
    drop((_sender, receiver));
    let _ = holder.wait().await;
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_mapped_once() {
        for (one, other, expected) in [
            (
                0,
                65_532,
                "0 65532 1\n1 1 65531\n65532 0 1\n65533 65533 4294901762\n",
            ),
            (1, 0, "0 1 1\n1 0 1\n2 2 4294967293\n"),
            (
                1000,
                1001,
                "0 0 1000\n1000 1001 1\n1001 1000 1\n1002 1002 4294966293\n",
            ),
            (7, 7, "0 0 7\n7 7 1\n8 8 4294967287\n"),
        ] {
            assert_eq!(map(one, other), expected);
            assert_eq!(map(other, one), expected);
            let lengths = expected
                .lines()
                .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
            assert_eq!(lengths.sum::<u64>(), u64::from(u32::MAX), "{one} {other}");
        }
    }
}

//! The user namespace through which workers see mounts: root and the worker's user change places.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use crate::{USER_NAMESPACE_ARGUMENT, child, wire};

/// Map of IDs in which 0 and `id` stand for each other and all else for itself.
fn map(id: u32) -> String {
    if id == 0 {
        return "0 0 4294967295\n".into();
    }
    let mut map = format!("0 {id} 1\n{id} 0 1\n");
    if id > 1 {
        map += &format!("1 1 {}\n", id - 1);
    }
    map += &format!("{0} {0} {1}\n", id + 1, u32::MAX - id - 1);
    map
}

/// Makes the namespace, by way of a child that exists for as long as it takes to open it.
pub(crate) async fn make(exe: &Path, uid: u32, gid: u32) -> io::Result<OwnedFd> {
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
        std::fs::write(process.join("uid_map"), map(uid))?;
        std::fs::write(process.join("gid_map"), map(gid))?;
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
        assert_eq!(
            map(65_532),
            "0 65532 1\n65532 0 1\n1 1 65531\n65533 65533 4294901762\n"
        );
        assert_eq!(map(1), "0 1 1\n1 0 1\n2 2 4294967293\n");
    }
}

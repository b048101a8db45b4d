//! Images shown as directories: read-only mounts of their layers, for volumes made of images.
//!
//! One layer is a bind mount, which can be given other owners (idmapped) by whoever shows it on;
//! more are an overlay without an upper directory. What is mounted where is noted in `mounts/`, and
//! the kernel says whether it still is: a mount that is gone, by whomever, no longer keeps its image.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, StatxAttributes, StatxFlags, openat,
        statvfs, statx,
    },
    mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wherry_runtime_api::ImageError;

use crate::{
    disk,
    record::{self, ImageRecord},
    store::Inner,
};

/// Nothing of a volume is written, run, or more privileged than who reads it.
const FLAGS: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOEXEC)
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV);

/// A mount, in `mounts/<digest of the target>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct MountRecord {
    /// Where.
    target: PathBuf,
    /// The image's ID.
    id: String,
}

impl Inner {
    fn mount_record_path(&self, target: &Path) -> PathBuf {
        let digest = Sha256::digest(target.as_os_str().as_encoded_bytes());
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.root.join("mounts").join(format!("{name}.json"))
    }

    /// Mounts an image at `target`, or finds it mounted there.
    pub(crate) fn mount_image(&self, id: &str, target: &Path) -> Result<(), ImageError> {
        let _index = self.lock_index()?;
        if is_mounted(target).map_err(disk::at(target))? {
            // A bind mount is writable for the moment before the second call below.
            return make_read_only(target).map_err(disk::at(target));
        }
        let Some(image) = self.find(id)? else {
            return Err(ImageError::NotFound {
                reference: id.into(),
            });
        };
        let layers = self.lower_dirs(&image)?;
        let path = self.mount_record_path(target);
        let note = MountRecord {
            target: target.to_owned(),
            id: image.id,
        };
        // First the note: an image whose mount nobody knows of could be removed under it.
        record::write(&path, &note, false)?;
        let what = || disk::io_error(format!("mount image {id} at {}", target.display()));
        let mounted = match layers.as_slice() {
            [layer] => bind(layer, target).map_err(what()),
            layers => overlay(layers, target).map_err(what()),
        };
        if mounted.is_err() {
            disk::remove_tree(&path)?;
        }
        mounted
    }

    /// Unmounts what is mounted at `target`.
    pub(crate) fn unmount_image(&self, target: &Path) -> Result<(), ImageError> {
        match is_mounted(target) {
            Ok(true) => unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(|error| disk::at(target)(error.into()))?,
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(disk::at(target)(error)),
        }
        disk::remove_tree(&self.mount_record_path(target))
    }

    /// Whether an image is mounted somewhere. Forgets mounts that are gone.
    pub(crate) fn is_image_mounted(&self, id: &str) -> Result<bool, ImageError> {
        let directory = self.root.join("mounts");
        let mut found = false;
        for name in disk::names(&directory)? {
            let path = directory.join(name);
            let Ok(Some(note)) = record::read::<MountRecord>(&path) else {
                continue;
            };
            match is_mounted(&note.target) {
                Ok(true) => found |= note.id == id,
                Ok(false) => disk::remove_tree(&path)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => disk::remove_tree(&path)?,
                // Whoever cannot be asked keeps its image.
                Err(_) => found |= note.id == id,
            }
        }
        Ok(found)
    }

    /// The image's layers, lowest first.
    fn lower_dirs(&self, image: &ImageRecord) -> Result<Vec<PathBuf>, ImageError> {
        if image.layers.is_empty() {
            return Err(ImageError::Corrupt {
                reference: image.tags.first().unwrap_or(&image.id).clone(),
                why: "it is an artifact without files, which no volume can show".into(),
            });
        }
        let dirs = image.layers.iter();
        dirs.map(|id| Ok(self.layer_path(id)?.join("fs"))).collect()
    }
}

fn bind(layer: &Path, target: &Path) -> io::Result<()> {
    mount_bind(layer, target)?;
    make_read_only(target).inspect_err(|_| {
        // Nobody has seen it yet.
        let _ = unmount(target, UnmountFlags::DETACH);
    })
}

fn make_read_only(target: &Path) -> io::Result<()> {
    if statvfs(target)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    Ok(mount_remount(target, MountFlags::BIND | FLAGS, c"")?)
}

fn overlay(layers: &[PathBuf], target: &Path) -> io::Result<()> {
    // By descriptor: the options of a mount are one page, which some forty paths would fill.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |layer: &PathBuf| Ok(openat(CWD, layer, flags, Mode::empty())?);
    let layers: Vec<OwnedFd> = layers.iter().map(open).collect::<io::Result<_>>()?;
    let topmost_first: Vec<String> = layers
        .iter()
        .rev()
        .map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd()))
        .collect();
    let options = CString::new(format!("lowerdir={}", topmost_first.join(":")))?;
    Ok(mount(
        c"wherry-image",
        target,
        c"overlay",
        FLAGS,
        options.as_c_str(),
    )?)
}

/// Whether something is mounted exactly there.
fn is_mounted(path: &Path) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = statx(CWD, path, flags, StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

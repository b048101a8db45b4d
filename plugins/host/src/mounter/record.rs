//! What has been done for a volume, on disk before it is done.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Something that has to be undone. Each can be undone twice, and when it was never done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Undo {
    /// Take off what is mounted on the volume's directory.
    Unmount,
    /// Detach a loop device, if it is this file's.
    Loop {
        /// As `/dev/loop3`.
        device: String,
        /// The image.
        file: String,
    },
    /// Log out of an iSCSI target.
    Iscsi {
        /// Address and port.
        portal: String,
        /// The target's name.
        target: String,
    },
    /// Unmap a RADOS block device.
    Rbd {
        /// As `pool/image`.
        spec: String,
    },
}

/// What has been done for one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The volume's directory.
    pub(crate) target: PathBuf,
    /// Whose it is, for people.
    pub(crate) plugin: String,
    /// In the order in which it was done.
    pub(crate) done: Vec<Undo>,
    /// The call has ended well.
    pub(crate) is_complete: bool,
}

impl Record {
    pub(crate) fn new(target: &Path, plugin: &str) -> Self {
        Self {
            target: target.to_owned(),
            plugin: plugin.to_owned(),
            done: Vec::new(),
            is_complete: false,
        }
    }

    pub(crate) fn is_mounted(&self) -> bool {
        self.done.contains(&Undo::Unmount)
    }

    /// Loop devices, each with its file.
    pub(crate) fn loops(&self) -> impl Iterator<Item = (&str, &str)> {
        self.done.iter().filter_map(|undo| match undo {
            Undo::Loop { device, file } => Some((device.as_str(), file.as_str())),
            _ => None,
        })
    }
}

/// The directory of all records.
pub(crate) struct Records {
    directory: PathBuf,
}

impl Records {
    pub(crate) fn open(directory: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    fn path(&self, target: &Path) -> PathBuf {
        let digest = Sha256::digest(target.as_os_str().as_encoded_bytes());
        let name: String = digest[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.directory.join(name).with_extension("json")
    }

    pub(crate) fn read(&self, target: &Path) -> io::Result<Option<Record>> {
        match fs::read(self.path(target)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Written whole and synced, or not at all.
    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        let path = self.path(&record.target);
        let new = path.with_extension("new");
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        serde_json::to_writer(&file, record)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(&self.directory)?.sync_all()
    }

    pub(crate) fn remove(&self, target: &Path) -> io::Result<()> {
        match fs::remove_file(self.path(target)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All that can be read.
    pub(crate) fn all(&self) -> Vec<Record> {
        let entries = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let records = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "json"));
        records
            .filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok())
            .collect()
    }
}

//! What the store writes down about images and layers.

use std::{collections::HashSet, fs, io, path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};
use wherry_runtime_api::{Image, ImageError, ImageKind};

use crate::{ImageConfig, disk};

/// An image, in `images/<id>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// `sha256:…`: of the config, or of the manifest for an artifact (whose config may be `{}`).
    pub(crate) id: String,
    /// Names with tags, canonical.
    pub(crate) tags: Vec<String>,
    /// Names with digests, canonical.
    pub(crate) digests: Vec<String>,
    /// Which runtime it is for.
    pub(crate) kind: ImageKind,
    /// How it wants to be run.
    pub(crate) config: ImageConfig,
    /// Diff IDs (`sha256:…`), lowest first.
    pub(crate) layers: Vec<String>,
    /// The module, for images of that kind.
    pub(crate) wasm: Option<WasmFile>,
    /// Bytes on disk.
    pub(crate) size_bytes: u64,
    /// Of two images with one tag the younger has it.
    pub(crate) added_at: SystemTime,
}

/// Where a Wasm module is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum WasmFile {
    /// A blob of its own, by digest.
    Blob(String),
    /// A file in a layer: the layer's diff ID, and the path, without symbolic links, below `fs`.
    Layer(String, String),
}

/// A layer, in `layers/<diff-id>/layer.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Bytes of its files, holes left out.
    pub(crate) size_bytes: u64,
    /// Files, directories and links.
    pub(crate) entries: u64,
    /// The boot that wrote it. A layer that no image names is only good in that boot: it may not
    /// have been synced.
    pub(crate) boot_id: String,
}

impl ImageRecord {
    /// As the agent sees it.
    pub(crate) fn to_image(&self) -> Image {
        Image {
            id: self.id.clone(),
            repo_tags: self.tags.clone(),
            repo_digests: self.digests.clone(),
            size_bytes: self.size_bytes,
            user: self.config.user.clone(),
            kind: self.kind,
        }
    }
}

/// Reads a record; not there: `None`.
///
/// # Errors
/// One that cannot be parsed is an error that names the file; the caller decides whether the image
/// is given up (it can be pulled again).
pub(crate) fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, ImageError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(disk::at(path)(e)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| disk::at(path)(io::Error::new(io::ErrorKind::InvalidData, e)))
}

/// Writes a record whole.
pub(crate) fn write<T: Serialize>(
    path: &Path,
    record: &T,
    is_durable: bool,
) -> Result<(), ImageError> {
    let text = serde_json::to_vec(record).expect("records are plain data");
    disk::write_whole(path, &text, is_durable)
}

/// The tags that `older` loses to `newer`.
pub(crate) fn tags_lost(older: &ImageRecord, newer: &ImageRecord) -> bool {
    let taken: HashSet<&String> = newer.tags.iter().collect();
    older.id != newer.id && older.tags.iter().any(|tag| taken.contains(tag))
}

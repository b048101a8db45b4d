//! Files on the probed pod's volumes, read-only. In the world `probe`; needs the grant `volumes` as soon as it is called
//! anywhere.

use std::time::SystemTime;

use crate::bindings::wherry::plugin::files;
pub use crate::bindings::wherry::plugin::files::{FileError as Error, Metadata};

/// Bytes that the host reads at once.
const READ_BYTES_MAX: u32 = 64 << 10;

/// What is at a path of a volume, links followed.
///
/// # Errors
/// See [`Error`].
pub fn stat(volume: &str, path: &str) -> Result<Metadata, Error> {
    files::stat(volume, path)
}

/// A file's content, or as much of it as `bytes_max`.
///
/// # Errors
/// See [`Error`].
pub fn read(volume: &str, path: &str, bytes_max: u64) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    loop {
        let at = content.len() as u64;
        let left = u32::try_from(bytes_max.saturating_sub(at)).unwrap_or(READ_BYTES_MAX);
        let wanted = left.min(READ_BYTES_MAX);
        if wanted == 0 {
            return Ok(content);
        }
        let bytes = files::read(volume, path, at, wanted)?;
        if bytes.is_empty() {
            return Ok(content);
        }
        content.extend(bytes);
    }
}

impl Metadata {
    /// When its content was last changed.
    pub fn modified_at(&self) -> SystemTime {
        crate::clock::to_system_time(self.modified)
    }
}

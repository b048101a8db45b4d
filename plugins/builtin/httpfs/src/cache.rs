//! What was read, in blocks that the host keeps.

use wherry_plugin::filesystem::blocks::{self, BlockError};

use crate::remote::About;

/// Bytes of a file in one block.
pub(crate) const CHUNK_BYTES: u64 = 64 << 10;
/// Behind them the key that they are of, so that two keys with one number are told apart.
const KEY_AT: u32 = CHUNK_BYTES as u32;
/// Blocks that go when there is no room.
const DROPPED: usize = 64;

fn key(path: &str, about: &About, chunk: u64) -> String {
    let modified = about.modified.map(|moment| {
        let since = moment.duration_since(std::time::SystemTime::UNIX_EPOCH);
        since.unwrap_or_default().as_secs()
    });
    format!("{chunk} {} {modified:?} {} {path}", about.size, about.tag)
}

/// FNV-1a.
fn number(key: &str) -> u64 {
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.max(1)
}

/// Bytes of a chunk, if it is kept.
pub(crate) fn kept(
    path: &str,
    about: &About,
    chunk: u64,
    from: u64,
    length: u64,
) -> Option<Vec<u8>> {
    let key = key(path, about, chunk);
    let block = number(&key);
    let key_bytes = key.len() as u32 + 1;
    if length < CHUNK_BYTES / 2 {
        if blocks::read(block, KEY_AT, key_bytes) != key.as_bytes() {
            return None;
        }
        return Some(blocks::read(block, from as u32, length as u32));
    }
    // Both at once: asking takes longer than what is between them.
    let from = from as u32;
    let mut kept = blocks::read(block, from, KEY_AT - from + key_bytes);
    if kept.get((KEY_AT - from) as usize..) != Some(key.as_bytes()) {
        return None;
    }
    kept.truncate(length as usize);
    Some(kept)
}

/// Keeps a chunk, if there is room or room can be made.
pub(crate) fn keep(path: &str, about: &About, chunk: u64, bytes: &[u8]) {
    let key = key(path, about, chunk);
    let block = number(&key);
    // Of another key with this number.
    blocks::truncate(block, 0);
    let write = || {
        blocks::write(block, 0, bytes)?;
        blocks::write(block, KEY_AT, key.as_bytes())
    };
    if let Err(BlockError::NoSpace) = write() {
        for block in blocks::list(0).into_iter().take(DROPPED) {
            blocks::truncate(block, 0);
        }
        // What was dropped is free after this call.
    }
}

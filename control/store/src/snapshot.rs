//! The whole of a store as a file, and from one store into another.
//!
//! A snapshot is text: a line of JSON that says what it is, a line for each key in order, and a line with the SHA-256
//! of all bytes before it. It can be read, compared and kept with any tool.
//!
//! What was lazy and not yet on disk is in it. Revisions are not kept: the store that takes it in gives new ones, so
//! clients that were watching list again.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::{Durability, KeyValue, Revision, Store, StoreError};

const PREFIX: &str = "/registry/";
/// What the first line says.
const FORMAT: &str = "wherry-snapshot";
/// A newer one is refused.
const VERSION: u32 = 1;
/// Keys read at once.
const PAGE_KEYS: usize = 1_000;
/// Writes under way at once, so that they share commits.
const WRITES_MAX: usize = 256;

/// A snapshot cannot be made or taken in.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The file.
    #[error("snapshot {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The trouble.
        #[source]
        source: io::Error,
    },
    /// The file is not a snapshot, or not a whole one. Nothing was written.
    #[error("snapshot {}: {why}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is something in the store that would be mixed with what is taken in. Nothing was written.
    #[error("the store holds {0} keys already: only an empty one can take in another's state")]
    NotEmpty(u64),
    /// The store. What was written until then is there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    format: String,
    version: u32,
    revision: Revision,
    keys: u64,
}

#[derive(Serialize)]
struct Entry<'a> {
    key: &'a str,
    value: &'a RawValue,
}

#[derive(Deserialize)]
struct OwnedEntry {
    key: String,
    value: Box<RawValue>,
}

#[derive(Serialize, Deserialize)]
struct Trailer {
    sha256: String,
}

/// What a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Keys.
    pub keys: u64,
    /// The revision it was true at, in the store it was made of.
    pub revision: Revision,
}

/// Writes the state of one moment to a file, whole or not at all.
pub async fn save(store: &dyn Store, path: &Path) -> Result<Summary, SnapshotError> {
    let (items, revision) = read_all(store).await?;
    let summary = Summary {
        keys: items.len() as u64,
        revision,
    };
    let damaged = |key: &str, error: serde_json::Error| SnapshotError::Damaged {
        path: path.to_owned(),
        why: format!("{key}: {error}"),
    };
    let failed = |source| SnapshotError::File {
        path: path.to_owned(),
        source,
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    let mut file = Hashed {
        to: BufWriter::new(File::create(&temporary).map_err(failed)?),
        sum: Sha256::new(),
    };
    let header = Header {
        format: FORMAT.to_owned(),
        version: VERSION,
        revision,
        keys: summary.keys,
    };
    file.line(&header).map_err(failed)?;
    for kv in &items {
        let value = kv.value.bytes();
        let value: &RawValue =
            serde_json::from_slice(&value).map_err(|error| damaged(&kv.key, error))?;
        file.line(&Entry {
            key: &kv.key,
            value,
        })
        .map_err(failed)?;
    }
    let Hashed { mut to, sum } = file;
    let sha256 = hex(&sum.finalize());
    let trailer = serde_json::to_string(&Trailer { sha256 }).map_err(io::Error::from);
    let finish = || -> io::Result<()> {
        writeln!(to, "{}", trailer?)?;
        to.into_inner()?.sync_all()?;
        fs::rename(&temporary, path)
    };
    finish().map_err(failed)?;
    Ok(summary)
}

/// Writes a snapshot into an empty store, after the whole of it has been checked.
pub async fn restore(store: &dyn Store, path: &Path) -> Result<Summary, SnapshotError> {
    refuse_what_is_not_empty(store).await?;
    let summary = read_file(path, |_, _| {})?;
    let mut entries = Vec::new();
    // Read again: the first reading may not keep in memory what turns out to be damaged.
    read_file(path, |key, value| entries.push((key, value)))?;
    write_all(store, entries).await?;
    Ok(summary)
}

/// Writes the state of one moment of a store into an empty one.
pub async fn copy(from: &dyn Store, to: &dyn Store) -> Result<Summary, SnapshotError> {
    refuse_what_is_not_empty(to).await?;
    let (items, revision) = read_all(from).await?;
    let keys = items.len() as u64;
    let entries = items
        .into_iter()
        .map(|kv| (kv.key.to_string(), kv.value.bytes()));
    write_all(to, entries).await?;
    Ok(Summary { keys, revision })
}

async fn refuse_what_is_not_empty(store: &dyn Store) -> Result<(), SnapshotError> {
    match store.count(PREFIX).await?.0 {
        0 => Ok(()),
        keys => Err(SnapshotError::NotEmpty(keys)),
    }
}

async fn read_all(store: &dyn Store) -> Result<(Vec<KeyValue>, Revision), StoreError> {
    let mut page = store.list(PREFIX, None, PAGE_KEYS, 0).await?;
    let revision = page.revision;
    let mut items = page.items;
    while page.more {
        let after = items.last().map(|kv| kv.key.clone());
        page = store
            .list(PREFIX, after.as_deref(), PAGE_KEYS, revision)
            .await?;
        items.append(&mut page.items);
    }
    Ok((items, revision))
}

async fn write_all(
    store: &dyn Store,
    entries: impl IntoIterator<Item = (String, Bytes)>,
) -> Result<(), StoreError> {
    stream::iter(entries)
        .map(|(key, value)| async move {
            store
                .create(&key, value, Durability::Durable)
                .await
                .map(drop)
        })
        .buffer_unordered(WRITES_MAX)
        .try_collect()
        .await
}

/// Reads a snapshot and checks it.
fn read_file(path: &Path, mut entry: impl FnMut(String, Bytes)) -> Result<Summary, SnapshotError> {
    let failed = |source| SnapshotError::File {
        path: path.to_owned(),
        source,
    };
    let damaged = |why: String| SnapshotError::Damaged {
        path: path.to_owned(),
        why,
    };
    let mut lines = Lines {
        from: BufReader::new(File::open(path).map_err(failed)?),
        sum: Sha256::new(),
        line: String::new(),
    };
    let first = lines.next().map_err(failed)?;
    let header: Header = serde_json::from_str(first)
        .ok()
        .filter(|header: &Header| header.format == FORMAT)
        .ok_or_else(|| damaged("not a snapshot of a store".to_owned()))?;
    if header.version > VERSION {
        return Err(damaged(format!(
            "its format {} is newer than this program's {VERSION}",
            header.version
        )));
    }
    for number in 0..header.keys {
        let line = lines.next().map_err(failed)?;
        let read: OwnedEntry = serde_json::from_str(line)
            .map_err(|error| damaged(format!("key {} of {}: {error}", number + 1, header.keys)))?;
        let value: Box<str> = read.value.into();
        entry(read.key, Bytes::from(String::from(value)));
    }
    let sum = hex(&lines.sum.clone().finalize());
    let trailer: Option<Trailer> = serde_json::from_str(lines.next().map_err(failed)?).ok();
    if trailer.is_none_or(|trailer| trailer.sha256 != sum) {
        return Err(damaged(
            "its checksum does not match: it was cut short or changed".to_owned(),
        ));
    }
    Ok(Summary {
        keys: header.keys,
        revision: header.revision,
    })
}

struct Hashed {
    to: BufWriter<File>,
    sum: Sha256,
}

impl Hashed {
    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.sum.update(&line);
        self.to.write_all(&line)
    }
}

struct Lines {
    from: BufReader<File>,
    sum: Sha256,
    line: String,
}

impl Lines {
    /// The next line; empty at the end of the file.
    fn next(&mut self) -> io::Result<&str> {
        self.line.clear();
        self.from.read_line(&mut self.line)?;
        self.sum.update(&self.line);
        Ok(self.line.trim_end_matches('\n'))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;

    async fn filled() -> MemoryStore {
        let store = MemoryStore::default();
        for n in 0..2_500 {
            let value = format!("{{\"metadata\":{{\"name\":\"n{n}\",\"note\":\"a\\nb é\"}}}}");
            let key = format!("/registry/configmaps/default/n{n:04}");
            store
                .create(&key, value.into(), Durability::Lazy)
                .await
                .unwrap();
        }
        store
    }

    async fn contents(store: &dyn Store) -> Vec<(String, Bytes)> {
        let (items, _) = read_all(store).await.unwrap();
        items
            .into_iter()
            .map(|kv| (kv.key.to_string(), kv.value.bytes()))
            .collect()
    }

    #[tokio::test]
    async fn what_is_saved_is_restored() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("snapshot");
        let store = filled().await;
        let saved = save(&store, &file).await.unwrap();
        assert_eq!((saved.keys, saved.revision), (2_500, 2_500));
        let other = MemoryStore::default();
        assert_eq!(restore(&other, &file).await.unwrap(), saved);
        assert_eq!(contents(&other).await, contents(&store).await);
        assert!(matches!(
            restore(&other, &file).await,
            Err(SnapshotError::NotEmpty(2_500))
        ));
        let third = MemoryStore::default();
        copy(&other, &third).await.unwrap();
        assert_eq!(contents(&third).await, contents(&store).await);
    }

    #[tokio::test]
    async fn a_damaged_snapshot_is_refused_before_anything_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("snapshot");
        save(&filled().await, &file).await.unwrap();
        let whole = fs::read_to_string(&file).unwrap();
        for (what, text) in [
            ("empty", String::new()),
            ("something else", "kind: Pod\n".to_owned()),
            ("cut short", whole[..whole.len() - 200].to_owned()),
            ("changed", whole.replacen("n2400", "n24o0", 1)),
            (
                "from the future",
                whole.replacen("\"version\":1", "\"version\":2", 1),
            ),
        ] {
            fs::write(&file, text).unwrap();
            let store = MemoryStore::default();
            let result = restore(&store, &file).await;
            assert!(
                matches!(result, Err(SnapshotError::Damaged { .. })),
                "{what}: {result:?}"
            );
            assert_eq!(store.count("/").await.unwrap().0, 0, "{what}");
        }
    }
}

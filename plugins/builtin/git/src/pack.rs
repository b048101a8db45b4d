//! A pack: objects, compressed, some as the difference to another. It stays compressed in memory, and objects are
//! made when they are asked for.

use std::collections::{BTreeMap, HashMap};

use miniz_oxide::{
    DataFormat, MZFlush, MZStatus,
    inflate::stream::{InflateState, inflate},
};
use sha1_smol::Sha1;

use crate::delta;

/// Bytes of one object.
const OBJECT_BYTES_MAX: usize = 256 << 20;
/// Bytes of bases that are remembered while others are made of them.
const CACHE_BYTES_MAX: usize = 32 << 20;
/// Differences of differences; git makes 50 at most, or what its user says.
const CHAIN_MAX: usize = 4096;

/// The name of an object.
pub(crate) type Id = [u8; 20];

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Commit,
    Tree,
    Blob,
    Tag,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Tree => "tree",
            Self::Blob => "blob",
            Self::Tag => "tag",
        }
    }
}

enum How {
    Whole(Kind),
    OnOffset(usize),
    OnId(Id),
}

struct Entry {
    how: How,
    /// Where its compressed bytes begin.
    data: usize,
    /// Bytes when inflated.
    size: usize,
}

/// A pack that has been read to its end.
pub(crate) struct Pack {
    bytes: Vec<u8>,
    entries: BTreeMap<usize, Entry>,
    offsets: HashMap<Id, usize>,
    cache: HashMap<usize, (Kind, Vec<u8>)>,
    cached: usize,
}

impl Pack {
    /// Finds all objects of a pack.
    pub(crate) fn read(bytes: Vec<u8>) -> Result<Self, String> {
        let bad = |why: &str| format!("a damaged pack: {why}");
        let word = |at: usize| {
            let word = bytes.get(at..at + 4)?;
            Some(u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
        };
        if bytes.get(..4) != Some(b"PACK") || !matches!(word(4), Some(2 | 3)) {
            return Err(bad("it does not begin as one"));
        }
        let count = word(8).ok_or_else(|| bad("it ends early"))?;
        let end = bytes.len().checked_sub(20).filter(|end| *end >= 12);
        let end = end.ok_or_else(|| bad("it ends early"))?;
        if Sha1::from(&bytes[..end]).digest().bytes() != bytes[end..] {
            return Err(bad("its checksum is another"));
        }
        let mut pack = Self {
            entries: BTreeMap::new(),
            offsets: HashMap::new(),
            cache: HashMap::new(),
            cached: 0,
            bytes,
        };
        let mut at = 12;
        for _ in 0..count {
            let (entry, next) = pack.entry(at, end)?;
            pack.entries.insert(at, entry);
            at = next;
        }
        if at != end {
            return Err(bad("more than it says"));
        }
        pack.name_all()?;
        Ok(pack)
    }

    /// The entry at an offset, and where the next one is.
    fn entry(&self, at: usize, end: usize) -> Result<(Entry, usize), String> {
        let bad = || "a damaged pack: an entry that is none".to_owned();
        let bytes = &self.bytes[..end];
        let mut rest = bytes.get(at..).ok_or_else(bad)?;
        let mut next = || {
            let (byte, after) = rest.split_first()?;
            rest = after;
            Some(*byte)
        };
        let mut byte = next().ok_or_else(bad)?;
        let kind = byte >> 4 & 7;
        let mut size = usize::from(byte & 15);
        let mut shift = 4;
        while byte & 0x80 != 0 {
            byte = next().ok_or_else(bad)?;
            if shift > 25 {
                return Err(bad());
            }
            size |= usize::from(byte & 0x7f) << shift;
            shift += 7;
        }
        if size > OBJECT_BYTES_MAX {
            return Err(format!(
                "an object of {size} bytes; at most {OBJECT_BYTES_MAX} are read"
            ));
        }
        let how = match kind {
            1 => How::Whole(Kind::Commit),
            2 => How::Whole(Kind::Tree),
            3 => How::Whole(Kind::Blob),
            4 => How::Whole(Kind::Tag),
            6 => {
                byte = next().ok_or_else(bad)?;
                let mut back = usize::from(byte & 0x7f);
                while byte & 0x80 != 0 {
                    byte = next().ok_or_else(bad)?;
                    back = back
                        .checked_add(1)
                        .and_then(|back| back.checked_mul(128))
                        .ok_or_else(bad)?
                        | usize::from(byte & 0x7f);
                }
                let base = at
                    .checked_sub(back)
                    .filter(|base| self.entries.contains_key(base));
                How::OnOffset(base.ok_or_else(bad)?)
            }
            7 => {
                let id = rest
                    .get(..20)
                    .and_then(|id| Id::try_from(id).ok())
                    .ok_or_else(bad)?;
                rest = &rest[20..];
                How::OnId(id)
            }
            _ => return Err(bad()),
        };
        let data = end - rest.len();
        let mut sink = Vec::new();
        let used = inflate_into(rest, size, &mut sink)?;
        let entry = Entry { how, data, size };
        Ok((entry, data + used))
    }

    /// Makes every object once, for its name.
    fn name_all(&mut self) -> Result<(), String> {
        let mut waiting: Vec<usize> = self.entries.keys().copied().collect();
        while !waiting.is_empty() {
            let before = waiting.len();
            let mut later = Vec::new();
            for at in waiting {
                match self.make(at)? {
                    Some((kind, content)) => {
                        let mut hash = Sha1::new();
                        hash.update(format!("{} {}\0", kind.name(), content.len()).as_bytes());
                        hash.update(&content);
                        self.offsets.insert(hash.digest().bytes(), at);
                        self.remember(at, kind, content);
                    }
                    None => later.push(at),
                }
            }
            // What differs from something that is not here, or in a circle.
            if later.len() == before {
                return Err("a damaged pack: a difference to nothing".into());
            }
            waiting = later;
        }
        Ok(())
    }

    fn remember(&mut self, at: usize, kind: Kind, content: Vec<u8>) {
        if content.len() > CACHE_BYTES_MAX / 4 || self.cache.contains_key(&at) {
            return;
        }
        if self.cached + content.len() > CACHE_BYTES_MAX {
            self.cache.clear();
            self.cached = 0;
        }
        self.cached += content.len();
        self.cache.insert(at, (kind, content));
    }

    /// An object by its offset; `None`: its base has no name yet.
    fn make(&self, mut at: usize) -> Result<Option<(Kind, Vec<u8>)>, String> {
        let mut deltas = Vec::new();
        let (kind, mut content) = loop {
            if let Some((kind, content)) = self.cache.get(&at) {
                break (*kind, content.clone());
            }
            let entry = self
                .entries
                .get(&at)
                .ok_or("a damaged pack: an offset to nothing")?;
            match &entry.how {
                How::Whole(kind) => break (*kind, self.inflate(entry)?),
                How::OnOffset(base) => {
                    deltas.push(self.inflate(entry)?);
                    at = *base;
                }
                How::OnId(base) => {
                    let Some(offset) = self.offsets.get(base) else {
                        return Ok(None);
                    };
                    deltas.push(self.inflate(entry)?);
                    at = *offset;
                }
            }
            if deltas.len() > CHAIN_MAX {
                return Err("a damaged pack: differences without end".into());
            }
        };
        while let Some(delta) = deltas.pop() {
            content = delta::apply(&content, &delta)?;
            if content.len() > OBJECT_BYTES_MAX {
                return Err(format!("an object of more than {OBJECT_BYTES_MAX} bytes"));
            }
        }
        Ok(Some((kind, content)))
    }

    fn inflate(&self, entry: &Entry) -> Result<Vec<u8>, String> {
        let mut content = Vec::with_capacity(entry.size);
        inflate_into(&self.bytes[entry.data..], entry.size, &mut content)?;
        Ok(content)
    }

    /// An object by its name.
    pub(crate) fn object(&self, id: &Id) -> Result<(Kind, Vec<u8>), String> {
        let missing = || format!("object {} is not in the pack", name(id));
        let at = self.offsets.get(id).ok_or_else(missing)?;
        self.make(*at)?.ok_or_else(missing)
    }

    #[cfg(test)]
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.offsets.keys().map(name).collect();
        names.sort();
        names
    }
}

/// The 40 digits of a name.
pub(crate) fn name(id: &Id) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name that 40 digits are.
pub(crate) fn parse_name(digits: &[u8]) -> Option<Id> {
    let mut id = [0; 20];
    let digits = std::str::from_utf8(digits.get(..40)?).ok()?;
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(id)
}

/// Inflates exactly `size` bytes; answers how many compressed ones they were.
fn inflate_into(compressed: &[u8], size: usize, out: &mut Vec<u8>) -> Result<usize, String> {
    let bad = || "a damaged pack: an object that cannot be inflated".to_owned();
    let mut state = InflateState::new_boxed(DataFormat::Zlib);
    let mut used = 0;
    let mut buffer = vec![0; size.clamp(64, 64 << 10)];
    loop {
        let input = compressed.get(used..).ok_or_else(bad)?;
        let done = inflate(&mut state, input, &mut buffer, MZFlush::None);
        used += done.bytes_consumed;
        out.extend_from_slice(&buffer[..done.bytes_written]);
        if out.len() > size {
            return Err(bad());
        }
        match done.status {
            Ok(MZStatus::StreamEnd) if out.len() == size => return Ok(used),
            Ok(MZStatus::Ok) if done.bytes_written > 0 || done.bytes_consumed > 0 => {}
            _ => return Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A pack of git's own making, with differences, and the names of its objects.
    fn made(more: &str) -> (Vec<u8>, Vec<String>) {
        let script = "set -e; d=$(mktemp -d); cd $d; git init -q .; \
            for i in 1 2 3 4 5; do seq 1 2000 > f; echo $i >> f; seq 3000 5000 >> f; mkdir -p d; echo $i > d/g; git add .; \
            git -c user.name=a -c user.email=a@b commit -q -m $i --date=2026-01-01T00:00:00Z; done; \
            git rev-list --objects --all | cut -d' ' -f1 | sort > names; \
            git pack-objects -q --stdout MORE < names > pack; cat names; rm -f ../pack.$$; cp pack $0; rm -rf $d";
        let file =
            std::env::temp_dir().join(format!("wherry-pack-{}-{}", std::process::id(), more.len()));
        let output = Command::new("bash")
            .args(["-c", &script.replace("MORE", more)])
            .arg(&file)
            .env("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z")
            .env("HOME", "/nonexistent")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let bytes = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let names = String::from_utf8(output.stdout).unwrap();
        (bytes, names.lines().map(str::to_owned).collect())
    }

    #[test]
    fn every_object_of_gits_own_packs_has_its_name() {
        for more in ["", "--delta-base-offset"] {
            let (bytes, names) = made(more);
            let pack = Pack::read(bytes).unwrap();
            assert_eq!(pack.names(), names, "{more}");
            let is_difference = |entry: &Entry| !matches!(entry.how, How::Whole(_));
            assert!(pack.entries.values().any(is_difference), "{more}");
            for id in pack.offsets.keys() {
                pack.object(id).unwrap();
            }
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let (good, _) = made("--delta-base-offset ");
        for length in (0..good.len()).step_by(13) {
            assert!(Pack::read(good[..length].to_vec()).is_err());
        }
        // With a checksum that fits, so that what is inside is looked at.
        for at in (12..good.len() - 20).step_by(11) {
            let mut bad = good.clone();
            bad[at] ^= 0x5a;
            let end = bad.len() - 20;
            let sum = Sha1::from(&bad[..end]).digest().bytes();
            bad[end..].copy_from_slice(&sum);
            let _ = Pack::read(bad);
        }
        let mut flipped = good;
        flipped[20] ^= 1;
        assert!(Pack::read(flipped).err().unwrap().contains("checksum"));
    }

    #[test]
    fn names_are_forty_digits() {
        let text = b"0123456789abcdef0123456789abcdef01234567";
        assert_eq!(name(&parse_name(text).unwrap()).as_bytes(), text);
        assert_eq!(parse_name(b"0123"), None);
        assert_eq!(parse_name(&[b'z'; 40]), None);
    }
}

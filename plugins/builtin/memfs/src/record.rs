//! A node as it stands in its block.

use wherry_plugin::filesystem::{Datetime, Kind, Node};

/// A file, a directory or a link.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) owner: u32,
    pub(crate) group: u32,
    pub(crate) size: u64,
    pub(crate) modified: Datetime,
    /// The directory it is in; 0: removed, and still in use.
    pub(crate) parent: Node,
    pub(crate) name: String,
    /// Where a link leads.
    pub(crate) target: String,
}

impl Inode {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let kind = match self.kind {
            Kind::File => 1,
            Kind::Directory => 2,
            Kind::Link => 3_u32,
        };
        let mut bytes = Vec::with_capacity(64 + self.name.len() + self.target.len());
        let name_length = self.name.len() as u32;
        for word in [
            kind,
            self.mode,
            self.owner,
            self.group,
            self.modified.nanoseconds,
            name_length,
        ] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for word in [self.size, self.modified.seconds, self.parent] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.extend_from_slice(self.target.as_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let name_end = 48 + word(20)? as usize;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        Some(Self {
            kind: match word(0)? {
                1 => Kind::File,
                2 => Kind::Directory,
                3 => Kind::Link,
                _ => return None,
            },
            mode: word(4)?,
            owner: word(8)?,
            group: word(12)?,
            size: long(24)?,
            modified: Datetime {
                seconds: long(32)?,
                nanoseconds: word(16)?,
            },
            parent: long(40)?,
            name: text(bytes.get(48..name_end)?)?,
            target: text(bytes.get(name_end..)?)?,
        })
    }
}

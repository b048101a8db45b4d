//! FUSE's words, as Linux has them (`include/uapi/linux/fuse.h`, protocol 7): what is read from
//! `/dev/fuse` becomes a [`Request`], what guests answer becomes the bytes that the kernel wants.
//! Pure.
//!
//! Absent on purpose: file handles. `OPEN` is answered with ENOSYS, after which the kernel opens and
//! closes files by itself, so that there is nothing of them to be lost with a process; and `CREATE`,
//! which it then makes of `MKNOD`.

use std::time::Duration;

use nix::libc;
use wherry_plugin_host::filesystem::protocol::{
    Attributes, Changes, Creation, DATA_BYTES_MAX, ENTRIES_MAX, Errno, Kind, Operation,
};

/// Bytes before the body of a request.
pub(crate) const HEADER_BYTES: usize = 40;
/// Bytes of the longest request: a write with its header and words.
pub(crate) const REQUEST_BYTES_MAX: usize = HEADER_BYTES + 40 + DATA_BYTES_MAX as usize + 4096;
/// A name in a directory.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// In front of a request's number where the kernel asks again for what another process had.
pub(crate) const RESENT: u64 = 1 << 63;

const MAJOR: u32 = 7;
/// What these structures are of; a newer kernel speaks as this one.
const MINOR: u32 = 40;
/// Requests that the kernel sends without somebody who waits: reading ahead.
const BACKGROUND_MAX: u16 = 16;

/// Most bytes that the kernel may read ahead, in requests that are on their way together. How much it does is up to
/// whoever mounts.
const READAHEAD_BYTES: u32 = 1 << 20;

const ASYNC_READ: u64 = 1 << 0;
const BIG_WRITES: u64 = 1 << 5;
const AUTO_INVAL_DATA: u64 = 1 << 12;
const DO_READDIRPLUS: u64 = 1 << 13;
const READDIRPLUS_AUTO: u64 = 1 << 14;
const NO_OPEN_SUPPORT: u64 = 1 << 17;
const PARALLEL_DIROPS: u64 = 1 << 18;
const MAX_PAGES: u64 = 1 << 22;
const CACHE_SYMLINKS: u64 = 1 << 23;
const INIT_EXT: u64 = 1 << 30;
const HAS_RESEND: u64 = 1 << 39;
const ALLOW_IDMAP: u64 = 1 << 40;
/// What is asked of a kernel that has it.
const WANTED: u64 = ASYNC_READ
    | BIG_WRITES
    | AUTO_INVAL_DATA
    | DO_READDIRPLUS
    | READDIRPLUS_AUTO
    | NO_OPEN_SUPPORT
    | PARALLEL_DIROPS
    | MAX_PAGES
    | CACHE_SYMLINKS
    | INIT_EXT
    | HAS_RESEND
    | ALLOW_IDMAP;

/// What the kernel wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Names it in the answer.
    pub(crate) unique: u64,
    pub(crate) body: Body,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// The first request: version and flags.
    Init { major: u32, flags: u64 },
    /// Not answered: nodes, and how often each was told to the kernel.
    Forget(Vec<(u64, u64)>),
    /// Not answered: nobody waits for that request any more.
    Interrupt { unique: u64 },
    /// Answered without asking anybody: an open directory is nothing.
    Nothing(Shape),
    /// The guest's, and the form the kernel wants the answer in. Nodes are the kernel's.
    Operation(Operation, Shape, Vec<u8>),
    /// Answered by an error.
    Refused(i32),
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Nothing behind the header.
    Empty,
    /// A node that the kernel did not know.
    Entry,
    /// What a node is like.
    Attributes,
    /// A path.
    Link,
    /// What was read.
    Data,
    /// How much was written.
    Written(u32),
    /// A handle, which is 0.
    Open,
    /// A directory, in so many bytes.
    Directory { bytes: u32, plus: bool },
    /// What there is room for.
    Space,
}

/// Reads numbers and names one after the other; past the end there is nothing but errors.
struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_ne_bytes)
    }

    /// A text that ends with NUL. One that is no UTF-8 names nothing that a guest could have made.
    fn name(&mut self) -> Option<Result<String, i32>> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let name = self.take(end + 1)?;
        Some(String::from_utf8(name[..end].to_vec()).map_err(|_| libc::EILSEQ))
    }
}

impl Request {
    /// What was read from the device; `None` is no request.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut words = Words(bytes);
        let length = words.u32()? as usize;
        let opcode = words.u32()?;
        let unique = words.u64()?;
        let node = words.u64()?;
        let owner = words.u32()?;
        let group = words.u32()?;
        let _pid = words.u32()?;
        let extensions = usize::from(words.u16()?) * 8;
        let _padding = words.u16()?;
        let end = bytes.len().min(length).checked_sub(extensions)?;
        let mut words = Words(bytes.get(HEADER_BYTES..end)?);
        let body = body(opcode, node, owner, group, &mut words)?;
        Some(Self { unique, body })
    }
}

/// A name for a guest, or the error that it is.
macro_rules! name {
    ($words:expr) => {
        match $words.name()? {
            Ok(name) if name.len() > NAME_BYTES_MAX => {
                return Some(Body::Refused(libc::ENAMETOOLONG));
            }
            Ok(name) => name,
            Err(errno) => return Some(Body::Refused(errno)),
        }
    };
}

fn body(opcode: u32, node: u64, owner: u32, group: u32, words: &mut Words<'_>) -> Option<Body> {
    let plain = |operation, shape| Some(Body::Operation(operation, shape, Vec::new()));
    match opcode {
        // LOOKUP
        1 => {
            let name = name!(words);
            plain(Operation::Lookup { parent: node, name }, Shape::Entry)
        }
        // FORGET
        2 => Some(Body::Forget(vec![(node, words.u64()?)])),
        // BATCH_FORGET
        42 => {
            let count = words.u32()?;
            let _padding = words.u32()?;
            let one = |_| Some((words.u64()?, words.u64()?));
            Some(Body::Forget((0..count).map_while(one).collect()))
        }
        // GETATTR
        3 => plain(Operation::Stat { node }, Shape::Attributes),
        // SETATTR
        4 => {
            let changes = changes(words)?;
            plain(Operation::Change { node, changes }, Shape::Attributes)
        }
        // READLINK
        5 => plain(Operation::ReadLink { node }, Shape::Link),
        // SYMLINK
        6 => {
            let name = name!(words);
            let to = match words.name()? {
                Ok(to) => to,
                Err(errno) => return Some(Body::Refused(errno)),
            };
            let operation = Operation::CreateLink {
                parent: node,
                name,
                to,
                creation: Creation {
                    mode: 0o777,
                    owner,
                    group,
                },
            };
            plain(operation, Shape::Entry)
        }
        // MKNOD, MKDIR
        8 | 9 => {
            let mode = words.u32()?;
            let kind = if opcode == 9 {
                let _umask = words.u32()?;
                Kind::Directory
            } else {
                let (_rdev, _umask, _padding) = (words.u32()?, words.u32()?, words.u32()?);
                if mode & libc::S_IFMT != libc::S_IFREG {
                    return Some(Body::Refused(libc::EPERM));
                }
                Kind::File
            };
            let name = name!(words);
            let operation = Operation::Create {
                parent: node,
                name,
                kind,
                creation: Creation {
                    mode: mode & 0o7777,
                    owner,
                    group,
                },
            };
            plain(operation, Shape::Entry)
        }
        // UNLINK, RMDIR
        10 | 11 => {
            let name = name!(words);
            plain(Operation::Remove { parent: node, name }, Shape::Empty)
        }
        // RENAME, RENAME2
        12 | 45 => {
            let new_parent = words.u64()?;
            let mut replace = true;
            if opcode == 45 {
                let flags = words.u32()?;
                let _padding = words.u32()?;
                if flags & !libc::RENAME_NOREPLACE != 0 {
                    return Some(Body::Refused(libc::EINVAL));
                }
                replace = flags == 0;
            }
            let operation = Operation::Rename {
                parent: node,
                name: name!(words),
                new_parent,
                new_name: name!(words),
                replace,
            };
            plain(operation, Shape::Empty)
        }
        // LINK
        13 => Some(Body::Refused(libc::EPERM)),
        // READ
        15 => {
            let _handle = words.u64()?;
            let (offset, length) = (words.u64()?, words.u32()?.min(DATA_BYTES_MAX));
            let operation = Operation::Read {
                node,
                offset,
                length,
            };
            plain(operation, Shape::Data)
        }
        // WRITE
        16 => {
            let _handle = words.u64()?;
            let (offset, length) = (words.u64()?, words.u32()?);
            let _rest = words.take(20)?;
            let data = words.take(length as usize)?.to_vec();
            let operation = Operation::Write { node, offset };
            Some(Body::Operation(operation, Shape::Written(length), data))
        }
        // STATFS
        17 => plain(Operation::Space, Shape::Space),
        // FSYNC
        20 => plain(Operation::Sync { node }, Shape::Empty),
        // INIT
        26 => {
            let (major, _minor) = (words.u32()?, words.u32()?);
            let (_readahead, low) = (words.u32()?, words.u32()?);
            let high = words.u32().unwrap_or(0);
            let flags = u64::from(low) | u64::from(high) << 32;
            Some(Body::Init { major, flags })
        }
        // OPENDIR, RELEASEDIR, DESTROY
        27 => Some(Body::Nothing(Shape::Open)),
        29 | 38 => Some(Body::Nothing(Shape::Empty)),
        // READDIR, READDIRPLUS
        28 | 44 => {
            let _handle = words.u64()?;
            let (offset, bytes) = (words.u64()?, words.u32()?);
            let plus = opcode == 44;
            let each = if plus { 128 + 32 } else { 32 };
            let operation = Operation::ReadDirectory {
                node,
                offset,
                count: (bytes / each).clamp(1, ENTRIES_MAX),
            };
            plain(operation, Shape::Directory { bytes, plus })
        }
        // INTERRUPT
        36 => Some(Body::Interrupt {
            unique: words.u64()?,
        }),
        // What is not spoken here, the kernel mostly does by itself from now on.
        _ => Some(Body::Refused(libc::ENOSYS)),
    }
}

fn changes(words: &mut Words<'_>) -> Option<Changes> {
    let valid = words.u32()?;
    let _padding = words.u32()?;
    let _handle = words.u64()?;
    let size = words.u64()?;
    let (_owner, _atime) = (words.u64()?, words.u64()?);
    let (mtime, _ctime) = (words.u64()?, words.u64()?);
    let (_atime_nanos, mtime_nanos, _ctime_nanos) = (words.u32()?, words.u32()?, words.u32()?);
    let mode = words.u32()?;
    let _unused = words.u32()?;
    let (owner, group) = (words.u32()?, words.u32()?);
    let modified = match valid & (1 << 5 | 1 << 8) {
        0 => None,
        given if given & 1 << 8 != 0 => Some(now()),
        _ => Some(Duration::new(mtime, mtime_nanos.min(999_999_999))),
    };
    Some(Changes {
        mode: (valid & 1 != 0).then_some(mode & 0o7777),
        owner: (valid & 2 != 0).then_some(owner),
        group: (valid & 4 != 0).then_some(group),
        size: (valid & 8 != 0).then_some(size),
        modified,
    })
}

fn now() -> Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default()
}

/// The number that stands for a guest's error.
pub(crate) fn errno(errno: Errno) -> i32 {
    match errno {
        Errno::NotFound => libc::ENOENT,
        Errno::Exists => libc::EEXIST,
        Errno::NotDirectory => libc::ENOTDIR,
        Errno::IsDirectory => libc::EISDIR,
        Errno::NotEmpty => libc::ENOTEMPTY,
        Errno::Access => libc::EACCES,
        Errno::ReadOnly => libc::EROFS,
        Errno::NoSpace => libc::ENOSPC,
        Errno::TooLarge => libc::EFBIG,
        Errno::Unsupported => libc::EOPNOTSUPP,
        Errno::Stale => libc::ESTALE,
        Errno::Invalid => libc::EINVAL,
        Errno::Io => libc::EIO,
    }
}

/// Writes an answer's words one after the other.
#[derive(Default)]
pub(crate) struct Answer(Vec<u8>);

impl Answer {
    fn u16(&mut self, word: u16) {
        self.0.extend_from_slice(&word.to_ne_bytes());
    }

    fn u32(&mut self, word: u32) {
        self.0.extend_from_slice(&word.to_ne_bytes());
    }

    fn u64(&mut self, word: u64) {
        self.0.extend_from_slice(&word.to_ne_bytes());
    }

    /// Greets the kernel; an error where it speaks another protocol.
    pub(crate) fn init(major: u32, flags: u64) -> Result<Vec<u8>, i32> {
        if major < MAJOR {
            return Err(libc::EPROTO);
        }
        let flags = flags & WANTED;
        let mut answer = Self::default();
        answer.u32(MAJOR);
        answer.u32(MINOR);
        answer.u32(READAHEAD_BYTES);
        answer.u32(flags as u32);
        answer.u16(BACKGROUND_MAX);
        answer.u16(BACKGROUND_MAX * 3 / 4);
        answer.u32(DATA_BYTES_MAX);
        // Times are told to the nanosecond.
        answer.u32(1);
        answer.u16((DATA_BYTES_MAX / 4096) as u16);
        answer.u16(0);
        answer.u32((flags >> 32) as u32);
        answer.0.resize(64, 0);
        Ok(answer.0)
    }

    fn attributes(&mut self, node: u64, attributes: &Attributes) {
        let (seconds, nanos) = (
            attributes.modified.as_secs(),
            attributes.modified.subsec_nanos(),
        );
        let kind = match attributes.kind {
            Kind::File => libc::S_IFREG,
            Kind::Directory => libc::S_IFDIR,
            Kind::Link => libc::S_IFLNK,
        };
        self.u64(node);
        self.u64(attributes.size);
        self.u64(attributes.size.div_ceil(512));
        for _ in 0..3 {
            self.u64(seconds);
        }
        for _ in 0..3 {
            self.u32(nanos);
        }
        self.u32(kind | attributes.mode & 0o7777);
        self.u32(1);
        self.u32(attributes.owner);
        self.u32(attributes.group);
        self.u32(0);
        self.u32(4096);
        self.u32(0);
    }

    fn entry_words(&mut self, node: u64, attributes: &Attributes) {
        let valid = attributes.valid;
        self.u64(node);
        self.u64(0);
        for _ in 0..2 {
            self.u64(valid.as_secs());
        }
        for _ in 0..2 {
            self.u32(valid.subsec_nanos());
        }
        self.attributes(node, attributes);
    }

    /// A node that the kernel will know by `node`.
    pub(crate) fn entry(node: u64, attributes: &Attributes) -> Vec<u8> {
        let mut answer = Self::default();
        answer.entry_words(node, attributes);
        answer.0
    }

    /// What a node is like.
    pub(crate) fn stat(node: u64, attributes: &Attributes) -> Vec<u8> {
        let mut answer = Self::default();
        answer.u64(attributes.valid.as_secs());
        answer.u32(attributes.valid.subsec_nanos());
        answer.u32(0);
        answer.attributes(node, attributes);
        answer.0
    }

    /// How much was written.
    pub(crate) fn written(bytes: u32) -> Vec<u8> {
        let mut answer = Self::default();
        answer.u32(bytes);
        answer.u32(0);
        answer.0
    }

    /// An open directory.
    pub(crate) fn open() -> Vec<u8> {
        vec![0; 16]
    }

    /// What there is room for.
    pub(crate) fn space(bytes: u64, free: u64) -> Vec<u8> {
        const BLOCK: u64 = 4096;
        let mut answer = Self::default();
        answer.u64(bytes / BLOCK);
        answer.u64(free / BLOCK);
        answer.u64(free / BLOCK);
        answer.u64(0);
        answer.u64(0);
        answer.u32(BLOCK as u32);
        answer.u32(NAME_BYTES_MAX as u32);
        answer.u32(BLOCK as u32);
        answer.0.resize(80, 0);
        answer.0
    }

    /// Asks the kernel for everything that has not been answered, once more.
    pub(crate) fn resend() -> Vec<u8> {
        const NOTIFY_RESEND: u32 = 7;
        let mut answer = Self::default();
        answer.u32(16);
        answer.u32(NOTIFY_RESEND);
        answer.u64(0);
        answer.0
    }

    /// What stands before every answer; `error` is 0 or a number of errno.
    pub(crate) fn header(unique: u64, error: i32, bytes: usize) -> [u8; 16] {
        let mut header = [0; 16];
        let length = u32::try_from(16 + bytes).unwrap_or(u32::MAX);
        header[..4].copy_from_slice(&length.to_ne_bytes());
        header[4..8].copy_from_slice(&(-error).to_ne_bytes());
        header[8..].copy_from_slice(&unique.to_ne_bytes());
        header
    }
}

/// A directory's entries in the form and number of bytes that the kernel wants.
pub(crate) struct Listing {
    answer: Answer,
    bytes_max: usize,
    plus: bool,
}

impl Listing {
    pub(crate) fn new(bytes_max: u32, plus: bool) -> Self {
        Self {
            answer: Answer::default(),
            bytes_max: bytes_max as usize,
            plus,
        }
    }

    /// Whether an entry of that name still fits.
    pub(crate) fn fits(&self, name: &str) -> bool {
        let words = if self.plus { 128 } else { 0 };
        let entry = words + (24 + name.len()).next_multiple_of(8);
        self.answer.0.len() + entry <= self.bytes_max
    }

    /// Adds an entry that fits. The kernel will know the node by `node`, which with `plus` counts as told.
    pub(crate) fn push(&mut self, name: &str, next: u64, node: u64, attributes: &Attributes) {
        if self.plus {
            self.answer.entry_words(node, attributes);
        }
        let kind = match attributes.kind {
            Kind::File => libc::DT_REG,
            Kind::Directory => libc::DT_DIR,
            Kind::Link => libc::DT_LNK,
        };
        self.name(name, next, node, kind);
    }

    /// Adds the directory itself or the one above, about which nothing is told.
    pub(crate) fn push_dots(&mut self, name: &str, next: u64, node: u64) {
        if self.plus {
            let told = self.answer.0.len() + 128;
            self.answer.0.resize(told, 0);
        }
        self.name(name, next, node, libc::DT_DIR);
    }

    fn name(&mut self, name: &str, next: u64, node: u64, kind: u8) {
        self.answer.u64(node);
        self.answer.u64(next);
        self.answer.u32(u32::try_from(name.len()).unwrap_or(0));
        self.answer.u32(kind.into());
        self.answer.0.extend_from_slice(name.as_bytes());
        let padded = self.answer.0.len().next_multiple_of(8);
        self.answer.0.resize(padded, 0);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.answer.0
    }
}

#[cfg(test)]
mod tests;

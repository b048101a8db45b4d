//! Reads a tar stream entry by entry, trusting nothing in it.
//!
//! The `tar` crate's headers are used for their number formats; its archive reader is not, because
//! it reads extended headers of any size into memory and knows no sparse files of the PAX kind.

use std::io::{self, Read};

use tar::{EntryType, Header};

const BLOCK: usize = 512;

/// Bytes of an extended header or sparse map. Go's archive/tar has the same limit; extended
/// attributes of a file are at most 64 KiB each on Linux.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file. If it is sparse: the parts that are there, as (offset, length).
    Regular(Option<Vec<(u64, u64)>>),
    /// Another name of a file of this archive.
    Link(Vec<u8>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A character device: major, minor.
    CharacterDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One entry's header.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Bytes of the file, holes included.
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar stream. As a [`Read`] it gives the data of the entry that [`Tarball::next`] answered last.
pub(crate) struct Tarball<R> {
    source: R,
    /// Bytes of the present entry's data not read yet.
    left: u64,
    /// Bytes to the next block after them.
    padding: u64,
    /// Bytes read from the source.
    position: u64,
    is_at_end: bool,
}

/// Keys of a PAX header that matter here.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_version: Option<(u64, u64)>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_numbers: Vec<u64>,
    is_sparse: bool,
}

fn corrupt(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl<R: Read> Tarball<R> {
    pub(crate) fn new(source: R) -> Self {
        Self {
            source,
            left: 0,
            padding: 0,
            position: 0,
            is_at_end: false,
        }
    }

    /// Where in the stream the present entry's data goes on.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Gives the source back, wherever it is.
    pub(crate) fn into_inner(self) -> R {
        self.source
    }

    /// The next entry, skipping what is left of the present one.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extension = Extension::default();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            if self.is_at_end {
                return Ok(None);
            }
            self.skip(self.left + self.padding)?;
            (self.left, self.padding) = (0, 0);
            let mut block = [0; BLOCK];
            if !self.read_block(&mut block)? || block.iter().all(|b| *b == 0) {
                self.is_at_end = true;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            check_sum(&block, header)?;
            let kind = header.entry_type();
            self.set_data(or_blank(&block[124..136], header.entry_size())?)?;
            match kind.as_byte() {
                b'x' => extension = parse_extension(&self.read_small()?)?,
                b'g' => drop(self.read_small()?),
                b'L' => long_path = Some(without_nul(self.read_small()?)),
                b'K' => long_link = Some(without_nul(self.read_small()?)),
                _ => {
                    return self
                        .entry(&block, extension, long_path, long_link)
                        .map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        mut extension: Extension,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> io::Result<Entry> {
        let header = Header::from_byte_slice(block);
        let path = extension
            .sparse_name
            .take()
            .or(extension.path.take())
            .or(long_path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || {
            (extension.link.clone().or(long_link.clone()))
                .or_else(|| header.link_name_bytes().map(|l| l.into_owned()))
                .unwrap_or_default()
        };
        let device = || -> io::Result<(u32, u32)> {
            Ok((
                header.device_major()?.unwrap_or(0),
                header.device_minor()?.unwrap_or(0),
            ))
        };
        // A size in the extended header is the size of the data in the stream, whatever the
        // header's own field says. Links and directories have none.
        let has_data = matches!(
            header.entry_type(),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse
        );
        if let Some(size) = extension.size.filter(|_| has_data) {
            self.set_data(size)?;
        }
        let mut size = self.left;
        let kind = match header.entry_type() {
            EntryType::GNUSparse => {
                let (map, real_size) = self.gnu_sparse_map(block)?;
                size = real_size;
                Kind::Regular(Some(map))
            }
            EntryType::Regular | EntryType::Continuous if extension.is_sparse => {
                let map = self.pax_sparse_map(&extension)?;
                size = extension
                    .sparse_size
                    .ok_or_else(|| corrupt("sparse file without a size"))?;
                Kind::Regular(Some(map))
            }
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::Regular(None),
            EntryType::Link => Kind::Link(link()),
            EntryType::Symlink => Kind::Symlink(link()),
            EntryType::Directory => Kind::Directory,
            EntryType::Char => {
                device().map(|(major, minor)| Kind::CharacterDevice(major, minor))?
            }
            EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
            EntryType::Fifo => Kind::Fifo,
            other => {
                return Err(corrupt(format!(
                    "entry of unknown type {:?}",
                    char::from(other.as_byte())
                )));
            }
        };
        if let Kind::Regular(Some(map)) = &kind {
            check_map(map, size, self.left)?;
        }
        Ok(Entry {
            path,
            kind,
            mode: or_blank(&block[100..108], header.mode())?,
            uid: extension
                .uid
                .map_or_else(|| or_blank(&block[108..116], header.uid()), Ok)?,
            gid: extension
                .gid
                .map_or_else(|| or_blank(&block[116..124], header.gid()), Ok)?,
            mtime: match extension.mtime {
                Some(mtime) => mtime,
                None => (
                    i64::try_from(or_blank(&block[136..148], header.mtime())?)
                        .map_err(|_| corrupt("time out of range"))?,
                    0,
                ),
            },
            size,
            xattrs: extension.xattrs,
        })
    }

    /// The map of an old GNU sparse file: four pairs in the header, then blocks of 21.
    fn gnu_sparse_map(&mut self, block: &[u8; BLOCK]) -> io::Result<(Vec<(u64, u64)>, u64)> {
        let header = Header::from_byte_slice(block);
        let gnu = header
            .as_gnu()
            .ok_or_else(|| corrupt("sparse file without a GNU header"))?;
        let mut map = Vec::new();
        for part in gnu.sparse.iter().filter(|part| !part.is_empty()) {
            map.push((part.offset()?, part.length()?));
        }
        let mut is_extended = gnu.is_extended();
        while is_extended {
            let mut extended = tar::GnuExtSparseHeader::new();
            if !self.read_block(extended.as_mut_bytes())? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for part in extended.sparse().iter().filter(|part| !part.is_empty()) {
                map.push((part.offset()?, part.length()?));
            }
            if map.len() as u64 * 16 > EXTENSION_BYTES_MAX {
                return Err(corrupt("sparse map too long"));
            }
            is_extended = extended.is_extended();
        }
        Ok((map, gnu.real_size()?))
    }

    /// The map of a PAX sparse file: in the header (0.0, 0.1) or before the data (1.0).
    fn pax_sparse_map(&mut self, extension: &Extension) -> io::Result<Vec<(u64, u64)>> {
        let pairs = |numbers: &[u64]| {
            numbers
                .chunks_exact(2)
                .map(|pair| (pair[0], pair[1]))
                .collect()
        };
        if extension.sparse_version != Some((1, 0)) {
            return Ok(pairs(&extension.sparse_numbers));
        }
        let mut numbers: Vec<u64> = Vec::new();
        let mut digits = Vec::new();
        let mut read = 0;
        while numbers
            .first()
            .is_none_or(|count| (numbers.len() as u64) < 1 + 2 * count)
        {
            let mut block = [0; BLOCK];
            self.read_exact(&mut block)?;
            read += BLOCK as u64;
            for byte in block {
                match byte {
                    b'\n' => numbers.push(number(&std::mem::take(&mut digits))?),
                    0 => {}
                    byte => digits.push(byte),
                }
            }
            if read > EXTENSION_BYTES_MAX
                || numbers
                    .first()
                    .is_some_and(|count| *count > EXTENSION_BYTES_MAX / 4)
            {
                return Err(corrupt("sparse map too long"));
            }
        }
        let count = numbers[0] as usize;
        Ok(pairs(&numbers[1..=2 * count]))
    }

    fn set_data(&mut self, size: u64) -> io::Result<()> {
        if size > i64::MAX as u64 {
            return Err(corrupt("entry of impossible size"));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// Reads the present entry's data whole.
    fn read_small(&mut self) -> io::Result<Vec<u8>> {
        if self.left > EXTENSION_BYTES_MAX {
            return Err(corrupt("extended header too long"));
        }
        let mut data = vec![0; self.left as usize];
        self.read_exact(&mut data)?;
        Ok(data)
    }

    /// Reads a block; `false` at a proper end.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.position += BLOCK as u64;
        Ok(true)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.source.by_ref().take(bytes), &mut io::sink())?;
        self.position += skipped;
        if skipped < bytes {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ok(())
        }
    }
}

impl<R: Read> Read for Tarball<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.source.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        self.position += read as u64;
        Ok(read)
    }
}

/// A number that was left out is 0, as other readers have it.
fn or_blank<T: Default>(field: &[u8], number: io::Result<T>) -> io::Result<T> {
    if number.is_err() && field.iter().all(|b| matches!(b, 0 | b' ')) {
        Ok(T::default())
    } else {
        number
    }
}

fn check_sum(block: &[u8; BLOCK], header: &Header) -> io::Result<()> {
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(i, b)| {
            if (148..156).contains(&i) {
                32
            } else {
                u32::from(*b)
            }
        })
        .sum();
    match header.cksum() {
        Ok(found) if found == sum => Ok(()),
        _ => Err(corrupt(
            "not a tar archive, or a damaged one (header checksum)",
        )),
    }
}

/// Parts must be in order, inside the file, and add up to the data in the stream.
fn check_map(map: &[(u64, u64)], size: u64, data: u64) -> io::Result<()> {
    let mut end = 0u64;
    let mut total = 0u64;
    for (offset, length) in map {
        if *offset < end {
            return Err(corrupt("sparse map out of order"));
        }
        end = offset
            .checked_add(*length)
            .ok_or_else(|| corrupt("sparse map overflows"))?;
        total += length;
    }
    if end > size || total != data {
        return Err(corrupt("sparse map does not fit its file"));
    }
    Ok(())
}

fn without_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|b| *b == 0) {
        text.truncate(end);
    }
    text
}

fn number(text: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| corrupt(format!("not a number: {:?}", String::from_utf8_lossy(text))))
}

/// `seconds[.fraction]`, possibly negative.
fn time(text: &[u8]) -> io::Result<(i64, u32)> {
    let wrong = || corrupt("not a time");
    let text = std::str::from_utf8(text).map_err(|_| wrong())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().map_err(|_| wrong())?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Ok((seconds - 1, 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}

/// Records of the form `<length> <key>=<value>\n`.
fn parse_extension(mut text: &[u8]) -> io::Result<Extension> {
    let wrong = || corrupt("malformed extended header");
    let mut extension = Extension::default();
    while !text.is_empty() {
        let space = text.iter().position(|b| *b == b' ').ok_or_else(wrong)?;
        let length = usize::try_from(number(&text[..space])?).map_err(|_| wrong())?;
        if length <= space + 1 || length > text.len() || text[length - 1] != b'\n' {
            return Err(wrong());
        }
        let record = &text[space + 1..length - 1];
        text = &text[length..];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(wrong)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let key = std::str::from_utf8(key).map_err(|_| wrong())?;
        // An empty value takes a key back.
        let owned = || (!value.is_empty()).then(|| value.to_vec());
        let numeric = || {
            if value.is_empty() {
                Ok(None)
            } else {
                number(value).map(Some)
            }
        };
        match key {
            "path" => extension.path = owned(),
            "linkpath" => extension.link = owned(),
            "size" => extension.size = numeric()?,
            "uid" => extension.uid = numeric()?,
            "gid" => extension.gid = numeric()?,
            "mtime" => {
                extension.mtime = if value.is_empty() {
                    None
                } else {
                    Some(time(value)?)
                }
            }
            "GNU.sparse.major" => {
                extension.is_sparse = true;
                extension.sparse_version.get_or_insert_default().0 = number(value)?;
            }
            "GNU.sparse.minor" => {
                extension.sparse_version.get_or_insert_default().1 = number(value)?
            }
            "GNU.sparse.name" => extension.sparse_name = owned(),
            "GNU.sparse.size" | "GNU.sparse.realsize" => {
                extension.is_sparse = true;
                extension.sparse_size = numeric()?;
            }
            "GNU.sparse.offset" | "GNU.sparse.numbytes" => {
                extension.sparse_numbers.push(number(value)?)
            }
            "GNU.sparse.map" => {
                extension.sparse_numbers = value
                    .split(|b| *b == b',')
                    .filter(|n| !n.is_empty())
                    .map(number)
                    .collect::<io::Result<_>>()?;
            }
            key => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    extension
                        .xattrs
                        .push((name.as_bytes().to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(extension)
}

//! Copies a container's log from the engine into a file in CRI's format.
//!
//! The engine stamps every line, in order within each stream. The copy keeps these stamps, so what has been copied is
//! read from the copy: for each stream the last stamp and how many lines bear it. Whoever continues asks the engine for
//! everything since then and leaves that many out. A line longer than 16 KiB is several entries to the engine and parts
//! marked `P` here.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use wherry_log::{LogStream, LogTag, PART_BYTES_MAX, TIMESTAMP_BYTES, push_entry};
use wherry_runtime_api::LogRotation;

/// How much older than the newest entry one of the other stream may be that comes after it.
const STREAMS_APART_SECONDS_MAX: i64 = 10;

/// One entry of the engine's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) stamp: &'a str,
    /// Without the newline.
    pub(crate) text: &'a [u8],
    pub(crate) tag: LogTag,
}

/// Splits what the engine sent into entries. A terminal's log comes without frames, so long lines arrive glued together,
/// each part with its stamp.
pub(crate) fn entries(mut bytes: &[u8]) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    while let Some(stamp) = stamp_of(bytes) {
        let rest = &bytes[TIMESTAMP_BYTES + 1..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let glued = rest.len() > PART_BYTES_MAX
            && end.is_none_or(|end| end > PART_BYTES_MAX)
            && stamp_of(&rest[PART_BYTES_MAX..]).is_some();
        let (text, tag, used) = match end {
            _ if glued => (&rest[..PART_BYTES_MAX], LogTag::Partial, PART_BYTES_MAX),
            Some(end) => (&rest[..end], LogTag::Full, end + 1),
            None => (rest, LogTag::Partial, rest.len()),
        };
        entries.push(Entry { stamp, text, tag });
        bytes = &rest[used..];
    }
    entries
}

fn stamp_of(bytes: &[u8]) -> Option<&str> {
    let stamp = bytes.get(..TIMESTAMP_BYTES)?;
    let is_stamp = bytes.get(TIMESTAMP_BYTES) == Some(&b' ')
        && stamp.ends_with(b"Z")
        && stamp[10] == b'T'
        && stamp[19] == b'.';
    if is_stamp {
        std::str::from_utf8(stamp).ok()
    } else {
        None
    }
}

/// How far a log has been copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// The last stamp of each stream and how many entries bear it.
    last: HashMap<LogStream, (String, u32)>,
    /// The oldest stamp there is a copy of: what is older has been copied and rotated away.
    oldest: Option<String>,
    /// Until when, in seconds since 1970, this process has seen all of the log, streams that said nothing included.
    settled_seconds: i64,
}

impl Position {
    fn note(&mut self, stream: LogStream, stamp: &str) {
        if self.oldest.is_none() {
            self.oldest = Some(stamp.to_owned());
        }
        match self.last.get_mut(&stream) {
            Some((last, count)) if last == stamp => *count += 1,
            Some(last) => {
                last.0.clear();
                last.0.push_str(stamp);
                last.1 = 1;
            }
            None => drop(self.last.insert(stream, (stamp.to_owned(), 1))),
        }
    }

    /// Reads lines of a copy, oldest first.
    fn read(&mut self, text: &[u8]) {
        for line in text.split(|byte| *byte == b'\n') {
            let mut words = line.splitn(3, |byte| *byte == b' ');
            let (Some(stamp), Some(stream)) = (words.next(), words.next()) else {
                continue;
            };
            let stream = match stream {
                b"stdout" => LogStream::Stdout,
                b"stderr" => LogStream::Stderr,
                _ => continue,
            };
            if let Ok(stamp) = std::str::from_utf8(stamp)
                && stamp.len() == TIMESTAMP_BYTES
            {
                self.note(stream, stamp);
            }
        }
    }

    /// From when the engine is asked, in seconds since 1970: early enough for every stream.
    pub(crate) fn since_seconds(&self) -> i64 {
        let last = self.last.values().map(|(stamp, _)| stamp.as_str());
        // A stream that has said nothing yet may have said it before the others.
        let missing = if self.last.len() < 2 {
            self.oldest.as_deref()
        } else {
            None
        };
        let oldest = last.chain(missing).min().map_or(0, seconds);
        oldest.max(self.settled_seconds)
    }
}

fn seconds(stamp: &str) -> i64 {
    stamp
        .parse::<jiff::Timestamp>()
        .map_or(0, |time| time.as_second())
}

/// Leaves out what has been copied already.
#[derive(Debug)]
pub(crate) struct Filter {
    position: Position,
    seen: HashMap<LogStream, u32>,
}

impl Filter {
    pub(crate) fn new(position: Position) -> Self {
        Self {
            position,
            seen: HashMap::new(),
        }
    }

    fn is_new(&mut self, stream: LogStream, stamp: &str) -> bool {
        match self.position.last.get(&stream) {
            Some((last, _)) if stamp < last.as_str() => false,
            Some((last, count)) if stamp == last => {
                let seen = self.seen.entry(stream).or_default();
                *seen += 1;
                *seen > *count
            }
            Some(_) => true,
            None => self
                .position
                .oldest
                .as_deref()
                .is_none_or(|oldest| stamp >= oldest),
        }
    }
}

/// The copy being written.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    rotation: LogRotation,
    file: File,
    size_bytes: u64,
    position: Position,
    buffer: Vec<u8>,
}

impl Log {
    /// Opens the copy and finds out how far it goes. Half a line, left by an agent that was killed, is taken off.
    pub(crate) fn open(path: &Path, rotation: LogRotation) -> io::Result<Self> {
        let mut position = Position::default();
        for old in wherry_log::rotated(path)? {
            position.read(&fs::read(old)?);
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let text = fs::read(path)?;
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        if whole < text.len() {
            file.set_len(whole as u64)?;
        }
        position.read(&text[..whole]);
        Ok(Self {
            path: path.to_owned(),
            rotation,
            file,
            size_bytes: whole as u64,
            position,
            buffer: Vec::new(),
        })
    }

    pub(crate) fn position(&self) -> Position {
        self.position.clone()
    }

    /// All that the engine had has come through here, so the next one need not ask for that again.
    pub(crate) fn settle(&mut self) {
        let newest = self.position.last.values().map(|(stamp, _)| stamp).max();
        if let Some(stamp) = newest {
            self.position.settled_seconds = seconds(stamp) - STREAMS_APART_SECONDS_MAX;
        }
    }

    /// Opens the file anew, after somebody renamed it.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)?;
        self.size_bytes = self.file.metadata()?.len();
        Ok(())
    }

    /// Takes what the engine sent of a stream; [`Log::flush`] writes it.
    pub(crate) fn append(&mut self, filter: &mut Filter, stream: LogStream, bytes: &[u8]) {
        for entry in entries(bytes) {
            if !filter.is_new(stream, entry.stamp) {
                continue;
            }
            self.position.note(stream, entry.stamp);
            push_entry(&mut self.buffer, entry.stamp, stream, entry.tag, entry.text);
        }
    }

    /// Writes in one piece, so that a reader that follows the file sees whole lines.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let max = self.rotation.size_bytes_max;
        if max > 0 && self.size_bytes > 0 && self.size_bytes + self.buffer.len() as u64 > max {
            self.rotate()?;
        }
        self.file.write_all(&self.buffer)?;
        self.size_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        self.buffer.shrink_to(PART_BYTES_MAX);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let pruned = wherry_log::rotate(&self.path, self.rotation.files_max);
        self.reopen()?;
        pruned
    }
}

#[cfg(test)]
mod tests;

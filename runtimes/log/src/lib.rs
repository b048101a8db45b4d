//! Container logs in CRI's format, for whoever writes or reads one.
//!
//! ```text
//! 2026-11-20T12:00:00.123456789Z stdout F a whole line, or the end of one
//! 2026-11-20T12:00:00.123456789Z stderr P a part of a line, more to come
//!
//! 0.log                                  is written to
//! 0.log.20261120-120000.123456789        was, until then
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use jiff::Timestamp;

/// Longest part of a line in one entry, as in containerd and CRI-O.
pub const PART_BYTES_MAX: usize = 16 * 1024;
/// Length of an entry's [`timestamp`].
pub const TIMESTAMP_BYTES: usize = 30;
/// What an entry takes besides its part of the line.
const FRAME_BYTES: usize = TIMESTAMP_BYTES + " stdout F \n".len();

/// Which of a container's streams said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogStream {
    /// Standard output; of a terminal, everything.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    /// The word in an entry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Whether an entry ends its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTag {
    /// `F`: it does.
    Full,
    /// `P`: the next entry of the stream goes on with the line, if there is one.
    Partial,
}

/// RFC 3339 in UTC with nine digits of a second, so that timestamps sort as texts do.
pub fn timestamp(at: SystemTime) -> String {
    format!("{:.9}", Timestamp::try_from(at).unwrap_or_default())
}

/// Adds an entry.
pub fn push_entry(
    entries: &mut Vec<u8>,
    timestamp: &str,
    stream: LogStream,
    tag: LogTag,
    text: &[u8],
) {
    entries.reserve(FRAME_BYTES + text.len());
    entries.extend_from_slice(timestamp.as_bytes());
    entries.push(b' ');
    entries.extend_from_slice(stream.as_str().as_bytes());
    entries.extend_from_slice(match tag {
        LogTag::Full => b" F ",
        LogTag::Partial => b" P ",
    });
    entries.extend_from_slice(text);
    entries.push(b'\n');
}

/// Cuts what one stream says into lines, and long lines into parts.
#[derive(Debug, Default)]
pub struct LineCutter {
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
}

impl LineCutter {
    /// Gives `each` what `bytes` complete, in order. What does not end a line is kept.
    pub fn cut(&mut self, mut bytes: &[u8], mut each: impl FnMut(LogTag, &[u8])) {
        while !bytes.is_empty() {
            let room = PART_BYTES_MAX - self.rest.len();
            let end = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
            let (tag, part, used) = match end {
                Some(end) => (LogTag::Full, &bytes[..end], end + 1),
                None if bytes.len() > room => (LogTag::Partial, &bytes[..room], room),
                None => {
                    self.rest.extend_from_slice(bytes);
                    return;
                }
            };
            if self.rest.is_empty() {
                each(tag, part);
            } else {
                self.rest.extend_from_slice(part);
                each(tag, &self.rest);
                self.rest.clear();
            }
            bytes = &bytes[used..];
        }
        // A stream that is silent for long holds no memory.
        self.rest = Vec::new();
    }

    /// The stream has ended: what is left is a part whose line never ended.
    pub fn finish(&mut self, each: impl FnOnce(LogTag, &[u8])) {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            each(LogTag::Partial, &rest);
        }
    }
}

/// Renames a log to a name with the time in it, and removes the oldest such, so that with a new file there are
/// `files_max`. Nothing is at `path` afterwards.
pub fn rotate(path: &Path, files_max: u32) -> io::Result<()> {
    let now = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", now.strftime("%Y%m%d-%H%M%S.%9f")));
    fs::rename(path, name)?;
    let rotated = rotated(path)?;
    let keep = files_max.max(1) as usize - 1;
    for old in &rotated[..rotated.len().saturating_sub(keep)] {
        fs::remove_file(old)?;
    }
    Ok(())
}

/// The files that a log was rotated to, oldest first; none where there is no directory. Any name counts that is the log's
/// with a dot and a digit behind: times have one width, so names sort by them.
pub fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let is_rotated = |found: &[u8]| {
        let suffix = found.strip_prefix(name.as_encoded_bytes());
        matches!(suffix, Some([b'.', first, ..]) if first.is_ascii_digit())
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if is_rotated(entry.file_name().as_encoded_bytes()) {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
mod tests;

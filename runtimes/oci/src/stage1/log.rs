//! A container's log in CRI's format: `<time> <stdout|stderr> <F|P> <line>`, with rotation.
//!
//! A line longer than [`LINE_BYTES_MAX`] comes in parts marked `P`, the last one `F`. Every part goes out
//! in one write with its neighbours, so a reader that follows the file sees whole lines.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use wherry_runtime_api::LogRotation;

/// Longest part of a line, as in containerd and CRI-O.
pub(super) const LINE_BYTES_MAX: usize = 16 * 1024;
/// Formatted lines are written when there are more than this many bytes of them.
const BUFFER_BYTES_MAX: usize = 32 * 1024;

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Stdout,
    Stderr,
}

/// The log file being written.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    rotation: LogRotation,
    file: Option<File>,
    size_bytes: u64,
    buffer: Vec<u8>,
    /// The last write failed, and that has been said.
    is_failing: bool,
}

/// The beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
pub(super) struct PartialLine(Vec<u8>);

impl Log {
    pub(super) fn open(path: &Path, rotation: LogRotation) -> io::Result<Self> {
        let mut log = Self {
            path: path.to_owned(),
            rotation,
            file: None,
            size_bytes: 0,
            buffer: Vec::new(),
            is_failing: false,
        };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file anew, after somebody renamed it.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)?;
        self.size_bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Logs what a stream said. What does not end a line is kept in `partial`.
    pub(super) fn append(
        &mut self,
        source: Source,
        partial: &mut PartialLine,
        mut bytes: &[u8],
        now: SystemTime,
    ) {
        let stamp = timestamp(now);
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - partial.0.len();
            match bytes.iter().take(room + 1).position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.line(&stamp, source, b'F', &partial.0, &bytes[..end]);
                    partial.0.clear();
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() > room => {
                    self.line(&stamp, source, b'P', &partial.0, &bytes[..room]);
                    partial.0.clear();
                    bytes = &bytes[room..];
                }
                None => {
                    partial.0.extend_from_slice(bytes);
                    bytes = &[];
                }
            }
        }
        self.flush();
        partial.0.shrink_to(256);
        self.buffer = Vec::new();
    }

    /// The stream has ended: what is left of its last line goes out as a part.
    pub(super) fn finish(&mut self, source: Source, partial: &mut PartialLine, now: SystemTime) {
        if !partial.0.is_empty() {
            self.line(&timestamp(now), source, b'P', &partial.0, &[]);
            self.flush();
            *partial = PartialLine::default();
        }
    }

    fn line(&mut self, stamp: &[u8], source: Source, tag: u8, head: &[u8], tail: &[u8]) {
        self.buffer.extend_from_slice(stamp);
        self.buffer.extend_from_slice(match source {
            Source::Stdout => b" stdout ",
            Source::Stderr => b" stderr ",
        });
        self.buffer.extend_from_slice(&[tag, b' ']);
        self.buffer.extend_from_slice(head);
        self.buffer.extend_from_slice(tail);
        self.buffer.push(b'\n');
        if self.buffer.len() > BUFFER_BYTES_MAX {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let max = self.rotation.size_bytes_max;
        if max > 0 && self.size_bytes > 0 && self.size_bytes + self.buffer.len() as u64 > max {
            // A log that cannot be rotated is still better than none.
            if let Err(error) = self.rotate() {
                eprintln!("{}: rotate: {error}", self.path.display());
            }
        }
        let written = match &mut self.file {
            Some(file) => file.write_all(&self.buffer),
            None => Ok(()),
        };
        match written {
            Ok(()) => {
                self.size_bytes += self.buffer.len() as u64;
                self.is_failing = false;
            }
            // The app must not stall because the disk is full. Said once, for there may be much of it.
            Err(error) => {
                if !self.is_failing {
                    eprintln!("{}: output is lost: {error}", self.path.display());
                }
                self.is_failing = true;
            }
        }
        self.buffer.clear();
    }

    fn rotate(&mut self) -> io::Result<()> {
        let stamp = timestamp(SystemTime::now());
        // 2026-11-20T12:00:00.000000000Z → 20261120-120000.000000000, which sorts and is unique.
        let stamp: String = stamp
            .iter()
            .filter(|byte| !matches!(byte, b'-' | b':' | b'Z'))
            .map(|byte| {
                if *byte == b'T' {
                    '-'
                } else {
                    char::from(*byte)
                }
            })
            .collect();
        let mut rotated = self.path.clone().into_os_string();
        rotated.push(format!(".{stamp}"));
        fs::rename(&self.path, rotated)?;
        self.reopen()?;
        self.prune()
    }

    /// Removes the oldest files beyond what is to be kept.
    fn prune(&self) -> io::Result<()> {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Ok(());
        };
        let mut prefix = name.as_encoded_bytes().to_vec();
        prefix.push(b'.');
        let mut rotated: Vec<PathBuf> = fs::read_dir(directory)?
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect();
        rotated.sort();
        let keep = (self.rotation.files_max.max(1) - 1) as usize;
        for old in rotated.iter().take(rotated.len().saturating_sub(keep)) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

/// RFC 3339 in UTC with nanoseconds.
fn timestamp(time: SystemTime) -> Vec<u8> {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z",
        since.subsec_nanos()
    )
    .into_bytes()
}

/// Year, month and day of a day counted from 1970-01-01. Years begin in March here, so that the leap day is the last.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests;

//! A container's log, written and rotated. Every entry goes out in one write with its neighbours, so a reader that
//! follows the file sees whole ones.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use wherry_log::{LineCutter, LogStream, LogTag, push_entry, timestamp};
use wherry_runtime_api::LogRotation;

/// Formatted lines are written when there are more than this many bytes of them.
const BUFFER_BYTES_MAX: usize = 32 * 1024;

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

    /// Logs what a stream said.
    pub(super) fn append(
        &mut self,
        stream: LogStream,
        cutter: &mut LineCutter,
        bytes: &[u8],
        now: SystemTime,
    ) {
        let stamp = timestamp(now);
        cutter.cut(bytes, |tag, text| self.entry(&stamp, stream, tag, text));
        self.flush();
        self.buffer = Vec::new();
    }

    /// The stream has ended: what is left of its last line goes out as a part.
    pub(super) fn finish(&mut self, stream: LogStream, cutter: &mut LineCutter, now: SystemTime) {
        let stamp = timestamp(now);
        cutter.finish(|tag, text| self.entry(&stamp, stream, tag, text));
        self.flush();
    }

    fn entry(&mut self, stamp: &str, stream: LogStream, tag: LogTag, text: &[u8]) {
        push_entry(&mut self.buffer, stamp, stream, tag, text);
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
        let pruned = wherry_log::rotate(&self.path, self.rotation.files_max);
        self.reopen()?;
        pruned
    }
}

#[cfg(test)]
mod tests;

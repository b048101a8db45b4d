//! A place in a log, moved forward over its files. Blocking.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;
use jiff::Timestamp;

use super::{line::LogLine, options::LogOptions, tail::TailSearch};

/// Bytes read at once.
const BLOCK_BYTES: u64 = 64 * 1024;

/// Longest line that is kept: runtimes cut at 16 KiB; more than this is no log of ours and is dropped.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// What moving forward gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// For the client.
    Show(Bytes),
    /// Nothing more has been written yet.
    Wait,
    /// Nothing more will be shown.
    Done,
}

/// A place in a log.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// The live file.
    path: PathBuf,
    options: LogOptions,
    current: Option<Current>,
    /// Read and not yet a whole line.
    unread: Vec<u8>,
    begins_line: bool,
}

#[derive(Debug)]
struct Current {
    file: File,
    inode: u64,
    /// It is known to be rotated, so what is at its end at the next look is the end.
    is_rotated: bool,
    /// Where to stop in a file that is not followed, lest a busy writer keep us for ever.
    left_bytes: Option<u64>,
}

/// Which file comes after the current one.
enum Next {
    /// None yet: the current one is live, or its successor is not there.
    None,
    File(PathBuf),
}

impl Cursor {
    /// Finds where to begin. A log that is not there is one without lines yet.
    pub(crate) fn open(path: PathBuf, options: LogOptions) -> io::Result<Self> {
        let mut cursor = Self {
            path,
            options,
            current: None,
            unread: Vec::new(),
            begins_line: true,
        };
        match (cursor.options.tail_lines, cursor.options.since) {
            (Some(lines), _) => cursor.open_tail(lines)?,
            (None, since) => {
                // A file last written before then has nothing to show.
                let since = since.map(SystemTime::from);
                let is_wanted = |path: &PathBuf| {
                    since.is_none_or(|since| modified(path).is_none_or(|at| at >= since))
                };
                if let Some(path) = cursor.files()?.into_iter().find(is_wanted) {
                    cursor.open_file(&path, 0)?;
                }
            }
        }
        Ok(cursor)
    }

    fn open_tail(&mut self, lines: u64) -> io::Result<()> {
        let mut search = TailSearch::new(lines, self.options.stream);
        let mut oldest = None;
        for path in self.files()?.into_iter().rev() {
            let Some(file) = open(&path)? else { continue };
            if let Some(at) = search.search(&file, file.metadata()?.len())? {
                return self.open_file(&path, at);
            }
            oldest = Some(path);
        }
        oldest.map_or(Ok(()), |path| self.open_file(&path, 0))
    }

    /// Moves forward.
    pub(crate) fn step(&mut self) -> io::Result<Step> {
        loop {
            if self.options.bytes_max == Some(0) {
                return Ok(Step::Done);
            }
            let Some(current) = &mut self.current else {
                let Some(path) = self.files()?.into_iter().next() else {
                    return Ok(Step::Wait);
                };
                self.open_file(&path, 0)?;
                continue;
            };
            let wanted = current.left_bytes.unwrap_or(u64::MAX).min(BLOCK_BYTES);
            let count = (&mut current.file)
                .take(wanted)
                .read_to_end(&mut self.unread)? as u64;
            if let Some(left) = &mut current.left_bytes {
                *left -= count;
            }
            if count > 0 {
                let chunk = self.take_lines();
                if !chunk.is_empty() {
                    return Ok(Step::Show(chunk));
                }
            } else if current.left_bytes == Some(0) {
                return Ok(Step::Done);
            } else if current.is_rotated {
                match self.next_file()? {
                    Next::File(path) => {
                        // What has no line feed at the end of a file never gets one.
                        self.unread.clear();
                        self.open_file(&path, 0)?;
                    }
                    Next::None => return Ok(Step::Wait),
                }
            } else if let Next::File(_) = self.next_file()? {
                // It may have been written to between our last read and its rotation.
                if let Some(current) = &mut self.current {
                    current.is_rotated = true;
                }
            } else {
                return Ok(Step::Wait);
            }
        }
    }

    /// The log's files that are there, oldest first.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = wherry_log::rotated(&self.path)?;
        if self.path.exists() {
            files.push(self.path.clone());
        }
        Ok(files)
    }

    fn open_file(&mut self, path: &Path, at: u64) -> io::Result<()> {
        let Some(mut file) = open(path)? else {
            return Ok(());
        };
        let metadata = file.metadata()?;
        file.seek(SeekFrom::Start(at))?;
        let stops = !self.options.follow && path == self.path;
        let left_bytes = stops.then(|| metadata.len().saturating_sub(at));
        self.current = Some(Current {
            file,
            inode: metadata.ino(),
            is_rotated: false,
            left_bytes,
        });
        Ok(())
    }

    fn next_file(&self) -> io::Result<Next> {
        let Some(current) = &self.current else {
            return Ok(Next::None);
        };
        if inode(&self.path) == Some(current.inode) {
            return Ok(Next::None);
        }
        let files = self.files()?;
        let following = match files
            .iter()
            .position(|path| inode(path) == Some(current.inode))
        {
            Some(at) => files.get(at + 1),
            None => {
                // Ours was deleted; whatever was written later comes next.
                let ours = current.file.metadata()?.modified()?;
                files
                    .iter()
                    .find(|path| modified(path).is_some_and(|at| at > ours))
                    .or(files.last())
            }
        };
        Ok(following.map_or(Next::None, |path| Next::File(path.clone())))
    }

    /// Takes the whole lines that were read, as the client is to see them.
    fn take_lines(&mut self) -> Bytes {
        let mut unread = std::mem::take(&mut self.unread);
        let mut out = Vec::new();
        let mut from = 0;
        while let Some(length) = unread[from..].iter().position(|byte| *byte == b'\n') {
            self.show(&unread[from..from + length], &mut out);
            from += length + 1;
        }
        unread.drain(..from);
        if unread.len() > LINE_BYTES_MAX {
            unread.clear();
        }
        self.unread = unread;
        if let Some(left) = &mut self.options.bytes_max {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        out.into()
    }

    fn show(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(line) = LogLine::parse(line) else {
            return;
        };
        if self
            .options
            .stream
            .is_some_and(|stream| stream != line.stream)
        {
            return;
        }
        if let Some(since) = self.options.since {
            if line
                .timestamp
                .parse::<Timestamp>()
                .is_ok_and(|at| at < since)
            {
                return;
            }
            // Lines are in order of time.
            self.options.since = None;
        }
        if self.options.timestamps && self.begins_line {
            out.extend_from_slice(line.timestamp.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.content);
        if !line.is_partial {
            out.push(b'\n');
        }
        self.begins_line = !line.is_partial;
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}

fn modified(path: &PathBuf) -> Option<SystemTime> {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
}

#[cfg(test)]
mod tests {
    use super::{super::line::LogStream, *};

    const LOG: &str = "\
2026-11-20T12:00:00.000000001Z stdout F first
2026-11-20T12:00:01Z stderr F second
rubbish
2026-11-20T12:00:02Z stdout P thi
2026-11-20T12:00:02Z stdout F rd
2026-11-20T12:00:03Z stdout F 
2026-11-20T12:00:04Z stdout F being writt";

    fn show(options: LogOptions) -> String {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("0.log");
        fs::write(&path, LOG).expect("space");
        let mut cursor = Cursor::open(path, options).expect("readable");
        let mut text = Vec::new();
        while let Step::Show(chunk) = cursor.step().expect("readable") {
            text.extend_from_slice(&chunk);
        }
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn options_decide_what_is_shown() {
        let all = LogOptions::default();
        let since = Some("2026-11-20T12:00:01Z".parse().expect("a time"));
        let table = [
            (all.clone(), "first\nsecond\nthird\n\n"),
            (
                LogOptions {
                    stream: Some(LogStream::Stderr),
                    ..all.clone()
                },
                "second\n",
            ),
            (
                LogOptions {
                    since,
                    ..all.clone()
                },
                "second\nthird\n\n",
            ),
            (
                LogOptions {
                    tail_lines: Some(3),
                    ..all.clone()
                },
                "third\n\n",
            ),
            (
                LogOptions {
                    tail_lines: Some(4),
                    bytes_max: Some(8),
                    ..all.clone()
                },
                "second\nt",
            ),
            (
                LogOptions {
                    bytes_max: Some(3),
                    ..all.clone()
                },
                "fir",
            ),
            (
                LogOptions {
                    timestamps: true,
                    since,
                    ..all
                },
                "2026-11-20T12:00:01Z second\n2026-11-20T12:00:02Z third\n2026-11-20T12:00:03Z \n",
            ),
        ];
        for (options, expected) in table {
            assert_eq!(show(options.clone()), expected, "{options:?}");
        }
    }

    #[test]
    fn a_log_that_is_not_there_has_no_lines() {
        for tail_lines in [None, Some(5)] {
            let options = LogOptions {
                tail_lines,
                ..LogOptions::default()
            };
            let mut cursor = Cursor::open("/no/such/0.log".into(), options).expect("no error");
            assert_eq!(cursor.step().expect("no error"), Step::Wait);
        }
    }
}

//! Log files in CRI's format, written by one thread for all containers.
//!
//! ```text
//! 2026-11-20T12:00:00.123456789Z stdout F a whole line
//! 2026-11-20T12:00:00.123456789Z stderr P a part of a line, more to come
//! ```
//! The file is the agent's; when it has outgrown its size the worker says so and gets a new one, for
//! which whoever writes waits a moment ([`ROTATION_PATIENCE`]) and no longer: nothing is lost while
//! the agent is away, and a worker can create no files.

use std::{
    fs::File,
    io::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{Notify, mpsc, oneshot};

/// Longest piece of a line in one entry, as in containerd and CRI-O.
pub(crate) const PIECE_BYTES_MAX: usize = 16 * 1024;
/// Writes waiting for the disk, over all containers; past it the guests that write wait.
const WRITES_MAX: usize = 64;

/// Bytes written at once, and by how much a log can outgrow its size.
const WRITE_BYTES_MAX: usize = 16 * 1024;
/// How long a guest's output waits for a new file, once for each file that is full.
const ROTATION_PATIENCE: Duration = Duration::from_secs(2);

/// Where a guest wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// One container's log.
pub(crate) struct LogFile {
    file: Mutex<File>,
    size_bytes: AtomicU64,
    size_bytes_max: u64,
    is_full: AtomicBool,
    /// No new file came in time; this one is written to without another wait.
    has_waited: AtomicBool,
    reopened: Notify,
    on_full: Box<dyn Fn() + Send + Sync>,
}

impl LogFile {
    pub(crate) fn new(
        file: File,
        size_bytes_max: u64,
        on_full: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        Self {
            file: Mutex::new(file),
            size_bytes: AtomicU64::new(size),
            size_bytes_max,
            is_full: AtomicBool::new(false),
            has_waited: AtomicBool::new(false),
            reopened: Notify::new(),
            on_full: Box::new(on_full),
        }
    }

    /// Goes on in another file.
    pub(crate) fn reopen(&self, file: File) {
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
        self.size_bytes.store(size, Ordering::Relaxed);
        self.is_full.store(false, Ordering::Relaxed);
        self.has_waited.store(false, Ordering::Relaxed);
        self.reopened.notify_waiters();
    }

    /// Whether it has outgrown its size and waits for a new file.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    async fn wait_for_room(&self) {
        let reopened = self.reopened.notified();
        if self.is_full() && !self.has_waited.load(Ordering::Relaxed) {
            let waited = tokio::time::timeout(ROTATION_PATIENCE, reopened).await;
            self.has_waited.store(waited.is_err(), Ordering::Relaxed);
        }
    }

    /// Counts what is about to be written.
    fn charge(&self, bytes: usize) {
        let bytes = bytes as u64;
        let size = self.size_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.size_bytes_max > 0
            && size > self.size_bytes_max
            && !self.is_full.swap(true, Ordering::Relaxed)
        {
            (self.on_full)();
        }
    }

    fn write(&self, entries: &[u8]) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk loses lines; the guest must not learn of it, nor stop.
        let _ = file.write_all(entries);
    }
}

enum Job {
    Write(Arc<LogFile>, Vec<u8>),
    Flush(oneshot::Sender<()>),
}

/// The thread that writes all logs.
#[derive(Clone)]
pub(crate) struct LogWriter(mpsc::Sender<Job>);

impl LogWriter {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (sender, mut receiver) = mpsc::channel(WRITES_MAX);
        std::thread::Builder::new()
            .name("log".into())
            .stack_size(64 * 1024)
            .spawn(move || {
                while let Some(job) = receiver.blocking_recv() {
                    match job {
                        Job::Write(log, entries) => log.write(&entries),
                        Job::Flush(done) => drop(done.send(())),
                    }
                }
            })?;
        Ok(Self(sender))
    }

    pub(crate) async fn write(&self, log: &Arc<LogFile>, mut entries: Vec<u8>) {
        while !entries.is_empty() {
            let rest = entries.split_off(whole_entries(&entries));
            log.wait_for_room().await;
            log.charge(entries.len());
            let _ = self.0.send(Job::Write(log.clone(), entries)).await;
            entries = rest;
        }
    }

    /// Waits until what was written before is in the file.
    pub(crate) async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        if self.0.send(Job::Flush(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

/// How many of the bytes are written at once: whole entries, the first in any case.
fn whole_entries(entries: &[u8]) -> usize {
    if entries.len() <= WRITE_BYTES_MAX {
        return entries.len();
    }
    let ends = |byte: &u8| *byte == b'\n';
    let within = entries[..WRITE_BYTES_MAX].iter().rposition(ends);
    let first = || entries.iter().position(ends);
    within.or_else(first).map_or(entries.len(), |end| end + 1)
}

/// Cuts a container's output into entries.
#[derive(Default)]
pub(crate) struct LineCutter {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl LineCutter {
    /// The entries that `bytes` complete.
    pub(crate) fn cut(&mut self, stream: Stream, mut bytes: &[u8], at: SystemTime) -> Vec<u8> {
        let mut entries = Vec::new();
        let rest = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            extend_pieces(&mut entries, stream, rest, &bytes[..end], at);
            entry(&mut entries, stream, true, rest, at);
            rest.clear();
            bytes = &bytes[end + 1..];
        }
        extend_pieces(&mut entries, stream, rest, bytes, at);
        if rest.is_empty() {
            *rest = Vec::new();
        }
        entries
    }

    /// The entries that are left when the guest is gone.
    pub(crate) fn finish(&mut self, at: SystemTime) -> Vec<u8> {
        let mut entries = Vec::new();
        for (stream, rest) in [
            (Stream::Stdout, &mut self.stdout),
            (Stream::Stderr, &mut self.stderr),
        ] {
            if !rest.is_empty() {
                entry(&mut entries, stream, false, rest, at);
                rest.clear();
            }
        }
        entries
    }
}

/// Adds to a line, giving out a partial entry each time it reaches the longest piece.
fn extend_pieces(
    entries: &mut Vec<u8>,
    stream: Stream,
    rest: &mut Vec<u8>,
    mut bytes: &[u8],
    at: SystemTime,
) {
    while rest.len() + bytes.len() > PIECE_BYTES_MAX {
        let (piece, after) = bytes.split_at(PIECE_BYTES_MAX - rest.len());
        rest.extend_from_slice(piece);
        entry(entries, stream, false, rest, at);
        rest.clear();
        bytes = after;
    }
    rest.extend_from_slice(bytes);
}

fn entry(entries: &mut Vec<u8>, stream: Stream, is_full: bool, text: &[u8], at: SystemTime) {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let tag = if is_full { "F" } else { "P" };
    entries.reserve(text.len() + 48);
    let _ = write!(entries, "{} {stream} {tag} ", timestamp(at));
    entries.extend_from_slice(text);
    entries.push(b'\n');
}

/// RFC 3339 with nanoseconds, in UTC.
pub(crate) fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to date after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
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
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z",
        since.subsec_nanos()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: SystemTime = UNIX_EPOCH;
    const STAMP: &str = "1970-01-01T00:00:00.000000000Z";

    #[test]
    fn timestamps_are_rfc3339_in_utc_with_nine_digits() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_795_176_529, 123_456_789, "2026-11-20T12:08:49.123456789Z"),
            (4_107_542_399, 0, "2100-02-28T23:59:59.000000000Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::new(seconds, nanos)), text);
        }
    }

    #[test]
    fn lines_are_whole_however_the_guest_wrote_them() {
        let mut cutter = LineCutter::default();
        assert_eq!(cutter.cut(Stream::Stdout, b"hel", AT), b"");
        assert_eq!(
            cutter.cut(Stream::Stderr, b"oops\n", AT),
            format!("{STAMP} stderr F oops\n").into_bytes()
        );
        let text = format!("{STAMP} stdout F hello\n{STAMP} stdout F \n");
        assert_eq!(
            cutter.cut(Stream::Stdout, b"lo\n\nrest", AT),
            text.into_bytes()
        );
        assert_eq!(
            cutter.finish(AT),
            format!("{STAMP} stdout P rest\n").into_bytes()
        );
        assert_eq!(cutter.finish(AT), b"");
    }

    #[test]
    fn entries_are_written_whole_and_the_first_however_long() {
        assert_eq!(whole_entries(b"a\nb\n"), 4);
        let long = vec![b'x'; WRITE_BYTES_MAX];
        let entries = [&long[..], b"\nb\n"].concat();
        assert_eq!(whole_entries(&entries), WRITE_BYTES_MAX + 1);
        let entries = [b"a\n", &long[..], b"\n"].concat();
        assert_eq!(whole_entries(&entries), 2);
    }

    #[tokio::test]
    async fn output_waits_for_a_new_file_once_and_then_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| File::create(directory.path().join(name)).unwrap();
        let log = LogFile::new(open("0"), 3, || {});
        log.charge(4);
        assert!(log.is_full());
        let file = open("1");
        tokio::join!(log.wait_for_room(), async { log.reopen(file) });
        assert!(!log.is_full());
        log.charge(4);
        log.has_waited.store(true, Ordering::Relaxed);
        let waited = futures::FutureExt::now_or_never(log.wait_for_room());
        assert!(log.is_full() && waited.is_some(), "the agent is away");
    }

    #[test]
    fn a_long_line_is_cut_into_pieces_and_ends_full() {
        let mut cutter = LineCutter::default();
        let mut line = vec![b'x'; PIECE_BYTES_MAX * 2 + 5];
        line.push(b'\n');
        let entries = String::from_utf8(cutter.cut(Stream::Stdout, &line, AT)).unwrap();
        let pieces: Vec<(&str, usize)> = entries
            .lines()
            .map(|entry| {
                entry
                    .strip_prefix(&format!("{STAMP} stdout "))
                    .unwrap()
                    .split_once(' ')
                    .unwrap()
            })
            .map(|(tag, text)| (tag, text.len()))
            .collect();
        assert_eq!(
            pieces,
            [("P", PIECE_BYTES_MAX), ("P", PIECE_BYTES_MAX), ("F", 5)]
        );
    }
}

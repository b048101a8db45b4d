//! Log files, written by one thread for all containers.
//!
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
    time::{Duration, SystemTime},
};

use tokio::sync::{Notify, mpsc, oneshot};
use wherry_log::{LineCutter, LogStream, push_entry, timestamp};

/// Writes waiting for the disk, over all containers; past it the guests that write wait.
const WRITES_MAX: usize = 64;

/// Bytes written at once, and by how much a log can outgrow its size.
const WRITE_BYTES_MAX: usize = 16 * 1024;
/// How long a guest's output waits for a new file, once for each file that is full.
const ROTATION_PATIENCE: Duration = Duration::from_secs(2);

/// One container's log.
pub(crate) struct LogFile {
    file: Mutex<File>,
    size_bytes: AtomicU64,
    /// Counted, and not in a file yet.
    waiting_bytes: AtomicU64,
    size_bytes_max: u64,
    is_full: AtomicBool,
    /// A new file has been asked for: when there is more to be written, so that the last file is no empty one.
    has_asked: AtomicBool,
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
            waiting_bytes: AtomicU64::new(0),
            size_bytes_max,
            is_full: AtomicBool::new(false),
            has_asked: AtomicBool::new(false),
            has_waited: AtomicBool::new(false),
            reopened: Notify::new(),
            on_full: Box::new(on_full),
        }
    }

    /// Goes on in another file, beginning with what waits for the disk.
    pub(crate) fn reopen(&self, file: File) {
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        let mut current = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        *current = file;
        let waiting = self.waiting_bytes.load(Ordering::Relaxed);
        self.size_bytes.store(size + waiting, Ordering::Relaxed);
        drop(current);
        self.is_full.store(false, Ordering::Relaxed);
        self.has_asked.store(false, Ordering::Relaxed);
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
            if !self.has_asked.swap(true, Ordering::Relaxed) {
                (self.on_full)();
            }
            let waited = tokio::time::timeout(ROTATION_PATIENCE, reopened).await;
            self.has_waited.store(waited.is_err(), Ordering::Relaxed);
        }
    }

    /// Counts what is about to be written.
    fn charge(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let size = self.size_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.size_bytes_max > 0 && size > self.size_bytes_max {
            self.is_full.store(true, Ordering::Relaxed);
        }
    }

    fn write(&self, entries: &[u8]) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk loses lines; the guest must not learn of it, nor stop.
        let _ = file.write_all(entries);
        self.waiting_bytes
            .fetch_sub(entries.len() as u64, Ordering::Relaxed);
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
pub(crate) struct Entries {
    stdout: LineCutter,
    stderr: LineCutter,
}

impl Entries {
    /// The entries that `bytes` complete.
    pub(crate) fn of(&mut self, stream: LogStream, bytes: &[u8], at: SystemTime) -> Vec<u8> {
        let (stamp, mut entries) = (timestamp(at), Vec::new());
        let cutter = match stream {
            LogStream::Stdout => &mut self.stdout,
            LogStream::Stderr => &mut self.stderr,
        };
        cutter.cut(bytes, |tag, text| {
            push_entry(&mut entries, &stamp, stream, tag, text);
        });
        entries
    }

    /// The entries that are left when the guest is gone.
    pub(crate) fn finish(&mut self, at: SystemTime) -> Vec<u8> {
        let (stamp, mut entries) = (timestamp(at), Vec::new());
        let mut last = |stream, tag, text: &[u8]| {
            push_entry(&mut entries, &stamp, stream, tag, text);
        };
        self.stdout
            .finish(|tag, text| last(LogStream::Stdout, tag, text));
        self.stderr
            .finish(|tag, text| last(LogStream::Stderr, tag, text));
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_cut_into_lines_each_by_itself() {
        let at = SystemTime::UNIX_EPOCH;
        let stamp = timestamp(at);
        let mut entries = Entries::default();
        assert_eq!(entries.of(LogStream::Stdout, b"hel", at), b"");
        assert_eq!(
            entries.of(LogStream::Stderr, b"oops\nwh", at),
            format!("{stamp} stderr F oops\n").into_bytes()
        );
        let text = format!("{stamp} stdout F hello\n{stamp} stdout F \n");
        assert_eq!(
            entries.of(LogStream::Stdout, b"lo\n\nrest", at),
            text.into_bytes()
        );
        let text = format!("{stamp} stdout P rest\n{stamp} stderr P wh\n");
        assert_eq!(entries.finish(at), text.into_bytes());
        assert_eq!(entries.finish(at), b"");
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

    #[test]
    fn what_waits_for_the_disk_counts_for_the_file_it_goes_to() {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| File::create(directory.path().join(name)).unwrap();
        let log = LogFile::new(open("0"), 10, || {});
        log.charge(4);
        log.write(b"aaaa");
        log.charge(8);
        assert!(log.is_full());
        log.reopen(open("1"));
        assert!(!log.is_full());
        log.write(b"bbbbbbbb");
        log.charge(2);
        assert!(!log.is_full());
        log.charge(1);
        assert!(log.is_full(), "of 8 that waited and 3 that came");
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
}

//! The embedded store: everything in memory, every durable write in one crash-safe file.
//!
//! ```text
//!  callers ──▶ queue ──▶ writer thread: decide all that is queued ─▶ one commit, one fsync ─▶ make visible ─▶ answer
//!  reads and watches ◀── state in memory (state.rs)
//! ```
//!
//! While one commit waits for the disk the next ones queue up and share the commit after it (group
//! commit), so 20 writers cost hardly more disk writes than one. Lazy writes (leases, events) wait
//! in memory for the next durable one.
//!
//! The file is redb's: pure Rust, and of the embedded stores measured for this it kept the least
//! memory and, in groups, wrote few bytes per byte of data; its page checksums are verified at
//! every open.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::{
    Durability, KeyValue, Revision, StoreError,
    backend::Backend,
    state::{Batch, Loading, State, Write},
};

/// Key → (create revision, mod revision, value).
const KEYS: TableDefinition<'_, &str, (u64, u64, &[u8])> = TableDefinition::new("keys");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Format of the file. A newer one is refused, an older one migrated here.
const FORMAT: u64 = 1;

/// Revisions given out may run this far ahead of the disk, so that a lazy write lost in a crash never
/// shares its revision with another write after it.
const REVISIONS_AHEAD_MAX: Revision = 1_000;

/// Writes that share a commit at the most; bounds how long the first of them waits.
const COMMIT_WRITES_MAX: usize = 1_024;

/// Writes waiting for the writer; callers beyond wait for room.
const QUEUE_MAX: usize = 4_096;

/// Lazy writes reach the disk within this time.
const LAZY_MAX: Duration = Duration::from_secs(600);

/// How soon after other keys changed a watcher learns how far it is.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);

/// Page cache. Reads are served from memory, so the file's pages are only needed for writing.
const CACHE_BYTES: usize = 2 * 1024 * 1024;

/// Why a store file cannot be opened. The file is left as it is.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("store {}: in use by another process", .0.display())]
    InUse(PathBuf),
    /// It is damaged.
    #[error(
        "store {}: damaged ({why}); it was left as it is. Restore it from a copy, or move it away to start with an \
         empty cluster: running pods are kept by the agent only if they are static",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It was written by a newer version.
    #[error("store {}: format {found} is newer than this program's {FORMAT}; start the newer version again", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The disk.
    #[error("store {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The trouble.
        #[source]
        source: std::io::Error,
    },
}

/// A store in one file. Dropping it writes what is still lazy.
pub struct EmbeddedStore {
    state: Arc<Mutex<State>>,
    queue: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

type Decision = Result<KeyValue, StoreError>;

/// Who waits for a decided write, and what to tell them.
type Answer = (oneshot::Sender<Decision>, Decision);

struct Request {
    write: Write,
    durability: Durability,
    answer: oneshot::Sender<Decision>,
}

impl EmbeddedStore {
    /// Opens the file, making it if it is not there. Blocks while it is read and verified.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is overwritten in any of those cases.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        if !path.exists() {
            create_file(path)?;
        }
        let db = open_database(path)?;
        let (map, revision) = load(&db, path)?;
        info!(path = %path.display(), keys = map.len(), revision, "Store opened");
        let state = Arc::new(Mutex::new(State::new(map, revision)));
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let writer = Writer {
            path: path.to_owned(),
            db: Some(db),
            state: state.clone(),
            lazy: HashMap::new(),
            lazy_since: None,
            revision_reserved: revision,
            progress_due: None,
        };
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(requests))
            .map_err(|source| OpenError::Io {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            state,
            queue: Some(queue),
            writer: Some(writer),
        })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            error!("the store's writer panicked");
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Every change to the state is made by calls that do not panic half-way.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes an empty store under a temporary name and renames it, so that a crash leaves none or a whole one.
fn create_file(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
        _ => {}
    }
    let make = || -> Result<(), redb::Error> {
        let db = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&temporary)?;
        let txn = db.begin_write()?;
        txn.open_table(KEYS)?;
        txn.open_table(META)?.insert("format", FORMAT)?;
        txn.commit()?;
        Ok(())
    };
    make().map_err(|error| io(into_io(error)))?;
    fs::rename(&temporary, path).map_err(io)?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(io)
}

fn into_io(error: redb::Error) -> std::io::Error {
    match error {
        redb::Error::Io(error) => error,
        other => std::io::Error::other(other.to_string()),
    }
}

fn open_database(path: &Path) -> Result<Database, OpenError> {
    let corrupt = |why: String| OpenError::Corrupt {
        path: path.to_owned(),
        why,
    };
    // A damaged page may be met by an assertion inside redb; that, too, is an answer and no crash.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let mut db = Database::builder().set_cache_size(CACHE_BYTES).open(path)?;
        if !db.check_integrity()? {
            warn!(path = %path.display(), "Store repaired after a crash");
        }
        Ok(db)
    }));
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => Err(OpenError::InUse(path.to_owned())),
        Ok(Err(DatabaseError::Storage(StorageError::Io(source))))
            if source.raw_os_error().is_some() =>
        {
            Err(OpenError::Io {
                path: path.to_owned(),
                source,
            })
        }
        Ok(Err(error)) => Err(corrupt(error.to_string())),
        Err(_) => Err(corrupt("its pages contradict each other".to_owned())),
    }
}

type Loaded = (BTreeMap<Arc<str>, KeyValue>, Revision);

fn load(db: &Database, path: &Path) -> Result<Loaded, OpenError> {
    let corrupt = |why: String| OpenError::Corrupt {
        path: path.to_owned(),
        why,
    };
    let read = || -> Result<(u64, Loaded), redb::Error> {
        let txn = db.begin_read()?;
        let meta = txn.open_table(META)?;
        let format = meta.get("format")?.map_or(0, |v| v.value());
        let revision = meta.get("revision_reserved")?.map_or(0, |v| v.value());
        let mut loading = Loading::default();
        for entry in txn.open_table(KEYS)?.iter()? {
            let (key, value) = entry?;
            let key: Arc<str> = key.value().into();
            let (create_revision, mod_revision, value) = value.value();
            loading.add(KeyValue {
                key,
                value: Bytes::copy_from_slice(value).into(),
                create_revision,
                mod_revision,
            });
        }
        Ok((format, (loading.finish(), revision)))
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok((FORMAT, loaded))) => Ok(loaded),
        Ok(Ok((0, _))) => Err(corrupt("it has no format stamp".to_owned())),
        Ok(Ok((found, _))) => Err(OpenError::Newer {
            path: path.to_owned(),
            found,
        }),
        Ok(Err(error)) => Err(corrupt(error.to_string())),
        Err(_) => Err(corrupt("its pages contradict each other".to_owned())),
    }
}

/// The one thread that writes.
struct Writer {
    path: PathBuf,
    /// `None` after a failed write until the file could be opened again.
    db: Option<Database>,
    state: Arc<Mutex<State>>,
    /// Visible, not on disk; `None` is a removed key.
    lazy: HashMap<Arc<str>, Option<KeyValue>>,
    lazy_since: Option<Instant>,
    /// Revisions up to here may be given out without a word to the disk.
    revision_reserved: Revision,
    progress_due: Option<Instant>,
}

impl Writer {
    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Vec::with_capacity(COMMIT_WRITES_MAX);
        loop {
            match self.receive(&mut requests, &mut group) {
                Received::Writes => self.commit_group(&mut group),
                Received::Due => {}
                Received::Closed => break,
            }
            let now = Instant::now();
            if self.progress_due.is_some_and(|due| due <= now) {
                self.progress_due = None;
                lock(&self.state).send_progress();
            }
            if self.lazy_since.is_some_and(|since| since + LAZY_MAX <= now) {
                self.lazy_since = Some(now);
                self.flush_lazy(REVISIONS_AHEAD_MAX);
            }
        }
        self.flush_lazy(0);
        lock(&self.state).close();
    }

    /// Waits for writes, or until something else is due.
    fn receive(
        &self,
        requests: &mut mpsc::Receiver<Request>,
        group: &mut Vec<Request>,
    ) -> Received {
        let due = [
            self.progress_due,
            self.lazy_since.map(|since| since + LAZY_MAX),
        ]
        .into_iter()
        .flatten()
        .min();
        let first = match due {
            None => requests.blocking_recv().ok_or(Received::Closed),
            Some(due) => recv_until(requests, due),
        };
        match first {
            Ok(request) => group.push(request),
            Err(other) => return other,
        }
        while group.len() < COMMIT_WRITES_MAX
            && let Ok(request) = requests.try_recv()
        {
            group.push(request);
        }
        Received::Writes
    }

    fn commit_group(&mut self, group: &mut Vec<Request>) {
        let mut batch = Batch::default();
        let mut durable = false;
        let mut answers = Vec::with_capacity(group.len());
        {
            let state = lock(&self.state);
            for request in group.drain(..) {
                let decided = batch.decide(&state, request.write);
                durable |= decided.is_ok() && request.durability == Durability::Durable;
                answers.push((request.answer, decided));
            }
        }
        let Some(last) = batch.events.last().map(|event| event.revision) else {
            send(answers);
            return;
        };
        if durable || last > self.revision_reserved {
            let changes: Vec<_> = batch
                .events
                .iter()
                .map(|e| (e.kv.key.clone(), (!e.deleted).then(|| e.kv.clone())))
                .collect();
            if let Err(error) = self.commit(changes, last + REVISIONS_AHEAD_MAX) {
                error!(path = %self.path.display(), %error, writes = answers.len(), "Store write failed");
                send(
                    answers
                        .into_iter()
                        .map(|(to, decided)| (to, decided.and(Err(error.clone()))))
                        .collect(),
                );
                return;
            }
        } else {
            self.lazy_since.get_or_insert_with(Instant::now);
            for event in &batch.events {
                self.lazy.insert(
                    event.kv.key.clone(),
                    (!event.deleted).then(|| event.kv.clone()),
                );
            }
        }
        lock(&self.state).apply(batch);
        self.progress_due
            .get_or_insert_with(|| Instant::now() + PROGRESS_PERIOD);
        send(answers);
    }

    fn flush_lazy(&mut self, ahead: Revision) {
        let revision = lock(&self.state).revision;
        if let Err(error) = self.commit(Vec::new(), revision + ahead) {
            warn!(path = %self.path.display(), %error, writes = self.lazy.len(), "Lazy store writes wait on");
        }
    }

    /// Writes what is lazy and then `changes` in one transaction; all of it or nothing.
    fn commit(
        &mut self,
        changes: Vec<(Arc<str>, Option<KeyValue>)>,
        reserve: Revision,
    ) -> Result<(), StoreError> {
        let db = match self.db.take() {
            Some(db) => db,
            None => {
                open_database(&self.path).map_err(|error| StoreError::Failed(error.to_string()))?
            }
        };
        let write = || -> Result<(), redb::Error> {
            let txn = db.begin_write()?;
            {
                let mut keys = txn.open_table(KEYS)?;
                let lazy = self.lazy.iter();
                for (key, kv) in lazy.chain(changes.iter().map(|(key, kv)| (key, kv))) {
                    match kv {
                        Some(kv) => {
                            let (created, modified) = (kv.create_revision, kv.mod_revision);
                            let insert = |value: &[u8]| {
                                keys.insert(&**key, (created, modified, value)).map(drop)
                            };
                            kv.value.with(insert)?;
                        }
                        None => drop(keys.remove(&**key)?),
                    }
                }
                txn.open_table(META)?.insert("revision_reserved", reserve)?;
            }
            txn.commit()?;
            Ok(())
        };
        match write() {
            Ok(()) => {
                self.db = Some(db);
                self.lazy.clear();
                self.lazy_since = None;
                self.revision_reserved = reserve;
                Ok(())
            }
            // redb refuses everything after a failed write until it is opened anew; `db` is dropped here.
            Err(redb::Error::Io(error))
                if matches!(error.kind(), std::io::ErrorKind::StorageFull) =>
            {
                Err(StoreError::NoSpace(self.path.display().to_string()))
            }
            Err(error) => Err(StoreError::Failed(format!(
                "{}: {error}",
                self.path.display()
            ))),
        }
    }
}

enum Received {
    Writes,
    Due,
    Closed,
}

/// `blocking_recv` with a time-out: tokio's channel has none outside a runtime, so this thread parks on a
/// one-shot runtime-free waker.
fn recv_until(requests: &mut mpsc::Receiver<Request>, due: Instant) -> Result<Request, Received> {
    use std::task::{Context, Poll, Wake, Waker};

    struct Unpark(std_mpsc::SyncSender<()>);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            // Full means a wake-up is waiting already.
            let _ = self.0.try_send(());
        }
    }
    let (unpark, unparked) = std_mpsc::sync_channel(1);
    let waker = Waker::from(Arc::new(Unpark(unpark)));
    let mut context = Context::from_waker(&waker);
    loop {
        match requests.poll_recv(&mut context) {
            Poll::Ready(request) => return request.ok_or(Received::Closed),
            Poll::Pending => {
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() || unparked.recv_timeout(left).is_err() {
                    return Err(Received::Due);
                }
            }
        }
    }
}

fn send(answers: Vec<Answer>) {
    for (to, answer) in answers {
        // A caller that went away does not undo its write.
        let _ = to.send(answer);
    }
}

#[async_trait]
impl Backend for EmbeddedStore {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    async fn write(&self, write: Write, durability: Durability) -> Result<KeyValue, StoreError> {
        let closed = || StoreError::Failed("the writer has stopped".to_owned());
        let (answer, answered) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or_else(closed)?;
        queue
            .send(Request {
                write,
                durability,
                answer,
            })
            .await
            .map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

#[cfg(test)]
mod tests;

//! The store on etcd v3: any number of control planes over one cluster.
//!
//! ```text
//!  writes ──▶ one transaction each: compare the key's revision, put or delete ──▶ etcd
//!  reads  ──▶ ask etcd how far it is (one call for all who ask at once), wait until the mirror is there, read it
//!  watches ◀─ mirror (state.rs) ◀── one watch of all keys
//! ```
//!
//! Revisions are etcd's own. Reads are linearizable: they show what was acknowledged to anybody before them.
//! Keys outside `/registry/` are somebody else's; they only move the revision on.
//!
//! A write whose answer is lost (a member dies, an election) is looked up before it is tried again: the comparison
//! makes sure that only one of two tries can win. Only where that cannot tell either, the caller gets an error that
//! means "perhaps".

mod client;
mod rpc;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};
use tracing::{info, warn};

use crate::{
    Durability, KeyValue, List, Revision, StoreError,
    backend::Backend,
    state::{Followed, Loading, State, Write},
};
use client::{Client, Repeat, is_ambiguous};
pub use client::{EtcdConfig, EtcdError};
use rpc::{
    Compare, CompareTarget, CompareWith, Comparison, DeleteRangeRequest, PutRequest, RangeRequest,
    RangeResponse, Request, RequestOp, Response, TxnRequest, TxnResponse,
};

/// Keys that are ours.
const PREFIX: &str = "/registry/";
/// Keys read at once when the mirror is filled.
const PAGE_KEYS: i64 = 1_000;
/// How long a read waits for the mirror to see what etcd has.
const MIRROR_MAX: Duration = Duration::from_secs(15);
/// Between tries to open the watch again.
const RETRY: Duration = Duration::from_millis(250);
/// How soon after other keys changed a watcher learns how far it is.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);
/// History is forgotten after this time, as kube-apiserver does (`--etcd-compaction-interval`).
const COMPACTION_PERIOD: Duration = Duration::from_secs(300);
/// For a write with a lost answer to be cleared up.
const WRITE_MAX: Duration = Duration::from_secs(30);

/// A store on an etcd cluster. Dropping it ends its connections; watchers see the end of their channels.
pub struct EtcdStore {
    shared: Arc<Shared>,
    _asker: AbortOnDropHandle<()>,
    _follower: AbortOnDropHandle<()>,
    _compactor: AbortOnDropHandle<()>,
}

struct Shared {
    client: Client,
    read_index: ReadIndex,
    state: Mutex<State>,
    /// What the mirror has seen.
    reached: watch::Sender<Revision>,
}

/// Lets all who ask at once share one question. A task of its own asks it: who waits for an answer holds nothing that
/// others need, even if nobody looks at him any more.
struct ReadIndex {
    asked: AtomicU64,
    is_asked: Notify,
    /// Up to whom has been answered, and with what.
    answered: watch::Sender<(u64, Result<Revision, Status>)>,
}

impl Default for ReadIndex {
    fn default() -> Self {
        Self {
            asked: AtomicU64::new(0),
            is_asked: Notify::new(),
            answered: watch::Sender::new((0, Ok(0))),
        }
    }
}

impl ReadIndex {
    /// The answer to a question that is asked from now on.
    async fn ask(&self) -> Result<Revision, Status> {
        let mut answered = self.answered.subscribe();
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.is_asked.notify_one();
        match answered.wait_for(|(upto, _)| *upto >= ticket).await {
            Ok(answer) => answer.1.clone(),
            Err(_) => Err(Status::unavailable("the store is closed")),
        }
    }
}

impl EtcdStore {
    /// Connects, and reads all keys.
    ///
    /// # Errors
    /// If no member answers within 20 s, or TLS cannot be agreed on.
    pub async fn open(config: &EtcdConfig) -> Result<Self, EtcdError> {
        let client = Client::new(config)?;
        let (map, revision) = load(&client)
            .await
            .map_err(|status| EtcdError::Unreachable {
                members: client.names().to_owned(),
                why: describe(&status),
            })?;
        info!(
            members = client.names(),
            keys = map.len(),
            revision,
            "Store opened"
        );
        let shared = Arc::new(Shared {
            client,
            read_index: ReadIndex::default(),
            state: Mutex::new(State::new(map, revision)),
            reached: watch::Sender::new(revision),
        });
        let asker = tokio::spawn(shared.clone().answer());
        let follower = tokio::spawn(shared.clone().follow());
        let compactor = tokio::spawn(compact_regularly(shared.clone()));
        Ok(Self {
            shared,
            _asker: AbortOnDropHandle::new(asker),
            _follower: AbortOnDropHandle::new(follower),
            _compactor: AbortOnDropHandle::new(compactor),
        })
    }

    fn failed(&self, status: &Status) -> StoreError {
        let members = self.shared.client.names();
        if status.code() == Code::ResourceExhausted && status.message().contains("space exceeded") {
            return StoreError::NoSpace(format!("etcd {members}"));
        }
        StoreError::Failed(format!("etcd {members}: {}", describe(status)))
    }

    async fn read(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let request = RangeRequest {
            key: bytes(key),
            ..RangeRequest::default()
        };
        let answer: Result<RangeResponse, _> = self
            .shared
            .client
            .call(rpc::RANGE, request, Repeat::Freely)
            .await;
        let answer = answer.map_err(|status| self.failed(&status))?;
        Ok(answer.kvs.into_iter().next().and_then(key_value))
    }

    /// One transaction, at most once.
    async fn transact(&self, write: &Write) -> Result<Result<KeyValue, StoreError>, Status> {
        let answer: TxnResponse = self
            .shared
            .client
            .call(rpc::TXN, transaction(write), Repeat::IfUnsent)
            .await?;
        Ok(outcome(write, answer))
    }
}

#[async_trait]
impl Backend for EtcdStore {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    async fn catch_up(&self) -> Result<(), StoreError> {
        // The revision etcd is at, or a later one.
        let revision = self.shared.read_index.ask().await;
        let revision = revision.map_err(|status| self.failed(&status))?;
        let mut reached = self.shared.reached.subscribe();
        match timeout(MIRROR_MAX, reached.wait_for(|at| *at >= revision)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(StoreError::Failed(format!(
                "etcd {}: its watch has not reached revision {revision} within {MIRROR_MAX:?}",
                self.shared.client.names()
            ))),
        }
    }

    async fn write(&self, write: Write, _: Durability) -> Result<KeyValue, StoreError> {
        let end = Instant::now() + WRITE_MAX;
        loop {
            let status = match self.transact(&write).await {
                Ok(outcome) => return outcome,
                Err(status) if is_ambiguous(&status) => status,
                Err(status) => return Err(self.failed(&status)),
            };
            match after_lost_answer(&write, self.read(write.key()).await?) {
                Lost::Written(kv) => return Ok(kv),
                Lost::NotYet if Instant::now() < end => {}
                Lost::NotYet | Lost::Unknown => return Err(self.failed(&status)),
                Lost::Refused(error) => return Err(error),
            }
        }
    }

    async fn list_past(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        revision: Revision,
    ) -> Option<Result<List, StoreError>> {
        // etcd keeps more history than the mirror, and a page asked of another control plane goes on here.
        let start = match after {
            Some(after) if after >= prefix => format!("{after}\0"),
            _ => prefix.to_owned(),
        };
        let request = RangeRequest {
            key: bytes(&start),
            range_end: end_of(prefix),
            limit: i64::try_from(limit).unwrap_or(0),
            revision: revision.cast_signed(),
            ..RangeRequest::default()
        };
        let answer: Result<RangeResponse, _> = self
            .shared
            .client
            .call(rpc::RANGE, request, Repeat::Freely)
            .await;
        Some(match answer {
            Ok(answer) => Ok(List {
                items: answer.kvs.into_iter().filter_map(key_value).collect(),
                revision,
                more: answer.more,
            }),
            Err(status) if status.code() == Code::OutOfRange => Err(StoreError::Compacted {
                asked: revision,
                oldest: self.state().oldest(),
            }),
            Err(status) => Err(self.failed(&status)),
        })
    }

    async fn compact_elsewhere(&self, revision: Revision) -> Result<(), StoreError> {
        self.shared
            .compact(revision)
            .await
            .map_err(|status| self.failed(&status))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change to the state is made by calls that do not panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Status> {
        let request = rpc::CompactionRequest {
            revision: revision.cast_signed(),
        };
        let result: Result<rpc::CompactionResponse, _> = self
            .client
            .call(rpc::COMPACT, request, Repeat::Freely)
            .await;
        match result {
            // Another control plane was faster.
            Err(status) if status.code() == Code::OutOfRange => Ok(()),
            result => result.map(drop),
        }
    }

    /// Asks etcd how far it is whenever somebody wants to know, for ever.
    async fn answer(self: Arc<Self>) {
        loop {
            self.read_index.is_asked.notified().await;
            // Whoever asks from now on waits for the next answer: this one may be older than their question.
            let upto = self.read_index.asked.load(Ordering::SeqCst);
            let request = RangeRequest {
                key: Bytes::from_static(PREFIX.as_bytes()),
                count_only: true,
                ..RangeRequest::default()
            };
            let answer: Result<RangeResponse, _> =
                self.client.call(rpc::RANGE, request, Repeat::Freely).await;
            let answer = answer.map(|answer| revision_of(answer.header));
            drop(self.read_index.answered.send_replace((upto, answer)));
        }
    }

    /// Keeps the mirror true, for ever.
    async fn follow(self: Arc<Self>) {
        loop {
            match self.follow_once().await {
                Ok(()) => {}
                Err(status) if status.code() == Code::OutOfRange => {
                    warn!(
                        members = self.client.names(),
                        "etcd has forgotten what was missed; reading all keys again"
                    );
                    match load(&self.client).await {
                        Ok((map, revision)) => {
                            self.state().replace(map, revision);
                            self.reached.send_replace(revision);
                        }
                        Err(status) => warn!(
                            members = self.client.names(),
                            error = describe(&status),
                            "etcd cannot be read"
                        ),
                    }
                }
                Err(status) => {
                    warn!(
                        members = self.client.names(),
                        error = describe(&status),
                        "Watch of etcd ended"
                    );
                    self.client.next_member();
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Follows one watch to its end. `OutOfRange`: what was missed is compacted.
    async fn follow_once(&self) -> Result<(), Status> {
        let from = self.state().revision;
        // Every key, so that every revision is seen and none has to be guessed.
        let create = rpc::WatchCreateRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            start_revision: (from + 1).cast_signed(),
            fragment: true,
        };
        let mut stream = self.client.watch(create).await?;
        let mut progress = interval(PROGRESS_PERIOD);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                message = stream.message() => message?,
                _ = progress.tick() => {
                    self.state().send_progress();
                    continue;
                }
            };
            let Some(message) = message else {
                return Ok(());
            };
            if message.compact_revision > 0 {
                return Err(Status::out_of_range(message.cancel_reason));
            }
            if message.canceled {
                return Err(Status::unavailable(message.cancel_reason));
            }
            let Some(revision) = message
                .events
                .iter()
                .filter_map(|event| Some(event.kv.as_ref()?.mod_revision))
                .max()
            else {
                continue;
            };
            let revision = revision.cast_unsigned();
            let writes = message.events.into_iter().filter_map(followed).collect();
            self.state().follow(writes, revision);
            self.reached.send_replace(revision);
        }
    }
}

async fn compact_regularly(shared: Arc<Shared>) {
    loop {
        let revision = shared.state().revision;
        sleep(COMPACTION_PERIOD).await;
        if let Err(status) = shared.compact(revision).await {
            warn!(
                members = shared.client.names(),
                error = describe(&status),
                "etcd cannot be compacted"
            );
        }
    }
}

/// Reads all keys of one moment.
async fn load(client: &Client) -> Result<(BTreeMap<Arc<str>, KeyValue>, Revision), Status> {
    let mut loading = Loading::default();
    let mut revision = 0;
    let mut start = PREFIX.to_owned();
    loop {
        let request = RangeRequest {
            key: bytes(&start),
            range_end: end_of(PREFIX),
            limit: PAGE_KEYS,
            revision,
            ..RangeRequest::default()
        };
        let page: RangeResponse = client.call(rpc::RANGE, request, Repeat::Freely).await?;
        if revision == 0 {
            revision = revision_of(page.header).cast_signed();
        }
        let more = page.more;
        for kv in page.kvs.into_iter().filter_map(key_value) {
            start = format!("{}\0", kv.key);
            loading.add(kv);
        }
        if !more {
            return Ok((loading.finish(), revision.cast_unsigned()));
        }
    }
}

fn transaction(write: &Write) -> TxnRequest {
    let key = bytes(write.key());
    let compare = |result: Comparison, target: CompareTarget, with| Compare {
        result: result.into(),
        target: target.into(),
        key: key.clone(),
        with: Some(with),
    };
    let put = |value: &Bytes| {
        Request::Put(PutRequest {
            key: key.clone(),
            value: value.clone(),
            prev_kv: true,
        })
    };
    let at = |expected: Revision| {
        let with = CompareWith::ModRevision(expected.cast_signed());
        compare(Comparison::Equal, CompareTarget::Mod, with)
    };
    let (compare, success) = match write {
        Write::Create { value, .. } => {
            let with = CompareWith::CreateRevision(0);
            (
                compare(Comparison::Equal, CompareTarget::Create, with),
                put(value),
            )
        }
        Write::Update {
            value, expected, ..
        } => (at(*expected), put(value)),
        Write::Delete { expected, .. } => {
            let delete = Request::DeleteRange(DeleteRangeRequest {
                key: key.clone(),
                prev_kv: true,
            });
            let compare = match expected {
                0 => compare(
                    Comparison::Greater,
                    CompareTarget::Create,
                    CompareWith::CreateRevision(0),
                ),
                expected => at(*expected),
            };
            (compare, delete)
        }
    };
    let read = Request::Range(RangeRequest {
        key,
        ..RangeRequest::default()
    });
    TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp {
            request: Some(success),
        }],
        failure: vec![RequestOp {
            request: Some(read),
        }],
    }
}

/// What the answer to [`transaction`] means.
fn outcome(write: &Write, answer: TxnResponse) -> Result<KeyValue, StoreError> {
    let revision = revision_of(answer.header);
    let response = answer
        .responses
        .into_iter()
        .next()
        .and_then(|op| op.response);
    let before = match response {
        Some(Response::Range(range)) => range.kvs.into_iter().next(),
        Some(Response::Put(put)) => put.prev_kv,
        Some(Response::DeleteRange(deleted)) => deleted.prev_kvs.into_iter().next(),
        None => None,
    }
    .and_then(key_value);
    if !answer.succeeded {
        return Err(refusal(write, before));
    }
    let (value, create_revision) = match (write, before) {
        (Write::Create { value, .. }, _) => (value.clone().into(), revision),
        (Write::Update { value, .. }, before) => (
            value.clone().into(),
            before.map_or(revision, |kv| kv.create_revision),
        ),
        (Write::Delete { .. }, Some(before)) => (before.value, before.create_revision),
        (Write::Delete { key, .. }, None) => return Err(StoreError::NotFound(key.to_string())),
    };
    Ok(KeyValue {
        key: write.key().clone(),
        value,
        create_revision,
        mod_revision: revision,
    })
}

/// Why a comparison failed, by what is there.
fn refusal(write: &Write, current: Option<KeyValue>) -> StoreError {
    let key = write.key().to_string();
    match (write, current) {
        (Write::Create { .. }, _) => StoreError::Exists(key),
        (_, None) => StoreError::NotFound(key),
        (_, Some(current)) => StoreError::Conflict {
            key,
            current: Box::new(current),
        },
    }
}

/// What is known of a write whose answer was lost.
#[derive(Debug)]
enum Lost {
    /// It was carried out.
    Written(KeyValue),
    /// It was not, so far: it can be tried again, for of the two tries only one can win.
    NotYet,
    /// Somebody else was first.
    Refused(StoreError),
    /// It cannot be told.
    Unknown,
}

fn after_lost_answer(write: &Write, current: Option<KeyValue>) -> Lost {
    match (write, current) {
        (Write::Create { .. }, None) => Lost::NotYet,
        (Write::Create { value, .. }, Some(kv)) => {
            // Somebody else may have created the very same; nobody can see the difference.
            if kv.value == *value && kv.create_revision == kv.mod_revision {
                Lost::Written(kv)
            } else {
                Lost::Unknown
            }
        }
        (Write::Update { expected, .. } | Write::Delete { expected, .. }, Some(kv))
            if kv.mod_revision == *expected =>
        {
            Lost::NotYet
        }
        (
            Write::Update {
                value, expected, ..
            },
            Some(kv),
        ) => {
            if kv.value == *value && kv.mod_revision > *expected {
                Lost::Written(kv)
            } else {
                Lost::Unknown
            }
        }
        (Write::Update { .. }, None) => Lost::Unknown,
        (Write::Delete { expected: 0, .. }, Some(_)) => Lost::NotYet,
        (Write::Delete { .. }, Some(kv)) => Lost::Refused(refusal(write, Some(kv))),
        (Write::Delete { .. }, None) => Lost::Unknown,
    }
}

fn followed(event: rpc::WatchEvent) -> Option<Followed> {
    let deleted = event.kind == i32::from(rpc::EventType::Delete);
    let kv = key_value(event.kv?)?;
    Some(Followed { kv, deleted })
}

/// `None`: not one of our keys.
fn key_value(kv: rpc::Kv) -> Option<KeyValue> {
    let key = std::str::from_utf8(&kv.key).ok()?;
    key.starts_with(PREFIX).then(|| KeyValue {
        key: key.into(),
        // A copy: the value is a part of the whole message, which it would keep in memory for as long as it is kept.
        value: Bytes::copy_from_slice(&kv.value).into(),
        create_revision: kv.create_revision.cast_unsigned(),
        mod_revision: kv.mod_revision.cast_unsigned(),
    })
}

fn revision_of(header: Option<rpc::Header>) -> Revision {
    header.map_or(0, |header| header.revision).cast_unsigned()
}

fn bytes(key: &str) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

/// The first key after all that start with `prefix`, as etcd wants it.
fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

fn describe(status: &Status) -> String {
    format!("{} ({:?})", client::chain(status), status.code())
}

#[cfg(test)]
mod tests;

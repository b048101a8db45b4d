//! The audit log: who asked for what and what was answered, as lines of `audit.k8s.io/v1` Events.
//!
//! ```text
//!  request ─ authn ─▶ Trail ─ RequestReceived ─┐
//!                       │      ResponseStarted ├─▶ queue ─▶ Writer ─▶ file, and older ones beside it
//!                       └───── ResponseComplete┘
//! ```
//!
//! No request waits for the log: when more is to be written than the disk takes, events are dropped and counted.

mod event;
mod policy;
mod writer;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http::HeaderMap;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;
use wherry_api::Status;

pub use policy::PolicyError;
use policy::{Level, Policy, Rule};
pub(crate) use writer::Writer;

use crate::{UserInfo, call, request::ResourcePath};
use event::Facts;

/// Events that wait to be written; some megabytes at the level of metadata.
const QUEUE_MAX: usize = 10_000;
/// An object larger than this is left out of its event.
const OBJECT_BYTES_MAX: usize = 1024 * 1024;

/// Where and what is logged (`--audit-…`).
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// The file; `-` is standard output.
    pub log_path: PathBuf,
    /// An `audit.k8s.io/v1` Policy, as YAML or JSON: what is logged of which requests.
    pub policy: String,
    /// A file that would grow beyond is put aside, bytes.
    pub bytes_max: u64,
    /// Files put aside that are kept; older ones are removed.
    pub backups_max: usize,
}

/// When an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is known who asks, and nothing has been done.
    RequestReceived,
    /// The head of an answer that goes on, as that of a watch.
    ResponseStarted,
    ResponseComplete,
    /// A handler gave up.
    Panic,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// The log of a server; one without a configuration logs nothing.
#[derive(Debug, Default)]
pub(crate) struct Audit(Option<Arc<Open>>);

#[derive(Debug)]
struct Open {
    policy: Policy,
    queue: mpsc::Sender<Vec<u8>>,
    dropped: AtomicU64,
}

impl Audit {
    /// Opens the log, and gives what has to run for it to be written.
    pub(crate) fn open(config: AuditConfig) -> Result<(Self, Writer), AuditError> {
        let policy = Policy::parse(&config.policy)?;
        let (queue, lines) = mpsc::channel(QUEUE_MAX);
        let writer = Writer::open(config, lines)?;
        let open = Open {
            policy,
            queue,
            dropped: AtomicU64::default(),
        };
        Ok((Self(Some(Arc::new(open))), writer))
    }

    /// Begins to follow a request. `target` is `None` for what is no resource.
    pub(crate) fn begin(
        &self,
        request: &http::Request<axum::body::Body>,
        target: Option<&ResourcePath>,
        verb: &str,
    ) -> Trail {
        let Some(open) = &self.0 else {
            return Trail(None);
        };
        let verb = match target {
            Some(_) => verb.to_owned(),
            None => request.method().as_str().to_ascii_lowercase(),
        };
        Trail(Some(Box::new(Followed {
            log: open.clone(),
            rule: None,
            facts: Facts::of(request, target, verb),
        })))
    }

    /// Events that were dropped because the disk was too slow.
    pub(crate) fn dropped(&self) -> u64 {
        self.0
            .as_ref()
            .map_or(0, |open| open.dropped.load(Ordering::Relaxed))
    }
}

/// The audit log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The file cannot be written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What is known of one request.
#[derive(Debug)]
pub(crate) struct Trail(Option<Box<Followed>>);

#[derive(Debug)]
struct Followed {
    log: Arc<Open>,
    /// The policy's rule for it, once it is known who asks.
    rule: Option<Rule>,
    facts: Facts,
}

impl Followed {
    fn emit(&self, stage: Stage) {
        let Some(rule) = self
            .rule
            .as_ref()
            .filter(|rule| rule.level > Level::None && !rule.omits(stage.name()))
        else {
            return;
        };
        let event = self.facts.event(stage.name(), rule, Timestamp::now());
        let mut line = event.to_string().into_bytes();
        line.push(b'\n');
        if self.log.queue.try_send(line).is_err()
            && self.log.dropped.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!("Audit events are dropped: they come faster than they can be written");
        }
    }

    fn level(&self) -> Level {
        self.rule.as_ref().map_or(Level::None, |rule| rule.level)
    }
}

impl Trail {
    /// It is known who asks.
    pub(crate) fn asked_by(&mut self, user: &UserInfo) {
        let Some(followed) = &mut self.0 else {
            return;
        };
        followed.rule = Some(followed.log.policy.rule_for(user, &followed.facts));
        followed.facts.user = user.clone();
        followed.emit(Stage::RequestReceived);
    }

    /// The one who asks does so as somebody else.
    pub(crate) fn impersonates(&mut self, user: &UserInfo) {
        if let Some(followed) = &mut self.0
            && followed.facts.user != *user
        {
            followed.facts.impersonated = Some(user.clone());
        }
    }

    pub(crate) fn decided(&mut self, decision: &Result<(), String>) {
        if let Some(followed) = &mut self.0 {
            followed.facts.decision = match decision {
                Ok(()) => Some(("allow", String::new())),
                Err(reason) => Some(("forbid", reason.clone())),
            };
        }
    }

    /// What admission has to say.
    pub(crate) fn noted(&mut self, notes: BTreeMap<String, String>) {
        if let Some(followed) = &mut self.0 {
            followed.facts.notes = notes;
        }
    }

    /// What was sent. Its name is that of the object where the path has none.
    pub(crate) fn sent(&mut self, headers: &HeaderMap, body: &Bytes) {
        let Some(followed) = &mut self.0 else {
            return;
        };
        if body.is_empty() || followed.level() == Level::None {
            return;
        }
        if body.len() > OBJECT_BYTES_MAX {
            followed.facts.is_truncated |= followed.level() >= Level::Request;
            return;
        }
        let object = match call::read_value(headers, body) {
            Ok((object, _)) => object,
            // Patches have types of their own.
            Err(_) => serde_json::from_slice(body).unwrap_or_default(),
        };
        followed.facts.name_from(&object);
        if followed.level() >= Level::Request && !object.is_null() {
            followed.facts.request_object = Some(object);
        }
    }

    /// Whether the answer's body is wanted.
    pub(crate) fn wants_response(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|followed| followed.level() == Level::RequestResponse)
    }

    pub(crate) fn answered_with(&mut self, body: &Bytes) {
        if let Some(followed) = &mut self.0 {
            if body.len() > OBJECT_BYTES_MAX {
                followed.facts.is_truncated = true;
            } else {
                followed.facts.response_object = serde_json::from_slice::<Value>(body).ok();
            }
        }
    }

    /// An answer that is a failure says which.
    pub(crate) fn failed(&mut self, status: &Status) {
        if let Some(followed) = &mut self.0 {
            followed.facts.failure = Some((status.reason.clone(), status.message.clone()));
        }
    }

    /// A request that was refused before it was known who asks is nobody's.
    pub(crate) fn ended(mut self, code: u16, stage: Stage) {
        if let Some(followed) = &mut self.0 {
            if followed.rule.is_none() {
                let nobody = UserInfo::default();
                followed.rule = Some(followed.log.policy.rule_for(&nobody, &followed.facts));
            }
            followed.facts.code = code;
            followed.emit(stage);
        }
    }

    /// The answer has begun and goes on; the end is logged when what this gives is dropped.
    pub(crate) fn started(mut self, code: u16) -> Ends {
        if let Some(followed) = &mut self.0 {
            followed.facts.code = code;
            followed.emit(Stage::ResponseStarted);
        }
        Ends(Some(self), code)
    }
}

/// Logs the end of an answer when it is dropped.
#[derive(Debug)]
pub(crate) struct Ends(Option<Trail>, u16);

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(trail) = self.0.take() {
            trail.ended(self.1, Stage::ResponseComplete);
        }
    }
}

//! The instance of the plugin that serves a volume: connected, opened, called, and made again when it is lost.

use std::{future::pending, pin::Pin, sync::Arc, time::Duration};

use nix::libc;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};
use wherry_plugin_host::{
    VolumeError,
    filesystem::{
        self, LOGGED,
        protocol::{
            BlockChange, CallEnded, CallFault, FromGuest, GuestAnswer, GuestAsk, Opened, Operation,
            Reply, ToGuest,
        },
    },
    protocol::{Fault, LogLevel},
};

use super::{
    Volume,
    request::{Pending, nodes_mut},
};
use crate::{
    abi::Shape,
    lock,
    nodes::Found,
    seen::input,
    worker::{PIPELINE, Session},
};

/// Instances that may be lost to one request.
const ATTEMPTS_MAX: u32 = 3;
/// Looks-up of paths for one request: the depth of a tree.
pub(super) const LOOKUPS_MAX: u32 = 256;
/// Wait before the volume is opened again, after the first failure; doubled for each further one.
const BACKOFF: Duration = Duration::from_millis(20);
/// Longest wait before the volume is opened again.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A volume that was served for this long starts the back-off anew.
const LIVED: Duration = Duration::from_secs(30);

type Connecting = Pin<Box<dyn Future<Output = Result<Session, String>> + Send>>;

/// How far the present instance is.
pub(super) enum Phase {
    /// There is none before then.
    Closed(Instant),
    /// It is waited for.
    Connecting(Connecting),
    /// It opens the volume.
    Opening(Session),
    /// It serves.
    Open(Session),
}

pub(super) enum PhaseEvent {
    Connected(Result<Session, String>),
    Guest(Option<(FromGuest, Vec<u8>)>),
}

impl Phase {
    /// # Cancel safety
    /// Safe.
    pub(super) async fn next(&mut self) -> PhaseEvent {
        match self {
            Self::Closed(_) => pending().await,
            Self::Connecting(connecting) => PhaseEvent::Connected(connecting.as_mut().await),
            Self::Opening(session) | Self::Open(session) => {
                PhaseEvent::Guest(session.receive().await)
            }
        }
    }

    pub(super) fn session(&self) -> Option<&Session> {
        match self {
            Self::Opening(session) | Self::Open(session) => Some(session),
            Self::Closed(_) | Self::Connecting(_) => None,
        }
    }
}

impl Volume {
    /// Does what can be done now: connects, and makes calls that wait.
    pub(super) fn advance(&mut self) {
        if let Phase::Closed(not_before) = self.phase {
            if let Some(plugin) = self.replacement.take() {
                self.plugin = plugin;
            }
            let plugin = Arc::clone(&self.plugin);
            self.phase = Phase::Connecting(Box::pin(async move {
                sleep_until(not_before).await;
                plugin.session().await
            }));
        }
        if self.replacement.is_some() {
            match &self.phase {
                // What is under way is finished by the instance that has it.
                Phase::Open(_) if !self.sent.is_empty() => return,
                Phase::Open(_) | Phase::Connecting(_) => {
                    self.phase = Phase::Closed(Instant::now());
                    self.say("PluginReplaced", "served by another version of the plugin");
                    return self.advance();
                }
                Phase::Opening(_) | Phase::Closed(_) => {}
            }
        }
        while self.sent.len() < PIPELINE
            && matches!(self.phase, Phase::Open(_))
            && let Some(request) = self.waiting.pop_front()
        {
            self.send(request);
        }
    }

    pub(super) fn send(&mut self, mut request: Pending) {
        if request.is_answered {
            return;
        }
        if lock(&self.seen)
            .wait(&request.operation, &self.nodes)
            .is_some()
        {
            return self.fail(&mut request, libc::EIO);
        }
        let operation = match self.in_guests_words(&request.operation) {
            Ok(operation) => operation,
            Err((_, Found::Lost | Found::Guest(_))) => {
                return self.fail(&mut request, libc::ESTALE);
            }
            Err((node, Found::Lookup { parent, name })) => {
                request.lookups += 1;
                if request.lookups > LOOKUPS_MAX {
                    return self.fail(&mut request, libc::ESTALE);
                }
                let lookup = Pending {
                    unique: 0,
                    operation: Operation::Lookup { parent, name },
                    shape: Shape::Entry,
                    data: Arc::default(),
                    arrived: request.arrived,
                    attempts: 0,
                    lookups: request.lookups,
                    is_resent: false,
                    interrupted: request.interrupted,
                    is_answered: false,
                    lookup: Some(Box::new((node, request))),
                };
                return self.waiting.push_front(lookup);
            }
        };
        let Phase::Open(session) = &self.phase else {
            return self.waiting.push_front(request);
        };
        if self.sent.is_empty() {
            self.heard_at = Instant::now();
        }
        let call = self.next_call;
        self.next_call += 1;
        let message = |volume| ToGuest::Call {
            volume,
            call,
            operation,
        };
        let sent = session.send(message, Arc::clone(&request.data));
        self.sent.push_back((call, request));
        if sent.is_err() {
            self.lost("the plugin's worker does not read", None);
        }
    }

    /// An operation with the guest's nodes; or the kernel's node that stands in the way.
    pub(super) fn in_guests_words(&self, operation: &Operation) -> Result<Operation, (u64, Found)> {
        let mut operation = operation.clone();
        for node in nodes_mut(&mut operation).into_iter().flatten() {
            match self.nodes.guest(*node) {
                Found::Guest(guest) => *node = guest,
                found => return Err((*node, found)),
            }
        }
        if let Operation::ReadDirectory { offset, .. } = &mut operation {
            // The first two are "." and "..".
            *offset = offset.saturating_sub(2);
        }
        Ok(operation)
    }

    pub(super) fn connected(&mut self, result: Result<Session, String>) {
        let session = match result {
            Ok(session) => session,
            Err(why) => return self.not_opened(VolumeError::Unavailable(why)),
        };
        let call = Box::new(self.served.call.clone());
        self.heard_at = Instant::now();
        match session.send(|volume| ToGuest::Open { volume, call }, Arc::default()) {
            Ok(()) => self.phase = Phase::Opening(session),
            Err(_) => self.lost("the plugin's worker ended", None),
        }
    }

    pub(super) fn not_opened(&mut self, error: VolumeError) {
        match self.first.take() {
            Some(first) => {
                let (closed, _) = oneshot::channel();
                self.first = Some(closed);
                let _ = first.send(Err(error));
            }
            None => self.say("VolumeNotOpened", error.to_string()),
        }
        self.close();
    }

    pub(super) fn close(&mut self) {
        self.backoff = match self.opened_at.elapsed() > LIVED {
            true => BACKOFF,
            false => (self.backoff * 2).clamp(BACKOFF, BACKOFF_MAX),
        };
        self.phase = Phase::Closed(Instant::now() + self.backoff);
        // In the order in which they came.
        while let Some((_, request)) = self.sent.pop_back() {
            self.waiting.push_front(request);
        }
    }

    fn say_apart(&self, what: &str, wait: Duration) {
        let seconds = wait.as_secs();
        let message = format!("{what} kept killing the plugin and is not tried for {seconds} s");
        self.say("VolumeCallSetApart", message);
    }

    /// The instance is gone; `culprit` is the call that it died of, as far as can be told.
    pub(super) fn lost(&mut self, why: &str, culprit: Option<u64>) {
        if matches!(self.phase, Phase::Opening(_)) {
            return self.not_opened(VolumeError::Other(why.to_owned()));
        }
        let count = self.sent.len();
        let mut failed = Vec::new();
        let mut apart = None;
        for (position, (call, request)) in self.sent.iter_mut().enumerate() {
            // Whatever was at the front may have been what it died of.
            if culprit.map_or(position == 0, |culprit| culprit == *call) {
                request.attempts += 1;
                let is_last = request.attempts >= ATTEMPTS_MAX;
                if culprit.is_none() {
                    let wait = lock(&self.seen).lost(&request.operation, &self.nodes, why, is_last);
                    apart = wait.map(|wait| (input(&request.operation, &self.nodes), wait));
                }
                if is_last {
                    failed.push(*call);
                }
            }
        }
        self.say(
            "VolumeReopened",
            format!("{why}; {count} calls are made again on a new instance"),
        );
        if let Some((what, wait)) = apart {
            self.say_apart(&what, wait);
        }
        for call in failed {
            self.end_request(call, Err(libc::EIO));
        }
        self.close();
    }

    pub(super) fn end_request(&mut self, call: u64, result: Result<&[u8], i32>) {
        let Some(position) = self.sent.iter().position(|(sent, _)| *sent == call) else {
            return;
        };
        if let Some((_, mut request)) = self.sent.remove(position) {
            match result {
                Ok(bytes) if !request.is_answered => self.answer(request.unique, Ok(bytes)),
                Ok(_) => {}
                Err(errno) => self.fail(&mut request, errno),
            }
        }
    }

    pub(super) async fn answer_guest(&mut self, ask: GuestAsk) {
        let (answer, data) = match ask {
            GuestAsk::Agent(ask) => {
                let left = self.plugin.component().limits.wall_time_max;
                let component = self.plugin.component();
                let answer = filesystem::answer(ask, component, &self.served.call, left).await;
                (GuestAnswer::Agent(answer), Vec::new())
            }
            GuestAsk::Read {
                block,
                offset,
                length,
            } => match self.blocks.read(block, offset, length) {
                Ok(bytes) => (GuestAnswer::Read, bytes),
                Err(error) => {
                    return self.lost(&format!("blocks: {error}"), None);
                }
            },
            GuestAsk::Fits(changes) => {
                let fits = self.blocks.fits(&changes);
                (GuestAnswer::Fits(fits), Vec::new())
            }
            GuestAsk::List { first } => (GuestAnswer::Listed(self.blocks.list(first)), Vec::new()),
            GuestAsk::Space => {
                let (max, used) = self.blocks.space();
                (GuestAnswer::Space { max, used }, Vec::new())
            }
        };
        let Some(session) = self.phase.session() else {
            return;
        };
        if session
            .send(|volume| ToGuest::Answer { volume, answer }, Arc::new(data))
            .is_err()
        {
            self.lost("the plugin's worker ended", None);
        }
    }

    pub(super) fn ended(&mut self, call: u64, ended: CallEnded, data: &[u8]) {
        for (level, line) in &ended.log {
            if !matches!(level, LogLevel::Debug) {
                self.say(LOGGED, line.clone());
            }
        }
        if let Some(denied) = &ended.denied {
            self.say("PluginDenied", denied.clone());
        }
        let mut sent = self.sent.iter();
        let request = sent.find(|(sent, _)| *sent == call);
        let operation = request.map(|(_, request)| &request.operation);
        let apart = lock(&self.seen).ended(operation, &self.nodes, &ended);
        if let (Some(wait), Some(operation)) = (apart, operation) {
            self.say_apart(&input(operation, &self.nodes), wait);
        }
        let fault = match ended.result {
            Ok(Ok(Reply::Opened(result))) if call == 0 => {
                return self.open(result, &ended.changes, data);
            }
            Ok(result) => return self.replied(call, result, &ended.changes, data),
            Err(CallFault::NotBegun) => return self.lost("the instance was gone", Some(0)),
            Err(CallFault::Fault(fault)) => fault,
        };
        if call == 0 {
            return self.not_opened(match fault {
                Fault::Volume(error) => error,
                fault => VolumeError::Other(fault.to_string()),
            });
        }
        match fault {
            // It would take as long again.
            Fault::TimedOut { .. } | Fault::CpuTimeExceeded { .. } => {
                self.end_request(call, Err(libc::EIO));
                self.lost(&fault.to_string(), Some(0));
            }
            fault => self.lost(&fault.to_string(), Some(call)),
        }
    }

    pub(super) fn open(
        &mut self,
        result: Result<Opened, VolumeError>,
        changes: &[BlockChange],
        data: &[u8],
    ) {
        let opened = match result {
            Ok(opened) => opened,
            Err(error) => return self.not_opened(error),
        };
        if let Err(error) = self.blocks.commit(changes, data) {
            return self.not_opened(VolumeError::NoSpace(error.to_string()));
        }
        let phase = std::mem::replace(&mut self.phase, Phase::Closed(Instant::now()));
        if let Phase::Opening(session) = phase {
            self.phase = Phase::Open(session);
        }
        self.opened = opened;
        self.opened_at = Instant::now();
        self.nodes.opened(opened.nodes_are_kept);
        match self.first.take() {
            Some(first) => {
                let _ = first.send(Ok(opened));
            }
            None => self.counted.reopened += 1,
        }
        if std::mem::take(&mut self.is_resumed)
            && let Err(error) = self.device.resend()
        {
            let why = format!("what the volume server had under way is lost: {error}");
            self.say("VolumeServerRestarted", why);
        }
    }
}

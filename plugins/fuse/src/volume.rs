//! One volume: requests of the kernel on one side, an instance of the plugin on the other.
//!
//! ```text
//!  device ─▶ waiting ─▶ sent ─▶ instance
//!    ▲          ▲         │ instance lost: back to waiting, made again on the next one
//!    └─ answer ─┴─────────┴─ ended: what it keeps is committed, then the kernel is answered
//! ```
//! A request that the kernel has sent is answered, whatever becomes of workers: by what the guest says; by EIO
//! after [`ATTEMPTS_MAX`] instances died of it, after a call that overran its limits, or once it has waited for
//! the volume's time; by EINTR when whoever asked is being killed.

use std::{
    collections::VecDeque,
    future::pending,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::libc;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use wherry_plugin_host::{
    VolumeError,
    filesystem::{
        self, LOGGED,
        protocol::{
            Attributes, BlockChange, CallEnded, CallFault, Errno, FromGuest, GuestAnswer, GuestAsk,
            Opened, Operation, Reply, Served, ToGuest,
        },
    },
    protocol::{Fault, LogLevel},
};

use crate::{
    abi::{self, Answer, Body, Listing, NAME_BYTES_MAX, RESENT, Request, Shape},
    blocks::Blocks,
    device::Device,
    nodes::{Found, Nodes, ROOT},
    worker::{PIPELINE, Plugin, Session},
};

/// Requests that wait; the kernel keeps more of them itself.
const WAITING_MAX: usize = 256;
/// Instances that may be lost to one request.
const ATTEMPTS_MAX: u32 = 3;
/// Looks-up of paths for one request: the depth of a tree.
const LOOKUPS_MAX: u32 = 256;
/// From the interruption of a request until it is answered by EINTR: programs that use signals do not expect it,
/// and those that are killed can wait so long.
const INTERRUPT_GRACE: Duration = Duration::from_secs(1);
/// A worker that says nothing for this much longer than a call may take hangs, and is ended.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// Wait before the volume is opened again, after the first failure; doubled for each further one.
const BACKOFF: Duration = Duration::from_millis(20);
/// Longest wait before the volume is opened again.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A volume that was served for this long starts the back-off anew.
const LIVED: Duration = Duration::from_secs(30);
/// How exactly time-outs are kept.
const TICK: Duration = Duration::from_millis(200);

/// What is asked of a volume's task.
pub(crate) enum Command {
    /// Another component is to serve it.
    Replace(Arc<Plugin>),
    /// How it is.
    Status(oneshot::Sender<Counted>),
    /// It ends.
    Close,
}

/// What is counted of a volume, with its descriptors for another process.
pub(crate) struct Counted {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) reopened: u64,
    pub(crate) worker: Option<u32>,
    pub(crate) device: std::io::Result<std::os::fd::OwnedFd>,
    pub(crate) blocks: std::io::Result<std::fs::File>,
}

/// Says something to people: reason and message.
pub(crate) type Tell = Box<dyn Fn(&str, String) + Send + Sync>;

/// A request on its way. Nodes are the kernel's.
struct Pending {
    unique: u64,
    operation: Operation,
    shape: Shape,
    data: Vec<u8>,
    arrived: Instant,
    attempts: u32,
    lookups: u32,
    /// The kernel asks for it again: an earlier server may have done it.
    is_resent: bool,
    interrupted: Option<Instant>,
    is_answered: bool,
    /// Not the kernel's: a node's path is looked up, so that another request can be made.
    lookup: Option<Box<(u64, Pending)>>,
}

type Connecting = Pin<Box<dyn Future<Output = Result<Session, String>> + Send>>;

/// How far the present instance is.
enum Phase {
    /// There is none before then.
    Closed(Instant),
    /// It is waited for.
    Connecting(Connecting),
    /// It opens the volume.
    Opening(Session),
    /// It serves.
    Open(Session),
}

enum PhaseEvent {
    Connected(Result<Session, String>),
    Guest(Option<(FromGuest, Vec<u8>)>),
}

impl Phase {
    /// # Cancel safety
    /// Safe.
    async fn next(&mut self) -> PhaseEvent {
        match self {
            Self::Closed(_) => pending().await,
            Self::Connecting(connecting) => PhaseEvent::Connected(connecting.as_mut().await),
            Self::Opening(session) | Self::Open(session) => {
                PhaseEvent::Guest(session.receive().await)
            }
        }
    }

    fn session(&self) -> Option<&Session> {
        match self {
            Self::Opening(session) | Self::Open(session) => Some(session),
            Self::Closed(_) | Self::Connecting(_) => None,
        }
    }
}

/// What woke a volume.
enum Woken {
    Request(std::io::Result<Option<Option<Request>>>),
    Phase(PhaseEvent),
    Command(Option<Command>),
    Tick,
}

/// Why a volume is served no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was asked to.
    Closed,
    /// Nothing is mounted any more.
    Unmounted,
    /// The guest could not open it, the first time.
    NotOpened,
}

/// A volume that is served.
pub(crate) struct Volume {
    served: Served,
    device: Device,
    blocks: Blocks,
    nodes: Nodes,
    plugin: Arc<Plugin>,
    replacement: Option<Arc<Plugin>>,
    phase: Phase,
    opened: Opened,
    /// Told how the first instance opened the volume.
    first: Option<oneshot::Sender<Result<Opened, VolumeError>>>,
    is_resumed: bool,
    opened_at: Instant,
    heard_at: Instant,
    next_call: u64,
    waiting: VecDeque<Pending>,
    sent: VecDeque<(u64, Pending)>,
    backoff: Duration,
    counted: Counts,
    tell: Tell,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    requests: u64,
    failed: u64,
    reopened: u64,
}

impl Volume {
    /// A volume that another server may have served; `first` is told how its guest opened it.
    pub(crate) fn new(
        served: Served,
        device: Device,
        blocks: Blocks,
        plugin: Arc<Plugin>,
        is_resumed: bool,
        tell: Tell,
        first: oneshot::Sender<Result<Opened, VolumeError>>,
    ) -> Self {
        // Above all numbers that an earlier server gave: those were of an earlier second.
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH);
        let first_node = seconds.unwrap_or_default().as_secs() << 24;
        let now = Instant::now();
        Self {
            served,
            device,
            blocks,
            nodes: Nodes::new(first_node),
            plugin,
            replacement: None,
            phase: Phase::Closed(now),
            opened: Opened::default(),
            first: Some(first),
            is_resumed,
            opened_at: now,
            heard_at: now,
            next_call: 1,
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            backoff: Duration::ZERO,
            counted: Counts::default(),
            tell,
        }
    }

    /// Serves until there is nobody to be served.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> End {
        loop {
            self.advance();
            let is_busy = !(self.waiting.is_empty() && self.sent.is_empty())
                || matches!(self.phase, Phase::Opening(_) | Phase::Closed(_));
            let accepts = self.first.is_none() && self.waiting.len() < WAITING_MAX;
            let woken = tokio::select! {
                read = self.device.read(), if accepts => {
                    Woken::Request(read.map(|bytes| bytes.map(Request::parse)))
                }
                event = self.phase.next() => Woken::Phase(event),
                command = commands.recv() => Woken::Command(command),
                () = sleep_until(Instant::now() + TICK), if is_busy => Woken::Tick,
            };
            match woken {
                Woken::Request(Ok(Some(request))) => self.take_in(request),
                Woken::Request(Ok(None)) => return End::Unmounted,
                Woken::Request(Err(error)) => {
                    self.say("VolumeLost", format!("read /dev/fuse: {error}"));
                    return End::Unmounted;
                }
                Woken::Phase(PhaseEvent::Connected(result)) => self.connected(result),
                Woken::Phase(PhaseEvent::Guest(Some((message, data)))) => {
                    self.heard_at = Instant::now();
                    match message {
                        FromGuest::Ask { ask, .. } => self.answer_guest(ask).await,
                        FromGuest::Ended { call, ended, .. } => self.ended(call, *ended, &data),
                    }
                }
                Woken::Phase(PhaseEvent::Guest(None)) => {
                    self.lost("the plugin's worker ended", None);
                }
                Woken::Command(None | Some(Command::Close)) => return End::Closed,
                Woken::Command(Some(Command::Replace(plugin))) => self.replacement = Some(plugin),
                Woken::Command(Some(Command::Status(asker))) => {
                    let _ = asker.send(self.status());
                }
                Woken::Tick => self.tick(),
            }
            if self.first.as_ref().is_some_and(oneshot::Sender::is_closed) {
                return End::NotOpened;
            }
        }
    }

    fn say(&self, reason: &str, message: impl Into<String>) {
        (self.tell)(reason, message.into());
    }

    fn status(&self) -> Counted {
        Counted {
            requests: self.counted.requests,
            failed: self.counted.failed,
            reopened: self.counted.reopened,
            worker: self
                .phase
                .session()
                .and_then(|session| session.worker().pid()),
            device: self.device.file().try_clone(),
            blocks: self.blocks.file().try_clone(),
        }
    }

    fn answer(&mut self, unique: u64, result: Result<&[u8], i32>) {
        if let Err(error) = self.device.answer(unique, result) {
            // The kernel does not take it: better an error than nobody's answer.
            let _ = self.device.answer(unique, Err(libc::EIO));
            self.say("VolumeError", format!("answer: {error}"));
        }
    }

    fn fail(&mut self, request: &mut Pending, errno: i32) {
        if request.is_answered {
            return;
        }
        request.is_answered = true;
        if errno == libc::EIO {
            self.counted.failed += 1;
        }
        match request.lookup.take() {
            Some(mut lookup) => {
                let errno = match errno {
                    libc::EIO | libc::EINTR => errno,
                    _ => libc::ESTALE,
                };
                self.fail(&mut lookup.1, errno);
            }
            None => self.answer(request.unique, Err(errno)),
        }
    }

    fn take_in(&mut self, request: Option<Request>) {
        let Some(Request { unique, body }) = request else {
            return self.say("VolumeError", "the kernel said what cannot be read");
        };
        self.counted.requests += 1;
        match body {
            Body::Init {
                major,
                readahead,
                flags,
            } => {
                let answer = Answer::init(major, readahead, flags);
                self.answer(unique, answer.as_deref().map_err(|errno| *errno));
            }
            Body::Nothing(Shape::Open) => self.answer(unique, Ok(&Answer::open())),
            Body::Nothing(_) => self.answer(unique, Ok(&[])),
            Body::Refused(errno) => self.answer(unique, Err(errno)),
            Body::Forget(nodes) => self.forget(nodes),
            Body::Interrupt { unique } => {
                let sent = self.sent.iter_mut().map(|(_, request)| request);
                for request in self.waiting.iter_mut().chain(sent) {
                    let asked = request
                        .lookup
                        .as_ref()
                        .map_or(request.unique, |l| l.1.unique);
                    if asked & !RESENT == unique & !RESENT {
                        request.interrupted = Some(Instant::now());
                    }
                }
            }
            Body::Operation(operation, ..) if self.opened.is_read_only && operation.writes() => {
                self.answer(unique, Err(libc::EROFS));
            }
            Body::Operation(operation, shape, data) => self.waiting.push_back(Pending {
                unique,
                operation,
                shape,
                data,
                arrived: Instant::now(),
                attempts: 0,
                lookups: 0,
                is_resent: unique & RESENT != 0,
                interrupted: None,
                is_answered: false,
                lookup: None,
            }),
        }
    }

    fn forget(&mut self, nodes: Vec<(u64, u64)>) {
        for (node, times) in nodes {
            if let Some(guest) = self.nodes.forget(node, times)
                && let Phase::Open(session) = &self.phase
            {
                // Nobody waits for it, and nothing is lost without it.
                let call = self.next_call;
                self.next_call += 1;
                let forget = |volume| ToGuest::Call {
                    volume,
                    call,
                    operation: Operation::Forget { node: guest },
                };
                let _ = session.send(forget, Vec::new());
            }
        }
    }

    /// Does what can be done now: connects, and makes calls that wait.
    fn advance(&mut self) {
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

    fn send(&mut self, mut request: Pending) {
        if request.is_answered {
            return;
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
                    data: Vec::new(),
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
        // Kept for another instance, should this one not answer.
        let sent = session.send(message, request.data.clone());
        self.sent.push_back((call, request));
        if sent.is_err() {
            self.lost("the plugin's worker does not read", None);
        }
    }

    /// An operation with the guest's nodes; or the kernel's node that stands in the way.
    fn in_guests_words(&self, operation: &Operation) -> Result<Operation, (u64, Found)> {
        let mut operation = operation.clone();
        let translate = |node: &mut u64| match self.nodes.guest(*node) {
            Found::Guest(guest) => {
                *node = guest;
                Ok(())
            }
            found => Err((*node, found)),
        };
        match &mut operation {
            Operation::Lookup { parent: node, .. }
            | Operation::Stat { node }
            | Operation::Change { node, .. }
            | Operation::ReadDirectory { node, .. }
            | Operation::Read { node, .. }
            | Operation::ReadLink { node }
            | Operation::Write { node, .. }
            | Operation::Create { parent: node, .. }
            | Operation::CreateLink { parent: node, .. }
            | Operation::Remove { parent: node, .. }
            | Operation::Forget { node }
            | Operation::Sync { node } => translate(node)?,
            Operation::Rename {
                parent, new_parent, ..
            } => {
                translate(parent)?;
                translate(new_parent)?;
            }
            Operation::Space => {}
        }
        if let Operation::ReadDirectory { offset, .. } = &mut operation {
            // The first two are "." and "..".
            *offset = offset.saturating_sub(2);
        }
        Ok(operation)
    }

    fn connected(&mut self, result: Result<Session, String>) {
        let session = match result {
            Ok(session) => session,
            Err(why) => return self.not_opened(VolumeError::Unavailable(why)),
        };
        let call = Box::new(self.served.call.clone());
        self.heard_at = Instant::now();
        match session.send(|volume| ToGuest::Open { volume, call }, Vec::new()) {
            Ok(()) => self.phase = Phase::Opening(session),
            Err(_) => self.lost("the plugin's worker ended", None),
        }
    }

    fn not_opened(&mut self, error: VolumeError) {
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

    fn close(&mut self) {
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

    /// The instance is gone; `culprit` is the call that it died of, as far as can be told.
    fn lost(&mut self, why: &str, culprit: Option<u64>) {
        if matches!(self.phase, Phase::Opening(_)) {
            return self.not_opened(VolumeError::Other(why.to_owned()));
        }
        let count = self.sent.len();
        let mut failed = Vec::new();
        for (position, (call, request)) in self.sent.iter_mut().enumerate() {
            // Whatever was at the front may have been what it died of.
            if culprit.map_or(position == 0, |culprit| culprit == *call) {
                request.attempts += 1;
                if request.attempts >= ATTEMPTS_MAX {
                    failed.push(*call);
                }
            }
        }
        self.say(
            "VolumeReopened",
            format!("{why}; {count} calls are made again on a new instance"),
        );
        for call in failed {
            self.end_request(call, Err(libc::EIO));
        }
        self.close();
    }

    fn end_request(&mut self, call: u64, result: Result<&[u8], i32>) {
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

    async fn answer_guest(&mut self, ask: GuestAsk) {
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
            .send(|volume| ToGuest::Answer { volume, answer }, data)
            .is_err()
        {
            self.lost("the plugin's worker ended", None);
        }
    }

    fn ended(&mut self, call: u64, ended: CallEnded, data: &[u8]) {
        for (level, line) in &ended.log {
            if !matches!(level, LogLevel::Debug) {
                self.say(LOGGED, line.clone());
            }
        }
        if let Some(denied) = &ended.denied {
            self.say("PluginDenied", denied.clone());
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

    fn open(&mut self, result: Result<Opened, VolumeError>, changes: &[BlockChange], data: &[u8]) {
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

    fn replied(
        &mut self,
        call: u64,
        result: Result<Reply, Errno>,
        changes: &[BlockChange],
        data: &[u8],
    ) {
        let read = match &result {
            Ok(Reply::Read(bytes)) => (*bytes as usize).min(data.len()),
            _ => 0,
        };
        let (read, changed) = data.split_at(read);
        if let Err(error) = self.blocks.commit(changes, changed) {
            // The guest believes that it is kept: another instance knows better.
            self.end_request(call, Err(libc::ENOSPC));
            return self.lost(&format!("blocks: {error}"), Some(0));
        }
        let Some(position) = self.sent.iter().position(|(sent, _)| *sent == call) else {
            return;
        };
        let Some((_, mut request)) = self.sent.remove(position) else {
            return;
        };
        match result {
            Ok(reply) => self.give(request, reply, read),
            Err(Errno::Stale) if !self.opened.nodes_are_kept => {
                for node in nodes_of(&request.operation) {
                    self.nodes.stale(node);
                }
                request.lookups += 1;
                match request.lookups > LOOKUPS_MAX {
                    true => self.fail(&mut request, libc::ESTALE),
                    false => self.waiting.push_front(request),
                }
            }
            Err(errno) => self.give_error(request, errno),
        }
    }

    fn give_error(&mut self, mut request: Pending, errno: Errno) {
        let is_done = request.is_resent
            && match (&request.operation, errno) {
                // Done by the server that had it before, which could not say so any more.
                (Operation::Remove { .. } | Operation::Rename { .. }, Errno::NotFound) => true,
                (
                    Operation::Create { parent, name, .. }
                    | Operation::CreateLink { parent, name, .. },
                    Errno::Exists,
                ) => {
                    request.operation = Operation::Lookup {
                        parent: *parent,
                        name: name.clone(),
                    };
                    return self.waiting.push_front(request);
                }
                _ => false,
            };
        match (is_done, &request.operation, errno) {
            (true, ..) => self.answer(request.unique, Ok(&[])),
            (false, Operation::Space, Errno::Unsupported) => {
                let space = Answer::space(0, 0);
                self.answer(request.unique, Ok(&space));
            }
            (false, Operation::Sync { .. }, Errno::Unsupported) => {
                self.answer(request.unique, Ok(&[]));
            }
            _ => self.fail(&mut request, abi::errno(errno)),
        }
    }

    /// Gives the kernel what the guest answered, if that makes sense.
    fn give(&mut self, mut request: Pending, reply: Reply, read: &[u8]) {
        if let Some(lookup) = request.lookup.take() {
            let (node, mut then) = *lookup;
            then.lookups = request.lookups;
            match reply {
                Reply::Attributes(attributes) => {
                    self.nodes.found(node, attributes.node);
                    self.waiting.push_front(then);
                }
                _ => self.fail(&mut then, libc::EIO),
            }
            return;
        }
        if request.is_answered {
            // Forgotten at once: the kernel does not know what it was not told.
            return;
        }
        match self.bytes(&request, reply, read) {
            Ok(bytes) => self.answer(request.unique, Ok(&bytes)),
            Err(why) => {
                self.say(
                    "PluginError",
                    format!("{why}, in answer to {:?}", request.operation),
                );
                self.fail(&mut request, libc::EIO);
            }
        }
    }

    fn bytes(&mut self, request: &Pending, reply: Reply, read: &[u8]) -> Result<Vec<u8>, String> {
        let told = match &request.operation {
            Operation::Lookup { parent, name }
            | Operation::Create { parent, name, .. }
            | Operation::CreateLink { parent, name, .. } => Some((*parent, name.clone())),
            _ => None,
        };
        Ok(match (request.shape, reply) {
            (Shape::Entry, Reply::Attributes(attributes)) => {
                check(&attributes)?;
                let (parent, name) = told.unwrap_or((ROOT, String::new()));
                let node = self.nodes.tell(parent, &name, attributes.node, true);
                Answer::entry(node.ok_or("too many files are in use")?, &attributes)
            }
            (Shape::Attributes, Reply::Attributes(attributes)) => {
                check(&attributes)?;
                let node = nodes_of(&request.operation).next().unwrap_or(ROOT);
                Answer::stat(node, &attributes)
            }
            (Shape::Link, Reply::Link(to)) if to.is_empty() || to.contains('\0') => {
                return Err("a link that leads nowhere".into());
            }
            (Shape::Link, Reply::Link(mut to)) => {
                // The kernel's own limit of a path.
                if to.len() > 4095 {
                    return Err("a link longer than 4,095 bytes".into());
                }
                to.shrink_to_fit();
                to.into_bytes()
            }
            (Shape::Data, Reply::Read(_)) => match &request.operation {
                Operation::Read { length, .. } if read.len() > *length as usize => {
                    return Err("more bytes than were asked for".into());
                }
                _ => read.to_vec(),
            },
            (Shape::Written(bytes), Reply::Done) => Answer::written(bytes),
            (Shape::Empty, Reply::Done) => {
                if let Operation::Rename {
                    parent,
                    name,
                    new_parent,
                    new_name,
                    ..
                } = &request.operation
                {
                    self.nodes.renamed(*parent, name, *new_parent, new_name);
                }
                Vec::new()
            }
            (Shape::Space, Reply::Room(bytes, free)) => Answer::space(bytes, free),
            (Shape::Directory { bytes, plus }, Reply::Entries(entries)) => {
                let Operation::ReadDirectory { node, offset, .. } = request.operation else {
                    return Err("a directory".into());
                };
                self.listing(node, offset, bytes, plus, &entries)?
            }
            (_, reply) => return Err(format!("{reply:?} is no answer")),
        })
    }

    fn listing(
        &mut self,
        node: u64,
        offset: u64,
        bytes: u32,
        plus: bool,
        entries: &[filesystem::protocol::Entry],
    ) -> Result<Vec<u8>, String> {
        let mut listing = Listing::new(bytes, plus);
        for (at, name) in [(0, "."), (1, "..")] {
            if offset <= at && listing.fits(name) {
                listing.push_dots(name, at + 1, node);
            }
        }
        for entry in entries {
            if !is_name(&entry.name) {
                let name: String = entry.name.chars().take(40).collect();
                self.say("PluginError", format!("a directory with the name {name:?}"));
                continue;
            }
            if !listing.fits(&entry.name) {
                break;
            }
            check(&entry.attributes)?;
            let next = entry.next.checked_add(2).filter(|next| *next < 1 << 63);
            let next = next
                .filter(|next| *next > 2)
                .ok_or("an offset of no entry")?;
            let told = self
                .nodes
                .tell(node, &entry.name, entry.attributes.node, plus);
            let told = told.ok_or("too many files are in use")?;
            listing.push(&entry.name, next, told, &entry.attributes);
        }
        Ok(listing.finish())
    }

    /// Keeps time-outs.
    fn tick(&mut self) {
        let now = Instant::now();
        let max = self.served.request_timeout;
        let mut overdue = Vec::new();
        let sent = self.sent.iter_mut().map(|(_, request)| request);
        for request in self.waiting.iter_mut().chain(sent) {
            let errno = match request.interrupted {
                Some(at) if now >= at + INTERRUPT_GRACE => libc::EINTR,
                _ if now >= request.arrived + max => libc::EIO,
                _ => continue,
            };
            if !request.is_answered {
                request.is_answered = true;
                let mut unique = request.unique;
                let mut behind = &request.lookup;
                while let Some(lookup) = behind {
                    unique = lookup.1.unique;
                    behind = &lookup.1.lookup;
                }
                overdue.push((unique, errno));
            }
        }
        for (unique, errno) in overdue {
            self.answer(unique, Err(errno));
            if errno == libc::EIO {
                self.counted.failed += 1;
                self.say(
                    "VolumeTimeout",
                    format!("no answer from the plugin after {max:?}"),
                );
            }
        }
        self.waiting.retain(|request| !request.is_answered);
        let is_asked = !self.sent.is_empty() || matches!(self.phase, Phase::Opening(_));
        let silent = self.plugin.component().limits.wall_time_max + ANSWER_GRACE;
        if is_asked
            && now > self.heard_at + silent
            && let Some(session) = self.phase.session()
        {
            session.worker().kill();
        }
    }
}

/// The nodes that an operation is about.
fn nodes_of(operation: &Operation) -> impl Iterator<Item = u64> + use<> {
    let (first, second) = match operation {
        Operation::Lookup { parent: node, .. }
        | Operation::Stat { node }
        | Operation::Change { node, .. }
        | Operation::ReadDirectory { node, .. }
        | Operation::Read { node, .. }
        | Operation::ReadLink { node }
        | Operation::Write { node, .. }
        | Operation::Create { parent: node, .. }
        | Operation::CreateLink { parent: node, .. }
        | Operation::Remove { parent: node, .. }
        | Operation::Forget { node }
        | Operation::Sync { node } => (Some(*node), None),
        Operation::Rename {
            parent, new_parent, ..
        } => (Some(*parent), Some(*new_parent)),
        Operation::Space => (None, None),
    };
    first.into_iter().chain(second)
}

fn check(attributes: &Attributes) -> Result<(), String> {
    if attributes.size > i64::MAX as u64 {
        return Err(format!("a file of {} bytes", attributes.size));
    }
    if attributes.node == 0 {
        return Err("the node 0".into());
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= NAME_BYTES_MAX && !name.contains(['/', '\0'])
}

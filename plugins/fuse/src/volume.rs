//! One volume: requests of the kernel on one side, an instance of the plugin on the other.
//!
//! ```text
//!  device ─▶ waiting ─▶ sent ─▶ instance
//!    ▲          ▲         │ instance lost: back to waiting, made again on the next one
//!    └─ answer ─┴─────────┴─ ended: what it keeps is committed, then the kernel is answered
//! ```
//! A request that the kernel has sent is answered, whatever becomes of workers: by what the guest says; by EIO
//! after several instances died of it, after a call that overran its limits, or once it has waited for
//! the volume's time; by EINTR when whoever asked is being killed.

mod answer;
mod instance;
mod request;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::libc;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use wherry_plugin_host::{
    VolumeError,
    filesystem::protocol::{FromGuest, Opened, Operation, Served, ToGuest},
};

use self::{
    instance::{Phase, PhaseEvent},
    request::Pending,
};
use crate::{
    abi::{Answer, Body, RESENT, Request, Shape},
    blocks::Blocks,
    device::Device,
    nodes::Nodes,
    seen::Seen,
    worker::Plugin,
};

/// Requests that wait; the kernel keeps more of them itself.
const WAITING_MAX: usize = 256;
/// From the interruption of a request until it is answered by EINTR: programs that use signals do not expect it,
/// and those that are killed can wait so long.
const INTERRUPT_GRACE: Duration = Duration::from_secs(1);
/// A worker that says nothing for this much longer than a call may take hangs, and is ended.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
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
    seen: Arc<Mutex<Seen>>,
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
            seen: Arc::default(),
            tell,
        }
    }

    /// What its calls come to, to be looked at meanwhile.
    pub(crate) fn seen(&self) -> Arc<Mutex<Seen>> {
        Arc::clone(&self.seen)
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
            Body::Init { major, flags } => {
                let answer = Answer::init(major, flags);
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
                data: Arc::new(data),
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
                let _ = session.send(forget, Arc::default());
            }
        }
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

//! A connection to a worker: requests and their answers, events on the side.

use std::{
    collections::HashMap,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use wherry_runtime_api::RuntimeError;

use crate::{
    protocol::{
        ContainerReport, Event, PROTOCOL_VERSION, ReplyBody, Request, RequestBody, ToAgent,
        WorkerError,
    },
    wire,
};

/// A worker answers from memory; loading a large module from a cold disk is the longest it does.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// Events taken from the socket before somebody handles them.
const EVENTS_MAX: usize = 256;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Answer = (Result<ReplyBody, WorkerError>, Vec<OwnedFd>);

#[derive(Default)]
struct Waiting {
    next: u64,
    replies: HashMap<u64, oneshot::Sender<Answer>>,
    execs: HashMap<u64, oneshot::Sender<(i32, Option<String>)>>,
    is_closed: bool,
}

/// A connection that has said hello.
pub(crate) struct Client {
    worker: String,
    sender: wire::Sender,
    waiting: Mutex<Waiting>,
    /// The version of the protocol that the worker speaks.
    pub(crate) protocol: u32,
    /// Names the machine code the worker can load.
    pub(crate) engine: String,
}

impl Client {
    /// Connects. Answers what the worker holds, and where its events come; their end is the
    /// connection's.
    pub(crate) async fn connect(
        worker: &str,
        path: &Path,
    ) -> io::Result<(Arc<Self>, Vec<ContainerReport>, mpsc::Receiver<Event>)> {
        let (sender, mut receiver) = wire::split(UnixStream::connect(path).await?);
        let hello = Request {
            seq: 0,
            body: RequestBody::Hello {
                protocol: PROTOCOL_VERSION,
            },
        };
        sender.send(&hello, &[]).await?;
        let answered = tokio::time::timeout(REPLY_TIMEOUT, receiver.receive::<ToAgent>()).await;
        let Ok(Ok(Some((
            ToAgent::Reply {
                result:
                    Ok(ReplyBody::Hello {
                        protocol,
                        engine,
                        containers,
                    }),
                ..
            },
            _,
        )))) = answered
        else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no hello"));
        };
        let waiting = Mutex::new(Waiting {
            next: 1,
            ..Waiting::default()
        });
        let client = Arc::new(Self {
            worker: worker.to_owned(),
            sender,
            waiting,
            protocol,
            engine,
        });
        let (events, received) = mpsc::channel(EVENTS_MAX);
        let reading = client.clone();
        tokio::spawn(async move {
            reading.read(receiver, events).await;
        });
        Ok((client, containers, received))
    }

    async fn read(&self, mut receiver: wire::Receiver, events: mpsc::Sender<Event>) {
        while let Ok(Some((message, descriptors))) = receiver.receive::<ToAgent>().await {
            match message {
                ToAgent::Reply { seq, result } => {
                    if let Some(reply) = lock(&self.waiting).replies.remove(&seq) {
                        let _ = reply.send((result, descriptors));
                    }
                }
                ToAgent::Event(Event::ExecExited {
                    exec,
                    exit_code,
                    message,
                }) => {
                    if let Some(exited) = lock(&self.waiting).execs.remove(&exec) {
                        let _ = exited.send((exit_code, message));
                    }
                }
                ToAgent::Event(event) => {
                    if events.send(event).await.is_err() {
                        break;
                    }
                }
            }
        }
        let mut waiting = lock(&self.waiting);
        waiting.is_closed = true;
        waiting.replies.clear();
        waiting.execs.clear();
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.waiting).is_closed
    }

    fn lost(&self) -> RuntimeError {
        RuntimeError::Unavailable(format!("wasm worker {}: connection lost", self.worker))
    }

    /// Asks and waits for the answer.
    pub(crate) async fn ask(
        &self,
        body: RequestBody,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(ReplyBody, Vec<OwnedFd>), RuntimeError> {
        let (reply, answer) = oneshot::channel();
        let seq = {
            let mut waiting = lock(&self.waiting);
            if waiting.is_closed {
                return Err(self.lost());
            }
            waiting.next += 1;
            let seq = waiting.next;
            waiting.replies.insert(seq, reply);
            seq
        };
        self.sender
            .send(&Request { seq, body }, descriptors)
            .await
            .map_err(|_| self.lost())?;
        match tokio::time::timeout(REPLY_TIMEOUT, answer).await {
            Ok(Ok((Ok(body), descriptors))) => Ok((body, descriptors)),
            Ok(Ok((Err(error), _))) => Err(error.into()),
            Ok(Err(_)) => Err(self.lost()),
            Err(_) => {
                lock(&self.waiting).replies.remove(&seq);
                Err(RuntimeError::DeadlineExceeded {
                    what: format!("wasm worker {}", self.worker),
                    after: REPLY_TIMEOUT,
                })
            }
        }
    }

    /// A number for an exec, and where its exit will come.
    pub(crate) fn register_exec(&self) -> (u64, oneshot::Receiver<(i32, Option<String>)>) {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        waiting.next += 1;
        let exec = waiting.next;
        if !waiting.is_closed {
            waiting.execs.insert(exec, sender);
        }
        (exec, receiver)
    }
}

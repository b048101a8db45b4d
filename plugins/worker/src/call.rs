//! One call: a fresh instance, what it may use, and how its end is told.

use std::{
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;
use wasmtime::Store;
use wherry_plugin_host::protocol::{self, Call, Ended, Fault, Limits, Said};

use crate::{
    bindings::wherry::plugin::outcomes::{Outcome, ProbeError, Verdict},
    confine::reserve,
    deadlines::Deadlines,
    limits::{Limiter, MemoryExceeded},
    plugin::{Plugin, Pre},
    populate, provision,
    state::{Agent, State},
    tls::NodeRoots,
};

/// Counts the CPU time of a future, and ends it past a limit.
pub(crate) struct Metered<F> {
    inner: Pin<Box<F>>,
    spent: Duration,
    max: Duration,
}

/// The future took more CPU time than it may.
pub(crate) struct Exceeded;

fn thread_cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

impl<F: Future> Metered<F> {
    pub(crate) fn new(inner: F, max: Duration) -> Self {
        Self {
            inner: Box::pin(inner),
            spent: Duration::ZERO,
            max,
        }
    }

    /// CPU time so far.
    pub(crate) fn spent(&self) -> Duration {
        self.spent
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = Result<F::Output, Exceeded>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let begun = thread_cpu_time();
        let polled = self.inner.as_mut().poll(context);
        self.spent += thread_cpu_time().saturating_sub(begun);
        match polled {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if self.spent > self.max => Poll::Ready(Err(Exceeded)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Makes a call and answers how it ended. `descriptor` is what came along: a populator's staging directory.
pub(crate) async fn run(
    plugin: &Plugin,
    call: Call,
    descriptor: Option<OwnedFd>,
    shared: (Arc<NodeRoots>, Arc<Deadlines>),
    agent: Agent,
) -> Ended {
    let limits = plugin.limits;
    let time = call.timeout.min(limits.wall_time_max);
    let deadlines = Arc::clone(&shared.1);
    let volume = call.volume.map(|volume| *volume);
    let expand = volume.as_ref().and_then(|volume| volume.expand);
    let provision = volume.as_ref().and_then(|volume| volume.provision.clone());
    let (mut store, mut kept) = match plugin.kept.take() {
        Some((mut store, instance)) => {
            store.data_mut().begin_again(call.target, time, agent);
            (store, Some(instance))
        }
        None => {
            let limiter = Limiter::new(limits.memory_bytes_max);
            let mut state = State::new(call.target, time, limiter, shared, Some(agent));
            state.volume = volume.map(|volume| populate::Volume::new(volume, descriptor));
            let mut store = Store::new(&plugin.engine, state);
            store.limiter(|state| &mut state.limiter);
            store.epoch_deadline_async_yield_and_update(1);
            (store, None)
        }
    };
    store.set_epoch_deadline(1);
    let mut called = None;
    let guest = async {
        if let Some(provision) = &provision {
            return provision::call(plugin.provisioner.as_ref(), &mut store, provision).await;
        }
        match &plugin.pre {
            Pre::Probe(pre) => {
                let instance = match kept.take() {
                    Some(instance) => instance,
                    None => pre.instantiate_async(&mut store).await?,
                };
                let said = instance.call_check(&mut store, &call.arguments).await?;
                called = Some(instance);
                Ok(said.map(outcome).map_err(declared))
            }
            Pre::Populator(pre) => {
                let current = store
                    .data()
                    .volume
                    .as_ref()
                    .and_then(populate::Volume::current);
                let instance = pre.instantiate_async(&mut store).await?;
                let said = instance
                    .call_populate(&mut store, current.as_deref())
                    .await?;
                Ok(said.map(populate::said).map_err(populate::declared))
            }
            Pre::Mounter { pre, expanding } => match (expand, expanding) {
                (None, _) => {
                    let instance = pre.instantiate_async(&mut store).await?;
                    let said = instance.call_mount(&mut store).await?;
                    Ok(said.map(|()| Said::Done).map_err(populate::declared))
                }
                (Some(bytes), Some(pre)) => {
                    let instance = pre.instantiate_async(&mut store).await?;
                    let said = instance.call_expand(&mut store, bytes).await?;
                    Ok(said.map(Said::Expanded).map_err(populate::declared))
                }
                (Some(_), None) => Ok(Err(Fault::CannotExpand)),
            },
            // Its instances are kept, by a worker of their own.
            Pre::Filesystem(_) => Ok(Err(Fault::Other("a file system is not called so".into()))),
        }
    };
    let mut metered = Metered::new(guest, limits.cpu_time_max);
    let end = Instant::now() + time + reserve(time);
    let result = match deadlines.within(end, &mut metered).await {
        Some(Ok(Ok(said))) => said,
        Some(Ok(Err(error))) => Err(fault(&error, limits)),
        Some(Err(Exceeded)) => Err(Fault::CpuTimeExceeded {
            max: limits.cpu_time_max,
        }),
        None => Err(Fault::TimedOut { after: time }),
    };
    let cpu_time = metered.spent;
    drop(metered);
    let state = store.data_mut();
    let ended = Ended {
        result,
        cpu_time,
        memory_bytes_peak: state.limiter.bytes(),
        log: std::mem::take(&mut state.log),
        log_dropped: state.log_dropped,
        denied: state.denied.take().map(protocol::cut),
    };
    if let Some(instance) = called {
        plugin.kept.put(store, instance);
    }
    ended
}

fn outcome(outcome: Outcome) -> Said {
    Said::Outcome(protocol::Outcome {
        verdict: match outcome.verdict {
            Verdict::Success => protocol::Verdict::Success,
            Verdict::Failure => protocol::Verdict::Failure,
            Verdict::Unknown => protocol::Verdict::Unknown,
        },
        message: protocol::cut(outcome.message),
    })
}

fn declared(error: ProbeError) -> Fault {
    match error {
        ProbeError::InvalidArguments(text) => Fault::InvalidArguments(protocol::cut(text)),
        ProbeError::Denied(text) => Fault::Denied(protocol::cut(text)),
        ProbeError::Other(text) => Fault::Other(protocol::cut(text)),
    }
}

pub(crate) fn fault(error: &wasmtime::Error, limits: Limits) -> Fault {
    if error.downcast_ref::<MemoryExceeded>().is_some() {
        return Fault::MemoryExceeded {
            bytes_max: limits.memory_bytes_max,
        };
    }
    // The backtrace comes first; what happened is its root.
    Fault::Trap(protocol::cut(error.root_cause().to_string()))
}

//! The one effect that is under way, and what follows when it ends.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, JoinHandle},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument, error, warn};
use wherry_runtime_api::PodSandbox;

use super::{
    super::{
        grace_period,
        prepare::{self, PrepareError, Prepared},
        restart::Plan,
        start::Starter,
        state::{Effect, PodEvent, PodState},
        status::Verdict,
        stop,
    },
    Worker,
    resize::Resize,
};
use crate::{events::Kind, pod};

/// First and longest pause between tries to make a sandbox.
const PREPARE_RETRY_MIN: Duration = Duration::from_millis(500);
const PREPARE_RETRY_MAX: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Prepare,
    Act,
    Stop,
    Release,
    CleanUp,
}

pub(super) enum Outcome {
    Prepared(Box<Result<Prepared, PrepareError>>),
    Done,
}

pub(super) struct InFlight {
    pub(super) doing: Doing,
    pub(super) cancel: CancellationToken,
    pub(super) task: AbortOnDropHandle<Outcome>,
}

pub(super) async fn ended(in_flight: &mut Option<InFlight>) -> (Doing, Result<Outcome, JoinError>) {
    match in_flight {
        Some(effect) => (effect.doing, (&mut effect.task).await),
        None => std::future::pending().await,
    }
}

/// Spawns within the pod's span.
pub(super) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(future.in_current_span())
}

impl Worker {
    pub(super) fn act(&mut self, sandbox: Arc<PodSandbox>, plan: Plan, resize: Option<Resize>) {
        let cancel = CancellationToken::new();
        let starter = Starter {
            context: Arc::clone(&self.context),
            pod: Arc::clone(&self.pod),
            sandbox,
            fixed_handler: self.record.fixed_handler.clone(),
            volumes: self.volumes.clone(),
            cancel: cancel.clone(),
            reports: self.reporter.clone(),
        };
        let kills: Vec<_> = plan
            .kill
            .iter()
            .filter_map(|(id, doom)| {
                Some((
                    self.containers.iter().find(|c| c.id == *id)?.clone(),
                    doom.clone(),
                ))
            })
            .collect();
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        let task = spawn(async move {
            if let Some(resize) = resize {
                resize.run(&starter).await;
            }
            let stops = kills.iter().map(|(status, doom)| {
                let grace = doom.grace_period.unwrap_or_else(|| grace_period(&pod));
                let deadline = Instant::now() + grace;
                stop::stop_container(&context, &pod, status, deadline, Some(&doom.why))
            });
            for error in futures::future::join_all(stops)
                .await
                .into_iter()
                .filter_map(Result::err)
            {
                warn!(pod = pod::name(&pod), %error, "Container not killed");
            }
            starter.run(plan.start).await;
            Outcome::Done
        });
        self.in_flight = Some(InFlight {
            doing: Doing::Act,
            cancel,
            task: AbortOnDropHandle::new(task),
        });
    }

    pub(super) fn start(&mut self, effect: Effect) {
        if let Some(in_flight) = &self.in_flight {
            match (in_flight.doing, &effect) {
                // A stop gives way to a stop with a nearer deadline.
                (Doing::Stop, Effect::Stop { .. }) => self.in_flight = None,
                (Doing::Prepare, Effect::Prepare)
                | (Doing::Release, Effect::Release)
                | (Doing::CleanUp, Effect::CleanUp) => {
                    return;
                }
                _ => {
                    in_flight.cancel.cancel();
                    self.queued = Some(effect);
                    return;
                }
            }
        }
        let cancel = CancellationToken::new();
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        let attempt = self.next_sandbox_attempt();
        let (doing, task): (_, JoinHandle<Outcome>) = match effect {
            Effect::Prepare => (
                Doing::Prepare,
                spawn(async move {
                    Outcome::Prepared(Box::new(prepare::prepare(&context, &pod, attempt).await))
                }),
            ),
            Effect::Stop { deadline } => (
                Doing::Stop,
                spawn(async move {
                    stop::stop_all(&context, &pod, deadline).await;
                    Outcome::Done
                }),
            ),
            Effect::Release => (
                Doing::Release,
                spawn(async move {
                    stop::release(&context, &pod).await;
                    Outcome::Done
                }),
            ),
            Effect::CleanUp => (Doing::CleanUp, {
                let (state, whole) = (self.saving.take(), self.pod_saving.take());
                spawn(async move {
                    // What is being written must not come back after the directory is gone.
                    if let Some(state) = state {
                        let _ = state.await;
                    }
                    if let Some(whole) = whole {
                        let _ = whole.await;
                    }
                    stop::remove(&context, &pod).await;
                    Outcome::Done
                })
            }),
        };
        self.in_flight = Some(InFlight {
            doing,
            cancel,
            task: AbortOnDropHandle::new(task),
        });
    }

    pub(super) fn next_sandbox_attempt(&self) -> u32 {
        let sandboxes = self.context.actual.get(&self.uid).sandboxes;
        let last = sandboxes
            .iter()
            .map(|sandbox| sandbox.config.attempt + 1)
            .max();
        last.unwrap_or(0).max(self.record.sandbox_attempts)
    }

    pub(super) fn ended(&mut self, (doing, outcome): (Doing, Result<Outcome, JoinError>)) {
        self.in_flight = None;
        while let Ok(report) = self.reports.try_recv() {
            self.report(report);
        }
        // Hooks run in effects and end with them.
        self.in_hook.clear();
        match (doing, outcome) {
            (_, Err(error)) => {
                // A bug; the pod is not the one to pay for it.
                error!(pod = pod::name(&self.pod), ?doing, %error, "Effect ended early");
                self.retry_at = Some(Instant::now() + PREPARE_RETRY_MAX);
            }
            (_, Ok(Outcome::Prepared(result))) => match *result {
                Ok(prepared) => self.prepared(prepared),
                Err(error) => self.prepare_failed(&error),
            },
            (Doing::Stop, Ok(Outcome::Done)) => self.event(PodEvent::Stopped),
            (Doing::CleanUp, Ok(Outcome::Done)) => self.cleaned_up(),
            (Doing::Prepare | Doing::Act | Doing::Release, Ok(Outcome::Done)) => {}
        }
        if let Some(effect) = self.queued.take() {
            self.start(effect);
        }
    }

    pub(super) fn prepared(&mut self, prepared: Prepared) {
        self.prepare_failures = 0;
        self.retry_at = None;
        self.is_recovering = false;
        self.record.sandbox_attempts = prepared.sandbox.config.attempt + 1;
        self.record.fixed_handler = prepared.fixed_handler;
        if prepared.volumes.is_some() {
            // Made with the limits of now.
            self.record.pod_limits = None;
        }
        if prepared.volumes.is_some() {
            self.volumes = prepared.volumes;
        }
        self.event(PodEvent::SandboxReady(prepared.sandbox));
    }

    pub(super) fn prepare_failed(&mut self, error: &PrepareError) {
        if matches!(self.state, PodState::Preparing) {
            if error.is_final {
                self.refuse(error.reason, &error.message);
                return;
            }
            prepare::tell(&self.context, &self.pod, error);
        }
        let pause = PREPARE_RETRY_MIN
            .saturating_mul(1 << self.prepare_failures.min(8))
            .min(PREPARE_RETRY_MAX);
        self.prepare_failures += 1;
        self.retry_at = Some(Instant::now() + pause);
    }

    /// The node does not take the pod after all.
    pub(super) fn refuse(&mut self, reason: &'static str, why: &str) {
        let verdict = Verdict {
            reason: reason.into(),
            message: format!("Pod was rejected: {why}"),
            is_disruption: false,
        };
        self.context
            .event(&self.pod, Kind::Warning, reason, why.to_owned());
        self.record.verdict = Some(verdict);
        self.record.is_terminal = true;
        self.event(PodEvent::Reject);
    }

    pub(super) fn cleaned_up(&mut self) {
        // The last status goes out before the object does.
        self.publish();
        self.context.publisher.delete(&self.uid);
        self.event(PodEvent::CleanedUp);
    }
}

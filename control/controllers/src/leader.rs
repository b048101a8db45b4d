//! Which of several control planes runs the controllers: whoever holds a Lease.
//!
//! ```text
//!  follow ── nobody renewed for its duration ──▶ acquire ──▶ lead: renew every retry period
//!     ▲                                                          │ not renewed within the deadline, or taken
//!     └───────────── the controllers have ended ◀── told to stop ┘
//! ```
//!
//! As client-go's leader election: a lease's times are another machine's clock, so only how long *this* process has seen
//! it unchanged counts. A leader that cannot renew stops before anybody else may begin.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long a lease stands without being renewed. client-go's default is 15 s; less, so that another takes over within
/// those 15 s.
const LEASE_DURATION: Duration = Duration::from_secs(10);
/// A leader that could not renew for so long stops.
const RENEW_DEADLINE: Duration = Duration::from_secs(7);
/// Between looks and renewals.
const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// A place in the election.
#[derive(Clone)]
pub struct Candidate {
    /// Reaches the API server.
    pub client: Client,
    /// The Lease's name, in `kube-system`.
    pub lease: String,
    /// Who this is; no two candidates share it.
    pub identity: String,
}

/// The lease as this process saw it last change.
#[derive(Clone, Debug, PartialEq)]
struct Observed {
    spec: LeaseSpec,
    at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// There is none: make it.
    Create,
    /// Nobody holds it, or whoever did is gone: take it.
    Take,
    /// It is ours.
    Renew,
    /// Somebody else's, and alive.
    Wait,
}

fn decide(observed: Option<&Observed>, identity: &str, now: Instant) -> Decision {
    let Some(Observed { spec, at }) = observed else {
        return Decision::Create;
    };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder == identity {
        return Decision::Renew;
    }
    let seconds = spec.lease_duration_seconds.unwrap_or(0).max(0);
    let duration = Duration::from_secs(seconds.unsigned_abs().into());
    if holder.is_empty() || now.duration_since(*at) > duration {
        Decision::Take
    } else {
        Decision::Wait
    }
}

impl Candidate {
    /// Runs `work` whenever this candidate leads, until shutdown. `work` is told to stop when the lease is lost, and
    /// the next election begins when it has ended.
    pub async fn run<F: Future<Output = ()>>(
        &self,
        shutdown: CancellationToken,
        mut work: impl FnMut(CancellationToken) -> F,
    ) {
        let mut election = Election {
            api: Api::namespaced(self.client.clone(), "kube-system"),
            candidate: self,
            observed: None,
            current: None,
        };
        while !shutdown.is_cancelled() {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = election.win() => {}
            }
            info!(lease = self.lease, identity = self.identity, "Leading");
            let stop = shutdown.child_token();
            let mut work = std::pin::pin!(work(stop.clone()));
            tokio::select! {
                () = &mut work => {}
                () = election.keep() => {
                    warn!(lease = self.lease, identity = self.identity, "The lease is lost");
                    stop.cancel();
                    work.await;
                }
            }
            election.release().await;
        }
    }
}

struct Election<'a> {
    api: Api<Lease>,
    candidate: &'a Candidate,
    observed: Option<Observed>,
    current: Option<Lease>,
}

impl Election<'_> {
    /// Answers when the lease is ours.
    async fn win(&mut self) {
        loop {
            match self.step().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => warn!(lease = self.candidate.lease, %error, "Election"),
            }
            sleep(RETRY_PERIOD).await;
        }
    }

    /// Answers when the lease is lost, or may be lost before long.
    async fn keep(&mut self) {
        let mut renewed_at = Instant::now();
        loop {
            sleep(RETRY_PERIOD).await;
            let left = RENEW_DEADLINE.saturating_sub(renewed_at.elapsed());
            match timeout(left, self.step()).await {
                Ok(Ok(true)) => renewed_at = Instant::now(),
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => {
                    warn!(lease = self.candidate.lease, %error, "The lease could not be renewed");
                }
            }
        }
    }

    /// Looks, and takes or renews if that is due; answers whether the lease is ours.
    async fn step(&mut self) -> Result<bool, kube::Error> {
        let lease = self.api.get_opt(&self.candidate.lease).await?;
        self.observe(lease);
        let decision = decide(
            self.observed.as_ref(),
            &self.candidate.identity,
            Instant::now(),
        );
        if decision == Decision::Wait {
            return Ok(false);
        }
        let lease = self.written(decision);
        let parameters = PostParams::default();
        let written = match decision {
            Decision::Create => self.api.create(&parameters, &lease).await,
            _ => {
                self.api
                    .replace(&self.candidate.lease, &parameters, &lease)
                    .await
            }
        };
        match written {
            Ok(lease) => {
                self.observe(Some(lease));
                Ok(true)
            }
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn observe(&mut self, lease: Option<Lease>) {
        let spec = lease.as_ref().and_then(|lease| lease.spec.clone());
        let is_news = self.observed.as_ref().map(|observed| &observed.spec) != spec.as_ref();
        if is_news {
            self.observed = spec.map(|spec| Observed {
                spec,
                at: Instant::now(),
            });
        }
        self.current = lease;
    }

    /// The lease with us as its holder.
    fn written(&self, decision: Decision) -> Lease {
        let mut lease = self.current.clone().unwrap_or_default();
        lease.metadata.name = Some(self.candidate.lease.clone());
        let now = MicroTime(Timestamp::now());
        let spec = lease.spec.get_or_insert_default();
        if decision != Decision::Renew {
            let changes = spec.lease_transitions.map_or(0, |changes| changes + 1);
            spec.lease_transitions = Some(changes);
            spec.acquire_time = Some(now.clone());
        }
        spec.holder_identity = Some(self.candidate.identity.clone());
        spec.lease_duration_seconds = i32::try_from(LEASE_DURATION.as_secs()).ok();
        spec.renew_time = Some(now);
        lease
    }

    /// Lets others begin at once. Not possible: they wait for the lease's end.
    async fn release(&mut self) {
        let Some(mut lease) = self.current.take() else {
            return;
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.candidate.identity) {
            return;
        }
        spec.holder_identity = Some(String::new());
        let parameters = PostParams::default();
        let release = self.api.replace(&self.candidate.lease, &parameters, &lease);
        if !matches!(timeout(RETRY_PERIOD, release).await, Ok(Ok(_))) {
            info!(lease = self.candidate.lease, "The lease was not given back");
        }
        self.observed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lease_that_nobody_renews_is_taken() {
        let start = Instant::now();
        let held = |holder: &str| Observed {
            spec: LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(10),
                ..LeaseSpec::default()
            },
            at: start,
        };
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(decide(None, "me", start), Decision::Create);
        assert_eq!(decide(Some(&held("me")), "me", after(60)), Decision::Renew);
        assert_eq!(decide(Some(&held("you")), "me", after(10)), Decision::Wait);
        assert_eq!(decide(Some(&held("you")), "me", after(11)), Decision::Take);
        assert_eq!(decide(Some(&held("")), "me", start), Decision::Take);
    }

    #[test]
    fn a_leader_stops_before_anybody_else_may_begin() {
        assert!(RENEW_DEADLINE + RETRY_PERIOD < LEASE_DURATION);
        assert!(LEASE_DURATION + RETRY_PERIOD < Duration::from_secs(15));
    }
}

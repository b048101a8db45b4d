//! Gives pods without a node one.
//!
//! ```text
//!  watch nodes, pods, …  ─▶ State ◀─ assume ────────┐
//!  watch pods ─▶ Queue ─ pop ─▶ schedule (pure) ─▶ (prepare claims ─▶) bind      ─▶ API
//!                  ▲                └ no node ──▶ preempt (pure) ─▶ condition, event, victims ─▶ API
//!                  └────── outcome ─────────────────┘
//! ```
//!
//! One task owns everything that decides; writes run beside it, a bounded number at once. A pod is
//! counted in on its node before it is bound, and out again if binding fails.

mod ask;
mod claims;
mod counts;
mod decider;
mod filter;
mod news;
mod node;
mod pod;
mod preemption;
mod queue;
mod resources;
mod score;
mod state;
mod term;
#[cfg(test)]
mod testing;
mod write;

pub use decider::Decider;
pub(crate) use filter::{is_tolerated, matches_term};
pub(crate) use pod::claims_of;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::BoxStream, stream::SelectAll};
use kube::Client;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    events::{Note, Recorder},
    persistent_volume::view::SELECTED_NODE,
    retry,
    workqueue::Key,
};

use self::{
    claims::Step,
    filter::Rejections,
    news::{KINDS, Listing, News},
    pod::PodInfo,
    queue::Queue,
    state::{Placement, State},
    write::ClaimWrite,
};

/// Bindings and conditions that are written at once.
const WRITES_MAX: usize = 64;

/// The longest a write is tried before the pod is queued again.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pods that are decided on before news is heard again.
const BATCH: usize = 64;

/// How long a pod's claims may take to be bound (`VolumeBindingArgs.bindTimeoutSeconds`).
const CLAIMS_TIMEOUT: Duration = Duration::from_secs(600);

/// The scheduler's state and its ways out.
pub(crate) struct Scheduler {
    name: String,
    client: Client,
    recorder: Recorder,
    state: State,
    queue: Queue,
    writes: JoinSet<(String, Outcome)>,
    /// Whether there has been news since the unschedulable pods were looked at.
    has_news: bool,
    listings: [Listing; KINDS],
    /// Pods that have a node and wait for their claims, by uid.
    binding: HashMap<String, Binding>,
}

/// A pod that waits for its claims to be bound.
#[derive(Debug)]
struct Binding {
    pod: PodInfo,
    node: String,
    claims: Vec<Key>,
    until: Instant,
    /// What has to be written is written.
    is_prepared: bool,
    /// Claims that have been seen to name the node: naming it no more means that it was of no use.
    seen: Vec<Key>,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Bound,
    /// Its claims are being bound.
    Prepared,
    /// Binding failed; the pod is to be tried again.
    NotBound,
    /// The pod is not there any more, or somebody else has bound it: the watch will tell.
    Overtaken,
    /// It was said that no node can take the pod.
    Reported,
    /// The pods that were to make room could not be stopped.
    NotPreempted,
}

/// Schedules pods until shutdown.
pub(crate) async fn run(
    client: Client,
    name: String,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let news = news::listen(&client);
    let scheduler = Scheduler {
        name,
        client,
        recorder,
        state: State::default(),
        queue: Queue::default(),
        writes: JoinSet::new(),
        has_news: false,
        listings: Default::default(),
        binding: HashMap::new(),
    };
    scheduler.run(news, shutdown).await;
}

impl Scheduler {
    async fn run(
        mut self,
        mut news: SelectAll<BoxStream<'static, News>>,
        shutdown: CancellationToken,
    ) {
        loop {
            self.decide();
            let can_go_on = self.queue.is_ready() && self.can_decide();
            let of_claims = self.binding.values().map(|binding| binding.until).min();
            let wait_ends = self.queue.next_wait_ends().filter(|_| self.can_decide());
            let wait_ends = wait_ends.into_iter().chain(of_claims).min();
            tokio::select! {
                () = shutdown.cancelled() => break,
                change = news.next() => match change {
                    Some(change) => change(&mut self),
                    None => break,
                },
                Some(done) = self.writes.join_next() => match done {
                    Ok((uid, outcome)) => self.written(&uid, outcome),
                    Err(error) => warn!(%error, "Write ended badly"),
                },
                () = sleep_until(wait_ends), if wait_ends.is_some() => self.look_at_bindings(),
                () = tokio::task::yield_now(), if can_go_on => {}
            }
        }
        // What has been decided is written; a new scheduler would decide it again anyway.
        while self.writes.join_next().await.is_some() {}
    }

    fn can_decide(&self) -> bool {
        self.listings.iter().all(|listing| listing.is_complete) && self.writes.len() < WRITES_MAX
    }

    /// Decides on some of the pods that are due.
    fn decide(&mut self) {
        if std::mem::take(&mut self.has_news) {
            self.queue.news(Instant::now());
        }
        for _ in 0..BATCH {
            if !self.can_decide() {
                return;
            }
            let Some(pod) = self.queue.pop(Instant::now()) else {
                return;
            };
            match self.state.schedule(&pod) {
                Ok(placement) => {
                    self.has_news |= placement.is_waited_for;
                    if placement.steps.is_empty() {
                        self.bind(pod, placement.node);
                    } else {
                        self.prepare(pod, placement);
                    }
                }
                Err(rejections) => self.reject(pod, &rejections),
            }
        }
    }

    fn bind(&mut self, pod: PodInfo, node: String) {
        let (client, recorder, component) = (
            self.client.clone(),
            self.recorder.clone(),
            self.name.clone(),
        );
        self.writes.spawn(async move {
            let namespace = &pod.needs.namespace;
            let bound = timeout(WRITE_TIMEOUT, write::bind(&client, &pod, &node)).await;
            let outcome = outcome(&pod, "bound", bound, Outcome::Bound);
            if outcome == Outcome::Bound {
                debug!(pod = %pod.name, %namespace, %node, "Pod scheduled");
                let message = format!("Successfully assigned {namespace}/{} to {node}", pod.name);
                recorder.record(note(&pod, "Normal", "Scheduled", message, component));
            }
            (pod.uid, outcome)
        });
    }

    /// Has a pod's claims bound before the pod is.
    fn prepare(&mut self, pod: PodInfo, placement: Placement) {
        let Placement { node, steps, .. } = placement;
        let claims = &self.state.claims;
        let version = |volume: &String| {
            let volume = claims.volumes.get(volume);
            volume.map_or_else(String::new, |volume| volume.resource_version.clone())
        };
        let claim_uid = |claim: &Key| {
            let claim = claims.claims.get(claim);
            claim.map_or_else(String::new, |claim| claim.uid.clone())
        };
        let writes: Vec<ClaimWrite> = (steps.iter())
            .map(|step| match step {
                Step::Bind { claim, volume } => ClaimWrite::Bind {
                    claim: claim.clone(),
                    claim_uid: claim_uid(claim),
                    volume: volume.clone(),
                    volume_version: version(volume),
                },
                Step::Provision { claim } => ClaimWrite::Provision {
                    claim: claim.clone(),
                },
            })
            .collect();
        let (client, uid) = (self.client.clone(), pod.uid.clone());
        let binding = Binding {
            pod: pod.clone(),
            node: node.clone(),
            claims: steps.iter().map(|step| step.claim().clone()).collect(),
            until: Instant::now() + CLAIMS_TIMEOUT,
            is_prepared: false,
            seen: Vec::new(),
        };
        self.binding.insert(uid, binding);
        self.writes.spawn(async move {
            for write in &writes {
                let prepared = timeout(WRITE_TIMEOUT, write::prepare(&client, write, &node)).await;
                // A volume that is another's by now is no reason to give the pod up.
                let outcome = match outcome(&pod, "prepared", prepared, Outcome::Prepared) {
                    Outcome::Overtaken => Outcome::NotBound,
                    outcome => outcome,
                };
                if outcome != Outcome::Prepared {
                    return (pod.uid, outcome);
                }
            }
            (pod.uid, Outcome::Prepared)
        });
    }

    /// Binds pods whose claims are bound, and gives up on those whose claims will not be.
    fn look_at_bindings(&mut self) {
        let now = Instant::now();
        let (mut ready, mut failed) = (Vec::new(), Vec::new());
        for (uid, binding) in &mut self.binding {
            if !binding.is_prepared {
                continue;
            }
            let (mut is_bound, mut is_lost) = (true, binding.until <= now);
            for key in &binding.claims {
                match self.state.claims.claims.get(key) {
                    None => is_lost = true,
                    Some(claim) if claim.is_bound() => {}
                    Some(claim) => {
                        is_bound = false;
                        let is_named = claim.annotation(SELECTED_NODE) == binding.node;
                        if is_named && !binding.seen.contains(key) {
                            binding.seen.push(key.clone());
                        }
                        is_lost |= !is_named && binding.seen.contains(key);
                    }
                }
            }
            if is_bound && !is_lost {
                ready.push(uid.clone());
            } else if is_lost {
                failed.push(uid.clone());
            }
        }
        for uid in ready {
            if let Some(binding) = self.binding.remove(&uid) {
                self.bind(binding.pod, binding.node);
            }
        }
        for uid in failed {
            if let Some(binding) = self.binding.remove(&uid) {
                let namespace = &binding.pod.needs.namespace;
                warn!(pod = %binding.pod.name, %namespace, "Claims not bound");
                self.give_back(&uid);
            }
        }
    }

    /// No node takes a pod: either others make room, or it waits.
    fn reject(&mut self, pod: PodInfo, rejections: &Rejections) {
        let mut message = rejections.message();
        match self.state.preempt(&pod, rejections) {
            Ok(preemption) => {
                for (uid, _) in &preemption.withdrawn {
                    self.state.withdraw(uid);
                }
                self.state.nominate(&pod, &preemption.node);
                debug!(pod = %pod.name, namespace = %pod.needs.namespace, node = %preemption.node,
                    victims = preemption.victims.len(), "Pods make room");
                self.note_failure(&pod, &message);
                let (client, recorder) = (self.client.clone(), self.recorder.clone());
                let name = self.name.clone();
                self.writes.spawn(async move {
                    let written = async {
                        write::preempt(&client, &recorder, &name, &pod, &preemption).await?;
                        write::report(&client, &pod, &message, Some(&preemption.node)).await
                    };
                    let written = timeout(WRITE_TIMEOUT, written).await;
                    let outcome = match outcome(&pod, "given room", written, Outcome::Reported) {
                        Outcome::Reported => Outcome::Reported,
                        _ => Outcome::NotPreempted,
                    };
                    (pod.uid, outcome)
                });
            }
            Err(why) => {
                if !why.is_empty() {
                    message = format!("{message} {why}");
                }
                let waits = self.state.is_waiting_for_room(&pod);
                let had_room = !waits && self.state.withdraw(&pod.uid);
                self.note_failure(&pod, &message);
                if pod.reported.as_ref() == Some(&message) && !had_room {
                    self.queue.unschedulable(&pod.uid);
                    return;
                }
                let nominated = self.state.nominated_node(&pod.uid).map(str::to_owned);
                debug!(pod = %pod.name, namespace = %pod.needs.namespace, reason = %message, "Pod not scheduled");
                let client = self.client.clone();
                self.writes.spawn(async move {
                    let report = write::report(&client, &pod, &message, nominated.as_deref());
                    let written = timeout(WRITE_TIMEOUT, report).await;
                    outcome(&pod, "told why", written, Outcome::Reported);
                    (pod.uid, Outcome::Reported)
                });
            }
        }
    }

    fn note_failure(&self, pod: &PodInfo, message: &str) {
        let component = self.name.clone();
        let message = message.to_owned();
        let note = note(pod, "Warning", "FailedScheduling", message, component);
        self.recorder.record(note);
    }

    fn written(&mut self, uid: &str, outcome: Outcome) {
        match outcome {
            // The queue forgets the pod when the watch shows it with its node.
            Outcome::Bound => {}
            Outcome::Prepared => {
                if let Some(binding) = self.binding.get_mut(uid) {
                    binding.is_prepared = true;
                }
                self.look_at_bindings();
            }
            Outcome::NotBound | Outcome::Overtaken => {
                self.binding.remove(uid);
                self.give_back(uid);
            }
            Outcome::Reported => self.queue.unschedulable(uid),
            Outcome::NotPreempted => {
                self.state.withdraw(uid);
                self.queue.retry(uid);
            }
        }
    }

    /// What a pod was to take is free again, and the pod looks again after a while.
    fn give_back(&mut self, uid: &str) {
        self.state.release(uid);
        self.has_news = true;
        self.queue.retry(uid);
    }

    fn pod_waits(&mut self, pod: PodInfo) {
        let (uid, nominated) = (pod.uid.clone(), pod.nominated.clone());
        if self.queue.update(pod.clone())
            && let Some(node) = nominated
            && self.state.nomination(&uid).is_none()
        {
            self.state.nominate(&pod, &node);
        }
    }

    fn forget_pod(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.binding.remove(uid);
        self.has_news |= self.state.withdraw(uid);
        self.has_news |= self.state.release(uid);
    }
}

/// What a write's end means for its pod.
fn outcome(
    pod: &PodInfo,
    what: &str,
    written: Result<kube::Result<()>, tokio::time::error::Elapsed>,
    well: Outcome,
) -> Outcome {
    let (name, namespace) = (&pod.name, &pod.needs.namespace);
    match written {
        Ok(Ok(())) => well,
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Outcome::Overtaken,
        Ok(Err(error)) => {
            warn!(pod = %name, %namespace, error = %retry::text(&error), "Pod not {what}");
            Outcome::NotBound
        }
        Err(_) => {
            warn!(pod = %name, %namespace, "Pod not {what} in time");
            Outcome::NotBound
        }
    }
}

async fn sleep_until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

fn note(
    pod: &PodInfo,
    type_: &'static str,
    reason: &'static str,
    message: String,
    component: String,
) -> Note {
    let key = Key::new(&pod.needs.namespace, &pod.name);
    Note {
        object: write::reference(&key, &pod.uid, Some(pod.resource_version.clone())),
        type_,
        reason,
        message,
        component,
    }
}

#[cfg(test)]
mod tests;

//! Keeps a running pod's volumes up to date.
//!
//! ```text
//!  watch of a ConfigMap or Secret ─┐
//!  the pod's labels, annotations ──┼─▶ refresh ─▶ files change all at once
//!  a token's renewal ──────────────┘
//! ```
//!
//! One task for each pod that has anything to follow, and one for what plugins write ([`renew`]). Where a watch is not to be had (not allowed,
//! not there yet) the objects are asked for by the period instead.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug};
use wherry_volumes::{Changes, Refreshed};

use super::renew;
use crate::{context::Context, events::Kind, objects, pod};

/// Pods refreshed at a time, on the whole node: an object that a thousand pods show changes a
/// thousand volumes, and nothing else should wait for that.
static TURNS: Semaphore = Semaphore::const_new(4);
/// Pause before the first look: what a pod starts with was written a moment ago.
const SETTLE: Duration = Duration::from_secs(1);
/// Pauses after a refresh that failed, and between tries to renew a token that is due.
const RETRY_MIN: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(120);
const TOKEN_RETRY: Duration = Duration::from_secs(30);
/// Longest sleep for a token, in case the wall clock is set or the machine sleeps.
const TOKEN_WAIT_MAX: Duration = Duration::from_secs(3600);

/// A pod's volumes are kept up to date as long as this is kept.
pub(crate) struct Following {
    pod: watch::Sender<Arc<Pod>>,
    changes: Changes,
    _task: Option<AbortOnDropHandle<()>>,
    _renewing: Option<AbortOnDropHandle<()>>,
}

impl Following {
    /// Follows what the pod's volumes show; `None` if nothing of it ever changes.
    pub(crate) fn start(context: &Arc<Context>, pod: &Arc<Pod>) -> Option<Self> {
        let changes = Changes::of(pod);
        if changes.is_empty() {
            return None;
        }
        let (sender, news) = watch::channel(Arc::clone(pod));
        // What plugins write can take its time: nothing else waits for it.
        let renewing = changes
            .plugins
            .then(|| renew::run(Arc::clone(context), news.clone()))
            .map(|task| AbortOnDropHandle::new(tokio::spawn(task.in_current_span())));
        let has_own = changes.own_fields || changes.tokens || !changes.objects.is_empty();
        let task = has_own
            .then(|| run(Arc::clone(context), news, changes.clone()))
            .map(|task| AbortOnDropHandle::new(tokio::spawn(task.in_current_span())));
        Some(Self {
            pod: sender,
            changes,
            _task: task,
            _renewing: renewing,
        })
    }

    /// Takes the pod's newest version.
    pub(crate) fn set(&self, pod: &Arc<Pod>) {
        self.pod.send_if_modified(|before| {
            if Arc::ptr_eq(before, pod) {
                return false;
            }
            let shown = |pod: &Pod| {
                let metadata = &pod.metadata;
                (metadata.labels.clone(), metadata.annotations.clone())
            };
            let is_news =
                self.changes.own_fields && (shown(before) != shown(pod) || before.spec != pod.spec);
            *before = Arc::clone(pod);
            is_news
        });
    }
}

async fn run(context: Arc<Context>, mut pods: watch::Receiver<Arc<Pod>>, changes: Changes) {
    let namespace = pod::namespace(&pods.borrow()).to_owned();
    let mut objects: Vec<objects::Following> = changes
        .objects
        .iter()
        .filter_map(|object| context.objects.follow(&namespace, object))
        .collect();
    let mut at = Some(Instant::now() + SETTLE);
    let mut failures = 0u32;
    loop {
        tokio::select! {
            () = due(at) => {}
            changed = pods.changed() => if changed.is_err() { return },
            () = any(&mut objects) => {}
        }
        let pod = Arc::clone(&pods.borrow_and_update());
        let refreshed = {
            let _turn = TURNS.acquire().await;
            context.volumes.refresh(&pod, &context.pod_context()).await
        };
        let next = match refreshed {
            Ok(refreshed) => {
                failures = 0;
                if refreshed.changed {
                    debug!(pod = pod::name(&pod), "Volumes refreshed");
                }
                let period = context.config.tuning.volume_refresh_period;
                let is_blind = !objects.iter().all(objects::Following::is_watched);
                next_look(refreshed, is_blind.then_some(period), context.now())
            }
            Err(message) => {
                context.event(&pod, Kind::Warning, "FailedMount", message);
                failures += 1;
                let pause = RETRY_MIN.saturating_mul(1 << (failures - 1).min(8));
                Some(pause.min(RETRY_MAX))
            }
        };
        // Spread, because many pods' tokens are of one age.
        at = next.map(|pause| Instant::now() + pause.mul_f64(1.0 + rand::random::<f64>() / 10.0));
    }
}

/// The pause until the next look without news. Pure.
fn next_look(refreshed: Refreshed, period: Option<Duration>, now: SystemTime) -> Option<Duration> {
    let token = refreshed.token_due.map(|due| {
        let now = Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH);
        let left = Duration::try_from(due.duration_since(now)).unwrap_or_default();
        left.clamp(TOKEN_RETRY, TOKEN_WAIT_MAX)
    });
    token.into_iter().chain(period).min()
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn any(objects: &mut [objects::Following]) {
    let mut waits: FuturesUnordered<_> = objects.iter_mut().map(|o| o.changed()).collect();
    if waits.next().await.is_none() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_look_is_for_the_first_token_and_never_at_once() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let period = Some(Duration::from_secs(60));
        for (due, period, expected) in [
            (None, None, None),
            (None, period, Some(60)),
            (Some(1_050), period, Some(50)),
            (Some(1_900), period, Some(60)),
            (Some(1_900), None, Some(900)),
            (Some(900), None, Some(30)),
            (Some(1_000_000), None, Some(3600)),
        ] {
            let token_due = due.map(|at| Timestamp::from_second(at).expect("in range"));
            let refreshed = Refreshed {
                token_due,
                ..Refreshed::default()
            };
            let looked = next_look(refreshed, period, now).map(|pause| pause.as_secs());
            assert_eq!(looked, expected, "{due:?}");
        }
    }
}

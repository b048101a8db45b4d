//! Asks plugins again for the content of a running pod's volumes, each when it is due.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use tokio::{
    sync::{Semaphore, watch},
    time::sleep,
};
use tracing::debug;

use crate::{context::Context, events::Kind, pod};

/// Pods that are renewed at a time, on the whole node.
static TURNS: Semaphore = Semaphore::const_new(4);
/// Pauses after a failure, doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Longest sleep, in case the wall clock is set or the machine sleeps.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// Shortest sleep, whatever a plugin wants.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// Renews until it is dropped, or nothing is ever due.
pub(super) async fn run(context: Arc<Context>, pods: watch::Receiver<Arc<Pod>>) {
    let mut failures = 0u32;
    loop {
        let pod = Arc::clone(&pods.borrow());
        let now = Timestamp::try_from(context.now()).unwrap_or(Timestamp::UNIX_EPOCH);
        let renewed = {
            let _turn = TURNS.acquire().await;
            let shown = context.pod_context();
            context.volumes.repopulate(&pod, &shown, now).await
        };
        let pause = match renewed {
            Ok(None) => return,
            Ok(Some(due)) => {
                failures = 0;
                wait(due, now)
            }
            Err(message) => {
                debug!(pod = pod::name(&pod), "Volume not renewed");
                context.event(&pod, Kind::Warning, "FailedMount", message);
                failures += 1;
                retry(failures)
            }
        };
        // Spread, because pods that were made together are due together.
        sleep(pause.mul_f64(1.0 + rand::random::<f64>() / 10.0)).await;
    }
}

/// Until a volume is due. Pure.
fn wait(due: Timestamp, now: Timestamp) -> Duration {
    let left = Duration::try_from(due.duration_since(now)).unwrap_or_default();
    left.clamp(WAIT_MIN, WAIT_MAX)
}

/// After so many failures in a row. Pure.
fn retry(failures: u32) -> Duration {
    let doubled = RETRY_MIN.saturating_mul(1 << failures.saturating_sub(1).min(8));
    doubled.min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_neither_short_nor_endless() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        for (due, expected) in [(1_030, 30), (900, 1), (1_000, 1), (1_000_000, 3600)] {
            assert_eq!(wait(at(due), at(1_000)).as_secs(), expected, "{due}");
        }
        for (failures, expected) in [(1, 5), (2, 10), (7, 300), (u32::MAX, 300)] {
            assert_eq!(retry(failures).as_secs(), expected, "{failures}");
        }
    }
}

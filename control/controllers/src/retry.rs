//! What is done about errors: how long to wait before trying again, and what is said.

use std::time::Duration;

use kube::runtime::controller::{self, Action};
use tracing::warn;

/// The longest wait after errors.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Doubles from half a second to half a minute with each failure in a row, give or take a fifth, so
/// that those who failed together do not come back together.
pub(crate) fn backoff(failures: u32) -> Duration {
    let wait = Duration::from_millis(500)
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(WAIT_MAX);
    wait.mul_f64(rand::random_range(0.8..1.2))
}

/// What a controller does after an error that it has no count for.
pub(crate) fn soon() -> Action {
    Action::requeue(backoff(3))
}

/// An error in one line: what the API server said, if it said something.
pub(crate) fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Says that a reconciliation went wrong. An object that went away meanwhile is nobody's trouble.
pub(crate) fn log<K>(
    what: &str,
    result: Result<K, controller::Error<kube::Error, kube::runtime::watcher::Error>>,
) {
    match result {
        Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
        Err(controller::Error::ReconcilerFailed(error, object)) => {
            warn!(object = %object.name, error = %text(&error), "{what}");
        }
        Err(error) => warn!(%error, "{what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit() {
        for (failures, want) in [
            (0, 0.5),
            (1, 0.5),
            (2, 1.0),
            (5, 8.0),
            (7, 30.0),
            (1000, 30.0),
        ] {
            let wait = backoff(failures).as_secs_f64();
            assert!(
                (want * 0.79..want * 1.21).contains(&wait),
                "{failures}: {wait}"
            );
        }
    }
}

//! Removes bootstrap tokens that have expired.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Preconditions},
    runtime::{Controller, controller::Action, watcher},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::keep;

const NAMESPACE: &str = "kube-system";

/// Removes them until shutdown.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let tokens = watcher::Config::default().fields("type=bootstrap.kubernetes.io/token");
    let controller = Controller::new(secrets, tokens);
    keep::until_shutdown(
        controller,
        "Expired bootstrap token not removed",
        reconcile,
        client,
        shutdown,
    )
    .await;
}

async fn reconcile(secret: Arc<Secret>, client: Arc<Client>) -> kube::Result<Action> {
    match expires_in(&secret, Timestamp::now()) {
        None => Ok(Action::await_change()),
        Some(left) if !left.is_zero() => Ok(Action::requeue(left)),
        Some(_) => {
            let secrets: Api<Secret> = Api::namespaced((*client).clone(), NAMESPACE);
            let params = DeleteParams::default().preconditions(Preconditions {
                uid: secret.uid(),
                resource_version: None,
            });
            match secrets.delete(&secret.name_any(), &params).await {
                Ok(_) => info!(secret = %secret.name_any(), "Expired bootstrap token removed"),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(error),
            }
            Ok(Action::await_change())
        }
    }
}

/// How long a token is still good; `None` is for ever, or until somebody corrects its time.
fn expires_in(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let expiration = secret.data.as_ref()?.get("expiration")?;
    let until: Timestamp = std::str::from_utf8(&expiration.0).ok()?.parse().ok()?;
    Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn a_token_is_removed_when_its_time_is_over_and_not_before() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let with = |expiration: &str| Secret {
            data: Some([("expiration".to_owned(), ByteString(expiration.into()))].into()),
            ..Secret::default()
        };
        for (expiration, left) in [
            ("2026-01-01T00:01:00Z", Some(60)),
            ("2026-01-01T00:00:00Z", Some(0)),
            ("2025-01-01T00:00:00Z", Some(0)),
            ("never", None),
        ] {
            let found = expires_in(&with(expiration), now).map(|left| left.as_secs());
            assert_eq!(found, left, "{expiration}");
        }
        assert_eq!(expires_in(&Secret::default(), now), None);
    }
}

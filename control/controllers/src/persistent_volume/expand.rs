//! Making volumes larger: what a claim says of it meanwhile, and the nodes that are asked.
//!
//! ```text
//!  claim asks for more ─┬─ nobody has it mounted ─▶ FileSystemResizePending
//!                       └─ Resizing ─▶ each node that has it mounted ─▶ the plugin's `expand` ─▶ capacity of volume and claim
//! ```
//!
//! A volume's capacity says what is there: it is raised when the file system has been made larger, not before. What cannot
//! be done is said in the claim's events and tried again as long as it is asked for.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaimCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde::Deserialize;
use serde_json::json;
use tracing::info;
use wherry_api::quantity;

use super::{
    SYNC_PERIOD,
    effects::{Effects, proxy},
    plan::Say,
    view::ClaimView,
};
use crate::retry;

const RESIZING: &str = "Resizing";
const PENDING: &str = "FileSystemResizePending";
const FAILED: &str = "NodeResizeError";
/// Conditions that say that a claim's size is on its way.
const OURS: [&str; 3] = [RESIZING, PENDING, FAILED];

/// In the words of Kubernetes' own expander.
const WAITS: &str =
    "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";

/// When a node that has not mounted the volume yet is asked again.
const MOUNT_RETRY: Duration = Duration::from_secs(2);
/// When a driver that cannot is asked again: another may be installed under its name.
const UNSUPPORTED_RETRY: Duration = Duration::from_secs(300);

/// What a node's plugin says that a volume holds.
#[derive(Deserialize)]
struct Expanded {
    bytes: u64,
}

/// Whether a claim says nothing of a size on its way.
pub(super) fn is_settled(conditions: &[PersistentVolumeClaimCondition]) -> bool {
    !conditions
        .iter()
        .any(|condition| OURS.contains(&condition.type_.as_str()))
}

/// A claim's conditions with these of ours, which are true, and no others of ours; `None` where they are what they were.
fn conditions(
    before: &[PersistentVolumeClaimCondition],
    ours: &[(&str, &str)],
    now: Timestamp,
) -> Option<Vec<PersistentVolumeClaimCondition>> {
    let is_ours =
        |condition: &&PersistentVolumeClaimCondition| OURS.contains(&condition.type_.as_str());
    let is_same = |(type_, message): &(&str, &str)| {
        before.iter().any(|condition| {
            condition.type_ == *type_
                && condition.message.as_deref().unwrap_or_default() == *message
        })
    };
    if before.iter().filter(is_ours).count() == ours.len() && ours.iter().all(is_same) {
        return None;
    }
    let mut after: Vec<_> = before
        .iter()
        .filter(|condition| !is_ours(condition))
        .cloned()
        .collect();
    for (type_, message) in ours {
        let since = before.iter().find(|condition| condition.type_ == *type_);
        let since = since.and_then(|condition| condition.last_transition_time.clone());
        after.push(PersistentVolumeClaimCondition {
            type_: (*type_).to_owned(),
            status: "True".into(),
            message: Some((*message).to_owned()).filter(|message| !message.is_empty()),
            last_transition_time: Some(since.unwrap_or(Time(now))),
            last_probe_time: (*type_ == FAILED).then_some(Time(now)),
            ..PersistentVolumeClaimCondition::default()
        });
    }
    Some(after)
}

/// How long to leave a node alone that has just failed, whoever wants a look now.
fn pause(conditions: &[PersistentVolumeClaimCondition], now: Timestamp) -> Option<Duration> {
    let failed = conditions.iter().find(|found| found.type_ == FAILED)?;
    let passed = now.duration_since(failed.last_probe_time.as_ref()?.0);
    let passed = Duration::try_from(passed).unwrap_or_default();
    SYNC_PERIOD
        .checked_sub(passed)
        .filter(|left| !left.is_zero())
}

fn say(is_warning: bool, reason: &'static str, message: impl Into<String>) -> Say {
    Say {
        is_warning,
        reason,
        message: message.into(),
    }
}

impl Effects {
    /// Writes that these conditions hold; answers whether that was new.
    async fn set_resizing(&self, claim: &ClaimView, ours: &[(&str, &str)]) -> kube::Result<bool> {
        let Some(conditions) = conditions(&claim.conditions, ours, Timestamp::now()) else {
            return Ok(false);
        };
        let conditions = Some(conditions).filter(|conditions| !conditions.is_empty());
        let patch = json!({ "status": { "conditions": conditions } });
        self.patch_claim_status(claim, patch).await?;
        Ok(true)
    }

    /// Nothing of a claim's size is on its way any more.
    pub(super) async fn settle(&self, claim: &ClaimView) -> kube::Result<()> {
        self.set_resizing(claim, &[]).await.map(drop)
    }

    /// Has every node that has a volume mounted make it larger, and writes what came of it. `users` are node and name of
    /// the pods that use the claim.
    pub(super) async fn expand(
        &self,
        claim: &ClaimView,
        volume: &str,
        users: &[(String, String)],
    ) -> kube::Result<Option<Duration>> {
        let Ok(wanted) = u64::try_from(claim.request_bytes) else {
            return Ok(None);
        };
        if let Some(pause) = pause(&claim.conditions, Timestamp::now()) {
            return Ok(Some(pause));
        }
        let was_waiting = claim.conditions.iter().any(|found| found.type_ == PENDING);
        if users.is_empty() {
            if self.set_resizing(claim, &[(PENDING, WAITS)]).await? && !was_waiting {
                self.say_of_claim(
                    claim,
                    say(
                        false,
                        "FileSystemResizeRequired",
                        "Require file system resize of volume on node",
                    ),
                );
            }
            return Ok(Some(SYNC_PERIOD));
        }
        // What was said of a failure stays until it has gone well.
        let is_failing = claim.conditions.iter().any(|found| found.type_ == FAILED);
        if !is_failing && !was_waiting && self.set_resizing(claim, &[(RESIZING, "")]).await? {
            let message = format!("Resizing volume {volume}");
            self.say_of_claim(claim, say(false, "Resizing", message));
        }
        let (namespace, name) = (&claim.key.namespace, &claim.key.name);
        for (node, pod) in users {
            let path = format!("claims/{namespace}/{pod}/{name}?bytes={wanted}");
            let asked = self.client.request(proxy(http::Method::POST, node, &path));
            let error = match asked.await {
                Ok(Expanded { bytes }) if bytes >= wanted => continue,
                Ok(Expanded { bytes }) => format!("it holds {bytes} bytes and not {wanted}"),
                Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {
                    // The pod is being started, or is gone.
                    self.set_resizing(claim, &[(PENDING, WAITS)]).await?;
                    return Ok(Some(MOUNT_RETRY));
                }
                Err(kube::Error::Api(status)) if status.code == 501 => {
                    self.failed(claim, volume, node, &status.message).await?;
                    return Ok(Some(UNSUPPORTED_RETRY));
                }
                Err(error) => retry::text(&error),
            };
            self.failed(claim, volume, node, &error).await?;
            return Ok(Some(SYNC_PERIOD));
        }
        self.grow(claim, volume, Some(wanted)).await?;
        Ok(None)
    }

    async fn failed(
        &self,
        claim: &ClaimView,
        volume: &str,
        node: &str,
        why: &str,
    ) -> kube::Result<()> {
        let message = format!("resize volume {volume:?} on node {node} failed: {why}");
        self.set_resizing(claim, &[(FAILED, &message)]).await?;
        self.say_of_claim(claim, say(true, "VolumeResizeFailed", message));
        Ok(())
    }

    /// Writes that a volume holds what is asked for, unless that is more by now than the bytes that it `held` then. A
    /// directory holds as much as its file system, whatever that is.
    pub(super) async fn grow(
        &self,
        claim: &ClaimView,
        volume: &str,
        held: Option<u64>,
    ) -> kube::Result<()> {
        let claims = self.claims(&claim.key.namespace);
        let asked = claims.get(&claim.key.name).await?;
        let requests = asked.spec.and_then(|spec| spec.resources?.requests);
        let Some(wanted) = requests.and_then(|mut requests| requests.remove("storage")) else {
            return Ok(());
        };
        let bytes = quantity::Quantity::parse(&wanted.0).map_or(0, |wanted| wanted.value());
        if held.is_some_and(|held| i128::from(held) < bytes) {
            return Ok(());
        }
        let patch = json!({ "spec": { "capacity": { "storage": wanted } } });
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        volumes
            .patch(volume, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        info!(volume, claim = %claim.key, "Volume made larger");
        self.say_of_claim(
            claim,
            say(false, "VolumeResizeSuccessful", "Resize volume succeeded"),
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(type_: &str, message: &str) -> PersistentVolumeClaimCondition {
        PersistentVolumeClaimCondition {
            type_: type_.into(),
            status: "True".into(),
            message: Some(message.into()),
            last_transition_time: Some(Time(Timestamp::UNIX_EPOCH)),
            ..PersistentVolumeClaimCondition::default()
        }
    }

    #[test]
    fn conditions_of_others_stay_and_ours_are_written_when_they_change() {
        let now = Timestamp::from_second(100).unwrap();
        let theirs = condition("ModifyingVolume", "theirs");
        let before = vec![theirs.clone(), condition(PENDING, WAITS)];
        assert!(is_settled(std::slice::from_ref(&theirs)) && !is_settled(&before));
        assert_eq!(conditions(&before, &[(PENDING, WAITS)], now), None);
        assert_eq!(conditions(&before, &[], now), Some(vec![theirs.clone()]));
        let after = conditions(&before, &[(FAILED, "why")], now).unwrap();
        assert_eq!((after.len(), &after[0]), (2, &theirs));
        assert_eq!(after[1].last_transition_time, Some(Time(now)));
        let later = Timestamp::from_second(110).unwrap();
        let again = conditions(&after, &[(FAILED, "because")], later).unwrap();
        assert_eq!(again[1].last_transition_time, Some(Time(now)), "since then");
        assert_eq!(pause(&again, later), Some(SYNC_PERIOD));
        let left = pause(&again, Timestamp::from_second(120).unwrap());
        assert_eq!(left, Some(Duration::from_secs(5)));
        assert_eq!(pause(&again, Timestamp::from_second(125).unwrap()), None);
        assert_eq!(pause(&before, later), None);
    }
}

//! Pod statuses to the API server: newest wins, merged, rate-limited, and no write without a change.
//!
//! Workers put what they computed and go on; one task per pod that has news sends it, a bounded
//! number at a time. Without an API server nothing is lost: the newest status waits.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};
use wherry_runtime_api::PodUid;

use crate::pod::{
    self,
    status::{DISRUPTION_TARGET, OURS, RESIZING},
};

/// Requests under way.
const IN_FLIGHT_MAX: usize = 8;
/// First and longest pause after a failure.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long a status that says nothing new to anybody may wait for a better one.
const LULL: Duration = Duration::from_millis(100);

/// The reason of the condition `Ready` that the control plane gives pods of a node that it does not hear of.
const NODE_NOT_READY: &str = "NodeNotReady";

/// Whether the control plane has said that a pod is not ready because its node is not.
fn is_overwritten(status: &PodStatus) -> bool {
    let conditions = status.conditions.iter().flatten();
    conditions
        .filter(|condition| condition.type_ == "Ready")
        .any(|condition| condition.reason.as_deref() == Some(NODE_NOT_READY))
}

/// Where a pod is in the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// The API object's uid; the mirror's for a static pod.
    pub(crate) uid: String,
}

impl Target {
    /// The object a pod came from.
    pub(crate) fn of(pod: &Pod) -> Self {
        Self {
            namespace: pod::namespace(pod).into(),
            name: pod::name(pod).into(),
            uid: pod::uid(pod).to_string(),
        }
    }
}

struct Entry {
    target: Option<Target>,
    /// Counts what workers put.
    version: u64,
    published: u64,
    status: PodStatus,
    last: Option<PodStatus>,
    not_before: Instant,
    delete: bool,
    sending: bool,
    changed: Arc<Notify>,
}

impl Entry {
    fn new() -> Self {
        Self {
            target: None,
            version: 0,
            published: 0,
            status: PodStatus::default(),
            last: None,
            not_before: Instant::now(),
            delete: false,
            sending: false,
            changed: Arc::default(),
        }
    }

    fn is_due(&self) -> bool {
        self.target.is_some() && (self.version > self.published || self.delete)
    }
}

struct Inner {
    client: Option<Client>,
    entries: Mutex<HashMap<PodUid, Entry>>,
    in_flight: Semaphore,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// Writes pod statuses.
#[derive(Clone)]
pub(crate) struct Publisher {
    inner: Arc<Inner>,
}

impl Publisher {
    /// A publisher; without a client it only remembers.
    pub(crate) fn new(client: Option<Client>) -> Self {
        let inner = Inner {
            client,
            entries: Mutex::default(),
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Entry>> {
        // Entries are changed in place by code that does not panic.
        self.inner
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Says where a pod is in the API and what its status is there. `None`: nowhere (any more).
    pub(crate) fn target(&self, uid: &PodUid, target: Option<Target>, there: Option<&PodStatus>) {
        let mut entries = self.lock();
        if target.is_none() && !entries.contains_key(uid) {
            return;
        }
        let entry = entries.entry(uid.clone()).or_insert_with(Entry::new);
        if entry.target != target {
            // Another object: it knows nothing yet.
            entry.published = 0;
            entry.last = there.cloned();
            entry.target = target;
        } else if !entry.sending
            && let Some(there) = there.filter(|there| is_overwritten(there))
        {
            // While this node was not heard of, others spoke for it.
            entry.published = 0;
            entry.last = Some(there.clone());
        }
        self.kick(uid, entry);
    }

    /// The newest status of a pod. `is_urgent` ones are sent at once.
    pub(crate) fn put(&self, uid: &PodUid, status: PodStatus, is_urgent: bool) {
        let mut entries = self.lock();
        let entry = entries.entry(uid.clone()).or_insert_with(Entry::new);
        if entry.version > 0 && entry.status == status {
            return;
        }
        entry.version += 1;
        entry.status = status;
        entry.not_before = if is_urgent {
            Instant::now()
        } else {
            Instant::now() + LULL
        };
        entry.changed.notify_one();
        self.kick(uid, entry);
    }

    /// Deletes the API object for good once its last status is there. Returns at once.
    pub(crate) fn delete(&self, uid: &PodUid) {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(uid) {
            entry.delete = true;
            entry.changed.notify_one();
            self.kick(uid, entry);
        }
    }

    /// Whether the API object is being deleted, or was, as far as is known here.
    pub(crate) fn is_deleting(&self, uid: &PodUid) -> bool {
        self.lock()
            .get(uid)
            .is_none_or(|entry| entry.delete && entry.target.is_some())
    }

    /// Forgets a pod that needs no more writes.
    pub(crate) fn forget(&self, uid: &PodUid) {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(uid) {
            if entry.sending && entry.delete {
                return;
            }
            entry.changed.notify_one();
            entries.remove(uid);
        }
    }

    /// What is to be written, or was last.
    #[cfg(test)]
    pub(crate) fn newest(&self, uid: &PodUid) -> Option<PodStatus> {
        self.lock().get(uid).map(|entry| entry.status.clone())
    }

    /// Ends all writing.
    pub(crate) async fn close(&self) {
        self.inner.shutdown.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    fn kick(&self, uid: &PodUid, entry: &mut Entry) {
        if self.inner.client.is_none()
            || entry.sending
            || !entry.is_due()
            || self.inner.shutdown.is_cancelled()
        {
            return;
        }
        entry.sending = true;
        let (this, uid) = (self.clone(), uid.clone());
        self.inner.tasks.spawn(async move {
            let shutdown = this.inner.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = this.send_all(&uid) => {}
            }
        });
    }

    /// Sends until there is no more news of a pod.
    async fn send_all(&self, uid: &PodUid) {
        let Some(client) = self.inner.client.clone() else {
            return;
        };
        let mut pause = RETRY_MIN;
        loop {
            let (changed, not_before) = {
                let mut entries = self.lock();
                let Some(entry) = entries.get_mut(uid) else {
                    return;
                };
                if !entry.is_due() {
                    entry.sending = false;
                    return;
                }
                (Arc::clone(&entry.changed), entry.not_before)
            };
            if not_before > Instant::now() {
                tokio::select! {
                    () = sleep_until(not_before) => {}
                    () = changed.notified() => continue,
                }
            }
            let Ok(_permit) = self.inner.in_flight.acquire().await else {
                return;
            };
            let work = {
                let entries = self.lock();
                let Some(entry) = entries.get(uid) else {
                    return;
                };
                let Some(target) = entry.target.clone() else {
                    continue;
                };
                let news = (entry.version > entry.published)
                    .then(|| (entry.version, entry.status.clone()));
                (target, news, entry.last.clone(), entry.delete)
            };
            let (target, news, last, delete) = work;
            let result = match news {
                Some((version, status)) => {
                    self.patch(&client, uid, &target, version, status, last)
                        .await
                }
                None if delete => self.delete_now(&client, uid, &target).await,
                None => continue,
            };
            match result {
                Ok(Sent::Yes) => pause = RETRY_MIN,
                Ok(Sent::Gone) => {
                    let mut entries = self.lock();
                    if let Some(entry) = entries.get_mut(uid) {
                        entry.sending = false;
                        entry.published = entry.version;
                        // Another object may have taken the name meanwhile.
                        if entry.target.as_ref() == Some(&target) {
                            entry.target = None;
                        }
                        if entry.delete {
                            entries.remove(uid);
                        }
                    }
                    return;
                }
                Err(error) => {
                    debug!(pod = target.name, namespace = target.namespace, %error, "Status not written");
                    sleep_until(Instant::now() + pause.mul_f64(0.5 + rand::random::<f64>())).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }

    async fn patch(
        &self,
        client: &Client,
        uid: &PodUid,
        target: &Target,
        version: u64,
        status: PodStatus,
        last: Option<PodStatus>,
    ) -> Result<Sent, kube::Error> {
        let mut sent = Sent::Yes;
        if last.as_ref().is_none_or(|last| !is_same(last, &status)) {
            let pods: Api<Pod> = Api::namespaced(client.clone(), &target.namespace);
            let patch = json!({
                "metadata": { "uid": target.uid },
                "status": to_patch(&status, last.as_ref()),
            });
            match pods
                .patch_status(
                    &target.name,
                    &PatchParams::default(),
                    &Patch::Strategic(patch),
                )
                .await
            {
                Ok(_) => {}
                // Gone, or another pod of that name.
                Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => {
                    sent = Sent::Gone
                }
                Err(kube::Error::Api(answer)) if answer.code == 422 => {
                    warn!(
                        pod = target.name,
                        namespace = target.namespace,
                        error = answer.message,
                        "Status refused"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.published = entry.published.max(version);
            entry.last = Some(status);
        }
        Ok(sent)
    }

    async fn delete_now(
        &self,
        client: &Client,
        uid: &PodUid,
        target: &Target,
    ) -> Result<Sent, kube::Error> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &target.namespace);
        let preconditions = Preconditions {
            uid: Some(target.uid.clone()),
            ..Preconditions::default()
        };
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        match pods.delete(&target.name, &params).await {
            Ok(_) => {}
            Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => {}
            Err(error) => return Err(error),
        }
        debug!(pod = target.name, namespace = target.namespace, %uid, "Pod object deleted");
        Ok(Sent::Gone)
    }
}

enum Sent {
    Yes,
    Gone,
}

/// Whether the API would not see a difference.
fn is_same(last: &PodStatus, status: &PodStatus) -> bool {
    let ours = |status: &PodStatus| {
        let mut status = status.clone();
        let mut conditions = status.conditions.unwrap_or_default();
        conditions.retain(|condition| OURS.contains(&condition.type_.as_str()));
        conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        status.conditions = Some(conditions);
        status.init_container_statuses.get_or_insert_default();
        status
    };
    ours(last) == ours(status)
}

/// A strategic merge patch that makes the API's status this one, leaving others' conditions alone.
fn to_patch(status: &PodStatus, last: Option<&PodStatus>) -> Value {
    let mut patch = serde_json::to_value(status).unwrap_or_default();
    for field in [
        "reason",
        "message",
        "podIP",
        "podIPs",
        "initContainerStatuses",
        "containerStatuses",
    ] {
        if patch.get(field).is_none() {
            patch[field] = Value::Null;
        }
    }
    if let Some(conditions) = patch.get_mut("conditions").and_then(Value::as_array_mut) {
        conditions.retain(|condition| {
            condition["type"]
                .as_str()
                .is_some_and(|kind| OURS.contains(&kind) || kind == DISRUPTION_TARGET)
        });
        for condition in conditions {
            for field in ["reason", "message"] {
                if condition.get(field).is_none() {
                    condition[field] = Value::Null;
                }
            }
        }
    }
    // Some conditions go again, and the list is merged by type.
    let has = |status: &PodStatus, kind: &str| {
        let mut list = status.conditions.iter().flatten();
        list.any(|condition| condition.type_ == kind)
    };
    if let Some(last) = last
        && let Some(list) = patch.get_mut("conditions").and_then(Value::as_array_mut)
    {
        for kind in RESIZING {
            if has(last, kind) && !has(status, kind) {
                list.push(json!({ "type": kind, "$patch": "delete" }));
            }
        }
    }
    // Lists of addresses are merged by address: what is not there any more has to be taken out.
    let gone =
        |was: Vec<String>, is: Vec<String>| was.into_iter().filter(move |ip| !is.contains(ip));
    let pod_ips = |s: &PodStatus| {
        s.pod_ips
            .iter()
            .flatten()
            .map(|ip| ip.ip.clone())
            .collect::<Vec<_>>()
    };
    let host_ips = |s: &PodStatus| {
        s.host_ips
            .iter()
            .flatten()
            .map(|ip| ip.ip.clone())
            .collect::<Vec<_>>()
    };
    if let Some(last) = last {
        for (field, list) in [
            (
                "podIPs",
                gone(pod_ips(last), pod_ips(status)).collect::<Vec<_>>(),
            ),
            (
                "hostIPs",
                gone(host_ips(last), host_ips(status)).collect::<Vec<_>>(),
            ),
        ] {
            if let Some(there) = patch.get_mut(field).and_then(Value::as_array_mut) {
                there.extend(
                    list.into_iter()
                        .map(|ip| json!({ "ip": ip, "$patch": "delete" })),
                );
            }
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodIP};

    use super::*;

    fn condition(kind: &str, status: &str) -> PodCondition {
        PodCondition {
            type_: kind.into(),
            status: status.into(),
            ..PodCondition::default()
        }
    }

    #[test]
    fn others_conditions_are_neither_sent_nor_compared() {
        let status = PodStatus {
            conditions: Some(vec![
                condition("Ready", "True"),
                condition("example.com/gate", "False"),
            ]),
            ..PodStatus::default()
        };
        let patch = to_patch(&status, None);
        assert_eq!(patch["conditions"].as_array().map(Vec::len), Some(1));
        assert_eq!(patch["conditions"][0]["reason"], Value::Null);
        let mut other = status.clone();
        other.conditions.as_mut().expect("set above")[1].status = "True".into();
        assert!(is_same(&status, &other));
        other.conditions.as_mut().expect("set above")[0].status = "False".into();
        assert!(!is_same(&status, &other));
    }

    #[test]
    fn an_address_that_is_no_more_is_taken_out_of_the_list() {
        let with = |ips: &[&str]| PodStatus {
            pod_ips: Some(ips.iter().map(|ip| PodIP { ip: (*ip).into() }).collect()),
            ..PodStatus::default()
        };
        let patch = to_patch(&with(&["10.0.0.2"]), Some(&with(&["10.0.0.1"])));
        assert_eq!(
            patch["podIPs"],
            json!([{ "ip": "10.0.0.2" }, { "ip": "10.0.0.1", "$patch": "delete" }])
        );
    }

    #[test]
    fn reason_and_message_that_are_gone_are_removed_there_too() {
        let patch = to_patch(&PodStatus::default(), None);
        assert!(
            patch
                .as_object()
                .is_some_and(|patch| patch.contains_key("reason") && patch["reason"].is_null())
        );
    }
}

//! Gives pods without a node one.
//!
//! ```text
//!  watch nodes ─▶ State ◀─ assume ──┐
//!  watch pods ──▶ Queue ─ pop ─▶ schedule (pure) ─▶ bind           ─▶ API
//!                   ▲                 └ no node ──▶ condition, event ─▶ API
//!                   └────── outcome ─────────────────┘
//! ```
//!
//! One task owns everything that decides; writes run beside it, a bounded number at once. A pod is
//! counted in on its node before it is bound, and out again if binding fails. Left to others:
//! affinity between pods, spreading, preemption, volumes.

mod filter;
mod node;
mod pod;
mod queue;
mod resources;
mod state;

pub(crate) use filter::{is_tolerated, matches_term};

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    events::{Note, Recorder},
    retry,
};

use self::{
    node::Offer,
    pod::{PodInfo, Role, role},
    queue::Queue,
    state::State,
};

/// Bindings and conditions that are written at once.
const WRITES_MAX: usize = 64;

/// The longest a write is tried before the pod is queued again.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pods that are decided on before news is heard again.
const BATCH: usize = 64;

/// The scheduler's state and its ways out.
struct Scheduler {
    name: String,
    client: Client,
    recorder: Recorder,
    state: State,
    queue: Queue,
    writes: JoinSet<(String, Outcome)>,
    /// Whether there has been news since the unschedulable pods were looked at.
    has_news: bool,
    nodes_listed: Option<HashSet<String>>,
    pods_listed: Option<HashSet<String>>,
    has_nodes: bool,
    has_pods: bool,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Bound,
    /// Binding failed; the pod is to be tried again.
    NotBound,
    /// The pod is not there any more, or somebody else has bound it: the watch will tell.
    Overtaken,
    /// It was said that no node can take the pod.
    Reported,
}

/// Schedules pods until shutdown.
pub(crate) async fn run(
    client: Client,
    name: String,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let nodes = watcher(Api::<Node>::all(client.clone()), watcher::Config::default());
    let pods = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default());
    let scheduler = Scheduler {
        name,
        client,
        recorder,
        state: State::default(),
        queue: Queue::default(),
        writes: JoinSet::new(),
        has_news: false,
        nodes_listed: None,
        pods_listed: None,
        has_nodes: false,
        has_pods: false,
    };
    scheduler
        .run(
            nodes.default_backoff().boxed(),
            pods.default_backoff().boxed(),
            shutdown,
        )
        .await;
}

impl Scheduler {
    async fn run(
        mut self,
        mut nodes: impl Stream<Item = watcher::Result<Event<Node>>> + Unpin,
        mut pods: impl Stream<Item = watcher::Result<Event<Pod>>> + Unpin,
        shutdown: CancellationToken,
    ) {
        loop {
            self.decide();
            let can_go_on = self.queue.is_ready() && self.can_decide();
            let wait_ends = self.queue.next_wait_ends().filter(|_| self.can_decide());
            tokio::select! {
                () = shutdown.cancelled() => break,
                event = nodes.next() => match event {
                    Some(Ok(event)) => self.hear_of_node(event),
                    Some(Err(error)) => warn!(%error, "Nodes not watched"),
                    None => break,
                },
                event = pods.next() => match event {
                    Some(Ok(event)) => self.hear_of_pod(event),
                    Some(Err(error)) => warn!(%error, "Pods not watched"),
                    None => break,
                },
                Some(done) = self.writes.join_next() => match done {
                    Ok((uid, outcome)) => self.written(&uid, outcome),
                    Err(error) => warn!(%error, "Write ended badly"),
                },
                () = sleep_until(wait_ends), if wait_ends.is_some() => {}
                () = tokio::task::yield_now(), if can_go_on => {}
            }
        }
        // What has been decided is written; a new scheduler would decide it again anyway.
        while self.writes.join_next().await.is_some() {}
    }

    fn can_decide(&self) -> bool {
        self.has_nodes && self.has_pods && self.writes.len() < WRITES_MAX
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
                Ok(node) => self.bind(pod, node),
                Err(rejections) => {
                    let message = rejections.message(&pod);
                    self.report(pod, message);
                }
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
            let outcome = match timeout(WRITE_TIMEOUT, bind(&client, &pod, &node)).await {
                Ok(Ok(())) => {
                    debug!(pod = %pod.name, namespace = %pod.namespace, %node, "Pod scheduled");
                    let message = format!(
                        "Successfully assigned {}/{} to {node}",
                        pod.namespace, pod.name
                    );
                    recorder.record(note(&pod, "Normal", "Scheduled", message, component));
                    Outcome::Bound
                }
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                    Outcome::Overtaken
                }
                Ok(Err(error)) => {
                    warn!(pod = %pod.name, namespace = %pod.namespace, error = %retry::text(&error), "Pod not bound");
                    Outcome::NotBound
                }
                Err(_) => {
                    warn!(pod = %pod.name, namespace = %pod.namespace, "Pod not bound in time");
                    Outcome::NotBound
                }
            };
            (pod.uid, outcome)
        });
    }

    fn report(&mut self, pod: PodInfo, message: String) {
        let component = self.name.clone();
        self.recorder.record(note(
            &pod,
            "Warning",
            "FailedScheduling",
            message.clone(),
            component,
        ));
        if pod.reported.as_ref() == Some(&message) {
            self.queue.unschedulable(&pod.uid);
            return;
        }
        debug!(pod = %pod.name, namespace = %pod.namespace, reason = %message, "Pod not scheduled");
        let client = self.client.clone();
        self.writes.spawn(async move {
            let patch = Patch::Strategic(unschedulable_patch(&message, Timestamp::now()));
            let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
            let params = PatchParams::default();
            let patched = pods.patch_status(&pod.name, &params, &patch);
            if let Ok(Err(error)) = timeout(WRITE_TIMEOUT, patched).await {
                warn!(pod = %pod.name, namespace = %pod.namespace, error = %retry::text(&error), "Condition not written");
            }
            (pod.uid, Outcome::Reported)
        });
    }

    fn written(&mut self, uid: &str, outcome: Outcome) {
        match outcome {
            // The queue forgets the pod when the watch shows it with its node.
            Outcome::Bound => {}
            Outcome::NotBound | Outcome::Overtaken => {
                self.state.release(uid);
                self.has_news = true;
                self.queue.retry(uid);
            }
            Outcome::Reported => self.queue.unschedulable(uid),
        }
    }

    fn hear_of_node(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.nodes_listed = Some(HashSet::new()),
            Event::InitApply(node) => {
                let name = node.name_any();
                self.has_news |= self.state.set_node(&name, Offer::read(&node));
                self.nodes_listed.get_or_insert_default().insert(name);
            }
            Event::InitDone => {
                self.state
                    .retain_nodes(&self.nodes_listed.take().unwrap_or_default());
                self.has_nodes = true;
            }
            Event::Apply(node) => {
                self.has_news |= self.state.set_node(&node.name_any(), Offer::read(&node))
            }
            Event::Delete(node) => self.state.remove_node(&node.name_any()),
        }
    }

    fn hear_of_pod(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.pods_listed = Some(HashSet::new()),
            Event::InitApply(pod) => {
                self.pods_listed.get_or_insert_default().extend(pod.uid());
                self.set_pod(&pod);
            }
            Event::InitDone => {
                let listed = self.pods_listed.take().unwrap_or_default();
                let known = self.state.pods().chain(self.queue.uids());
                let gone: Vec<_> = known
                    .filter(|uid| !listed.contains(*uid))
                    .cloned()
                    .collect();
                for uid in gone {
                    self.forget_pod(&uid);
                }
                self.has_pods = true;
            }
            Event::Apply(pod) => self.set_pod(&pod),
            Event::Delete(pod) => self.forget_pod(&pod.uid().unwrap_or_default()),
        }
    }

    fn set_pod(&mut self, pod: &Pod) {
        let uid = pod.uid().unwrap_or_default();
        match role(pod, &self.name) {
            Role::Pending(pod) => self.queue.update(*pod),
            Role::Assigned { node, footprint } => {
                self.queue.remove(&uid);
                self.state.assign(&uid, &node, footprint);
            }
            Role::Neither => self.forget_pod(&uid),
        }
    }

    fn forget_pod(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.has_news |= self.state.release(uid);
    }
}

async fn sleep_until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

async fn bind(client: &Client, pod: &PodInfo, node: &str) -> kube::Result<()> {
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": { "name": pod.name, "namespace": pod.namespace, "uid": pod.uid },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node },
    });
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let _: Value = pods
        .create_subresource("binding", &pod.name, &PostParams::default(), &binding)
        .await?;
    Ok(())
}

fn unschedulable_patch(message: &str, now: Timestamp) -> Value {
    json!({ "status": { "conditions": [{
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": Time(now),
    }] } })
}

fn note(
    pod: &PodInfo,
    type_: &'static str,
    reason: &'static str,
    message: String,
    component: String,
) -> Note {
    let object = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        resource_version: Some(pod.resource_version.clone()),
        field_path: None,
    };
    Note {
        object,
        type_,
        reason,
        message,
        component,
    }
}

#[cfg(test)]
mod tests;

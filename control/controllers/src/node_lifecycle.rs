//! Says of nodes that nobody hears from that nobody hears from them, and keeps pods off nodes that
//! are not well.
//!
//! A node is heard of when its lease or its heartbeat *changes*, by this controller's own clock: a
//! control plane that was down itself gives every node its time first. The taints that evict pods come
//! zone by zone at a pace ([`zones`]). Left to others ([`crate::node_pods`]): evicting pods, and what
//! pods' own conditions say.

mod zones;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, NodeCondition, ObjectReference, Taint},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::zones::Zones;
use crate::{
    events::{Note, Recorder},
    plugin_nodes, retry,
};

/// How often silent nodes are looked for (`--node-monitor-period`).
const MONITOR_PERIOD: Duration = Duration::from_secs(5);

/// The longest a write is tried; the next look tries again.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where nodes renew their leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Conditions that a silent node cannot have.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Taints this controller puts on and takes off; others are somebody else's.
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];

/// Where a node is.
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Whether a taint is one of ours that evicts pods.
fn is_evicting(taint: &Taint) -> bool {
    taint.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str())
}

/// What is kept of a node.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    uid: String,
    resource_version: String,
    conditions: Vec<(String, String)>,
    taints: Vec<Taint>,
    is_unschedulable: bool,
    heartbeat: Option<Timestamp>,
    /// Region and zone.
    zone: String,
}

/// When a node was last heard of, and what it said.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Instant,
    lease: Option<Timestamp>,
    heartbeat: Option<Timestamp>,
}

struct Monitor {
    client: Client,
    recorder: Recorder,
    grace_period: Duration,
    nodes: HashMap<String, Known>,
    heard: HashMap<String, Heard>,
    listed: Option<HashSet<String>>,
    /// Plugins may still have the word of a node that is gone.
    has_forgotten: bool,
    zones: Zones,
}

/// Watches over nodes until shutdown.
pub(crate) async fn run(
    client: Client,
    grace_period: Duration,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let config = watcher::Config::default;
    let nodes = watcher(Api::<Node>::all(client.clone()), config())
        .default_backoff()
        .boxed();
    let leases = Api::<Lease>::namespaced(client.clone(), LEASE_NAMESPACE);
    let leases = watcher(leases, config()).default_backoff().boxed();
    let monitor = Monitor {
        client,
        recorder,
        grace_period,
        nodes: HashMap::new(),
        heard: HashMap::new(),
        listed: None,
        has_forgotten: false,
        zones: Zones::default(),
    };
    monitor.run(nodes, leases, shutdown).await;
}

impl Monitor {
    async fn run(
        mut self,
        mut nodes: impl Stream<Item = watcher::Result<Event<Node>>> + Unpin,
        mut leases: impl Stream<Item = watcher::Result<Event<Lease>>> + Unpin,
        shutdown: CancellationToken,
    ) {
        let mut period = tokio::time::interval(MONITOR_PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let changed = tokio::select! {
                () = shutdown.cancelled() => return,
                event = nodes.next() => match event {
                    Some(Ok(event)) => self.hear_of_node(event),
                    Some(Err(error)) => { warn!(%error, "Nodes not watched"); None }
                    None => return,
                },
                event = leases.next() => match event {
                    Some(Ok(Event::Apply(lease) | Event::InitApply(lease))) => { self.hear_lease(&lease); None }
                    Some(Ok(Event::Delete(_) | Event::Init | Event::InitDone)) => None,
                    Some(Err(error)) => { warn!(%error, "Leases not watched"); None }
                    None => return,
                },
                _ = period.tick() => {
                    self.zones.forget_empty(Instant::now());
                    let names: Vec<_> = self.nodes.keys().cloned().collect();
                    for name in names {
                        self.look_at(&name).await;
                    }
                    None
                }
            };
            if let Some(name) = changed {
                self.look_at(&name).await;
            }
            self.forget_in_plugins().await;
        }
    }

    /// Takes a node's news; answers its name if there is something to look at.
    fn hear_of_node(&mut self, event: Event<Node>) -> Option<String> {
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let known = self.nodes.keys().filter(|name| !listed.contains(*name));
                for name in known.cloned().collect::<Vec<_>>() {
                    self.forget_node(&name);
                }
                self.heard.retain(|name, _| listed.contains(name));
                // Whatever has gone before this controller came.
                self.has_forgotten = true;
            }
            Event::Apply(node) => return self.set_node(&node),
            Event::InitApply(node) => {
                self.listed.get_or_insert_default().insert(node.name_any());
                return self.set_node(&node);
            }
            Event::Delete(node) => {
                self.forget_node(&node.name_any());
                self.heard.remove(&node.name_any());
            }
        }
        None
    }

    fn set_node(&mut self, node: &Node) -> Option<String> {
        let (name, known) = (node.name_any(), Known::read(node));
        let heard = self.heard_of(&name);
        if heard.heartbeat != known.heartbeat {
            heard.heartbeat = known.heartbeat;
            heard.at = Instant::now();
        }
        let was = self.nodes.get(&name).map(Known::place);
        self.zones.change(was, Some(known.place()), Instant::now());
        self.nodes.insert(name.clone(), known);
        Some(name)
    }

    fn forget_node(&mut self, name: &str) {
        if let Some(known) = self.nodes.remove(name) {
            self.zones.change(Some(known.place()), None, Instant::now());
            self.has_forgotten = true;
        }
    }

    async fn forget_in_plugins(&mut self) {
        if !self.has_forgotten || self.listed.is_some() {
            return;
        }
        let forget = plugin_nodes::forget(&self.client, |name| self.nodes.contains_key(name));
        match timeout(WRITE_TIMEOUT, forget).await {
            Ok(Ok(())) => self.has_forgotten = false,
            Ok(Err(error)) => {
                warn!(error = %retry::text(&error), "Plugins not told of nodes that are gone")
            }
            Err(_) => warn!("Plugins not told of nodes that are gone: no answer"),
        }
    }

    fn hear_lease(&mut self, lease: &Lease) {
        let renewed = lease
            .spec
            .as_ref()
            .and_then(|spec| Some(spec.renew_time.as_ref()?.0));
        let name = lease.name_any();
        let heard = self.heard_of(&name);
        if heard.lease != renewed {
            heard.lease = renewed;
            heard.at = Instant::now();
        }
    }

    fn heard_of(&mut self, name: &str) -> &mut Heard {
        let first = Heard {
            at: Instant::now(),
            lease: None,
            heartbeat: None,
        };
        self.heard.entry(name.to_owned()).or_insert(first)
    }

    /// Brings a node's conditions and taints to what is known of it.
    async fn look_at(&mut self, name: &str) {
        let is_silent = self
            .heard
            .get(name)
            .is_some_and(|heard| heard.at.elapsed() > self.grace_period);
        let Some(known) = self.nodes.get(name) else {
            return;
        };
        if is_silent && let Some(patch) = known.silence(Timestamp::now()) {
            info!(node = name, "Node is not heard of any more");
            self.record_not_ready(name, known);
            self.write(name, true, patch).await;
            // The write comes back as news, with which the taints are looked at.
            return;
        }
        let now = Instant::now();
        let mut wanted = known.wanted_taints(Timestamp::now());
        if self.zones.are_all_lost() {
            wanted.retain(|taint| !is_evicting(taint));
        } else if wanted.iter().any(|taint| is_evicting(taint) && !known.taints.contains(taint))
            // One that evicts for another reason has had its turn.
            && !known.taints.iter().any(is_evicting)
            && !self.zones.give_up(&known.zone, now)
        {
            wanted.retain(|taint| !is_evicting(taint));
        }
        if let Some(patch) = known.taints_patch(wanted) {
            self.write(name, false, patch).await;
        }
    }

    async fn write(&self, name: &str, is_status: bool, patch: Value) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let params = PatchParams::default();
        let written = async {
            if is_status {
                nodes
                    .patch_status(name, &params, &Patch::Strategic(patch))
                    .await
            } else {
                nodes.patch(name, &params, &Patch::Merge(patch)).await
            }
        };
        match timeout(WRITE_TIMEOUT, written).await {
            Ok(Ok(_)) => {}
            // There is news already, or the node has gone.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
            Ok(Err(error)) => warn!(node = name, error = %retry::text(&error), "Node not updated"),
            Err(_) => warn!(node = name, "Node not updated in time"),
        }
    }

    fn record_not_ready(&self, name: &str, known: &Known) {
        let object = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(name.into()),
            uid: Some(known.uid.clone()),
            ..ObjectReference::default()
        };
        self.recorder.record(Note {
            object,
            type_: "Normal",
            reason: "NodeNotReady",
            message: format!("Node {name} status is now: NodeNotReady"),
            component: "node-controller".into(),
        });
    }
}

impl Known {
    fn read(node: &Node) -> Self {
        let conditions: &[NodeCondition] = node
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_deref())
            .unwrap_or_default();
        let spec = node.spec.as_ref();
        let ready = conditions
            .iter()
            .find(|condition| condition.type_ == "Ready");
        Self {
            uid: node.uid().unwrap_or_default(),
            resource_version: node.resource_version().unwrap_or_default(),
            conditions: conditions
                .iter()
                .map(|condition| (condition.type_.clone(), condition.status.clone()))
                .collect(),
            taints: spec
                .and_then(|spec| spec.taints.clone())
                .unwrap_or_default(),
            is_unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
            heartbeat: ready.and_then(|ready| Some(ready.last_heartbeat_time.as_ref()?.0)),
            zone: {
                let label = |key: &str| node.labels().get(key).map_or("", String::as_str);
                let (region, zone) = (label(REGION), label(ZONE));
                format!("{region}:{zone}")
            },
        }
    }

    /// Its zone, and whether it is ready.
    fn place(&self) -> (&str, bool) {
        (&self.zone, self.condition("Ready") == Some("True"))
    }

    fn condition(&self, type_: &str) -> Option<&str> {
        self.conditions
            .iter()
            .find(|(other, _)| other == type_)
            .map(|(_, status)| status.as_str())
    }

    /// The conditions of a node that is silent, unless it has them.
    fn silence(&self, now: Timestamp) -> Option<Value> {
        let unknown = |type_: &&str| {
            let (reason, message) = match self.condition(type_) {
                Some("Unknown") => return None,
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => (
                    "NodeStatusNeverUpdated",
                    "Kubelet never posted node status.",
                ),
            };
            let at = Time(now);
            Some(json!({
                "type": type_, "status": "Unknown", "reason": reason, "message": message, "lastTransitionTime": at,
            }))
        };
        let conditions: Vec<_> = CONDITIONS.iter().filter_map(unknown).collect();
        (!conditions.is_empty()).then(|| {
            json!({
                "metadata": { "resourceVersion": self.resource_version },
                "status": { "conditions": conditions },
            })
        })
    }

    /// Gives the node these taints, unless it has them.
    fn taints_patch(&self, wanted: Vec<Taint>) -> Option<Value> {
        (wanted != self.taints).then(|| {
            json!({
                "metadata": { "resourceVersion": self.resource_version },
                "spec": { "taints": wanted },
            })
        })
    }

    /// The taints that follow from the conditions, and those that are others'.
    fn wanted_taints(&self, now: Timestamp) -> Vec<Taint> {
        let mut wanted: Vec<(&str, &str)> = Vec::new();
        match self.condition("Ready") {
            Some("False") => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
            Some("Unknown") => {
                wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")])
            }
            _ => {}
        }
        let pressed = PRESSURES
            .iter()
            .filter(|(type_, _)| self.condition(type_) == Some("True"));
        wanted.extend(pressed.map(|(_, key)| (*key, "NoSchedule")));
        if self.is_unschedulable {
            wanted.push((UNSCHEDULABLE, "NoSchedule"));
        }
        let is_own = |taint: &Taint| {
            let keys = [NOT_READY, UNREACHABLE, UNSCHEDULABLE]
                .into_iter()
                .chain(PRESSURES.map(|(_, key)| key));
            keys.into_iter().any(|key| key == taint.key)
        };
        let is_wanted =
            |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
        let mut taints: Vec<Taint> = self
            .taints
            .iter()
            .filter(|taint| !is_own(taint) || is_wanted(taint))
            .cloned()
            .collect();
        for (key, effect) in wanted {
            if !taints
                .iter()
                .any(|taint| taint.key == key && taint.effect == effect)
            {
                taints.push(Taint {
                    key: key.into(),
                    effect: effect.into(),
                    time_added: (effect == "NoExecute").then_some(Time(now)),
                    value: None,
                });
            }
        }
        taints
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn node(ready: &str) -> Value {
        json!({
            "metadata": { "name": "n" },
            "status": { "conditions": [{ "type": "Ready", "status": ready, "lastHeartbeatTime": "2026-01-01T00:00:00Z" }] },
        })
    }

    fn known(node: Value) -> Known {
        Known::read(&serde_json::from_value(node).unwrap())
    }

    #[test]
    fn taints_follow_from_conditions_and_others_stay() {
        let keys = |node: Value| {
            let taints = known(node).wanted_taints(Timestamp::UNIX_EPOCH);
            taints
                .iter()
                .map(|taint| format!("{}:{}", taint.key, taint.effect))
                .collect::<Vec<_>>()
        };
        assert_eq!(keys(node("True")), [""; 0]);
        assert_eq!(
            keys(node("False")),
            [
                "node.kubernetes.io/not-ready:NoSchedule",
                "node.kubernetes.io/not-ready:NoExecute"
            ]
        );
        let mut cordoned = node("True");
        cordoned["spec"] = json!({ "unschedulable": true, "taints": [
            { "key": "mine", "effect": "NoSchedule" },
            { "key": UNREACHABLE, "effect": "NoSchedule" },
        ] });
        cordoned["status"]["conditions"] = json!([{ "type": "DiskPressure", "status": "True" }]);
        assert_eq!(
            keys(cordoned),
            [
                "mine:NoSchedule",
                "node.kubernetes.io/disk-pressure:NoSchedule",
                "node.kubernetes.io/unschedulable:NoSchedule"
            ]
        );
    }

    #[test]
    fn what_a_node_has_already_is_not_written() {
        let mut silent = node("Unknown");
        let now = Timestamp::UNIX_EPOCH;
        let patch = known(silent.clone()).silence(now).unwrap();
        assert_eq!(
            patch["status"]["conditions"].as_array().unwrap().len(),
            3,
            "Ready is unknown already"
        );
        assert_eq!(
            patch["status"]["conditions"][0]["reason"],
            "NodeStatusNeverUpdated"
        );
        let wanted = |node: Value| {
            let known = known(node);
            known.taints_patch(known.wanted_taints(now))
        };
        let taints = wanted(silent.clone()).unwrap();
        silent["spec"] = taints["spec"].clone();
        assert_eq!(wanted(silent), None);
    }

    #[tokio::test]
    async fn a_node_that_is_gone_is_forgotten_by_plugins() {
        const PLUGINS: &str = "wherry.dev/v1alpha1/plugins";
        let fake = Fake::new();
        let shutdown = CancellationToken::new();
        fake.put("v1/nodes", node("True"));
        let said = json!({"before": {}, "n": {}});
        let plugin = json!({"metadata": {"name": "p"}, "status": {"nodes": said}});
        fake.put(PLUGINS, plugin);
        let grace_period = Duration::from_secs(3600);
        let recorder = Recorder::new().0;
        let task = tokio::spawn(run(fake.client(), grace_period, recorder, shutdown.clone()));
        // What went before the controller came, and what goes now.
        for left in [json!({"n": {}}), json!({})] {
            fake.wait_for(PLUGINS, |plugin| plugin["status"]["nodes"] == left)
                .await;
            fake.remove("v1/nodes", "", "n");
        }
        shutdown.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_silent_node_becomes_unknown_and_is_tainted_and_a_lease_keeps_it_ready() {
        let fake = Fake::new();
        let shutdown = CancellationToken::new();
        fake.put("v1/nodes", node("True"));
        let mut other = node("True");
        other["metadata"]["name"] = "heard".into();
        fake.put("v1/nodes", other);
        let (recorder, _notes) = Recorder::new();
        let grace_period = Duration::from_secs(2);
        let task = tokio::spawn(run(fake.client(), grace_period, recorder, shutdown.clone()));
        let leases = fake.clone();
        let renewing = tokio::spawn(async move {
            let mut beat = tokio::time::interval(Duration::from_millis(200));
            loop {
                beat.tick().await;
                leases.put("coordination.k8s.io/v1/leases", json!({
                    "metadata": { "name": "heard", "namespace": LEASE_NAMESPACE },
                    "spec": { "renewTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string() },
                }));
            }
        });
        let gone = fake
            .wait_for("v1/nodes", |node| {
                node["metadata"]["name"] == "n" && node["spec"]["taints"][1]["key"] == UNREACHABLE
            })
            .await;
        let ready = &gone["status"]["conditions"][0];
        assert_eq!(ready["status"], "Unknown");
        assert_eq!(ready["message"], "Kubelet stopped posting node status.");
        assert_eq!(
            fake.get("v1/nodes", "", "heard").unwrap()["status"]["conditions"][0]["status"],
            "True"
        );

        // The node is back: its own status takes the taints off.
        fake.put("v1/nodes", {
            let mut back = gone.clone();
            back["status"] = node("True")["status"].clone();
            back["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-01-01T00:00:09Z".into();
            back
        });
        fake.wait_for("v1/nodes", |node| {
            node["metadata"]["name"] == "n" && node["spec"]["taints"] == json!([])
        })
        .await;
        renewing.abort();
        shutdown.cancel();
        task.await.unwrap();
    }
}

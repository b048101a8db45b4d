//! Which objects the pods of each node name, kept as pods, volumes and attachments come and go.
//!
//! ```text
//!  node ◀─ pod ─▶ ConfigMap, Secret, ServiceAccount
//!            └──▶ PersistentVolumeClaim ◀─ PersistentVolume ─▶ Secret
//!  node ◀─ VolumeAttachment
//! ```
//!
//! A server that no node asks keeps nothing: the graph is read when it is first needed, and followed from then on.

mod edges;

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{OnceCell, mpsc, watch};
use tokio_util::sync::CancellationToken;
use wherry_api::Resource;
use wherry_store::{Event, KeyValue, Revision, Store, StoreError, WatchMessage};

use crate::{App, stored};

/// How long a node that asks for what it may not see is held up, for what the store knows to become known here. A pod
/// may be asked for on behalf of a moment after it was bound; the store tells of other keys within a second.
const CATCH_UP_MAX: Duration = Duration::from_millis(1_500);
/// Before the store is asked again after it failed.
const RETRY: Duration = Duration::from_millis(200);

/// What leads to nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Account,
    Attachment,
    Claim,
    ConfigMap,
    Secret,
    Volume,
}

/// An object by its name; `namespace` is empty for what lives in none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Object {
    kind: Kind,
    namespace: Box<str>,
    name: Box<str>,
}

impl Object {
    pub(crate) fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// What objects lead to: nodes, by way of pods; or other objects, by way of volumes. Counted, because several pods of
/// a node may name the same.
#[derive(Debug, Default)]
struct Edges {
    nodes: HashMap<(Object, Box<str>), u32>,
    objects: HashMap<Object, HashMap<Object, u32>>,
}

impl Edges {
    fn add(&mut self, found: edges::Found) {
        match found {
            edges::Found::Of(node, objects) => {
                for object in objects {
                    *self.nodes.entry((object, node.clone())).or_default() += 1;
                }
            }
            edges::Found::Through(to, objects) => {
                for object in objects {
                    let leads_to = self.objects.entry(object).or_default();
                    *leads_to.entry(to.clone()).or_default() += 1;
                }
            }
        }
    }

    fn remove(&mut self, found: edges::Found) {
        match found {
            edges::Found::Of(node, objects) => {
                for object in objects {
                    let key = (object, node.clone());
                    if let Some(count) = self.nodes.get_mut(&key) {
                        *count -= 1;
                        if *count == 0 {
                            self.nodes.remove(&key);
                        }
                    }
                }
            }
            edges::Found::Through(to, objects) => {
                for object in objects {
                    let Some(leads_to) = self.objects.get_mut(&object) else {
                        continue;
                    };
                    if let Some(count) = leads_to.get_mut(&to) {
                        *count -= 1;
                        if *count == 0 {
                            leads_to.remove(&to);
                        }
                    }
                    if leads_to.is_empty() {
                        self.objects.remove(&object);
                    }
                }
            }
        }
    }

    /// Whether there is a way from the object to the node. Ways are at most three objects long: a Secret, its volume,
    /// the volume's claim.
    fn leads(&self, object: &Object, node: &str) -> bool {
        self.nodes.contains_key(&(object.clone(), node.into()))
            || self
                .objects
                .get(object)
                .is_some_and(|next| next.keys().any(|next| self.leads(next, node)))
    }
}

/// Resources that the graph is made of.
const FOLLOWED: [(&str, &str); 3] = [
    ("", "pods"),
    ("", "persistentvolumes"),
    ("storage.k8s.io", "volumeattachments"),
];

fn rows() -> impl Iterator<Item = &'static Resource> {
    FOLLOWED
        .iter()
        .map(|(group, plural)| wherry_api::find(group, "v1", plural).expect("a row"))
}

#[derive(Default)]
pub(crate) struct NodeGraph {
    edges: Mutex<Edges>,
    /// How far each of [`FOLLOWED`] has been followed; empty until the graph is needed.
    reached: OnceCell<Vec<watch::Receiver<Revision>>>,
}

impl NodeGraph {
    fn edges(&self) -> MutexGuard<'_, Edges> {
        self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one of the node's pods names the object, directly or by what it names.
    pub(crate) async fn leads(&self, app: &App, node: &str, object: &Object) -> bool {
        let started = self.reached.get_or_try_init(|| start(app)).await;
        let reached = match started {
            Ok(reached) => reached,
            Err(error) => {
                tracing::warn!(%error, "The objects that nodes may see could not be read");
                return false;
            }
        };
        if self.edges().leads(object, node) {
            return true;
        }
        let Ok(now) = app.store.current_revision().await else {
            return false;
        };
        let caught_up = async {
            for reached in reached {
                let _ = reached.clone().wait_for(|at| *at >= now).await;
            }
        };
        let _ = tokio::time::timeout(CATCH_UP_MAX, caught_up).await;
        self.edges().leads(object, node)
    }
}

/// Reads everything and begins to follow it.
async fn start(app: &App) -> Result<Vec<watch::Receiver<Revision>>, StoreError> {
    let mut reached = Vec::new();
    for row in rows() {
        let follower = Follower::begin(app, row).await?;
        let (sender, receiver) = watch::channel(follower.revision);
        reached.push(receiver);
        let graph = app.graph.clone();
        for kv in &follower.known {
            if let Some(found) = edges::of(row, kv) {
                graph.edges().add(found);
            }
        }
        tokio::spawn(follower.run(graph, sender, app.shutdown.clone()));
    }
    Ok(reached)
}

/// Follows one resource.
struct Follower {
    row: &'static Resource,
    store: std::sync::Arc<dyn Store>,
    /// What was there at `revision`, until it has been taken in.
    known: Vec<KeyValue>,
    revision: Revision,
    messages: mpsc::Receiver<WatchMessage>,
}

impl Follower {
    async fn begin(app: &App, row: &'static Resource) -> Result<Self, StoreError> {
        Self::open(app.store.clone(), row).await
    }

    async fn open(
        store: std::sync::Arc<dyn Store>,
        row: &'static Resource,
    ) -> Result<Self, StoreError> {
        let listed = store.list(&stored::prefix(row), None, 0, 0).await?;
        let messages = store.watch(&stored::prefix(row), listed.revision).await?;
        Ok(Self {
            row,
            store,
            known: listed.items,
            revision: listed.revision,
            messages,
        })
    }

    async fn run(
        mut self,
        graph: std::sync::Arc<NodeGraph>,
        reached: watch::Sender<Revision>,
        shutdown: CancellationToken,
    ) {
        self.known = Vec::new();
        loop {
            let message = tokio::select! {
                () = shutdown.cancelled() => return,
                message = self.messages.recv() => message,
            };
            match message {
                Some(WatchMessage::Events(events)) => {
                    let last = events.last().map(|event| event.revision);
                    for event in &events {
                        apply(&mut graph.edges(), self.row, event);
                    }
                    reached.send_if_modified(|at| raise(at, last.unwrap_or_default()));
                }
                Some(WatchMessage::Progress(revision)) => {
                    reached.send_if_modified(|at| raise(at, revision));
                }
                Some(WatchMessage::Lost) | None => {
                    let Some(again) = self.again(&graph, &shutdown).await else {
                        return;
                    };
                    self = again;
                    reached.send_if_modified(|at| raise(at, self.revision));
                }
            }
        }
    }

    /// Reads everything anew: what has gone meanwhile nobody tells.
    async fn again(&self, graph: &NodeGraph, shutdown: &CancellationToken) -> Option<Self> {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(RETRY) => {}
            }
            let Ok(mut follower) = Self::open(self.store.clone(), self.row).await else {
                continue;
            };
            let mut fresh = Edges::default();
            for kv in std::mem::take(&mut follower.known) {
                if let Some(found) = edges::of(self.row, &kv) {
                    fresh.add(found);
                }
            }
            let mut edges = graph.edges();
            // What a resource leads to is its own: pods to nodes, but so do attachments, and volumes to claims.
            if self.row.plural == "persistentvolumes" {
                edges.objects = fresh.objects;
            } else {
                let is_attachment = self.row.plural == "volumeattachments";
                edges
                    .nodes
                    .retain(|(object, _), _| (object.kind == Kind::Attachment) != is_attachment);
                edges.nodes.extend(fresh.nodes);
            }
            return Some(follower);
        }
    }
}

fn raise(at: &mut Revision, to: Revision) -> bool {
    let is_further = to > *at;
    if is_further {
        *at = to;
    }
    is_further
}

fn apply(edges: &mut Edges, row: &Resource, event: &Event) {
    let before = match (&event.previous, event.deleted) {
        (Some(previous), _) => edges::of(row, previous),
        // The store may leave the value before out of a deletion: the event's own is the same.
        (None, true) => edges::of(row, &event.kv),
        (None, false) => None,
    };
    let after = if event.deleted {
        None
    } else {
        edges::of(row, &event.kv)
    };
    if before == after {
        return;
    }
    // In this order: what stays is never gone in between.
    if let Some(found) = after {
        edges.add(found);
    }
    if let Some(found) = before {
        edges.remove(found);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;

    fn row(plural: &str) -> &'static Resource {
        rows().find(|row| row.plural == plural).expect("a row")
    }

    fn kv(object: &Value) -> KeyValue {
        KeyValue {
            key: "".into(),
            value: Bytes::from(object.to_string()).into(),
            create_revision: 1,
            mod_revision: 1,
        }
    }

    fn change(
        plural: &str,
        before: Option<&Value>,
        after: Option<&Value>,
    ) -> (&'static Resource, Event) {
        let event = Event {
            revision: 2,
            kv: kv(after.or(before).expect("one")),
            previous: before.map(kv),
            deleted: after.is_none(),
        };
        (row(plural), event)
    }

    #[test]
    fn a_node_sees_what_its_pods_name_and_no_longer_when_they_are_gone() {
        let pod = |node: &str| {
            json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": {
                "nodeName": node, "serviceAccountName": "robot",
                "containers": [{"name": "a", "envFrom": [{"secretRef": {"name": "env"}}]}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "claim"}}],
            }})
        };
        let volume = json!({"metadata": {"name": "pv"}, "spec": {
            "claimRef": {"namespace": "ns", "name": "claim"},
            "csi": {"driver": "d", "nodePublishSecretRef": {"namespace": "vault", "name": "key"}},
        }});
        let mut edges = Edges::default();
        let of = |kind, namespace: &str, name: &str| Object::new(kind, namespace, name);
        let wanted = [
            of(Kind::Secret, "ns", "env"),
            of(Kind::Account, "ns", "robot"),
            of(Kind::Claim, "ns", "claim"),
            of(Kind::Volume, "", "pv"),
            of(Kind::Secret, "vault", "key"),
        ];
        let seen = |edges: &Edges, node: &str| {
            wanted
                .iter()
                .filter(|object| edges.leads(object, node))
                .count()
        };
        let tell = |edges: &mut Edges, (row, event)| apply(edges, row, &event);
        tell(&mut edges, change("persistentvolumes", None, Some(&volume)));
        assert_eq!(seen(&edges, "a"), 0);
        let unbound = json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": {"serviceAccountName": "robot"}});
        tell(&mut edges, change("pods", None, Some(&unbound)));
        assert_eq!(seen(&edges, "a"), 0);
        tell(&mut edges, change("pods", Some(&unbound), Some(&pod("a"))));
        tell(&mut edges, change("pods", None, Some(&pod("a"))));
        assert_eq!((seen(&edges, "a"), seen(&edges, "b")), (wanted.len(), 0));
        tell(&mut edges, change("pods", Some(&pod("a")), None));
        assert_eq!(
            seen(&edges, "a"),
            wanted.len(),
            "another pod names the same"
        );
        tell(&mut edges, change("pods", Some(&pod("a")), None));
        assert_eq!(seen(&edges, "a"), 0);
        tell(&mut edges, change("persistentvolumes", Some(&volume), None));
        assert!(edges.nodes.is_empty() && edges.objects.is_empty());
    }
}

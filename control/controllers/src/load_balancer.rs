//! Services of type LoadBalancer: `status.loadBalancer` names the nodes that answer for them.
//!
//! There is no balancer: every node passes packets for its own address and the Service's port on, as for an external
//! IP. What a Service may not have is a port that a node needs itself, or that an older Service has already.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::{
    api::{
        core::v1::{Endpoints, Node, ObjectReference, Service},
        discovery::v1::EndpointSlice,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    events::{Note, Recorder},
    retry,
    watched::key_of,
    workqueue::Key,
};

/// Services with another `spec.loadBalancerClass` are somebody else's.
const CLASS: &str = "wherry.dev/node-address";
/// Nodes with this label answer for none.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// On slices: the Service that they are of.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Between looks at what no watch tells: where the pods of a Service are whose traffic stays on its node, and what
/// could not be written.
const PERIOD: Duration = Duration::from_secs(5);

/// A port of a transport.
type Port = (String, i32);

#[derive(Clone, Debug, PartialEq)]
struct ServiceView {
    key: Key,
    uid: String,
    created: Timestamp,
    /// This controller sees to it.
    is_ours: bool,
    /// `externalTrafficPolicy: Local`.
    is_local: bool,
    ports: BTreeSet<Port>,
    /// What its status says.
    ingress: BTreeSet<String>,
}

impl From<&Service> for ServiceView {
    fn from(service: &Service) -> Self {
        let empty = Default::default();
        let spec = service.spec.as_ref().unwrap_or(&empty);
        let class = spec.load_balancer_class.as_deref();
        let ports = spec.ports.iter().flatten();
        let status = service.status.as_ref();
        let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        Self {
            key: key_of(service),
            uid: service.metadata.uid.clone().unwrap_or_default(),
            created: service
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            is_ours: spec.type_.as_deref() == Some("LoadBalancer")
                && class.is_none_or(|class| class == CLASS)
                && service.metadata.deletion_timestamp.is_none(),
            is_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            ports: ports
                .map(|port| {
                    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
                    (protocol, port.port)
                })
                .collect(),
            ingress: ingress
                .into_iter()
                .flatten()
                .filter_map(|ingress| ingress.ip.clone())
                .collect(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct NodeView {
    /// Ready, and not kept out of it.
    is_usable: bool,
    addresses: Vec<Ipv4Addr>,
    kubelet_port: Option<i32>,
}

impl From<&Node> for NodeView {
    fn from(node: &Node) -> Self {
        let status = node.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let is_ready = conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let addresses = status.and_then(|status| status.addresses.as_ref());
        Self {
            is_usable: is_ready
                && !node.labels().contains_key(EXCLUDED)
                && node.metadata.deletion_timestamp.is_none(),
            addresses: addresses
                .into_iter()
                .flatten()
                .filter(|address| address.type_ == "InternalIP")
                .filter_map(|address| address.address.parse().ok())
                .collect(),
            kubelet_port: status
                .and_then(|status| status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref())
                .map(|endpoint| endpoint.port),
        }
    }
}

/// What is to be said of a Service.
#[derive(Debug, PartialEq)]
struct Wanted {
    key: Key,
    ingress: BTreeSet<String>,
    /// Why there is none.
    trouble: Option<String>,
}

/// Decides for all Services. `api` is where API servers are; `local` are the nodes with pods of Services whose traffic
/// stays on its node. Pure.
fn plan(
    services: &[&ServiceView],
    nodes: &BTreeMap<String, NodeView>,
    api: &BTreeSet<(IpAddr, i32)>,
    local: &HashMap<Key, BTreeSet<String>>,
) -> Vec<Wanted> {
    let mut services = services.to_vec();
    services.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
    let mut taken: BTreeMap<&Port, &Key> = BTreeMap::new();
    let mut all = Vec::new();
    for service in services {
        let mut wanted = Wanted {
            key: service.key.clone(),
            ingress: BTreeSet::new(),
            trouble: None,
        };
        if !service.is_ours {
            all.push(wanted);
            continue;
        }
        let conflict = service
            .ports
            .iter()
            .find_map(|port| Some((port, taken.get(port)?)));
        if let Some(((protocol, number), other)) = conflict {
            wanted.trouble = Some(format!(
                "port {number}/{protocol} of the nodes is Service {}/{}'s",
                other.namespace, other.name
            ));
            all.push(wanted);
            continue;
        }
        taken.extend(service.ports.iter().map(|port| (port, &service.key)));
        let mut refused = None;
        for (name, node) in nodes.iter().filter(|(_, node)| node.is_usable) {
            if service.is_local && !local.get(&service.key).is_some_and(|at| at.contains(name)) {
                continue;
            }
            for address in &node.addresses {
                let needs = |(protocol, port): &&Port| {
                    protocol == "TCP"
                        && (node.kubelet_port == Some(*port)
                            || api.contains(&(IpAddr::V4(*address), *port)))
                };
                match service.ports.iter().find(needs) {
                    Some((protocol, port)) => {
                        refused = Some(format!("node {name} needs port {port}/{protocol} itself"));
                    }
                    None => drop(wanted.ingress.insert(address.to_string())),
                }
            }
        }
        if wanted.ingress.is_empty() {
            wanted.trouble = refused;
        }
        all.push(wanted);
    }
    all
}

struct Controller {
    client: Client,
    recorder: Recorder,
    services: BTreeMap<Key, ServiceView>,
    nodes: BTreeMap<String, NodeView>,
    are_listed: (bool, bool),
    /// What was last said of each.
    told: HashMap<Key, String>,
}

/// Runs until shutdown.
pub(crate) async fn run(client: Client, recorder: Recorder, shutdown: CancellationToken) {
    let mut controller = Controller {
        client: client.clone(),
        recorder,
        services: BTreeMap::new(),
        nodes: BTreeMap::new(),
        are_listed: (false, false),
        told: HashMap::new(),
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = controller.keep() => {}
    }
}

impl Controller {
    async fn keep(&mut self) {
        let config = watcher::Config::default;
        let services = watcher(Api::<Service>::all(self.client.clone()), config());
        let nodes = watcher(Api::<Node>::all(self.client.clone()), config());
        let mut services = services.default_backoff().boxed();
        let mut nodes = nodes.default_backoff().boxed();
        let mut again = tokio::time::interval(PERIOD);
        again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failed = false;
        loop {
            let is_due = tokio::select! {
                event = services.next() => match event {
                    Some(Ok(event)) => self.hear_service(event),
                    Some(Err(error)) => { warn!(%error, "Services not watched"); false }
                    None => return,
                },
                event = nodes.next() => match event {
                    Some(Ok(event)) => self.hear_node(event),
                    Some(Err(error)) => { warn!(%error, "Nodes not watched"); false }
                    None => return,
                },
                _ = again.tick() => failed || self.services.values().any(|service| service.is_ours && service.is_local),
            };
            if is_due && self.are_listed == (true, true) {
                failed = match self.reconcile().await {
                    Ok(()) => false,
                    Err(error) => {
                        warn!(error = %retry::text(&error), "Load balancers not reconciled");
                        true
                    }
                };
            }
        }
    }

    /// Answers whether anything changed.
    fn hear_service(&mut self, event: Event<Service>) -> bool {
        match event {
            Event::Init => {
                self.services.clear();
                self.are_listed.0 = false;
            }
            Event::InitApply(service) | Event::Apply(service) => {
                let view = ServiceView::from(&service);
                // Of the others only those matter that say what is not so any more.
                if !view.is_ours && view.ingress.is_empty() {
                    return self.services.remove(&view.key).is_some();
                }
                let old = self.services.insert(view.key.clone(), view.clone());
                return old.as_ref() != Some(&view);
            }
            Event::InitDone => self.are_listed.0 = true,
            Event::Delete(service) => {
                let key = key_of(&service);
                self.told.remove(&key);
                return self.services.remove(&key).is_some();
            }
        }
        true
    }

    fn hear_node(&mut self, event: Event<Node>) -> bool {
        match event {
            Event::Init => {
                self.nodes.clear();
                self.are_listed.1 = false;
            }
            Event::InitApply(node) | Event::Apply(node) => {
                let view = NodeView::from(&node);
                let old = self.nodes.insert(node.name_any(), view.clone());
                return old.as_ref() != Some(&view);
            }
            Event::InitDone => self.are_listed.1 = true,
            Event::Delete(node) => return self.nodes.remove(&node.name_any()).is_some(),
        }
        true
    }

    async fn reconcile(&mut self) -> kube::Result<()> {
        if self.services.is_empty() {
            return Ok(());
        }
        let api = self.api_servers().await?;
        let mut local = HashMap::new();
        for service in self.services.values() {
            if service.is_ours && service.is_local {
                let at = self.nodes_of(&service.key).await?;
                local.insert(service.key.clone(), at);
            }
        }
        let services: Vec<&ServiceView> = self.services.values().collect();
        for wanted in plan(&services, &self.nodes, &api, &local) {
            self.write(wanted).await?;
        }
        Ok(())
    }

    /// Where API servers are: the endpoints of the Service `kubernetes`.
    async fn api_servers(&self) -> kube::Result<BTreeSet<(IpAddr, i32)>> {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), "default");
        let found = api.get_opt("kubernetes").await?;
        let subsets = found.and_then(|found| found.subsets).unwrap_or_default();
        let mut all = BTreeSet::new();
        for subset in &subsets {
            for address in subset.addresses.iter().flatten() {
                for port in subset.ports.iter().flatten() {
                    all.extend(address.ip.parse().ok().map(|ip| (ip, port.port)));
                }
            }
        }
        Ok(all)
    }

    /// The nodes with endpoints of a Service that take connections.
    async fn nodes_of(&self, key: &Key) -> kube::Result<BTreeSet<String>> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        let of = ListParams::default().labels(&format!("{SERVICE_NAME}={}", key.name));
        let slices = api.list(&of).await?;
        let endpoints = slices.items.into_iter().flat_map(|slice| slice.endpoints);
        Ok(endpoints
            .flatten()
            .filter(|endpoint| {
                let ready = endpoint.conditions.as_ref().and_then(|all| all.ready);
                ready.unwrap_or(true)
            })
            .filter_map(|endpoint| endpoint.node_name)
            .collect())
    }

    async fn write(&mut self, wanted: Wanted) -> kube::Result<()> {
        let Some(service) = self.services.get_mut(&wanted.key) else {
            return Ok(());
        };
        if let Some(trouble) = &wanted.trouble
            && self.told.get(&wanted.key) != Some(trouble)
        {
            self.told.insert(wanted.key.clone(), trouble.clone());
            let note = note(service, "Warning", "LoadBalancerPortTaken", trouble.clone());
            self.recorder.record(note);
        }
        if service.ingress == wanted.ingress {
            return Ok(());
        }
        let ingress: Vec<_> = wanted
            .ingress
            .iter()
            .map(|ip| json!({ "ip": ip, "ipMode": "VIP" }))
            .collect();
        let ingress = (!ingress.is_empty()).then_some(ingress);
        let patch = json!({
            "metadata": { "uid": service.uid },
            "status": { "loadBalancer": { "ingress": ingress } },
        });
        let api: Api<Service> = Api::namespaced(self.client.clone(), &wanted.key.namespace);
        let written = api
            .patch_status(
                &wanted.key.name,
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await;
        match written {
            // It has gone, or is another by now; the watch tells.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(()),
            written => drop(written?),
        }
        if service.ingress.is_empty() {
            info!(
                namespace = wanted.key.namespace,
                service = wanted.key.name,
                "Load balancer has addresses"
            );
            let message = "Ensured load balancer".to_owned();
            self.recorder
                .record(note(service, "Normal", "EnsuredLoadBalancer", message));
        }
        if wanted.trouble.is_none() {
            self.told.remove(&wanted.key);
        }
        service.ingress = wanted.ingress;
        Ok(())
    }
}

fn note(service: &ServiceView, type_: &'static str, reason: &'static str, message: String) -> Note {
    Note {
        object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(service.key.namespace.clone()),
            name: Some(service.key.name.clone()),
            uid: Some(service.uid.clone()),
            ..ObjectReference::default()
        },
        type_,
        reason,
        message,
        component: "service-controller".into(),
    }
}

#[cfg(test)]
mod tests;

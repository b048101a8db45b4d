//! The Node object: registered, kept fresh, its lease renewed.
//!
//! The state is looked at every 10 s and reported when something changed, at least every 5 min; that
//! the node lives is the lease's to say. Nothing here touches the disk.

pub(crate) mod machine;
pub(crate) mod reserved;
mod status;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{
            DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
            NodeSpec, NodeStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::status::{Health, changes, conditions, essence, handlers, images};
use crate::{context::Context, events::Kind, server::Kubelet};

/// Longest wait for one call to the API server.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest pause between tries to register.
const REGISTER_RETRY_MIN: Duration = Duration::from_millis(100);
const REGISTER_RETRY_MAX: Duration = Duration::from_secs(7);
/// Where leases of nodes are.
const LEASE_NAMESPACE: &str = "kube-node-lease";

fn labels(context: &Context) -> BTreeMap<String, String> {
    let config = &context.config;
    let arch = machine::architecture();
    let mut labels = BTreeMap::from([
        (
            "kubernetes.io/hostname".to_owned(),
            config.node_name.clone(),
        ),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), arch.to_owned()),
        ("beta.kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("beta.kubernetes.io/arch".to_owned(), arch.to_owned()),
    ]);
    labels.extend(config.node_labels.clone());
    labels
}

fn addresses(context: &Context) -> Vec<NodeAddress> {
    let internal = context
        .host_ips()
        .iter()
        .map(IpAddr::to_string)
        .map(|address| ("InternalIP", address));
    internal
        .chain([("Hostname", context.config.node_name.clone())])
        .map(|(type_, address)| NodeAddress {
            type_: type_.into(),
            address,
        })
        .collect()
}

/// Keeps the Node object.
pub(crate) struct NodeKeeper {
    context: Arc<Context>,
    client: Client,
    runtime_version: String,
}

/// Whether conditions have the statuses that are reported.
fn says_the_same(reported: &[NodeCondition], there: &[NodeCondition]) -> bool {
    reported.iter().all(|condition| {
        let found = there.iter().find(|found| found.type_ == condition.type_);
        found.is_some_and(|found| found.status == condition.status)
    })
}

/// Registers the node, then reports and renews until shutdown.
pub(crate) async fn run(context: Arc<Context>, client: Client, shutdown: CancellationToken) {
    let mut versions = Vec::new();
    for runtime in &context.config.runtimes {
        versions.push(format!(
            "{}://{}",
            runtime.handler(),
            runtime.status().await.version
        ));
    }
    let runtime_version = versions.first().cloned().unwrap_or_default();
    let keeper = Arc::new(NodeKeeper {
        context,
        client,
        runtime_version,
    });
    let Some(uid) = keeper.register(&shutdown).await else {
        return;
    };
    let leases = Arc::clone(&keeper).renew(uid, shutdown.clone());
    let reports = keeper.report(shutdown);
    tokio::join!(leases, reports);
}

impl NodeKeeper {
    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// The object's uid, once it is there. `None` on shutdown.
    async fn register(&self, shutdown: &CancellationToken) -> Option<String> {
        let mut pause = REGISTER_RETRY_MIN;
        loop {
            let tried = tokio::select! {
                () = shutdown.cancelled() => return None,
                tried = timeout(CALL_TIMEOUT, self.register_once()) => tried,
            };
            match tried {
                Ok(Ok(node)) => {
                    info!(node = self.context.config.node_name, "Node registered");
                    self.context.recorder.record_node(
                        &node,
                        Kind::Normal,
                        "Starting",
                        "Starting kubelet.".into(),
                    );
                    return Some(node.metadata.uid.unwrap_or_default());
                }
                Ok(Err(error)) => debug!(%error, "Node not registered yet"),
                Err(_) => debug!("Node not registered yet: no answer"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = sleep(pause.mul_f64(0.5 + rand::random::<f64>())) => {}
            }
            pause = (pause * 2).min(REGISTER_RETRY_MAX);
        }
    }

    async fn register_once(&self) -> Result<Node, kube::Error> {
        let config = &self.context.config;
        let nodes = self.nodes();
        let there = nodes.get_opt(&config.node_name).await?;
        if let Some(node) = there {
            let have = node.metadata.labels.clone().unwrap_or_default();
            let missing: BTreeMap<_, _> = labels(&self.context)
                .into_iter()
                .filter(|(key, value)| have.get(key) != Some(value))
                .collect();
            let has_range = node
                .spec
                .as_ref()
                .is_some_and(|spec| spec.pod_cidr.is_some());
            let range = config.pod_cidr.as_ref().filter(|_| !has_range);
            if missing.is_empty() && range.is_none() {
                return Ok(node);
            }
            let mut patch = json!({ "metadata": { "labels": missing } });
            if let Some(range) = range {
                patch["spec"] = json!({ "podCIDR": range, "podCIDRs": [range] });
            }
            return nodes
                .patch(
                    &config.node_name,
                    &PatchParams::default(),
                    &Patch::Merge(patch),
                )
                .await;
        }
        if !config.register_node {
            let message = format!(
                "node {} is not there, and --register-node is off",
                config.node_name
            );
            return Err(kube::Error::Service(message.into()));
        }
        let node = Node {
            metadata: ObjectMeta {
                name: Some(config.node_name.clone()),
                labels: Some(labels(&self.context)),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                pod_cidr: config.pod_cidr.clone(),
                pod_cidrs: config.pod_cidr.clone().map(|range| vec![range]),
                ..NodeSpec::default()
            }),
            status: Some(self.status(&[]).await),
        };
        let node = nodes.create(&PostParams::default(), &node).await?;
        let status = node.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref());
        self.tell(&[], conditions.unwrap_or_default());
        Ok(node)
    }

    /// Records an event about each condition that changed.
    fn tell(&self, before: &[NodeCondition], after: &[NodeCondition]) {
        let name = &self.context.config.node_name;
        let mut node = Node::default();
        node.metadata.name = Some(name.clone());
        for change in changes(before, after) {
            let message = format!("Node {name} status is now: {change}");
            self.context
                .recorder
                .record_node(&node, Kind::Normal, change, message);
        }
    }

    /// What the node is now.
    async fn status(&self, before: &[NodeCondition]) -> NodeStatus {
        let context = &self.context;
        let config = &context.config;
        let (mut not_ready, mut lacks) = (None, Vec::new());
        let mut offers = Vec::new();
        for runtime in &config.runtimes {
            let handler = runtime.handler();
            let state = timeout(config.tuning.runtime_timeout, runtime.status()).await;
            let trouble = match state {
                Ok(state) if state.not_ready.is_none() => {
                    offers.push((handler, state.features));
                    continue;
                }
                Ok(state) => state.not_ready,
                Err(_) => Some("no answer".to_owned()),
            };
            let why = trouble.unwrap_or_default();
            let trouble = format!("container runtime {handler} is not ready: {why}");
            // Pods that ask for another runtime have to wait; all others need the default one.
            if handler == context.default_handler() {
                not_ready = Some(trouble);
            } else {
                lacks.push(trouble);
            }
        }
        let not_ready = not_ready.or_else(|| context.sync_loop().err());
        let pressure = context.pressure.conditions();
        let lacks = (!lacks.is_empty()).then(|| lacks.join("; "));
        let health = Health::new(&pressure, not_ready, lacks);
        let mut info = context.machine.info.clone();
        info.container_runtime_version
            .clone_from(&self.runtime_version);
        let list = context.images.list().await;
        NodeStatus {
            capacity: Some(context.machine.capacity(config.max_pods)),
            allocatable: Some(context.allocatable()),
            conditions: Some(conditions(&health, before, context.now())),
            addresses: Some(addresses(context)),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint {
                    port: i32::from(config.kubelet_port),
                }),
            }),
            node_info: Some(info),
            images: Some(images(&list)),
            runtime_handlers: Some(handlers(&offers)),
            features: Some(NodeFeatures {
                supplemental_groups_policy: Some(false),
            }),
            ..NodeStatus::default()
        }
    }

    async fn report(&self, shutdown: CancellationToken) {
        let tuning = &self.context.config.tuning;
        let mut ticks = interval(tuning.node_status_period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last: Option<(Value, Instant)> = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            // What is there may not be what was last written: who has not heard of the node for a while says so in its
            // conditions.
            let node = timeout(
                CALL_TIMEOUT,
                self.nodes().get_opt(&self.context.config.node_name),
            )
            .await;
            let before = match node {
                Ok(Ok(Some(node))) => node.status.and_then(|s| s.conditions).unwrap_or_default(),
                // Somebody deleted it: a living node comes back.
                Ok(Ok(None)) => {
                    last = None;
                    if let Err(error) = self.register_once().await {
                        warn!(%error, "Node not registered again yet");
                    }
                    continue;
                }
                Ok(Err(_)) | Err(_) => continue,
            };
            let status = self.status(&before).await;
            let essence = essence(&status);
            let is_news = last.as_ref().is_none_or(|(last, at)| {
                *last != essence || at.elapsed() >= tuning.node_report_period
            });
            let after = status.conditions.clone().unwrap_or_default();
            if !is_news && says_the_same(&after, &before) {
                continue;
            }
            let patch = json!({ "status": status });
            let params = PatchParams::default();
            let name = &self.context.config.node_name;
            let nodes = self.nodes();
            let patch = Patch::Strategic(patch);
            let sent = nodes.patch_status(name, &params, &patch);
            match timeout(CALL_TIMEOUT, sent).await {
                Ok(Ok(_)) => {
                    self.tell(&before, &after);
                    last = Some((essence, Instant::now()));
                }
                Ok(Err(error)) => debug!(%error, "Node status not written"),
                Err(_) => debug!("Node status not written: no answer"),
            }
        }
    }

    async fn renew(self: Arc<Self>, node_uid: String, shutdown: CancellationToken) {
        let tuning = &self.context.config.tuning;
        let mut ticks = interval(tuning.lease_renew_period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_there = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            // A failed renewal is tried again soon: the lease runs out in 40 s.
            for attempt in 0..5u32 {
                match timeout(CALL_TIMEOUT, self.renew_once(&node_uid, is_there)).await {
                    Ok(Ok(())) => {
                        is_there = true;
                        break;
                    }
                    Ok(Err(error)) => {
                        is_there = false;
                        debug!(%error, "Lease not renewed");
                    }
                    Err(_) => debug!("Lease not renewed: no answer"),
                }
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = sleep(Duration::from_millis(200 << attempt)) => {}
                }
            }
        }
    }

    async fn renew_once(&self, node_uid: &str, is_there: bool) -> Result<(), kube::Error> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let config = &self.context.config;
        let now =
            MicroTime(Timestamp::try_from(self.context.now()).unwrap_or(Timestamp::UNIX_EPOCH));
        let duration = i32::try_from(config.tuning.lease_duration.as_secs()).ok();
        if is_there {
            let patch = json!({ "spec": { "renewTime": now, "leaseDurationSeconds": duration } });
            leases
                .patch(
                    &config.node_name,
                    &PatchParams::default(),
                    &Patch::Merge(patch),
                )
                .await?;
            return Ok(());
        }
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: config.node_name.clone(),
            uid: node_uid.into(),
            ..OwnerReference::default()
        };
        let spec = LeaseSpec {
            holder_identity: Some(config.node_name.clone()),
            lease_duration_seconds: duration,
            renew_time: Some(now),
            ..LeaseSpec::default()
        };
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(config.node_name.clone()),
                namespace: Some(LEASE_NAMESPACE.into()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(spec.clone()),
        };
        match leases.create(&PostParams::default(), &lease).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let patch = json!({ "spec": spec });
                leases
                    .patch(
                        &config.node_name,
                        &PatchParams::default(),
                        &Patch::Merge(patch),
                    )
                    .await
                    .map(drop)
            }
            Err(error) => Err(error),
        }
    }
}

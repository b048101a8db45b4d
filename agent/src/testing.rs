//! A node of fakes, for tests of how the agent behaves as a whole.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wherry_plugin_host::{Exec, ProbeAction, ProbeOutcome, ProbeRequest, ProbeResult, Prober};
use wherry_runtime_api::{
    ImageKind, Runtime,
    fake::{FakeClock, FakeImages, FakeRuntime},
};
use wherry_volumes::{PodContext, Refreshed};

use crate::{
    Agent, Config,
    context::Context,
    eviction::Evictor,
    network::{Attach, Member, Network},
    pod::{self, manager::Manager, restart::BackoffPolicy},
    source::{PodUpdate, Source, mirror::Mirrors},
    volume::Volumes,
};

/// Longest wait for anything to become true.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hands out addresses, and remembers who has one.
#[derive(Default)]
pub(crate) struct FakeNetwork {
    pub(crate) attached: Mutex<BTreeMap<String, IpAddr>>,
    pub(crate) fails: Mutex<Option<String>>,
}

#[async_trait]
impl Network for FakeNetwork {
    async fn attach(&self, pod: &Member, _: Attach) -> Result<Vec<IpAddr>, String> {
        if let Some(why) = self.fails.lock().expect("held shortly").clone() {
            return Err(why);
        }
        let mut attached = self.attached.lock().expect("held shortly");
        let next = u8::try_from(attached.len() + 2).expect("few pods");
        Ok(vec![
            *attached
                .entry(pod.uid.clone())
                .or_insert(Ipv4Addr::new(10, 88, 0, next).into()),
        ])
    }

    async fn detach(&self, uid: &str) -> Result<(), String> {
        self.attached.lock().expect("held shortly").remove(uid);
        Ok(())
    }

    async fn retain(&self, live: &HashSet<String>) -> Result<(), String> {
        self.attached
            .lock()
            .expect("held shortly")
            .retain(|uid, _| live.contains(uid));
        Ok(())
    }
}

/// Runs the commands of exec probes and hooks, and knows of nothing else.
struct ExecProber;

#[async_trait]
impl Prober for ExecProber {
    async fn check(&self, request: &ProbeRequest, exec: &dyn Exec) -> ProbeOutcome {
        let ProbeAction::Exec { command } = &request.action else {
            return ProbeOutcome::new(ProbeResult::Unknown, "a fake");
        };
        match exec.exec(command, request.timeout).await {
            Ok((0, output)) => {
                ProbeOutcome::new(ProbeResult::Success, String::from_utf8_lossy(&output))
            }
            Ok((_, output)) => {
                ProbeOutcome::new(ProbeResult::Failure, String::from_utf8_lossy(&output))
            }
            Err(None) => ProbeOutcome::new(ProbeResult::Failure, "command timed out"),
            Err(Some(trouble)) => ProbeOutcome::new(ProbeResult::Unknown, trouble),
        }
    }
}

/// Says every volume is there.
#[derive(Default)]
pub(crate) struct FakeVolumes {
    pub(crate) mounted: Mutex<HashSet<String>>,
    pub(crate) fails: Mutex<Option<String>>,
}

#[async_trait]
impl Volumes for FakeVolumes {
    async fn mount(&self, pod: &Pod, _: &PodContext) -> Result<BTreeMap<String, PathBuf>, String> {
        if let Some(why) = self.fails.lock().expect("held shortly").clone() {
            return Err(why);
        }
        self.mounted
            .lock()
            .expect("held shortly")
            .insert(pod::uid(pod).to_string());
        let volumes = pod::spec(pod).volumes.iter().flatten();
        Ok(volumes
            .map(|volume| {
                (
                    volume.name.clone(),
                    PathBuf::from("/fake").join(&volume.name),
                )
            })
            .collect())
    }

    async fn refresh(&self, _: &Pod, _: &PodContext) -> Result<Refreshed, String> {
        Ok(Refreshed::default())
    }

    async fn unmount(&self, uid: &str) -> Result<(), String> {
        self.mounted.lock().expect("held shortly").remove(uid);
        Ok(())
    }
}

/// A node of fakes. The agent on it can be killed and started again.
pub(crate) struct Node {
    pub(crate) root: Arc<tempfile::TempDir>,
    pub(crate) oci: Arc<FakeRuntime>,
    pub(crate) wasm: Arc<FakeRuntime>,
    pub(crate) images: Arc<FakeImages>,
    pub(crate) network: Arc<FakeNetwork>,
    pub(crate) volumes: Arc<FakeVolumes>,
    pub(crate) backoff: BackoffPolicy,
    pub(crate) clock: FakeClock,
}

/// An agent without its sources: the test is the source.
pub(crate) struct Running {
    pub(crate) context: Arc<Context>,
    updates: mpsc::Sender<PodUpdate>,
    task: JoinHandle<()>,
    pleg: JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Node {
    pub(crate) fn new() -> Self {
        let clock = FakeClock::default();
        Self {
            root: Arc::new(tempfile::tempdir().expect("a temporary directory")),
            oci: FakeRuntime::new("oci", clock),
            wasm: FakeRuntime::new("wasm", clock),
            images: FakeImages::new(&[
                ("nginx:1", ImageKind::Container),
                ("redis:1", ImageKind::Container),
                ("hello:1", ImageKind::Wasm),
            ]),
            network: Arc::default(),
            volumes: Arc::default(),
            backoff: BackoffPolicy {
                initial: Duration::from_millis(100),
                max: Duration::from_secs(2),
            },
            clock,
        }
    }

    pub(crate) fn config(&self) -> Config {
        let runtimes: Vec<Arc<dyn Runtime>> =
            vec![Arc::clone(&self.oci) as _, Arc::clone(&self.wasm) as _];
        let mut config = Config::new(
            "node-1",
            self.root.path(),
            runtimes,
            Arc::clone(&self.images) as _,
            Arc::clone(&self.network) as _,
        );
        let clock = self.clock;
        // Whoever still works on this node holds its directory too, or would make it again after it was removed.
        let root = Arc::clone(&self.root);
        config.clock = Arc::new(move || {
            let _root = &root;
            clock.now()
        });
        config.prober = Arc::new(ExecProber);
        config.volumes = Some(Arc::clone(&self.volumes) as _);
        config.node_ips = vec![Ipv4Addr::new(192, 0, 2, 1).into()];
        config.tuning.backoff = self.backoff;
        config.tuning.relist_period = Duration::from_millis(500);
        config
    }

    /// Starts the agent; with `told`, the source has told all it has.
    pub(crate) async fn start(&self) -> Running {
        let agent = Agent::build(self.config()).await.expect("a good config");
        let context = Arc::clone(&agent.context);
        let shutdown = CancellationToken::new();
        let pleg = crate::pleg::Pleg {
            runtimes: context.config.runtimes.clone(),
            relist_period: context.config.tuning.relist_period,
        };
        let pleg = pleg.run(
            Arc::clone(&context),
            |context: &Context| &context.actual,
            shutdown.clone(),
        );
        let pleg = tokio::spawn(pleg);
        crate::first_relist(&context).await;
        let mirrors = Arc::new(Mirrors::new(context.publisher.clone()));
        let sources = HashSet::from([Source::Api]);
        let mut manager = Manager::new(Arc::clone(&context), mirrors, sources, shutdown.clone());
        manager.recover().expect("readable");
        let (updates, receiver) = mpsc::channel(16);
        let task = tokio::spawn(manager.run(receiver));
        Running {
            context,
            updates,
            task,
            pleg,
            shutdown,
        }
    }
}

impl Running {
    /// What evicts pods here, looking only when told to.
    pub(crate) fn evictor(&self) -> Evictor {
        Evictor::new(Arc::clone(&self.context), self.updates.clone())
    }

    pub(crate) async fn set(&self, pod: &Pod) {
        self.updates
            .send(PodUpdate::Set(Arc::new(pod.clone())))
            .await
            .expect("the manager runs");
    }

    /// Marks a pod as deleted, as the API server would.
    pub(crate) async fn delete(&self, pod: &Pod, grace_seconds: i64) {
        let mut pod = pod.clone();
        pod.metadata.deletion_grace_period_seconds = Some(grace_seconds);
        let at = (self.context.config.clock)() + Duration::from_secs(grace_seconds.unsigned_abs());
        pod.metadata.deletion_timestamp = Some(pod::time(at));
        self.set(&pod).await;
    }

    pub(crate) async fn remove(&self, pod: &Pod) {
        self.updates
            .send(PodUpdate::Remove(pod::uid(pod)))
            .await
            .expect("the manager runs");
    }

    pub(crate) async fn tell_all(&self, pods: &[&Pod]) {
        let uids = pods.iter().map(|pod| pod::uid(pod)).collect();
        self.updates
            .send(PodUpdate::All(Source::Api, uids))
            .await
            .expect("the manager runs");
    }

    /// Ends the agent as a signal 9 would: whatever is under way is cut off.
    pub(crate) async fn kill(self) {
        self.task.abort();
        self.pleg.abort();
        let _ = self.task.await;
        self.shutdown.cancel();
    }

    pub(crate) fn status(&self, pod: &Pod) -> Value {
        let there = self.context.directory.get(&pod::uid(pod));
        there.map_or(Value::Null, |pod| {
            serde_json::to_value(&pod.status).expect("a status is JSON")
        })
    }

    /// Waits until the pod's status is as wanted.
    pub(crate) async fn until(
        &self,
        pod: &Pod,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Value {
        let wait = async {
            loop {
                let status = self.status(pod);
                if holds(&status) {
                    return status;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        match timeout(PATIENCE, wait).await {
            Ok(status) => status,
            Err(_) => panic!("never {what}: {:#}", self.status(pod)),
        }
    }

    pub(crate) async fn until_phase(&self, pod: &Pod, phase: &str) -> Value {
        self.until(pod, phase, |status| status["phase"] == phase)
            .await
    }

    pub(crate) async fn until_ready(&self, pod: &Pod) -> Value {
        self.until(pod, "Ready", is_ready).await
    }

    /// Waits until nothing of the pod is known any more.
    pub(crate) async fn until_gone(&self, pod: &Pod) {
        self.until(pod, "gone", Value::is_null).await;
    }
}

pub(crate) fn is_ready(status: &Value) -> bool {
    condition(status, "Ready") == "True"
}

pub(crate) fn condition<'a>(status: &'a Value, kind: &str) -> &'a str {
    let conditions = status["conditions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let condition = conditions
        .iter()
        .find(|condition| condition["type"] == kind);
    condition
        .and_then(|condition| condition["status"].as_str())
        .unwrap_or_default()
}

/// A pod by its spec.
pub(crate) fn pod(uid: &str, spec: Value) -> Pod {
    let metadata = json!({ "name": uid, "namespace": "ns", "uid": uid });
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).expect("a pod")
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "never {what}");
}

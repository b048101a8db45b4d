//! The node agent: what a kubelet does, over any runtime.
//!
//! ```text
//!  source::{api, manifest} ── PodUpdate ──▶ pod::manager ── Mailbox ──▶ pod::worker (one per pod)
//!                                               │ sweep                    │ step (pure), effects
//!  runtimes ── events ──▶ pleg ──▶ Actual ──────┴── wakes ────────────────▶│
//!                                                                          ├─▶ runtimes, images, volumes, network
//!  server (logs, exec, stats) ◀── Directory ◀── status (pure) ◀────────────┤
//!                    API server ◀── publish, events, node, source::mirror ◀┘
//! ```
//!
//! The agent owns no running pod. It can be killed at any instruction and started again: memory is a
//! cache of what the disk, the runtimes and the API server say.
//!
//! Shutdown, in this order: sources stop telling, workers let go of their pods (which run on), the
//! HTTP server drains, events and statuses that are already queued are given a moment.

pub mod config;
mod context;
mod directory;
mod events;
pub mod eviction;
mod image;
mod metered;
mod metrics;
pub mod network;
mod node;
mod objects;
mod pleg;
mod pod;
mod probe;
mod publish;
pub mod server;
mod services;
mod source;
pub mod storage;
#[cfg(test)]
mod testing;
mod text;
pub mod volume;

use std::{
    collections::HashSet,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wherry_services::Index;
use wherry_volumes::{VolumeConfig, VolumeManager};

pub use config::{Clock, Config, Tuning};
use context::Context;
use directory::Directory;
use events::Recorder;
use image::ImageManager;
pub use image::NodeCredentials;
use node::machine::Machine;
pub use node::reserved::{ReservedError, parse_reserved};
use objects::Objects;
use pleg::{Actual, Pleg};
use pod::manager::Manager;
pub use pod::{names::ClusterDns, restart::BackoffPolicy};
use publish::Publisher;
use source::{Source, UPDATES_MAX, mirror::Mirrors};

/// How long tasks may take to end once they are told to. One that waits for an API server which has vanished without a word
/// would wait longer than whoever stops the agent; what it was about is done again by the next agent.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Tries to list a runtime before its pods are recovered without it.
const FIRST_RELIST_TRIES: u32 = 20;
const FIRST_RELIST_PAUSE: Duration = Duration::from_millis(250);

/// The agent could not be built or run.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The root directory cannot be used.
    #[error("{}: {source}", path.display())]
    Root {
        /// Which directory.
        path: PathBuf,
        /// The trouble.
        #[source]
        source: io::Error,
    },
    /// The machine does not say what it has.
    #[error("reading what the machine has: {0}")]
    Machine(#[source] io::Error),
    /// The HTTP endpoints cannot be served.
    #[error("kubelet endpoints: {0}")]
    Server(String),
    /// No runtime was given.
    #[error("no container runtime is configured")]
    NoRuntime,
}

/// An agent, built and not running yet.
pub struct Agent {
    context: Arc<Context>,
    events: events::Writer,
    server: Option<server::Server>,
}

impl Agent {
    /// Builds an agent; its HTTP server listens already. Touches no pod.
    pub async fn build(mut config: Config) -> Result<Self, AgentError> {
        if config.runtimes.is_empty() {
            return Err(AgentError::NoRuntime);
        }
        let metrics = Arc::new(metrics::Metrics::default());
        for runtime in &mut config.runtimes {
            let metered = metered::Metered::new(Arc::clone(runtime), Arc::clone(&metrics));
            *runtime = Arc::new(metered);
        }
        for dir in [config.pods_dir(), config.log_root()] {
            fs::create_dir_all(&dir).map_err(|source| AgentError::Root { path: dir, source })?;
        }
        let machine = Machine::read(&config.root).map_err(AgentError::Machine)?;
        let objects = Arc::new(Objects::new(config.kube.clone()));
        let (recorder, events) = Recorder::new(
            config.kube.clone(),
            &config.node_name,
            Arc::clone(&config.clock),
        );
        let volumes = config.volumes.clone().unwrap_or_else(|| {
            let volumes = VolumeConfig {
                plugins: config.volume_plugins.clone(),
                events: Some(Arc::new(recorder.clone())),
                ..VolumeConfig::new(config.pods_dir())
            };
            Arc::new(VolumeManager::new(volumes, Arc::clone(&objects) as _))
        });
        let images = ImageManager::new(&config, Arc::clone(&objects), recorder.clone());
        let pool = pod::userns::Pool::of_node(config.max_pods);
        let pods_dir = config.pods_dir();
        let user_namespaces =
            pod::userns::UserNamespaces::open(pool, &pods_dir).map_err(|source| {
                AgentError::Root {
                    path: pods_dir,
                    source,
                }
            })?;
        let context = Arc::new(Context {
            user_namespaces,
            features: Mutex::default(),
            publisher: Publisher::new(config.kube.clone()),
            directory: Directory::new(Arc::clone(&metrics)),
            services: Arc::new(match &config.kube {
                Some(_) => Index::default(),
                None => Index::of_nothing(),
            }),
            actual: Actual::default(),
            volumes,
            objects,
            images,
            recorder,
            pressure: eviction::Pressure::new(&config.eviction),
            meter: eviction::storage::Meter::default(),
            metrics,
            probe_ledger: probe::Ledger::new(&config.run),
            probe_metrics: Arc::default(),
            machine,
            config,
        });
        let server = match context.config.server.clone() {
            None => None,
            Some(config) => {
                let kube = context.config.kube.clone();
                let reviewer = kube.map(|client| Arc::new(server::KubeReviewer::new(client)) as _);
                let server =
                    server::Server::bind(config, Arc::clone(&context) as _, reviewer).await;
                Some(server.map_err(|error| AgentError::Server(error.to_string()))?)
            }
        };
        Ok(Self {
            context,
            events,
            server,
        })
    }

    /// What the HTTP endpoints see; for whoever serves them otherwise.
    pub fn kubelet(&self) -> Arc<dyn server::Kubelet> {
        Arc::clone(&self.context) as _
    }

    /// Runs until shutdown. Pods run on.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AgentError> {
        let Self {
            context,
            events,
            server,
        } = self;
        let config = &context.config;
        info!(node = config.node_name, root = %config.root.display(), "Agent starting");
        let mut tasks = JoinSet::new();
        if let Some(server) = server {
            tasks.spawn(server.run(shutdown.clone()));
        }
        tasks.spawn(events.run(shutdown.clone()));
        // Subscribed before the first relist, so that nothing falls between the two.
        let pleg = Pleg {
            runtimes: config.runtimes.clone(),
            relist_period: config.tuning.relist_period,
        };
        tasks.spawn(pleg.run(
            Arc::clone(&context),
            |context: &Context| &context.actual,
            shutdown.clone(),
        ));
        tasks.spawn(image::gc::run(Arc::clone(&context), shutdown.clone()));
        tasks.spawn(volume::news::run(Arc::clone(&context), shutdown.clone()));
        if let Some(client) = config.kube.clone() {
            tasks.spawn(node::run(
                Arc::clone(&context),
                client.clone(),
                shutdown.clone(),
            ));
            tasks.spawn(network::follow_peers(
                Arc::clone(&context),
                client,
                shutdown.clone(),
            ));
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = first_relist(&context) => run_pods(&context, &mut tasks, shutdown.clone()).await?,
        }
        shutdown.cancelled().await;
        let stopped = async { while tasks.join_next().await.is_some() {} };
        if timeout(STOP_MAX, stopped).await.is_err() {
            warn!(
                tasks = tasks.len(),
                "Stopping without the answers that some tasks wait for"
            );
            tasks.shutdown().await;
        }
        context.publisher.close().await;
        info!("Agent stopped; pods run on");
        Ok(())
    }
}

/// Asks every runtime what it holds: workers decide by it.
async fn first_relist(context: &Context) {
    for runtime in &context.config.runtimes {
        for _ in 0..FIRST_RELIST_TRIES {
            match context.actual.relist(&**runtime, None).await {
                Ok(()) => break,
                Err(error) => {
                    warn!(runtime = runtime.handler(), %error, "First relist failed");
                    sleep(FIRST_RELIST_PAUSE).await;
                }
            }
        }
    }
}

async fn run_pods(
    context: &Arc<Context>,
    tasks: &mut JoinSet<()>,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let config = &context.config;
    let mirrors = Arc::new(Mirrors::new(context.publisher.clone()));
    let mut sources = HashSet::new();
    sources.extend(config.kube.is_some().then_some(Source::Api));
    sources.extend(config.pod_manifest_path.is_some().then_some(Source::File));
    let mut manager = Manager::new(
        Arc::clone(context),
        Arc::clone(&mirrors),
        sources,
        shutdown.clone(),
    );
    let pods_dir = config.pods_dir();
    manager.recover().map_err(|source| AgentError::Root {
        path: pods_dir,
        source,
    })?;
    // After pods have been found again, whose ports of the node are to stay.
    tasks.spawn(services::run(Arc::clone(context), shutdown.clone()));
    let (sender, updates) = mpsc::channel(UPDATES_MAX);
    tasks.spawn(eviction::run(
        Arc::clone(context),
        sender.clone(),
        shutdown.clone(),
    ));
    if let Some(client) = config.kube.clone() {
        let name = config.node_name.clone();
        tasks.spawn(source::api::run(
            client.clone(),
            name.clone(),
            sender.clone(),
            shutdown.clone(),
        ));
        tasks.spawn(mirrors.run(client, name, shutdown.clone()));
    }
    if let Some(dir) = config.pod_manifest_path.clone() {
        tasks.spawn(source::manifest::run(
            dir,
            config.node_name.clone(),
            sender,
            shutdown,
        ));
    }
    tasks.spawn(manager.run(updates));
    Ok(())
}

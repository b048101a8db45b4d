//! Starting containers: image, config, create, start, hook; each failure with its reason and event.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument, debug, warn};
use wherry_runtime_api::{
    ContainerExit, ContainerId, ContainerState, ContainerStatus, Image, PodSandbox, Runtime,
    RuntimeError,
};

use super::{
    env, ephemeral_container, files,
    lifecycle::{ContainerExec, Hook, POST_START_MAX},
    prepare::bounded,
    restart::Start,
    status::{Waiting, reason},
    subpath, translate, uid,
    worker::ResizeReport,
};
use crate::{context::Context, events::Kind, image::ImageTrouble, services};

/// First and longest pause after a failure of config or create.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What happened to a container on its way.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    /// It cannot be started now.
    Held {
        /// The container's name.
        name: String,
        /// Why.
        waiting: Waiting,
        /// When to try again; `None` leaves the pause to the worker.
        until: Option<SystemTime>,
    },
    /// Its image is there, so what it waited for is over.
    ImageReady {
        /// The container's name.
        name: String,
        /// The image.
        image: Box<Image>,
    },
    /// An attempt was begun: it counts, whatever becomes of it.
    Attempt {
        /// Which.
        start: Start,
        /// What the container was created with.
        resources: Box<ResourceRequirements>,
    },
    /// Something about the change of its resources.
    Resize(ResizeReport),
    /// It runs.
    Started {
        /// The container's name.
        name: String,
    },
    /// It was created and could not be started.
    StartFailed {
        /// The container.
        id: ContainerId,
        /// Its end, if the runtime does not tell one.
        exit: ContainerExit,
        /// Why.
        waiting: Waiting,
        /// The container's name.
        name: String,
    },
    /// A hook failed: it has to go.
    HookFailed {
        /// The container.
        id: ContainerId,
        /// For the event.
        why: String,
    },
    /// Where volumes are.
    Volumes(BTreeMap<String, PathBuf>),
}

/// The pause after so many failures in a row.
pub(crate) fn retry_pause(failures: u32) -> Duration {
    RETRY_MIN
        .saturating_mul(1 << failures.min(8))
        .min(RETRY_MAX)
}

/// What starting takes.
pub(crate) struct Starter {
    /// Shared parts.
    pub(crate) context: Arc<Context>,
    /// The pod.
    pub(crate) pod: Arc<Pod>,
    /// With addresses.
    pub(crate) sandbox: Arc<PodSandbox>,
    /// The runtime of all containers, if a RuntimeClass says so.
    pub(crate) fixed_handler: Option<String>,
    /// Where volumes are, if known.
    pub(crate) volumes: Option<BTreeMap<String, PathBuf>>,
    /// Ends waiting; calls to runtimes are brought to their end.
    pub(crate) cancel: CancellationToken,
    /// Who hears of it.
    pub(crate) reports: mpsc::Sender<Report>,
}

impl Starter {
    pub(crate) async fn report(&self, report: Report) {
        // The worker goes away only after its effects.
        let _ = self.reports.send(report).await;
    }

    fn say(&self, container: &str, kind: Kind, reason: &'static str, message: String) {
        self.context
            .recorder
            .record(&self.pod, Some(container), kind, reason, message);
    }

    /// Starts containers in order. All images are fetched at once, so a slow one holds up only those after it.
    pub(crate) async fn run(mut self, starts: Vec<Start>) {
        let mut pulls = Vec::new();
        for start in &starts {
            let (context, pod, name) = (
                Arc::clone(&self.context),
                Arc::clone(&self.pod),
                start.name.clone(),
            );
            let fixed = self.fixed_handler.clone();
            let pull = async move {
                match super::container(&pod, &name) {
                    Some(container) => Some(
                        context
                            .images
                            .ensure(&pod, &container, fixed.as_deref())
                            .await,
                    ),
                    None => None,
                }
            };
            let pull = tokio::spawn(pull.in_current_span());
            pulls.push(AbortOnDropHandle::new(pull));
        }
        for (start, pull) in starts.into_iter().zip(pulls) {
            let image = tokio::select! {
                () = self.cancel.cancelled() => return,
                image = pull => image,
            };
            let Ok(Some(image)) = image else { continue };
            let pod = Arc::clone(&self.pod);
            let Some(container) = super::container(&pod, &start.name) else {
                continue;
            };
            let image = match image {
                Ok(image) => image,
                Err(ImageTrouble { waiting, until }) => {
                    self.report(Report::Held {
                        name: start.name,
                        waiting,
                        until: Some(until),
                    })
                    .await;
                    continue;
                }
            };
            self.report(Report::ImageReady {
                name: start.name.clone(),
                image: Box::new(image.clone()),
            })
            .await;
            if let Err(held) = self.start(&container, &start, &image).await {
                self.report(Report::Held {
                    name: start.name,
                    waiting: held,
                    until: None,
                })
                .await;
            }
            if self.cancel.is_cancelled() {
                return;
            }
        }
    }

    fn config_error(&self, container: &Container, message: String) -> Waiting {
        self.say(
            &container.name,
            Kind::Warning,
            "Failed",
            format!("Error: {message}"),
        );
        Waiting {
            reason: reason::CREATE_CONTAINER_CONFIG_ERROR,
            message,
        }
    }

    async fn start(
        &mut self,
        container: &Container,
        start: &Start,
        image: &Image,
    ) -> Result<(), Waiting> {
        let default = self.context.default_handler();
        let fixed = self.fixed_handler.clone();
        let handler = translate::container_handler(fixed.as_deref(), image.kind, default);
        let Some(runtime) = self.context.runtime(handler).cloned() else {
            return Err(self.config_error(
                container,
                format!("no runtime for \"{handler}\" is configured"),
            ));
        };
        let config = match self.config(container, start.attempt, image, &runtime).await {
            Ok(config) => config,
            Err(message) => return Err(self.config_error(container, message)),
        };
        if handler != default && start.attempt == 0 {
            let message = format!("Container {} runs in runtime {handler}", container.name);
            self.say(&container.name, Kind::Normal, "RuntimeSelected", message);
        }
        let created = bounded(
            &self.context,
            "create container",
            runtime.create_container(&self.sandbox, &config),
        )
        .await;
        let id = match created {
            Ok(id) => id,
            Err(error) => {
                // Part of it may be there.
                let _ = self
                    .context
                    .actual
                    .relist(&*runtime, Some(&uid(&self.pod)))
                    .await;
                self.say(
                    &container.name,
                    Kind::Warning,
                    "Failed",
                    format!("Error: {error}"),
                );
                return Err(Waiting {
                    reason: reason::CREATE_CONTAINER_ERROR,
                    message: error.to_string(),
                });
            }
        };
        self.report(Report::Attempt {
            start: start.clone(),
            resources: Box::new(container.resources.clone().unwrap_or_default()),
        })
        .await;
        self.say(
            &container.name,
            Kind::Normal,
            "Created",
            format!("Created container: {}", container.name),
        );
        let started = bounded(
            &self.context,
            "start container",
            runtime.start_container(&id),
        )
        .await;
        let status = runtime.container_status(&id).await;
        if let Err(error) = started {
            self.start_failed(container, id, error, status).await;
            return Ok(());
        }
        if let Ok(status) = status {
            for warning in &status.warnings {
                self.say(
                    &container.name,
                    Kind::Warning,
                    "ContainerWarning",
                    warning.clone(),
                );
            }
            self.context.actual.put_container(status);
        }
        self.say(
            &container.name,
            Kind::Normal,
            "Started",
            format!("Started container {}", container.name),
        );
        self.prune(&container.name, start.attempt).await;
        self.post_start(container, &runtime, id).await;
        self.report(Report::Started {
            name: container.name.clone(),
        })
        .await;
        Ok(())
    }

    async fn config(
        &mut self,
        container: &Container,
        attempt: u32,
        image: &Image,
        runtime: &Arc<dyn Runtime>,
    ) -> Result<wherry_runtime_api::ContainerConfig, String> {
        let context = Arc::clone(&self.context);
        let pod = Arc::clone(&self.pod);
        let pid_target = self.pid_target(container, runtime.handler())?;
        let features = context.features(&**runtime).await;
        let namespace = super::namespace(&pod);
        if self.volumes.is_none() {
            match context.volumes.mount(&pod, &context.pod_context()).await {
                Ok(volumes) => {
                    self.report(Report::Volumes(volumes.clone())).await;
                    self.volumes = Some(volumes);
                }
                Err(message) => {
                    context.event(&pod, Kind::Warning, "FailedMount", message.clone());
                    return Err(message);
                }
            }
        }
        let volumes = self.volumes.as_ref().ok_or("volumes are not mounted")?;
        let references = env::references(container);
        let mut objects = env::Objects::default();
        for name in references.config_maps {
            let object = context
                .objects
                .config_map(namespace, &name)
                .await
                .map_err(|error| error.to_string())?;
            objects
                .config_maps
                .insert(name, object.map(Arc::unwrap_or_clone));
        }
        for name in references.secrets {
            let object = context
                .objects
                .secret(namespace, &name)
                .await
                .map_err(|error| error.to_string())?;
            objects
                .secrets
                .insert(name, object.map(Arc::unwrap_or_clone));
        }
        let services = services::shown(&context, namespace).await;
        let pod_dir = context.pod_dir(&uid(&pod));
        let message = files::termination_message(&pod_dir, &container.name, attempt);
        let etc = files::Etc {
            pod: &pod,
            ips: &self.sandbox.ips,
            dns: &context.config.cluster_dns,
        };
        let made = files::write_etc(&pod_dir, etc)
            .map_err(|error| format!("{}: {error}", pod_dir.display()))?;
        let is_first = |container: &Container| {
            let spec = super::spec(&pod);
            let mut all = spec
                .init_containers
                .iter()
                .flatten()
                .chain(&spec.containers);
            all.next().is_some_and(|first| first.name == container.name)
        };
        if attempt == 0 {
            // Of the pod, so told once.
            for (reason, message) in made.warnings.iter().filter(|_| is_first(container)) {
                context.event(&pod, Kind::Warning, reason, message.clone());
            }
            let forwards_ports = context.config.services.is_some();
            for message in translate::not_done(&pod, container, forwards_ports) {
                self.say(&container.name, Kind::Warning, "ContainerWarning", message);
            }
        }
        let inputs = translate::Inputs {
            env: env::Inputs {
                pod: &pod,
                objects: &objects,
                services: &services,
                pod_ips: &self.sandbox.ips,
                host_ips: context.host_ips(),
                node_name: &context.config.node_name,
                allocatable: &context.allocatable(),
            },
            volumes,
            files: &made.files,
            termination_message: &message,
            log_root: &context.config.log_root(),
            log_rotation: context.config.log_rotation,
            memory_capacity_bytes: context.machine.memory_bytes,
            seccomp_root: &context.config.seccomp_root,
            has_recursive_readonly: features.recursive_readonly_mounts,
            sub_path: &|index, volume, sub| {
                subpath::bind(&pod_dir, (&container.name, attempt, index), volume, sub)
            },
            pid_target: pid_target.as_ref(),
        };
        let config = translate::container(inputs, container, attempt, image)
            .map_err(|error| error.to_string())?;
        files::prepare_attempt(&message, &config.log_path)
            .map_err(|error| format!("{}: {error}", message.display()))?;
        Ok(config)
    }

    /// The container whose processes an ephemeral one is to see.
    fn pid_target(
        &self,
        container: &Container,
        handler: &str,
    ) -> Result<Option<ContainerId>, String> {
        let Some(target) = ephemeral_container(&self.pod, &container.name)
            .and_then(|container| container.target_container_name.as_deref())
            .filter(|target| !target.is_empty())
        else {
            return Ok(None);
        };
        let actual = self.context.actual.get(&uid(&self.pod));
        let running = actual.containers.into_iter().find(|status| {
            status.name == target && matches!(status.state, ContainerState::Running { .. })
        });
        match running {
            Some(status) if status.handler == handler => Ok(Some(status.id)),
            Some(status) => Err(format!(
                "unable to target container {target:?}: it runs in runtime {}, whose processes a container of runtime {handler} cannot see",
                status.handler
            )),
            None => Err(format!("unable to find target container {target:?}")),
        }
    }

    async fn start_failed(
        &self,
        container: &Container,
        id: ContainerId,
        error: RuntimeError,
        status: Result<ContainerStatus, RuntimeError>,
    ) {
        let message = error.to_string();
        self.say(
            &container.name,
            Kind::Warning,
            "Failed",
            format!("Error: {message}"),
        );
        let exit = ContainerExit {
            started_at: None,
            finished_at: self.context.now(),
            exit_code: 128,
            signal: None,
            oom_killed: false,
            message: Some(message.clone()),
        };
        let waiting = Waiting {
            reason: reason::RUN_CONTAINER_ERROR,
            message,
        };
        if let Ok(status) = status {
            self.context.actual.put_container(status);
        }
        self.report(Report::StartFailed {
            id,
            exit,
            waiting,
            name: container.name.clone(),
        })
        .await;
    }

    async fn post_start(&self, container: &Container, runtime: &Arc<dyn Runtime>, id: ContainerId) {
        let Some(handler) = container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.post_start.as_ref())
        else {
            return;
        };
        let exec = ContainerExec {
            runtime: Arc::clone(runtime),
            id: id.clone(),
        };
        let hook = Hook {
            prober: &*self.context.config.prober,
            exec: &exec,
            container,
            ip: self.sandbox.ips.first().copied(),
            timeout: POST_START_MAX,
        };
        let result = tokio::select! {
            () = self.cancel.cancelled() => return,
            result = hook.run(handler) => result,
        };
        if let Err(why) = result {
            self.say(
                &container.name,
                Kind::Warning,
                "FailedPostStartHook",
                format!("PostStartHook failed: {why}"),
            );
            self.report(Report::HookFailed {
                id,
                why: "FailedPostStartHook".into(),
            })
            .await;
        }
    }

    /// Forgets all but the attempt before the present one, which `logs --previous` is about.
    async fn prune(&self, name: &str, attempt: u32) {
        let uid = uid(&self.pod);
        let pod_dir = self.context.pod_dir(&uid);
        let actual = self.context.actual.get(&uid);
        let before = actual
            .containers
            .iter()
            .filter(|c| c.name == name && c.attempt < attempt)
            .map(|c| c.attempt)
            .max();
        let old = |c: &&ContainerStatus| {
            c.name == name && before.is_some_and(|before| c.attempt < before)
        };
        for status in actual.containers.iter().filter(old) {
            if matches!(status.state, ContainerState::Running { .. }) {
                continue;
            }
            let Some(runtime) = self.context.runtime(&status.handler) else {
                continue;
            };
            match bounded(
                &self.context,
                "remove container",
                runtime.remove_container(&status.id),
            )
            .await
            {
                Ok(()) => {
                    self.context.actual.drop_container(&uid, &status.id);
                    let sub_paths = subpath::release_attempt(&pod_dir, name, status.attempt);
                    if let Err(error) = sub_paths {
                        warn!(container = %status.id, %error, "Sub-paths not released");
                    }
                    if let Err(error) = files::remove_attempt(&pod_dir, status) {
                        warn!(container = %status.id, %error, "Old log not removed");
                    }
                }
                Err(error) => debug!(container = %status.id, %error, "Old container not removed"),
            }
        }
    }
}

//! Containers: from a config and an image to a directory, a cgroup and a process that waits to be told.
//!
//! ```text
//!  .<id> ─ rename ─▶ <id> ─ stage 1: create ─▶ Created ─ start ─▶ Running ─▶ Exited ─ rename ─▶ trash
//! ```
//! A directory that stage 1 does not know of yet (the agent was killed in between) counts as Created, and
//! what is missing is made up when it is created again or started.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use nix::sys::signal::Signal;
use oci_spec::runtime::{LinuxDevice, Spec};
use tokio::sync::watch;
use wherry_cgroup::{DeviceKind, DeviceRule};
use wherry_images::StoredImage;
use wherry_runtime_api::{
    ContainerConfig, ContainerExit, ContainerId, ContainerState, ContainerStats, ContainerStatus,
    LinuxResources, Mount, NamespaceMode, PodSandboxId, RuntimeError, RuntimeEvent, SeccompProfile,
    UserNamespace,
};

use crate::{
    bundle::{self, Bundle, ContainerFile},
    client,
    protocol::{ContainerRecord, CreateContainer, Op, Reply},
    runtime::{HANDLER, Inner},
    sandbox::{Sandbox, new_id},
    seccomp::Profile,
    spec::{self, AppArmor, ImageDefaults},
};

/// How long a killed container may take to go. Longer means it hangs in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(15);
/// How old the size of a writable layer may be: counting walks all of it.
const LAYER_USAGE_AGE: Duration = Duration::from_secs(10);
/// Or so many times as long as counting took, if that is longer: large layers are counted seldom.
const LAYER_USAGE_PAUSE: u32 = 50;
/// Devices below these are the container's own, privileged or not.
const OWN_DEVICES: [&str; 6] = ["pts", "shm", "mqueue", "fd", "console", "ptmx"];

/// A container this runtime knows of.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) file: ContainerFile,
    pub(crate) record: watch::Sender<ContainerRecord>,
    /// Limits that could not be set.
    limit_warnings: Mutex<Vec<String>>,
    layer_usage: Mutex<Option<LayerUsage>>,
}

/// What the writable layer held at a moment, and when to look again.
#[derive(Clone, Copy, Debug)]
struct LayerUsage {
    again_at: Instant,
    bytes: u64,
    inodes: u64,
}

impl Container {
    pub(crate) fn new(file: ContainerFile, state: ContainerState) -> Arc<Self> {
        let record = ContainerRecord {
            id: file.id.to_string(),
            pid: None,
            state,
            warnings: Vec::new(),
        };
        Arc::new(Self {
            file,
            record: watch::Sender::new(record),
            limit_warnings: Mutex::default(),
            layer_usage: Mutex::default(),
        })
    }

    pub(crate) fn status(&self) -> ContainerStatus {
        let (record, file) = (self.record.borrow(), &self.file);
        ContainerStatus {
            id: file.id.clone(),
            handler: HANDLER.to_owned(),
            sandbox: file.sandbox.clone(),
            pod: file.pod.clone(),
            name: file.name.clone(),
            attempt: file.attempt,
            image: file.image.clone(),
            image_id: file.image_id.clone(),
            state: record.state.clone(),
            created_at: file.created_at,
            log_path: file.log_path.clone(),
            pid: record.pid,
            labels: file.labels.clone(),
            annotations: file.annotations.clone(),
            warnings: file
                .warnings
                .iter()
                .chain(&record.warnings)
                .chain(lock(&self.limit_warnings).iter())
                .cloned()
                .collect(),
        }
    }

    pub(crate) fn is_exited(&self) -> bool {
        matches!(self.record.borrow().state, ContainerState::Exited(_))
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.record.borrow().state, ContainerState::Running { .. })
    }

    async fn wait_until_exited(&self, timeout: Duration) -> bool {
        let mut record = self.record.subscribe();
        let exited = record.wait_for(|record| matches!(record.state, ContainerState::Exited(_)));
        tokio::time::timeout(timeout, exited).await.is_ok()
    }

    fn to_create(&self, directory: PathBuf) -> CreateContainer {
        CreateContainer {
            id: self.file.id.to_string(),
            directory,
            cgroup: self.file.cgroup.clone(),
            log_path: self.file.log_path.clone(),
            log_rotation: self.file.log_rotation,
            stdin: self.file.stdin,
            stdin_once: self.file.stdin_once,
            tty: self.file.tty,
            own_pid_namespace: self.file.own_pid_namespace,
        }
    }
}

const fn rank(state: &ContainerState) -> u8 {
    match state {
        ContainerState::Unknown => 0,
        ContainerState::Created => 1,
        ContainerState::Running { .. } => 2,
        ContainerState::Exited(_) => 3,
    }
}

impl Inner {
    /// Takes over what a supervisor says of a container. News may come late and twice; a container never
    /// goes back in its life.
    pub(crate) fn apply(&self, container: &Container, news: ContainerRecord) {
        let (mut has_started, mut has_exited) = (false, false);
        container.record.send_if_modified(|known| {
            let (before, after) = (rank(&known.state), rank(&news.state));
            if after < before || *known == news {
                return false;
            }
            let was_executed = match &news.state {
                ContainerState::Running { .. } => true,
                ContainerState::Exited(exit) => exit.started_at.is_some(),
                ContainerState::Created | ContainerState::Unknown => false,
            };
            has_started = before < 2 && was_executed;
            has_exited = before < 3 && after == 3;
            *known = news;
            true
        });
        let (pod, id) = (&container.file.pod, &container.file.id);
        if has_started {
            let _ = self.events.send(RuntimeEvent::ContainerStarted {
                pod: pod.clone(),
                id: id.clone(),
            });
        }
        if has_exited {
            let _ = self.events.send(RuntimeEvent::ContainerExited {
                pod: pod.clone(),
                id: id.clone(),
            });
        }
    }

    /// Settles what became of a container whose supervisor has ended: what it recorded, or that it was lost.
    pub(crate) fn record_lost(&self, container: &Container) {
        if container.is_exited() {
            return;
        }
        let path = self.paths.container(&container.file.id).join("exit.json");
        let exit = match bundle::read::<ContainerExit>(&path) {
            Ok(Some(exit)) => exit,
            _ => {
                let started_at = match container.record.borrow().state {
                    ContainerState::Running { started_at } => Some(started_at),
                    _ => None,
                };
                let exit = ContainerExit {
                    started_at,
                    finished_at: SystemTime::now(),
                    exit_code: 128 + libc::SIGKILL,
                    signal: Some(libc::SIGKILL),
                    oom_killed: false,
                    message: Some(
                        "the pod's supervisor ended and the container with it".to_owned(),
                    ),
                };
                if let Err(error) = bundle::write(&path, &exit) {
                    tracing::warn!(container = %container.file.id, %error, "Exit not recorded");
                }
                exit
            }
        };
        let warnings = container.record.borrow().warnings.clone();
        let record = ContainerRecord {
            id: container.file.id.to_string(),
            pid: None,
            state: ContainerState::Exited(exit),
            warnings,
        };
        self.apply(container, record);
    }

    pub(crate) async fn create_container(
        self: &Arc<Self>,
        sandbox: &PodSandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let sandbox = self.sandbox(sandbox)?;
        let _turn = self.turn(sandbox.file.config.uid.as_str()).await;
        let existing = self
            .containers_of(&sandbox.file.id)
            .into_iter()
            .find(|container| {
                container.file.name == config.name && container.file.attempt == config.attempt
            });
        if !sandbox.is_ready() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "sandbox {} is not ready",
                sandbox.file.id
            )));
        }
        let container = match existing {
            Some(container) if rank(&container.record.borrow().state) > 1 => {
                return Ok(container.file.id.clone());
            }
            Some(container) => container,
            None => {
                let sandbox = sandbox.clone();
                self.blocking(move |inner| inner.prepare_container(&sandbox, config))
                    .await?
            }
        };
        let id = container.file.id.clone();
        if let Err(error) = self.ensure_created(&container).await {
            // Tell the caller what went wrong, and leave nothing that would be found again.
            if let Err(error) = self.remove_container(&id).await {
                tracing::warn!(container = %id, %error, "Half-made container stays");
            }
            return Err(error);
        }
        Ok(id)
    }

    /// Has stage 1 make the container's process, unless it has.
    async fn ensure_created(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<(), RuntimeError> {
        {
            let container = container.clone();
            // The group may be missing, if the agent was killed just before it was made.
            self.blocking(move |inner| inner.make_group(&container))
                .await?;
        }
        let what = format!("create container {}", container.file.name);
        let create = container.to_create(self.paths.container(&container.file.id));
        let directory = self.paths.pod(&container.file.sandbox);
        let op = match &container.file.pid_target {
            Some(target) => Op::CreateBeside {
                container: create,
                target: target.to_string(),
            },
            None => Op::Create(create),
        };
        let (reply, _, _) = client::call(&directory, &what, op, &[]).await?;
        if let Reply::Container(record) = reply {
            self.apply(container, record);
        }
        Ok(())
    }

    fn make_group(&self, container: &Container) -> Result<(), RuntimeError> {
        let what = || format!("cgroup {}", container.file.cgroup);
        let path = self
            .paths
            .container(&container.file.id)
            .join("resources.json");
        let (resources, devices): (LinuxResources, Option<Vec<String>>) = bundle::read(&path)
            .map_err(RuntimeError::io(what()))?
            .unwrap_or_default();
        let group = self.cgroups.group(&container.file.cgroup);
        let rules = devices.map(|rules| {
            rules
                .iter()
                .filter_map(|rule| parse_rule(rule))
                .collect::<Vec<_>>()
        });
        let make = || -> io::Result<()> {
            group.create()?;
            *lock(&container.limit_warnings) = group.set(&resources)?;
            // As kubelets do on v2: a container short of a process is worse than one that starts again.
            group.end_together()?;
            group.set_devices(rules.as_deref())
        };
        make().map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => RuntimeError::InvalidArgument(error.to_string()),
            _ => RuntimeError::io(what())(error),
        })
    }

    /// Writes the container's directory.
    fn prepare_container(
        &self,
        sandbox: &Arc<Sandbox>,
        config: ContainerConfig,
    ) -> Result<Arc<Container>, RuntimeError> {
        let pod = &sandbox.file.config;
        spec::verify_supported(pod, &config, self.features, &AppArmor::find())?;
        let image = self
            .images
            .image(&config.image_id)
            .map_err(|error| RuntimeError::Internal(error.to_string()))?
            .ok_or_else(|| RuntimeError::ImageNotFound(config.image_id.clone()))?;
        if image.wasm.is_some() {
            return Err(RuntimeError::InvalidArgument(format!(
                "image {}: holds a Wasm module and no root file system",
                config.image
            )));
        }
        spec::verify_run_as_non_root(pod, &config, image.config.user.as_deref())?;

        let id = ContainerId::new(new_id());
        let cgroup = format!("{}/{id}", pod.cgroup_parent.trim_end_matches('/'));
        let (devices, rules) = devices(&config)?;
        let spec = spec::build(pod, &config, &defaults(&image), &devices, &cgroup)?;
        let seccomp = self.filter(&config, &spec, &id)?;
        let bundle = Bundle {
            layers: image.layers.clone(),
            user: image.config.user.clone(),
            run_as_user: config.security.run_as_user,
            run_as_group: config.security.run_as_group,
            supplemental_groups: config.security.supplemental_groups.clone(),
            seccomp,
            cgroup: cgroup.clone(),
            pod_shm: pod.namespaces.ipc != NamespaceMode::Node,
            image_volumes: image_volumes(&image.config.volumes, &config.mounts),
            user_namespace: pod.user_namespace,
        };
        let file = ContainerFile {
            id: id.clone(),
            sandbox: sandbox.file.id.clone(),
            pod: pod.uid.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_id: config.image_id.clone(),
            created_at: SystemTime::now(),
            cgroup,
            log_path: config.log_path.clone(),
            log_rotation: config.log_rotation,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            tty: config.tty,
            own_pid_namespace: pod.namespaces.pid == NamespaceMode::Container
                && config.pid_target.is_none(),
            pid_target: config.pid_target.clone(),
            stop_signal: config
                .stop_signal
                .or_else(|| stop_signal(&image))
                .unwrap_or(libc::SIGTERM),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            warnings: Vec::new(),
        };
        let what = || format!("container {}", config.name);
        let staging = self.paths.containers().join(format!(".{id}"));
        let rules: Option<Vec<String>> =
            rules.map(|rules| rules.iter().map(ToString::to_string).collect());
        let fill = || -> io::Result<()> {
            for directory in ["upper", "work", "rootfs"] {
                fs::create_dir_all(staging.join(directory))?;
            }
            // The upper directory is the root's own node: everybody may enter it.
            fs::set_permissions(
                staging.join("upper"),
                std::os::unix::fs::PermissionsExt::from_mode(0o755),
            )?;
            if let Some(UserNamespace { host_id, .. }) = pod.user_namespace {
                std::os::unix::fs::chown(staging.join("upper"), Some(host_id), Some(host_id))?;
            }
            bundle::write(&staging.join("config.json"), &spec)?;
            bundle::write(&staging.join("bundle.json"), &bundle)?;
            bundle::write(
                &staging.join("resources.json"),
                &(&config.resources, &rules),
            )?;
            bundle::write(&staging.join("container.json"), &file)
        };
        let result = fill().map_err(RuntimeError::io(what())).and_then(|()| {
            // Before the directory counts: a container without its image cannot be.
            self.images
                .lease(&config.image_id, id.as_str())
                .map_err(|_| RuntimeError::ImageNotFound(config.image_id.clone()))?;
            fs::rename(&staging, self.paths.container(&id)).map_err(RuntimeError::io(what()))
        });
        if let Err(error) = result {
            let _ = self.images.release(id.as_str());
            let _ = self.discard(&staging);
            return Err(error);
        }
        let container = Container::new(file, ContainerState::Created);
        self.state().containers.insert(id, container.clone());
        Ok(container)
    }

    /// The compiled system call filter for a container; filters of the default profile are shared.
    fn filter(
        &self,
        config: &ContainerConfig,
        spec: &Spec,
        id: &ContainerId,
    ) -> Result<Option<PathBuf>, RuntimeError> {
        if config.security.privileged {
            return Ok(None);
        }
        let capabilities = capability_names(spec);
        let invalid =
            |error: crate::seccomp::SeccompError| RuntimeError::InvalidArgument(error.to_string());
        let (profile, path) = match &config.security.seccomp {
            SeccompProfile::Unconfined => return Ok(None),
            SeccompProfile::Localhost(path) => {
                // Below the container's future directory, which does not exist yet: shared by name instead.
                (
                    Profile::load(path).map_err(invalid)?,
                    self.paths.seccomp().join(format!("{id}.bpf")),
                )
            }
            SeccompProfile::RuntimeDefault => {
                let mut names: Vec<&str> = capabilities.iter().map(String::as_str).collect();
                names.sort_unstable();
                let key = names.join(",");
                let mut known = self
                    .filters
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                if let Some(path) = known.get(&key) {
                    return Ok(Some(path.clone()));
                }
                let path = self
                    .paths
                    .seccomp()
                    .join(format!("default-{}.bpf", new_id()));
                let program = Profile::runtime_default()
                    .compile(&capabilities)
                    .map_err(invalid)?;
                bundle::write_bytes(&path, &program).map_err(RuntimeError::io("seccomp filter"))?;
                known.insert(key, path.clone());
                return Ok(Some(path));
            }
        };
        let program = profile.compile(&capabilities).map_err(invalid)?;
        bundle::write_bytes(&path, &program).map_err(RuntimeError::io("seccomp filter"))?;
        Ok(Some(path))
    }

    pub(crate) async fn start_container(
        self: &Arc<Self>,
        id: &ContainerId,
    ) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        if rank(&container.record.borrow().state) > 1 {
            return Ok(());
        }
        let sandbox = self.sandbox(&container.file.sandbox)?;
        if !sandbox.is_ready() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "sandbox {} is not ready",
                sandbox.file.id
            )));
        }
        let directory = self.paths.pod(&container.file.sandbox);
        let what = format!("start container {}", container.file.name);
        let start = || Op::Start { id: id.to_string() };
        let mut answer = client::call(&directory, &what, start(), &[]).await;
        if matches!(answer, Err(RuntimeError::NotFound(_))) {
            let _turn = self.turn(container.file.pod.as_str()).await;
            self.ensure_created(&container).await?;
            answer = client::call(&directory, &what, start(), &[]).await;
        }
        match answer {
            Ok((Reply::Container(record), _, _)) => {
                self.apply(&container, record);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => {
                if matches!(error, RuntimeError::InvalidArgument(_)) {
                    // So that its status says the same as this error.
                    container.wait_until_exited(KILL_TIMEOUT).await;
                }
                Err(error)
            }
        }
    }

    pub(crate) async fn stop_container(
        self: &Arc<Self>,
        id: &ContainerId,
        grace_period: Duration,
    ) -> Result<(), RuntimeError> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        if container.is_exited() {
            return Ok(());
        }
        let signal = |signal, all| {
            let container = container.clone();
            async move {
                let directory = self.paths.pod(&container.file.sandbox);
                let op = Op::Signal {
                    id: container.file.id.to_string(),
                    signal,
                    all,
                };
                client::call(&directory, "signal", op, &[]).await
            }
        };
        // A container that was never started has nobody to be asked.
        if container.is_running() && !grace_period.is_zero() {
            match signal(container.file.stop_signal, false).await {
                Ok(_) if container.wait_until_exited(grace_period).await => return Ok(()),
                Ok(_) => {}
                Err(error) => tracing::debug!(container = %id, %error, "Not asked to stop"),
            }
        }
        match signal(libc::SIGKILL, true).await {
            // Prepared, and stage 1 never heard of it: there is no process to end.
            Err(RuntimeError::NotFound(_)) => {
                let container = container.clone();
                self.blocking(move |inner| {
                    inner.record_lost(&container);
                    Ok(())
                })
                .await?;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(container = %id, %error, "Not killed"),
        }
        if container.wait_until_exited(KILL_TIMEOUT).await {
            return Ok(());
        }
        Err(RuntimeError::DeadlineExceeded {
            what: format!("container {id}: its end after SIGKILL"),
            after: KILL_TIMEOUT,
        })
    }

    pub(crate) async fn remove_container(
        self: &Arc<Self>,
        id: &ContainerId,
    ) -> Result<(), RuntimeError> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        self.stop_container(id, Duration::ZERO).await?;
        let directory = self.paths.pod(&container.file.sandbox);
        match client::call(&directory, "remove", Op::Remove { id: id.to_string() }, &[]).await {
            // Without a supervisor nobody holds anything of it.
            Ok(_) | Err(RuntimeError::Unavailable(_)) => {}
            Err(error) => return Err(error),
        }
        let id = id.clone();
        self.blocking(move |inner| inner.forget_container(&id, &container.file.cgroup))
            .await
    }

    /// Deletes what is on disk of a container that has no process.
    pub(crate) fn forget_container(
        &self,
        id: &ContainerId,
        cgroup: &str,
    ) -> Result<(), RuntimeError> {
        let what = || format!("container {id}");
        self.cgroups
            .group(cgroup)
            .remove()
            .map_err(RuntimeError::io(what()))?;
        let _ = fs::remove_file(self.paths.seccomp().join(format!("{id}.bpf")));
        // In this order: a directory without a lease is found and removed, a lease without one is not.
        self.images
            .release(id.as_str())
            .map_err(|error| RuntimeError::Internal(error.to_string()))?;
        self.discard(&self.paths.container(id))
            .map_err(RuntimeError::io(what()))?;
        self.state().containers.remove(id);
        Ok(())
    }

    pub(crate) async fn update_container_resources(
        self: &Arc<Self>,
        id: &ContainerId,
        resources: LinuxResources,
    ) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        if container.is_exited() {
            return Err(RuntimeError::FailedPrecondition(format!(
                "container {id} has exited"
            )));
        }
        self.blocking(move |inner| {
            let what = || format!("cgroup {}", container.file.cgroup);
            let group = inner.cgroups.group(&container.file.cgroup);
            group
                .set(&resources)
                .map(drop)
                .map_err(RuntimeError::io(what()))
        })
        .await
    }

    pub(crate) async fn reopen_container_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        let directory = self.paths.pod(&container.file.sandbox);
        client::call(
            &directory,
            "reopen log",
            Op::ReopenLog { id: id.to_string() },
            &[],
        )
        .await
        .map(drop)
    }

    pub(crate) async fn container_stats(
        self: &Arc<Self>,
        id: &ContainerId,
    ) -> Result<ContainerStats, RuntimeError> {
        let container = self.container(id)?;
        if !container.is_running() {
            return Err(RuntimeError::NotFound(format!(
                "container {id}: it does not run"
            )));
        }
        self.blocking(move |inner| {
            let mut stats = inner
                .cgroups
                .group(&container.file.cgroup)
                .stats()
                .map_err(RuntimeError::io(format!(
                    "cgroup {}",
                    container.file.cgroup
                )))?;
            let mut known = lock(&container.layer_usage);
            let usage = match *known {
                Some(usage) if Instant::now() < usage.again_at => usage,
                _ => LayerUsage::count(&inner.paths.container(&container.file.id).join("upper")),
            };
            *known = Some(usage);
            stats.writable_layer_bytes = usage.bytes;
            stats.writable_layer_inodes = Some(usage.inodes);
            Ok(stats)
        })
        .await
    }
}

fn capability_names(spec: &Spec) -> HashSet<String> {
    let sets = spec
        .process()
        .as_ref()
        .and_then(|process| process.capabilities().clone());
    sets.and_then(|sets| sets.bounding().clone())
        .unwrap_or_default()
        .iter()
        .filter_map(|capability| Some(serde_json::to_value(capability).ok()?.as_str()?.to_owned()))
        .collect()
}

fn defaults(image: &StoredImage) -> ImageDefaults {
    let config = &image.config;
    ImageDefaults {
        entrypoint: config.entrypoint.clone(),
        command: config.cmd.clone(),
        env: config
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        working_dir: config.working_dir.clone(),
    }
}

/// The image's volumes that the pod mounts nothing at, in the order they can be made.
fn image_volumes(declared: &[String], mounts: &[Mount]) -> Vec<PathBuf> {
    let mut volumes: Vec<PathBuf> = declared
        .iter()
        .map(|path| Path::new("/").join(path))
        .filter(|path| {
            mounts
                .iter()
                .all(|mount| !path.starts_with(&mount.container_path))
        })
        .collect();
    volumes.sort();
    volumes
}

/// `SIGQUIT`, `QUIT` or `3`.
fn stop_signal(image: &StoredImage) -> Option<i32> {
    let name = image.config.stop_signal.as_deref()?.trim();
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    if let Some(offset) = full.strip_prefix("SIGRTMIN+") {
        return offset
            .parse::<i32>()
            .ok()
            .map(|offset| libc::SIGRTMIN() + offset);
    }
    full.parse::<Signal>().ok().map(|signal| signal as i32)
}

/// Device nodes for the container, and what its group may open (`None`: everything).
fn devices(
    config: &ContainerConfig,
) -> Result<(Vec<LinuxDevice>, Option<Vec<DeviceRule>>), RuntimeError> {
    let mut nodes = Vec::new();
    if config.security.privileged {
        collect_devices(
            Path::new("/dev"),
            Path::new("/dev"),
            &mut nodes,
            &mut Vec::new(),
            "rwm",
        )?;
        return Ok((nodes, None));
    }
    let mut rules = DeviceRule::defaults();
    for device in &config.devices {
        let found = fs::metadata(&device.host_path).map_err(|error| {
            RuntimeError::InvalidArgument(format!(
                "error gathering device information while adding custom device \"{}\": {error}",
                device.host_path.display()
            ))
        })?;
        if found.is_dir() {
            collect_devices(
                &device.host_path,
                &device.container_path,
                &mut nodes,
                &mut rules,
                &device.permissions,
            )?;
        } else {
            add_device(
                &found,
                device.container_path.clone(),
                &mut nodes,
                &mut rules,
                &device.permissions,
            )?;
        }
    }
    Ok((nodes, Some(rules)))
}

fn collect_devices(
    from: &Path,
    to: &Path,
    nodes: &mut Vec<LinuxDevice>,
    rules: &mut Vec<DeviceRule>,
    access: &str,
) -> Result<(), RuntimeError> {
    for entry in fs::read_dir(from)
        .map_err(RuntimeError::io(from.display().to_string()))?
        .flatten()
    {
        let name = entry.file_name();
        if OWN_DEVICES.iter().any(|own| name == *own) {
            continue;
        }
        let Ok(found) = fs::symlink_metadata(entry.path()) else {
            continue;
        };
        if found.is_dir() {
            collect_devices(&entry.path(), &to.join(name), nodes, rules, access)?;
        } else {
            add_device(&found, to.join(name), nodes, rules, access)?;
        }
    }
    Ok(())
}

fn add_device(
    found: &fs::Metadata,
    path: PathBuf,
    nodes: &mut Vec<LinuxDevice>,
    rules: &mut Vec<DeviceRule>,
    access: &str,
) -> Result<(), RuntimeError> {
    let kind = found.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return Ok(());
    }
    let number = found.rdev();
    nodes.push(spec::device(
        path,
        kind.is_block_device(),
        number,
        found.mode(),
        found.uid(),
        found.gid(),
    )?);
    rules.push(DeviceRule {
        kind: if kind.is_block_device() {
            DeviceKind::Block
        } else {
            DeviceKind::Char
        },
        major: Some(libc::major(number)),
        minor: Some(libc::minor(number)),
        access: access.to_owned(),
    });
    Ok(())
}

/// Reads a rule as [`DeviceRule`] prints it.
fn parse_rule(text: &str) -> Option<DeviceRule> {
    let mut words = text.split(' ');
    let kind = match words.next()? {
        "b" => DeviceKind::Block,
        _ => DeviceKind::Char,
    };
    let (major, minor) = words.next()?.split_once(':')?;
    Some(DeviceRule {
        kind,
        major: major.parse().ok(),
        minor: minor.parse().ok(),
        access: words.next()?.to_owned(),
    })
}

impl LayerUsage {
    fn count(directory: &Path) -> Self {
        let began = Instant::now();
        let (mut bytes, mut inodes) = (0, 0);
        let mut directories = vec![directory.to_owned()];
        while let Some(directory) = directories.pop() {
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten() {
                let Ok(found) = entry.metadata() else {
                    continue;
                };
                bytes += found.blocks() * 512;
                inodes += 1;
                if found.is_dir() {
                    directories.push(entry.path());
                }
            }
        }
        let pause = LAYER_USAGE_AGE.max(began.elapsed() * LAYER_USAGE_PAUSE);
        Self {
            again_at: Instant::now() + pause,
            bytes,
            inodes,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

//! Sandboxes: a supervisor, its namespaces, the pod's cgroup.
//!
//! ```text
//!  .<id> ─ rename ─▶ <id> (NotReady) ─ lock, spawn, "ready" ─▶ Ready ─ supervisor ends ─▶ NotReady ─ rename ─▶ trash
//! ```

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{io::AsyncReadExt, sync::watch};
use wherry_runtime_api::{
    ContainerId, LinuxResources, NamespaceMode, PodSandbox, PodSandboxConfig, PodSandboxId,
    PodSandboxState, RuntimeError, RuntimeEvent, SandboxNetwork,
};

use crate::{
    bundle::{self, SandboxFile},
    client::Connection,
    protocol::{Op, Reply},
    runtime::{HANDLER, Inner},
};

/// First pause before connecting again to a supervisor that lives and does not answer; doubled each time.
const RECONNECT_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What the supervisor may use on top of the pod's own limit. Its group is within the pod's: without this a container
/// at its limit would put the pod at its own, and the kernel might end the supervisor, and so the pod, instead of the
/// container. Ten times what a supervisor uses, and what a container takes while it is being made.
const SUPERVISOR_MEMORY_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A sandbox this runtime knows of.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) file: SandboxFile,
    /// The supervisor's process, as long as it lives.
    pub(crate) pid: watch::Sender<Option<i32>>,
}

impl Sandbox {
    pub(crate) fn new(file: SandboxFile) -> Arc<Self> {
        Arc::new(Self {
            file,
            pid: watch::Sender::new(None),
        })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.pid.borrow().is_some()
    }

    pub(crate) fn status(&self) -> PodSandbox {
        let pid = *self.pid.borrow();
        let network = match (self.file.config.namespaces.network, pid) {
            (NamespaceMode::Node, _) => SandboxNetwork::Host,
            (_, Some(pid)) => SandboxNetwork::Namespace {
                path: format!("/proc/{pid}/ns/net").into(),
            },
            // There is none any more; the path leads nowhere, as it should.
            (_, None) => SandboxNetwork::Namespace {
                path: PathBuf::from("/proc/0/ns/net"),
            },
        };
        PodSandbox {
            id: self.file.id.clone(),
            handler: HANDLER.to_owned(),
            config: self.file.config.clone(),
            state: if pid.is_some() {
                PodSandboxState::Ready
            } else {
                PodSandboxState::NotReady
            },
            created_at: self.file.created_at,
            network,
            ips: Vec::new(),
            pid,
        }
    }
}

/// A pod's limits with what its supervisor may use on top.
pub(crate) fn with_supervisor(resources: &LinuxResources) -> LinuxResources {
    let memory = resources.memory_bytes_max;
    LinuxResources {
        memory_bytes_max: memory.map(|bytes| bytes.saturating_add(SUPERVISOR_MEMORY_BYTES_MAX)),
        ..resources.clone()
    }
}

/// A new identifier, unique for all time.
pub(crate) fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Whether a supervisor holds the lock of this run directory.
pub(crate) fn is_locked(directory: &Path) -> bool {
    let Ok(file) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(directory.join("lock"))
    else {
        return false;
    };
    // Shared, so that two who ask do not see each other; released with the descriptor.
    matches!(
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared),
        Err(rustix::io::Errno::WOULDBLOCK)
    )
}

impl Inner {
    pub(crate) async fn run_pod_sandbox(
        self: &Arc<Self>,
        config: PodSandboxConfig,
    ) -> Result<PodSandbox, RuntimeError> {
        self.verify_sandbox(&config)?;
        let _turn = self.turn(config.uid.as_str()).await;
        let same: Vec<Arc<Sandbox>> = self
            .state()
            .sandboxes
            .values()
            .filter(|sandbox| {
                sandbox.file.config.uid == config.uid
                    && sandbox.file.config.attempt == config.attempt
            })
            .cloned()
            .collect();
        for sandbox in same {
            if sandbox.is_ready() {
                return Ok(sandbox.status());
            }
            // Half made, or dead: its place is needed.
            self.remove_in_turn(&sandbox.file.id).await?;
        }
        let file = SandboxFile {
            id: PodSandboxId::new(new_id()),
            config,
            created_at: SystemTime::now(),
        };
        let sandbox = Sandbox::new(file);
        let started = async {
            let spawned = sandbox.clone();
            let (ready, child) = self
                .blocking(move |inner| inner.spawn_supervisor(&spawned))
                .await?;
            self.wait_until_ready(&sandbox, ready, child).await
        };
        match started.await {
            Ok(()) => Ok(sandbox.status()),
            Err(error) => {
                if let Err(error) = self.remove_in_turn(&sandbox.file.id).await {
                    tracing::warn!(sandbox = %sandbox.file.id, %error, "Half-made sandbox stays");
                }
                Err(error)
            }
        }
    }

    fn verify_sandbox(&self, config: &PodSandboxConfig) -> Result<(), RuntimeError> {
        let Some(range) = config.user_namespace else {
            return Ok(());
        };
        let what = || format!("sandbox of pod {}/{}", config.namespace, config.name);
        if !self.features.user_namespaces {
            return Err(RuntimeError::Unsupported(format!(
                "{}: this node has no user namespaces for pods",
                what()
            )));
        }
        let modes = config.namespaces;
        if [modes.network, modes.pid, modes.ipc].contains(&NamespaceMode::Node) {
            return Err(RuntimeError::InvalidArgument(format!(
                "{}: a user namespace of its own and a namespace of the node exclude each other",
                what()
            )));
        }
        if range.length == 0
            || range.host_id == 0
            || range.host_id.checked_add(range.length).is_none()
        {
            return Err(RuntimeError::InvalidArgument(format!(
                "{}: {} IDs from {} on are no range for a user namespace",
                what(),
                range.length,
                range.host_id
            )));
        }
        Ok(())
    }

    /// Puts the sandbox on disk and starts its supervisor.
    fn spawn_supervisor(
        &self,
        sandbox: &Arc<Sandbox>,
    ) -> Result<(OwnedFd, tokio::process::Child), RuntimeError> {
        let (id, config) = (&sandbox.file.id, &sandbox.file.config);
        let what = || format!("sandbox {id}");
        let staging = self.paths.sandboxes().join(format!(".{id}"));
        fs::create_dir_all(&staging).map_err(RuntimeError::io(what()))?;
        bundle::write(&staging.join("sandbox.json"), &sandbox.file)
            .map_err(RuntimeError::io(what()))?;
        fs::rename(&staging, self.paths.sandbox(id)).map_err(RuntimeError::io(what()))?;
        self.state().sandboxes.insert(id.clone(), sandbox.clone());

        let group = self.cgroups.group(&config.cgroup_parent);
        let resources = with_supervisor(&config.resources);
        let limits = || -> io::Result<()> {
            group.create()?;
            for warning in group.set(&resources)? {
                tracing::warn!(sandbox = %id, warning, "Pod limit not set");
            }
            Ok(())
        };
        limits().map_err(RuntimeError::io(format!("cgroup {}", config.cgroup_parent)))?;

        let run = self.paths.pod(id);
        fs::create_dir_all(&run).map_err(RuntimeError::io(what()))?;
        let open = |name: &str| {
            fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(run.join(name))
                .map_err(RuntimeError::io(what()))
        };
        let lock = open("lock")?;
        // Taken here and passed on, so that there is no moment in which the supervisor runs unlocked.
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| RuntimeError::io(format!("{}: lock", what()))(error.into()))?;
        let (ready, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| RuntimeError::io(what())(error.into()))?;
        let child = tokio::process::Command::new(&self.exe.path)
            .arg0("wherry")
            .arg("stage1")
            .arg(self.paths.sandbox(id))
            .arg(&run)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(lock))
            .stdout(Stdio::from(theirs))
            .stderr(Stdio::from(open("log")?))
            .spawn()
            .map_err(RuntimeError::io(format!(
                "{}: start its supervisor",
                what()
            )))?;
        Ok((ready, child))
    }

    async fn wait_until_ready(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        ready: OwnedFd,
        mut child: tokio::process::Child,
    ) -> Result<(), RuntimeError> {
        let id = &sandbox.file.id;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let mut word = String::new();
        let mut ready = tokio::net::unix::pipe::Receiver::from_owned_fd(ready)
            .map_err(RuntimeError::io(format!("sandbox {id}")))?;
        let heard =
            tokio::time::timeout(self.supervisor_timeout, ready.read_to_string(&mut word)).await;
        if heard.is_err() {
            let _ = child.start_kill();
        }
        // Reaped whenever it ends, as long as this agent lives.
        tokio::spawn(async move { child.wait().await });
        match heard {
            Ok(Ok(_)) if word == "ready" => {}
            Ok(_) if word.is_empty() => {
                let log = fs::read_to_string(self.paths.pod(id).join("log")).unwrap_or_default();
                let message = format!("sandbox {id}: its supervisor ended at once: {}", log.trim());
                return Err(RuntimeError::Internal(message));
            }
            Ok(_) => {
                return Err(RuntimeError::InvalidArgument(format!(
                    "sandbox {id}: {word}"
                )));
            }
            Err(_) => {
                let what = format!("sandbox {id}: its supervisor's start");
                return Err(RuntimeError::DeadlineExceeded {
                    what,
                    after: self.supervisor_timeout,
                });
            }
        }
        sandbox.pid.send_replace(pid);
        self.follow(sandbox.clone());
        Ok(())
    }

    /// Follows a supervisor until it is gone.
    pub(crate) fn follow(self: &Arc<Self>, sandbox: Arc<Sandbox>) {
        let inner = self.clone();
        let stopped = self.stopped.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = inner.follow_until_gone(&sandbox) => {}
            }
        });
    }

    async fn follow_until_gone(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let directory = self.paths.pod(&sandbox.file.id);
        let mut pause = RECONNECT_PAUSE;
        loop {
            if let Ok(connection) = Connection::open(&directory)
                && connection.send(Op::Watch, &[]).await.is_ok()
            {
                while let Ok(Some((reply, _))) = connection.receive().await {
                    pause = RECONNECT_PAUSE;
                    self.hear(sandbox, reply);
                }
            }
            if !is_locked(&directory) {
                break;
            }
            // It lives, and has dropped us because we did not keep up, or does not listen yet.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_PAUSE_MAX);
        }
        self.supervisor_gone(sandbox).await;
    }

    pub(crate) fn hear(&self, sandbox: &Arc<Sandbox>, reply: Reply) {
        match reply {
            Reply::Sandbox { pid } => drop(sandbox.pid.send_replace(Some(pid))),
            Reply::Container(record) => {
                let container = self
                    .state()
                    .containers
                    .get(&ContainerId::new(record.id.as_str()))
                    .cloned();
                if let Some(container) = container {
                    self.apply(&container, record);
                }
            }
            _ => {}
        }
    }

    /// Records what became of a sandbox whose supervisor has ended, however that came about.
    pub(crate) async fn supervisor_gone(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let result = {
            let sandbox = sandbox.clone();
            self.blocking(move |inner| {
                for container in inner.containers_of(&sandbox.file.id) {
                    // Apps ask to die with their supervisor; those that undid that are ended here.
                    inner.cgroups.group(&container.file.cgroup).kill();
                    inner.record_lost(&container);
                }
                Ok(())
            })
            .await
        };
        if let Err(error) = result {
            tracing::warn!(sandbox = %sandbox.file.id, %error, "Exits not recorded");
        }
        sandbox.pid.send_replace(None);
        let _ = self.events.send(RuntimeEvent::SandboxExited {
            pod: sandbox.file.config.uid.clone(),
            id: sandbox.file.id.clone(),
        });
    }

    pub(crate) async fn stop_pod_sandbox(
        self: &Arc<Self>,
        id: &PodSandboxId,
    ) -> Result<(), RuntimeError> {
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        let directory = self.paths.pod(id);
        if !is_locked(&directory) {
            // Its end may not have been noticed yet.
            if sandbox.is_ready() {
                self.wait_until_gone(&sandbox).await;
            }
            return Ok(());
        }
        let asked = match Connection::open(&directory) {
            Ok(connection) => {
                let asked = connection.send(Op::Shutdown, &[]).await.is_ok();
                // It closes when all is over.
                let end = async { while let Ok(Some(_)) = connection.receive().await {} };
                asked
                    && tokio::time::timeout(self.supervisor_timeout, end)
                        .await
                        .is_ok()
            }
            Err(_) => false,
        };
        if !asked && let Some(pid) = *sandbox.pid.borrow() {
            tracing::warn!(sandbox = %id, pid, "Supervisor does not answer and is killed");
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        self.wait_until_gone(&sandbox).await;
        if is_locked(&directory) {
            let what = format!("sandbox {id}: its supervisor's end");
            return Err(RuntimeError::DeadlineExceeded {
                what,
                after: self.supervisor_timeout,
            });
        }
        Ok(())
    }

    async fn wait_until_gone(&self, sandbox: &Sandbox) {
        let mut pid = sandbox.pid.subscribe();
        let _ = tokio::time::timeout(self.supervisor_timeout, pid.wait_for(Option::is_none)).await;
    }

    pub(crate) async fn remove_pod_sandbox(
        self: &Arc<Self>,
        id: &PodSandboxId,
    ) -> Result<(), RuntimeError> {
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        let _turn = self.turn(sandbox.file.config.uid.as_str()).await;
        self.remove_in_turn(id).await
    }

    async fn remove_in_turn(self: &Arc<Self>, id: &PodSandboxId) -> Result<(), RuntimeError> {
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        self.stop_pod_sandbox(id).await?;
        for container in self.containers_of(id) {
            self.remove_container(&container.file.id).await?;
        }
        let id = id.clone();
        self.blocking(move |inner| {
            let what = || format!("sandbox {id}");
            let parent = &sandbox.file.config.cgroup_parent;
            // Another attempt of the pod may live in the same group; whoever goes last removes it.
            let is_shared = inner
                .state()
                .sandboxes
                .values()
                .any(|other| other.file.id != id && other.file.config.cgroup_parent == *parent);
            if !is_shared {
                inner
                    .cgroups
                    .group(parent)
                    .remove()
                    .map_err(RuntimeError::io(what()))?;
            }
            remove_dir_all(&inner.paths.pod(&id)).map_err(RuntimeError::io(what()))?;
            inner
                .discard(&inner.paths.sandbox(&id))
                .map_err(RuntimeError::io(what()))?;
            inner.state().sandboxes.remove(&id);
            Ok(())
        })
        .await
    }

    /// Moves a directory out of sight and deletes it.
    pub(crate) fn discard(&self, directory: &Path) -> io::Result<()> {
        let trash = self.paths.trash().join(new_id());
        match fs::rename(directory, &trash) {
            Ok(()) => remove_dir_all(&trash),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Deletes a directory; gone already is fine.
pub(crate) fn remove_dir_all(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io::Error::new(
            error.kind(),
            format!("{}: {error}", directory.display()),
        )),
        _ => Ok(()),
    }
}

//! What is found when the runtime is opened: sandboxes and containers to take up, and leftovers to remove.

use std::{collections::HashSet, fs, io, path::Path, sync::Arc, time::Duration};

use wherry_runtime_api::{ContainerExit, ContainerId, ContainerState, RuntimeError};

use crate::{
    bundle::{self, ContainerFile, SandboxFile, StartFile},
    client::Connection,
    container::Container,
    protocol::{Op, Reply},
    runtime::Inner,
    sandbox::{Sandbox, is_locked, remove_dir_all},
};

/// How long a supervisor that holds its lock may take to say what it has. One that was started a moment
/// before the last agent was killed does not listen yet.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts to reach it.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

impl Inner {
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<(), RuntimeError> {
        self.blocking(Self::read_disk).await?;
        let sandboxes: Vec<Arc<Sandbox>> = self.state().sandboxes.values().cloned().collect();
        for sandbox in sandboxes {
            if is_locked(&self.paths.pod(&sandbox.file.id)) {
                match tokio::time::timeout(ANSWER_TIMEOUT, self.take_up(&sandbox)).await {
                    Ok(()) => {}
                    Err(_) => {
                        tracing::warn!(sandbox = %sandbox.file.id, "Supervisor lives and does not answer")
                    }
                }
                self.follow(sandbox);
            } else {
                self.supervisor_gone(&sandbox).await;
            }
        }
        Ok(())
    }

    /// Asks a supervisor for the present state.
    async fn take_up(&self, sandbox: &Arc<Sandbox>) {
        let directory = self.paths.pod(&sandbox.file.id);
        while is_locked(&directory) {
            if let Ok(connection) = Connection::open(&directory)
                && connection.send(Op::Watch, &[]).await.is_ok()
            {
                while let Ok(Some((reply, _))) = connection.receive().await {
                    if matches!(reply, Reply::Present) {
                        return;
                    }
                    self.hear(sandbox, reply);
                }
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Reads what counts and removes what does not: staging directories, trash, filters, leases and run
    /// directories that nothing refers to.
    fn read_disk(&self) -> Result<(), RuntimeError> {
        let trouble = |what: &Path| RuntimeError::io(what.display().to_string());
        for directory in [self.paths.sandboxes(), self.paths.containers()] {
            for name in names(&directory).map_err(trouble(&directory))? {
                if let Some(id) = name.strip_prefix('.') {
                    let _ = self.images.release(id);
                    self.discard(&directory.join(&name))
                        .map_err(trouble(&directory))?;
                }
            }
        }
        let trash = self.paths.trash();
        for name in names(&trash).map_err(trouble(&trash))? {
            remove_dir_all(&trash.join(name)).map_err(trouble(&trash))?;
        }

        let sandboxes = self.paths.sandboxes();
        for name in names(&sandboxes).map_err(trouble(&sandboxes))? {
            match bundle::read::<SandboxFile>(&sandboxes.join(&name).join("sandbox.json")) {
                Ok(Some(file)) => drop(
                    self.state()
                        .sandboxes
                        .insert(file.id.clone(), Sandbox::new(file)),
                ),
                other => {
                    // A power cut may leave a file empty; its supervisor is gone with the power.
                    tracing::warn!(sandbox = name, error = ?other.err(), "Sandbox cannot be read and is removed");
                    self.discard(&sandboxes.join(&name))
                        .map_err(trouble(&sandboxes))?;
                }
            }
        }
        self.read_containers()?;
        self.remove_unreferenced()
    }

    fn read_containers(&self) -> Result<(), RuntimeError> {
        let containers = self.paths.containers();
        let trouble = || RuntimeError::io(containers.display().to_string());
        for name in names(&containers).map_err(trouble())? {
            let directory = containers.join(&name);
            let file = match bundle::read::<ContainerFile>(&directory.join("container.json")) {
                Ok(Some(file)) => file,
                other => {
                    tracing::warn!(container = name, error = ?other.err(), "Container cannot be read and is removed");
                    let _ = self.images.release(&name);
                    self.discard(&directory).map_err(trouble())?;
                    continue;
                }
            };
            if !self.state().sandboxes.contains_key(&file.sandbox) {
                self.cgroups.group(&file.cgroup).kill();
                self.forget_container(&file.id, &file.cgroup)?;
                continue;
            }
            let exit =
                bundle::read::<ContainerExit>(&directory.join("exit.json")).unwrap_or_default();
            let start =
                bundle::read::<StartFile>(&directory.join("start.json")).unwrap_or_default();
            let state = match (exit, start) {
                (Some(exit), _) => ContainerState::Exited(exit),
                (None, Some(start)) => ContainerState::Running {
                    started_at: start.started_at,
                },
                (None, None) => ContainerState::Created,
            };
            self.state()
                .containers
                .insert(file.id.clone(), Container::new(file, state));
        }
        Ok(())
    }

    fn remove_unreferenced(&self) -> Result<(), RuntimeError> {
        let trouble = |what: &Path| RuntimeError::io(what.display().to_string());
        let pods = self.paths.pods();
        for name in names(pods).map_err(trouble(pods))? {
            let directory = pods.join(&name);
            let is_known = self.state().sandboxes.keys().any(|id| id.as_str() == name);
            if !is_known && !is_locked(&directory) {
                remove_dir_all(&directory).map_err(trouble(pods))?;
            }
        }
        let containers: HashSet<ContainerId> = self.state().containers.keys().cloned().collect();
        let mut filters = HashSet::new();
        for id in &containers {
            let bundle =
                bundle::read::<bundle::Bundle>(&self.paths.container(id).join("bundle.json"));
            filters.extend(bundle.ok().flatten().and_then(|bundle| bundle.seccomp));
        }
        let seccomp = self.paths.seccomp();
        for name in names(&seccomp).map_err(trouble(&seccomp))? {
            let path = seccomp.join(name);
            if !filters.contains(&path) {
                fs::remove_file(&path).map_err(trouble(&path))?;
            }
        }
        Ok(())
    }
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

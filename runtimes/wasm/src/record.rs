//! What is known of sandboxes and containers, on disk.
//!
//! ```text
//! <root>/wasm/sandboxes/<id>/sandbox.json      the sandbox
//! <root>/wasm/containers/<id>/container.json   the container: config, worker, start, exit
//! ```
//! Each file is written under another name and renamed. A directory without its file was being made
//! or removed when the agent died, and is rubbish.

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wherry_runtime_api::{
    ContainerConfig, ContainerExit, ContainerId, ContainerState, ContainerStatus, PodSandboxId,
    PodUid,
};

/// A container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: ContainerId,
    pub(crate) sandbox: PodSandboxId,
    pub(crate) pod: PodUid,
    pub(crate) config: ContainerConfig,
    /// The worker that holds it.
    pub(crate) worker: String,
    /// First WASI argument of the app.
    pub(crate) program: String,
    pub(crate) created_at: SystemTime,
    pub(crate) started_at: Option<SystemTime>,
    pub(crate) exit: Option<ContainerExit>,
    pub(crate) warnings: Vec<String>,
}

impl ContainerRecord {
    pub(crate) fn state(&self) -> ContainerState {
        match (&self.exit, self.started_at) {
            (Some(exit), _) => ContainerState::Exited(exit.clone()),
            (None, Some(started_at)) => ContainerState::Running { started_at },
            (None, None) => ContainerState::Created,
        }
    }

    pub(crate) fn status(&self, handler: &str) -> ContainerStatus {
        ContainerStatus {
            id: self.id.clone(),
            handler: handler.to_owned(),
            sandbox: self.sandbox.clone(),
            pod: self.pod.clone(),
            name: self.config.name.clone(),
            attempt: self.config.attempt,
            image: self.config.image.clone(),
            image_id: self.config.image_id.clone(),
            state: self.state(),
            created_at: self.created_at,
            log_path: self.config.log_path.clone(),
            pid: None,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            warnings: self.warnings.clone(),
        }
    }
}

/// Writes a file whole or not at all.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, serde_json::to_vec(value)?)?;
    std::fs::rename(temporary, path)
}

/// Every record `file` in a directory of `directory`; directories without a readable one are removed.
pub(crate) fn read_all<T: DeserializeOwned>(
    directory: &Path,
    file: &str,
) -> io::Result<Vec<(PathBuf, T)>> {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let read =
            std::fs::read(path.join(file)).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        match read {
            Ok(record) => records.push((path, record)),
            Err(error) => {
                tracing::info!(path = %path.display(), %error, "Removing an unfinished record");
                remove_directory(&path)?;
            }
        }
    }
    Ok(records)
}

/// Removes a directory; one that is gone is fine.
pub(crate) fn remove_directory(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

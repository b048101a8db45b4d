//! Log files: opened and rotated by the agent, written by the worker.

use super::*;

impl Inner {
    /// Renames a log that has outgrown its size, drops the oldest, and opens a new one.
    pub(super) async fn rotate_log(
        &self,
        worker: &Arc<Worker>,
        id: &ContainerId,
    ) -> Result<(), RuntimeError> {
        let config = self.container(id)?.record().config;
        let path = &config.log_path;
        wherry_log::rotate(path, config.log_rotation.files_max)
            .map_err(RuntimeError::io(path.display().to_string()))?;
        let log = open_log(path)?;
        worker
            .client()?
            .ask(
                RequestBody::ReopenLog { id: id.to_string() },
                &[log.as_fd()],
            )
            .await?;
        Ok(())
    }
}

pub(super) fn open_log(path: &Path) -> Result<File, RuntimeError> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o640);
    options
        .open(path)
        .map_err(RuntimeError::io(format!("log {}", path.display())))
}

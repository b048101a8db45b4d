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
        rotate(path, config.log_rotation.files_max)
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

/// Renames `0.log` to `0.log.<time>` and removes the oldest, `files_max` being left with a new one.
pub(super) fn rotate(path: &Path, files_max: u32) -> io::Result<()> {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut rotated = path.as_os_str().to_owned();
    rotated.push(format!(".{:020}", since.as_nanos()));
    std::fs::rename(path, &rotated)?;
    let (Some(directory), Some(name)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Ok(());
    };
    let prefix = format!("{name}.");
    let mut old: Vec<PathBuf> = std::fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(&prefix))
        })
        .collect();
    old.sort();
    let keep = (files_max.max(2) - 1) as usize;
    for path in &old[..old.len().saturating_sub(keep)] {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotating_keeps_the_newest_and_touches_no_other_file() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        std::fs::write(directory.path().join("10.log"), "another attempt's").unwrap();
        for n in 0..5 {
            std::fs::write(&log, format!("{n}")).unwrap();
            rotate(&log, 3).unwrap();
        }
        let mut names: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        let contents: Vec<_> = names
            .iter()
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect();
        assert_eq!(contents, ["3", "4", "another attempt's"]);
    }
}

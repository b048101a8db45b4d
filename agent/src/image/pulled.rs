//! Which of an engine's images this node pulled: the others are somebody else's, and are never
//! collected. Empty files, so that nothing is ever half written.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The images that this node pulled into engines.
#[derive(Debug)]
pub(crate) struct Pulled {
    dir: PathBuf,
}

impl Pulled {
    /// Kept below `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            dir: root.join("engine-images"),
        }
    }

    fn path(&self, handler: &str, id: &str) -> Option<PathBuf> {
        let name = id.replace(':', "-");
        let is_safe = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        is_safe.then(|| self.dir.join(handler).join(name))
    }

    /// Notes that the image is ours.
    pub(crate) fn note(&self, handler: &str, id: &str) -> io::Result<()> {
        let Some(path) = self.path(handler, id) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::File::create(path).map(drop)
    }

    /// Whether the image is ours.
    pub(crate) fn holds(&self, handler: &str, id: &str) -> bool {
        self.path(handler, id).is_some_and(|path| path.exists())
    }

    /// Forgets an image that is gone.
    pub(crate) fn forget(&self, handler: &str, id: &str) {
        if let Some(path) = self.path(handler, id) {
            // Gone already, or of no consequence: the image is.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pulled_is_known_to_the_next_agent_and_nothing_else_is() {
        let root = tempfile::tempdir().expect("a temporary directory");
        Pulled::new(root.path())
            .note("docker", "sha256:1")
            .expect("writable");
        let pulled = Pulled::new(root.path());
        assert!(pulled.holds("docker", "sha256:1"));
        assert!(!pulled.holds("docker", "sha256:2"));
        assert!(!pulled.holds("podman", "sha256:1"));
        assert!(pulled.note("docker", "../x").is_err());
        pulled.forget("docker", "sha256:1");
        assert!(!pulled.holds("docker", "sha256:1"));
    }
}

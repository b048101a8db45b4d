//! What a probe may have done in and for its container: commands in it, Secrets of its namespace, its pod's volumes.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use std::time::Duration;
use wherry_plugin_host::{Exec, SecretError};

use crate::{
    objects::Objects,
    pod::{self, lifecycle::ContainerExec},
};

/// One container, as its probes reach it.
pub(crate) struct Reach {
    /// Runs commands.
    pub(crate) exec: ContainerExec,
    /// Knows Secrets.
    pub(crate) objects: Arc<Objects>,
    /// The pod as it was when the probe began: its volumes never change.
    pub(crate) pod: Arc<Pod>,
    /// The pod's own directory.
    pub(crate) pod_dir: PathBuf,
}

#[async_trait]
impl Exec for Reach {
    async fn exec(
        &self,
        command: &[String],
        timeout: Duration,
    ) -> Result<(i32, Vec<u8>), Option<String>> {
        self.exec.exec(command, timeout).await
    }

    async fn secret(&self, name: &str, key: &str) -> Result<Vec<u8>, SecretError> {
        let secret = self.objects.secret(pod::namespace(&self.pod), name).await;
        let secret = secret.map_err(|error| SecretError::Unavailable(error.to_string()))?;
        let value = secret.and_then(|secret| Some(secret.data.as_ref()?.get(key)?.0.clone()));
        value.ok_or(SecretError::NotFound)
    }

    fn volume(&self, name: &str) -> Option<PathBuf> {
        let volumes = self.pod.spec.as_ref()?.volumes.as_ref()?;
        let volume = volumes.iter().find(|volume| volume.name == name)?;
        if let Some(host_path) = &volume.host_path {
            return Some(PathBuf::from(&host_path.path));
        }
        // One directory for each kind, and in it one for each volume.
        let kinds = std::fs::read_dir(self.pod_dir.join("volumes")).ok()?;
        kinds
            .flatten()
            .map(|kind| kind.path().join(name))
            .find(|dir| dir.is_dir())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wherry_runtime_api::fake::{FakeClock, FakeRuntime};

    use super::*;

    #[tokio::test]
    async fn a_pods_own_volumes_are_reached_and_no_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let there = dir.path().join("volumes/kubernetes.io~empty-dir/data");
        std::fs::create_dir_all(&there).expect("writable");
        std::fs::create_dir_all(there.with_file_name("other")).expect("writable");
        let pod = json!({"spec": {"containers": [], "volumes": [
            {"name": "data", "emptyDir": {}},
            {"name": "late", "emptyDir": {}},
            {"name": "logs", "hostPath": {"path": "/var/log"}},
        ]}});
        let reach = Reach {
            exec: ContainerExec {
                runtime: FakeRuntime::new("oci", FakeClock::default()),
                id: "c".into(),
            },
            objects: Arc::new(Objects::new(None)),
            pod: Arc::new(serde_json::from_value(pod).expect("a pod")),
            pod_dir: dir.path().to_owned(),
        };
        assert_eq!(reach.volume("data"), Some(there));
        assert_eq!(reach.volume("logs"), Some("/var/log".into()));
        for name in ["late", "other", "..", ""] {
            assert_eq!(reach.volume(name), None, "{name}");
        }
        let secret = reach.secret("tls", "tls.key").await;
        assert!(
            matches!(secret, Err(SecretError::Unavailable(_))),
            "{secret:?}"
        );
    }
}

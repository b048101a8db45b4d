//! What a probe may have done in and for its container: commands in it, Secrets of its namespace, its pod's volumes; and
//! what it may know: usage, and the end of the log.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use std::time::Duration;
use tokio::task::spawn_blocking;
use wherry_plugin_host::{ContainerUsage, Exec, SecretError};

use crate::{
    objects::Objects,
    pod::{self, lifecycle::ContainerExec},
    probe::log,
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
        if !refers_to_secret(&self.pod, name) {
            let why =
                format!("the pod does not refer to secret {name}: name it in one of its volumes");
            return Err(SecretError::Denied(why));
        }
        let secret = self.objects.secret(pod::namespace(&self.pod), name).await;
        let secret = secret.map_err(|error| SecretError::Unavailable(error.to_string()))?;
        let value = secret.and_then(|secret| Some(secret.data.as_ref()?.get(key)?.0.clone()));
        value.ok_or(SecretError::NotFound)
    }

    async fn usage(&self) -> Option<ContainerUsage> {
        let ContainerExec { runtime, id } = &self.exec;
        let stats = runtime.container_stats(id).await.ok()?;
        Some(ContainerUsage {
            cpu_nanoseconds: stats.cpu_usage_core_nanoseconds,
            memory_working_set_bytes: stats.memory_working_set_bytes,
        })
    }

    async fn log_tail(&self, lines: u32) -> Result<Vec<String>, String> {
        let ContainerExec { runtime, id } = &self.exec;
        let status = runtime.container_status(id).await;
        let path = status.map_err(|error| error.to_string())?.log_path;
        let read = spawn_blocking(move || log::tail(&path, lines as usize)).await;
        let read = read.map_err(std::io::Error::other).flatten();
        read.map_err(|error| error.to_string())
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

/// Whether a pod shows a Secret itself: as much as its node may read.
fn refers_to_secret(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    let by_volume = |volume: &Volume| {
        let sources = volume.projected.iter().flat_map(|all| &all.sources);
        let projected = sources
            .flatten()
            .filter_map(|source| source.secret.as_ref());
        let whole = volume
            .secret
            .as_ref()
            .and_then(|one| one.secret_name.as_ref());
        whole
            .into_iter()
            .chain(projected.map(|one| &one.name))
            .any(|there| there == name)
    };
    let by_container = |container: &Container| {
        let sources = container.env_from.iter().flatten();
        let whole = sources.filter_map(|source| Some(&source.secret_ref.as_ref()?.name));
        let variables = container.env.iter().flatten();
        let single = variables.filter_map(|variable| {
            Some(&variable.value_from.as_ref()?.secret_key_ref.as_ref()?.name)
        });
        whole.chain(single).any(|there| there == name)
    };
    let init = spec.init_containers.iter().flatten();
    spec.volumes.iter().flatten().any(by_volume)
        || spec.containers.iter().chain(init).any(by_container)
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
            {"name": "certificates", "secret": {"secretName": "tls"}},
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
        let secret = reach.secret("another", "tls.key").await;
        assert!(matches!(secret, Err(SecretError::Denied(_))), "{secret:?}");
    }

    #[test]
    fn a_pod_refers_to_secrets_by_volumes_and_variables() {
        let pod = json!({"spec": {
            "volumes": [
                {"name": "a", "secret": {"secretName": "whole"}},
                {"name": "b", "projected": {"sources": [{"secret": {"name": "part"}}]}},
            ],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "all"}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "X", "valueFrom": {"secretKeyRef": {"name": "one", "key": "k"}}},
            ]}],
        }});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        for name in ["whole", "part", "all", "one"] {
            assert!(refers_to_secret(&pod, name), "{name}");
        }
        for name in ["a", "X", "k", ""] {
            assert!(!refers_to_secret(&pod, name), "{name}");
        }
    }
}

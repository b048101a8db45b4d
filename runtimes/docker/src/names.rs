//! What our containers are called and labelled, and what is read back from that.

use std::collections::HashMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use wherry_runtime_api::{
    ContainerConfig, LinuxResources, LogRotation, PodSandbox, PodSandboxConfig, PodSandboxId,
    PodUid,
};

/// The node that made the container. Nothing without it is ours.
pub(crate) const NODE: &str = "io.wherry.node";
/// [`Kind`] of container.
const KIND: &str = "io.wherry.kind";
/// JSON of what it was asked to be.
const CONFIG: &str = "io.wherry.config";

/// What a container made here is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Holds a pod's namespaces.
    Sandbox,
    /// Runs an app.
    Container,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Container => "container",
        }
    }
}

/// What a container's label keeps of its config. The environment is not in it: the engine has that already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) sandbox: PodSandboxId,
    pub(crate) pod: PodUid,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) annotations: Vec<(String, String)>,
    pub(crate) log_path: std::path::PathBuf,
    pub(crate) log_rotation: LogRotation,
    pub(crate) stdin: bool,
    /// Stdin ends with the first who leaves.
    #[serde(default)]
    pub(crate) stdin_once: bool,
    pub(crate) tty: bool,
    pub(crate) stop_signal: i32,
    /// Limits the engine does not know of and that are set beside it.
    pub(crate) hugepage_bytes_max: Vec<(String, u64)>,
    pub(crate) cgroup_parent: String,
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
}

impl ContainerRecord {
    pub(crate) fn new(
        sandbox: &PodSandbox,
        config: &ContainerConfig,
        stop_signal: i32,
        warnings: Vec<String>,
    ) -> Self {
        let LinuxResources {
            hugepage_bytes_max, ..
        } = config.resources.clone();
        Self {
            sandbox: sandbox.id.clone(),
            pod: sandbox.config.uid.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_id: config.image_id.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path: config.log_path.clone(),
            log_rotation: config.log_rotation,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            tty: config.tty,
            stop_signal,
            hugepage_bytes_max,
            cgroup_parent: sandbox.config.cgroup_parent.clone(),
            warnings,
        }
    }
}

/// `k8s_POD_<pod>_<namespace>_<uid>_<attempt>_<node>`, which the engine holds only once.
pub(crate) fn sandbox_name(node: &str, config: &PodSandboxConfig) -> String {
    container_name(node, config, "POD", config.attempt)
}

/// The same with the container's name and attempt.
pub(crate) fn container_name(
    node: &str,
    pod: &PodSandboxConfig,
    name: &str,
    attempt: u32,
) -> String {
    let digest = Sha256::digest(node.as_bytes());
    let words = [
        "k8s",
        name,
        &pod.name,
        &pod.namespace,
        pod.uid.as_str(),
        &attempt.to_string(),
        &format!("{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2]),
    ];
    words
        .join("_")
        .chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | '-' => c,
            _ => '-',
        })
        .collect()
}

/// Labels that tell whose a container is, and, in the words of the kubelet, what for.
pub(crate) fn labels(
    node: &str,
    kind: Kind,
    pod: &PodSandboxConfig,
    container: &str,
    config: &impl Serialize,
) -> serde_json::Result<HashMap<String, String>> {
    Ok([
        (NODE, node.to_owned()),
        (KIND, kind.as_str().to_owned()),
        (CONFIG, serde_json::to_string(config)?),
        ("io.kubernetes.pod.name", pod.name.clone()),
        ("io.kubernetes.pod.namespace", pod.namespace.clone()),
        ("io.kubernetes.pod.uid", pod.uid.to_string()),
        ("io.kubernetes.container.name", container.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into())
}

/// The kind of a container of ours, if it is one.
pub(crate) fn kind(labels: &HashMap<String, String>, node: &str) -> Option<Kind> {
    if labels.get(NODE).is_none_or(|owner| owner != node) {
        return None;
    }
    let name = labels.get(KIND)?;
    [Kind::Sandbox, Kind::Container]
        .into_iter()
        .find(|kind| kind.as_str() == name)
}

/// Reads the config back.
pub(crate) fn config<T: DeserializeOwned>(labels: &HashMap<String, String>) -> Result<T, String> {
    let text = labels
        .get(CONFIG)
        .ok_or_else(|| format!("label {CONFIG} is missing"))?;
    serde_json::from_str(text).map_err(|error| format!("label {CONFIG}: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_what_this_node_labelled_is_ours() {
        let labels = |node: &str, kind: &str| {
            HashMap::from([
                (NODE.to_owned(), node.to_owned()),
                (KIND.to_owned(), kind.to_owned()),
            ])
        };
        assert_eq!(kind(&labels("/a", "sandbox"), "/a"), Some(Kind::Sandbox));
        assert_eq!(
            kind(&labels("/a", "container"), "/a"),
            Some(Kind::Container)
        );
        assert_eq!(kind(&labels("/b", "container"), "/a"), None);
        assert_eq!(kind(&labels("/a", "else"), "/a"), None);
        assert_eq!(kind(&HashMap::new(), "/a"), None);
        let unmarked = HashMap::from([(KIND.to_owned(), "sandbox".to_owned())]);
        assert_eq!(kind(&unmarked, "/a"), None);
    }

    #[test]
    fn a_config_without_its_label_is_an_error_and_not_a_panic() {
        assert!(config::<ContainerRecord>(&HashMap::new()).is_err());
        let broken = HashMap::from([(CONFIG.to_owned(), "{".to_owned())]);
        assert!(config::<ContainerRecord>(&broken).is_err());
    }
}

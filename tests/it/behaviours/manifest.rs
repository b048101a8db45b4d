//! Manifests as JSON that is put together.

use serde_json::{Value, json};

/// Puts `more` into `into`: objects member by member, lists by appending, all else by replacing.
pub(crate) fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                match into.get_mut(&key) {
                    Some(old) => merge(old, value),
                    None => {
                        into.insert(key, value);
                    }
                }
            }
        }
        (Value::Array(into), Value::Array(more)) => into.extend(more),
        (into, more) => *into = more,
    }
}

/// `into` with `more` in it.
pub(crate) fn with(mut into: Value, more: Value) -> Value {
    merge(&mut into, more);
    into
}

/// A pod.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    /// The whole object.
    pub(crate) object: Value,
}

impl Pod {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            object: json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name},
                "spec": {"terminationGracePeriodSeconds": 1},
            }),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// With more in its spec.
    pub(crate) fn spec(mut self, more: Value) -> Self {
        merge(&mut self.object["spec"], more);
        self
    }

    /// With more metadata.
    pub(crate) fn metadata(mut self, more: Value) -> Self {
        merge(&mut self.object["metadata"], more);
        self
    }

    /// With one more container.
    pub(crate) fn container(self, container: Value) -> Self {
        self.spec(json!({"containers": [container]}))
    }

    /// With one more init container.
    pub(crate) fn init(self, container: Value) -> Self {
        self.spec(json!({"initContainers": [container]}))
    }

    /// With one more volume, mounted at `/<name>` in every container that is there so far.
    pub(crate) fn volume(mut self, name: &str, source: Value) -> Self {
        for list in ["containers", "initContainers"] {
            let containers = self.object["spec"][list].as_array_mut();
            for container in containers.into_iter().flatten() {
                merge(
                    container,
                    json!({"volumeMounts": [{"name": name, "mountPath": format!("/{name}")}]}),
                );
            }
        }
        self.source(name, source)
    }

    /// With one more volume that nothing mounts yet.
    pub(crate) fn source(self, name: &str, source: Value) -> Self {
        self.spec(json!({"volumes": [with(json!({"name": name}), source)]}))
    }
}

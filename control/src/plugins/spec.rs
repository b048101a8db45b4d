//! What a Plugin object's spec asks for.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;
use wherry_plugin_host::{FailurePolicy, Grants, Limits, PluginSpec};

/// A Plugin's spec. Without an image it says what a built-in plugin is to be granted and limited to, and what it does
/// not say stays as that plugin declares it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    pub(super) image: String,
    pub(super) digest: String,
    class: String,
    failure_policy: Option<FailurePolicy>,
    grants: Option<Grants>,
    limits: SpecLimits,
    config: Option<BTreeMap<String, String>>,
    pub(super) signature: SpecSignature,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SpecSignature {
    pub(super) public_keys: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpecLimits {
    memory: Option<Quantity>,
    cpu_time_milliseconds: Option<u32>,
    wall_time_milliseconds: Option<u32>,
    instances: Option<u32>,
}

impl Spec {
    /// The plugin whose component is in an image.
    pub(super) fn plugin(&self, name: &str, digest: &str) -> PluginSpec {
        let default = match self.class.as_str() {
            "" | "Probe" => Limits::default(),
            _ => Limits::of_volumes(),
        };
        PluginSpec {
            name: name.to_owned(),
            digest: digest.to_owned(),
            grants: self.grants.clone().unwrap_or_default(),
            limits: self.limits.over(default),
            failure_policy: self.failure_policy.unwrap_or_default(),
            config: self.config.clone().unwrap_or_default(),
        }
    }

    /// Changes what a built-in plugin declares.
    pub(super) fn change(&self, plugin: &mut PluginSpec) {
        plugin.limits = self.limits.over(plugin.limits);
        if let Some(grants) = &self.grants {
            plugin.grants.clone_from(grants);
        }
        if let Some(failure_policy) = self.failure_policy {
            plugin.failure_policy = failure_policy;
        }
        if let Some(config) = &self.config {
            plugin.config.clone_from(config);
        }
    }
}

impl SpecLimits {
    /// These limits where they are said, and others where they are not.
    fn over(&self, other: Limits) -> Limits {
        let millis =
            |n: Option<u32>, other| n.map_or(other, |n| Duration::from_millis(u64::from(n)));
        let memory = self.memory.as_ref().and_then(|memory| {
            let bytes = wherry_api::quantity::Quantity::parse(&memory.0).ok()?;
            u64::try_from(bytes.value()).ok()
        });
        Limits {
            memory_bytes_max: memory.unwrap_or(other.memory_bytes_max),
            cpu_time_max: millis(self.cpu_time_milliseconds, other.cpu_time_max),
            wall_time_max: millis(self.wall_time_milliseconds, other.wall_time_max),
            instances_max: self.instances.unwrap_or(other.instances_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(spec: Value) -> Spec {
        serde_json::from_value(spec).expect("a spec")
    }

    #[test]
    fn a_spec_without_limits_has_the_defaults_and_grants_nothing() {
        let plain = spec(json!({"image": "x/y:1"})).plugin("p", "d");
        assert_eq!(plain.limits, Limits::default());
        assert_eq!(plain.grants, Grants::default());
        assert_eq!(plain.failure_policy, FailurePolicy::Ignore);
        let populator = spec(json!({"image": "x/y:1", "class": "Populator"})).plugin("p", "d");
        assert_eq!(populator.limits, Limits::of_volumes());
        let full = spec(json!({
            "image": "x/y:1",
            "failurePolicy": "LastResult",
            "grants": {"exec": true, "hosts": ["db:1"]},
            "limits": {"memory": "1Mi", "cpuTimeMilliseconds": 7, "wallTimeMilliseconds": 8, "instances": 9},
        }))
        .plugin("p", "d");
        assert_eq!(full.limits.memory_bytes_max, 1 << 20);
        assert_eq!(full.limits.cpu_time_max, Duration::from_millis(7));
        assert_eq!(full.limits.wall_time_max, Duration::from_millis(8));
        assert_eq!(full.limits.instances_max, 9);
        assert!(full.grants.exec && full.failure_policy == FailurePolicy::LastResult);
    }

    #[test]
    fn what_is_said_of_a_builtin_plugin_replaces_what_it_declares() {
        let declared = PluginSpec {
            name: "git".into(),
            digest: "d".into(),
            grants: Grants {
                named_hosts: true,
                ..Grants::default()
            },
            limits: Limits::of_volumes(),
            failure_policy: FailurePolicy::Fail,
            config: BTreeMap::new(),
        };
        let mut changed = declared.clone();
        spec(json!({})).change(&mut changed);
        assert_eq!(changed, declared);
        spec(json!({"grants": {"hosts": ["git.example"]}, "limits": {"instances": 2}}))
            .change(&mut changed);
        assert_eq!(changed.grants.hosts, ["git.example"]);
        // Nothing is granted that is not named.
        assert!(!changed.grants.named_hosts);
        assert_eq!(changed.limits.instances_max, 2);
        assert_eq!(
            changed.limits.memory_bytes_max,
            declared.limits.memory_bytes_max
        );
        assert_eq!(changed.failure_policy, FailurePolicy::Fail);
    }
}

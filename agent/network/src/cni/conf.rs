//! Network configuration lists of the CNI specification, and what plugins are told and answer. Pure.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Versions of the specification that are spoken; below 0.3.0 there were no lists.
const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Below this one there is no CHECK.
const FIRST_WITH_CHECK: (u64, u64) = (0, 4);

/// A list of plugins that are called one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConfList {
    #[serde(rename = "cniVersion")]
    pub(crate) version: String,
    pub(crate) name: String,
    #[serde(default, rename = "disableCheck")]
    pub(crate) disable_check: bool,
    pub(crate) plugins: Vec<Map<String, Value>>,
}

/// A port of the node that leads to the pod, as the capability `portMappings` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Of the node.
    pub host_port: u16,
    /// Of the container.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The node's address; every one if there is none.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none", default)]
    pub host_ip: Option<IpAddr>,
}

impl ConfList {
    /// Reads a `.conflist`, or the configuration of a single plugin.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if value.get("plugins").is_none() && value.get("type").is_some() {
            value = json!({ "cniVersion": value["cniVersion"], "name": value["name"], "plugins": [value] });
        }
        let list: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        if !VERSIONS.contains(&list.version.as_str()) {
            return Err(format!(
                "cniVersion {} is none of {}",
                list.version,
                VERSIONS.join(", ")
            ));
        }
        if list.plugins.is_empty() {
            return Err("it names no plugin".into());
        }
        for plugin in &list.plugins {
            let kind = plugin
                .get("type")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if kind.is_empty() || kind.contains('/') {
                return Err(format!("{kind:?} cannot be a plugin's type"));
            }
        }
        Ok(list)
    }

    /// Whether its plugins can be asked if things are in place.
    pub(crate) fn can_check(&self) -> bool {
        let mut numbers = self.version.split('.').map_while(|part| part.parse().ok());
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        !self.disable_check && version >= FIRST_WITH_CHECK
    }

    /// What one plugin is told.
    pub(crate) fn request(
        &self,
        index: usize,
        ports: &[PortMapping],
        previous: Option<&Value>,
    ) -> (String, Value) {
        let mut conf = self.plugins[index].clone();
        let kind = conf.get("type").and_then(Value::as_str).unwrap_or_default();
        let kind = kind.to_owned();
        let can = |name: &str| {
            conf.get("capabilities").and_then(|all| all.get(name)) == Some(&Value::Bool(true))
        };
        let runtime = can("portMappings").then(|| json!({ "portMappings": ports }));
        conf.remove("capabilities");
        conf.insert("cniVersion".into(), self.version.clone().into());
        conf.insert("name".into(), self.name.clone().into());
        conf.extend(runtime.map(|runtime| ("runtimeConfig".to_owned(), runtime)));
        conf.extend(previous.map(|result| ("prevResult".to_owned(), result.clone())));
        (kind, conf.into())
    }
}

/// The pod's addresses in a result, IPv4 first.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let interfaces = result["interfaces"].as_array();
    let is_inside = |ip: &&Value| {
        let index = ip["interface"]
            .as_u64()
            .and_then(|index| usize::try_from(index).ok());
        let interface = index.and_then(|index| interfaces?.get(index));
        // One that is not said to be in the sandbox is the node's end.
        interface.is_none_or(|interface| {
            interface["sandbox"]
                .as_str()
                .is_some_and(|at| !at.is_empty())
        })
    };
    let ips = result["ips"].as_array().into_iter().flatten();
    let mut found: Vec<IpAddr> = ips
        .filter(is_inside)
        .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

/// What a plugin says when it fails.
pub(crate) fn failure(stdout: &[u8]) -> Option<String> {
    let said: Value = serde_json::from_slice(stdout).ok()?;
    let (code, text) = (said.get("code")?, said["msg"].as_str()?);
    let details = said["details"].as_str().unwrap_or_default();
    let separator = if details.is_empty() { "" } else { "; " };
    Some(format!("{text}{separator}{details} (code {code})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_single_plugins_are_read_and_what_cannot_work_is_refused() {
        let single = br#"{"cniVersion": "0.3.1", "name": "n", "type": "bridge", "bridge": "b0"}"#;
        let list = ConfList::parse(single).unwrap();
        assert_eq!((list.plugins.len(), list.can_check()), (1, false));
        let many = br#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;
        assert!(ConfList::parse(many).unwrap().can_check());
        for (bytes, want) in [
            (
                r#"{"cniVersion": "0.2.0", "name": "n", "type": "bridge"}"#,
                "cniVersion 0.2.0 is none of",
            ),
            (
                r#"{"cniVersion": "1.0.0", "name": "n", "plugins": []}"#,
                "names no plugin",
            ),
            (
                r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "../sh"}]}"#,
                "cannot be a plugin's type",
            ),
            (
                r#"{"cniVersion": "1.0.0", "plugins": [{"type": "x"}]}"#,
                "missing field `name`",
            ),
            ("rubbish", "expected value"),
        ] {
            let error = ConfList::parse(bytes.as_bytes()).unwrap_err();
            assert!(error.contains(want), "{bytes}: {error}");
        }
    }

    #[test]
    fn a_plugin_is_told_what_it_can_do_and_what_was_before_it() {
        let list = ConfList::parse(
            br#"{"cniVersion": "1.0.0", "name": "n", "plugins": [
                {"type": "bridge", "ipam": {"type": "host-local"}},
                {"type": "portmap", "capabilities": {"portMappings": true}}]}"#,
        )
        .unwrap();
        let ports = [PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: "tcp".into(),
            host_ip: None,
        }];
        assert_eq!(
            list.request(0, &ports, None),
            (
                "bridge".into(),
                json!({ "cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": { "type": "host-local" } })
            )
        );
        assert_eq!(
            list.request(1, &ports, Some(&json!({ "ips": [] }))),
            (
                "portmap".into(),
                json!({
                    "cniVersion": "1.0.0", "name": "n", "type": "portmap", "prevResult": { "ips": [] },
                    "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] },
                })
            )
        );
    }

    #[test]
    fn addresses_are_those_inside_ipv4_first() {
        let result = json!({
            "interfaces": [{ "name": "b0" }, { "name": "eth0", "sandbox": "/proc/1/ns/net" }],
            "ips": [
                { "address": "fd00::5/64", "interface": 1 },
                { "address": "10.1.0.5/16", "interface": 1 },
                { "address": "10.1.0.1/16", "interface": 0 },
            ],
        });
        let found: Vec<String> = addresses(&result).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.1.0.5", "fd00::5"]);
        assert_eq!(addresses(&json!({})), Vec::<IpAddr>::new());
    }

    #[test]
    fn failures_are_told_in_the_plugins_words() {
        assert_eq!(
            failure(br#"{"code": 7, "msg": "no such range", "details": "10/8"}"#).as_deref(),
            Some("no such range; 10/8 (code 7)")
        );
        assert_eq!(failure(b"rubbish"), None);
    }
}

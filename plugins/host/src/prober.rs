//! Every check is a plugin's: which one, and with which arguments.

use std::{borrow::Cow, sync::Arc};

use async_trait::async_trait;
use tokio::runtime::Handle;

use crate::{Exec, PluginHost, ProbeAction, ProbeOutcome, ProbeRequest, ProbeTarget, Prober};

/// What a command begins with that is a plugin's name: no path of a program begins so.
const PLUGIN_PREFIX: &str = "wasm:";
/// The plugin that runs commands.
const EXEC: &str = "exec";

/// The plugin that a command names, and what is for it: itself for a program in the container, `None` for no words.
pub(crate) fn named_by(command: &[String]) -> Option<(&str, &[String])> {
    let (first, rest) = command.split_first()?;
    Some(match first.strip_prefix(PLUGIN_PREFIX) {
        Some(plugin) => (plugin, rest),
        None => (EXEC, command),
    })
}

/// Has every check made by a plugin, built in or installed.
pub struct PluginProber {
    plugins: Arc<PluginHost>,
}

impl PluginProber {
    /// A prober with a host of plugins.
    pub fn new(plugins: Arc<PluginHost>) -> Self {
        Self { plugins }
    }
}

/// A call: the plugin, its arguments and the container. Of the container a built-in probe needs the address, which its
/// host may be, and nothing else.
fn call(action: &ProbeAction) -> (&str, Cow<'_, [String]>, Cow<'_, ProbeTarget>) {
    let at = |host: &str| {
        Cow::Owned(ProbeTarget {
            ip: host.parse().ok(),
            ..ProbeTarget::default()
        })
    };
    match action {
        ProbeAction::HttpGet {
            is_https,
            host,
            port,
            path,
            headers,
        } => {
            let mut arguments = vec![
                format!("--host={host}"),
                format!("--port={port}"),
                format!("--path={path}"),
            ];
            if *is_https {
                arguments.push("--https".into());
            }
            let headers = headers.iter();
            arguments.extend(headers.map(|(name, value)| format!("--header={name}: {value}")));
            ("http-get", arguments.into(), at(host))
        }
        ProbeAction::TcpSocket { host, port } => {
            let arguments = vec![format!("--host={host}"), format!("--port={port}")];
            ("tcp-socket", arguments.into(), at(host))
        }
        ProbeAction::Grpc {
            host,
            port,
            service,
        } => {
            let arguments = vec![
                format!("--host={host}"),
                format!("--port={port}"),
                format!("--service={service}"),
            ];
            ("grpc", arguments.into(), at(&host.to_string()))
        }
        ProbeAction::Exec { command } => (EXEC, command.into(), Cow::Owned(ProbeTarget::default())),
        ProbeAction::Plugin {
            plugin,
            arguments,
            target,
        } => (plugin, arguments.into(), Cow::Borrowed(target.as_ref())),
    }
}

#[async_trait]
impl Prober for PluginProber {
    async fn check(&self, request: &ProbeRequest, exec: &dyn Exec) -> ProbeOutcome {
        let (plugin, arguments, target) = call(&request.action);
        self.plugins
            .check(plugin, &arguments, &target, request.timeout, exec)
            .await
    }

    fn runtime(&self) -> Option<Handle> {
        self.plugins.runtime()
    }

    fn metrics(&self) -> String {
        self.plugins.metrics()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_a_plugins_or_the_exec_probes() {
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        let command = words(&["wasm:redis-ping", "--port=1"]);
        assert_eq!(named_by(&command), Some(("redis-ping", &command[1..])));
        let command = words(&["cat", "wasm:x"]);
        assert_eq!(named_by(&command), Some(("exec", &command[..])));
        assert_eq!(named_by(&[]), None);
    }
}

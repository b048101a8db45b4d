//! Sends each check to whoever makes it.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{Exec, NativeProber, PluginHost, ProbeAction, ProbeOutcome, ProbeRequest, Prober};

/// Native probes, and those of installed plugins.
pub struct PluginProber {
    native: NativeProber,
    plugins: Arc<PluginHost>,
}

impl PluginProber {
    /// A prober with a host of plugins.
    pub fn new(plugins: Arc<PluginHost>) -> Self {
        Self {
            native: NativeProber::default(),
            plugins,
        }
    }
}

#[async_trait]
impl Prober for PluginProber {
    async fn check(&self, request: &ProbeRequest, exec: &dyn Exec) -> ProbeOutcome {
        match &request.action {
            ProbeAction::Plugin {
                plugin,
                arguments,
                target,
            } => {
                self.plugins
                    .check(plugin, arguments, target, request.timeout, exec)
                    .await
            }
            _ => self.native.check(request, exec).await,
        }
    }
}

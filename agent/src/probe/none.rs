//! A node without plugins, which makes no probes.

use async_trait::async_trait;
use wherry_plugin_host::{Exec, ProbeOutcome, ProbeRequest, ProbeResult, Prober};

/// Says of every check that it cannot be made.
pub(crate) struct NoProber;

#[async_trait]
impl Prober for NoProber {
    async fn check(&self, _: &ProbeRequest, _: &dyn Exec) -> ProbeOutcome {
        ProbeOutcome::new(ProbeResult::Unknown, "this node makes no probes")
    }
}

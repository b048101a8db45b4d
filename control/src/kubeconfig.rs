//! Kubeconfig files, as commands are given them.

use std::path::Path;

use anyhow::{Context, Result};

/// What a kubeconfig says of its current context.
pub(crate) async fn read(path: &Path) -> Result<kube::Config> {
    let context = || path.display().to_string();
    let kubeconfig = kube::config::Kubeconfig::read_from(path).with_context(context)?;
    kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .with_context(context)
}

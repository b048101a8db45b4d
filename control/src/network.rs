//! The pod network that a node was told to have, and its end.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use wherry_agent::network::Network;
use wherry_network::{Backend, CniConfig, CniNetwork, NetworkConfig, PodNetwork, Vxlan, local};

use crate::{
    agent,
    cli::{NetworkBackend, NodeArgs, RootArgs},
    record::Record,
};

/// Opens it; what is the node's own is there afterwards.
pub(crate) async fn open(
    root: &RootArgs,
    args: &NodeArgs,
    pod_cidr: &str,
) -> Result<Arc<dyn Network>> {
    let backend = match args.network_backend {
        NetworkBackend::Auto => Backend::Auto,
        NetworkBackend::HostGw => Backend::HostGw,
        NetworkBackend::Vxlan => Backend::Vxlan,
        NetworkBackend::Cni => {
            // The node's name server and Services have their home on it all the same.
            local::make_home(&args.bridge).await?;
            let config = CniConfig {
                dir: cni_dir(root),
                conf_dir: absolute(&args.cni_conf_dir)?,
                bin_dirs: args
                    .cni_bin_dir
                    .iter()
                    .map(absolute)
                    .collect::<Result<_>>()?,
            };
            return Ok(Arc::new(CniNetwork::new(config)?));
        }
    };
    let pod_cidr = pod_cidr.parse().context("--pod-cidr")?;
    let mut config = NetworkConfig::new(dir(root), pod_cidr);
    config.bridge.clone_from(&args.bridge);
    config.backend = backend;
    config.vxlan = Vxlan {
        vni: args.vxlan_vni,
        port: args.vxlan_port,
    };
    config.node_ips = vec![agent::ip(args)];
    let network = PodNetwork::new(config)?;
    network.up().await?;
    Ok(Arc::new(network))
}

/// Takes away all of it, whichever it was.
pub(crate) async fn down(root: &RootArgs, record: &Record) -> Result<()> {
    if cni_dir(root).exists() {
        let config = CniConfig {
            dir: cni_dir(root),
            conf_dir: PathBuf::new(),
            bin_dirs: Vec::new(),
        };
        CniNetwork::new(config)?.down().await?;
    }
    let mut config = NetworkConfig::new(dir(root), record.pod_cidr.parse()?);
    config.bridge.clone_from(&record.bridge);
    PodNetwork::new(config)?.down().await?;
    Ok(())
}

fn dir(root: &RootArgs) -> PathBuf {
    root.root.join("network")
}

fn cni_dir(root: &RootArgs) -> PathBuf {
    root.root.join("network/cni")
}

/// Plugins are other processes, and attachments are undone by another one than made them.
fn absolute(path: &PathBuf) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

//! What a container's guests see of the world outside: which addresses they may use, which names they
//! know, whom they trust.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use wherry_wasm::protocol::ContainerSpec;

use crate::{
    names::Names,
    network::Network,
    tls::{NodeRoots, Trust},
};

/// Names the file of certificate authorities that a program is to trust, as OpenSSL has it.
const AUTHORITIES_VARIABLE: &str = "SSL_CERT_FILE";

/// The pod as one of its containers sees it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) network: Network,
    pub(crate) names: Names,
    pub(crate) trust: Trust,
}

impl Pod {
    /// `directories` are those of `spec.preopens`, in order.
    pub(crate) fn new(
        spec: &ContainerSpec,
        directories: &[OwnedFd],
        node: Arc<NodeRoots>,
    ) -> Arc<Self> {
        Arc::new(Self {
            network: (&spec.network).into(),
            names: Names::new(&spec.hosts, &spec.resolv_conf),
            trust: Trust::new(node, authorities(spec, directories)),
        })
    }
}

/// The container's own file of certificate authorities: a directory of its, and the path below.
fn authorities(spec: &ContainerSpec, directories: &[OwnedFd]) -> Option<(OwnedFd, PathBuf)> {
    let named =
        |(name, value): &&(String, String)| name == AUTHORITIES_VARIABLE && !value.is_empty();
    let (_, path) = spec.env.iter().rev().find(named)?;
    let below = spec
        .preopens
        .iter()
        .zip(directories)
        .filter_map(|(preopen, directory)| {
            let below = Path::new(path).strip_prefix(&preopen.guest_path).ok()?;
            Some((preopen.guest_path.len(), directory, below))
        });
    let (_, directory, below) = below.max_by_key(|(length, _, _)| *length)?;
    Some((directory.try_clone().ok()?, below.to_owned()))
}

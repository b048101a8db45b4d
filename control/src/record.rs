//! What a root's node was last told and `down` has to know, for it is given nothing but the root.

use std::{fs, io, path::PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cli::{NodeArgs, RootArgs};

/// Names of what a node makes outside of its root.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) bridge: String,
    pub(crate) pod_cidr: String,
    pub(crate) cgroup_root: String,
    #[serde(default)]
    pub(crate) docker_endpoint: Option<String>,
}

fn path(root: &RootArgs) -> PathBuf {
    root.root.join("node.json")
}

impl Record {
    /// Writes it down before the node makes anything.
    pub(crate) fn write(root: &RootArgs, args: &NodeArgs, pod_cidr: &str) -> Result<()> {
        let record = Self {
            bridge: args.bridge.clone(),
            pod_cidr: pod_cidr.to_owned(),
            cgroup_root: args.cgroup_root.clone(),
            docker_endpoint: args.docker_endpoint.clone(),
        };
        let path = path(root);
        wherry_server::pki::write_file(&path, &serde_json::to_vec(&record)?, 0o644)
            .context("node record")
    }

    /// Reads it; `None` where no node was ever started.
    pub(crate) fn read(root: &RootArgs) -> Result<Option<Self>> {
        let path = path(root);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?,
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }
}

//! The pod network, as far as the agent calls it: the node's own, or a fake in tests.

use std::{collections::HashSet, net::IpAddr, path::PathBuf};

use async_trait::async_trait;

/// Where a pod's addresses go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Into a network namespace, as `eth0`.
    Namespace(PathBuf),
    /// Onto the node's bridge.
    Confined,
}

/// Gives pods addresses. Calls are repeatable, and one pod keeps its addresses over restarts.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Connects a pod and answers its addresses.
    async fn attach(&self, uid: &str, to: Attach) -> Result<Vec<IpAddr>, String>;
    /// Takes a pod's addresses back. Nothing there: `Ok`.
    async fn detach(&self, uid: &str) -> Result<(), String>;
    /// Takes back the addresses of all other pods.
    async fn retain(&self, live: &HashSet<String>) -> Result<(), String>;
}

#[async_trait]
impl Network for wherry_network::PodNetwork {
    async fn attach(&self, uid: &str, to: Attach) -> Result<Vec<IpAddr>, String> {
        let to = match to {
            Attach::Namespace(path) => wherry_network::Attach::Namespace(path),
            Attach::Confined => wherry_network::Attach::Confined,
        };
        self.attach(uid, to)
            .await
            .map_err(|error| error.to_string())
    }

    async fn detach(&self, uid: &str) -> Result<(), String> {
        self.detach(uid).await.map_err(|error| error.to_string())
    }

    async fn retain(&self, live: &HashSet<String>) -> Result<(), String> {
        self.retain(live).await.map_err(|error| error.to_string())
    }
}

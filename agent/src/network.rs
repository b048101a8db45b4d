//! The pod network, as far as the agent calls it: the node's own, or a fake in tests.

mod peers;

use std::{collections::HashSet, net::IpAddr, path::PathBuf};

use async_trait::async_trait;
use tokio::sync::watch;
use wherry_network::{CniNetwork, PodNetwork, Unreachable};

pub use wherry_network::Member;

pub use peers::Peers;
pub(crate) use peers::run as follow_peers;

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
    /// Whether pods of Wasm containers alone can do without a namespace ([`Attach::Confined`]).
    fn takes_confined(&self) -> bool {
        true
    }
    /// Connects a pod and answers its addresses.
    async fn attach(&self, pod: &Member, to: Attach) -> Result<Vec<IpAddr>, String>;
    /// Takes a pod's addresses back. Nothing there: `Ok`.
    async fn detach(&self, uid: &str) -> Result<(), String>;
    /// Takes back the addresses of all other pods.
    async fn retain(&self, live: &HashSet<String>) -> Result<(), String>;
    /// Keeps the ways to other nodes' pods as `peers` says, until it is dropped. Nodes that cannot be reached are told
    /// to `unreachable`. Where somebody else sees to that, nothing is done.
    async fn keep_peers(
        &self,
        peers: watch::Receiver<Peers>,
        unreachable: watch::Sender<Vec<Unreachable>>,
    ) {
        let _ = (peers, unreachable);
        std::future::pending().await
    }
}

#[async_trait]
impl Network for PodNetwork {
    async fn attach(&self, pod: &Member, to: Attach) -> Result<Vec<IpAddr>, String> {
        let to = match to {
            Attach::Namespace(path) => wherry_network::Attach::Namespace(path),
            Attach::Confined => wherry_network::Attach::Confined,
        };
        self.attach(&pod.uid, to)
            .await
            .map_err(|error| error.to_string())
    }

    async fn detach(&self, uid: &str) -> Result<(), String> {
        self.detach(uid).await.map_err(|error| error.to_string())
    }

    async fn retain(&self, live: &HashSet<String>) -> Result<(), String> {
        self.retain(live).await.map_err(|error| error.to_string())
    }

    async fn keep_peers(
        &self,
        peers: watch::Receiver<Peers>,
        unreachable: watch::Sender<Vec<Unreachable>>,
    ) {
        self.keep_peers(peers, unreachable).await
    }
}

#[async_trait]
impl Network for CniNetwork {
    fn takes_confined(&self) -> bool {
        false
    }

    async fn attach(&self, pod: &Member, to: Attach) -> Result<Vec<IpAddr>, String> {
        let attached = match to {
            Attach::Namespace(path) => self.attach(pod, &path).await,
            // A sandbox from before there were plugins: it goes with its pod.
            Attach::Confined => {
                return Err("the network's plugins need a network namespace, and the pod's sandbox has none".into());
            }
        };
        attached.map_err(|error| error.to_string())
    }

    async fn detach(&self, uid: &str) -> Result<(), String> {
        self.detach(uid).await.map_err(|error| error.to_string())
    }

    async fn retain(&self, live: &HashSet<String>) -> Result<(), String> {
        self.retain(live).await.map_err(|error| error.to_string())
    }
}

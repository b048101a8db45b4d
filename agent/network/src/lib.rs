//! The node's pod network: bridge, veth, addresses reserved on disk.
//!
//! ```text
//!            pod with a namespace              pod without (confined)
//!          ┌──────────────────────┐          ┌───────────────────────┐
//!          │ eth0 10.88.0.2/16    │          │ sockets of the worker │
//!          └──────────┬───────────┘          └───────────┬───────────┘
//!                     │ veth                             │ bind
//!   ──── wherry0 ─────┴────── 10.88.0.1/16, 10.88.0.3/32 ┴──────────
//!                     │ forward; masquerade what leaves the cluster (nftables, a table of our own)
//!         ┌───────────┴───────────┐
//!      outside     other nodes' pods: routes and a tunnel (peers)
//! ```
//!
//! Where a directory of CNI plugins is used instead (cni), none of that is made, but for a bridge that is home to the
//! node's name server.
//!
//! Nothing but addresses is remembered, and those by the names of files: whatever a killed agent
//! left half done is found in the kernel and finished or undone by the next call. Left to others:
//! making namespaces, confining sockets, who is a node of the cluster, Services.

mod addresses;
mod bridge;
mod cidr;
mod cni;
mod error;
mod firewall;
pub mod local;
pub mod netfilter;
mod netlink;
pub mod nft;
mod peers;
mod pod_network;
mod veth;

pub use cidr::Cidr;
pub use cni::{CniConfig, CniNetwork, Member, PortMapping};
pub use error::NetworkError;
pub use firewall::services_table;
pub use peers::{Backend, Peer, Unreachable, Vxlan};
pub use pod_network::{Attach, NetworkConfig, PodNetwork};

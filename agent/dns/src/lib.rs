//! The cluster's names, answered on the node: no DNS pod that could be down.
//!
//! ```text
//!  question ─▶ server ─┬▶ zone (pure, over the Index of Services) ─▶ answer
//!                      └▶ forward ─▶ the node's own name servers
//! ```
//!
//! Nothing is kept: the cluster's own names are looked up in memory, others' are left to the servers that
//! the node uses anyway.

mod forward;
mod server;
mod zone;

pub use server::{Config, run};
